"""Weights: the simplex, floors, and every source of weights."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pro_core.weights import (
    AddedWeights,
    BlendWeights,
    DirichletWeights,
    FixedWeights,
    FlooredWeights,
    MixedWeights,
    ShuffledWeights,
    UserWeights,
    apply_floors,
    as_weights,
    entropy,
    implicit_weights,
    parse_floors,
    weighted_sum,
)

NAMES = ("helpful", "harmless", "humor")
simplex = arrays(np.float64, 3, elements=st.floats(0.001, 1)).map(lambda a: a / a.sum())
floors = arrays(np.float64, 3, elements=st.floats(0, 0.33))


class OneEach:
    """A source whose weights tell prompts apart: prompt "2" puts everything on objective 2."""

    objective_names = NAMES

    def __call__(self, prompts):
        return np.eye(3, dtype=np.float32)[[int(p) for p in prompts]]


def test_weights_come_back_in_the_objectives_order():
    given_weights = {"humor": 0.5, "helpful": 0.2, "harmless": 0.3}
    np.testing.assert_allclose(as_weights(given_weights, NAMES), [0.2, 0.3, 0.5], rtol=1e-6)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"helpful": 1.0}, "missing"),
        ({"helpful": 0.5, "harmless": 0.3, "humour": 0.2}, "unknown"),
        ([0.5, 0.5], "expected 3 numbers"),
        ([0.5, float("nan"), 0.5], "finite"),
        ([0.5, float("inf"), 0.5], "finite"),
        ([1.2, -0.1, -0.1], "none below 0"),
        ([0.5, 0.3, 0.1], "sum of 1"),
        (["a", "b", "c"], "expected 3 numbers"),
        ([0.0, 0.0, 0.0], "sum of 1"),
    ],
)
def test_wrong_weights_say_what_is_wrong(weights, said):
    with pytest.raises(ValueError, match=said):
        as_weights(weights, NAMES)


@given(simplex, floors)
def test_floors_hold_and_the_sum_stays_one(weights, floors):
    floored = apply_floors(weights, floors)
    assert (floored >= floors - 1e-6).all()
    assert abs(floored.sum() - 1) < 1e-5


@given(simplex, floors)
def test_weights_above_their_floors_keep_their_proportions(weights, floors):
    floored = apply_floors(weights, floors)
    free = floored > floors + 1e-5
    if free.sum() > 1:
        ratio = floored[free] / weights[free]
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)


def test_floors_by_hand():
    # harmless is raised to 0.4; the other two share 0.6 in proportion 3 : 1.
    np.testing.assert_allclose(apply_floors([0.6, 0.2, 0.2], [0, 0.4, 0]), [0.45, 0.4, 0.15])
    # Scaling pushes humor (0.1 -> 0.078) below its own floor of 0.09, so it is raised too.
    result = apply_floors([0.8, 0.1, 0.1], [0, 0.3, 0.09])
    np.testing.assert_allclose(result, [0.61, 0.3, 0.09], rtol=1e-6)
    # Nothing is left to scale: the remainder is spread evenly over the free ones.
    np.testing.assert_allclose(apply_floors([0, 1, 0], [0.2, 0, 0]), [0.2, 0.8, 0], rtol=1e-6)
    # Everything below its floor, floors that fill the simplex.
    np.testing.assert_allclose(apply_floors([1, 0, 0], [0.2, 0.3, 0.5]), [0.2, 0.3, 0.5], rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind=0.1", "expected one of"),
        ("harmless", "form harmless=0.1"),
        ("harmless=-0.1", "at least 0"),
        ("harmless=nan", "at least 0"),
        ("harmless=0.7,helpful=0.7", "at most 1"),
    ],
)
def test_wrong_floors_say_what_is_wrong(text, said):
    with pytest.raises(ValueError, match=said):
        parse_floors(text, NAMES)


def test_floors_are_read_from_text():
    np.testing.assert_allclose(parse_floors(" harmless = 0.1 , humor=0.05", NAMES), [0, 0.1, 0.05])
    assert not parse_floors("", NAMES).any()


def test_implicit_weights_are_a_softmax_over_objectives_not_over_rows():
    # r = (0, log 3) at tau 1 gives (1/4, 3/4); tau 0.5 doubles the logit: (1/10, 9/10).
    rewards = np.array([[0.0, np.log(3)], [5.0, 5.0]])
    np.testing.assert_allclose(
        implicit_weights(rewards, 1.0), [[0.25, 0.75], [0.5, 0.5]], rtol=1e-6
    )
    np.testing.assert_allclose(implicit_weights(rewards, 0.5)[0], [0.1, 0.9], rtol=1e-6)
    with pytest.raises(ValueError, match="above 0"):
        implicit_weights(rewards, 0)
    with pytest.raises(ValueError, match="finite"):
        implicit_weights([[np.nan, 1.0]], 1.0)


def test_weighted_sum_takes_one_vector_or_one_per_row():
    rewards = [[1.0, 2.0], [3.0, 4.0]]
    np.testing.assert_allclose(weighted_sum(rewards, [0.25, 0.75]), [1.75, 3.75])
    np.testing.assert_allclose(weighted_sum(rewards, [[1, 0], [0, 1]]), [1, 4])
    with pytest.raises(ValueError, match="expected"):
        weighted_sum(rewards, [1, 2, 3])


def test_entropy_runs_from_zero_to_log_k():
    np.testing.assert_allclose(entropy([[1, 0, 0], [1 / 3] * 3]), [0, np.log(3)], atol=1e-6)


def test_fixed_weights_are_uniform_by_default_and_users_must_give_theirs():
    np.testing.assert_allclose(FixedWeights(NAMES)(["a", "b"]), np.full((2, 3), 1 / 3), rtol=1e-6)
    np.testing.assert_allclose(
        UserWeights(NAMES, [0.2, 0.3, 0.5])(["a"]), [[0.2, 0.3, 0.5]], rtol=1e-6
    )
    with pytest.raises(TypeError):
        UserWeights(NAMES)


def test_blend_is_the_weighted_middle():
    blend = BlendWeights(OneEach(), FixedWeights(NAMES), share=0.4)
    np.testing.assert_allclose(blend(["1"]), [[0.2, 0.6, 0.2]], rtol=1e-6)


def test_dirichlet_around_a_center_has_its_mean_and_its_seed():
    source = DirichletWeights(NAMES, FixedWeights(NAMES, [0.7, 0.2, 0.1]), concentration=20, seed=1)
    drawn = source(["x"] * 4000)
    np.testing.assert_allclose(drawn.mean(axis=0), [0.7, 0.2, 0.1], atol=0.02)
    np.testing.assert_allclose(drawn.sum(axis=1), 1, rtol=1e-5)
    again = DirichletWeights(NAMES, FixedWeights(NAMES, [0.7, 0.2, 0.1]), concentration=20, seed=1)
    np.testing.assert_array_equal(again(["x"] * 4000), drawn)


def test_mixed_weights_draw_each_source_as_often_as_asked():
    mixed = MixedWeights(
        [FixedWeights(NAMES, [1, 0, 0]), FixedWeights(NAMES, [0, 1, 0])], [0.75, 0.25]
    )
    drawn = mixed(["x"] * 2000)
    assert abs(drawn[:, 0].mean() - 0.75) < 0.04
    assert set(np.unique(drawn)) == {0.0, 1.0}


def test_shuffled_weights_are_the_same_rows_dealt_to_other_prompts():
    prompts = [str(i % 3) for i in range(60)]
    shuffled = ShuffledWeights(OneEach(), seed=0)(prompts)
    np.testing.assert_array_equal(shuffled.sum(axis=0), OneEach()(prompts).sum(axis=0))
    assert (shuffled != OneEach()(prompts)).any()


def test_floored_weights_hold_for_every_prompt():
    floored = FlooredWeights(OneEach(), [0, 0.1, 0])(["0", "1"])
    np.testing.assert_allclose(floored, [[0.9, 0.1, 0], [0, 1, 0]], atol=1e-6)


def test_an_added_objective_takes_its_share_and_leaves_the_rest_in_proportion():
    def rule(prompts):
        return [0.5 if prompt == "1" else 0.0 for prompt in prompts]

    source = BlendWeights(OneEach(), FixedWeights(NAMES))
    added = AddedWeights(source, {"short": 0.2, "rhymes": rule})
    assert added.objective_names == (*NAMES, "short", "rhymes")
    rows = added(["0", "1"])
    np.testing.assert_allclose(rows[:, 3:], [[0.2, 0.0], [0.2, 0.5]])
    np.testing.assert_allclose(rows[:, :3], source(["0", "1"]) * [[0.8], [0.3]], rtol=1e-6)
    np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-6)
    for share in (0.6, -0.1, np.nan):
        with pytest.raises(ValueError):
            AddedWeights(source, {"short": share, "rhymes": rule})(["1"])
    with pytest.raises(ValueError):
        AddedWeights(source, {"humor": 0.2})


def test_sources_of_other_objectives_do_not_mix():
    with pytest.raises(ValueError, match="different objectives"):
        BlendWeights(OneEach(), FixedWeights(("helpful", "humor", "harmless")))
