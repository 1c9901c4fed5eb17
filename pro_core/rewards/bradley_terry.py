"""Bradley-Terry reward models on pairs (Eq 2): K separate ones, or one trunk with K heads.

TRL's RewardTrainer reads ``logits[:, 0]`` only, so it cannot train a trunk whose heads learn from different
pairs. This trainer is transformers' own Trainer with two things changed: the loss picks each pair's heads,
and the order of the rows is fixed beforehand (pairs of similar length together, to save padding), so that a
run resumed after a kill sees the rows it would have seen.

The pairs of one prompt share a batch where they fit in, and a text that is in several pairs of a batch is read once.
This saves time, and InstructGPT (2203.02155, section 3.5) found that a reward model overfits when a completion's pairs
are spread over the run.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import TrainingArguments

from pro_core.data.schema import PreferencePair
from pro_core.rewards.batching import check_length, collate, encode
from pro_core.rewards.models import HEADS, save_reward_model
from pro_core.runs.training import OrderedTrainer, bootstrap_weights
from pro_core.system.processes import main_process

TRAINING_VERSION = 2
"""Version of the way from pairs to parameters; raise it with every change that moves a parameter."""

PAIR = ("head", "tie", "weight")
"""What a row holds beside its two texts."""


@dataclass
class OrderedRows(Dataset):
    """Tokenized rows in training order; here one row is ``{"chosen", "rejected", "head", "tie", "weight"}``."""

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
    members: int = 1,
) -> OrderedRows:
    """Tokenize pairs and fix the order in which training sees them.

    Args:
        epochs: how often each pair is seen, one number per pair.
        batch_size: pairs per step, over all processes. Batches hold pairs of similar length, and are shuffled.
        members: heads per objective, each with its own :func:`bootstrap_weights` of the prompts.

    Raises:
        StorageError: the model cannot read ``max_length`` tokens; also as :func:`encode`.
    """
    check_length(tokenizer, max_length)
    heads = {name: k for k, name in enumerate(objective_names)}
    prompts = [p.prompt for p in pairs]
    chosen = encode(tokenizer, prompts, [p.chosen for p in pairs], input_format, max_length)
    rejected = encode(tokenizer, prompts, [p.rejected for p in pairs], input_format, max_length)
    groups = prompt_numbers(pairs)
    draws = bootstrap_weights(max(groups, default=0) + 1, members, seed)
    rows = [
        {
            "chosen": c,
            "rejected": r,
            "head": heads[p.objective],
            "tie": p.tie,
            "weight": p.weight * draws[g],
        }
        for c, r, p, g in zip(chosen, rejected, pairs, groups, strict=True)
    ]
    lengths = [max(len(r["chosen"]["input_ids"]), len(r["rejected"]["input_ids"])) for r in rows]
    return OrderedRows(rows, training_order(lengths, epochs, batch_size, seed, groups))


def prompt_numbers(pairs: Sequence[PreferencePair]) -> list[int]:
    """A number for each pair (N,): the same for the pairs of one prompt. Texts that stand alone have one each."""
    numbers: dict[str, int] = {}
    return [
        numbers.setdefault(json.dumps(p.prompt) if p.prompt else f"{i}", len(numbers))
        for i, p in enumerate(pairs)
    ]


def training_order(
    lengths: Sequence[int],
    epochs: Sequence[int],
    batch_size: int,
    seed: int,
    groups: Sequence[int] | None = None,
) -> list[int]:
    """The indices of rows in the order of all epochs: shuffled, each ``epochs[i]`` times, similar lengths together.

    Args:
        groups: a number for each row; rows of one group share a batch where they fit in. None for rows that each stand
            alone.
    """
    rng = random.Random(seed)
    order: list[int] = []
    for epoch in range(max(epochs, default=0)):
        seen = [i for i in range(len(lengths)) if epochs[i] > epoch]
        rng.shuffle(seen)
        if groups is None:
            order += grouped_by_length(seen, lengths, batch_size, rng)
            continue
        together: dict[int, list[int]] = defaultdict(list)
        for i in seen:
            together[groups[i]].append(i)
        order += grouped_by_prompt(list(together.values()), lengths, batch_size, rng)
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


def grouped_by_prompt(
    groups: Sequence[Sequence[int]],
    lengths: Sequence[int],
    batch_size: int,
    rng: random.Random,
    pool: int = 50,
) -> list[int]:
    """The rows of shuffled groups in an order whose runs of ``batch_size`` have similar lengths and whole groups.

    Groups are sorted by their longest row inside pools of about ``pool`` batches, and each batch is filled with the
    next ones that fit. Where none fits, one is split. The batches of a pool are shuffled; a short last batch stays
    last.
    """
    ordered: list[int] = []
    waiting: list[Sequence[int]] = []
    for i, group in enumerate(groups):
        waiting.append(group)
        if sum(map(len, waiting)) < pool * batch_size and i + 1 < len(groups):
            continue
        waiting.sort(key=lambda rows: max(lengths[row] for row in rows))
        batches = []
        while sum(map(len, waiting)) >= batch_size:
            batch: list[int] = []
            while room := batch_size - len(batch):
                fits = (k for k, rows in enumerate(waiting) if len(rows) <= room)
                if (k := next(fits, None)) is None:
                    batch += waiting[0][:room]
                    waiting[0] = waiting[0][room:]
                else:
                    batch += waiting.pop(k)
            batches.append(batch)
        rng.shuffle(batches)
        ordered += [row for batch in batches for row in batch]
    return ordered + [row for rows in waiting for row in rows]


class BradleyTerryTrainer(OrderedTrainer):
    """Trainer with :func:`bradley_terry_loss`: each pair teaches the heads of its own objective.

    Args:
        members: heads per objective. label_smoothing: see :func:`bradley_terry_loss`.
    """

    fresh = HEADS

    def __init__(
        self,
        model,
        tokenizer,
        args: TrainingArguments,
        rows: OrderedRows,
        members: int = 1,
        label_smoothing: float = 0.0,
        **kwargs,
    ):
        def collator(batch):
            texts: dict[tuple[int, ...], tuple[int, dict[str, list[int]]]] = {}
            pair = [
                [texts.setdefault(tuple(t["input_ids"]), (len(texts), t))[0] for t in both]
                for both in ((r["chosen"], r["rejected"]) for r in batch)
            ]
            tokens = collate(tokenizer, [text for _, text in texts.values()])
            rest = {key: torch.tensor(np.stack([r[key] for r in batch])) for key in PAIR}
            return tokens | rest | {"pair": torch.tensor(pair)}

        super().__init__(
            model=model, args=args, train_dataset=rows, data_collator=collator, **kwargs
        )
        self.members, self.label_smoothing = members, label_smoothing

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        pair, head, tie, weight = (inputs.pop(key) for key in ("pair", *PAIR))
        outputs = model(**inputs)
        logits = outputs.logits.unflatten(1, (-1, self.members))
        loss = bradley_terry_loss(logits, pair, head, tie, weight, self.label_smoothing)
        return (loss, outputs) if return_outputs else loss


def bradley_terry_loss(
    logits: torch.Tensor,
    pair: torch.Tensor,
    head: torch.Tensor,
    tie: torch.Tensor,
    weight: torch.Tensor,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Mean of -log sigmoid(r_chosen - r_rejected) (Eq 2) over pairs and members.

    A tie costs the mean of both orders, least at a margin of 0. With label smoothing e, every pair costs (1 - e) of its
    own order and e of the other one: its margin then has a best value, log((1 - e) / e), instead of growing for ever.

    Args:
        logits: (U, K, M) of U texts. pair: (B, 2), which of them each pair's chosen and rejected text is.
        head: (B,), the objective of each pair. tie: (B,), whether people call the two equal.
        weight: (B, M), how much each pair counts for each member.
        label_smoothing: e, the share of labels thought wrong, 0 to below 0.5.
    """
    chosen, rejected = logits.float()[pair].unbind(1)
    rows = torch.arange(len(head), device=head.device)
    margin = (chosen - rejected)[rows, head]  # (B, M)
    # -log sigmoid(-m) = m - log sigmoid(m)
    doubt = torch.where(tie, 0.5, label_smoothing)[:, None]
    return ((doubt * margin - F.logsigmoid(margin)) * weight).mean()


def save_trained(trainer: Any, folder: str | Path, recipe: dict[str, Any]) -> None:
    """Save the model of a Trainer, gathered from all processes where it is shared out; every process calls it."""
    state = trainer.accelerator.get_state_dict(trainer.model)
    if main_process():
        model = trainer.accelerator.unwrap_model(trainer.model)
        save_reward_model(model, folder, recipe, state)
