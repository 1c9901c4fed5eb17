"""The composite reward: the weighted sum, what is missing, and why weights stand outside a group's normalization."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tiny import tiny_encoder, vivid_adapter

from pro_core.policies.rl.reward import CompositeReward, normalize_groups
from pro_core.policies.rl.weighted import run_weights
from pro_core.rewards.calibration import RewardStats
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.specs import RewardModelSpec

pytestmark = pytest.mark.slow

NAMES = ("long", "vowels")
PROMPTS = ("tell me a joke about cats", "where is Paris?", "why did it rain on Sunday?")


def panel_of(names=NAMES) -> RewardPanel:
    specs = [
        RewardModelSpec("long", function="length"),
        RewardModelSpec("vowels", function="rule", pattern="[aeiou]"),
    ]
    stats = RewardStats(names, np.array([10.0, 0.5]), np.array([5.0, 0.5]), 10)
    return RewardPanel(specs, {}, stats)


def reward_of(weights, **settings) -> CompositeReward:
    return CompositeReward(panel_of(), NAMES, PROMPTS, weights, ["a", "b/x", "a"], **settings)


class Broken(RewardPanel):
    """A panel with a model that answers NaN to what contains an exclamation mark."""

    def score(self, prompts, completions, on_progress=None, allow_missing=False):
        rewards = super().score(prompts, completions)
        rewards[["!" in text for text in completions], 0] = np.nan
        return rewards


def test_each_prompt_has_its_own_weights_and_each_objective_its_own_log():
    logged: dict[str, list[float]] = {}
    reward = reward_of([[1, 0], [0.25, 0.75], [0.5, 0.5]])
    texts = ["a" * 15, "b" * 20, "b" * 5, ""]
    # TRL hands a conversation's completion over as a list with one message.
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    found = reward(
        [None] * 4,
        completions,
        [0, 1, 1, 2],
        log_metric=lambda name, value: logged.setdefault(name, []).append(value),
    )
    # z of the lengths 15, 20, 5, 0: 1, 2, -1, -2; of the vowels 1, -1, -1, -1. An empty answer is scored like any.
    assert found == pytest.approx([1, 0.5 - 0.75, -0.25 - 0.75, -1 - 0.5])
    assert logged == {
        "skipped": [0],
        "objectives/long": [0],
        "objectives/vowels": [-0.5],
        "weights/a/long": [0.75],  # of three completions to prompts of this kind: 1 and 0.5
        "weights/a/vowels": [0.25],
        "weights/b/x/long": [0.25],
        "weights/b/x/vowels": [0.75],
    }


def test_a_missing_score_is_skipped_and_counted_and_never_0():
    logged = {}
    reward = reward_of([[1, 0], [0.25, 0.75], [0, 1]])
    reward.panel.__class__ = Broken
    found = reward(
        [""] * 4, ["no!", "a" * 15, "no!", "no!"], [0, 0, 1, 2], log_metric=logged.__setitem__
    )
    assert found[0] is None and found[2] is None
    assert found[1] == pytest.approx(1)
    assert found[3] == pytest.approx(1)  # what is missing has no weight there
    assert logged["skipped"] == 0.5
    assert logged["objectives/long"] == pytest.approx(1)  # the mean of what there is
    logged.clear()
    assert reward([""], ["!"], [0], log_metric=logged.__setitem__) == [None]
    assert logged["skipped"] == 1 and "objectives/long" not in logged


def test_weights_do_not_cancel_in_normalized_groups():
    """Divided by its group's deviation after it was weighted, an objective would count alike under any weight."""
    rows, texts = [0] * 4 + [1] * 4, ["a" * 3, "b" * 40, "a" * 9, "b" * 7] * 2
    weights = [[0.9, 0.1], [0.1, 0.9], [0.5, 0.5]]
    settings = {"aggregation": "normalize_then_sum", "generations": 4}
    found = np.array(reward_of(weights, **settings)([""] * 8, texts, rows))
    z = normalize_groups(reward_of(weights).standardized(rows, texts), 4)
    long, vowels = z[:4, 0], z[:4, 1]
    assert found[:4] == pytest.approx(0.9 * long + 0.1 * vowels, abs=1e-5)
    assert found[4:] == pytest.approx(0.1 * long + 0.9 * vowels, abs=1e-5)
    # Under most weight on length the long answer without a vowel is the best, under little the worst but one.
    assert found[:4].argmax() == 1 and found[4:].argmax() != 1


@given(
    arrays(np.float32, (3, 4, 2), elements=st.floats(-9, 9, width=32)),
    arrays(bool, (3, 4, 2)),
)
def test_each_group_is_centred_and_scaled_by_itself(z, missing):
    z = np.where(missing, np.nan, z).astype(np.float32)
    found = normalize_groups(z.reshape(12, 2), 4).reshape(3, 4, 2)
    assert (np.isnan(found) == missing).all()
    for group, mine in zip(z, found, strict=True):
        for k in range(2):
            there = group[~np.isnan(group[:, k]), k].astype(np.float64)
            expected = np.zeros(len(there))
            if len(there) > 1:
                expected = (there - there.mean()) / (there.std(ddof=1) + 1e-4)
            np.testing.assert_allclose(mine[~np.isnan(mine[:, k]), k], expected, atol=1e-5)


def test_half_a_group_is_refused():
    reward = reward_of([[0.5, 0.5]] * 3, aggregation="normalize_then_sum", generations=4)
    with pytest.raises(ValueError, match="got 3 completions, expected whole groups of 4"):
        reward([""] * 3, ["a"] * 3, [0] * 3)


def test_weights_come_from_the_named_source(tmp_path):
    adapter = vivid_adapter(tiny_encoder(tmp_path), NAMES)
    ask = lambda source, **more: run_weights(source, PROMPTS, NAMES, adapter, **more)  # noqa: E731
    predicted = adapter.predict(PROMPTS)
    np.testing.assert_allclose(ask("uniform"), 0.5)
    np.testing.assert_allclose(ask({"vowels": 1.0}), [[0, 1]] * 3)  # a single reward
    np.testing.assert_allclose(ask("adapter"), predicted, atol=1e-6)
    np.testing.assert_allclose(ask("mean"), [predicted.mean(axis=0)] * 3, atol=1e-6)
    assert predicted.std(axis=0).max() > 0.01
    shuffled = [ask("shuffled", seed=seed) for seed in range(5)]
    for dealt in shuffled:
        np.testing.assert_allclose(sorted(dealt[:, 0]), sorted(predicted[:, 0]), atol=1e-6)
    assert any(np.abs(dealt - predicted).max() > 0.01 for dealt in shuffled)
    assert ask({"long": 1.0}, floors="vowels=0.2")[0].tolist() == pytest.approx([0.8, 0.2])
    with pytest.raises(ValueError, match="unknown: \\['kind'\\]"):
        ask({"kind": 1.0})
    with pytest.raises(ValueError, match="expected one of"):
        ask("random")
