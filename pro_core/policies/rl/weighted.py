"""The task of MORLHF and PRO-MORLHF: maximize sum_k w_k(x) z_k(x, y) of a panel (Eq 5, 9).

The two differ only in where the weights come from. The values of the weights decide a run, not the name of their
source: an adapter that always answers uniform gives MORLHF's run, and K = 1 gives plain RLHF.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pro_core.adapter.model import PreferenceAdapter
from pro_core.data.objectives import Prompt
from pro_core.policies.goals import goal_source
from pro_core.policies.recipe import load_panel, without_statistics
from pro_core.policies.rl.recipe import MorlhfRecipe
from pro_core.policies.rl.reward import Array, CompositeReward
from pro_core.policies.rl.task import Conversation, PromptReader, Task, draw_rows, load_kinds
from pro_core.prompting.policy_config import PolicyConfig
from pro_core.prompting.templates import Condition
from pro_core.rewards.panel import RewardPanel
from pro_core.runs.recipes import ConfigError
from pro_core.system.processes import from_main, main_process
from pro_core.system.storage import content_hash
from pro_core.weights import (
    AdapterWeights,
    FixedWeights,
    FlooredWeights,
    SelectedWeights,
    ShuffledWeights,
    WeightSource,
    parse_floors,
)


@dataclass
class PanelPrompts:
    """What all methods of a recipe share: the panel, the adapter (or None), and the prompts of the train split with
    their kinds. ``judge`` is a hash of everything that decides the scores."""

    panel: RewardPanel
    judge: str
    objective_names: tuple[str, ...]
    adapter: PreferenceAdapter | None
    prompts: list[Conversation]
    kinds: list[str]

    @classmethod
    def load(cls, recipe: MorlhfRecipe) -> PanelPrompts:
        """Load what a recipe names.

        Raises:
            ConfigError: objectives that the panel or the adapter does not have, a panel without statistics, no prompts.
        """
        panel, names, adapter = load_panel(recipe)
        if panel.stats is None:
            raise without_statistics(recipe.panel)
        prompts, kinds = load_kinds(recipe.data, recipe.data_folder)
        judge = content_hash([panel.fingerprint(), panel.stats.to_dict(), names])
        return cls(panel, judge, names, adapter, prompts, kinds)


def weighted_task(recipe: MorlhfRecipe, data: PanelPrompts, seed: int) -> Task:
    """One method under one seed: its prompts, and the panel's scores under each prompt's weights.

    Raises:
        ConfigError: a model that cannot answer, no prompt that fits, weights or floors that make no sense.
    """
    names, reader = data.objective_names, PromptReader.of(recipe)
    rows, left_out = draw_rows(data.prompts, recipe, seed, reader)
    prompts, kinds = [data.prompts[row] for row in rows], [data.kinds[row] for row in rows]
    weights: Array | None = None
    if main_process():
        try:
            weights = run_weights(recipe.weights, prompts, names, data.adapter, seed, recipe.floors)
        except ValueError as error:
            raise ConfigError(f"{recipe.method}: {error}", ["weights", "floors"]) from None
    weights = from_main(weights)
    assert weights is not None
    reward = CompositeReward(
        data.panel, names, prompts, weights, kinds, recipe.aggregation, recipe.generations
    )
    reward.tokenizer = reader.tokenizer
    listed = [
        {"prompt": prompt, "kind": kind, "weights": dict(zip(names, row, strict=True))}
        for prompt, kind, row in zip(prompts, kinds, weights.tolist(), strict=True)
    ]
    config = PolicyConfig(Condition("none", names), recipe.base, data.panel.fingerprint())
    return Task(prompts, kinds, left_out, reward, data.judge, config, listed, reader)


def run_weights(
    source: str | Mapping[str, float],
    prompts: Sequence[Prompt],
    objective_names: Sequence[str],
    adapter: PreferenceAdapter | None = None,
    seed: int = 0,
    floors: str = "",
) -> Array:
    """The weights (P, K) of all P prompts of a run, computed once and kept throughout.

    Args:
        source: fixed weights by name (all on one objective is a single reward), or ``uniform`` (MORLHF), ``adapter``
            (PRO-MORLHF), ``shuffled`` (the adapter's, given to the wrong prompts), ``mean`` (their mean, the same for
            all prompts), ``mix`` or ``dirichlet`` (see :func:`pro_core.policies.goals.goal_source`).
        floors: such as ``harmless=0.1``, applied to the weights of any source.

    Raises:
        ValueError: an unknown source, weights off the simplex, or floors that make no sense.
    """
    weights: WeightSource
    if isinstance(source, Mapping):
        given = dict.fromkeys(objective_names, 0.0) | dict(source)
        weights = FixedWeights(objective_names, given)
    elif source in ("shuffled", "mean"):
        weights = SelectedWeights(AdapterWeights(adapter), objective_names)
        if source == "shuffled":
            weights = ShuffledWeights(weights, seed)
        else:
            weights = FixedWeights(objective_names, weights(prompts).mean(axis=0))
    else:
        weights = goal_source(source, objective_names, adapter, seed)
    if floors:
        weights = FlooredWeights(weights, parse_floors(floors, objective_names))
    return weights(prompts)
