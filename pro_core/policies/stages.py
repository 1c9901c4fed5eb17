"""Stages of a training run as folders, named by a hash of everything that decides them.

Stages that runs have in common are done once, and a killed run goes on to the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pro_core.policies.recipe import PolicyRecipe
from pro_core.prompting.policy_config import PolicyConfig, check_replaceable
from pro_core.runs.clock import add_clocks, clocked
from pro_core.system.artefacts import MANIFEST, Artefact, copy_files, once
from pro_core.system.processes import main_process
from pro_core.system.storage import StorageError, write_config

POLICY, ROLLOUTS, RUN = "pro-policy-stage", "pro-rollouts", "pro-run"
"""The formats of what training leaves: two kinds of stages, and a run's own record."""
PUBLISHED = "pro-published-policy"
"""The kind of finished folder that holds a policy to use."""
KEPT = "steps"
"""The subfolder of a stage, and of a policy, with the policies of earlier steps that stay."""


def stage(folder: Path, key: str, kind: str, make: Callable[[Path], dict[str, Any]]) -> Artefact:
    """The stage ``folder/<key>``, see :func:`pro_core.system.artefacts.once`; its ``key`` is the one given.

    Args:
        key: a hash of everything that decides it. make: every process calls it.
    """

    def timed(building: Path) -> dict[str, Any]:
        with clocked(building):
            return make(building)

    made = once(folder / key[:16], kind, {"key": key}, timed)
    return replace(made, key=key)


def check_place(recipe: PolicyRecipe, seed: int) -> None:
    """Raise a StorageError, before anything is trained, if the place of the finished policy is taken."""
    folder = recipe.place(seed)
    check_replaceable(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise StorageError(
            f"{folder}: holds a policy that no run of this version made: move it away, or name another folder"
        )


def publish(
    stages: Sequence[Artefact],
    config: PolicyConfig,
    recipe: PolicyRecipe,
    seed: int,
    used: dict[str, Any],
    counts: Sequence[str],
    **more: int,
) -> tuple[Path, dict[str, int]]:
    """Copy the last stage's policy to its place, with a record of what it took to make it in ``run.json``.

    Every process calls it, the main one writes.

    Args:
        config: saved beside the policy. ``used``: the settings that its record keeps.
        counts: the figures of the stages' records that are summed. ``more``: what else was spent.

    Returns:
        The policy's folder, and what was spent.
    """
    output, made = Path(recipe.output), {"method": recipe.method, "seed": seed}
    folder = recipe.place(seed)
    spent = {key: sum(stage.record.get(key, 0) for stage in stages) for key in counts} | more

    def make(partial: Path) -> dict[str, Any]:
        if main_process():
            listed = [{"stage": str(p.folder.relative_to(output)), **p.record} for p in stages]
            record = made | {"spent": spent, "settings": used, "stages": listed}
            copy_files(stages[-1].checkpoint, partial)
            copy_files(stages[-1].folder / KEPT, partial / KEPT)
            replace(config, training=made | {"model": recipe.model}).save(partial)
            write_config(partial, "run.json", {"format": RUN, **record})
            add_clocks([p.folder for p in stages], partial)
        return spent

    inputs = used | {"seed": seed, "stages": [p.key for p in stages]}
    once(folder, PUBLISHED, inputs, make)
    return folder, spent
