"""From a recipe of `train/soups.py` to soups and lattices, and the commands that start servers with a lattice."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from pro_core.policies.card import write_soup_card
from pro_core.policies.soups import (
    greatest_rank,
    interpolate_lattice,
    interpolate_policies,
    ranks,
)
from pro_core.policies.stages import RUN
from pro_core.prompting.policy_config import PolicyConfig
from pro_core.runs.clock import add_clocks
from pro_core.runs.recipes import ConfigError, Recipe
from pro_core.system.extras import needs
from pro_core.system.settings import Seeds
from pro_core.system.storage import StorageError, read_config

with needs("train"):
    from pydantic import Field, model_validator

TGI = "ghcr.io/huggingface/text-generation-inference:3.3.5"


class SoupRecipe(Recipe):
    """A recipe of `train/soups.py`. ``{seed}`` in a folder's name stands for each of the seeds."""

    policies: dict[str, str] | str
    """{objective: folder of its LoRA policy}, at least two; for lattices alone also the folder of a soup that is mixed
    as it writes"""
    soups: dict[str, dict[str, float] | list[float] | None] = {}
    """{folder: weights}, by objective or in the order of the policies; null for a soup that is mixed as it writes"""
    lattices: dict[str, Annotated[int, Field(ge=1, le=100)]] = {}
    """{folder: n}: every mixture in steps of 1/n, for servers"""
    seeds: Seeds = [0]
    licence: str | None = None
    """the soups' licence, for their cards"""

    @model_validator(mode="after")
    def _together(self) -> SoupRecipe:
        alone = isinstance(self.policies, str)
        if (alone and self.soups) or (not alone and len(self.policies) < 2):
            raise ConfigError(
                f"got policies {self.policies!r}, expected {{objective: folder}}, at least two; for lattices alone, "
                "also the folder of a soup that is mixed as it writes",
                ["policies"],
            )
        if not (self.soups or self.lattices):
            raise ConfigError(
                "got no soups and no lattices, expected {folder: weights, or null} or {folder: steps}",
                ["soups", "lattices"],
            )
        read = [self.policies] if isinstance(self.policies, str) else self.policies.values()
        if len(self.seeds) > 1 and not all(
            "{seed}" in folder for folder in [*read, *self.soups, *self.lattices]
        ):
            raise ConfigError(
                "got several seeds, expected {seed} in the name of every folder", ["seeds"]
            )
        return self


def make_soups(recipe: SoupRecipe) -> list[Path]:
    """Make the soups and lattices of a recipe: averages of single-objective policies. No model is loaded.

    Returns:
        The folder of each, for each seed.

    Raises:
        ConfigError: weights off the simplex, or more mixtures than a server should hold.
        StorageError: a policy that is not a plain LoRA or has another base model, or the place of a soup is taken.
    """
    return [folder for seed in recipe.seeds for folder in _made(recipe, seed)]


def _made(recipe: SoupRecipe, seed: int) -> Iterator[Path]:
    def named(folder: str) -> str:
        return folder.replace("{seed}", str(seed))

    given = recipe.policies
    policies = named(given) if isinstance(given, str) else {k: named(v) for k, v in given.items()}
    if isinstance(policies, dict):
        for target, weights in recipe.soups.items():
            folder = Path(named(target))
            with _told("soups"):
                config = interpolate_policies(policies, folder, weights)
            _write_card(folder, config, policies, recipe.licence)
            add_clocks(policies.values(), folder)
            how = "mixed as it writes" if weights is None else f"weights {weights}"
            print(f"{folder}: {', '.join(policies)}; {how}", flush=True)
            yield folder
    for target, steps in recipe.lattices.items():
        folder = Path(named(target))
        with _told("lattices"):
            config = interpolate_lattice(policies, folder, steps)
        print("\n".join(launching(folder, config)), flush=True)
        yield folder


@contextmanager
def _told(setting: str) -> Iterator[None]:
    """Report weights or steps that make no sense as an error of the recipe's setting."""
    try:
        yield
    except StorageError:
        raise
    except ValueError as error:
        raise ConfigError(str(error), [setting]) from None


def _write_card(
    folder: Path, config: PolicyConfig, policies: dict[str, str], licence: str | None
) -> None:
    """The soup's card, where every policy says how it was trained by reinforcement learning."""
    if not all(Path(source, "run.json").is_file() for source in policies.values()):
        return
    records = {name: read_config(source, "run.json", RUN) for name, source in policies.items()}
    if all("algorithm" in record["settings"] for record in records.values()):
        write_soup_card(folder, config, records, licence)


def launching(folder: Path, config: PolicyConfig) -> Iterator[str]:
    """What the lattice in ``folder`` holds, and the commands that start servers with all of it, one line each."""
    names = list(config.mixtures)
    held, greatest = ranks(folder), greatest_rank(folder)
    modules = " ".join(f"{name}={shlex.quote(str(folder.absolute() / name))}" for name in names)
    mounted = ",".join(f"{name}=/lattice/{name}" for name in names)
    base = shlex.quote(config.base)
    yield (
        f"{folder}: {', '.join(config.condition.objective_names)}; {len(names)} mixtures in steps of "
        f"1/{config.training['lattice']}, LoRAs of rank {min(held)} to {max(held)}. A server holds them all:"
    )
    yield (
        f"vllm serve {base} --enable-lora --max-loras 4 --max-cpu-loras {max(4, len(names))} "
        f"--max-lora-rank {greatest} --lora-modules {modules}"
    )
    yield (
        f"python -m sglang.launch_server --model-path {base} --enable-lora --max-loras-per-batch 4 "
        f"--max-lora-rank {greatest} --lora-paths {modules}"
    )
    yield (
        f"docker run --gpus all --shm-size 1g -p 8080:80 -v {shlex.quote(str(folder.absolute()))}:/lattice "
        f"-e LORA_ADAPTERS={mounted} {TGI} --model-id {base}"
    )
    yield f"The app: PRO_POLICY={shlex.quote(str(folder))} PRO_ENDPOINT_URL=... python app.py"
