"""Figures of policies under weights: fronts with bands over seeds, pairs of objectives, control. Higher is better."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from pro_core.evaluation.policy.fronts import attainment
from pro_core.evaluation.results import Rows
from pro_core.reporting.drawing import COLOURS, MARKERS, by_method, curve, panels
from pro_core.system.extras import needs

with needs("train"):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]


def objective_names_of(rows: Rows) -> list[str]:
    """The objectives of an experiment's points, in their order."""
    return list(rows[0]["request"]["weights"]) if rows else []


def front_figure(rows: Rows, x: str | None = None, y: str | None = None) -> Figure | None:
    """Fronts over two objectives, by default the first two: mean scores at each weighting, and what the seeds attain.

    The line is what half of the seeds attain; the band lies between what all attain and what any does. None with fewer
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
    figure, grid = panels(len(pairs), height=3.4)
    for axes, (x, y) in zip(grid, pairs, strict=False):
        _fronts(axes, rows, x, y)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def control_figure(rows: Rows) -> Figure | None:
    """Each objective's mean score against its weight: a rising line is control. None with one objective.

    Averaged over seeds and over the weightings that ask for the same weight; bars are the mean 95% interval over
    prompts.
    """
    names = objective_names_of(rows)
    if len(names) < 2:
        return None
    figure, grid = panels(len(names))
    methods = by_method(rows)
    for axes, name in zip(grid, names, strict=False):
        for i, method in enumerate(methods):
            scored = [r for r in methods[method] if f"mean_{name}" in r["metrics"]]
            weights = [round(r["request"]["weights"][name], 4) for r in scored]
            shift = 0.008 * (i - (len(methods) - 1) / 2)
            curve(axes, weights, scored, f"mean_{name}", shift, i, method)
        axes.set_xlabel(f"weight of {name}")
        axes.set_ylabel(f"{name} (z, higher is better)")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _fronts(axes: Axes, rows: Rows, x: str, y: str) -> None:
    for i, (method, of_method) in enumerate(by_method(rows).items()):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        runs: dict[int, list[list[float]]] = {}
        for row in of_method:
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
    """The largest y that is attained at each x; ``low`` where there is none.

    ``at`` holds each x twice, just before and just after it, so that steps are drawn as steps.
    """
    heights = []
    for i, value in enumerate(at):
        after = i > 0 and at[i - 1] == value
        reached = surface[:, 0] > value if after else surface[:, 0] >= value
        heights.append(surface[reached, 1].max() if reached.any() else low)
    return np.array(heights)
