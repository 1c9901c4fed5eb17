"""Many linear-head adapters fitted at once, for experiments with hundreds of them.

The losses and targets are those of :mod:`pro_core.adapter.model`, the optimizer's settings those of
:mod:`pro_core.runs.training`. What differs from ``fit_adapter(hidden=0)``: the features are given, there are no
checkpoints, and the heads start from other random numbers. A test holds the two together.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.nn import functional as F

from pro_core.adapter.model import kl_to_target, pairwise_loss, regularizers, target_weights
from pro_core.adapter.training import fit_global_weights

Array = NDArray[np.float64]
TRUE = "true w*"
"""The target that only a planted truth has: Eq 8 with w* itself."""


@dataclass(frozen=True)
class Examples:
    """n labelled pairs: features (n, D), standardized rewards (n, K) of both responses, w* (n, K)."""

    features: Array
    z_chosen: Array
    z_rejected: Array
    true_weights: Array

    def __len__(self) -> int:
        return len(self.features)


def fit_adapters(
    examples: Sequence[Examples], target: str, temperature: float, seeds: Sequence[int], **settings
) -> Callable[[ArrayLike], NDArray[np.float32]]:
    """One linear-head adapter a seed, all at once: what ``fit_adapter(hidden=0)`` does, without a Trainer for each.

    Args:
        examples: S sets of n pairs. target: ``TRUE`` or one of :data:`pro_core.adapter.model.TARGETS`.
        settings: of :func:`fit_heads`.

    Returns:
        a function from features (P, D) to weights (S, P, K).
    """
    chosen, rejected = (
        np.stack([getattr(e, f"z_{side}") for e in examples]) for side in ("chosen", "rejected")
    )
    S, n, K = chosen.shape
    margin = torch.tensor(chosen - rejected, dtype=torch.float32)
    if target == "pairwise":
        ones, group = np.ones(n), ["all"] * n
        fitted = [fit_global_weights(m, ones, group, draws=1000) for m in margin.numpy()]
        towards = torch.tensor(np.stack(fitted))[:, None]

        def loss(log_weights, rows):
            taken = torch.take_along_dim(margin, rows[..., None], 1)
            return pairwise_loss(log_weights, taken, temperature) + regularizers(
                log_weights, towards, 0.01, 0.1
            )
    else:
        flat = chosen.reshape(-1, K), rejected.reshape(-1, K)
        explicit = (
            np.stack([e.true_weights for e in examples])
            if target == TRUE
            else target_weights(target, temperature, flat[0], *flat).reshape(S, n, K)
        )
        targets = torch.tensor(explicit, dtype=torch.float32)

        def loss(log_weights, rows):
            return kl_to_target(log_weights, torch.take_along_dim(targets, rows[..., None], 1))

    return fit_heads(np.stack([e.features for e in examples]), K, loss, seeds, **settings)


def fit_heads(
    features_SND: ArrayLike,
    K: int,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    seeds: Sequence[int],
    *,
    epochs: int,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
) -> Callable[[ArrayLike], NDArray[np.float32]]:
    """S heads (layer norm, linear) by AdamW, as :mod:`pro_core.runs.training` sets it: decay 0.01, 6% warm-up, linear
    schedule, clip 1.0. The heads share nothing but the loop.

    Args:
        loss: (log-weights (S, B, K), row numbers (S, B)) -> losses (S, B).
    """
    x = torch.tensor(np.asarray(features_SND), dtype=torch.float32)
    S, n, D = x.shape
    bound = D**-0.5  # nn.Linear's own start
    starts = [torch.Generator().manual_seed(seed) for seed in seeds]
    weight = torch.stack([(torch.rand(K, D, generator=g) * 2 - 1) * bound for g in starts])
    bias = torch.stack([(torch.rand(1, K, generator=g) * 2 - 1) * bound for g in starts])
    scale, shift = torch.ones(S, 1, D), torch.zeros(S, 1, D)
    parameters = [p.requires_grad_() for p in (scale, shift, weight, bias)]

    def head(features):
        hidden = F.layer_norm(features, (D,)) * scale + shift
        return F.log_softmax(hidden @ weight.mT + bias, dim=-1)  # over objectives

    order = torch.tensor([shuffled(n, epochs, seed) for seed in seeds])
    batches = order.split(batch_size, dim=1)
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01)
    warmup = int(0.06 * len(batches))
    for step, rows in enumerate(batches):
        for group in optimizer.param_groups:
            left = (len(batches) - step) / max(1, len(batches) - warmup)
            group["lr"] = learning_rate * (step / warmup if step < warmup else left)
        losses = loss(head(torch.take_along_dim(x, rows[..., None], 1)), rows)
        optimizer.zero_grad()
        losses.mean(dim=1).sum().backward()  # a sum over heads: none feels another's gradient
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)
        for gradient in gradients:
            gradient *= (1 / (norm + 1e-6)).clamp(max=1)[:, None, None]
        optimizer.step()

    @torch.inference_mode()
    def predict(features: ArrayLike) -> NDArray[np.float32]:
        return head(torch.tensor(np.asarray(features), dtype=torch.float32)).exp().numpy()

    return predict


def shuffled(n: int, epochs: int, seed: int) -> list[int]:
    """Row numbers of all epochs, each in an order of its own: fit_adapter's order."""
    rng = random.Random(seed)
    order: list[int] = []
    for _ in range(epochs):
        epoch = list(range(n))
        rng.shuffle(epoch)
        order += epoch
    return order
