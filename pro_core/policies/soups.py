"""Rewarded Soups: policies of single objectives, averaged in the space of their parameters (arXiv 2306.04488).

A LoRA adds s B A to a parameter. The average of K of them, sum_k w_k s_k B_k A_k, is exactly one LoRA whose rank is
the sum of theirs: the A's one below the other, and the B's, each times w_k s_k, side by side. (PEFT's ``linear``
averages A and B separately and multiplies the averages, which is something else.) A soup that is saved unweighted and
mixed as it writes takes any weights, such as an adapter's for each prompt: see :mod:`pro_core.generation.soup`.

A server cannot mix as it writes, but holds many LoRAs side by side and picks one for each request. For a server, a soup
is saved as a *lattice*: one plain LoRA for every weighting in steps of 1/n. The one nearest to the weights in force
writes (:mod:`pro_core.generation.lattice`).
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pro_core.prompting.policy_config import PolicyConfig, check_replaceable
from pro_core.prompting.templates import Condition
from pro_core.system.storage import StorageError, explained_disk
from pro_core.weights import as_weights

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
SPECIAL = (
    *("bias", "use_dora", "lora_bias", "modules_to_save", "fan_in_fan_out", "target_parameters"),
    *("alora_invocation_tokens", "rank_pattern", "alpha_pattern"),
)
"""Settings of a LoRA under which its update is not s B A alone, or s and the rank differ between modules."""
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The greatest ranks that vLLM can be set to."""
MOST_MIXTURES = 200
"""A server holds them all in its memory; five objectives in steps of 1/4 are 70, in steps of 1/6 are 210."""


@dataclass
class _Lora:
    """One policy's LoRA: module -> (A (r, d_in), s B (d_out, r)), fp32."""

    config: dict[str, Any]
    policy: PolicyConfig
    parts: dict[str, tuple[torch.Tensor, torch.Tensor]]
    rank: int


def interpolate_policies(
    policies: Mapping[str, str | Path],
    folder: str | Path,
    weights: Mapping[str, float] | Sequence[float] | None = None,
) -> PolicyConfig:
    """Save the soup of single-objective policies in ``folder``, a policy like any other.

    Args:
        policies: objective -> folder of its LoRA policy, as `train/morlhf.py` makes them; all on the same base model.
        weights: by name, or (K,) in the order of the policies; on the simplex. None for a soup that is mixed as it
            writes, by the weights in force (the app's sliders, or the adapter's for each prompt), in process only;
            stored in bf16, in which it writes.

    Raises:
        StorageError: a policy that is not a plain LoRA or has another base model; something else in ``folder``.
        ValueError: weights off the simplex.
    """
    names, folder = tuple(policies), Path(folder)
    check_replaceable(folder)
    if folder.resolve() in [Path(source).resolve() for source in policies.values()]:
        raise StorageError(
            f"{folder}: the soup would take the place of a policy that it is made of"
        )
    loras = _loras(policies)
    mixed = [1.0] * len(names) if weights is None else as_weights(weights, names).tolist()
    config = PolicyConfig(
        Condition("none", names),
        loras[0].policy.base,
        loras[0].policy.panel,
        {"soup": _made(names, loras), "weights": None if weights is None else mixed},
        {} if weights is not None else {n: lora.rank for n, lora in zip(names, loras, strict=True)},
    )
    with _replaced(folder) as partial:
        _save(loras, mixed, partial, torch.bfloat16 if weights is None else torch.float32)
        config.save(partial)
    return config


def interpolate_lattice(
    policies: Mapping[str, str | Path] | str | Path, folder: str | Path, steps: int
) -> PolicyConfig:
    """Save every mixture of single-objective policies in steps of 1/``steps``, for a server that picks among them.

    ``folder`` holds one policy folder for each mixture, named by its weights (``helpful-050_humor-050``): a plain LoRA
    of the policies that have a weight in it, in bf16, in which servers run it. The folder's own ``pro_policy.json``
    lists them (``mixtures``).

    Args:
        policies: as for :func:`interpolate_policies`; or the folder of a soup that is mixed as it writes.
        steps: n; of K objectives there are C(n + K - 1, K - 1) mixtures.

    Raises:
        StorageError: as :func:`interpolate_policies`.
        ValueError: fewer than two objectives, no step, or more than :data:`MOST_MIXTURES` mixtures.
    """
    folder = Path(folder)
    check_replaceable(folder)
    if isinstance(policies, Mapping):
        names, loras, sources = tuple(policies), _loras(policies), list(policies.values())
    else:
        names, loras, sources = *_split(Path(policies)), [policies]
    if folder.resolve() in [Path(source).resolve() for source in sources]:
        raise StorageError(f"{folder}: the lattice would take the place of what it is made of")
    mixtures = lattice(names, steps)
    base, panel, made = loras[0].policy.base, loras[0].policy.panel, _made(names, loras)
    condition = Condition("none", names)
    config = PolicyConfig(condition, base, panel, {"soup": made, "lattice": steps}, {}, mixtures)
    with _replaced(folder) as partial:
        for name, weights in mixtures.items():
            used = [(lora, w) for lora, w in zip(loras, weights, strict=True) if w > 0]
            (partial / name).mkdir()
            _save([lora for lora, _ in used], [w for _, w in used], partial / name, torch.bfloat16)
            own = {"soup": made, "weights": weights}
            PolicyConfig(condition, base, panel, own).save(partial / name)
        config.save(partial)
    return config


def lattice(names: Sequence[str], steps: int) -> dict[str, list[float]]:
    """The points of the simplex in steps of 1/``steps``: a mixture's name -> its weights (K,).

    Names hold the weights that are not 0, in hundredths, and no character at which a server's settings are split.

    Raises:
        ValueError: fewer than two objectives, steps that are not a whole number from 1 to 100, or too many mixtures.
    """
    if len(names) < 2:
        raise ValueError(f"got the objectives {list(names)}, expected at least two to mix")
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= 100:
        # Names hold hundredths: smaller steps would give one name to two mixtures.
        raise ValueError(f"got a lattice of {steps!r} steps, expected a whole number from 1 to 100")
    points = list(itertools.islice(_points(len(names), steps), MOST_MIXTURES + 1))
    if len(points) > MOST_MIXTURES:
        raise ValueError(
            f"a lattice of {steps} steps between {len(names)} objectives has more than {MOST_MIXTURES} mixtures, more "
            "than a server should hold: take fewer steps"
        )
    return {
        "_".join(
            f"{n}-{round(100 * i / steps):03d}" for n, i in zip(names, point, strict=True) if i
        ): [i / steps for i in point]
        for point in points
    }


def ranks(folder: str | Path) -> list[int]:
    """The rank of each mixture's LoRA in the folder of a lattice."""
    config = PolicyConfig.read(folder)
    names = config.mixtures if config else {}
    return [json.loads(Path(folder, name, CONFIG).read_text())["r"] for name in names]


def greatest_rank(folder: str | Path) -> int:
    """The smallest greatest rank of vLLM that fits every LoRA of a lattice."""
    most = max(ranks(folder))
    return next((rank for rank in VLLM_RANKS if rank >= most), most)


def _points(K: int, total: int) -> Iterator[tuple[int, ...]]:
    """All tuples of K whole numbers from 0 that sum to ``total``."""
    if K == 1:
        yield (total,)
        return
    for first in range(total, -1, -1):
        for rest in _points(K - 1, total - first):
            yield (first, *rest)


def _loras(policies: Mapping[str, str | Path]) -> list[_Lora]:
    loras = [_read(Path(source)) for source in policies.values()]
    base = loras[0].policy.base
    for source, lora in zip(policies.values(), loras, strict=True):
        if lora.policy.base != base:
            raise StorageError(
                f"{source}: got a LoRA of {lora.policy.base!r}, expected one of {base!r} like the others"
            )
    return loras


def _made(names: Sequence[str], loras: Sequence[_Lora]) -> dict[str, Any]:
    return {name: lora.policy.training for name, lora in zip(names, loras, strict=True)}


def _save(loras: Sequence[_Lora], mixed: Sequence[float], folder: Path, kept: torch.dtype) -> None:
    """Save the average of LoRAs in these proportions, as PEFT's files in ``folder``."""
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
    (folder / CONFIG).write_text(json.dumps(loras[0].config | settings, indent=2) + "\n")


@contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes ``folder``'s place when the block ends."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with explained_disk(folder.parent, folder, lambda: shutil.rmtree(partial, ignore_errors=True)):
        partial.mkdir(parents=True)
        yield partial
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)


def _split(folder: Path) -> tuple[tuple[str, ...], list[_Lora]]:
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
        loras.append(_Lora(config, single, parts, rank))
    return tuple(policy.ranks), loras


def _read(folder: Path) -> _Lora:
    policy = PolicyConfig.read(folder) if folder.is_dir() else None
    if policy is None or not (folder / CONFIG).is_file() or not (folder / TENSORS).is_file():
        raise StorageError(f"{folder}: no LoRA policy there: train one with train/morlhf.py")
    config = json.loads((folder / CONFIG).read_text())
    odd = {key: config[key] for key in SPECIAL if config.get(key) not in (None, False, "none", {})}
    if policy.reads or config.get("peft_type") != "LORA" or odd:
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
