"""Fitting the adapter on scored pairs: one trainer, four targets, an encoder frozen or trained.

It reads the table of :mod:`pro_core.rewards.scores`. Training pairs must carry out-of-fold scores: a panel's
scores of its own training pairs are too good, and weights learned from them trust it too much.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import TrainingArguments

from pro_core.adapter.model import (
    TARGETS,
    PreferenceAdapter,
    kl_to_target,
    load_balance_loss,
    pairwise_loss,
    regularizers,
    target_weights,
)
from pro_core.data.schema import fold_of
from pro_core.rewards.scores import columns, margins
from pro_core.runs.training import (
    OrderedTrainer,
    cast_for_training,
    train_resuming,
    training_arguments,
)
from pro_core.weights import entropy

TRAINING_VERSION = 1
"""Of the way from scored pairs to parameters: raised with every change of it that moves a parameter."""


class ScoredRows(Dataset):
    """Rows (prompt index, margin (K,), target (K,), weight (M,)) in training order."""

    def __init__(self, prompt, margin, target, weight, order):
        self.prompt, self.margin, self.target = prompt, margin, target
        self.weight, self.order = weight, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int):
        i = self.order[index]
        return self.prompt[i], self.margin[i], self.target[i], self.weight[i]


class AdapterTrainer(OrderedTrainer):
    """Trains the heads on cached features, or encoder and heads on tokens.

    Args:
        inputs: features (P, D) of the P distinct prompts, or their token lists.
        loss: (log-weights, margins, targets), each (B, M, K) -> losses (B, M).
        load_balance: times :func:`pro_core.adapter.model.load_balance_loss` of each batch.
    """

    fresh = ("heads",)

    def __init__(
        self,
        model,
        args: TrainingArguments,
        rows: ScoredRows,
        inputs,
        loss,
        load_balance: float = 0.0,
        tokenizer=None,
    ):
        self.row_loss, self.load_balance = loss, load_balance

        def collator(batch):
            prompt, margin, target, weight = zip(*batch, strict=True)
            # Many pairs share a prompt: encode each once.
            distinct, back = np.unique(prompt, return_inverse=True)
            if tokenizer is None:
                tokens = {"features": inputs[distinct]}
            else:
                lists = [inputs[i] for i in distinct]
                tokens = dict(
                    tokenizer.pad({k: [t[k] for t in lists] for k in lists[0]}, return_tensors="pt")
                )
            return {
                "tokens": tokens,
                "back": torch.tensor(back),
                "margin": torch.tensor(np.stack(margin)),
                "target": torch.tensor(np.stack(target)),
                "weight": torch.tensor(np.stack(weight)),
            }

        super().__init__(model=model, args=args, train_dataset=rows, data_collator=collator)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        tokens = inputs["tokens"]
        logits = model(tokens["features"]) if "features" in tokens else model(**tokens)
        log_weights = F.log_softmax(logits.float(), dim=-1)[inputs["back"]]
        margin, target = (inputs[k][:, None].expand_as(log_weights) for k in ("margin", "target"))
        loss = (self.row_loss(log_weights, margin, target) * inputs["weight"]).mean()
        if self.load_balance:
            loss = loss + self.load_balance * load_balance_loss(log_weights, inputs["weight"])
        return (loss, logits) if return_outputs else loss


def balanced(table: pd.DataFrame) -> NDArray[np.float32]:
    """Row weights (N,), mean 1, that give every (source, objective) group the same total.

    Without them TruthfulQA, with tens of thousands of pairs, decides everything.
    """
    sizes = table.groupby(["source", "objective"])["id"].transform("size").to_numpy(np.float64)
    weights = 1 / sizes
    return (weights / weights.mean()).astype(np.float32)


def bradley_terry_weights(margins_NK: ArrayLike, weight_N: ArrayLike) -> NDArray[np.float32]:
    """The one weight vector (K,) with the least pairwise loss at temperature 1."""
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


def bootstrap_weights(prompts: int, members: int, seed: int) -> NDArray[np.float32]:
    """How much each prompt counts for each member (P, M): the Bayesian bootstrap, Exp(1); ones for a single member.

    Drawing prompts with replacement would leave a third of them out of each member; these weights, of the same mean
    and variance, leave none out, which small sets need.
    """
    if members == 1:
        return np.ones((prompts, 1), np.float32)
    return np.random.default_rng(seed).exponential(1, (prompts, members)).astype(np.float32)


def fit_global_weights(
    margins_NK: ArrayLike,
    weight_N: ArrayLike,
    groups: Sequence[str],
    draws: int = 4000,
    seed: int = 0,
) -> NDArray[np.float32]:
    """The one weight vector (K,) with the best training accuracy, averaged over ``groups``: the strong rival.

    Searched over random points of the simplex, the corners, the middle, and the Bradley-Terry fit; refined around
    the best. Accuracy is what is compared later, so accuracy is what it gets to maximize.
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
    """The single weights (K,) that do best on the training pairs."""
    return fit_global_weights(
        margins(train, objective_names), balanced(train), list(train["objective"])
    )


def fit_adapter(
    table: pd.DataFrame,
    objective_names: Sequence[str],
    folder: str | Path,
    *,
    encoder: str,
    target: str = "pairwise",
    temperature: float = 1.0,
    train_encoder: bool = False,
    hidden: int = 128,
    max_length: int = 256,
    epochs: int = 10,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    kl_to_global: float = 0.01,
    entropy_floor: float = 0.1,
    annotated: float = 0.0,
    load_balance: float = 0.0,
    members: int = 5,
    layers: int = 1,
    seed: int = 0,
    features: dict[str, torch.Tensor] | None = None,
    global_weights: NDArray | None = None,
) -> PreferenceAdapter:
    """Fit an adapter on scored training pairs (Eq 8, or the pairwise loss), resuming from ``folder``.

    Args:
        table: training rows of a ``scores.parquet``, with a prompt each.
        target: ``paper``, ``paper_z``, ``margin`` (see :func:`pro_core.adapter.model.target_weights`); ``annotated``,
            all on the objective that people judged the pair by, which no reward enters; or ``pairwise``.
        temperature: tau of Eq 7, or the scale of the pairwise margin.
        kl_to_global, entropy_floor: of :func:`pro_core.adapter.model.regularizers`; used by ``pairwise`` alone.
        annotated: weight, beside the pairwise loss, of the KL to the ``annotated`` target; used by ``pairwise`` alone.
            The pairwise loss alone learns slowly which of two nearly mirrored objectives a prompt is about.
        load_balance: how much the mean weights of a batch are kept from collapsing onto few objectives, for every
            target (see :func:`pro_core.adapter.model.load_balance_loss`); 0.01 is the order that gates use.
        layers: how many of the encoder's upper layers the heads read.
        members: heads, each fitted to its own Bayesian bootstrap of the prompts; 1 for a single plain one.
        features: cached features by prompt JSON, to spare a frozen encoder the work.
        global_weights: (K,) what ``kl_to_global`` pulls to; fitted here when not given.

    Raises:
        ValueError: another target, or no rows.
    """
    if target not in TARGETS:
        raise ValueError(f"got the target {target!r}, expected one of {TARGETS}")
    if not len(table):
        raise ValueError("got no scored pairs to fit an adapter on")
    torch.manual_seed(seed)
    adapter = PreferenceAdapter(
        encoder, objective_names, hidden, max_length, train_encoder, members=members, layers=layers
    )
    prompts, index = np.unique(table["prompt"].to_numpy(str), return_inverse=True)
    inputs: Any
    if train_encoder:
        inputs = adapter.tokenize([json.loads(p) for p in prompts])
    else:
        if features is None:
            features = encode_prompts(adapter, list(prompts))
        encoded = torch.stack([features[p] for p in prompts])
        inputs = encoded[:, : adapter.width]

    margin, weight = margins(table, objective_names), balanced(table)
    # One draw a prompt and member, not a pair: the pairs of one prompt are no independent evidence.
    draws = bootstrap_weights(len(prompts), members, seed)
    member_weight = weight[:, None] * draws[index]
    targets = np.array([[n == o for n in objective_names] for o in table["objective"]], np.float32)
    if target == "pairwise":
        if global_weights is None:
            global_weights = fit_global_weights(margin, weight, list(table["objective"]))
        towards = torch.tensor(global_weights)

        def loss(log_weights, margin, target):
            loss = pairwise_loss(log_weights, margin, temperature) + regularizers(
                log_weights, towards.to(log_weights), kl_to_global, entropy_floor
            )
            return loss + annotated * kl_to_target(log_weights, target) if annotated else loss
    else:
        if target != "annotated":
            targets = target_weights(
                target,
                temperature,
                columns(table, "raw_chosen", objective_names),
                columns(table, "z_chosen", objective_names),
                columns(table, "z_rejected", objective_names),
            )

        def loss(log_weights, margin, target):
            return kl_to_target(log_weights, target)

    rng = random.Random(seed)
    order: list[int] = []
    for _ in range(epochs):
        epoch = list(range(len(table)))
        rng.shuffle(epoch)
        order += epoch
    rows = ScoredRows(index, margin, targets, member_weight, order)
    arguments = training_arguments(
        folder,
        len(rows),
        batch_size,
        learning_rate,
        seed,
        checkpoint_every=50 if train_encoder else 500,
        disable_tqdm=True,
        logging_strategy="no",
    )
    model = cast_for_training(adapter) if train_encoder else adapter.heads
    tokenizer = adapter.tokenizer if train_encoder else None
    trainer = AdapterTrainer(model, arguments, rows, inputs, loss, load_balance, tokenizer)
    train_resuming(trainer)
    adapter.float().eval()
    if train_encoder:
        encoded = adapter.encode_tokens(inputs)
    folds = [fold_of(json.loads(p)) for p in prompts]
    adapter.describe_training(encoded, folds, np.bincount(index, weight))
    adapter.training_record = {
        "target": target,
        "temperature": temperature,
        "seed": seed,
        "pairs": len(table),
        "prompts": len(prompts),
        "entropy_of_targets": None if target == "pairwise" else float(entropy(targets).mean()),
    }
    return adapter


def encode_prompts(adapter: PreferenceAdapter, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Features of prompts (messages as JSON), each once."""
    distinct = sorted(set(prompts))
    return dict(
        zip(distinct, adapter.encode([json.loads(p) for p in distinct]).clone(), strict=True)
    )
