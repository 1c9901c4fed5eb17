"""The recipe of an adapter: the encoder, how it is fitted, and the targets that are compared."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pro_core.runs.recipes import ConfigError, Recipe
from pro_core.system.extras import needs
from pro_core.system.settings import AtLeastZero, Count, Positive, Seeds, Settings

with needs("train"):
    from pydantic import Field, model_validator

Strength = Annotated[float, Field(ge=0)]


class AdapterTarget(Settings):
    """What an adapter learns from; see :func:`pro_core.adapter.training.fit_adapter`."""

    target: Literal["paper", "paper_z", "margin", "annotated", "pairwise"]
    """`paper` is Eq 7 on raw rewards, `paper_z` on standardized ones, `margin` on chosen minus rejected; `annotated` is
    the objective that people judged a pair by; `pairwise` is the Bradley-Terry loss of the weighted margins"""
    temperature: Positive
    """tau of Eq 7, or the scale of the pairwise margin"""
    annotated: Strength = 0.0
    """weight of the KL to `annotated` beside the pairwise loss"""
    load_balance: Strength | None = None
    """null for the recipe's load_balance"""
    kl_to_global: Strength = 0.01
    """weight of the pull to the best fixed weights, beside the pairwise loss"""
    entropy_floor: Strength = 0.1
    """the pairwise loss penalizes weights with an entropy below this, in nats"""

    @model_validator(mode="after")
    def _is_used(self) -> Self:
        of_pairwise = {"annotated", "kl_to_global", "entropy_floor"}
        if self.target != "pairwise" and (unused := sorted(of_pairwise & self.model_fields_set)):
            raise ConfigError(
                f"got {', '.join(unused)} for the target {self.target}, expected them only for pairwise",
                unused,
            )
        return self

    @property
    def plain(self) -> dict[str, Any]:
        """The settings that were given, without defaults."""
        return self.model_dump(exclude_unset=True, exclude_none=True)

    @property
    def name(self) -> str:
        """``pairwise-t1``: the target with its settings, fit for a folder and a table."""
        known = ("target", "temperature")
        rest = [f"-{key}{value}" for key, value in self.plain.items() if key not in known]
        return f"{self.target}-t{self.temperature:g}" + "".join(rest)


class AdapterRecipe(Recipe):
    """A preference adapter: fitted with every target and seed; the target is chosen on validation pairs."""

    scores: str
    """the table of a panel's out-of-fold scores that it is fitted on"""
    panel: str
    """the panel that gave the scores"""
    output: str
    """the folder for everything that the run makes"""
    targets: Annotated[list[AdapterTarget], Field(min_length=1)]
    """the targets to compare"""
    adapter: str | None = None
    """where the chosen adapter goes; null for <output>/adapter"""
    licence: str | None = None
    """the adapter's licence, for its card"""
    encoder: str = "FacebookAI/xlm-roberta-base"
    """the model that reads the prompts: a folder or a hub id; the default is the paper's"""
    train_encoder: bool = True
    """false to fit the heads alone"""
    layers: Count = 1
    """how many of the encoder's upper layers the heads read"""
    hidden: AtLeastZero = 128
    """width of a head's hidden layer; 0 for linear heads"""
    members: Count = 5
    """heads on the one encoder; their spread is the weights' uncertainty"""
    max_length: Count = 256
    """tokens of a prompt that are read"""
    epochs: Count = 3
    """passes over the pairs"""
    batch_size: Count = 32
    """pairs per optimizer step"""
    learning_rate: Positive = 1e-5
    """if the encoder is trained, its rate: fresh heads then learn at ten times this rate"""
    load_balance: Strength = 0.0
    """how much a batch's mean weights are kept from collapsing onto few objectives"""
    seeds: Seeds = [0, 1, 2, 3, 4]
    """each target is fitted with each seed; the finished adapter is that of the first"""
    folds: AtLeastZero = 5
    """adapters of the chosen target, each fitted without one fold of the prompts; 0 for none"""
    validation: str | None = None
    """a second copy of the validation figures, such as results/adapter_validation.csv"""

    @model_validator(mode="after")
    def _own_folders(self) -> Self:
        names = [target.name for target in self.targets]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(
                f"got {', '.join(twice)} twice, expected each target once", ["targets"]
            )
        return self
