"""Result rows: the lines of ``results/*.jsonl``, whose columns tables and figures select by.

Every row has ``experiment, kind, method, seed, split, n, metrics, ci95, config, command, commit, hardware, wall_s``.
A line has these columns too where they are not empty; :func:`read_rows` fills in the others:

| column | what it holds |
|---|---|
| ``version`` | hash of everything that the numbers depend on, where rows of a finished setting are kept |
| ``setting`` | {name: value} of what the experiment varies besides method and seed |
| ``request`` | what was asked of a policy, ``{"weights": {objective: weight}}`` or ``{"levels": {objective: level}}`` |
| ``objectives``, ``heldout_objectives`` | the objectives in names such as ``<metric>_<objective>``, in order |
| ``scored_by`` | {role: version} of what scored a policy's responses |
| ``leads`` | {other method: {"metrics", "ci95"}}: this method minus the other, paired |
| ``curves`` | measures over the steps of a training |

The roles of ``scored_by`` are ``panel`` or ``classifier`` (what taught the policies), ``judge`` and ``heldout_panel``.
A version is the first eight characters of a fingerprint, or words where the fingerprint is lost. Rows whose
``scored_by`` differ are on different scales.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pro_core.runs.recipes import ConfigError, Recipe
from pro_core.system.storage import write_jsonl

Row = dict[str, Any]
Rows = Sequence[Row]
Kind = Literal["method", "all_seeds", "point", "base", "baseline"]
"""What a row is about: a method under one seed; a method over all its seeds; one request of a grid; the units that a
base model fixes; a baseline, which needs no training of ours."""
SOURCE = "accuracy_source_"
"""The prefix of a source's name in a row's metrics: a source may have the name of an objective."""
OPTIONAL: dict[str, type] = {
    "version": str,
    "setting": dict,
    "request": dict,
    "objectives": list,
    "heldout_objectives": list,
    "scored_by": dict,
    "leads": dict,
    "curves": dict,
}
"""Columns that a line leaves out where they are empty."""


def result_row(
    experiment: str,
    method: str,
    seed: int | None,
    split: str,
    n: int,
    metrics: Mapping[str, float],
    ci95: Mapping[str, Sequence[float]] | None = None,
    config: str = "",
    wall_s: float = 0.0,
    *,
    kind: Kind = "method",
    version: str = "",
    setting: Mapping[str, Any] | None = None,
    request: Mapping[str, Mapping[str, float]] | None = None,
    objectives: Sequence[str] = (),
    heldout_objectives: Sequence[str] = (),
    scored_by: Mapping[str, str] | None = None,
    leads: Mapping[str, Any] | None = None,
    curves: Mapping[str, Any] | None = None,
) -> Row:
    """A row with command, commit and hardware; numbers are rounded to five decimals. Columns: see the module.

    Args:
        seed: None for all seeds.
        config: the recipe, see :attr:`pro_core.runs.recipes.Recipe.config`.
        leads: each of :func:`lead`.
    """
    return {
        "experiment": experiment,
        "kind": kind,
        "method": method,
        "seed": seed,
        "split": split,
        "n": n,
        "metrics": _rounded(metrics),
        "ci95": _rounded(ci95 or {}),
        "config": config,
        "command": "python " + " ".join(sys.argv),
        "commit": _commit(),
        "hardware": f"{platform.machine()}, {os.cpu_count()} CPU cores",
        "wall_s": round(wall_s, 1),
        "version": version,
        "setting": dict(setting or {}),
        "request": _rounded(request or {}),
        "objectives": list(objectives),
        "heldout_objectives": list(heldout_objectives),
        "scored_by": dict(scored_by or {}),
        "leads": dict(leads or {}),
        "curves": _rounded(curves or {}),
    }


def lead(metrics: Mapping[str, float], ci95: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """The entry of ``leads`` for one other method."""
    return {"metrics": _rounded(metrics), "ci95": _rounded(ci95)}


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return round(value, 5)


def _commit() -> str:
    try:
        asked = ["git", "describe", "--always", "--dirty"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_rows(path: str | Path, rows: Rows, methods: Collection[str] | None = None) -> None:
    """Write rows in place of those of the same experiment, config, split, kind, method, seed, setting and request.

    The new rows come last in the file.

    Args:
        methods: all methods of a comparison, of which these are the rows. The old rows of its experiment, config and
            split are removed, except those of these methods that have no new rows, since what they grade is no longer
            there: their ``scored_by`` says who graded them.
    """

    def key(row: Row) -> Any:
        columns = ["experiment", "config", "split"]
        columns += ["kind", "method", "seed", "setting", "request"] if methods is None else []
        return _hashable([row[column] for column in columns])

    new, graded = {key(row) for row in rows}, {row["method"] for row in rows}
    left_out = set(methods or ()) - graded
    old = [row for row in read_rows(path) if key(row) not in new or row["method"] in left_out]
    replace_rows(path, [*old, *rows])


def replace_rows(path: str | Path, rows: Rows) -> None:
    """Write rows as the whole file, each without its empty columns."""
    write_jsonl(
        Path(path),
        [
            {column: value for column, value in row.items() if value or column not in OPTIONAL}
            for row in rows
        ],
    )


def _hashable(value: Any) -> Any:
    """Equal for equal values: 1 and 1.0 are one setting."""
    if isinstance(value, Mapping):
        return frozenset((key, _hashable(inner)) for key, inner in value.items())
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a results file, with every column; none when there is no file."""
    path = Path(path)
    lines = path.read_text().splitlines() if path.is_file() else []
    return [
        {column: kind() for column, kind in OPTIONAL.items()} | json.loads(line) for line in lines
    ]


def sweep(rows: Rows, by: str, metric: str) -> tuple[list[float], list[list[float]]]:
    """One method's rows: the L values of the setting ``by``, ascending, and ``metric`` of S seeds at each, (S, L).

    Seeds that lack one of the values are left out, so that means over seeds compare the same seeds.
    """
    values = {
        (r["seed"], r["setting"][by]): r["metrics"][metric] for r in rows if by in r["setting"]
    }
    levels = sorted({level for _, level in values})
    seeds = sorted({seed for seed, _ in values})
    whole = [s for s in seeds if all((s, level) in values for level in levels)]
    return levels, [[values[s, level] for level in levels] for s in whole]


def check_own_results(recipe: Recipe) -> None:
    """Raise a ConfigError if a changed recipe would put its rows beside those of the recipe as it is."""
    if recipe.changed and "results" not in recipe.changed:
        raise ConfigError(
            f"{recipe.config}: a changed recipe is another experiment: name a file for its rows, results=FILE",
            ["results"],
        )
