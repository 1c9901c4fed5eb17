"""Rewarded Soups: policies of single objectives, averaged in the space of their parameters (arXiv 2306.04488).

A LoRA adds s B A to a parameter. The average of K of them, sum_k w_k s_k B_k A_k, is exactly one LoRA whose rank is
the sum of theirs: the A's one below the other, the B's, each times w_k s_k, side by side. (PEFT's ``linear`` averages A
and B apart and multiplies the averages, which is something else.) Left unweighted and mixed as it writes, it takes any
weights, also an adapter's for each prompt: see :mod:`pro_core.generation.mixing`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import ArrayLike
from safetensors.torch import load_file, save_file

from pro_core.conditioned import PolicyConfig, check_replaceable
from pro_core.conditioning import Condition
from pro_core.storage import StorageError
from pro_core.weights import as_weights

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
SPECIAL = (
    *("bias", "use_dora", "lora_bias", "modules_to_save", "fan_in_fan_out", "target_parameters"),
    *("alora_invocation_tokens", "rank_pattern", "alpha_pattern"),
)
"""Settings of a LoRA under which its update is not s B A alone, or s and the rank differ between modules."""


@dataclass
class _Lora:
    """One policy's LoRA: module -> (A (r, d_in), s B (d_out, r)), fp32."""

    config: dict[str, Any]
    policy: PolicyConfig
    parts: dict[str, tuple[torch.Tensor, torch.Tensor]]
    rank: int


def interpolate_policies(
    policies: Mapping[str, str | Path], folder: str | Path, weights: ArrayLike | None = None
) -> PolicyConfig:
    """Save the soup of single-objective policies in ``folder``, a policy like any other.

    Args:
        policies: objective -> folder of its LoRA policy, as `train/morlhf.py` makes them; all on one base.
        weights: (K,) on the simplex, in the order of the policies. None for a soup that is mixed as it writes, by the
            weights in force (the app's sliders, or the adapter's for each prompt), in process only; stored in bf16, in
            which it writes.

    Raises:
        StorageError: a policy that is no plain LoRA, or one of another base; something else in ``folder``.
        ValueError: weights off the simplex.
    """
    names, folder = tuple(policies), Path(folder)
    check_replaceable(folder)
    if folder.resolve() in [Path(source).resolve() for source in policies.values()]:
        raise StorageError(
            f"{folder}: the soup would take the place of a policy that it is made of"
        )
    loras = [_read(Path(source)) for source in policies.values()]
    first = loras[0]
    for name, lora in zip(names, loras, strict=True):
        if lora.policy.base != first.policy.base:
            raise StorageError(
                f"{policies[name]}: got a LoRA of {lora.policy.base!r}, expected one of "
                f"{first.policy.base!r} as the others"
            )
    mixed = [1.0] * len(names) if weights is None else as_weights(weights, names).tolist()  # type: ignore[arg-type]
    modules = sorted({module for lora in loras for module in lora.parts})
    tensors: dict[str, torch.Tensor] = {}
    for module in modules:
        shapes = next(lora.parts[module] for lora in loras if module in lora.parts)
        # A policy that leaves a module as it is has zeros there, of its rank, so that every module has the same.
        parts = [lora.parts.get(module) or _zeros(lora.rank, *shapes) for lora in loras]
        A = torch.cat([A for A, _ in parts])
        B = torch.cat([w * B for w, (_, B) in zip(mixed, parts, strict=True)], dim=1)
        kept = torch.bfloat16 if weights is None else torch.float32
        tensors[f"{module}.lora_A.weight"] = A.to(kept)
        tensors[f"{module}.lora_B.weight"] = B.to(kept).contiguous()
    rank = sum(lora.rank for lora in loras)
    targets = sorted({module.removeprefix("base_model.model.") for module in modules})
    own = {"r": rank, "lora_alpha": rank, "target_modules": targets, "use_rslora": False}
    own |= {"rank_pattern": {}, "alpha_pattern": {}, "lora_dropout": 0.0}
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(tensors, partial / TENSORS, metadata={"format": "pt"})
    (partial / CONFIG).write_text(json.dumps(first.config | own, indent=2) + "\n")
    made = {name: lora.policy.training for name, lora in zip(names, loras, strict=True)}
    config = PolicyConfig(
        Condition("none", names),
        first.policy.base,
        first.policy.panel,
        {"soup": made, "weights": None if weights is None else mixed},
        {} if weights is not None else {n: lora.rank for n, lora in zip(names, loras, strict=True)},
    )
    config.save(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return config


def _read(folder: Path) -> _Lora:
    policy = PolicyConfig.read(folder) if folder.is_dir() else None
    if policy is None or not (folder / CONFIG).is_file() or not (folder / TENSORS).is_file():
        raise StorageError(f"{folder}: no LoRA policy there: train one with train/morlhf.py")
    config = json.loads((folder / CONFIG).read_text())
    odd = {key: config[key] for key in SPECIAL if config.get(key) not in (None, False, "none", {})}
    if policy.ranks or policy.condition or config.get("peft_type") != "LORA" or odd:
        raise StorageError(
            f"{folder}: got {odd or 'a policy that reads weights or is a soup itself'}, expected a plain LoRA policy"
        )
    r = config["r"]
    scale = config["lora_alpha"] / (r**0.5 if config.get("use_rslora") else r)
    tensors = load_file(folder / TENSORS)
    parts = {}
    for name, A in tensors.items():
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            B = tensors[f"{module}.lora_B.weight"]
            parts[module] = (A.float(), scale * B.float())
    if 2 * len(parts) != len(tensors):
        others = sorted(
            n for n in tensors if ".lora_A.weight" not in n and ".lora_B.weight" not in n
        )
        raise StorageError(
            f"{folder}: got {others[:3]} beside LoRA's A and B, expected nothing else"
        )
    return _Lora(config, policy, parts, r)


def _zeros(rank: int, A: torch.Tensor, B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(rank, A.shape[1]), torch.zeros(B.shape[0], rank)
