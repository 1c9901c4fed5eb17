"""What an adapter learns: the targets and losses of Eq 7 and 8, the pairwise loss, and their regularizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from numpy.typing import ArrayLike, NDArray
from torch.nn import functional as F

from pro_core.weights import implicit_weights

TARGETS = ("paper", "paper_z", "margin", "annotated", "pairwise")
RowLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(log-weights, margins, targets), of shapes that broadcast to (..., K), to losses (...)."""


def target_weights(
    target: str,
    temperature: float,
    raw_chosen_NK: NDArray,
    z_chosen_NK: NDArray,
    z_rejected_NK: NDArray,
) -> NDArray:
    """The explicit targets (N, K) of Eq 8 that are made of rewards, one row per pair.

    - ``paper``: Eq 7 as printed, softmax(r(chosen) / tau) on raw rewards. Not identifiable: a Bradley-Terry
      reward has a scale and a per-prompt offset of its own.
    - ``paper_z``: the same on standardized rewards.
    - ``margin``: softmax((z(chosen) - z(rejected)) / tau); the prompt's offset cancels.

    Raises:
        ValueError: another target (``annotated`` reads no rewards, ``pairwise`` has no explicit target).
    """
    if target == "paper":
        return implicit_weights(raw_chosen_NK, temperature)
    if target == "paper_z":
        return implicit_weights(z_chosen_NK, temperature)
    if target == "margin":
        return implicit_weights(z_chosen_NK - z_rejected_NK, temperature)
    raise ValueError(f"got the target {target!r}, expected 'paper', 'paper_z' or 'margin'")


def explicit_loss(
    log_weights: torch.Tensor, margin: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    """The loss of every explicit target: :func:`kl_to_target`. It ignores the margins."""
    return kl_to_target(log_weights, target)


def regularized_pairwise_loss(
    temperature: float,
    global_weights: ArrayLike,
    kl_to_global: float = 0.01,
    entropy_floor: float = 0.1,
    annotated: float = 0.0,
) -> RowLoss:
    """The loss of the ``pairwise`` target: :func:`pairwise_loss` with its regularizers.

    Args:
        temperature: scale of the margins.
        global_weights: what ``kl_to_global`` pulls to, of a shape that broadcasts to the log-weights'.
        kl_to_global, entropy_floor: see :func:`regularizers`.
        annotated: weight of the KL to the targets, which is added to the pairwise loss.
    """
    towards = torch.as_tensor(global_weights)

    def loss(log_weights: torch.Tensor, margin: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        losses = pairwise_loss(log_weights, margin, temperature)
        losses = losses + regularizers(
            log_weights, towards.to(log_weights), kl_to_global, entropy_floor
        )
        return losses + annotated * kl_to_target(log_weights, target) if annotated else losses

    return loss


def kl_to_target(log_weights: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """KL(w* || g) of each row (Eq 8, target first): (...) from log-weights and targets (..., K)."""
    target = target.expand_as(log_weights)
    return F.kl_div(log_weights, target, reduction="none").sum(dim=-1)


def pairwise_loss(
    log_weights: torch.Tensor, margin: torch.Tensor, temperature: float
) -> torch.Tensor:
    """-log sigmoid(sum_k g_k(x) (z_k(chosen) - z_k(rejected)) / tau) of each row: (...) from (..., K).

    No explicit target: the weights are those under which the panel's scores agree with what people chose.
    """
    return -F.logsigmoid((log_weights.exp() * margin).sum(dim=-1) / temperature)


def load_balance_loss(log_weights: torch.Tensor, row_weight: torch.Tensor) -> torch.Tensor:
    """KL(batch mean of g || uniform), averaged over members: 0 when the mean weights are equal, log K when one
    objective gets everything.

    The load-balance term of mixture-of-experts gates. It pulls to uniform weights, not to the global ones: those may
    themselves have collapsed onto few objectives, and ``kl`` of :func:`regularizers` pulls to them already.

    Args:
        log_weights: (..., B, M, K). row_weight: (..., B, M), how much each row counts for each member.

    Returns:
        (...), one value per batch.
    """
    share = row_weight / row_weight.sum(dim=-2, keepdim=True).clamp_min(1e-12)
    mean = (log_weights.exp() * share[..., None]).sum(dim=-3)
    return (mean * (mean.clamp_min(1e-12) * mean.shape[-1]).log()).sum(dim=-1).mean(dim=-1)


def regularizers(
    log_weights: torch.Tensor, global_weights: torch.Tensor, kl: float, entropy_floor: float
) -> torch.Tensor:
    """``kl`` * KL(g || global weights) plus the shortfall of g's entropy below ``entropy_floor`` nats: (...)."""
    weights = log_weights.exp()
    entropy = -(weights * log_weights).sum(dim=-1)
    to_global = (weights * (log_weights - global_weights.clamp_min(1e-6).log())).sum(dim=-1)
    return kl * to_global + F.relu(entropy_floor - entropy)


def batch_loss(
    loss: RowLoss,
    log_weights: torch.Tensor,
    rows: Mapping[str, torch.Tensor],
    load_balance: float = 0.0,
) -> torch.Tensor:
    """What one step of an adapter's fit minimizes: (...), one value per batch of B rows and M members.

    Args:
        log_weights: (..., B, M, K).
        rows: ``margin`` and ``target`` (..., B, K), ``weight`` (..., B, M).
        load_balance: factor of :func:`load_balance_loss`.
    """
    margin, target = (rows[name][..., None, :] for name in ("margin", "target"))
    mean = (loss(log_weights, margin, target) * rows["weight"]).mean(dim=(-2, -1))
    if load_balance:
        mean = mean + load_balance * load_balance_loss(log_weights, rows["weight"])
    return mean
