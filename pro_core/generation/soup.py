"""A policy of one LoRA per objective, run under any scales of these LoRAs.

The policy's LoRA holds the K single-objective LoRAs side by side: its update is B A with A (R, d) their A's one below
the other and R the sum of their ranks. Scaling each policy's part of B's columns gives sum_k c_k B_k A_k exactly.

- Rows of one batch under *different* scales: each policy's part of the R values of A x is scaled, row by row.
- All rows under the *same* scales, the common case: the sum is folded into the parameters, W + sum_k c_k B_k A_k, and
  the LoRA costs nothing per token. The model's own parameters are never written to: folded copies take their place
  while the batch runs, so nothing can drift. The copies of the last scales stay, as much memory as what they copy. Once
  they have not fitted into a GPU's memory, such rows are scaled row by row, too.

A LoRA's step is often smaller than half a unit in a bf16 parameter's last place. Rounding to the nearest would lose all
of it, which shrinks the change of the logits. So bf16 copies are rounded up or down at random with the probabilities
that keep the mean, by the same random numbers each time.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from pro_core.system.storage import StorageError

logger = logging.getLogger(__name__)

MIXING_VERSION = 2
"""Version of the path from scales to the parameters in force. Every change that moves a policy's text raises it."""
CHUNK = 2**18
"""Parameters that are folded at a time: they stay in a processor's cache."""


class _Layer(NamedTuple):
    """A layer with a LoRA, and its place in the model."""

    parent: Any
    name: str
    lora: Any

    @property
    def base(self) -> Any:
        return self.lora.base_layer


class Mixer:
    """The scales under which a loaded policy of K LoRAs writes.

    Args:
        model: a PEFT model with the policy's LoRA. ``ranks``: each objective with the rank of its LoRA, in order.

    Raises:
        StorageError: the LoRA's rank is not the sum of these ranks.
    """

    def __init__(self, model: Any, ranks: Mapping[str, int]):
        self.ranks = dict(ranks)
        self._repeats = torch.tensor(list(self.ranks.values()))
        self._scale: torch.Tensor | None = None
        self._layers: list[_Layer] = []
        self._copies: list[Any] = []  # the folded layers, made when first needed
        self._held: tuple[float, ...] | None = None  # the scales that the copies hold
        self._folds = True  # until the copies have not fitted into the memory
        for path, module in list(model.named_modules()):
            if not (hasattr(module, "lora_A") and "default" in module.lora_A):
                continue
            A = module.lora_A["default"]
            if A.out_features != sum(ranks.values()):
                raise StorageError(
                    f"{path}: got rank {A.out_features}, expected {sum(ranks.values())} as in {self.ranks}"
                )
            A.register_forward_hook(self._scaled)
            parent, _, name = path.rpartition(".")
            self._layers.append(_Layer(model.get_submodule(parent), name, module))

    @contextmanager
    def mixed(self, scales_MK: Sequence[Sequence[float]]) -> Iterator[None]:
        """Inside the block, row m of every batch is computed under row m of the LoRAs' scales.

        If all rows are the same, batches may have any number of rows.
        """
        different = {tuple(row) for row in scales_MK}
        if len(different) == 1:
            [one] = different
            layers = self._folded(one)
            if layers is not None:
                try:
                    with self._in_place(layers):
                        yield
                except torch.OutOfMemoryError:
                    if self._copies:
                        self._stop_folding()
                    raise
                return
            scales_MK = [one]
        scales = torch.tensor(scales_MK, dtype=torch.float32)
        self._scale = scales.repeat_interleave(self._repeats, dim=1)[:, None]
        try:
            yield
        finally:
            self._scale = None

    def _scaled(self, module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if self._scale is None or len(self._scale) not in (1, len(output)):
            raise RuntimeError(
                "this policy mixes its LoRAs by weights: run it inside mixed(weights)"
            )
        return output * self._scale.to(output)

    @contextmanager
    def _in_place(self, layers: Sequence[Any]) -> Iterator[None]:
        """Inside the block, these layers stand in the model where those with a LoRA were."""
        for place, layer in zip(self._layers, layers, strict=True):
            setattr(place.parent, place.name, layer)
        try:
            yield
        finally:
            for place in self._layers:
                setattr(place.parent, place.name, place.lora)

    @torch.inference_mode()
    def _folded(self, scales: tuple[float, ...]) -> list[Any] | None:
        """The layers without a LoRA, with its update under these scales in their parameters; None if they do not fit
        into the memory."""
        if not any(scales):
            return [place.base for place in self._layers]
        if not self._folds:
            return None
        try:
            return self._filled(scales)
        except torch.OutOfMemoryError:
            self._stop_folding()
            return None

    def _stop_folding(self) -> None:
        """Give the copies' memory back, and mix row by row from now on."""
        logger.warning("no memory for folded LoRAs: they are mixed row by row from now on")
        self._copies, self._held, self._folds = [], None, False

    def _filled(self, scales: tuple[float, ...]) -> list[Any]:
        """The copies, filled for these scales. Raises OutOfMemoryError."""
        if not self._copies:
            self._copies = [_with_own_weight(place.base) for place in self._layers]
        if scales != self._held:
            # Whatever happens on the way, half of the copies are not taken for all.
            self._held = None
            for place, layer in zip(self._layers, self._copies, strict=True):
                A, B = (side["default"].weight for side in (place.lora.lora_A, place.lora.lora_B))
                c = torch.tensor(scales).repeat_interleave(self._repeats).to(B.device)
                B = B.float() * (c * place.lora.scaling["default"])
                fold(place.base.weight, B, A.float(), layer.weight)
            self._held = scales
        return self._copies


def _with_own_weight(layer: Any) -> Any:
    """A copy of a linear layer that shares everything with it, except a weight of its own, not filled yet."""
    own = copy.copy(layer)
    weight = torch.nn.Parameter(torch.empty_like(layer.weight), requires_grad=False)
    own._parameters = {**layer._parameters, "weight": weight}
    return own


def fold(W: torch.Tensor, B: torch.Tensor, A: torch.Tensor, out: torch.Tensor) -> None:
    """Write W + B A into ``out``: W (d_out, d_in), B (d_out, R) and A (R, d_in) in fp32.

    In bf16 the result is rounded at random so that its mean is exact; in other precisions to the nearest.
    """
    size = max(1, CHUNK // W.shape[1])
    noise = _noise(size * W.shape[1], str(W.device)) if out.dtype == torch.bfloat16 else None
    for start in range(0, len(W), size):
        rows = slice(start, start + size)
        exact = torch.addmm(W[rows].float(), B[rows], A)
        if noise is None:
            out[rows] = exact
            continue
        # The upper 16 bits of an fp32 number are a bf16 number: what the lower ones carry over is the rounding.
        bits = exact.view(torch.int32).add_(noise[: exact.numel()].view_as(exact))
        out[rows].view(torch.int16).copy_(bits.bitwise_right_shift_(16))


_drawn: dict[str, torch.Tensor] = {}


def _noise(count: int, device: str) -> torch.Tensor:
    """Whole numbers from 0 to 2**16 - 1, the same ones each time."""
    if device not in _drawn or len(_drawn[device]) < count:
        random = torch.Generator().manual_seed(0)
        numbers = torch.randint(2**16, (max(count, CHUNK),), generator=random, dtype=torch.int32)
        _drawn[device] = numbers.to(device)
    return _drawn[device]
