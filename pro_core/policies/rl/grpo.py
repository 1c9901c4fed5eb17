"""max_pi E[R(x, y)] - beta KL(pi, pi_ref) by TRL's GRPO or RLOO (Eq 5, 9).

Prompts stand in a fixed order and TRL's checkpoints hold the random states, so a killed run, started again, goes on to
the same parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from pro_core.policies.rl.run import Run, explained
from pro_core.policies.sft import PolicyTrainer, load_to_train, save_policy
from pro_core.policies.stages import POLICY, stage
from pro_core.runs.training import cast_for_training, train_resuming
from pro_core.system.artefacts import Artefact
from pro_core.system.extras import needs

with needs("train"):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer


class OrderedGRPOTrainer(PolicyTrainer, GRPOTrainer):
    """TRL's trainer, see :class:`PolicyTrainer`, with TRL's order of rows, which repeats prompts."""

    _get_train_sampler = GRPOTrainer._get_train_sampler


class OrderedRLOOTrainer(PolicyTrainer, RLOOTrainer):
    """As :class:`OrderedGRPOTrainer`."""

    _get_train_sampler = RLOOTrainer._get_train_sampler


class RewardProgress(TrainerCallback):
    """One line for each step, for a log file."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and logs and "reward" in logs:
            shown = {"reward": logs["reward"], "kl": logs.get("kl")}
            shown |= {k.split("/")[1]: v for k, v in logs.items() if k.startswith("objectives/")}
            shown["tokens"] = logs.get("completions/mean_length")
            parts = [f"{name} {value:.3f}" for name, value in shown.items() if value is not None]
            print(f"step {state.global_step}/{state.max_steps} {', '.join(parts)}", flush=True)


class KeepPolicies(TrainerCallback):
    """Keeps the policies of the recipe's ``keep_every``; ``save`` writes the policy as it is into a folder."""

    def __init__(self, run: Run, folder: Path, save: Callable[[Path], None]):
        self.run, self.folder, self.save = run, folder, save

    def on_step_end(self, args, state, control, **kwargs):
        self.run.keep(state.global_step, self.folder, self.save)


def group_policy(run: Run) -> list[Artefact]:
    """GRPO or RLOO, as the recipe says: one stage."""

    def make(folder: Path) -> dict[str, Any]:
        run.announce(folder)

        def save(target: Path) -> None:
            save_policy(trainer, target, run.task.config, whole=run.recipe.lora is None)

        with explained(folder / "work"):
            trainer = group_trainer(run, folder / "work")
            trainer.add_callback(KeepPolicies(run, folder, save))
            train_resuming(trainer, between=run.recipe.iterations)
            save(folder / "checkpoint")
        trainer.accelerator.free_memory()
        unset_hf_deepspeed_config()
        return run.record(folder, [e for e in trainer.state.log_history if "loss" in e])

    return [stage(run.output / "policies", run.key, POLICY, make)]


def group_trainer(run: Run, work: Path) -> Trainer:
    """TRL's trainer for this run, its checkpoints in ``work``."""
    recipe, task = run.recipe, run.task
    run.check_shares()
    asked = recipe.steps // recipe.iterations * recipe.prompts_per_step
    order = [i % len(task.reads) for i in range(asked)]
    conversations = [task.reader.fitted(read) for read in task.reads]
    dataset = Dataset.from_list([{"prompt": conversations[i], "row": i} for i in order])
    grpo = recipe.algorithm == "grpo"
    settings: dict[str, Any] = {
        "max_steps": recipe.steps,
        "num_generations": recipe.generations,
        "num_iterations": recipe.iterations,
        "max_completion_length": recipe.max_new_tokens,
        "temperature": recipe.sampling_temperature,
        "top_p": recipe.top_p,
        "shuffle_dataset": False,
    }
    if grpo and task.reward.aggregation == "normalize_then_sum":
        settings["scale_rewards"] = "batch"  # GDPO's second normalization
    rows = asked * recipe.generations
    kind = GRPOConfig if grpo else RLOOConfig
    arguments: Any = run.arguments(kind, work, rows, run.completions, settings)
    model, _ = load_to_train(recipe.model, None, recipe.lora, recipe.max_length)
    trainer: Trainer = (OrderedGRPOTrainer if grpo else OrderedRLOOTrainer)(
        model=model,
        reward_funcs=task.reward,
        args=arguments,
        train_dataset=dataset,
        processing_class=task.reader.tokenizer,
        peft_config=run.fresh_lora(),
        callbacks=[RewardProgress()],
    )
    trainer.remove_callback(PrinterCallback)  # it would print everything that is in log.jsonl
    assert trainer.model is not None
    cast_for_training(trainer.model)
    return trainer
