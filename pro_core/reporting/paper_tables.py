"""Tables 1-4 of the PRO paper (arXiv 2511.10656), the comparison at equal weights, with ours in the same form.

Our copy of the paper has every number of these tables but not their captions. That they are Tables 1 to 4, in this
order, follows from the order of the text and its datasets. Higher is better in every column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pro_core.evaluation.results import Rows
from pro_core.reporting.markdown import markdown_table


@dataclass(frozen=True)
class PaperTable:
    """One of the paper's tables: method -> one score per objective, under our names of both."""

    number: int
    data: str
    objective_names: tuple[str, ...]
    scores: dict[str, tuple[float, ...]]


METHODS = ("MORLHF uniform", "Rewarded Soups", "RiC offline", "RiC online", "PRO-WIC online")
"""The paper's rows: MORLHF, Rewarded Soups, RiC offline, RiC online, PRO-WIC."""


def _table(number: int, data: str, names: tuple[str, ...], *rows: tuple[float, ...]) -> PaperTable:
    return PaperTable(number, data, names, dict(zip(METHODS, rows, strict=True)))


PAPER_TABLES = (
    _table(
        1,
        "Reddit Summary",
        ("summary", "faithful"),
        (0.78, -0.66),
        (0.65, -0.64),
        (1.15, -0.21),
        (1.35, -0.21),
        (1.46, -0.19),
    ),
    _table(
        2,
        "Reddit Summary",
        ("summary", "faithful", "deberta"),
        (0.78, -0.66, 0.55),
        (0.64, -0.56, 0.91),
        (0.71, -0.25, 1.33),
        (0.84, -0.25, 1.69),
        (0.95, -0.23, 2.12),
    ),
    _table(
        3,
        "Helpful Assistant",
        ("harmless", "helpful"),
        (0.31, 0.76),
        (-0.11, 0.93),
        (0.10, 1.86),
        (0.34, 2.00),
        (0.57, 2.10),
    ),
    _table(
        4,
        "Helpful Assistant",
        ("harmless", "helpful", "humor"),
        (0.31, 0.76, -0.35),
        (0.02, 0.66, 0.39),
        (-0.51, 1.22, 0.82),
        (0.03, 1.31, 0.65),
        (0.47, 1.28, 1.03),
    ),
)

SCALES = (
    "Higher is better. The paper's figures are a reference for the order of the methods, not for their values: "
    "LLaMA-7B, three reward models taken from RiC, 2,000 test prompts, on a scale that our copy does not state (RiC "
    "standardizes each reward over its training set). Ours are the panel's scores z, standardized on the panel's own "
    "reference set. Compare within a column."
)


def paper_table_for(objective_names: Sequence[str]) -> PaperTable | None:
    """The paper's table with most of these objectives and no others; None where none fits."""
    fitting = [t for t in PAPER_TABLES if set(t.objective_names) <= set(objective_names)]
    return max(fitting, key=lambda t: len(t.objective_names), default=None)


def equal_weights_table(points: Rows) -> str:
    """Our mean scores at equal weights next to the paper's, from the rows of one experiment's points.

    Means over seeds, with the mean of the seeds' 95% intervals. Empty where no table of the paper fits our objectives,
    or the grid lacks its centre.
    """
    equal = [r for r in points if np.ptp(list(r["request"]["weights"].values())) < 1e-4]
    if not equal:
        return ""
    names = list(equal[0]["request"]["weights"])
    paper = paper_table_for(names)
    if paper is None:
        return ""
    ours = list(dict.fromkeys(r["method"] for r in equal))
    header = [
        f"Table {paper.number}, {paper.data}",
        *(f"{name}, ours (z)" for name in paper.objective_names),
        *(f"{name}, paper" for name in paper.objective_names),
    ]
    table = []
    for method in [*ours, *(m for m in METHODS if m not in ours)]:
        of_method = [r for r in equal if r["method"] == method]
        cells = [_mean_interval(of_method, f"mean_{name}") for name in paper.objective_names]
        papers = paper.scores.get(method, ())
        cells += [f"{x:.2f}" for x in papers] or [""] * len(paper.objective_names)
        table.append([method, *cells])
    balanced = len(names)
    note = SCALES
    if balanced > len(paper.objective_names):
        note += (
            f" Ours balance {balanced} objectives with 1/{balanced} each, the paper's table "
            f"{len(paper.objective_names)}."
        )
    return markdown_table(header, table) + f"\n\n{note}"


def _mean_interval(rows: Rows, metric: str) -> str:
    scored = [r for r in rows if metric in r["metrics"]]
    if not scored:
        return ""
    value = np.mean([r["metrics"][metric] for r in scored])
    lo, hi = np.mean([r["ci95"][metric] for r in scored], axis=0)
    return f"{value:+.2f} ({lo:+.2f} to {hi:+.2f})"
