"""What a judge is asked, as versioned templates of our own or files that a recipe names.

A template is a system text and a user text with places such as ``{prompt}``. Places are filled in one pass, so text of
an answer that looks like a place stays as it is. Every other brace is text. Official templates use other names for the
same places (:data:`PLACES`), and are read as they are published.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pro_core.data.objectives import Message
from pro_core.data.schema import DataError
from pro_core.system.storage import content_hash

PLACES = {
    **dict.fromkeys(
        ("prompt", "instruction", "QUESTION", "question", "query", "user_query"), "prompt"
    ),
    **dict.fromkeys(("first", "output_1", "ANSWER_A", "answer_a"), "first"),
    **dict.fromkeys(("second", "output_2", "ANSWER_B", "answer_b"), "second"),
    **dict.fromkeys(("answer", "response", "answer_1"), "answer"),
    **dict.fromkeys(("reference", "ref_answer_1", "REFERENCE"), "reference"),
    **dict.fromkeys(("prompt_2", "question_2"), "prompt_2"),
    **dict.fromkeys(("answer_2",), "answer_2"),
    **dict.fromkeys(("reference_2", "ref_answer_2"), "reference_2"),
    **dict.fromkeys(("prompt_1", "question_1"), "prompt"),
    **dict.fromkeys(("facts",), "facts"),
}
"""What templates call a place -> the place."""
_PLACE = re.compile(r"\{(" + "|".join(sorted(PLACES, key=len, reverse=True)) + r")\}")
_TURN = re.compile(r"<\|im_start\|>(system|user)\n(.*?)\s*<\|im_end\|>", re.DOTALL)


@dataclass(frozen=True)
class Template:
    """One kind of question.

    Attributes:
        name, version: of ours; a file's name, and 0.
        labels: the words that a judge answers with if the first or the second text is better; None where it writes.
    """

    name: str
    version: int
    user: str
    system: str = ""
    labels: tuple[str, str] | None = None

    @property
    def identity(self) -> str:
        """Name, version and a hash of the text: a verdict on another text is another verdict."""
        text = content_hash([self.system, self.user, self.labels])[:8]
        return f"{self.name}-{self.version}-{text}"

    @property
    def places(self) -> set[str]:
        """The places that it has."""
        return {PLACES[name] for name in _PLACE.findall(self.user + self.system)}

    def messages(self, **texts: str) -> list[Message]:
        """The question with its places filled.

        Raises:
            DataError: a place without a text.
        """
        if missing := sorted(self.places - set(texts)):
            raise DataError(
                f"the template {self.name} has a place for {', '.join(missing)}, which this benchmark does not give"
            )

        def fill(text: str) -> str:
            return _PLACE.sub(lambda found: texts[PLACES[found[1]]], text)

        turns = [("system", self.system), ("user", self.user)]
        return [{"role": role, "content": fill(text)} for role, text in turns if text]


def read_template(path: str | Path, needed: set[str], labels: tuple[str, str] | None) -> Template:
    """The template of a file: YAML with ``user`` (or the official ``prompt_template``) and perhaps ``system`` (or
    ``system_prompt``) and ``labels``; or a text, whose turns may stand between ``<|im_start|>`` and ``<|im_end|>``.

    Args:
        needed: the places that it must have. labels: where the file names none; None for a judge that writes.

    Raises:
        DataError: not such a file, or a place is missing.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        data = yaml.safe_load(text) if path.suffix in (".yaml", ".yml", ".json") else text
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path}: not a template that can be read ({error})") from None
    if isinstance(data, Mapping):
        user, system = (
            _named(data, "user", "prompt_template"),
            _named(data, "system", "system_prompt"),
        )
        named = data.get("labels")
        if isinstance(named, list) and len(named) == 2:
            labels = (str(named[0]), str(named[1]))
    else:
        turns = dict(_TURN.findall(text))
        user, system = turns.get("user", "" if turns else text), turns.get("system", "")
    template = Template(path.stem, 0, user, system, labels)
    if missing := sorted(needed - template.places):
        raise DataError(f"{path}: the template has no place for {', '.join(missing)}")
    return template


def _named(data: Mapping[str, Any], *names: str) -> str:
    return next((data[name] for name in names if isinstance(data.get(name), str)), "")


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
