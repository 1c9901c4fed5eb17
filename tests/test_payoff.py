"""When weights that follow the prompt pay: accuracies by hand and by sampling, the line of 1/2, the doctor's slope."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.special import expit, softmax

from pro_core.doctor.gain import payoff_of
from pro_core.evaluation import theorem
from pro_core.evaluation.payoff import PayoffRecipe
from pro_core.evaluation.results import read_rows
from pro_core.reporting.theory_tables import payoff_table
from pro_core.theory.alignment_gap import candidate_sets
from pro_core.theory.payoff import (
    best_fixed,
    candidate_accuracy,
    gaussian_accuracy,
    measure_payoff,
    planted_weights,
)

ROOT = Path(__file__).resolve().parent.parent


def test_the_accuracy_of_gaussian_margins_is_that_of_sampled_pairs():
    rng = np.random.default_rng(0)
    truth, weights = softmax(rng.normal(size=(2, 3, 4)), axis=-1)
    margins = rng.normal(size=(200_000, 4))
    seen = margins + 0.8 * rng.normal(size=margins.shape)
    exact = gaussian_accuracy(weights, truth, 0.3, 0.8)
    for t, w, found in zip(truth, weights, exact, strict=True):
        prefers = expit(margins @ t / 0.3)
        assert found == pytest.approx(np.where(seen @ w > 0, prefers, 1 - prefers).mean(), abs=3e-3)
    # The truth itself, without noise: a pair is lost only where people err.
    flawless = np.maximum(expit(margins @ truth[0] / 0.3), expit(-margins @ truth[0] / 0.3)).mean()
    assert gaussian_accuracy(truth, truth, 0.3, 0.0)[0] == pytest.approx(flawless, abs=3e-3)


def test_the_accuracy_over_candidates_counts_every_pair_and_half_of_ties():
    sets = candidate_sets(
        [[[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], [[2.0, 0.0], [0.0, 0.0]]], np.eye(2)
    )
    truth = np.array([[0.75, 0.25], [1.0, 0.0]])
    found = candidate_accuracy([0.5, 0.5], truth, 0.5, sets, sets.rewards)
    # Three pairs of the first prompt: the first is a tie under equal weights, the others are told apart.
    p = [0.5, expit(0.75 / 0.5), expit(0.25 / 0.5)]
    np.testing.assert_allclose(found, [np.mean(p), expit(2 / 0.5)])


@pytest.mark.parametrize("K", [2, 5])
@pytest.mark.parametrize("noise", [0.0, 1.5])
def test_an_adapter_pays_above_a_slope_of_one_half(K, noise):
    """As far as the truth moves, with a correlation of .3 it loses and of .7 it gains; calibrated, it never loses."""
    leads = {}
    for correlation, boldness in ((0.3, 1.0), (0.7, 1.0), (0.3, 0.3), (1.0, 1.0)):
        rng = np.random.default_rng(0)
        center = softmax(rng.normal(0, 0.5, K))
        known = planted_weights(2000, center, center, 0.5, correlation, boldness, rng)

        def accuracy(weights, truth=known.truth):
            return gaussian_accuracy(weights, truth, 0.3, noise)

        found = measure_payoff(accuracy, known, best_fixed(accuracy, known.truth))
        leads[correlation, boldness] = found["lead"]
        assert found["slope"] == pytest.approx(correlation / boldness, abs=0.15)
        scaled = found["lead"] / found["oracle_lead"]
        scaled *= (found["diversity"] / found["movement"]) ** 2
        assert scaled == pytest.approx(2 * found["slope"] - 1, abs=0.25)
    assert leads[0.3, 1.0] < 0 < leads[0.3, 0.3] < leads[0.7, 1.0] < leads[1.0, 1.0]


def test_the_doctor_finds_the_slope_and_the_lead_from_labelled_pairs():
    """Pairs that people with known weights labelled; the adapter moves twice as far as it should."""
    rng = np.random.default_rng(0)
    N, K = 12_000, 3
    fixed = np.full((N, K), 1 / K)
    right = rng.normal(0, 0.1, (N, K))
    right -= right.mean(axis=1, keepdims=True)
    adapter = fixed + 2 * right
    margins = rng.normal(size=(N, K))
    wins = rng.random(N) < expit(4 * ((fixed + right) * margins).sum(axis=1))
    margins = np.where(wins[:, None], margins, -margins)
    objectives, texts = np.array(["o"] * N), np.arange(N).astype(str)
    found = payoff_of(fixed, adapter, margins, objectives, texts)
    assert found.slope.low < 0.5 < found.slope.high < 0.6
    correct = [((w * margins).sum(axis=1) > 0).mean() for w in (adapter, fixed)]
    assert found.expected.value == pytest.approx(100 * (correct[0] - correct[1]), abs=1.0)
    assert found.movement == pytest.approx(np.sqrt((4 * right**2).sum(axis=1).mean()))
    calibrated = payoff_of(fixed, fixed + right, margins, objectives, texts)
    assert calibrated.slope.low < 1 < calibrated.slope.high and calibrated.expected.low > 0
    counted = ((((fixed + right) * margins).sum(axis=1) > 0).mean() - correct[1]) * 100
    assert counted > 1 and calibrated.expected.value == pytest.approx(counted, abs=0.5)
    assert payoff_of(fixed, fixed, margins, objectives, texts) is None
    assert payoff_of(fixed, adapter, -margins, objectives, texts) is None


def test_the_script_measures_each_setting_once(tmp_path, monkeypatch, capsys):
    from train import payoff as script

    rows = [
        {"prompt": f"What is it with {topic}?", "response": answer, "labels": {}, "split": split}
        for i, topic in enumerate(("tea", "salt", "snow", "gold", "bees", "wool"))
        for split in ["test" if i % 2 else "train"]
        for answer in (f"Nothing but {topic}.", "I do not know.", f"{topic} is a joke.")
    ]
    (tmp_path / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = yaml.safe_load((ROOT / "recipes" / "payoff.yaml").read_text()) | {
        "responses": "responses.jsonl",
        "data_dir": str(tmp_path),
        "panel": str(ROOT / "checkpoints/demo/panel"),
        "output": str(tmp_path / "work"),
        "results": str(tmp_path / "payoff.jsonl"),
        "figure": str(tmp_path / "figure.svg"),
        "seeds": [0, 1],
        "prompts": 50,
        "objectives": [2, 3],
        "diversities": [0.5, 1],
        "correlations": [0.2, 0.8],
        "noises": [0, 1],
    }
    (tmp_path / "payoff.yaml").write_text(yaml.safe_dump(settings))
    recipe = PayoffRecipe.read(tmp_path / "payoff.yaml")
    script.main(recipe)
    found = read_rows(tmp_path / "payoff.jsonl")
    # Of 2 diversities x 2 correlations x 2 noises: three worlds (two K, and the real one), two adapters, two seeds.
    assert len(found) == 8 * 3 * 2 * 2
    assert (tmp_path / "figure.svg").stat().st_size > 10_000
    assert payoff_table(found) in capsys.readouterr().out
    written = (tmp_path / "payoff.jsonl").read_bytes()
    monkeypatch.setattr(theorem, "load_world", None)  # with everything there, nothing is loaded
    script.main(recipe)
    assert (tmp_path / "payoff.jsonl").read_bytes() == written
