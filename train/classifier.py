"""Train MOSLIM's multi-head reward classifier on rated responses (its Eq 6-10).

    python train/classifier.py recipes/small_classifier.yaml
    python train/classifier.py --help                                      # every setting of a recipe
    accelerate launch --num_processes 8 train/classifier.py recipes/paper/moslim_type4.yaml
    python train/evaluate.py classifier recipes/small_classifier.yaml

One classifier for each loss and seed, in `<output>/<loss>-seed<n>`: the model, statistics for Eq 11, held-out
predictions and a model card. A killed run resumes from its last checkpoint and ends in the same result. A finished
classifier is made again only when a setting, the data, the base model or the code has changed.
"""

from __future__ import annotations

from pro_core.rewards.classifier_runs import train_classifiers
from pro_core.rewards.recipes import ClassifierRecipe
from pro_core.runs.scripts import run_script
from pro_core.system.processes import join_processes, keep_freed_memory


def main(recipe: ClassifierRecipe) -> None:
    join_processes()
    keep_freed_memory()
    train_classifiers(recipe)


if __name__ == "__main__":
    run_script(main, ClassifierRecipe, __doc__)
