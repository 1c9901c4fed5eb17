"""How long work took, by this machine's clock: kept with what it made, over kills, for every process."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from pro_core.runs.clock import CLOCK, add_clocks, clocked, device_hours


def told(folder: Path, **changes) -> None:
    content = json.loads((folder / CLOCK).read_text()) | changes
    (folder / CLOCK).write_text(json.dumps(content))


def test_time_counts_while_work_lasts_and_not_between(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    for seconds in (1800.0, 5400.0):
        with clocked(tmp_path):
            now[0] += seconds
        now[0] += 100_000
    assert device_hours(tmp_path) == pytest.approx(2)


def test_a_killed_run_counts_up_to_its_last_file(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])

    def killed() -> None:
        with clocked(tmp_path):
            (tmp_path / "checkpoint").write_text("half")
            os.utime(tmp_path / "checkpoint", (1000.0 + 3600, 1000.0 + 3600))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    told(tmp_path, processes=2)  # two were killed
    now[0] += 50_000  # with an hour and more that led to nothing
    with clocked(tmp_path):
        now[0] += 3600
    assert device_hours(tmp_path) == pytest.approx(3)


def test_a_folder_made_from_several_counts_all_of_them(tmp_path):
    for name in ("a", "b", "none", "both", "some"):
        (tmp_path / name).mkdir()
    for name, seconds in (("a", 3600), ("b", 7200)):
        with clocked(tmp_path / name):
            pass
        told(tmp_path / name, device_seconds=seconds)
    add_clocks([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    assert device_hours(tmp_path / "both") == pytest.approx(3)
    add_clocks([tmp_path / "a", tmp_path / "none"], tmp_path / "some")
    assert device_hours(tmp_path / "some") is None  # a part of it is not known
