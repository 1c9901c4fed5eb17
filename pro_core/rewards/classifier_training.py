"""Training of MOSLIM's reward classifier: from ratings to levels, and its two losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import TrainingArguments

from pro_core.data.entries import RatedSource
from pro_core.data.schema import DataError, LabelledResponse
from pro_core.data.training_pairs import UNKNOWN, mark_trained_on, ungraded_note
from pro_core.rewards.batching import check_length, collate, encode
from pro_core.rewards.bradley_terry import OrderedRows, training_order
from pro_core.rewards.levels import IntensityScale, level_columns, log_probabilities
from pro_core.rewards.models import HEADS
from pro_core.runs.training import OrderedTrainer

TRAINING_VERSION = 1
"""Version of the way from ratings to parameters and figures; raise it with every change that moves one of them."""


@dataclass
class RatedResponses:
    """What a classifier learns from and is graded on.

    Attributes:
        train, held_out: responses whose split their source trains on, and all others.
        levels, held_out_levels: (N, K), see :func:`rated_levels`.
        epochs: how often each training response is seen.
        counts: training responses of each level.
        licences: for each entry of the recipe, its own licence or those of its training rows.
        notes: sentences about what was left out or is not graded.
    """

    train: list[LabelledResponse]
    epochs: list[int]
    held_out: list[LabelledResponse]
    levels: NDArray[np.int64]
    held_out_levels: NDArray[np.int64]
    counts: dict[str, int]
    licences: list[list[str]]
    notes: list[str]

    @classmethod
    def load(
        cls, sources: Sequence[RatedSource], scales: Sequence[IntensityScale], data_dir: str | Path
    ) -> RatedResponses:
        """Load every source and cut its ratings into levels. Held-out responses to prompts that were trained on are
        ``ungraded``, see :mod:`pro_core.data.training_pairs`.

        Raises:
            DataError: a file or rating that cannot be read, or a level without training responses.
        """
        notes: list[str] = []
        loaded = [(source, r) for source in sources for r in source.load(data_dir, notes)]
        train = [r for source, r in loaded if r.split in source.splits]
        epochs = [source.epochs for source, r in loaded if r.split in source.splits]
        held_out = [r for source, r in loaded if r.split not in source.splits]
        held_out = mark_trained_on(train, held_out)
        levels = rated_levels(train, scales)
        counts = count_levels(levels, scales)
        licences = [
            sorted({r.licence or UNKNOWN for of, r in loaded if of is s and r.split in s.splits})
            for s in sources
        ]
        notes += ungraded_note(held_out)
        held_out_levels = rated_levels(held_out, scales)
        return cls(train, epochs, held_out, levels, held_out_levels, counts, licences, notes)


def rated_levels(
    responses: Sequence[LabelledResponse], scales: Sequence[IntensityScale]
) -> NDArray[np.int64]:
    """The level of each response under each objective, (N, K), from 1; 0 where it has no rating.

    Raises:
        DataError: a rating that is not a number or is out of range (names the response).
    """
    levels = np.zeros((len(responses), len(scales)), dtype=np.int64)
    for i, response in enumerate(responses):
        for k, scale in enumerate(scales):
            if scale.name in response.labels:
                try:
                    levels[i, k] = scale.level(response.labels[scale.name])
                except DataError as error:
                    raise DataError(f"{response.source}, {response.id}: {error}") from None
    return levels


def count_levels(levels: NDArray, scales: Sequence[IntensityScale]) -> dict[str, int]:
    """Training responses of each level, by the names of :func:`level_columns`.

    Raises:
        DataError: an objective without data, or a level without any: its head could never answer it.
    """
    counts: dict[str, int] = {}
    for k, scale in enumerate(scales):
        responses = [int((levels[:, k] == level + 1).sum()) for level in range(scale.levels)]
        if not any(responses):
            raise DataError(
                f"{scale.name}: no training response has a rating; name its label in a data entry"
            )
        if not all(responses):
            raise DataError(
                f"{scale.name}: its levels 1 to {scale.levels} have {responses} training responses, expected some for "
                "each; move its thresholds, or add data"
            )
        counts.update(zip(level_columns([scale]), responses, strict=True))
    return counts


def tokenize_rated(
    tokenizer,
    data: RatedResponses,
    batch_size: int,
    max_length: int,
    seed: int,
    input_format: str = "pair",
) -> OrderedRows:
    """Tokenize training responses and fix the order in which they are seen; one row is ``{"tokens", "levels"}``.

    Repeats are spread over the whole run. With one epoch after another, a source that is repeated more often than the
    others would be alone at the end of the run, at a learning rate near 0.

    Args:
        batch_size: rows per step, over all processes. Batches hold rows of similar length, and are shuffled.

    Raises:
        StorageError: the model cannot read ``max_length`` tokens; also as :func:`encode`.
    """
    check_length(tokenizer, max_length)
    prompts = [r.prompt or [] for r in data.train]
    completions = [r.response for r in data.train]
    tokens = encode(tokenizer, prompts, completions, input_format, max_length)
    rows = [
        {"tokens": t, "levels": row} for t, row in zip(tokens, data.levels.tolist(), strict=True)
    ]
    seen = [i for i, epochs in enumerate(data.epochs) for _ in range(epochs)]
    lengths = [len(tokens[i]["input_ids"]) for i in seen]
    order = training_order(lengths, [1] * len(seen), batch_size, seed)
    return OrderedRows(rows, [seen[j] for j in order])


def classifier_loss(
    logits: torch.Tensor, levels: torch.Tensor, sizes: Sequence[int], loss: str
) -> torch.Tensor:
    """Mean over rows of the sum over a row's labelled heads i of -log p_i[level_i].

    ``joint`` is Eq 10, p from one softmax over the concatenation; ``per_head`` sums Eq 9 over the heads. Heads
    without a label are masked. The sum is divided by the number of rows, not of labels, so that the mean over the parts
    of a batch is the mean over the batch.

    Args:
        logits: (B, S). levels: (B, K), from 1; 0 where there is no label. sizes: the K heads' levels.
    """
    log_p = log_probabilities(logits.float(), sizes, loss)
    offsets = torch.tensor([0, *sizes[:-1]], device=logits.device).cumsum(0)
    labelled = levels > 0
    columns = (offsets + levels - 1).clamp(min=0)  # any column for an unlabelled head: it is masked
    return -(log_p.gather(1, columns) * labelled).sum() / len(logits)


class ClassifierTrainer(OrderedTrainer):
    """Trainer with :func:`classifier_loss`.

    Args:
        fast_heads: the fresh heads learn at ten times the rate, as in the project's other trainers.
    """

    def __init__(
        self,
        model,
        tokenizer,
        args: TrainingArguments,
        rows: OrderedRows,
        scales: Sequence[IntensityScale],
        loss: str,
        fast_heads: bool = True,
        **kwargs,
    ):
        def collator(batch):
            tokens = collate(tokenizer, [row["tokens"] for row in batch])
            return tokens | {"levels": torch.tensor([row["levels"] for row in batch])}

        super().__init__(
            model=model, args=args, train_dataset=rows, data_collator=collator, **kwargs
        )
        self.fresh = HEADS if fast_heads else ()
        self.sizes, self.loss = [scale.levels for scale in scales], loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        levels = inputs.pop("levels")
        outputs = model(**inputs)
        loss = classifier_loss(outputs.logits, levels, self.sizes, self.loss)
        return (loss, outputs) if return_outputs else loss
