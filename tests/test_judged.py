"""Judged benchmarks: published numbers, planted effects, a judge that is asked once, and input that cannot be used.

tests/data/alpaca_eval.npz holds numbers of AlpacaEval's public annotations (preferences, lengths, published rates,
difficulties), and no text.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from pro_core.data.schema import DataError
from pro_core.evaluation.judged import length_controlled_win_rate, win_rate
from pro_core.evaluation.judged.alpaca import (
    preference_from_logprobs,
    read_annotations,
    read_outputs,
    write_list,
)
from pro_core.evaluation.judged.arena import (
    arena_win_rates,
    markdown_counts,
    parse_verdict,
    read_judgments,
    style_differences,
    style_of,
)
from pro_core.evaluation.judged.rates import fit_logistic, mean_rate, paired_lead

NUMBERS = Path(__file__).parent / "data" / "alpaca_eval.npz"


def annotated(lengths_1, lengths_2, preferences, model="model"):
    """Annotations with texts of these lengths."""
    return [
        {
            "instruction": f"prompt {i}",
            "output_1": "x" * a,
            "generator_1": "baseline",
            "output_2": "y" * b,
            "generator_2": model,
            "preference": float(p),
        }
        for i, (a, b, p) in enumerate(zip(lengths_1, lengths_2, preferences, strict=True))
    ]


# ---------------------------------------------------------------- AlpacaEval


@pytest.fixture(scope="module")
def public():
    with np.load(NUMBERS) as arrays:
        return dict(arrays)


def test_published_rates_come_out_of_public_annotations(public):
    gamed = [
        {"preference": p, "std_delta_len": s, "instruction_difficulty": d}
        for p, s, d in zip(
            public["gamed_preferences"],
            public["gamed_lengths"],
            np.tile(public["difficulty"], 2),
            strict=True,
        )
    ]
    assert len(public["models"]) >= 20
    misses = []
    for m, model in enumerate(public["models"]):
        rows = annotated(
            public["baseline_lengths"], public["lengths"][m], public["preferences"][m], str(model)
        )
        assert win_rate(rows).value == pytest.approx(public["win_rates"][m], abs=1e-6)
        controlled = length_controlled_win_rate(rows, public["difficulty"], gamed)
        misses.append(abs(controlled.value - public["length_controlled"][m]))
        assert controlled.interval[0] < controlled.value < controlled.interval[1]
    assert max(misses) < 0.2 and np.median(misses) < 0.1


def test_length_control_recovers_a_planted_win_rate():
    rng = np.random.default_rng(0)
    short, n = rng.integers(150, 400, 4000), 4000
    long = short + rng.integers(-100, 500, n)
    gaps = short - long
    preferences = 1 + expit(-1.5 * np.tanh(gaps / gaps.std(ddof=1)) + 0.4)
    rows = annotated(short, long, preferences)
    controlled = length_controlled_win_rate(rows)
    assert controlled.value == pytest.approx(100 * expit(0.4), abs=1e-3)
    assert win_rate(rows).value > controlled.value + 5


def test_a_model_against_itself_wins_half():
    rows = annotated([5, 9, 30], [5, 9, 30], [1.5, 1.5, 1.5])
    assert win_rate(rows).value == 50
    assert length_controlled_win_rate(rows).value == pytest.approx(50)


def test_the_fit_agrees_with_an_independent_optimizer():
    rng = np.random.default_rng(1)
    x, y, counts = rng.normal(size=(300, 4)), rng.random(300), rng.integers(0, 4, (3, 300))

    def loss(b, c):
        z = x @ b
        return np.sum(c * (np.logaddexp(0, z) - y * z))

    for c, fitted in zip(counts, fit_logistic(x, y, counts), strict=True):
        best = minimize(loss, np.zeros(4), args=(c,), method="BFGS", options={"gtol": 1e-8}).x
        np.testing.assert_allclose(fitted, best, atol=1e-5)


def test_a_model_that_wins_everything_has_a_finite_rate():
    rate = length_controlled_win_rate(annotated([10, 20, 30], [11, 25, 39], [2, 2, 2]))
    assert 99 < rate.value <= 100
    assert win_rate(annotated([1] * 9, [2] * 9, [2] * 9)).interval[0] < 75


def test_intervals_of_rates_cover_and_leads_are_paired():
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(100):
        low, high = mean_rate(rng.random(120) < 0.3).interval
        covered += low <= 30 <= high
    assert covered >= 88
    base = (rng.random(400) < 0.5).astype(float)
    better = np.clip(base + (rng.random(400) < 0.08), 0, 1)
    assert paired_lead(better, base).interval[0] > 0
    apart = mean_rate(better).interval[0] - mean_rate(base).interval[1]
    assert apart < 0  # unpaired, the two intervals overlap


def test_missing_verdicts_are_left_out_and_counted_and_an_empty_answer_is_an_answer():
    rows = annotated([5, 5, 5, 5], [0, 7, 8, 9], [1, 2, 2, 2])
    rows[3]["preference"] = None
    rate = win_rate(rows)
    assert (rate.n, rate.left_out) == (3, 1) and rate.value == pytest.approx(200 / 3)
    assert length_controlled_win_rate(rows).n == 3
    assert win_rate([{"preference": 0}, {"preference": 2.0}]).value == 75  # an old file's draw


def bad_annotations():
    rows = annotated([5, 6], [7, 8], [1, 2])
    return {
        "none": [],
        "no preference": [{"instruction": "a", "preference": None}],
        "out of range": [{"preference": 3}],
        "text": [{"preference": "2"}],
        "two models": [rows[0], rows[1] | {"generator_2": "another"}],
    }


@pytest.mark.parametrize("kind", bad_annotations())
def test_annotations_that_cannot_be_used_are_refused(kind):
    with pytest.raises(DataError):
        win_rate(bad_annotations()[kind])


def test_difficulties_of_another_prompt_set_are_refused():
    rows = annotated([5, 6], [7, 9], [1.2, 1.7])
    for other in ([0.1] * 805, [0.1], {"another prompt": 0.1}, [0.1, math.nan], ["a", "b"]):
        with pytest.raises(DataError):
            length_controlled_win_rate(rows, other)
    mine = {"prompt 0": 0.5, "prompt 1": -0.5}
    by_prompt = length_controlled_win_rate(rows, mine)
    assert by_prompt.value == length_controlled_win_rate(rows, [0.5, -0.5]).value
    table = [{"index": i, "instruction_difficulty": d} for i, d in enumerate([0.5, -0.5])]
    assert by_prompt.value == length_controlled_win_rate(rows, table).value
    with pytest.raises(DataError):
        length_controlled_win_rate(rows, None, [{"preference": 0.5}])


def test_a_preference_is_read_from_log_probabilities():
    even, how = preference_from_logprobs({"m": -1.0, "M": -1.0, "The": -3.0}, "m", "M")
    assert even == 1.5 and how == "log-probabilities"
    likely = preference_from_logprobs({"m": math.log(0.2), "M": math.log(0.6)}, "m", "M")[0]
    assert likely == pytest.approx(1.75)
    assert preference_from_logprobs({"m": -0.1}, "m", "M")[0] == 1
    assert math.isnan(preference_from_logprobs({"The": -0.1}, "m", "M")[0])


def test_files_of_the_official_tool_are_read_and_written(tmp_path):
    rows = annotated([5, 6], [7, 8], [1.25, 2])
    write_list(tmp_path / "annotations.json", rows)
    assert read_annotations(tmp_path / "annotations.json") == rows
    outputs = [{"instruction": "Hi", "output": "Hé", "generator": "mine"}]
    write_list(tmp_path / "outputs.json", outputs)
    assert read_outputs(tmp_path / "outputs.json") == outputs
    two = [*outputs, {"instruction": "Ho", "output": "", "generator": "yours"}]
    for text in ("", "{}", "[1]", '[{"instruction": "a"}]', json.dumps(two)):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(DataError):
            read_outputs(tmp_path / "bad.json")


# ---------------------------------------------------------------- Arena-Hard


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("My final verdict is: [[A>>B]]", "A>>B"),
        ("Not [[A>B]], rather [[b>a]].", "B>A"),
        ("It is [A=B] only, but [[B>>A]] is doubled", "B>>A"),
        ("[A<B]", "B>A"),
        ("[[B<<A]]", "A>>B"),
        ("[[A]]", None),
        ("A>B", None),
        ("", None),
    ],
)
def test_the_last_of_five_verdicts_counts(text, verdict):
    assert parse_verdict(text) == verdict


def test_markdown_is_counted_as_the_official_tool_does():
    text = (
        "# Top\n## Sub\n#No header\n1. one\n  2. two\n- three\n* four\n+ five\n**bold** and __also__ and "
        "**two\nlines**\n```py\n# not a header\n- not a list\n```\n---\n"
    )
    counts = markdown_counts(text)
    assert counts["header_count"] == {"h1": 1, "h2": 1, "h3": 0, "h4": 0, "h5": 0, "h6": 0}
    assert counts["list_count"] == {"ordered": 2, "unordered": 3}
    assert counts["bold_count"] == {"**": 1, "__": 1}
    # What a fence holds is removed wherever it stands.
    assert markdown_counts("\n- a\n```\n- a\n```\n- b")["list_count"]["unordered"] == 1
    assert style_of("Two words.")["token_len"] == 3


def judgment(uid, model, first, second):
    games = [{"score": first}, {"score": second}]
    return {"uid": uid, "model": model, "baseline": "base", "games": games}


def test_win_rates_are_mean_outcomes_with_clear_verdicts_three_times():
    # In the first game the baseline is A, in the second the model.
    rates = arena_win_rates(
        [
            judgment("a", "m", "B>A", "A>B"),
            judgment("b", "m", "A>>B", "A=B"),
            judgment("c", "m", "A>B", None),
            judgment("a", "n", "B>>A", "A>>B"),
        ]
    )
    assert rates["m"].value == pytest.approx(100 * (1 + 1 + 0.5) / (1 + 1 + 3 + 1), abs=1e-3)
    assert (rates["m"].n, rates["m"].left_out) == (2, 1)
    assert rates["n"].value > 99.9


def simulated(strengths, effects, prompts, seed=0):
    """(judgments, styles) of games in which the style has an effect of its own."""
    rng = np.random.default_rng(seed)
    styles = {name: {} for name in ("base", *strengths)}
    judgments = []
    for p in range(prompts):
        for i, name in enumerate(styles):
            counts = rng.poisson([8, 20, 12]) * (1 + i)
            length = int(rng.integers(100, 300)) * (1 + i)
            styles[name][f"p{p}"] = {
                "token_len": length,
                "header_count": {"h1": int(counts[0])},
                "list_count": {"ordered": int(counts[1])},
                "bold_count": {"**": int(counts[2])},
            }
        for name, strength in strengths.items():
            f = style_differences(styles[name][f"p{p}"], styles["base"][f"p{p}"])
            wins = rng.random(2) < expit(strength + np.dot(effects, f))
            first, second = ("B>A" if wins[0] else "A>B"), ("A>B" if wins[1] else "B>A")
            judgments.append(judgment(f"p{p}", name, first, second))
    return judgments, styles


def test_style_control_recovers_planted_strengths():
    strengths = {"plain": 0.5, "flashy": -0.5}
    judgments, styles = simulated(strengths, (1.5, 0, 0, 12.0), 2000)
    raw, controlled = arena_win_rates(judgments), arena_win_rates(judgments, styles)
    assert raw["flashy"].value > 50  # its length hides that it is the worse one
    for name, strength in strengths.items():
        low, high = controlled[name].interval
        assert low - 2 < 100 * expit(strength) < high + 2
        assert abs(controlled[name].value - 100 * expit(strength)) < 8
    assert controlled["plain"].value > controlled["flashy"].value + 10


def test_centred_rates_agree_with_the_official_fit():
    """An independent fit with a free strength for the baseline and centred features, as the official script has it."""
    judgments, styles = simulated({"m": 0.3, "n": -0.2}, (1.0, 2.0, 0, 0), 150, seed=3)
    ours = arena_win_rates(judgments, styles, centred=True)
    names, rows, outcomes = ["base", "m", "n"], [], []
    for j in judgments:
        f = style_differences(styles[j["model"]][j["uid"]], styles["base"][j["uid"]])
        one_hot = [float(name == j["model"]) - float(name == "base") for name in names]
        for game, wins in zip(j["games"], ("B>A", "A>B"), strict=True):
            rows.append([*one_hot, *f])
            outcomes.append(float(game["score"] == wins))
    x, y = np.array(rows), np.array(outcomes)
    x[:, 3:] = (x[:, 3:] - x[:, 3:].mean(axis=0)) / x[:, 3:].std(axis=0, ddof=1)

    def loss(b):
        z = x @ b
        return np.sum(np.logaddexp(0, z) - y * z)

    best = minimize(loss, np.full(7, 0.5), method="BFGS").x
    for i, name in ((1, "m"), (2, "n")):
        assert ours[name].value == pytest.approx(100 * expit(best[i] - best[0]), abs=0.01)


def test_judgments_that_cannot_be_used_are_refused(tmp_path):
    good = judgment("a", "m", "A>B", "A>B")
    for bad in (
        [],
        [judgment("a", "m", None, None)],
        [good, judgment("a", "m", "B>A", "B>A")],  # two models of one name
        [good, judgment("b", "m", "B>A", "B>A") | {"baseline": "other"}],
    ):
        with pytest.raises(DataError):
            arena_win_rates(bad)
    with pytest.raises(DataError):
        arena_win_rates([good], {"m": {"a": style_of("x")}, "base": {}})
    file = tmp_path / "judgments.jsonl"
    file.write_text(json.dumps(good) + "\n")
    assert read_judgments(file) == [good]
    file.write_text('{"uid": 1}\n')
    with pytest.raises(DataError):
        read_judgments(file)
