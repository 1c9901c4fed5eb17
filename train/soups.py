"""Rewarded Soups: single-objective policies averaged, for one weight vector or for each prompt (the weights in force).

    python train/morlhf.py recipes/morlhf_small.yaml      # trains the single-objective policies, among others
    python train/soups.py recipes/soups_small.yaml

Each soup of a recipe is a policy folder that `PRO_POLICY=` takes. One with fixed `weights` is a plain LoRA, which a
server can load; one with `weights: null` is mixed as it writes, in this process, under the sliders' or the adapter's
weights for each prompt. No model is loaded: this takes seconds.

A server cannot mix as it writes. For one, `lattices: {folder: n}` saves every mixture in steps of 1/n as a plain LoRA,
and says how vLLM, SGLang and TGI are started with all of them; `PRO_POLICY=folder` with `PRO_ENDPOINT_URL` then asks
for the nearest one (docs/endpoints.md).
"""

from __future__ import annotations

import os
import shlex

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # before the hub's client is imported

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pro_core.policies.card import write_soup_card
from pro_core.policies.soups import (
    greatest_rank,
    interpolate_lattice,
    interpolate_policies,
    ranks,
)
from pro_core.policies.stages import RUN
from pro_core.prompting.policy_config import PolicyConfig
from pro_core.runs.training import ConfigError, read_recipe, run_script
from pro_core.system.storage import StorageError, read_config

REQUIRED = ("policies",)
OPTIONAL = {
    "soups": {},  # folder: weights, or null
    "lattices": {},  # folder: steps
    "seeds": [0],  # put in place of {seed} in every folder's name
    "licence": None,  # the soups' own, for their cards
}

TGI = "ghcr.io/huggingface/text-generation-inference:3.3.5"


def main(recipe_path: str) -> None:
    recipe = read_recipe(recipe_path, REQUIRED, OPTIONAL)
    check(recipe)
    for seed in recipe["seeds"]:
        policies = for_seed(recipe["policies"], seed)
        for target, weights in recipe["soups"].items():
            folder = for_seed(target, seed)
            try:
                config = interpolate_policies(policies, folder, weights)
            except ValueError as error:
                raise ConfigError(str(error)) from None
            if all((Path(source) / "run.json").is_file() for source in policies.values()):
                records = {
                    k: read_config(source, "run.json", RUN) for k, source in policies.items()
                }
                if all("algorithm" in record["settings"] for record in records.values()):
                    write_soup_card(Path(folder), config, records, recipe["licence"])
            how = "mixed as it writes" if weights is None else f"weights {weights}"
            print(f"{folder}: {', '.join(policies)}; {how}", flush=True)
        for target, steps in recipe["lattices"].items():
            folder = Path(for_seed(target, seed))
            try:
                config = interpolate_lattice(policies, folder, steps)
            except StorageError:
                raise
            except ValueError as error:
                raise ConfigError(str(error)) from None
            for line in launching(folder, config):
                print(line, flush=True)


def check(recipe: dict[str, Any]) -> None:
    """Raise a ConfigError for settings that make no sense together."""
    policies, soups, lattices = recipe["policies"], recipe["soups"], recipe["lattices"]
    a_soup = isinstance(policies, str) and not soups
    if not a_soup and (not isinstance(policies, dict) or len(policies) < 2):
        raise ConfigError(
            f"got policies {policies!r}, expected {{objective: folder}}, at least two; for lattices alone, also the "
            "folder of a soup that is mixed as it writes"
        )
    if not isinstance(soups, dict) or not isinstance(lattices, dict) or not (soups or lattices):
        raise ConfigError(
            f"got soups {soups!r} and lattices {lattices!r}, expected {{folder: weights, or null}} or {{folder: steps}}"
        )
    read = [policies] if isinstance(policies, str) else list(policies.values())
    folders = [*read, *soups, *lattices]
    if len(recipe["seeds"]) > 1 and not all("{seed}" in str(f) for f in folders):
        raise ConfigError("got several seeds, expected {seed} in the name of every folder")


def for_seed(folders: Any, seed: int) -> Any:
    """A folder's name, or those of a mapping, for this seed."""
    if isinstance(folders, dict):
        return {name: for_seed(folder, seed) for name, folder in folders.items()}
    return str(folders).replace("{seed}", str(seed))


def launching(folder: Path, config: PolicyConfig) -> Iterator[str]:
    """What the lattice in ``folder`` holds, and the commands that start servers with all of it, a line each."""
    names = list(config.mixtures)
    held, greatest = ranks(folder), greatest_rank(folder)
    here = " ".join(f"{name}={shlex.quote(str(folder.absolute() / name))}" for name in names)
    mounted = ",".join(f"{name}=/lattice/{name}" for name in names)
    base = shlex.quote(config.base)
    yield (
        f"{folder}: {', '.join(config.condition.objective_names)}; {len(names)} mixtures in steps of "
        f"1/{config.training['lattice']}, LoRAs of rank {min(held)} to {max(held)}. A server holds them all:"
    )
    yield (
        f"vllm serve {base} --enable-lora --max-loras 4 --max-cpu-loras {max(4, len(names))} "
        f"--max-lora-rank {greatest} --lora-modules {here}"
    )
    yield (
        f"python -m sglang.launch_server --model-path {base} --enable-lora --max-loras-per-batch 4 "
        f"--max-lora-rank {greatest} --lora-paths {here}"
    )
    yield (
        f"docker run --gpus all --shm-size 1g -p 8080:80 -v {shlex.quote(str(folder.absolute()))}:/lattice "
        f"-e LORA_ADAPTERS={mounted} {TGI} --model-id {base}"
    )
    yield f"The app: PRO_POLICY={shlex.quote(str(folder))} PRO_ENDPOINT_URL=... python app.py"


if __name__ == "__main__":
    run_script(main, __doc__)
