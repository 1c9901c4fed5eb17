"""Reward models beside their baselines: on other sets than those of their recipe, and by source."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import yaml
from test_train_scripts import write_rows
from tiny import tiny_encoder
from transformers import AutoTokenizer

from pro_core.data.entries import PairSource
from pro_core.data.schema import DataError, PreferencePair
from pro_core.data.training_pairs import TrainingPairs
from pro_core.evaluation.results import read_rows
from pro_core.evaluation.reward_models import PANEL, out_of_distribution_rows, panel_row, panel_rows
from pro_core.metrics import accuracy_lead, accuracy_with_interval
from pro_core.reporting.markdown import interval
from pro_core.reporting.reward_tables import judges_table, opposed_table, out_of_distribution_table
from pro_core.rewards.baselines import beside_baselines
from pro_core.rewards.bradley_terry import tokenize_pairs
from pro_core.rewards.calibration import RewardStats
from pro_core.rewards.ngrams import NGrams
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.panel_runs import train_panel
from pro_core.rewards.recipes import PanelRecipe
from pro_core.rewards.scores import distinct_texts, pair_table
from pro_core.runs.recipes import ConfigError
from pro_core.system.storage import StorageError
from train import evaluate, reward_models

NAMES = ["helpful", "harmless"]


def pair(number, objective="helpful", split="test", **more):
    row = {"objective": objective, "prompt": f"Question number {number}?", "split": split}
    return row | {"chosen": f"gladly {number}", "rejected": f"no {number}, sorry"} | more


def test_a_lead_is_measured_on_the_same_resamples_of_the_prompts():
    prompts, mine, other = list("aabbcd"), [1, 1, 1, -1, 0, 1], [1, -1, 1, -1, 1, -1]
    led = accuracy_lead(mine, other, prompts)
    # Right: 1 1 1 0 .5 1 against 1 0 1 0 1 0.
    assert led["accuracy"] == pytest.approx(4.5 / 6 - 3 / 6)
    assert accuracy_lead(mine, mine, prompts) == {"accuracy": 0, "ci95": [0, 0]}
    # Two methods that are right on the same pairs but for a few are told apart, though their own intervals overlap.
    rng = np.random.default_rng(0)
    weak = rng.choice([1.0, -1.0], 400)
    better = np.where(np.arange(400) < 40, 1.0, weak)
    prompts = [str(i) for i in range(400)]
    lo, hi = accuracy_lead(better, weak, prompts)["ci95"]
    alone = [accuracy_with_interval(m, prompts)["ci95"] for m in (better, weak)]
    assert 0 < lo < hi < 0.1 and alone[0][0] < alone[1][1]


def scored(margins):
    """(table of scores, pairs) of test pairs (source, objective, margin), and 20 training pairs of each source."""
    held_out = [
        PreferencePair(
            [{"role": "user", "content": f"Question {i}"}],
            *("yes", "oh no"),
            objective=name,
            source=source,
            id=str(i),
            split="test",
        )
        for i, (source, name, _) in enumerate(margins)
    ]
    training = [
        PreferencePair([], f"{words[0]} {i}", f"{words[1]} {i}", "helpful", source)
        for source, words in (("a_pairs", ("yes", "oh no")), ("b_pairs", ("oh no", "yes")))
        for i in range(20)
    ]
    _, texts, where = distinct_texts(held_out)
    raw = np.zeros((len(texts), len(NAMES)), np.float32)
    for (_, name, margin), (chosen, _) in zip(margins, where, strict=True):
        raw[chosen, NAMES.index(name)] = margin
    stats = RewardStats(tuple(NAMES), np.zeros(2), np.ones(2))
    table = pair_table(held_out, texts, where, raw, stats)
    return table, TrainingPairs(training, [1] * len(training), held_out)


def judge_row(method, report):
    if method == PANEL:
        setting = {"trained": "full"}
        return panel_row("judges", PANEL, 0, "test", report, "j.yaml", 0, setting=setting)
    return panel_row("judges", method, 0, "test", report, "j.yaml", 0, "baseline")


def test_an_objective_from_several_sources_is_measured_on_each():
    margins = [("a_pairs", "helpful", m) for m in (1, 1, 1, -1)]
    margins += [("b_pairs", "helpful", m) for m in (1, -1)] + [("a_pairs", "harmless", 1)]
    measured = beside_baselines(PANEL, *scored(margins), "test", NAMES)
    helpful = measured[PANEL]["helpful"]
    assert helpful["accuracy"] == pytest.approx(4 / 6)
    assert {s: (r["accuracy"], r["n"]) for s, r in helpful["by_source"].items()} == {
        "a_pairs": (0.75, 4),
        "b_pairs": (0.5, 2),
    }
    assert "by_source" not in measured[PANEL]["harmless"]  # it has one source
    assert measured["longer wins"]["helpful"]["by_source"]["a_pairs"]["accuracy"] == 0
    leads = helpful["by_source"]["a_pairs"]["leads"]
    assert leads["longer wins"]["accuracy"] == 0.75

    rows = [judge_row(method, report) for method, report in measured.items()]
    row = rows[0]
    assert row["n"] == 7 and row["objectives"] == NAMES
    assert row["metrics"]["accuracy_helpful_source_b_pairs"] == 0.5
    assert row["metrics"]["n_helpful_source_b_pairs"] == 2
    assert row["ci95"]["accuracy_helpful_source_a_pairs"]
    longer = row["leads"]["longer wins"]
    assert longer["metrics"]["accuracy_helpful_source_a_pairs"] == 0.75
    assert longer["metrics"]["accuracy_helpful"] == pytest.approx(4 / 6, abs=1e-5)
    lines = judges_table(rows).splitlines()[2:]
    assert [line.split(" | ")[:2] for line in lines] == [
        ["| j", "helpful (6 pairs)"],
        ["| ", "helpful, only a_pairs (4 pairs)"],
        ["| ", "helpful, only b_pairs (2 pairs)"],
        ["| j", "harmless (1 pairs)"],
    ]
    assert lines[1].split(" | ")[2].startswith("0.750 (")


def test_each_objectives_model_is_also_graded_on_what_people_chose_under_the_others():
    table, data = scored(
        [("a_pairs", "helpful", 1), ("a_pairs", "helpful", -1), ("a_pairs", "harmless", 1)]
    )
    for side, z in (("chosen", [1, 1, 2]), ("rejected", [0, 0, 3])):
        table[f"z_{side}_helpful"] = z  # the helpful model prefers what was rejected as harmful
    measured = beside_baselines(PANEL, table, data, "test", NAMES)
    on = measured[PANEL]["helpful"]["on"]
    assert list(on) == ["harmless"] and on["harmless"]["accuracy"] == 0
    assert measured[PANEL]["harmless"]["on"]["helpful"]["n"] == 2
    assert measured["bag of words"]["helpful"]["on"]["harmless"]["accuracy"] == 1  # "yes" again
    assert "on" not in measured["longer wins"]["helpful"]  # it is the same model for both
    metrics = judge_row(PANEL, measured[PANEL])["metrics"]
    assert metrics["accuracy_helpful_on_harmless"] == 0
    rows = [
        judge_row(method, report) | {"config": "demo_panel.yaml"}
        for method, report in measured.items()
    ]
    lines = [line.split(" | ") for line in opposed_table(rows).splitlines()[2:]]
    assert [line[:2] for line in lines] == [
        ["| helpful", "demo_panel (full)"],
        ["| harmless", "demo_panel (full)"],
        ["| helpful", "bag of words"],
    ]
    assert lines[0][3].startswith("0.000 (")


def test_the_bag_of_words_knows_only_graded_sources_unless_the_set_is_another():
    table, data = scored([("a_pairs", "helpful", 1), ("a_pairs", "helpful", -1)])
    own = beside_baselines(PANEL, table, data, "test", NAMES)
    # The training pairs of b_pairs, which say the opposite, do not count.
    assert own["bag of words"]["helpful"]["accuracy"] == 1
    data.training = data.training[20:]
    assert "bag of words" not in beside_baselines(PANEL, table, data, "test", NAMES)
    other = beside_baselines(PANEL, table, data, "test", NAMES, other_sets=True)
    assert other["bag of words"]["helpful"]["accuracy"] == 0


def test_the_table_of_judges_reads_rows_without_leads():
    table, data = scored([("a_pairs", "helpful", 1)] * 3)
    measured = beside_baselines(PANEL, table, data, "test", NAMES)
    del measured[PANEL]["helpful"]["leads"]
    row = judge_row(PANEL, measured[PANEL])
    cells = judges_table([row]).splitlines()[2].split(" | ")
    assert cells[3:6] == ["not measured", "not measured", ""] and cells[6] == "no such pairs |"


# ---------------------------------------------------------------- a panel on another set


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The settings of a finished panel of two objectives, in whose folder other sets may be written."""
    folder = tmp_path_factory.mktemp("panel")
    rows = [pair(n, name, "train" if n < 16 else "test") for n in range(20) for name in NAMES]
    write_rows(folder / "own_pairs.jsonl", rows)
    settings = {"objectives": NAMES, "model": tiny_encoder(folder / "encoder"), "method": "heads"}
    settings |= {"output": str(folder / "out"), "data_dir": str(folder), "folds": 0}
    settings |= {"data": [{"path": "own_pairs.jsonl"}], "batch_size": 4, "max_length": 32}
    (folder / "panel.yaml").write_text(yaml.safe_dump(settings))
    reward_models.main(PanelRecipe.read(folder / "panel.yaml"))
    return folder, settings


def graded(trained, rows, split="test", entry=(), **changes):
    """The rows of the panel on another set, other_pairs."""
    folder, settings = trained
    write_rows(folder / "other_pairs.jsonl", rows)
    entries = [{"path": "other_pairs.jsonl"} | dict(entry)]
    path = folder / "panel.yaml"
    path.write_text(yaml.safe_dump(settings | {"out_of_distribution": entries} | changes))
    return out_of_distribution_rows(PanelRecipe.read(path), split)


def of(rows, method):
    return next(row for row in rows if row["method"] == method)


@pytest.mark.slow
def test_a_finished_panel_is_graded_on_a_set_that_it_never_saw(trained):
    folder, _ = trained
    others = [pair(n, name) for n in range(30, 42) for name in NAMES]
    others += [pair(n, split="validation") for n in range(42, 45)]
    rows = graded(trained, others)
    assert [row["method"] for row in rows] == [PANEL, "bag of words", "longer wins"]
    panel = RewardPanel.from_pretrained(folder / "out/panel")
    for k, name in enumerate(NAMES):
        asked = [r for r in others if r["objective"] == name and r["split"] == "test"]
        prompts = [r["prompt"] for r in asked]
        chosen, rejected = (
            panel.score(prompts, [r[s] for r in asked])[:, k] for s in ("chosen", "rejected")
        )
        by_hand = accuracy_with_interval(chosen - rejected, prompts)["accuracy"]
        assert rows[0]["metrics"][f"accuracy_{name}"] == pytest.approx(by_hand, abs=1e-5)
        assert rows[0]["metrics"][f"n_{name}"] == 12
        # It learned from the panel's own pairs, which use the same words.
        assert of(rows, "bag of words")["metrics"][f"accuracy_{name}"] == 1
        assert of(rows, "longer wins")["metrics"][f"accuracy_{name}"] == 0
        assert rows[0]["leads"]["longer wins"]["metrics"][f"accuracy_{name}"] == pytest.approx(
            by_hand, abs=1e-5
        )
    assert rows[0]["setting"] == {"data": "other_pairs", "trained": "heads"}
    assert {row["experiment"] for row in rows} == {"out_of_distribution"}
    assert all(
        row["setting"]["data"] == "other_pairs" and row["config"] == "panel.yaml" for row in rows
    )
    line = out_of_distribution_table(rows).splitlines()[2]
    assert line.startswith("| other_pairs | helpful (12 pairs) | panel (heads) | ")
    assert line.split(" | ")[4] == interval(of(rows, "bag of words"), "accuracy_helpful")
    # The other split is graded when asked, and alone.
    assert graded(trained, others, "validation")[0]["metrics"]["n_helpful"] == 3
    # The recipe's own held-out pairs are graded as before: the set changed nothing in the finished folder.
    own = panel_rows(PanelRecipe.read(folder / "panel.yaml"), "test")
    assert own[0]["metrics"]["n_helpful"] == 4


@pytest.mark.slow
def test_trained_prompts_and_contradicted_pairs_of_another_set_are_not_graded(trained):
    opposed = pair(50), pair(50, chosen="no 50, sorry", rejected="gladly 50")
    rows = graded(trained, [pair(0, chosen="new", rejected="answers"), *opposed, pair(51)])
    assert all(row["metrics"]["n_helpful"] == 1 for row in rows)
    with pytest.raises(ConfigError):
        graded(trained, [pair(0, chosen="new", rejected="answers")])
    with pytest.raises(ConfigError):
        graded(trained, [pair(60)], "validation")


@pytest.mark.slow
def test_a_set_of_other_objectives_is_refused_unless_it_is_renamed(trained):
    rows = [pair(n, "overall") for n in range(30, 36)]
    with pytest.raises(DataError):
        graded(trained, rows)
    renamed = graded(trained, rows, entry={"as_objective": "harmless"})
    assert renamed[0]["objectives"] == ["harmless"] and renamed[0]["n"] == 6


@pytest.mark.slow
def test_a_panel_of_another_recipe_and_a_recipe_without_sets_are_not_graded(trained):
    with pytest.raises(StorageError):
        graded(trained, [pair(30)], learning_rate=0.5)
    with pytest.raises(ConfigError) as refused:
        graded(trained, [pair(30)], out_of_distribution=[])
    assert refused.value.fields == ("out_of_distribution",)


@pytest.mark.slow
def test_what_a_recipe_ships_is_graded_though_nothing_was_trained(trained, tmp_path):
    folder, _ = trained
    shipped = str(folder / "out/panel")
    rows = graded(trained, [pair(30)], shipped=shipped, output=str(tmp_path / "nothing"))
    assert rows[0]["metrics"] == graded(trained, [pair(30)])[0]["metrics"]
    own = PanelRecipe.read(folder / "panel.yaml")
    metrics = [
        panel_rows(recipe, "test")[0]["metrics"]
        for recipe in (own, own.model_copy(update={"shipped": shipped}))
    ]
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-5)
    with pytest.raises(ConfigError) as refused:
        graded(trained, [pair(30)], shipped=shipped, objectives=["harmless", "helpful"])
    assert refused.value.fields == ("shipped",)


@pytest.mark.slow
def test_the_setting_makes_no_finished_folder_again(trained):
    folder, _ = trained

    def made():
        # scores.parquet beside the folders is put together by every run.
        files = [p for p in (folder / "out").glob("*/**/*") if p.is_file()]
        return {p: p.stat().st_mtime_ns for p in files}

    before = made()
    graded(trained, [pair(30)])
    reward_models.main(PanelRecipe.read(folder / "panel.yaml"))
    assert before and made() == before


@pytest.mark.slow
def test_the_script_keeps_the_rows_and_prints_their_table(trained, tmp_path, monkeypatch, capsys):
    rows = graded(trained, [pair(n) for n in range(30, 34)])
    recipe = str(trained[0] / "panel.yaml")
    call = ["evaluate.py", "out_of_distribution", recipe, "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", call)
    evaluate.main()
    kept = read_rows(tmp_path / "out_of_distribution.jsonl")
    assert [row["metrics"] for row in kept] == [row["metrics"] for row in rows]
    assert out_of_distribution_table(rows) in capsys.readouterr().out


# ---------------------------------------------------------------- members


@pytest.mark.slow
def test_every_member_learns_its_own_objective(tmp_path):
    """Two objectives with opposite labels: a head of the wrong one would rank every pair the wrong way round."""
    rows = []
    for n in range(80):
        row = {"prompt": f"Question number {n}?", "split": "train" if n < 60 else "test"}
        texts = f"gladly {n}", f"no {n}, sorry"
        rows.append(row | {"objective": "helpful", "chosen": texts[0], "rejected": texts[1]})
        rows.append(row | {"objective": "harmless", "chosen": texts[1], "rejected": texts[0]})
    write_rows(tmp_path / "own_pairs.jsonl", rows)
    settings = {"objectives": NAMES, "model": tiny_encoder(tmp_path / "encoder"), "pooling": "mean"}
    settings |= {"output": str(tmp_path / "out"), "data_dir": str(tmp_path), "folds": 0}
    settings |= {"data": [{"path": "own_pairs.jsonl", "epochs": 8}], "batch_size": 8}
    settings |= {"max_length": 32, "learning_rate": 0.003, "members": 3, "ngrams": True}
    panel = train_panel(PanelRecipe(**settings))
    assert [(spec.name, spec.source, spec.logit) for spec in panel.specs] == [
        *(("helpful", "trunk", head) for head in range(3)),
        ("helpful", "ngrams", 0),
        *(("harmless", "trunk", head) for head in range(3, 6)),
        ("harmless", "ngrams", 1),
    ]
    test = [r for r in rows if r["split"] == "test"]
    prompts = [r["prompt"] for r in test]
    chosen, rejected = (
        panel.score_with_members(prompts, [r[side] for r in test])[1]
        for side in ("chosen", "rejected")
    )
    for k, name in enumerate(NAMES):
        own = [r["objective"] == name for r in test]
        right = (chosen[:, own, k] > rejected[:, own, k]).mean(axis=1)  # (members,)
        assert right.min() > 0.9, (name, right)
        assert panel.accuracy[name]["accuracy"] > 0.9
    # The heads started alike in nothing, and each has seen its own bootstrap of the prompts.
    margins = chosen[:3, :, 0] - rejected[:3, :, 0]
    assert margins.std(axis=0).min() > 0


def test_pairs_weigh_by_the_difference_of_their_ratings(tmp_path):
    ratings = {"a": 5, "b": 4, "c": 1}
    rows = [
        {"prompt": "Why?", "response": text, "labels": {"helpful": rating}, "split": "train"}
        for text, rating in ratings.items()
    ]
    write_rows(tmp_path / "rated.jsonl", rows)
    source = {"path": "rated.jsonl", "kind": "labels", "objectives": ["helpful"]}
    pairs = PairSource(**source, weigh_by_rating=True).load(tmp_path)
    weights = {p.chosen + p.rejected: p.weight for p in pairs}
    assert weights == pytest.approx({"ab": 1 * 3 / 8, "ac": 4 * 3 / 8, "bc": 3 * 3 / 8})
    (one,) = PairSource(**source, weigh_by_rating=True, max_pairs=1).load(tmp_path)
    assert one.weight == 1  # on average 1, of the pairs that are taken
    assert {p.weight for p in PairSource(**source).load(tmp_path)} == {1}
    with pytest.raises(ValueError, match="expected one of labels"):
        PairSource(path="x.jsonl", weigh_by_rating=True)
    # What weighs more moves the parameters more: here it decides between two contradicting pairs.
    heavy = [PreferencePair([], "good", "bad", "helpful", weight=9.0)]
    light = [PreferencePair([], "bad", "good", "helpful", weight=0.5)]
    score = NGrams.fit(heavy + light, ["helpful"]).score(["good", "bad"])[:, 0]
    assert score[0] > score[1]
    tokens = AutoTokenizer.from_pretrained(tiny_encoder(tmp_path / "encoder"))
    rows = tokenize_pairs(tokens, heavy + light, ["helpful"], [1, 1], 2, 32, 0).rows
    assert [row["weight"].tolist() for row in rows] == [[9.0], [0.5]]
