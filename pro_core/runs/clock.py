"""The time that work on a folder took, summed over kills and restarts: what papers report as GPU hours.

It is kept in ``.clock.json``, a hidden file that is not part of the result.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pro_core.system.processes import main_process, processes
from pro_core.system.storage import write_config

CLOCK = ".clock.json"


@contextmanager
def clocked(folder: Path) -> Iterator[None]:
    """Count the time of the block for ``folder``, once per process. For a killed run, only the time up to the last
    file that it wrote counts, since later work is repeated."""
    if not main_process():
        yield
        return
    before = _read(folder)
    spent = before["device_seconds"] if before else 0.0
    if before and before["started"] is not None:
        wrote = max((p.stat().st_mtime for p in _files(folder)), default=0.0)
        spent += max(0.0, wrote - before["started"]) * before["processes"]
    started, count = time.time(), processes().num_processes
    _write(folder, spent, started, count)
    yield
    _write(folder, spent + (time.time() - started) * count, None, count)


def device_hours(folder: str | Path) -> float | None:
    """Hours times GPUs (on a CPU: times processes) that the folder took; None if they were not counted."""
    count = _read(Path(folder))
    return count["device_seconds"] / 3600 if count else None


def add_clocks(folders: Iterable[str | Path], target: Path) -> None:
    """Write the total time of ``folders`` into ``target``, if it is known for all of them."""
    counts = [_read(Path(folder)) for folder in folders]
    if all(counts):
        _write(target, sum(c["device_seconds"] for c in counts if c), None, 1)


def _files(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file() and p.name != CLOCK]


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads((folder / CLOCK).read_text()))
    except (OSError, ValueError):
        return None


def _write(folder: Path, seconds: float, started: float | None, count: int) -> None:
    content = {"device_seconds": round(seconds, 3), "started": started, "processes": count}
    write_config(folder, CLOCK, content)
