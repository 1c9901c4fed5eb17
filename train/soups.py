"""Rewarded Soups: single-objective policies averaged, for one weight vector or for each prompt.

    python train/morlhf.py recipes/morlhf_small.yaml      # trains the single-objective policies, among others
    python train/soups.py recipes/soups_small.yaml

Each soup of a recipe is a policy folder that `PRO_POLICY=` takes. One with fixed `weights` is a plain LoRA, which a
server can load; one with `weights: null` is mixed as it writes, in this process, under the sliders' or the adapter's
weights for each prompt. No model is loaded: this takes seconds.

A server cannot mix as it writes. For one, `lattices: {folder: n}` saves every mixture in steps of 1/n as a plain LoRA,
and prints how to start vLLM, SGLang and TGI with all of them. `PRO_POLICY=folder` with `PRO_ENDPOINT_URL` then asks for
the nearest one (docs/endpoints.md).
"""

from __future__ import annotations

from pro_core.policies.soup_runs import SoupRecipe, make_soups
from pro_core.runs.scripts import run_script


def main(recipe: SoupRecipe) -> None:
    make_soups(recipe)


if __name__ == "__main__":
    run_script(main, SoupRecipe, __doc__)
