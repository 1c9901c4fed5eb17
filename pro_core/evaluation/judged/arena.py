"""Arena-Hard: verdicts of two swapped games, Bradley-Terry win rates, style control (Li et al., 2406.11939).

A judgment is a mapping as the official tool writes it: ``uid`` (the prompt), ``model``, ``baseline`` and ``games``, two
of them, each with a ``score``: one of five verdicts. In the first game the baseline is A, in the second the model is.
A clear verdict counts three times.

Style control adds four differences of style between the model's and the baseline's answer to the fit:

    P(model wins) = sigmoid(theta_model + beta . f),   f = (length, headers, lists, bold)

with (a - b) / (a + b) for lengths and (da - db) / (da + db + 1) for densities d = count / (length + 1), each divided
by its deviation over all games.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit

from pro_core.data.jsonl import read_jsonl
from pro_core.data.schema import DataError
from pro_core.evaluation.judged.rates import Floats, Rate, rate_of, resampled
from pro_core.metrics import fit_resampled

Judgment = Mapping[str, Any]
Style = Mapping[str, Any]
"""``token_len`` and the counts of :func:`markdown_counts`, as in the official answers' ``metadata``."""
CLEAR = 3
"""How often a clear verdict counts."""
BASELINES: dict[str, dict[str, str]] = {
    "v0.1": {"arena-hard-v0.1": "gpt-4-0314"},
    "v2.0": {
        "hard_prompt": "o3-mini-2025-01-31",
        "creative_writing": "gemini-2.0-flash-001",
    },
}
"""The official baseline of each category, by version."""

_FOR_A = {
    "A>>B": (1.0, CLEAR),
    "A>B": (1.0, 1),
    "A=B": (0.5, 1),
    "B>A": (0.0, 1),
    "B>>A": (0.0, CLEAR),
}
_SAME = {"B=A": "A=B", "A<B": "B>A", "A<<B": "B>>A", "B<A": "A>B", "B<<A": "A>>B"}
_BRACKETS = (re.compile(r"\[\[([AB<>=]+)\]\]"), re.compile(r"\[([AB<>=]+)\]"))


def parse_verdict(text: str) -> str | None:
    """The last verdict in a judge's text: ``A>>B``, ``A>B``, ``A=B``, ``B>A`` or ``B>>A``; None without one.

    Double brackets come before single ones, as in the official tool. Other spellings, such as ``A<B``, are read too.
    """
    for pattern in _BRACKETS:
        if found := pattern.findall(text.upper()):
            last = _SAME.get(found[-1], found[-1])
            return last if last in _FOR_A else None
    return None


# ---------------------------------------------------------------- style


def markdown_counts(answer: str) -> dict[str, dict[str, int]]:
    """Headers, list items and bold words of an answer, as the official tool counts them.

    What stands inside a fence is removed first, wherever else the same text occurs.
    """
    text = answer
    for block in re.findall(r"```([^`]*)```", answer):
        text = text.replace(block, "")

    def count(pattern: str) -> int:
        return len(re.findall(pattern, text, re.MULTILINE))

    return {
        "header_count": {f"h{n}": count(rf"^#{{{n}}}\s") for n in range(1, 7)},
        "list_count": {"ordered": count(r"^\s*\d+\.\s"), "unordered": count(r"^\s*[-*+]\s")},
        "bold_count": {"**": count(r"\*\*[^*\n]+\*\*"), "__": count(r"__[^_\n]+__")},
    }


def style_of(answer: str) -> dict[str, Any]:
    """An answer's style: its length and :func:`markdown_counts`.

    The official length is in GPT-4o's tokens; this one is in words and signs of punctuation, with no tokenizer to
    download. Lengths enter only relative to each other, so compare answers that were counted alike.
    """
    return {"token_len": len(re.findall(r"\w+|[^\w\s]", answer)), **markdown_counts(answer)}


def style_differences(model: Style, baseline: Style) -> list[float]:
    """The four features f, before they are divided by their deviations; 0 for two answers of one style."""
    a, b = _totals(model), _totals(baseline)
    lengths = (a[0] - b[0]) / (a[0] + b[0]) if a[0] + b[0] else 0.0
    densities = [(x / (a[0] + 1), y / (b[0] + 1)) for x, y in zip(a[1:], b[1:], strict=True)]
    return [lengths, *((x - y) / (x + y + 1) for x, y in densities)]


def _totals(style: Style) -> list[float]:
    counts = [style[name] for name in ("token_len", "header_count", "list_count", "bold_count")]
    return [float(sum(c.values()) if isinstance(c, Mapping) else c) for c in counts]


# ---------------------------------------------------------------- rates


def arena_win_rates(
    judgments: Sequence[Judgment],
    styles: Mapping[str, Mapping[str, Style]] | None = None,
    centred: bool = False,
) -> dict[str, Rate]:
    """Each model's win rate over the baseline in percent, by Bradley-Terry, with a 95% interval.

    Prompts are resampled, with all their games. A judgment with a game that has no verdict is left out and counted.

    Args:
        styles: {model: {uid: style}}, the baseline's too, for style control; None for the plain rate.
        centred: subtract each feature's mean over all games, as the official script does. A rate is then read at
            the mean difference in style of all models that are in the table, and not at equal style: of a single
            model nothing is controlled for on average. Needed only to compare with published tables.

    Raises:
        DataError: no judgments, several baselines, two judgments of one model and prompt, or a missing style.
    """
    games, left_out, baseline = _games(judgments)
    models = sorted({g.model for g in games})
    uids = {uid: i for i, uid in enumerate(dict.fromkeys(g.uid for g in games))}
    x = np.array([[float(g.model == m) for m in models] for g in games])
    if styles is not None:
        x = np.concatenate([x, _features(games, styles, baseline, centred)], axis=1)
    outcomes = np.array([g.outcome for g in games])
    repeats = np.array([g.repeats for g in games], dtype=np.float64)
    counts_RP = resampled(len(uids))
    prompts = np.array([uids[g.uid] for g in games])
    coefficients = fit_resampled(x, outcomes, counts_RP[:, prompts] * repeats)
    rates = {}
    for i, model in enumerate(models):
        n = len({g.uid for g in games if g.model == model})
        drawn = 100 * expit(coefficients[:, i])
        rates[model] = rate_of(drawn, n, left_out.get(model, 0))
    return rates


class _Game(NamedTuple):
    """One game: 1, 0 or .5 for the model, and how often it counts."""

    uid: str
    model: str
    outcome: float
    repeats: int


def _games(judgments: Sequence[Judgment]) -> tuple[list[_Game], dict[str, int], str]:
    """The games with a verdict, how many judgments of each model have none, and the baseline."""
    games: list[_Game] = []
    left_out: dict[str, int] = {}
    seen: set[tuple[str, str]] = set()
    baselines = {str(j.get("baseline", "")) for j in judgments}
    if len(baselines) != 1:
        raise DataError(
            f"got judgments against {sorted(baselines)}, expected one baseline: v2.0 has one for each category, so "
            "measure categories apart"
        )
    for judgment in judgments:
        uid, model = str(judgment["uid"]), str(judgment["model"])
        if (uid, model) in seen:
            raise DataError(
                f"got two judgments of {model!r} on the prompt {uid!r}: two models of one name, or one that was "
                "judged twice"
            )
        seen.add((uid, model))
        scores = [game.get("score") if game else None for game in judgment["games"]]
        read = [_SAME.get(str(s), str(s)) for s in scores]
        if len(read) != 2 or any(s not in _FOR_A for s in read):
            left_out[model] = left_out.get(model, 0) + 1
            continue
        for baseline_first, score in zip((True, False), read, strict=True):
            of_a, count = _FOR_A[score]
            games.append(_Game(uid, model, 1 - of_a if baseline_first else of_a, count))
    if not games:
        raise DataError(f"got {len(judgments)} judgments, and none with two verdicts")
    return games, left_out, baselines.pop()


def _features(
    games: Sequence[_Game],
    styles: Mapping[str, Mapping[str, Style]],
    baseline: str,
    centred: bool,
) -> Floats:
    """The style features of each game, (G, 4), divided by their deviations over all verdicts."""
    differences: dict[tuple[str, str], list[float]] = {}
    for game in games:
        key = (game.uid, game.model)
        if key in differences:
            continue
        try:
            model, base = styles[game.model][game.uid], styles[baseline][game.uid]
        except KeyError:
            raise DataError(
                f"the style of {game.model!r} or of the baseline {baseline!r} on the prompt {game.uid!r} is missing"
            ) from None
        differences[key] = style_differences(model, base)
    f = np.array([differences[g.uid, g.model] for g in games])
    each = np.repeat(f, [g.repeats for g in games], axis=0)
    deviation = each.std(axis=0, ddof=1) if len(each) > 1 else np.zeros(4)
    shift = each.mean(axis=0) if centred else 0.0
    return (f - shift) / np.where(deviation > 0, deviation, 1.0)


def read_judgments(path: str | Path) -> list[dict[str, Any]]:
    """The judgments of a JSON Lines file of the official tool (``model_judgment/JUDGE/MODEL.jsonl``).

    Raises:
        DataError: not such a file.
    """
    rows = read_jsonl(path)
    for i, row in enumerate(rows):
        if missing := {"uid", "model", "baseline", "games"} - set(row):
            raise DataError(f"{path}: judgment {i} has no {', '.join(sorted(missing))}")
    return rows
