"""The recipe of `train/preference.py`, and the settings in which its arms may differ."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pro_core.data.entries import PairSource
from pro_core.policies.recipe import PanelPolicyRecipe, Trained
from pro_core.runs.recipes import ConfigError
from pro_core.system.extras import needs
from pro_core.system.settings import Count, Positive, Settings

with needs("train"):
    from pydantic import Field, model_validator

Algorithm = Literal[
    "sft", "dpo", "ipo", "kto", "simpo", "wpo", "selective_dpo", "adpo", "modpo", "pro_dpo"
]
WEIGHED = ("modpo", "pro_dpo")
"""The algorithms that read a panel's scores of both completions."""


class Trial(Settings):
    """One choice of the two settings on which a method depends most."""

    learning_rate: Positive
    """it falls linearly, after a warm-up"""
    beta: Positive
    """beta of the method's loss; ipo: its tau, per token"""


class PreferenceMethod(Trained):
    """The settings in which the arms of a recipe may differ."""

    algorithm: Algorithm = "dpo"
    """how pairs are learned; sft: the common start alone"""
    trials: Annotated[list[Trial], Field(min_length=1)] = [Trial(learning_rate=1e-5, beta=0.1)]
    """each is trained, and the one whose answers to validation prompts the judge likes best is kept; as many in every
    arm"""
    steps: Count = 100
    """updates of the optimizer, in each trial; selective_dpo: at most, since it makes one pass"""
    gamma: Positive = 1.3
    """adpo: a pair whose margin is larger needs no label"""
    gamma_beta_ratio: Positive = 0.5
    """simpo: the margin that a pair should have, gamma, in units of each trial's beta"""
    keep: Annotated[float, Field(gt=0, le=1)] = 0.5
    """selective_dpo: the share of pairs that stays, the easiest ones"""
    weights: Literal["uniform", "adapter", "shuffled", "mean"] | dict[str, float] = "adapter"
    """pro_dpo: where the weights come from (pro_core.policies.rl.weighted.run_weights); modpo: {objective: weight}"""
    pairs_of: str | None = None
    """modpo: the objective whose pairs are learned; the others are margins"""


class PreferenceRecipe(PreferenceMethod, PanelPolicyRecipe):
    """A recipe of `train/preference.py`: policies that learn from preference pairs, all from one start."""

    varies: ClassVar[type[Settings]] = PreferenceMethod
    method: str = "DPO"
    data: Annotated[list[PairSource], Field(min_length=1)]  # type: ignore[assignment]
    """preference pairs, as for train/reward_models.py; the train split is learned"""
    panel: str = ""
    """modpo, pro_dpo: a folder or YAML file of a RewardPanel"""
    judge: str | None = None
    """a folder of a RewardPanel that chooses among trials; not the one that labels"""
    start: str | None = None
    """a policy that every arm starts from and is compared to, or the model itself; null for SFT on the chosen
    completions"""
    sft_steps: Count = 100
    """updates of the SFT that all arms start from"""
    sft_learning_rate: Positive = 1e-4
    batch_size: Count = 16
    """pairs per update, over all processes"""
    checkpoint_every: Count = 50
    """updates between two checkpoints"""
    validation_prompts: Count = 64
    """prompts of the validation split that each trial answers, if there are several"""
    answers_batch: Count = 32
    """answers written side by side"""

    def methods(self):
        """One recipe per method, see :meth:`PolicyRecipe.methods`.

        Raises:
            ConfigError: also, arms with different numbers of trials, in `only` or not: the one with more would be
                chosen better.
        """
        methods = super().methods()
        whole = self.model_copy(update={"only": None, "policy": None})
        every = super(PreferenceRecipe, whole).methods()
        counts = {n: len(one.trials) for n, one in every.items() if one.algorithm != "sft"}
        if len(set(counts.values())) > 1:
            raise ConfigError(
                f"{self._path or type(self).__name__}: got trials {counts}, expected the same number in every arm",
                ["trials"],
            )
        return methods

    @model_validator(mode="after")
    def _algorithm(self) -> PreferenceRecipe:
        if self.arms is not None:  # each is checked by itself
            return self
        if self.algorithm == "sft" and self.start:
            raise ConfigError(
                "got algorithm 'sft' and a `start`: SFT is the start; leave one out",
                ["algorithm", "start"],
            )
        if self.algorithm != "sft" and len(self.trials) > 1 and not self.judge:
            raise ConfigError(
                f"got {len(self.trials)} trials and no judge, which chooses among them",
                ["judge", "trials"],
            )
        if self.judge and self.judge == self.panel:
            raise ConfigError(
                f"got the judge {self.judge!r}, expected another than the panel that labels",
                ["judge", "panel"],
            )
        if self.algorithm in WEIGHED and not self.panel:
            raise ConfigError(f"{self.algorithm} needs a panel: name one", ["panel", "algorithm"])
        learned = self.weights in ("adapter", "shuffled", "mean")
        if self.algorithm == "pro_dpo" and learned and not self.adapter:
            raise ConfigError(
                f"the weights {self.weights!r} need an adapter: name one", ["weights", "adapter"]
            )
        if self.algorithm == "modpo":
            self._check_modpo()
        return self

    def _check_modpo(self) -> None:
        if not isinstance(self.weights, dict):
            raise ConfigError(
                f"got weights {self.weights!r}, expected {{objective: weight}}: modpo trains for one weight vector",
                ["weights"],
            )
        if self.pairs_of is None or not self.weights.get(self.pairs_of, 0) > 0:
            raise ConfigError(
                f"got pairs_of {self.pairs_of!r}, expected an objective with a weight above 0 among {self.weights}",
                ["pairs_of", "weights"],
            )
        if len(self.weights) < 2:
            raise ConfigError(
                f"got weights {self.weights}, expected at least two objectives: with one, modpo is dpo",
                ["weights"],
            )
