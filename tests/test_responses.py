"""The store of responses: written once, torn lines, failures, two processes, and the seeds of batches."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from tiny import Script, in_two_processes

from pro_core.data.schema import to_messages
from pro_core.generation import GenerationSettings, Request, base
from pro_core.generation import responses as store
from pro_core.generation.responses import Response, write_responses
from pro_core.system.storage import append_jsonl

SETTINGS = GenerationSettings(max_new_tokens=6, temperature=0.7)
ASKED = ("one", "two", "three", "four", "five")


def seed_of(attempt: int, batch: int, rows) -> int:
    return 100 * attempt + batch


def written(
    generator, folder: Path, prompts=ASKED, samples: int = 2, **changes
) -> list[list[Response]]:
    settings = {"batch_size": 4, "identity": "own", "settings": SETTINGS, "seed_of": seed_of}
    requests = [Request(to_messages(prompt)) for prompt in prompts]
    return write_responses(
        lambda: generator, requests, samples, folder=folder, **(settings | changes)
    )


def test_responses_are_written_once_in_batches_with_seeds_of_their_own(tmp_path):
    script = Script()
    first = written(script, tmp_path)
    assert script.asked == [["one", "one", "two", "two"], ["three", "three", "four", "four"], ["five"] * 2]  # fmt: skip
    assert script.seeds == [0, 1, 2]
    assert [[r.text for r in mine] for mine in first][4] == ["[five] 2"] * 2
    assert written(script, tmp_path) == first and len(script.asked) == 3
    [file] = tmp_path.iterdir()
    assert len(file.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"identity": "another"},
        {"settings": GenerationSettings(7, 0.7)},
        {"samples": 1},
        {"batch_size": 6},
        {"prompts": ("one", "two", "three", "four", "six")},
        {"seed_of": lambda attempt, batch, rows: 7 + batch},
    ],
    ids=["identity", "settings", "samples", "batch size", "prompts", "seeds"],
)
def test_whatever_decides_a_response_changes_its_file(tmp_path, changes):
    written(Script(), tmp_path)
    script = Script()
    written(script, tmp_path, **changes)
    assert script.asked


def test_weights_that_mix_the_model_tell_responses_apart(tmp_path):
    script = Script()
    for weights in ({"a": 0.5, "b": 0.5}, {"a": 1.0, "b": 0.0}, {"a": 0.5, "b": 0.5}):
        request = Request(to_messages("one"), weights)
        write_responses(lambda: script, [request], 1, SETTINGS, seed_of, tmp_path, 4, "own")
    assert len(script.asked) == 2


@pytest.mark.parametrize("spoil", ["half", "changed", "nothing", "number"])
def test_a_line_that_is_not_whole_is_written_again(tmp_path, spoil):
    script = Script()
    first = written(script, tmp_path)
    [file] = tmp_path.iterdir()
    lines = file.read_text().splitlines(keepends=True)
    torn = {"half": lines[2][:40], "nothing": "", "number": "7\n"}
    torn["changed"] = lines[2].replace("[five]", "[better]")
    file.write_text("".join(lines[:2]) + torn[spoil])
    assert written(script, tmp_path) == first
    assert script.asked[3:] == [["five", "five"]]
    if spoil == "half":
        assert file.read_text() == "".join(lines)  # as a run that nobody killed leaves it


def test_failed_responses_are_tried_again_with_their_own_seed_and_the_rest_stays(tmp_path):
    script = Script({"two": 1, "four": 6})
    found = written(script, tmp_path)
    # One response to `two` fails, and both to `four`, three times.
    assert script.asked[3:] == [["two", "four", "four"], ["four", "four"]]
    assert script.seeds == [0, 1, 2, 100, 200]
    assert [r.text for r in found[1]] == ["[two] 100", "[two] 0"]
    assert [(r.text, r.error) for r in found[3]] == [(None, "four failed")] * 2
    count = len(script.asked)
    assert written(script, tmp_path) == found and len(script.asked) == count
    later = written(script, tmp_path, again=True)  # three tries more, each with seeds of its own
    assert later[3][0].text == "[four] 300" and later[:3] == found[:3]
    assert script.seeds[count:] == [300]
    assert written(script, tmp_path, again=True) == later and len(script.asked) == count + 1


def test_an_empty_answer_is_an_answer(tmp_path):
    script = Script(empty="three")
    found = written(script, tmp_path)
    assert found[2] == [Response("", None, "", "stop")] * 2 and len(script.asked) == 3


def test_files_of_an_older_format_are_left_alone(tmp_path):
    old = {"prompt": 0, "sample": 0, "text": "old", "error": None}
    (tmp_path / "try0-00000.jsonl").write_text(json.dumps(old) + "\n")
    (tmp_path / f"{'0' * 32}.json").write_text(json.dumps({"format": "pro-responses-2"}))
    script = Script()
    written(script, tmp_path)
    assert len(script.asked) == 3 and len(list(tmp_path.iterdir())) == 3


def run_killed(folder: Path, count: int, script=None, settings=None) -> None:
    """In a process of its own: killed in the middle of the ``count``-th line."""
    calls = []

    def killer(path: Path, row) -> None:
        calls.append(row)
        if len(calls) == count:
            with path.open("ab") as file:
                file.write(json.dumps(row).encode()[:50])
            os.kill(os.getpid(), signal.SIGKILL)
        append_jsonl(path, row)

    store.append_jsonl = killer
    written(script or Script(), folder, **(settings or {}))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_killed_in_the_middle_of_a_line_it_goes_on_to_the_same_file(tmp_path, count):
    whole = written(Script(), tmp_path / "whole")
    (tmp_path / "cut").mkdir()
    process = multiprocessing.get_context("fork").Process(
        target=run_killed, args=(tmp_path / "cut", count)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    script = Script()
    assert written(script, tmp_path / "cut") == whole and len(script.asked) == 4 - count
    [one], [two] = ((tmp_path / name).iterdir() for name in ("whole", "cut"))
    assert one.name == two.name and one.read_bytes() == two.read_bytes()


class FailsOnce(Script):
    """Fails for three prompts whatever it is asked first; which, does not depend on what it wrote before."""

    async def stream_batch(self, batch, settings):
        self.fails = dict.fromkeys(("two", "three", "four"), 9) if settings.seed < 100 else {}
        async for piece in super().stream_batch(batch, settings):
            yield piece


@pytest.mark.parametrize("count", [4, 5])
def test_killed_while_it_tries_again_it_goes_on_to_the_same_file(tmp_path, count):
    """The three failed ones are asked again in two batches, the fourth line and the fifth."""
    small = {"samples": 1, "batch_size": 2}
    whole = written(FailsOnce(), tmp_path / "whole", **small)
    (tmp_path / "cut").mkdir()
    process = multiprocessing.get_context("fork").Process(
        target=run_killed, args=(tmp_path / "cut", count, FailsOnce(), small)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    script = FailsOnce()
    assert written(script, tmp_path / "cut", **small) == whole
    assert script.seeds == [100, 101][count - 4 :]
    [one], [two] = ((tmp_path / name).iterdir() for name in ("whole", "cut"))
    assert one.name == two.name and one.read_bytes() == two.read_bytes()


TWO = """
import sys, json
sys.path[:0] = [{tests!r}]
from test_responses import written
from tiny import Script, in_two_processes
from pro_core.system.processes import processes, wait_for_all
script = Script({{"two": 1, "four": 9}})
found = written(script, sys.argv[1], batch_size=2)
rank = processes().process_index
with open(sys.argv[1] + f"/rank{{rank}}", "w") as file:
    json.dump([script.asked, [[[r.text, r.error] for r in mine] for mine in found]], file)
"""


@pytest.mark.slow
def test_processes_share_the_batches_and_read_the_same(tmp_path):
    """Also of those that are tried again."""
    (tmp_path / "two.py").write_text(TWO.format(tests=str(Path(__file__).parent)))
    (tmp_path / "out").mkdir()
    in_two_processes(str(tmp_path / "two.py"), str(tmp_path / "out"))
    (first, found), (second, other) = (
        json.loads((tmp_path / "out" / f"rank{rank}").read_text()) for rank in (0, 1)
    )
    # A batch for each prompt, dealt in turn; then twice the failed ones, of which the first process fails `two` once.
    assert first[:3] == [["one"] * 2, ["three"] * 2, ["five"] * 2]
    assert second[:2] == [["two"] * 2, ["four"] * 2]
    assert first[3:] == [["two", "four"]] * 2 and second[2:] == [["four"]] * 2
    assert found == other and found[1] == [["[two] 200", None], ["[two] 1", None]]
    assert found[3] == [[None, "four failed"]] * 2


def test_lines_of_two_writers_stay_whole(tmp_path):
    """Two commands that ask the same append to one file."""
    context = multiprocessing.get_context("fork")
    row = {"text": "x" * 200_000}

    def write() -> None:
        for _ in range(20):
            append_jsonl(tmp_path / "f.jsonl", row)

    writers = [context.Process(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    lines = (tmp_path / "f.jsonl").read_text().splitlines()
    assert len(lines) == 40 and all(json.loads(line) == row for line in lines)


def test_a_torn_line_longer_than_one_read_is_removed(tmp_path):
    file = tmp_path / "f.jsonl"
    append_jsonl(file, {"n": 1})
    with file.open("ab") as torn:
        torn.write(b'{"text": "' + b"x" * 300_000)
    append_jsonl(file, {"n": 2})
    assert file.read_text() == '{"n": 1}\n{"n": 2}\n'
    file.write_bytes(b"no line at all")
    append_jsonl(file, {"n": 3})
    assert file.read_text() == '{"n": 3}\n'


def test_a_generator_is_loaded_only_where_something_must_be_written(tmp_path):
    written(Script(), tmp_path)

    def refused():
        raise base.GenerationError("not asked for")

    requests = [Request(to_messages(prompt)) for prompt in ASKED]
    found = write_responses(refused, requests, 2, SETTINGS, seed_of, tmp_path, 4, "own")
    assert len(found) == 5
