"""MORLHF and PRO-MORLHF: max_pi E[sum_k w_k(x) z_k(x, y)] - beta KL(pi, pi_ref), by TRL's GRPO or RLOO (Eq 5, 9).

The two differ in where the weights come from, and in nothing else: what a run does is decided by its weights, not by
the name of their source, so an adapter that always answers uniform gives MORLHF's run, and K = 1 plain RLHF.

A run is a stage (:mod:`pro_core.policies.stages`). Prompts stand in a fixed order and TRL's checkpoints hold the random
states, so a killed run, started again, goes on to the same parameters.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from pro_core.data.objectives import Message
from pro_core.generation.chat import PromptTooLong, fit, has_template, readable
from pro_core.generation.request import checked
from pro_core.policies.rl.data import RewardData
from pro_core.policies.rl.reward import Array, CompositeReward, WeightedReward, run_weights
from pro_core.policies.sft import TRAINING_VERSION as SFT_VERSION
from pro_core.policies.sft import PolicyTrainer, accumulation, load_to_train, new_lora, save_policy
from pro_core.policies.stages import (
    POLICY,
    check_place,
    lora_base,
    publish,
    stage,
)
from pro_core.prompting.policy_config import PolicyConfig, load_tokenizer
from pro_core.prompting.templates import Condition
from pro_core.runs.training import (
    ConfigError,
    cast_for_training,
    train_resuming,
    training_arguments,
)
from pro_core.system.artefacts import Artefact
from pro_core.system.extras import needs
from pro_core.system.fingerprints import fingerprint
from pro_core.system.processes import from_main, main_process, processes
from pro_core.system.storage import content_hash, first_line, write_jsonl

with needs("train"):
    import requests
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

TRAINING_VERSION = 1
"""Of every algorithm here, from prompts to parameters: raised with every change that moves a parameter."""
NOT_LOGGED = ("step_time", "runtime", "per_second", "flos", "epoch", "num_tokens")
"""Of what TRL logs, all that differs between two equal runs, or says nothing."""


class OrderedGRPOTrainer(PolicyTrainer, GRPOTrainer):
    """TRL's trainer, see :class:`PolicyTrainer`; its own order of rows repeats prompts."""

    _get_train_sampler = GRPOTrainer._get_train_sampler


class OrderedRLOOTrainer(PolicyTrainer, RLOOTrainer):
    """As :class:`OrderedGRPOTrainer`."""

    _get_train_sampler = RLOOTrainer._get_train_sampler


class RewardProgress(TrainerCallback):
    """One line a step, for a log file."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and logs and "reward" in logs:
            shown = {"reward": logs["reward"], "kl": logs.get("kl")}
            shown |= {k.split("/")[1]: v for k, v in logs.items() if k.startswith("objectives/")}
            shown["tokens"] = logs.get("completions/mean_length")
            parts = [f"{name} {value:.3f}" for name, value in shown.items() if value is not None]
            print(f"step {state.global_step}/{state.max_steps} {', '.join(parts)}", flush=True)


class MorlhfRun:
    """One method under one seed.

    Args:
        settings: of a recipe's arm, see :func:`pro_core.policies.rl.recipe.read_morlhf`.
        data: what all arms share.
    """

    def __init__(self, settings: dict[str, Any], seed: int, data: RewardData):
        self.settings, self.seed, self.data = settings, seed, data
        self.output, self.method = Path(settings["output"]), settings["method"]
        self.max_prompt = settings["max_length"] - settings["max_new_tokens"]
        self.tokenizer = _tokenizer(settings["model"])
        if not has_template(self.tokenizer):
            raise ConfigError(
                f"model {settings['model']}: its tokenizer has no chat template, so it does not know where an answer "
                "ends: name a model that was trained to answer"
            )
        self.rows, self.left_out = self._draw()
        found: Any = self._weigh() if main_process() else None
        self.weights: Array = from_main(found)

    def run(self) -> Path:
        """Train, unless that is done; the folder of the finished policy.

        Raises:
            ConfigError: what cannot be trained. StorageError: a full disk, or something else where the policy is to go.
        """
        check_place(self.settings, self.seed)
        return self._finish(self.stages())

    def stages(self) -> list[Artefact]:
        """The run's stages, made unless they are there; the last one is the policy."""
        return [stage(self.output / "policies", self.key, POLICY, self._make)]

    @cached_property
    def key(self) -> str:
        """A hash of all that decides the parameters. The weights count by their values, not by their source's name."""
        s, d = self.settings, self.data
        how: tuple[str, ...]
        how = ("algorithm", "aggregation", "lora", "steps", "prompts_per_step", "generations")
        how += ("iterations", "round_steps", "learning_rate", "kl", "max_length", "max_new_tokens")
        how += ("sampling_temperature", "top_p", "trainer")
        asked = [[self.reads(row), d.kinds[row]] for row in self.rows]
        model = [s["model"], fingerprint(s["model"])]  # a LoRA names its base
        values = [model, d.panel_key, asked, self.weights.tolist(), self.seed]
        code = [TRAINING_VERSION, SFT_VERSION]
        return content_hash(["morlhf", code, values, {name: s[name] for name in how}])

    # ------------------------------------------------------------ parts

    def reads(self, row: int) -> list[Message]:
        """What the policy reads of one of the data's prompts."""
        return self.data.prompts[row]

    def _weigh(self) -> Array:
        s, d = self.settings, self.data
        asked = [d.prompts[row] for row in self.rows]
        try:
            return run_weights(
                s["weights"], asked, d.objective_names, d.adapter, self.seed, s["floors"]
            )
        except ValueError as error:
            raise ConfigError(f"{self.method}: {error}") from None

    def _draw(self) -> tuple[list[int], int]:
        """The rows of the run's prompts, each once, in a random order that is the same for every arm; and how many were
        left out because their last message alone is too long."""
        s, N = self.settings, len(self.data.prompts)
        wanted = s["steps"] // s["iterations"] * s["prompts_per_step"]
        rows: list[int] = []
        left_out = 0
        for row in np.random.default_rng(self.seed).permutation(N).tolist():
            if len(rows) == wanted:
                break
            if self._fitted(self.reads(row)) is None:
                left_out += 1
            else:
                rows.append(row)
        if not rows:
            raise ConfigError(
                f"max_length {s['max_length']}: none of {N} prompts fits into {self.max_prompt} tokens"
            )
        return rows, left_out

    def _fitted(self, prompt: Sequence[Message]) -> list[Message] | None:
        """The conversation as it will be read in generation: the oldest turns left out until it fits, in a form that
        the template takes, and no text that it would take for its own marks. None where the last message alone is too
        long."""
        messages = checked(prompt)
        try:
            _, dropped = fit(self.tokenizer, messages, self.max_prompt)
        except PromptTooLong:
            return None
        system = [m for m in messages[:1] if m["role"] == "system"]
        return readable(self.tokenizer, [*system, *messages[len(system) + dropped :]])

    def reward(self) -> WeightedReward:
        """The run's reward function, over its own prompts."""
        s, d = self.settings, self.data
        reward = CompositeReward(
            d.panel,
            d.objective_names,
            [d.prompts[row] for row in self.rows],
            self.weights,
            [d.kinds[row] for row in self.rows],
            s["aggregation"],
            s["generations"],
        )
        reward.tokenizer = self.tokenizer
        return reward

    def trainer(self, work: Path):
        """TRL's trainer for this run, its checkpoints in ``work``."""
        s = self.settings
        P, G = s["prompts_per_step"], s["generations"]
        world = processes().num_processes
        if P % world:
            raise ConfigError(
                f"prompts_per_step {P}: cannot be shared evenly by {world} processes, and a prompt's completions "
                "belong to one"
            )
        order = [i % len(self.rows) for i in range(s["steps"] // s["iterations"] * P)]
        conversations = [self._fitted(self.reads(row)) for row in self.rows]
        dataset = Dataset.from_list([{"prompt": conversations[i], "row": i} for i in order])
        grpo = s["algorithm"] == "grpo"
        own: dict[str, Any] = {
            "max_steps": s["steps"],
            "num_generations": G,
            "num_iterations": s["iterations"],
            "max_completion_length": s["max_new_tokens"],
            "temperature": s["sampling_temperature"],
            "top_p": s["top_p"],
            "shuffle_dataset": False,
        }
        if grpo and s["aggregation"] == "normalize_then_sum":
            own["scale_rewards"] = "batch"  # GDPO's second normalization
        kind = GRPOConfig if grpo else RLOOConfig
        arguments = self.arguments(kind, work, len(order) * G, P * G, own)
        model, _ = load_to_train(s["model"], None, s["lora"], s["max_length"])
        trainer: Any = (OrderedGRPOTrainer if grpo else OrderedRLOOTrainer)(
            model=model,
            reward_funcs=self.reward(),
            args=arguments,
            train_dataset=dataset,
            processing_class=self.tokenizer,
            peft_config=self.fresh_lora(),
            callbacks=[RewardProgress()],
        )
        trainer.remove_callback(PrinterCallback)  # it prints all of what is in log.jsonl
        cast_for_training(trainer.model)
        return trainer

    def arguments(self, kind: Any, work: Path, rows: int, batch_size: int, own: dict) -> Any:
        """Arguments of the kind that a trainer of TRL takes: the recipe's, the algorithm's ``own``, then `trainer`."""
        s = self.settings
        share = accumulation(batch_size, s["rows_per_device"])
        common = {
            "beta": s["kl"],
            "gradient_checkpointing": s["gradient_checkpointing"],
            "lr_scheduler_type": "constant",
            "warmup_steps": 0,
            "logging_steps": 1,
            "disable_tqdm": not sys.stderr.isatty(),
        }
        try:
            return training_arguments(
                work,
                rows,
                batch_size,
                s["learning_rate"],
                self.seed,
                kind=kind,
                checkpoint_every=s["checkpoint_every"],
                accumulation=share,
                **(common | own | s["trainer"]),
            )
        except ConfigError:
            raise
        except (TypeError, ValueError) as error:
            given = f"{kind.__name__} does not take {s['trainer']}"
            raise ConfigError(f"{self.method}: {given}: {error}") from None

    def _make(self, folder: Path) -> dict[str, Any]:
        self._announce(folder)
        with explained(folder / "work"):
            trainer = self.trainer(folder / "work")
            train_resuming(trainer)
            whole = self.settings["lora"] is None
            save_policy(trainer, folder / "checkpoint", self.config(), whole=whole)
        trainer.accelerator.free_memory()
        unset_hf_deepspeed_config()
        return self._record(folder, [e for e in trainer.state.log_history if "loss" in e])

    def _announce(self, folder: Path) -> None:
        s = self.settings
        self._say(
            f"{s['algorithm']}, {len(self.rows)} prompts ({self.left_out} too long), {s['steps']} steps of "
            f"{s['prompts_per_step']} x {s['generations']} completions"
        )
        if main_process():
            write_jsonl(folder / "prompts.jsonl", self._listed_prompts())

    def _record(self, folder: Path, log: list[dict[str, Any]]) -> dict[str, Any]:
        """What a finished stage says of itself, from the log of its batches, which it writes to ``log.jsonl``."""
        s = self.settings
        if main_process():
            write_jsonl(folder / "log.jsonl", [clean(entry) for entry in log])
        size = s["prompts_per_step"] * s["generations"]
        batches = [
            entry for entry in log if "skipped" in entry
        ]  # further updates on a batch log no reward
        return {
            "steps": s["steps"],
            "completions": size * len(batches),
            "skipped": round(sum(entry["skipped"] for entry in batches) * size),
            "new_tokens": round(sum(entry["completions/mean_length"] for entry in batches) * size),
        }

    def fresh_lora(self) -> LoraConfig | None:
        """A new LoRA by the recipe's settings; None where every parameter is trained."""
        lora = self.settings["lora"]
        return None if lora is None else new_lora(lora)

    def config(self) -> PolicyConfig:
        """What stands beside the policy: it reads the prompt alone."""
        reads = Condition("none", self.data.objective_names)
        return PolicyConfig(reads, lora_base(self.settings), self.data.panel.fingerprint())

    def _listed_prompts(self) -> list[dict[str, Any]]:
        names = self.data.objective_names
        return [
            {
                "prompt": self.data.prompts[row],
                "kind": self.data.kinds[row],
                "weights": dict(zip(names, weights.tolist(), strict=True)),
            }
            for row, weights in zip(self.rows, self.weights, strict=True)
        ]

    def _finish(self, stages: Sequence[Artefact]) -> Path:
        counts = ("steps", "completions", "skipped", "new_tokens")
        asked = {"prompts": len(self.rows), "left_out": self.left_out}
        folder, spent = publish(stages, self.config(), self.settings, self.seed, counts, **asked)
        note = f", {spent['skipped']} without a reward" if spent["skipped"] else ""
        self._say(f"finished, {spent['completions']} completions{note}: {folder}")
        return folder

    def _say(self, text: str) -> None:
        if main_process():
            print(f"{self.method}, seed {self.seed}: {text}", flush=True)


def _tokenizer(model: str):
    try:
        return load_tokenizer(model)
    except Exception as error:  # every loader has exceptions of its own
        raise ConfigError(f"cannot load the model {model!r}: {first_line(error)}") from error


def clean(entry: dict[str, Any]) -> dict[str, Any]:
    """A log entry without what differs between two equal runs; its keys sorted, as a resumed run reads them."""
    kept = {k: v for k, v in entry.items() if not any(part in k for part in NOT_LOGGED)}
    return dict(sorted(kept.items()))


@contextmanager
def explained(work: Path):
    """A vLLM server that goes away while a run trains, as one line that says how to go on."""
    try:
        yield
    except (requests.exceptions.RequestException, ConnectionError) as error:
        raise ConfigError(
            f"the vLLM server does not answer ({first_line(error)}). Run the same command again: it goes on from the "
            f"last whole checkpoint in {work}"
        ) from error
