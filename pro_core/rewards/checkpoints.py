"""Loading of reward models: our own checkpoints, those of transformers' ``save_pretrained``, and PEFT adapters.

For a PEFT adapter, as TRL's reward trainer writes it, the base model is loaded first and the adapter merged into it. A
checkpoint without a head is not a reward model and is refused: its scores would be random numbers.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from pro_core.rewards.models import FORMAT, HEADS, new_reward_model, trunk_name
from pro_core.rewards.ngrams import FORMAT as NGRAMS
from pro_core.rewards.ngrams import NGrams
from pro_core.system.bundled_models import resolve_encoder
from pro_core.system.loading import (
    PEFT_FILE,
    SAFE,
    SAFE_MODEL,
    loading_failure,
    match_tokenizer,
    refuse_pickles,
)
from pro_core.system.storage import StorageError, local_folder, quiet_loading, read_config

PEFT_PREFIX = "base_model.model."


def load_reward_model(
    source: str,
    revision: str | None = None,
    device: str | None = None,
    outputs: int | None = None,
):
    """(model, tokenizer) of one of our checkpoints, of transformers' or of PEFT's, in evaluation mode.

    An n-gram model has no tokenizer, and None stands for it.

    Args:
        outputs: the number of outputs of a transformers checkpoint whose config does not say (BART's default is 3).

    Raises:
        StorageError: with the source and the loader's own reason.
    """
    folder = Path(source)
    try:
        if (folder / "reward_model.json").is_file():
            config = read_config(folder, "reward_model.json", FORMAT, NGRAMS)
            if config["format"] == NGRAMS:
                return NGrams.load(folder), None
            model, tokenizer = _load_ours(folder, config)
        elif adapter := _peft_folder(source, revision):
            model, tokenizer = _load_peft(adapter, outputs)
        else:
            model, tokenizer = _load_classifier(source, revision, outputs)
    except Exception as error:  # every loader raises its own exceptions
        raise StorageError(
            f"cannot load the reward model {source!r}: {loading_failure(error, source)}"
        ) from error
    if not all(math.isfinite(p.detach().float().sum().item()) for p in model.parameters()):
        raise StorageError(f"the reward model {source!r} holds parameters that are not finite")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(device).eval(), tokenizer


def _load_ours(folder: Path, config: dict[str, Any]):
    keys = ("base", "num_labels", "method", "upper_layers", "lora", "pooling")
    settings = {key: config[key] for key in keys}
    model, tokenizer = new_reward_model(**settings, trunk_layers=config.get("trunk_layers"))
    trained = load_file(folder / "model.safetensors")
    missing, unexpected = model.load_state_dict(trained, strict=False)
    wanted = {name for name, p in model.named_parameters() if p.requires_grad}
    if unexpected or wanted & set(missing):
        raise ValueError(f"its tensors do not fit {config['base']} ({(unexpected + missing)[0]})")
    if config["method"] == "lora":
        trunk = trunk_name(model)
        setattr(model, trunk, getattr(model, trunk).merge_and_unload())
    return model, tokenizer


def _load_classifier(source: str, revision: str | None, outputs: int | None):
    from transformers import AutoTokenizer

    resolved = resolve_encoder(source)
    tokenizer = AutoTokenizer.from_pretrained(resolved, revision=revision, **SAFE)
    model, loading = _classifier(resolved, revision, outputs)
    # Missing parameters would be random numbers, and so would the scores.
    for name, actual, expected in loading["mismatched_keys"]:
        raise ValueError(
            f"its {name} has the shape {tuple(actual)}, expected {tuple(expected)}: set `outputs` in its spec"
        )
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])[0]
        raise ValueError(f"its checkpoint lacks {missing}, so it is not a reward model")
    match_tokenizer(model, tokenizer)
    return model, tokenizer


def _classifier(source: str, revision: str | None, outputs: int | None) -> tuple[Any, dict]:
    """A transformers model, and what its files lack or have in another shape."""
    from transformers import AutoModelForSequenceClassification

    settings: dict[str, Any] = {} if outputs is None else {"num_labels": outputs}
    refuse_pickles(source)  # an adapter's base may be an adapter, which transformers loads too
    with quiet_loading():
        return AutoModelForSequenceClassification.from_pretrained(
            source,
            revision=revision,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # the caller refuses them with a message
            output_loading_info=True,
            **settings,
            **SAFE_MODEL,
        )


# ---------------------------------------------------------------- what PEFT saved


def _peft_folder(source: str, revision: str | None) -> Path | None:
    """The folder of a PEFT adapter; None for any other model."""
    name = "adapter_config.json"
    resolved = resolve_encoder(source)
    if Path(resolved).is_dir():
        return Path(resolved) if Path(resolved, name).is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    try:
        hf_hub_download(source, name, revision=revision)
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError):
        return None  # no such file, or no hub: loading the model will tell
    return local_folder(source, revision)


def _load_peft(folder: Path, outputs: int | None):
    """The base model with the adapter merged into it, and the adapter's own head."""
    from peft import PeftModel, get_peft_model_state_dict
    from transformers import AutoTokenizer

    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    task, base = config.get("task_type"), config.get("base_model_name_or_path")
    if task != "SEQ_CLS" or not base:
        raise ValueError(
            f"its adapter_config.json has the task {task!r} and the base {base!r}, expected 'SEQ_CLS' and a base's name"
        )
    saved = load_file(folder / PEFT_FILE)  # if it is missing, PEFT would load a pickle
    head = re.compile(rf"\b(?:{'|'.join(HEADS)})\.(?:out_proj\.)?weight$")
    rows = [tensor.shape[0] for name, tensor in saved.items() if head.search(name)]
    if not rows:
        raise ValueError(f"its {PEFT_FILE} has no head, so it is not a reward model")
    where = str(folder / base) if (folder / base).is_dir() else resolve_encoder(base)
    try:
        model, loading = _classifier(where, config.get("revision"), outputs or rows[0])
    except Exception as error:  # every loader raises its own exceptions
        raise ValueError(f"its base {base!r}: {loading_failure(error, where)}") from error
    # What neither has would be random: always the head, and the pooler if the base model is a language model.
    lacking = {*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])}
    if lacking := {name for name in lacking if PEFT_PREFIX + name not in saved}:
        raise ValueError(f"neither its {PEFT_FILE} nor its base {base!r} has {min(lacking)}")
    adapted = PeftModel.from_pretrained(model, str(folder), torch_device="cpu")
    if amiss := sorted(set(get_peft_model_state_dict(adapted)) ^ set(saved)):
        raise ValueError(f"its {PEFT_FILE} does not fit {base!r} ({amiss[0]})")
    has_tokenizer = any(
        (folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")
    )
    tokenizer = AutoTokenizer.from_pretrained(str(folder) if has_tokenizer else where, **SAFE)
    model = adapted.merge_and_unload()
    match_tokenizer(model, tokenizer)
    return model, tokenizer
