"""Reward models that we train: a base model with fresh heads. Only what was trained is saved.

A checkpoint has a ``reward_model.json`` that names its base and says what was trained: all parameters, the upper
layers, a LoRA (as PEFT writes it) or the heads alone. Its pooling is the architecture's own (first or last token) or
the mean of the token states, for which sentence encoders such as MiniLM were made.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from pro_core.system.bundled_models import resolve_encoder
from pro_core.system.loading import (
    SAFE,
    SAFE_MODEL,
    loading_failure,
    match_tokenizer,
)
from pro_core.system.storage import (
    StorageError,
    library_versions,
    quiet_loading,
    write_config,
    write_tensors,
)

FORMAT = "pro-reward-model"
Method = Literal["full", "upper", "lora", "heads"]
Pooling = Literal["own", "mean"]
METHODS: tuple[Method, ...] = get_args(Method)
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
HEADS = ("classifier", "score")


class MeanPooledClassifier(nn.Module):
    """An encoder, the mean of its token states, and one linear head per output: logits (B, num_labels)."""

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
    attention: str | None = None,
):
    """(model, tokenizer) with ``num_labels`` fresh heads, ready to train; dropout is off, as in TRL.

    Args:
        method: ``full``, ``upper`` (the last ``upper_layers`` layers, pooler and heads), ``lora``, or ``heads``
            (pooler and heads).
        lora: PEFT settings, such as ``{"r": 16, "lora_alpha": 32}``.
        pooling: ``own`` (the architecture's) or ``mean``.
        trunk_layers: how many of the base model's layers to keep, from the bottom; None for all.
        attention: transformers' ``attn_implementation``; None for its own choice.

    Raises:
        StorageError: the base model cannot be loaded, or has fewer layers. ValueError: another method or pooling.
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
            model, loading = kind.from_pretrained(
                source,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                attn_implementation=attention,
                **SAFE_MODEL,
            )
        match_tokenizer(model, tokenizer)
    except Exception as error:  # every loader raises its own exceptions
        reason = loading_failure(error, source)
        raise StorageError(f"cannot load the base model {base!r}: {reason}") from error
    # What the base model lacks (the heads, the pooler of a language model's BERT) is random: it is trained and saved.
    fresh = [p for name, p in model.named_parameters() if name in loading["missing_keys"]]
    if pooling == "mean":
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # its output is not used, so it must not wait for gradients
        model = MeanPooledClassifier(model, num_labels)
    if method == "lora":
        from peft import LoraConfig, get_peft_model

        settings: dict[str, Any] = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
        trunk = trunk_name(model)
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
    layer = re.compile(
        r"\b(?:layers?|h|blocks?)\.(\d+)\."
    )  # GPT-2 and its relatives call a layer h
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


def save_reward_model(
    model, folder: str | Path, recipe: dict[str, Any], state: dict[str, Any] | None = None
) -> None:
    """Write what was trained, in bf16, and how to rebuild the rest.

    Args:
        recipe: ``base`` and the settings of :func:`new_reward_model`.
        state: the parameters, where the model holds only a share of them.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    trained = {
        name: (state[name] if state else parameter).detach().cpu().to(torch.bfloat16).contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    write_tensors(folder / "model.safetensors", trained)
    settings = {"format": FORMAT, **recipe, "versions": library_versions()}
    write_config(folder, "reward_model.json", settings)


def trunk_name(model) -> str:
    """The name of the attribute that holds everything but the heads."""
    return next(name for name, _ in model.named_children() if name not in (*HEADS, "dropout"))
