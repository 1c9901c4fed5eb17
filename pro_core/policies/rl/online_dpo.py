"""Online DPO on weighted rewards: our own loop over TRL's stable DPOTrainer.

A round samples G completions of each of its prompts from the current policy, pairs the best with the worst by
sum_k w_k(x) z_k, and trains on the pairs (arXiv 2402.04792, with the panel as the judge). The reference is the base
model in every round. Each round starts with a fresh optimizer.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PrinterCallback, Trainer
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from pro_core.data.schema import read_jsonl
from pro_core.generation import GenerationSettings, LocalGenerator
from pro_core.generation.sampling import WRITING_VERSION
from pro_core.policies.rl.run import Run, clean, explained
from pro_core.policies.rollouts import cut_share, failures, sample
from pro_core.policies.sft import PolicyTrainer, load_to_train, save_policy
from pro_core.policies.stages import POLICY, ROLLOUTS, stage
from pro_core.runs.recipes import ConfigError
from pro_core.runs.training import Progress, cast_for_training, train_resuming
from pro_core.system.artefacts import WORK, Artefact
from pro_core.system.extras import needs
from pro_core.system.processes import main_process, process_device
from pro_core.system.storage import content_hash, write_jsonl

with needs("train"):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer


class OrderedDPOTrainer(PolicyTrainer, DPOTrainer):
    """TRL's trainer, see :class:`PolicyTrainer`."""


def online_dpo_policy(run: Run) -> list[Artefact]:
    """Rounds of ``round_steps`` updates on ``prompts_per_step`` pairs each: two stages for every round."""
    stages: list[Artefact] = []
    policy = None
    for number in range(run.recipe.steps // run.recipe.round_steps):
        scored = score_round(run, number, policy)
        policy = train_round(run, number, policy, scored)
        stages += [scored, policy]
    return stages


def score_round(run: Run, number: int, policy: Artefact | None) -> Artefact:
    """G completions of each of a round's prompts by the current policy, with their rewards.

    Args:
        policy: the last round's; None for the base model.
    """
    recipe, task = run.recipe, run.task
    size = recipe.round_steps * recipe.prompts_per_step
    rows_of_round = [i % len(task.reads) for i in range(number * size, (number + 1) * size)]
    batch = recipe.rows_per_device or run.completions
    decides = [WRITING_VERSION, run.key, policy.key if policy else "", number, batch]
    key = content_hash(["online dpo rollouts", *decides])

    def load() -> LocalGenerator:
        source = policy.checkpoint if policy else recipe.model
        return LocalGenerator(source, device=process_device(), max_context=recipe.max_length)

    def make(folder: Path) -> dict[str, Any]:
        run.say(f"round {number + 1}, {size} prompts x {recipe.generations} completions")
        rollouts = sample(
            load,
            [task.reads[row] for row in rows_of_round],
            recipe.generations,
            GenerationSettings(recipe.max_new_tokens, recipe.sampling_temperature, recipe.top_p),
            folder / WORK,
            batch,
            key,
        )
        written = [(r.prompt, r.text) for r in rollouts if r.text is not None]
        texts, rows = [text for _, text in written], [rows_of_round[p] for p, _ in written]
        logged: dict[str, float] = {}
        rewards = task.reward([], texts, rows, log_metric=logged.__setitem__)
        failed = failures(rollouts)
        if main_process():
            lines = [
                {"prompt": p, "row": row, "text": text, "total": reward}
                for (p, text), row, reward in zip(written, rows, rewards, strict=True)
            ]
            write_jsonl(folder / "scored.jsonl", lines)
            write_jsonl(folder / "failed.jsonl", failed)
        given = [reward for reward in rewards if reward is not None]
        if given:
            logged["reward"] = float(np.mean(given))
        return {
            "completions": len(rollouts),
            "empty": sum(not text for text in texts),
            "cut": cut_share(rollouts),
            "skipped": len(rollouts) - len(given),
            "new_tokens": sum(map(len, task.reader.tokenizer(texts)["input_ids"])),
            "log": logged,
        }

    return stage(run.output / "rollouts", key, ROLLOUTS, make)


def train_round(run: Run, number: int, policy: Artefact | None, scored: Artefact) -> Artefact:
    """The policy after a round: trained on the round's pairs."""
    key = content_hash(["online dpo", run.key, scored.key])

    def make(folder: Path) -> dict[str, Any]:
        pairs, dropped = best_and_worst(read_jsonl(scored.folder / "scored.jsonl"))
        if not pairs:
            raise ConfigError(
                f"round {number + 1}: no prompt has two completions with different rewards, so there is no pair to "
                f"learn from; they are in {scored.folder}: raise `generations` or `sampling_temperature`",
                ["generations", "sampling_temperature"],
            )
        with explained(folder / "work"):
            trainer = dpo_trainer(run, folder / "work", pairs, policy)
            train_resuming(trainer)
            whole = run.recipe.lora is None
            save_policy(trainer, folder / "checkpoint", run.task.config, whole=whole)
        log = [clean(e) for e in trainer.state.log_history if "loss" in e]
        if main_process():
            write_jsonl(folder / "log.jsonl", log)
        trainer.accelerator.free_memory()
        unset_hf_deepspeed_config()
        return {"steps": run.recipe.round_steps, "pairs": len(pairs), "ties": dropped}

    return stage(run.output / "policies", key, POLICY, make)


def dpo_trainer(
    run: Run, work: Path, pairs: Sequence[dict[str, Any]], policy: Artefact | None
) -> Trainer:
    """TRL's trainer for a round, its checkpoints in ``work``."""
    recipe, task = run.recipe, run.task
    wanted = recipe.round_steps * recipe.prompts_per_step
    order = random.Random(run.seed).sample(range(len(pairs)), len(pairs))
    rows = []
    for n in range(wanted):  # a round with few pairs repeats some
        pair = pairs[order[n % len(pairs)]]
        answers = {k: [{"role": "assistant", "content": pair[k]}] for k in ("chosen", "rejected")}
        rows.append({"prompt": task.reader.fitted(task.reads[pair["row"]]), **answers})
    settings = {"max_length": recipe.max_length}
    arguments = run.arguments(DPOConfig, work, wanted, recipe.prompts_per_step, settings)
    start = policy.checkpoint if policy else None
    model, _ = load_to_train(recipe.model, start, recipe.lora, recipe.max_length)
    reference = None if recipe.lora is not None else load_to_train(recipe.model, None, None)[0]
    trainer: Trainer = OrderedDPOTrainer(
        model=model,
        ref_model=reference,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=task.reader.tokenizer,
        peft_config=run.fresh_lora() if start is None else None,
        callbacks=[Progress()],
    )
    trainer.remove_callback(PrinterCallback)
    trained: Any = trainer.model
    # TRL's reference would be a copy of the round's start; without that LoRA it is the base model.
    if "ref" in getattr(trained, "peft_config", {}):
        trained.delete_adapter("ref")
    cast_for_training(trained)
    return trainer


def best_and_worst(scored: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """The best and worst completion of each prompt, as ``{"row", "chosen", "rejected"}``, and how many prompts gave no
    pair: they have fewer than two completions with a reward and a text, or all rewards are equal."""
    of_prompt: dict[int, list[dict[str, Any]]] = {}
    for line in scored:
        of_prompt.setdefault(line["prompt"], [])
        if line["total"] is not None and line["text"].strip():
            of_prompt[line["prompt"]].append(line)
    pairs = []
    for lines in of_prompt.values():
        if len({line["total"] for line in lines}) > 1:
            best, worst = (f(lines, key=lambda line: line["total"]) for f in (max, min))
            pairs.append({"row": best["row"], "chosen": best["text"], "rejected": worst["text"]})
    return pairs, len(of_prompt) - len(pairs)
