"""Work in turns: commands that stop when the time is up, and a queue that goes on with what is not finished."""

from __future__ import annotations

import json
import signal
import time
from types import SimpleNamespace

import pytest

from pro_core.runs import queue as queues
from pro_core.runs.queue import QueueRecipe, run_queue
from pro_core.runs.recipes import ConfigError

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
    assert state["status"] == -signal.SIGKILL and not state["finished"]


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
