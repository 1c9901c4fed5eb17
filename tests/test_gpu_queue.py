"""Work in turns: commands that stop when the time is up, and a queue that goes on with what is not finished."""

from __future__ import annotations

import gzip
import json
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from test_moslim import write_classifier
from tiny import ROOT, tiny_encoder, tiny_llama

from pro_core import (
    MorlhfRecipe,
    MoslimRecipe,
    PanelRecipe,
    PreferenceRecipe,
    RewardModelSpec,
    RewardPanel,
    WicRecipe,
    train_morlhf,
    train_moslim,
    train_panel,
    train_preference,
    train_wic,
)
from pro_core.runs import queue as queues
from pro_core.runs.queue import QueueRecipe, run_queue
from pro_core.runs.recipes import ConfigError, RecipeOfArms

SCRIPTS = {
    # Notes each start, and how it is told to end.
    "works": "note('worked')",
    "fails": "sys.exit('no such reward model')",
    "stops": """
signal.signal(signal.SIGTERM, lambda *_: (note('told'), sys.exit(143)))
if not noted('told'):
    note('started')
    while True: signal.pause()
note('went on')""",
    "deaf": """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
note('started')
while True: signal.pause()""",
    "dies": "import os; os.kill(os.getpid(), signal.SIGKILL)",
    # Waits for the other command to be ready, then tells the queue itself to stop.
    "kills": """
import os
while not noted('started'): time.sleep(0.01)
os.kill(os.getppid(), signal.SIGTERM)""",
    "waits": """
mine, other = sys.argv[1:]
note(mine)
while not noted(other): time.sleep(0.01)""",
}
START = """
import pathlib, signal, sys, time
notes = pathlib.Path(__file__).with_name('notes')
def note(text):
    with notes.open('a') as file: file.write(text + '\\n')
def noted(text): return notes.exists() and text in notes.read_text().split('\\n')
"""


@pytest.fixture
def queue(tmp_path):
    """queue(part=[commands], ...) is a recipe of them; the name of a script of ``SCRIPTS`` begins each."""
    for name, text in SCRIPTS.items():
        (tmp_path / f"{name}.py").write_text(START + text)

    def make(minutes: float = 5.0, grace: float = 5.0, **parts: list[str]) -> QueueRecipe:
        commands = {
            part: [f"{tmp_path}/{c.split()[0]}.py {' '.join(c.split()[1:])}" for c in of_part]
            for part, of_part in parts.items()
        }
        output = str(tmp_path / "queue")
        return QueueRecipe(output=output, parts=commands, minutes=minutes, grace=grace)

    return make


def notes(folder) -> list[str]:
    return (folder / "notes").read_text().split()


def test_the_commands_of_a_part_run_side_by_side(queue):
    assert run_queue(queue(both=["waits a b", "waits b a"]))  # each waits for the other's note


def test_what_is_finished_is_not_run_again(queue, tmp_path, capsys):
    recipe = queue(first=["works"], second=["fails", "works 2"])
    assert not run_queue(recipe)
    assert notes(tmp_path) == ["worked", "worked"]  # a failure stops no other command
    assert "no such reward model" in capsys.readouterr().out
    (tmp_path / "fails.py").write_text("")
    assert run_queue(recipe)
    assert notes(tmp_path) == ["worked", "worked"]
    assert "no such reward model" in (tmp_path / "queue" / "logs" / "second-0.log").read_text()


@pytest.fixture
def after_start(tmp_path, monkeypatch):
    """after_start(seconds): the queue's clock is that much ahead once a command has noted that it has started."""

    def set_clock(seconds: float) -> None:
        now = time.monotonic

        def clock() -> float:
            started = (tmp_path / "notes").exists()
            return now() + (seconds if started else 0)

        monkeypatch.setattr(queues, "time", SimpleNamespace(monotonic=clock, sleep=time.sleep))

    return set_clock


def test_when_the_time_is_up_a_command_is_told_and_goes_on_in_the_next_turn(
    queue, tmp_path, monkeypatch, capsys, after_start
):
    recipe = queue(minutes=5, grace=1000, first=["stops"], second=["works"])
    after_start(301)
    assert not run_queue(recipe)
    assert notes(tmp_path) == ["started", "told"]  # and the second part was not begun
    assert "to be continued" in capsys.readouterr().out
    monkeypatch.undo()
    assert run_queue(recipe)
    assert notes(tmp_path)[2:] == ["went", "on", "worked"]


def test_a_command_that_does_not_stop_is_killed(queue, tmp_path, after_start):
    after_start(301)
    assert not run_queue(queue(minutes=5, grace=1, first=["deaf"]))
    [state] = json.loads((tmp_path / "queue" / "queue.json").read_text()).values()
    assert state["word"] == "to be continued" and notes(tmp_path) == ["started"]


def test_a_command_that_something_else_kills_has_failed(queue, tmp_path):
    assert not run_queue(queue(first=["dies"]))
    [state] = json.loads((tmp_path / "queue" / "queue.json").read_text()).values()
    assert state["word"] == f"failed with status {-signal.SIGKILL}"


def test_told_to_stop_the_queue_stops_its_commands_and_leaves_none_behind(queue, tmp_path):
    """A scheduler's SIGTERM to the queue: each command saves, and the queue returns."""
    before = signal.getsignal(signal.SIGTERM)
    assert not run_queue(queue(first=["kills", "stops"]))
    assert notes(tmp_path) == ["started", "told"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_changed_recipe_is_run_again(queue, tmp_path):
    recipe = queue(first=[f"works {tmp_path}/r.yaml"])
    for text in ("steps: 1", "steps: 1", "steps: 2"):
        (tmp_path / "r.yaml").write_text(text)
        assert run_queue(recipe)
    assert notes(tmp_path) == ["worked", "worked"]


def test_some_parts_alone(queue, tmp_path):
    recipe = queue(first=["fails"], second=["works"])
    assert run_queue(recipe.model_copy(update={"only": ["second"]}))
    assert notes(tmp_path) == ["worked"]


@pytest.mark.parametrize(
    ("changes", "field", "said"),
    [
        ({"only": ["third"]}, "only", "expected some of ['first']"),
        ({"parts": {"first": ["train/wik.py x"]}}, "parts.first", "begin with a script's file"),
        ({"parts": {"first": ["'"]}}, "parts.first", "No closing quotation"),
        ({"parts": {"first": []}}, "parts.first", "at least 1"),
        ({"minutes": 0}, "minutes", "greater than 0"),
    ],
)
def test_a_queue_that_cannot_run_is_refused(tmp_path, changes, field, said):
    path = tmp_path / "queue.yaml"
    settings = {"output": str(tmp_path), "parts": {"first": ["train/wic.py x"]}} | changes
    path.write_text(json.dumps(settings))
    with pytest.raises(ConfigError) as error:
        QueueRecipe.read(path)
    assert error.value.fields == (field,) and said in str(error.value)


# ---------------------------------------------------------------- the project's queue

QUEUE = ROOT / "recipes" / "gpu" / "queue.yaml"
KINDS: dict[str, Any] = {
    "train/morlhf.py": (MorlhfRecipe, train_morlhf),
    "train/wic.py": (WicRecipe, train_wic),
    "train/moslim.py": (MoslimRecipe, train_moslim),
    "train/preference.py": (PreferenceRecipe, train_preference),
    "train/reward_models.py": (PanelRecipe, train_panel),
}


def commands() -> list[list[str]]:
    """The queue's commands as lists of arguments, the script first."""
    queue = QueueRecipe.read(QUEUE)
    return [shlex.split(command) for part in queue.parts.values() for command in part]


def test_every_command_of_the_queue_reads_its_recipe(monkeypatch):
    monkeypatch.chdir(ROOT)
    trained = set()
    for script, *arguments in commands():
        if script.startswith("tests/"):
            continue
        recipe = KINDS[script][0].read(arguments[0], arguments[1:])
        if isinstance(recipe, RecipeOfArms):
            trained |= {(script, name, seed) for name in recipe.methods() for seed in recipe.seeds}
    for script, path in (
        ("train/morlhf.py", "recipes/gpu/morlhf.yaml"),
        ("train/preference.py", "recipes/gpu/table5.yaml"),
    ):
        whole = KINDS[script][0].read(path)
        # No arm is forgotten, under any seed.
        assert trained >= {(script, n, seed) for n in whole.methods() for seed in whole.seeds}


@pytest.fixture(scope="module")
def few_rows(data_dir, tmp_path_factory) -> Path:
    """Every file of preference data, with the first prompts of each split and objective."""
    folder = tmp_path_factory.mktemp("few")
    for path in data_dir.glob("*.jsonl.gz"):
        kept: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        with gzip.open(path, "rt") as file, gzip.open(folder / path.name, "wt") as few:
            for line in file:
                row = json.loads(line)
                rows = kept[row["split"], str(row.get("objective"))]
                prompt = str(row.get("prompt") or line)
                if (prompt in rows or len(rows) < 8) and rows[prompt] < 8:
                    rows[prompt] += 1
                    few.write(line)
    return folder


@pytest.mark.slow
def test_the_whole_queue_at_tiny_size(few_rows, tmp_path, monkeypatch):
    """One command of each recipe, at most two arms: real data, the demo's panel and adapter, random models."""
    monkeypatch.chdir(ROOT)
    out = tmp_path / "outputs"
    write_classifier(out / "small_classifier" / "per_head-seed0")
    judge = RewardPanel([RewardModelSpec("long", function="length")], {})
    judge.fit_stats(["a", "b"], ["no", "it rained"], "two texts")
    judge.save_pretrained(out / "heldout_panel" / "panel")
    small = {
        **{"model": tiny_llama(tmp_path / "llama"), "max_length": 160, "max_new_tokens": 4},
        **{"steps": 4, "checkpoint_every": 2, "keep_every": 2, "prompts_per_step": 2},
        **{"generations": 2, "batch_size": 4, "offline_steps": 1, "online_steps": 1},
        **{"prompts": 4, "samples": 2, "rollout_batch": 8, "quantile": 0.1, "objectives": None},
    }
    encoder = tiny_encoder(tmp_path / "encoder")
    done = set()
    for script, *arguments in commands():
        if script.startswith("tests/") or arguments[0] in done:
            continue
        done.add(arguments[0])
        settings = yaml.safe_load(Path(arguments[0]).read_text().replace("outputs/", f"{out}/"))
        changes = {key: value for key, value in small.items() if key in settings}
        kind, routine = KINDS[script]
        if kind is PanelRecipe:
            of_causal = settings["method"] == "lora"
            changes |= {"model": small["model"] if of_causal else str(encoder)}
            changes |= {"objectives": settings["objectives"]}
            changes |= {"data": [entry | {"max_pairs": 8} for entry in settings["data"]]}
        if kind is PreferenceRecipe:  # one arm, with its three trials
            arguments = [a for a in arguments if not a.startswith("only=")]
            changes |= {"only": ["DPO"], "objectives": settings["objectives"], "steps": 1}
            changes |= {"sft_steps": 1, "validation_prompts": 2}
        elif len(settings.get("arms", ())) > 2 and not any("only=" in a for a in arguments):
            changes["only"] = ["PRO-WIC online, shuffled", "RiC online"]
        path = tmp_path / Path(arguments[0]).name
        path.write_text(yaml.safe_dump(settings | changes | {"data_dir": str(few_rows)}))
        routine(kind.read(path, arguments[1:]))
    made = [str(p.relative_to(out)) for p in out.rglob("manifest.json")]
    for folder in ("gpu/morlhf/morlhf-uniform", "gpu/morlhf/ppo-one-reward", "gpu/moslim/moslim"):
        assert f"{folder}/seed0/manifest.json" in made
    assert "gpu/wic/pro-wic-online-shuffled/seed0/manifest.json" in made
    assert "gpu/table5/dpo/seed0/manifest.json" in made
    kept = out / "gpu" / "morlhf" / "morlhf-uniform" / "seed0" / "steps"
    assert [p.name for p in kept.iterdir()] == ["2"]


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_runs(tmp_path):
    script, policy = str(ROOT / "tests" / "bench_gpu.py"), tiny_llama(tmp_path / "llama")
    call = [sys.executable, script, "--tiny", "--rounds", "1", "--policy", policy]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:-1] for line in done.stdout.split("\n") if line.startswith("| ")]
    assert len(rows) == 7 and all(float(cells[3].replace(",", "")) > 0 for cells in rows[1:])
