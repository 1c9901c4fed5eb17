"""The exact alignment gap on finite candidate sets: Eq 3, 12 and 13, without training or sampling.

Over a finite set of candidate responses the optimum of Eq 3 is known (Eq 19): pi*_w is proportional to
pi_ref exp(w . z / beta). So is the cost of following other weights than the true ones:

    J_w(pi) = sum_y pi(y) w . z(y) - beta KL(pi, pi_ref)             z: standardized rewards, beta: the KL weight
    gap(w)  = J_{w*}(pi*_{w*}) - J_{w*}(pi*_w)                       Eq 12; Eq 13 is its average over prompts
            = beta KL(pi*_w, pi*_{w*})
            = 1/beta integral_0^1 (1 - t) d' Cov(z under pi*_{w + t d}) d dt,    d = w* - w

so that l norm(d)^2 <= gap <= L norm(d)^2, with l and L the least and the largest :func:`curvature` between w and w*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp, softmax

Array = NDArray[np.float64]


@dataclass(frozen=True)
class CandidateSets:
    """The candidate responses of P prompts, at most G each.

    Attributes:
        rewards: (P, G, K) standardized, 0 where a prompt has fewer than G candidates.
        log_reference: (P, G) log pi_ref, -inf where it has fewer.
        features: (P, D) of the prompts, as the adapter's head reads them.
    """

    rewards: Array
    log_reference: Array
    features: Array

    def __len__(self) -> int:
        return len(self.rewards)


def candidate_sets(rewards: Sequence[NDArray], features: ArrayLike) -> CandidateSets:
    """Pad P lists of rewards (G_p, K); pi_ref is uniform over each prompt's own candidates.

    Raises:
        ValueError: a prompt with fewer than two candidates, where no weights could matter.
    """
    sizes = [len(r) for r in rewards]
    if not sizes or min(sizes) < 2:
        raise ValueError(f"got {min(sizes, default=0)} candidates for a prompt, expected 2 or more")
    padded = np.zeros((len(sizes), max(sizes), np.shape(rewards[0])[1]))
    log_reference = np.full(padded.shape[:2], -np.inf)
    for p, r in enumerate(rewards):
        padded[p, : sizes[p]] = r
        log_reference[p, : sizes[p]] = -np.log(sizes[p])
    return CandidateSets(padded, log_reference, np.asarray(features, dtype=np.float64))


def optimal_policy(sets: CandidateSets, weights: ArrayLike, beta: float) -> Array:
    """log pi*_w (P, G) of Eq 3 (Eq 19) under weights (P, K) or (K,).

    Raises:
        ValueError: the KL weight is not above 0.
    """
    if not beta > 0:
        raise ValueError(f"got the KL weight {beta}, expected a number above 0")
    return log_softmax(sets.log_reference + weighted(sets, weights) / beta, axis=1)


def objective(sets: CandidateSets, log_policy: Array, weights: ArrayLike, beta: float) -> Array:
    """J_w(pi) of each prompt (P,): the expected reward less ``beta`` times KL(pi, pi_ref)."""
    policy = np.exp(log_policy)
    inside = policy > 0  # 0 log 0 = 0
    ratio = np.subtract(log_policy, sets.log_reference, where=inside, out=np.zeros_like(policy))
    return (policy * (weighted(sets, weights) - beta * ratio)).sum(axis=1)


def alignment_gap(
    sets: CandidateSets, weights: ArrayLike, true_weights: ArrayLike, beta: float
) -> Array:
    """Eq 12 for each prompt (P,): what following ``weights`` costs under the true ones, in units of z; 0 or more."""
    # The maximum of J is beta log sum pi_ref exp(w . z / beta).
    best = beta * logsumexp(sets.log_reference + weighted(sets, true_weights) / beta, axis=1)
    return best - objective(sets, optimal_policy(sets, weights, beta), true_weights, beta)


def weighted(sets: CandidateSets, weights: ArrayLike) -> Array:
    """w . z: (P, G) from weights (P, K) or (K,)."""
    w = np.broadcast_to(np.asarray(weights, float), (len(sets), sets.rewards.shape[2]))
    return np.einsum("pgk,pk->pg", sets.rewards, w)


def curvature(sets: CandidateSets, weights: ArrayLike, beta: float) -> Array:
    """The gap per squared distance near ``weights``, one for each direction of the simplex: (P, K - 1), ascending.

    Eigenvalues of Cov(z under pi*_w) / 2 beta among directions that keep the weights' sum: the l and L above.
    """
    policy = np.exp(optimal_policy(sets, weights, beta))
    mean = np.einsum("pg,pgk->pk", policy, sets.rewards)
    second = np.einsum("pg,pgk,pgl->pkl", policy, sets.rewards, sets.rewards)
    K = sets.rewards.shape[2]
    along = np.linalg.svd(np.full((1, K), K**-0.5))[2][1:]  # an orthonormal basis of sum = 0
    inside = along @ (second - mean[:, :, None] * mean[:, None]) @ along.T
    return np.linalg.eigvalsh(inside) / (2 * beta)


def best_fixed_weights(sets: CandidateSets, true_weights: Array, beta: float) -> Array:
    """The one weight vector (K,) with the smallest mean gap over the prompts: an oracle, since it is told w*.

    The gap is not convex in the weights, so the better of two starts (the mean of w*, uniform) is taken.
    """
    K = true_weights.shape[1]

    def gap_and_gradient(logits):
        w = softmax(logits)
        policy = np.exp(optimal_policy(sets, w, beta))
        gap = alignment_gap(sets, w, true_weights, beta).mean()
        # d gap / d w = Cov(z under pi*_w) (w - w*) / beta
        along = np.einsum("pgk,pk->pg", sets.rewards, w - true_weights)
        mean = np.einsum("pg,pgk->pk", policy, sets.rewards)
        gradient = np.einsum("pg,pgk,pg->pk", policy, sets.rewards, along)
        gradient = (gradient - mean * (policy * along).sum(axis=1)[:, None]).mean(axis=0) / beta
        return gap, w * (gradient - w @ gradient)

    starts = np.log(np.maximum(true_weights.mean(axis=0), 1e-6)), np.zeros(K)
    minima = [minimize(gap_and_gradient, s, jac=True, method="L-BFGS-B") for s in starts]
    return softmax(min(minima, key=lambda m: m.fun).x)
