"""Rewarded Soups: single-objective policies averaged, for one weight vector or for each prompt (the weights in force).

    python train/morlhf.py recipes/morlhf_small.yaml      # trains the single-objective policies, among others
    python train/soups.py recipes/soups_small.yaml

Each soup of a recipe is a policy folder that `PRO_POLICY=` takes. One with fixed `weights` is a plain LoRA, which a
server can load; one with `weights: null` is mixed as it writes, in this process, under the sliders' or the adapter's
weights for each prompt. No model is loaded: this takes seconds.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # before the hub's client is imported

from pathlib import Path

from pro_core.evaluation.cards import write_soup_card
from pro_core.policies.soups import interpolate_policies
from pro_core.policies.stages import RUN
from pro_core.storage import read_config
from pro_core.training import ConfigError, read_recipe, run_script

REQUIRED = ("policies", "soups")
OPTIONAL = {
    "seeds": [0],  # put in place of {seed} in every folder's name
    "licence": None,  # the soups' own, for their cards
}


def main(recipe_path: str) -> None:
    recipe = read_recipe(recipe_path, REQUIRED, OPTIONAL)
    policies, soups = recipe["policies"], recipe["soups"]
    if not isinstance(policies, dict) or len(policies) < 2:
        raise ConfigError(
            f"got policies {policies!r}, expected {{objective: folder}}, at least two"
        )
    if not isinstance(soups, dict) or not soups:
        raise ConfigError(f"got soups {soups!r}, expected {{folder: weights, or null}}")
    if len(recipe["seeds"]) > 1 and not all(
        "{seed}" in str(f) for f in [*policies.values(), *soups]
    ):
        raise ConfigError("got several seeds, expected {seed} in the name of every folder")
    for seed in recipe["seeds"]:
        named = {k: str(folder).replace("{seed}", str(seed)) for k, folder in policies.items()}
        for target, weights in soups.items():
            folder = str(target).replace("{seed}", str(seed))
            try:
                config = interpolate_policies(named, folder, weights)
            except ValueError as error:
                raise ConfigError(str(error)) from None
            if all((Path(source) / "run.json").is_file() for source in named.values()):
                records = {k: read_config(source, "run.json", RUN) for k, source in named.items()}
                if all("algorithm" in record["settings"] for record in records.values()):
                    write_soup_card(Path(folder), config, records, recipe["licence"])
            how = "mixed as it writes" if weights is None else f"weights {weights}"
            print(f"{folder}: {', '.join(named)}; {how}", flush=True)


if __name__ == "__main__":
    run_script(main, __doc__)
