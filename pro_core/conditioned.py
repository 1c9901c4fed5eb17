"""A checkpoint of a policy that reads a condition: a LoRA or a whole model, and the file that says how to ask it.

``pro_policy.json`` stands beside the model's files: which kind of condition, for which objectives in which order, by
which version of the templates, learned from whose scores, and the base model that a LoRA belongs to.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from pro_core.conditioning import TEMPLATE_VERSION, Condition
from pro_core.objectives import Message, Prompt
from pro_core.packaged import resolve_policy
from pro_core.storage import StorageError, library_versions, read_config, write_config
from pro_core.weights import select_weights

FORMAT, FILE = "pro-policy", "pro_policy.json"
WEIGHTS = "weights"
"""The key of a conversation's last message that tells a soup in which proportions to mix its LoRAs: JSON, no text."""


@dataclass(frozen=True)
class PolicyConfig:
    """What ``pro_policy.json`` holds.

    Attributes:
        condition: what the policy reads beside its prompt.
        base: the model that the LoRA belongs to, a folder or hub id; empty for a whole model.
        panel: the fingerprint of the panel, or of MOSLIM's classifier, whose scores it learned from.
        training: how it was made, for people.
        ranks: of a soup whose LoRAs are mixed as it writes, each objective with the rank of its LoRA, in order.
    """

    condition: Condition
    base: str = ""
    panel: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)

    @property
    def reads(self) -> str | None:
        """Which form the weights in force reach it in: the condition's kind, ``mixture`` for a soup mixed by them."""
        return "mixture" if self.ranks else self.condition.kind if self.condition else None

    def save(self, folder: str | Path) -> None:
        content = {
            "format": FORMAT,
            "template_version": TEMPLATE_VERSION,
            "condition": self.condition.to_dict(),
            "base": self.base,
            "panel": self.panel,
            "training": self.training,
            "versions": library_versions(),
        } | ({"ranks": self.ranks} if self.ranks else {})
        write_config(folder, FILE, content)

    @classmethod
    def read(cls, source: str | Path) -> PolicyConfig | None:
        """The config of a folder or hub id; None where there is none, as beside a stock model.

        Raises:
            StorageError: a truncated file, or one of another version.
        """
        folder = _folder_of(source)
        if folder is None or not (folder / FILE).is_file():
            return None
        found = read_config(folder, FILE, FORMAT)
        if found.get("template_version") != TEMPLATE_VERSION:
            raise StorageError(
                f"{folder}/{FILE}: got template_version {found.get('template_version')}, this code writes prompts of "
                f"version {TEMPLATE_VERSION}: train the policy again, or use the code that it was trained with"
            )
        try:
            condition = Condition.from_dict(found["condition"])
            made, ranks = found.get("training", {}), found.get("ranks", {})
            return cls(condition, found["base"], found["panel"], made, ranks)
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(f"{folder}/{FILE}: {error}") from None

    def messages(
        self, prompt: Prompt, weights: ArrayLike, objective_names: Sequence[str]
    ) -> list[Message]:
        """What the policy reads under weights (K,) of the objectives: see :meth:`Condition.messages`.

        Raises:
            ValueError: as :meth:`check_objectives`; an empty prompt.
        """
        self.check_objectives(objective_names)
        found = self.condition.messages(prompt, weights, objective_names)
        if not self.ranks:
            return found
        mixed = select_weights(weights, objective_names, tuple(self.ranks))
        return [*found[:-1], found[-1] | {WEIGHTS: json.dumps(mixed.tolist())}]

    def check_objectives(self, objective_names: Sequence[str]) -> None:
        """Raise a ValueError unless a panel with these objectives has all of the policy's."""
        missing = [name for name in self.condition.objective_names if name not in objective_names]
        if missing and self.reads:
            raise ValueError(
                f"the policy was trained for {list(self.condition.objective_names)}, this panel has "
                f"{list(objective_names)}: use the policy and the panel that belong together (PRO_POLICY, PRO_PANEL)"
            )


def check_replaceable(folder: Path) -> None:
    """Raise a StorageError unless a policy may be put there: what is replaced is a policy, or nothing."""
    empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not empty and not (folder / FILE).is_file():
        raise StorageError(
            f"{folder}: something else than a policy is there, and would be deleted: name another folder"
        )


def _folder_of(source: str | Path) -> Path | None:
    """A local folder as it is; of a hub id the cached folder with its config, if it has one."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(str(source), FILE)).parent
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError):
        return None  # no such file, or no hub: loading the model says which


def load_language_model(source: str | Path, trainable: bool = False, **settings: Any):
    """(model, tokenizer, config): a stock model, a whole policy, or a base with a policy's LoRA on it.

    The LoRA is not merged: a small step of the parameters would be lost where they are rounded to bf16.

    Args:
        source: a folder or hub id. ``trainable``: the LoRA will be trained further.
        settings: for ``from_pretrained``, such as ``dtype``.

    Raises:
        StorageError: a broken ``pro_policy.json``, or a LoRA without its base. What the loaders raise.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    where = resolve_policy(source)
    config = PolicyConfig.read(where)
    base = resolve_policy(config.base) if config and config.base else where
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model: Any = AutoModelForCausalLM.from_pretrained(base, **settings)
    own = model.generation_config
    # How to sample is the caller's to say. What some models add (a repetition penalty) would take texts from another
    # distribution than the one that is trained and measured.
    model.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id
    )
    model.get_output_embeddings().register_forward_pre_hook(_contiguous)
    if base != where:
        from peft import PeftModel

        # A LoRA that is trained is kept in fp32 where PEFT thinks best; for writing, in its model's precision.
        model = PeftModel.from_pretrained(
            model, where, is_trainable=trainable, autocast_adapter_dtype=trainable
        )
    return model, tokenizer, config


def _contiguous(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """For the head: of the last token's states, a slice, a CPU's product would copy all of the weights for each row."""
    return (inputs[0].contiguous(), *inputs[1:])
