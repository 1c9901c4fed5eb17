"""Tables of policies, from their result rows. Each says which judges it is from and how accurate they are.

Rows of older judges or of another panel carry a mark, because their scores are on another scale.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pro_core.evaluation.policy.weights import LEADS
from pro_core.evaluation.results import Kind, Row, Rows
from pro_core.reporting.markdown import interval, markdown_table
from pro_core.reporting.paper_tables import equal_weights_table

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
    "kl": "log-ratio to the base (nats per response)",
    "device_hours": "hours of training, all devices",
}
UNITS = (
    "Higher is better unless stated. Hypervolume, IGD+, judge and held-out panel are in units of the base model: 0 is "
    "the mean of its responses, 1 their standard deviation; the reference point lies one deviation below the mean. The "
    "held-out panel has equal weights. The weighted score comes from the panel that trained or chose, so it is no "
    "independent judge. Means over weightings and seeds, 95% intervals over prompts."
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
        return markdown_table(["", *shown.values()], body) + f"\n\n{UNITS}"

    return _judged(_only(rows, only), table)


def _only(rows: Rows, experiment: str | None) -> Rows:
    """The rows of one experiment, or all."""
    return [r for r in rows if experiment in (None, r["experiment"])]


def leads_table(rows: Rows) -> str:
    """Each method's lead over those it is compared with, paired; in bold where the interval excludes 0."""

    def table(mine: Rows) -> str:
        body = []
        for r in mine:
            for other, led in r["leads"].items():
                body.append([r["method"], other, *(_signed(led, key) for key in LEADS)])
        if not body:
            return ""
        heads = ["", "over", *(SHOWN[key] for key in LEADS)]
        return markdown_table(heads, body) + "\n\nPaired over prompts."

    return _judged(rows, table)


def control_table(rows: Rows, only: str | None = None) -> str:
    """Whether an objective's score follows its weight: Spearman's within prompts, by the panel and the held-out one; of
    one experiment, or of all."""

    def table(mine: Rows) -> str:
        newest = mine[-1]
        heads = {f"spearman_{name}": name for name in newest["objectives"]}
        heads |= {f"spearman_heldout_{n}": f"held-out {n}" for n in newest["heldout_objectives"]}
        heads = {key: head for key, head in heads.items() if key in newest["metrics"]}
        if not heads:
            return ""
        body = [[r["method"], *(cell(r, key) for key in heads)] for r in mine]
        note = "-1 to 1, higher is better; 0: weights change nothing."
        return markdown_table(["", *heads.values()], body) + f"\n\n{note}"

    return _judged(_only(rows, only), table)


def quality_table(rows: Rows, only: str) -> str:
    """Control beside what it costs in text, of one experiment: who moves what a weight asks for, and at what price."""

    def table(mine: Rows) -> str:
        heads = {key: SHOWN[key] for key in ("mean_weighted_score", "judge_score", "heldout_score")}
        heads |= {key: TEXTS[key] for key in ("perplexity", "distinct_2", "length")}
        shown = {key: head for key, head in heads.items() if _any(mine, key)}
        body = [[r["method"], _control(r), *(cell(r, key) for key in shown)] for r in mine]
        note = "Control: Spearman's correlation of weight and score within prompts, its mean over the objectives."
        return markdown_table(["", "control", *shown.values()], body) + f"\n\n{note} {UNITS}"

    return _judged(_only(rows, only), table)


def _control(row: Row) -> str:
    """The mean over the objectives of Spearman's correlations, those that are there."""
    of = [row["metrics"].get(f"spearman_{name}") for name in row["objectives"]]
    known = [value for value in of if value is not None]
    return f"{sum(known) / len(known):.2f}" if known else ""


def levels_table(rows: Rows) -> str:
    """Whether the level given follows the level asked for, see :mod:`pro_core.evaluation.policy.levels`."""

    def table(mine: Rows) -> str:
        parts, newest = [], mine[-1]
        spearman: dict[str, str] = {}
        gains: dict[str, str] = {}
        for name in newest["objectives"]:
            spearman |= {f"spearman_{name}": name, f"spearman_heldout_{name}": f"held-out {name}"}
            gains[f"gain_{name}"] = name
        for title, heads in (("Spearman", spearman), ("levels gained", gains)):
            shown = {key: head for key, head in heads.items() if key in newest["metrics"]}
            body = [[r["method"], *(cell(r, key) for key in shown)] for r in mine]
            body += [
                [f"{r['method']}, minus {other}", *(_signed(led, key) for key in shown)]
                for r in mine
                for other, led in r["leads"].items()
            ]
            if shown:
                parts.append(markdown_table([title, *shown.values()], body))
        if _any(mine, "device_hours"):
            body = [[r["method"], cell(r, "device_hours")] for r in mine]
            parts.append(markdown_table(["training", TEXTS["device_hours"]], body))
        note = (
            "Spearman: rank correlation, within prompts, of the level asked for and the classifier's expected level of "
            "the response; -1 to 1. Gained: the level given at the highest level asked for, minus that at the lowest. "
            "The classifier taught the policies, so it is no independent judge."
        )
        return "\n\n".join([*parts, note]) if parts else ""

    return _judged(rows, table)


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

    return _each_experiment(rows, "all_seeds", table)


def equal_weights_tables(rows: Rows) -> str:
    """The paper's Tables 1-4 next to ours, see :mod:`pro_core.reporting.paper_tables`."""
    return _each_experiment(rows, "point", equal_weights_table)


def _judged(rows: Rows, table: Callable[[Rows], str]) -> str:
    """One table for each experiment, from its rows over all seeds; below it, one line on what scored them.

    The newest row is the last in the file. A method whose row has other judges, or another panel, gets a mark.
    """

    def noted(mine: Rows) -> str:
        newest_first: dict[frozenset[tuple[str, str]], Row] = {}
        for r in reversed(mine):
            newest_first.setdefault(_scored_by(r), r)
        marks = {of: "†" * i for i, of in enumerate(newest_first)}
        text = table([r | {"method": r["method"] + marks[_scored_by(r)]} for r in mine])
        lines = [scorers_note(r, marks[of]) for of, r in newest_first.items()]
        return "\n\n".join([text, *lines]) if text else ""

    return _each_experiment(rows, "all_seeds", noted)


def _scored_by(row: Row) -> frozenset[tuple[str, str]]:
    return frozenset(row["scored_by"].items())


def scorers_note(row: Row, mark: str = "") -> str:
    """What scored a row, and how often its judges agree with the labels of their own test pairs.

    Args:
        mark: that of rows which other scorers than the newest graded.
    """
    versions = row["scored_by"]
    note = f"{mark} Compare only rows with this mark: what scored them differs. " if mark else ""
    for role in ("panel", "classifier"):
        if role in versions:
            note += f"{role.capitalize()}: `{versions[role]}`. "
    parts = []
    if "judge" in versions:
        parts.append(f"overall judge `{versions['judge']}` {interval(row, 'judge_accuracy')}")
    if "heldout_panel" in versions:
        names = row["heldout_objectives"]
        each = ", ".join(f"{n} {interval(row, f'heldout_accuracy_{n}')}" for n in names)
        parts.append(f"held-out panel `{versions['heldout_panel']}` {each}")
    if not parts:
        return f"{note}Neither an overall judge nor a held-out panel scored these responses."
    return f"{note}The judges' own accuracy on test pairs: {'; '.join(parts)}."


def cell(row: Row, metric: str) -> str:
    """``0.62 (0.57 to 0.66)``; without what was not measured."""
    if metric not in row["metrics"]:
        return ""
    value = row["metrics"][metric]
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    if metric not in row["ci95"]:
        return f"{value:.{digits}f}"
    lo, hi = row["ci95"][metric]
    return f"{value:.{digits}f} ({lo:.{digits}f} to {hi:.{digits}f})"


def _signed(lead: dict[str, Any], metric: str) -> str:
    if metric not in lead["metrics"]:
        return ""
    value, (lo, hi) = lead["metrics"][metric], lead["ci95"][metric]
    text = f"{value:+.2f} ({lo:+.2f} to {hi:+.2f})"
    return f"**{text}**" if lo > 0 or hi < 0 else text


def _any(rows: Rows, metric: str) -> bool:
    return any(metric in r["metrics"] for r in rows)


def _each_experiment(rows: Rows, kind: Kind, table: Callable[[Rows], str]) -> str:
    """One table for each experiment's test rows of a kind, under a line that names the experiment."""
    parts = []
    tested = [r for r in rows if r["split"] == "test"]
    for name in dict.fromkeys(r["experiment"] for r in tested if r["kind"] == kind):
        mine = [r for r in tested if r["experiment"] == name]
        text = table([r for r in mine if r["kind"] == kind])
        if text:
            parts.append(f"`{name}`{_about(mine)}\n\n{text}")
    return "\n\n".join(parts)


def _about(rows: Rows) -> str:
    """The size of an experiment and its base; nothing where no base fixed the units."""
    methods = [r for r in rows if r["kind"] == "method"]
    bases = [r for r in rows if r["kind"] == "base"]
    if not methods or not bases:
        return ""
    seeds, points = len({r["seed"] for r in methods}), max(r["metrics"]["points"] for r in methods)
    return (
        f": {methods[0]['n']} held-out prompts, {points:.0f} weightings, {seeds} seed{'s' * (seeds != 1)}; "
        f"base: {bases[0]['method']}"
    )
