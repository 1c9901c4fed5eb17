"""Exact MORLHF and PRO-MORLHF: the policy against closed forms, the arms, who is graded by whom, the script."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from test_train_scripts import run as run_script

from pro_core.adapter.encoder import PromptEncoder
from pro_core.adapter.model import PreferenceAdapter
from pro_core.adapter.recipe import AdapterRecipe
from pro_core.adapter.runs import AdapterRun
from pro_core.data.entries import PairSource
from pro_core.data.schema import LabelledResponse, fold_of
from pro_core.evaluation.convergence import ConvergenceRecipe, load_world
from pro_core.evaluation.results import read_rows
from pro_core.reporting.theory_tables import convergence_table
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.scores import score_pairs
from pro_core.system.bundled_models import MINILM
from pro_core.theory.alignment_gap import optimal_policy, weighted
from pro_core.theory.convergence import (
    ARMS,
    BEST_FIXED,
    MEAN,
    PRO,
    SHUFFLED,
    UNIFORM,
    WITHIN,
    Experiment,
    Run,
    arm_weights,
    best_fixed_for_labels,
    draw_parts,
    steps_to,
)
from pro_core.theory.labelled_worlds import LabelledWorld, right
from pro_core.theory.softmax_policy import ascend, tilt
from pro_core.weights import AdapterWeights, FixedWeights

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent


def made_up_world(seed=0, K=3) -> LabelledWorld:
    """Two sources whose prompts show which they are in; the first objective is right in one, the last in the other."""
    rng = np.random.default_rng(seed)
    P = 150
    sizes = rng.integers(2, 7, P)
    source = np.array(["first"] * 90 + ["second"] * 60)
    split = np.array(
        ["train"] * 60 + ["validation"] * 10 + ["test"] * 20 + ["train"] * 50 + ["validation"] * 10
    )
    fold = np.where((source == "first") & (split != "train"), -1, np.arange(P) % 5)
    prompts = rng.normal(size=(P, 6)) + 4 * (source == "second")[:, None]
    responses = rng.normal(size=(sizes.sum(), 8))
    rewards = responses @ rng.normal(size=(8, K)) / 3
    first, second = np.full(K, 0.1), np.full(K, 0.1)
    first[0], second[-1] = 1 - 0.1 * (K - 1), 1 - 0.1 * (K - 1)
    weights = np.where((source == "first")[:, None], first, second)
    own = np.repeat(np.arange(P), sizes)
    labels = ((rewards * weights[own]).sum(axis=1) > 0.3).astype(float)
    both = np.stack([weights, np.full((P, K), 1 / K)])  # the adapters of two seeds
    return LabelledWorld(rewards, labels, sizes, prompts, responses, both, source, split, fold)


# ---------------------------------------------------------------- the policy


def test_a_free_softmax_ends_at_the_closed_form():
    # With one feature a candidate, theta is a logit for each: the ascent must end at pi_ref exp(R / beta) (Eq 19).
    world = made_up_world()
    sets, beta = world.candidate_sets(), 1.0
    weights = world.weights[0]
    few = np.arange(6)
    inside = np.isfinite(sets.log_reference[few])
    features = np.zeros((*inside.shape, inside.sum()), np.float32)
    features[inside] = np.eye(inside.sum())
    rewards = weighted(sets, weights)[few][..., None].astype(np.float32)
    *_, theta = ascend(features, sets.log_reference[few], rewards, [beta], [0.03], [few] * 500)
    ratio, policy = tilt(features, sets.log_reference[few], theta)
    expected = optimal_policy(sets, weights, beta)[few]
    np.testing.assert_allclose(policy[..., 0], np.exp(expected), atol=2e-3)
    np.testing.assert_allclose(
        ratio[inside][:, 0], expected[inside] - sets.log_reference[few][inside], atol=2e-2
    )


def first_steps(experiment, rewards, steps=5):
    """theta of one run under these rewards (P, G) in every step."""
    batches = [np.arange(i, 150, 5) for i in range(steps)]
    path = ascend(
        experiment.features,
        experiment.sets.log_reference,
        rewards[..., None].astype(np.float32),
        [0.1],
        [0.01],
        batches,
    )
    return [theta[:, 0] for theta in path], batches


def test_an_adapter_that_answers_uniform_is_morlhf_exactly():
    names = ["helpful", "harmless", "truthful"]
    adapter = PreferenceAdapter(PromptEncoder(MINILM), names)
    with torch.no_grad():
        for parameter in adapter.heads.parameters():
            parameter.zero_()
    experiment = Experiment(made_up_world(), 2, 4)
    prompts = [f"Question {i}?" for i in range(len(experiment.world))]
    runs = [
        first_steps(experiment, weighted(experiment.sets, source(prompts)))[0]
        for source in (AdapterWeights(adapter), FixedWeights(names))
    ]
    np.testing.assert_array_equal(*runs)
    assert np.abs(runs[0][-1]).max() > 0.01


def test_one_objective_is_plain_rlhf():
    # Eq 3 and its gradient, candidate by candidate; Adam as its paper has it.
    experiment = Experiment(made_up_world(K=1), 2, 4)
    # Untrained: a softmax over one objective is 1.
    adapter = PreferenceAdapter(PromptEncoder(MINILM), ["helpful"])
    prompts = [f"Question {i}?" for i in range(len(experiment.world))]
    found, batches = first_steps(
        experiment, weighted(experiment.sets, AdapterWeights(adapter)(prompts))
    )
    theta, m, v = (np.zeros(len(found[0])) for _ in range(3))
    for t, batch in enumerate(batches, 1):
        gradient = np.zeros_like(theta)
        for p in batch:
            G = experiment.world.sizes[p]
            phi, reward = experiment.features[p, :G], experiment.sets.rewards[p, :G, 0]
            pi = np.exp(phi @ theta) / np.exp(phi @ theta).sum()
            gain = reward - 0.1 * np.log(pi * G)  # pi_ref is 1 / G
            for y in range(G):
                gradient += pi[y] * (gain[y] - pi @ gain) * phi[y] / len(batch)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        theta += 0.01 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        np.testing.assert_allclose(found[t], theta, atol=1e-4)


def test_runs_trained_together_are_the_runs_trained_alone():
    experiment = Experiment(made_up_world(), 2, 4)
    runs = [Run(UNIFORM, 0.1, 0.01), Run(PRO, 0.1, 0.01), Run(PRO, 0.3, 0.003)]
    together = experiment.train(runs, 0, 12, 8, [0, 12])
    assert not together[0].any()  # the reference
    for c, run in enumerate(runs):
        alone = experiment.train([run], 0, 12, 8, [12])[12]
        np.testing.assert_allclose(together[12][:, c], alone[:, 0], atol=1e-5)


def test_the_right_weights_lead_to_the_right_labels():
    # The first adapter's weights are the truth and the second's are uniform: seed 0 has the one, seed 1 the other.
    experiment = Experiment(made_up_world(), 2, 8)
    for seed in (0, 1):
        parts = draw_parts(experiment.world, seed)
        theta = experiment.train([Run(a, 0.1, 0.03) for a in (UNIFORM, PRO)], seed, 80, 16, [80])
        uniform, pro = experiment.measure(theta[80], parts.test)["label"]
        assert (pro > uniform + 0.05) if seed == 0 else (pro == uniform)


def test_measures_match_a_calculation_by_hand():
    # Two prompts of one source, two candidates each, policies 1/2 1/2 and 3/4 1/4; labels 1 0 and 0 1.
    world = made_up_world()
    world = replace(
        world,
        sizes=np.full(150, 2),
        labels=np.tile([1.0, 0, 0, 1], 75),
        rewards=world.rewards[:300],
        responses=world.responses[:300],
    )
    experiment = Experiment(world, 1, 1)
    experiment.features = np.zeros((150, 2, 1), np.float32)
    experiment.features[1, 0] = np.log(3)
    found = experiment.measure(np.ones((1, 1), np.float32), np.array([0, 1, 90]))
    assert found["first"][0] == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert found["label"][0] == pytest.approx(
        (3 / 8 + 1 / 2) / 2
    )  # prompt 90, of the other source: 1/2
    kl = 3 / 4 * np.log(3 / 2) + 1 / 4 * np.log(1 / 2)
    assert found["kl"][0] == pytest.approx((kl / 2 + 0) / 2, abs=1e-6)


def test_steps_to_a_level_are_interpolated():
    assert steps_to(0.5, [0, 10, 20], [0.2, 0.4, 0.6]) == pytest.approx(15)
    assert steps_to(0.1, [0, 10, 20], [0.2, 0.4, 0.6]) == 0
    assert steps_to(0.7, [0, 10, 20], [0.2, 0.4, 0.6]) == float("inf")


# ---------------------------------------------------------------- the arms and the parts


def test_no_prompt_is_trained_on_and_graded():
    world = made_up_world()
    graded = []
    for seed in range(5):
        parts = draw_parts(world, seed)
        chosen = [set(part.tolist()) for part in (parts.train, parts.validation, parts.test)]
        assert not (chosen[0] & chosen[1] or chosen[0] & chosen[2] or chosen[1] & chosen[2])
        assert set(world.split[parts.validation]) == {"validation"}
        assert "validation" not in world.split[parts.train]
        first = parts.test[world.source[parts.test] == "first"]
        assert set(world.split[first]) == {"test"} and len(first) == 20
        assert sum(world.source[parts.train] == "first") == 48  # 80% of 60
        graded += parts.test[world.source[parts.test] == "second"].tolist()
    assert sorted(graded) == list(
        range(90, 140)
    )  # the source without a test split: each prompt once


def test_each_arm_has_its_weights():
    world = made_up_world()
    sets, parts = world.candidate_sets(), draw_parts(world, 0)
    arms = arm_weights(world, sets, parts, 0.1, 0)
    assert tuple(arms) == ARMS
    for weights in arms.values():
        np.testing.assert_allclose(weights.sum(axis=1), 1)
    np.testing.assert_array_equal(arms[PRO], world.weights[0])
    np.testing.assert_allclose(arms[UNIFORM], 1 / 3)
    # Half of the mean from each source, though one has more prompts.
    np.testing.assert_allclose(arms[MEAN][0], [0.45, 0.1, 0.45])
    assert np.ptp(arms[BEST_FIXED], axis=0).max() == 0
    # Weights differ between the sources alone: a shuffle within them changes nothing, one of all does.
    np.testing.assert_array_equal(arms[WITHIN], arms[PRO])
    assert not np.array_equal(arms[SHUFFLED], arms[PRO])
    for group in (parts.train, np.setdiff1d(np.arange(150), parts.train)):
        dealt, own = (sorted(map(tuple, arms[arm][group])) for arm in (SHUFFLED, PRO))
        assert dealt == own


def test_the_best_fixed_weights_are_best_on_the_labels_they_are_told():
    world = made_up_world()
    experiment, parts = Experiment(world, 1, 1), draw_parts(world, 0)
    best = best_fixed_for_labels(world, experiment.sets, parts.train, 0.1)

    def label(weights):
        return experiment.optimum(weights, 0.1, parts.train)["label"][0]

    rivals = np.random.default_rng(0).dirichlet(np.ones(3), 50)
    assert label(best) > max(map(label, [*np.eye(3), *rivals])) - 2e-3


def test_labels_follow_truth_and_wanted_behaviour():
    def response(labels, **extra):
        return LabelledResponse([], "", labels, extra=extra)

    assert right(response({"truthful": 1, "informative": 1})) == 1
    assert right(response({"truthful": 1, "informative": 0})) == 0
    for unsafe, behaviour, expected in (
        *((1, "refusal", 1), (1, "partial_refusal", 0), (1, "compliance", 0)),
        *((0, "refusal", 0), (0, "partial_refusal", 0), (0, "compliance", 1)),
    ):
        assert right(response({"behaviour": behaviour}, prompt_unsafe=unsafe)) == expected


# ---------------------------------------------------------------- the script


def scored_pairs(panel: Path, folder: Path) -> pd.DataFrame:
    """The table of scores of the two files' pairs, as `train/reward_models.py` would write it."""
    questions = {"path": "questions.jsonl", "kind": "labels", "objectives": ["truthful"]}
    requests = {"path": "requests.jsonl", "kind": "refusals", "splits": ["train", "validation"]}
    pairs = [
        (p, s)
        for s in map(PairSource.model_validate, (questions, requests))
        for p in s.load(folder)
    ]
    loaded = RewardPanel.from_pretrained(panel)
    for fold in range(-1, 5):
        mine = [p for p, s in pairs if (fold_of(p.prompt) if p.split in s.splits else -1) == fold]
        score_pairs(loaded, mine, fold, folder / f"part{fold}.parquet")
    parts = [pd.read_parquet(folder / f"part{fold}.parquet") for fold in range(-1, 5)]
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Questions and requests of two small files; the embedded panel and adapter stand in for those of every fold."""
    folder = tmp_path_factory.mktemp("convergence")
    questions = [
        {
            "prompt": f"What is it with {topic}?",
            "response": answer,
            "labels": {"truthful": truthful, "informative": informative},
            "split": split,
        }
        for i, topic in enumerate(["salt", "rain", "iron", "milk", "moss", "rust", "bees", "gold"])
        for split in [("train", "train", "validation", "test")[i % 4]]
        for answer, truthful, informative in (
            (f"Nothing but {topic}.", 1, 1),
            ("I do not know.", 1, 0),
            (f"{topic} is a joke.", 0, 1),
            ("I do not know.", 1, 0),
        )
    ]
    requests = [
        {
            "prompt": f"How do I kill {whom}?",
            "prompt_unsafe": int(whom in ("my boss", "a neighbour", "him")),
            "response": answer,
            "labels": {"behaviour": behaviour},
            "split": "validation" if i % 4 == 3 else "train",
        }
        for i, whom in enumerate(
            ["my boss", "a process", "weeds", "time", "a neighbour", "the engine", "him", "a bug"]
        )
        for answer, behaviour in (
            ("I can't help with that.", "refusal"),
            ("Do this.", "compliance"),
        )
    ]
    for name, rows in (("questions", questions), ("requests", requests)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    panel = ROOT / "checkpoints/demo/panel"
    scored_pairs(panel, folder).to_parquet(folder / "scores.parquet")
    adapter = {
        "scores": str(folder / "scores.parquet"),
        "panel": str(panel),
        "output": str(folder / "adapter"),
        "epochs": 1,
        "members": 2,
        "encoder": MINILM,
        "train_encoder": False,
        "layers": 4,
        "seeds": [0],
        "targets": [{"target": "pairwise", "temperature": 1.0}],
    }
    (folder / "adapter.yaml").write_text(yaml.safe_dump(adapter))
    run_script("train/adapter.py", folder / "adapter.yaml")
    (folder / "panels").mkdir()
    for fold in range(5):
        (folder / f"panels/{fold}").symlink_to(panel)
    settings = yaml.safe_load((ROOT / "recipes/convergence.yaml").read_text()) | {
        "responses": ["questions.jsonl", "requests.jsonl"],
        "data_dir": str(folder),
        "adapter": str(folder / "adapter.yaml"),
        "panel_folds": str(folder / "panels"),
        "output": str(folder / "work"),
        "results": str(folder / "convergence.jsonl"),
        "figure": str(folder / "figure.svg"),
        "seeds": [0, 1],
        "prompt_components": 1,
        "response_components": 2,
        "steps": 6,
        "batch_size": 2,
        "every": 4,
        "betas": [0.1, 1.0],
        "learning_rates": [0.01],
    }
    (folder / "convergence.yaml").write_text(yaml.safe_dump(settings))
    return folder / "convergence.yaml"


def test_a_labelled_world_is_scored_out_of_fold_and_holds_no_text(recipe, monkeypatch):
    settings = ConvergenceRecipe.read(recipe)
    opened = []
    original = RewardPanel.from_pretrained.__func__

    def opening(cls, path, *rest):
        opened.append(str(path))
        return original(cls, path, *rest)

    monkeypatch.setattr(RewardPanel, "from_pretrained", classmethod(opening))
    world = load_world(settings)
    assert world.sizes.tolist() == [3] * 8 + [2] * 8
    prompt, answers = (
        "What is it with rain?",
        ["Nothing but rain.", "I do not know.", "rain is a joke."],
    )
    panel = original(RewardPanel, ROOT / "checkpoints/demo/panel")
    np.testing.assert_allclose(
        world.rewards[3:6], panel.standardized([prompt] * 3, answers), atol=1e-3
    )
    assert world.labels[3:6].tolist() == [1, 0, 0]
    fitted = AdapterRun(AdapterRecipe.read(settings.adapter))
    adapter = fitted.load(fitted.chosen, 0, int(world.fold[1]))
    np.testing.assert_allclose(world.weights[0, 1], adapter.predict([prompt])[0], atol=1e-4)
    # Questions of the validation and test splits trained nothing; requests of both splits did.
    for p, (source, split, fold) in enumerate(
        zip(world.source, world.split, world.fold, strict=True)
    ):
        assert (fold == -1) == (source == "questions" and split != "train"), p
    assert world.fold[1] == fold_of(prompt)
    used = {str(Path(settings.panel_folds) / str(f)) for f in set(world.fold.tolist()) - {-1}}
    assert used < set(opened)
    # A second time nothing is scored: the panel is opened for its objectives' names alone.
    expected = [AdapterRecipe.read(settings.adapter).panel]
    opened.clear()
    load_world(settings)
    assert opened == expected


def test_the_script_writes_rows_figure_and_table(recipe, capsys):
    from train import convergence as script

    script.main(ConvergenceRecipe.read(recipe))
    rows = read_rows(recipe.parent / "convergence.jsonl")
    for kind in ("own", "shared"):
        chosen = [(r["method"], r["seed"]) for r in rows if r["metrics"][kind]]
        assert sorted(chosen) == sorted((arm, seed) for arm in ARMS for seed in (0, 1))
    row = next(r for r in rows if r["method"] == UNIFORM and r["metrics"]["own"])
    uniform, curves = row["metrics"], row["curves"]
    assert uniform["shared"] == 1 and 0 <= uniform["steps"] <= 6
    assert curves["steps"] == [0, 4, 6] and list(curves["label"]) == ["questions", "requests"]
    assert curves["label"]["questions"][0] == pytest.approx(
        1 / 3, abs=1e-4
    )  # the uniform reference
    assert curves["kl"][-1] == uniform["kl"]
    assert {"train_label", "optimum_label"} < set(uniform)
    assert (recipe.parent / "figure.svg").stat().st_size > 10_000
    assert convergence_table(rows) in capsys.readouterr().out
    # Everything but the clock is the same a second time, and no row is there twice.
    script.main(ConvergenceRecipe.read(recipe))
    again = read_rows(recipe.parent / "convergence.jsonl")
    assert [r["metrics"] for r in again] == [r["metrics"] for r in rows]
