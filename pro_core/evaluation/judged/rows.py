"""The rows of a judged recipe, whichever its benchmark."""

from __future__ import annotations

from collections.abc import Callable

from pro_core.evaluation.judged.absolute import halueval_rows, mt_bench_rows
from pro_core.evaluation.judged.compared import alpaca_rows, arena_rows
from pro_core.evaluation.judged.recipe import Benchmark, JudgedRecipe
from pro_core.evaluation.judged.run import JudgedRun
from pro_core.evaluation.judged.trust import trust_rows
from pro_core.evaluation.results import Row

ROWS: dict[Benchmark, Callable[[JudgedRun], list[Row]]] = {
    "alpaca_eval": alpaca_rows,
    "arena_hard": arena_rows,
    "mt_bench": mt_bench_rows,
    "halueval": halueval_rows,
    "trust": trust_rows,
}


def judged_rows(recipe: JudgedRecipe, split: str) -> list[Row]:
    """Answer, judge and measure; a killed run resumes. ``split`` is that of labelled pairs.

    Raises:
        ConfigError, DataError, StorageError: as the parts do; BudgetSpent where verdicts are missing.
    """
    return ROWS[recipe.benchmark](JudgedRun(recipe, split))
