"""What a recipe of `train/morlhf.py` or `train/moslim.py` may say, and in what its arms may differ."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from pro_core.policies.conditional.recipe import LEAST_PROMPT, read_arms
from pro_core.policies.rl.reward import AGGREGATIONS, NEED, SOURCES
from pro_core.rewards.classifier import DIVISORS
from pro_core.runs.training import ConfigError

REQUIRED = ("model", "panel", "data", "output")
OPTIONAL: dict[str, Any] = {
    "method": "PRO-MORLHF",  # what results call a recipe without arms
    "policy": None,  # where one method and seed go; else <output>/<method>/seed<n>
    "algorithm": "grpo",  # see ALGORITHMS
    "weights": "adapter",  # see pro_core.policies.rl.reward.run_weights
    "floors": "",  # such as harmless=0.1
    "adapter": None,  # needed by the weights adapter, shuffled, mean and mix
    "objectives": None,  # of the panel's; null for all
    "aggregation": "sum_then_normalize",  # normalize_then_sum: GDPO
    "data_dir": None,
    "lora": {},  # PEFT settings, by default rank 16 on every linear layer; null trains every parameter
    "steps": 100,  # updates of the optimizer
    "prompts_per_step": 16,  # over all processes
    "generations": 8,  # G, completions a prompt
    "iterations": 1,  # grpo, rloo, ppo: updates on each batch of completions
    "round_steps": 10,  # online_dpo: updates between two sets of rollouts
    "rows_per_device": None,  # completions at once; the rest of a batch is accumulated
    "gradient_checkpointing": False,
    "checkpoint_every": 50,
    "learning_rate": 1.0e-5,  # constant
    "kl": 0.1,  # beta of Eq 5
    "max_length": 512,  # tokens of prompt and completion; a prompt has what max_new_tokens leaves
    "max_new_tokens": 128,
    "sampling_temperature": 1.0,
    "top_p": 1.0,
    "trainer": {},  # of TRL's GRPOConfig, RLOOConfig or DPOConfig, such as {use_vllm: true}; of rl/ppo
    "seeds": [0],
    "arms": None,  # {method: {setting: value}}
}
ALGORITHMS = ("grpo", "rloo", "online_dpo", "ppo")
ARM = {
    *("algorithm", "weights", "floors", "aggregation", "iterations", "learning_rate", "kl"),
    *("lora", "trainer", "steps", "round_steps"),
}
"""The settings in which arms may differ; models, data, lengths and rollouts are one for all."""

PLAIN = {"aggregation": AGGREGATIONS[0]}
OF_WEIGHTS = ("weights", "floors", "adapter", "aggregation")
MOSLIM: dict[str, Any] = {k: v for k, v in OPTIONAL.items() if k not in OF_WEIGHTS} | {
    "method": "MOSLIM",
    "divide_by": "objectives",  # k of Eq 11: all of the run's; targets: those that a prompt names
}
"""The loop's settings are those of `train/morlhf.py`; levels in the prompt stand where weights were."""
MOSLIM_ARM = ARM - set(OF_WEIGHTS) | {"divide_by"}

COUNTS = (
    *("steps", "prompts_per_step", "generations", "iterations", "checkpoint_every"),
    *("max_length", "max_new_tokens", "round_steps"),
)
OWN = {
    *("learning_rate", "beta", "num_generations", "num_iterations", "max_completion_length"),
    *("temperature", "top_p", "output_dir", "seed", "multi_objective_aggregation"),
    *("reward_weights", "save_steps", "num_train_epochs", "max_steps", "shuffle_dataset"),
}
"""What of TRL's settings has a name of its own in a recipe, or would break a run."""


def read_morlhf(path: str | Path) -> dict[str, dict[str, Any]]:
    """The settings of each method by name, see :func:`pro_core.policies.conditional.recipe.read_arms`."""
    return read_arms(path, REQUIRED, OPTIONAL, ARM, _check_weights)


def read_moslim(path: str | Path) -> dict[str, dict[str, Any]]:
    """The same of a recipe of `train/moslim.py`."""
    arms = read_arms(path, ("model", "classifier", "data", "output"), MOSLIM, MOSLIM_ARM, _check)
    return {method: PLAIN | settings for method, settings in arms.items()}


def _expect(where: str, s: dict[str, Any], right: bool, key: str, expected: str) -> None:
    if not right:
        raise ConfigError(f"{where}: got {key} {s[key]!r}, expected {expected}")


def _check_weights(where: str, s: dict[str, Any]) -> None:
    _expect(where, s, s["aggregation"] in AGGREGATIONS, "aggregation", f"one of {AGGREGATIONS}")
    named = isinstance(s["weights"], dict) or s["weights"] in SOURCES
    _expect(where, s, named, "weights", f"one of {SOURCES}, or {{objective: weight}}")
    if not isinstance(s["weights"], dict) and s["weights"] in NEED and not s["adapter"]:
        raise ConfigError(f"{where}: the weights {s['weights']!r} need an adapter: name one")
    _expect(where, s, isinstance(s["floors"], str), "floors", "text such as harmless=0.1")
    _check(where, s)


def _check(where: str, s: dict[str, Any]) -> None:
    """What both have in common: the loop."""
    s = PLAIN | s
    expect = partial(_expect, where, s)

    def number(key: str) -> bool:
        return type(s[key]) in (int, float)

    for key in COUNTS:
        expect(type(s[key]) is int and s[key] > 0, key, "a whole number above 0")
    alone = s["algorithm"] == "ppo" and s["aggregation"] == AGGREGATIONS[0]
    grouped = "at least 2: a completion is judged by its group"
    expect(s["generations"] > 1 or alone, "generations", grouped)
    for key in ("learning_rate", "sampling_temperature"):
        positive = number(key) and s[key] > 0
        expect(positive, key, "a number above 0 (YAML reads 1.0e-4 as one, and 1e-4 as text)")
    expect(number("kl") and s["kl"] >= 0, "kl", "a number of at least 0")
    expect(number("top_p") and 0 < s["top_p"] <= 1, "top_p", "a number above 0, at most 1")
    expect(s["algorithm"] in ALGORITHMS, "algorithm", f"one of {ALGORITHMS}")
    if "divide_by" in s:
        expect(s["divide_by"] in DIVISORS, "divide_by", f"one of {DIVISORS}")
    expect(s["lora"] is None or isinstance(s["lora"], dict), "lora", "PEFT settings, or null")
    expect(isinstance(s["trainer"], dict), "trainer", "settings of TRL's trainer")
    if taken := sorted(set(s["trainer"]) & OWN):
        raise ConfigError(f"{where}: trainer sets {taken}, which the recipe's own settings decide")
    seeds = isinstance(s["seeds"], list) and s["seeds"] and all(type(n) is int for n in s["seeds"])
    expect(bool(seeds), "seeds", "a list of whole numbers")
    longest = s["max_length"] - LEAST_PROMPT
    expect(s["max_new_tokens"] <= longest, "max_new_tokens", f"at most max_length - {LEAST_PROMPT}")
    if s["algorithm"] == "online_dpo":
        whole = s["steps"] % s["round_steps"] == 0
        expect(whole, "steps", f"a multiple of round_steps ({s['round_steps']})")
        expect(s["iterations"] == 1, "iterations", "1: a round of online_dpo has round_steps")
        plain = s["aggregation"] == AGGREGATIONS[0]
        expect(plain, "aggregation", f"{AGGREGATIONS[0]}: pairs are taken within a prompt")
    for key in ("steps", "checkpoint_every"):
        whole = s[key] % s["iterations"] == 0
        expect(whole, key, f"a multiple of iterations ({s['iterations']}): all updates on a batch")
