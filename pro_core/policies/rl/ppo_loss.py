"""PPO's arithmetic: advantages, and the clipped loss (arXiv 1707.06347, 1506.02438)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from pro_core.policies.rl.recipe import PpoSettings


def advantages_by_gae(
    rewards_NT: torch.Tensor, values_NT: torch.Tensor, mask_NT: torch.Tensor, lam: float
) -> torch.Tensor:
    """Generalized advantages (N, T) without discount: A_t = d_t + lam A_{t+1}, d_t = r_t + V_{t+1} - V_t.

    Args:
        mask_NT: 1 for the tokens of a completion, which come first; after the last one all values are 0.
    """
    advantages = torch.zeros_like(rewards_NT)
    ahead = torch.zeros_like(rewards_NT[:, 0])
    value_ahead = torch.zeros_like(ahead)
    for t in reversed(range(rewards_NT.shape[1])):
        delta = rewards_NT[:, t] + value_ahead - values_NT[:, t]
        ahead = mask_NT[:, t] * (delta + lam * ahead)
        value_ahead = mask_NT[:, t] * values_NT[:, t]
        advantages[:, t] = ahead
    return advantages


def whitened(
    values_NT: torch.Tensor, mask_NT: torch.Tensor, over_processes: Callable = lambda sum: sum
) -> torch.Tensor:
    """Values centred and scaled over the masked tokens of all processes; 0 where all are equal."""
    count = over_processes(mask_NT.sum()).clamp(min=1)
    centred = values_NT - over_processes((values_NT * mask_NT).sum()) / count
    deviation = (over_processes((centred**2 * mask_NT).sum()) / count).sqrt()
    return centred / (deviation + 1e-4) * mask_NT


def ppo_loss(
    batch: Mapping[str, torch.Tensor],
    logp: torch.Tensor,
    values: torch.Tensor,
    entropy: torch.Tensor,
    tokens: torch.Tensor,
    settings: PpoSettings,
) -> torch.Tensor:
    """The clipped policy loss plus the clipped value loss minus the entropy, summed and divided by ``tokens``."""
    ratio = (logp - batch["logp"]).exp()
    clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
    policy = -torch.minimum(ratio * batch["advantages"], clipped * batch["advantages"])
    change = (values - batch["values"]).clamp(-settings.value_clip, settings.value_clip)
    errors = [(v - batch["returns"]) ** 2 for v in (values, batch["values"] + change)]
    value = 0.5 * torch.maximum(*errors)
    each = policy + settings.value_weight * value - settings.entropy * entropy
    return (each * batch["mask"]).sum() / tokens
