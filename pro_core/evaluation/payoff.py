"""When do weights that follow the prompt pay? A recipe's result rows; the idea is in :mod:`pro_core.theory.payoff`.

Two worlds: Gaussian margins with any number of objectives (``payoff``), and a panel's rewards of real responses to
real prompts (``payoff_real``). Weights are planted in both. Two adapters: ``calibrated``, which moves as far as what it
knows allows (its boldness is its correlation with the truth), and ``bold``, which moves as far as the truth.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache, partial
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from pro_core.evaluation.results import Row, check_own_results
from pro_core.evaluation.theorem import KeptRows, WorldRecipe
from pro_core.system.extras import needs
from pro_core.system.settings import Count, Positive, Seeds, Several
from pro_core.theory.alignment_gap import CandidateSets
from pro_core.theory.payoff import (
    PAYOFF_VERSION,
    Adapted,
    best_fixed,
    candidate_accuracy,
    gaussian_accuracy,
    measure_payoff,
    planted_weights,
)

with needs("train"):
    from pydantic import Field

GAUSSIAN, REAL = "payoff", "payoff_real"
ADAPTERS = ("calibrated", "bold")
DECIDING = ("responses", "panel", "encoder", "prompts", "base", "preference_temperature")
AccuracyOf = Callable[..., NDArray]
"""(weights (P, K) or (K,), truth=(P, K)) -> how often they predict a prompt's preferences (P,)."""


class PayoffRecipe(WorldRecipe):
    """What `train/payoff.py` measures."""

    results: str
    """the file of rows; finished settings are not measured again"""
    figure: str
    """the figure's file"""
    seeds: Seeds
    """each draws its own prompts, weights and noise"""
    prompts: Count = 1000
    """of the Gaussian world"""
    objectives: Annotated[list[Count], Field(min_length=1)]
    """numbers of objectives in the Gaussian world"""
    diversities: Several
    """of w* between prompts, as deviation of its logits"""
    correlations: Several
    """of the adapter's log-weights with the truth's, above 0 to 1"""
    noises: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1)]
    """deviation of the panel's errors, in units of the margins' own"""
    base: Annotated[float, Field(ge=0)]
    """deviation of w*'s mean logits"""
    preference_temperature: Positive
    """of the people who label the pairs"""


def payoff_rows(recipe: PayoffRecipe) -> list[Row]:
    """Measure what is not in the recipe's results file yet, write it there, and return all of the recipe's rows."""
    check_own_results(recipe)
    version = recipe.version_of(recipe.decides(*DECIDING), PAYOFF_VERSION)
    results = KeptRows(recipe.results, recipe.config, version, recipe.seeds)
    swept = itertools.product(recipe.diversities, recipe.correlations, recipe.noises)

    @cache
    def world() -> CandidateSets:
        return recipe.world(version).test

    for diversity, correlation, noise in swept:
        setting = {"diversity": diversity, "correlation": correlation, "noise": noise}
        for K in recipe.objectives:
            measure = partial(_gaussian, recipe, K, setting)
            results.record(GAUSSIAN, {"K": K, **setting}, ADAPTERS, measure)
        results.record(REAL, setting, ADAPTERS, partial(_real, recipe, world, setting))
    return results.rows()


# ---------------------------------------------------------------- the two worlds


def _gaussian(recipe: PayoffRecipe, K: int, setting: dict[str, float], seeds: list[int]):
    def accuracy(weights: NDArray, truth: NDArray) -> NDArray:
        return gaussian_accuracy(weights, truth, recipe.preference_temperature, setting["noise"])

    return [_adapters(recipe, recipe.prompts, K, seed, accuracy, setting) for seed in seeds]


def _real(
    recipe: PayoffRecipe,
    world: Callable[[], CandidateSets],
    setting: dict[str, float],
    seeds: list[int],
):
    sets, reports = world(), []
    P, _, K = sets.rewards.shape
    for seed in seeds:
        # The panel's own errors cannot be known: its rewards are the truth here, and noise comes on top.
        errors = np.random.default_rng([seed, 1]).normal(0, 1, sets.rewards.shape)
        seen = sets.rewards + setting["noise"] * errors

        def accuracy(weights: NDArray, truth: NDArray, seen: NDArray = seen) -> NDArray:
            temperature = recipe.preference_temperature
            return candidate_accuracy(weights, truth, temperature, sets, seen)

        reports.append(_adapters(recipe, P, K, seed, accuracy, setting, smooth=False))
    return reports


def _adapters(
    recipe: PayoffRecipe,
    prompts: int,
    K: int,
    seed: int,
    accuracy: AccuracyOf,
    setting: dict[str, float],
    smooth: bool = True,
) -> dict[str, dict[str, float]]:
    """The metrics of each of ``ADAPTERS``; the fixed weights, the best ones, are told the truth."""
    report = {}
    fixed: NDArray | None = None
    for method in ADAPTERS:
        # The same prompts and the same truth for both.
        rng = np.random.default_rng([seed, K])
        boldness = setting["correlation"] if method == "calibrated" else 1.0
        known: Adapted = planted_weights(
            prompts, K, setting["diversity"], setting["correlation"], boldness, recipe.base, rng
        )
        right = partial(accuracy, truth=known.truth)
        fixed = best_fixed(right, known.truth, smooth) if fixed is None else fixed
        report[method] = dict(measure_payoff(right, known, fixed))
    return report
