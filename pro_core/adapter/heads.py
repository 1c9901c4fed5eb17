"""The heads that turn a prompt's features into weights, and the routine that fits them on a frozen encoder.

A frozen encoder's features do not change and heads are small, so many are fitted at once: the members of one adapter,
or the adapters of many seeds in an experiment. :func:`fit_heads` takes the steps that
:class:`pro_core.adapter.training.AdapterTrainer` would take with each adapter by itself: the same rows, dropout,
schedule and optimizer. A test compares the two.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from pro_core.adapter.targets import RowLoss, batch_loss

DROPOUT = 0.2
"""Dropout of the hidden layer, if there is one."""
DECAY, WARMUP, CLIP = 0.01, 0.06, 1.0
"""Weight decay, share of warm-up and greatest gradient norm, as :func:`pro_core.runs.training.training_arguments`
sets them."""


class Heads(nn.ModuleList):
    """M heads on the same features, each with its own parameters: (B, D) to logits (B, M, K).

    Args:
        width: D. hidden: width of the hidden layer; 0 for a linear head. K: objectives. members: M.
    """

    def __init__(self, width: int, hidden: int, K: int, members: int = 1):
        super().__init__(_head(width, hidden, K) for _ in range(members))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.stack([head(features) for head in self], dim=1)


def _head(width: int, hidden: int, K: int) -> nn.Sequential:
    if not hidden:
        return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, K))
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, hidden),
        nn.GELU(),
        nn.Dropout(DROPOUT),
        nn.Linear(hidden, K),
    )


class ScoredRows(Dataset):
    """Rows in training order: each a prompt's index, margins (K,), target (K,) and weights (M,).

    Attributes:
        prompt: (N,). margin, target: (N, K). weight: (N, M), how much each row counts for each member.
        order: the row numbers of all epochs.
    """

    def __init__(self, prompt, margin, target, weight, order: Sequence[int]):
        self.prompt, self.margin, self.target = prompt, margin, target
        self.weight, self.order = weight, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int):
        i = self.order[index]
        return self.prompt[i], self.margin[i], self.target[i], self.weight[i]


def shuffled(n: int, epochs: int, seed: int) -> list[int]:
    """The numbers of n rows for all epochs, each epoch in its own random order."""
    rng = random.Random(seed)
    order: list[int] = []
    for _ in range(epochs):
        epoch = list(range(n))
        rng.shuffle(epoch)
        order += epoch
    return order


def fit_heads(
    adapters: Sequence[Heads],
    features_PD: torch.Tensor,
    rows: Sequence[ScoredRows],
    loss: RowLoss,
    seeds: Sequence[int],
    *,
    batch_size: int,
    learning_rate: float,
    load_balance: float = 0.0,
) -> None:
    """Fit the heads of S adapters at once, in place.

    Adapters share only the loop. The M members of one adapter share its rows and the clipping of its gradient, as in a
    model with several heads.

    AdamW with decay 0.01, 6% warm-up, a linear schedule down to 0, and gradients clipped to length 1. Everything
    stays on the CPU in float32, so that all machines fit the same heads.

    Args:
        adapters: all with the same width, hidden layer and number of members. The fit starts from their parameters.
        features_PD: the features of the prompts, which the rows name by index.
        rows: one set per adapter, all of the same length.
        loss: gets log-weights (S, B, M, K), margins and targets (S, B, 1, K).
        seeds: one per adapter, for its dropout.
        load_balance: see :func:`pro_core.adapter.targets.batch_loss`.

    Raises:
        ValueError: adapters with different numbers of rows.
    """
    if len({len(scored) for scored in rows}) != 1:
        raise ValueError(
            f"got {[len(scored) for scored in rows]} rows, expected as many for every adapter"
        )
    names = [name for name, _ in adapters[0][0].named_parameters()]
    stacked = {
        name: torch.stack(
            [
                torch.stack([head.get_parameter(name).detach() for head in heads])
                for heads in adapters
            ]
        ).requires_grad_()
        for name in names
    }  # (S, M, ...) each
    parameters = list(stacked.values())
    normalized = F.layer_norm(features_PD.float(), features_PD.shape[-1:])
    prompt = np.stack([scored.prompt for scored in rows])
    learned = {
        name: torch.stack([torch.as_tensor(getattr(scored, name)).float() for scored in rows])
        for name in ("margin", "target", "weight")
    }  # (S, N, ...) each
    order = np.stack([scored.order for scored in rows])
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    for generator in generators:  # a Trainer's data loader draws one number before the first step
        torch.empty((), dtype=torch.int64).random_(generator=generator)

    steps = -(-order.shape[1] // batch_size)
    warmup = int(WARMUP * steps)
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=DECAY)
    sets = torch.arange(len(adapters))[:, None]
    for step in range(steps):
        for group in optimizer.param_groups:
            left = (steps - step) / max(1, steps - warmup)
            group["lr"] = learning_rate * (step / warmup if step < warmup else left)
        batch = order[:, step * batch_size : (step + 1) * batch_size]
        distinct, back, sizes = _distinct(np.take_along_axis(prompt, batch, axis=1))
        logits = _logits(stacked, normalized[distinct], sizes, generators)  # (S, U, M, K)
        log_weights = F.log_softmax(logits, dim=-1)[sets, back]  # over objectives; (S, B, M, K)
        batch_rows = {name: part[sets, torch.from_numpy(batch)] for name, part in learned.items()}
        optimizer.zero_grad()
        # A sum over adapters, so that each keeps its own gradient.
        batch_loss(loss, log_weights, batch_rows, load_balance).sum().backward()
        _clip([p.grad for p in parameters if p.grad is not None])
        optimizer.step()
    with torch.no_grad():
        for s, heads in enumerate(adapters):
            for m, head in enumerate(heads):
                for name in names:
                    head.get_parameter(name).copy_(stacked[name][s, m])


def _distinct(prompt_SB: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """The distinct prompts of each adapter's batch (S, U), padded with its first one; the position of each row's prompt
    among them (S, B); and their number. Many pairs share a prompt, and each prompt goes through the heads once."""
    unique = [np.unique(prompts, return_inverse=True) for prompts in prompt_SB]
    sizes = [len(distinct) for distinct, _ in unique]
    padded = [
        np.concatenate([distinct, np.repeat(distinct[:1], max(sizes) - len(distinct))])
        for distinct, _ in unique
    ]
    back = np.stack([inverse for _, inverse in unique])
    return torch.from_numpy(np.stack(padded)), torch.from_numpy(back), sizes


def _logits(
    stacked: dict[str, torch.Tensor],
    normalized_SUD: torch.Tensor,
    sizes: Sequence[int],
    generators: Sequence[torch.Generator],
) -> torch.Tensor:
    """Logits (S, U, M, K) of a training step, as :class:`Heads` computes them for each adapter's U prompts.

    The layer norm's scale and shift are folded into the next layer, so that the normalized features are the same
    for all members and are multiplied once.
    """
    scale, shift, weight, bias = (
        stacked[name] for name in ("0.weight", "0.bias", "1.weight", "1.bias")
    )
    S, M, H, D = weight.shape
    U = normalized_SUD.shape[1]
    folded = (weight * scale[:, :, None]).reshape(S, M * H, D)
    moved = bias + (weight @ shift[..., None])[..., 0]
    first = (normalized_SUD @ folded.mT).reshape(S, U, M, H) + moved[:, None]
    if "4.weight" not in stacked:
        return first
    kept = torch.zeros(S, U, M, H)
    for s, (size, generator) in enumerate(zip(sizes, generators, strict=True)):
        for m in range(M):  # in the order in which `Heads` draws
            kept[s, :size, m] = torch.empty(size, H).bernoulli_(1 - DROPOUT, generator=generator)
    hidden = F.gelu(first) * kept / (1 - DROPOUT)
    return torch.einsum("sumh,smkh->sumk", hidden, stacked["4.weight"]) + stacked["4.bias"][:, None]


def _clip(gradients: Sequence[torch.Tensor]) -> None:
    """Scale each adapter's gradient, over all its members and parameters, to length ``CLIP`` at most."""
    norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients])
    factor = (CLIP / (norms.norm(dim=0) + 1e-6)).clamp(max=1)
    for gradient in gradients:
        gradient *= factor.view(-1, *[1] * (gradient.dim() - 1))
