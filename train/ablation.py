"""Train panels that differ in one setting each, under several seeds, and grade them: which setting helps?

    python train/ablation.py recipes/panel_ablation.yaml
    python train/ablation.py recipes/panel_ablation.yaml seeds=[0] results=outputs/one_seed.jsonl
    python train/ablation.py --help                                    # every setting of a recipe

Writes one row per arm, seed and split, and prints their table. A killed run resumes. A finished panel is trained and
graded again only when a setting of its arm, the data, the base model or the code has changed.
"""

from __future__ import annotations

from pro_core.evaluation.ablation import ablation_rows
from pro_core.reporting.reward_tables import ablation_table
from pro_core.rewards.recipes import AblationRecipe
from pro_core.runs.scripts import run_script
from pro_core.system.processes import join_processes, keep_freed_memory


def main(recipe: AblationRecipe) -> None:
    join_processes()
    keep_freed_memory()
    if rows := ablation_rows(recipe):
        print(f"\n{ablation_table(rows)}")


if __name__ == "__main__":
    run_script(main, AblationRecipe, __doc__)
