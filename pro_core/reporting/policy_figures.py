"""Figures of policies, from their result rows: fronts with bands over seeds, all pairs of objectives, controllability.

SVG on white, text as text, sizes that can be read at a README's width. Higher is better on every axis of scores.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pro_core.evaluation.policy.fronts import attainment
from pro_core.evaluation.results import Row, Rows
from pro_core.system.extras import needs

with needs("train"):
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]
# First Okabe and Ito's colours, told apart by the colour-blind too; markers say the same again.
COLOURS = (
    "#000000",
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#7F7F7F",
    "#882255",
    "#8B6914",
    "#AA4499",
    "#44AA99",
    "#332288",
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", "h", "p", ">", "d")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.labelsize": 12,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "legend.fontsize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "legend.frameon": False,
    "text.parse_math": False,
}


def objective_names_of(rows: Rows) -> list[str]:
    """The objectives of an experiment's points, in their order."""
    return list(rows[0]["request"]["weights"]) if rows else []


def front_figure(rows: Rows, x: str | None = None, y: str | None = None) -> Figure | None:
    """Fronts over two objectives, by default the first two: mean scores at each weighting, and what the seeds attain.

    The line is what half of the seeds attain, the band lies between what all and what any of them do. None with fewer
    than two objectives.

    Raises:
        ValueError: an objective that the rows do not have.
    """
    names = objective_names_of(rows)
    if len(names) < 2:
        return None
    x, y = x or names[0], y or next(name for name in names if name != (x or names[0]))
    if x == y or not {x, y} <= set(names):
        raise ValueError(f"got the objectives {x!r} and {y!r}, expected two of {names}")
    figure = Figure(figsize=(7.0, 5.2), layout="constrained")
    axes = figure.subplots()
    _fronts(axes, rows, x, y)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def pairs_figure(rows: Rows) -> Figure | None:
    """The fronts over every pair of objectives; None where there is one pair or none."""
    names = objective_names_of(rows)
    pairs = list(combinations(names, 2))
    if len(pairs) < 2:
        return None
    figure, grid = _panels(len(pairs), height=3.4)
    for axes, (x, y) in zip(grid, pairs, strict=False):
        _fronts(axes, rows, x, y)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def control_figure(rows: Rows) -> Figure | None:
    """Each objective's mean score against its weight: a line that rises is control. None with one objective.

    Averaged over seeds and over the weightings that ask for the same weight; bars are the mean 95% interval over
    prompts.
    """
    names = objective_names_of(rows)
    if len(names) < 2:
        return None
    figure, grid = _panels(len(names))
    methods = _by_method(rows)
    for axes, name in zip(grid, names, strict=False):
        for i, method in enumerate(methods):
            scored = [r for r in methods[method] if f"mean_{name}" in r["metrics"]]
            weights = [round(r["request"]["weights"][name], 4) for r in scored]
            shift = 0.008 * (i - (len(methods) - 1) / 2)
            _curve(axes, weights, scored, f"mean_{name}", shift, i, method)
        axes.set_xlabel(f"weight of {name}")
        axes.set_ylabel(f"{name} (z, higher is better)")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _panels(count: int, height: float = 3.2) -> tuple[Figure, NDArray[Any]]:
    lines = -(-count // 2)
    figure = Figure(figsize=(8.0, 0.9 + height * lines), layout="constrained")
    grid = figure.subplots(lines, min(count, 2), squeeze=False).ravel()
    for axes in grid[count:]:
        axes.set_visible(False)
    return figure, grid


def _curve(axes, asked: list[float], rows: Rows, key: str, shift: float, i: int, method: str):
    """The i-th method's mean of ``key`` at each request, with the mean interval; a little to the side of the others',
    or bars would cover bars."""
    requests = np.array(asked)
    values = np.array([r["metrics"][key] for r in rows])
    bars = np.array([r["ci95"][key] for r in rows]).reshape(-1, 2)
    at = np.unique(requests)
    means = np.array([values[requests == request].mean() for request in at])
    spans = np.array([bars[requests == request].mean(axis=0) for request in at]).reshape(-1, 2)
    axes.errorbar(
        at + shift,
        means,
        yerr=np.abs(spans.T - means),
        color=COLOURS[i % len(COLOURS)],
        marker=MARKERS[i % len(MARKERS)],
        markersize=6,
        linewidth=1.6,
        elinewidth=1,
        label=method,
    )


def _by_method(rows: Rows) -> dict[str, list[Row]]:
    methods: dict[str, list[Row]] = {}
    for row in rows:
        methods.setdefault(row["method"], []).append(row)
    return methods


def _fronts(axes: Axes, rows: Rows, x: str, y: str) -> None:
    for i, (method, mine) in enumerate(_by_method(rows).items()):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        runs: dict[int, list[list[float]]] = {}
        for row in mine:
            point = [row["metrics"].get(f"mean_{name}", np.nan) for name in (x, y)]
            runs.setdefault(row["seed"], []).append(point)
        points = np.concatenate([np.array(run, dtype=float) for run in runs.values()])
        points = points[np.isfinite(points).all(axis=1)]
        axes.plot(points[:, 0], points[:, 1], marker, color=colour, markersize=6, label=method)
        if not len(points):
            continue
        surfaces = attainment([np.array(run, dtype=float) for run in runs.values()])
        left, low = _floor(rows, x), _floor(rows, y)
        if len(runs) > 1:
            # The lower edge of the band is what all seeds attain, the upper what any does, at each x.
            at = np.unique(np.concatenate([s[:, 0] for s in surfaces.values()]))
            grid = np.repeat(np.concatenate([[left], at]), 2)[1:]
            under, over = (_height(surfaces[k], grid, low) for k in ("all", "any"))
            axes.fill_between(grid, under, over, color=colour, alpha=0.13, linewidth=0)
        corners = _staircase(surfaces["half"], left, low)
        axes.plot(corners[:, 0], corners[:, 1], color=colour, linewidth=1.3)
    axes.set_xlabel(f"{x} (z, higher is better)")
    axes.set_ylabel(f"{y} (z, higher is better)")


def _floor(rows: Rows, name: str) -> float:
    """A little below every method's lowest mean: where staircases end."""
    values = [r["metrics"][f"mean_{name}"] for r in rows if f"mean_{name}" in r["metrics"]]
    return min(values) - 0.06 * (np.ptp(values) or 1.0)


def _staircase(surface: Floats, left: float, low: float) -> Floats:
    """The border of what the points (F, 2) dominate, from the left edge down to the lower one."""
    corners = [(left, surface[0, 1])]
    for i, (px, py) in enumerate(surface):
        below = surface[i + 1, 1] if i + 1 < len(surface) else low
        corners += [(px, py), (px, below)]
    return np.array(corners)


def _height(surface: Floats, at: Floats, low: float) -> Floats:
    """For each x the largest y that is attained together with it; ``low`` where none is. ``at`` holds each x twice:
    just before and just after it, so that steps are drawn as steps."""
    heights = []
    for i, value in enumerate(at):
        after = i > 0 and at[i - 1] == value
        reached = surface[:, 0] > value if after else surface[:, 0] >= value
        heights.append(surface[reached, 1].max() if reached.any() else low)
    return np.array(heights)


# ---------------------------------------------------------------- levels (MOSLIM's Figures 5 and 6)


def _requests(rows: Rows, *names: str) -> Rows:
    """The rows that ask for exactly these objectives."""
    return [r for r in rows if set(r["request"]["levels"]) == set(names)]


def _asked_names(rows: Rows) -> list[str]:
    return list(dict.fromkeys(name for r in rows for name in r["request"]["levels"]))


def levels_figure(rows: Rows) -> Figure | None:
    """The level given against the level asked for, an objective a panel: a line that rises is control.

    Means over seeds; bars are the mean 95% interval over prompts. The grey line would be perfect control. None where no
    objective has two levels.
    """
    curves = {name: _requests(rows, name) for name in _asked_names(rows)}
    curves = {k: v for k, v in curves.items() if len({r["request"]["levels"][k] for r in v}) > 1}
    if not curves:
        return None
    figure, grid = _panels(len(curves))
    for axes, (name, found) in zip(grid, curves.items(), strict=False):
        key, methods = f"mean_{name}", _by_method(found)
        highest = max(r["request"]["levels"][name] for r in found)
        axes.plot([1, highest], [1, highest], color="#BBBBBB", linewidth=1)
        for i, (method, mine) in enumerate(methods.items()):
            mine = [r for r in mine if key in r["metrics"]]
            levels = [r["request"]["levels"][name] for r in mine]
            _curve(axes, levels, mine, key, 0.03 * (i - (len(methods) - 1) / 2), i, method)
        axes.set_xticks(np.arange(1, highest + 1))
        axes.set_xlabel(f"level of {name} asked for")
        axes.set_ylabel("level given (expected)")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def level_pairs_figure(rows: Rows) -> Figure | None:
    """The levels given where the lowest and highest of two objectives are asked for, a pair a panel.

    Corners are means over seeds, joined in order; the filled one is asked for both highest. Under perfect control they
    are a rectangle as large as the axes, under none a point. None with fewer than two objectives.
    """
    pairs = [(pair, _requests(rows, *pair)) for pair in combinations(_asked_names(rows), 2)]
    pairs = [(pair, found) for pair, found in pairs if found]
    if not pairs:
        return None
    figure, grid = _panels(len(pairs))
    for axes, ((x, y), found) in zip(grid, pairs, strict=False):
        for i, (method, mine) in enumerate(_by_method(found).items()):
            corners: dict[tuple[float, float], list[list[float]]] = {}
            for r in mine:
                given = [r["metrics"].get(f"mean_{name}", np.nan) for name in (x, y)]
                asked = (r["request"]["levels"][x], r["request"]["levels"][y])
                corners.setdefault(asked, []).append(given)
            middle = np.mean(
                list(corners), axis=0
            )  # around it, so that the line does not cross itself
            order = sorted(corners, key=lambda c: np.arctan2(c[1] - middle[1], c[0] - middle[0]))
            points = np.array([np.mean(corners[c], axis=0) for c in [*order, order[0]]])
            colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
            axes.plot(*points.T, marker, color=colour, mfc="white", linestyle="-", label=method)
            axes.plot(*np.mean(corners[max(corners)], axis=0), marker, color=colour)
        # All that can be given: closer up, noise would look like control.
        highest = [max(r["request"]["levels"][name] for r in found) for name in (x, y)]
        axes.set_xlim(0.9, highest[0] + 0.1)
        axes.set_ylim(0.9, highest[1] + 0.1)
        axes.set_xlabel(f"level of {x} given")
        axes.set_ylabel(f"level of {y} given")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


FIGURES: dict[str, Callable[[Rows], Figure | None]] = {
    "front": front_figure,
    "pairs": pairs_figure,
    "control": control_figure,
}
LEVEL_FIGURES: dict[str, Callable[[Rows], Figure | None]] = {
    "levels": levels_figure,
    "level_pairs": level_pairs_figure,
}


def draw_figures(rows: Rows, folder: str | Path) -> list[Path]:
    """``<experiment>_<figure>.svg`` for each experiment of the test split that has points; returns what was written."""
    written = []
    points = [r for r in rows if r["kind"] == "point" and r["split"] == "test"]
    for name in dict.fromkeys(r["experiment"] for r in points):
        mine = [r for r in points if r["experiment"] == name]
        figures = FIGURES if "weights" in mine[0]["request"] else LEVEL_FIGURES
        for kind, draw in figures.items():
            title = f"{name}_{kind}"
            with matplotlib.rc_context(STYLE | {"svg.hashsalt": title}):
                figure = draw(mine)
                if figure is None:
                    continue
                path = Path(folder) / f"{title}.svg"
                path.parent.mkdir(parents=True, exist_ok=True)
                figure.savefig(path, facecolor="white", metadata={"Date": None, "Creator": None})
                written.append(path)
    return written
