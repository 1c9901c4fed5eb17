"""Online DPO on weighted rewards: our own loop over TRL's stable DPOTrainer.

A round writes G completions to each of its prompts with the policy as it is, takes the best and the worst by
sum_k w_k(x) z_k as a pair, and trains on the pairs (arXiv 2402.04792, with the panel as the judge). The reference is
the base model in every round. Optimizer states do not outlive a round.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PrinterCallback
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from pro_core.data.schema import read_jsonl
from pro_core.generation import GenerationSettings, LocalGenerator
from pro_core.generation.sampling import WRITING_VERSION
from pro_core.policies.rl.grpo import MorlhfRun, clean, explained
from pro_core.policies.rollouts import cut_share, failures, sample
from pro_core.policies.sft import PolicyTrainer, load_to_train, save_policy
from pro_core.policies.stages import POLICY, ROLLOUTS, stage
from pro_core.runs.training import ConfigError, Progress, cast_for_training, train_resuming
from pro_core.system.artefacts import Artefact
from pro_core.system.extras import needs
from pro_core.system.processes import main_process, process_device
from pro_core.system.storage import content_hash, write_jsonl

with needs("train"):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer


class OrderedDPOTrainer(PolicyTrainer, DPOTrainer):
    """TRL's trainer, see :class:`PolicyTrainer`."""


class OnlineDpoRun(MorlhfRun):
    """See :class:`MorlhfRun`. A round has ``round_steps`` updates on ``prompts_per_step`` pairs each."""

    def stages(self) -> list[Artefact]:
        stages: list[Artefact] = []
        policy = None
        for number in range(self.settings["steps"] // self.settings["round_steps"]):
            rollouts = self._rollouts(number, policy)
            policy = self._train_round(number, policy, rollouts)
            stages += [rollouts, policy]
        return stages

    def _rollouts(self, number: int, policy: Artefact | None) -> Artefact:
        """G completions to each of a round's prompts, with z scores and totals."""
        s = self.settings
        size = s["round_steps"] * s["prompts_per_step"]
        mine = [i % len(self.rows) for i in range(number * size, (number + 1) * size)]
        batch = s["rows_per_device"] or s["prompts_per_step"] * s["generations"]
        before = policy.key if policy else ""
        decides = [WRITING_VERSION, self.key, before, number, batch]
        key = content_hash(["online dpo rollouts", *decides])

        def make(folder: Path) -> dict[str, Any]:
            self._say(f"round {number + 1}, {size} prompts x {s['generations']} completions")
            settings = GenerationSettings(
                s["max_new_tokens"], s["sampling_temperature"], s["top_p"]
            )
            asked = [self.reads(self.rows[i]) for i in mine]
            where = folder / "responses"
            found = sample(
                lambda: self._generator(policy),
                asked,
                s["generations"],
                settings,
                where,
                batch,
                key,
            )
            reward = self.reward()
            written = [r for r in found if r.error is None]
            rows = [mine[r.prompt] for r in written]
            logged: dict[str, float] = {}
            totals = reward([], [r.text for r in written], rows, log_metric=logged.__setitem__)
            failed = failures(found)
            if main_process():
                lines = [
                    {"prompt": r.prompt, "row": row, "text": r.text, "total": total}
                    for r, row, total in zip(written, rows, totals, strict=True)
                ]
                write_jsonl(folder / "scored.jsonl", lines)
                write_jsonl(folder / "failed.jsonl", failed)
            there = [total for total in totals if total is not None]
            if there:
                logged["reward"] = float(np.mean(there))
            count = sum(map(len, self.tokenizer([r.text for r in written])["input_ids"]))
            missing = sum(total is None for total in totals)
            return {
                "completions": len(found),
                "empty": sum(not r.text for r in written),
                "cut": cut_share(found),
                "skipped": missing + len(found) - len(written),
                "new_tokens": count,
                "log": logged,
            }

        return stage(self.output / "rollouts", key, ROLLOUTS, make)

    def _train_round(self, number: int, policy: Artefact | None, rollouts: Artefact) -> Artefact:
        key = content_hash(["online dpo", self.key, rollouts.key])

        def make(folder: Path) -> dict[str, Any]:
            pairs, dropped = best_and_worst(read_jsonl(rollouts.folder / "scored.jsonl"))
            if not pairs:
                raise ConfigError(
                    f"round {number + 1}: no prompt has two completions of different reward, so there is no pair to "
                    f"learn from; they lie in {rollouts.folder}: raise `generations` or `sampling_temperature`"
                )
            with explained(folder / "work"):
                trainer = self._dpo_trainer(folder / "work", pairs, policy)
                train_resuming(trainer)
                whole = self.settings["lora"] is None
                save_policy(trainer, folder / "checkpoint", self.config(), whole=whole)
            log = [clean(e) for e in trainer.state.log_history if "loss" in e]
            if main_process():
                write_jsonl(folder / "log.jsonl", log)
            trainer.accelerator.free_memory()
            unset_hf_deepspeed_config()
            return {"steps": self.settings["round_steps"], "pairs": len(pairs), "ties": dropped}

        return stage(self.output / "policies", key, POLICY, make)

    def _dpo_trainer(self, work: Path, pairs: Sequence[dict[str, Any]], policy: Artefact | None):
        s = self.settings
        wanted = s["round_steps"] * s["prompts_per_step"]
        order = random.Random(self.seed).sample(range(len(pairs)), len(pairs))
        rows = []
        for n in range(wanted):  # a round whose prompts gave few pairs sees some again
            pair = pairs[order[n % len(pairs)]]
            said = {k: [{"role": "assistant", "content": pair[k]}] for k in ("chosen", "rejected")}
            rows.append({"prompt": self._fitted(self.reads(self.rows[pair["row"]])), **said})
        own = {"max_length": s["max_length"]}
        arguments = self.arguments(DPOConfig, work, wanted, s["prompts_per_step"], own)
        start = policy.checkpoint if policy else None
        model, _ = load_to_train(s["model"], start, s["lora"], s["max_length"])
        reference = None if s["lora"] is not None else load_to_train(s["model"], None, None)[0]
        trainer: Any = OrderedDPOTrainer(
            model=model,
            ref_model=reference,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=self.tokenizer,
            peft_config=self.fresh_lora() if start is None else None,
            callbacks=[Progress()],
        )
        trainer.remove_callback(PrinterCallback)
        # TRL's reference would be a copy of the round's start; without that LoRA it is the base.
        if "ref" in getattr(trainer.model, "peft_config", {}):
            trainer.model.delete_adapter("ref")
        cast_for_training(trainer.model)
        return trainer

    def _generator(self, policy: Artefact | None) -> LocalGenerator:
        source = policy.checkpoint if policy else self.settings["model"]
        return LocalGenerator(
            source, device=process_device(), max_context=self.settings["max_length"]
        )


def best_and_worst(scored: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """Of each prompt the completions with the highest and the lowest total, as ``{"row", "chosen", "rejected"}``; and
    how many prompts gave none: fewer than two completions with a reward and a text, or all of one reward."""
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
