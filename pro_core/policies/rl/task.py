"""A task of reinforcement learning: its prompts, what is asked of each, and how the completions are rewarded.

A task is data that :func:`pro_core.policies.rl.weighted.weighted_task` or
:func:`pro_core.policies.rl.levels.level_task` makes for one method and one seed. An algorithm
(:mod:`pro_core.policies.rl.run`) takes any of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pro_core.data.objectives import Message
from pro_core.data.schema import PreferencePair, read_jsonl, to_messages
from pro_core.data.sources import examples_of, is_public
from pro_core.data.texts import TextSource
from pro_core.generation.chat import PromptTooLong, fit, has_template, readable
from pro_core.generation.request import checked
from pro_core.policies.recipe import tokenizer_of
from pro_core.policies.rl.recipe import LoopRecipe
from pro_core.policies.rl.reward import WeightedReward
from pro_core.prompting.policy_config import PolicyConfig
from pro_core.runs.recipes import ConfigError
from pro_core.system.storage import content_hash

UNSAFE: dict[Any, str] = {0: "safe", 1: "unsafe"}

Conversation = list[Message]


class PromptReader:
    """How a policy of a base model reads prompts.

    Args:
        max_prompt: the most tokens that it reads.
        plain: also accept our own policies without a chat template, in plain turns, which TRL's trainers cannot read.

    Raises:
        ConfigError: a model that cannot be loaded, or one without a chat template.
    """

    def __init__(self, model: str, max_prompt: int, plain: bool = False):
        self.tokenizer = tokenizer_of(model)
        answers = plain and PolicyConfig.read(model) is not None
        if not has_template(self.tokenizer) and not answers:
            raise ConfigError(
                f"model {model}: its tokenizer has no chat template, so it does not know where an answer ends: name a "
                "model that was trained to answer, or, with ppo, a policy of train/wic.py",
                ["model"],
            )
        self.max_prompt = max_prompt

    @classmethod
    def of(cls, recipe: LoopRecipe) -> PromptReader:
        """The reader of a recipe's model. PPO is our own loop, so it reads plain turns, too."""
        return cls(recipe.model, recipe.max_prompt, plain=recipe.algorithm == "ppo")

    def fitted(self, prompt: Sequence[Message]) -> Conversation | None:
        """The conversation as generation reads it: the oldest turns left out until it fits, in a form that the template
        takes, with typed marks broken. None if the last message alone is too long."""
        messages = checked(prompt)
        try:
            _, dropped = fit(self.tokenizer, messages, self.max_prompt)
        except PromptTooLong:
            return None
        system = [m for m in messages[:1] if m["role"] == "system"]
        return readable(self.tokenizer, [*system, *messages[len(system) + dropped :]])

    def ids(self, prompt: Sequence[Message]) -> list[int]:
        """The token ids of a conversation that fits."""
        return fit(self.tokenizer, checked(prompt), self.max_prompt)[0]


@dataclass(frozen=True)
class Task:
    """P prompts in the order in which they are asked, and the reward of their completions.

    Attributes:
        reads: what the policy reads of each prompt. ``kinds``: each one's kind, under which its weights are logged.
        left_out: how many prompts were too long.
        reward: scores completions, under the weights (P, K).
        judge: a hash of everything that decides the scores; it goes into the run's hash.
        config: saved beside the policy.
        listed: a line for each prompt, for people.
        reader: how the policy reads.
    """

    reads: list[Conversation]
    kinds: list[str]
    left_out: int
    reward: WeightedReward
    judge: str
    config: PolicyConfig
    listed: list[dict[str, Any]]
    reader: PromptReader


def draw_rows(
    reads_N: Sequence[Sequence[Message]], recipe: LoopRecipe, seed: int, reader: PromptReader
) -> tuple[list[int], int]:
    """The rows of a run's prompts, each once, in a random order that is the same for every arm; and how many were left
    out because their last message alone was too long.

    Raises:
        ConfigError: none of N prompts fits.
    """
    N = len(reads_N)
    wanted = recipe.steps // recipe.iterations * recipe.prompts_per_step
    rows: list[int] = []
    left_out = 0
    for row in np.random.default_rng(seed).permutation(N).tolist():
        if len(rows) == wanted:
            break
        if reader.fitted(reads_N[row]) is None:
            left_out += 1
        else:
            rows.append(row)
    if not rows:
        raise ConfigError(
            f"max_length {recipe.max_length}: none of {N} prompts fits into {reader.max_prompt} tokens",
            ["max_length"],
        )
    return rows, left_out


def load_kinds(
    entries: Sequence[TextSource], data_dir: str | Path
) -> tuple[list[Conversation], list[str]]:
    """The train prompts of :func:`pro_core.data.texts.load_prompts`, and each one's kind.

    A kind is the file's name, followed by the objective that a pair was judged by (``hh_pairs/harmless``) or by a
    prompt's own label (``xstest_responses/unsafe``), if there is one. A prompt that occurs twice has its first kind.

    Raises:
        ConfigError: no prompts.
    """
    kinds: dict[str, str] = {}
    prompts: dict[str, Conversation] = {}
    for entry in entries:
        file, name = Path(data_dir) / entry.path, entry.path
        stem = Path(name).name.split(".")[0]
        details: dict[str, str] = {}
        if is_public(file, name):
            for example in examples_of(name, data_dir):
                detail = example.objective if isinstance(example, PreferencePair) else ""
                details.setdefault(content_hash(example.prompt), detail)
        else:
            for row in read_jsonl(file):
                detail = row.get("objective") or UNSAFE.get(row.get("prompt_unsafe"), "")
                if row.get("prompt"):
                    details.setdefault(content_hash(to_messages(row["prompt"])), detail)
        for prompt in entry.prompts(data_dir):
            key = content_hash(prompt)
            prompts.setdefault(key, prompt)
            kinds.setdefault(key, "/".join(filter(None, (stem, details.get(key, "")))))
    if not prompts:
        raise ConfigError("data: got no prompts of the train split", ["data"])
    return list(prompts.values()), [kinds[key] for key in prompts]
