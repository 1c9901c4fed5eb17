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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from pro_core.generation.soup_files import (
    CONFIG,
    TENSORS,
    Lora,
    mixture_name,
    replaced,
    save,
    split,
)
from pro_core.prompting.policy_config import PolicyConfig, check_replaceable
from pro_core.prompting.templates import Condition
from pro_core.system.storage import StorageError
from pro_core.weights import as_weights

SPECIAL = (
    *("bias", "use_dora", "lora_bias", "modules_to_save", "fan_in_fan_out", "target_parameters"),
    *("alora_invocation_tokens", "rank_pattern", "alpha_pattern"),
)
"""Settings of a LoRA under which its update is not s B A alone, or s and the rank differ between modules."""
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The greatest ranks that vLLM can be set to."""
MOST_MIXTURES = 200
"""A server holds them all in its memory; five objectives in steps of 1/4 are 70, in steps of 1/6 are 210."""


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
    with replaced(folder) as partial:
        save(loras, mixed, partial, torch.bfloat16 if weights is None else torch.float32)
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
        names, loras, sources = *split(Path(policies)), [policies]
    if folder.resolve() in [Path(source).resolve() for source in sources]:
        raise StorageError(f"{folder}: the lattice would take the place of what it is made of")
    mixtures = lattice(names, steps)
    base, panel, made = loras[0].policy.base, loras[0].policy.panel, _made(names, loras)
    condition = Condition("none", names)
    config = PolicyConfig(condition, base, panel, {"soup": made, "lattice": steps}, {}, mixtures)
    with replaced(folder) as partial:
        for name, weights in mixtures.items():
            used = [(lora, w) for lora, w in zip(loras, weights, strict=True) if w > 0]
            (partial / name).mkdir()
            save([lora for lora, _ in used], [w for _, w in used], partial / name, torch.bfloat16)
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
        mixture_name(names, [round(100 * i / steps) for i in point]): [i / steps for i in point]
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


def _loras(policies: Mapping[str, str | Path]) -> list[Lora]:
    loras = [_read(Path(source)) for source in policies.values()]
    base = loras[0].policy.base
    for source, lora in zip(policies.values(), loras, strict=True):
        if lora.policy.base != base:
            raise StorageError(
                f"{source}: got a LoRA of {lora.policy.base!r}, expected one of {base!r} like the others"
            )
    return loras


def _made(names: Sequence[str], loras: Sequence[Lora]) -> dict[str, Any]:
    return {name: lora.policy.training for name, lora in zip(names, loras, strict=True)}


def _read(folder: Path) -> Lora:
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
    return Lora(config, policy, parts, r)
