"""The policy of :mod:`pro_core.theory.convergence`: a softmax over each prompt's real candidates, trained exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pro_core.theory.labelled_worlds import LabelledWorld

Array = NDArray[np.float32]


def policy_features(
    world: LabelledWorld, prompt_components: int, response_components: int
) -> Array:
    """phi (P, G, F): what a low-rank bilinear score reads of prompt x and response r.

    The leading components of the response and their products with the prompt's, phi = (r, x outer r), each component of
    unit variance over the world's training split; labels play no part. F = response_components (1 + prompt_components).
    """
    train = world.split == "train"
    of_train = np.repeat(train, world.sizes)
    x = np.repeat(_components(world.prompts, train, prompt_components), world.sizes, axis=0)
    r = _components(world.responses, of_train, response_components)
    outer = (x[:, :, None] * r[:, None]).reshape(len(r), -1)
    return world.padded(np.concatenate([r, outer], axis=1).astype(np.float32))


def _components(features: NDArray, rows: NDArray, count: int) -> NDArray:
    """The first principal components (N, count) of the chosen rows, whitened, for all rows."""
    chosen = features[rows].astype(np.float64)
    mean = chosen.mean(axis=0)
    _, singular, axes = np.linalg.svd(chosen - mean, full_matrices=False)
    return (features - mean) @ (axes[:count].T / singular[:count] * np.sqrt(len(chosen)))


def ascend(
    features: Array,
    log_reference: NDArray,
    rewards: NDArray,
    betas: Sequence[float],
    learning_rates: Sequence[float],
    batches: Sequence[NDArray],
) -> Iterator[Array]:
    """theta (F, C) of C runs at once, before each step and after the last: Adam on the exact gradient.

    Args:
        features: phi (P, G, F). log_reference: (P, G), -inf where a prompt has fewer candidates.
        rewards: R (P, G, C), each run's own. betas, learning_rates: (C,).
        batches: for each step the prompts (B,) that it averages over.
    """
    F, C = features.shape[2], rewards.shape[2]
    beta, rate = (np.asarray(x, dtype=np.float32) for x in (betas, learning_rates))
    theta, first, second = (np.zeros((F, C), np.float32) for _ in range(3))
    yield theta
    for step, batch in enumerate(batches, 1):
        phi, reference = features[batch], log_reference[batch]
        ratio, policy = tilt(phi, reference, theta)
        advantage = rewards[batch].astype(np.float32) - beta * ratio
        advantage -= (policy * advantage).sum(axis=1, keepdims=True)
        flow = (policy * advantage).reshape(-1, C)
        gradient = phi.reshape(-1, F).T @ flow / len(batch)
        first += 0.1 * (gradient - first)
        second += 0.001 * (gradient**2 - second)
        size = np.sqrt(second / (1 - 0.999**step)) + 1e-8
        theta = theta + rate * (first / (1 - 0.9**step)) / size
        yield theta


def tilt(features: Array, log_reference: NDArray, theta: Array) -> tuple[Array, Array]:
    """log(pi / pi_ref) and pi, (P, G, C) each, of C policies; both 0 where there is no candidate."""
    P, G, F = features.shape
    inside = np.isfinite(log_reference)[..., None]
    scores = (features.reshape(-1, F) @ theta).reshape(P, G, -1)
    reference = log_reference.astype(np.float32)[..., None]
    shifted = np.where(inside, scores + np.where(inside, reference, 0), -np.inf)
    top = shifted.max(axis=1, keepdims=True)
    log_total = top + np.log(np.exp(shifted - top).sum(axis=1, keepdims=True))
    ratio = np.where(inside, scores - log_total, 0)
    return ratio, np.exp(shifted - log_total)
