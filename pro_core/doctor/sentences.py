"""How far to trust an objective that is written as a sentence: its judge's scores on pairs that people compared.

    python -m pro_core.doctor --sentence "The answer is concise." --judge http://localhost:8000 --data pairs.jsonl

Several sentences are graded on the same pairs, and each is compared with the first.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pro_core.data.schema import PreferencePair, first_user_turn
from pro_core.metrics import accuracy_lead, accuracy_with_interval
from pro_core.rewards.baselines import longer_wins
from pro_core.rewards.calibration import text_lengths
from pro_core.rewards.length import length_correlation, length_report
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.scores import distinct_texts
from pro_core.rewards.specs import RewardModelSpec

Floats = NDArray[np.float64]

FEW = 40
"""Pairs below which no sentence is called trustworthy."""


@dataclass(frozen=True)
class Grade:
    """One sentence on its objective's pairs.

    Attributes:
        accuracy, longer_wins: as :func:`pro_core.metrics.accuracy_with_interval` gives them; None without pairs.
        lead: over longer-wins, and over_first: over the first sentence, paired, -1 to 1; None where there is none.
        length: as :func:`pro_core.rewards.length.length_report` gives it.
        missing: pairs for one of whose texts the judge gave no verdict; they count nowhere.
        others: on the pairs that people compared under other objectives, objective -> accuracy.
        margins: with the panel's objectives, Spearman's correlation of the margins.
    """

    sentence: str
    accuracy: dict[str, Any] | None = None
    longer_wins: dict[str, Any] | None = None
    lead: dict[str, Any] | None = None
    over_first: dict[str, Any] | None = None
    length: dict[str, Any] = field(default_factory=dict)
    missing: int = 0
    others: dict[str, dict[str, Any]] = field(default_factory=dict)
    margins: dict[str, float] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """What the measurement says, in one sentence."""
        if self.accuracy is None or self.lead is None:
            return "not measured: without pairs nothing says how far to trust it"
        low, high = self.accuracy["ci95"]
        if high < 0.5:
            return "prefers what people rejected: reverse its direction, or write it anew"
        if low <= 0.5:
            return "cannot be told from a coin on these pairs"
        if self.lead["ci95"][0] <= 0:
            return "better than a coin, but not surely better than preferring the longer answer"
        if self.accuracy["n"] < FEW:
            return f"promising, on few pairs: measure it on {FEW} or more"
        return "surely better than a coin and than preferring the longer answer"


def grade_sentences(
    specs: Sequence[RewardModelSpec],
    pairs: Sequence[PreferencePair],
    objective: str = "",
    panel: RewardPanel | None = None,
    on_progress: Any = None,
) -> list[Grade]:
    """A grade of each sentence.

    Args:
        specs: one per sentence, by the same judge, with different names.
        objective: whose pairs the sentences stand for; "" for all pairs. The others show what they agree with.
        panel: whose objectives' margins are compared with the sentences'.

    Raises:
        EndpointError: the judge cannot be used, or stops answering.
    """
    own = np.array([not objective or p.objective == objective for p in pairs], dtype=bool)
    if not len(pairs):
        return [Grade(spec.judge) for spec in specs]
    prompts, completions, where = distinct_texts(pairs)
    judges = RewardPanel.build(list(specs), "")
    scores = judges.score(prompts, completions, on_progress, allow_missing=True).astype(np.float64)
    margins_PS = scores[where[:, 0]] - scores[where[:, 1]]
    texts = [first_user_turn(p.prompt) for p in pairs]
    lengths = text_lengths(completions)[where]
    by_length = longer_wins(pairs)
    panel_PK = None
    if panel is not None:
        raw = panel.score(prompts, completions, allow_missing=True).astype(np.float64)
        panel_PK = raw[where[:, 0]] - raw[where[:, 1]]
    grades = []
    for s, spec in enumerate(specs):
        margin = margins_PS[:, s]
        there = np.isfinite(margin)
        rows = np.flatnonzero(own & there)
        both = rows[np.isfinite(margins_PS[rows, 0])]
        others = {
            name: _accuracy(margin, texts, np.flatnonzero(there & _named(pairs, name)))
            for name in sorted({p.objective for p in pairs} - {objective})
            if objective and (there & _named(pairs, name)).any()
        }
        if not len(rows):
            grades.append(Grade(spec.judge, missing=int((own & ~there).sum()), others=others))
            continue
        of_rows = [texts[i] for i in rows]
        correlations: dict[str, float] = {}
        if panel is not None and panel_PK is not None:
            for k, name in enumerate(panel.objective_names):
                used = rows[np.isfinite(panel_PK[rows, k])]
                value = length_correlation(margin[used], panel_PK[used, k]) if len(used) else None
                correlations |= {} if value is None else {name: value}
        grades.append(
            Grade(
                spec.judge,
                _accuracy(margin, texts, rows),
                _accuracy(by_length, texts, rows),
                accuracy_lead(margin[rows], by_length[rows], of_rows),
                accuracy_lead(margin[both], margins_PS[both, 0], [texts[i] for i in both])
                if s and len(both)
                else None,
                length_report(margin[rows], lengths[rows, 0], lengths[rows, 1], of_rows),
                int((own & ~there).sum()),
                others,
                correlations,
            )
        )
    return grades


def _named(pairs: Sequence[PreferencePair], name: str) -> NDArray[np.bool_]:
    return np.array([p.objective == name for p in pairs], dtype=bool)


def _accuracy(margins: Floats, texts: Sequence[str], rows: NDArray[np.intp]) -> dict[str, Any]:
    return accuracy_with_interval(margins[rows], [texts[i] for i in rows])


def render_sentences(grades: Sequence[Grade], judge: str, objective: str = "") -> str:
    """The page for a terminal, at most 98 columns."""
    which = f"pairs of {objective}" if objective else "all pairs"
    lines = ["PRO doctor: how far to trust an objective that is written as a sentence?"]
    lines += _wrapped(f"Judge: {judge}; {which}.", "")
    for number, grade in enumerate(grades, 1):
        lines += [
            "",
            *_wrapped(f'{number}. "{grade.sentence}"', ""),
            *_wrapped(f"VERDICT {grade.verdict}"),
        ]
        if grade.accuracy and grade.longer_wins and grade.lead:
            lines += _wrapped(
                f"accuracy {_shown(grade.accuracy)} on {grade.accuracy['n']} pairs, {grade.accuracy['prompts']} "
                f"prompts; longer wins {_shown(grade.longer_wins)}; lead over it {_points(grade.lead)}"
            )
            lines += _wrapped(_length(grade.length))
        if grade.over_first:
            lines += _wrapped(f"over sentence 1, on the same pairs: {_points(grade.over_first)}")
        if grade.missing:
            lines += _wrapped(
                f"{grade.missing} pairs have no score: the judge said neither word, or could not read a text"
            )
        for name, other in grade.others.items():
            lines += _wrapped(f"agrees with {name}: {_shown(other)} on {other['n']} pairs")
        for name, value in grade.margins.items():
            lines += _wrapped(f"correlation with the panel's {name}: {value:+.2f}")
    lines += [
        "",
        *_wrapped(
            "Intervals are 95%, over prompts. A judge reads one answer at a time, so no position can matter.",
            "",
        ),
    ]
    return "\n".join(lines) + "\n"


def _length(length: dict[str, Any]) -> str:
    correlation, equal = length["length_correlation"], length["equal_length"]
    shown = "not measured" if correlation is None else f"{correlation:+.2f}"
    at_equal = f"{_shown(equal)} on {equal['n']} pairs" if equal else "no such pairs"
    return f"correlation with length {shown}; accuracy at equal length: {at_equal}"


def _shown(measured: dict[str, Any]) -> str:
    low, high = measured["ci95"]
    return f"{measured['accuracy']:.3f} ({low:.3f} to {high:.3f})"


def _points(lead: dict[str, Any]) -> str:
    low, high = lead["ci95"]
    return f"{100 * lead['accuracy']:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"


def _wrapped(text: str, indent: str = "   ") -> list[str]:
    return textwrap.wrap(text, 98, initial_indent=indent, subsequent_indent=indent)
