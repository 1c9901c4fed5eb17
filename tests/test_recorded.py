"""The runs that the page shows without a model: how they are made, kept, scored again and refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pro_core import RewardPanel
from pro_core.generation.base import run_sync
from tests.servers.scripted import says, scripted
from ui.models import Models
from ui.recorded import ANSWERS, EXAMPLES, RECORDED, load_recorded, record


@pytest.fixture(scope="module")
def panel(tmp_path_factory) -> str:
    from tiny import panel_of_members

    return panel_of_members(tmp_path_factory.mktemp("panel"))


@pytest.fixture
def writer(panel) -> Iterator[Callable]:
    """writer(path, seed) records by a server whose answers are numbered; returns how many it was asked for."""
    asked: list[dict] = []

    def reply(body: dict) -> tuple[int, list]:
        asked.append(body)
        return 200, [says(f"Answer {len(asked)} <b>"), says("", "stop")]

    with scripted(reply) as (url, _):

        def run(path: Path, seed: int = 1, model: str = "m") -> int:
            before = len(asked)
            settings = {"PRO_ENDPOINT_URL": url, "PRO_ENDPOINT_MODEL": model, "PRO_PANEL": panel}
            run_sync(record(Models(settings), seed, path))
            return len(asked) - before

        yield run


def texts(path: Path) -> list[str]:
    return [one["text"] for run in load_recorded(path=path) for one in run["candidates"]]


@pytest.mark.slow
def test_answers_are_written_once_and_only_scored_again(writer, tmp_path) -> None:
    path = tmp_path / "recorded.json"
    assert writer(path) == ANSWERS * len(EXAMPLES)
    first, before = texts(path), path.read_text("utf-8")
    assert len({*first}) == len(first)
    assert writer(path) == 0
    assert path.read_text("utf-8") == before
    runs = json.loads(before)
    runs[2]["candidates"][0]["z"][0] += 1  # as if another panel had scored it
    path.write_text(json.dumps(runs), "utf-8")
    assert writer(path) == 0
    assert path.read_text("utf-8") == before
    # Another seed, another model, and a prompt that was not recorded yet.
    assert writer(path, seed=2) == ANSWERS * len(EXAMPLES)
    assert not {*texts(path)} & {*first}
    assert writer(path, seed=2, model="another") == ANSWERS * len(EXAMPLES)


@pytest.mark.slow
def test_a_recording_that_was_stopped_goes_on(writer, tmp_path) -> None:
    path = tmp_path / "recorded.json"
    writer(path)
    first, runs = texts(path), json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(runs[:4]), "utf-8")
    assert texts(path) == first[: 4 * ANSWERS]  # what there is can be shown
    assert writer(path) == ANSWERS * 2
    assert texts(path)[: 4 * ANSWERS] == first[: 4 * ANSWERS]


def test_each_run_names_who_wrote_it_when_and_who_scored_it() -> None:
    runs = load_recorded()
    assert [run["messages"][-1]["content"] for run in runs] == [prompt for _, prompt in EXAMPLES]
    assert len({run["id"] for run in runs}) == len(runs)
    for run in runs:
        assert run["model"] in run["note"] and run["panel"] in run["note"]
        assert run["date"][:4] in run["note"]
        assert len(run["candidates"]) == ANSWERS and all(one["z"] for one in run["candidates"])
        assert len(run["words"]) > 3
    assert len(RECORDED.read_bytes()) < 100_000  # every page holds all of them


@pytest.mark.slow
def test_the_recorded_scores_and_accuracies_are_the_shipped_panels() -> None:
    shipped = RewardPanel.from_pretrained(RECORDED.parent.parent / "checkpoints/demo/panel")
    runs = load_recorded()
    cards = [(run["messages"], one) for run in runs for one in run["candidates"]]
    z = shipped.standardized([m for m, _ in cards], [one["text"] for _, one in cards])
    again = "make them again: python app.py --record"
    np.testing.assert_allclose([one["z"] for _, one in cards], z, atol=0.02, err_msg=again)
    for run in runs:
        for name, tested in shipped.accuracy.items():
            accuracy = run["accuracy"][name]["accuracy"]
            assert accuracy == pytest.approx(tested["accuracy"], abs=1e-4), again


@pytest.mark.parametrize(
    "damage",
    [
        None,
        "",
        "{",
        "[]",
        "{}",
        "[{}, {}, {}, {}, {}, {}]",
        lambda runs: runs[::-1],
        lambda runs: runs[0],
        lambda runs: [*runs, runs[0]],
        lambda runs: [{**runs[0], "messages": [{"role": "user", "content": "Why?"}]}],
        lambda runs: [{**runs[0], "candidates": [{"text": 5}]}, *runs[1:]],
        lambda runs: [{**runs[0], "phase": "done"}, *runs[1:]],
        lambda runs: [{**runs[0], "objectives": ["x"]}, *runs[1:]],
    ],
)
def test_a_file_that_the_page_cannot_show_is_refused_with_the_command(damage, tmp_path) -> None:
    path = tmp_path / "recorded.json"
    runs = json.loads(RECORDED.read_text("utf-8"))
    if damage is not None:
        path.write_text(damage if isinstance(damage, str) else json.dumps(damage(runs)), "utf-8")
    with pytest.raises(ValueError, match="--record"):
        load_recorded(path=path)


def test_a_mistyped_preset_leaves_the_recorded_runs_their_floors() -> None:
    names = load_recorded()[0]["objectives"]
    for run in load_recorded(f"{names[0]}=0.35", f"X: {names[0]}=much"):
        assert run["floors"] == pytest.approx([0.35] + [0] * (len(names) - 1))
        assert run["presets"] == load_recorded()[0]["presets"] != {}
    assert load_recorded("x=1", f"Mine: {names[0]}=1")[5]["presets"].keys() >= {"Mine"}
