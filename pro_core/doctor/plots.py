"""The report's plots: inline SVG that takes its colours from the page, so that one drawing serves light and dark.

Each is drawn narrow, for a phone's width; text stays text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pro_core.doctor.contents import METHODS, label, share
from pro_core.doctor.gain import Floats, Measured
from pro_core.doctor.measure import TEMPERATURES
from pro_core.doctor.verdict import Examination
from pro_core.system.extras import needs

with needs("train"):
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

# Colours that stand for the page's variables; replaced in the SVG text.
INK, QUIET, GRID, A, B, C = (f"#01020{i}" for i in range(6))
VARIABLES = dict(
    zip((INK, QUIET, GRID, A, B, C), ("ink", "quiet", "line", "a", "b", "c"), strict=True)
)
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": QUIET,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": QUIET,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": GRID,
    "legend.frameon": False,
    "legend.labelcolor": INK,
}
WIDE = 3.6  # inches: a phone's width at this font size


def plots(e: Examination) -> dict[str, list[tuple[str, str, str]]]:
    """Section key -> (title, what to look for, SVG) of each plot that this examination has."""
    made: dict[str, list[tuple[str, str, str]]] = {}

    def add(key: str, title: str, caption: str, draw: Callable[[Examination], Figure]) -> None:
        with matplotlib.rc_context(STYLE | {"svg.hashsalt": title}):
            made.setdefault(key, []).append((title, caption, _svg(draw(e), title)))

    if e.gain:
        add(
            "gain",
            "The adapter's lead",
            "In points, with 95% intervals. Right of the line against the first three: an adapter helps.",
            _lead,
        )
        add(
            "gain",
            "Held-out accuracy",
            "Dots with 95% intervals. The last rows know more than any adapter can.",
            _held_out,
        )
    add(
        "accuracy",
        "Each reward model on its own pairs",
        "Dots with 95% intervals; crosses: taking the longer completion. The line is chance.",
        _own_accuracy,
    )
    if len(e.objective_names) > 1:
        add(
            "accuracy",
            "Every reward model on every objective's pairs",
            "Rows: what people judged; columns: who scored. Blue agrees with people, orange disagrees.",
            _by_model,
        )
    add(
        "models",
        "Scale and offset",
        "Raw scores: median, middle half, and 5 to 95%. Unequal bars cannot be added up raw.",
        _scale,
    )
    add(
        "models",
        "The prompt's own share of the variance",
        "Only the rest compares responses to one prompt.",
        _offset,
    )
    add(
        "models",
        "Length",
        "Spearman correlation with the number of characters. Far from 0: it rewards length.",
        _length,
    )
    if len(e.objective_names) > 1:
        add(
            "correlation",
            "Rewards",
            "Correlation over all responses.",
            lambda e: _heat(e.reward_correlation_KK, e.objective_names, e.objective_names),
        )
        add(
            "correlation",
            "Margins",
            "Correlation of chosen minus rejected.",
            lambda e: _heat(e.margin_correlation_KK, e.objective_names, e.objective_names),
        )
        add(
            "conflict",
            "What weights can change",
            "Only the middle part can be won or lost by weights.",
            _decided,
        )
        add(
            "conflict",
            "Opposite signs",
            "Share of pairs on which two reward models prefer different responses.",
            lambda e: _heat(
                e.conflict.opposite_KK, e.objective_names, e.objective_names, percent=True
            ),
        )
        add(
            "saturation",
            "Nearly one-hot targets",
            "Share of Eq 7's targets with one weight above 0.9, by temperature.",
            lambda e: _saturation(e, "one_hot"),
        )
        add(
            "saturation",
            "Entropy of the targets",
            "As a share of log K: 0% one-hot, 100% uniform.",
            lambda e: _saturation(e, "entropy"),
        )
    return made


def _svg(figure: Figure, title: str) -> str:
    """The figure as an SVG element without a size of its own; matplotlib has escaped its texts."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # A font that every browser has; matplotlib's own may be missing there.
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px system-ui, sans-serif", text)
    width, height = (float(x) for x in re.findall(r'(?:width|height)="([\d.]+)pt"', text)[:2])
    opening = (
        f'<svg role="img" aria-label="{title}" viewBox="0 0 {width:g} {height:g}" '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return opening + text[text.index(">") + 1 :]


def _axes(rows: int, extra: float = 0.75):
    figure = Figure(figsize=(WIDE, extra + 0.27 * max(rows, 2)), layout="constrained")
    axes = figure.subplots()
    axes.tick_params(length=0)
    axes.set_axisbelow(True)
    return figure, axes


def _rows(axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [label(name, 18) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="x", linewidth=0.6)


def _intervals(axes, values: Sequence[Measured], scale: float, colours: Sequence[str]) -> None:
    for y, (m, colour) in enumerate(zip(values, colours, strict=True)):
        axes.plot([scale * m.low, scale * m.high], [y, y], color=colour, linewidth=2)
        axes.plot(scale * m.value, y, "o", color=colour, markersize=5)


def _lead(e: Examination) -> Figure:
    assert e.gain is not None
    figure, axes = _axes(len(e.gain.lead))
    _intervals(axes, list(e.gain.lead.values()), 1, [A, A, A, C])
    axes.axvline(0, color=INK, linewidth=0.8)
    _rows(axes, [f"over {rival}" for rival in e.gain.lead])
    axes.set_xlabel("points")
    return figure


def _held_out(e: Examination) -> Figure:
    assert e.gain is not None
    accuracies = {m: e.gain.accuracy[m] for m in METHODS if m in e.gain.accuracy}
    figure, axes = _axes(len(accuracies))
    special = {"adapter": A, "own objective": B, "any weights": B}
    _intervals(axes, list(accuracies.values()), 100, [special.get(m, C) for m in accuracies])
    _rows(axes, list(accuracies))
    axes.set_xlabel("% of held-out pairs")
    return figure


def _own_accuracy(e: Examination) -> Figure:
    figure, axes = _axes(len(e.objectives))
    for y, o in enumerate(e.objectives):
        if o.accuracy:
            low, high = 100 * o.accuracy.low, 100 * o.accuracy.high
            axes.plot([low, high], [y, y], color=A, linewidth=2)
            axes.plot(100 * o.accuracy.value, y, "o", color=A, markersize=5)
        axes.plot(100 * o.longer, y, "x", color=B, markersize=5)
    axes.axvline(50, color=INK, linewidth=0.8)
    _rows(axes, [o.name for o in e.objectives])
    axes.set_xlabel("% of pairs")
    return figure


def _by_model(e: Examination) -> Figure:
    values = np.array([list(o.by_model.values()) for o in e.objectives])
    return _heat(
        values, [o.name for o in e.objectives], e.objective_names, percent=True, middle=0.5
    )


def _heat(
    values: Floats,
    rows: Sequence[str],
    names: Sequence[str],
    percent: bool = False,
    middle: float = 0.0,
) -> Figure:
    """A heat map: the farther a value is from ``middle``, the stronger its cell. Many columns show hundredths."""
    R, K = values.shape
    figure = Figure(figsize=(WIDE, 0.95 + max(0.24, 2.3 / max(K, 4)) * R), layout="constrained")
    axes = figure.subplots()
    axes.tick_params(length=0)
    small = K > 7
    for r in range(R):
        for k in range(K):
            value = values[r, k]
            if not np.isfinite(value) or (r == k and rows is names):
                continue  # nothing to say, or an objective with itself
            strength = min(1.0, abs(value - middle) / (1 - middle))
            colour = A if value > middle else B
            cell = Rectangle((k - 0.5, r - 0.5), 1, 1, color=colour, alpha=0.75 * strength, lw=0)
            axes.add_patch(cell)
            text = str(round(100 * value)) if percent or small else f"{value:+.2f}"
            axes.text(k, r, text, ha="center", va="center", fontsize=6 if small else 8)
    axes.xaxis.tick_top()
    if small:  # numbers above the columns, and beside the rows where these are the same objectives
        axes.set_xticks(range(K), [str(k + 1) for k in range(K)], color=INK)
        numbers = {n: f"{k + 1} " for k, n in enumerate(names)}
        axes.set_yticks(range(R), [label(numbers.get(n, "") + n, 16) for n in rows])
    else:
        axes.set_xticks(range(K), [label(n, 14) for n in names], rotation=40, ha="left", color=INK)
        axes.set_yticks(range(R), [label(n, 14) for n in rows])
    axes.set_xlim(-0.5, K - 0.5)
    axes.set_ylim(R - 0.5, -0.5)
    axes.spines["bottom"].set_visible(False)
    return figure


def _scale(e: Examination) -> Figure:
    figure, axes = _axes(len(e.models))
    for y, m in enumerate(e.models):
        low, first, median, third, high = m.quantiles
        axes.plot([low, high], [y, y], color=A, linewidth=1)
        axes.plot([first, third], [y, y], color=A, linewidth=6, solid_capstyle="butt", alpha=0.6)
        axes.plot(median, y, "o", color=A, markersize=5)
    _rows(axes, [m.name for m in e.models])
    axes.set_xlabel("raw score")
    return figure


def _offset(e: Examination) -> Figure:
    figure, axes = _axes(len(e.models))
    for y, m in enumerate(e.models):
        if np.isfinite(m.prompt_share):
            axes.barh(y, 100 * m.prompt_share, color=B, height=0.62, alpha=0.8)
            axes.barh(
                y,
                100 - 100 * m.prompt_share,
                left=100 * m.prompt_share,
                color=A,
                height=0.62,
                alpha=0.8,
            )
            axes.text(2, y, share(m.prompt_share), va="center", fontsize=8)
    _rows(axes, [m.name for m in e.models])
    axes.set_xlabel("% between prompts (orange), within them (blue)")
    axes.set_xlim(0, 100)
    return figure


def _length(e: Examination) -> Figure:
    figure, axes = _axes(len(e.models), extra=1.0)
    for offset, colour, kind, text in (
        (-0.16, C, "length", "all responses"),
        (0.16, A, "length_margin", "within pairs"),
    ):
        values = [getattr(m, kind) for m in e.models]
        heights = [v if np.isfinite(v) else 0 for v in values]
        y = np.arange(len(values)) + offset
        axes.barh(y, heights, height=0.3, color=colour, label=text)
    axes.axvline(0, color=INK, linewidth=0.8)
    _rows(axes, [m.name for m in e.models])
    axes.set_xlim(-1, 1)
    axes.set_xticks([-1, -0.5, 0, 0.5, 1])
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _decided(e: Examination) -> Figure:
    parts = {**e.conflict_by_objective, "all pairs": e.conflict}
    figure, axes = _axes(len(parts), extra=1.0)
    shown = (("right", A, "right"), ("depends", C, "weights decide"), ("wrong", B, "wrong"))
    for y, conflict in enumerate(parts.values()):
        left = 0.0
        for kind, colour, text in shown:
            value = 100 * getattr(conflict, kind)
            axes.barh(
                y,
                value,
                left=left,
                height=0.62,
                color=colour,
                alpha=0.8,
                label=text if y == 0 else None,
            )
            if value >= 9:
                axes.text(left + value / 2, y, f"{value:.0f}", ha="center", va="center", fontsize=8)
            left += value
    _rows(axes, list(parts))
    axes.set_xlim(0, 100)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def _saturation(e: Examination, kind: str) -> Figure:
    figure, axes = _axes(4, extra=1.1)
    for standardized, colour, text in ((False, B, "raw"), (True, A, "standardized")):
        values = [100 * getattr(s, kind) for s in e.saturation if s.standardized == standardized]
        axes.plot(range(len(values)), values, "o-", color=colour, label=text, markersize=5)
    axes.set_xticks(range(len(TEMPERATURES)), [f"{t:g}" for t in TEMPERATURES])
    axes.set_xlabel("tau")
    axes.set_ylabel("%")
    axes.set_ylim(-4, 104)
    axes.grid(axis="y", linewidth=0.6)
    figure.legend(loc="outside lower center", ncols=2)
    return figure
