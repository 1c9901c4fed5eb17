"""Train policies on preference pairs: SFT, DPO, IPO, KTO, SimPO, WPO, Selective DPO, ADPO, MODPO, PRO-DPO.

    python train/preference.py recipes/table5_small.yaml
    python train/preference.py recipes/table5_small.yaml only=[DPO] seeds=[1]   # one row: commands side by side share
    accelerate launch --multi_gpu --num_processes 8 train/preference.py recipes/paper/table5_paper.yaml

A recipe holds one method, or several as `arms`, which differ in their `algorithm`; each, under each seed, ends in
`<output>/<method>/seed<n>`, a folder that `PRO_POLICY=` takes. All start from one policy, SFT on the chosen
completions. Each has as many `trials` (a learning rate and a beta) as the others, and the judge chooses by the answers
to validation prompts; `run.json` holds the choice. A killed run resumes and ends in the same parameters.
"""

from __future__ import annotations

from pro_core.policies.preference.recipe import PreferenceRecipe
from pro_core.policies.preference.run import train_preference
from pro_core.policies.sft import score_only_labelled_tokens
from pro_core.runs.scripts import run_script
from pro_core.system.processes import join_processes, keep_freed_memory


def main(recipe: PreferenceRecipe) -> None:
    join_processes()
    keep_freed_memory()
    score_only_labelled_tokens()
    train_preference(recipe)


if __name__ == "__main__":
    run_script(main, PreferenceRecipe, __doc__)
