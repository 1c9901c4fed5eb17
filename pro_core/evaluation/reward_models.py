"""Result rows of reward models: panels with their baselines, and the effect of length on a panel's scores."""

from __future__ import annotations

import sys
import time
from typing import Any

from pro_core.data.training_pairs import TrainingPairs, graded_pairs
from pro_core.evaluation.results import Kind, Row, result_row
from pro_core.rewards.baselines import beside_baselines
from pro_core.rewards.length import length_removed
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.panel_runs import PanelRun
from pro_core.rewards.recipes import PanelRecipe
from pro_core.runs.recipes import ConfigError

PANEL = "panel"
Report = dict[str, dict[str, Any]]
"""Objective -> accuracy with its interval and the effect of length on it, see
:func:`pro_core.rewards.length.length_report`."""


def panel_row(
    experiment: str,
    method: str,
    seed: int,
    split: str,
    report: Report,
    config: str,
    wall_s: float,
    kind: Kind = "method",
    setting: dict[str, Any] | None = None,
) -> Row:
    """A row of one panel, or of a baseline, from the measures of each objective.

    All panels are graded on the same pairs, so their baselines belong to no recipe. A judge has pairs of its own.
    """
    metrics: dict[str, float] = {}
    intervals: dict[str, list[float]] = {}
    for name, a in report.items():
        metrics |= {f"accuracy_{name}": a["accuracy"], f"n_{name}": a["n"]}
        if a["length_correlation"] is not None:
            metrics[f"length_correlation_{name}"] = a["length_correlation"]
        intervals[f"accuracy_{name}"] = a["ci95"]
        if a["equal_length"]:
            metrics[f"accuracy_equal_length_{name}"] = a["equal_length"]["accuracy"]
            metrics[f"pairs_equal_length_{name}"] = a["equal_length"]["n"]
            intervals[f"accuracy_equal_length_{name}"] = a["equal_length"]["ci95"]
        if "slope" in a:
            metrics[f"slope_{name}"] = a["slope"]
    n = sum(a["n"] for a in report.values())
    if experiment != "judges" and kind == "baseline":
        config = ""
    return result_row(
        experiment,
        method,
        seed,
        split,
        n,
        metrics,
        intervals,
        config,
        wall_s,
        kind=kind,
        setting=setting,
        objectives=list(report),
    )


def panel_rows(recipe: PanelRecipe, split: str, experiment: str = "reward_models") -> list[Row]:
    """A recipe's finished panel, and the two baselines on the same pairs.

    Raises:
        ConfigError: no pairs of that split. StorageError: the panel is missing, or belongs to another recipe.
    """
    started, run = time.monotonic(), PanelRun(recipe)
    scores = run.table()
    measured = beside_baselines(PANEL, scores, _pairs(run), split, run.objective_names)
    if not measured:
        raise _nothing_to_grade(run, split)
    wall = time.monotonic() - started
    rows = []
    for method, report in measured.items():
        is_panel = method == PANEL
        kind: Kind = "method" if is_panel else "baseline"
        setting = {"trained": recipe.method} if is_panel else {}
        where = (experiment, method, recipe.seed, split, report)
        rows.append(panel_row(*where, run.config, wall, kind, setting))
    return rows


def judge_rows(recipe: PanelRecipe, split: str) -> list[Row]:
    """The same for a judge, which has pairs of its own."""
    return panel_rows(recipe, split, "judges")


def length_rows(recipe: PanelRecipe, split: str) -> list[Row]:
    """A finished panel with the length component of its scores kept and removed.

    Raises:
        As :func:`panel_rows`. DataError: as :func:`pro_core.rewards.length.length_removed`.
    """
    started, run = time.monotonic(), PanelRun(recipe)
    run.table()  # raises where the panel is another recipe's
    panel, data = RewardPanel.from_pretrained(run.final), _pairs(run)
    test = graded_pairs(data.held_out, split)
    if not test:
        raise _nothing_to_grade(run, split)
    measured = length_removed(panel, data.training, test)
    wall = time.monotonic() - started
    rows = []
    for scores, report in measured.items():
        where = ("length", PANEL, recipe.seed, split, report, run.config, wall)
        rows.append(panel_row(*where, setting={"scores": scores}))
    return rows


def _pairs(run: PanelRun) -> TrainingPairs:
    """The run's pairs; prints which of them are not graded."""
    for note in run.data.notes:
        print(note, file=sys.stderr)
    return run.data


def _nothing_to_grade(run: PanelRun, split: str) -> ConfigError:
    return ConfigError(f"{run.config}: no {split} pairs to grade on; {' '.join(run.data.notes)}")
