"""Result rows of policies under a grid of requests of any kind.

| kind | one row for each |
|---|---|
| ``method`` | method and seed: every measure |
| ``all_seeds`` | method: the means over seeds, ``sd_over_seeds_<measure>``, and the leads over other methods |
| ``point`` | method, seed and request: what figures and the equal-weight tables are made of |

``judge_accuracy`` and ``heldout_accuracy_<objective>`` are the judges' own accuracies on test pairs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from pro_core.evaluation.policy.grids import Grid
from pro_core.evaluation.policy.metrics import (
    Answers,
    Draws,
    Floats,
    averaged,
    means,
    resampled,
    summary,
)
from pro_core.evaluation.policy.run import PolicyRun
from pro_core.evaluation.policy.weights import LEADS
from pro_core.evaluation.results import Row, lead, result_row

Answered = dict[str, dict[int, Answers]]
"""Policy -> seed -> its answers to the grid."""
COUNTS = ("responses", "failed", "cut", "empty", "unscored")


class Study(Protocol):
    """What is measured of one kind of request.

    Attributes:
        about: the word for a request in progress messages.
    """

    run: PolicyRun
    grid: Grid
    about: str

    def measures(self, name: str, seed: int, answered: Answered, counts_RP: Floats) -> Draws:
        """The measures of one policy and seed."""
        ...

    def without_interval(self, answers: Answers) -> dict[str, float]:
        """Measures that cannot be resampled."""
        ...

    def of_response(self, answers: Answers) -> dict[str, Floats]:
        """What is reported of each request, as one value per response (W, P)."""
        ...

    def leads(
        self, name: str, other: str, seeds: Sequence[int], answered: Answered, counts_RP: Floats
    ) -> Draws:
        """One policy minus another, over the seeds that both have."""
        ...


def study_rows(study: Study) -> list[Row]:
    """Answer and measure everything; the base comes first."""
    run = study.run
    counts_RP = resampled(len(run.prompts))
    requests = study.grid.requests(run.prompts)
    answered: Answered = {}
    rows: list[Row] = []
    for name in run.recipe.names:
        draws: list[Draws] = []
        counted: list[dict[str, float]] = []
        for seed in run.seeds_of(name):
            started = time.monotonic()
            answers = run.answers(name, seed, requests, study.about)
            answered.setdefault(name, {})[seed] = answers
            draws.append(study.measures(name, seed, answered, counts_RP))
            counted.append(study.without_interval(answers) | run.policies.training(name, seed))
            wall = time.monotonic() - started
            rows.append(_method_row(run, name, seed, draws[-1], counted[-1], wall))
            rows += _point_rows(study, name, seed, answers, counts_RP)
        if draws:
            rows.append(_method_row(run, name, None, averaged(draws), joined(draws, counted)))
    for row in (row for row in rows if row["kind"] == "all_seeds"):
        name = row["method"]
        for other in run.recipe.compared:
            seeds = [seed for seed in answered[name] if seed in answered.get(other, ())]
            if other != name and seeds:
                led = study.leads(name, other, seeds, answered, counts_RP)
                row["leads"][other] = lead(*summary(led))
    return rows


def joined(draws: list[Draws], counted: list[dict[str, float]]) -> dict[str, float]:
    """Measures without interval: counts summed over seeds, others averaged; and the deviation between seeds."""
    joined: dict[str, float] = {"seeds": len(draws)}
    for name in counted[0]:
        values = [counts[name] for counts in counted if name in counts]
        joined[name] = float(np.sum(values) if name in COUNTS else np.mean(values))
    if len(draws) > 1:
        for name in LEADS:
            values = [float(drawn[name][0]) for drawn in draws if name in drawn]
            if len(values) == len(draws) and np.isfinite(values).all():
                joined[f"sd_over_seeds_{name}"] = float(np.std(values, ddof=1))
    return joined


def _method_row(
    run: PolicyRun,
    name: str,
    seed: int | None,
    drawn: Draws,
    without_interval: dict[str, float],
    wall_s: float = 0.0,
) -> Row:
    """A row of one seed, or of all."""
    values, intervals = summary(drawn)
    accuracies, of_accuracies = run.judges.accuracies()
    return result_row(
        run.recipe.experiment,
        name,
        seed,
        run.split,
        len(run.prompts),
        values | without_interval | accuracies,
        intervals | of_accuracies,
        run.recipe.config,
        wall_s,
        kind="all_seeds" if seed is None else "method",
        setting=run.recipe.entry(name).setting,
        objectives=list(run.objective_names),
        heldout_objectives=run.judges.heldout_names,
        scored_by=run.scored_by,
    )


def _point_rows(
    study: Study, name: str, seed: int, answers: Answers, counts_RP: Floats
) -> list[Row]:
    """One row per request: its mean scores, and how many responses have all of the panel's scores."""
    run, rows, values = study.run, [], study.of_response(answers)
    for w in range(len(study.grid)):
        drawn = {key: means(of[w][:, None], counts_RP)[:, 0] for key, of in values.items()}
        shown, intervals = summary(drawn)
        scored = int(np.isfinite(answers.scores_WPK[w]).all(axis=1).sum())
        where = (run.recipe.experiment, name, seed, run.split, scored, shown, intervals)
        rows.append(
            result_row(
                *where,
                run.recipe.config,
                kind="point",
                request=study.grid.asked(w),
                objectives=list(run.objective_names),
                heldout_objectives=run.judges.heldout_names,
                scored_by=run.scored_by,
            )
        )
    return rows
