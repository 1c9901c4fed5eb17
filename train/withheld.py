"""Measure what weighs an objective without pairs: an equal share, a rule over prompts, Eq 7, against a planted truth.

    python train/withheld.py recipes/withheld.yaml [key=value ...]

pro_core/theory/planted.py describes what is measured. Finished seeds are kept.
"""

from __future__ import annotations

from pro_core.evaluation.withheld import WithheldRecipe, withheld_rows
from pro_core.reporting.theory_tables import withheld_table
from pro_core.runs.scripts import run_script


def main(recipe: WithheldRecipe) -> None:
    print(f"\n{withheld_table(withheld_rows(recipe))}")


if __name__ == "__main__":
    run_script(main, WithheldRecipe, __doc__)
