"""PRO, the Preference Orchestrator: how much each of several objectives matters, prompt by prompt.

Every public name can be imported from here; heavy libraries load when a name that needs them is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "data.objectives": ("check_objective_names",),
    "data.schema": (
        "DataError",
        "LabelledResponse",
        "PreferencePair",
        "load_examples",
        "render_messages",
        "split_of",
        "to_messages",
    ),
    "data.pairs": ("pairs_from_labels",),
    "data.entries": ("PairSource", "RatedSource"),
    "data.texts": ("TextSource",),
    "weights": (
        "AdapterWeights",
        "AddedWeights",
        "BlendWeights",
        "DirichletWeights",
        "FixedWeights",
        "FlooredWeights",
        "MixedWeights",
        "ShuffledWeights",
        "UserWeights",
        "apply_floors",
        "as_weights",
        "implicit_weights",
        "parse_floors",
        "weighted_sum",
    ),
    "choices": (
        "Choice",
        "ChoiceModel",
        "ChoicePosterior",
        "ChoiceWeights",
        "choice_agreement",
        "choice_pairs",
        "choice_posterior",
        "weights_from_choices",
    ),
    "prompting.templates": ("format_levels", "format_scores", "format_weights"),
    "rewards.best_of_n": ("best_of_n",),
    "rewards.blockwise": ("BlockwiseGenerator",),
    "rewards.calibration": ("RewardStats", "text_lengths"),
    "rewards.classifier": ("RewardClassifier",),
    "rewards.explanations": ("ScoreExplanation", "explain_scores"),
    "rewards.levels": ("map_levels",),
    "rewards.panel": ("RewardPanel",),
    "rewards.specs": ("RewardModelSpec",),
    "rewards.panel_runs": ("train_panel",),
    "rewards.classifier_runs": ("train_classifiers",),
    "rewards.score_runs": ("score_rewards",),
    "rewards.recipes": ("ClassifierRecipe", "PanelRecipe", "ScoreRecipe"),
    "rewards.scores": ("score_pairs",),
    "rewards.shards": ("read_rewards",),
    "adapter.encoder": ("PromptEncoder",),
    "adapter.model": ("PreferenceAdapter", "UncertainWeights"),
    "adapter.recipe": ("AdapterRecipe", "AdapterTarget"),
    "adapter.runs": ("train_adapter",),
    "adapter.explanations": ("Explanation", "explain"),
    "generation": (
        "GenerationError",
        "GenerationSettings",
        "Generator",
        "LocalGenerator",
        "Mixing",
        "Request",
        "generator_from_env",
    ),
    "metrics": ("hypervolume", "igd_plus", "is_nondominated"),
    "evaluation.policy.levels": ("level_rows",),
    "evaluation.policy.recipe": ("LevelEvaluation", "PolicyEvaluation"),
    "evaluation.policy.responses": ("GeneratorPolicy", "Policy"),
    "evaluation.policy.weight_rows": ("policy_rows",),
    "policies.conditional.recipe": ("WicRecipe",),
    "policies.conditional.trainer": ("train_wic",),
    "policies.preference.recipe": ("PreferenceRecipe",),
    "policies.preference.run": ("train_preference",),
    "policies.rl.methods": ("train_morlhf", "train_moslim"),
    "policies.rl.recipe": ("MorlhfRecipe", "MoslimRecipe"),
    "policies.soup_runs": ("SoupRecipe", "make_soups"),
    "policies.soups": ("interpolate_policies",),
    "system.storage": ("StorageError",),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'pro_core' has no attribute {name!r}")
    return getattr(importlib.import_module(f"pro_core.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
