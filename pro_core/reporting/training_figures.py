"""Held-out scores in the course of training: PRO's Figure 3, read by judges that trained no policy.

Methods take steps of different sizes, so a policy stands at its share of its own training: methods are comparable if
their whole trainings cost the same."""

from __future__ import annotations

from pro_core.evaluation.results import Rows
from pro_core.reporting.drawing import curve, panels
from pro_core.system.extras import needs

with needs("train"):
    from matplotlib.figure import Figure

SCORES = {
    "judge_score": "overall judge",
    "heldout_score": "held-out panel",
    "mean_weighted_score": "weighted score, by the panel that trained",
}
"""Measures in units of the base policy, 0 is its mean; with an adapter, under its weights for each prompt."""


def training_figure(rows: Rows) -> Figure | None:
    """One panel per measure, one line per method; bars are the mean 95% interval over prompts. None without steps."""
    rows = [r for r in rows if r["kind"] == "method" and r.get("setting")]
    measured = set.intersection(*(set(r["ci95"]) for r in rows)) if rows else set()
    drawn = {}
    for name, label in SCORES.items():
        for key in (f"{name}_adapter", name):
            if key in measured:
                drawn[key] = label
                break
    if not drawn:
        return None
    methods = list(dict.fromkeys(r["setting"]["curve"] for r in rows))
    figure, grid = panels(len(drawn))
    for axes, (key, label) in zip(grid, drawn.items(), strict=False):
        axes.axhline(0, color="#888888", linewidth=1)
        for i, method in enumerate(methods):
            of_method = [r for r in rows if r["setting"]["curve"] == method]
            steps = [r["setting"]["step"] for r in of_method]
            shares = [step / max(steps) for step in steps]
            shift = 0.006 * (i - (len(methods) - 1) / 2)
            curve(axes, shares, of_method, key, shift, i, method)
        axes.set_xlabel("share of the training")
        axes.set_ylabel(label)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
