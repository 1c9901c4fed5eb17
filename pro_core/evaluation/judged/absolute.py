"""Rows of the benchmarks that grade answers one by one: MT-Bench (2306.05685) and HaluEval 2.0 (2401.03205).

HackaPrompt, MOSLIM's third benchmark, cannot be repeated: the templates that its authors changed are not published.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from pro_core.data.schema import DataError
from pro_core.evaluation.judged.rates import Floats, Rate, mean_rate, paired_lead
from pro_core.evaluation.judged.run import JudgedRun, text_counts
from pro_core.evaluation.judged.templates import (
    FACTS,
    SCORE,
    SCORE_REFERENCE,
    SCORE_SECOND,
    SCORE_SECOND_REFERENCE,
    TRUTH,
)
from pro_core.evaluation.results import Row
from pro_core.judges.judge import Question
from pro_core.judges.templates import Template

REFERENCED = ("math", "reasoning", "coding")
"""MT-Bench's categories whose answers are compared with a reference."""
_MARKS = (re.compile(r"\[\[(\d+(?:\.\d+)?)\]\]"), re.compile(r"\[(\d+(?:\.\d+)?)\]"))
_FACT = re.compile(r"^[ \t]*\d+[ \t]*[.):][ \t]*(\S.*)$", re.MULTILINE)
_NONE = re.compile(r"^\W*NONE\W*$", re.IGNORECASE)
_TRUTH = re.compile(r"^\W*(\d+)\W+(TRUE|FALSE|UNKNOWN)\b", re.MULTILINE)


def parse_score(text: str) -> float | None:
    """The last mark from 1 to 10 in a judge's text, ``[[7]]`` or ``[7]``; None without one."""
    for pattern in _MARKS:
        if found := pattern.findall(text):
            mark = float(found[-1])
            return mark if 1 <= mark <= 10 else None
    return None


def parse_facts(text: str) -> list[str] | None:
    """The numbered statements of a judge's text; none where it says NONE; None for a text in another form."""
    found = [fact.strip() for fact in _FACT.findall(text)]
    return found if found or _NONE.match(text.strip()) else None


def parse_truths(text: str, facts: int) -> list[str] | None:
    """TRUE, FALSE or UNKNOWN for each fact, in order; None unless each has one."""
    by_number = {int(number): word for number, word in _TRUTH.findall(text.upper())}
    words = [by_number.get(i) for i in range(1, facts + 1)]
    return [word for word in words if word] if all(words) else None


def hallucination_rates(truths: Sequence[list[str] | None]) -> dict[str, Rate]:
    """HaluEval 2.0's rates in percent, with intervals over prompts.

    ``mihr``: the mean over answers of the share of false facts. ``mahr``: the share of answers with a false fact. An
    UNKNOWN fact counts as a fact that is not false. Answers without facts, or without verdicts, are left out.

    Raises:
        DataError: no answer with facts.
    """
    false_P = np.array([t.count("FALSE") / len(t) if t else np.nan for t in truths])
    if not np.isfinite(false_P).any():
        raise DataError(f"got {len(truths)} answers, and none with facts that were judged")
    any_false = np.where(np.isfinite(false_P), false_P > 0, np.nan)
    return {"mihr": mean_rate(false_P), "mahr": mean_rate(any_false)}


# ---------------------------------------------------------------- MT-Bench


def mt_bench_rows(run: JudgedRun) -> list[Row]:
    """One row per model: the mean mark from 1 to 10, of each turn, and of each category.

    Raises:
        DataError: the judge gave no mark to a model.
    """
    marks = {name: _marks(run, name) for name in run.contestants}
    rows: list[Row] = []
    for m, (name, marks_P2) in enumerate(marks.items()):
        if not np.isfinite(marks_P2).any():
            raise DataError(f"{name}: the judge gave no mark from 1 to 10")
        rates = {"score": _score(marks_P2)}
        for turn in (0, 1):
            if np.isfinite(marks_P2[:, turn]).any():
                rates[f"score_turn_{turn + 1}"] = _score(marks_P2[:, [turn]])
        for category in dict.fromkeys(p.category for p in run.prompts):
            of_category = marks_P2[[p.category == category for p in run.prompts]]
            if category and np.isfinite(of_category).any():
                rates[f"score_{category}"] = _score(of_category)
        leads = {
            other: {"score": _lead(marks_P2, theirs)}
            for other, theirs in list(marks.items())[:m]
            if np.isfinite(_over_turns(marks_P2) + _over_turns(theirs)).any()
        }
        texts = [run.text(name, p, t) for p in range(len(run.prompts)) for t in (0, 1)]
        counts = text_counts(texts) | {"unjudged": int(np.isnan(marks_P2).sum())}
        rows.append(run.row(name, rates, counts, leads=leads))
    return rows


def _marks(run: JudgedRun, name: str) -> Floats:
    """The marks of both turns, (P, 2); NaN where there is none."""
    questions, places = [], []
    for p, prompt in enumerate(run.prompts):
        answer = run.answers[name][p]
        if answer is None:
            continue
        referenced = (
            prompt.category in REFERENCED
            and all(prompt.reference[:2])
            and len(prompt.reference) >= 2
        )
        first, second = (
            (SCORE_REFERENCE, SCORE_SECOND_REFERENCE) if referenced else (SCORE, SCORE_SECOND)
        )
        texts = {
            "prompt": prompt.turns[0],
            "prompt_2": prompt.turns[1],
            "answer": answer[0],
            "answer_2": answer[1],
        }
        if referenced:
            texts |= {"reference": prompt.reference[0], "reference_2": prompt.reference[1]}
        for turn, ours in enumerate((first, second)):
            questions.append(_question(run, ours, texts))
            places.append((p, turn))
    marks = np.full((len(run.prompts), 2), np.nan)
    for place, reply in zip(places, run.verdicts.ask(questions, "marks"), strict=True):
        mark = parse_score(reply.text) if reply else None
        marks[place] = np.nan if mark is None else mark
    return marks


def _question(run: JudgedRun, ours: Template, texts: dict[str, str]) -> Question:
    template = run.template(ours)
    return Question(template.messages(**texts), template.identity, run.recipe.judge.max_tokens)


def _score(marks_PT: Floats) -> Rate:
    """The mean over prompts of the mean over their marked turns."""
    return mean_rate(_over_turns(marks_PT), scale=1.0)


def _over_turns(marks_PT: Floats) -> Floats:
    counted = np.isfinite(marks_PT).sum(axis=1)
    return np.where(counted, np.nansum(marks_PT, axis=1) / np.maximum(counted, 1), np.nan)


def _lead(marks_PT: Floats, others_PT: Floats) -> Rate:
    return paired_lead(_over_turns(marks_PT), _over_turns(others_PT), scale=1.0)


# ---------------------------------------------------------------- HaluEval 2.0


def halueval_rows(run: JudgedRun) -> list[Row]:
    """One row per model: both hallucination rates; lower is better."""
    rows = []
    for name in run.contestants:
        answered = [p for p in range(len(run.prompts)) if run.text(name, p) is not None]
        texts = {
            p: {"prompt": run.prompts[p].turns[0], "answer": str(run.text(name, p))}
            for p in answered
        }
        listed = run.verdicts.ask([_question(run, FACTS, texts[p]) for p in answered], "facts")
        read = {p: parse_facts(r.text) for p, r in zip(answered, listed, strict=True) if r}
        facts = {p: found for p, found in read.items() if found is not None}
        checked = [p for p, found in facts.items() if found]
        questions = []
        for p in checked:
            numbered = "\n".join(f"{i}. {fact}" for i, fact in enumerate(facts[p], 1))
            questions.append(_question(run, TRUTH, texts[p] | {"facts": numbered}))
        truths: list[list[str] | None] = [None] * len(run.prompts)
        for p, reply in zip(checked, run.verdicts.ask(questions, "verdicts"), strict=True):
            truths[p] = parse_truths(reply.text, len(facts[p])) if reply else None
        words = [word for t in truths if t for word in t]
        rates = hallucination_rates(truths)
        counts = text_counts([run.text(name, p) for p in range(len(run.prompts))])
        counts |= {
            "facts": len(words),
            "unknown_facts": words.count("UNKNOWN"),
            "without_facts": sum(not found for found in facts.values()),
            "unjudged": sum(truths[p] is None for p in checked) + len(answered) - len(facts),
        }
        rows.append(run.row(name, rates, counts))
    return rows
