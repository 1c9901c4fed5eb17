"""Training by reinforcement learning, from a recipe to finished policies: a task and an algorithm for each method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pro_core.policies.rl.grpo import group_policy
from pro_core.policies.rl.levels import ClassifierPrompts, level_task
from pro_core.policies.rl.online_dpo import online_dpo_policy
from pro_core.policies.rl.ppo import ppo_policy
from pro_core.policies.rl.recipe import MorlhfRecipe, MoslimRecipe
from pro_core.policies.rl.run import Run, train
from pro_core.policies.rl.weighted import PanelPrompts, weighted_task
from pro_core.system.artefacts import Artefact

ALGORITHMS: dict[str, Callable[[Run], Sequence[Artefact]]] = {
    "grpo": group_policy,
    "rloo": group_policy,
    "online_dpo": online_dpo_policy,
    "ppo": ppo_policy,
}


def train_morlhf(recipe: MorlhfRecipe) -> list[Path]:
    """Train the policies of a recipe on K weighted rewards: MORLHF, PRO-MORLHF, a single reward (Eq 5, 9).

    Finished stages are not repeated, and a killed run goes on to the same parameters.

    Returns:
        The folder of each method under each seed, ``<output>/<method>/seed<n>``.

    Raises:
        ConfigError: something cannot be loaded or trained. StorageError: a full disk, or the place of a policy is
            taken.
    """
    methods, data = recipe.methods().values(), PanelPrompts.load(recipe)
    return [
        train(Run(method, weighted_task(method, data, seed), seed), ALGORITHMS[method.algorithm])
        for seed in recipe.seeds
        for method in methods
    ]


def train_moslim(recipe: MoslimRecipe) -> list[Path]:
    """Train the policies of a recipe that are asked for levels and rewarded by a classifier (Eq 11 of MOSLIM).

    As :func:`train_morlhf`, with a classifier in place of a panel, and levels in place of weights.
    """
    methods, data = recipe.methods().values(), ClassifierPrompts.load(recipe)
    return [
        train(Run(method, level_task(method, data, seed), seed), ALGORITHMS[method.algorithm])
        for seed in recipe.seeds
        for method in methods
    ]
