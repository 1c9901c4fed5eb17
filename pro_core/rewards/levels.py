"""MOSLIM's intensity levels: from ratings to levels, from logits to probabilities, and Eq 11's reward.

Levels count from 1; a higher level is more of the objective. The S outputs of a classifier are its concatenated heads,
S1||...||Sn, each with one column per level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from numbers import Real
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from pro_core.data.objectives import check_objective_names
from pro_core.data.schema import DataError
from pro_core.rewards.calibration import RewardStats, check_finite

Loss = Literal["joint", "per_head"]
LOSSES: tuple[Loss, ...] = get_args(Loss)
DIVISORS = ("objectives", "targets")


@dataclass(frozen=True)
class IntensityScale:
    """How one objective's ratings become intensity levels.

    Attributes:
        name: the objective.
        low, high: the smallest and the largest possible rating.
        thresholds: ascending ratings at which the next level begins: level 1 is below the first, and without any
            threshold there is one level only (MOSLIM's data type 1).

    Raises:
        ValueError: thresholds that do not ascend within the range.
    """

    name: str
    low: float
    high: float
    thresholds: tuple[float, ...] = ()

    def __post_init__(self):
        check_objective_names([self.name])
        check_objective_names([f"{self.name}-{self.levels}"])  # `stats` uses the outputs' names
        edges = [self.low, *self.thresholds]
        if self.low >= self.high or any(a >= b for a, b in pairwise(edges)):
            raise ValueError(
                f"{self.name}: got the range {self.low:g} to {self.high:g} and the thresholds "
                f"{list(self.thresholds)}, expected a range and ascending thresholds above its lower end"
            )
        if edges[-1] > self.high:
            raise ValueError(
                f"{self.name}: got the threshold {edges[-1]:g}, expected at most {self.high:g}, the largest rating"
            )

    @property
    def levels(self) -> int:
        """The number of levels."""
        return len(self.thresholds) + 1

    def level(self, rating: Any) -> int:
        """The level, 1 to ``levels``, of a rating.

        Raises:
            DataError: not a finite number, or outside the range.
        """
        value = float(rating) if isinstance(rating, Real) else math.nan
        if not math.isfinite(value):
            raise DataError(
                f"{self.name}: got the rating {rating!r}, expected a number from {self.low:g} to {self.high:g}; "
                "leave the label out where there is no rating"
            )
        if not self.low <= value <= self.high:
            raise DataError(
                f"{self.name}: got the rating {value:g}, expected {self.low:g} to {self.high:g}; "
                "correct the file or the `range` in the recipe"
            )
        return 1 + sum(value >= threshold for threshold in self.thresholds)


def level_columns(scales: Sequence[IntensityScale]) -> tuple[str, ...]:
    """The names of the S outputs: ``helpful-1``, ``helpful-2``, ..."""
    return tuple(f"{scale.name}-{level + 1}" for scale in scales for level in range(scale.levels))


def saved_scales(config: Mapping[str, Any]) -> tuple[IntensityScale, ...]:
    """The scales that a ``classifier.json`` holds."""
    return tuple(
        IntensityScale(o["name"], o["range"][0], o["range"][1], tuple(o["thresholds"]))
        for o in config["objectives"]
    )


def log_probabilities(logits: torch.Tensor, sizes: Sequence[int], loss: str) -> torch.Tensor:
    """Log-probabilities (N, S) of concatenated logits (N, S).

    ``joint``: one softmax over all S (Eq 10). ``per_head``: one over each head's own outputs (Eq 7).
    """
    if loss == "joint":
        return torch.log_softmax(logits, 1)
    return torch.cat([torch.log_softmax(part, 1) for part in logits.split(list(sizes), 1)], 1)


# ---------------------------------------------------------------- Eq 11


def map_levels(
    probabilities: ArrayLike,
    targets: Sequence[Mapping[str, int]],
    stats: RewardStats,
    divide_by: str = "objectives",
) -> NDArray[np.float32]:
    """One reward per row (N,) for how likely its target levels are (MOSLIM's Eq 11); higher is better.

        r = (1/k) sum_i mask_i (p_i[target_i] - mean_i[target_i]) / std_i[target_i]

    Args:
        probabilities: (N, S), the columns of ``stats``.
        targets: one ``{objective: level}`` per row, levels from 1; an objective that is not named has mask 0.
        stats: mean and deviation of each level of each head; its names are those of :func:`level_columns`.
        divide_by: ``objectives`` (k counts all heads, as printed) or ``targets`` (k counts the row's own targets, so
            that a row with one target is not graded on a smaller scale than a row with three).

    Raises:
        ValueError: another shape, a row without a target, an unknown objective or level.
    """
    if divide_by not in DIVISORS:
        raise ValueError(f"got the divisor {divide_by!r}, expected one of {DIVISORS}")
    z_NK, mask_NK = target_scores(probabilities, targets, stats)
    k = mask_NK.shape[1] if divide_by == "objectives" else mask_NK.sum(axis=1)
    return (np.where(mask_NK, z_NK, 0).sum(axis=1) / k).astype(np.float32)


def target_scores(
    probabilities: ArrayLike, targets: Sequence[Mapping[str, int]], stats: RewardStats
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Eq 11's terms before they are summed: (p_i[target_i] - mean) / std (N, K), NaN where mask_i is 0; and the mask.

    Args, Raises: see :func:`map_levels`.
    """
    z = stats.normalize(probabilities)
    if len(targets) != len(z):
        raise ValueError(f"got {len(targets)} targets for {len(z)} rows of probabilities")
    column = {name: j for j, name in enumerate(stats.objective_names)}
    heads = list(dict.fromkeys(name.rpartition("-")[0] for name in column))
    terms = np.full((len(z), len(heads)), np.nan, dtype=np.float32)
    mask = np.zeros(terms.shape, dtype=bool)
    for i, row in enumerate(targets):
        unknown = [name for name, level in row.items() if f"{name}-{level}" not in column]
        if unknown or not row:
            raise ValueError(
                f"row {i}: got the targets {dict(row)}, expected at least one objective with one of its levels: "
                f"{', '.join(column)}"
            )
        for name, level in row.items():
            k = heads.index(name)
            terms[i, k], mask[i, k] = z[i, column[f"{name}-{level}"]], True
    return terms, mask


def moving_stats(stats: RewardStats, probabilities: ArrayLike, momentum: float) -> RewardStats:
    """The statistics moved towards a batch (N, S): an exponential average of p and of p squared.

    mean <- (1 - momentum) mean + momentum batch mean; likewise for the second moment, which gives the deviation.

    Raises:
        ValueError: no rows, another S, or a momentum outside (0, 1].
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 2 or not len(p) or p.shape[1] != len(stats.objective_names):
        raise ValueError(f"got shape {p.shape}, expected (N >= 1, {len(stats.objective_names)})")
    if not 0 < momentum <= 1:
        raise ValueError(f"got a momentum of {momentum}, expected one above 0, at most 1")
    check_finite(p, stats.objective_names)
    # A constant column is stored with a deviation of 1; its real deviation is 0.
    variance = np.where(np.isin(stats.objective_names, stats.constant), 0.0, stats.std**2)
    mean = (1 - momentum) * stats.mean + momentum * p.mean(axis=0)
    square = (1 - momentum) * (variance + stats.mean**2) + momentum * (p**2).mean(axis=0)
    std = np.sqrt(np.maximum(square - mean**2, 0.0))
    flat = std < 1e-8
    constant = tuple(np.asarray(stats.objective_names)[flat].tolist())
    return replace(stats, mean=mean, std=np.where(flat, 1.0, std), constant=constant)
