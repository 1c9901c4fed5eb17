"""The README's tables, each from one results file; an empty text where there are no test rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from pro_core.evaluation.results import Row, Rows, read_rows
from pro_core.reporting import policy_tables
from pro_core.reporting.markdown import markdown_table, replace_section
from pro_core.reporting.theory_tables import convergence_table, planted_table, theorem_table

BASELINES = ("bag of words", "longer wins")


def reward_models_table(rows: Rows) -> str:
    """Test accuracy an objective with its interval; panels first, then the baselines."""
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
        [[_panel_name(r), *(_interval(r, f"accuracy_{name}") for name in pairs)] for r in rows],
    )


def _panel_name(row: Row) -> str:
    """``demo_panel (upper)``: its recipe, and which parameters were trained."""
    if row["kind"] == "baseline":
        return row["method"]
    return f"{_recipe_name(row) or row['method']} ({row['setting']['trained']})"


def _recipe_name(row: Row) -> str:
    return row["config"].replace(".yaml", "")


def judges_table(rows: Rows) -> str:
    """Test accuracy of reward models whose recipes differ in their objectives: a line each, the baselines beside it."""
    rows = [r for r in rows if r["split"] == "test"]
    table = []
    for config in dict.fromkeys(r["config"] for r in rows):
        mine = [r for r in rows if r["config"] == config]
        panel = next(r for r in mine if r["kind"] != "baseline")
        beside = [next((r for r in mine if r["method"] == name), {}) for name in BASELINES]
        for name, n in _pairs([panel]).items():
            cells = [_interval(r, f"accuracy_{name}") for r in (panel, *beside)]
            table.append([_recipe_name(panel), f"{name} ({n:,} pairs)", *cells])
    return markdown_table(["judge", "objective", "accuracy", *BASELINES], table) if table else ""


def length_table(rows: Rows) -> str:
    """What a panel's scores owe to length, two lines an objective: kept, and with that component removed."""
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
                shown = f"{_interval(r, equal)}, {pairs} pairs"
            table.append(
                [
                    name,
                    r["setting"]["scores"],
                    "not measured" if correlation is None else f"{correlation:+.2f}",
                    _interval(r, f"accuracy_{name}"),
                    shown,
                ]
            )
    return markdown_table(header, table)


def adapter_table(rows: Rows) -> str:
    """Accuracy by method, mean over seeds, and the adapter's lead with the seeds' mean interval."""
    main = _embedded(_test(rows, "adapter"))
    hh = _embedded(_test(rows, "adapter_hh"))
    if not main:
        return ""
    methods = list(dict.fromkeys(r["method"] for r in main))
    objectives = main[0]["objectives"]
    table = []
    for method in methods:
        cells = [method, _mean(main, method, "accuracy")]
        cells += [_mean(main, method, f"accuracy_{name}") for name in objectives]
        cells += [_mean(hh, method, "accuracy"), _lead(main, method)]
        table.append(cells)
    header = ["weights", "average", *objectives, "hh alone", "adapter's lead, points (95%)"]
    return markdown_table(header, table)


SHORT = ("uniform", "best global", "nearest prompts", "shuffled", "adapter")
"""The sources of weights in the README's one table."""


def short_adapter_table(rows: Rows) -> str:
    """Five sources of weights, a line each: accuracy, and the adapter's lead over it."""
    main = _embedded(_test(rows, "adapter"))
    table = [
        [name, _mean(main, name, "accuracy"), _lead(main, name)]
        for name in SHORT
        if any(r["method"] == name for r in main)
    ]
    header = ["weights", "accuracy", "adapter's lead, points (95%)"]
    return markdown_table(header, table) if table else ""


def targets_table(rows: Rows) -> str:
    """Every target of every recipe: accuracy, leads with the seeds' mean intervals, entropies in nats."""
    rows = _test(rows, "adapter_targets")
    if not rows:
        return ""
    table = []
    for config, method in dict.fromkeys((r["config"], r["method"]) for r in rows):
        mine = [r for r in rows if (r["config"], r["method"]) == (config, method)]
        cells = [_recipe_name(mine[0]), method, _mean(mine, method, "accuracy")]
        cells += [_lead(mine, other) for other in ("uniform", "best global", "shuffled")]
        cells += [_mean(mine, method, key) for key in ("entropy_of_targets", "entropy_of_weights")]
        table.append(cells)
    header = [
        "recipe",
        "target",
        "accuracy",
        *(f"lead over {o}" for o in ("uniform", "best global", "shuffled")),
    ]
    return markdown_table([*header, "entropy of targets", "of weights"], table)


def unseen_table(rows: Rows) -> str:
    """Each source's held-out pairs under an adapter that was fitted without that source, and its rivals."""
    rows = _embedded(_test(rows, "adapter_unseen"))
    if not rows:
        return ""
    methods = list(dict.fromkeys(r["method"] for r in rows))
    table = []
    for source in dict.fromkeys(r["setting"]["source"] for r in rows):
        mine = [r for r in rows if r["setting"]["source"] == source]
        cells = [source, *(_mean(mine, m, "accuracy") for m in methods)]
        table.append([*cells, _lead(mine, "uniform")])
    return markdown_table(["source not seen", *methods, "lead over uniform"], table)


def safety_table(rows: Rows) -> str:
    """XSTest: refusing unsafe requests and complying with safe ones, under adapter and fixed weights."""
    rows = _embedded([r for r in rows if r["experiment"] == "adapter_xstest"])
    if not rows:
        return ""
    table = []
    for method in dict.fromkeys(r["method"] for r in rows):
        mine = [r["metrics"] for r in rows if r["method"] == method]
        refuse = float(np.mean([m["refuse_unsafe"] for m in mine]))
        comply = float(np.mean([m["comply_safe"] for m in mine]))
        table.append([method, f"{refuse:.3f}", f"{comply:.3f}", f"{min(refuse, comply):.3f}"])
    header = [
        "weights",
        "refusal of an unsafe request wins",
        "help with a safe one wins",
        "smaller",
    ]
    return markdown_table(header, table)


def weights_table(rows: Rows) -> str:
    """The adapter's weights for example prompts; the largest of each in bold."""
    if not rows:
        return ""
    names = list(rows[0]["metrics"])
    table = []
    for row in rows:
        top = max(row["metrics"].values())
        cells = [f"**{w:.2f}**" if w == top else f"{w:.2f}" for w in row["metrics"].values()]
        table.append([row["setting"]["prompt"], *cells])
    return markdown_table(["prompt", *names], table)


CLASSIFIER_METRICS = {
    "preference_accuracy": "preference: the head",
    "intensity_accuracy": "intensity: head and level",
    "level_accuracy": "level within each head, mean",
}


def classifier_table(rows: Rows) -> str:
    """The reward classifiers' accuracies, a table a recipe; mean over seeds with the seeds' mean interval."""
    rows = [r for r in rows if r["experiment"] == "classifier" and r["split"] == "test"]
    tables = []
    for config in dict.fromkeys(r["config"] for r in rows):
        mine = [r for r in rows if r["config"] == config]
        ordered = sorted(mine, key=lambda r: (r["kind"] == "baseline", r["method"]))
        methods = list(dict.fromkeys(r["method"] for r in ordered))
        counts = mine[0]["metrics"]
        labels = dict(CLASSIFIER_METRICS)
        for name in mine[0]["objectives"]:
            levels, n = int(counts[f"levels_{name}"]), int(counts[f"n_{name}"])
            labels[f"level_accuracy_{name}"] = f"{name} ({levels} levels, {n:,})"
        cells = [
            [label, *(_mean_interval(mine, method, metric) for method in methods)]
            for metric, label in labels.items()
        ]
        tables.append(f"`{config}`\n\n" + markdown_table(["accuracy", *methods], cells))
    return "\n\n".join(tables)


TABLES: dict[str, tuple[str, Callable[[Rows], str]]] = {
    "table:reward_models": ("reward_models.jsonl", reward_models_table),
    "table:judges": ("judges.jsonl", judges_table),
    "table:length": ("length.jsonl", length_table),
    "table:adapter": ("adapter.jsonl", adapter_table),
    "table:sources": ("adapter.jsonl", short_adapter_table),
    "table:targets": ("adapter.jsonl", targets_table),
    "table:unseen": ("adapter.jsonl", unseen_table),
    "table:safety": ("adapter.jsonl", safety_table),
    "table:classifier": ("classifier.jsonl", classifier_table),
    "table:weights": ("weights.jsonl", weights_table),
    "table:wic": ("policies.jsonl", partial(policy_tables.main_table, only="wic")),
    "table:morlhf": ("policies.jsonl", partial(policy_tables.main_table, only="morlhf")),
    "table:demo_soup": ("policies.jsonl", partial(policy_tables.control_table, only="demo_soup")),
    "table:policies": ("policies.jsonl", policy_tables.main_table),
    "table:policies_leads": ("policies.jsonl", policy_tables.leads_table),
    "table:policies_control": ("policies.jsonl", policy_tables.control_table),
    "table:policies_equal_weights": ("policies.jsonl", policy_tables.equal_weights_tables),
    "table:policies_texts": ("policies.jsonl", policy_tables.texts_table),
    "table:levels": ("levels.jsonl", policy_tables.levels_table),
    "table:theorem": ("theorem.jsonl", theorem_table),
    "table:convergence": ("convergence.jsonl", convergence_table),
    "table:planted": ("theorem.jsonl", planted_table),
}


def fill_tables(document: Path, results: Path) -> None:
    """Write every table for which ``document`` has a place, between ``<!-- name -->`` and ``<!-- /name -->``."""
    if not document.is_file():
        return
    text = document.read_text(encoding="utf-8")
    for name, (file, table) in TABLES.items():
        rows = read_rows(results / file)
        if rows and f"<!-- {name} -->" in text:
            text = replace_section(text, name, table(rows))
    document.write_text(text, encoding="utf-8")


def _embedded(rows: Rows) -> Rows:
    """The rows of the embedded default's recipe, where there are any: other recipes have a table of their own."""
    return [r for r in rows if r["config"] == "demo_adapter.yaml"] or rows


def _test(rows: Rows, experiment: str) -> list[Row]:
    return [r for r in rows if r["experiment"] == experiment and r["split"] == "test"]


def _pairs(rows: Rows) -> dict[str, int]:
    """Objective -> pairs that it was measured on, of all objectives that a row has."""
    counts: dict[str, int] = {}
    for row in rows:
        for name in row["objectives"]:
            counts.setdefault(name, int(row["metrics"][f"n_{name}"]))
    return counts


def _interval(row: Row, metric: str) -> str:
    if metric not in row.get("ci95", {}):
        return "not measured"
    lo, hi = row["ci95"][metric]
    return f"{row['metrics'][metric]:.3f} ({lo:.3f} to {hi:.3f})"


def _mean(rows: Rows, method: str, metric: str) -> str:
    values = [
        r["metrics"][metric] for r in rows if r["method"] == method and metric in r["metrics"]
    ]
    return f"{np.mean(values):.3f}" if values else ""


def _mean_interval(rows: Rows, method: str, metric: str) -> str:
    mine = [r for r in rows if r["method"] == method and metric in r["ci95"]]
    if not mine:
        return ""
    lo, hi = np.mean([r["ci95"][metric] for r in mine], axis=0)
    return f"{_mean(mine, method, metric)} ({lo:.3f} to {hi:.3f})"


def _lead(rows: Rows, method: str) -> str:
    leads = [r["leads"][method] for r in rows if method in r["leads"]]
    if not leads:
        return ""
    points = np.mean([lead["metrics"]["accuracy_points"] for lead in leads])
    lo, hi = np.mean([lead["ci95"]["accuracy_points"] for lead in leads], axis=0)
    return f"{points:+.1f} ({lo:+.1f} to {hi:+.1f})"
