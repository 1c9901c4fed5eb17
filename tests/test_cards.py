"""Model cards say what is true of this checkpoint: whole texts, for data and a base that are nobody's else."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pandas as pd
import pytest
import yaml
from tiny import tiny_classifier

from pro_core.adapter.card import write_adapter_card
from pro_core.adapter.recipe import AdapterRecipe
from pro_core.data import card_parts
from pro_core.data.card_parts import base_licence, data_licences
from pro_core.data.entries import PairSource
from pro_core.data.training_pairs import gather_pairs
from pro_core.policies.card import write_soup_card
from pro_core.prompting.policy_config import PolicyConfig
from pro_core.prompting.templates import Condition
from pro_core.rewards.calibration import RewardStats
from pro_core.rewards.classifier import RewardClassifier
from pro_core.rewards.classifier_card import write_classifier_card
from pro_core.rewards.classifier_training import RatedResponses
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.panel_card import grade, write_panel_card
from pro_core.rewards.recipes import ClassifierRecipe, PanelRecipe
from pro_core.rewards.scores import distinct_texts, fit_reference_stats, pair_table
from pro_core.rewards.specs import RewardModelSpec
from pro_core.system.bundled_models import MINILM
from pro_core.system.storage import library_versions

NAMES = ("polite", "short")


@pytest.fixture
def base(tmp_path):
    """A model with a card of its own."""
    folder = tmp_path / "a base"
    tiny_classifier(folder, 2)
    (folder / "README.md").write_text("---\nlicense: bsd-3-clause\n---\n# A base\n")
    return str(folder)


def jsonl(path: Path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def panel_data(tmp_path):
    """Two files of one's own: polite pairs with a licence in the rows, of which one test prompt is trained on; short
    ones without."""
    row = {"chosen": "gladly", "rejected": "no"}
    polite = [
        row
        | {"prompt": f"May I {i}?", "split": split, "objective": "polite", "licence": "CC0-1.0"}
        | ({"rejected": "nope"} if split == "test" else {})
        for split, numbers in (("train", range(6)), ("test", (5, 6, 7, 8)))
        for i in numbers
    ]
    short = [
        {
            "prompt": f"Why {i}?",
            "chosen": "so",
            "rejected": "so be it, and then " * 9,
            "objective": "short",
        }
        | {"split": "train"}
        for i in range(2)
    ]
    jsonl(tmp_path / "letters.jsonl", polite)
    jsonl(tmp_path / "notes.jsonl", short)
    sources = [PairSource(path="letters.jsonl"), PairSource(path="notes.jsonl", licence="mine")]
    return gather_pairs(sources, NAMES, tmp_path)


def scored(data, fold_of_training=0):
    """Each pair's own objective prefers the chosen completion in every second one."""
    tables = []
    for pairs, fold in ((data.held_out, -1), (data.training, fold_of_training)):
        _, completions, where = distinct_texts(pairs)
        stats = RewardStats(NAMES, np.zeros(2), np.ones(2), 2)
        raw = np.zeros((len(completions), 2))
        raw[where[:, 0]] = [[1.0 if i % 2 else -1.0] * 2 for i in range(len(pairs))]
        tables.append(pair_table(pairs, completions, where, raw, stats, fold))
    return pd.concat(tables, ignore_index=True)


PANEL_CARD = """---
license: unknown
tags:
- reward-model
- preference
- multi-objective
---
# Reward panel: polite, short

Bradley-Terry reward models on `a base` (licence bsd-3-clause), one trunk with a head for each objective, trained by \
`train/reward_models.py` (method `full`, 24 tokens, seed 0). Higher is better for every objective.

| objective | training pairs | accuracy on pairs | 95% interval | pairs | prompts | measured on | correlation with \
length | accuracy at equal length |
|---|---|---|---|---|---|---|---|---|
| polite | 6 | 0.667 | 0.000 to 1.000 | 3 | 3 | test pairs of letters | +0.00 | no such pairs |
| short | 2 | not measured | | | | no test pairs | | |

Length is in characters. Correlation with length: Spearman's, over pairs, of the score's margin with the difference in \
length. About equal length: the shorter lacks at most 10% of the longer. Standardized scores keep what they owe to \
length.

## Data

Trained on (none of the text is in here):

- letters (pairs; splits train): licence CC0-1.0; pairs: polite 6
- notes (pairs; splits train): licence mine; pairs: short 2
- Leak: the prompts of 1 of 4 test pairs were trained on, so these are not graded. Give all rows of a prompt one \
`split`, or leave `split` out.

## Limits

- polite: cannot be told from a coin, its interval holds 0.5.
- short: not measured, so nothing says how far to trust it.
- Of the training texts 12.5% were longer than the panel reads, and were cut.
- A score is a guess about which answer would have been preferred, by those whose preferences are above, and not a \
fact about the text. Compare scores within one prompt.

Statistics: training pairs, up to 250 each of letters/polite, notes/short. Versions: {versions}
"""


@pytest.fixture
def panel(base):
    specs = [RewardModelSpec(name, base, logit=k, max_length=24) for k, name in enumerate(NAMES)]
    return RewardPanel.build(specs, Path(base).parent)


def panel_recipe(base, **changes):
    settings = {"objectives": NAMES, "data": [{"path": "letters.jsonl"}], "output": "out"}
    return PanelRecipe(**settings, model=base, max_length=24, **changes)


def test_the_panels_card_with_data_of_ones_own(tmp_path, base, panel):
    data = panel_data(tmp_path)
    fit_reference_stats(panel, data.training)
    table = scored(data)
    panel.accuracy = grade(table, NAMES, "test")
    write_panel_card(tmp_path, panel, panel_recipe(base), data, table)
    card = (tmp_path / "README.md").read_text()
    assert card == PANEL_CARD.replace("{versions}", str(library_versions()))
    assert panel.accuracy["polite"]["sources"] == ["letters"] and panel.trained_on == (
        "letters",
        "notes",
    )


def test_the_panels_own_licence_is_the_recipes(tmp_path, base, panel):
    data = panel_data(tmp_path)
    fit_reference_stats(panel, data.training)
    recipe = panel_recipe("someone/a-model", licence="mit")
    write_panel_card(tmp_path, panel, recipe, data, scored(data))
    head = yaml.safe_load((tmp_path / "README.md").read_text().split("---")[1])
    assert head["license"] == "mit" and head["base_model"] == "someone/a-model"


def test_what_is_worse_than_a_coin_constant_or_follows_length_is_a_limit(tmp_path, base, panel):
    data = panel_data(tmp_path)
    panel.stats = RewardStats.fit([[1, 2], [3, 2]], NAMES, "two texts")
    bad = {"accuracy": 0.2, "ci95": [0.1, 0.3], "n": 90, "prompts": 90, "test": "test pairs of x"}
    bad |= {"length_correlation": -0.4, "equal_length": None}
    good = bad | {"accuracy": 0.8, "ci95": [0.7, 0.9], "length_correlation": 0.1}
    panel.accuracy = {"polite": bad, "short": good}
    write_panel_card(tmp_path, panel, panel_recipe(base), data, scored(data))
    limits = (tmp_path / "README.md").read_text().split("## Limits")[1]
    assert "- polite: prefers what was rejected, more often than not." in limits
    assert "- polite: shorter answers score higher (-0.40)." in limits
    assert "The same score for every text of the reference set: short." in limits
    assert "- short:" not in limits


def test_an_objective_of_which_every_test_pair_is_left_out_says_why(tmp_path, base, panel):
    data = panel_data(tmp_path)
    fit_reference_stats(panel, data.training)
    table = scored(data)
    table.loc[table.fold < 0, "ungraded"] = "its prompt was trained on"
    panel.accuracy = grade(table, NAMES, "test")
    assert panel.accuracy == {}
    write_panel_card(tmp_path, panel, panel_recipe(base), data, table)
    said = "no test pairs to grade, of 4: its prompt was trained on (4)"
    assert said in (tmp_path / "README.md").read_text()


# ---------------------------------------------------------------- adapters

ADAPTER_CARD = """---
license: unknown
tags:
- preference-adapter
- preference
- multi-objective
---
# Preference adapter: a prompt to weights over polite, short, funny

Target `pairwise-t1`, chosen on validation among 2. Encoder `a base` (licence bsd-3-clause), frozen. Fitted by \
`train/adapter.py` on out-of-fold scores of 8 pairs of 8 prompts.

Validation accuracy, averaged over objectives (1 seeds): uniform 0.600, adapter 0.500. It is too good for the chosen \
target: `python train/evaluate.py adapter` grades it on test pairs.

## Data

Fitted on (none of the text is in here):

- letters: licence CC0-1.0; pairs: polite 6
- notes: licence mine; pairs: short 2

## Limits

- No training pair with a prompt was judged by funny.
- On validation it is no better than uniform weights.
- No part in the validation accuracy, for want of pairs: short, funny.
- 1 of 4 validation pairs are not graded: its prompt was trained on.
- It knows the kinds of prompts that it was fitted on. Soft weights can be talked down: give an objective that must \
count a floor.
"""


def adapter_card(tmp_path, base, summary, table, names=NAMES):
    recipe = AdapterRecipe(
        scores="scores.parquet", panel="panel", output="out", encoder=base, train_encoder=False,
        targets=[{"target": "pairwise", "temperature": 1.0}],
    )  # fmt: skip
    write_adapter_card(tmp_path, recipe, "pairwise-t1", names, summary, table)
    return (tmp_path / "README.md").read_text()


def test_the_adapters_card_with_data_of_ones_own(tmp_path, base):
    columns = ["target", "seed", "uniform", "adapter"]
    rows = [("pairwise-t1", 0, 0.6, 0.5), ("paper-t1", 0, 0.6, 0.4)]
    table = scored(panel_data(tmp_path))
    table.loc[table.fold < 0, "split"] = "validation"
    summary = pd.DataFrame(rows, columns=columns)
    assert adapter_card(tmp_path, base, summary, table, (*NAMES, "funny")) == ADAPTER_CARD


def test_an_adapter_that_nothing_chose_says_so(tmp_path, base):
    table = scored(panel_data(tmp_path))
    table.loc[table.fold < 0, "split"] = "validation"
    table.loc[table.fold < 0, "ungraded"] = "its prompt was trained on"
    table["constructed"] = table.fold >= 0
    card = adapter_card(tmp_path, base, pd.DataFrame(), table, ("polite",))
    assert "Target `pairwise-t1`, the first of its recipe" in card
    assert "Nothing about its weights was measured." in card
    assert "4 of 4 validation pairs are not graded: its prompt was trained on." in card
    assert "The prompts of 8 pairs are made up" in card
    assert "its weight is always 1" in card


# ---------------------------------------------------------------- classifiers and soups


def test_the_classifiers_card_names_its_own_data_and_its_limits(tmp_path, base):
    rows = [
        {
            "prompt": f"Q{i}",
            "response": "a",
            "labels": {"fluency": 1 + 4 * (i % 2)},
            "split": "train",
        }
        | {"licence": "CC-BY-4.0"}
        for i in range(4)
    ]
    jsonl(tmp_path / "essays.jsonl", [*rows, rows[0] | {"split": "test"}])
    recipe = ClassifierRecipe(
        objectives={"fluency": {"range": [1, 5], "thresholds": [3]}},
        data=[{"path": "essays.jsonl", "labels": ["fluency"]}],
        model=base,
        output="out",
        max_length=9,
        licence="mit",
    )
    scales = recipe.scales
    data = RatedResponses.load(recipe.data, scales, tmp_path)
    model = SimpleNamespace(config=SimpleNamespace(num_labels=2))
    classifier = RewardClassifier(scales, model, None, "", loss="joint", label_counts=data.counts)
    measured = {"accuracy": 0.6, "ci95": [0.4, 0.8], "n": 5, "prompts": 5}
    classifier.accuracy = {"level_accuracy_fluency": measured}
    majority = {"level_accuracy_fluency": measured | {"accuracy": 0.5}}
    write_classifier_card(tmp_path, classifier, recipe, data, majority)
    card = (tmp_path / "README.md").read_text()
    assert "license: mit\n" in card and "`a base` (licence bsd-3-clause)" in card
    assert "- essays: fluency; splits train; licence CC-BY-4.0\n" in card
    assert "the prompts of 1 of 1 test responses were trained on" in card
    assert "fluency: its levels cannot be told from always answering the most frequent one" in card
    assert "several sources" not in card


def test_a_soups_card_names_the_licences_of_its_prompts(tmp_path):
    jsonl(
        tmp_path / "letters.jsonl",
        [{"prompt": "Q", "response": "a", "labels": {}, "licence": "CC0-1.0"}],
    )
    entries = [
        {"path": "letters.jsonl"},
        {"path": "gone.jsonl"},
        {"path": "x.jsonl", "licence": "mine"},
    ]
    entries.append({"path": "nvidia/HelpSteer2"})
    run = {
        "algorithm": "grpo",
        "steps": 1,
        "weights": {"polite": 1.0},
        "learning_rate": 0.1,
        "kl": 0,
    }
    run |= {"lora": {"r": 4}, "max_new_tokens": 8, "panel": str(tmp_path / "my panel")}
    record = {"settings": run | {"data": entries, "data_dir": str(tmp_path)}}
    record["spent"] = {"completions": 4, "prompts": 2}
    config = PolicyConfig(Condition("none", NAMES), "", "", {"soup": {}, "weights": None}, {})
    config = PolicyConfig(config.condition, str(tmp_path / "policy base"), "", config.training, {})
    write_soup_card(tmp_path, config, {"polite": record})
    card = (tmp_path / "README.md").read_text()
    assert "license: unknown\n" in card and str(tmp_path) not in card
    for line in (
        "- letters: licence CC0-1.0",
        "- gone: licence unknown",
        "- x: licence mine",
        "- helpsteer2_responses: licence CC-BY-4.0",
    ):
        assert f"\n{line}\n" in card


# ---------------------------------------------------------------- licences


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\nlicense: other\nlicense_name: my own | terms\n---\n", "my own / terms"),
        ("---\nlicense: [mit, gpl]\n---\n", "mit, gpl"),
        ("---\nlicense: [broken\n---\n", "unknown"),
        ("---\n- a list\n---\n", "unknown"),
        ("no front matter", "unknown"),
        (None, "unknown"),
    ],
)
def test_a_bases_licence_is_what_its_own_card_states(tmp_path, card, licence):
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert base_licence(str(tmp_path)) == licence


def test_a_base_from_the_hub_is_asked_once_and_for_its_card_alone(monkeypatch):
    asked = []

    def info(model, **options):
        asked.append((model, options["expand"]))
        return huggingface_hub.ModelInfo(id=model, cardData={"license": "apache-2.0"})

    monkeypatch.setattr(card_parts, "model_info", info)
    assert base_licence("nobody/nothing") == "apache-2.0"
    assert asked == [("nobody/nothing", ["cardData"])]


@pytest.mark.parametrize("error", [OSError("no network"), ValueError("bad name"), RuntimeError()])
def test_a_licence_that_cannot_be_asked_for_costs_no_run(monkeypatch, error):
    def info(*arguments, **options):
        raise error

    monkeypatch.setattr(card_parts, "model_info", info)
    assert base_licence("nobody/nothing") == "unknown"


def test_the_packaged_encoders_licence_is_its_cards():
    assert base_licence(MINILM) == "apache-2.0"


def test_a_public_set_names_its_licence_without_being_loaded(tmp_path):
    assert data_licences({"path": "nvidia/HelpSteer2"}, tmp_path) == ["CC-BY-4.0"]
