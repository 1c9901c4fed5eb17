"""What the recipes of all trained policies have in common, and the panel that judges them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pro_core.adapter.model import PreferenceAdapter
from pro_core.data.sources import default_data_dir
from pro_core.data.texts import TextSource
from pro_core.prompting.policy_config import load_tokenizer
from pro_core.rewards.panel import RewardPanel
from pro_core.runs.recipes import ConfigError, RecipeOfArms, folder_name
from pro_core.system.extras import needs
from pro_core.system.processes import process_device
from pro_core.system.settings import Count, Names, Settings
from pro_core.system.storage import first_line

with needs("train"):
    from pydantic import Field, model_validator

LEAST_PROMPT = 32
"""The least number of tokens that a recipe may leave for a prompt."""


class Trained(Settings):
    """Which parameters of a policy are trained."""

    lora: dict[str, Any] | None = {}
    """PEFT settings, by default rank 16 on every linear layer; null trains every parameter"""


class PolicyRecipe(Trained, RecipeOfArms):
    """A recipe of policies: the model, the prompts and the lengths, the same for every method and seed. An arm is a
    method."""

    method: str
    """the method's name in results, for a recipe without arms"""
    policy: str | None = None
    """the folder of a single method and seed, in place of the one under `output`"""
    only: Names | None = None
    """some of the arms: commands side by side, each with its own, share the work"""
    model: str
    """the base model of every policy: a folder or a hub id"""
    data: Annotated[list[TextSource], Field(min_length=1)]
    """files or public sets, of which the train split is used"""
    data_dir: str | None = None
    """where the files of `data` lie; null for the project's own"""
    objectives: Names | None = None
    """some of the judge's objectives; null for all"""
    max_length: Count = 512
    """tokens of prompt and completion; a prompt has what max_new_tokens leaves"""
    max_new_tokens: Count = 128
    rows_per_device: Count | None = None
    """rows computed at once; the rest of a batch is accumulated"""
    gradient_checkpointing: bool = False

    @property
    def max_prompt(self) -> int:
        """Tokens that a prompt may have."""
        return self.max_length - self.max_new_tokens

    @property
    def base(self) -> str:
        """The model that the trained LoRA belongs to; empty where every parameter is trained."""
        return self.model if self.lora is not None else ""

    @property
    def data_folder(self) -> str | Path:
        return self.data_dir or default_data_dir()

    def place(self, seed: int) -> Path:
        """Where a finished policy goes."""
        default = Path(self.output) / folder_name(self.method) / f"seed{seed}"
        return Path(self.policy) if self.policy else default

    def methods(self) -> dict[str, Self]:
        """One recipe per method that is to be trained, by name.

        Raises:
            ConfigError: an invalid arm, two arms that would share a folder, an unknown arm in `only`, or several
                policies for one `policy`.
        """
        if self.arms is None:
            recipes = {self.method: self}
        else:
            shared = self.model_dump(exclude_unset=True, exclude={"only"})
            recipes = self.arm_recipes(type(self), shared, lambda m: {"arms": None, "method": m})
        if unknown := [name for name in self.only or () if name not in recipes]:
            where = self._path or type(self).__name__
            raise ConfigError(
                f"{where}: only: got {unknown[0]!r}, expected some of {list(recipes)}", ["only"]
            )
        recipes = {n: one for n, one in recipes.items() if self.only is None or n in self.only}
        if self.policy and (len(recipes) > 1 or len(self.seeds) > 1):
            where = self._path or type(self).__name__
            raise ConfigError(
                f"{where}: `policy` names one folder: use it with one method and one seed",
                ["policy"],
            )
        return recipes

    def used(self) -> dict[str, Any]:
        """The settings of one method, as its record keeps them."""
        return self.model_dump(exclude={"arms", "seeds", "policy", "only"})

    @model_validator(mode="after")
    def _room(self) -> PolicyRecipe:
        if self.max_prompt < LEAST_PROMPT:
            raise ConfigError(
                f"got max_new_tokens {self.max_new_tokens}, expected at most max_length - {LEAST_PROMPT}",
                ["max_new_tokens"],
            )
        return self


class PanelPolicyRecipe(PolicyRecipe):
    """A recipe whose policies a panel judges."""

    panel: str
    """a folder or YAML file of a RewardPanel"""
    adapter: str | None = None
    """a folder of a PreferenceAdapter, for the weights or goals that it predicts"""


def load_panel(
    recipe: PanelPolicyRecipe,
) -> tuple[RewardPanel, tuple[str, ...], PreferenceAdapter | None]:
    """A recipe's panel, the objectives that it uses, and its adapter (None if it names none).

    Raises:
        ConfigError: objectives that the panel or the adapter does not have.
    """
    panel = RewardPanel.from_pretrained(recipe.panel, process_device())
    names = tuple(recipe.objectives or panel.objective_names)
    check_objectives("panel", recipe.panel, panel.objective_names, names)
    adapter = None
    if recipe.adapter:
        adapter = PreferenceAdapter.from_pretrained(recipe.adapter)
        check_objectives("adapter", recipe.adapter, adapter.objective_names, names)
    return panel, names, adapter


def without_statistics(panel: str) -> ConfigError:
    """The error of a panel whose objectives cannot be summed."""
    return ConfigError(
        f"panel {panel}: it has no statistics, without which objectives cannot be summed: run "
        "train/score_rewards.py with save_panel, and name the panel that it saves",
        ["panel"],
    )


def tokenizer_of(model: str) -> Any:
    """The tokenizer of a model, or a ConfigError that says why it cannot be loaded."""
    try:
        return load_tokenizer(model)
    except Exception as error:  # every loader has exceptions of its own
        raise ConfigError(
            f"cannot load the model {model!r}: {first_line(error)}", ["model"]
        ) from error


def check_objectives(key: str, source: str, has: Sequence[str], wanted: Sequence[str]) -> None:
    """Raise a ConfigError unless ``wanted`` are distinct objectives of ``source``, which the setting ``key`` names."""
    missing = [name for name in wanted if name not in has]
    if missing or len(set(wanted)) < len(wanted):
        raise ConfigError(
            f"{key} {source}: got the objectives {list(wanted)}, expected some of its {list(has)}, each once",
            ["objectives"],
        )
