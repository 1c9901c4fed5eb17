"""Tables of reward models and classifiers, from their result rows; an empty text where there are no test rows."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from pro_core.evaluation.results import Row, Rows
from pro_core.evaluation.reward_models import of_source
from pro_core.reporting.markdown import (
    interval,
    markdown_table,
    mean,
    mean_interval,
    recipe_name,
)

BASELINES = ("bag of words", "longer wins")


def reward_models_table(rows: Rows) -> str:
    """Test accuracy per objective with its interval; panels first, then the baselines."""
    rows = [r for r in rows if r["split"] == "test"]
    if not rows:
        return ""
    rows = sorted(
        rows,
        key=lambda r: (r["kind"] == "baseline", r["config"] != "demo_panel.yaml", r["config"]),
    )
    pairs = _pairs(rows)
    header = ["", *(f"{name} ({n:,} pairs)" for name, n in pairs.items())]
    return markdown_table(
        header,
        [[_panel_name(r), *(interval(r, f"accuracy_{name}") for name in pairs)] for r in rows],
    )


def opposed_table(rows: Rows) -> str:
    """How often each objective's model prefers what people chose under each objective: below one half where the two
    oppose each other. For the demo's panel and the bag of words."""
    rows = [r for r in rows if r["split"] == "test"]
    rows = [r for r in rows if r["config"] == "demo_panel.yaml" or r["method"] == BASELINES[0]]
    pairs = _pairs(rows)
    table = []
    for row in rows:
        for name in row["objectives"]:
            on = [f"accuracy_{name}" + (f"_on_{p}" if p != name else "") for p in pairs]
            if any("_on_" in key and key in row["metrics"] for key in on):
                cells = [interval(row, key) for key in on]
                table.append([name, _panel_name(row), *cells])
    header = ["model of", "", *(f"{name} pairs" for name in pairs)]
    return markdown_table(header, table) if table else ""


def _panel_name(row: Row) -> str:
    """``demo_panel (upper)``: its recipe, and which parameters were trained."""
    if row["kind"] == "baseline":
        return row["method"]
    return f"{recipe_name(row) or row['method']} ({row['setting']['trained']})"


BESIDE = (
    "accuracy",
    *BASELINES,
    "lead over bag of words, points",
    "accuracy at equal length",
)
"""The columns of what is graded beside its baselines."""


def judges_table(rows: Rows) -> str:
    """Test accuracy of judges beside their baselines: a line for each objective, and for each source if its pairs come
    from several."""
    table = []
    for judge, baselines in _beside_baselines(rows):
        for name, n in _pairs([judge]).items():
            cells = _cells_beside(judge, baselines, name)
            table.append([recipe_name(judge), f"{name} ({n:,} pairs)", *cells])
            for source, n in _sources(judge, name).items():
                cells = _cells_beside(judge, baselines, of_source(name, source))
                table.append(["", f"{name}, only {source} ({n:,} pairs)", *cells])
    return markdown_table(["judge", "objective", *BESIDE], table) if table else ""


def out_of_distribution_table(rows: Rows) -> str:
    """Test accuracy of panels on pairs of other sets beside their baselines; a line for each set, objective, panel."""
    graded = _beside_baselines(rows)
    table = []
    for data in dict.fromkeys(panel["setting"]["data"] for panel, _ in graded):
        of_set = [both for both in graded if both[0]["setting"]["data"] == data]
        for name, n in _pairs([panel for panel, _ in of_set]).items():
            for panel, baselines in of_set:
                if name in panel["objectives"]:
                    cells = _cells_beside(panel, baselines, name)
                    pairs = f"{name} ({n:,} pairs)"
                    table.append([data, pairs, _panel_name(panel), *cells])
    return markdown_table(["set", "objective", "panel", *BESIDE], table) if table else ""


def _beside_baselines(rows: Rows) -> list[tuple[Row, Rows]]:
    """Each panel's test row, with the rows of its baselines on the same pairs."""
    rows = [r for r in rows if r["split"] == "test"]

    def key(row: Row) -> tuple[Any, ...]:
        return row["config"], row["seed"], row["setting"].get("data")

    return [
        (panel, [r for r in rows if r["kind"] == "baseline" and key(r) == key(panel)])
        for panel in rows
        if panel["kind"] == "method"
    ]


def _cells_beside(panel: Row, baselines: Rows, name: str) -> list[str]:
    """The cells of :data:`BESIDE` for an objective, or what stands for one in the names of metrics."""
    accuracy, first = f"accuracy_{name}", BASELINES[0]
    by_method = {r["method"]: r for r in baselines}
    cells = [interval(r, accuracy) for r in (panel, *(by_method.get(b, {}) for b in BASELINES))]
    return [*cells, _lead_points([panel], first, accuracy), _at_equal_length(panel, name)]


def _lead_points(rows: Rows, other: str, metric: str) -> str:
    """The lead over another method in points, with its interval, both averaged over rows; empty where there is none."""
    leads = [r["leads"].get(other, {}) for r in rows]  # older rows have none
    leads = [led for led in leads if metric in led.get("metrics", {})]
    if not leads:
        return ""
    measured = [[led["metrics"][metric], *led["ci95"][metric]] for led in leads]
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(*100 * np.mean(measured, axis=0))


def _at_equal_length(row: Row, name: str) -> str:
    equal = f"accuracy_equal_length_{name}"
    if equal not in row["metrics"]:
        return "no such pairs"
    return f"{interval(row, equal)}, {int(row['metrics'][f'pairs_equal_length_{name}'])} pairs"


def _sources(row: Row, name: str) -> dict[str, int]:
    """Source -> number of its pairs, for an objective whose pairs come from several."""
    prefix = f"n_{of_source(name, '')}"
    counts = row["metrics"].items()
    return {key.removeprefix(prefix): int(n) for key, n in counts if key.startswith(prefix)}


def length_table(rows: Rows) -> str:
    """The effect of length on a panel's scores, two lines per objective: with the length component, and without."""
    rows = [r for r in rows if r["split"] == "test"]
    if not rows:
        return ""
    names = list(_pairs(rows))
    header = [
        "objective",
        "scores",
        "correlation with length",
        "accuracy",
        "accuracy at equal length",
    ]
    table = []
    for name in names:
        for r in (r for r in rows if name in r["objectives"]):
            correlation = r["metrics"].get(f"length_correlation_{name}")
            table.append(
                [
                    name,
                    r["setting"]["scores"],
                    "not measured" if correlation is None else f"{correlation:+.2f}",
                    interval(r, f"accuracy_{name}"),
                    _at_equal_length(r, name),
                ]
            )
    return markdown_table(header, table)


def _pairs(rows: Rows) -> dict[str, int]:
    """Objective -> number of pairs it was measured on, for all objectives of the rows."""
    counts: dict[str, int] = {}
    for row in rows:
        for name in row["objectives"]:
            counts.setdefault(name, int(row["metrics"][f"n_{name}"]))
    return counts


def ablation_table(rows: Rows) -> str:
    """Each arm's accuracies of the objectives that all arms have, and how its heads correlate; below, how well margin
    and disagreement tell errors, for arms whose objectives have several members.

    Test accuracies are means over seeds, with the standard deviation between seeds. Leads are over the first arm.
    """
    rows = [r for r in rows if r["experiment"] == "ablation"]
    test = [r for r in rows if r["split"] == "test"]
    if not test:
        return ""
    validation = [r for r in rows if r["split"] == "validation"]
    arms = list(dict.fromkeys(r["method"] for r in test))
    shared = {n: c for n, c in _pairs(test).items() if all(n in r["objectives"] for r in test)}
    header, correlated = ["arm"], list(itertools.combinations(shared, 2))
    for name, n in shared.items():
        header += [f"{name} ({n:,} pairs)", f"lead over {arms[0]}, points", "on validation"]
    header += [f"correlation of {a} and {b}" for a, b in correlated]
    table, errors = [], []
    for arm in arms:
        of_arm, cells = [r for r in test if r["method"] == arm], [arm]
        for name in shared:
            metric = f"accuracy_{name}"
            lead = _lead_points(of_arm, arms[0], metric)
            cells += [_mean_sd(of_arm, metric), lead, mean(validation, arm, metric)]
        cells += [mean(test, arm, f"head_correlation_{a}_{b}") for a, b in correlated]
        table.append(cells)
        for name in of_arm[0]["objectives"]:
            measured = [mean(test, arm, f"{by}_auc_{name}") for by in ("margin", "spread")]
            errors += [[arm, name, *measured]] if all(measured) else []
    tables = [markdown_table(header, table)]
    if errors:
        header = ["arm", "objective", "AUC of the margin", "AUC of the margin over its spread"]
        tables.append(markdown_table(header, errors))
    return "\n\n".join(tables)


def _mean_sd(rows: Rows, metric: str) -> str:
    """``0.612 ± 0.004``: the mean over rows, one per seed, and the standard deviation where there are several."""
    values = [r["metrics"][metric] for r in rows]
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


CLASSIFIER_METRICS = {
    "preference_accuracy": "preference: the head",
    "intensity_accuracy": "intensity: head and level",
    "level_accuracy": "level within each head, mean",
}


def classifier_table(rows: Rows) -> str:
    """The reward classifiers' accuracies, one table per recipe; mean over seeds with the seeds' mean interval."""
    rows = [r for r in rows if r["experiment"] == "classifier" and r["split"] == "test"]
    tables = []
    for config in dict.fromkeys(r["config"] for r in rows):
        of_recipe = [r for r in rows if r["config"] == config]
        ordered = sorted(of_recipe, key=lambda r: (r["kind"] == "baseline", r["method"]))
        methods = list(dict.fromkeys(r["method"] for r in ordered))
        counts = of_recipe[0]["metrics"]
        labels = dict(CLASSIFIER_METRICS)
        for name in of_recipe[0]["objectives"]:
            levels, n = int(counts[f"levels_{name}"]), int(counts[f"n_{name}"])
            labels[f"level_accuracy_{name}"] = f"{name} ({levels} levels, {n:,})"
        cells = [
            [label, *(mean_interval(of_recipe, method, metric) for method in methods)]
            for metric, label in labels.items()
        ]
        tables.append(f"`{config}`\n\n" + markdown_table(["accuracy", *methods], cells))
    return "\n\n".join(tables)
