"""The log-probability of completions under a policy: of the reference, and of what learned from half of the pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel

from pro_core.rewards.scores import progress
from pro_core.runs.recipes import ConfigError
from pro_core.runs.training import cast_for_training
from pro_core.system.artefacts import WORK
from pro_core.system.extras import needs
from pro_core.system.processes import (
    main_process,
    process_device,
    processes,
    return_freed_memory,
    wait_for_all,
)

with needs("train"):
    from trl.trainer.utils import add_fused_lm_head

FILE = "log_probs.npy"
Tokens = tuple[list[int], list[int]]
"""The token ids of a prompt and of a completion."""


def write_log_probs(
    load: Callable[[], tuple[Any, Any]],
    sequences: Sequence[Tokens],
    folder: Path,
    batch_size: int,
    name: str,
) -> dict[str, Any]:
    """Write sum_t log pi(y_t given x, y_<t) of each sequence to ``folder/log_probs.npy``, (N,) float64.

    Every process calls it; they share the batches. Scored by TRL's own head, as in training, so a policy that has not
    moved from its reference has a log-ratio of 0 but for rounding.

    Args:
        load: gives the policy as it is trained (:func:`pro_core.policies.sft.load_to_train`), and its tokenizer.
        name: the policy's, for the error.

    Returns:
        ``{"sequences"}``: how many were scored.

    Raises:
        ConfigError: log-probabilities that are not finite.
    """
    rank, world = processes().process_index, processes().num_processes
    cuda = torch.cuda.is_available()
    model, tokenizer = load()
    language_model: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    add_fused_lm_head(language_model)
    model = cast_for_training(model).to(process_device()).eval()
    by_length = sorted(range(len(sequences)), key=lambda i: sum(map(len, sequences[i])))
    batches = [by_length[i : i + batch_size] for i in range(0, len(by_length), batch_size)]
    own = np.full(len(sequences), np.nan)
    told = progress("log-probabilities", "scored")
    for count, batch in enumerate(batches[rank::world], 1):
        padded = pad_batch([sequences[i] for i in batch], tokenizer.pad_token_id)
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=cuda):
            scored = completion_log_probs(
                model, {k: t.to(process_device()) for k, t in padded.items()}
            )
        own[batch] = scored.double().cpu().numpy()
        told(min(count * world * batch_size, len(sequences)), len(sequences))
    parts = folder / WORK
    if main_process():
        parts.mkdir(parents=True, exist_ok=True)
    wait_for_all()
    np.save(parts / f"{rank}.npy", own)
    wait_for_all()
    every = np.stack([np.load(parts / f"{r}.npy") for r in range(world)])
    broken = int(
        (~np.isfinite(every)).all(axis=0).sum()
    )  # one process has each: the others' rows are NaN
    if broken:
        raise ConfigError(
            f"{name}: got {broken} of {len(sequences)} log-probabilities that are not finite: the policy diverged, or "
            "its numbers overflow: train it with a lower learning rate, or start from another model",
            ["model", "start"],
        )
    if main_process():
        np.save(folder / FILE, np.nansum(every, axis=0))
    wait_for_all()
    del model
    return_freed_memory()
    return {"sequences": len(sequences)}


def read_log_probs(folder: Path) -> NDArray[np.float64]:
    """What :func:`write_log_probs` wrote."""
    return np.load(folder / FILE)


def pad_batch(sequences: Sequence[Tokens], pad_token_id: int) -> dict[str, torch.Tensor]:
    """``input_ids``, ``attention_mask`` and ``completion_mask`` (B, T), padded on the right."""
    T = max(len(prompt) + len(completion) for prompt, completion in sequences)
    ids = torch.full((len(sequences), T), pad_token_id)
    masks = torch.zeros(2, len(sequences), T, dtype=torch.long)
    for b, (prompt, completion) in enumerate(sequences):
        end = len(prompt) + len(completion)
        ids[b, :end] = torch.tensor([*prompt, *completion])
        masks[0, b, :end] = 1
        masks[1, b, len(prompt) : end] = 1
    return {"input_ids": ids, "attention_mask": masks[0], "completion_mask": masks[1]}


def completion_log_probs(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(B,) sums over the completions of a padded batch, by a model with TRL's fused head."""
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    outputs = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        labels=labels,
        fused_lm_head=True,
        use_cache=False,
    )
    return outputs.log_probs.sum(dim=1)
