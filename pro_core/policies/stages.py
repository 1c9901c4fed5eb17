"""Stages of a training run as folders: named by a hash of all that decides them, closed by a manifest.

Stages that runs have in common are done once, and a killed run, started again, goes on to the same result.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from pro_core.conditioned import PolicyConfig
from pro_core.policies.recipe import folder_name
from pro_core.storage import file_hash, read_sealed, seal, write_config
from pro_core.training import from_main, main_process, wait_for_all

POLICY, ROLLOUTS, RUN = "pro-policy-stage", "pro-rollouts", "pro-run"
"""The formats of what training leaves: two kinds of stages, and a run's own record."""


@dataclass(frozen=True)
class Stage:
    """A sealed folder: its key, which is a hash of all that decides it, and what it recorded."""

    folder: Path
    key: str
    record: dict[str, Any]

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"


def once(folder: Path, key: str, kind: str, make: Callable[[Path], dict[str, Any]]) -> Stage:
    """The stage ``folder/<key>``, made and sealed unless it is there; by one run at a time.

    Args:
        make: fills the folder it gets and returns the record; every process calls it.
    """
    target = folder / key[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{target.name}.lock") if main_process() else nullcontext():
        wait_for_all()  # until the main process has the lock
        record = from_main(read_sealed(target, kind) if main_process() else None)
        if record is None:
            record = make(target)
            wait_for_all()
            if main_process():
                shutil.rmtree(target / "work", ignore_errors=True)
                seal(target, kind, record)
        wait_for_all()
    return Stage(target, key, record)


def model_identity(model: str) -> list[str]:
    """Tells one base from another: a hub id, or the hashes of a folder's files."""
    folder = Path(model)
    if not folder.is_dir():
        return [model]
    return [f"{p.name} {file_hash(p)}" for p in sorted(folder.iterdir()) if p.is_file()]


def lora_base(settings: dict[str, Any]) -> str:
    """The model that the trained LoRA belongs to; empty where every parameter is trained."""
    return settings["model"] if settings["lora"] is not None else ""


def published(settings: dict[str, Any], seed: int) -> Path:
    """Where a finished policy goes."""
    method = folder_name(settings["method"])
    return Path(settings["policy"] or Path(settings["output"]) / method / f"seed{seed}")


def publish(
    stages: Sequence[Stage],
    config: PolicyConfig,
    settings: dict[str, Any],
    seed: int,
    counts: Sequence[str],
    **more: int,
) -> tuple[Path, dict[str, int]]:
    """The last stage's policy where people look for it, with a record of what it took to make it in ``run.json``.

    Every process calls it, the main one writes.

    Args:
        config: what stands beside the policy. ``counts``: what is summed up of the stages' records. ``more``: what else
            was spent.

    Returns:
        The policy's folder, and what was spent.
    """
    output, made = Path(settings["output"]), {"method": settings["method"], "seed": seed}
    folder = published(settings, seed)
    spent = {key: sum(stage.record.get(key, 0) for stage in stages) for key in counts} | more
    if main_process():
        copy_checkpoint(stages[-1].checkpoint, folder)
        replace(config, training=made | {"model": settings["model"]}).save(folder)
        used = {k: v for k, v in settings.items() if k not in ("arms", "seeds", "policy")}
        listed = [{"stage": str(p.folder.relative_to(output)), **p.record} for p in stages]
        record = made | {"spent": spent, "settings": used, "stages": listed}
        write_config(folder, "run.json", {"format": RUN, **record})
    wait_for_all()
    return folder, spent


def copy_checkpoint(checkpoint: Path, folder: Path) -> None:
    """A finished checkpoint under its own name, by hard links where the disk can: whole models are large."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(checkpoint, partial, copy_function=os.link)
    except (OSError, shutil.Error):
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(checkpoint, partial)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
