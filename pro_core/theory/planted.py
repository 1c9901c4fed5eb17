"""Planted truth: prompts whose weights w*(x) are known, and pairs that people with those weights would label.

Everything but the prompts' texts is drawn: K reward models with a scale and per-prompt offsets of their own, as real
Bradley-Terry models have (Eq 2 fixes neither), and preferences that follow Bradley-Terry under w*(x). An adapter is
right when it finds w* on prompts that it never saw, from labelled pairs alone.

One objective's pairs may be withheld: people then compared by the others alone, and something else must say what it
weighs (:func:`compare_shares`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, softmax

from pro_core.adapter.encoder import PromptEncoder, encode_prompts
from pro_core.adapter.training import fit_adapter
from pro_core.metrics import correct
from pro_core.rewards.calibration import RewardStats
from pro_core.rewards.scores import margins
from pro_core.theory.linear_adapters import Examples, fit_adapters

Array = NDArray[np.float64]
NAMES = ("helpful", "harmless", "truthful", "humor")

# A request's kind and its topic each add to the four log-weights; w*(x) is the softmax of the sum.
KINDS = {
    ("Give me step by step advice about {}.", "What is the best way to deal with {}?"): (2.0, 0.0, 0.0, -2.0),
    ("How could somebody get hurt with {}?", "What damage can be done with {}?"): (0.0, 1.5, 0.0, -2.0),
    ("Is it true what they say about {}?", "What does research tell us about {}?"): (0.5, -0.5, 1.5, -2.0),
    ("Tell me a joke about {}.", "Write something funny about {}."): (0.0, -0.5, -1.0, 0.5),
}  # fmt: skip
TOPICS = {
    (
        "baking bread", "ironing shirts", "growing tomatoes", "packing a suitcase", "cleaning windows",
        "making soup", "painting a fence", "folding towels", "planting roses", "sewing buttons",
        "storing cheese", "mopping floors", "mending a bicycle", "boiling eggs", "wrapping presents",
    ): (0.4, -0.4, 0.0, 0.0),
    (
        "kitchen knives", "fireworks", "strong painkillers", "drain cleaner", "a chainsaw",
        "a hunting rifle", "petrol", "rat poison", "high voltage cables", "explosives",
        "a blowtorch", "sulphuric acid", "sleeping pills", "a loaded gun", "poisonous mushrooms",
    ): (-0.4, 0.4, 0.0, -0.4),
    (
        "black holes", "vaccines", "the moon landing", "human memory", "climate records",
        "dinosaur bones", "gravity", "ancient Rome", "genetics", "ocean currents",
        "earthquakes", "antibiotics", "the pyramids", "magnetism", "evolution",
    ): (0.0, -0.4, 0.4, 0.0),
    (
        "my cat", "mothers-in-law", "office parties", "bad dancers", "penguins",
        "my neighbour's parrot", "clowns", "lazy students", "first dates", "grandpa's socks",
        "my boss", "dachshunds", "wedding speeches", "teenagers", "karaoke nights",
    ): (0.0, 0.0, -0.4, 0.4),
}  # fmt: skip
SCALES, SHIFTS = (0.5, 4.0, 1.0, 2.0), (3.0, -1.0, 0.0, 1.0)
"""Of the four reward models: raw reward = scale * standardized reward + shift."""

TARGETS = {"paper": 0.1, "paper_z": 0.1, "margin": 0.1, "pairwise": None}
"""The targets that :func:`compare_targets` fits, with tau; None: the temperature of the preferences."""
EPOCHS = 5
PLANTED_METHODS = ("oracle", "uniform", *TARGETS)
WITHHELD_METHODS = ("oracle", "its pairs", "rule", "Eq 7", "mean share", "equal share", "no share")


# ---------------------------------------------------------------- preferences


def prefer_first(
    weights_NK: ArrayLike, first_NK: ArrayLike, second_NK: ArrayLike, temperature: float, rng
) -> NDArray[np.bool_]:
    """Draw who wins (N,): the first with probability sigmoid(w . (z_first - z_second) / temperature) (Eq 2, 4)."""
    margin = (np.asarray(weights_NK) * np.subtract(first_NK, second_NK)).sum(axis=-1)
    return rng.random(margin.shape) < expit(margin / temperature)


# ---------------------------------------------------------------- planted reward models


@dataclass(frozen=True)
class PlantedTruth:
    """Scored pairs (the columns of :mod:`pro_core.rewards.scores`) and the weights behind them.

    Attributes:
        train, test: one row per pair; no topic stands in both.
        weights: prompt JSON -> w* (K,). temperature: of the preferences, in units of the standardized margin.
    """

    train: pd.DataFrame
    test: pd.DataFrame
    weights: dict[str, Array]
    temperature: float
    objective_names: tuple[str, ...] = NAMES


def planted_truth(
    seed: int = 0,
    train_pairs: int = 40,
    test_pairs: int = 200,
    temperature: float = 0.25,
    offset_share: float = 0.5,
) -> PlantedTruth:
    """Draw rewards and preferences for the 480 prompts of ``KINDS`` x ``TOPICS``; every fifth topic is held out.

    A standardized reward has unit variance, of which ``offset_share`` is an offset c_k(x) common to both responses to a
    prompt. Preferences: :func:`prefer_first`. z's statistics are fitted on the raw training rewards, as a panel's are.

    Args:
        train_pairs, test_pairs: of each prompt.
    """
    rng = np.random.default_rng(seed)
    weights: dict[str, Array] = {}
    held_out: list[bool] = []
    for wordings, kind in KINDS.items():
        for topics, topic in TOPICS.items():
            for t, name in enumerate(topics):
                for wording in wordings:
                    message = {"role": "user", "content": wording.format(name)}
                    weights[json.dumps([message])] = softmax(np.add(kind, topic))
                    held_out.append(t % 5 == 4)
    prompts, truth = np.array(list(weights)), np.stack(list(weights.values()))
    offsets = rng.normal(0, np.sqrt(offset_share), truth.shape)

    tables = []
    stats: RewardStats | None = None
    for split, pairs in (("train", train_pairs), ("test", test_pairs)):
        index = np.repeat(np.flatnonzero(np.array(held_out) == (split == "test")), pairs)
        quality = rng.normal(0, np.sqrt(1 - offset_share), (2, len(index), len(NAMES)))
        first, second = offsets[index] + quality
        wins = prefer_first(truth[index], first, second, temperature, rng)[:, None]
        ordered = np.where(wins, first, second), np.where(wins, second, first)
        chosen, rejected = (np.multiply(SCALES, z) + SHIFTS for z in ordered)
        if stats is None:
            stats = RewardStats.fit(np.vstack([chosen, rejected]), NAMES)
        tables.append(_scored_table(prompts[index], chosen, rejected, stats, split))
    return PlantedTruth(tables[0], tables[1], weights, temperature)


def _scored_table(prompts, raw_chosen, raw_rejected, stats: RewardStats, split: str):
    table: dict[str, Any] = {
        "id": [f"planted-{split}-{i}" for i in range(len(prompts))],
        "source": "planted",
        "objective": "overall",
        "split": split,
        "fold": 0 if split == "train" else -1,
        "constructed": False,
        "prompt": prompts,
        "text": [json.loads(p)[0]["content"] for p in prompts],
    }
    for side, raw in (("chosen", raw_chosen), ("rejected", raw_rejected)):
        z = stats.normalize(raw)
        for k, name in enumerate(stats.objective_names):
            table[f"raw_{side}_{name}"], table[f"z_{side}_{name}"] = raw[:, k], z[:, k]
    return pd.DataFrame(table)


def recovery(planted: PlantedTruth, weights: Mapping[str, ArrayLike]) -> dict[str, float]:
    """How close weights, prompt JSON -> (K,), come to the truth on the held-out prompts.

    Returns:
        ``n`` held-out pairs, ``accuracy`` on them, and ``correlation`` with w*, over prompts and objectives together; 0
        for weights that are all the same.
    """
    prompts = planted.test["prompt"].to_numpy(str)
    estimates = np.stack([np.asarray(weights[p], dtype=np.float64) for p in prompts])
    truth = np.stack([planted.weights[p] for p in prompts])
    flat = estimates.std() < 1e-9
    margin = margins(planted.test, planted.objective_names)
    return {
        "n": len(prompts),
        "correlation": 0.0 if flat else float(np.corrcoef(estimates.ravel(), truth.ravel())[0, 1]),
        "accuracy": float(correct((margin * estimates).sum(axis=1)).mean()),
    }


def predicted(adapter, planted: PlantedTruth) -> dict[str, NDArray[np.float32]]:
    """An adapter's weights for the held-out prompts: prompt JSON -> (K,)."""
    prompts = list(planted.test["prompt"].unique())
    return dict(zip(prompts, adapter.predict([json.loads(p) for p in prompts]), strict=True))


def compare_targets(seed: int, encoder: str) -> dict[str, dict[str, float]]:
    """:func:`recovery` for one planted truth: of w* itself (``oracle``), ``uniform``, and one adapter per target.

    The adapters' encoder is frozen.
    """
    planted = planted_truth(seed)
    K = len(planted.objective_names)
    report = {
        "oracle": recovery(planted, planted.weights),
        "uniform": recovery(planted, {p: np.full(K, 1 / K) for p in planted.weights}),
    }
    for target, tau in TARGETS.items():
        adapter = fit_adapter(
            planted.train,
            planted.objective_names,
            encoder=encoder,
            target=target,
            temperature=tau or planted.temperature,
            features=planted_features(encoder),
            epochs=EPOCHS,
            seed=seed,
        )
        report[target] = recovery(planted, predicted(adapter, planted))
    return report


def compare_shares(seed: int) -> dict[str, dict[str, float]]:
    """What weighs an objective that has a reward model and no pairs: :func:`recovery`, means over the four objectives.

    The adapter of the other objectives learns from pairs that people compared by those alone. Its features say the
    prompt's kind and topic, so what is lost is lost by the share of the withheld objective, which scales the adapter's
    weights by what it leaves (:class:`pro_core.weights.AddedWeights`):

    * ``no share``: 0. ``equal share``: 1 / K. ``mean share``: the objective's mean true weight, as from a user who
      knows it.
    * ``rule``: one condition on the prompt. Its mean true weight on the kind of prompt that needs it most, and that on
      all others.
    * ``Eq 7``: what an adapter fitted to Eq 7 on standardized scores of all K gives it.
    * ``its pairs``: an adapter of all K whose pairs were compared by all. ``oracle``: w*.
    """
    planted = planted_truth(seed)
    rng = np.random.default_rng((seed, 7))
    truth = planted.weights
    features = dict(zip(truth, _known_features(), strict=True))
    prompts = list(planted.test["prompt"].unique())
    K = len(planted.objective_names)

    learned, asked = (
        np.stack([features[p] for p in ps]) for ps in (planted.train["prompt"], prompts)
    )

    def fitted(chosen: NDArray, rejected: NDArray, target: str, tau: float):
        pairs = Examples(learned, chosen, rejected, np.zeros_like(chosen))
        predict = fit_adapters(
            [pairs], target, tau, [seed], epochs=EPOCHS, batch_size=256, learning_rate=1e-2
        )
        return predict(asked)[0].astype(np.float64)

    z_chosen, z_rejected = (
        planted.train[[f"z_{side}_{name}" for name in planted.objective_names]].to_numpy(float)
        for side in ("chosen", "rejected")
    )
    whole = fitted(z_chosen, z_rejected, "pairwise", planted.temperature)
    by_eq7 = fitted(z_chosen, z_rejected, "paper_z", TARGETS["paper_z"] or 1.0)
    true_train = np.stack([truth[p] for p in planted.train["prompt"]])
    true_test = np.stack([truth[p] for p in prompts])
    kinds = np.array([features[p][: len(KINDS)].argmax() for p in prompts])
    reports: dict[str, list[dict[str, float]]] = {name: [] for name in WITHHELD_METHODS}
    for k in range(K):
        others = [j for j in range(K) if j != k]
        theirs = true_train[:, others] / true_train[:, others].sum(axis=1, keepdims=True)
        first, second = z_chosen[:, others], z_rejected[:, others]
        wins = prefer_first(theirs, first, second, planted.temperature, rng)[:, None]
        chosen, rejected = np.where(wins, first, second), np.where(wins, second, first)
        rest = fitted(chosen, rejected, "pairwise", planted.temperature)
        means = np.array([true_test[kinds == kind, k].mean() for kind in range(len(KINDS))])
        most = kinds == means.argmax()
        shares = {
            "no share": np.zeros(len(prompts)),
            "equal share": np.full(len(prompts), 1 / K),
            "mean share": np.full(len(prompts), true_test[:, k].mean()),
            "rule": np.where(most, true_test[most, k].mean(), true_test[~most, k].mean()),
            "Eq 7": by_eq7[:, k],
        }
        for name, share in shares.items():
            weights = np.insert(rest * (1 - share)[:, None], k, share, axis=1)
            reports[name].append(recovery(planted, dict(zip(prompts, weights, strict=True))))
    reports["its pairs"].append(recovery(planted, dict(zip(prompts, whole, strict=True))))
    reports["oracle"].append(recovery(planted, truth))
    return {
        name: {key: float(np.mean([one[key] for one in all_four])) for key in all_four[0]}
        for name, all_four in reports.items()
    }


def _known_features() -> Array:
    """One row per prompt of the planted truth, in its order: one-hot kind, then one-hot topic."""
    rows = []
    for kind, wordings in enumerate(KINDS):
        for topic, names in enumerate(TOPICS):
            row = np.eye(len(KINDS))[kind].tolist() + np.eye(len(TOPICS))[topic].tolist()
            rows += [row] * (len(names) * len(wordings))
    return np.array(rows)


@cache
def planted_features(encoder: str) -> dict[str, torch.Tensor]:
    """Features of the prompts by prompt JSON, for ``fit_adapter``."""
    prompts = list(planted_truth(train_pairs=1, test_pairs=1).weights)
    return encode_prompts(PromptEncoder(encoder), prompts)
