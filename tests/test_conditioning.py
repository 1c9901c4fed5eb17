"""Prompt templates: exact strings, and nothing that a user types reads as a tag."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_llama

from pro_core.data.schema import to_messages
from pro_core.generation import (
    GenerationError,
    GenerationSettings,
    LocalGenerator,
    Request,
    RequestError,
    collect,
)
from pro_core.generation.chat import PromptTooLong, fit
from pro_core.prompting.policy_config import PolicyConfig, load_tokenizer
from pro_core.prompting.templates import (
    Condition,
    add_condition,
    format_levels,
    format_scores,
    format_weights,
    format_weights_and_level,
    neutralize,
    scores_for_weights,
    weights_for_scores,
)

NAMES = ("helpful", "harmless", "humor")


def test_weights_are_written_as_in_pro():
    assert format_weights([0.62, 0.38, 0], NAMES) == "<helpful> 0.62 <harmless> 0.38 <humor> 0.00"
    thirds = format_weights([1 / 3] * 3, NAMES)
    assert thirds == "<helpful> 0.34 <harmless> 0.33 <humor> 0.33"


@given(st.lists(st.floats(0.001, 1), min_size=3, max_size=3))
def test_written_weights_sum_to_one_and_stay_close(values):
    weights = [v / sum(values) for v in values]
    written = [float(part) for part in format_weights(weights, NAMES).split()[1::2]]
    assert sum(written) == pytest.approx(1, abs=1e-9)
    assert max(abs(a - b) for a, b in zip(written, weights, strict=True)) < 0.01


def test_scores_are_written_as_in_ric():
    text = format_scores([0.31, -1.24, -0.01], NAMES)
    assert text == "<helpful_score> 0.3 <harmless_score> -1.2 <humor_score> 0.0"
    with pytest.raises(ValueError, match="finite"):
        format_scores([float("nan"), 0, 0], NAMES)


def test_levels_are_written_as_in_moslim():
    assert format_levels({"humor": 2, "helpful": 4}, NAMES) == "<helpful 4> <humor 2>"
    with pytest.raises(ValueError, match="kind"):
        format_levels({"kind": 1}, NAMES)
    with pytest.raises(ValueError, match="from 1"):
        format_levels({"humor": 0}, NAMES)


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("<humor> 1.00 now", "(humor) 1.00 now"),
        ("< HUMOR >", "(HUMOR)"),
        ("<harmless_score> -3.0", "(harmless_score) -3.0"),
        ("<helpful 5>", "(helpful 5)"),
        ("＜humor＞ 1", "(humor) 1"),
        ("<<humor>>", "<(humor)>"),
        ("<b>bold</b> 3 < 4 humor > x", "<b>bold</b> 3 < 4 humor > x"),
    ],
)
def test_a_user_cannot_type_a_tag(typed, read):
    assert neutralize(typed, NAMES) == read


def test_the_condition_is_the_only_tag_in_the_prompt():
    prompt = "Human: <humor> 1.00\n\nAssistant: ok\n\nHuman: go <harmless> 0.0"
    messages = add_condition(prompt, format_weights([1, 0, 0], NAMES), NAMES)
    assert [m["content"] for m in messages] == [
        "(humor) 1.00",
        "ok",
        "go (harmless) 0.0 <helpful> 1.00 <harmless> 0.00 <humor> 0.00",
    ]
    [first] = add_condition("Hi", "<helpful 4>", NAMES, prefix=True)
    assert first["content"] == "<helpful 4> Hi"


# ---------------------------------------------------------------- what a policy was trained to read

Z = [[1.0, -1.0, 0.0], [2.0, 2.0, 2.0]]


def test_a_level_tells_good_at_everything_from_bad_at_everything():
    text = format_weights_and_level([0.5, 0.5, 0], 0.94, NAMES)
    assert text == "<helpful> 0.50 <harmless> 0.50 <humor> 0.00 <level> 0.9"
    with pytest.raises(ValueError, match="objective is called 'level'"):
        format_weights_and_level([1.0], 0, ("level",))
    with pytest.raises(ValueError, match="finite"):
        format_weights_and_level([1, 0, 0], float("inf"), NAMES)
    assert neutralize("<level> 3.0 <LEVEL>", NAMES) == "(level) 3.0 (LEVEL)"


@pytest.mark.parametrize(
    ("kind", "obtained", "asked"),
    [
        # Eq 7 at tau 1: e / (e + 1/e + 1) = 0.665, (1/e) / ... = 0.090, 1 / ... = 0.245
        ("weights", "<helpful> 0.67 <harmless> 0.09 <humor> 0.24", "<helpful> 1.00 <harmless> 0.00 <humor> 0.00"),
        (
            "weights+level",
            "<helpful> 0.67 <harmless> 0.09 <humor> 0.24 <level> 0.0",
            "<helpful> 1.00 <harmless> 0.00 <humor> 0.00 <level> 1.8",  # 0.9 quantile of the mean scores 0 and 2
        ),
        (
            "scores",
            "<helpful_score> 1.0 <harmless_score> -1.0 <humor_score> 0.0",
            "<helpful_score> 2.0 <harmless_score> -1.0 <humor_score> 0.0",  # its top, and the others' lowest
        ),
        ("none", "", ""),
    ],
)  # fmt: skip
def test_a_condition_states_what_a_response_obtained_and_what_weights_ask_for(
    kind, obtained, asked
):
    condition = Condition.fit(kind, NAMES, Z, 1.0)
    assert condition.obtained(Z)[0] == obtained
    assert condition.text([1, 0, 0]) == asked
    [message] = condition.messages("Hi <humor> 1.00", [1, 0, 0])
    typed = "Hi (humor) 1.00" if condition else "Hi <humor> 1.00"
    assert message["content"] == f"{typed} {asked}".strip()
    assert bool(condition) == (kind != "none")
    assert Condition.from_dict(json.loads(json.dumps(condition.to_dict()))) == condition


def test_a_condition_takes_its_own_objectives_among_others():
    condition = Condition.fit("weights", ("humor", "helpful"), [[0, 0], [1, 1]], 1.0)
    [message] = condition.messages("Hi", [0.3, 0.4, 0.1], ("helpful", "harmless", "humor"))
    assert message["content"] == "Hi <humor> 0.25 <helpful> 0.75"
    with pytest.raises(ValueError, match="no weights for .'humor'."):
        condition.messages("Hi", [1.0], ("helpful",))
    reads_nothing = Condition("none", ("humor", "helpful"))
    assert reads_nothing.messages("Hi", [1.0], ("other",)) == to_messages("Hi")


@given(st.lists(st.floats(0.01, 1), min_size=3, max_size=3))
def test_rics_targets_stay_in_the_range_and_point_where_the_weights_do(values):
    low, high = [-2.0, -1.0, 0.0], [2.0, 3.0, 0.5]
    weights = [v / sum(values) for v in values]
    scores = scores_for_weights(weights, low, high)
    assert all(a - 1e-5 <= s <= b + 1e-5 for a, s, b in zip(low, scores, high, strict=True))
    assert weights_for_scores(scores, low, high) == pytest.approx(weights, abs=1e-4)


def test_rics_targets_match_those_by_hand():
    # w / norm_2(w) = (0.6, 0.8): 0.6 * 4 - 2 and 0.8 * 4 - 1
    assert scores_for_weights([3 / 7, 4 / 7], [-2, -1], [2, 3]) == pytest.approx([0.4, 2.2])
    assert weights_for_scores([-2, -1], [-2, -1], [2, 3]) == pytest.approx([0.5, 0.5])  # nothing


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "mood"}, "condition 'mood'"),
        ({"kind": "scores"}, "score_range"),
        ({"kind": "scores", "score_range": ((1, 0),) * 3}, "score_range"),
        ({"kind": "weights+level"}, "needs a level"),
        ({"kind": "weights", "temperature": 0}, "temperature"),
    ],
)
def test_a_condition_that_makes_no_sense_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        Condition(**({"objective_names": NAMES} | settings))


# ---------------------------------------------------------------- what a policy reads of a request

HI = to_messages("Hi <humor> 1.00")
WEIGHTS = {
    "humor": 0.3,
    "helpful": 0.1,
    "kind": 0.6,
}  # of more objectives than the policy's, in another order
OWN = ("helpful", "humor")
MOSLIM = Condition("levels", OWN, level_counts=(5, 3))


@pytest.mark.parametrize(
    ("condition", "asked", "read"),
    [
        (Condition("weights", OWN), {"weights": WEIGHTS}, "Hi (humor) 1.00 <helpful> 0.25 <humor> 0.75"),
        (
            Condition("weights+level", OWN, level=1.25),
            {"weights": WEIGHTS},
            "Hi (humor) 1.00 <helpful> 0.25 <humor> 0.75 <level> 1.2",
        ),
        (
            Condition("scores", OWN, score_range=((0, 10), (0, 1))),  # (0.316, 0.949) of the ranges
            {"weights": WEIGHTS},
            "Hi (humor) 1.00 <helpful_score> 3.2 <humor_score> 0.9",
        ),
        (MOSLIM, {"weights": WEIGHTS}, "<helpful 2> <humor 3> Hi (humor) 1.00"),
        (MOSLIM, {"levels": {"helpful": 5}}, "<helpful 5> Hi (humor) 1.00"),
        (MOSLIM, {"levels": {"humor": 1, "helpful": 4}}, "<helpful 4> <humor 1> Hi (humor) 1.00"),
        (Condition("none", OWN), {"weights": WEIGHTS}, "Hi <humor> 1.00"),
        (Condition("none", OWN), {"levels": {"kind": 2}}, "Hi <humor> 1.00"),
    ],
)  # fmt: skip
def test_a_policy_reads_weights_and_levels_in_its_prompt(condition, asked, read):
    policy = PolicyConfig(condition)
    found = Request(HI, **asked).read_by(policy)
    assert found == Request([{"role": "user", "content": read}])
    assert found.read_by(policy) == found  # as in training, where prompts hold their condition
    assert Request(HI).read_by(policy) == Request(HI)


def test_a_policy_in_this_process_is_told_what_it_reads(tmp_path):
    folder = tiny_llama(tmp_path)
    PolicyConfig(Condition("weights", OWN)).save(folder)
    prompt, _ = fit(load_tokenizer(folder), HI, 1000)
    generator = LocalGenerator(folder, device="cpu", max_context=len(prompt) + 4)
    asked, settings = Request(HI, WEIGHTS), GenerationSettings(4, seed=0)
    with_weights, without = collect(generator, [asked, Request(HI)], settings)
    assert without.text and not without.error
    with pytest.raises(PromptTooLong) as said:  # with its weights there is no room for it
        fit(load_tokenizer(folder), asked.read_by(generator.policy).messages, len(prompt))
    assert with_weights.error == said.value.message


@pytest.mark.parametrize(
    "form", [{"ranks": {"helpful": 4, "humor": 4}}, {"mixtures": {"a": [1.0, 0.0]}}]
)
def test_a_soup_reads_weights_beside_its_prompt(form):
    policy = PolicyConfig(Condition("none", OWN), **form)
    found = Request(HI, WEIGHTS).read_by(policy)
    assert found == Request(HI, {"helpful": 0.25, "humor": 0.75})
    assert found.read_by(policy) == found
    for without in (Request(HI), Request(HI, levels={"helpful": 1})):
        with pytest.raises(RequestError):
            without.read_by(policy)


def test_a_stock_model_reads_the_messages_alone():
    for asked in (Request(HI, WEIGHTS), Request(HI, levels={"helpful": 1}), Request(HI)):
        assert asked.read_by(None) == Request(HI)


@pytest.mark.parametrize(
    ("condition", "asked"),
    [
        (Condition("weights", OWN), {"weights": {"helpful": 1.0}}),  # none for humor
        (Condition("weights", OWN), {"levels": {"helpful": 1}}),
        (MOSLIM, {"levels": {"helpful": 6}}),
        (MOSLIM, {"levels": {"kind": 1}}),
        (MOSLIM, {"levels": {}}),
    ],
)
def test_a_request_that_a_policy_cannot_read_is_refused(condition, asked):
    with pytest.raises(RequestError) as said:
        Request(HI, **asked).read_by(PolicyConfig(condition))
    assert isinstance(said.value, GenerationError) and isinstance(said.value, ValueError)


@pytest.mark.parametrize(
    "wrong",
    [
        {"weights": WEIGHTS, "levels": {}},
        {"weights": {"a": -0.1}},
        {"weights": {"a": float("nan")}},
    ],
)
def test_a_request_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError):
        Request(HI, **wrong)
