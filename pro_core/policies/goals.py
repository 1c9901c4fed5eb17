"""What an online round asks for, and which of the responses it keeps: arithmetic alone, no model.

A round asks each prompt for weights from a source (RiC: for scores of its own), samples G responses, and keeps some by
one of two rules. Either rule goes with either method, so that what a rule does is not taken for what weights do.
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
"""Shares of ``mix``: the adapter, Dirichlet around it, uniform on the simplex. If all were the adapter's, users would
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
            blind to the prompt), ``uniform`` (1/K each), or ``shuffled`` (the mix's, dealt to the wrong prompts).
        objective_names: of the adapter's, those that the policy knows.
        adapter: needed by those in :data:`NEED_ADAPTER`.
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
    """RiC's goals (count, K), blind to the prompt: every score uniform in its range (K, 2), then all but the smallest
    set to the top. The smallest is the one lowest in its own range; one decimal."""
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

    A policy that reads scores is asked for RiC's targets of the weights, but under ``ric`` for RiC's own goals.
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
    """Our rule, (N,): of each prompt's responses the best by sum_k w_k z_k, when above a running quantile.

    The quantile is over the totals of all responses so far: those of ``earlier`` rounds, of the prompts before, and of
    the prompt itself. It rises with the policy, so that a later round is not content with what a first one was.

    Args:
        prompt_N: which prompt each response answers; prompts in the order in which they were asked.
    """
    totals = weighted_sum(z_NK, weights_NK).astype(np.float64)
    of_prompt: dict[int, list[int]] = {}
    for n in np.flatnonzero(np.isfinite(totals)).tolist():
        of_prompt.setdefault(int(prompt_N[n]), []).append(n)
    kept = np.zeros(len(totals), dtype=bool)
    seen = sorted(float(total) for total in earlier if np.isfinite(total))
    for mine in of_prompt.values():
        for n in mine:
            insort(seen, float(totals[n]))
        best = max(mine, key=lambda n: totals[n])
        kept[best] = totals[best] > _quantile(seen, quantile)
    return kept


def _quantile(ordered: Sequence[float], q: float) -> float:
    """As ``np.quantile``, of what is sorted already."""
    place = q * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def offline_mask(rule: str, z_NK: ArrayLike, condition: Condition, quantile: float):
    """Which offline responses a round mixes in (N,): as in RiC's code, only those that its rule would keep.

    Nobody asked for anything there: under ``weighted`` a response counts by the weights that it obtained.
    """
    if rule == "ric":
        return accept_ric(z_NK, quantile)
    totals = weighted_sum(z_NK, condition.obtained_weights(z_NK))
    return totals > np.quantile(totals, quantile)


def distance(
    condition: Condition, goals: Goals, rows: ArrayLike, z_NK: ArrayLike
) -> NDArray[np.float64]:
    """How far what N responses obtained is from what was asked for (N,), in the condition's own terms.

    Weights: half the sum of absolute differences, 0 to 1. Scores: the mean absolute difference.

    Args:
        rows: (N,) the row of the goals that each response answers.
    """
    z, index = np.asarray(z_NK, dtype=np.float64), np.asarray(rows)
    if goals.scores is not None:
        return np.abs(goals.scores[index] - z).mean(axis=1)
    obtained = condition.obtained_weights(z)
    return np.abs(goals.weights[index] - obtained).sum(axis=1) / 2
