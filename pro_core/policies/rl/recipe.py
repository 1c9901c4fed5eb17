"""The recipes of `train/morlhf.py` and `train/moslim.py`, and the settings in which their arms may differ."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pro_core.policies.goals import NEED_ADAPTER
from pro_core.policies.recipe import PanelPolicyRecipe, PolicyRecipe, Trained
from pro_core.runs.recipes import ConfigError
from pro_core.system.extras import needs
from pro_core.system.settings import Count, Positive, Settings, TopP

with needs("train"):
    from pydantic import Field, ValidationError, model_validator

Aggregation = Literal["sum_then_normalize", "normalize_then_sum"]
Divisor = Literal["objectives", "targets"]

OWN = {
    *("learning_rate", "beta", "num_generations", "num_iterations", "max_completion_length"),
    *("temperature", "top_p", "output_dir", "seed", "multi_objective_aggregation"),
    *("reward_weights", "save_steps", "num_train_epochs", "max_steps", "shuffle_dataset"),
}
"""TRL's settings that a recipe sets under its own names, or that would break a run."""


class PpoSettings(Settings):
    """The settings of PPO, under `trainer`."""

    clip: Positive = 0.2
    """clip of the ratio between the new policy and the one that wrote"""
    value_clip: Positive = 0.2
    """clip of a value's change"""
    value_weight: Annotated[float, Field(ge=0)] = 0.1
    """weight of the value loss"""
    lam: Annotated[float, Field(ge=0, le=1)] = 0.95
    """lambda of the generalized advantages"""
    entropy: Annotated[float, Field(ge=0)] = 0.0
    """weight of the entropy"""


class Loop(Trained):
    """The settings of the training loop in which arms may differ."""

    algorithm: Literal["grpo", "rloo", "online_dpo", "ppo"] = "grpo"
    steps: Count = 100
    """updates of the optimizer"""
    iterations: Count = 1
    """grpo, rloo, ppo: updates on each batch of completions"""
    round_steps: Count = 10
    """online_dpo: updates between two sets of rollouts"""
    learning_rate: Positive = 1e-5
    """constant"""
    kl: Annotated[float, Field(ge=0)] = 0.1
    """beta of Eq 5"""
    trainer: dict[str, Any] = {}
    """settings of TRL's GRPOConfig, RLOOConfig or DPOConfig, such as {use_vllm: true}; for ppo: clip, value_clip,
    value_weight, lam, entropy"""


class LoopRecipe(Loop, PolicyRecipe):
    """A recipe of policies that are trained by reinforcement learning."""

    prompts_per_step: Count = 16
    """prompts per step, over all processes"""
    generations: Count = 8
    """G, completions per prompt"""
    checkpoint_every: Count = 50
    """updates between two checkpoints"""
    keep_every: Count | None = None
    """grpo, rloo, ppo: updates between two policies that stay in <policy>/steps/<n>, for curves; null keeps none"""
    sampling_temperature: Positive = 1.0
    top_p: TopP = 1.0

    @model_validator(mode="after")
    def _loop(self) -> LoopRecipe:
        if self.arms is not None:  # each is checked by itself
            return self
        if taken := sorted(set(self.trainer) & OWN):
            raise ConfigError(
                f"trainer sets {taken}, which the recipe's own settings decide", ["trainer"]
            )
        if self.algorithm == "ppo":
            try:
                PpoSettings.model_validate(self.trainer)
            except ValidationError as error:
                wrong = [".".join(map(str, problem["loc"])) for problem in error.errors()]
                raise ConfigError(
                    f"got {wrong} in trainer {self.trainer}, expected for ppo some of "
                    f"{sorted(PpoSettings.model_fields)}",
                    [f"trainer.{name}" for name in wrong],
                ) from None
        if self.algorithm == "online_dpo":
            if self.steps % self.round_steps:
                raise ConfigError(
                    f"got steps {self.steps}, expected a multiple of round_steps ({self.round_steps})",
                    ["steps", "round_steps"],
                )
            if self.iterations != 1:
                raise ConfigError(
                    f"got iterations {self.iterations}, expected 1: a round of online_dpo has round_steps",
                    ["iterations"],
                )
        if self.algorithm == "online_dpo" and self.keep_every:
            raise ConfigError(
                "got keep_every, which online_dpo does not know: each of its rounds stays in <output>/policies",
                ["keep_every"],
            )
        for name in ("steps", "checkpoint_every", "keep_every"):
            if (getattr(self, name) or 0) % self.iterations:
                raise ConfigError(
                    f"got {name} {getattr(self, name)}, expected a multiple of iterations ({self.iterations}): "
                    "all updates on a batch",
                    [name, "iterations"],
                )
        return self


def check_groups(recipe: LoopRecipe, normalized: bool) -> None:
    """Raise a ConfigError for one completion per prompt, if completions are judged by their groups."""
    if recipe.generations == 1 and (recipe.algorithm != "ppo" or normalized):
        raise ConfigError(
            "got generations 1, expected at least 2: a completion is judged by its group",
            ["generations"],
        )


class MorlhfMethod(Loop):
    """The settings in which the arms of a recipe of `train/morlhf.py` may differ."""

    weights: (
        Literal["uniform", "adapter", "shuffled", "mean", "mix", "dirichlet"] | dict[str, float]
    ) = "adapter"
    """where the weights come from (pro_core.policies.rl.weighted.run_weights), or {objective: weight}"""
    floors: str = ""
    """such as harmless=0.1"""
    aggregation: Aggregation = "sum_then_normalize"
    """normalize_then_sum: GDPO"""


class MorlhfRecipe(MorlhfMethod, LoopRecipe, PanelPolicyRecipe):
    """A recipe of `train/morlhf.py`: weights in the reward."""

    varies: ClassVar[type[Settings]] = MorlhfMethod
    method: str = "PRO-MORLHF"

    @model_validator(mode="after")
    def _weighted(self) -> MorlhfRecipe:
        if self.arms is not None:  # each is checked by itself
            return self
        check_groups(self, self.aggregation == "normalize_then_sum")
        if self.weights in (*NEED_ADAPTER, "mean") and not self.adapter:
            raise ConfigError(
                f"the weights {self.weights!r} need an adapter: name one", ["weights", "adapter"]
            )
        if self.algorithm == "online_dpo" and self.aggregation != "sum_then_normalize":
            raise ConfigError(
                f"got aggregation {self.aggregation!r}, expected 'sum_then_normalize' for online_dpo: pairs are taken "
                "within a prompt",
                ["aggregation"],
            )
        return self


class MoslimMethod(Loop):
    """The settings in which the arms of a recipe of `train/moslim.py` may differ."""

    divide_by: Divisor = "objectives"
    """k of Eq 11: all objectives of the run; targets: those that a prompt names"""


class MoslimRecipe(MoslimMethod, LoopRecipe):
    """A recipe of `train/moslim.py`: levels in the prompt, one classifier's heads in the reward."""

    varies: ClassVar[type[Settings]] = MoslimMethod
    method: str = "MOSLIM"
    classifier: str
    """a folder of a RewardClassifier with statistics"""

    @model_validator(mode="after")
    def _levels(self) -> MoslimRecipe:
        if self.arms is not None:  # each is checked by itself
            return self
        check_groups(self, normalized=False)
        return self
