"""When do weights that follow the prompt beat fixed ones? The lead, exactly, in worlds where the truth is known.

Prompt x has true weights w*(x). People prefer one of two responses by Bradley-Terry under w* and the true margins m
(K,). A panel sees m + noise. Weights w are right on a pair if the sign of w . (m + noise) is what was preferred.

Let t(x) = w*(x) - w_fixed and d(x) = w(x) - w_fixed: how far the truth and the adapter move away from fixed weights. To
second order the price of an error e is e' H e (Eq 12's gap, and the accuracy, at its best weights), so

    lead  ~  E[t' H t] - E[(t - d)' H (t - d)]  =  E[d' H d] (2 slope - 1),      slope = E[d' H t] / E[d' H d]

The slope says how much of the adapter's movement is right: 1 if it is calibrated, 0 if it is noise. **Weights that
follow the prompt pay if the slope is above 1/2**; the diversity of w*, K and the panel's noise scale the lead. An
adapter whose log-weights correlate by r with the truth's and vary q times as much has the slope r / q: it pays below
q = 2 r, and most at q = r, where its lead is r^2 times the oracle's.

All this holds while movements are small. Large ones move the line: an error then costs less than its square. And where
one reward model errs more than another, w* is no longer the most accurate weighting, and moving towards it may lose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit, ndtr, softmax

from pro_core.theory.alignment_gap import CandidateSets

Array = NDArray[np.float64]

PAYOFF_VERSION = 2
"""Raised with every change that moves a number of the rows."""
Accuracy = Callable[[Array], Array]
"""Weights (P, K) or (K,) -> how often they predict what is preferred, for each prompt (P,)."""
NODES = np.linspace(-6, 6, 161)
"""Of the integrals over a standard normal variable. Even steps, since the integrand has a kink at 0."""
NODE_WEIGHTS = np.exp(-(NODES**2) / 2)


@dataclass(frozen=True)
class Adapted:
    """True weights and an adapter's, of the same prompts: (P, K) each."""

    truth: Array
    predicted: Array


def planted_weights(
    prompts: int,
    truth: Array,
    fixed: Array,
    diversity: float,
    correlation: float,
    boldness: float,
    rng,
) -> Adapted:
    """w* = softmax(log b + diversity g), w = softmax(log f + boldness diversity (r g + sqrt(1 - r^2) h)).

    g and h are independent standard normal for each prompt and objective, r is the correlation. The adapter moves away
    from the fixed weights f (K,), ``fixed``, since weights that are best on average are easily known; under reward
    models with errors they are not the centre b (K,) of the truth, ``truth``.
    """
    g, h = rng.normal(size=(2, prompts, len(truth)))
    seen = correlation * g + np.sqrt(1 - correlation**2) * h
    return Adapted(
        softmax(np.log(truth) + diversity * g, axis=1),
        softmax(np.log(fixed) + boldness * diversity * seen, axis=1),
    )


# ---------------------------------------------------------------- accuracy


def gaussian_accuracy(weights: ArrayLike, truth: Array, temperature: float, noise: float) -> Array:
    """How often weights (P, K) or (K,) predict the preferred response of a prompt's pairs, (P,): exact.

    The margins are independent and standard normal; the panel's have independent noise of the given deviation on top.
    With u = w* . m and v = w . (m + noise), P(v > 0 | u) is normal, and one integral over u is left.
    """
    w = np.broadcast_to(np.asarray(weights, dtype=np.float64), truth.shape)
    spread_u = np.linalg.norm(truth, axis=1)
    spread_v = np.linalg.norm(w, axis=1) * np.sqrt(1 + noise**2)
    rho = np.clip((truth * w).sum(axis=1) / (spread_u * spread_v), -1 + 1e-12, 1 - 1e-12)
    prefers = expit(np.outer(spread_u, NODES) / temperature)
    positive = ndtr(np.outer(rho / np.sqrt(1 - rho**2), NODES))
    right = prefers * positive + (1 - prefers) * (1 - positive)
    return right @ NODE_WEIGHTS / NODE_WEIGHTS.sum()


def candidate_accuracy(
    weights: ArrayLike, truth: Array, temperature: float, sets: CandidateSets, seen: Array
) -> Array:
    """The same over all pairs of a prompt's candidates, (P,). The panel's rewards ``seen`` are (P, G, K)."""
    w = np.broadcast_to(np.asarray(weights, dtype=np.float64), truth.shape)
    there = np.isfinite(sets.log_reference)
    pairs = there[:, :, None] & there[:, None, :] & ~np.eye(there.shape[1], dtype=bool)
    value = np.einsum("pgk,pk->pg", sets.rewards, truth)
    guess = np.einsum("pgk,pk->pg", seen, w)
    prefers = expit((value[:, :, None] - value[:, None]) / temperature)
    said = 0.5 + 0.5 * np.sign(guess[:, :, None] - guess[:, None])
    right = prefers * said + (1 - prefers) * (1 - said)
    return (right * pairs).sum(axis=(1, 2)) / pairs.sum(axis=(1, 2))


def margin_deviation(sets: CandidateSets) -> Array:
    """The root of the mean squared margin between two candidates of a prompt, for each objective, (K,)."""
    there = np.isfinite(sets.log_reference)[:, :, None]
    count = there.sum(axis=1)
    mean = (sets.rewards * there).sum(axis=1) / count
    within = ((sets.rewards - mean[:, None]) ** 2 * there).sum(axis=1) / (count - 1)
    return np.sqrt(2 * within.mean(axis=0))


# ---------------------------------------------------------------- fixed weights, slope and lead


def best_fixed(accuracy: Accuracy, truth: Array, smooth: bool = True) -> Array:
    """The weights (K,) with the highest mean ``accuracy(weights)`` (P,), told the truth of these prompts (P, K).

    Args:
        smooth: the accuracy has a gradient. On finite sets of candidates it has steps, and a simplex search is used.
    """
    start = np.log(np.maximum(truth.mean(axis=0), 1e-6))
    how: dict[str, Any] = {"method": "L-BFGS-B"}
    if not smooth:
        how = {"method": "Nelder-Mead", "options": {"maxfev": 60 * len(start)}}
    return softmax(minimize(lambda logits: -accuracy(softmax(logits)).mean(), start, **how).x)


def slope_and_movement(adapted: Adapted, fixed: Array) -> tuple[float, float]:
    """E[d . t] / E[d . d] and the root of E[d . d] (module docstring, with H = 1 for all directions).

    A slope of NaN: the adapter does not move.
    """
    d, t = adapted.predicted - fixed, adapted.truth - fixed
    moved = float((d * d).sum(axis=1).mean())
    slope = float((d * t).sum(axis=1).mean() / moved) if moved > 1e-12 else float("nan")
    return slope, float(np.sqrt(moved))


def measure_payoff(accuracy: Accuracy, adapted: Adapted, fixed: Array) -> Mapping[str, float]:
    """What following the prompt pays, in points of accuracy over the best fixed weights.

    Args:
        accuracy: of weights (P, K) or (K,) on these prompts, (P,).

    Returns:
        ``lead`` of the adapter and ``oracle_lead`` of w* itself over ``fixed``; ``accuracy`` of the adapter and
        ``accuracy_fixed``; ``slope`` and ``movement`` (:func:`slope_and_movement`); ``diversity``, the root of the mean
        squared distance of w* from the fixed weights.
    """
    of = {
        "fixed": accuracy(fixed).mean(),
        "adapter": accuracy(adapted.predicted).mean(),
        "oracle": accuracy(adapted.truth).mean(),
    }
    slope, movement = slope_and_movement(adapted, fixed)
    return {
        "n": len(adapted.truth),
        "accuracy": float(of["adapter"]),
        "accuracy_fixed": float(of["fixed"]),
        "lead": float(100 * (of["adapter"] - of["fixed"])),
        "oracle_lead": float(100 * (of["oracle"] - of["fixed"])),
        "slope": slope,
        "movement": movement,
        "diversity": float(np.sqrt(((adapted.truth - fixed) ** 2).sum(axis=1).mean())),
    }
