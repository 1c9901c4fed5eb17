"""Theorem 5.1, measured: does the gap of fixed weights grow with w*'s diversity, and the adapter's fall with n?

On finite candidate sets the gap is exact (:mod:`pro_core.theory.alignment_gap`), so both claims of Eq 14 can be
tested: (a) the gap of fixed weights grows with E norm(w_fixed - w*(x))^2; (b) the adapter's falls to 0 with n, the
number of its training pairs. Prompts, responses and rewards are real (TruthfulQA and a panel); w*(x), a smooth
function of the prompts' real features, and the labels that follow it are planted. A synthetic world shows what real
rewards change.

What the paper's proof shows. It ends in a *lower* bound c E norm(w - w*)^2 on both gaps (Eq 25, 26). For fixed
weights that is the claim. For the adapter it is not: an upper bound on the weights' error (Eq 27) within a lower
bound on the gap bounds nothing. What (b) needs is gap <= L norm(w - w*)^2, which does hold on finite sets. Step 2
also drops the normalization constant of Eq 19: a reward difference that all candidates share changes no policy.

Its assumptions. (i) Rewards that are bi-Lipschitz in the weights: true to the extent that l > 0, and l is nearly 0
where two reward models rank responses alike. (ii) Strong concavity: the KL term has it, in total variation, with
constant beta. (iii) Bounded rewards: they are, on a finite set. And one that it does not state: the targets are w* plus
noise that averages out. For ``pairwise`` this holds at the preferences' own temperature. For ``paper_z`` it does not:
the average of Eq 7 over preferred responses is another function than w*, at any tau, and no n removes a bias.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax

from pro_core.adapter.encoder import PromptEncoder
from pro_core.data.schema import LabelledResponse, load_examples
from pro_core.rewards.panel import RewardPanel
from pro_core.system.storage import replacing
from pro_core.theory.alignment_gap import (
    CandidateSets,
    alignment_gap,
    best_fixed_weights,
    candidate_sets,
    curvature,
)
from pro_core.theory.linear_adapters import TRUE, Examples, fit_adapters
from pro_core.theory.planted import prefer_first

Array = NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """What adapters and fixed weights are fitted on, and the held-out prompts that all are measured on."""

    train: CandidateSets
    test: CandidateSets


def real_world(responses: str | Path, panel: RewardPanel, encoder: str) -> World:
    """Real prompts, their real responses, the panel's standardized rewards, a frozen encoder's features.

    Args:
        responses: a file of labelled responses with its own splits and many responses per prompt, such as TruthfulQA's.

    Only w* is planted. The panel may have been trained on the training prompts: that changes which rewards are weighed
    there, not what the right weights are.
    """
    answers: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
    for example in load_examples(responses):
        if isinstance(example, LabelledResponse) and example.prompt and example.split in answers:
            texts = answers[example.split].setdefault(json.dumps(example.prompt), [])
            if example.response not in texts:
                texts.append(example.response)
    reader = PromptEncoder(encoder)
    sets = {}
    for split, by_prompt in answers.items():
        prompts = [json.loads(p) for p in by_prompt]
        counts = [len(texts) for texts in by_prompt.values()]
        repeated = [p for p, count in zip(prompts, counts, strict=True) for _ in range(count)]
        z = panel.standardized(repeated, [t for texts in by_prompt.values() for t in texts])
        rewards = np.split(z, np.cumsum(counts)[:-1])
        features = reader.encode(prompts)[:, : reader.width].numpy()
        sets[split] = candidate_sets(rewards, features)
    return World(sets["train"], sets["test"])


def synthetic_world(
    prompts: int, K: int = 5, candidates: int = 24, features: int = 32, seed: int = 0
) -> World:
    """Gaussian features and independent Gaussian rewards: any number of prompts, and no two objectives alike."""
    rng = np.random.default_rng(seed)
    sets = [
        candidate_sets(list(rng.normal(size=(P, candidates, K))), rng.normal(size=(P, features)))
        for P in (prompts, 500)
    ]
    return World(*sets)


def save_world(world: World, path: str | Path) -> None:
    """Write a world's arrays, without any text, to one file that appears whole or not at all."""
    arrays = {
        f"{split}_{field.name}": getattr(getattr(world, split), field.name)
        for split in ("train", "test")
        for field in fields(CandidateSets)
    }
    with replacing(path) as partial:
        np.savez_compressed(partial, **arrays)


def load_world(path: str | Path) -> World:
    """What :func:`save_world` wrote."""
    with np.load(path) as arrays:
        return World(
            *(
                CandidateSets(*(arrays[f"{split}_{field.name}"] for field in fields(CandidateSets)))
                for split in ("train", "test")
            )
        )


# ---------------------------------------------------------------- the two claims

WORLD_VERSION = 1
"""Raised with every change of the worlds and measures here that changes a number."""
FIXED = ("uniform", "best fixed", "random fixed")
FITTED_ON = 550
"""The best fixed weights are fitted on at most this many training prompts: all of TruthfulQA's."""


@dataclass(frozen=True)
class PlantedWeights:
    """w*(x) = softmax(base + spread * phi(x) directions): smooth in the prompt's features, random by seed.

    phi: the first principal components of the layer-normalized features, whitened. A linear head on normalized features
    can represent w* exactly, as the theorem assumes of the adapter.

    Attributes:
        mean: (D,), projection: (D, d) from normalized features to phi.
        base: (K,) logits. directions: (d, K), scaled so that ``spread`` is the logits' deviation.
    """

    mean: Array
    projection: Array
    base: Array
    directions: Array

    @classmethod
    def draw(cls, world: World, seed: int, components: int, base: float) -> PlantedWeights:
        """A random w* over prompts like a world's training prompts; ``base`` is the deviation of the base logits."""
        x = normalized(world.train.features[:2000])
        K = world.train.rewards.shape[2]
        mean = x.mean(axis=0)
        _, singular, axes = np.linalg.svd(x - mean, full_matrices=False)
        projection = axes[:components].T / singular[:components] * np.sqrt(len(x))
        rng = np.random.default_rng(seed)
        directions = rng.normal(0, 1 / np.sqrt(components), (components, K))
        return cls(mean, projection, rng.normal(0, np.full(K, base)), directions)

    def __call__(self, sets: CandidateSets, spread: float) -> Array:
        """w* (P, K) of these prompts; ``spread`` 0 gives all the same weights."""
        phi = (normalized(sets.features) - self.mean) @ self.projection
        return softmax(self.base + spread * phi @ self.directions, axis=-1)


def normalized(features: ArrayLike) -> Array:
    """Features (P, D) as a head's layer norm makes them: mean 0, variance 1 in each row."""
    x = np.asarray(features, dtype=np.float64)
    return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)


def measure(
    test: CandidateSets, weights: ArrayLike, true_weights: Array, beta: float
) -> dict[str, float]:
    """Eq 13 and what the theorem bounds it by: ``gap`` and ``squared_distance``, averages over ``n`` prompts."""
    difference = np.broadcast_to(weights, true_weights.shape) - true_weights
    return {
        "n": len(test),
        "gap": float(alignment_gap(test, weights, true_weights, beta).mean()),
        "squared_distance": float((difference**2).sum(axis=1).mean()),
    }


def measure_fixed(
    world: World, plant: PlantedWeights, spread: float, beta: float, seed: int
) -> dict[str, dict[str, float]]:
    """Claim (a) at one diversity of w*: metrics of each of ``FIXED``.

    ``best fixed`` is fitted on the training prompts; ``random fixed`` is one draw, uniform on the simplex. ``uniform``
    also gets ``least_curvature`` and ``most_curvature``, averages over prompts: see :func:`curvature`.
    """
    few = CandidateSets(*(getattr(world.train, f.name)[:FITTED_ON] for f in fields(CandidateSets)))
    K = few.rewards.shape[2]
    fixed = (
        np.full(K, 1 / K),
        best_fixed_weights(few, plant(few, spread), beta),
        np.random.default_rng([seed, 1]).dirichlet(np.ones(K)),
    )
    truth = plant(world.test, spread)
    report = {m: measure(world.test, w, truth, beta) for m, w in zip(FIXED, fixed, strict=True)}
    curvatures = curvature(world.test, fixed[0], beta).mean(axis=0)  # one of them where K = 2
    least, most = float(curvatures[0]), float(curvatures[-1])
    report["uniform"] |= {"least_curvature": least, "most_curvature": most}
    return report


def adapter_name(target: str, temperature: float) -> str:
    """``pairwise-t0.3``: what an adapter learns from, for a row; w* itself has no temperature."""
    return target if target == TRUE else f"{target}-t{temperature:g}"


def measure_adapters(
    world: World,
    plants: Sequence[PlantedWeights],
    spread: float,
    beta: float,
    n: int,
    seeds: Sequence[int],
    *,
    target: str,
    temperature: float,
    preference_temperature: float,
    steps: int,
    batch_size: int,
    learning_rate: float,
) -> list[dict[str, float]]:
    """Claim (b) at n training pairs: metrics of an adapter for each seed, with its own w*, pairs and start.

    Args:
        target, temperature: what the adapters learn from, see :func:`fit_adapters`.
        preference_temperature: of the people who label the pairs. steps: of the optimizer, the same at every n.
    """
    examples = []
    for plant, seed in zip(plants, seeds, strict=True):
        rng, truth = np.random.default_rng([seed, 2]), plant(world.train, spread)
        examples.append(draw_examples(world.train, truth, n, preference_temperature, rng))
    predict = fit_adapters(
        examples,
        target,
        temperature,
        seeds,
        epochs=max(1, round(steps * batch_size / n)),
        batch_size=batch_size,
        learning_rate=learning_rate,
    )
    predicted = predict(world.test.features).astype(np.float64)
    return [
        measure(world.test, w, plant(world.test, spread), beta)
        for w, plant in zip(predicted, plants, strict=True)
    ]


def draw_examples(
    sets: CandidateSets, true_weights: Array, n: int, temperature: float, rng
) -> Examples:
    """n pairs of different candidates, drawn from pi_ref and labelled by Bradley-Terry under w*.

    Prompts come in random order and return only when all have been used.
    """
    prompt = np.concatenate([rng.permutation(len(sets)) for _ in range(-(-n // len(sets)))])[:n]
    # The two largest of log pi_ref + Gumbel noise: two draws without replacement.
    noise = sets.log_reference[prompt] + rng.gumbel(size=sets.log_reference[prompt].shape)
    pair = np.argsort(-noise, axis=1)[:, :2]
    a, b = (sets.rewards[prompt, pair[:, i]] for i in (0, 1))
    first = prefer_first(true_weights[prompt], a, b, temperature, rng)[:, None]
    return Examples(
        sets.features[prompt], np.where(first, a, b), np.where(first, b, a), true_weights[prompt]
    )
