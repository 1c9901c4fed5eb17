"""Rates with intervals.

Intervals are a bootstrap over prompts. The resamples depend only on the number of prompts, so two models that answered
the same prompts are measured on the same resamples, and the interval of their difference is paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pro_core.metrics import prompt_counts, wilson_interval

Floats = NDArray[np.float64]
RESAMPLES = 1000


@dataclass(frozen=True)
class Rate:
    """A measured value and its 95% interval.

    Attributes:
        value: of all n prompts. interval: (low, high).
        n: prompts that count. left_out: prompts without a usable verdict.
    """

    value: float
    interval: tuple[float, float]
    n: int
    left_out: int = 0

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.1f} ({low:.1f} to {high:.1f})"


def resampled(prompts: int, resamples: int = RESAMPLES) -> Floats:
    """How often each prompt counts, (1 + resamples, P): once each in the first row, then in each resample."""
    return _resampled(prompts, resamples)


@lru_cache(maxsize=8)
def _resampled(prompts: int, resamples: int) -> Floats:
    names = [f"{p:09d}" for p in range(prompts)]
    counts = prompt_counts(names, resamples)[1]
    return np.concatenate([np.ones((1, prompts)), counts]).astype(np.float64)


def rate_of(draws: ArrayLike, n: int, left_out: int = 0) -> Rate:
    """A rate from its value and its resamples, (1 + R,)."""
    drawn = np.asarray(draws, dtype=np.float64)
    finite = drawn[1:][np.isfinite(drawn[1:])]
    low, high = np.percentile(finite, [2.5, 97.5]) if len(finite) else (np.nan, np.nan)
    return Rate(float(drawn[0]), (float(low), float(high)), n, left_out)


def mean_rate(
    values: ArrayLike, scale: float = 100.0, prompts: Sequence[str] | None = None
) -> Rate:
    """``scale`` times the mean of one value per prompt (P,); NaN has no verdict and is left out and counted.

    Args:
        prompts: of each value, where several values are of one prompt: they are resampled together.

    Where all prompts agree, resampling says nothing; the interval of values from 0 to 1 is then Wilson's, with one
    trial per prompt.

    Raises:
        ValueError: not one value.
    """
    given = np.asarray(values, dtype=np.float64)
    kept = given[np.isfinite(given)]
    if not len(kept):
        raise ValueError(f"got {len(given)} prompts and not one value, expected at least one")
    left_out = len(given) - len(kept)
    rate = rate_of(scale * _means(given, prompts), len(kept), left_out)
    if rate.interval[0] == rate.interval[1] and 0 <= kept.min() <= kept.max() <= 1:
        low, high = wilson_interval(float(kept.mean()), _prompts(given, prompts))
        return Rate(rate.value, (scale * low, scale * high), len(kept), left_out)
    return rate


def _prompts(values: Floats, prompts: Sequence[str] | None) -> int:
    """How many different prompts have a finite value."""
    finite = np.isfinite(values)
    if prompts is None:
        return int(finite.sum())
    return len({prompt for prompt, counted in zip(prompts, finite, strict=True) if counted})


def _means(values: Floats, prompts: Sequence[str] | None) -> Floats:
    """The mean of the finite values, and its resamples, (1 + R,)."""
    finite = np.isfinite(values)
    kept = values[finite]
    if prompts is None:
        counts = resampled(len(kept))
    else:
        names = [prompt for prompt, counted in zip(prompts, finite, strict=True) if counted]
        index, counts_RP = prompt_counts(names, RESAMPLES)
        counts = np.concatenate([np.ones((1, len(kept))), counts_RP[:, index]])
    return (counts @ kept) / counts.sum(axis=1)


def paired_lead(
    values: ArrayLike,
    other: ArrayLike,
    scale: float = 100.0,
    prompts: Sequence[str] | None = None,
) -> Rate:
    """``scale`` times the mean difference of two models' values (P,) on the same prompts, in the same order.

    Prompts that lack a value of either model are left out.

    Raises:
        ValueError: values of different numbers of prompts, or no prompt with both.
    """
    a, b = np.asarray(values, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"got {a.shape} and {b.shape} values, expected those of the same prompts")
    gaps = a - b
    n = int(np.isfinite(gaps).sum())
    if not n:
        raise ValueError("got no prompt with a value of both models")
    rate = rate_of(scale * _means(gaps, prompts), n, len(gaps) - n)
    if rate.value and rate.interval[0] == rate.interval[1]:
        # All prompts agree. Wilson's interval of the share that do: the others may lead as far the other way.
        low, _ = wilson_interval(1.0, _prompts(gaps, prompts))
        ends = sorted((rate.value * (2 * low - 1), rate.value))
        return Rate(rate.value, (ends[0], ends[1]), n, len(gaps) - n)
    return rate


def only_one(names: Sequence[str], what: str) -> str:
    """The single name among these.

    Raises:
        ValueError: several, or none.
    """
    distinct = sorted(set(names))
    if len(distinct) != 1:
        raise ValueError(f"got {len(distinct)} {what} {distinct[:4]}, expected one")
    return distinct[0]
