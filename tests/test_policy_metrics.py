"""What the evaluation kit measures of policies, by hand: fronts, controllability, comparisons, texts."""

from __future__ import annotations

import numpy as np
import pytest

from pro_core.evaluation.policy import weights
from pro_core.evaluation.policy.metrics import (
    Answers,
    JudgeUnits,
    means,
    rank_correlation,
    resampled,
    summary,
    text_measures,
)
from pro_core.evaluation.policy.text_quality import distinct_n
from pro_core.evaluation.policy.weights import Base, front_size
from pro_core.rewards.calibration import RewardStats

NAMES = ("helpful", "harmless")
GRID = np.array([[0.0, 1.0], [0.25, 0.75], [0.5, 0.5], [0.75, 0.25], [1.0, 0.0]])


def unit_stats(names, mean=0.0, std=1.0):
    return RewardStats(tuple(names), np.full(len(names), mean), np.full(len(names), std), 9)


def base_of(names=NAMES, mean=0.0, std=1.0):
    return Base(
        unit_stats(names, mean, std),
        JudgeUnits(unit_stats(["overall"]), unit_stats(NAMES)),
        np.zeros((1, len(names))),
        1,
    )


def answered(z_WPK, **more) -> Answers:
    """Answers with these scores, each a text of its own."""
    z = np.array(z_WPK, dtype=float)
    W, P, _ = z.shape
    texts = [[f"text {w} {p}" for p in range(P)] for w in range(W)]
    return Answers(more.pop("texts", texts), z, **more)


def asked(answers: Answers, grid=GRID):
    """The grid's first weightings, of each prompt."""
    W, P, _ = answers.scores_WPK.shape
    return np.repeat(grid[:W, None, :], P, axis=1)


def measure(answers, base, of_base, counts_RP, grid=GRID):
    return weights.measure(answers, asked(answers, grid), base, of_base, counts_RP)


def leads(mine, theirs, base, counts_RP):
    return weights.leads(mine, theirs, asked(mine[0]), base, counts_RP)


def steerable(P=40, noise=0.1, strength=1.0, seed=0):
    """Scores that follow the weights under large differences between prompts."""
    rng = np.random.default_rng(seed)
    offsets = 5 * rng.normal(size=(P, 2))
    z = strength * GRID[:, None, :] + offsets + noise * rng.normal(size=(len(GRID), P, 2))
    return answered(z)


def value(found, name):
    return float(found[name][0])


# ---------------------------------------------------------------- measures by hand


def test_measures_match_a_calculation_by_hand():
    """Two prompts, two weightings. Higher is better; the reference point is one deviation below the base's mean."""
    z = [[[0, 3], [0, 1]], [[2, 0], [2, 0]]]  # means (0, 2) and (2, 0)
    ends = np.array([[0.0, 1.0], [1.0, 0.0]])
    found = measure(answered(z), base_of(), None, resampled(2), ends)
    # Boxes above (-1, -1): 1 x 3 and 3 x 1 share 1 x 1.
    assert value(found, "hypervolume") == pytest.approx(5)
    assert value(found, "mean_helpful") == 1 and value(found, "mean_harmless") == 1
    assert value(found, "mean_weighted_score") == 2  # the asked objective's: 3, 1, 2, 2
    assert value(found, "igd_plus") == 0  # both are nowhere below the base's mean
    assert value(found, "spearman_helpful") == pytest.approx(1)
    # In other units: mean 1, deviation 2. The means become (-.5, .5) and (.5, -.5), boxes .5 x 1.5 sharing .5 x .5.
    scaled = measure(answered(z), base_of(mean=1.0, std=2.0), None, resampled(2))
    assert value(scaled, "hypervolume") == pytest.approx(1.25)
    assert value(scaled, "igd_plus") == pytest.approx(0.5)  # lower is better
    assert value(scaled, "mean_helpful") == 1  # in the panel's own z


def test_the_base_at_its_own_mean_has_hypervolume_one():
    for K in (1, 2, 5):
        names = [f"objective-{k}" for k in range(K)]
        still, even = Answers([["a", "b", "c"]], np.full((1, 3, K), 7.0)), np.ones((1, K)) / K
        found = measure(still, base_of(names, mean=7.0, std=3.0), None, resampled(3), even)
        assert value(found, "hypervolume") == pytest.approx(1)


def test_a_nan_is_counted_and_left_out_never_zero():
    z = np.full((2, 4, 2), 3.0)
    z[0, 1] = np.nan
    hole = answered(z)
    found = measure(hole, base_of(), None, resampled(4))
    assert value(found, "mean_helpful") == 3 and value(found, "mean_weighted_score") == 3
    counts = text_measures(hole)
    assert counts["unscored"] == 1 and counts["responses"] == 8 and counts["failed"] == 0
    np.testing.assert_allclose(means([[1.0], [np.nan], [3.0]], np.array([[1.0, 1, 1]])), [[2]])
    assert np.isnan(means([[np.nan]], np.array([[1.0]]))).all()


def test_a_weighting_whose_generations_all_failed_is_left_out_and_said():
    z = np.array(steerable().scores_WPK)
    z[2] = np.nan
    texts = [["x"] * 40 if w != 2 else [None] * 40 for w in range(5)]
    failures = [(2, p, "no") for p in range(40)]
    gone = answered(z, texts=texts, failures=failures)
    found = measure(gone, base_of(), None, resampled(40))
    values, intervals = summary(found)
    assert np.isfinite(list(values.values())).all() and "hypervolume" in intervals
    assert front_size(gone)["points"] == 4 and text_measures(gone)["failed"] == 40
    assert values["length"] == 1  # characters of what is there


def test_a_policy_without_any_score_has_no_measure():
    nothing = answered(np.full((2, 3, 2), np.nan), texts=[["a"] * 3] * 2)
    values, intervals = summary(measure(nothing, base_of(), None, resampled(3)))
    assert set(values) == {"length"} and "hypervolume" not in intervals


# ---------------------------------------------------------------- controllability


def test_control_is_measured_within_prompts():
    """Prompts differ by fifty times what weights change: pooled over prompts, control would look like noise."""
    values, intervals = summary(measure(steerable(noise=0.01), base_of(), None, resampled(40)))
    assert values["spearman_helpful"] > 0.99 and intervals["spearman_helpful"][0] > 0.98
    turned = steerable(strength=-1.0, noise=0.01)
    assert value(measure(turned, base_of(), None, resampled(40)), "spearman_helpful") < -0.99


def test_a_policy_that_ignores_its_weights_has_no_control():
    """Answers drawn afresh for each weighting: about 0 with an interval that holds it. The same answer: 0."""
    noise = steerable(P=200, strength=0.0, noise=1.0, seed=3)
    values, intervals = summary(measure(noise, base_of(), None, resampled(200)))
    for name in NAMES:
        assert abs(values[f"spearman_{name}"]) < 0.1
        assert intervals[f"spearman_{name}"][0] < 0 < intervals[f"spearman_{name}"][1]
    same = answered(np.repeat(noise.scores_WPK[:1], 5, axis=0))
    values, intervals = summary(measure(same, base_of(), None, resampled(200)))
    assert values["spearman_helpful"] == 0 and intervals["spearman_helpful"] == [0, 0]
    assert front_size(same)["points_on_front"] == 1  # five equal points are one


def test_rank_correlation_matches_a_calculation_by_hand():
    assert rank_correlation([0, 0.5, 1], [1, 3, 2]) == pytest.approx(0.5)
    assert rank_correlation([0, 0.5, 1], [1, np.nan, 2]) == pytest.approx(1)  # over what is there
    assert rank_correlation([0, 0.5, 1], [4, 4, 4]) == 0
    assert np.isnan(rank_correlation([0, 1], [1, np.nan]))
    assert np.isnan(rank_correlation([0.5, 0.5], [1, 2]))  # nothing was asked for
    # Two weightings ask for the same: ranks 1.5 1.5 3 against 1 2 3, at most .87.
    assert rank_correlation([0, 0, 1], [1, 2, 3]) == pytest.approx(np.sqrt(3) / 2)


def test_the_held_out_panel_says_whether_control_is_real():
    """The panel's score follows the weights, the held-out panel's does not."""
    hacked = steerable(noise=0.01)
    hacked.heldout_WPJ = np.random.default_rng(5).normal(size=(5, 40, 2))
    values, intervals = summary(measure(hacked, base_of(), None, resampled(40)))
    assert values["spearman_helpful"] > 0.99
    assert intervals["spearman_heldout_helpful"][0] < 0.15
    assert values["heldout_score"] == pytest.approx(hacked.heldout_WPJ.mean())
    assert values["heldout_helpful"] == pytest.approx(hacked.heldout_WPJ[..., 0].mean())


def test_one_objective_has_one_weighting_and_no_control():
    line, only = Answers([["a"] * 4], np.array([[[1.0], [2], [3], [2]]])), np.ones((1, 1))
    values, _ = summary(measure(line, base_of(("helpful",)), None, resampled(4), only))
    assert values["hypervolume"] == pytest.approx(3)  # from -1 to 2
    assert values["mean_weighted_score"] == 2 and "spearman_helpful" not in values


# ---------------------------------------------------------------- comparisons


def test_the_win_rate_counts_ties_as_half():
    base = answered(np.zeros((1, 4, 2)), judge_WP=np.array([[1.0, 1, 1, 1]]))
    mine = answered(np.zeros((1, 4, 2)), judge_WP=np.array([[2.0, 1, 0, np.nan]]))
    counts = resampled(4)
    assert value(measure(mine, base_of(), base, counts), "judge_win_rate") == pytest.approx(0.5)
    itself = measure(base, base_of(), base, counts)["judge_win_rate"]
    assert (itself == 0.5).all()  # in every resample
    assert value(measure(mine, base_of(), base, counts), "judge_score") == 1  # of the three


def test_leads_are_paired_over_prompts():
    """Prompts differ by far more than the policies: only the paired interval sees a lead of 0.3."""
    worse = steerable(P=60, seed=1)
    better = answered(worse.scores_WPK + 0.3)
    for answers, judge in ((worse, 0.0), (better, 0.3)):
        answers.judge_WP = worse.scores_WPK[:, :, 0] + judge
    counts = resampled(60)
    values, intervals = summary(leads([better], [worse], base_of(), counts))
    assert values["judge_score"] == pytest.approx(0.3)
    assert intervals["judge_score"] == pytest.approx([0.3, 0.3])
    alone = summary(measure(better, base_of(), None, counts))[1]["judge_score"]
    assert alone[1] - alone[0] > 1  # without pairing
    assert intervals["hypervolume"][0] > 0 and values["mean_weighted_score"] == pytest.approx(0.3)


def test_a_prompt_that_one_policy_failed_counts_for_neither():
    """The failed prompt is by far the best for both: alone it would decide the comparison."""
    z = np.zeros((1, 3, 2))
    z[0, 0] = 100
    whole, hole = answered(z), answered(z + 1)
    hole.scores_WPK[0, 0] = np.nan
    values, _ = summary(leads([hole], [whole], base_of(), resampled(3)))
    assert values["mean_weighted_score"] == 1
    assert value(measure(hole, base_of(), None, resampled(3)), "mean_weighted_score") == 1
    assert value(measure(whole, base_of(), None, resampled(3)), "mean_weighted_score") > 33


def test_more_seeds_of_the_same_prompts_do_not_shrink_the_interval():
    """The prompts are the same for every seed, so is their luck: three copies of a seed know no more than one."""
    one, counts = steerable(seed=2), resampled(40)
    other = answered(np.random.default_rng(0).normal(size=one.scores_WPK.shape))
    single = summary(leads([one], [other], base_of(), counts))[1]
    triple = summary(leads([one] * 3, [other] * 3, base_of(), counts))[1]
    assert triple["mean_weighted_score"] == pytest.approx(single["mean_weighted_score"])


# ---------------------------------------------------------------- texts


def test_distinct_n_matches_a_count_by_hand():
    assert distinct_n(["a b a b", "A c"], 1) == pytest.approx(3 / 6)  # a b a b a c
    assert distinct_n(["a b a b", "A c"], 2) == pytest.approx(3 / 4)  # ab ba ab, ac
    assert distinct_n(["the same words"] * 10, 1) == pytest.approx(0.1)  # collapse
    assert distinct_n(["", "", "one"], 1) == 1
    assert np.isnan(distinct_n(["", "one"], 2)) and np.isnan(distinct_n([], 1))


def test_empty_and_repeated_responses_are_counted():
    texts = [["", "yes", "yes", None], ["", " ", "no", "no"]]
    z = np.zeros((2, 4, 2))
    z[0, 3] = np.nan
    found = text_measures(answered(z, texts=texts, failures=[(0, 3, "broke off")]))
    assert found["empty"] == 3 and found["failed"] == 1 and found["responses"] == 7
    assert found["unscored"] == 0 and found["distinct_1"] == pytest.approx(0.5)
    assert "distinct_2" not in found  # no text has two words


def test_perplexity_weighs_tokens_not_responses():
    answers = answered(np.zeros((1, 2, 2)))
    answers.surprise_WP2 = np.array([[[3.0, 1], [0.0, 2]]])
    assert value(measure(answers, base_of(), None, resampled(2)), "perplexity") == pytest.approx(
        np.e
    )
    answers.surprise_WP2 = np.array([[[3.0, 1], [np.nan, 2]]])
    found = measure(answers, base_of(), None, resampled(2))
    assert value(found, "perplexity") == pytest.approx(np.exp(3))
    answers.surprise_WP2 = np.zeros((1, 2, 2))  # nothing but empty responses
    assert "perplexity" not in summary(measure(answers, base_of(), None, resampled(2)))[0]
