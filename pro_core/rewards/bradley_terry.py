"""Bradley-Terry reward models on pairs (Eq 2): K separate ones, or one trunk with K heads.

TRL's RewardTrainer reads ``logits[:, 0]`` only, so it cannot train a trunk whose heads learn from different
pairs. This trainer is transformers' own Trainer with two things changed: the loss picks each pair's head,
and the order of the rows is fixed beforehand (pairs of similar length together, to save padding), so that a
run resumed after a kill sees the rows it would have seen.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import TrainingArguments

from pro_core.data.schema import PreferencePair
from pro_core.rewards.batching import check_length, collate, encode
from pro_core.rewards.models import HEADS, save_reward_model
from pro_core.runs.training import OrderedTrainer
from pro_core.system.processes import main_process

TRAINING_VERSION = 1
"""Version of the way from pairs to parameters; raise it with every change that moves a parameter."""


@dataclass
class OrderedRows(Dataset):
    """Tokenized rows in training order; here one row is ``{"chosen", "rejected", "head", "tie"}``."""

    rows: list[dict[str, Any]]
    order: list[int]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[self.order[index]]


def tokenize_pairs(
    tokenizer,
    pairs: Sequence[PreferencePair],
    objective_names: Sequence[str],
    epochs: Sequence[int],
    batch_size: int,
    max_length: int,
    seed: int,
    input_format: str = "pair",
) -> OrderedRows:
    """Tokenize pairs and fix the order in which training sees them.

    Args:
        epochs: how often each pair is seen, one number per pair.
        batch_size: pairs per step, over all processes. Batches hold pairs of similar length, and are shuffled.

    Raises:
        StorageError: the model cannot read ``max_length`` tokens; also as :func:`encode`.
    """
    check_length(tokenizer, max_length)
    heads = {name: k for k, name in enumerate(objective_names)}
    prompts = [p.prompt for p in pairs]
    chosen = encode(tokenizer, prompts, [p.chosen for p in pairs], input_format, max_length)
    rejected = encode(tokenizer, prompts, [p.rejected for p in pairs], input_format, max_length)
    rows = [
        {"chosen": c, "rejected": r, "head": heads[p.objective], "tie": p.tie}
        for c, r, p in zip(chosen, rejected, pairs, strict=True)
    ]
    lengths = [max(len(r["chosen"]["input_ids"]), len(r["rejected"]["input_ids"])) for r in rows]
    return OrderedRows(rows, training_order(lengths, epochs, batch_size, seed))


def training_order(
    lengths: Sequence[int], epochs: Sequence[int], batch_size: int, seed: int
) -> list[int]:
    """The indices of rows in the order of all epochs: shuffled, each ``epochs[i]`` times, similar lengths together."""
    rng = random.Random(seed)
    order: list[int] = []
    for epoch in range(max(epochs, default=0)):
        seen = [i for i in range(len(lengths)) if epochs[i] > epoch]
        rng.shuffle(seen)
        order += grouped_by_length(seen, lengths, batch_size, rng)
    return order


def grouped_by_length(
    indices: Sequence[int],
    lengths: Sequence[int],
    batch_size: int,
    rng: random.Random,
    pool: int = 50,
) -> list[int]:
    """Reorder shuffled indices so that each run of ``batch_size`` has similar lengths.

    Rows are sorted inside pools of ``pool`` batches; then the batches of a pool are shuffled. A short last batch stays
    last.
    """
    ordered: list[int] = []
    size = pool * batch_size
    for start in range(0, len(indices), size):
        part = sorted(indices[start : start + size], key=lambda i: lengths[i])
        batches = [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
        short = [batches.pop()] if len(batches[-1]) < batch_size else []
        rng.shuffle(batches)
        ordered += [i for batch in batches + short for i in batch]
    return ordered


class BradleyTerryTrainer(OrderedTrainer):
    """Trainer with the loss -log sigmoid(r_k(x, chosen) - r_k(x, rejected)) of each pair's own head k."""

    fresh = HEADS

    def __init__(self, model, tokenizer, args: TrainingArguments, rows: OrderedRows, **kwargs):
        def collator(batch):
            both = collate(tokenizer, [r["chosen"] for r in batch] + [r["rejected"] for r in batch])
            return both | {key: torch.tensor([r[key] for r in batch]) for key in ("head", "tie")}

        super().__init__(
            model=model, args=args, train_dataset=rows, data_collator=collator, **kwargs
        )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        head, tie = inputs.pop("head"), inputs.pop("tie")
        outputs = model(**inputs)
        loss = bradley_terry_loss(outputs.logits, head, tie)
        return (loss, outputs) if return_outputs else loss


def bradley_terry_loss(
    logits: torch.Tensor, head: torch.Tensor, tie: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean of -log sigmoid(r_chosen - r_rejected) (Eq 2); for a tie, the mean of both orders, least at a margin of 0.

    Args:
        logits: (2B, K), the B chosen rows first. head: (B,), which of the K outputs each pair teaches.
        tie: (B,), whether people call the two equal; None for no ties.
    """
    chosen, rejected = logits.float().chunk(2)
    margin = (chosen - rejected).gather(1, head[:, None]).squeeze(1)
    loss = -torch.nn.functional.logsigmoid(margin)
    if tie is not None:
        loss = loss + torch.where(tie, margin / 2, 0)  # -log sigmoid(-m) = m - log sigmoid(m)
    return loss.mean()


def save_trained(trainer: Any, folder: str | Path, recipe: dict[str, Any]) -> None:
    """Save the model of a Trainer, gathered from all processes where it is shared out; every process calls it."""
    state = trainer.accelerator.get_state_dict(trainer.model)
    if main_process():
        model = trainer.accelerator.unwrap_model(trainer.model)
        save_reward_model(model, folder, recipe, state)
