"""MORLHF against PRO-MORLHF with exact expectations: rows, a figure, a table.

    python train/convergence.py recipes/convergence.yaml [key=value ...]

pro_core/theory/convergence.py describes what is trained and measured, labelled_worlds.py on which data. Every arm takes
the KL weight and the learning rate, from one grid, that are best for it on the validation prompts. It is trained again
under MORLHF uniform's choice, so that steps can be compared. The scored world is a file, made once.
"""

from __future__ import annotations

from pro_core.evaluation.convergence import ConvergenceRecipe, convergence_rows
from pro_core.evaluation.results import write_rows
from pro_core.reporting.theory_figures import convergence_figure
from pro_core.reporting.theory_tables import convergence_table
from pro_core.runs.scripts import run_script


def main(recipe: ConvergenceRecipe) -> None:
    rows = convergence_rows(recipe)
    write_rows(recipe.results, rows, methods=())
    convergence_figure(rows, recipe.figure)
    print(f"\n{convergence_table(rows)}")


if __name__ == "__main__":
    run_script(main, ConvergenceRecipe, __doc__)
