"""Reward models on disk: sequence classifiers, whole or as what was trained on top of a base model.

A checkpoint that ``save_pretrained`` of transformers wrote loads as it is; of a PEFT adapter (TRL's reward trainer
writes them) the base is loaded first. One of ours has a ``reward_model.json``
that names its base and holds what was trained: all parameters, the upper layers, a LoRA (as PEFT writes it) or
the heads alone. Its pooling is the architecture's own (first or last token) or the mean of the token states, which
is what sentence encoders such as MiniLM were made for.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import load_file
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from pro_core.system.bundled_models import resolve_encoder
from pro_core.system.loading import (
    PEFT_FILE,
    SAFE,
    SAFE_MODEL,
    loading_failure,
    match_tokenizer,
    refuse_pickles,
)
from pro_core.system.storage import (
    StorageError,
    library_versions,
    local_folder,
    quiet_loading,
    read_config,
    write_config,
    write_tensors,
)

FORMAT = "pro-reward-model"
Method = Literal["full", "upper", "lora", "heads"]
Pooling = Literal["own", "mean"]
METHODS: tuple[Method, ...] = get_args(Method)
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
HEADS = ("classifier", "score")
PEFT_PREFIX = "base_model.model."


class MeanPooledClassifier(nn.Module):
    """An encoder, the mean of its token states, and a linear head an output: logits (B, num_labels)."""

    def __init__(self, encoder, num_labels: int):
        super().__init__()
        self.encoder, self.config = encoder, encoder.config
        self.config.num_labels = num_labels
        self.classifier = nn.Linear(encoder.config.hidden_size, num_labels)
        nn.init.normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, attention_mask, **tokens) -> SequenceClassifierOutput:
        states = self.encoder(attention_mask=attention_mask, **tokens).last_hidden_state.float()
        mask = attention_mask[..., None].float()
        mean = (states * mask).sum(1) / mask.sum(1)
        return SequenceClassifierOutput(
            logits=self.classifier(mean.to(self.classifier.weight.dtype))
        )


def new_reward_model(
    base: str,
    num_labels: int,
    method: str = "full",
    upper_layers: int = 3,
    lora: dict[str, Any] | None = None,
    pooling: str = "own",
    trunk_layers: int | None = None,
    seed: int = 0,
):
    """(model, tokenizer) with ``num_labels`` fresh heads, ready to train; dropout is off, as in TRL.

    Args:
        method: ``full``, ``upper`` (the last ``upper_layers`` layers, pooler and heads), ``lora``, or ``heads``
            (pooler and heads).
        lora: PEFT settings, such as ``{"r": 16, "lora_alpha": 32}``.
        pooling: ``own`` (the architecture's) or ``mean``.
        trunk_layers: how many of the base's layers to keep, from the bottom; None for all.

    Raises:
        StorageError: the base cannot be loaded, or has fewer layers. ValueError: another method or pooling.
    """
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )

    if method not in METHODS:
        raise ValueError(f"got the method {method!r}, expected one of {METHODS}")
    if pooling not in POOLINGS:
        raise ValueError(f"got the pooling {pooling!r}, expected one of {POOLINGS}")
    source = resolve_encoder(base)
    torch.manual_seed(seed)
    try:
        config = AutoConfig.from_pretrained(source, num_labels=num_labels, **SAFE)
        for key in vars(config):
            if re.search(r"(dropout|_pdrop)(_prob)?$", key) and getattr(config, key) is not None:
                setattr(config, key, 0.0)
        if trunk_layers is not None:
            if not 0 < trunk_layers <= config.num_hidden_layers:
                raise ValueError(
                    f"got trunk_layers {trunk_layers}, it has {config.num_hidden_layers}"
                )
            config.num_hidden_layers = trunk_layers
        tokenizer = AutoTokenizer.from_pretrained(source, **SAFE)
        kind = AutoModel if pooling == "mean" else AutoModelForSequenceClassification
        with quiet_loading():
            model, found = kind.from_pretrained(
                source,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                **SAFE_MODEL,
            )
        match_tokenizer(model, tokenizer)
    except Exception as error:  # every loader has exceptions of its own
        reason = loading_failure(error, source)
        raise StorageError(f"cannot load the base model {base!r}: {reason}") from error
    # What the base lacks is random (the heads; the pooler of a language model's BERT), so it is trained and saved.
    fresh = [p for name, p in model.named_parameters() if name in found["missing_keys"]]
    if pooling == "mean":
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # its output is not used, so it must not wait for gradients
        model = MeanPooledClassifier(model, num_labels)
    if method == "lora":
        from peft import LoraConfig, get_peft_model

        settings: dict[str, Any] = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
        trunk = _trunk_name(model)
        adapted = get_peft_model(getattr(model, trunk), LoraConfig(**(settings | (lora or {}))))
        setattr(model, trunk, adapted)
    elif method != "full":
        keep = trainable_names(model, upper_layers if method == "upper" else 0)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in keep)
    for parameter in fresh:
        parameter.requires_grad_(True)
    return model, tokenizer


def trainable_names(model: nn.Module, upper_layers: int) -> set[str]:
    """Names of the parameters outside the embeddings and the lower layers."""
    layer = re.compile(r"\b(?:layers?|h|blocks?)\.(\d+)\.")  # GPT-2 and its kin call a layer h
    embedding = re.compile(r"embed|\bw[tp]e\.")
    depth = 1 + max(int(m[1]) for n, _ in model.named_parameters() if (m := layer.search(n)))
    return {
        name
        for name, _ in model.named_parameters()
        if (
            int(m[1]) >= depth - upper_layers
            if (m := layer.search(name))
            else not embedding.search(name)
        )
    }


def save_reward_model(model, folder: str | Path, recipe: dict[str, Any]) -> None:
    """Write what was trained, in bf16, and how to rebuild the rest.

    Args:
        recipe: ``base`` and the settings of :func:`new_reward_model`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    trained = {
        name: parameter.detach().cpu().to(torch.bfloat16).contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    write_tensors(folder / "model.safetensors", trained)
    settings = {"format": FORMAT, **recipe, "versions": library_versions()}
    write_config(folder, "reward_model.json", settings)


def load_reward_model(
    source: str,
    revision: str | None = None,
    device: str | None = None,
    outputs: int | None = None,
):
    """(model, tokenizer) of one of our checkpoints, of transformers' or of PEFT's, in evaluation mode.

    Args:
        outputs: how many a checkpoint of transformers' has, where its config does not say (BART's default is 3).

    Raises:
        StorageError: with the source and the loader's own reason.
    """
    folder = Path(source)
    try:
        if (folder / "reward_model.json").is_file():
            model, tokenizer = _load_ours(folder)
        elif adapter := _peft_folder(source, revision):
            model, tokenizer = _load_peft(adapter, outputs)
        else:
            model, tokenizer = _load_classifier(source, revision, outputs)
    except Exception as error:  # every loader has exceptions of its own
        raise StorageError(
            f"cannot load the reward model {source!r}: {loading_failure(error, source)}"
        ) from error
    if not all(math.isfinite(p.detach().float().sum().item()) for p in model.parameters()):
        raise StorageError(f"the reward model {source!r} holds parameters that are not finite")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(device).eval(), tokenizer


def _load_ours(folder: Path):
    config = read_config(folder, "reward_model.json", FORMAT)
    keys = ("base", "num_labels", "method", "upper_layers", "lora", "pooling")
    settings = {key: config[key] for key in keys}
    model, tokenizer = new_reward_model(**settings, trunk_layers=config.get("trunk_layers"))
    trained = load_file(folder / "model.safetensors")
    missing, unexpected = model.load_state_dict(trained, strict=False)
    wanted = {name for name, p in model.named_parameters() if p.requires_grad}
    if unexpected or wanted & set(missing):
        raise ValueError(f"its tensors do not fit {config['base']} ({(unexpected + missing)[0]})")
    if config["method"] == "lora":
        trunk = _trunk_name(model)
        setattr(model, trunk, getattr(model, trunk).merge_and_unload())
    return model, tokenizer


def _load_classifier(source: str, revision: str | None, outputs: int | None):
    from transformers import AutoTokenizer

    resolved = resolve_encoder(source)
    tokenizer = AutoTokenizer.from_pretrained(resolved, revision=revision, **SAFE)
    model, found = _classifier(resolved, revision, outputs)
    # What is missing would be random numbers, and so would the scores.
    for name, there, expected in found["mismatched_keys"]:
        raise ValueError(
            f"its {name} has the shape {tuple(there)}, expected {tuple(expected)}: give the spec the number of outputs"
        )
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])[0]
        raise ValueError(f"its checkpoint lacks {missing}, so it is no reward model")
    match_tokenizer(model, tokenizer)
    return model, tokenizer


def _classifier(source: str, revision: str | None, outputs: int | None) -> tuple[Any, dict]:
    """A model of transformers', and what its files lack or have in another shape."""
    from transformers import AutoModelForSequenceClassification

    settings: dict[str, Any] = {} if outputs is None else {"num_labels": outputs}
    refuse_pickles(source)  # an adapter's base may be an adapter, which transformers loads too
    with quiet_loading():
        return AutoModelForSequenceClassification.from_pretrained(
            source,
            revision=revision,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # the caller refuses them, in words
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
        return None  # no such file, or no hub: loading the model says which
    return local_folder(source, revision)


def _load_peft(folder: Path, outputs: int | None):
    """The base that an adapter names, with the adapter merged into it, and the adapter's own head."""
    from peft import PeftModel, get_peft_model_state_dict
    from transformers import AutoTokenizer

    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    task, base = config.get("task_type"), config.get("base_model_name_or_path")
    if task != "SEQ_CLS" or not base:
        raise ValueError(
            f"its adapter_config.json has the task {task!r} and the base {base!r}, expected 'SEQ_CLS' and a base's name"
        )
    saved = load_file(folder / PEFT_FILE)  # where it is missing, PEFT itself would take a pickle
    head = re.compile(rf"\b(?:{'|'.join(HEADS)})\.(?:out_proj\.)?weight$")
    rows = [tensor.shape[0] for name, tensor in saved.items() if head.search(name)]
    if not rows:
        raise ValueError(f"its {PEFT_FILE} has no head, so it is no reward model")
    where = str(folder / base) if (folder / base).is_dir() else resolve_encoder(base)
    try:
        model, found = _classifier(where, config.get("revision"), outputs or rows[0])
    except Exception as error:  # every loader has exceptions of its own
        raise ValueError(f"its base {base!r}: {loading_failure(error, where)}") from error
    # What neither has would be random numbers: the head always, and a pooler where the base is a language model.
    lacking = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}
    if lacking := {name for name in lacking if PEFT_PREFIX + name not in saved}:
        raise ValueError(f"neither its {PEFT_FILE} nor its base {base!r} has {min(lacking)}")
    adapted = PeftModel.from_pretrained(model, str(folder), torch_device="cpu")
    if amiss := sorted(set(get_peft_model_state_dict(adapted)) ^ set(saved)):
        raise ValueError(f"its {PEFT_FILE} does not fit {base!r} ({amiss[0]})")
    own = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    tokenizer = AutoTokenizer.from_pretrained(str(folder) if own else where, **SAFE)
    model = adapted.merge_and_unload()
    match_tokenizer(model, tokenizer)
    return model, tokenizer


def _trunk_name(model) -> str:
    """The attribute that holds everything but the heads."""
    return next(name for name, _ in model.named_children() if name not in (*HEADS, "dropout"))
