"""Adapters with linear heads on given features, fitted together, one per seed: for experiments with hundreds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.nn import functional as F

from pro_core.adapter.global_weights import fit_global_weights
from pro_core.adapter.heads import Heads, ScoredRows, fit_heads, shuffled
from pro_core.adapter.targets import (
    RowLoss,
    explicit_loss,
    regularized_pairwise_loss,
    target_weights,
)

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

    def targets(self, target: str, temperature: float) -> NDArray:
        """w*(x) that each pair teaches (n, K); zeros for ``pairwise``, which has no explicit target."""
        if target == TRUE:
            return self.true_weights
        if target == "pairwise":
            return np.zeros_like(self.z_chosen)
        return target_weights(target, temperature, self.z_chosen, self.z_chosen, self.z_rejected)


def fit_adapters(
    examples: Sequence[Examples],
    target: str,
    temperature: float,
    seeds: Sequence[int],
    *,
    epochs: int,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
) -> Callable[[ArrayLike], NDArray[np.float32]]:
    """Fit one linear-head adapter per seed, all at once, each as ``fit_adapter(hidden=0, members=1)`` would.

    Args:
        examples: S sets of n pairs. target: ``TRUE`` or one of :data:`pro_core.adapter.targets.TARGETS` that reads
            rewards.

    Returns:
        a function from features (P, D) to weights (S, P, K).
    """
    n, D = examples[0].features.shape
    adapters: list[Heads] = []
    rows: list[ScoredRows] = []
    towards: list[NDArray[np.float32]] = []
    for pairs, seed in zip(examples, seeds, strict=True):
        margin, K = pairs.z_chosen - pairs.z_rejected, pairs.z_chosen.shape[1]
        torch.manual_seed(seed)
        adapters.append(Heads(D, 0, K))
        prompt = n * len(rows) + np.arange(n)
        order = shuffled(n, epochs, seed)
        targets = pairs.targets(target, temperature)
        rows.append(ScoredRows(prompt, margin, targets, np.ones((n, 1)), order))
        if target == "pairwise":
            single = margin.astype(np.float32)
            towards.append(fit_global_weights(single, np.ones(n), ["all"] * n, draws=1000))
    loss: RowLoss = explicit_loss
    if target == "pairwise":
        loss = regularized_pairwise_loss(temperature, np.stack(towards)[:, None, None])
    features = torch.tensor(np.concatenate([e.features for e in examples]), dtype=torch.float32)
    fit_heads(
        adapters, features, rows, loss, seeds, batch_size=batch_size, learning_rate=learning_rate
    )

    @torch.inference_mode()
    def predict(features: ArrayLike) -> NDArray[np.float32]:
        x = torch.tensor(np.asarray(features), dtype=torch.float32)
        logits = torch.stack([heads(x)[:, 0] for heads in adapters])
        return F.softmax(logits, dim=-1).numpy()  # over objectives

    return predict
