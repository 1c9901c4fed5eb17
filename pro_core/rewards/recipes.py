"""Recipes of reward models: a panel, an ablation of panels, MOSLIM's classifiers, and the scoring of a data set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pro_core.data.entries import PairSource, RatedSource
from pro_core.data.objectives import check_objective_names
from pro_core.data.texts import TextSource
from pro_core.rewards.formats import check_format
from pro_core.rewards.levels import IntensityScale, Loss, level_columns
from pro_core.rewards.models import Method, Pooling
from pro_core.runs.recipes import ConfigError, Recipe, RecipeOfArms, folder_name
from pro_core.system.extras import needs
from pro_core.system.settings import AtLeastZero, Count, Names, Positive, Seeds, Settings

with needs("train"):
    from pydantic import Field, model_validator

Number = int | float
"""A number as it was written: 1 and 1.0 give a finished folder different keys."""


class RewardModelRecipe(Recipe):
    """What recipes of panels and of classifiers share: the base model, how it is trained, and on what it is graded."""

    model: str
    """the base model: a folder or a hub id"""
    output: str
    """the folder for all that the run makes"""
    licence: str | None = None
    """the licence of what is trained, for its model card"""
    method: Method = "full"
    """which parameters are trained: all, the upper layers, a LoRA, or the heads alone"""
    upper_layers: Count = 3
    """how many of the last layers the method `upper` trains"""
    lora: dict[str, Any] | None = None
    """PEFT settings of the method `lora`; null for rank 16 on every linear layer"""
    pooling: Pooling = "own"
    """`mean` for sentence encoders"""
    batch_size: Count = 32
    """rows per optimizer step"""
    learning_rate: Positive = 1e-4
    max_length: Count = 256
    """tokens of prompt and completion together"""
    input_format: str = "pair"
    """`chat` for causal models; or a template, see pro_core.rewards.formats"""
    grade_on: Literal["validation", "test"] = "test"
    """the split of the accuracies; `validation` while settings are being chosen"""
    checkpoint_every: Count = 100
    """optimizer steps between checkpoints"""
    data_dir: str | None = None
    """where the files of `data` lie; null for the project's own"""

    @model_validator(mode="after")
    def _format(self) -> Self:
        try:
            check_format(self.input_format)
        except ValueError as error:
            raise ConfigError(str(error), ["input_format"]) from None
        return self


class PanelSettings(RewardModelRecipe):
    """What recipes of one panel and of an ablation share: what a panel learns, from what and how."""

    objectives: Names
    """names, in the order of every K axis"""
    data: Annotated[list[PairSource], Field(min_length=1)]
    """where the preference pairs come from"""
    shared_trunk: bool = True
    """one model with a head for each objective; false for one model per objective, as in the papers"""
    trunk_layers: Count | None = None
    """how many of the base model's layers to keep, from the bottom; null for all"""
    remove_length: bool = False
    """take the length component out of standardized scores"""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """the share of labels thought wrong: no pair is then pushed apart for ever"""
    members: Count = 1
    """heads per objective, each trained on its own bootstrap of the prompts: their mean is the reward, their
    disagreement its uncertainty"""
    ngrams: bool = False
    """a linear model on character n-grams as one more member of each objective"""

    @model_validator(mode="after")
    def _names(self) -> Self:
        _check_names(self.objectives)
        return self


class PanelRecipe(PanelSettings):
    """A reward panel: one reward for each objective, learned from preference pairs."""

    out_of_distribution: list[PairSource] = []
    """pairs of other sets, on which `train/evaluate.py out_of_distribution` grades the finished panel; they train
    nothing"""
    shipped: str | None = None
    """a copy of the finished panel, which train/evaluate.py grades in its place, so that nothing need be trained"""
    panel: str | None = None
    """where the finished panel goes; null for <output>/panel"""
    seed: int = 0
    folds: AtLeastZero = 5
    """folds of the prompts, each scored by a panel that was trained on the others; 0 for no such scores"""

    @model_validator(mode="after")
    def _only_graded(self) -> Self:
        for i, source in enumerate(self.out_of_distribution):
            if of_training := sorted({"splits", "epochs"} & source.model_fields_set):
                raise ConfigError(
                    f"got {', '.join(of_training)} for a set that trains nothing, expected neither; "
                    "`--split` of train/evaluate.py says which split is graded",
                    [f"out_of_distribution.{i}.{name}" for name in of_training],
                )
        return self


class AblationRecipe(PanelSettings, RecipeOfArms):
    """Panels that differ in a few settings each, under several seeds. The first arm is what the others are compared
    to."""

    varies: ClassVar[type[Settings]] = PanelSettings
    arms: Annotated[dict[str, dict[str, Any] | None], Field(min_length=1)]
    """{name in results: {setting: value}}; dots lead into a setting, as on the command line"""
    results: str
    """the file of rows; finished arms are not graded again"""

    def methods(self) -> dict[str, PanelRecipe]:
        """One recipe per arm, by name; without folds, since no adapter learns from these panels."""
        shared = self.model_dump(exclude_unset=True, exclude={"seeds", "arms", "results"})
        folder = Path(self.output)
        return self.arm_recipes(
            PanelRecipe,
            shared,
            lambda arm: {"folds": 0, "output": str(folder / folder_name(arm))},
        )

    def panels(self) -> Iterator[tuple[str, int, PanelRecipe]]:
        """(arm, seed, recipe) of every panel: all arms of a seed before the next seed."""
        arms = self.methods()
        for seed in self.seeds:
            for arm, panel in arms.items():
                output = str(Path(panel.output) / f"seed{seed}")
                yield arm, seed, panel.model_copy(update={"seed": seed, "output": output})


class Levels(Settings):
    """The ratings of an objective, and where its levels begin."""

    range: Annotated[list[Number], Field(min_length=2, max_length=2)]
    """[lowest, highest] rating"""
    thresholds: list[Number]
    """the ratings, ascending, at which level 2, 3, ... begins; [] for one level"""


class ClassifierRecipe(RewardModelRecipe):
    """MOSLIM's reward classifiers: one head per objective over its intensity levels, learned from rated responses."""

    objectives: Annotated[dict[str, Levels], Field(min_length=1)]
    """{name: its ratings and levels}, in the order of every K axis"""
    data: Annotated[list[RatedSource], Field(min_length=1)]
    """where the rated responses come from"""
    losses: Annotated[list[Loss], Field(min_length=1)] = ["joint"]
    """one classifier for each: a softmax over all levels of all heads (Eq 10), or over each head's own (Eq 7)"""
    seeds: Seeds = [0]
    """one classifier for each"""
    accumulation: Count = 1
    """forward passes per optimizer step, which share its rows"""
    fast_heads: bool = True
    """the fresh heads learn at ten times the rate"""
    warmup_steps: AtLeastZero | None = None
    """null for 6% of the steps"""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    activation_checkpointing: bool = False
    """less memory, a third more time"""

    @property
    def scales(self) -> tuple[IntensityScale, ...]:
        """The objectives with their levels, in the order of every K axis."""
        return tuple(
            IntensityScale(
                name, float(o.range[0]), float(o.range[1]), tuple(map(float, o.thresholds))
            )
            for name, o in self.objectives.items()
        )

    @model_validator(mode="after")
    def _levels_to_learn(self) -> Self:
        _check_names(self.objectives)
        try:
            scales = self.scales
        except ValueError as error:
            raise ConfigError(str(error), ["objectives"]) from None
        single = [scale.name for scale in scales if scale.levels == 1]
        if "per_head" in self.losses and single:
            raise ConfigError(
                f"per_head cannot teach {single}: a softmax over one level is always 1; use joint, or give it "
                "thresholds",
                ["losses"],
            )
        if len(level_columns(scales)) < 2:
            raise ConfigError(
                f"{single} is one level in all, so there is nothing to learn", ["objectives"]
            )
        return self

    @model_validator(mode="after")
    def _labels_of_objectives(self) -> Self:
        for i, source in enumerate(self.data):
            if unknown := sorted(set(source.labels) - set(self.objectives)):
                raise ConfigError(
                    f"got the objectives {unknown}, expected some of {list(self.objectives)}",
                    [f"data.{i}.labels"],
                )
        return self


class ScoreRecipe(Recipe):
    """The raw rewards of every response of a data set, by a panel."""

    panel: str
    """a folder, a YAML file of specs, or a hub id"""
    data: Annotated[list[TextSource], Field(min_length=1)]
    """where the responses come from"""
    output: str
    """the folder of the Parquet shards"""
    data_dir: str | None = None
    """where the files of `data` lie; null for the project's own"""
    shard_size: Count = 1000
    """responses per file; a kill loses one file's scores at most"""
    save_panel: str | None = None
    """a folder for the panel with statistics of the train split of these rewards; null for none"""
    remove_length: bool = False
    """take the length component out of these statistics' standardized scores"""
    pair_table: bool = False
    """write <output>/scores.parquet too: the pairs of the entries with a `kind`, which train/adapter.py learns from"""
    folds: Count = 5
    """folds of the training prompts in that table; the panel is assumed to have been trained on none of them"""

    @model_validator(mode="after")
    def _pairs_to_write(self) -> Self:
        if self.pair_table and all(source.kind is None for source in self.data):
            raise ConfigError(
                "pair_table needs pairs: give an entry of data a kind, such as `kind: pairs`",
                ["pair_table", "data"],
            )
        return self


def _check_names(objectives: Any) -> None:
    try:
        check_objective_names(objectives)
    except ValueError as error:
        raise ConfigError(str(error), ["objectives"]) from None
