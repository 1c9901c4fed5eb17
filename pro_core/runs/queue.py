"""Long work in short turns: commands that run until the time is up, and go on when there is time again.

A GPU is often lent for minutes: a free notebook, the gaps of a cluster. The work is a list of parts; the commands of a
part run side by side, since a small model does not fill a GPU. When the time is up, or the queue itself is told to
stop, all are told to stop (:class:`pro_core.runs.training.StopSignal`); the same call goes on with what is not
finished. What is finished is run again if a file that its command names has changed.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any

from pro_core.runs.recipes import ConfigError, Recipe
from pro_core.system.extras import needs
from pro_core.system.settings import Names, Positive
from pro_core.system.storage import content_hash, file_hash, write_config

with needs("train"):
    from pydantic import Field, model_validator

STATE = "queue.json"
"""What is finished, in the queue's folder."""
LOOK = 0.2
"""Seconds between two looks at the running commands."""
SAY = 20.0
"""Seconds between two reports on them."""


class QueueRecipe(Recipe):
    """A queue of commands."""

    output: str
    """the folder of the queue's state and of the commands' logs"""
    parts: Annotated[dict[str, Names], Field(min_length=1)]
    """{part: its commands}, in order; a command is a script with its arguments, such as `train/wic.py RECIPE`. Those of
    a part run at the same time"""
    minutes: Positive = 8.0
    """the time of one turn, from its start to the signal that it is over"""
    grace: Positive = 30.0
    """seconds from that signal to the kill"""
    only: Names | None = None
    """some of the parts"""

    @model_validator(mode="after")
    def _known(self) -> QueueRecipe:
        if unknown := [name for name in self.only or () if name not in self.parts]:
            raise ConfigError(
                f"got the part {unknown[0]!r}, expected some of {list(self.parts)}", ["only"]
            )
        for part, commands in self.parts.items():
            for command in commands:
                try:
                    script = shlex.split(command)[0]
                except ValueError as error:
                    raise ConfigError(f"{command!r}: {error}", [f"parts.{part}"]) from None
                if not Path(script).is_file():
                    raise ConfigError(
                        f"got the command {command!r}, expected it to begin with a script's file",
                        [f"parts.{part}"],
                    )
        return self


class _Time:
    """The end of a turn: after some minutes, or when the queue is told to stop."""

    def __init__(self, minutes: float):
        self.end = time.monotonic() + 60 * minutes
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _Time:
        with suppress(ValueError):  # only the main thread may handle signals
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, *_: object) -> None:
        self.end = min(self.end, time.monotonic())

    def over(self) -> bool:
        return time.monotonic() >= self.end


@dataclass
class _Ended:
    """A command that ended: its exit status, its seconds, and whether it had been told to stop."""

    command: str
    status: int
    seconds: float
    told: bool

    @property
    def word(self) -> str:
        if self.status == 0:
            return "finished"
        return "to be continued" if self.told else f"failed with status {self.status}"


@dataclass
class _Running:
    """A command that runs, and the file that it writes its lines to."""

    command: str
    process: subprocess.Popen[bytes]
    log: Path
    started: float

    def last_line(self) -> str:
        """The last line of the log that says something; empty if there is none."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 2000))
            lines = file.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def run_queue(recipe: QueueRecipe) -> bool:
    """Run the commands that are not finished, part by part, until the time is up; returns whether all are finished.

    A command that fails keeps none of the others from running; it is started again by the next call.
    """
    folder = Path(recipe.output)
    folder.mkdir(parents=True, exist_ok=True)
    state = _read(folder)

    def is_finished(command: str) -> bool:
        kept = state.get(command, {})
        return kept.get("word") == "finished" and kept["files"] == _files(command)

    parts = {p: c for p, c in recipe.parts.items() if recipe.only is None or p in recipe.only}
    with _Time(recipe.minutes) as turn:
        for part, commands in parts.items():
            todo = {i: c for i, c in enumerate(commands) if not is_finished(c)}
            if not todo or turn.over():
                continue
            print(f"{part}: {len(todo)} of {len(commands)} commands are not finished", flush=True)
            files = {command: _files(command) for command in commands}
            for ended in _run_part(folder, part, todo, turn, recipe.grace):
                spent = state.get(ended.command, {}).get("seconds", 0.0) + ended.seconds
                state[ended.command] = {
                    "part": part,
                    "word": ended.word,
                    "seconds": round(spent, 1),
                    "files": files[ended.command],
                }
                write_config(folder, STATE, state)
    print("\n".join(_table(recipe, state)), flush=True)
    return all(is_finished(command) for commands in parts.values() for command in commands)


def _files(command: str) -> str:
    """A hash of the files that a command names: its script and its recipe."""
    named = [Path(word) for word in shlex.split(command)]
    return content_hash([file_hash(path) for path in named if path.is_file()])[:16]


def _run_part(
    folder: Path, part: str, commands: Mapping[int, str], turn: _Time, grace: float
) -> Iterator[_Ended]:
    """Run commands side by side, by their number in the part, and give each as it ends."""
    with ExitStack() as stack:
        running = [_start(folder, part, i, c, stack) for i, c in commands.items()]
        try:
            told, said = False, time.monotonic()
            while running:
                now = time.monotonic()
                for one in list(running):
                    status = one.process.poll()
                    if status is not None:
                        running.remove(one)
                        ended = _Ended(one.command, status, now - one.started, told)
                        reason = "" if told or not status else f": {one.last_line()}"
                        print(f"{part}: {ended.word} ({one.log.name}){reason}", flush=True)
                        yield ended
                if turn.over() and not told:
                    print(f"{part}: the time is up, {len(running)} commands stop", flush=True)
                    told = True
                    _signal(running, signal.SIGTERM)
                if now >= turn.end + grace:
                    _signal(running, signal.SIGKILL)
                if now - said >= SAY:
                    said = now
                    lines = [f"  {one.log.stem}: {one.last_line()}" for one in running]
                    left = f"{part}: {max(0.0, turn.end - now):.0f} s are left"
                    print("\n".join([left, *lines]), flush=True)
                time.sleep(LOOK)
        finally:  # an error here: nothing runs on by itself
            _signal(running, signal.SIGKILL)


def _start(folder: Path, part: str, number: int, command: str, stack: ExitStack) -> _Running:
    logs = folder / "logs"
    logs.mkdir(exist_ok=True)
    log = logs / f"{part}-{number}.log"
    file: IO[bytes] = stack.enter_context(log.open("ab"))
    file.write(f"\n$ python {command}\n".encode())
    file.flush()
    process = subprocess.Popen(
        [sys.executable, *shlex.split(command)],
        stdout=file,
        stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        start_new_session=True,  # the signal is for all the processes that it starts
    )
    return _Running(command, process, log, time.monotonic())


def _signal(running: list[_Running], number: signal.Signals) -> None:
    for one in running:
        try:
            os.killpg(one.process.pid, number)
        except ProcessLookupError:  # it has ended by itself
            continue


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    try:
        return dict(json.loads((folder / STATE).read_text()))
    except FileNotFoundError:
        return {}


def _table(recipe: QueueRecipe, state: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield "\n| part | command | state | minutes |\n|---|---|---|---|"
    for part, commands in recipe.parts.items():
        for command in commands:
            one = state.get(command, {"word": "not started", "seconds": 0})
            yield f"| {part} | {command} | {one['word']} | {one['seconds'] / 60:.1f} |"
