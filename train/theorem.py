"""Measure Theorem 5.1 on finite candidate sets, and adapters against a planted truth: rows, a figure, tables.

    python train/theorem.py recipes/theorem.yaml [key=value ...]

pro_core/theory/theorem.py and planted.py describe what is measured and what the paper's proof shows of it. Finished
rows are kept. They are measured again only when a setting that they depend on, or the panel, has changed.
"""

from __future__ import annotations

from pro_core.evaluation.theorem import TheoremRecipe, theorem_rows
from pro_core.reporting.theory_figures import theorem_figure
from pro_core.reporting.theory_tables import planted_table, theorem_table
from pro_core.runs.scripts import run_script


def main(recipe: TheoremRecipe) -> None:
    rows = theorem_rows(recipe)
    theorem_figure(rows, recipe.figure)
    print(f"\n{theorem_table(rows)}\n\n{planted_table(rows)}")


if __name__ == "__main__":
    run_script(main, TheoremRecipe, __doc__)
