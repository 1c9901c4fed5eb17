"""The fixed weights that do best on scored pairs: strong baselines, and what the adapter's regularizer pulls to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch.nn import functional as F

from pro_core.adapter.targets import pairwise_loss
from pro_core.rewards.scores import margins


def balanced(table: pd.DataFrame) -> NDArray[np.float32]:
    """Row weights (N,), mean 1, that give every (source, objective) group the same total.

    Without them TruthfulQA, with tens of thousands of pairs, decides everything.
    """
    sizes = table.groupby(["source", "objective"])["id"].transform("size").to_numpy(np.float64)
    weights = 1 / sizes
    return (weights / weights.mean()).astype(np.float32)


def bradley_terry_weights(margins_NK: ArrayLike, weight_N: ArrayLike) -> NDArray[np.float32]:
    """The one weight vector (K,) with the lowest pairwise loss at temperature 1."""
    margin = torch.tensor(np.asarray(margins_NK, dtype=np.float32))
    weight = torch.tensor(np.asarray(weight_N, dtype=np.float32))
    logits = torch.zeros(margin.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for _ in range(300):
        log_weights = F.log_softmax(logits, dim=-1).expand_as(margin)
        loss = (pairwise_loss(log_weights, margin, 1.0) * weight).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return F.softmax(logits.detach(), dim=-1).numpy()


def fit_global_weights(
    margins_NK: ArrayLike,
    weight_N: ArrayLike,
    groups: Sequence[str],
    draws: int = 4000,
    seed: int = 0,
) -> NDArray[np.float32]:
    """The one weight vector (K,) with the best training accuracy, averaged over ``groups``.

    The search covers random points of the simplex, its corners, its centre and the Bradley-Terry fit, then points
    around the best. It maximizes accuracy because accuracy is compared later.
    """
    margins_NK = np.asarray(margins_NK, dtype=np.float32)
    K = margins_NK.shape[1]
    rng = np.random.default_rng(seed)
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    share = 1 / np.bincount(index)[index] / len(names)

    def best_of(candidates):
        right = np.stack([share @ (margins_NK @ w > 0) for w in candidates])
        return candidates[int(right.argmax())]

    start = [
        bradley_terry_weights(margins_NK, weight_N),
        np.full(K, 1 / K, np.float32),
        *np.eye(K, dtype=np.float32),
    ]
    best = best_of(np.vstack([start, rng.dirichlet(np.ones(K), draws)]).astype(np.float32))
    near = rng.dirichlet(best * 100 + 0.1, draws // 4).astype(np.float32)
    return best_of(np.vstack([best[None], near]))


def best_global_weights(train: pd.DataFrame, objective_names: Sequence[str]) -> NDArray[np.float32]:
    """The one weight vector (K,) that does best on the training pairs."""
    return fit_global_weights(
        margins(train, objective_names), balanced(train), list(train["objective"])
    )
