"""An online round: its plan, and the responses that it keeps, each under what it obtained (Eq 11)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pro_core.policies.conditional.data import ScoredData
from pro_core.policies.conditional.recipe import WicRecipe
from pro_core.policies.goals import Goals, accept_ric, accept_weighted, ask, distance
from pro_core.policies.sft import Row
from pro_core.prompting.templates import Condition
from pro_core.runs.recipes import ConfigError
from pro_core.weights import weighted_sum


def plan_round(
    recipe: WicRecipe, number: int, seed: int, data: ScoredData, condition: Condition
) -> list[dict[str, Any]]:
    """The round's prompts, the same for every method, and what each is asked for.

    Returns:
        ``{"prompt", "weights" (K,), "scores" (K,) or None, "text"}`` for each prompt.

    Raises:
        ConfigError: fewer prompts than the recipe asks for.
    """
    prompts = data.prompts
    if len(prompts) < recipe.prompts:
        raise ConfigError(
            f"prompts: got {len(prompts)} prompts of the train split, expected {recipe.prompts}",
            ["prompts"],
        )
    rng = np.random.default_rng([seed, number])
    drawn = [prompts[i] for i in rng.permutation(len(prompts))[: recipe.prompts]]
    goals = ask(recipe.goals, drawn, condition, data.adapter, [seed, number, 2])
    return [
        {
            "prompt": prompt,
            "weights": goals.weights[b].tolist(),
            "scores": None if goals.scores is None else goals.scores[b].tolist(),
            "text": goals.texts[b],
        }
        for b, prompt in enumerate(drawn)
    ]


@dataclass
class Accepted:
    """What a round keeps.

    Attributes:
        rows: the accepted responses, each under what it obtained. ``lines``: the same for people.
        report: figures about all responses and about those kept.
        totals: the weighted scores of all responses, under what was asked.
    """

    rows: list[Row]
    lines: list[dict[str, Any]]
    report: dict[str, Any]
    totals: list[float]


def accept(
    recipe: WicRecipe,
    plan: Sequence[dict[str, Any]],
    responses: Sequence[dict[str, Any]],
    data: ScoredData,
    condition: Condition,
    earlier: Sequence[float],
) -> Accepted:
    """The responses that the recipe's rule keeps.

    Args:
        plan: see :func:`plan_round`. responses: ``{"prompt", "text", "raw"}``, the prompt's row of the plan and the
            panel's scores, None where the response failed.
        earlier: the totals of all responses of earlier rounds.
    """
    written = [r for r in responses if r["raw"]]
    asked = np.array([row["weights"] for row in plan], dtype=np.float32)
    scores = [row["scores"] for row in plan]
    goals = Goals(
        asked,
        None if scores[0] is None else np.array(scores, dtype=np.float32),
        [row["text"] for row in plan],
    )
    rows = np.array([r["prompt"] for r in written])
    z = data.standardize([r["raw"] for r in written], [r["text"] for r in written])
    if recipe.accept == "ric":
        kept = accept_ric(z, recipe.quantile)
    else:
        kept = accept_weighted(z, asked[rows], rows.tolist(), recipe.quantile, earlier)
    whole = np.isfinite(z).all(axis=1)
    # An empty answer has a score, but there is nothing in it to learn.
    kept &= np.array([bool(r["text"].strip()) for r in written], dtype=bool)
    distances = np.full(len(z), np.nan)
    distances[whole] = distance(condition, goals, rows[whole], z[whole])
    index = np.flatnonzero(kept)
    obtained = zip(
        index, condition.obtained(z[index]), condition.obtained_weights(z[index]), strict=True
    )
    learned: list[Row] = []
    lines: list[dict[str, Any]] = []
    for n, text, weights in obtained:
        row, response = plan[rows[n]], written[n]
        learned.append((condition.add(row["prompt"], text), response["text"]))
        lines.append(
            {
                **{"prompt": row["prompt"], "response": response["text"]},
                **{"asked": row["text"], "obtained": text, "distance": float(distances[n])},
                **{"weights_asked": row["weights"], "weights_obtained": weights.tolist()},
                "z": z[n].tolist(),
            }
        )
    report: dict[str, Any] = {
        "responses": len(written),
        "unscored": int((~whole).sum()),
        "accepted": len(learned),
    }
    for name, chosen in (("", index), ("_of_all", np.flatnonzero(whole))):
        if len(chosen):
            means = z[chosen].mean(axis=0).tolist()
            report[f"distance{name}"] = float(distances[chosen].mean())
            report[f"z{name}"] = dict(zip(data.objective_names, means, strict=True))
    totals = weighted_sum(z[whole], asked[rows[whole]]).tolist()
    return Accepted(learned, lines, report, totals)
