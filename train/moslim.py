"""Train MOSLIM's policies: levels asked for in the prompt, rewarded by one classifier's heads.

    python train/classifier.py recipes/small_classifier.yaml     # the classifier, first
    python train/moslim.py recipes/moslim_small.yaml
    python train/moslim.py recipes/moslim_small.yaml seeds=[1]   # seed 1 alone: commands side by side share the work
    accelerate launch --multi_gpu --num_processes 8 train/moslim.py recipes/paper/moslim_policies.yaml
    python train/evaluate.py levels recipes/moslim_evaluation.yaml

Arms, seeds, folders and resuming are as in `train/morlhf.py`, whose loop it uses. Next to a policy's stage,
`prompts.jsonl` has every prompt with the levels it asks for, and `log.jsonl` every step.
"""

from __future__ import annotations

from pro_core.policies.rl.methods import train_moslim
from pro_core.policies.rl.recipe import MoslimRecipe
from pro_core.policies.sft import score_only_labelled_tokens
from pro_core.runs.scripts import run_script
from pro_core.system.processes import join_processes, keep_freed_memory


def main(recipe: MoslimRecipe) -> None:
    join_processes()
    keep_freed_memory()
    score_only_labelled_tokens()
    train_moslim(recipe)


if __name__ == "__main__":
    run_script(main, MoslimRecipe, __doc__)
