"""The contents of both pages: sections with a title, a table and a few sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pro_core.doctor.gain import RIVALS, Gain
from pro_core.doctor.measure import EQUAL_LENGTH, ONE_HOT, TEMPERATURES
from pro_core.doctor.next_labels import MEMBERS, REPEATS, Saving
from pro_core.doctor.verdict import Examination, percent, points

NAME = 17

METHODS = {
    "uniform": "one weight for all objectives",
    "best global": "best on the training prompts",
    "fitted global": "the adapter's loss, no prompt",
    "adapter": "weights that follow the prompt",
    "shuffled": "its weights on the wrong prompts",
    "own objective": "knows each pair's own objective",
    "any weights": "knows the answer: upper bound",
}
"""Every row of the gain's table, in order, and what it is."""

ASSUMPTIONS = (
    "It assumes that the panel did not train on these pairs; on pairs that it has seen, it looks too good. If it did, "
    "add --split test (the held-out rows of the project's own training scripts), or give other data.",
    "The adapter here is a cheap one, a linear head on frozen prompt features, fitted on only the pairs counted above. "
    'More pairs or a tuned encoder may gain more, so "none" is about these pairs, not about every adapter.',
    "A lead counts when its interval is above 0 against uniform and both kinds of global weights; nothing is graded on "
    "pairs that it was fitted or chosen on. Accuracies are averaged over objectives.",
)
"""What the verdict rests on, for both pages."""


def label(name: str, width: int = NAME) -> str:
    """A name from the data, fit for one line: no control characters, cut to ``width``."""
    clean = "".join(c if c.isprintable() else "?" for c in name)
    return clean if len(clean) <= width else clean[: width - 2] + ".."


def number(value: float, form: str = ".2f") -> str:
    """A formatted number, or a dash for NaN or infinity."""
    return "-" if not np.isfinite(value) else format(value, form)


def share(value: float | None) -> str:
    """``62%``, or a dash."""
    return "-" if value is None or not np.isfinite(value) else f"{100 * value:.0f}%"


def about_lines(e: Examination) -> list[str]:
    """What was examined, for both pages."""
    sample = f"{e.pairs:,}" if e.pairs == e.available else f"{e.pairs:,} of {e.available:,}"
    sources = ", ".join(f"{label(s, 40)} {n:,}" for s, n in sorted(e.sources.items()))
    splits = ", ".join(f"{s} {n:,}" for s, n in sorted(e.splits.items()))
    lines = [f"{sample} pairs of {e.prompts:,} prompts: {sources}. Splits: {splits}."]
    if "panel" in e.about:
        K = len(e.objective_names)
        n = e.about.get("reference", 0)
        scale = (
            f"by its reference set of {n:,}" if n else "by themselves: the panel has no statistics"
        )
        objectives = f"{K} objective{'s' if K > 1 else ''}"
        lines.insert(0, f"Panel {e.about['panel']}, {objectives}. Responses standardized {scale}.")
        lines.append(
            f"Prompts read by {e.about['encoder']}; sample and folds by seed {e.about['seed']}."
        )
    return lines


@dataclass(frozen=True)
class Section:
    """A part of the page. ``key``: which plots belong to it; ``said``: sentences below the table; ``left``: the
    left-aligned columns; ``legend``: how to read the table."""

    key: str
    title: str
    subtitle: str
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    said: Sequence[str] = ()
    left: Sequence[int] = (0,)
    legend: str = ""


def sections(e: Examination) -> list[Section]:
    """The page's parts in order; those about weights only where there are weights."""
    parts = [_accuracy(e), _models(e)]
    if e.gain:
        parts.insert(0, _gain(e, e.gain))
    if e.saving:
        parts.append(_saving(e.saving))
    if len(e.objective_names) > 1:
        parts += [_correlation(e), _conflict(e), _saturation(e)]
    return parts


def _gain(e: Examination, gain: Gain) -> Section:
    rows = []
    for method, meaning in METHODS.items():
        if method in gain.accuracy:
            a = gain.accuracy[method]
            lead = points(gain.lead[method]) if method in gain.lead else ""
            held_out = f"{100 * a.value:.1f}% ({100 * a.low:.1f} to {100 * a.high:.1f})"
            rows.append([method, held_out, lead, meaning])
    return Section(
        "gain",
        "Gain",
        "cross-validated by prompt, averaged over objectives",
        ["", "held out (95%)", "adapter's lead, points", "what it is"],
        rows,
        [
            f"The inner folds chose to read the prompt in {share(gain.kept)} of the fits.",
            *movement(gain),
        ],
        left=(0, 3),
    )


def movement(gain: Gain) -> list[str]:
    """What the adapter's movement away from fixed weights is worth, in two sentences; none where it does not move."""
    if (p := gain.payoff) is None:
        return []
    s = p.slope
    return [
        f"Its weights differ from the fitted global ones by {p.movement:.2f}. The slope of what is right on this is "
        f"{s.value:.2f} ({s.low:.2f} to {s.high:.2f}): 1 is calibrated, 0 noise; below about 0.5 fixed weights win.",
        f"From that, its lead over them should be {points(p.expected)} points; the one counted is "
        f"{points(gain.lead['fitted global'])}.",
    ]


def _saving(saving: Saving) -> Section:
    rows = [
        [f"{n:,}", f"{by_rank:.1f}%", f"{by_chance:.1f}%", points(lead)]
        for n, by_rank, by_chance, lead in zip(
            saving.labels, saving.ranked, saving.random, saving.lead, strict=True
        )
    ]
    ranked, random = saving.needed
    reached = (
        f"What all {saving.labels[-1]:,} labels reach, ranked order first has with {ranked:,}, random order with "
        f"{random:,}. Where more labels raise nothing, neither number means much."
    )
    return Section(
        "saving",
        "Label next",
        "simulated on the pairs above: which to label first",
        ["pairs labelled", "ranked", "at random", "lead, points (95%)"],
        rows,
        [
            f"Ranked: first the pairs on whose winner {MEMBERS} small adapters disagree most. Both ways start from the "
            f"same {saving.labels[0]:,} pairs and are graded on held-out prompts; intervals over {REPEATS} repeats.",
            reached,
        ],
    )


def _accuracy(e: Examination) -> Section:
    header = ["", "pairs", "own model (95%)", "equal length", "longer"]
    rows = [
        [
            label(o.name),
            f"{o.pairs:,}",
            percent(o.accuracy) if o.accuracy else "no such model",
            f"{share(o.equal_length)} ({o.equal_length_pairs})",
            share(o.longer),
        ]
        for o in e.objectives
    ]
    said = [
        "own model: the reward model of the pairs' own objective. equal length: the same on pairs whose shorter "
        f"completion has at least {100 * EQUAL_LENGTH:.0f}% of the longer one's characters (and their number). "
        "longer: the rule that prefers the longer one."
    ]
    if (gain := e.gain) is not None:
        fixed = min(RIVALS[1:], key=lambda rival: gain.lead[rival].value)
        methods = {
            "uniform": "uniform",
            fixed: "global",
            "adapter": "adapter",
            "any weights": "any",
        }
        header += methods.values()
        for row, o in zip(rows, e.objectives, strict=True):
            row += [share(gain.by_objective[m][o.name]) for m in methods]
        said.append(f"uniform, global ({fixed}), adapter, any weights: as above, on these pairs.")
    subtitle = "the share of pairs that go the way people chose"
    return Section("accuracy", "Accuracy", subtitle, header, rows, said)


def _models(e: Examination) -> Section:
    rows = [
        [
            label(m.name),
            number(m.mean),
            number(m.std),
            number(m.z_mean, "+.2f"),
            number(m.z_std),
            share(m.prompt_share),
            number(m.length, "+.2f"),
            number(m.length_margin, "+.2f"),
        ]
        for m in e.models
    ]
    return Section(
        "models",
        "Reward models",
        "scale, offset and length effect on these responses",
        ["", "raw mean", "raw sd", "std. mean", "std. sd", "prompt's own", "length", "in pairs"],
        rows,
        [
            "std.: in units of the panel's reference set; mean 0 and sd 1 where these responses are like it.",
            "prompt's own: share of the variance that lies between prompts. A Bradley-Terry reward has an arbitrary "
            "offset per prompt, and only the rest compares responses; this share holds true differences, too.",
            "length: Spearman correlation of score and characters over all responses; in pairs: of their differences.",
        ],
    )


def _correlation(e: Examination) -> Section:
    K = len(e.objective_names)
    rows = []
    for j, name in enumerate(e.objective_names):
        cells = [f"{j + 1:>2} {label(name, NAME - 3)}"]
        for k in range(K):
            matrix = e.reward_correlation_KK if k < j else e.margin_correlation_KK
            cells.append("" if j == k else number(matrix[j, k], "+.2f"))
        rows.append(cells)
    return Section(
        "correlation",
        "Correlation",
        "of rewards, and of chosen-minus-rejected margins",
        ["", *(str(k + 1) for k in range(K))],
        rows,
        ["Near +1: the same objective twice. Near -1: the opposite ends of one axis."],
        legend="Below the diagonal: rewards. Above it: margins.",
    )


def _conflict(e: Examination) -> Section:
    c, K = e.conflict, len(e.objective_names)
    opposite = sorted(
        ((c.opposite_KK[j, k], j, k) for j in range(K) for k in range(j + 1, K)), reverse=True
    )
    names = [label(name) for name in e.objective_names]
    shown = ", ".join(f"{names[j]} / {names[k]} {share(s)}" for s, j, k in opposite[:5])
    parts = {**e.conflict_by_objective, "all pairs": c}
    return Section(
        "conflict",
        "Conflict",
        "where weights can change the winner",
        ["", "always right", "weights decide", "always wrong", "ties", "decided easily"],
        [
            [
                label(n),
                share(p.right),
                share(p.depends),
                share(p.wrong),
                share(p.ties),
                share(p.easily),
            ]
            for n, p in parts.items()
        ],
        [
            "always: under every weighting. decided easily: at least a tenth of all weightings (uniform on the "
            "simplex) disagree with the others.",
            f"Margins that most often have opposite signs: {shown}.",
        ],
    )


def _saturation(e: Examination) -> Section:
    rows = []
    for standardized in (False, True):
        by_tau = [s for s in e.saturation if s.standardized == standardized]
        name, often = max(by_tau[0].largest.items(), key=lambda item: item[1])
        rows.append(
            [
                "standardized" if standardized else "raw",
                *(f"{share(s.one_hot)} / {share(s.entropy)}" for s in by_tau),
                f"{label(name)} ({share(often)})",
            ]
        )
    return Section(
        "saturation",
        "Saturation",
        "of the targets softmax(r / tau) of PRO's Eq 7: nearly one-hot / entropy",
        ["", *(f"tau {t:g}" for t in TEMPERATURES), "most often largest"],
        rows,
        [
            f"nearly one-hot: a weight above {ONE_HOT:g}. entropy: as a share of log K. Targets that are all one-hot, "
            "or that name one objective on raw rewards, say more about the reward models than about the prompt."
        ],
    )
