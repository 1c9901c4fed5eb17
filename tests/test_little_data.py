"""From pairs to app with little data: what cannot be measured is said, never a traceback, and the app works."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny import tiny_encoder

from pro_core.adapter.model import PreferenceAdapter
from pro_core.adapter.recipe import AdapterRecipe
from pro_core.adapter.runs import train_adapter
from pro_core.data.schema import DataError, fold_of
from pro_core.evaluation.adapter_grades import adapter_rows
from pro_core.evaluation.reward_models import length_rows, panel_rows
from pro_core.reporting.tables import TABLES
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.recipes import PanelRecipe
from pro_core.runs.recipes import ConfigError
from pro_core.system.storage import StorageError
from train import adapter, reward_models
from ui.models import Models

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("helpful", "harmless")


def pair(number, objective="helpful", split="train", **more):
    row = {"objective": objective, "prompt": f"Question number {number}?", "split": split}
    return row | {"chosen": f"gladly {number}", "rejected": f"no {number}"} | more


def both(numbers, split="train"):
    """A pair of each objective to each of these questions."""
    return [pair(n, name, split) for n in numbers for name in NAMES]


def in_other_folds(folds=2):
    """Numbers of two questions that lie in different folds."""
    first = fold_of("Question number 0?", folds)
    return 0, next(n for n in range(99) if fold_of(f"Question number {n}?", folds) != first)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def own(tmp_path, encoder):
    """Recipes of a panel and an adapter over rows of one's own; call it to get their paths."""

    def make(rows, objectives=NAMES, **changes):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "pairs.jsonl").write_text(lines)
        panel = {"objectives": list(objectives), "model": encoder, "output": str(tmp_path / "own")}
        panel |= {"method": "heads", "data_dir": str(tmp_path), "data": [{"path": "pairs.jsonl"}]}
        panel |= {"folds": 2, "batch_size": 4, "max_length": 32}
        fitted = {"scores": str(tmp_path / "own/scores.parquet"), "encoder": encoder}
        fitted |= {"panel": str(tmp_path / "own/panel"), "output": str(tmp_path / "own/adapters")}
        fitted |= {"adapter": str(tmp_path / "own/adapter"), "train_encoder": False, "epochs": 1}
        fitted |= {"hidden": 8, "members": 2, "seeds": [0], "folds": 0}
        fitted["targets"] = [{"target": t, "temperature": 1.0} for t in ("pairwise", "paper_z")]
        paths = tmp_path / "panel.yaml", tmp_path / "adapter.yaml"
        for path, recipe in zip(paths, (panel | changes, fitted), strict=True):
            path.write_text(yaml.safe_dump(recipe))
        return tuple(map(str, paths))

    return make


def panel_graded(path):
    return panel_rows(PanelRecipe.read(path), "test")


def adapter_graded(path):
    return adapter_rows(AdapterRecipe.read(path), "test")


def check_app(tmp_path):
    """The app loads both, and they weigh and score a prompt."""
    places = {
        "PRO_PANEL": str(tmp_path / "own/panel"),
        "PRO_ADAPTER": str(tmp_path / "own/adapter"),
    }
    models = Models(dict(os.environ) | places | {"PRO_ENDPOINT_URL": "http://127.0.0.1:9"})
    models.load()
    assert not models.problem and not models.warning
    weights = models.adapter.predict(["Question number 1?"])
    assert np.allclose(weights.sum(axis=1), 1) and np.isfinite(weights).all()
    assert np.isfinite(models.panel.standardized(["Hi"], ["gladly"])).all()


def card_of(tmp_path, what):
    return (tmp_path / "own" / what / "README.md").read_text()


def test_with_all_rows_in_train_nothing_is_measured_and_the_app_works(own, tmp_path, capsys):
    panel, fitted = own(both(range(8)))
    reward_models.main(PanelRecipe.read(panel))
    made = train_adapter(AdapterRecipe.read(fitted))
    saved = PreferenceAdapter.from_pretrained(tmp_path / "own/adapter")
    np.testing.assert_array_equal(made.predict(["Hi"]), saved.predict(["Hi"]))
    said = capsys.readouterr().out
    assert "no validation pairs to choose by: the first target of the recipe" in said
    assert "chosen: pairwise-t1;" in said
    assert RewardPanel.from_pretrained(tmp_path / "own/panel").accuracy == {}
    for name in NAMES:
        assert f"| {name} | 8 | not measured |" in card_of(tmp_path, "panel")
    assert "Nothing about its weights was measured." in card_of(tmp_path, "adapter")
    with pytest.raises(ConfigError, match="no test pairs to grade on"):
        panel_graded(panel)
    with pytest.raises(ConfigError, match="no test pairs to grade on"):
        length_rows(PanelRecipe.read(panel), "test")
    with pytest.raises(ConfigError, match="no test pairs with a prompt to grade on"):
        adapter_graded(fitted)
    check_app(tmp_path)


def test_without_validation_pairs_the_test_pairs_still_grade(own, tmp_path):
    panel, fitted = own([*both(range(8)), *both(range(8, 10), "test")])
    reward_models.main(PanelRecipe.read(panel))
    adapter.main(AdapterRecipe.read(fitted))
    rows = panel_graded(panel)
    assert {row["method"] for row in rows} >= {"panel", "longer wins"}
    graded = adapter_graded(fitted)
    targets = {row["method"] for row in graded if row["experiment"] == "adapter_targets"}
    assert targets == {"pairwise-t1", "paper_z-t1"}
    (row,) = (r for r in graded if (r["experiment"], r["method"]) == ("adapter", "adapter"))
    assert {"nearest prompts", "ArmoRM's gate"} < set(row["leads"])  # the encoder is frozen


def test_an_objective_without_held_out_pairs_is_not_measured_in_any_table(own, tmp_path):
    rows = [*both(range(8)), *(pair(n, "helpful", "test") for n in range(8, 12))]
    rows += [pair(n, "helpful", "validation") for n in range(12, 14)]
    panel, fitted = own(rows)
    reward_models.main(PanelRecipe.read(panel))
    adapter.main(AdapterRecipe.read(fitted))
    assert "- harmless: not measured" in card_of(tmp_path, "panel")
    assert "for want of pairs: harmless." in card_of(tmp_path, "adapter")
    graded = {"reward_models": panel_graded(panel), "adapter": adapter_graded(fitted)}
    for what, results in graded.items():
        assert results and all("accuracy_harmless" not in row["metrics"] for row in results)
        tables = [table for file, table in TABLES.values() if file == f"{what}.jsonl"]
        assert tables and all("harmless" not in table(results) for table in tables)
    check_app(tmp_path)


def test_empty_test_pairs_of_a_trained_prompt_are_no_measurement(own, tmp_path, capsys):
    panel, _ = own([*both(range(8)), *both(range(4), "test")])
    reward_models.main(PanelRecipe.read(panel))
    assert "Leak: the prompts of 8 of 8 test pairs were trained on" in capsys.readouterr().out
    assert RewardPanel.from_pretrained(tmp_path / "own/panel").accuracy == {}
    with pytest.raises(ConfigError, match="Leak: the prompts of 8 of 8 test pairs"):
        panel_graded(panel)


@pytest.mark.parametrize(
    "rows",
    [
        both([0]),  # one prompt
        [pair(0), pair(1, "harmless")],  # two pairs
        [*both(in_other_folds()), pair(0, "harmless")][:3],  # one objective in one fold
    ],
)
def test_too_little_for_scores_out_of_fold_is_said_before_anything_is_trained(own, tmp_path, rows):
    panel, _ = own(rows)
    with pytest.raises(DataError, match="all its training pairs lie in one of 2 folds"):
        reward_models.main(PanelRecipe.read(panel))
    assert not (tmp_path / "own").exists()


def test_two_pairs_make_a_panel_without_folds(own, tmp_path):
    panel, fitted = own([pair(0), pair(1, "harmless")], folds=0)
    reward_models.main(PanelRecipe.read(panel))
    assert np.isfinite(
        RewardPanel.from_pretrained(tmp_path / "own/panel").standardized(["Hi"], ["no"])
    ).all()
    with pytest.raises(ConfigError, match="no out-of-fold scores: train the panel with folds"):
        adapter.main(AdapterRecipe.read(fitted))


def test_two_prompts_in_two_folds_are_enough_for_an_app(own, tmp_path):
    panel, fitted = own(both(in_other_folds()))
    reward_models.main(PanelRecipe.read(panel))
    adapter.main(AdapterRecipe.read(fitted))
    check_app(tmp_path)


def test_more_folds_than_prompts_leave_the_empty_ones_out(own, tmp_path):
    panel, fitted = own(both(in_other_folds(50)), folds=50)
    reward_models.main(PanelRecipe.read(panel))
    assert len(list((tmp_path / "own/folds").glob("[!.]*"))) == 3  # all, and the two
    adapter.main(AdapterRecipe.read(fitted))
    check_app(tmp_path)


def test_a_single_objective_goes_all_the_way(own, tmp_path):
    rows = [pair(n, split=("train", "train", "validation", "test")[n % 4]) for n in range(16)]
    panel, fitted = own(rows, ["helpful"])
    reward_models.main(PanelRecipe.read(panel))
    adapter.main(AdapterRecipe.read(fitted))
    assert PreferenceAdapter.from_pretrained(tmp_path / "own/adapter").predict(["Hi"]) == [[1.0]]
    assert panel_graded(panel) and adapter_graded(fitted)
    assert "its weight is always 1" in card_of(tmp_path, "adapter")
    check_app(tmp_path)


def test_length_cannot_be_removed_where_all_answers_are_as_long(own):
    rows = [pair(n, name, chosen="yes", rejected="not") for n in range(8) for name in NAMES]
    panel, _ = own(rows, remove_length=True)
    with pytest.raises(DataError, match="no length component to remove"):
        reward_models.main(PanelRecipe.read(panel))


def test_a_licence_that_the_rows_name_later_makes_new_cards_and_no_new_models(own, tmp_path):
    panel, fitted = own(both(range(8)))
    reward_models.main(PanelRecipe.read(panel))
    adapter.main(AdapterRecipe.read(fitted))
    made = (tmp_path / "own/folds/all/trunk/model.safetensors").stat().st_mtime_ns
    rows = (json.loads(line) for line in (tmp_path / "pairs.jsonl").open())
    own([row | {"licence": "CC0-1.0"} for row in rows])
    reward_models.main(PanelRecipe.read(panel))
    adapter.main(AdapterRecipe.read(fitted))
    assert (tmp_path / "own/folds/all/trunk/model.safetensors").stat().st_mtime_ns == made
    for what in ("panel", "adapter"):
        assert "pairs" in card_of(tmp_path, what) and "licence CC0-1.0" in card_of(tmp_path, what)


def test_grading_before_training_says_what_to_run(own):
    panel, fitted = own(both(range(8)))
    for grade, recipe in ((panel_graded, panel), (adapter_graded, fitted)):
        with pytest.raises((ConfigError, StorageError)):
            grade(recipe)
