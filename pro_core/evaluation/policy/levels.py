"""Whether MOSLIM's policies give the levels that they are asked for: Figures 5 and 6 of its paper.

Every policy answers the held-out prompts under each level of each objective alone, and under the lowest and highest
levels of each pair. The level given is the classifier's expected level of the response, sum_l l p(l). The classifier
taught the policy, so it is no independent judge; a judge and a held-out panel, where there are any, score the responses
too. A stock model is asked in the same words, so the difference is what training adds.

    spearman_<objective>: rank correlation, within prompts, of the level asked for and the level given; -1 to 1.
    gain_<objective>: the level given at the highest level asked for, minus that at the lowest.
    gain_<objective>_beside_<other>: the same gain while the other objective is asked for too.
    mean_<objective>: the level given, averaged over all requests.

``spearman_heldout_<objective>`` uses the held-out panel's score; ``judge_score`` and ``heldout_<objective>`` are in
units of the base policy's responses under all requests. Intervals are a bootstrap over prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pro_core.evaluation.policy.grids import Grid, level_grid
from pro_core.evaluation.policy.metrics import (
    Answers,
    Draws,
    Floats,
    JudgeUnits,
    fitted_units,
    judged,
    means,
    over_requests,
    paired_gaps,
    rank_correlation,
    text_measures,
)
from pro_core.evaluation.policy.policies import NamedPolicies
from pro_core.evaluation.policy.recipe import LevelEvaluation
from pro_core.evaluation.policy.rows import Answered, study_rows
from pro_core.evaluation.policy.run import PolicyRun
from pro_core.evaluation.policy.scoring import Judges, LevelScores
from pro_core.evaluation.results import Row
from pro_core.rewards.classifier import RewardClassifier
from pro_core.runs.recipes import ConfigError
from pro_core.system.processes import process_device


def level_rows(recipe: LevelEvaluation, split: str = "test") -> list[Row]:
    """All result rows of a recipe, see :mod:`pro_core.evaluation.policy.rows`."""
    return study_rows(LevelStudy(recipe, split))


class LevelStudy:
    """Policies under levels.

    Raises:
        ConfigError: the base policy is missing. Otherwise as :class:`PolicyRun`.
    """

    about = "request"

    def __init__(self, recipe: LevelEvaluation, split: str = "test"):
        classifier = RewardClassifier.from_pretrained(recipe.classifier, process_device())
        taught = LevelScores(recipe.classifier, classifier, recipe.objectives)
        condition = taught.condition
        policies = NamedPolicies.under_levels(recipe.policies, condition)
        self.run = PolicyRun(recipe, split, taught, policies)
        levels = level_grid(condition.level_counts or ())
        self.grid = Grid("levels", taught.objective_names, levels)
        self._units: JudgeUnits | None = None

    def measures(self, name: str, seed: int, answered: Answered, counts_RP: Floats) -> Draws:
        if self._units is None:
            base = self.run.recipe.base
            if base not in answered:
                raise ConfigError(
                    f"{base}: the base policy is missing, and it fixes the judges' units", ["base"]
                )
            first = next(iter(answered[base].values()))
            self._units = base_units(self.run.judges, first, base, len(self.grid))
        return control(answered[name][seed], self.grid, self._units, counts_RP)

    def without_interval(self, answers: Answers) -> dict[str, float]:
        return text_measures(answers)

    def of_response(self, answers: Answers) -> dict[str, Floats]:
        assert self._units is not None
        return _of_response(answers, self.grid, self._units)

    def leads(
        self, name: str, other: str, seeds: Sequence[int], answered: Answered, counts_RP: Floats
    ) -> Draws:
        units = self._units
        assert units is not None
        return paired_gaps(
            ((answered[name][seed], answered[other][seed]) for seed in seeds),
            lambda answers: control(answers, self.grid, units, counts_RP),
        )


def base_units(judges: Judges, answers: Answers, base: str, requests: int) -> JudgeUnits:
    """Mean and deviation of each judge's scores of the base policy's answers; None for a missing judge.

    Raises:
        ConfigError: fewer than two responses have scores.
    """
    about = f"responses of {base} under {requests} requests"
    judge = heldout = None
    if judges.overall is not None and answers.judge_WP is not None:
        names = judges.overall.objective_names
        judge = fitted_units(answers.judge_WP.reshape(-1, 1), names, about, base)
    if judges.heldout is not None and answers.heldout_WPJ is not None:
        names = judges.heldout.objective_names
        heldout = fitted_units(answers.heldout_WPJ.reshape(-1, len(names)), names, about, base)
    return JudgeUnits(judge, heldout)


def control(answers: Answers, grid: Grid, units: JudgeUnits, counts_RP: Floats) -> Draws:
    """Each measure of the module's docstring under each resample of the prompts, (R,)."""
    asked_WK, names = grid.values_WK, grid.objective_names
    named = (asked_WK > 0).sum(axis=1)
    values = _of_response(answers, grid, units)
    draws: Draws = {}

    def add(key: str, values_P: Sequence[float] | Floats) -> None:
        draws[key] = means(np.asarray(values_P)[:, None], counts_RP)[:, 0]

    for k, name in enumerate(names):
        alone = np.flatnonzero((asked_WK[:, k] > 0) & (named == 1))
        if len(alone) < 2:
            continue  # with a single level there is nothing to follow
        for prefix, key in (("", f"mean_{name}"), ("heldout_", f"heldout_{name}")):
            if key in values:
                given_WP = values[key][alone]
                follows = [rank_correlation(asked_WK[alone, k], given) for given in given_WP.T]
                add(f"spearman_{prefix}{name}", follows)
        level_WP = values[f"mean_{name}"]
        add(f"gain_{name}", level_WP[alone[-1]] - level_WP[alone[0]])
        for j, other in enumerate(names):
            pair = (asked_WK[:, k] > 0) & (asked_WK[:, j] > 0) & (named == 2)
            if j == k or not pair.any():
                continue
            high, low = (
                level_WP[pair & (asked_WK[:, k] == level)].mean(axis=0)
                for level in (asked_WK[:, k].max(), 1)
            )
            add(f"gain_{name}_beside_{other}", high - low)
    return draws | {key: over_requests(of, counts_RP) for key, of in values.items()}


def _of_response(answers: Answers, grid: Grid, units: JudgeUnits) -> dict[str, Floats]:
    """All measures of a response, (W, P) each; NaN where there is no response."""
    names = grid.objective_names
    given = {f"mean_{name}": answers.scores_WPK[:, :, k] for k, name in enumerate(names)}
    return given | judged(answers, units)
