"""Tables of reward models and classifiers, from their result rows; an empty text where there are no test rows."""

from __future__ import annotations

from pro_core.evaluation.results import Row, Rows
from pro_core.reporting.markdown import interval, markdown_table, mean_interval, recipe_name

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


def _panel_name(row: Row) -> str:
    """``demo_panel (upper)``: its recipe, and which parameters were trained."""
    if row["kind"] == "baseline":
        return row["method"]
    return f"{recipe_name(row) or row['method']} ({row['setting']['trained']})"


def judges_table(rows: Rows) -> str:
    """Test accuracy of reward models whose recipes differ in their objectives: one line each, with its baselines."""
    rows = [r for r in rows if r["split"] == "test"]
    table = []
    for config in dict.fromkeys(r["config"] for r in rows):
        of_recipe = [r for r in rows if r["config"] == config]
        panel = next(r for r in of_recipe if r["kind"] != "baseline")
        baselines = [next((r for r in of_recipe if r["method"] == b), {}) for b in BASELINES]
        for name, n in _pairs([panel]).items():
            cells = [interval(r, f"accuracy_{name}") for r in (panel, *baselines)]
            table.append([recipe_name(panel), f"{name} ({n:,} pairs)", *cells])
    return markdown_table(["judge", "objective", "accuracy", *BASELINES], table) if table else ""


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
            equal = f"accuracy_equal_length_{name}"
            correlation = r["metrics"].get(f"length_correlation_{name}")
            shown = "no such pairs"
            if equal in r["metrics"]:
                pairs = int(r["metrics"][f"pairs_equal_length_{name}"])
                shown = f"{interval(r, equal)}, {pairs} pairs"
            table.append(
                [
                    name,
                    r["setting"]["scores"],
                    "not measured" if correlation is None else f"{correlation:+.2f}",
                    interval(r, f"accuracy_{name}"),
                    shown,
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
