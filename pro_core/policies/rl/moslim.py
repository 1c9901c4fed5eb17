"""MOSLIM: a policy that is asked for levels in its prompt, rewarded by one classifier's heads (its Eq 11).

Each prompt is prefixed with 1 to 3 objectives drawn at random, each with a random level: ``<helpful 4> <honest 2>``.
The policy reads that; the classifier scores the prompt without it. Since

    r = (1/k) sum_i mask_i (p_i[target_i] - mean_i[target_i]) / std_i[target_i]

is a weighted sum over objectives with the weights mask_i / k, a run is one of :mod:`pro_core.policies.rl.grpo` whose
prompts, scores and weights are these, under every one of its algorithms. The statistics are those that the classifier
was saved with, and stay as they are: moving ones would make the reward depend on the order of the batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pro_core.data.objectives import Message, Prompt
from pro_core.data.sources import default_data_dir
from pro_core.policies.conditional.data import check_objectives
from pro_core.policies.rl.data import load_kinds
from pro_core.policies.rl.grpo import MorlhfRun
from pro_core.policies.rl.online_dpo import OnlineDpoRun
from pro_core.policies.rl.ppo import PpoRun
from pro_core.policies.rl.reward import Array, WeightedReward
from pro_core.policies.stages import lora_base
from pro_core.prompting.policy_config import PolicyConfig
from pro_core.prompting.templates import LEVELS, MOST_LEVELS, Condition
from pro_core.rewards.calibration import RewardStats
from pro_core.rewards.classifier import DIVISORS, RewardClassifier, target_scores
from pro_core.runs.training import ConfigError
from pro_core.system.processes import process_device
from pro_core.system.storage import content_hash

Levels = NDArray[np.int64]


def draw_levels(counts: Sequence[int], N: int, seed: int) -> Levels:
    """The levels that N prompts ask for, (N, K): 1 to 3 objectives of each, a level from 1 for each of them, all
    equally likely; 0 where an objective is not named.

    Args:
        counts: how many levels each of the K objectives has.
    """
    rng, K = np.random.default_rng([seed, MOST_LEVELS]), len(counts)  # not the rows' own stream
    levels = np.zeros((N, K), dtype=np.int64)
    for row in levels:
        named = rng.choice(K, rng.integers(1, min(MOST_LEVELS, K) + 1), replace=False)
        row[named] = rng.integers(1, np.asarray(counts)[named] + 1)
    return levels


class LevelReward(WeightedReward):
    """Eq 11, one term an objective.

    Args:
        classifier: with statistics; of its objectives those in ``objective_names`` count, and k counts them.
        prompts: without the prefix. levels_PK: of each prompt, 0 where it does not name an objective.
        divide_by: see :func:`pro_core.rewards.classifier.map_levels`. The rest: see :class:`WeightedReward`.

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
        """(p[target] - mean) / std of each objective that its prompt names; NaN where it names none, and where the
        classifier gave no number."""
        prompts = [self.prompts[row] for row in rows]
        p = self.classifier.probabilities(prompts, completions, allow_missing=True)
        found, _ = target_scores(
            p[:, self.columns], [self.targets[row] for row in rows], self.stats
        )
        return found


def level_weights(levels_PK: ArrayLike, divide_by: str) -> Array:
    """mask_i / k (P, K); k: K for ``objectives``, how many a prompt names for ``targets``."""
    mask = np.asarray(levels_PK) > 0
    k = mask.sum(axis=1, keepdims=True) if divide_by == "targets" else mask.shape[1]
    return (mask / k).astype(np.float32)


def level_condition(classifier: RewardClassifier, objective_names: Sequence[str]) -> Condition:
    """What a policy of these of a classifier's objectives reads."""
    counts = {scale.name: scale.levels for scale in classifier.scales}
    names = tuple(objective_names)
    return Condition(LEVELS, names, level_counts=tuple(counts[name] for name in names))


@dataclass
class LevelData:
    """What the arms of a recipe of `train/moslim.py` share, as :class:`pro_core.policies.rl.data.RewardData`."""

    classifier: RewardClassifier
    panel_key: str
    objective_names: tuple[str, ...]
    prompts: list[list[Message]]
    kinds: list[str]

    @classmethod
    def load(cls, recipe: dict[str, Any]) -> LevelData:
        """Load what a recipe names.

        Raises:
            ConfigError: objectives that the classifier does not have, a classifier without statistics, no prompts.
        """
        source = recipe["classifier"]
        classifier = RewardClassifier.from_pretrained(source, process_device())
        asked = recipe["objectives"] or classifier.objective_names
        check_objectives("classifier", source, classifier.objective_names, asked)
        names = tuple(asked)
        if classifier.stats is None:
            raise ConfigError(
                f"classifier {source}: it has no statistics, without which its heads cannot be compared (Eq 11): "
                "train/classifier.py fits them"
            )
        prompts, kinds = load_kinds(recipe["data"], recipe["data_dir"] or default_data_dir())
        key = content_hash([classifier.fingerprint(), classifier.stats.to_dict(), names])
        return cls(classifier, key, names, prompts, kinds)


class MoslimRun(MorlhfRun):
    """See :class:`MorlhfRun`: each of the data's prompts has its levels, drawn once a run, the same for every arm."""

    data: Any  # a LevelData

    def __init__(self, settings: dict[str, Any], seed: int, data: LevelData):
        self.condition = level_condition(data.classifier, data.objective_names)
        counts = self.condition.level_counts or ()
        self.levels = draw_levels(counts, len(data.prompts), seed)
        super().__init__(settings, seed, data)  # type: ignore[arg-type]

    def reads(self, row: int) -> list[Message]:
        asked = self.condition.level_text(self.levels[row].tolist())
        return self.condition.add(self.data.prompts[row], asked)

    def reward(self) -> LevelReward:
        d = self.data
        prompts, kinds = ([of[row] for row in self.rows] for of in (d.prompts, d.kinds))
        levels, divide_by = self.levels[self.rows], self.settings["divide_by"]
        reward = LevelReward(d.classifier, d.objective_names, prompts, levels, kinds, divide_by)
        reward.tokenizer = self.tokenizer
        return reward

    def config(self) -> PolicyConfig:
        """What stands beside the policy: how to ask it for levels, and whose levels they are."""
        panel = self.data.classifier.fingerprint()
        return PolicyConfig(self.condition, lora_base(self.settings), panel)

    def _weigh(self) -> Array:
        return level_weights(self.levels[self.rows], self.settings["divide_by"])

    def _listed_prompts(self) -> list[dict[str, Any]]:
        names = self.data.objective_names
        listed = super()._listed_prompts()
        for line, row in zip(listed, self.rows, strict=True):
            line["levels"] = {
                name: int(level)
                for name, level in zip(names, self.levels[row], strict=True)
                if level
            }
        return listed


class MoslimOnlineDpoRun(MoslimRun, OnlineDpoRun):
    """By online DPO."""


class MoslimPpoRun(MoslimRun, PpoRun):
    """By PPO."""


RUNS: dict[str, type[MoslimRun]] = {
    "grpo": MoslimRun,
    "rloo": MoslimRun,
    "online_dpo": MoslimOnlineDpoRun,
    "ppo": MoslimPpoRun,
}
