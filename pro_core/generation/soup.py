"""Rewarded Soups that are mixed as they write: every request of a batch under weights of its own.

The soup's LoRA holds the K single-objective LoRAs side by side, so that its update is B A with A (R, d) their A's one
below the other and R the sum of their ranks. Multiplying each policy's part of the R values of A x by its weight gives
sum_k w_k B_k A_k x exactly: no parameters are copied, and rows of one batch can have different weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from pro_core.system.storage import StorageError


class Mixer:
    """The weights under which a loaded soup writes.

    Args:
        model: a PEFT model with the soup's LoRA. ``ranks``: each objective with the rank of its LoRA, in order.

    Raises:
        StorageError: the LoRA's rank is not the sum of these ranks.
    """

    def __init__(self, model: Any, ranks: Mapping[str, int]):
        self.ranks = dict(ranks)
        self._scale: torch.Tensor | None = None
        for name, module in model.named_modules():
            if name.endswith("lora_A.default"):
                if module.out_features != sum(ranks.values()):
                    raise StorageError(
                        f"{name}: got rank {module.out_features}, expected {sum(ranks.values())} as in {self.ranks}"
                    )
                module.register_forward_hook(self._scaled)

    @contextmanager
    def mixed(self, weights_NK: Sequence[Sequence[float]]):
        """Inside the block, row n of every batch is computed under row n of the weights."""
        weights = torch.tensor(weights_NK, dtype=torch.float32)
        repeats = torch.tensor(list(self.ranks.values()))
        self._scale = weights.repeat_interleave(repeats, dim=1)[:, None]
        try:
            yield
        finally:
            self._scale = None

    def _scaled(self, module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if self._scale is None or len(self._scale) != len(output):
            raise RuntimeError(
                "this policy mixes its LoRAs by weights: run it inside mixed(weights)"
            )
        return output * self._scale.to(output)
