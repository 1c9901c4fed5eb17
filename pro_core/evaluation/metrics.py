"""Accuracies with intervals. Higher is better everywhere; intervals are a bootstrap over prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from moocore import hypervolume as _hypervolume
from moocore import is_nondominated as _is_nondominated
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

RESAMPLES = 2000


def prompt_counts(prompts: Sequence[str], resamples: int = RESAMPLES, seed: int = 0):
    """(index of each row's prompt (N,), how often each resample draws each prompt (resamples, P))."""
    names, index = np.unique(np.asarray(prompts, dtype=object).astype(str), return_inverse=True)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return index, counts


def accuracy_with_interval(
    margins: ArrayLike, prompts: Sequence[str], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, float | int | list[float]]:
    """Share of pairs whose chosen completion scores higher; a tie counts half.

    Args:
        margins: (N,) score of the chosen minus score of the rejected.
        prompts: (N,) one text a pair; pairs of one prompt are drawn together.

    Returns:
        ``{"accuracy", "ci95": [lo, hi], "n": pairs, "prompts"}``.

    Raises:
        ValueError: no pairs.
    """
    right = correct(margins)
    if not len(right):
        raise ValueError("got no pairs to measure an accuracy on")
    index, counts = prompt_counts(prompts, resamples, seed)
    P = counts.shape[1]
    rights, totals = np.bincount(index, right, P), np.bincount(index, minlength=P)
    drawn = (counts @ rights) / (counts @ totals)
    lo, hi = np.percentile(drawn, [2.5, 97.5])
    return {
        "accuracy": float(right.mean()),
        "ci95": [float(lo), float(hi)],
        "n": len(right),
        "prompts": P,
    }


def correct(margins: ArrayLike) -> NDArray[np.float64]:
    """1 where the margin is above 0, 0 where below, 0.5 at a tie: (N,)."""
    return (np.sign(np.asarray(margins, dtype=np.float64)) + 1) / 2


def macro_accuracy(
    right: ArrayLike, groups: ArrayLike, index: NDArray, counts: NDArray
) -> tuple[float, NDArray[np.float64]]:
    """The accuracy averaged over groups, and the same for each resample of the prompts: (value, (resamples,)).

    Args:
        right: (N,) 1 where the pair is right, 0 where wrong.
        groups: (N,) what to average over, such as the objectives. A resample that draws none of a group's prompts
            averages over the others.
        index, counts: from :func:`prompt_counts`.
    """
    right, groups = np.asarray(right, dtype=np.float64), np.asarray(groups)
    values, draws = [], []
    for group in np.unique(groups):
        rows = groups == group
        rights = np.bincount(index[rows], right[rows], counts.shape[1])
        totals = counts @ np.bincount(index[rows], minlength=counts.shape[1])
        values.append(right[rows].mean())
        draws.append(np.where(totals > 0, (counts @ rights) / np.maximum(totals, 1), np.nan))
    return float(np.mean(values)), np.nanmean(draws, axis=0)


def is_nondominated(points: ArrayLike) -> NDArray[np.bool_]:
    """Which of the points (N, M) no other point beats in every objective; maximization."""
    return np.asarray(_is_nondominated(np.asarray(points, dtype=float), maximise=True))


def hypervolume(points: ArrayLike, ref: ArrayLike) -> float:
    """The volume that the points (N, M) dominate above the reference point (M,); maximization."""
    return float(
        _hypervolume(
            np.asarray(points, dtype=float), ref=np.asarray(ref, dtype=float), maximise=True
        )
    )


def log_slope(x_SL: ArrayLike, y_SL: ArrayLike) -> tuple[float, list[float]]:
    """The exponent p of y = c x^p: least squares on logarithms for each of S seeds; mean and 95% t-interval."""
    x, y = np.log(np.asarray(x_SL, dtype=float)), np.log(np.asarray(y_SL, dtype=float))
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    return mean_interval((x * y).sum(axis=1) / (x**2).sum(axis=1))


def linear_slope(x_SL: ArrayLike, y_SL: ArrayLike) -> tuple[float, list[float]]:
    """The c of y = c x, as :func:`log_slope` does it: the theorem's constant."""
    x, y = np.asarray(x_SL, dtype=float), np.asarray(y_SL, dtype=float)
    return mean_interval((x * y).sum(axis=1) / (x**2).sum(axis=1))


def mean_interval(values: ArrayLike) -> tuple[float, list[float]]:
    """The mean over seeds and its 95% t-interval; of a single seed the interval is not finite."""
    values = np.asarray(values, dtype=float)
    mean, half = float(values.mean()), float("inf")
    if len(values) > 1:
        error = values.std(ddof=1) / np.sqrt(len(values))
        half = float(error * student.ppf(0.975, len(values) - 1))
    return mean, [mean - half, mean + half]
