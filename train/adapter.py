"""Fit the preference adapter on out-of-fold panel scores (Eq 6-8), for several targets and seeds.

    python train/adapter.py recipes/demo_adapter.yaml
    python train/adapter.py recipes/own_adapter.yaml epochs=4 seeds=[0,1]
    python train/adapter.py --help                                          # every setting of a recipe

Every target is fitted with every seed and graded on the validation pairs. The one with the best accuracy, averaged
over objectives and seeds, becomes the adapter (its first seed); without validation pairs, the recipe's first target
does. For the prompts that trained the panel, weights come from adapters that never saw them (folds). A finished adapter
is fitted again only when the scores, a setting, the encoder or the code has changed.
"""

from __future__ import annotations

from pro_core.adapter.recipe import AdapterRecipe
from pro_core.adapter.runs import train_adapter
from pro_core.runs.scripts import run_script
from pro_core.system.processes import join_processes, keep_freed_memory


def main(recipe: AdapterRecipe) -> None:
    join_processes()
    if recipe.train_encoder:  # heads alone are small
        keep_freed_memory()
    train_adapter(recipe)


if __name__ == "__main__":
    run_script(main, AdapterRecipe, __doc__)
