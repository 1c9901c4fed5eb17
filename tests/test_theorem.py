"""Theorem 5.1 on finite candidate sets: optimum and gap against brute force, the two claims in small, the script."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit, softmax

from pro_core.adapter.global_weights import fit_global_weights
from pro_core.adapter.training import fit_adapter
from pro_core.evaluation import theorem
from pro_core.evaluation.results import read_rows, write_rows
from pro_core.evaluation.theorem import KeptRows, TheoremRecipe
from pro_core.metrics import linear_slope, log_slope
from pro_core.reporting.theory_tables import planted_table, theorem_table
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.scores import columns
from pro_core.system.bundled_models import MINILM
from pro_core.theory.alignment_gap import (
    alignment_gap,
    best_fixed_weights,
    candidate_sets,
    curvature,
    objective,
    optimal_policy,
)
from pro_core.theory.linear_adapters import Examples, fit_adapters
from pro_core.theory.planted import NAMES, planted_features, planted_truth
from pro_core.theory.theorem import (
    FIXED,
    PlantedWeights,
    draw_examples,
    load_world,
    measure_adapters,
    measure_fixed,
    normalized,
    real_world,
    save_world,
    synthetic_world,
)

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent


def sets_of(*rewards):
    return candidate_sets([np.array(r, dtype=float) for r in rewards], np.zeros((len(rewards), 2)))


def random_sets(seed=0, P=6, K=3):
    rng = np.random.default_rng(seed)
    return sets_of(*(rng.normal(size=(rng.integers(2, 9), K)) for _ in range(P)))


# ---------------------------------------------------------------- Eq 3, 12 and 13


def test_two_candidates_match_a_calculation_by_hand():
    # z(a) = (1, 0), z(b) = (0, 1), pi_ref = 1/2 each, beta = 1, w* = (1, 0), w = (1/2, 1/2).
    # pi*_{w*}(a) = e / (e + 1) = 0.7311, and its J is log(1/2 e + 1/2) = 0.62011.
    # pi*_w = pi_ref: both candidates have w . z = 1/2. Its J under w* is 1/2 * 1 - 0 = 0.5. The gap is 0.12011.
    sets = sets_of([[1, 0], [0, 1]])
    assert np.exp(optimal_policy(sets, [1, 0], 1.0))[0] == pytest.approx([expit(1), expit(-1)])
    best = objective(sets, optimal_policy(sets, [1, 0], 1.0), [1, 0], 1.0)
    assert best[0] == pytest.approx(np.log((np.e + 1) / 2))
    assert alignment_gap(sets, [0.5, 0.5], [1, 0], 1.0)[0] == pytest.approx(0.120115, abs=1e-6)
    # Near w the gap is 1/2 beta * variance of d . z: along (1, -1) / sqrt 2 the two candidates lie at +-1/sqrt 2, the
    # variance is 1/2, the curvature 1/4; norm(d)^2 = 1/2 gives 0.125, close to 0.12011.
    assert curvature(sets, [0.5, 0.5], 1.0)[0] == pytest.approx([0.25])


def test_the_optimum_is_what_a_numerical_search_finds():
    sets, weights, beta = random_sets(seed=1, P=1), np.array([0.2, 0.5, 0.3]), 0.4
    G = sets.rewards.shape[1]

    def loss(logits):
        policy = softmax(logits)
        reward = policy @ (sets.rewards[0] @ weights)
        return -(reward - beta * (policy * np.log(policy * G)).sum())  # pi_ref = 1 / G

    found = minimize(
        loss,
        np.zeros(G),
        method="Nelder-Mead",
        options={"maxiter": 20_000, "fatol": 1e-12, "xatol": 1e-8},
    )
    log_policy = optimal_policy(sets, weights, beta)
    np.testing.assert_allclose(np.exp(log_policy)[0], softmax(found.x), atol=1e-3)
    assert objective(sets, log_policy, weights, beta)[0] == pytest.approx(-found.fun, abs=1e-6)


def test_padding_is_no_candidate():
    short, long = np.eye(3)[:2], np.random.default_rng(0).normal(size=(7, 3))
    both, alone = sets_of(short, long), sets_of(short)
    w, truth = [0.2, 0.5, 0.3], [0.7, 0.2, 0.1]
    np.testing.assert_array_equal(np.exp(optimal_policy(both, w, 0.1))[0, 2:], 0)
    assert alignment_gap(both, w, truth, 0.1)[0] == pytest.approx(
        alignment_gap(alone, w, truth, 0.1)[0]
    )


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="got 1 candidates"):
        sets_of([[1, 0], [0, 1]], [[1, 0]])
    with pytest.raises(ValueError, match="above 0"):
        optimal_policy(sets_of([[1, 0], [0, 1]]), [0.5, 0.5], 0.0)


numbers = st.floats(-3, 3)
weights_of_3 = st.lists(st.floats(0.01, 1), min_size=3, max_size=3).map(
    lambda w: np.array(w) / sum(w)
)
rewards_of_3 = st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=2, max_size=6)


@settings(deadline=None, max_examples=60)
@given(rewards_of_3, weights_of_3, weights_of_3, st.floats(0.05, 5), numbers)
def test_the_gap_is_a_divergence_within_its_bounds(rewards, w, truth, beta, constant):
    sets = sets_of(rewards)
    gap = alignment_gap(sets, w, truth, beta)[0]
    followed, best = (optimal_policy(sets, v, beta)[0] for v in (w, truth))
    # beta KL(pi*_w, pi*_{w*}), so 0 or more, and 0 for the true weights.
    assert gap == pytest.approx(beta * (np.exp(followed) * (followed - best)).sum(), abs=1e-8)
    assert gap > -1e-9 and abs(alignment_gap(sets, truth, truth, beta)[0]) < 1e-9
    # Hoeffding's lemma bounds the variance under any policy by a quarter of the squared range.
    along = np.array(rewards) @ (w - truth)
    assert gap <= (along.max() - along.min()) ** 2 / (8 * beta) + 1e-9
    # What all candidates of a prompt share, as a reward model's own offset, changes nothing.
    moved = sets_of(np.add(rewards, [constant, 0, -constant]))
    assert alignment_gap(moved, w, truth, beta)[0] == pytest.approx(gap, abs=1e-8)


def test_the_gap_is_the_curvature_summed_along_the_way():
    sets, w, truth, beta = (
        random_sets(seed=2),
        np.array([0.1, 0.3, 0.6]),
        np.array([0.5, 0.4, 0.1]),
        0.3,
    )
    gap, squared = alignment_gap(sets, w, truth, beta), ((w - truth) ** 2).sum()
    path = [curvature(sets, w + t * (truth - w), beta) for t in np.linspace(0, 1, 201)]
    assert (np.min(path, axis=0)[:, 0] * squared <= gap + 1e-9).all()
    assert (gap <= np.max(path, axis=0)[:, -1] * squared + 1e-9).all()
    # Very near the truth only the curvature there counts.
    near = alignment_gap(sets, truth + 1e-3 * (w - truth), truth, beta)
    least, most = curvature(sets, truth, beta)[:, [0, -1]].T * squared * 1e-6
    assert (near >= 0.99 * least).all() and (near <= 1.01 * most).all()


def test_the_best_fixed_weights_are_the_best_on_a_grid():
    sets = random_sets(seed=3, P=40, K=2)
    truth = np.random.default_rng(0).dirichlet([1, 2], 40)
    grid = np.linspace(0, 1, 1001)
    gaps = [alignment_gap(sets, [p, 1 - p], truth, 0.1).mean() for p in grid]
    found = best_fixed_weights(sets, truth, 0.1)
    assert found[0] == pytest.approx(grid[int(np.argmin(gaps))], abs=0.002)


# ---------------------------------------------------------------- planted weights and pairs


def test_planted_weights_are_within_reach_of_a_linear_head():
    world = synthetic_world(300, K=4)
    plant = PlantedWeights.draw(world, seed=0, components=8, base=0.5)
    weights = plant(world.test, 1.0)
    x = np.column_stack([normalized(world.test.features), np.ones(len(world.test))])
    logits = np.log(weights) - np.log(weights).mean(axis=1, keepdims=True)
    fitted = x @ np.linalg.lstsq(x, logits, rcond=None)[0]
    np.testing.assert_allclose(fitted, logits, atol=1e-8)
    assert np.ptp(plant(world.test, 0.0), axis=0).max() < 1e-12
    spreads = [plant(world.test, s).var(axis=0).sum() for s in (0.25, 0.5, 1, 2)]
    assert spreads == sorted(spreads) and spreads[0] > 0


def test_pairs_come_from_the_candidates_and_prompts_return_last():
    sets = random_sets(seed=4, P=10)
    sets.features[:, 0] = np.arange(10)
    truth = np.random.default_rng(0).dirichlet(np.ones(3), 10)
    drawn = draw_examples(sets, truth, 25, 0.3, np.random.default_rng(0))
    prompts = drawn.features[:, 0].astype(int)
    assert sorted(prompts[:10]) == sorted(prompts[10:20]) == list(range(10))
    for p, chosen, rejected in zip(prompts, drawn.z_chosen, drawn.z_rejected, strict=True):
        real = sets.rewards[p][np.isfinite(sets.log_reference[p])]
        at = [int(np.flatnonzero((real == z).all(axis=1))[0]) for z in (chosen, rejected)]
        assert at[0] != at[1]
    np.testing.assert_array_equal(drawn.true_weights, truth[prompts])


# ---------------------------------------------------------------- the batched adapters


@pytest.mark.parametrize(("target", "temperature"), [("pairwise", 0.25), ("paper_z", 1.0)])
def test_linear_adapters_are_those_of_fit_adapter(target, temperature):
    planted, features = planted_truth(0), planted_features(MINILM)
    few = planted.train.iloc[::10].reset_index(drop=True)
    width = 384  # MiniLM's
    x, held_out = (
        torch.stack([features[p] for p in prompts])
        for prompts in (few["prompt"], planted.test["prompt"].unique())
    )
    chosen, rejected = (columns(few, f"z_{side}", NAMES) for side in ("chosen", "rejected"))
    truth = np.stack([planted.weights[p] for p in few["prompt"]])
    example = Examples(x[:, :width].numpy(), chosen, rejected, truth)
    how = {"epochs": 12, "batch_size": 64, "learning_rate": 1e-3}
    predict = fit_adapters([example], target, temperature, [0], **how)
    margin, n = (chosen - rejected).astype(np.float32), len(few)
    adapter = fit_adapter(
        few, NAMES, encoder=MINILM, target=target, temperature=temperature, features=features,
        hidden=0, members=1, global_weights=fit_global_weights(margin, np.ones(n), ["all"] * n, 1000),
        **how,
    )  # fmt: skip
    expected = adapter.member_weights(held_out)[:, 0]
    assert expected.std() > 0.05
    np.testing.assert_allclose(predict(held_out[:, :width])[0], expected, atol=1e-4)


def test_heads_of_one_batch_do_not_touch_each_other():
    world, seeds = synthetic_world(100, K=3), [3, 4]
    truth = PlantedWeights.draw(world, 0, 4, 0.5)(world.train, 1.0)
    examples = [draw_examples(world.train, truth, 50, 0.3, np.random.default_rng(s)) for s in seeds]
    together = fit_adapters(examples, "pairwise", 0.3, seeds, epochs=5)(world.test.features)
    for i, seed in enumerate(seeds):
        alone = fit_adapters([examples[i]], "pairwise", 0.3, [seed], epochs=5)(world.test.features)
        np.testing.assert_allclose(together[i], alone[0], atol=1e-4)


# ---------------------------------------------------------------- the two claims, in small


def test_slopes_match_a_calculation_by_hand():
    x = np.array([[1, 2, 4], [2, 3, 5]])
    assert log_slope(x, 3.0 * x**2) == (pytest.approx(2), [pytest.approx(2), pytest.approx(2)])
    # Through the origin: (1*1 + 2*3) / (1 + 4) = 7/5 and (1*2 + 2*2) / 5 = 6/5; mean 1.3, deviation 0.1414, and the
    # t-interval of two values is 12.706 * 0.1414 / sqrt 2 = 1.2706 wide to each side.
    mean, (lo, hi) = linear_slope([[1, 2], [1, 2]], [[1, 3], [2, 2]])
    assert (mean, lo, hi) == (
        pytest.approx(1.3),
        pytest.approx(0.0294, abs=1e-3),
        pytest.approx(2.5706, abs=1e-3),
    )


def test_fixed_weights_cost_more_the_more_diverse_the_truth():
    world = synthetic_world(300)
    plant = PlantedWeights.draw(world, 0, 8, 0.5)
    found = [measure_fixed(world, plant, spread, 0.1, seed=0) for spread in (0.25, 0.5, 1, 2)]
    for method in ("uniform", "best fixed"):
        gaps = [f[method]["gap"] for f in found]
        assert gaps == sorted(gaps)
    assert all(
        f["best fixed"]["gap"] < min(f[m]["gap"] for m in FIXED if m != "best fixed") for f in found
    )


def test_more_pairs_help_where_the_target_is_not_biased():
    world = synthetic_world(4096)
    plants = [PlantedWeights.draw(world, s, 8, 0.5) for s in (0, 1)]
    how = {"preference_temperature": 0.3, "steps": 300, "batch_size": 64, "learning_rate": 3e-3}

    def gap(target, temperature, n):
        found = measure_adapters(
            world, plants, 1.0, 0.1, n, [0, 1], target=target, temperature=temperature, **how
        )
        return np.mean([f["gap"] for f in found])

    fixed = np.mean([measure_fixed(world, p, 1.0, 0.1, 0)["best fixed"]["gap"] for p in plants])
    for target, temperature in (("true w*", 1.0), ("pairwise", 0.3)):
        assert gap(target, temperature, 4096) < 0.5 * min(fixed, gap(target, temperature, 32))
    assert gap("paper_z", 0.1, 4096) > 2 * gap("pairwise", 0.3, 4096)


# ---------------------------------------------------------------- real prompts, the script


TOPICS = (
    "bread",
    "rain",
    "glass",
    "sleep",
    "Mars",
    "salt",
    "bees",
    "gold",
    "tea",
    "wool",
    "ink",
    "snow",
)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("theorem")
    rows = [
        {"prompt": f"What is it with {topic}?", "response": answer, "labels": {}, "split": split}
        for i, topic in enumerate(TOPICS)
        for split in ["train" if i % 3 else "test"]
        for answer in (
            f"Nothing but {topic}.",
            "I do not know.",
            f"{topic} is a joke.",
            "I do not know.",
        )
    ]
    (folder / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = yaml.safe_load((ROOT / "recipes/theorem.yaml").read_text()) | {
        "responses": "responses.jsonl",
        "data_dir": str(folder),
        "panel": str(ROOT / "checkpoints/demo/panel"),
        "output": str(folder / "work"),
        "results": str(folder / "theorem.jsonl"),
        "figure": str(folder / "figure.svg"),
        "seeds": [0, 1],
        "betas": [0.1],
        "spreads": [0.5, 1, 2],
        "sizes": [8, 16, 32],
        "components": 3,
        "steps": 10,
    }
    (folder / "theorem.yaml").write_text(yaml.safe_dump(settings))
    return folder / "theorem.yaml"


def run(path: Path) -> None:
    from train import theorem as script

    script.main(TheoremRecipe.read(path))


def test_a_real_world_holds_each_response_once_and_no_text(recipe, tmp_path):
    panel = RewardPanel.from_pretrained(ROOT / "checkpoints/demo/panel")
    world = real_world(recipe.parent / "responses.jsonl", panel, MINILM)
    assert world.train.rewards.shape == (8, 3, 5) and world.test.features.shape == (4, 384)
    prompt = f"What is it with {TOPICS[1]}?"
    z = panel.standardized([prompt], [f"{TOPICS[1]} is a joke."])[0]
    np.testing.assert_allclose(world.train.rewards[0, 2], z, atol=1e-4)
    save_world(world, tmp_path / "world.npz")
    again = load_world(tmp_path / "world.npz")
    np.testing.assert_array_equal(again.test.rewards, world.test.rewards)
    np.testing.assert_array_equal(again.train.log_reference, world.train.log_reference)


def test_the_script_measures_each_setting_once(recipe, monkeypatch, capsys):
    monkeypatch.setattr(
        "pro_core.theory.planted.EPOCHS", 1
    )  # test_planted_truth.py fits in earnest
    run(recipe)
    results = recipe.parent / "theorem.jsonl"
    rows = read_rows(results)
    # Two worlds: 3 spreads x 3 fixed weights, 3 sizes x 4 targets; one planted truth of 6 methods. Two seeds.
    assert len(rows) == 2 * (2 * (3 * 3 + 3 * 4) + 6)
    assert all(r["metrics"]["gap"] >= 0 for r in rows if r["experiment"] != "theorem_planted")
    assert (recipe.parent / "figure.svg").stat().st_size > 10_000
    tables = capsys.readouterr().out
    assert "| adapter, pairwise-t0.3 | synthetic |" in tables and "| oracle |" in tables
    assert theorem_table(rows) in tables and planted_table(rows) in tables

    # Without some of its rows it measures these again and leaves the others as they are.
    lost = [r for r in rows if r["experiment"] == "theorem" and r["setting"].get("examples") == 16]
    results.unlink()
    write_rows(results, [r for r in rows if r not in lost])
    run(recipe)
    again = read_rows(results)
    assert all(r in again for r in rows if r not in lost) and len(again) == len(rows)
    measured = {(str(r["setting"]), r["method"], r["seed"]): r["metrics"] for r in again}
    for row in lost:  # a setting's numbers depend on nothing but its seed
        assert measured[str(row["setting"]), row["method"], row["seed"]] == row["metrics"]

    # With everything there, nothing is loaded.
    monkeypatch.setattr(theorem, "load_world", None)
    run(recipe)
    # Another version of the recipe drops these rows, and no other recipe's.
    other = [r | {"config": "other.yaml"} for r in rows[:2]]
    write_rows(results, other)
    KeptRows(str(results), recipe.name, "00000000", [0])
    assert read_rows(results) == other
