"""Answers of policies and endpoints to a benchmark's prompts, kept in the response store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pro_core.data.objectives import Message
from pro_core.evaluation.judged.prompts import BenchPrompt
from pro_core.evaluation.judged.recipe import Contestant, JudgedRecipe
from pro_core.evaluation.policy.policies import NamedPolicies
from pro_core.evaluation.policy.responses import respond
from pro_core.generation import GenerationSettings, Request
from pro_core.rewards.scores import progress
from pro_core.runs.recipes import ConfigError

Answers = list[tuple[str, ...] | None]
"""A model's answer to each prompt, one text per turn; None where writing failed."""


def written_answers(
    recipe: JudgedRecipe, writers: Sequence[Contestant], prompts: Sequence[BenchPrompt], turns: int
) -> dict[str, Answers]:
    """The answers of each model, written now or read from the store. A second turn reads the answer to the first.

    Raises:
        ConfigError: a model that cannot be loaded or asked, or that wrote not one answer.
    """
    policies = NamedPolicies([entry.entry() for entry in writers], lambda reads: None)
    settings = GenerationSettings(recipe.max_new_tokens, recipe.temperature, recipe.top_p)
    return {
        entry.name: _of_model(recipe, entry, policies, settings, prompts, turns)
        for entry in writers
    }


def _of_model(
    recipe: JudgedRecipe,
    entry: Contestant,
    policies: NamedPolicies,
    settings: GenerationSettings,
    prompts: Sequence[BenchPrompt],
    turns: int,
) -> Answers:
    policy = policies(entry.name, recipe.seed)
    dialogues: list[list[Message] | None] = [[] for _ in prompts]
    error = ""
    for turn in range(turns):
        going = [(p, d) for p, d in enumerate(dialogues) if d is not None]
        requests = [
            Request([*d, {"role": "user", "content": prompts[p].turns[turn]}], entry.weights)
            for p, d in going
        ]
        about = f"{entry.name}, turn {turn + 1}" if turns > 1 else entry.name
        written = respond(
            policy,
            requests,
            settings,
            recipe.seed,
            Path(recipe.output) / "responses",
            recipe.batch_size,
            progress(about, "prompts answered"),
        )
        for (p, _), request, responses in zip(going, requests, written, strict=True):
            text = responses[0].text
            if text is None:
                dialogues[p], error = None, responses[0].error or ""
            else:
                dialogues[p] = [*request.messages, {"role": "assistant", "content": text}]
    answers: Answers = [
        None if d is None else tuple(m["content"] for m in d if m["role"] == "assistant")
        for d in dialogues
    ]
    if not any(answer is not None for answer in answers):
        raise ConfigError(f"{entry.name}: not one answer; {error}", ["models"])
    return answers
