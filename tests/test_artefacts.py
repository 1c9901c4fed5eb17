"""Finished folders: the same inputs do nothing twice, other inputs make it again and say why, and no kill, damaged file
or full disk leaves a wrong one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_train_scripts import ENV, NICE, ROOT, own_pairs, run, write_rows
from tiny import tiny_encoder

from pro_core.adapter.recipe import AdapterRecipe
from pro_core.adapter.runs import AdapterRun
from pro_core.rewards.panel_runs import PanelRun
from pro_core.rewards.recipes import PanelRecipe
from pro_core.runs.training import last_whole_checkpoint, whole_checkpoint
from pro_core.system.artefacts import MANIFEST, WORK, copy_files, finished, once, read_manifest
from pro_core.system.storage import (
    StorageError,
    replacing,
    write_config,
    write_jsonl,
    write_tensors,
)
from train import adapter as train_adapter
from train import evaluate, reward_models

pytestmark = pytest.mark.slow

KIND = "test-kind"


def maker(text: str, calls: list[str] | None = None):
    """What fills a folder with one file, and notes that it was called."""

    def make(folder: Path) -> dict:
        if calls is not None:
            calls.append(text)
        (folder / WORK).mkdir(exist_ok=True)
        (folder / "result.txt").write_text(text)
        return {"length": len(text)}

    return make


# ---------------------------------------------------------------- the mechanism


def test_the_same_inputs_do_nothing_twice(tmp_path):
    calls: list[str] = []
    first = once(tmp_path / "a", KIND, {"rate": 0.1}, maker("one", calls))
    again = once(tmp_path / "a", KIND, {"rate": 0.1}, maker("one", calls))
    assert first == again and calls == ["one"] and first.record == {"length": 3}
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [MANIFEST, "result.txt"]


def test_other_inputs_make_it_again_and_say_what_changed(tmp_path, capsys):
    once(tmp_path / "a", KIND, {"rate": 0.1, "pairs": "3 of hash " + "a" * 64}, maker("one"))
    inputs = {"rate": 0.2, "pairs": "3 of hash " + "b" * 64}
    once(tmp_path / "a", KIND, inputs, maker("two"))
    assert (tmp_path / "a" / "result.txt").read_text() == "two"
    said = capsys.readouterr().out
    assert "made again: pairs changed; rate was 0.1, is 0.2" in said
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["a"]  # nothing old is left


def test_a_folder_that_other_inputs_made_is_not_graded(tmp_path):
    once(tmp_path / "a", KIND, {"rate": 0.1}, maker("one"))
    assert finished(tmp_path / "a", KIND, {"rate": 0.1}, "it").record == {"length": 3}
    with pytest.raises(StorageError, match=r"rate was 0.1, is 0.2\): run train it again first"):
        finished(tmp_path / "a", KIND, {"rate": 0.2}, "train it")
    with pytest.raises(StorageError, match="run train it first"):
        finished(tmp_path / "b", KIND, {"rate": 0.2}, "train it")


def test_something_else_in_the_folders_place_is_not_deleted(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("years")
    with pytest.raises(StorageError, match="nothing says what made it"):
        once(tmp_path / "a", KIND, {}, maker("one"))
    assert (tmp_path / "a" / "thesis.txt").read_text() == "years"


def test_a_changed_file_is_noticed_and_a_changed_card_is_not(tmp_path):
    def make(folder):
        (folder / "README.md").write_text("card")
        (folder / "result.txt").write_text("one")

    once(tmp_path / "a", KIND, {}, make)
    (tmp_path / "a" / "README.md").write_text("a person's own words")
    once(tmp_path / "a", KIND, {}, make)
    (tmp_path / "a" / "result.txt").write_text("two")
    with pytest.raises(StorageError, match="missing or changed since it was written"):
        once(tmp_path / "a", KIND, {}, make)


def test_work_goes_on_after_a_failure_and_never_with_what_other_inputs_left(tmp_path):
    seen = []

    def failing(folder):
        seen.append(sorted(p.name for p in folder.iterdir()))
        (folder / "half.txt").write_text("half")
        raise KeyboardInterrupt

    for inputs in ({"rate": 1}, {"rate": 1}, {"rate": 2}):
        with pytest.raises(KeyboardInterrupt):
            once(tmp_path / "a", KIND, inputs, failing)
    assert seen == [[], ["half.txt"], []]
    assert not (tmp_path / "a").exists()  # half of it is never in its place


@pytest.mark.parametrize("step", [1, 2])
def test_a_kill_between_the_last_steps_is_repaired(tmp_path, monkeypatch, step):
    once(tmp_path / "a", KIND, {"rate": 1}, maker("one"))
    moves, real = [], os.replace

    def replace(source, target):
        if Path(target) in (tmp_path / ".a-old", tmp_path / "a"):
            moves.append(source)
            if len(moves) == step:
                raise KeyboardInterrupt
        real(source, target)

    calls: list[str] = []
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        once(tmp_path / "a", KIND, {"rate": 2}, maker("two", calls))
    monkeypatch.setattr(os, "replace", real)
    once(tmp_path / "a", KIND, {"rate": 2}, maker("two", calls))
    assert calls == ["two"]  # not made a second time
    assert (tmp_path / "a" / "result.txt").read_text() == "two"


def test_a_folder_remade_by_another_run_is_noticed(tmp_path):
    """Two recipes that write to one folder: the first must not go on with what the second put there."""
    mine = once(tmp_path / "a", KIND, {"rate": 1}, maker("one"))
    mine.check()
    once(tmp_path / "a", KIND, {"rate": 2}, maker("two"))
    with pytest.raises(StorageError, match=str(tmp_path / "a")):
        mine.check()


def test_a_finished_folder_is_found_on_a_read_only_disk(small_disk):
    folder = small_disk(2)
    once(folder / "a", KIND, {"rate": (1, 2)}, maker("one"))
    for lock in folder.glob(".*.lock"):
        lock.unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    assert once(folder / "a", KIND, {"rate": (1, 2)}, maker("two")).record == {"length": 3}


def test_an_unreadable_file_elsewhere_is_not_a_disk_error(tmp_path):
    def make(folder):
        raise PermissionError(13, "Permission denied", "/somewhere/else.jsonl")

    with pytest.raises(PermissionError, match="else.jsonl"):
        once(tmp_path / "a", KIND, {}, make)


def test_editing_a_copy_does_not_change_its_source(tmp_path):
    once(tmp_path / "a", KIND, {}, maker("one"))
    copy_files(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "result.txt").write_text("mine")
    assert (tmp_path / "a" / "result.txt").read_text() == "one"
    assert not (tmp_path / "b" / MANIFEST).exists()


def test_a_second_run_waits_for_the_first(tmp_path):
    """Two processes ask for the same folder; it is made once, and both get it."""
    script = tmp_path / "make.py"
    script.write_text(
        "from pro_core.system.artefacts import once\n"
        "def make(folder):\n"
        "    with open('calls', 'a') as calls:\n"
        "        calls.write('x')\n"
        "    input('begun\\n')\n"
        "once('a', 'test-kind', {}, make)\n"
    )
    start = {"cwd": tmp_path, "env": ENV | {"PYTHONPATH": str(ROOT)}, "text": True}
    start |= {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    first = subprocess.Popen([sys.executable, script], **start)
    assert first.stdout.readline() == "begun\n"
    second = subprocess.Popen([sys.executable, script], **start)
    assert "another run is making it" in second.stdout.readline()
    first.communicate("go on\n", timeout=60)
    second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0)
    assert (tmp_path / "calls").read_text() == "x"


# ---------------------------------------------------------------- files and checkpoints


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        write_jsonl(tmp_path / "rows.jsonl", [{"a": object()}])
    with pytest.raises(RuntimeError, match="while it was written"):
        with replacing(tmp_path / "x") as partial:
            partial.write_text("half")
            raise RuntimeError("while it was written")
    assert list(tmp_path.iterdir()) == []


def test_half_written_files_of_dead_processes_are_deleted(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".{dead.pid}-rows.jsonl").write_text("half")
    (tmp_path / f".{os.getppid()}-rows.jsonl").write_text("of somebody who still writes")
    write_jsonl(tmp_path / "rows.jsonl", [{}])
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f".{os.getppid()}-rows.jsonl",
        "rows.jsonl",
    ]


def checkpoint(folder: Path, step: int) -> Path:
    made = folder / f"checkpoint-{step}"
    with whole_checkpoint(made):
        made.mkdir()
        (made / "optimizer.pt").write_bytes(bytes(1000))
        (made / "trainer_state.json").write_text("{}")
    return made


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda c: (c / "optimizer.pt").write_bytes(bytes(900)), "900 bytes instead of 1,000"),
        (lambda c: (c / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda c: (c / "sizes.json").unlink(), "checkpoint-10"),
    ],
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, capsys, damage, said):
    older, newest = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    assert last_whole_checkpoint(tmp_path) == newest
    damage(newest)
    assert last_whole_checkpoint(tmp_path) == older
    assert said in capsys.readouterr().out and not newest.exists()


# ---------------------------------------------------------------- full and read-only disks


@pytest.fixture
def small_disk(tmp_path):
    """small_disk(megabytes, options): a disk of its own at a folder; needs the right to mount."""
    mounted = []

    def make(megabytes: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("a small disk cannot be mounted here (needs root)")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def writers(folder: Path):
    """Everything that writes large things, on a disk that is too small for them."""
    tensors = {"a": torch.zeros(1_000_000)}
    yield lambda: write_tensors(folder / "a.safetensors", tensors)
    yield lambda: write_config(folder, "a.json", {"a": "x" * 3_000_000})
    yield lambda: once(folder / "a", KIND, {}, lambda f: write_tensors(f / "a.st", tensors))

    def save():
        with whole_checkpoint(folder / "checkpoint-1"):
            (folder / "checkpoint-1").mkdir()
            torch.save(tensors, folder / "checkpoint-1" / "optimizer.pt")

    yield save


@pytest.mark.parametrize("index", range(4))
def test_a_full_disk_is_one_sentence_and_work_goes_on_when_there_is_room(small_disk, index):
    folder = small_disk(2)
    write = list(writers(folder))[index]
    with pytest.raises(StorageError, match="the disk is full"):
        write()
    assert not [p for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock"]
    subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
    write()


def test_a_read_only_disk_is_one_sentence(small_disk):
    folder = small_disk(2)
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    for write in writers(folder):
        with pytest.raises(StorageError, match="the disk is read-only"):
            write()


def test_folders_that_cannot_be_made_are_one_sentence_however_deep(small_disk):
    folder = small_disk(2)
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    deep = folder / "a" / "b" / "c" / "d"
    for write in (lambda: write_config(deep, "a.json", {}), lambda: once(deep, KIND, {}, print)):
        with pytest.raises(StorageError, match="the disk is read-only"):
            write()


def test_a_training_on_a_full_disk_ends_in_one_line_and_completes_once_there_is_room(
    small_disk, tmp_path
):
    folder = small_disk(3)
    path = recipe_of(tmp_path, folder / "out")
    done = subprocess.run(
        [sys.executable, "train/reward_models.py", path],
        cwd=ROOT, env=ENV, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "the disk is full" in done.stderr.strip().splitlines()[-1]
    subprocess.run(["mount", "-o", "remount,size=200m", str(folder)], check=True)
    run("train/reward_models.py", path)
    assert read_manifest(folder / "out" / "panel", "pro-finished-panel")


# ---------------------------------------------------------------- from a label to the adapter


def recipe_of(folder: Path, output: Path, **changes) -> Path:
    """A small panel's recipe over own pairs."""
    if not (folder / "pairs.jsonl").is_file():
        write_rows(folder / "pairs.jsonl", own_pairs())
    settings = {
        "objectives": ["helpful", "harmless"],
        "model": tiny_encoder(folder / "base"),
        "output": str(output),
        "data_dir": str(folder),
        "data": [{"path": "pairs.jsonl", "epochs": 2}],
        "learning_rate": 3e-3,
        "batch_size": 16,
        "max_length": 48,
        "folds": 2,
        "checkpoint_every": 4,
    }
    path = folder / "panel.yaml"
    path.write_text(yaml.safe_dump(settings | changes))
    return path


def adapter_of(folder: Path, output: Path, **changes) -> Path:
    settings = {
        "scores": str(output / "scores.parquet"),
        "panel": str(output / "panel"),
        "output": str(output / "adapters"),
        "encoder": str(folder / "base"),
        "train_encoder": False,
        "epochs": 2,
        "batch_size": 32,
        "learning_rate": 1e-3,
        "seeds": [0],
        "folds": 0,
        "targets": [{"target": "pairwise", "temperature": 1.0}],
    }
    path = folder / "adapter.yaml"
    path.write_text(yaml.safe_dump(settings | changes))
    return path


def files(output: Path) -> dict[str, tuple[bytes, int]]:
    """Every finished file with its content and the time of its making."""
    there = sorted(p for p in output.rglob("*") if p.is_file() and p.suffix != ".lock")
    return {str(p.relative_to(output)): (p.read_bytes(), p.stat().st_mtime_ns) for p in there}


def changed(before, after) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_a_change_remakes_what_depends_on_it_and_nothing_else(tmp_path, capsys, monkeypatch):
    output = tmp_path / "out"
    panel, adapter = recipe_of(tmp_path, output), adapter_of(tmp_path, output)

    def both() -> str:
        capsys.readouterr()
        reward_models.main(PanelRecipe.read(panel))
        train_adapter.main(AdapterRecipe.read(adapter))
        return capsys.readouterr().out

    def made() -> dict:
        return {k: v for k, v in files(output).items() if k != "scores.parquet"}

    both()
    first = made()
    assert not [name for name in first if f"/{WORK}/" in name]  # checkpoints are gone
    said = both()
    assert "made again" not in said
    again = made()
    assert changed(first, again) <= {"adapters/validation.csv"}

    # One label turned round in a file of the same size and the same time.
    pairs = tmp_path / "pairs.jsonl"
    times = pairs.stat()
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    row = next(r for r in rows if r["split"] == "train" and r["objective"] == "helpful")
    assert row["chosen"].split(",")[0] in NICE
    row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    write_rows(pairs, rows)
    os.utime(pairs, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert pairs.stat().st_size == times.st_size
    said = both()
    assert "folds/all: made again: training pairs changed" in said
    assert "adapter: made again: " in said
    third = made()
    for name in ("panel/trunk/model.safetensors", "scores/held_out/scores.parquet"):
        assert again[name][0] != third[name][0], name
    heads = "adapters/pairwise-t1/seed0/model.safetensors"
    assert (
        again[heads][0] != third[heads][0]
        and again[heads][0] != third["adapters/adapter/model.safetensors"][0]
    )

    # A setting of the adapter: the panel stays.
    adapter_of(tmp_path, output, learning_rate=3e-3)
    said = both()
    assert "made again: learning_rate was 0.001, is 0.003" in said
    fourth = made()
    assert not {n for n in changed(third, fourth) if not n.startswith("adapters")}

    # Objectives in another order: another panel.
    recipe_of(tmp_path, output, objectives=["harmless", "helpful"])
    capsys.readouterr()
    reward_models.main(PanelRecipe.read(panel))
    said = capsys.readouterr().out
    assert "made again: objectives was ['helpful', 'harmless'], is ['harmless', 'helpful']" in said
    # A grader says so when the recipe is no longer the one that was trained.
    recipe_of(tmp_path, output, learning_rate=1e-3)
    graded = ["train/evaluate.py", "reward_models", panel, "--results", tmp_path]
    monkeypatch.setattr(sys, "argv", [str(word) for word in graded])
    with pytest.raises(SystemExit) as exit:
        evaluate.main()
    assert "other inputs made it (" in exit.value.code
    assert "run python train/reward_models.py" in exit.value.code


def test_a_deleted_panel_is_not_resumed_from_an_older_ones_checkpoint(tmp_path, capsys):
    """A run that was cut off leaves checkpoints; another recipe does not go on from them."""
    output, changed_rate = tmp_path / "out", 1e-3
    path = recipe_of(tmp_path, output, folds=0)
    cut = subprocess.Popen(
        [sys.executable, "train/reward_models.py", path],
        cwd=ROOT, env=ENV, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    for _ in iter(cut.stdout.readline, ""):
        if list(output.rglob("checkpoint-*/sizes.json")):
            break
    cut.kill()
    cut.wait()
    recipe_of(tmp_path, output, folds=0, learning_rate=changed_rate)
    reward_models.main(PanelRecipe.read(path))
    assert "resuming" not in capsys.readouterr().out
    straight = recipe_of(tmp_path, tmp_path / "straight", folds=0, learning_rate=changed_rate)
    reward_models.main(PanelRecipe.read(straight))
    one, two = (
        load_file(folder / "panel/trunk/model.safetensors")
        for folder in (output, tmp_path / "straight")
    )
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_negated_scores_give_new_heads(tmp_path):
    output = tmp_path / "out"
    panel, adapter = recipe_of(tmp_path, output), adapter_of(tmp_path, output)
    reward_models.main(PanelRecipe.read(panel))
    train_adapter.main(AdapterRecipe.read(adapter))
    heads = output / "adapters/adapter/model.safetensors"
    before = heads.read_bytes()
    table = pd.read_parquet(output / "scores.parquet")
    numbers = [c for c in table if c.startswith(("raw_", "z_"))]
    table[numbers] = -table[numbers]
    table.to_parquet(output / "scores.parquet")
    with pytest.raises(StorageError, match="not the scores that .* was finished with"):
        train_adapter.main(AdapterRecipe.read(adapter))
    with pytest.raises(StorageError, match="not the scores that .* was finished with"):
        PanelRun(PanelRecipe.read(panel)).table()
    # Scores and a panel from elsewhere, that no run finished together.
    (output / "panel" / MANIFEST).unlink()
    run = AdapterRun(AdapterRecipe.read(adapter))
    with pytest.raises(StorageError, match=r"other inputs made it \(.*scores changed"):
        run.load(run.targets[0], 0)
    train_adapter.main(AdapterRecipe.read(adapter))
    assert heads.read_bytes() != before
