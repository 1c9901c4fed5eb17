"""Accuracies with intervals, a logistic fit for many resamples, and measures of fronts.

Higher is better; intervals are bootstrapped over prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from scipy.stats import t as student

from pro_core.system.extras import needs

with needs("train"):
    from moocore import hypervolume as _hypervolume
    from moocore import igd_plus as _igd_plus
    from moocore import is_nondominated as _is_nondominated

RESAMPLES = 2000
RIDGE = 1e-6
"""Of logistic fits: keeps coefficients finite where a model wins or loses every game. It moves no published win rate by
1e-3 points."""
LONGEST_STEP = 4.0
"""The longest Newton step: without a limit, the first one can overshoot where outcomes are almost separated."""


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
        prompts: (N,) one text per pair; pairs of one prompt are drawn together.

    If all prompts agree, or there is only one, resampling says nothing. The interval is then Wilson's, with one trial
    per prompt.

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
    if lo == hi:
        lo, hi = wilson_interval(float(right.mean()), P)
    return {
        "accuracy": float(right.mean()),
        "ci95": [float(lo), float(hi)],
        "n": len(right),
        "prompts": P,
    }


def accuracy_lead(
    margins: ArrayLike, other: ArrayLike, prompts: Sequence[str], seed: int = 0
) -> dict[str, float | list[float]]:
    """The accuracy of margins (N,) minus that of another method's margins (N,) on the same pairs.

    The interval is paired: both methods are measured on the same resamples of the prompts.

    Returns:
        ``{"accuracy": difference, "ci95": [lo, hi]}``, -1 to 1.
    """
    gained = correct(margins) - correct(other)
    index, counts = prompt_counts(prompts, seed=seed)
    P = counts.shape[1]
    drawn = (counts @ np.bincount(index, gained, P)) / (counts @ np.bincount(index, minlength=P))
    lo, hi = np.percentile(drawn, [2.5, 97.5])
    return {"accuracy": float(gained.mean()), "ci95": [float(lo), float(hi)]}


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """The 95% interval of a share of n independent trials (Wilson 1927); it is never empty, not even at 0 or 1."""
    z = 1.959964
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


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


def fit_logistic(
    features_ND: ArrayLike,
    outcomes_N: ArrayLike,
    counts_RN: ArrayLike | None = None,
    start_D: ArrayLike | None = None,
    tolerance: float = 1e-6,
) -> NDArray[np.float64]:
    """Coefficients (R, D) of R logistic regressions without an intercept, fitted side by side by Newton's method.

    Each minimizes -sum_n c_n [y_n log p_n + (1 - y_n) log(1 - p_n)] + RIDGE/2 |b|^2, where p_n = sigmoid(x_n . b).

    Args:
        outcomes_N: each in [0, 1]; a tie is 0.5.
        counts_RN: how much each row counts in each fit; None for one fit where each counts once.
        start_D: where Newton's method starts; 0 by default.
        tolerance: the fit ends with a step shorter than this. The error is then about its square.
    """
    x, y = np.asarray(features_ND, dtype=np.float64), np.asarray(outcomes_N, dtype=np.float64)
    counts = np.ones((1, len(y))) if counts_RN is None else np.asarray(counts_RN, dtype=np.float64)
    R, D = len(counts), x.shape[1]
    b = np.zeros((R, D)) if start_D is None else np.tile(np.asarray(start_D, dtype=float), (R, 1))
    outer = (x[:, :, None] * x[:, None, :]).reshape(len(y), D * D)
    for _ in range(100):
        p = expit(b @ x.T)
        gradient = (counts * (y - p)) @ x - RIDGE * b
        hessian = ((counts * p * (1 - p)) @ outer).reshape(R, D, D) + RIDGE * np.eye(D)
        step = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        longest = np.abs(step).max(axis=1, keepdims=True)
        b += step * np.minimum(1.0, LONGEST_STEP / np.maximum(longest, 1e-300))
        if longest.max() < tolerance:
            break
    return b


def fit_resampled(
    features_ND: ArrayLike, outcomes_N: ArrayLike, counts_RN: ArrayLike
) -> NDArray[np.float64]:
    """:func:`fit_logistic` of a bootstrap: exact in the first row, and in the others to 1e-4."""
    counts = np.asarray(counts_RN, dtype=np.float64)
    best = fit_logistic(features_ND, outcomes_N, counts[:1])
    if len(counts) == 1:
        return best
    others = fit_logistic(features_ND, outcomes_N, counts[1:], best[0], tolerance=1e-2)
    return np.concatenate([best, others])


def is_nondominated(points: ArrayLike) -> NDArray[np.bool_]:
    """Which of the points (N, M) no other point beats; maximization, higher is better in every objective.

    One point beats another when it is nowhere below it and somewhere above it. Of equal points the first counts.

    Raises:
        ValueError: a coordinate that is not finite; leave such points out.
    """
    return np.asarray(_is_nondominated(_points(points), maximise=True), dtype=bool)


def hypervolume(points: ArrayLike, ref: ArrayLike) -> float:
    """The volume that the points (N, M) dominate above the reference point (M,); maximization, higher is better.

    0 for no points, and for points that are not above the reference point in every objective.

    Raises:
        ValueError: as :func:`is_nondominated`, or a reference point of another length.
    """
    points, ref = _points(points), np.asarray(ref, dtype=float)
    if ref.shape != points.shape[1:]:
        raise ValueError(f"got points {points.shape} and a reference point {ref.shape}")
    return float(_hypervolume(points, ref=ref, maximise=True))


def igd_plus(points: ArrayLike, front: ArrayLike) -> float:
    """IGD+: how far the points (N, M) fall short of a reference front (F, M), on average over that front.

    Lower is better here, unlike in the other measures. The points are maximized; what exceeds the front counts as 0.

    Raises:
        ValueError: no points, no front, or a coordinate that is not finite.
    """
    points, front = _points(points), _points(front)
    if not len(points) or not len(front):
        raise ValueError(
            f"got {len(points)} points and a front of {len(front)}, expected at least one of each"
        )
    return float(_igd_plus(points, ref=front, maximise=True))


def log_slope(x_SL: ArrayLike, y_SL: ArrayLike) -> tuple[float, list[float]]:
    """The exponent p of y = c x^p: least squares on logarithms for each of S seeds; mean and 95% t-interval."""
    x, y = np.log(np.asarray(x_SL, dtype=float)), np.log(np.asarray(y_SL, dtype=float))
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    return mean_interval((x * y).sum(axis=1) / (x**2).sum(axis=1))


def linear_slope(x_SL: ArrayLike, y_SL: ArrayLike) -> tuple[float, list[float]]:
    """The constant c of y = c x (the theorem's), with the same interval as :func:`log_slope`."""
    x, y = np.asarray(x_SL, dtype=float), np.asarray(y_SL, dtype=float)
    return mean_interval((x * y).sum(axis=1) / (x**2).sum(axis=1))


def mean_interval(values: ArrayLike) -> tuple[float, list[float]]:
    """The mean over seeds and its 95% t-interval; for a single seed the interval is not finite."""
    values = np.asarray(values, dtype=float)
    mean, half = float(values.mean()), float("inf")
    if len(values) > 1:
        error = values.std(ddof=1) / np.sqrt(len(values))
        half = float(error * student.ppf(0.975, len(values) - 1))
    return mean, [mean - half, mean + half]


def _points(points: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(points, dtype=float)
    if array.ndim != 2 or not array.shape[1] or not np.isfinite(array).all():
        raise ValueError(f"expected finite points of shape (N, M), got shape {array.shape}")
    return array
