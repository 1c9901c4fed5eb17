"""When do weights that follow the prompt pay? A recipe's result rows; the idea is in :mod:`pro_core.theory.payoff`.

Two worlds: Gaussian margins with any number of objectives (``payoff``), and a panel's rewards of real responses to
real prompts (``payoff_real``). Weights are planted in both. Two adapters: ``calibrated``, which moves as far as what it
knows allows (its boldness is its correlation with the truth), and ``bold``, which moves as far as the truth.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from pro_core.evaluation.results import Row, check_own_results
from pro_core.evaluation.theorem import KeptRows, WorldRecipe
from pro_core.system.extras import needs
from pro_core.system.settings import Count, Positive, Seeds, Several
from pro_core.theory.alignment_gap import CandidateSets
from pro_core.theory.payoff import (
    PAYOFF_VERSION,
    best_fixed,
    candidate_accuracy,
    gaussian_accuracy,
    margin_deviation,
    measure_payoff,
    planted_weights,
)
from pro_core.theory.theorem import World

with needs("train"):
    from pydantic import Field

GAUSSIAN, REAL = "payoff", "payoff_real"
ADAPTERS = ("calibrated", "bold")
WORLD = ("responses", "panel", "encoder")
DECIDING = (*WORLD, "prompts", "base", "preference_temperature")


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

    @cache
    def world() -> World:
        # Scoring it takes minutes: named by what it is made of alone.
        return recipe.world(recipe.version_of(recipe.decides(*WORLD)))

    @cache
    def prompts(K: int | None, noise: float, seed: int) -> tuple[Prompts, Prompts]:
        return _real(recipe, world(), noise, seed) if K is None else _gaussian(recipe, K, noise)

    @cache
    def fixed(K: int | None, diversity: float, noise: float, seed: int) -> NDArray:
        """The best fixed weights of other prompts, told their truth."""
        train, _ = prompts(K, noise, seed)
        rng = np.random.default_rng([seed, train.K, 1])
        center = _center(recipe, train.K, seed)
        truth = planted_weights(train.count, center, center, diversity, 1, 1, rng).truth
        return best_fixed(partial(train.accuracy, truth=truth), truth, train.smooth)

    def measure(K: int | None, setting: dict[str, float], seeds: list[int]):
        reports = []
        for seed in seeds:
            where = setting["noise"], seed
            _, test = prompts(K, *where)
            weights = fixed(K, setting["diversity"], *where)
            reports.append(_adapters(test, _center(recipe, test.K, seed), setting, weights, seed))
        return reports

    for diversity, correlation, noise in itertools.product(
        recipe.diversities, recipe.correlations, recipe.noises
    ):
        setting = {"diversity": diversity, "correlation": correlation, "noise": noise}
        for K in recipe.objectives:
            given = {"K": K, **setting}
            results.record(GAUSSIAN, given, ADAPTERS, partial(measure, K, setting))
        results.record(REAL, setting, ADAPTERS, partial(measure, None, setting))
    return results.rows()


# ---------------------------------------------------------------- the two worlds


@dataclass(frozen=True)
class Prompts:
    """Prompts on which weights are right more or less often.

    Attributes:
        accuracy: (weights (P, K) or (K,), truth=(P, K)) -> how often they predict each prompt's preferences (P,).
        smooth: it has a gradient.
    """

    count: int
    K: int
    accuracy: Callable[..., NDArray]
    smooth: bool


def _gaussian(recipe: PayoffRecipe, K: int, noise: float) -> tuple[Prompts, Prompts]:
    """To fit on and to measure on; they differ in the weights that are planted."""

    def accuracy(weights: NDArray, truth: NDArray) -> NDArray:
        return gaussian_accuracy(weights, truth, recipe.preference_temperature, noise)

    prompts = Prompts(recipe.prompts, K, accuracy, smooth=True)
    return prompts, prompts


def _real(recipe: PayoffRecipe, world: World, noise: float, seed: int) -> tuple[Prompts, Prompts]:
    """Train and test prompts. The panel's own errors cannot be known: its rewards are the truth, noise comes on top."""
    rng = np.random.default_rng([seed, 2])
    size_K = margin_deviation(world.train) / np.sqrt(2)  # of each response, since a margin has two

    def prompts(sets: CandidateSets) -> Prompts:
        seen = sets.rewards + noise * size_K * rng.normal(size=sets.rewards.shape)

        def accuracy(weights: NDArray, truth: NDArray) -> NDArray:
            return candidate_accuracy(weights, truth, recipe.preference_temperature, sets, seen)

        P, _, K = sets.rewards.shape
        return Prompts(P, K, accuracy, smooth=False)

    return prompts(world.train), prompts(world.test)


def _center(recipe: PayoffRecipe, K: int, seed: int) -> NDArray:
    """The centre of w* (K,), the same for all prompts of a seed."""
    return softmax(np.random.default_rng([seed, K]).normal(0, recipe.base, K))


def _adapters(
    test: Prompts, center: NDArray, setting: dict[str, float], fixed: NDArray, seed: int
) -> dict[str, dict[str, float]]:
    """The metrics of each of ``ADAPTERS``, on the same prompts with the same truth."""
    report = {}
    for method in ADAPTERS:
        rng = np.random.default_rng([seed, test.K, 3])
        boldness = setting["correlation"] if method == "calibrated" else 1.0
        shape = setting["diversity"], setting["correlation"], boldness
        known = planted_weights(test.count, center, fixed, *shape, rng)
        accuracy = partial(test.accuracy, truth=known.truth)
        report[method] = dict(measure_payoff(accuracy, known, fixed))
    return report
