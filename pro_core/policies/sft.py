"""Supervised fine-tuning of a policy by TRL's SFTTrainer: the prompt with its condition in, the response out (Eq 10).

The prompt is rendered by the code that renders it for generation, so a policy is trained on exactly what it will read;
the loss is on the response and the token that ends it. The order of the rows is fixed beforehand, so a killed run that
is resumed sees the same rows.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from pro_core.data.objectives import Message
from pro_core.data.schema import clean_text
from pro_core.generation.chat import PromptTooLong, fit, has_template, without_marks
from pro_core.generation.request import checked
from pro_core.policies.recipe import PolicyRecipe
from pro_core.prompting.policy_config import PolicyConfig, load_language_model
from pro_core.rewards.bradley_terry import grouped_by_length
from pro_core.runs.recipes import ConfigError
from pro_core.runs.training import (
    OrderedTrainer,
    Progress,
    cast_for_training,
    train_resuming,
    training_arguments,
)
from pro_core.system.extras import needs
from pro_core.system.loading import greatest_length
from pro_core.system.processes import main_process, processes
from pro_core.system.storage import first_line

with needs("train"):
    import trl.trainer.utils
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

TRAINING_VERSION = 1
"""Version of the path from rows to parameters. Every change that moves a parameter raises it."""
Row = tuple[Sequence[Message], str]
"""A conversation with its condition in it, and the response to learn."""


def score_only_labelled_tokens() -> None:
    """On a CPU, make TRL's trainers score only tokens with a label, for the rest of this process.

    Where Triton does not run, TRL's fused head also scores the prompt's tokens, so that no new shapes are compiled.
    Nothing is compiled on a CPU: leaving them out, as TRL does on a GPU, saves a third of a step and changes a loss by
    rounding at most. TRL has no setting for it, so this replaces a private function of TRL. Does nothing on a GPU.

    Raises:
        RuntimeError: this version of TRL decides it elsewhere.
    """
    if torch.cuda.is_available():
        return
    if not hasattr(trl.trainer.utils, "_use_triton"):
        raise RuntimeError(
            f"TRL {trl.__version__} has no trl.trainer.utils._use_triton, which decides what its fused head scores: "
            "install the version of requirements.txt, or leave out score_only_labelled_tokens()"
        )
    trl.trainer.utils._use_triton = lambda device: True


class PolicyTrainer(OrderedTrainer):
    """Our order of rows and, on a CPU, our optimizer for bf16 parameters; TRL's trainers of policies are mixed in."""

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        assert self.model is not None
        cast_for_training(self.model)  # PEFT gives a LoRA that it loads back in fp32

    def create_model_card(self, *args, **kwargs):
        """Nothing: TRL would write a card into every checkpoint, and a finished policy has one of ours."""


class OrderedSFTTrainer(PolicyTrainer, SFTTrainer):
    """TRL's trainer, see :class:`PolicyTrainer`."""


@dataclass
class TokenizedRows:
    """What a run learns from, in training order.

    Attributes:
        rows: steps x batch size of ``{"input_ids", "labels"}``, the labels of the prompt -100.
        left_out: rows whose last message alone is longer than a prompt may be.
        cut: rows used whose response was cut for want of room.
    """

    rows: list[dict[str, list[int]]]
    left_out: int
    cut: int

    def tokens(self) -> dict[str, int]:
        """How many tokens are read, and how many of them have a loss."""
        return {
            "tokens": sum(len(row["input_ids"]) for row in self.rows),
            "completion_tokens": sum(label >= 0 for row in self.rows for label in row["labels"]),
        }


def tokenize_row(tokenizer, row: Row, max_length: int, max_prompt: int) -> dict[str, Any] | None:
    """Token ids and labels of one row; None when its last message alone has more than ``max_prompt`` tokens.

    A longer conversation loses its oldest turns, as in generation. A response that does not fit is cut, and is not
    taught to end there.
    """
    messages, completion = row
    try:
        prompt, _ = fit(tokenizer, checked(messages), max_prompt)
    except PromptTooLong:
        return None
    answer = _completion_ids(tokenizer, completion)
    kept = answer[: max_length - len(prompt)]
    return {
        "input_ids": [*prompt, *kept],
        "labels": [-100] * len(prompt) + kept,
        "cut": len(kept) < len(answer),
    }


def _completion_ids(tokenizer, text: str) -> list[int]:
    text = without_marks(tokenizer, clean_text(text).strip())
    if has_template(tokenizer):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    else:  # plain text goes on after "Assistant:", with the blank as this tokenizer writes it
        before = tokenizer("Assistant:", add_special_tokens=False)["input_ids"]
        whole = tokenizer(f"Assistant: {text}", add_special_tokens=False)["input_ids"]
        ids = whole[len(before) :]
    return [*ids, tokenizer.eos_token_id]


def tokenize_rows(
    tokenizer,
    rows: Sequence[Row],
    steps: int,
    batch_size: int,
    max_length: int,
    max_prompt: int,
    seed: int,
) -> TokenizedRows:
    """``steps`` x ``batch_size`` rows in training order: shuffled in every pass, in batches of similar length.

    Raises:
        ConfigError: no rows, or none that fits.
    """
    made: dict[int, dict[str, Any] | None] = {}
    taken: list[int] = []
    for index in _shuffled(len(rows), seed):
        if index not in made:
            made[index] = tokenize_row(tokenizer, rows[index], max_length, max_prompt)
        if made[index] is not None:
            taken.append(index)
        if len(taken) == steps * batch_size:
            break
        if len(made) == len(rows) and not taken:
            raise ConfigError(
                f"max_length {max_length}: none of {len(rows)} prompts fits into {max_prompt} tokens"
            )
    kept = {i: row for i in taken if (row := made[i]) is not None}
    lengths = [len(kept[i]["input_ids"]) if i in kept else 0 for i in range(len(rows))]
    order = grouped_by_length(taken, lengths, batch_size, random.Random(seed))
    return TokenizedRows(
        [{key: kept[i][key] for key in ("input_ids", "labels")} for i in order],
        sum(row is None for row in made.values()),
        sum(row["cut"] for row in kept.values()),
    )


def _shuffled(count: int, seed: int) -> Iterator[int]:
    if not count:
        raise ConfigError("there are no rows to learn from")
    rng = random.Random(seed)
    while True:
        yield from rng.sample(range(count), count)


def fine_tune(
    rows: Sequence[Row],
    folder: Path,
    config: PolicyConfig,
    *,
    model: str,
    start: Path | None,
    lora: dict[str, Any] | None,
    steps: int,
    batch_size: int,
    learning_rate: float,
    constant: bool,
    max_length: int,
    max_prompt: int,
    seed: int,
    work: Path,
    rows_per_device: int | None = None,
    gradient_checkpointing: bool = False,
    checkpoint_every: int = 200,
) -> dict[str, Any]:
    """Train and save a policy in ``folder``; resumes from ``work``. Every process calls it, the main one writes.

    Args:
        model: the base model, a folder or hub id. ``start``: the policy to go on from; None for the base model.
        lora: PEFT settings, by default rank 16 on every linear layer; None trains every parameter.
        constant: a constant learning rate, as RiC's online stage has; else linear with a warm-up.
        rows_per_device: rows at once; the rest of a batch is accumulated. None for all of a device's share.

    Returns:
        ``{"rows", "left_out", "cut", "steps", "tokens", "completion_tokens"}``.
    """
    language_model, tokenizer = load_to_train(model, start, lora, max_length)
    data = tokenize_rows(tokenizer, rows, steps, batch_size, max_length, max_prompt, seed)
    arguments = training_arguments(
        work,
        len(data.rows),
        batch_size,
        learning_rate,
        seed,
        kind=SFTConfig,
        checkpoint_every=checkpoint_every,
        warmup=0.0 if constant else 0.06,
        lr_scheduler_type="constant" if constant else "linear",
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        gradient_checkpointing=gradient_checkpointing,
        disable_tqdm=not sys.stderr.isatty(),
        accumulation=accumulation(batch_size, rows_per_device),
    )
    fresh = None
    if lora is not None and start is None:
        fresh = new_lora(lora)
    trainer = OrderedSFTTrainer(
        model=language_model,
        args=arguments,
        train_dataset=Dataset.from_list(data.rows),
        processing_class=tokenizer,
        peft_config=fresh,
        callbacks=[Progress()],
    )
    assert trainer.model is not None
    cast_for_training(trainer.model)
    train_resuming(trainer)
    save_policy(trainer, folder, config, whole=lora is None)
    trainer.accelerator.free_memory()
    unset_hf_deepspeed_config()  # else the next model that is loaded would be shared out, too
    record = {"rows": len(rows), "left_out": data.left_out, "cut": data.cut, "steps": steps}
    return record | data.tokens()


TUNING = (
    "model",
    "lora",
    "batch_size",
    "max_length",
    "max_prompt",
    "rows_per_device",
    "gradient_checkpointing",
    "checkpoint_every",
)


def tuning_settings(recipe: PolicyRecipe) -> dict[str, Any]:
    """The arguments of :func:`fine_tune` that a recipe has under the same names."""
    return {name: getattr(recipe, name) for name in TUNING}


def new_lora(settings: dict[str, Any]) -> LoraConfig:
    """A new LoRA by PEFT's settings, by default rank 16 on every linear layer."""
    default: dict[str, Any] = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
    return LoraConfig(task_type="CAUSAL_LM", **(default | settings))


def load_to_train(
    model: str, start: Path | None, lora: dict[str, Any] | None, max_length: int | None = None
):
    """The model to train, without a new LoRA, and its tokenizer.

    Raises:
        ConfigError: it cannot be loaded, or reads fewer than ``max_length`` tokens.
    """
    cpu = not torch.cuda.is_available()
    # A whole model is trained in fp32 under autocast on a GPU; on a CPU see `cast_for_training`.
    dtype = torch.bfloat16 if cpu or lora is not None else torch.float32
    source = str(start) if start is not None else model
    try:
        loaded, tokenizer, _ = load_language_model(source, trainable=True, dtype=dtype)
    except Exception as error:  # every loader has exceptions of its own
        raise ConfigError(
            f"cannot load the model {source!r}: {first_line(error)}", ["model"]
        ) from error
    limit = greatest_length(loaded)
    if max_length is not None and limit is not None and max_length > limit:
        raise ConfigError(
            f"got max_length {max_length}, expected at most the {limit} tokens that {model!r} can read"
        )
    return loaded, tokenizer


def accumulation(batch_size: int, rows_per_device: int | None) -> int:
    share = batch_size // processes().num_processes
    if rows_per_device is None or rows_per_device >= share:
        return 1
    if share % rows_per_device:
        raise ConfigError(
            f"rows_per_device {rows_per_device}: a device's share of batch_size {batch_size} is {share} rows, "
            "expected a divisor of it"
        )
    return share // rows_per_device


def save_policy(
    trainer,
    folder: Path,
    config: PolicyConfig,
    whole: bool,
    state: dict[str, torch.Tensor] | None = None,
) -> None:
    """Save the trained parameters as safetensors, gathered from all processes if they are sharded.

    Args:
        state: all parameters, if the trainer's accelerator does not know that they are sharded.
    """
    if state is None:
        state = trainer.accelerator.get_state_dict(trainer.model)
    if not main_process():
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    folder.mkdir(parents=True, exist_ok=True)
    if whole:
        trainer.processing_class.save_pretrained(folder)
    else:
        for lora in model.peft_config.values():
            lora.base_model_name_or_path = config.base  # not where this machine keeps it
            if isinstance(lora.target_modules, set):
                lora.target_modules = sorted(lora.target_modules)  # the same file in every process
    model.save_pretrained(folder, state_dict=state)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's card, which names local folders
    config.save(folder)
