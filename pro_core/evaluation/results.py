"""Result rows on disk, and the README's tables and the figures that are made from them."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pro_core.system.storage import write_jsonl

SOURCE = "accuracy_source_"
"""Before a source's name in a row's metrics: a source may be called like an objective."""


def result_row(
    experiment: str,
    method: str,
    seed: int | None,
    split: str,
    n: int,
    metrics: dict[str, float],
    ci95: dict[str, list[float]] | None = None,
    config: str = "",
    wall_s: float = 0.0,
) -> dict[str, Any]:
    """One line of ``results/*.jsonl``: a method under a seed (None: all seeds), with command, commit and hardware."""
    return {
        "experiment": experiment,
        "method": method,
        "seed": seed,
        "split": split,
        "n": n,
        "metrics": {k: round(v, 5) for k, v in metrics.items()},
        "ci95": {k: [round(x, 5) for x in v] for k, v in (ci95 or {}).items()},
        "config": config,
        "command": "python " + " ".join(sys.argv),
        "commit": _commit(),
        "hardware": f"{platform.machine()}, {os.cpu_count()} CPU cores",
        "wall_s": round(wall_s, 1),
    }


def panel_row(
    experiment: str,
    method: str,
    seed: int,
    split: str,
    report: dict[str, dict[str, Any]],
    config: str,
    wall_s: float,
) -> dict[str, Any]:
    """A row from objective -> accuracy with its interval and what length has to do with it.

    See :func:`pro_core.rewards.length.length_report`. Baselines, which need no recipe, have no config,
    but for a judge's: its pairs are its own.
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
    if experiment != "judges" and not method.startswith("panel"):
        config = ""
    return result_row(experiment, method, seed, split, n, metrics, intervals, config, wall_s)


def _commit() -> str:
    try:
        asked = ["git", "describe", "--always", "--dirty"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_rows(path: str | Path, rows: Sequence[dict[str, Any]], whole: bool = False) -> None:
    """Write rows, replacing those of the same experiment, config, method and seed that are there.

    Args:
        whole: the rows are all of their experiment and config: others of these go too, whatever their method and seed.
    """

    def key(row):
        same = row["experiment"], row["config"], row["split"]
        return same if whole else (*same, row["method"], row["seed"])

    path = Path(path)
    new = {key(row) for row in rows}
    kept = [row for row in read_rows(path) if key(row) not in new]
    write_jsonl(path, [*kept, *rows])


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a results file; none when there is no file."""
    path = Path(path)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def sweep(
    rows: Sequence[dict[str, Any]], by: str, metric: str
) -> tuple[list[float], list[list[float]]]:
    """One method's rows as (S, L): the L values of the metric ``by``, ascending, and ``metric`` of S seeds at each.

    Seeds that lack one of the values are left out, so that means over seeds compare the same seeds.
    """
    found = {
        (r["seed"], r["metrics"][by]): r["metrics"][metric] for r in rows if by in r["metrics"]
    }
    levels = sorted({level for _, level in found})
    seeds = sorted({seed for seed, _ in found})
    whole = [s for s in seeds if all((s, level) in found for level in levels)]
    return levels, [[found[s, level] for level in levels] for s in whole]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def replace_section(text: str, name: str, content: str) -> str:
    """``text`` with what stands between ``<!-- name -->`` and ``<!-- /name -->`` replaced.

    Raises:
        ValueError: the two marks are not there.
    """
    pattern = re.compile(
        rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)", re.DOTALL
    )
    if not pattern.search(text):
        raise ValueError(f"no section between <!-- {name} --> and <!-- /{name} -->")
    return pattern.sub(lambda m: f"{m[1]}{content}\n{m[2]}", text)
