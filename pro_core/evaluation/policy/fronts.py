"""Fronts over objectives, and what several runs attain. Higher is better in every objective."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pro_core.metrics import is_nondominated
from pro_core.system.extras import needs

with needs("train"):
    from moocore import eaf

Floats = NDArray[np.float64]


def front(points: ArrayLike) -> Floats:
    """The finite, non-dominated points of (N, M), sorted by the first objective."""
    array = np.asarray(points, dtype=float)
    array = array[np.isfinite(array).all(axis=1)]
    kept = array[is_nondominated(array)] if len(array) else array
    return kept[np.argsort(kept[:, 0], kind="stable")]


ATTAINED = ("all", "half", "any")


def attainment(runs: Sequence[ArrayLike]) -> dict[str, Floats]:
    """Three fronts over two objectives: what all runs (seeds) attain, what at least half do, and what any does.

    A run attains a point when one of its points (N, 2) is at least as high in both objectives. The region between
    ``all`` and ``any`` is the band of a plot, ``half`` its middle line (the empirical attainment function). Each front
    (F, 2) is sorted by the first objective.

    Raises:
        ValueError: no run has a finite point, or the points do not have two objectives.
    """
    fronts = [front(run) for run in runs]
    fronts = [f for f in fronts if len(f)]
    if not fronts or any(f.shape[1] != 2 for f in fronts):
        raise ValueError(
            f"expected runs of points of shape (N, 2), got {[np.shape(r) for r in runs]}"
        )
    sets = np.repeat(np.arange(len(fronts)), [len(f) for f in fronts])
    # moocore minimizes, hence the signs. Percentile p is what at least ceil(p/100 x runs) attain.
    levels = {"any": 50 / len(fronts), "half": 50.0, "all": 100.0}
    surfaces = {}
    for name in ATTAINED:
        attained = eaf(-np.concatenate(fronts), sets, percentiles=[levels[name]])
        surfaces[name] = front(-attained[:, :2])
    return surfaces
