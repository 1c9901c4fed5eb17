"""What the figures of policies share: colours, type, panels and curves.

SVG on white, with text kept as text, in sizes that can be read at a README's width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pro_core.evaluation.results import Row, Rows
from pro_core.system.extras import needs

with needs("train"):
    from matplotlib.figure import Figure


# First Okabe and Ito's colours, which colour-blind readers can tell apart; markers repeat them.
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


def panels(count: int, height: float = 3.2) -> tuple[Figure, NDArray[Any]]:
    """A figure of ``count`` panels, two per row, and their axes; ``height`` of a row in inches."""
    lines = -(-count // 2)
    figure = Figure(figsize=(8.0, 0.9 + height * lines), layout="constrained")
    grid = figure.subplots(lines, min(count, 2), squeeze=False).ravel()
    for axes in grid[count:]:
        axes.set_visible(False)
    return figure, grid


def curve(axes, asked: list[float], rows: Rows, key: str, shift: float, i: int, method: str):
    """Draw the i-th method's mean of ``key`` at each request, with the mean interval.

    ``shift`` moves it to the side, so that no bar covers another.
    """
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


def by_method(rows: Rows) -> dict[str, list[Row]]:
    """The rows of each method, in the order in which methods first appear."""
    methods: dict[str, list[Row]] = {}
    for row in rows:
        methods.setdefault(row["method"], []).append(row)
    return methods
