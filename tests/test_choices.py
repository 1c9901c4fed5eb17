"""Weights from clicks: the posterior against arithmetic, planted weights, and choices as training pairs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from test_board import UI, Browser
from tiny import tiny_encoder

from pro_core.adapter.recipe import AdapterRecipe
from pro_core.adapter.runs import train_adapter
from pro_core.choices import (
    LEAST,
    Choice,
    ChoiceModel,
    ChoicePosterior,
    ChoiceWeights,
    choice_agreement,
    choice_pairs,
    choice_posterior,
    weights_from_choices,
)
from pro_core.data.entries import PairSource
from pro_core.data.schema import load_examples, to_messages
from pro_core.data.training_pairs import gather_pairs
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.scores import score_pairs
from pro_core.rewards.specs import RewardModelSpec
from pro_core.weights import FixedWeights
from ui.board import SCRIPTS

K = 5
FUNCTIONS = {"long": "length", "plain": "readability"}


def clicks(rng: np.random.Generator, tilt, count: int, temperature: float, lapse: float = 0.0):
    """What a person with this tilt picks among four answers each to ``count`` prompts."""
    choices = []
    for predicted in rng.dirichlet(np.full(K, 0.7), count):
        z = rng.normal(0, 0.7, (4, K))
        totals = z @ tilted(predicted, tilt) + temperature * rng.gumbel(size=4)
        picked = rng.integers(4) if rng.random() < lapse else totals.argmax()
        choices.append(Choice(z, int(picked), predicted))
    return choices


def tilted(predicted, tilt):
    raised = np.maximum(predicted, LEAST) * np.exp(tilt)
    return raised / raised.sum(axis=-1, keepdims=True)


def error(weights, truth) -> float:
    return float(np.abs(weights - truth).sum(axis=-1).mean() / 2)


def test_the_posterior_equals_a_numeric_integral():
    """Two objectives: the choices see only d_0 - d_1, whose prior has the variance 2 spread^2."""
    model = ChoiceModel(temperature=0.4, lapse=0.15, spread=1.2)
    choices = [
        Choice([[1.0, 0.0], [0.0, 0.8]], 0, [0.3, 0.7]),
        Choice([[0.2, 0.1], [0.9, -0.4], [-0.3, 0.5]], 1, [0.6, 0.4]),
        Choice([[1.0, -1.0], [-1.0, 1.0]], 1, [0.5, 0.5]),
        Choice([[1.0, -1.0], [-1.0, 1.0]], None, [0.5, 0.5]),
    ]
    grid = np.linspace(-12, 12, 4001)
    density = np.exp(-(grid**2) / (4 * model.spread**2))
    for choice in choices[:3]:
        first = 1 / (1 + choice.predicted[1] / choice.predicted[0] * np.exp(-grid))
        totals = first[:, None] * choice.z_NK[:, 0] + (1 - first)[:, None] * choice.z_NK[:, 1]
        odds = np.exp(totals / model.temperature)
        rule = odds[:, choice.picked] / odds.sum(axis=1)
        density *= (1 - model.lapse) * rule + model.lapse / len(choice.z_NK)
    expected = (grid * density).sum() / density.sum()
    tilt = choice_posterior(choices, 2, model).tilt
    assert abs(expected) > 0.1
    assert tilt[0] - tilt[1] == pytest.approx(expected, abs=0.01)


def test_two_answers_follow_bradley_terry_with_lapses():
    chances = ChoiceModel(temperature=0.5, lapse=0.2).probabilities(np.array([[1.0, 0.3]]))
    assert chances[0, 0] == pytest.approx(0.8 / (1 + np.exp(-1.4)) + 0.1)


@pytest.mark.parametrize(("temperature", "lapse", "left"), [(0.0, 0.0, 0.5), (0.5, 0.1, 0.75)])
def test_clicks_reveal_planted_weights(temperature, lapse, left):
    """On new prompts; ``left`` of the first error may remain after 30 clicks."""
    before, after = [], []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        tilt, new = rng.normal(0, 1.5, K), rng.dirichlet(np.full(K, 0.7), 20)
        choices = clicks(rng, tilt, 30, temperature, lapse)
        learned = weights_from_choices(new, choices)
        assert learned.shape == new.shape
        np.testing.assert_allclose(learned.sum(axis=1), 1)
        before.append(error(weights_from_choices(new, []), tilted(new, tilt)))
        after.append(error(learned, tilted(new, tilt)))
    assert np.mean(after) < left * np.mean(before)


def test_without_choices_the_weights_are_the_predicted_ones():
    predicted = [0.5, 0.2, 0.15, 0.1, 0.05]
    for choices in ([], [Choice(np.eye(K), None, predicted)]):
        np.testing.assert_allclose(weights_from_choices(predicted, choices), predicted, atol=1e-9)


def test_the_next_pair_is_the_one_whose_answers_differ_most_in_what_is_unknown():
    uniform = np.full(3, 1 / 3)
    z = np.array([[1.0, 0, 0], [1.0, 0.05, 0], [0, 1.0, 0], [0.95, 0, 0]])
    posterior = choice_posterior([], 3)
    assert posterior.next_pair(z, uniform) == (0, 2)
    assert posterior.next_pair(z, uniform, [(0, 1), (1, 2), (1, 3)]) == (1, 2)
    # Once the person is known to be all for the first objective, only the second against the third can tell more.
    certain = [Choice([[2.0, 0, 0], [0, 2.0, 0], [0, 0, 2.0]], 0, uniform)] * 30
    known = choice_posterior(certain, 3)
    assert known.information(z[[0, 2]], uniform) < posterior.information(z[[0, 2]], uniform) / 3
    assert posterior.information(z[[0, 0]], uniform) == pytest.approx(0, abs=1e-12)
    assert 0 < posterior.information(3 * np.eye(3), uniform) < np.log(3)


def test_it_is_a_source_of_weights():
    source = FixedWeights(("helpful", "humor"), [0.8, 0.2])
    funny = [Choice([[1.0, 0.0], [0.0, 1.0]], 1, [0.8, 0.2])] * 8
    learned = ChoiceWeights(source, funny)(["a", "b"])
    assert learned.shape == (2, 2) and learned.dtype == np.float32
    assert learned[0, 1] > 0.5
    np.testing.assert_allclose(learned.sum(axis=1), 1, rtol=1e-6)
    with pytest.raises(ValueError, match="2 objectives"):
        ChoiceWeights(FixedWeights(("a", "b", "c")), funny)


def test_agreement_counts_what_was_picked():
    z = np.array([[1.0, 0.0], [0.0, 1.0]])
    choices = [Choice(z, picked, [0.9, 0.1]) for picked in (0, 0, 1, None)]
    assert choice_agreement(choices) == (2, 3)
    assert choice_agreement(choices, [0.1, 0.9]) == (1, 3)
    assert choice_agreement([], [0.5, 0.5]) == (0, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"z_NK": [[1.0, 2.0]]},
        {"z_NK": [[1.0, float("nan")], [0.0, 1.0]]},
        {"picked": 2},
        {"picked": -1},
        {"picked": 0.0},
        {"predicted": [0.5, 0.3, 0.2]},
        {"predicted": [1.5, -0.5]},
        {"predicted": [float("nan"), 1.0]},
        {"answers": ["only one"]},
    ],
)
def test_a_wrong_choice_is_refused(wrong):
    fine = Choice(np.eye(2), 0, [0.5, 0.5])
    with pytest.raises(ValueError, match="expected"):
        replace(fine, **wrong)


@pytest.mark.parametrize("wrong", [{"temperature": 0}, {"lapse": 1}, {"spread": float("nan")}])
def test_a_wrong_model_of_clicks_is_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        ChoiceModel(**wrong)


def test_no_pair_is_left_to_ask():
    with pytest.raises(ValueError, match="no pairs"):
        choice_posterior([], 2).next_pair(np.eye(2), [0.5, 0.5], [])


# ---------------------------------------------------------------- as pairs


def told(prompt: str, answers: list[str], picked: int | None) -> Choice:
    return Choice(np.zeros((len(answers), 2)), picked, [0.5, 0.5], prompt, answers)


def test_choices_become_pairs_that_the_loaders_read(tmp_path):
    choices = [
        told("Which bread?", ["Rye.", "White.", " Rye. ", " "], 0),
        told("Which bread?", ["Rye.", "White."], 0),  # the same pair again
        told("Human: Hi\n\nAssistant: Hello\n\nHuman: A joke?", ["No.", "Knock knock.", "Yes."], 1),
        told("Neither?", ["Left.", "Right."], None),
        told("All blank?", ["", "Right."], 0),
    ]
    rows = choice_pairs(choices)
    assert [(row["chosen"], row["rejected"]) for row in rows] == [
        ("Rye.", "White."),
        ("Knock knock.", "No."),
        ("Knock knock.", "Yes."),
    ]
    path = tmp_path / "choices.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pairs = load_examples(path)
    assert [len(p.prompt) for p in pairs] == [1, 3, 3]
    assert {(p.objective, p.source) for p in pairs} == {("overall", "choices")}
    source = PairSource(path=str(path), splits=["train", "validation", "test"])
    assert len(gather_pairs([source], ["overall"], tmp_path).training) == 3
    with pytest.raises(ValueError, match="without answers"):
        choice_pairs([Choice(np.eye(2), 0, [0.5, 0.5], "Which?")])


@pytest.mark.slow
def test_an_adapter_learns_from_exported_choices(tmp_path):
    """As docs/adapter.md says: the panel scores the pairs, and `train/adapter.py` reads the table."""
    rng = np.random.default_rng(0)
    answers = [
        "Short.",
        "A long answer that goes on and on, with many more words than the other has.",
    ]
    choices = [told(f"Question {i} of {rng.integers(99)}?", answers, 1) for i in range(12)]
    path, scores, panel = (tmp_path / name for name in ("choices.jsonl", "scores.parquet", "panel"))
    path.write_text("".join(json.dumps(row) + "\n" for row in choice_pairs(choices)))
    made = RewardPanel([RewardModelSpec(name, function=f) for name, f in FUNCTIONS.items()], {})
    pairs = load_examples(path)
    made.fit_stats([p.prompt for p in pairs] * 2, [a for a in answers for _ in pairs], "choices")
    made.save_pretrained(panel)
    score_pairs(made, pairs, 0, scores)
    recipe = AdapterRecipe(
        scores=str(scores), panel=str(panel), output=str(tmp_path / "out"), members=1, seeds=[0],
        encoder=tiny_encoder(tmp_path / "encoder"), train_encoder=False, folds=0, epochs=30,
        learning_rate=0.03, targets=[{"target": "pairwise", "temperature": 0.5}],
    )  # fmt: skip
    adapter = train_adapter(recipe)
    assert adapter is not None
    weights = adapter.predict(["Question 100 of 3?"])[0]
    assert weights[adapter.objective_names.index("long")] > 0.6  # they always took the longer one


def test_posteriors_are_plain_values():
    posterior = choice_posterior([], 2)
    assert isinstance(posterior, ChoicePosterior)
    np.testing.assert_allclose(posterior.shares_S.sum(), 1)
    np.testing.assert_allclose(posterior.tilts_SK.std(axis=0), 1.5, rtol=0.1)


# ---------------------------------------------------------------- the page's arithmetic


@pytest.fixture(scope="module")
def js(request: pytest.FixtureRequest) -> Browser:
    return Browser(None if shutil.which("node") else request.getfixturevalue("chromium"))


def test_the_pages_arithmetic_equals_pythons(js: Browser):
    rng = np.random.default_rng(17)
    cases = []
    for _ in range(5):
        objectives, count = int(rng.integers(2, 8)), int(rng.integers(0, 9))
        choices = []
        for weights in rng.dirichlet(np.full(objectives, 0.5), count):
            z = rng.normal(size=(int(rng.integers(2, 5)), objectives)).round(2)
            picked = None if rng.random() < 0.2 else int(rng.integers(len(z)))
            choices.append(Choice(z, picked, weights))
        new = rng.dirichlet(np.ones(objectives))
        cases.append((choices, new, rng.normal(size=(4, objectives))))
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    given = [
        [[_plain(choice) for choice in choices], new.tolist(), z.tolist()]
        for choices, new, z in cases
    ]
    shown = js.evaluate(
        """given.map(([choices, predicted, z]) => {
          const known = Choices.posterior(choices, predicted.length);
          return {
            tilt: known.tilt, weights: Choices.tilted(predicted, known.tilt),
            information: Choices.information(known, z, predicted),
            pair: Choices.nextPair(known, z, predicted, PAIRS),
            agreed: Choices.agreement(choices, (choice) => choice.predicted),
          };
        })""".replace("PAIRS", str([list(pair) for pair in pairs])),
        given,
    )
    for (choices, new, z), page in zip(cases, shown, strict=True):
        posterior = choice_posterior(choices, len(new))
        np.testing.assert_allclose(page["tilt"], posterior.tilt, atol=1e-9)
        np.testing.assert_allclose(page["weights"], posterior.weights(new), atol=1e-9)
        assert page["information"] == pytest.approx(posterior.information(z, new), abs=1e-9)
        assert tuple(page["pair"]) == posterior.next_pair(z, new)
        assert tuple(page["agreed"]) == choice_agreement(choices)
    assert any(choices for choices, _, _ in cases)


def test_the_pages_pairs_equal_pythons(js: Browser):
    choices = [
        told("Which bread?", ["Rye.", "White.", " Rye. ", " \u200b\n"], 0),
        told("Which bread?", ["Rye.", "White."], 0),
        told("Un café?", ["cafe\u0301", "caf\u00e9", '"No," <b>😀</b>'], 1),
        told("Neither?", ["Left.", "Right."], None),
    ]
    lines = js.evaluate("Choices.asPairs(given)", [_plain(choice) for choice in choices])
    assert [json.loads(line) for line in lines.splitlines()] == choice_pairs(choices)
    assert len(lines.splitlines()) == 2


@pytest.mark.browser
def test_the_page_learns_from_clicks_and_keeps_them_in_the_browser(chromium, tmp_path):
    """The board alone, in a page without a server."""
    sync_api = pytest.importorskip("playwright.sync_api")
    rng = np.random.default_rng(3)
    z_NK, predicted = rng.normal(0, 1, (4, 3)), np.array([0.6, 0.3, 0.1])
    names, answers = ["helpful", "harmless", "humor"], ["One.", "Two.", "Three.", "Four."]
    cards = [{"text": t, "z": z, "raw": z} for t, z in zip(answers, z_NK.tolist(), strict=True)]
    run = {
        "id": "1", "phase": "done", "messages": to_messages("Which?"), "objectives": names,
        "floors": [0, 0, 0], "predicted": predicted.tolist(), "candidates": cards,
    }  # fmt: skip
    scripts = "\n".join((UI / name).read_text("utf-8") for name in SCRIPTS)
    start = f"""(run) => {{ const props = {{ value: run, others: [] }}; const watch = () => {{}};
        const element = document.body; {scripts} }}"""
    with sync_api.sync_playwright() as play:
        chrome = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page, problems = chrome.new_page(), []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.route("**", lambda route: route.fulfill(body="<div class=board></div>"))

        def opened(run, at=""):
            page.goto(f"http://board.test/{at}")
            page.evaluate(start, run)
            return page.get_by_role("region", name="Which do you prefer?")

        area = opened(run)
        worst, second = (int(i) for i in np.argsort(z_NK @ predicted)[:2])
        area.get_by_role("button", name=f"I prefer {'ABCD'[worst]}").click()
        said = "You agreed with PRO’s guess 0 of 1, with all equal"
        sync_api.expect(area).to_contain_text(said)
        choices = [Choice(z_NK, worst, predicted, "Which?", answers)]
        pair = choice_posterior(choices, 3).next_pair(z_NK, predicted)
        asked = page.get_by_role("toolbar", name="The better of two answers")
        assert asked.get_by_role("button").all_inner_texts()[:2] == ["ABCD"[i] for i in pair]
        page.wait_for_timeout(500)  # a double click is one choice
        asked.get_by_role("button").nth(1).click()
        of_two = [answers[i] for i in pair]
        choices.append(Choice(z_NK[list(pair)], 1, predicted, "Which?", of_two))
        area.get_by_role("button", name="Use my learned weights").click()
        expected = weights_from_choices(predicted, choices)
        shown = page.evaluate("window.proBoard.state.yours")
        np.testing.assert_allclose(shown, expected, atol=0.011)
        # They survive a reload; scores that only a link claims teach nothing.
        area = opened(run)
        sync_api.expect(area).to_contain_text("of 2")
        with page.expect_download() as download:
            area.get_by_role("button", name="Download as pairs").click()
        download.value.save_as(tmp_path / "pairs.jsonl")
        pairs = {(p.chosen, p.rejected) for p in load_examples(tmp_path / "pairs.jsonl")}
        assert pairs == {(r["chosen"], r["rejected"]) for r in choice_pairs(choices)}
        area = opened(run | {"phase": "shared"}, "shared")
        sync_api.expect(area.get_by_role("button", name="I prefer A")).to_have_count(0)
        area.get_by_role("button", name="Forget my choices").click()
        sync_api.expect(area).to_be_hidden()
        assert page.evaluate("localStorage.getItem('pro-choices')") == "[]"
        # The same click once more takes a choice back.
        area = opened(run, "again")
        for count in (1, 0):
            area.get_by_role("button", name=f"I prefer {'ABCD'[second]}").click()
            assert page.evaluate("JSON.parse(localStorage.getItem('pro-choices')).length") == count
            page.wait_for_timeout(500)
        chrome.close()
    assert problems == []


def _plain(choice: Choice) -> dict:
    """As the page keeps it."""
    messages = to_messages(choice.prompt) if choice.prompt else []
    arrays = {"z": choice.z_NK.tolist(), "predicted": choice.predicted.tolist()}
    return {**arrays, "picked": choice.picked, "messages": messages, "answers": choice.answers}
