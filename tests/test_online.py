"""What an online round asks for and keeps: goals, acceptance and distance, by hand."""

import numpy as np
import pytest

from pro_core.policies.goals import (
    Goals,
    accept_ric,
    accept_weighted,
    ask,
    distance,
    goal_source,
    offline_mask,
    ric_goals,
)
from pro_core.prompting.templates import Condition

NAMES = ("helpful", "harmless", "humor")
NAN = float("nan")
PROMPTS = [f"Question {i}?" for i in range(400)]


class Adapter:
    """Predicts weights that grow with the prompt's number."""

    objective_names = ("harmless", "helpful", "humor")

    def predict(self, prompts):
        part = np.array([int(p.split()[1][:-1]) / 400 for p in prompts])
        return np.stack([0.8 * part, 0.8 * (1 - part), np.full(len(part), 0.2)], axis=1)


def test_rics_rule_keeps_whatever_is_above_its_quantile_in_any_reward():
    # 0.7 quantile of 0..4 is 2.8, so 3 and 4 are above it; of the second reward only the last.
    z = [[0, 0], [1, 0], [2, 9], [3, 0], [4, 0]]
    assert accept_ric(z, 0.7).tolist() == [False, False, True, True, True]
    assert accept_ric([[1, 1]] * 4, 0.7).tolist() == [False] * 4  # equal ones are not above
    assert accept_ric([[5, NAN], [0, 0], [1, 1]], 0.5).tolist() == [False, False, True]
    assert accept_ric([[NAN, NAN]], 0.5).tolist() == [False]


def test_our_rule_keeps_the_best_of_each_prompt_above_the_running_quantile():
    z = [[1, 0], [2, 0], [9, 3], [0, 1], [0, 0], [NAN, 0], [5, 5]]
    weights = [[1, 0]] * 2 + [[0, 1]] * 3 + [[0.5, 0.5]] * 2
    prompts = [7, 7, 3, 3, 3, 5, 5]
    # Prompt 7: totals 1, 2; median 1.5: the second. Prompt 3: totals 3, 1, 0; of 0 1 1 2 3 the median is 1: the first.
    # Prompt 5: totals none, 5: kept.
    expected = [False, True, True, False, False, False, True]
    assert accept_weighted(z, weights, prompts, 0.5).tolist() == expected
    # Rounds before were better: of (8, 8, 8, 1, 2) the median is 8, and so on until the end.
    expected = [False] * 7
    assert accept_weighted(z, weights, prompts, 0.5, [8] * 9).tolist() == expected


def test_the_running_quantile_equals_numpys():
    rng = np.random.default_rng(0)
    z, prompts = rng.normal(size=(60, 1)), np.repeat(np.arange(20), 3)
    kept = accept_weighted(z, np.ones((60, 1)), prompts.tolist(), 0.7)
    for p in range(20):
        bar = np.quantile(z[: 3 * p + 3].astype(np.float32), 0.7)
        assert kept[3 * p : 3 * p + 3].any() == (z[3 * p : 3 * p + 3].max() > bar)
        assert kept[3 * p : 3 * p + 3].sum() <= 1


def test_all_of_rics_goals_but_one_are_at_the_top():
    bounds = [(-1.0, 2.0), (-4.0, 4.0), (0.0, 0.5)]
    goals = ric_goals(300, bounds, 0)
    top = np.isclose(goals, [high for _, high in bounds])
    assert (top.sum(axis=1) >= 2).all() and not top.all()
    assert (goals >= [low for low, _ in bounds]).all()
    assert np.allclose(goals, goals.round(1))
    free = np.array([(~top[:, k]).sum() for k in range(3)])
    assert (free > 60).all()  # each of them is the smallest about as often
    assert np.array_equal(goals, ric_goals(300, bounds, 0))


@pytest.mark.parametrize("name", ["adapter", "mix", "dirichlet", "uniform", "shuffled"])
def test_goals_are_weights_and_repeat(name):
    source = goal_source(name, NAMES, Adapter(), [3, 1])
    weights = source(PROMPTS)
    assert weights.shape == (400, 3) and np.allclose(weights.sum(axis=1), 1, atol=1e-5)
    assert np.array_equal(weights, goal_source(name, NAMES, Adapter(), [3, 1])(PROMPTS))
    # In the policy's own order, and about the right prompts: helpful falls as the number grows.
    follows = np.corrcoef(weights[:, 0], np.arange(400))[0, 1] if name != "uniform" else 0
    assert (follows < -0.7) == (name in ("adapter", "mix"))
    if name == "shuffled":
        mix = goal_source("mix", NAMES, Adapter(), [3, 1])(PROMPTS)
        assert np.array_equal(np.sort(weights, axis=0), np.sort(mix, axis=0))


def test_a_policy_may_read_some_of_the_adapters_objectives():
    weights = goal_source("adapter", ("humor", "harmless"), Adapter(), 0)(PROMPTS[200:201])
    assert weights == pytest.approx(np.array([[1 / 3, 2 / 3]]))
    with pytest.raises(ValueError, match="expected one of"):
        goal_source("best", NAMES, Adapter(), 0)


def test_what_is_asked_stands_in_the_conditions_own_words():
    z = np.array([[-2.0, -1.0, 0.0], [2.0, 3.0, 1.0]])
    reads_weights = Condition.fit("weights", NAMES, z, 1.0)
    goals = ask("uniform", ["a", "b"], reads_weights)
    assert goals.texts == ["<helpful> 0.34 <harmless> 0.33 <humor> 0.33"] * 2
    assert goals.scores is None
    reads_scores = Condition.fit("scores", NAMES, z, 1.0)
    goals = ask("uniform", ["a"], reads_scores)  # 1 / sqrt(3) of the way up: 0.31, 1.31, 0.58
    assert goals.texts == ["<helpful_score> 0.3 <harmless_score> 1.3 <humor_score> 0.6"]
    own = ask("ric", PROMPTS, reads_scores, seed=5)
    assert "<helpful_score> 2.0 <harmless_score> 3.0" in " ".join(own.texts)
    assert np.allclose(own.weights.sum(axis=1), 1, atol=1e-5)
    assert np.array_equal(own.weights, ask("ric", PROMPTS, reads_weights, seed=5).weights)


def test_distance_is_in_the_conditions_own_terms():
    weights = Condition.fit("weights", NAMES[:2], [[0, 0], [1, 1]], 1.0)
    asked = Goals(np.array([[1, 0], [0.5, 0.5]], np.float32), None, ["", ""])
    assert distance(weights, asked, [1, 0], [[2, 2], [0, 0]]) == pytest.approx([0, 0.5])
    scores = Goals(asked.weights, np.array([[1, 2], [0, 0]], np.float32), ["", ""])
    assert distance(weights, scores, [0, 1], [[1, 0], [0, 0]]) == pytest.approx([1, 0])


def test_offline_rows_are_mixed_in_by_the_same_rule():
    z = np.array([[0.0, 0.0], [3.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    condition = Condition.fit("weights", NAMES[:2], z, 0.1)
    assert offline_mask("ric", z, condition, 0.7).tolist() == [False, True, False, True]
    # Under weights all on what it is best at, totals are about 0, 3, 1, 2.
    assert offline_mask("weighted", z, condition, 0.5).tolist() == [False, True, False, True]
