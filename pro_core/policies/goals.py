"""What an online round asks for, and which responses it keeps: only arithmetic, no model.

A round gives each prompt goal weights from a source (RiC: scores of its own), samples G responses, and keeps some by
one of two rules. Either rule works with either method, so the effect of a rule is not mistaken for that of weights.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pro_core.data.objectives import Prompt
from pro_core.prompting.templates import Condition, format_scores, weights_for_scores
from pro_core.weights import (
    AdapterWeights,
    DirichletWeights,
    FixedWeights,
    MixedWeights,
    SelectedWeights,
    ShuffledWeights,
    WeightSource,
    weighted_sum,
)

Array = NDArray[np.float32]

Goal = Literal["adapter", "mix", "dirichlet", "uniform", "shuffled", "ric"]
GOALS: tuple[Goal, ...] = get_args(Goal)
NEED_ADAPTER = ("adapter", "mix", "shuffled")
MIX = (0.7, 0.2, 0.1)
"""Shares of ``mix``: the adapter, Dirichlet around it, uniform on the simplex. With the adapter's alone, users would
lose control."""

Rule = Literal["weighted", "ric"]


@dataclass(frozen=True)
class Goals:
    """What B prompts were asked for: weights (B, K) on the simplex, scores (B, K) for RiC, and the texts that say
    so."""

    weights: Array
    scores: Array | None
    texts: list[str]


def goal_source(
    name: str, objective_names: Sequence[str], adapter, seed: int | Sequence[int]
) -> WeightSource:
    """Where an online round's weights come from.

    Args:
        name: ``adapter`` (as it predicts), ``mix`` (see :data:`MIX`), ``dirichlet`` (uniform on the simplex,
            blind to the prompt), ``uniform`` (1/K each), or ``shuffled`` (the mix's, given to the wrong prompts).
        objective_names: those of the adapter's objectives that the policy knows.
        adapter: needed by the names in :data:`NEED_ADAPTER`.
    """
    drawn = [int(s) for s in np.random.SeedSequence(seed).generate_state(4)]
    blind = DirichletWeights(objective_names, seed=drawn[0])
    if name == "dirichlet":
        return blind
    if name == "uniform":
        return FixedWeights(objective_names)
    predicted = SelectedWeights(AdapterWeights(adapter), objective_names)
    if name == "adapter":
        return predicted
    around = DirichletWeights(objective_names, predicted, seed=drawn[1])
    mixed = MixedWeights([predicted, around, blind], MIX, seed=drawn[2])
    if name == "mix":
        return mixed
    if name == "shuffled":
        return ShuffledWeights(mixed, seed=drawn[3])
    raise ValueError(f"got the goals {name!r}, expected one of {GOALS}")


def ric_goals(count: int, score_range: ArrayLike, seed: int | Sequence[int]) -> Array:
    """RiC's goals (count, K), blind to the prompt: every score is uniform in its range (K, 2), then all but the
    smallest, the one lowest in its own range, are set to the top. One decimal."""
    low, high = np.asarray(score_range, dtype=np.float64).T
    part = np.random.default_rng(seed).random((count, len(low)))
    lowest = part.argmin(axis=1)
    kept = part[np.arange(count), lowest]
    part[:] = 1
    part[np.arange(count), lowest] = kept
    return np.round(low + part * (high - low), 1).astype(np.float32)


def ask(
    name: str,
    prompts: Sequence[Prompt],
    condition: Condition,
    adapter=None,
    seed: int | Sequence[int] = 0,
) -> Goals:
    """What a round asks of each prompt, as weights and as the condition's text.

    A policy that reads scores is asked for RiC's targets for the weights, or under ``ric`` for RiC's own goals.
    """
    names = condition.objective_names
    if name == "ric":
        assert condition.score_range is not None
        scores = ric_goals(len(prompts), condition.score_range, seed)
        low, high = np.asarray(condition.score_range).T
        weights = weights_for_scores(scores, low, high)
    else:
        # Four decimals: the same file on every machine that draws the same.
        weights = goal_source(name, names, adapter, seed)(prompts).round(4)
        if condition.kind == "scores":
            scores = condition.target_scores(weights)
    if condition.kind == "scores":
        return Goals(weights, scores, [format_scores(row, names) for row in scores])
    return Goals(weights, None, [condition.text(row) for row in weights])


def accept_ric(z_NK: ArrayLike, quantile: float) -> NDArray[np.bool_]:
    """RiC's rule, (N,): any reward above its own quantile over these N responses. NaN is never above."""
    z = np.asarray(z_NK, dtype=np.float64)
    whole = np.asarray(np.isfinite(z).all(axis=1))
    if not whole.any():
        return whole
    return whole & (z > np.quantile(z[whole], quantile, axis=0)).any(axis=1)


def accept_weighted(
    z_NK: ArrayLike,
    weights_NK: ArrayLike,
    prompt_N: Sequence[int],
    quantile: float,
    earlier: Sequence[float] = (),
) -> NDArray[np.bool_]:
    """Our rule, (N,): the best response of each prompt by sum_k w_k z_k, if it is above a running quantile.

    The quantile is over the totals of all responses so far: those of ``earlier`` rounds, of the prompts before, and of
    the prompt itself. It rises with the policy, so a later round demands more than the first.

    Args:
        prompt_N: which prompt each response answers; prompts in the order in which they were asked.
    """
    totals = weighted_sum(z_NK, weights_NK).astype(np.float64)
    of_prompt: dict[int, list[int]] = {}
    for n in np.flatnonzero(np.isfinite(totals)).tolist():
        of_prompt.setdefault(int(prompt_N[n]), []).append(n)
    kept = np.zeros(len(totals), dtype=bool)
    seen = sorted(float(total) for total in earlier if np.isfinite(total))
    for rows in of_prompt.values():
        for n in rows:
            insort(seen, float(totals[n]))
        best = max(rows, key=lambda n: totals[n])
        kept[best] = totals[best] > _quantile(seen, quantile)
    return kept


def _quantile(ordered: Sequence[float], q: float) -> float:
    """``np.quantile`` of values that are already sorted."""
    place = q * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def offline_mask(rule: str, z_NK: ArrayLike, condition: Condition, quantile: float):
    """Which offline responses a round mixes in (N,): as in RiC's code, only those that its rule would keep.

    Offline responses have no goal: ``weighted`` rates each by the weights that it obtained.
    """
    if rule == "ric":
        return accept_ric(z_NK, quantile)
    totals = weighted_sum(z_NK, condition.obtained_weights(z_NK))
    return totals > np.quantile(totals, quantile)


def distance(
    condition: Condition, goals: Goals, rows: ArrayLike, z_NK: ArrayLike
) -> NDArray[np.float64]:
    """The distance (N,) between what N responses obtained and what was asked for, in the condition's own terms.

    Weights: half the sum of absolute differences, 0 to 1. Scores: the mean absolute difference.

    Args:
        rows: (N,) the row of the goals that each response answers.
    """
    z, index = np.asarray(z_NK, dtype=np.float64), np.asarray(rows)
    if goals.scores is not None:
        return np.abs(goals.scores[index] - z).mean(axis=1)
    obtained = condition.obtained_weights(z)
    return np.abs(goals.weights[index] - obtained).sum(axis=1) / 2
