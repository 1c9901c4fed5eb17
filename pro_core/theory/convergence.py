"""MORLHF and PRO-MORLHF with exact expectations: the paper's Figure 3, measured by one fixed set of human labels.

The policy is a softmax over each prompt's real candidate responses,

    pi_theta(y given x)  proportional to  pi_ref(y given x) exp(theta . phi(x, y))

with phi fixed and theta shared by all prompts, so that what one prompt teaches reaches the others. theta = 0 is the
reference. Training ascends Eq 5 or Eq 9; the expectation over responses and its gradient are sums over candidates:

    J(theta) = mean_x  E_pi[R(x, y)] - beta KL(pi, pi_ref),       R(x, y) = sum_k w_k(x) z_k(x, y)
    dJ / dtheta = mean_x  E_pi[phi (A - E_pi A)],                 A = R - beta log(pi / pi_ref)

Only the order of the prompts is random. All runs of a seed see the same prompts in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import softmax

from pro_core.data.schema import DataError
from pro_core.theory.alignment_gap import CandidateSets, optimal_policy, weighted
from pro_core.theory.labelled_worlds import LabelledWorld
from pro_core.theory.softmax_policy import Array, ascend, policy_features, tilt

# ---------------------------------------------------------------- the arms

UNIFORM, BEST_FIXED, PRO = "MORLHF uniform", "MORLHF best fixed", "PRO-MORLHF"
SHUFFLED, WITHIN, MEAN = "shuffled", "shuffled within source", "adapter's mean, fixed"
ARMS = (UNIFORM, BEST_FIXED, MEAN, PRO, SHUFFLED, WITHIN)


PARTS = {"train": "train on", "validation": "choose the settings on", "test": "grade"}


@dataclass(frozen=True)
class Parts:
    """Which prompts (indices) a seed trains on, which choose the settings, which are graded."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


def draw_parts(world: LabelledWorld, seed: int, share: float = 0.8) -> Parts:
    """``share`` of the training prompts, and the data's own validation and test prompts.

    A source without a test split is divided by the panel's folds: fold ``seed`` modulo their number is graded, the
    others train. So all of its training prompts are graded, each by policies that never saw it.

    Raises:
        DataError: a part has no prompts.
    """
    rng = np.random.default_rng([seed, 3])
    train, test = [], []
    for source in np.unique(world.source):
        of_source = world.source == source
        trained = np.flatnonzero(of_source & (world.split == "train"))
        graded = np.flatnonzero(of_source & (world.split == "test"))
        if not len(graded):
            out = world.fold[trained] == seed % (world.fold.max() + 1)
            trained, graded = trained[~out], trained[out]
        else:
            kept = round(share * len(trained))
            trained = np.sort(rng.choice(trained, kept, replace=False))
        train.append(trained)
        test.append(graded)
    validation = np.flatnonzero(world.split == "validation")
    parts = Parts(np.concatenate(train), validation, np.concatenate(test))
    for name, rows in vars(parts).items():
        if not len(rows):
            raise DataError(
                f"no prompts to {PARTS[name]}: got the splits {sorted(set(world.split.tolist()))}, expected train and "
                "validation, each prompt with two different responses or more"
            )
    return parts


def arm_weights(
    world: LabelledWorld, sets: CandidateSets, parts: Parts, beta: float, seed: int
) -> dict[str, NDArray]:
    """Weights (P, K) of every arm.

    The two shuffles deal the adapter's weights to the wrong prompts, across all sources or within one. Training prompts
    are shuffled among themselves, and so are the others.
    """
    adapter = world.weights[seed % len(world.weights)]
    P, K = adapter.shape
    rng = np.random.default_rng([seed, 4])
    training = np.isin(np.arange(P), parts.train)
    everywhere, within = np.arange(P), np.arange(P)
    for group in (training, ~training):
        everywhere[group] = rng.permutation(np.flatnonzero(group))
        for source in np.unique(world.source):
            of_source = np.flatnonzero(group & (world.source == source))
            within[of_source] = rng.permutation(of_source)
    mean = np.average(adapter[parts.train], axis=0, weights=_balance(world, parts.train))
    best = best_fixed_for_labels(world, sets, parts.train, beta)
    fixed = {UNIFORM: np.full(K, 1 / K), BEST_FIXED: best, MEAN: mean}
    arms = {name: np.tile(w, (P, 1)) for name, w in fixed.items()}
    return arms | {PRO: adapter, SHUFFLED: adapter[everywhere], WITHIN: adapter[within]}


def _balance(world: LabelledWorld, prompts: NDArray) -> NDArray:
    """Shares (B,) of these prompts that give each source the same total; sum 1."""
    _, index, count = np.unique(world.source[prompts], return_inverse=True, return_counts=True)
    return 1 / count[index] / len(count)


def best_fixed_for_labels(
    world: LabelledWorld, sets: CandidateSets, prompts: NDArray, beta: float
) -> NDArray:
    """The one weight vector (K,) whose optimum pi*_w has the best expected label on these prompts.

    Sources count equally. It is told the labels, unlike any other arm. The problem is not convex, so the best of
    several starts (uniform weights and each corner) is taken.
    """
    few = CandidateSets(sets.rewards[prompts], sets.log_reference[prompts], sets.features[prompts])
    labels, share = world.padded(world.labels)[prompts], _balance(world, prompts)
    K = few.rewards.shape[2]

    def loss_and_gradient(logits):
        w = softmax(logits)
        policy = np.exp(optimal_policy(few, w, beta)) * share[:, None]
        mean = (policy * labels).sum(axis=1, keepdims=True) / share[:, None]
        # d E[label] / d w = Cov(label, z under pi*_w) / beta
        gradient = np.einsum("pg,pgk->k", policy * (labels - mean), few.rewards) / beta
        return -(policy * labels).sum(), -w * (gradient - w @ gradient)

    starts = [np.zeros(K), *(3 * np.eye(K))]
    minima = [minimize(loss_and_gradient, s, jac=True, method="L-BFGS-B") for s in starts]
    return softmax(min(minima, key=lambda m: m.fun).x)


# ---------------------------------------------------------------- runs, and what is measured


@dataclass(frozen=True)
class Run:
    """One arm under one setting."""

    arm: str
    beta: float
    learning_rate: float


class Experiment:
    """A world, prepared once: candidate sets, features, labels."""

    def __init__(self, world: LabelledWorld, prompt_components: int, response_components: int):
        self.world, self.sets = world, world.candidate_sets()
        self.features = policy_features(world, prompt_components, response_components)
        self.labels = world.padded(world.labels)
        self.sources = [str(s) for s in np.unique(world.source)]
        self._weights: dict[tuple[int, float], dict[str, NDArray]] = {}

    def weights(self, seed: int, beta: float) -> dict[str, NDArray]:
        """:func:`arm_weights`, made once."""
        if (seed, beta) not in self._weights:
            parts = draw_parts(self.world, seed)
            self._weights[seed, beta] = arm_weights(self.world, self.sets, parts, beta, seed)
        return self._weights[seed, beta]

    def train(
        self, runs: Sequence[Run], seed: int, steps: int, batch_size: int, at: Sequence[int]
    ) -> dict[int, Array]:
        """theta (F, C) of the runs at the steps ``at``; a step averages over ``batch_size`` prompts of each source."""
        rewards = np.stack(
            [weighted(self.sets, self.weights(seed, r.beta)[r.arm]) for r in runs],
            axis=2,
            dtype=np.float32,
        )
        batches = self.batches(draw_parts(self.world, seed).train, seed, steps, batch_size)
        betas, rates = zip(*((run.beta, run.learning_rate) for run in runs), strict=True)
        path = ascend(self.features, self.sets.log_reference, rewards, betas, rates, batches)
        return {step: theta for step, theta in enumerate(path) if step in set(at)}

    def batches(self, train: NDArray, seed: int, steps: int, batch_size: int) -> list[NDArray]:
        """For each step ``batch_size`` prompts of each source, shuffled again when all have been used."""
        rng = np.random.default_rng([seed, 5])
        dealt = []
        for source in self.sources:
            of_source = train[self.world.source[train] == source]
            rounds = -(-steps * batch_size // len(of_source))
            order = np.concatenate([rng.permutation(of_source) for _ in range(rounds)])
            dealt.append(order[: steps * batch_size].reshape(steps, batch_size))
        return list(np.concatenate(dealt, axis=1))

    def measure(self, theta: Array, prompts: NDArray) -> dict[str, NDArray]:
        """Measures of C policies on these prompts, (C,) each: the expected label of each source, ``label`` and ``kl``.

        ``label`` is the mean over sources, and so is ``kl``, KL(pi, pi_ref) in nats per prompt.
        """
        ratio, policy = tilt(self.features[prompts], self.sets.log_reference[prompts], theta)
        return self._by_source(policy, ratio, prompts)

    def optimum(self, weights: NDArray, beta: float, prompts: NDArray) -> dict[str, NDArray]:
        """The same for pi*_w (Eq 19), which a free softmax for each prompt would reach; (1,) each."""
        reference = self.sets.log_reference[prompts]
        log_policy = optimal_policy(self.sets, weights, beta)[prompts]
        inside = np.isfinite(reference)
        ratio = np.subtract(log_policy, reference, where=inside, out=np.zeros_like(reference))
        return self._by_source(np.exp(log_policy)[..., None], ratio[..., None], prompts)

    def _by_source(self, policy, ratio, prompts) -> dict[str, NDArray]:
        label = (policy * self.labels[prompts][..., None]).sum(axis=1)
        kl = (policy * ratio).sum(axis=1)
        source = self.world.source[prompts]
        means = {s: label[source == s].mean(axis=0) for s in self.sources}
        means["label"] = np.mean([means[s] for s in self.sources], axis=0)
        means["kl"] = np.mean([kl[source == s].mean(axis=0) for s in self.sources], axis=0)
        return means


def steps_to(level: float, at: Sequence[int], values: Sequence[float]) -> float:
    """The first step at which the curve reaches ``level``, interpolated linearly between measurements; inf if never."""
    reached = np.flatnonzero(np.asarray(values) >= level)
    if not len(reached):
        return float("inf")
    i = int(reached[0])
    if i == 0:
        return float(at[0])
    before, after = values[i - 1], values[i]
    return float(at[i - 1] + (at[i] - at[i - 1]) * (level - before) / (after - before))
