"""What a weight is worth that no pairs have taught: rows of an objective without pairs, against a planted truth."""

from __future__ import annotations

from pro_core.evaluation.results import Row, check_own_results
from pro_core.evaluation.theorem import KeptRows
from pro_core.runs.recipes import Recipe
from pro_core.system.settings import Seeds
from pro_core.theory.planted import WITHHELD_METHODS, compare_shares

WITHHELD_VERSION = "1"
"""Every change of what :func:`pro_core.theory.planted.compare_shares` measures raises it."""


class WithheldRecipe(Recipe):
    """What `train/withheld.py` measures."""

    results: str
    """the file of rows; finished seeds are not measured again"""
    seeds: Seeds
    """each draws its own rewards and preferences"""


def withheld_rows(recipe: WithheldRecipe) -> list[Row]:
    """Measure the seeds that are not in the recipe's results file yet, write them there, and return all rows."""
    check_own_results(recipe)
    kept = KeptRows(recipe.results, recipe.config, WITHHELD_VERSION, recipe.seeds)
    kept.record("withheld", {}, WITHHELD_METHODS, lambda seeds: [compare_shares(s) for s in seeds])
    return kept.rows()
