"""What a recipe of `train/wic.py` may say, and its arms: the same run with some settings changed."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from pro_core.http.addresses import address_of
from pro_core.policies.goals import GOALS, NEED_ADAPTER, RULES
from pro_core.prompting.templates import CONDITIONS
from pro_core.runs.training import ConfigError, read_recipe

REQUIRED = ("model", "panel", "data", "output")
OPTIONAL: dict[str, Any] = {
    "method": "PRO-WIC online",  # what results call a recipe without arms
    "policy": None,  # where one method and seed go; else <output>/<method>/seed<n>
    "adapter": None,  # needed by the goals adapter, mix and shuffled
    "objectives": None,  # of the panel's; null for all
    "data_dir": None,
    "condition": "weights",  # weights+level; scores (RiC); none: plain SFT on the same rows
    "temperature": 1.0,  # tau of Eq 7, on standardized scores (the paper: 0.1, on raw ones)
    "lora": {},  # PEFT settings, by default rank 16 on every linear layer; null trains every parameter
    "max_length": 512,  # tokens of prompt and response; a prompt has what max_new_tokens leaves
    "batch_size": 16,  # over all processes
    "rows_per_device": None,  # at once; the rest of a batch is accumulated
    "gradient_checkpointing": False,
    "checkpoint_every": 100,
    "offline_steps": 100,
    "offline_learning_rate": 2.0e-4,  # linear
    "rounds": 1,  # online; 0 for none
    "goals": "mix",  # see pro_core.policies.goals.GOALS
    "accept": "weighted",  # or ric
    "quantile": 0.7,
    "prompt_data": None,  # files with prompts, as `data`; null for the prompts of the data
    "prompts": 256,  # a round
    "samples": 4,  # G, for each prompt
    "max_new_tokens": 128,
    "sampling_temperature": 0.7,
    "top_p": 0.9,
    "rollout_batch": 64,  # responses written side by side
    "online_steps": 50,  # a round
    "online_learning_rate": 1.0e-4,  # constant, as in RiC
    "offline_share": 0.5,  # of the rows of an online round
    "endpoint": None,  # a vLLM server that writes the responses and loads each round's LoRA
    "seeds": [0],
    "arms": None,  # {method: {setting: value}}
}
ARM = {
    *("condition", "temperature", "lora", "offline_steps", "offline_learning_rate", "rounds"),
    *("goals", "accept", "quantile", "prompts", "samples", "sampling_temperature", "top_p"),
    *("online_steps", "online_learning_rate", "offline_share"),
}
"""The settings in which arms may differ; models, data and lengths are one for all, or they could not be compared."""

COUNTS = (
    *("max_length", "batch_size", "checkpoint_every", "offline_steps", "prompts", "samples"),
    *("max_new_tokens", "rollout_batch", "online_steps"),
)
LEAST_PROMPT = 32


def read_arms(
    path: str | Path,
    required: tuple[str, ...] = REQUIRED,
    optional: dict[str, Any] = OPTIONAL,
    arm: Collection[str] = ARM,
    check: Callable[[str, dict[str, Any]], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """The settings of each method that a recipe trains, by name; of a recipe without ``arms`` its one.

    Args:
        required, optional, arm, check: another script's settings, those in which its arms may differ, and what checks
            one arm; by default those of `train/wic.py`.

    Raises:
        ConfigError: a wrong recipe or arm: says which key, what it got, what it expected.
    """
    recipe = read_recipe(path, required, optional)
    arms = recipe["arms"] if recipe["arms"] is not None else {recipe["method"]: {}}
    if not isinstance(arms, dict) or not arms:
        raise ConfigError(f"{path}: got the arms {arms!r}, expected {{method: {{setting: value}}}}")
    found: dict[str, dict[str, Any]] = {}
    folders: dict[str, str] = {}
    for method, changes in arms.items():
        changes = changes or {}
        unknown = sorted(set(changes) - set(arm)) if isinstance(changes, dict) else [str(changes)]
        if unknown:
            raise ConfigError(
                f"{path}: the arm {method!r} sets {unknown}, expected some of {sorted(arm)}"
            )
        settings = recipe | changes | {"method": str(method)}
        (check or _check)(f"{path}, {method}", settings)
        if (other := folders.setdefault(folder_name(method), method)) != method:
            raise ConfigError(
                f"{path}: the arms {other!r} and {method!r} would share a folder: name them otherwise"
            )
        found[str(method)] = settings
    if recipe["policy"] and (len(found) > 1 or len(recipe["seeds"]) > 1):
        raise ConfigError(f"{path}: `policy` names one folder: use it with one method and one seed")
    return found


def folder_name(method: str) -> str:
    """``pro-wic-online-dirichlet``: a method's name fit for a folder."""
    return re.sub(r"[^a-z0-9]+", "-", str(method).lower()).strip("-")


def _check(where: str, s: dict[str, Any]) -> None:
    def expect(right: bool, key: str, expected: str) -> None:
        if not right:
            raise ConfigError(f"{where}: got {key} {s[key]!r}, expected {expected}")

    for key in COUNTS:
        expect(type(s[key]) is int and s[key] > 0, key, "a whole number above 0")
    expect(type(s["rounds"]) is int and s["rounds"] >= 0, "rounds", "a whole number of at least 0")
    for key in ("temperature", "offline_learning_rate", "online_learning_rate"):
        number = type(s[key]) in (int, float) and s[key] > 0
        expect(number, key, "a number above 0 (YAML reads 1.0e-4 as one, and 1e-4 as text)")
    for key in ("quantile", "offline_share"):
        within = type(s[key]) in (int, float) and 0 <= s[key] < 1
        expect(within, key, "a number from 0 to below 1")
    for key, known in (("condition", CONDITIONS), ("goals", GOALS), ("accept", RULES)):
        expect(s[key] in known, key, f"one of {known}")
    expect(s["lora"] is None or isinstance(s["lora"], dict), "lora", "PEFT settings, or null")
    seeds = isinstance(s["seeds"], list) and s["seeds"] and all(type(n) is int for n in s["seeds"])
    expect(bool(seeds), "seeds", "a list of whole numbers")
    longest = s["max_length"] - LEAST_PROMPT
    expect(s["max_new_tokens"] <= longest, "max_new_tokens", f"at most max_length - {LEAST_PROMPT}")
    if s["rounds"]:
        expect(
            s["condition"] != "none", "condition", "one that a goal can be written in, or rounds: 0"
        )
        if s["goals"] in NEED_ADAPTER and not s["adapter"]:
            raise ConfigError(f"{where}: the goals {s['goals']!r} need an adapter: name one")
        if s["endpoint"]:
            try:
                address_of(str(s["endpoint"]), "endpoint")
            except ValueError as error:
                raise ConfigError(f"{where}: {error}") from None
            if s["lora"] is None:
                raise ConfigError(
                    f"{where}: an endpoint loads a LoRA between rounds: set `lora`, or leave `endpoint`"
                )
