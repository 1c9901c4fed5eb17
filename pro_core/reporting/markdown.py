"""Tables in Markdown: their cells, from result rows, and their places in a document."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from pro_core.evaluation.results import Row, Rows


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def tested_rows(rows: Rows, experiment: str) -> list[Row]:
    """An experiment's rows of the test split."""
    return [r for r in rows if r["experiment"] == experiment and r["split"] == "test"]


def interval(row: Row, metric: str) -> str:
    """A measure of one row with its interval, ``0.623 (0.571 to 0.662)``."""
    if metric not in row.get("ci95", {}):
        return "not measured"
    lo, hi = row["ci95"][metric]
    return f"{row['metrics'][metric]:.3f} ({lo:.3f} to {hi:.3f})"


def mean(rows: Rows, method: str, metric: str) -> str:
    """A method's mean over its rows, one per seed."""
    values = [
        r["metrics"][metric] for r in rows if r["method"] == method and metric in r["metrics"]
    ]
    return f"{np.mean(values):.3f}" if values else ""


def mean_interval(rows: Rows, method: str, metric: str) -> str:
    """The same with the seeds' mean interval."""
    seeds = [r for r in rows if r["method"] == method and metric in r["ci95"]]
    if not seeds:
        return ""
    lo, hi = np.mean([r["ci95"][metric] for r in seeds], axis=0)
    return f"{mean(seeds, method, metric)} ({lo:.3f} to {hi:.3f})"


def recipe_name(row: Row) -> str:
    """A row's recipe, ``demo_panel``."""
    return row["config"].replace(".yaml", "")


def replace_section(text: str, name: str, content: str) -> str:
    """``text`` with the part between ``<!-- name -->`` and ``<!-- /name -->`` replaced.

    Raises:
        ValueError: the two marks are missing.
    """
    pattern = re.compile(
        rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)", re.DOTALL
    )
    if not pattern.search(text):
        raise ValueError(f"no section between <!-- {name} --> and <!-- /{name} -->")
    return pattern.sub(lambda m: f"{m[1]}{content}\n{m[2]}", text)
