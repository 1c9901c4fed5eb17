"""How many points could an adapter gain on these pairs? A cheap one, cross-validated by prompt, against its rivals.

The adapter is a linear head on frozen prompt features, w(x) = softmax(b + x W), fitted with the pairwise Bradley-Terry
loss of :func:`pro_core.adapter.targets.pairwise_loss`. Its rivals need no prompt: uniform weights, the global weights
with the best training accuracy, and the same loss without W. Everything is fitted on other prompts than it is graded
on, and the strength of the shrinkage towards W = 0 is chosen on inner folds of those.

Adapters for use are fitted by the steps of :func:`pro_core.adapter.heads.fit_heads` instead. Here the exact minimum is
needed, hundreds of times, to compare shrinkages: L-BFGS finds it, with the gradient written out.

How much of its movement is right is measured, too: the slope of :mod:`pro_core.theory.payoff`, above whose 1/2 weights
that follow the prompt pay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, softmax

from pro_core.adapter.global_weights import fit_global_weights
from pro_core.metrics import correct, fit_resampled, macro_accuracy, prompt_counts
from pro_core.system.extras import needs

with needs("train"):
    from threadpoolctl import threadpool_limits

Floats = NDArray[np.floating]

FOLDS, INNER_FOLDS = 5, 4
STRENGTHS = (np.inf, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Shrinkage of W, strongest first; infinite leaves the fitted global weights."""
SCALES = (0.0, *np.geomspace(0.05, 50, 40))
MAX_COMPONENTS = 64
RESAMPLES = 500
"""Of the slope's logistic fit."""
RIVALS = ("uniform", "best global", "fitted global")
"""Weights that need no prompt. An adapter that does not beat all three has gained nothing by reading it."""


@dataclass(frozen=True)
class Measured:
    """A number with its 95% interval (bootstrap over prompts)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Gain:
    """Held-out accuracies, averaged over objectives, and the adapter's leads in points (100 x accuracy).

    Attributes:
        accuracy: method -> its accuracy. Besides adapter and rivals: ``shuffled`` (the adapter's weights dealt to the
            wrong prompts), ``own objective`` (each pair under the reward model of its own objective; only where the
            panel has all objectives) and ``any weights`` (right under the weights that suit the pair best).
        lead: rival -> the adapter's lead over it.
        ceiling: the lead of ``own objective`` over uniform weights, where there is one.
        by_objective: method -> objective -> accuracy.
        kept: how often, of all outer fits, the inner folds chose to read the prompt at all: 0 to 1.
        payoff: what its movement away from the fitted global weights is worth; None if it does not move.
    """

    accuracy: dict[str, Measured]
    lead: dict[str, Measured]
    ceiling: Measured | None
    by_objective: dict[str, dict[str, float]]
    kept: float
    payoff: Payoff | None


@dataclass(frozen=True)
class Payoff:
    """What an adapter's movement away from fixed weights is worth.

    Attributes:
        movement: the root of the mean squared distance of its weights from the fixed ones, over pairs.
        slope: the share of this movement that held-out pairs confirm: 1 if it is calibrated, 0 if it is noise. Fixed
            weights win below 1/2.
        expected: the lead over the fixed weights, in points, that follows from the slope: the same quantity as the
            counted lead, less disturbed by chance where weights move little.
    """

    movement: float
    slope: Measured
    expected: Measured


def payoff_of(
    fixed_NK: Floats,
    adapter_NK: Floats,
    margin_NK: Floats,
    objective_N: NDArray,
    text_N: NDArray,
    seed: int = 0,
) -> Payoff | None:
    """The logistic model of who wins, sigmoid(a f + b e), with f = fixed . margin and e = (adapter - fixed) . margin.

    The slope is b / a. The expected lead counts the pairs on which the two sides choose differently, each with the
    model's probability that the adapter is right. Averaged over objectives; intervals are bootstrapped over prompts.

    Returns:
        None if the weights are the same, or the fixed weights predict nothing, so that there is no scale.
    """
    moved = adapter_NK - fixed_NK
    f, e = (fixed_NK * margin_NK).sum(axis=1), (moved * margin_NK).sum(axis=1)
    if np.abs(e).max(initial=0) < 1e-9:
        return None
    index, counts = prompt_counts(list(text_N), RESAMPLES, seed)
    counts_RN = np.concatenate([np.ones((1, len(f))), counts[:, index]]) * balanced(objective_N)
    a, b = fit_resampled(np.stack([f, e], axis=1), np.ones(len(f)), counts_RN).T
    if a[0] <= 0:
        return None
    adapter, fixed = np.sign(f + e), np.sign(f)
    # Of the pair's two orders, the model gives this one the probability; the side that prefers it is right so often.
    certain = np.tanh((np.outer(a, f) + np.outer(b, e)) / 2)
    leads = 50 * (certain * (adapter - fixed) * counts_RN).sum(axis=1) / counts_RN.sum(axis=1)
    kept = a[1:] > 0
    slopes = (b[1:] / a[1:])[kept]
    return Payoff(
        float(np.sqrt((moved**2).sum(axis=1).mean())),
        _measured(b[0] / a[0], slopes),
        _measured(leads[0], leads[1:]),
    )


def solve_head(
    x_ND: Floats, margin_NK: Floats, weight_N: Floats, strength: float, start: Floats | None = None
) -> Floats:
    """Parameters (2 + D, K) of the head: row 0 holds the log-scale, row 1 the bias b, the rest W.

    Minimizes mean(weight * -log sigmoid(scale * sum_k w_k(x) margin_k)) + strength * |W|^2, with the gradient written
    out: a page of the doctor takes hundreds of fits. The scale stands for the temperature of ``pairwise_loss``.
    """
    (N, K), D = margin_NK.shape, x_ND.shape[1]
    reads = np.isfinite(strength)

    def loss(flat: Floats):
        scale, bias, W = np.exp(flat[0]), flat[1 : 1 + K], flat[1 + K :].reshape(-1, K)
        weights = softmax(x_ND @ W + bias if reads else np.tile(bias, (N, 1)), axis=1)
        mixed = (weights * margin_NK).sum(axis=1)
        slope = -weight_N * expit(-scale * mixed) / N  # of the loss by scale * mixed
        logits = scale * slope[:, None] * weights * (margin_NK - mixed[:, None])
        value = (weight_N * np.logaddexp(0, -scale * mixed)).mean()
        value += 1e-3 * (bias @ bias + flat[0] ** 2) + (strength * (W * W).sum() if reads else 0)
        gradient = [
            [scale * (slope @ mixed) + 2e-3 * flat[0]],
            logits.sum(axis=0) + 2e-3 * bias,
            (x_ND.T @ logits + 2 * strength * W).ravel() if reads else [],
        ]
        return value, np.concatenate(gradient)

    size = 1 + K + (D * K if reads else 0)
    first = np.zeros(size)
    if start is not None:
        first[0], first[1:] = start[0, 0], start[1:].ravel()[: size - 1]
    bounds = [(-5, 5)] + [(None, None)] * (size - 1)
    flat = minimize(
        loss, first, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 100}
    ).x
    head = np.zeros((2 + D, K))
    head[0] = flat[0]
    head[1:].ravel()[: size - 1] = flat[1:]
    return head


def head_weights(head: Floats, x_ND: Floats) -> Floats:
    """Weights (N, K) on the simplex."""
    return softmax(x_ND @ head[2:] + head[1], axis=1)


def cross_validated_weights(
    margin_NK: Floats, features_ND: Floats, objective_N: NDArray, text_N: NDArray, seed: int
) -> tuple[dict[str, Floats], float]:
    """Weights (N, K) for every pair from fits on other prompts: method -> weights, and how often W was kept.

    One division of the prompts into folds; ``seed`` draws it.
    """
    N, K = margin_NK.shape
    rng = np.random.default_rng(seed)
    fold_N = _folds(text_N, FOLDS, rng)
    methods = ("adapter", "best global", "fitted global", "shuffled")
    weights: dict[str, Floats] = {method: np.zeros((N, K)) for method in methods}
    kept = []
    for fold in range(FOLDS):
        train, test = fold_N != fold, fold_N == fold
        x_train, x_test = prompt_components(features_ND[train], features_ND[test], text_N[train])
        balance = balanced(objective_N[train])
        inner = _folds(text_N[train], INNER_FOLDS, rng)
        strength = _choose_strength(x_train, margin_NK[train], objective_N[train], inner)
        constant = solve_head(x_train, margin_NK[train], balance, np.inf)
        head = solve_head(x_train, margin_NK[train], balance, strength, constant)
        kept.append(np.isfinite(strength))
        weights["adapter"][test] = head_weights(head, x_test)
        weights["fitted global"][test] = head_weights(constant, x_test)
        weights["best global"][test] = fit_global_weights(
            margin_NK[train], balance, list(objective_N[train]), draws=1000, seed=seed
        )
        weights["shuffled"][test] = weights["adapter"][test][_dealt(text_N[test], rng)]
    return weights, float(np.mean(kept))


def _folds(text_N: NDArray, folds: int, rng) -> NDArray[np.int64]:
    """A fold for every row; rows of one prompt share it, and folds have equally many prompts."""
    prompts, index = np.unique(text_N, return_inverse=True)
    return (rng.permutation(len(prompts)) % folds)[index]


def balanced(objective_N: NDArray) -> Floats:
    """Row weights, mean 1, that give every objective the same total: the accuracy is averaged likewise."""
    _, index, sizes = np.unique(objective_N, return_inverse=True, return_counts=True)
    return len(objective_N) / len(sizes) / sizes[index]


def prompt_components(train_ND: Floats, test_MD: Floats, text_N: NDArray) -> tuple[Floats, Floats]:
    """Principal components of the training prompts, scaled to a mean squared length of 1; test rows likewise."""
    _, first = np.unique(text_N, return_index=True)
    mean = train_ND[first].mean(axis=0)
    _, size, basis = np.linalg.svd(train_ND[first] - mean, full_matrices=False)
    count = max(1, min(MAX_COMPONENTS, len(first) // 4))
    basis = basis[:count].T / max(np.sqrt((size[:count] ** 2).sum() / len(first)), 1e-12)
    return (train_ND - mean) @ basis, (test_MD - mean) @ basis


def _choose_strength(
    x_ND: Floats, margin_NK: Floats, objective_N: NDArray, fold_N: NDArray
) -> float:
    """The shrinkage with the smallest loss on inner held-out prompts, each at its best scale.

    At its own scale, a head that has fitted noise is overconfident, and its loss is high even where it picks better
    winners: that loss would reject prompts that help.
    """
    mixed = np.zeros((len(STRENGTHS), len(margin_NK)))
    for fold in np.unique(fold_N):
        train, test = fold_N != fold, fold_N == fold
        balance, head = balanced(objective_N[train]), None
        for i, strength in enumerate(STRENGTHS):
            head = solve_head(x_ND[train], margin_NK[train], balance, strength, head)
            mixed[i, test] = (head_weights(head, x_ND[test]) * margin_NK[test]).sum(axis=1)
    balance = balanced(objective_N)
    losses = [(np.logaddexp(0, -scale * mixed) * balance).mean(axis=1) for scale in SCALES]
    return STRENGTHS[int(np.min(losses, axis=0).argmin())]


def _dealt(text_N: NDArray, rng) -> NDArray[np.int64]:
    """For each row, a row of another prompt: the prompts are permuted."""
    _, first, index = np.unique(text_N, return_index=True, return_inverse=True)
    return first[rng.permutation(len(first))][index]


def measure_gain(
    margin_NK: Floats,
    features_ND: Floats,
    objective_N: Sequence[str],
    text_N: Sequence[str],
    own_N: NDArray[np.int64],
    repeats: int = 3,
    seed: int = 0,
) -> Gain:
    """Cross-validated accuracies of the adapter and its rivals on the same pairs.

    Args:
        margin_NK: standardized score of the chosen completion minus that of the rejected one.
        features_ND: features of each pair's prompt.
        objective_N: the objective of each pair. text_N: its prompt; pairs of one prompt stay together in folds and
            resamples.
        own_N: the column of each pair's own objective, -1 where the panel lacks it.
        repeats: divisions into folds; a pair's outcome is its average over them.
    """
    objectives, texts = np.asarray(objective_N, dtype=str), np.asarray(text_N, dtype=str)
    right: dict[str, Floats] = {"uniform": correct(margin_NK.mean(axis=1))}
    kept = []
    parts: list[tuple[Floats, Floats]] = []
    for repeat in range(repeats):
        # Hundreds of small fits: on shared cores, threads that wait for each other make them ten times slower.
        with threadpool_limits(1):
            weights, share = cross_validated_weights(
                margin_NK, features_ND, objectives, texts, seed + repeat
            )
        kept.append(share)
        parts.append((weights["fitted global"], weights["adapter"]))
        for method, w in weights.items():
            outcome = correct((w * margin_NK).sum(axis=1)) / repeats
            right[method] = right.get(method, 0) + outcome
    if (own_N >= 0).all():
        right["own objective"] = correct(margin_NK[np.arange(len(texts)), own_N])
    right["any weights"] = correct(margin_NK.max(axis=1))

    index, counts = prompt_counts(list(texts), seed=seed)
    drawn = {m: macro_accuracy(r, objectives, index, counts) for m, r in right.items()}
    accuracy = {m: _measured(value, draws) for m, (value, draws) in drawn.items()}

    def lead(method: str, rival: str) -> Measured:
        (value, draws), (other, others) = drawn[method], drawn[rival]
        return _measured(100 * (value - other), 100 * (draws - others))

    leads = {rival: lead("adapter", rival) for rival in (*RIVALS, "shuffled")}
    ceiling = lead("own objective", "uniform") if "own objective" in right else None
    by_objective = {
        m: {name: float(r[objectives == name].mean()) for name in np.unique(objectives)}
        for m, r in right.items()
    }
    fixed, adapter = (np.concatenate(part) for part in zip(*parts, strict=True))
    payoff = payoff_of(
        fixed,
        adapter,
        np.tile(margin_NK, (repeats, 1)),
        np.tile(objectives, repeats),
        np.tile(texts, repeats),
        seed,
    )
    return Gain(accuracy, leads, ceiling, by_objective, float(np.mean(kept)), payoff)


def _measured(value: float, draws: Floats) -> Measured:
    low, high = np.percentile(draws, [2.5, 97.5])
    return Measured(float(value), float(low), float(high))
