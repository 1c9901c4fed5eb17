"""Result rows of reward models: panels with their baselines, on their own data's held-out pairs and on other sets; and
the effect of length on a panel's scores."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from typing import Any

import pandas as pd

from pro_core.data.schema import DataError
from pro_core.data.sources import default_data_dir
from pro_core.data.training_pairs import TrainingPairs, graded_pairs, mark_ungraded
from pro_core.evaluation.results import Kind, Row, lead, result_row
from pro_core.rewards.baselines import beside_baselines
from pro_core.rewards.length import length_removed
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.panel_runs import PanelRun
from pro_core.rewards.recipes import PanelRecipe
from pro_core.rewards.scores import distinct_texts, pair_table, progress
from pro_core.runs.recipes import ConfigError

PANEL = "panel"
Report = dict[str, dict[str, Any]]
"""Objective -> its measures, see :func:`pro_core.rewards.baselines.beside_baselines`."""


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

    In ``reward_models`` all panels are graded on the same pairs, so their baselines belong to no recipe. A judge has
    pairs of its own. On other sets, the bag of words is that of the panel's training pairs.
    """
    metrics: dict[str, float] = {}
    intervals: dict[str, list[float]] = {}
    leads: dict[str, tuple[dict[str, float], dict[str, list[float]]]] = {}
    parts = dict(report)
    for name, a in report.items():
        parts |= {of_source(name, source): b for source, b in a.get("by_source", {}).items()}
    for name, a in parts.items():
        metrics |= {f"accuracy_{name}": a["accuracy"], f"n_{name}": a["n"]}
        if a["length_correlation"] is not None:
            metrics[f"length_correlation_{name}"] = a["length_correlation"]
        intervals[f"accuracy_{name}"] = a["ci95"]
        if a["equal_length"]:
            metrics[f"accuracy_equal_length_{name}"] = a["equal_length"]["accuracy"]
            metrics[f"pairs_equal_length_{name}"] = a["equal_length"]["n"]
            intervals[f"accuracy_equal_length_{name}"] = a["equal_length"]["ci95"]
        for other, measured in a.get("on", {}).items():
            metrics[f"accuracy_{name}_on_{other}"] = measured["accuracy"]
            intervals[f"accuracy_{name}_on_{other}"] = measured["ci95"]
        if "slope" in a:
            metrics[f"slope_{name}"] = a["slope"]
        for other, led in a.get("leads", {}).items():
            differences, of_difference = leads.setdefault(other, ({}, {}))
            differences[f"accuracy_{name}"] = led["accuracy"]
            of_difference[f"accuracy_{name}"] = led["ci95"]
    n = sum(a["n"] for a in report.values())
    if experiment == "reward_models" and kind == "baseline":
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
        leads={other: lead(*led) for other, led in leads.items()},
    )


def panel_rows(recipe: PanelRecipe, split: str, experiment: str = "reward_models") -> list[Row]:
    """A recipe's finished panel, and the two baselines on the same pairs. Where the recipe names what it ``shipped``,
    that is graded.

    Raises:
        ConfigError: no pairs of that split. StorageError: the panel is missing, or belongs to another recipe.
    """
    started, run = time.monotonic(), PanelRun(recipe)
    data = _pairs(run)
    if recipe.shipped is None:
        scores = run.table()
    else:
        data = replace(data, held_out=[p for p in data.held_out if p.split == split])
        scores = _scores(_graded_panel(run), data, recipe.shipped)
    measured = beside_baselines(PANEL, scores, data, split, run.objective_names)
    if not measured:
        raise _nothing_to_grade(run, split, run.data)
    return _rows(run, experiment, split, measured, time.monotonic() - started)


def judge_rows(recipe: PanelRecipe, split: str) -> list[Row]:
    """The same for a judge, which has pairs of its own."""
    return panel_rows(recipe, split, "judges")


def out_of_distribution_rows(recipe: PanelRecipe, split: str) -> list[Row]:
    """A recipe's finished panel, and the two baselines, on one split of the sets of ``out_of_distribution``: rows for
    each set, whose name is ``setting["data"]``. Where the recipe names what it ``shipped``, that is graded.

    The bag of words learns from the panel's training pairs. Prompts that were trained on are not graded.

    Raises:
        As :func:`panel_rows`. ConfigError: the recipe names no such sets. DataError: pairs of objectives that the panel
            does not have.
    """
    run = PanelRun(recipe)
    data = _pairs_of_other_sets(run, split)
    panel = _graded_panel(run)
    rows = []
    for source in sorted({p.source for p in data.held_out}):
        started = time.monotonic()
        of_set = replace(data, held_out=[p for p in data.held_out if p.source == source])
        scores = _scores(panel, of_set, source)
        measured = beside_baselines(
            PANEL, scores, of_set, split, run.objective_names, other_sets=True
        )
        wall = time.monotonic() - started
        rows += _rows(run, "out_of_distribution", split, measured, wall, {"data": source})
    if not rows:
        raise _nothing_to_grade(run, split, data)
    return rows


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
        raise _nothing_to_grade(run, split, data)
    measured = length_removed(panel, data.training, test)
    wall = time.monotonic() - started
    rows = []
    for scores, report in measured.items():
        where = ("length", PANEL, recipe.seed, split, report, run.config, wall)
        rows.append(panel_row(*where, setting={"scores": scores}))
    return rows


def of_source(objective: str, source: str) -> str:
    """``overall_source_judge_pairs``: what stands for the objective in names of metrics on one source's pairs."""
    return f"{objective}_source_{source}"


def _rows(
    run: PanelRun,
    experiment: str,
    split: str,
    measured: dict[str, Report],
    wall: float,
    setting: dict[str, Any] | None = None,
) -> list[Row]:
    """The rows of the panel and of its baselines."""
    rows = []
    for method, report in measured.items():
        is_panel = method == PANEL
        kind: Kind = "method" if is_panel else "baseline"
        trained = {"trained": run.recipe.method} if is_panel else {}
        where = (experiment, method, run.recipe.seed, split, report, run.config, wall, kind)
        rows.append(panel_row(*where, (setting or {}) | trained))
    return rows


def _pairs(run: PanelRun) -> TrainingPairs:
    """The run's pairs; prints which of them are not graded."""
    _print_notes(run.data)
    return run.data


def _graded_panel(run: PanelRun) -> RewardPanel:
    """What the recipe shipped, or else its finished panel."""
    if run.recipe.shipped is None:
        run.table()  # raises where the panel is another recipe's
    panel = RewardPanel.from_pretrained(run.recipe.shipped or run.final)
    if panel.objective_names != run.objective_names:
        raise ConfigError(
            f"got a panel of {', '.join(panel.objective_names)}, expected {', '.join(run.objective_names)}",
            ["shipped"],
        )
    return panel


def _scores(panel: RewardPanel, data: TrainingPairs, about: str) -> pd.DataFrame:
    """The panel's scores of the held-out pairs, as in ``scores.parquet``."""
    prompts, completions, where = distinct_texts(data.held_out)
    raw_MK = panel.score(prompts, completions, progress(about))
    return pair_table(data.held_out, completions, where, raw_MK, panel.require_stats())


def _pairs_of_other_sets(run: PanelRun, split: str) -> TrainingPairs:
    """The run's training pairs, and one split of the other sets as held-out pairs; prints which are not graded."""
    recipe = run.recipe
    if not recipe.out_of_distribution:
        raise ConfigError(
            f"{run.config}: names no sets to grade on: add `out_of_distribution: [{{path: FILE}}]`",
            ["out_of_distribution"],
        )
    data = TrainingPairs(run.data.training, run.data.epochs)
    for source in recipe.out_of_distribution:
        pairs = source.load(recipe.data_dir or default_data_dir(), data.notes)
        if strange := sorted({p.objective for p in pairs} - set(run.objective_names)):
            raise DataError(
                f"{source.path}: got pairs of {', '.join(strange)}, but the panel has "
                f"{', '.join(run.objective_names)}: choose with `objectives`, or name one in `as_objective`"
            )
        data.held_out += [p for p in pairs if p.split == split and not p.only_trains]
    mark_ungraded(data, run.objective_names)
    _print_notes(data)
    return data


def _print_notes(data: TrainingPairs) -> None:
    for note in data.notes:
        print(note, file=sys.stderr)


def _nothing_to_grade(run: PanelRun, split: str, data: TrainingPairs) -> ConfigError:
    return ConfigError(f"{run.config}: no {split} pairs to grade on; {' '.join(data.notes)}")
