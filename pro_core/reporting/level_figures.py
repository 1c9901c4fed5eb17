"""Figures of policies under levels: MOSLIM's Figures 5 and 6."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from pro_core.evaluation.results import Rows
from pro_core.reporting.drawing import COLOURS, MARKERS, by_method, curve, panels
from pro_core.system.extras import needs

with needs("train"):
    from matplotlib.figure import Figure


def levels_figure(rows: Rows) -> Figure | None:
    """The level given against the level asked for, one panel per objective: a rising line is control.

    Means over seeds; bars are the mean 95% interval over prompts. The grey line would be perfect control. None where no
    objective has two levels.
    """
    curves = {name: _requests(rows, name) for name in _asked_names(rows)}
    curves = {k: v for k, v in curves.items() if len({r["request"]["levels"][k] for r in v}) > 1}
    if not curves:
        return None
    figure, grid = panels(len(curves))
    for axes, (name, requested) in zip(grid, curves.items(), strict=False):
        key, methods = f"mean_{name}", by_method(requested)
        highest = max(r["request"]["levels"][name] for r in requested)
        axes.plot([1, highest], [1, highest], color="#BBBBBB", linewidth=1)
        for i, (method, points) in enumerate(methods.items()):
            scored = [r for r in points if key in r["metrics"]]
            levels = [r["request"]["levels"][name] for r in scored]
            curve(axes, levels, scored, key, 0.03 * (i - (len(methods) - 1) / 2), i, method)
        axes.set_xticks(np.arange(1, highest + 1))
        axes.set_xlabel(f"level of {name} asked for")
        axes.set_ylabel("level given (expected)")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def level_pairs_figure(rows: Rows) -> Figure | None:
    """The levels given when the lowest and highest of two objectives are asked for, one panel per pair.

    Corners are means over seeds, joined in order; the filled one is the request for both highest levels. Perfect
    control gives a rectangle as large as the axes, no control a point. None with fewer than two objectives.
    """
    pairs = [(pair, _requests(rows, *pair)) for pair in combinations(_asked_names(rows), 2)]
    pairs = [(pair, requested) for pair, requested in pairs if requested]
    if not pairs:
        return None
    figure, grid = panels(len(pairs))
    for axes, ((x, y), requested) in zip(grid, pairs, strict=False):
        for i, (method, of_method) in enumerate(by_method(requested).items()):
            corners: dict[tuple[float, float], list[list[float]]] = {}
            for r in of_method:
                given = [r["metrics"].get(f"mean_{name}", np.nan) for name in (x, y)]
                asked = (r["request"]["levels"][x], r["request"]["levels"][y])
                corners.setdefault(asked, []).append(given)
            # Sorted around their middle, so that the line does not cross itself.
            middle = np.mean(list(corners), axis=0)
            order = sorted(corners, key=lambda c: np.arctan2(c[1] - middle[1], c[0] - middle[0]))
            points = np.array([np.mean(corners[c], axis=0) for c in [*order, order[0]]])
            colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
            axes.plot(*points.T, marker, color=colour, mfc="white", linestyle="-", label=method)
            axes.plot(*np.mean(corners[max(corners)], axis=0), marker, color=colour)
        # The whole range of levels: zoomed in, noise would look like control.
        highest = [max(r["request"]["levels"][name] for r in requested) for name in (x, y)]
        axes.set_xlim(0.9, highest[0] + 0.1)
        axes.set_ylim(0.9, highest[1] + 0.1)
        axes.set_xlabel(f"level of {x} given")
        axes.set_ylabel(f"level of {y} given")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _requests(rows: Rows, *names: str) -> Rows:
    """The rows that ask for exactly these objectives."""
    return [r for r in rows if set(r["request"]["levels"]) == set(names)]


def _asked_names(rows: Rows) -> list[str]:
    return list(dict.fromkeys(name for r in rows for name in r["request"]["levels"]))
