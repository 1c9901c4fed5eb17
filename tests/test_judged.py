"""Judged benchmarks: published numbers, planted effects, a judge that is asked once, and input that cannot be used.

tests/data/alpaca_eval.npz holds numbers of AlpacaEval's public annotations (preferences, lengths, published rates,
difficulties), and no text.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit
from tiny import panel_of_members, tiny_encoder, tiny_llama, vivid_adapter

from pro_core.data.schema import DataError
from pro_core.evaluation.judged import length_controlled_win_rate, win_rate
from pro_core.evaluation.judged.absolute import (
    hallucination_rates,
    parse_facts,
    parse_score,
    parse_truths,
)
from pro_core.evaluation.judged.alpaca import (
    preference_from_logprobs,
    read_annotations,
    read_outputs,
    write_list,
)
from pro_core.evaluation.judged.answers import written_answers
from pro_core.evaluation.judged.arena import (
    arena_win_rates,
    markdown_counts,
    parse_verdict,
    read_judgments,
    style_differences,
    style_of,
)
from pro_core.evaluation.judged.preferences import preferences
from pro_core.evaluation.judged.prompts import hub_file, load_answers, load_prompts
from pro_core.evaluation.judged.rates import mean_rate, paired_lead
from pro_core.evaluation.judged.recipe import JudgedRecipe
from pro_core.evaluation.judged.rows import judged_rows
from pro_core.evaluation.judged.templates import OURS, PREFERENCE
from pro_core.judges.judge import EndpointJudge, LocalJudge, Question, Reply, summed
from pro_core.judges.templates import read_template
from pro_core.judges.verdicts import BudgetSpent, JudgeError, Verdicts
from pro_core.metrics import fit_logistic
from pro_core.reporting.judged_tables import judged_moslim_table, judged_table_5, trust_table
from pro_core.rewards.panel import RewardPanel
from pro_core.runs.recipes import ConfigError
from tests.servers.rewards import serving

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


def test_where_all_prompts_agree_few_of_them_prove_nothing():
    few = paired_lead([1.0, 1.0], [0.0, 0.0])
    assert few.value == 100 and few.interval[0] < 0
    assert paired_lead([1.0] * 40, [0.0] * 40).interval[0] > 50
    assert paired_lead([0.5] * 4, [0.5] * 4).interval == (0, 0)
    one = mean_rate([1.0] * 10, prompts=["p"] * 10)
    assert one.interval == pytest.approx(mean_rate([1.0]).interval)
    assert mean_rate([1, 0, 1, 1], prompts=["p"] * 4).interval[0] < 50


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
    assert by_prompt.value == length_controlled_win_rate(rows, {1: -0.5, 0: 0.5}).value
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


# ---------------------------------------------------------------- the run


class JudgeServer:
    """An OpenAI-style server whose ``answer(user text)`` is a text or {token: log-probability}; it counts requests."""

    def __init__(self, answer, logprobs=True, refuses=None):
        self.answer, self.logprobs, self.refuses = answer, logprobs, refuses
        self.asked: list[str] = []
        self.url, self.token = "", ""

    def get(self, path):
        return 200, {"data": [{"id": "judge-model"}]}

    def post(self, path, body):
        if self.refuses and self.refuses(body):
            return 400, {"error": {"message": "this cannot be"}}
        if "logprobs" in body and not self.logprobs:
            return 400, {"error": {"message": "no logprobs here", "param": "logprobs"}}
        text = body["messages"][-1]["content"]
        self.asked.append(text)
        said = self.answer(text)
        if said is None:
            return 500, {"error": {"message": "broken"}}
        choice = {"message": {"content": said}}
        if isinstance(said, dict):
            likeliest = max(said, key=said.get)
            choice = {"message": {"content": likeliest}}
            if "logprobs" in body:
                top = [{"token": token, "logprob": value} for token, value in said.items()]
                choice["logprobs"] = {"content": [{"token": likeliest, "top_logprobs": top}]}
        return 200, {"choices": [choice], "usage": {"total_tokens": 100}}


def judging(answer, logprobs=True, refuses=None):
    return serving(JudgeServer(answer, logprobs, refuses))


def both_answers(text):
    """The two answers that a question of ours shows."""
    found = re.search(r"\[Answer A\]\n(.*)\n\n\[Answer B\]\n(.*)\n\[End of", text, re.DOTALL)
    return found[1], found[2]


def likes_longer(text):
    a, b = both_answers(text)
    return {"A": math.log(0.9), "B": math.log(0.1)} if len(a) > len(b) else {"A": -3.0, "B": -0.1}


def answered(tmp_path, answers, category="", turns=1):
    """A recipe's ``prompts`` and ``models`` with these answers, {model: one answer per prompt}."""
    count = len(next(iter(answers.values())))
    prompts = [
        {
            "uid": f"q{i}",
            "category": category,
            "turns": [f"Question {i}, {t}?" for t in range(turns)],
        }
        for i in range(count)
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    models = []
    for name, texts in answers.items():
        file = tmp_path / f"{name}.json"
        rows = [{"uid": f"q{i}", "answer": text} for i, text in enumerate(texts)]
        file.write_text(json.dumps(rows))
        models.append({"name": name, "answers": str(file)})
    return {"prompts": str(tmp_path / "prompts.jsonl"), "models": models}


def recipe(tmp_path, url, benchmark="alpaca_eval", **settings):
    made = {
        "experiment": "judged",
        "benchmark": benchmark,
        "judge": {"endpoint": url},
        "output": str(tmp_path / "out"),
        "baseline": "base" if benchmark in ("alpaca_eval", "arena_hard") else None,
    }
    return JudgedRecipe(**(made | settings))


TEXTS = {
    "base": ["one two three", "yes", "same", "a b c d"],
    "mine": ["one", "yes, of course", "same", ""],
}


def test_a_second_run_asks_nothing_and_gives_the_same_rows(tmp_path):
    with judging(likes_longer) as server:
        made = recipe(tmp_path, server.url, **answered(tmp_path, TEXTS))
        [first] = judged_rows(made, "test")
        assert len(server.asked) == 6  # both orders of three; equal texts are a draw
        [again] = judged_rows(made, "test")
        assert len(server.asked) == 6
    assert first["metrics"] == again["metrics"] and first["method"] == "mine"
    metrics = first["metrics"]
    worse, better = 1 - (0.9 + expit(2.9)) / 2, (0.9 + expit(2.9)) / 2
    assert metrics["win_rate"] == pytest.approx(100 * (2 * worse + better + 0.5) / 4, abs=1e-4)
    assert metrics["longer_preferred"] == pytest.approx(100 * better, abs=1e-4)
    assert metrics["orders_agree"] == 100 and metrics["empty"] == 1
    assert first["setting"]["read_as"] == "log-probabilities"
    assert first["setting"]["judge"].startswith("judge-model at")
    written = read_annotations(tmp_path / "out" / "annotations" / "mine.json")
    assert win_rate(written).value == pytest.approx(metrics["win_rate"], abs=1e-4)


def test_a_torn_or_changed_verdict_is_asked_again_and_no_other(tmp_path):
    with judging(likes_longer) as server:
        made = recipe(tmp_path, server.url, **answered(tmp_path, TEXTS))
        judged_rows(made, "test")
        [file] = (tmp_path / "out" / "verdicts").iterdir()
        file.write_bytes(file.read_bytes()[:-40])
        judged_rows(made, "test")
        assert len(server.asked) == 7
        file.write_bytes(file.read_bytes().replace(b'"tokens": 100', b'"tokens": 101', 1))
        judged_rows(made, "test")
        assert len(server.asked) == 8


def test_a_budget_stops_the_run_and_a_larger_one_goes_on(tmp_path):
    with judging(likes_longer) as server:
        given = answered(tmp_path, TEXTS) | {"concurrency": 1}
        with pytest.raises(BudgetSpent):
            judged_rows(recipe(tmp_path, server.url, budget=0, **given), "test")
        assert not server.asked
        with pytest.raises(BudgetSpent):
            judged_rows(recipe(tmp_path, server.url, budget=150, **given), "test")
        assert len(server.asked) == 2
        assert judged_rows(recipe(tmp_path, server.url, **given), "test")
        assert len(server.asked) == 6
        assert judged_rows(recipe(tmp_path, server.url, budget=0, **given), "test")


def test_a_judge_without_log_probabilities_is_read_by_its_words_and_the_row_says_so(tmp_path):
    with judging(likes_longer, logprobs=False) as server:
        [row] = judged_rows(recipe(tmp_path, server.url, **answered(tmp_path, TEXTS)), "test")
    assert row["setting"]["read_as"] == "words"
    assert row["metrics"]["win_rate"] == 100 * 1.5 / 4


def test_a_judge_that_gives_no_usable_verdict_ends_the_run(tmp_path):
    given = answered(tmp_path, TEXTS)
    with judging(lambda text: "I cannot say.") as server, pytest.raises(DataError):
        judged_rows(recipe(tmp_path, server.url, **given), "test")
    with judging(lambda text: None) as server, pytest.raises(JudgeError):
        judged_rows(recipe(tmp_path, server.url, **given), "test")
    with judging(lambda text: "[[C]]") as server, pytest.raises(DataError):
        judged_rows(recipe(tmp_path, server.url, "arena_hard", **given), "test")


def test_a_failed_verdict_is_left_out_and_asked_again_by_the_next_run(tmp_path):
    broken = [True]

    def sometimes(text):
        return None if broken[0] and "Question 0" in text else likes_longer(text)

    with judging(sometimes) as server:
        made = recipe(tmp_path, server.url, **answered(tmp_path, TEXTS))
        [row] = judged_rows(made, "test")
        assert (row["metrics"]["unjudged"], row["n"]) == (1, 4)
        broken[0] = False
        [row] = judged_rows(made, "test")
        assert row["metrics"]["unjudged"] == 0


def ask_for_labels(text):
    return Question([{"role": "user", "content": text}], "t-1", 4, False, ("A", "B"))


def test_refused_questions_are_left_out_however_many_there_are(tmp_path):
    """Too long ones, say: they say nothing about the server, so a run with only those left can be repeated."""
    questions = [ask_for_labels(f"{'long' if i % 2 else 'short'} {i}") for i in range(60)]

    def long(body):
        return "long" in body["messages"][-1]["content"]

    with judging(lambda text: {"A": -0.1, "B": -3.0}, refuses=long) as server:
        for _ in range(2):
            replies = Verdicts(EndpointJudge(server.url), tmp_path).ask(questions)
            assert [reply is None for reply in replies] == [False, True] * 30
        assert len(server.asked) == 30


def test_a_server_that_refuses_logprobs_without_naming_them_keeps_thinking_off(tmp_path):
    def no_logprobs(body):
        return "logprobs" in body

    def thinks(text):
        return "A"

    seen = []
    with judging(thinks, refuses=lambda body: seen.append(body) or no_logprobs(body)) as server:
        [reply] = Verdicts(EndpointJudge(server.url), tmp_path).ask([ask_for_labels("x")])
    assert reply.text == "A" and "chat_template_kwargs" in seen[-1] and "logprobs" not in seen[-1]


def test_an_empty_reply_to_a_question_for_a_label_is_no_verdict(tmp_path):
    with judging(lambda text: "<think>so", logprobs=False) as server:
        judge = EndpointJudge(server.url)
        with pytest.raises(JudgeError):
            Verdicts(judge, tmp_path).ask([ask_for_labels("x")])
        assert not list(tmp_path.glob("*.jsonl"))


def test_equal_texts_say_nothing_about_the_judges_position_bias(tmp_path):
    verdicts = Verdicts(Scripted(["A"] * 4), tmp_path)
    pairs = [("q", f"same {i}", f"same {i}") for i in range(8)]
    pairs += [("q", f"one {i}", f"two {i}") for i in range(2)]
    rates = preferences(verdicts, PREFERENCE, pairs, both_orders=True).measures()
    assert rates["orders_agree"].value == 0 and rates["first_preferred"].value == 100


class Scripted:
    """A judge that gives these replies, one after the other."""

    identity = name = "scripted"

    def __init__(self, replies):
        self.replies = iter(replies)

    @contextlib.asynccontextmanager
    async def session(self):
        async def ask(question):
            return Reply(next(self.replies))

        yield ask


def test_the_key_holds_the_model_the_template_the_order_and_the_texts(tmp_path):
    with judging(likes_longer) as server:
        keys = set()
        for model in ("a", "b"):
            verdicts = Verdicts(EndpointJudge(server.url, model), tmp_path)
            for template in ("t-1", "t-2"):
                for swapped in (False, True):
                    for text in ("x", "y"):
                        turns = [{"role": "user", "content": text}]
                        keys.add(verdicts.key(Question(turns, template, 4, swapped)))
    assert len(keys) == 16


def test_arena_games_are_played_in_both_orders(tmp_path):
    def verdict(text):
        a, b = both_answers(text)
        return "[[A=B]]" if len(a) == len(b) else "[[A>>B]]" if len(a) > len(b) else "[[B>A]]"

    with judging(verdict) as server:
        made = recipe(tmp_path, server.url, "arena_hard", **answered(tmp_path, TEXTS))
        [row] = judged_rows(made, "test")
        assert len(server.asked) == 8
    # Longer answers win; the first game's A is the baseline.
    won, played = (1 + 3) + 2 * 0.5, (3 + 1) * 2 + (1 + 3) + 2
    assert row["metrics"]["win_rate"] == pytest.approx(100 * won / played, abs=1e-3)
    assert "style_controlled_win_rate" in row["ci95"]
    kept = read_judgments(tmp_path / "out" / "judgments" / "mine.jsonl")
    assert arena_win_rates(kept)["mine"].value == pytest.approx(
        row["metrics"]["win_rate"], abs=1e-4
    )


def test_mt_bench_grades_both_turns_and_uses_references(tmp_path):
    def mark(text):
        if "Reference answer" in text:
            return "Compared: [[9]]"
        return "Fine. [[4]] or rather [[6.5]]" if "[Second answer]" in text else "[[3]]"

    answers = {"mine": [["a", "b"], ["c", "d"]], "other": [["a", "b"], ["e", "f"]]}
    given = answered(tmp_path, answers, turns=2)
    prompts = [json.loads(line) for line in Path(given["prompts"]).read_text().splitlines()]
    prompts[0] |= {"category": "math", "reference": ["1", "2"]}
    prompts[1]["category"] = "writing"
    Path(given["prompts"]).write_text("".join(json.dumps(p) + "\n" for p in prompts))
    with judging(mark) as server:
        rows = judged_rows(recipe(tmp_path, server.url, "mt_bench", **given), "test")
        assert len(server.asked) == 6  # equal answers to the first prompt are judged once
    metrics = rows[0]["metrics"]
    assert (metrics["score_math"], metrics["score_writing"]) == (9, 4.75)
    assert (metrics["score_turn_1"], metrics["score_turn_2"]) == (6, 7.75)
    assert metrics["score"] == 6.875
    assert rows[1]["leads"]["mine"]["metrics"]["score"] == 0


def test_halueval_takes_answers_apart_and_checks_each_fact(tmp_path):
    def halueval(text):
        if "[Statements]" in text:
            return "1. TRUE\n2. FALSE\n3: unknown" if "Earth" in text else "1. TRUE"
        if "no facts" in text:
            return "NONE"
        return (
            "1. The Earth is round.\n2. It is flat.\n3. Ask me." if "Earth" in text else "1) Sky."
        )

    answers = {"mine": ["About the Earth", "no facts here", "The sky"]}
    with judging(halueval) as server:
        [row] = judged_rows(
            recipe(tmp_path, server.url, "halueval", **answered(tmp_path, answers)), "test"
        )
    metrics = row["metrics"]
    assert metrics["mihr"] == pytest.approx(100 * (1 / 3 + 0) / 2, abs=1e-4)
    assert metrics["mahr"] == 50
    assert (metrics["without_facts"], metrics["unknown_facts"], metrics["facts"]) == (1, 1, 4)


def test_marks_and_facts_are_parsed_or_missing():
    assert parse_score("[[7]] then [8]") == 7 and parse_score("[5]") == 5
    assert parse_score("[[11]]") is None and parse_score("7/10") is None
    assert parse_facts("Facts:\n1. One.\n 2) Two\nNONE") == ["One.", "Two"]
    assert parse_facts("None.") == [] and parse_facts("- The sky is green.") is None
    assert parse_facts("1.\n2. Two") == ["Two"]
    assert parse_truths("1. TRUE\n2. FALSE", 2) == ["TRUE", "FALSE"]
    assert parse_truths("1. TRUE", 2) is None
    with pytest.raises(DataError):
        hallucination_rates([None, []])


def labelled_pairs(tmp_path, count=16):
    rows = []
    for i in range(count):
        long, short = f"a long answer {'x' * 30} {i}", f"short {i}"
        chosen, rejected = (long, short) if i % 4 else (short, long)
        row = {"id": str(i), "split": "test", "objective": "helpful", "prompt": f"Question {i}?"}
        rows.append(row | {"chosen": chosen, "rejected": rejected})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {row["chosen"] for row in rows}


def test_a_judge_that_only_counts_characters_is_said_to_be_none(tmp_path):
    chosen = labelled_pairs(tmp_path)
    given = {"pairs": [{"path": "pairs.jsonl"}], "data_dir": str(tmp_path)}

    def knows(text):
        return {"A": -0.1, "B": -3.0} if both_answers(text)[0] in chosen else {"A": -3.0, "B": -0.1}

    with judging(likes_longer) as server:
        judge, longer = judged_rows(recipe(tmp_path, server.url, "trust", **given), "test")
    assert judge["metrics"]["agreement"] == longer["metrics"]["agreement"] == 75
    assert judge["metrics"]["beats_longer_wins"] == 0
    assert judge["metrics"]["agreement_chosen_shorter"] == 0
    with judging(knows) as server:
        judge, _ = judged_rows(recipe(tmp_path, server.url, "trust", **given), "test")
    assert judge["metrics"]["agreement"] == 100 and judge["metrics"]["beats_longer_wins"] == 1
    with judging(lambda text: {"A": -0.1, "B": -3.0}) as server:  # whatever stands first
        judge, _ = judged_rows(recipe(tmp_path, server.url, "trust", **given), "test")
    assert judge["metrics"]["agreement"] == 50 and judge["metrics"]["orders_agree"] == 0
    assert judge["metrics"]["first_preferred"] > 90


def test_a_model_in_this_process_answers_and_judges(tmp_path):
    """A random model: its verdicts mean nothing, but all comes from it, and a second run writes and asks nothing."""
    model = tiny_llama(tmp_path / "model")
    judge = LocalJudge(model)
    turns = [{"role": "user", "content": "A or B?"}]
    verdicts = Verdicts(judge, tmp_path / "verdicts", 1)
    labelled, wrote = verdicts.ask(
        [Question(turns, "t", 4, labels=("A", "B")), Question(turns, "t", 4)]
    )
    assert len(labelled.logprobs) <= 5 and max(labelled.logprobs.values()) < 0
    assert wrote.logprobs is None
    given = answered(tmp_path, TEXTS) | {"models": [{"name": "writer", "model": model}]}
    templates = {}
    for name, places in (("score", "{prompt} {answer}"), ("score_second", "{prompt_2} {answer_2}")):
        templates[name] = str(tmp_path / f"{name}.txt")
        Path(templates[name]).write_text(places + " {prompt} {answer}")
    judge = {"model": model, "max_tokens": 8, "templates": templates}
    given |= {"judge": judge, "max_new_tokens": 4}
    made = recipe(tmp_path, None, "mt_bench", **given)
    prompts = [{"question_id": i, "turns": [f"Hi {i}", "Why?"]} for i in range(2)]
    Path(given["prompts"]).write_text(json.dumps(prompts))
    with pytest.raises(DataError):  # a random model gives no marks
        judged_rows(made, "test")
    stored = sorted((tmp_path / "out" / "responses").iterdir())
    assert len(stored) == 2  # one file per turn
    before = [file.read_bytes() for file in stored]
    with pytest.raises(DataError):
        judged_rows(made, "test")
    assert [file.read_bytes() for file in stored] == before


def test_the_panel_chooses_among_candidates_under_the_adapters_weights(tmp_path):
    panel = RewardPanel.from_pretrained(panel_of_members(tmp_path / "panel"))
    adapter = vivid_adapter(tiny_encoder(tmp_path / "encoder"), ("helpful", "harmless"))
    adapter.save_pretrained(tmp_path / "adapter")
    given = answered(tmp_path, TEXTS)
    writer = {"name": "writer", "model": tiny_llama(tmp_path / "model"), "candidates": 3}
    models = [{"name": "base", "answers": given["models"][0]["answers"]}, writer]
    models[1]["adapter"] = str(tmp_path / "adapter")
    settings = {"models": models, "panel": str(tmp_path / "panel"), "max_new_tokens": 6}
    made = recipe(tmp_path, "http://127.0.0.1:9", **(given | settings))
    prompts = load_prompts(made.prompts)
    chosen = written_answers(made, made.models[1:], prompts, 1)["writer"]
    stored = {}
    for file in (tmp_path / "out" / "responses").iterdir():
        for line in map(json.loads, file.read_text().splitlines()):
            for (n, _), response in zip(line["places"], line["responses"], strict=True):
                asked = line["read"][str(n)]["messages"][0]["content"]
                stored.setdefault(asked, []).append(response["text"])
    for prompt, answer in zip(prompts, chosen, strict=True):
        texts = stored[prompt.turns[0]]
        assert len(texts) == 3
        z = panel.standardized([prompt.turns[0]] * 3, texts)
        weights = adapter.predict([[{"role": "user", "content": prompt.turns[0]}]])[0]
        assert answer == (texts[int(np.argmax(z @ weights))],)


def test_a_panel_is_graded_beside_the_judge_on_the_same_pairs(tmp_path):
    labelled_pairs(tmp_path)
    panel = panel_of_members(tmp_path / "panel")
    given = {"pairs": [{"path": "pairs.jsonl"}], "data_dir": str(tmp_path), "panel": panel}
    with judging(likes_longer) as server:
        rows = judged_rows(recipe(tmp_path, server.url, "trust", **given), "test")
    assert [row["method"] for row in rows[1:]] == ["longer wins", "panel"]
    gap = rows[2]["metrics"]["agreement"] - rows[0]["metrics"]["agreement"]
    lead = rows[2]["leads"][rows[0]["method"]]["metrics"]["agreement"]
    assert lead == pytest.approx(gap, abs=1e-4)


def test_a_changed_template_raises_its_version():
    """Verdicts on another text are not comparable: raise the version, then write down the new identity."""
    assert [template.identity for template in OURS] == [
        "preference-1-6daeecfb",
        "verdict-1-ec3cbc69",
        "score-1-a91e174e",
        "score_reference-1-87af9f5d",
        "score_second-1-733ff388",
        "score_second_reference-1-a0e79437",
        "facts-1-17f45702",
        "truth-1-b38947b5",
    ]


def test_the_papers_tables_have_ours_beside_theirs(tmp_path):
    given = answered(tmp_path, {"base": TEXTS["base"], "PRO-MORLHF": TEXTS["mine"]})
    with judging(likes_longer) as server:
        rows = judged_rows(recipe(tmp_path, server.url, **given), "test")
    table = judged_table_5(rows)
    [line] = [line for line in table.splitlines() if line.startswith("| PRO-MORLHF")]
    value = rows[0]["metrics"]["win_rate"]
    assert f"| {value:.1f} (" in line and line.endswith("| 47.30 | 50.35 | 63.5 | 54.2 | 7.93 |")
    assert "baseline base" in table and "preference-1-" in table and "GPT-4o-05-13" in table
    assert "| ADPO |  |  |  |  |  | 44.04 |" in table
    assert judged_moslim_table(rows) == trust_table(rows) == judged_table_5([]) == ""
    halueval = [row | {"setting": row["setting"] | {"benchmark": "halueval"}} for row in rows]
    halueval[0] |= {"method": "MOSLIM", "metrics": {"mihr": 12.0}, "ci95": {"mihr": [10.0, 14.0]}}
    [line] = [x for x in judged_moslim_table(halueval).splitlines() if x.startswith("| MOSLIM |")]
    assert "12.0 (10.0 to 14.0)" in line and "3.54 / 3.16 / 0.79" in line
    trusted = [row | {"setting": row["setting"] | {"benchmark": "trust"}} for row in rows]
    trusted[0]["metrics"] = {"agreement": 60.0, "beats_longer_wins": 0.0}
    trusted[0]["ci95"] = {"agreement": [50.0, 70.0]}
    assert "no: it is no judge" in trust_table(trusted)


def test_tokens_of_one_text_are_added_up():
    logprobs = summed([("A", math.log(0.2)), (" A", math.log(0.3)), ("B", math.log(0.5))])
    assert logprobs == pytest.approx({"A": math.log(0.5), "B": math.log(0.5)})


def test_a_template_is_filled_once_and_official_forms_are_read(tmp_path):
    [_, user] = PREFERENCE.messages(prompt="{first}", first="{second}", second="B")
    assert "[Request]\n{first}" in user["content"] and "[Answer A]\n{second}" in user["content"]
    text = tmp_path / "theirs.txt"
    text.write_text(
        "<|im_start|>system\nYou rank {models}.\n<|im_end|>\n<|im_start|>user\n"
        '{ "q": "{instruction}", "m": "{output_1}", "M": "{output_2}" }\n<|im_end|>\n'
    )
    template = read_template(text, PREFERENCE.places, ("m", "M"))
    turns = template.messages(prompt="Q", first="1", second="2")
    assert turns[1]["content"] == '{ "q": "Q", "m": "1", "M": "2" }'
    assert turns[0]["content"] == "You rank {models}."
    arena = tmp_path / "arena.yaml"
    arena.write_text('prompt_template: "{QUESTION} {ANSWER_A} {ANSWER_B}"\n')
    assert read_template(arena, PREFERENCE.places, None).identity != template.identity
    arena.write_text("user: '{QUESTION}'\n")
    with pytest.raises(DataError):
        read_template(arena, PREFERENCE.places, None)


def test_prompts_and_answers_of_other_sets_are_refused(tmp_path):
    given = answered(tmp_path, TEXTS)
    prompts = load_prompts(given["prompts"])
    assert load_answers(given["models"][0]["answers"], prompts)[1] == ("yes",)
    file = tmp_path / "file.json"
    for rows in (
        [{"uid": "elsewhere", "answer": "x"}],
        [{"uid": f"q{i}", "answer": "x", "model": f"m{i % 2}"} for i in range(4)],
        [{"uid": f"q{i}", "answer": None} for i in range(4)],
    ):
        file.write_text(json.dumps(rows))
        with pytest.raises(DataError):
            load_answers(str(file), prompts)
    for rows in ([], [{"uid": "a"}], [{"uid": "a", "prompt": "x"}] * 2):
        file.write_text(json.dumps(rows))
        with pytest.raises(DataError):
            load_prompts(str(file))
    for name in ("nowhere.json", "a/b/c:file.json"):
        with pytest.raises(DataError):
            hub_file(name)
    official = [
        {"prompt_id": 1, "category": "math", "prompt": ["1+1?", "+1?"], "reference": ["2", "3"]}
    ]
    file.write_text(json.dumps(official))
    assert load_prompts(str(file))[0].reference == ("2", "3")
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": {"answer": "y"}}]
    file.write_text(json.dumps([{"id": 0, "user_query": "why?", "m_response": "so"}]))
    assert load_answers(str(file), load_prompts(str(file))) == [("so",)]
    choices = [{"turns": ["y", "z"]}]
    file.write_text(json.dumps([{"uid": "1", "messages": turns}]))
    assert load_answers(str(file), [prompts[0].__class__("1", ("x",))]) == [("y",)]
    file.write_text(json.dumps([{"question_id": 1, "choices": choices}]))
    assert load_answers(str(file), load_prompts_of(official, tmp_path)) == [("y", "z")]


def load_prompts_of(rows, tmp_path):
    file = tmp_path / "other.json"
    file.write_text(json.dumps(rows))
    return load_prompts(str(file))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"models": [{"name": "a", "answers": "x"}, {"name": "a", "answers": "y"}]}, "models"),
        ({"models": [{"name": "base", "answers": "x"}]}, "baseline"),
        ({"models": [{"name": "a"}]}, "models.0.answers"),
        ({"prompts": None}, "prompts"),
        ({"judge": {}}, "judge.model"),
        ({"budget": -1}, "budget"),
        ({"benchmark": "trust", "pairs": []}, "pairs"),
    ],
)
def test_a_recipe_that_cannot_be_run_is_refused(tmp_path, change, field):
    settings = {
        "experiment": "x",
        "benchmark": "alpaca_eval",
        "judge": {"model": "m"},
        "output": "o",
        "prompts": "p",
        "baseline": "base",
        "models": [{"name": "base", "answers": "x"}, {"name": "a", "answers": "y"}],
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(settings | change))
    with pytest.raises(ConfigError) as refused:
        JudgedRecipe.read(file)
    assert field in refused.value.fields


def test_the_repositorys_recipes_are_read():
    files = sorted((Path(__file__).parent.parent / "recipes").glob("judged*.yaml"))
    assert {JudgedRecipe.read(file).benchmark for file in files} >= {"trust", "alpaca_eval"}


def test_official_difficulties_are_refused_for_prompts_of_ones_own(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("index,instruction_difficulty,preference,std_delta_len\n0,1,0.5,0.1\n")
    with judging(likes_longer) as server, pytest.raises(DataError):
        given = answered(tmp_path, TEXTS)
        judged_rows(recipe(tmp_path, server.url, difficulty=str(table), **given), "test")
