"""Tables of adapters, from their result rows; an empty text where there are no test rows."""

from __future__ import annotations

import numpy as np

from pro_core.evaluation.results import Rows
from pro_core.reporting.markdown import markdown_table, mean, recipe_name, tested_rows


def adapter_table(rows: Rows) -> str:
    """Accuracy by method, mean over seeds, and the adapter's lead with the seeds' mean interval."""
    main = _embedded(tested_rows(rows, "adapter"))
    hh = _embedded(tested_rows(rows, "adapter_hh"))
    if not main:
        return ""
    methods = list(dict.fromkeys(r["method"] for r in main))
    objectives = main[0]["objectives"]
    table = []
    for method in methods:
        cells = [method, mean(main, method, "accuracy")]
        cells += [mean(main, method, f"accuracy_{name}") for name in objectives]
        cells += [mean(hh, method, "accuracy"), _lead(main, method)]
        table.append(cells)
    header = ["weights", "average", *objectives, "hh alone", "adapter's lead, points (95%)"]
    return markdown_table(header, table)


SHORT = ("uniform", "best global", "nearest prompts", "ArmoRM's gate", "shuffled", "adapter")
"""The sources of weights in the README's one table; those without rows are left out."""


def short_adapter_table(rows: Rows) -> str:
    """The main sources of weights, one line each: accuracy, and the adapter's lead."""
    main = _embedded(tested_rows(rows, "adapter"))
    table = [
        [name, mean(main, name, "accuracy"), _lead(main, name)]
        for name in SHORT
        if any(r["method"] == name for r in main)
    ]
    header = ["weights", "accuracy", "adapter's lead, points (95%)"]
    return markdown_table(header, table) if table else ""


def targets_table(rows: Rows) -> str:
    """Every target of every recipe: accuracy, leads with the seeds' mean intervals, entropies in nats."""
    rows = tested_rows(rows, "adapter_targets")
    if not rows:
        return ""
    table = []
    for config, method in dict.fromkeys((r["config"], r["method"]) for r in rows):
        seeds = [r for r in rows if (r["config"], r["method"]) == (config, method)]
        cells = [recipe_name(seeds[0]), method, mean(seeds, method, "accuracy")]
        cells += [_lead(seeds, other) for other in ("uniform", "best global", "shuffled")]
        cells += [mean(seeds, method, key) for key in ("entropy_of_targets", "entropy_of_weights")]
        table.append(cells)
    header = [
        "recipe",
        "target",
        "accuracy",
        *(f"lead over {o}" for o in ("uniform", "best global", "shuffled")),
    ]
    return markdown_table([*header, "entropy of targets", "of weights"], table)


def unseen_table(rows: Rows) -> str:
    """Each source's held-out pairs under an adapter that was fitted without that source, and under other weights."""
    rows = _embedded(tested_rows(rows, "adapter_unseen"))
    if not rows:
        return ""
    methods = list(dict.fromkeys(r["method"] for r in rows))
    table = []
    for source in dict.fromkeys(r["setting"]["source"] for r in rows):
        of_source = [r for r in rows if r["setting"]["source"] == source]
        cells = [source, *(mean(of_source, m, "accuracy") for m in methods)]
        table.append([*cells, _lead(of_source, "uniform")])
    return markdown_table(["source not seen", *methods, "lead over uniform"], table)


def safety_table(rows: Rows) -> str:
    """XSTest: refusing unsafe requests and complying with safe ones, under adapter and fixed weights."""
    rows = _embedded([r for r in rows if r["experiment"] == "adapter_xstest"])
    if not rows:
        return ""
    table = []
    for method in dict.fromkeys(r["method"] for r in rows):
        seeds = [r["metrics"] for r in rows if r["method"] == method]
        refuse = float(np.mean([m["refuse_unsafe"] for m in seeds]))
        comply = float(np.mean([m["comply_safe"] for m in seeds]))
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


def _embedded(rows: Rows) -> Rows:
    """The rows of the shipped adapter's recipe, where there are any: other recipes have a table of their own."""
    return [r for r in rows if r["config"] == "demo_adapter.yaml"] or rows


def _lead(rows: Rows, method: str) -> str:
    leads = [r["leads"][method] for r in rows if method in r["leads"]]
    if not leads:
        return ""
    points = np.mean([lead["metrics"]["accuracy_points"] for lead in leads])
    lo, hi = np.mean([lead["ci95"]["accuracy_points"] for lead in leads], axis=0)
    return f"{points:+.1f} ({lo:+.1f} to {hi:+.1f})"
