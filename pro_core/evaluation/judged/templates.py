"""Our own templates for the judged benchmarks. A recipe may name others."""

from __future__ import annotations

from pro_core.judges.templates import Template

_RUBRIC = (
    "Judge only what the answers say: whether they are correct, whether they do what was asked, and whether they are "
    "clear. Neither the order of the answers nor their length counts."
)
_TEXTS = (
    "[Request]\n{prompt}\n\n[Answer A]\n{first}\n\n[Answer B]\n{second}\n[End of the answers]\n\n"
)

LABELS = ("A", "B")
PREFERENCE = Template(
    "preference",
    1,
    _TEXTS + "Which answer is better? Reply with one letter, A or B, and nothing else.",
    f"You compare two answers to one request. {_RUBRIC}",
    LABELS,
)
"""AlpacaEval: one letter, read by its log-probability."""
VERDICT = Template(
    "verdict",
    1,
    _TEXTS
    + "First say what a good answer needs, then compare both answers with it. End with exactly one of these: "
    "[[A>>B]] if A is much better, [[A>B]] if A is better, [[A=B]] if they are equally good, [[B>A]] if B is "
    "better, [[B>>A]] if B is much better.",
    f"You compare two answers to one request. {_RUBRIC}",
)
"""Arena-Hard: five verdicts."""
_MARK = (
    "Say in a few sentences what is good and bad about it, then give a mark from 1 (useless) to 10 (could not be "
    "better) in exactly this form: [[5]]"
)
SCORE = Template(
    "score",
    1,
    "[Request]\n{prompt}\n\n[Answer]\n{answer}\n[End of the answer]\n\nGrade the answer. " + _MARK,
    "You grade an assistant's answer strictly and fairly.",
)
"""MT-Bench, first turn."""
SCORE_REFERENCE = Template(
    "score_reference",
    1,
    "[Request]\n{prompt}\n\n[Reference answer, which is correct]\n{reference}\n\n[Answer]\n{answer}\n"
    "[End of the answer]\n\nCompare the answer with the reference, find its mistakes, and grade it. "
    + _MARK,
    SCORE.system,
)
_DIALOGUE = (
    "[First request]\n{prompt}\n\n[First answer]\n{answer}\n\n[Second request]\n{prompt_2}\n\n"
)
SCORE_SECOND = Template(
    "score_second",
    1,
    _DIALOGUE
    + "[Second answer]\n{answer_2}\n[End of the dialogue]\n\nGrade the second answer only. "
    + _MARK,
    SCORE.system,
)
SCORE_SECOND_REFERENCE = Template(
    "score_second_reference",
    1,
    _DIALOGUE + "[Reference answers, which are correct]\nTo the first request: {reference}\n"
    "To the second request: {reference_2}\n\n[Second answer]\n{answer_2}\n[End of the dialogue]\n\n"
    "Compare the second answer with its reference, find its mistakes, and grade the second answer only. "
    + _MARK,
    SCORE.system,
)
FACTS = Template(
    "facts",
    1,
    "[Question]\n{prompt}\n\n[Answer]\n{answer}\n[End of the answer]\n\nList the statements of fact in the answer, "
    "each as one short sentence that can be checked on its own, one per line, numbered: 1. ... If the answer states "
    "no fact, write only: NONE",
    "You take answers apart into the facts that they state. You do not correct them.",
)
"""HaluEval 2.0, first step."""
TRUTH = Template(
    "truth",
    1,
    "[Question that was answered]\n{prompt}\n\n[Statements]\n{facts}\n\nFor each statement write one line with its "
    "number and one word: TRUE, FALSE, or UNKNOWN if it cannot be decided. For example: 1. TRUE",
    "You check statements of fact against what is known.",
)
"""HaluEval 2.0, second step."""

OURS = (
    PREFERENCE,
    VERDICT,
    SCORE,
    SCORE_REFERENCE,
    SCORE_SECOND,
    SCORE_SECOND_REFERENCE,
    FACTS,
    TRUTH,
)
