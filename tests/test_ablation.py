"""Ablations of panels: arms and seeds of one recipe, graded on the same pairs, kept when a run is killed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from test_train_scripts import own_pairs, write_rows
from tiny import tiny_encoder

from pro_core.data.schema import PreferencePair
from pro_core.data.training_pairs import TRAINED_ON, TrainingPairs
from pro_core.evaluation import ablation
from pro_core.evaluation.ablation import ablation_rows, auc, head_correlation, share_held_out
from pro_core.evaluation.results import read_rows
from pro_core.reporting.reward_tables import ablation_table
from pro_core.rewards.calibration import text_lengths
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.panel_runs import PanelRun
from pro_core.rewards.recipes import AblationRecipe
from pro_core.runs.recipes import ConfigError, described
from train import ablation as script

FIRST, OTHER = "as it is", "two heads, own pairs alone"


def test_arms_are_graded_on_the_first_arms_pairs_and_on_no_others():
    def pair(n, name="helpful", split="test"):
        prompt = [{"role": "user", "content": f"Question {n}"}]
        return PreferencePair(prompt, "yes", "no", name, split=split)

    first = [pair(0), pair(1), pair(2)]
    arm = TrainingPairs([pair(2, split="train")], [1], [pair(1), pair(3), pair(4, "truthful")])
    share_held_out(arm, first, ["helpful", "truthful"])
    graded = {(p.prompt[0]["content"], p.objective): p.ungraded for p in arm.held_out}
    assert graded == {
        ("Question 1", "helpful"): "",
        ("Question 4", "truthful"): "",  # the first arm has no such objective
        ("Question 0", "helpful"): "",  # the arm left its source out
        ("Question 2", "helpful"): TRAINED_ON,
    }


# ---------------------------------------------------------------- the recipe


def recipe(folder: Path, **changes) -> AblationRecipe:
    settings = {
        "objectives": ["helpful", "harmless"],
        "model": str(folder / "base"),
        "output": str(folder / "out"),
        "results": str(folder / "rows.jsonl"),
        "data_dir": str(folder),
        "data": [{"path": "own_pairs.jsonl"}, {"path": "more_pairs.jsonl", "epochs": 2}],
        "pooling": "mean",
        "learning_rate": 3e-3,
        "batch_size": 16,
        "max_length": 48,
        "seeds": [0, 1],
        "arms": {FIRST: None, OTHER: {"members": 2, "data": [{"path": "own_pairs.jsonl"}]}},
    }
    path = folder / "ablation.yaml"
    path.write_text(yaml.safe_dump(settings | changes, sort_keys=False))
    return AblationRecipe.read(path)


def test_each_arm_and_seed_is_a_panel_recipe_of_its_own(tmp_path):
    arms = {"B, again": {"data.1.epochs": 4, "lora.r": 8, "label_smoothing": 0.1}, "A": None}
    panels = list(recipe(tmp_path, arms=arms).panels())
    assert [(arm, seed) for arm, seed, _ in panels] == [
        (arm, seed) for seed in (0, 1) for arm in arms
    ]
    changed, plain, last, _ = (panel for _, _, panel in panels)
    assert [source.epochs for source in changed.data] == [1, 4] and changed.lora == {"r": 8}
    assert [source.epochs for source in plain.data] == [1, 2] and plain.lora is None
    assert (changed.label_smoothing, plain.label_smoothing, plain.folds) == (0.1, 0, 0)
    assert (changed.seed, last.seed) == (0, 1)
    assert last.output == str(tmp_path / "out/b-again/seed1")
    # What is hashed of an arm's data is what was written, as in the recipe of a single panel.
    assert changed.decides("data")["data"][1] == {"path": "more_pairs.jsonl", "epochs": 4}


@pytest.mark.parametrize(
    ("arms", "field"),
    [
        ({"A": {"label_smothing": 0.1}}, "arms.A.label_smothing"),
        ({"A": {"label_smoothing": 0.5}}, "arms.A.label_smoothing"),
        ({"A": {"data.0.epoch": 2}}, "arms.A.data.0.epoch"),
        ({"A": {"data.0.epochs": 0}}, "arms.A.data.0.epochs"),
        ({"A": {"data.2.epochs": 2}}, "arms.A.data.2.epochs"),
        ({"A": {"output": "o"}}, "arms.A.output"),
        ({"A": {"seed": 1}}, "arms.A.seed"),
        ({"A": {"folds": 5}}, "arms.A.folds"),
        ({"a b": None, "A-B": None}, "arms.A-B"),
        ({}, "arms"),
    ],
)
def test_an_invalid_arm_is_named_when_the_recipe_is_read(tmp_path, arms, field):
    with pytest.raises(ConfigError) as refused:
        recipe(tmp_path, arms=arms)
    assert refused.value.fields == (field,)


def test_the_help_names_what_arms_may_change():
    varied = list(described(AblationRecipe))[-1]
    assert "members" in varied and "output" not in varied


# ---------------------------------------------------------------- the measures


def test_the_correlation_of_two_heads_does_not_depend_on_which_answer_is_called_chosen():
    rng = np.random.default_rng(0)
    sides = {f"z_{side}_{n}": rng.normal(1, 1, 50) for side in SIDES for n in "ab"}
    table = pd.DataFrame(sides | {"objective": ["a", "b"] * 25})
    measured = head_correlation(table, "a", "b")
    m_a, m_b = (table[f"z_chosen_{n}"] - table[f"z_rejected_{n}"] for n in "ab")
    both_orders = np.corrcoef(np.r_[m_a, -m_a], np.r_[m_b, -m_b])[0, 1]
    assert measured == pytest.approx(both_orders)
    swapped = table.copy()
    for n in "ab":
        chosen, rejected = f"z_chosen_{n}", f"z_rejected_{n}"
        swapped.loc[::3, [chosen, rejected]] = table.loc[::3, [rejected, chosen]].to_numpy()
    assert head_correlation(swapped, "a", "b") == pytest.approx(measured)
    # Pairs of a third objective do not count.
    other = pd.concat([table, table.assign(objective="c", z_chosen_a=9.0, z_chosen_b=-9.0)])
    assert head_correlation(other, "a", "b") == pytest.approx(measured)
    assert np.isnan(head_correlation(table.assign(z_chosen_a=0, z_rejected_a=0), "a", "b"))
    opposed = table.assign(z_chosen_b=-table["z_chosen_a"], z_rejected_b=-table["z_rejected_a"])
    assert head_correlation(opposed, "a", "b") == pytest.approx(-1)


SIDES = ("chosen", "rejected")


def test_auc_is_the_share_of_right_and_wrong_pairs_in_the_right_order():
    rng = np.random.default_rng(1)
    confidence, right = rng.integers(0, 6, 60), rng.random(60) < 0.7
    order = np.sign(confidence[right][:, None] - confidence[~right][None, :])
    assert auc(confidence, right) == pytest.approx(((order + 1) / 2).mean())
    assert auc([3, 2, 1], [True, True, False]) == 1
    assert np.isnan(auc([1, 2], [True, True]))


# ---------------------------------------------------------------- the run


@pytest.fixture
def folder(tmp_path):
    """A folder with a tiny base model and two files of pairs of other prompts. A third of the held-out labels is wrong,
    so that a panel errs."""
    tiny_encoder(tmp_path / "base")
    for name, n, before in (("own", 80, ""), ("more", 40, "Also: ")):
        rows = [row | {"prompt": before + row["prompt"]} for row in own_pairs(n)]
        for row in [row for row in rows if row["split"] != "train"][::3]:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
        write_rows(tmp_path / f"{name}_pairs.jsonl", rows)
    return tmp_path


def made(folder: Path, arm: str = "") -> dict[Path, int]:
    """When each file of the trained panels was written. (scores.parquet beside them is put together by every run.)"""
    files = (folder / "out" / arm).rglob("folds/**/*.safetensors")
    return {file: file.stat().st_mtime_ns for file in files}


def of(rows, arm, seed=0, split="test"):
    (row,) = (r for r in rows if (r["method"], r["seed"], r["split"]) == (arm, seed, split))
    return row


@pytest.mark.slow
def test_arms_are_graded_on_the_same_pairs_and_compared_to_the_first(folder, capsys):
    asked = recipe(folder)
    script.main(asked)
    rows = read_rows(asked.results)
    assert ablation_table(rows) in capsys.readouterr().out
    assert [(r["seed"], r["method"], r["split"]) for r in rows] == [
        (seed, arm, split)
        for seed in (0, 1)
        for arm in (FIRST, OTHER)
        for split in ("validation", "test")
    ]
    # The second arm does not train on the second file, but is graded on it.
    for split in ("validation", "test"):
        first, other = of(rows, FIRST, split=split), of(rows, OTHER, split=split)
        for row in (first, other):
            assert row["experiment"] == "ablation" and row["config"] == "ablation.yaml"
            assert row["metrics"]["n_helpful_source_more_pairs"] == 4
            assert row["metrics"]["n_helpful"] == row["metrics"]["n_harmless"] == 12
            assert -1 <= row["metrics"]["head_correlation_helpful_harmless"] <= 1
        assert FIRST not in first["leads"]
        led = other["leads"][FIRST]["metrics"]
        for name in ("helpful", "harmless"):
            accuracies = [row["metrics"][f"accuracy_{name}"] for row in (first, other)]
            assert led[f"accuracy_{name}"] == pytest.approx(accuracies[1] - accuracies[0], abs=2e-5)
        assert "spread_auc_helpful" not in first["metrics"]

    # What disagreement tells, by hand from the saved panel.
    panel = RewardPanel.from_pretrained(folder / "out/two-heads-own-pairs-alone/seed0/panel")
    pairs = [r for f in ("own", "more") for r in lines(folder / f"{f}_pairs.jsonl")]
    pairs = [r for r in pairs if r["split"] == "test" and r["objective"] == "helpful"]
    z = []
    for side in SIDES:
        texts = [r[side] for r in pairs]
        scores = panel.score_with_members([r["prompt"] for r in pairs], texts)[1]
        z.append(panel.require_stats().normalize(scores, text_lengths(texts))[:, :, 0])
    differences = z[0] - z[1]
    margin, spread = differences.mean(axis=0), differences.std(axis=0, ddof=1)
    metrics = of(rows, OTHER)["metrics"]
    expected = auc(np.abs(margin), margin > 0), auc(np.abs(margin) / spread, margin > 0)
    found = metrics["margin_auc_helpful"], metrics["spread_auc_helpful"]
    assert found == pytest.approx(expected, abs=1e-5) and 0 < min(found) < max(found) < 1


def lines(path: Path) -> list[dict]:
    return [yaml.safe_load(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_a_killed_ablation_goes_on_to_the_same_rows_and_trains_nothing_twice(folder, monkeypatch):
    asked, make, calls = recipe(folder), PanelRun.make, []

    def killed(run):
        calls.append(run)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return make(run)

    monkeypatch.setattr(ablation.PanelRun, "make", killed)
    with pytest.raises(KeyboardInterrupt):
        ablation_rows(asked)
    monkeypatch.undo()
    half, before = read_rows(asked.results), made(folder)
    assert len(half) == 4 and before
    rows = ablation_rows(asked)
    assert rows[:4] == half and len(rows) == 8  # not even graded again
    after = made(folder)
    assert {file: after[file] for file in before} == before
    assert ablation_rows(asked) == rows and made(folder) == after

    # A changed arm alone is trained again; the first arm's rows stay as they are.
    arms = {FIRST: None, OTHER: asked.arms[OTHER] | {"label_smoothing": 0.2}}
    changed = ablation_rows(recipe(folder, arms=arms))
    kept = [r for r in rows if r["method"] == FIRST]
    assert [r for r in changed if r["method"] == FIRST] == kept and len(changed) == 8
    assert of(changed, OTHER)["version"] != of(rows, OTHER)["version"]
    assert made(folder, "as-it-is").items() <= after.items()
    assert made(folder, "two-heads-own-pairs-alone").items().isdisjoint(after.items())

    # An arm that the recipe no longer has keeps no rows.
    assert ablation_rows(recipe(folder, arms={FIRST: None})) == kept
    assert read_rows(asked.results) == kept


def test_a_changed_recipe_names_a_file_of_its_own(folder):
    asked = recipe(folder)
    changed = AblationRecipe.read(folder / "ablation.yaml", ["seeds=[0]"])
    with pytest.raises(ConfigError) as refused:
        ablation_rows(changed)
    assert refused.value.fields == ("results",) and not Path(asked.results).exists()


def test_the_table_has_a_line_per_arm_and_one_per_ensemble():
    def row(arm, seed, split, accuracy, more=(), leads=()):
        metrics = {"accuracy_helpful": accuracy, "n_helpful": 10, "accuracy_harmless": 0.5}
        metrics |= {"n_harmless": 8, "head_correlation_helpful_harmless": -0.5}
        columns = {"experiment": "ablation", "method": arm, "seed": seed, "split": split}
        columns |= {"metrics": metrics | dict(more), "ci95": {}, "leads": dict(leads)}
        return columns | {"objectives": ["helpful", "harmless"], "kind": "method"}

    spread = {"margin_auc_helpful": 0.6, "spread_auc_helpful": 0.7}
    led = {"A": {"metrics": {"accuracy_helpful": 0.1}, "ci95": {"accuracy_helpful": [-0.1, 0.3]}}}
    rows = [row("A", seed, "test", accuracy) for seed, accuracy in enumerate((0.5, 0.6))]
    rows += [row("B", seed, "test", 0.7, spread, led) for seed in (0, 1)]
    rows += [row(arm, 0, "validation", 0.8) for arm in "AB"]
    first, second = ablation_table(rows).split("\n\n")
    assert first.splitlines()[2:] == [
        "| A | 0.550 ± 0.071 |  | 0.800 | 0.500 ± 0.000 |  | 0.500 | -0.500 |",
        "| B | 0.700 ± 0.000 | +10.0 (-10.0 to +30.0) | 0.800 | 0.500 ± 0.000 |  | 0.500 | -0.500 |",
    ]
    assert second.splitlines()[2:] == ["| B | helpful | 0.600 | 0.700 |"]
    assert ablation_table([]) == ""
