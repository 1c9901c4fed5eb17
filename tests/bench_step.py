"""The cost of K objectives and the adapter in a GRPO step of `train/morlhf.py`, by part; also TRL's with K models.

    python tests/bench_step.py [--recipe recipes/morlhf_small.yaml] [--rounds 3]

Compares four ways to train on the recipe's prompts, in alternation, with one or all five objectives of its panel: one
reward (a panel with one head), K fixed weights, the adapter's weights, and TRL's trainer as its users write it, with
`reward_funcs` and `reward_weights`: one model and one forward pass per objective, batched and rounded as ours. The
learning rate is almost 0, so that all write and score the same answers while the optimizer does its full work. Prints
the median seconds of a step's parts, CPU and wall (a shared machine disturbs CPU seconds less), then ratios of CPU
seconds between steps on the same answers, from the smallest to the largest. `update` is the forward pass with
gradients, the backward pass and the optimizer. The adapter's column is its pass over a step's prompts, each read once
in a run.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch
from transformers import TrainerCallback
from transformers.utils.logging import disable_progress_bar

from pro_core import RewardPanel
from pro_core.policies.rl.grpo import RewardProgress, group_trainer
from pro_core.policies.rl.recipe import MorlhfRecipe
from pro_core.policies.rl.reward import text_of
from pro_core.policies.rl.run import Run
from pro_core.policies.rl.weighted import PanelPrompts, run_weights, weighted_task
from pro_core.policies.sft import score_only_labelled_tokens
from pro_core.system.processes import keep_freed_memory

METHODS = {
    "_generate": "rollout",
    "_calculate_rewards": "scoring",
    "_get_per_token_logps_and_entropies": "log-probabilities",
    "_prepare_inputs": "all before the update",
}
BEFORE = ("rollout", "scoring", "log-probabilities")
COLUMNS = (*BEFORE, "update", "rest", "adapter", "step")
ONE, FIXED, ADAPTER, TRL = "one reward", "K fixed weights", "K, the adapter", "TRL, K models"
CPU, WALL = 0, 1


def now() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def since(started: tuple[float, float]) -> tuple[float, float]:
    return time.process_time() - started[CPU], time.perf_counter() - started[WALL]


def width(column: str) -> int:
    return max(len(column) + 3, 10)


class Clock(TrainerCallback):
    """Hooks around a trainer's methods that record the (CPU, wall) seconds of each part of each step."""

    def __init__(self, trainer):
        self.steps: list[dict[str, tuple[float, float]]] = []
        for method, part in METHODS.items():
            setattr(trainer, method, self.timed(part, getattr(trainer, method)))
        trainer.add_callback(self)

    def timed(self, part, method):
        def call(*arguments, **named):
            if part == "log-probabilities" and torch.is_grad_enabled():
                return method(*arguments, **named)  # of the update
            started = now()
            result = method(*arguments, **named)
            self.spent[part].append(since(started))
            return result

        return call

    def on_step_begin(self, args, state, control, **kwargs):
        self.spent, self.started = defaultdict(list), now()

    def on_step_end(self, args, state, control, **kwargs):
        whole = since(self.started)
        parts = {p: tuple(map(sum, zip(*spent, strict=True))) for p, spent in self.spent.items()}
        before = parts.pop("all before the update")
        named = [parts.setdefault(p, (0.0, 0.0)) for p in BEFORE]
        parts["update"] = (whole[CPU] - before[CPU], whole[WALL] - before[WALL])
        parts["rest"] = tuple(before[i] - sum(p[i] for p in named) for i in (CPU, WALL))
        self.steps.append(parts)


def alone(panel: RewardPanel, k: int) -> RewardPanel:
    """A panel of the k-th objective alone, with its own model."""
    spec, stats = panel.specs[k], panel.require_stats()
    part = slice(k, k + 1)
    slope = None if stats.length_slope is None else stats.length_slope[part]
    stats = replace(
        stats,
        objective_names=(spec.name,),
        mean=stats.mean[part],
        std=stats.std[part],
        length_slope=slope,
    )
    models = {spec.source: copy.deepcopy(panel.models[spec.source])}
    return RewardPanel([spec], models, stats)


class SeparateRewards(list):
    """One reward function per objective, each with its own model, as TRL's trainers take them."""

    aggregation = "sum_then_normalize"

    def __init__(self, panel: RewardPanel, prompts: list):
        super().__init__(self.function(alone(panel, k), prompts) for k in range(len(panel.specs)))

    @staticmethod
    def function(panel: RewardPanel, asked: list):
        def score(prompts, completions, row, **columns):
            texts = [text_of(completion) for completion in completions]
            return panel.standardized([asked[r] for r in row], texts)[:, 0].tolist()

        return score


def recipe_of(path: str, output: str) -> MorlhfRecipe:
    """Runs of the recipe's first arm with one step each, and a learning rate that leaves the policy unchanged."""
    first = next(iter(MorlhfRecipe.read(path).methods().values()))
    changes = {"objectives": None, "output": output, "weights": "uniform", "steps": 1}
    changes |= {"learning_rate": 1e-12, "checkpoint_every": 1}
    return first.model_copy(update=changes | {"trainer": first.trainer | {"save_strategy": "no"}})


def runs_of(recipe: MorlhfRecipe, data: PanelPrompts, seed: int) -> dict[str, Run]:
    single = alone(data.panel, 0)
    one = replace(data, panel=single, objective_names=single.objective_names)
    K = len(data.objective_names)
    separate = recipe.model_copy(
        update={"trainer": recipe.trainer | {"reward_weights": [1 / K] * K}}
    )
    adapted = recipe.model_copy(update={"weights": "adapter"})
    runs = {
        ONE: Run(recipe, weighted_task(recipe, one, seed), seed),
        FIXED: Run(recipe, weighted_task(recipe, data, seed), seed),
        ADAPTER: Run(adapted, weighted_task(adapted, data, seed), seed),
    }
    task = runs[FIXED].task
    rewards = SeparateRewards(data.panel, task.reads)
    return runs | {TRL: Run(separate, replace(task, reward=rewards), seed)}


def step_of(name: str, run: Run, data: PanelPrompts, work: Path) -> tuple[dict[str, tuple], float]:
    """The parts of a run's single step, and the length of its answers."""
    adapter = (0.0, 0.0)
    if name == ADAPTER:
        started = now()
        run_weights("adapter", run.task.reads, data.objective_names, data.adapter, run.seed)
        adapter = since(started)
    trainer = group_trainer(run, work)
    trainer.remove_callback(RewardProgress)
    clock = Clock(trainer)
    trainer.train()
    (parts,) = clock.steps
    parts["adapter"] = adapter
    parts["step"] = tuple(sum(part[i] for part in parts.values()) for i in (CPU, WALL))
    return parts, trainer.state.log_history[0]["completions/mean_length"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="recipes/morlhf_small.yaml")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    disable_progress_bar()
    keep_freed_memory()  # as train/morlhf.py does
    score_only_labelled_tokens()
    measured: dict[str, list[dict]] = {name: [] for name in (ONE, FIXED, ADAPTER, TRL)}
    lengths: dict[str, list[float]] = {name: [] for name in measured}
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_of(arguments.recipe, folder)
        data = PanelPrompts.load(recipe)
        step_of(ADAPTER, runs_of(recipe, data, 0)[ADAPTER], data, Path(folder))  # warm-up
        for turn in range(arguments.rounds):
            runs = runs_of(recipe, data, turn)
            names = [*measured, *measured][turn % len(measured) :][: len(measured)]
            for name in names:
                parts, written = step_of(name, runs[name], data, Path(folder))
                measured[name].append(parts)
                lengths[name].append(written)
    if any(written != lengths[ONE] for written in lengths.values()):
        raise RuntimeError(f"the answers should have the same lengths in every way, got {lengths}")

    size = f"{recipe.prompts_per_step} x {recipe.generations}"
    print(
        f"{recipe.model}, {arguments.rounds} steps each of {size} answers ({statistics.mean(lengths[ONE]):.0f} tokens "
        f"on average, at most {recipe.max_new_tokens}), K = {len(data.objective_names)}, "
        f"{torch.get_num_threads()} threads"
    )
    for clock, unit in ((CPU, "CPU seconds"), (WALL, "wall seconds")):
        print(f"\n{unit:17s}" + "".join(f"{column:>{width(column)}s}" for column in COLUMNS))
        for name, steps in measured.items():
            medians = [statistics.median(parts[c][clock] for parts in steps) for c in COLUMNS]
            cells = zip(COLUMNS, medians, strict=True)
            print(f"{name:17s}" + "".join(f"{m:{width(c)}.3f}" for c, m in cells))

    def spread(ratios: list[float], unit: str) -> str:
        low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
        return f"{middle:6.2f}{unit} ({low:.2f} to {high:.2f})"

    def ratio(first: str, second: str, part: str) -> str:
        pairs = zip(measured[first], measured[second], strict=True)
        return spread([a[part][CPU] / b[part][CPU] for a, b in pairs], " x")

    def more(name: str, columns: tuple[str, ...]) -> str:
        pairs = zip(measured[name], measured[ONE], strict=True)
        return spread(
            [100 * sum(a[c][CPU] - b[c][CPU] for c in columns) / b["step"][CPU] for a, b in pairs],
            "%",
        )

    print("\nCPU seconds more than one reward, in % of its step: scoring and adapter, whole step")
    for name in (FIXED, ADAPTER, TRL):
        print(f"{name:17s} {more(name, ('scoring', 'adapter'))}   {more(name, ('step',))}")
    print("\nTRL with K models : ours with K objectives and the adapter")
    print(f"{'scoring':17s} {ratio(TRL, ADAPTER, 'scoring')}")
    print(f"{'whole step':17s} {ratio(TRL, ADAPTER, 'step')}")


if __name__ == "__main__":
    main()
