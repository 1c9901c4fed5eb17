"""The losses of the DPO family on TRL's stable trainers.

With Delta(y) = log pi(y given x) - log pi_ref(y given x), the loss of a pair is

    dpo             -log sigmoid(beta (Delta(y_w) - Delta(y_l)))                                     arXiv 2305.18290
    ipo             (Delta(y_w) / |y_w| - Delta(y_l) / |y_l| - 1 / (2 beta))^2, TRL's mean per token         2310.12036
    simpo           -log sigmoid(beta log pi(y_w) / |y_w| - beta log pi(y_l) / |y_l| - gamma)                2405.14734
    wpo             dpo's, weighted by both completions' probability under the policy, not clamped           2406.11827
    kto             1 - sigmoid(beta (Delta(y_w) - KL)) and 1 - sigmoid(beta (KL - Delta(y_l)))              2402.01306
    adpo            dpo's, on the policy's own label where |beta (Delta(y_w) - Delta(y_l))| > gamma          2402.09401
    modpo           dpo's with beta / w_k and the margin w_-k r_-k(y) / beta added to log pi_ref             2310.03708
    selective_dpo, pro_dpo    dpo's, on other pairs or labels

The reference's log-probabilities are computed once, before training, and stand in the rows. That is what TRL's
``precompute_ref_log_probs`` does; so two private methods of TRL are replaced by ones that return the rows as they are
(``tests/test_preference.py`` compares every loss to arithmetic by hand). SimPO has no reference: there a row's columns
hold its margin.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from pro_core.policies.preference.log_probs import completion_log_probs
from pro_core.policies.preference.recipe import PreferenceRecipe
from pro_core.policies.rl.run import clean
from pro_core.policies.sft import (
    PolicyTrainer,
    accumulation,
    load_to_train,
    new_lora,
    save_policy,
)
from pro_core.prompting.policy_config import PolicyConfig
from pro_core.runs.recipes import ConfigError
from pro_core.runs.training import Progress, cast_for_training, train_resuming, training_arguments
from pro_core.system.extras import needs
from pro_core.system.processes import main_process, processes
from pro_core.system.storage import write_jsonl

with needs("train"):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

LOSSES: dict[str, dict[str, Any]] = {
    "ipo": {"loss_type": ["ipo"]},
    "simpo": {"loss_type": ["sigmoid_norm"]},
    "wpo": {"loss_type": ["sigmoid"], "use_weighting": True},
    "kto": {"loss_type": "kto"},
}
"""TRL's settings of those losses that are not dpo's."""


def loss_of(algorithm: str) -> dict[str, Any]:
    """TRL's settings of an algorithm's loss."""
    return LOSSES.get(algorithm, {"loss_type": ["sigmoid"]})


class ReadyRows:
    """Rows that hold token ids and the reference's log-probabilities already: TRL neither tokenizes nor scores."""

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset

    def _precompute_ref_logps(self, dataset, *args, **kwargs):
        return dataset


class PairTrainer(ReadyRows, PolicyTrainer, DPOTrainer):
    """TRL's trainer of pairs, see :class:`ReadyRows`."""


class SingleTrainer(ReadyRows, PolicyTrainer, KTOTrainer):
    """TRL's trainer of single completions, see :class:`ReadyRows`."""


class ActiveTrainer(PairTrainer):
    """ADPO: where the policy is sure of a pair, |beta delta| > gamma, it learns its own label and asks for none.

    The data hold all labels, so a pair on which a sure policy disagrees changes its sides. ``unasked`` in the log is
    the share of a step's pairs whose label nobody would have bought.
    """

    gamma: float = 1.3

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        with torch.no_grad():
            chosen, rejected = completion_log_probs(model, inputs).chunk(2)
        reference = inputs["ref_chosen_logps"] - inputs["ref_rejected_logps"]
        margin = self.beta * (chosen - rejected - reference)
        unasked = self.accelerator.gather_for_metrics((margin.abs() > self.gamma).float()).mean()
        self._metrics["train"]["unasked"].append(unasked.item())
        inputs = change_sides(inputs, margin < -self.gamma)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


def change_sides(inputs: dict[str, torch.Tensor], swapped: torch.Tensor) -> dict[str, torch.Tensor]:
    """A batch of B pairs, as TRL collates it (the chosen completions, then the rejected), in which the completions of
    the pairs in ``swapped`` (B,) have changed places."""
    B = len(swapped)
    place = torch.arange(B, device=swapped.device)
    first, second = torch.where(swapped, place + B, place), torch.where(swapped, place, place + B)
    order = torch.cat([first, second])
    names = ("ref_chosen_logps", "ref_rejected_logps")
    reference = torch.cat([inputs[name] for name in names])[order].chunk(2)
    moved = {k: t[order] for k, t in inputs.items() if k not in names}
    return moved | dict(zip(names, reference, strict=True))


def pairs_at_once(recipe: PreferenceRecipe) -> int:
    """How many pairs one forward pass of one process has."""
    world = processes().num_processes
    if recipe.batch_size % world:
        raise ConfigError(
            f"batch_size {recipe.batch_size} cannot be shared evenly by {world} processes",
            ["batch_size"],
        )
    return recipe.batch_size // world // accumulation(recipe.batch_size, recipe.rows_per_device)


def make_trainer(
    recipe: PreferenceRecipe,
    rows: Sequence[dict[str, Any]],
    start: Path | None,
    beta: float,
    learning_rate: float,
    seed: int,
    work: Path,
) -> Trainer:
    """TRL's trainer for one trial, its checkpoints in ``work``.

    Args:
        recipe: of one method. rows: see :func:`pro_core.policies.preference.data.pair_rows` and ``single_rows``.
        start: the policy that is trained further: a LoRA where the recipe trains one, else a whole model; None for the
            recipe's model itself.
        beta: as the loss has it.
    """
    single = recipe.algorithm == "kto"
    size = 2 if single else 1  # rows of a pair
    arguments = training_arguments(
        work,
        len(rows),
        size * recipe.batch_size,
        learning_rate,
        seed,
        kind=KTOConfig if single else DPOConfig,
        checkpoint_every=recipe.checkpoint_every,
        accumulation=accumulation(recipe.batch_size, recipe.rows_per_device),
        beta=beta,
        max_length=None,
        precompute_ref_log_probs=True,
        gradient_checkpointing=recipe.gradient_checkpointing,
        logging_steps=1,
        disable_tqdm=not sys.stderr.isatty(),
        **loss_of(recipe.algorithm),
    )
    model, tokenizer = load_to_train(recipe.model, start, recipe.lora, recipe.max_length)
    fresh = new_lora(recipe.lora) if recipe.lora is not None and start is None else None
    kinds: dict[str, Any] = {"kto": SingleTrainer, "adpo": ActiveTrainer}
    trainer: Any = kinds.get(recipe.algorithm, PairTrainer)(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=tokenizer,
        peft_config=fresh,
        callbacks=[Progress()],
    )
    trainer.gamma = recipe.gamma
    trainer.remove_callback(PrinterCallback)
    if "ref" in getattr(trainer.model, "peft_config", {}):
        trainer.model.delete_adapter("ref")  # the reference stands in the rows
    cast_for_training(trainer.model)
    return trainer


def train_pairs(
    recipe: PreferenceRecipe,
    rows: Sequence[dict[str, Any]],
    start: Path | None,
    config: PolicyConfig,
    folder: Path,
    beta: float,
    learning_rate: float,
    seed: int,
) -> dict[str, Any]:
    """Train one trial and save its policy in ``folder/checkpoint``; resumes from ``folder/work``. Arguments as
    :func:`make_trainer`. Every process calls it, the main one writes.

    Returns:
        ``{"steps", "pairs", "tokens"}``, and for adpo ``unasked``: pairs, of all that were learned, whose label it
        would not have bought.
    """
    trainer = make_trainer(recipe, rows, start, beta, learning_rate, seed, folder / "work")
    train_resuming(trainer)
    save_policy(trainer, folder / "checkpoint", config, whole=recipe.lora is None)
    log = [clean(entry) for entry in trainer.state.log_history if "loss" in entry]
    if main_process():
        write_jsonl(folder / "log.jsonl", log)
    trainer.accelerator.free_memory()
    unset_hf_deepspeed_config()
    names = ("prompt_ids", "chosen_ids", "rejected_ids", "prompt_ids")
    if recipe.algorithm == "kto":
        names = ("prompt_ids", "completion_ids", "prompt_ids", "KL_completion_ids")
    record: dict[str, Any] = {
        "steps": trainer.state.global_step,
        "pairs": len(rows) // (2 if recipe.algorithm == "kto" else 1),
        "tokens": sum(len(row[name]) for row in rows for name in names),
    }
    if recipe.algorithm == "adpo":
        record["unasked"] = round(sum(e["unasked"] for e in log) * recipe.batch_size)
    return record
