"""Measure when weights that follow the prompt beat the best fixed ones: rows, a figure, a table.

    python train/payoff.py recipes/payoff.yaml [key=value ...]

pro_core/theory/payoff.py says what is measured. Finished rows are kept.
"""

from __future__ import annotations

from pro_core.evaluation.payoff import PayoffRecipe, payoff_rows
from pro_core.reporting.theory_figures import payoff_figure
from pro_core.reporting.theory_tables import payoff_table
from pro_core.runs.scripts import run_script


def main(recipe: PayoffRecipe) -> None:
    rows = payoff_rows(recipe)
    payoff_figure(rows, recipe.figure)
    print(f"\n{payoff_table(rows)}")


if __name__ == "__main__":
    run_script(main, PayoffRecipe, __doc__)
