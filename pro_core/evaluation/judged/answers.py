"""Answers of policies and endpoints to a benchmark's prompts, kept in the response store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pro_core.adapter.model import PreferenceAdapter
from pro_core.data.objectives import Message
from pro_core.evaluation.judged.prompts import BenchPrompt
from pro_core.evaluation.judged.recipe import Contestant, JudgedRecipe
from pro_core.evaluation.policy.policies import NamedPolicies
from pro_core.evaluation.policy.responses import best_answer, respond
from pro_core.evaluation.policy.scoring import PanelScores
from pro_core.generation import GenerationSettings, Request
from pro_core.generation.responses import Response
from pro_core.rewards.panel import RewardPanel
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
    taught = _chooser(recipe.panel) if entry.candidates > 1 else None
    dialogues: list[list[Message] | None] = [[] for _ in prompts]
    error = ""
    for turn in range(turns):
        going = [(p, d) for p, d in enumerate(dialogues) if d is not None]
        asked: list[list[Message]] = [
            [*d, {"role": "user", "content": prompts[p].turns[turn]}] for p, d in going
        ]
        weights = _weights(entry, asked)
        requests = [Request(messages, w) for messages, w in zip(asked, weights, strict=True)]
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
            text = _chosen(responses, request, taught)
            if text is None:
                dialogues[p], error = None, responses[0].error or "no candidate has a score"
            else:
                dialogues[p] = [*request.messages, {"role": "assistant", "content": text}]
    answers: Answers = [
        None if d is None else tuple(m["content"] for m in d if m["role"] == "assistant")
        for d in dialogues
    ]
    if not any(answer is not None for answer in answers):
        raise ConfigError(f"{entry.name}: not one answer; {error}", ["models"])
    return answers


def _weights(
    entry: Contestant, asked: Sequence[Sequence[Message]]
) -> Sequence[dict[str, float] | None]:
    """The weights for each prompt: the adapter's, or the recipe's."""
    if entry.adapter is None or not asked:
        return [entry.weights] * len(asked)
    adapter = PreferenceAdapter.from_pretrained(entry.adapter)
    predicted = adapter.predict([list(messages) for messages in asked])
    return [dict(zip(adapter.objective_names, row.tolist(), strict=True)) for row in predicted]


def _chooser(folder: str | None) -> PanelScores:
    assert folder is not None  # the recipe says so
    return PanelScores(folder, RewardPanel.from_pretrained(folder), None)


def _chosen(
    responses: Sequence[Response], request: Request, taught: PanelScores | None
) -> str | None:
    """The one response, or the candidate with the largest weighted sum of the panel's standardized scores."""
    texts = [response.text for response in responses if response.text is not None]
    if taught is None or len(texts) < 2:
        return texts[0] if texts else None
    names = taught.objective_names
    given = request.weights or dict.fromkeys(names, 1.0)
    if unknown := sorted(set(given) - set(names)):
        raise ConfigError(f"got weights for {unknown}, which the panel does not score", ["models"])
    weights = [given.get(name, 0.0) for name in names]
    raw = taught.scorer.score([list(request.messages)] * len(texts), texts)
    best = best_answer(taught.shown(raw, texts), weights)
    return None if best is None else texts[best]
