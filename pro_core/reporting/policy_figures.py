"""Figures of policies as files, from their result rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pro_core.evaluation.results import Rows
from pro_core.reporting.drawing import STYLE
from pro_core.reporting.level_figures import level_pairs_figure, levels_figure
from pro_core.reporting.training_figures import training_figure
from pro_core.reporting.weight_figures import control_figure, front_figure, pairs_figure
from pro_core.system.extras import needs

with needs("train"):
    import matplotlib
    from matplotlib.figure import Figure


Draw = Callable[[Rows], Figure | None]
WEIGHTS: dict[str, Draw] = {
    "front": front_figure,
    "pairs": pairs_figure,
    "control": control_figure,
}
CURVES: dict[str, Draw] = {"training": training_figure}
"""Of policies at several steps of their training, too many for the others."""
LEVELS: dict[str, Draw] = {"levels": levels_figure, "level_pairs": level_pairs_figure}


def draw_figures(rows: Rows, folder: str | Path) -> list[Path]:
    """``<experiment>_<figure>.svg`` for each experiment of the test split that has points; returns what was written."""
    written = []
    rows = [r for r in rows if r["split"] == "test"]
    points = [r for r in rows if r["kind"] == "point"]
    for name in dict.fromkeys(r["experiment"] for r in points):
        of_experiment = [r for r in points if r["experiment"] == name]
        figures = WEIGHTS if "weights" in of_experiment[0]["request"] else LEVELS
        if any(r["experiment"] == name and r.get("setting") for r in rows):
            figures, of_experiment = CURVES, [r for r in rows if r["experiment"] == name]
        for kind, draw in figures.items():
            title = f"{name}_{kind}"
            with matplotlib.rc_context(STYLE | {"svg.hashsalt": title}):
                figure = draw(of_experiment)
                if figure is None:
                    continue
                path = Path(folder) / f"{title}.svg"
                path.parent.mkdir(parents=True, exist_ok=True)
                figure.savefig(path, facecolor="white", metadata={"Date": None, "Creator": None})
                written.append(path)
    return written
