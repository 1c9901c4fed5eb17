"""Train policies that read weights (PRO-WIC) or scores (RiC) in their prompt, offline and online (Eq 10, 11).

    python train/wic.py recipes/wic_small.yaml
    python train/wic.py recipes/wic_small.yaml seeds=[1]   # seed 1 alone: commands side by side share the work
    accelerate launch --multi_gpu --num_processes 2 train/wic.py recipes/wic_small.yaml   # on CPUs too
    accelerate launch --config_file recipes/accelerate/zero3.yaml train/wic.py recipes/paper/assistant_sft.yaml

A recipe holds one method, or several as `arms`; each, under each seed, ends in `<output>/<method>/seed<n>`, a folder
that `PRO_POLICY=` takes. A killed run resumes and ends in the same result: every stage is a folder with a manifest, and
stages that arms share are done once. An arm whose online round fails is reported at the end, after the others.
"""

from __future__ import annotations

from pro_core.policies.conditional.recipe import WicRecipe
from pro_core.policies.conditional.trainer import train_wic
from pro_core.policies.sft import score_only_labelled_tokens
from pro_core.runs.scripts import run_script
from pro_core.system.processes import join_processes, keep_freed_memory


def main(recipe: WicRecipe) -> None:
    join_processes()
    keep_freed_memory()
    score_only_labelled_tokens()
    train_wic(recipe)


if __name__ == "__main__":
    run_script(main, WicRecipe, __doc__)
