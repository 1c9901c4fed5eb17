"""The README's tables, each from one results file; an empty text where there are no test rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pro_core.evaluation import policy_tables
from pro_core.evaluation.report import markdown_table

Rows = Sequence[dict[str, Any]]
BASELINES = ("bag of words", "longer wins")


def reward_models_table(rows: Rows) -> str:
    """Test accuracy an objective with its interval; panels first, then the baselines."""
    rows = [r for r in rows if r["split"] == "test"]
    if not rows:
        return ""
    rows = sorted(rows, key=lambda r: (r["method"] in BASELINES, r["method"]))
    names = [key.removeprefix("n_") for key in rows[0]["metrics"] if key.startswith("n_")]
    header = ["", *(f"{name} ({int(rows[0]['metrics'][f'n_{name}']):,} pairs)" for name in names)]
    return markdown_table(
        header, [[r["method"], *(_interval(r, f"accuracy_{name}") for name in names)] for r in rows]
    )


def length_table(rows: Rows) -> str:
    """What a panel's scores owe to length, two lines an objective: kept, and with that component removed."""
    rows = [r for r in rows if r["split"] == "test"]
    if not rows:
        return ""
    names = [key.removeprefix("n_") for key in rows[0]["metrics"] if key.startswith("n_")]
    header = [
        "objective",
        "scores",
        "correlation with length",
        "accuracy",
        "accuracy at equal length",
    ]
    table = []
    for name in names:
        for r in rows:
            equal = f"accuracy_equal_length_{name}"
            shown = "no such pairs"
            if equal in r["metrics"]:
                pairs = int(r["metrics"][f"pairs_equal_length_{name}"])
                shown = f"{_interval(r, equal)}, {pairs} pairs"
            table.append(
                [
                    name,
                    r["method"].removeprefix("panel, "),
                    f"{r['metrics'][f'length_correlation_{name}']:+.2f}",
                    _interval(r, f"accuracy_{name}"),
                    shown,
                ]
            )
    return markdown_table(header, table)


def adapter_table(rows: Rows) -> str:
    """Accuracy by method, mean over seeds, and the adapter's lead with the seeds' mean interval."""
    main = _test(rows, "adapter")
    hh = _test(rows, "adapter_hh")
    if not main:
        return ""
    methods = list(dict.fromkeys(r["method"] for r in main))
    objectives = [
        key.removeprefix("accuracy_")
        for key in main[0]["metrics"]
        if key.startswith("accuracy_") and not key.endswith(("_pairs", "_responses"))
    ]
    table = []
    for method in methods:
        cells = [method, _mean(main, method, "accuracy")]
        cells += [_mean(main, method, f"accuracy_{name}") for name in objectives]
        cells += [_mean(hh, method, "accuracy"), _lead(main, method)]
        table.append(cells)
    header = ["weights", "average", *objectives, "hh alone", "adapter's lead, points (95%)"]
    return markdown_table(header, table)


def safety_table(rows: Rows) -> str:
    """XSTest: refusing unsafe requests and complying with safe ones, under adapter and fixed weights."""
    rows = [r for r in rows if r["experiment"] == "adapter_xstest"]
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
        table.append([row["method"], *cells])
    return markdown_table(["prompt", *names], table)


TABLES: dict[str, tuple[str, Callable[[Rows], str]]] = {
    "table:reward_models": ("reward_models.jsonl", reward_models_table),
    "table:length": ("length.jsonl", length_table),
    "table:adapter": ("adapter.jsonl", adapter_table),
    "table:safety": ("adapter.jsonl", safety_table),
    "table:weights": ("weights.jsonl", weights_table),
    "table:wic": ("wic.jsonl", policy_tables.main_table),
    "table:wic_leads": ("wic.jsonl", policy_tables.leads_table),
    "table:wic_control": ("wic.jsonl", policy_tables.control_table),
    "table:wic_equal_weights": ("wic.jsonl", policy_tables.equal_weights_tables),
    "table:wic_texts": ("wic.jsonl", policy_tables.texts_table),
}


def _test(rows: Rows, experiment: str) -> list[dict[str, Any]]:
    return [r for r in rows if r["experiment"] == experiment and r["split"] == "test"]


def _interval(row: dict[str, Any], metric: str) -> str:
    lo, hi = row["ci95"][metric]
    return f"{row['metrics'][metric]:.3f} ({lo:.3f} to {hi:.3f})"


def _mean(rows: Rows, method: str, metric: str) -> str:
    values = [
        r["metrics"][metric] for r in rows if r["method"] == method and metric in r["metrics"]
    ]
    return f"{np.mean(values):.3f}" if values else ""


def _lead(rows: Rows, method: str) -> str:
    key = f"lead_over_{method}"
    mine = [r for r in rows if key in r["metrics"]]
    if not mine:
        return ""
    points = np.mean([r["metrics"][key] for r in mine])
    lo, hi = np.mean([r["ci95"][key] for r in mine], axis=0)
    return f"{points:+.1f} ({lo:+.1f} to {hi:+.1f})"
