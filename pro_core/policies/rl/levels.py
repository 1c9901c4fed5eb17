"""The task of MOSLIM: a policy is asked for levels in its prompt, and one classifier's heads reward it (its Eq 11).

Each prompt is prefixed with 1 to 3 objectives drawn at random, each with a random level: ``<helpful 4> <honest 2>``.
The policy reads that; the classifier scores the prompt without it. Since

    r = (1/k) sum_i mask_i (p_i[target_i] - mean_i[target_i]) / std_i[target_i]

is a weighted sum over objectives with the weights mask_i / k, every algorithm takes this task as it takes a weighted
one. The statistics are those that the classifier was saved with, and stay fixed: running ones would make the reward
depend on the order of the batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pro_core.data.objectives import Prompt
from pro_core.policies.recipe import check_objectives
from pro_core.policies.rl.recipe import MoslimRecipe
from pro_core.policies.rl.reward import Array, WeightedReward
from pro_core.policies.rl.task import Conversation, PromptReader, Task, draw_rows, load_kinds
from pro_core.prompting.policy_config import PolicyConfig
from pro_core.prompting.templates import LEVELS, MOST_LEVELS, Condition
from pro_core.rewards.calibration import RewardStats
from pro_core.rewards.classifier import RewardClassifier
from pro_core.rewards.levels import DIVISORS, target_scores
from pro_core.runs.recipes import ConfigError
from pro_core.system.processes import process_device
from pro_core.system.storage import content_hash

Levels = NDArray[np.int64]


def draw_levels(counts: Sequence[int], N: int, seed: int) -> Levels:
    """The levels (N, K) that N prompts ask for. Each prompt names 1 to 3 objectives, each at a level from 1; all
    choices are equally likely. 0 means not named.

    Args:
        counts: how many levels each of the K objectives has.
    """
    rng, K = (
        np.random.default_rng([seed, MOST_LEVELS]),
        len(counts),
    )  # another stream than the rows'
    levels = np.zeros((N, K), dtype=np.int64)
    for row in levels:
        named = rng.choice(K, rng.integers(1, min(MOST_LEVELS, K) + 1), replace=False)
        row[named] = rng.integers(1, np.asarray(counts)[named] + 1)
    return levels


class LevelReward(WeightedReward):
    """Eq 11, one term for each objective.

    Args:
        classifier: with statistics; only its objectives in ``objective_names`` count, also for k.
        prompts: without the prefix. levels_PK: each prompt's levels, 0 where an objective is not named.
        divide_by: see :func:`pro_core.rewards.levels.map_levels`. The rest: see :class:`WeightedReward`.

    Raises:
        ValueError: no statistics, a prompt that names nothing, or a level that its objective does not have.
    """

    def __init__(
        self,
        classifier: RewardClassifier,
        objective_names: Sequence[str],
        prompts: Sequence[Prompt],
        levels_PK: ArrayLike,
        kinds: Sequence[str],
        divide_by: str = DIVISORS[0],
    ):
        levels, names = np.asarray(levels_PK), tuple(objective_names)
        condition = level_condition(classifier, names)
        for row in levels:
            condition.level_text(row.tolist())
        super().__init__(names, prompts, level_weights(levels, divide_by), kinds)
        self.classifier = classifier
        self.columns = [
            classifier.columns.index(f"{name}-{level + 1}")
            for name, count in zip(names, condition.level_counts or (), strict=True)
            for level in range(count)
        ]
        stats = classifier.require_stats()
        self.stats: RewardStats = replace(
            stats,
            objective_names=tuple(classifier.columns[j] for j in self.columns),
            mean=stats.mean[self.columns],
            std=stats.std[self.columns],
        )
        self.targets = [
            {name: int(level) for name, level in zip(names, row, strict=True) if level}
            for row in levels
        ]

    def standardized(self, rows: Sequence[int], completions: Sequence[str]) -> Array:
        """(p[target] - mean) / std of each objective that the prompt names; NaN for the others, and where the
        classifier gave no number."""
        prompts = [self.prompts[row] for row in rows]
        p = self.classifier.probabilities(prompts, completions, allow_missing=True)
        scores, _ = target_scores(
            p[:, self.columns], [self.targets[row] for row in rows], self.stats
        )
        return scores


def level_weights(levels_PK: ArrayLike, divide_by: str) -> Array:
    """mask_i / k (P, K). k is K for ``objectives``, and the number that the prompt names for ``targets``."""
    mask = np.asarray(levels_PK) > 0
    k = mask.sum(axis=1, keepdims=True) if divide_by == "targets" else mask.shape[1]
    return (mask / k).astype(np.float32)


def level_condition(classifier: RewardClassifier, objective_names: Sequence[str]) -> Condition:
    """The condition that a policy for these objectives of a classifier reads."""
    counts = {scale.name: scale.levels for scale in classifier.scales}
    names = tuple(objective_names)
    return Condition(LEVELS, names, level_counts=tuple(counts[name] for name in names))


@dataclass
class ClassifierPrompts:
    """What all methods of a recipe share: the classifier, and the prompts of the train split with their kinds.
    ``judge`` is a hash of everything that decides the scores."""

    classifier: RewardClassifier
    judge: str
    objective_names: tuple[str, ...]
    prompts: list[Conversation]
    kinds: list[str]

    @classmethod
    def load(cls, recipe: MoslimRecipe) -> ClassifierPrompts:
        """Load what a recipe names.

        Raises:
            ConfigError: objectives that the classifier does not have, a classifier without statistics, no prompts.
        """
        source = recipe.classifier
        classifier = RewardClassifier.from_pretrained(source, process_device())
        names = tuple(recipe.objectives or classifier.objective_names)
        check_objectives("classifier", source, classifier.objective_names, names)
        if classifier.stats is None:
            raise ConfigError(
                f"classifier {source}: it has no statistics, without which its heads cannot be compared (Eq 11): "
                "train/classifier.py fits them",
                ["classifier"],
            )
        prompts, kinds = load_kinds(recipe.data, recipe.data_folder)
        judge = content_hash([classifier.fingerprint(), classifier.stats.to_dict(), names])
        return cls(classifier, judge, names, prompts, kinds)


def level_task(recipe: MoslimRecipe, data: ClassifierPrompts, seed: int) -> Task:
    """One method under one seed: each of the data's prompts has its levels, drawn once and the same for every arm.

    Raises:
        ConfigError: a model that cannot answer, or no prompt that fits.
    """
    names, reader = data.objective_names, PromptReader.of(recipe)
    condition = level_condition(data.classifier, names)
    levels_NK = draw_levels(condition.level_counts or (), len(data.prompts), seed)
    reads_N = [
        condition.add(prompt, condition.level_text(levels.tolist()))
        for prompt, levels in zip(data.prompts, levels_NK, strict=True)
    ]
    rows, left_out = draw_rows(reads_N, recipe, seed, reader)
    reads, prompts = [reads_N[row] for row in rows], [data.prompts[row] for row in rows]
    kinds = [data.kinds[row] for row in rows]
    levels_PK = levels_NK[rows]
    reward = LevelReward(data.classifier, names, prompts, levels_PK, kinds, recipe.divide_by)
    reward.tokenizer = reader.tokenizer
    listed = [
        {
            "prompt": prompt,
            "kind": kind,
            "weights": dict(zip(names, weights, strict=True)),
            "levels": levels,
        }
        for prompt, kind, weights, levels in zip(
            prompts, kinds, reward.weights.tolist(), reward.targets, strict=True
        )
    ]
    # How to ask the policy for levels, and whose levels they are.
    config = PolicyConfig(condition, recipe.base, data.classifier.fingerprint())
    return Task(reads, kinds, left_out, reward, data.judge, config, listed, reader)
