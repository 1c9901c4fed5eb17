"""A run of reinforcement learning: one task, by one algorithm, under one seed.

A :class:`Run` holds what every algorithm needs; an algorithm is a function that takes a run and makes its stages
(:mod:`pro_core.policies.stages`), the last of which is the policy. A killed run, started again, goes on to the same
parameters.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

from peft import LoraConfig
from transformers import TrainingArguments

from pro_core.policies.rl.recipe import LoopRecipe
from pro_core.policies.rl.task import Task
from pro_core.policies.sft import TRAINING_VERSION as SFT_VERSION
from pro_core.policies.sft import accumulation, new_lora
from pro_core.policies.stages import KEPT, check_place, publish
from pro_core.runs.recipes import ConfigError
from pro_core.runs.training import training_arguments
from pro_core.system.artefacts import Artefact
from pro_core.system.extras import needs
from pro_core.system.fingerprints import fingerprint
from pro_core.system.processes import main_process, processes
from pro_core.system.storage import content_hash, first_line, write_jsonl

with needs("train"):
    import requests

A = TypeVar("A", bound=TrainingArguments)

TRAINING_VERSION = 1
"""Version of every algorithm, from prompts to parameters. Every change that moves a parameter raises it."""
NOT_LOGGED = ("step_time", "runtime", "per_second", "flos", "epoch", "num_tokens")
"""TRL's metrics that differ between two equal runs, or say nothing."""


@dataclass(frozen=True)
class Run:
    """One method under one seed.

    Attributes:
        recipe: of one method. task: its prompts and their rewards.
    """

    recipe: LoopRecipe
    task: Task
    seed: int

    @property
    def output(self) -> Path:
        return Path(self.recipe.output)

    @cached_property
    def key(self) -> str:
        """A hash of everything that decides the parameters. Weights count by value, not by their source's name."""
        recipe, task = self.recipe, self.task
        model = [recipe.model, fingerprint(recipe.model)]  # a LoRA names its base
        asked = [list(one) for one in zip(task.reads, task.kinds, strict=True)]
        values = [model, task.judge, asked, task.reward.weights.tolist(), self.seed]
        how = recipe.decides(
            *("algorithm", "lora", "steps", "prompts_per_step", "generations", "iterations"),
            *("round_steps", "learning_rate", "kl", "max_length", "max_new_tokens"),
            *("sampling_temperature", "top_p", "trainer"),
        )
        how["aggregation"] = task.reward.aggregation
        if recipe.keep_every:  # a finished run without them cannot give them
            how["keep_every"] = recipe.keep_every
        return content_hash(["morlhf", [TRAINING_VERSION, SFT_VERSION], values, how])

    @property
    def completions(self) -> int:
        """Completions per batch, over all processes."""
        return self.recipe.prompts_per_step * self.recipe.generations

    def fresh_lora(self) -> LoraConfig | None:
        """A new LoRA by the recipe's settings; None where every parameter is trained."""
        return None if self.recipe.lora is None else new_lora(self.recipe.lora)

    def check_shares(self) -> None:
        """Raise a ConfigError unless the processes can share each step's prompts evenly."""
        P, world = self.recipe.prompts_per_step, processes().num_processes
        if P % world:
            raise ConfigError(
                f"prompts_per_step {P}: cannot be shared evenly by {world} processes, and a prompt's completions "
                "belong to one",
                ["prompts_per_step"],
            )

    def arguments(
        self, kind: type[A], work: Path, rows: int, batch_size: int, own: dict[str, Any]
    ) -> A:
        """The arguments of a TRL trainer: the recipe's, the algorithm's ``own``, then those under `trainer`.

        Raises:
            ConfigError: a setting in `trainer` that TRL does not take.
        """
        recipe = self.recipe
        common: dict[str, Any] = {
            "beta": recipe.kl,
            "gradient_checkpointing": recipe.gradient_checkpointing,
            "lr_scheduler_type": "constant",
            "warmup_steps": 0,
            "logging_steps": 1,
            "disable_tqdm": not sys.stderr.isatty(),
        }
        share = accumulation(batch_size, recipe.rows_per_device)
        try:
            made = training_arguments(
                work,
                rows,
                batch_size,
                recipe.learning_rate,
                self.seed,
                kind=kind,
                checkpoint_every=recipe.checkpoint_every,
                accumulation=share,
                **(common | own | recipe.trainer),
            )
        except ConfigError:
            raise
        except (TypeError, ValueError) as error:
            given = f"{kind.__name__} does not take {recipe.trainer}"
            raise ConfigError(f"{recipe.method}: {given}: {error}", ["trainer"]) from None
        return cast(A, made)

    def keep(self, step: int, folder: Path, save: Callable[[Path], None]) -> None:
        """Save the policy after ``step`` below the stage ``folder``, if it is one that stays. Every process calls it.

        To be called before the step's checkpoint: then a half-saved policy is always saved again.
        """
        every = self.recipe.keep_every
        if every and step % every == 0 and step < self.recipe.steps:
            save(folder / KEPT / str(step))

    def announce(self, folder: Path) -> None:
        """Print what begins, and list its prompts in ``folder``."""
        recipe = self.recipe
        self.say(
            f"{recipe.algorithm}, {len(self.task.reads)} prompts ({self.task.left_out} too long), {recipe.steps} steps "
            f"of {recipe.prompts_per_step} x {recipe.generations} completions"
        )
        if main_process():
            write_jsonl(folder / "prompts.jsonl", self.task.listed)

    def record(self, folder: Path, log: list[dict[str, Any]]) -> dict[str, Any]:
        """The record of a finished stage, from the log of its batches, which is written to ``log.jsonl``."""
        if main_process():
            write_jsonl(folder / "log.jsonl", [clean(entry) for entry in log])
        # Further updates on a batch log no reward.
        batches = [entry for entry in log if "skipped" in entry]
        size = self.completions
        return {
            "steps": self.recipe.steps,
            "completions": size * len(batches),
            "skipped": round(sum(entry["skipped"] for entry in batches) * size),
            "new_tokens": round(sum(entry["completions/mean_length"] for entry in batches) * size),
        }

    def say(self, text: str) -> None:
        """A line for the log, by the main process."""
        if main_process():
            print(f"{self.recipe.method}, seed {self.seed}: {text}", flush=True)


def train(run: Run, algorithm: Callable[[Run], Sequence[Artefact]]) -> Path:
    """Train one method under one seed, unless it is finished; returns the policy's folder.

    Raises:
        ConfigError: something cannot be trained. StorageError: a full disk, or the place of the policy is taken.
    """
    recipe, task = run.recipe, run.task
    check_place(recipe, run.seed)
    stages = algorithm(run)
    used = recipe.used() | {"aggregation": task.reward.aggregation}
    counts = ("steps", "completions", "skipped", "new_tokens")
    asked = {"prompts": len(task.reads), "left_out": task.left_out}
    folder, spent = publish(stages, task.config, recipe, run.seed, used, counts, **asked)
    note = f", {spent['skipped']} without a reward" if spent["skipped"] else ""
    run.say(f"finished, {spent['completions']} completions{note}: {folder}")
    return folder


def clean(entry: dict[str, Any]) -> dict[str, Any]:
    """A log entry without what differs between two equal runs; its keys sorted, as a resumed run reads them."""
    kept = {k: v for k, v in entry.items() if not any(part in k for part in NOT_LOGGED)}
    return dict(sorted(kept.items()))


@contextmanager
def explained(work: Path) -> Iterator[None]:
    """Turn the loss of a vLLM server during training into a ConfigError that says how to go on."""
    try:
        yield
    except (requests.exceptions.RequestException, ConnectionError) as error:
        raise ConfigError(
            f"the vLLM server does not answer ({first_line(error)}). Run the same command again: it goes on from the "
            f"last whole checkpoint in {work}"
        ) from error
