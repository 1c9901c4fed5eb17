"""What the arms of a recipe start from, and are compared to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pro_core.policies.preference.recipe import PreferenceRecipe
from pro_core.policies.recipe import tokenizer_of
from pro_core.prompting.policy_config import PolicyConfig
from pro_core.runs.recipes import ConfigError
from pro_core.system.artefacts import Artefact
from pro_core.system.fingerprints import fingerprint


def check_start(recipe: PreferenceRecipe) -> None:
    """Raise a ConfigError unless the arms of a recipe can start from its `start` and be compared to it."""
    start, fields = str(recipe.start), ["start", "model"]
    if start == recipe.model:
        return
    config = PolicyConfig.read(start)
    if config is not None and config.reads:
        raise ConfigError(
            f"start {start}: it reads {config.reads} in its prompt, which preference pairs do not have: name a policy "
            "that reads the prompt alone",
            ["start"],
        )
    if Path(start, "adapter_config.json").is_file() != (recipe.lora is not None):
        raise ConfigError(
            f"start {start}: expected a LoRA where `lora` has settings, and a whole model where it is null",
            ["start", "lora"],
        )
    own, other = tokenizer_of(start), tokenizer_of(recipe.model)
    if own.get_vocab() != other.get_vocab() or own.chat_template != other.chat_template:
        raise ConfigError(
            f"start {start}: its tokenizer or chat template is not that of {recipe.model}, so the two give a text "
            "different tokens and cannot be compared",
            fields,
        )
    if config is not None and config.base and fingerprint(config.base) != fingerprint(recipe.model):
        raise ConfigError(
            f"start {start}: its LoRA belongs to {config.base}, expected {recipe.model}", fields
        )


@dataclass(frozen=True)
class Start:
    """What all arms of a seed start from: a hash, the policy's folder (None: the model itself), and how it was made."""

    key: str
    checkpoint: Path | None
    stages: list[Artefact]
