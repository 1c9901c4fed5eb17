"""The files of a soup: K LoRAs side by side in one, taken apart, mixed in fixed proportions, and saved again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pro_core.prompting.policy_config import PolicyConfig
from pro_core.system.storage import StorageError, explained_disk

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


@dataclass
class Lora:
    """One policy's LoRA: module -> (A (r, d_in), s B (d_out, r)), fp32."""

    config: dict[str, Any]
    policy: PolicyConfig
    parts: dict[str, tuple[torch.Tensor, torch.Tensor]]
    rank: int


def mixture_name(names: Sequence[str], hundredths: Sequence[int]) -> str:
    """The name of a mixture at a server, of the objectives that have a weight in it: ``helpful-050_humor-050``."""
    return "_".join(f"{n}-{w:03d}" for n, w in zip(names, hundredths, strict=True) if w)


def split(folder: Path) -> tuple[tuple[str, ...], list[Lora]]:
    """The objectives and LoRAs of a soup that is mixed as it writes."""
    policy = PolicyConfig.read(folder) if folder.is_dir() else None
    if policy is None or not policy.ranks or not (folder / TENSORS).is_file():
        raise StorageError(
            f"{folder}: no soup that is mixed as it writes: name one, or {{objective: folder}} of its policies"
        )
    config, tensors = json.loads((folder / CONFIG).read_text()), load_file(folder / TENSORS)
    made = policy.training.get("soup", {})
    loras, start = [], 0
    for name, rank in policy.ranks.items():
        rows = slice(start, start := start + rank)
        parts = {
            module: (A[rows].float(), tensors[f"{module}.lora_B.weight"][:, rows].float())
            for key, A in tensors.items()
            if (module := key.removesuffix(".lora_A.weight")) != key
        }
        single = PolicyConfig(policy.condition, policy.base, policy.panel, made.get(name, {}))
        loras.append(Lora(config, single, parts, rank))
    return tuple(policy.ranks), loras


def save(
    loras: Sequence[Lora],
    mixed: Sequence[float],
    folder: Path,
    kept: torch.dtype,
    indent: int | None = 2,
) -> None:
    """Save the sum of LoRAs, each ``mixed`` times, as PEFT's files in ``folder``.

    Args:
        kept: the precision of the parameters. indent: of the settings' JSON.
    """
    modules = sorted({module for lora in loras for module in lora.parts})
    tensors: dict[str, torch.Tensor] = {}
    for module in modules:
        shapes = next(lora.parts[module] for lora in loras if module in lora.parts)
        # A policy that leaves a module unchanged has zeros there, so that every module has the same rank.
        parts = [lora.parts.get(module) or _zeros(lora.rank, *shapes) for lora in loras]
        A = torch.cat([A for A, _ in parts])
        B = torch.cat([w * B for w, (_, B) in zip(mixed, parts, strict=True)], dim=1)
        tensors[f"{module}.lora_A.weight"] = A.to(kept)
        tensors[f"{module}.lora_B.weight"] = B.to(kept).contiguous()
    rank = sum(lora.rank for lora in loras)
    targets = sorted({module.removeprefix("base_model.model.") for module in modules})
    settings = {"r": rank, "lora_alpha": rank, "target_modules": targets, "use_rslora": False}
    settings |= {"rank_pattern": {}, "alpha_pattern": {}, "lora_dropout": 0.0}
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(loras[0].config | settings, indent=indent) + "\n")


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes ``folder``'s place when the block ends."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with explained_disk(folder.parent, folder, lambda: shutil.rmtree(partial, ignore_errors=True)):
        partial.mkdir(parents=True)
        yield partial
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)


def _zeros(rank: int, A: torch.Tensor, B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(rank, A.shape[1]), torch.zeros(B.shape[0], rank)
