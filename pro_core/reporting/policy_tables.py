"""Tables of policies, from their result rows; every one says what its judges are worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pro_core.evaluation.policy.metrics import LEADS
from pro_core.evaluation.policy.rows import ALL_SEEDS, BASE, POINTS
from pro_core.evaluation.results import markdown_table
from pro_core.reporting.paper_tables import equal_weights_table

Rows = Sequence[dict[str, Any]]
SHOWN = {
    "hypervolume": "hypervolume",
    "judge_score": "judge",
    "judge_score_adapter": "judge, adapter's weights",
    "judge_win_rate": "judge prefers it to the base",
    "heldout_score": "held-out panel",
    "mean_weighted_score": "weighted score, panel",
    "igd_plus": "IGD+ (lower is better)",
}
TEXTS = {
    "length": "characters",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "distinct_3": "distinct-3",
    "perplexity": "perplexity (lower is likelier)",
    "kl": "log-ratio to the base (nats a response)",
}
UNITS = (
    "Higher is better unless said. Hypervolume, IGD+, judge and held-out panel in units of the base model: 0 is the "
    "mean of its responses, 1 their standard deviation; the reference point lies one deviation below its mean. The "
    "held-out panel is under equal weights. Weighted score: by the panel that chose or trained, so it judges nobody. "
    "Means over weightings and seeds, 95% intervals over prompts."
)


def main_table(rows: Rows, only: str | None = None) -> str:
    """Every method's front, judges and weighted score; of one experiment, or of all."""

    def table(mine: Rows) -> str:
        shown = {key: head for key, head in SHOWN.items() if _any(mine, key)}
        most = max(r["metrics"]["seeds"] for r in mine)
        body = []
        for r in mine:
            seeds = r["metrics"]["seeds"]
            name = (
                r["method"] if seeds == most else f"{r['method']} ({seeds:.0f} of {most:.0f} seeds)"
            )
            body.append([name, *(cell(r, key) for key in shown)])
        return markdown_table(["", *shown.values()], body) + f"\n\n{UNITS} {judges_note(mine[0])}"

    return _each_experiment(_only(rows, only), ALL_SEEDS, table)


def _only(rows: Rows, experiment: str | None) -> Rows:
    """The rows of one experiment, or all; none of another whose name begins alike."""
    if experiment is None:
        return rows
    names = (experiment, experiment + ALL_SEEDS, experiment + BASE)
    return [r for r in rows if r["experiment"] in names]


def leads_table(rows: Rows) -> str:
    """Each method's lead over those it is compared with, paired; in bold where the interval leaves out 0."""

    def table(mine: Rows) -> str:
        body = []
        for r in mine:
            for other in _others(r):
                found = [f"lead_{key}_over_{other}" for key in LEADS]
                body.append([r["method"], other, *(_signed(r, key) for key in found)])
        if not body:
            return ""
        heads = ["", "over", *(SHOWN[key] for key in LEADS)]
        return markdown_table(heads, body) + f"\n\nPaired over prompts. {judges_note(mine[0])}"

    return _each_experiment(rows, ALL_SEEDS, table)


def control_table(rows: Rows, only: str | None = None) -> str:
    """Whether an objective's score follows its weight: Spearman's within prompts, by the panel and the held-out one; of
    one experiment, or of all."""

    def table(mine: Rows) -> str:
        keys = [key for key in mine[0]["metrics"] if key.startswith("spearman_")]
        heads = [key.removeprefix("spearman_").replace("heldout_", "held-out ") for key in keys]
        body = [[r["method"], *(cell(r, key) for key in keys)] for r in mine]
        if not keys:
            return ""
        note = "-1 to 1, higher is better; 0: weights change nothing."
        return markdown_table(["", *heads], body) + f"\n\n{note} {judges_note(mine[0])}"

    return _each_experiment(_only(rows, only), ALL_SEEDS, table)


def levels_table(rows: Rows) -> str:
    """Whether the level given follows the level asked for, see :mod:`pro_core.evaluation.policy.levels`."""

    def table(mine: Rows) -> str:
        parts = []
        for kind, head in (("spearman_", "Spearman"), ("gain_", "levels gained")):
            keys = [
                key for key in mine[0]["metrics"] if key.startswith(kind) and "_beside_" not in key
            ]
            heads = [key.removeprefix(kind).replace("heldout_", "held-out ") for key in keys]
            body = [[r["method"], *(cell(r, key) for key in keys)] for r in mine]
            body += [
                [
                    f"{r['method']}, less {other}",
                    *(_signed(r, f"lead_{k}_over_{other}") for k in keys),
                ]
                for r in mine
                for other in _others(r)
            ]
            if keys:
                parts.append(markdown_table([head, *heads], body))
        note = (
            "Spearman: of the level asked for and the level that the classifier expects of the response, within "
            "prompts, -1 to 1. Gained: the level given at the highest asked less that at the lowest. The classifier "
            f"taught the policies, so it judges nobody. {judges_note(mine[0])}"
        )
        return "\n\n".join([*parts, note]) if parts else ""

    return _each_experiment(rows, ALL_SEEDS, table)


def texts_table(rows: Rows) -> str:
    """What the responses look like, and what is missing."""

    def table(mine: Rows) -> str:
        shown = {key: head for key, head in TEXTS.items() if _any(mine, key)}
        body = []
        for r in mine:
            m = r["metrics"]
            missing = (
                f"{m['failed']:.0f} failed, {m['empty']:.0f} empty, {m['unscored']:.0f} unscored"
            )
            cells = [cell(r, key) for key in shown]
            body.append([r["method"], f"{m['responses']:.0f}", *cells, missing])
        return markdown_table(["", "responses", *shown.values(), "of all seeds"], body)

    return _each_experiment(rows, ALL_SEEDS, table)


def equal_weights_tables(rows: Rows) -> str:
    """The paper's Tables 1-4 beside ours, see :mod:`pro_core.reporting.paper_tables`."""
    return _each_experiment(rows, POINTS, equal_weights_table)


def judges_note(row: dict[str, Any]) -> str:
    """How often the judges agree with the labels of their own test pairs, or that there are none."""
    parts = []
    for key in row["metrics"]:
        if key == "judge_accuracy":
            parts.append(f"overall judge {cell(row, key)}")
        elif key.startswith("heldout_accuracy_"):
            parts.append(f"held-out {key.removeprefix('heldout_accuracy_')} {cell(row, key)}")
    if not parts:
        return (
            "No judge's own accuracy is known here: neither the overall judge nor the held-out panel was there, or "
            "their folders do not say it."
        )
    return f"The judges' own accuracy on test pairs: {', '.join(parts)}."


def cell(row: dict[str, Any], metric: str) -> str:
    """``0.62 (0.57 to 0.66)``; without what was not measured."""
    if metric not in row["metrics"]:
        return ""
    value = row["metrics"][metric]
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    if metric not in row["ci95"]:
        return f"{value:.{digits}f}"
    lo, hi = row["ci95"][metric]
    return f"{value:.{digits}f} ({lo:.{digits}f} to {hi:.{digits}f})"


def _signed(row: dict[str, Any], metric: str) -> str:
    if metric not in row["metrics"]:
        return ""
    value, (lo, hi) = row["metrics"][metric], row["ci95"][metric]
    text = f"{value:+.2f} ({lo:+.2f} to {hi:+.2f})"
    return f"**{text}**" if lo > 0 or hi < 0 else text


def _others(row: dict[str, Any]) -> list[str]:
    leads = (key.partition("_over_")[2] for key in row["metrics"] if key.startswith("lead_"))
    return list(dict.fromkeys(leads))


def _any(rows: Rows, metric: str) -> bool:
    return any(metric in r["metrics"] for r in rows)


def _each_experiment(rows: Rows, suffix: str, table: Callable[[Rows], str]) -> str:
    """One table an experiment of the test split, under a line that names it."""
    parts = []
    for name in dict.fromkeys(r["experiment"] for r in rows if r["experiment"].endswith(suffix)):
        mine = [r for r in rows if r["experiment"] == name and r["split"] == "test"]
        text = table(mine) if mine else ""
        if text:
            parts.append(f"`{name.removesuffix(suffix)}`{_about(rows, name, suffix)}\n\n{text}")
    return "\n\n".join(parts)


def _about(rows: Rows, name: str, suffix: str) -> str:
    experiment = name.removesuffix(suffix)
    mine = [r for r in rows if r["experiment"] == experiment and r["split"] == "test"]
    base = [r for r in rows if r["experiment"] == experiment + BASE]
    if not mine or not base:
        return ""
    seeds, points = len({r["seed"] for r in mine}), max(r["metrics"]["points"] for r in mine)
    return (
        f": {mine[0]['n']} held-out prompts, {points:.0f} weightings, {seeds} seed{'s' * (seeds != 1)}; "
        f"base: {base[0]['method']}"
    )
