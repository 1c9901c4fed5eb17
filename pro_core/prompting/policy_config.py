"""A checkpoint of a policy that reads a condition: a LoRA or a whole model, and the file that says how to ask it.

``pro_policy.json`` lies beside the model's files. It names the kind of condition, the objectives in their order, the
version of the templates, the panel whose scores the policy learned from, and a LoRA's base model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pro_core.data.turns import turn_end
from pro_core.prompting.templates import TEMPLATE_VERSION, Condition
from pro_core.system.bundled_models import resolve_policy
from pro_core.system.loading import SAFE, SAFE_MODEL, refuse_pickles
from pro_core.system.storage import (
    StorageError,
    is_hub_id,
    library_versions,
    local_folder,
    read_config,
    write_config,
)
from pro_core.weights import as_weights

FORMAT, FILE = "pro-policy", "pro_policy.json"


@dataclass(frozen=True)
class PolicyConfig:
    """What ``pro_policy.json`` holds.

    Attributes:
        condition: what the policy reads beside its prompt.
        base: the model that the LoRA belongs to, a folder or hub id; empty for a whole model.
        panel: the fingerprint of the panel, or of MOSLIM's classifier, whose scores it learned from.
        training: how it was made, for people.
        ranks: for a soup that is mixed as it writes, {objective: rank of its LoRA}, in order.
        mixtures: for a soup that a server holds as fixed mixtures, {name at the server: weights (K,)}.
    """

    condition: Condition
    base: str = ""
    panel: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    mixtures: dict[str, list[float]] = field(default_factory=dict)

    @property
    def reads(self) -> str | None:
        """How weights reach the policy: the condition's kind, ``mixture`` for a soup; None if it reads none."""
        if self.ranks or self.mixtures:
            return "mixture"
        return self.condition.kind if self.condition else None

    def save(self, folder: str | Path) -> None:
        content = {
            "format": FORMAT,
            "template_version": TEMPLATE_VERSION,
            "condition": self.condition.to_dict(),
            "base": self.base,
            "panel": self.panel,
            "training": self.training,
            "versions": library_versions(),
        }
        content |= {"ranks": self.ranks} if self.ranks else {}
        content |= {"mixtures": self.mixtures} if self.mixtures else {}
        write_config(folder, FILE, content)

    @classmethod
    def read(cls, source: str | Path) -> PolicyConfig | None:
        """The config of a folder or hub id; None if it has none, like a stock model.

        Raises:
            StorageError: a truncated file, or one of another version.
        """
        file = _file_of(source, FILE)
        if file is None:
            return None
        folder = file.parent
        content = read_config(folder, FILE, FORMAT)
        if content.get("template_version") != TEMPLATE_VERSION:
            raise StorageError(
                f"{folder}/{FILE}: got template_version {content.get('template_version')}, this code writes prompts of "
                f"version {TEMPLATE_VERSION}: train the policy again, or use the code that it was trained with"
            )
        try:
            condition = Condition.from_dict(content["condition"])
            training, ranks = content.get("training", {}), content.get("ranks", {})
            mixtures = content.get("mixtures", {})
            if ranks and tuple(ranks) != tuple(condition.objective_names):
                raise ValueError(
                    f"got ranks of {list(ranks)}, expected {list(condition.objective_names)}, in this order"
                )
            for weights in mixtures.values():
                as_weights(weights, condition.objective_names)
            return cls(condition, content["base"], content["panel"], training, ranks, mixtures)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StorageError(f"{folder}/{FILE}: {error}") from None

    def check_objectives(self, objective_names: Sequence[str]) -> None:
        """Raise a ValueError unless a panel with these objectives has all of the policy's."""
        missing = [name for name in self.condition.objective_names if name not in objective_names]
        if missing and self.reads:
            raise ValueError(
                f"the policy was trained for {list(self.condition.objective_names)}, this panel has "
                f"{list(objective_names)}: use the policy and the panel that belong together (PRO_POLICY, PRO_PANEL)"
            )


def check_replaceable(folder: Path) -> None:
    """Raise a StorageError if ``folder`` holds anything but a policy, which a new policy may replace."""
    empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not empty and not (folder / FILE).is_file():
        raise StorageError(
            f"{folder}: something else than a policy is there, and would be deleted: name another folder"
        )


def _file_of(source: str | Path, name: str) -> Path | None:
    """A file of a local folder, or of a hub id in the hub's cache; None if it does not exist."""
    if Path(source).is_dir():
        file = Path(source, name)
        return file if file.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(str(source), name))
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError):
        return None  # no such file, or no hub: loading the model says which


def _existing(source: str | Path) -> str:
    """Where a model or policy is loaded from. Raises StorageError for a path that does not exist."""
    where = resolve_policy(source)
    if not Path(where).is_dir() and not is_hub_id(where):
        raise StorageError(f"{where}: no such folder")
    return where


def _base_of(where: str, config: PolicyConfig | None) -> tuple[str, str | None]:
    """A LoRA's base model and its revision, by our config or else by PEFT's; a whole model is its own base.

    Raises:
        StorageError: a LoRA that does not write text, or whose base model is missing.
    """
    if config and config.base:
        return resolve_policy(config.base), None
    file = _file_of(where, "adapter_config.json")
    if file is None:
        return where, None
    try:
        lora = json.loads(file.read_text(encoding="utf-8"))
        base, kind = lora.get("base_model_name_or_path"), lora.get("task_type")
    except (ValueError, AttributeError) as error:
        raise StorageError(f"{file}: not a PEFT config ({error})") from None
    if kind not in (None, "CAUSAL_LM"):
        raise StorageError(f"{file}: got a LoRA of the task {kind}, expected CAUSAL_LM")
    named = isinstance(base, str) and base
    if not named or (Path(base).is_absolute() and not Path(base).is_dir()):
        raise StorageError(
            f"{file}: the LoRA belongs to the model {base!r}, which is missing: set base_model_name_or_path to its "
            "folder or hub id"
        )
    return resolve_policy(base), lora.get("revision")


def load_tokenizer(source: str | Path) -> Any:
    """The tokenizer of a model or policy, padding on the left: a LoRA's own, else its base model's.

    Without an end-of-text token, it takes its chat template's end of turn; without a padding token, its end of text.

    Raises:
        StorageError: as :func:`load_language_model`. Whatever the loaders raise.
    """
    where = _existing(source)
    return _tokenizer(where, *_base_of(where, PolicyConfig.read(where)))


def _tokenizer(where: str, base: str, revision: str | None) -> Any:
    from transformers import AutoTokenizer

    if base != where and _file_of(where, "tokenizer_config.json"):
        base, revision = where, None
    tokenizer = AutoTokenizer.from_pretrained(base, revision=revision, padding_side="left", **SAFE)
    if tokenizer.eos_token is None:
        tokenizer.eos_token = turn_end(tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_language_model(source: str | Path, trainable: bool = False, **settings: Any):
    """(model, tokenizer, config) of a stock model, a whole policy, or a base model with a policy's or PEFT's LoRA.

    The LoRA is not merged: a small step of the parameters would be lost where they are rounded to bf16. An answer ends
    with any of the model's ``generation_config.eos_token_id``: its own, the tokenizer's, and the chat template's end of
    turn (:func:`pro_core.data.turns.turn_end`).

    Args:
        source: a folder or hub id. ``trainable``: the LoRA will be trained further.
        settings: for ``from_pretrained``, such as ``dtype``.

    Raises:
        StorageError: a broken ``pro_policy.json``, a LoRA without its base model, or a model whose answers have no
            end. Whatever the loaders raise.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    where = _existing(source)
    config = PolicyConfig.read(where)
    if config and config.mixtures:
        raise StorageError(
            f"{source}: a lattice of {len(config.mixtures)} mixtures for a server (PRO_ENDPOINT_URL): in this process, "
            "load the soup that is mixed as it writes, or one of the lattice's folders"
        )
    base, revision = _base_of(where, config)
    tokenizer = _tokenizer(where, base, revision)
    refuse_pickles(base)
    model: Any = AutoModelForCausalLM.from_pretrained(
        base, revision=revision, **settings, **SAFE_MODEL
    )
    defaults = model.generation_config
    ends = _ends(defaults.eos_token_id, tokenizer)
    if not ends:
        raise StorageError(
            f"{source}: neither the model nor its tokenizer names a token that ends an answer, and its chat template "
            "has none: add eos_token to tokenizer_config.json"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ends[0])
    # The caller says how to sample. What some models add (a repetition penalty) would change the distribution that is
    # trained and measured.
    model.generation_config = GenerationConfig(
        bos_token_id=defaults.bos_token_id,
        eos_token_id=ends[0] if len(ends) == 1 else ends,
        pad_token_id=defaults.pad_token_id,
    )
    model.get_output_embeddings().register_forward_pre_hook(_contiguous)
    if base != where:
        from peft import PeftModel

        adapter = local_folder(where)
        refuse_pickles(adapter)
        # In training, PEFT decides which parts of a LoRA are in fp32; for writing, it has its model's precision.
        model = PeftModel.from_pretrained(
            model, str(adapter), is_trainable=trainable, autocast_adapter_dtype=trainable
        )
    return model, tokenizer, config


def _ends(own: int | list[int] | None, tokenizer: Any) -> list[int]:
    """The tokens that end an answer: the model's own, then the tokenizer's and its chat template's."""
    ends = list(own) if isinstance(own, list) else [own]
    end = turn_end(tokenizer)
    ends += [tokenizer.eos_token_id, None if end is None else tokenizer.convert_tokens_to_ids(end)]
    return list(dict.fromkeys(token for token in ends if token is not None))


def _contiguous(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Make the head's input contiguous: from a slice of states, a CPU's product would copy all weights for each row."""
    return (inputs[0].contiguous(), *inputs[1:])
