"""The choice among trials: each answers the same validation prompts, and a judge scores the answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pro_core.data.objectives import Message
from pro_core.generation import GenerationSettings, LocalGenerator
from pro_core.generation.request import Request
from pro_core.generation.responses import by_length, write_responses
from pro_core.generation.sampling import WRITING_VERSION
from pro_core.policies.preference.data import PairData
from pro_core.policies.preference.recipe import PreferenceRecipe
from pro_core.policies.stages import ROLLOUTS, stage
from pro_core.rewards.panel import RewardPanel
from pro_core.runs.recipes import ConfigError
from pro_core.system.artefacts import WORK, Artefact
from pro_core.system.processes import from_main, main_process, process_device
from pro_core.system.storage import content_hash, write_jsonl


def load_judge(recipe: PreferenceRecipe, data: PairData) -> RewardPanel | None:
    """The judge, if one of a recipe's methods has several trials.

    Raises:
        ConfigError: a judge without statistics, or no validation prompts for it.
    """
    if all(len(method.trials) == 1 for method in recipe.methods().values()):
        return None
    assert recipe.judge is not None
    judge = RewardPanel.from_pretrained(recipe.judge, process_device())
    if judge.stats is None:
        raise ConfigError(
            f"judge {recipe.judge}: it has no statistics, without which its scores cannot be averaged",
            ["judge"],
        )
    if not data.validation:
        raise ConfigError(
            "data: got no prompts of the validation split, on which trials are compared",
            ["data", "trials"],
        )
    return judge


def choose(judged: Sequence[Artefact]) -> int:
    """The trial whose answers the judge likes best, the first of equals.

    An answer that could not be written counts as the worst of all answers: what a judge says of an empty text says
    nothing of it.

    Raises:
        ConfigError: none of the trials could answer anything.
    """
    records = [one.record for one in judged]
    if all(record["failed"] == record["answers"] for record in records):
        raise ConfigError(f"no trial could answer one validation prompt: {records[0]['error']}")
    worst = min(record["lowest"] for record in records if record["lowest"] is not None)

    def score(record: dict[str, Any]) -> float:
        failed, answers = record["failed"], record["answers"]
        if failed == answers:
            return -np.inf
        return ((answers - failed) * record["judge_score"] + failed * worst) / answers

    return int(np.argmax([score(record) for record in records]))


def judged_answers(
    recipe: PreferenceRecipe,
    policy: Artefact,
    prompts: Sequence[Sequence[Message]],
    judge: RewardPanel,
) -> Artefact:
    """A trial's answers to the prompts, the likeliest token at each place, and their mean ``judge_score``: the judge's
    standardized score, averaged over its objectives; None where no answer could be written, ``lowest`` likewise."""
    how = [WRITING_VERSION, recipe.max_new_tokens, recipe.max_length, recipe.answers_batch]
    key = content_hash(["judged", policy.key, prompts, how, judge.key()])

    def make(folder: Path) -> dict[str, Any]:
        order = by_length(prompts)
        written = write_responses(
            lambda: LocalGenerator(
                policy.checkpoint, device=process_device(), max_context=recipe.max_length
            ),
            [Request(prompts[p]) for p in order],
            1,
            GenerationSettings(recipe.max_new_tokens, temperature=0),
            lambda *_: 0,  # nothing is drawn
            folder / WORK,
            recipe.answers_batch,
            key,
        )
        failed = [one.error for [one] in written if one.text is None]
        answered = [
            (prompts[p], one.text)
            for p, [one] in zip(order, written, strict=True)
            if one.text is not None
        ]
        scores: list[float] = []
        if answered:
            asked, texts = zip(*answered, strict=True)
            z_NK = from_main(judge.standardized(asked, texts) if main_process() else None)
            scores = np.asarray(z_NK, dtype=np.float64).mean(axis=1).tolist()
        if main_process():
            lines = [
                {"prompt": prompt, "answer": text, "judge_score": value}
                for (prompt, text), value in zip(answered, scores, strict=True)
            ]
            write_jsonl(folder / "answers.jsonl", lines)
        return {
            "judge_score": float(np.mean(scores)) if scores else None,
            "lowest": min(scores, default=None),
            "answers": len(written),
            "failed": len(failed),
            "error": failed[0] if failed else None,
            "characters": float(np.mean([len(text) for _, text in answered])) if answered else 0.0,
            "empty": sum(not text.strip() for _, text in answered),
        }

    return stage(Path(recipe.output) / "judged", key, ROLLOUTS, make)
