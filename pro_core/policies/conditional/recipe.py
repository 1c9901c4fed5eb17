"""The recipe of `train/wic.py`, and the settings in which its arms may differ."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pro_core.data.texts import TextSource
from pro_core.http.addresses import address_of
from pro_core.policies.goals import NEED_ADAPTER, Goal, Rule
from pro_core.policies.recipe import PanelPolicyRecipe, Trained
from pro_core.runs.recipes import ConfigError
from pro_core.system.extras import needs
from pro_core.system.settings import Count, Positive, Settings, Share, TopP

with needs("train"):
    from pydantic import Field, field_validator, model_validator


class WicMethod(Trained):
    """The settings in which the arms of a recipe may differ."""

    condition: Literal["weights", "weights+level", "scores", "none"] = "weights"
    """what the policy reads; scores: RiC; none: plain SFT on the same rows"""
    temperature: Positive = 1.0
    """tau of Eq 7, on standardized scores (the paper: 0.1, on raw ones)"""
    offline_steps: Count = 100
    offline_learning_rate: Positive = 2e-4
    """of the offline stage; it falls linearly"""
    rounds: Annotated[int, Field(ge=0)] = 1
    """online rounds; 0 for none"""
    goals: Goal = "mix"
    """what a round asks for (pro_core.policies.goals.goal_source)"""
    accept: Rule = "weighted"
    """which responses a round keeps"""
    quantile: Share = 0.7
    """only responses above this quantile are kept"""
    prompts: Count = 256
    """prompts per round"""
    samples: Count = 4
    """G, responses per prompt"""
    sampling_temperature: Positive = 0.7
    top_p: TopP = 0.9
    online_steps: Count = 50
    """updates per round"""
    online_learning_rate: Positive = 1e-4
    """of the online rounds; constant, as in RiC"""
    offline_share: Share = 0.5
    """share of offline rows in an online round"""


class WicRecipe(WicMethod, PanelPolicyRecipe):
    """A recipe of `train/wic.py`: weights or scores in the prompt, learned offline and in online rounds."""

    varies: ClassVar[type[Settings]] = WicMethod
    method: str = "PRO-WIC online"
    batch_size: Count = 16
    """rows per update, over all processes"""
    checkpoint_every: Count = 100
    """updates between two checkpoints"""
    prompt_data: list[TextSource] | None = None
    """files with prompts, as `data`; null for the prompts of the data"""
    rollout_batch: Count = 64
    """responses written side by side"""
    endpoint: str | None = None
    """a vLLM server that writes the responses and loads each round's LoRA"""

    @field_validator("endpoint")
    @classmethod
    def _address(cls, endpoint: str | None) -> str | None:
        if endpoint:
            address_of(endpoint, "endpoint")
        return endpoint

    @model_validator(mode="after")
    def _rounds(self) -> WicRecipe:
        if not self.rounds or self.arms is not None:  # arms are checked one by one
            return self
        if self.condition == "none":
            raise ConfigError(
                "got condition 'none', expected one that a goal can be written in, or rounds: 0",
                ["condition", "rounds"],
            )
        if self.goals in NEED_ADAPTER and not self.adapter:
            raise ConfigError(
                f"the goals {self.goals!r} need an adapter: name one", ["goals", "adapter"]
            )
        if self.endpoint and self.lora is None:
            raise ConfigError(
                "an endpoint loads a LoRA between rounds: set `lora`, or leave out `endpoint`",
                ["endpoint", "lora"],
            )
        return self
