"""Checks of what visitors send: strict types, and the run that a browser sends back."""

from __future__ import annotations

import json
import math
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ui.board import Answer, Run
from ui.recorded import RECORDED
from ui.values import (
    LONGEST,
    MAX_ANSWERS,
    STALE,
    conversation,
    flag,
    previous_run,
    text,
    weights_or_none,
    whole,
)

OF_JSON: list[Any] = [None, True, 3, 2.5, math.nan, 10**400, "x", ["a"], {"a": 1}]
RECORDING = json.loads(RECORDED.read_text(encoding="utf-8"))[0]


def run_of(**changes: Any) -> dict[str, Any]:
    """A finished run as a page of this server sends it, with changes."""
    return deepcopy(RECORDING) | {"id": "1", "phase": "done"} | changes


def refused(value: Any, objectives: Any = None) -> None:
    with pytest.raises(ValueError) as caught:
        previous_run(value, objectives)
    assert str(caught.value) == STALE


# ---------------------------------------------------------------- single values


@pytest.mark.parametrize("value", [v for v in OF_JSON if not isinstance(v, str)])
def test_only_a_text_is_a_text(value: Any) -> None:
    with pytest.raises(ValueError, match="as answer, expected a text"):
        text(value, "answer")
    assert text("a\ud800b\0", "answer") == "a�b"


@pytest.mark.parametrize("value", [*OF_JSON[:2], 0, 9, 2.5, math.nan, math.inf, *OF_JSON[5:]])
def test_only_a_whole_number_in_range_is_one(value: Any) -> None:
    with pytest.raises(ValueError, match="expected a whole number from 1 to 8"):
        whole(value, 1, 8, "answers")
    assert whole(4.0, 1, 8, "answers") == whole(4, 1, 8, "answers") == 4


@pytest.mark.parametrize("value", [None, 0, 1, "true", [], {}])
def test_only_true_and_false_are_flags(value: Any) -> None:
    with pytest.raises(ValueError, match="expected true or false"):
        flag(value, "different styles")
    assert flag(True, "x") is True and flag(False, "x") is False


@pytest.mark.parametrize("value", [None, True, 3, {"role": "user", "content": "x"}, [3], [], ""])
def test_a_prompt_is_a_text_or_messages(value: Any) -> None:
    with pytest.raises(ValueError):
        conversation(value)
    assert conversation("hi") == conversation([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize(
    "value",
    [True, "0.5", {}, {"a": 0.5, "b": 0.5}, [], [1.0], [0.5, "0.5"], [0.5, True], [[0.5], [0.5]],
     [math.nan, 0.5], [-0.5, 1.5], [0.5, 0.6], [10**400, 0]],
)  # fmt: skip
def test_weights_of_sliders_are_numbers_that_sum_to_one(value: Any) -> None:
    with pytest.raises(ValueError, match="weights"):
        weights_or_none(value, ["a", "b"])


def test_weights_of_sliders_pass_as_they_are() -> None:
    assert weights_or_none([0.333, 0.667], ["a", "b"]) == [0.333, 0.667]
    assert weights_or_none(None, ["a", "b"]) is None


# ---------------------------------------------------------------- the run


def test_the_run_that_the_page_opens_on_passes_unchanged_under_any_panel() -> None:
    for objectives in (None, RECORDING["objectives"], ["other", "panel"]):
        run = previous_run(RECORDING, objectives)
        assert run.pop("candidates") == [
            {"reasoning": "", "finish": None, "members": None, **c} for c in RECORDING["candidates"]
        ]
        assert run == {k: v for k, v in RECORDING.items() if k != "candidates"}


def test_a_run_of_this_panel_passes_and_of_another_does_not() -> None:
    run = run_of()
    assert previous_run(run, run["objectives"])["id"] == "1"
    refused(run, ["helpful", "harmless"])
    refused(run, run["objectives"][::-1])


def test_a_page_without_a_run_gives_an_empty_run() -> None:
    assert previous_run(None) == previous_run({}, ["a"]) == {}


def test_every_key_that_a_run_has_is_checked_and_others_are_dropped() -> None:
    junk = object()
    run = previous_run(run_of(hacked="yes"))
    assert "hacked" not in run
    for key in Run.__annotations__:
        refused(run_of(**{key: junk}))
    for key in Answer.__annotations__:
        card = RECORDING["candidates"][0] | {key: junk}
        refused(run_of(candidates=[card]))


@pytest.mark.parametrize(
    "changes",
    [
        {"candidates": RECORDING["candidates"] * 3},
        {"candidates": [RECORDING["candidates"][0] | {"text": "x" * (LONGEST + 1)}]},
        {"candidates": [RECORDING["candidates"][0] | {"z": [1.0]}]},
        {"candidates": [RECORDING["candidates"][0] | {"z": [math.nan] * 5}]},
        {"candidates": [RECORDING["candidates"][0] | {"members": [[1.0, 2.0]] * 4}]},
        {"candidates": [RECORDING["candidates"][0] | {"members": [[1.0, math.nan]] * 5}]},
        {"candidates": [RECORDING["candidates"][0] | {"members": [[1.0] * 33] * 5}]},
        {"candidates": [RECORDING["candidates"][0] | {"style": "rude"}]},
        {"candidates": {"0": RECORDING["candidates"][0]}},
        {"messages": []},
        {"messages": [{"role": "assistant", "content": "hi"}]},
        {"messages": [{"role": "user", "content": "x" * (LONGEST + 1)}]},
        {"messages": [{"role": "root", "content": "x"}]},
        {"messages": "hello"},
        {"objectives": []},
        {"objectives": ["<script>"] * 5},
        {"objectives": ["helpful"] * 5},
        {"phase": "hacked"},
        {"busy": "yes"},
        {"id": "x" * 2000},
        {"note": ["x"]},
        {"floors": [10**400] * 5},
        {"words": [{"turn": 7, "start": 0, "end": 1, "effects": [0.0] * 5}]},
        {"words": [{"turn": 0, "start": 5, "end": 1, "effects": [0.0] * 5}]},
        {"accuracy": {"helpful": {"n": [[[[[1]]]]]}}},
    ],
    ids=lambda changes: str(changes)[:60],
)  # fmt: skip
def test_a_forged_run_is_refused(changes: dict[str, Any]) -> None:
    refused(run_of(**changes))


def test_scores_of_members_pass_as_they_are() -> None:
    members = [[1.0, 2.0, 3.0], [0.5], [1.0, -1.0], [0.0], []]  # the last score is missing
    card = RECORDING["candidates"][0] | {"members": members}
    assert previous_run(run_of(candidates=[card]))["candidates"][0]["members"] == members


def test_a_value_that_is_not_a_run_is_refused() -> None:
    for value in [*OF_JSON[1:], {"phase": "done"}, [RECORDING]]:
        refused(value)


def test_half_a_surrogate_pair_in_a_run_is_replaced() -> None:
    card = RECORDING["candidates"][0] | {"text": "a\ud83d"}
    assert previous_run(run_of(candidates=[card], note="\udc00"))["candidates"][0]["text"] == "a�"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(key=st.sampled_from(sorted(Run.__annotations__)), value=json_values)
def test_any_json_anywhere_gives_a_run_or_the_one_sentence(key: str, value: Any) -> None:
    try:
        run = previous_run(run_of(**{key: value}))
    except ValueError as error:
        assert str(error) == STALE
    else:
        json.dumps(run, allow_nan=False, ensure_ascii=False).encode()
        assert len(run["candidates"]) <= MAX_ANSWERS
