"""Weights to ask for, and the fronts that come back. Higher is better in every objective."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import comb

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pro_core.metrics import is_nondominated
from pro_core.system.extras import needs

with needs("train"):
    from moocore import eaf

Floats = NDArray[np.float64]


def simplex_grid(K: int, count: int) -> Floats:
    """``count`` weightings of K objectives, (count, K): corners, centre, and the rest as far apart as can be.

    The rest comes from the coarsest lattice on the simplex that has enough points, each time the one farthest from all
    that were taken; of equally far ones the one that keeps the objectives' total weights most even. Two objectives and
    5 weightings: 0, 1/4, 1/2, 3/4, 1. One objective has one weighting.

    Raises:
        ValueError: K below 1, or a count that does not hold the corners and the centre.
    """
    if K < 1:
        raise ValueError(f"got {K} objectives, expected at least 1")
    if K == 1:
        return np.ones((1, 1))
    if count < K + 1:
        raise ValueError(
            f"got a grid of {count} weightings for {K} objectives, expected at least {K + 1}: "
            "the corners and the centre"
        )
    resolution = 1
    while comb(resolution + K - 1, K - 1) < count:
        resolution += 1
    lattice = np.array(list(_compositions(resolution, K))) / resolution
    chosen = [*np.eye(K), np.full(K, 1 / K)]
    while len(chosen) < count:
        taken = np.array(chosen)
        gaps = np.linalg.norm(lattice[:, None] - taken, axis=2).min(axis=1)
        uneven = (taken.sum(axis=0) + lattice).std(axis=1)
        order = np.lexsort((np.arange(len(lattice)), uneven.round(9), -gaps.round(9)))
        chosen.append(lattice[order[0]])
    return np.array(sorted(map(tuple, chosen)))


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to write ``total`` as ``parts`` whole numbers from 0."""
    if parts == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in _compositions(total - first, parts - 1):
            yield (first, *rest)


def front(points: ArrayLike) -> Floats:
    """The non-dominated of the points (N, M) that are finite, sorted by the first objective."""
    array = np.asarray(points, dtype=float)
    array = array[np.isfinite(array).all(axis=1)]
    kept = array[is_nondominated(array)] if len(array) else array
    return kept[np.argsort(kept[:, 0], kind="stable")]


ATTAINED = ("all", "half", "any")


def attainment(runs: Sequence[ArrayLike]) -> dict[str, Floats]:
    """What all, at least half, and any of several runs (seeds) attain: three fronts over two objectives.

    A point is attained by a run when one of the run's points (N, 2) is nowhere below it. The region between ``all`` and
    ``any`` is the band of a plot, ``half`` its middle line (the empirical attainment function). Each front (F, 2) is
    sorted by the first objective.

    Raises:
        ValueError: no run with a finite point, or another number of objectives.
    """
    fronts = [front(run) for run in runs]
    fronts = [f for f in fronts if len(f)]
    if not fronts or any(f.shape[1] != 2 for f in fronts):
        raise ValueError(
            f"expected runs of points of shape (N, 2), got {[np.shape(r) for r in runs]}"
        )
    sets = np.repeat(np.arange(len(fronts)), [len(f) for f in fronts])
    # moocore minimizes here. A percentile p is what at least ceil(p/100 x runs) of them attain.
    levels = {"any": 50 / len(fronts), "half": 50.0, "all": 100.0}
    surfaces = {}
    for name in ATTAINED:
        found = eaf(-np.concatenate(fronts), sets, percentiles=[levels[name]])
        surfaces[name] = front(-found[:, :2])
    return surfaces
