"""Train policies by reinforcement learning on K weighted rewards: MORLHF, PRO-MORLHF, a single reward (Eq 5, 9).

    python train/morlhf.py recipes/morlhf_small.yaml
    python train/morlhf.py recipes/morlhf_small.yaml seeds=[1]   # seed 1 alone: commands side by side share the work
    python train/morlhf.py recipes/morlhf_small.yaml only=[PRO-MORLHF]                  # likewise, one of its arms
    accelerate launch --multi_gpu --num_processes 8 train/morlhf.py recipes/paper/ultrafeedback_ppo.yaml

A recipe holds one method, or several as `arms`, which differ in their `weights` or `algorithm`; each, under each seed,
ends in `<output>/<method>/seed<n>`, a folder that `PRO_POLICY=` takes. A killed run resumes and ends in the same
parameters. Next to a policy's stage, `prompts.jsonl` has every prompt with its weights, and `log.jsonl` every step.
"""

from __future__ import annotations

from pro_core.policies.rl.methods import train_morlhf
from pro_core.policies.rl.recipe import MorlhfRecipe
from pro_core.policies.sft import score_only_labelled_tokens
from pro_core.runs.scripts import run_script
from pro_core.system.processes import join_processes, keep_freed_memory


def main(recipe: MorlhfRecipe) -> None:
    join_processes()
    keep_freed_memory()
    score_only_labelled_tokens()
    train_morlhf(recipe)


if __name__ == "__main__":
    run_script(main, MorlhfRecipe, __doc__)
