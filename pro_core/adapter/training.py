"""Fitting the adapter on scored pairs: one function, five targets, a frozen or trained encoder.

If the encoder is frozen, heads are fitted on its features (:mod:`pro_core.adapter.heads`), in seconds. If it is trained
too, transformers' Trainer does it, with checkpoints. Both see the same rows in the same order.

Pairs come from the table of :mod:`pro_core.rewards.scores`. Training pairs must carry out-of-fold scores: a panel's
scores of its own training pairs are too good, and weights learned from them trust it too much.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from transformers import TrainingArguments

from pro_core.adapter.encoder import PromptEncoder, encode_prompts
from pro_core.adapter.global_weights import balanced, fit_global_weights
from pro_core.adapter.heads import ScoredRows, fit_heads, shuffled
from pro_core.adapter.model import PreferenceAdapter
from pro_core.adapter.targets import (
    TARGETS,
    RowLoss,
    batch_loss,
    explicit_loss,
    regularized_pairwise_loss,
    target_weights,
)
from pro_core.data.schema import fold_of
from pro_core.rewards.scores import columns, margins
from pro_core.runs.training import (
    OrderedTrainer,
    bootstrap_weights,
    cast_for_training,
    train_resuming,
    training_arguments,
)
from pro_core.weights import entropy

TRAINING_VERSION = 1
"""Version of the path from scored pairs to parameters. Every change that moves a parameter raises it."""


class AdapterTrainer(OrderedTrainer):
    """Trains a model of log-weights on scored rows, usually an adapter with its encoder.

    Args:
        read: maps the indices of distinct prompts to the model's keyword arguments.
        loss, load_balance: see :func:`pro_core.adapter.targets.batch_loss`.
    """

    fresh = ("heads",)

    def __init__(
        self,
        model: torch.nn.Module,
        args: TrainingArguments,
        rows: ScoredRows,
        read: Callable[[NDArray], dict[str, torch.Tensor]],
        loss: RowLoss,
        load_balance: float = 0.0,
    ):
        self.row_loss, self.load_balance = loss, load_balance

        def collator(batch):
            prompt, *parts = zip(*batch, strict=True)
            learned = dict(zip(("margin", "target", "weight"), parts, strict=True))
            # Many pairs share a prompt: read each once.
            distinct, back = np.unique(prompt, return_inverse=True)
            return {
                "inputs": read(distinct),
                "back": torch.tensor(back),
                "rows": {name: torch.tensor(np.stack(part)) for name, part in learned.items()},
            }

        super().__init__(model=model, args=args, train_dataset=rows, data_collator=collator)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        logits = model(**inputs["inputs"])
        log_weights = F.log_softmax(logits.float(), dim=-1)[inputs["back"]]
        loss = batch_loss(self.row_loss, log_weights, inputs["rows"], self.load_balance)
        return (loss, logits) if return_outputs else loss


def fit_adapter(
    table: pd.DataFrame,
    objective_names: Sequence[str],
    folder: str | Path | None = None,
    *,
    encoder: str | PromptEncoder,
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
    """Fit an adapter on scored training pairs (Eq 8, or the pairwise loss).

    Args:
        table: training rows of a ``scores.parquet``, with a prompt each.
        folder: where a trained encoder's checkpoints go, and where a killed fit resumes from. Heads alone need none.
        encoder: a Hugging Face id or folder; or a frozen encoder that is loaded already, which the adapter then holds.
        target: ``paper``, ``paper_z``, ``margin`` (see :func:`pro_core.adapter.targets.target_weights`);
            ``annotated``, all weight on the objective that people judged the pair by, without rewards; or
            ``pairwise``.
        temperature: tau of Eq 7, or the scale of the pairwise margin.
        kl_to_global, entropy_floor: see :func:`pro_core.adapter.targets.regularizers`; only for ``pairwise``.
        annotated: weight, beside the pairwise loss, of the KL to the ``annotated`` target; only for ``pairwise``.
            The pairwise loss alone learns slowly which of two nearly mirrored objectives a prompt is about.
        load_balance: how much the mean weights of a batch are kept from collapsing onto few objectives, for every
            target (see :func:`pro_core.adapter.targets.load_balance_loss`); gates use about 0.01.
        max_length, layers: of :class:`pro_core.adapter.encoder.PromptEncoder`, if it is not loaded yet.
        members: heads, each fitted to its own Bayesian bootstrap of the prompts; 1 for one head without bootstrap.
        features: {prompt as JSON: cached features} of a frozen encoder, to save time.
        global_weights: (K,) what ``kl_to_global`` pulls to; fitted here when not given.

    Raises:
        ValueError: an unknown target, no rows, or a trained encoder without a folder.
    """
    if target not in TARGETS:
        raise ValueError(f"got the target {target!r}, expected one of {TARGETS}")
    if not len(table):
        raise ValueError("got no scored pairs to fit an adapter on")
    if train_encoder and folder is None:
        raise ValueError("got no folder, expected one: a trained encoder needs it for checkpoints")
    torch.manual_seed(seed)
    if isinstance(encoder, str):
        encoder = PromptEncoder(encoder, max_length, layers)
    adapter = PreferenceAdapter(encoder, objective_names, hidden, members, train_encoder)

    prompts, index = np.unique(table["prompt"].to_numpy(str), return_inverse=True)
    margin, weight = margins(table, objective_names), balanced(table)
    # One draw per prompt and member, not per pair: the pairs of one prompt are not independent evidence.
    draws = bootstrap_weights(len(prompts), members, seed)
    targets = np.array([[n == o for n in objective_names] for o in table["objective"]], np.float32)
    loss: RowLoss = explicit_loss
    if target == "pairwise":
        if global_weights is None:
            global_weights = fit_global_weights(margin, weight, list(table["objective"]))
        loss = regularized_pairwise_loss(
            temperature, global_weights, kl_to_global, entropy_floor, annotated
        )
    elif target != "annotated":
        kinds = ("raw_chosen", "z_chosen", "z_rejected")
        rewards = (columns(table, kind, objective_names) for kind in kinds)
        targets = target_weights(target, temperature, *rewards)
    order = shuffled(len(table), epochs, seed)
    rows = ScoredRows(index, margin, targets, weight[:, None] * draws[index], order)

    how: dict[str, Any] = {"batch_size": batch_size, "learning_rate": learning_rate}
    if train_encoder:
        tokens = encoder.tokenize([json.loads(p) for p in prompts])
        arguments = training_arguments(
            str(folder),
            len(rows),
            seed=seed,
            checkpoint_every=50,
            disable_tqdm=True,
            logging_strategy="no",
            **how,
        )

        def read(distinct: NDArray) -> dict[str, torch.Tensor]:
            return dict(encoder.padded([tokens[i] for i in distinct]))

        model = cast_for_training(adapter)
        train_resuming(AdapterTrainer(model, arguments, rows, read, loss, load_balance))
        adapter.float()
        features_PE = encoder.encode_tokens(tokens)
    else:
        if features is None:
            features = encode_prompts(encoder, list(prompts))
        features_PE = torch.stack([features[p] for p in prompts])
        read_by_heads = features_PE[:, : encoder.width]
        how["load_balance"] = load_balance
        fit_heads([adapter.heads], read_by_heads, [rows], loss, [seed], **how)
    adapter.eval()
    folds = [fold_of(json.loads(p)) for p in prompts]
    adapter.describe_training(features_PE, folds, np.bincount(index, weight))
    adapter.training_record = {
        "target": target,
        "temperature": temperature,
        "seed": seed,
        "pairs": len(table),
        "prompts": len(prompts),
        "entropy_of_targets": None if target == "pairwise" else float(entropy(targets).mean()),
    }
    return adapter
