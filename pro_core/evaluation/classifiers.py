"""Result rows of MOSLIM's reward classifier on held-out responses, and of the majority class (its Table 1).

The metrics are those of :mod:`pro_core.rewards.classifier_grades`.
"""

from __future__ import annotations

import time
from pathlib import Path

import pandas as pd

from pro_core.data.schema import DataError
from pro_core.evaluation.results import Row, result_row
from pro_core.rewards.classifier import FORMAT
from pro_core.rewards.classifier_grades import grade_levels, graded_responses, majority_class
from pro_core.rewards.classifier_runs import ClassifierRun
from pro_core.rewards.levels import saved_scales
from pro_core.rewards.recipes import ClassifierRecipe
from pro_core.system.storage import read_config

BASELINE = "majority class"


def classifier_rows(recipe: ClassifierRecipe, split: str) -> list[Row]:
    """The rows of every classifier of a recipe, and of the majority class, which is the same for all.

    Raises:
        StorageError: a classifier is not trained yet. DataError: no response of that split was held out.
    """
    run = ClassifierRun(recipe)
    graded = [
        _rows_of(run.made(loss, seed, folder).folder, seed, split, recipe.config)
        for loss, seed, folder in run.arms()
    ]
    return [of_classifier for of_classifier, _ in graded] + [graded[0][1]]


def _rows_of(folder: Path, seed: int, split: str, config: str) -> list[Row]:
    """The row of a trained classifier and that of the majority class, from its folder's files."""
    started, saved = time.monotonic(), read_config(folder, "classifier.json", FORMAT)
    scales, loss = saved_scales(saved), saved["loss"]
    table = pd.read_parquet(folder / "predictions.parquet")
    table = graded_responses(table, split)
    if table.empty:
        raise DataError(
            f"{folder / 'predictions.parquet'}: no {split} responses whose prompt was not trained on, so there is "
            "nothing to grade on"
        )
    methods = {
        f"classifier ({loss})": grade_levels(table, scales, loss),
        BASELINE: majority_class(table, scales, saved["label_counts"]),
    }
    rows = []
    for method, measured in methods.items():
        metrics = {name: m["accuracy"] for name, m in measured.items()}
        metrics |= {f"n_{s.name}": int((table[f"level_{s.name}"] > 0).sum()) for s in scales}
        metrics |= {f"levels_{s.name}": s.levels for s in scales}
        intervals = {name: m["ci95"] for name, m in measured.items()}
        wall = time.monotonic() - started
        rows.append(
            result_row(
                "classifier",
                method,
                seed,
                split,
                len(table),
                metrics,
                intervals,
                config,
                wall,
                kind="baseline" if method == BASELINE else "method",
                objectives=[scale.name for scale in scales],
            )
        )
    return rows
