"""Labelling at scale: (N, K) raw rewards in Parquet shards that a kill cannot spoil.

The responses are cut into shards in order. A shard's name holds a hash of its texts and of the panel, and its file
appears whole or not at all. So a file with that name is finished, and all other shards are still to be scored. The
processes take shards in turn, and each shard is scored by one call, so the rewards do not depend on the number of
processes. Whoever finishes the last shard writes ``manifest.json``: a hash of each shard's bytes, and the number of
missing rewards. Where a model gives NaN or infinity, the reward is null, never 0, and is counted.

Columns of a shard: ``id, source, split, prompt`` (messages as JSON, ``[]`` for a text that stands alone),
``completion, length`` (characters), and ``raw_<objective>`` for each objective.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pro_core.data.schema import LabelledResponse
from pro_core.rewards.panel import RewardPanel
from pro_core.system.storage import (
    StorageError,
    content_hash,
    file_hash,
    library_versions,
    read_config,
    replacing,
    write_config,
)

FORMAT = "pro-rewards"


@dataclass(frozen=True)
class Shard:
    """Some of the responses, and the file that holds (or will hold) their rewards."""

    path: Path
    responses: list[LabelledResponse]

    @property
    def finished(self) -> bool:
        """Whether the file exists and can be read to its end."""
        try:
            return len(pd.read_parquet(self.path, columns=["id"])) == len(self.responses)
        except (OSError, ValueError):  # missing, or not a whole Parquet file
            return False


def plan_shards(
    panel: RewardPanel, responses: Sequence[LabelledResponse], folder: str | Path, size: int
) -> list[Shard]:
    """All shards of a run, ``size`` responses each; the same for every process of it.

    Raises:
        ValueError: a size below 1 or no responses.
    """
    if size < 1 or not responses:
        raise ValueError(f"got {len(responses)} responses in shards of {size}, expected at least 1")
    fingerprint = panel.fingerprint()
    shards = []
    for index, start in enumerate(range(0, len(responses), size)):
        part = list(responses[start : start + size])
        content = [[r.id, r.source, r.split, r.prompt, r.response] for r in part]
        digest = content_hash([fingerprint, content])
        shards.append(Shard(Path(folder) / f"{index:05d}-{digest[:16]}.parquet", part))
    return shards


def score_shards(
    panel: RewardPanel,
    shards: Sequence[Shard],
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Score the shards that are not finished, one after the other.

    Args:
        on_progress: called with (responses scored, responses to score).

    Raises:
        EndpointError: a model at an endpoint went away, or changed; the finished shards stay.
    """
    left = [shard for shard in shards if not shard.finished]
    total, before = sum(len(shard.responses) for shard in left), 0
    for shard in left:
        N, done = len(shard.responses), before

        def report(part: int, whole: int, done: int = done, N: int = N) -> None:
            if on_progress:
                on_progress(done + part * N // whole, total)

        rewards = panel.score(
            [r.prompt or [] for r in shard.responses],
            [r.response for r in shard.responses],
            report,
            allow_missing=True,
        )
        panel.check_endpoints()  # a model that changed on the way spoils no shard
        _write(shard, rewards, panel.objective_names)
        before += N


def _write(shard: Shard, rewards_NK: NDArray, objective_names: Sequence[str]) -> None:
    rows = shard.responses
    columns: dict[str, Any] = {
        "id": [r.id for r in rows],
        "source": [r.source for r in rows],
        "split": [r.split for r in rows],
        "prompt": [json.dumps(r.prompt or []) for r in rows],
        "completion": [r.response for r in rows],
        "length": [len(r.response) for r in rows],
    }
    for k, name in enumerate(objective_names):
        columns[f"raw_{name}"] = rewards_NK[:, k].astype(np.float32)  # NaN becomes null
    with replacing(shard.path) as partial:
        pd.DataFrame(columns).to_parquet(partial)


def write_manifest(panel: RewardPanel, shards: Sequence[Shard]) -> dict[str, Any] | None:
    """Write ``manifest.json`` when every shard is finished, and return it; else None."""
    if not all(shard.finished for shard in shards):
        return None
    missing = dict.fromkeys(panel.objective_names, 0)
    listed: list[dict[str, Any]] = []
    for shard in shards:
        table = pd.read_parquet(shard.path, columns=[f"raw_{name}" for name in missing])
        for name in missing:
            missing[name] += int(table[f"raw_{name}"].isna().sum())
        listed.append(
            {
                "file": shard.path.name,
                "rows": len(shard.responses),
                "sha256": file_hash(shard.path),
            }
        )
    manifest = {
        "format": FORMAT,
        "panel": panel.source,
        "models": [spec.to_dict() for spec in panel.specs],
        "objective_names": list(panel.objective_names),
        "rows": sum(entry["rows"] for entry in listed),
        "missing": missing,
        "shards": listed,
        "versions": library_versions(),
    }
    write_config(shards[0].path.parent, "manifest.json", manifest)
    return manifest


def read_rewards(folder: str | Path) -> pd.DataFrame:
    """All rows of a finished run, in the order of its data; a missing reward is NaN.

    Raises:
        StorageError: the run is not finished, or a shard does not match the manifest.
    """
    manifest = read_config(folder, "manifest.json", FORMAT)
    parts = []
    for entry in manifest["shards"]:
        path = Path(folder) / entry["file"]
        if not path.is_file() or file_hash(path) != entry["sha256"]:
            raise StorageError(
                f"{path}: missing or changed since it was written; delete it and run the labelling again"
            )
        parts.append(pd.read_parquet(path))
    return pd.concat(parts, ignore_index=True)
