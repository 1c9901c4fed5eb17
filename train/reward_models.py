"""Train K reward models on preference pairs, as one trunk with K heads or as one model per objective (Eq 2).

    python train/reward_models.py recipes/demo_panel.yaml
    python train/reward_models.py recipes/own_panel.yaml learning_rate=5e-5 folds=0
    python train/reward_models.py --help                                   # every setting of a recipe
    accelerate launch --multi_gpu --num_processes 2 train/reward_models.py recipes/demo_panel.yaml   # on CPUs too

Writes a panel (models, statistics, accuracies, model card) and `scores.parquet`, from which `train/adapter.py` learns:
every pair scored by a panel that was not trained on its prompt. A killed run resumes from its last checkpoint and ends
in the same result. A finished panel is made again only when a setting, the data, the base model or the code has
changed.
"""

from __future__ import annotations

from pro_core.rewards.panel_runs import train_panel
from pro_core.rewards.recipes import PanelRecipe
from pro_core.runs.scripts import run_script
from pro_core.system.processes import join_processes, keep_freed_memory


def main(recipe: PanelRecipe) -> None:
    join_processes()
    keep_freed_memory()
    if panel := train_panel(recipe):
        print(
            f"{panel.source}: accuracy on {recipe.grade_on} pairs, and its 95% interval", flush=True
        )
        for name in panel.objective_names:
            if measured := panel.accuracy.get(name):
                low, high = measured["ci95"]
                accuracy = f"{measured['accuracy']:.3f} ({low:.3f} to {high:.3f})"
                print(f"  {name}: {accuracy}, {measured['n']} pairs", flush=True)
            else:
                print(f"  {name}: not measured", flush=True)


if __name__ == "__main__":
    run_script(main, PanelRecipe, __doc__)
