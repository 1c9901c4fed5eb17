"""MOSLIM's reward classifier: levels from ratings, both losses, Eq 11, the disk form, and what it learns."""

import json
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_train_scripts import ROOT, run, write_rows
from tiny import tiny_classifier, tiny_encoder, tokenizer
from transformers import Qwen2Config, Qwen2Model

from pro_core import RewardClassifier, RewardStats, map_levels
from pro_core.data.entries import RatedSource
from pro_core.data.schema import DataError, LabelledResponse
from pro_core.reporting.reward_tables import classifier_table
from pro_core.rewards.checkpoints import load_reward_model
from pro_core.rewards.classifier_grades import grade_levels, majority_class
from pro_core.rewards.classifier_training import (
    RatedResponses,
    classifier_loss,
    count_levels,
    rated_levels,
)
from pro_core.rewards.levels import IntensityScale, log_probabilities, moving_stats
from pro_core.rewards.recipes import ClassifierRecipe
from pro_core.runs.recipes import ConfigError
from pro_core.runs.training import training_arguments
from pro_core.system.storage import StorageError
from train import classifier as script

SCALES = (
    IntensityScale("helpful", 1, 5, (3, 5)),
    IntensityScale("harmless", 0, 1, (0.5,)),
)
COLUMNS = ("helpful-1", "helpful-2", "helpful-3", "harmless-1", "harmless-2")
SIZES = [3, 2]


# ---------------------------------------------------------------- ratings to levels


@pytest.mark.parametrize(("rating", "level"), [(1, 1), (2.99, 1), (3, 2), (4.667, 2), (5, 3)])
def test_a_level_begins_at_its_threshold(rating, level):
    assert SCALES[0].level(rating) == level


@pytest.mark.parametrize(
    ("rating", "said"),
    [
        (5.5, "got the rating 5.5, expected 1 to 5"),
        (0, "got the rating 0, expected 1 to 5"),
        ("4", "got the rating '4', expected a number"),
        (None, "got the rating None, expected a number"),
        (float("nan"), "got the rating nan, expected a number"),
    ],
)
def test_a_bad_rating_is_named_with_its_response(rating, said):
    response = LabelledResponse(None, "text", {"helpful": rating}, "mine", "mine-7")
    with pytest.raises(DataError, match=f"mine, mine-7: helpful: {said}"):
        rated_levels([response], SCALES)


def test_a_response_without_a_rating_has_level_0():
    labels = ({"helpful": 4}, {"harmless": 0.2, "other": "x"}, {"helpful": 5, "harmless": 1})
    responses = [LabelledResponse(None, "text", each) for each in labels]
    np.testing.assert_array_equal(rated_levels(responses, SCALES), [[2, 0], [0, 1], [3, 2]])


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        ([[1, 0], [2, 0], [3, 0]], "harmless: no training response has a rating"),
        ([[1, 2], [2, 2], [3, 2]], r"harmless: its levels 1 to 2 have \[0, 3\] training responses"),
        ([[1, 1], [1, 2], [3, 2]], r"helpful: its levels 1 to 3 have \[2, 0, 1\]"),
    ],
)
def test_an_objective_without_data_or_with_one_class_is_refused(levels, said):
    with pytest.raises(DataError, match=said):
        count_levels(np.array(levels), SCALES)


def recipe_file(folder: Path, **changes) -> Path:
    """A recipe that is right but for the changes."""
    settings = {
        "objectives": {"helpful": {"range": [1, 5], "thresholds": [3]}},
        "model": "base",
        "data": [{"path": "rated.jsonl", "labels": ["helpful"]}],
        "output": "out",
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings | changes))
    return path


def helpful(*thresholds, low=1, high=5, **more):
    """One objective with these thresholds."""
    return {"helpful": {"range": [low, high], "thresholds": list(thresholds)} | more}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"objectives": ["helpful"]}, "objectives"),
        ({"objectives": {"helpful": {"range": [1, 5]}}}, "objectives.helpful.thresholds"),
        ({"objectives": helpful(3, levels=2)}, "objectives.helpful.levels"),
        ({"objectives": helpful(4, 3)}, "objectives"),  # not ascending
        ({"objectives": helpful(1, 3)}, "objectives"),  # level 1 would be empty
        ({"objectives": helpful(6)}, "objectives"),  # above the highest rating
        ({"objectives": helpful(low=5, high=1)}, "objectives"),
        ({"objectives": {"Helpful!": {"range": [1, 5], "thresholds": [3]}}}, "objectives"),
        ({"objectives": helpful(), "losses": ["per_head"]}, "losses"),  # a softmax over one level
        ({"objectives": helpful()}, "objectives"),  # one level in all
        ({"losses": ["cross"]}, "losses.0"),
        ({"losses": "joint"}, "losses"),
        ({"losses": []}, "losses"),
        ({"data": [{"path": "rated.jsonl"}]}, "data.0.labels"),
        ({"data": [{"path": "rated.jsonl", "labels": ["funny"]}]}, "data.0.labels"),
        ({"data": [{"path": "r.jsonl", "labels": ["helpful"], "kind": "x"}]}, "data.0.kind"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"grade_on": "train"}, "grade_on"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(tmp_path, changes, field):
    with pytest.raises(ConfigError) as refused:
        ClassifierRecipe.read(recipe_file(tmp_path, **changes))
    assert field in refused.value.fields


def test_a_label_is_a_text_or_a_mapping_of_them_but_no_letters(tmp_path):
    entry = {"path": "rated.jsonl", "labels": "helpful"}
    with pytest.raises(ConfigError) as refused:
        ClassifierRecipe.read(recipe_file(tmp_path, data=[entry]))
    assert all(field.startswith("data.0.labels") for field in refused.value.fields)


def test_settings_are_hashed_as_they_were_written(tmp_path):
    """Else finished classifiers would be trained again: 3 is not 3.0, and no default is added to an entry."""
    entry = {"path": "rated.jsonl", "labels": {"helpful": "stars"}, "epochs": 1}
    changes = {"objectives": helpful(2.5, 3), "data": [entry]}
    recipe = ClassifierRecipe.read(recipe_file(tmp_path, **changes))
    assert json.dumps(recipe.decides("objectives", "data")) == json.dumps(changes)
    assert recipe.scales == (IntensityScale("helpful", 1, 5, (2.5, 3)),)


def stand_ins(folder: Path, n: int = 60) -> None:
    """Files with UltraFeedback's ratings (1 to 5, some missing) and UltraSafety's (0 to 1), where recipes look."""
    feedback, safety = [], []
    for i in range(n):
        labels = {"helpfulness": 1 + i % 5, "honesty": 1 + i // 5 % 5, "truthfulness": 3}
        if i % 7 == 0:
            del labels["honesty"]
        feedback.append({"prompt": f"Question {i}", "response": "Yes.", "labels": labels})
        labels = {"harmlessness": (0, 0.25, 0.5, 1)[i % 4]}
        safety.append({"prompt": f"Bad request {i}", "response": "No.", "labels": labels})
    (folder / "openbmb").mkdir()
    write_rows(folder / "openbmb/UltraFeedback", feedback)
    write_rows(folder / "ultrasafety_responses.jsonl", safety)


@pytest.mark.parametrize(
    ("kind", "levels"), [(1, [1, 1, 2]), (2, [2, 2, 2]), (3, [3, 3, 2]), (4, [5, 5, 2])]
)
def test_the_four_data_types_of_the_paper(tmp_path, kind, levels):
    """The recipes' own data part, on files that stand in for the two public sets."""
    stand_ins(tmp_path)
    recipe = ClassifierRecipe.read(ROOT / f"recipes/paper/moslim_type{kind}.yaml")
    scales = recipe.scales
    assert [scale.name for scale in scales] == ["helpful", "honest", "harmless"]
    assert [scale.levels for scale in scales] == levels
    data = RatedResponses.load(recipe.data, scales, tmp_path)
    assert len(data.train) + len(data.held_out) == 120
    for response, row in zip(data.train, data.levels, strict=True):
        if "harmless" in response.labels:
            assert row.tolist() == [0, 0, 1 + (response.labels["harmless"] >= 0.5)]
        elif kind == 4:
            assert row.tolist() == [response.labels["helpful"], response.labels.get("honest", 0), 0]
        elif kind == 1:
            assert row.tolist() == [1, int("honest" in response.labels), 0]
    assert sum(data.counts.values()) == (data.levels > 0).sum()


def test_the_small_recipe_reads_every_file_of_ours(data_dir):
    recipe = ClassifierRecipe.read(ROOT / "recipes/small_classifier.yaml")
    scales = recipe.scales
    data = RatedResponses.load(recipe.data, scales, data_dir)
    assert len(scales) == 12 and len(data.counts) == 29
    sizes = pd.Series([r.source for r in data.train]).value_counts()
    assert sizes["truthfulqa_responses"] == 6000 and sizes["colbert_humor_texts"] == 1500
    assert {r.prompt is None for r in data.train if r.source == "colbert_humor_texts"} == {True}
    assert not {id(r) for r in data.train} & {id(r) for r in data.held_out}


@pytest.mark.parametrize(
    ("path", "label"),
    [("absent.jsonl", "helpful"), ("rated.jsonl", "stars"), ("pairs.jsonl", "helpful")],
)
def test_a_file_without_the_label_is_refused(tmp_path, path, label):
    write_rows(tmp_path / "rated.jsonl", [{"response": "a", "labels": {"helpful": 1}}])
    pair = {"prompt": "a", "chosen": "b", "rejected": "c", "objective": "helpful"}
    write_rows(tmp_path / "pairs.jsonl", [pair])
    with pytest.raises(DataError, match=path):
        RatedSource(path=path, labels={"helpful": label}).load(tmp_path)


def test_the_sample_of_a_large_source_is_of_its_training_rows(tmp_path):
    rows = [
        {"response": f"text {i}", "labels": {"stars": i % 5}, "split": ("train", "test")[i % 2]}
        for i in range(40)
    ]
    write_rows(tmp_path / "rated.jsonl", rows)
    source = RatedSource(path="rated.jsonl", labels={"helpful": "stars"}, max_rows=7)
    loaded = source.load(tmp_path)
    assert [r.split for r in loaded].count("train") == 7
    assert [r.split for r in loaded].count("test") == 20
    assert loaded == source.load(tmp_path) and loaded[0].labels.keys() == {"helpful"}


# ---------------------------------------------------------------- losses


def test_both_losses_by_hand():
    # Row 0 is labelled helpful 3 and harmless 1, row 1 harmless 2 only. exp of its logits: 1 1 2 | 3 1 and 1 1 2 | 2 2.
    logits = torch.tensor([[1.0, 1, 2, 3, 1], [1, 1, 2, 2, 2]]).log()
    levels = torch.tensor([[3, 1], [0, 2]])
    # joint: the five sum to 8 in both rows: (-log 2/8 - log 3/8 - log 2/8) / 2 rows.
    joint = -(np.log(2 / 8) + np.log(3 / 8) + np.log(2 / 8)) / 2
    assert classifier_loss(logits, levels, SIZES, "joint").item() == pytest.approx(joint)
    # per head: helpful sums to 4, harmless to 4: (-log 2/4 - log 3/4 - log 2/4) / 2 rows.
    per_head = -(np.log(2 / 4) + np.log(3 / 4) + np.log(2 / 4)) / 2
    assert classifier_loss(logits, levels, SIZES, "per_head").item() == pytest.approx(per_head)


def test_an_unlabelled_head_gets_no_gradient_per_head_and_is_pushed_down_jointly():
    logits = torch.zeros(1, 5, requires_grad=True)
    classifier_loss(logits, torch.tensor([[0, 2]]), SIZES, "per_head").backward()
    np.testing.assert_allclose(logits.grad, [[0, 0, 0, 0.5, -0.5]])  # softmax minus one-hot
    logits.grad = None
    classifier_loss(logits, torch.tensor([[0, 2]]), SIZES, "joint").backward()
    np.testing.assert_allclose(logits.grad, [[0.2, 0.2, 0.2, 0.2, -0.8]], atol=1e-6)


def test_probabilities_sum_to_1_over_what_their_softmax_covers():
    logits = torch.randn(4, 5)
    joint = log_probabilities(logits, SIZES, "joint").exp()
    per_head = log_probabilities(logits, SIZES, "per_head").exp()
    np.testing.assert_allclose(joint.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(per_head[:, :3].sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(per_head[:, 3:].sum(1), 1, atol=1e-6)
    # One head alone is a plain classifier under either.
    alone = [log_probabilities(logits, [5], loss) for loss in ("joint", "per_head")]
    assert torch.equal(*alone)


# ---------------------------------------------------------------- Eq 11

STATS = RewardStats(COLUMNS, np.full(5, 0.2), np.array([0.1, 0.2, 0.1, 0.4, 0.1]))
P = np.array([[0.1, 0.4, 0.2, 0.0, 0.3], [0.5, 0.1, 0.1, 0.2, 0.1]])


def test_eq_11_by_hand():
    # Row 0, helpful 2 and harmless 1: (0.4 - 0.2) / 0.2 = 1 and (0 - 0.2) / 0.4 = -0.5.
    # Row 1, helpful 1: 0.3 / 0.1 = 3.
    targets = [{"helpful": 2, "harmless": 1}, {"helpful": 1}]
    np.testing.assert_allclose(map_levels(P, targets, STATS), [0.25, 1.5], rtol=1e-6)
    by_targets = map_levels(P, targets, STATS, divide_by="targets")
    np.testing.assert_allclose(by_targets, [0.25, 3.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ([{"helpful": 1}], "1 targets for 2 rows"),
        ([{"helpful": 1}, {}], "row 1: got the targets {}"),
        ([{"helpful": 4}, {"helpful": 1}], "row 0.*helpful-3, harmless-1"),
        ([{"helpful": 0}, {"helpful": 1}], "row 0"),
        ([{"humor": 1}, {"helpful": 1}], "'humor'"),
    ],
)
def test_a_target_that_no_head_has_is_refused(targets, said):
    with pytest.raises(ValueError, match=said):
        map_levels(P, targets, STATS)
    with pytest.raises(ValueError, match="expected one of"):
        map_levels(P, [{"helpful": 1}] * 2, STATS, divide_by="k")


def test_moving_statistics_by_hand():
    # Column 0: mean 0.75 * 0.2 + 0.25 * 0.3 = 0.225; E[p^2] = 0.75 (0.01 + 0.04) + 0.25 (0.01 + 0.25) / 2 = 0.07.
    moved = moving_stats(STATS, P, momentum=0.25)
    assert moved.mean[0] == pytest.approx(0.225)
    assert moved.std[0] == pytest.approx(np.sqrt(0.07 - 0.225**2))
    # At momentum 1 they are the batch's own; a constant column is named, has deviation 1, and can come to life.
    constant = RewardStats.fit(np.full((3, 5), 0.2), COLUMNS)
    assert constant.constant == COLUMNS
    own = moving_stats(constant, P, momentum=1.0)
    np.testing.assert_allclose(own.mean, P.mean(axis=0))
    np.testing.assert_allclose(own.std, P.std(axis=0))
    assert own.constant == ()
    # Half of a column that never moved, at 0.2, and half of p = 0.1 and 0.5: E[p^2] = (0.04 + 0.13) / 2, mean 0.25.
    half = moving_stats(constant, P, momentum=0.5)
    assert half.std[0] == pytest.approx(np.sqrt(0.085 - 0.25**2))
    for momentum in (0.0, 1.5):
        with pytest.raises(ValueError, match="momentum"):
            moving_stats(STATS, P, momentum)
    with pytest.raises(ValueError, match="expected"):
        moving_stats(STATS, P[:, :2], 0.1)


# ---------------------------------------------------------------- the model

PROMPTS = ["Hi", None, [{"role": "user", "content": "Tell me a joke."}]]
COMPLETIONS = ["Hello there!", "A text that stands alone.", "Why?"]


def saved(folder: Path, loss: str = "joint") -> RewardClassifier:
    """A random classifier in ``folder``, with statistics."""
    tiny_classifier(folder / "model", 5)
    model, tokenizer = load_reward_model(str(folder / "model"))
    classifier = RewardClassifier(SCALES, model, tokenizer, folder, loss, max_length=64)
    classifier.fit_stats(PROMPTS, COMPLETIONS, "three texts")
    classifier.label_counts = dict.fromkeys(COLUMNS, 3)
    classifier.save_pretrained(folder)
    return classifier


@pytest.mark.parametrize("loss", ["joint", "per_head"])
def test_a_saved_classifier_answers_the_same(tmp_path, loss):
    before = saved(tmp_path / "a", loss)
    p = before.probabilities(PROMPTS, COMPLETIONS)
    assert p.shape == (3, 5) and p.dtype == np.float32
    np.testing.assert_allclose(p.sum(axis=1), 1 if loss == "joint" else 2, atol=1e-5)
    assert np.ptp(p, axis=0).min() > 1e-3
    before.save_pretrained(tmp_path / "b")  # elsewhere: the model goes with it
    for folder in ("a", "b"):
        after = RewardClassifier.from_pretrained(tmp_path / folder)
        np.testing.assert_array_equal(after.probabilities(PROMPTS, COMPLETIONS), p)
        targets = [{"helpful": 3}, {"harmless": 1}, {"helpful": 1, "harmless": 2}]
        np.testing.assert_array_equal(
            after.reward(PROMPTS, COMPLETIONS, targets), map_levels(p, targets, before.stats)
        )
        assert (after.scales, after.loss, after.label_counts) == (SCALES, loss, before.label_counts)
    config = json.loads((tmp_path / "b/classifier.json").read_text())
    first = {"name": "helpful", "range": [1, 5], "thresholds": [3, 5], "levels": 3}
    assert config["objectives"][0] == first and "torch" in config["versions"]


def test_running_statistics_move_after_the_batch_was_graded(tmp_path):
    classifier = saved(tmp_path)
    frozen = classifier.stats
    targets = [{"helpful": 1}] * 3
    first = classifier.reward(PROMPTS, COMPLETIONS, targets)
    assert classifier.stats is frozen
    np.testing.assert_array_equal(
        classifier.reward(PROMPTS, COMPLETIONS, targets, momentum=0.5), first
    )
    # The same batch is the reference: its mean stays, and a batch of one text moves it.
    np.testing.assert_allclose(classifier.stats.mean, frozen.mean, atol=1e-6)
    classifier.reward(PROMPTS[:1], COMPLETIONS[:1], targets[:1], momentum=0.5)
    assert np.abs(classifier.stats.mean - frozen.mean).max() > 1e-4


def test_a_classifier_refuses_what_it_cannot_score(tmp_path):
    classifier = saved(tmp_path)
    assert classifier.probabilities([], []).shape == (0, 5)
    with pytest.raises(ValueError, match="2 prompts and 1 completions"):
        classifier.probabilities(["a", "b"], ["c"])
    with pytest.raises(ValueError, match="expected lists"):
        classifier.probabilities("a", ["c"])
    with pytest.raises(ValueError, match="empty prompt"):
        classifier.probabilities([" "], ["c"])
    classifier.stats = None
    with pytest.raises(ValueError, match="no statistics"):
        classifier.reward(["a"], ["b"], [{"helpful": 1}])
    classifier.model.classifier.bias.data[3] = float("nan")
    with pytest.raises(ValueError, match="not finite.*harmless-1"):
        classifier.probabilities(["Hi"], ["Hello"])


def change(folder: Path, **settings) -> None:
    file = folder / "classifier.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "classifier.json").unlink(), "no classifier.json"),
        (lambda f: (f / "classifier.json").write_text('{"form'), "truncated"),
        (lambda f: change(f, format="pro-panel"), "format 'pro-panel'"),
        (lambda f: change(f, loss="cross"), "loss 'cross'"),
        (lambda f: change(f, objectives=[{"name": "helpful"}]), "range"),
        (
            lambda f: change(f, objectives=[{"name": "a", "range": [0, 1], "thresholds": [1]}]),
            "5 outputs, but .'a'. have 2 levels",
        ),
        (lambda f: (f / "model/config.json").unlink(), "cannot load"),
    ],
)
def test_a_broken_folder_says_what_is_wrong(tmp_path, damage, said):
    saved(tmp_path)
    damage(tmp_path)
    with pytest.raises(StorageError, match=said):
        RewardClassifier.from_pretrained(tmp_path)


# ---------------------------------------------------------------- accuracies


def predictions() -> pd.DataFrame:
    rows = [  # text, truth (helpful, harmless), probabilities
        ("a", (2, 0), (0.1, 0.5, 0.1, 0.2, 0.1)),  # head and level right
        ("b", (3, 0), (0.3, 0.1, 0.2, 0.2, 0.2)),  # head right, level wrong: 1 for 3
        ("c", (0, 1), (0.4, 0.0, 0.1, 0.3, 0.2)),  # wrong head; within harmless, 1 is right
        (
            "d",
            (1, 2),
            (0.1, 0.1, 0.1, 0.1, 0.6),
        ),  # right by its second label; within helpful a tie, 1
    ]
    table = pd.DataFrame({"text": [r[0] for r in rows]})
    table[["level_helpful", "level_harmless"]] = [r[1] for r in rows]
    table[[f"p_{column}" for column in COLUMNS]] = [r[2] for r in rows]
    return table


def test_preference_and_intensity_by_hand():
    measured = grade_levels(predictions(), SCALES, "joint")
    accuracy = {metric: m["accuracy"] for metric, m in measured.items()}
    assert accuracy == {
        "preference_accuracy": 0.75,  # a, b, d
        "intensity_accuracy": 0.5,  # a, d
        "level_accuracy_helpful": pytest.approx(2 / 3),  # a, d of a, b, d
        "level_accuracy_harmless": 1.0,  # c, d
        "level_accuracy": pytest.approx((2 / 3 + 1) / 2),
    }
    assert measured["level_accuracy_harmless"]["n"] == 2
    for m in measured.values():
        assert m["ci95"][0] <= m["accuracy"] <= m["ci95"][1]
    per_head = grade_levels(predictions(), SCALES, "per_head")
    assert set(per_head) == {metric for metric in measured if metric.startswith("level")}


def test_the_majority_class_by_hand():
    # Most labels: helpful (7 of 13). Most frequent head and level: harmless 2. Within helpful: level 1.
    counts = dict(zip(COLUMNS, (4, 1, 2, 1, 5), strict=True))
    measured = majority_class(predictions(), SCALES, counts)
    assert {metric: m["accuracy"] for metric, m in measured.items()} == {
        "preference_accuracy": 0.75,  # helpful has a label in a, b, d
        "intensity_accuracy": 0.25,  # d
        "level_accuracy_helpful": pytest.approx(1 / 3),  # d
        "level_accuracy_harmless": 0.5,  # d of c, d
        "level_accuracy": pytest.approx((1 / 3 + 1 / 2) / 2),
    }


# ---------------------------------------------------------------- training

OPENINGS = {1: "no idea", 2: "perhaps", 3: "certainly, gladly"}


def planted(n: int = 240) -> list[dict]:
    """Answers whose opening tells how helpful they are and whose last word how harmless; half have one label only."""
    rng = random.Random(0)
    rows = []
    for i in range(n):
        level, safe = rng.choice((1, 2, 3)), rng.choice((0, 1))
        labels = {"stars": (1, 3, 5)[level - 1], "harmless": safe}
        if i % 4 == 1:
            del labels["stars"]
        if i % 4 == 3:
            del labels["harmless"]
        response = f"{OPENINGS[level]}, {rng.choice('abcdef')} {('weapon', 'flower')[safe]}"
        split = "test" if i % 5 == 0 else "train"
        row = {"prompt": f"Question {i}?", "response": response, "labels": labels, "split": split}
        rows.append(row)
    return rows


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe over the planted rows and a tiny random encoder; call it with changes to get its path."""
    folder = tmp_path_factory.mktemp("classifier")
    write_rows(folder / "rated.jsonl", planted())
    base = tiny_encoder(folder / "base")

    def make(name: str, **changes) -> Path:
        settings = {
            "objectives": {
                "helpful": {"range": [1, 5], "thresholds": [3, 5]},
                "harmless": {"range": [0, 1], "thresholds": [1]},
            },
            "model": base,
            "output": str(folder / name),
            "data_dir": str(folder),
            "data": [
                {
                    "path": "rated.jsonl",
                    "labels": {"helpful": "stars", "harmless": "harmless"},
                    "epochs": 6,
                }
            ],
            "losses": ["joint", "per_head"],
            "learning_rate": 3e-3,
            "pooling": "mean",
            "batch_size": 16,
            "max_length": 32,
        }
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings | changes))
        return path

    return make


@pytest.mark.slow
def test_planted_levels_are_learned_under_both_losses(recipe, tmp_path):
    path = recipe("planted")
    script.main(ClassifierRecipe.read(path))
    folder = path.parent / "planted"
    for loss in ("joint", "per_head"):
        classifier = RewardClassifier.from_pretrained(folder / f"{loss}-seed0")
        assert classifier.accuracy["level_accuracy"]["accuracy"] > 0.9
        assert ("preference_accuracy" in classifier.accuracy) == (loss == "joint")
        prompts = ["Question 900?"] * 3
        answers = [f"{OPENINGS[level]}, a flower" for level in (1, 2, 3)]
        # Each answer is rewarded most for the level that it is of.
        by_target = [classifier.reward(prompts, answers, [{"helpful": t}] * 3) for t in (1, 2, 3)]
        np.testing.assert_array_equal(np.argmax(by_target, axis=1), [0, 1, 2])
        safe, unsafe = classifier.reward(
            ["Question 900?"] * 2,
            ["perhaps, b flower", "perhaps, b weapon"],
            [{"harmless": 2, "helpful": 2}] * 2,
        )
        assert safe > unsafe
        assert classifier.stats.n == sum(row["split"] == "train" for row in planted())
        card = (folder / f"{loss}-seed0/README.md").read_text()
        assert "level 2, 3, ... begins at" in card and "majority class" in card
    # Started again, it finds everything done; graded, it gives rows and the table.
    model = folder / "joint-seed0/model/model.safetensors"
    before = model.stat().st_mtime_ns
    script.main(ClassifierRecipe.read(path))
    assert model.stat().st_mtime_ns == before
    run("train/evaluate.py", "classifier", path, "--results", tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "classifier.jsonl").open()]
    methods = ["classifier (joint)", "classifier (per_head)", "majority class"]
    assert [row["method"] for row in rows] == methods
    joint = rows[0]
    assert joint["n"] == sum(row["split"] == "test" for row in planted())
    assert joint["metrics"]["level_accuracy"] > 0.9 and joint["metrics"]["levels_helpful"] == 3
    table = classifier_table(rows)
    assert "helpful (3 levels, 36)" in table and "preference: the head" in table


def test_accumulated_steps_are_the_same_steps(recipe):
    """Four forward passes of 4 rows take the step of one of 16: what the paper's accumulation must mean here."""
    models = []
    for accumulation in (1, 4):
        path = recipe(f"by{accumulation}", losses=["joint"], accumulation=accumulation)
        settings = yaml.safe_load(path.read_text())
        settings["data"][0]["epochs"] = 1
        path.write_text(yaml.safe_dump(settings))
        script.main(ClassifierRecipe.read(path))
        folder = path.parent / f"by{accumulation}" / "joint-seed0"
        models.append(load_file(folder / "model/model.safetensors"))
    for name, one in models[0].items():
        # bf16 sums in another order; a loss that is not divided would make steps of four times the size.
        torch.testing.assert_close(models[1][name], one, atol=0.02, rtol=0.1, msg=name)


def tiny_causal(folder: Path) -> str:
    """A random two-layer Qwen2 with a chat template, saved in ``folder``."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    Qwen2Model(Qwen2Config(vocab_size=30522, **sizes, **heads)).save_pretrained(folder)
    tok = tokenizer()
    tok.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tok.save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
def test_the_papers_recipe_trains_a_small_model_of_its_architecture(tmp_path):
    """Chat format, accumulation, checkpointing, no fast heads: all its settings but the model and the data."""
    recipe = yaml.safe_load((ROOT / "recipes/paper/moslim_type4.yaml").read_text())
    stand_ins(tmp_path)
    base = tiny_causal(tmp_path / "base")
    places = {"model": base, "output": str(tmp_path / "out"), "data_dir": str(tmp_path)}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | places))
    script.main(ClassifierRecipe.read(path))
    for loss in ("joint", "per_head"):
        classifier = RewardClassifier.from_pretrained(tmp_path / f"out/{loss}-seed42")
        assert len(classifier.columns) == 12 and classifier.input_format == "chat"
        rewards = classifier.reward(["Hi"], ["Hello"], [{"helpful": 5, "honest": 1}])
        assert np.isfinite(rewards).all()


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path):
    with pytest.raises(
        ConfigError, match="batch_size 10 cannot be shared evenly by 1 processes of 4"
    ):
        training_arguments(tmp_path, 10, 10, 1e-3, 0, accumulation=4)


def test_a_recipe_without_test_responses_stops_before_training(recipe):
    path = recipe("none", grade_on="validation")
    with pytest.raises(DataError, match="no validation responses"):
        script.main(ClassifierRecipe.read(path))
    assert not (path.parent / "none").exists()
