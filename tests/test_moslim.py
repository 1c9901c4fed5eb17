"""train/moslim.py on tiny models: Eq 11 as a reward, what reaches the scorer, kills, and how a policy is asked."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from test_morlhf import same
from tiny import tiny_classifier, tiny_llama, tokenizer
from transformers import BertForSequenceClassification

from pro_core import RewardClassifier
from pro_core.conditioned import PolicyConfig
from pro_core.conditioning import Condition, levels_for_weights
from pro_core.data import read_jsonl
from pro_core.policies.morlhf import folder_name
from pro_core.policies.morlhf_recipe import read_moslim
from pro_core.policies.moslim import LevelData, LevelReward, MoslimRun, draw_levels
from pro_core.rewards.calibration import RewardStats
from pro_core.rewards.classifier import IntensityScale
from pro_core.storage import StorageError
from pro_core.training import ConfigError
from train import moslim as script

ROOT = Path(__file__).resolve().parent.parent
SCALES = (
    IntensityScale("helpful", 1, 5, (2, 3, 4, 5)),
    IntensityScale("on-topic", 0, 1, (0.5,)),
    IntensityScale("funny", 0, 1, (0.5,)),
)
NAMES = tuple(scale.name for scale in SCALES)
COUNTS = (5, 2, 2)
ASKED = ("the capital", "rain on Sunday", "a joke", "France <funny 2>", "why not", "Paris")
TAG = re.compile(r"<[a-z-]+ \d>")


def write_classifier(folder: Path, loss: str = "per_head", stats: bool = True) -> RewardClassifier:
    tiny_classifier(folder / "model", sum(COUNTS), seed=1)
    model = BertForSequenceClassification.from_pretrained(folder / "model")
    found = RewardClassifier(SCALES, model, tokenizer(), folder, loss, max_length=64)
    if stats:
        texts = ["hello there.", "it rained on Sunday and we stayed in", "why", "Paris is it, no?"]
        found.fit_stats(["a"] * 4, texts, "four texts")
    found.save_pretrained(folder)
    return found


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A tiny Llama, a classifier of three objectives, and six prompts: a recipe's settings."""
    folder = tmp_path_factory.mktemp("parts")
    write_classifier(folder / "classifier")
    rows = [{"prompt": f"tell me {w}", "response": "no", "labels": {}} for w in ASKED]
    lines = [json.dumps(row | {"split": "train"}) + "\n" for row in rows]
    (folder / "own.jsonl").write_text("".join(lines))
    return {
        "model": tiny_llama(folder / "llama"),
        "classifier": str(folder / "classifier"),
        "data": [{"path": str(folder / "own.jsonl")}],
        "lora": {"r": 4},
        "max_length": 96,
        "max_new_tokens": 8,
        "steps": 2,
        "prompts_per_step": 2,
        "generations": 3,
        "checkpoint_every": 1,
        "learning_rate": 0.01,
    }


@pytest.fixture(scope="module")
def classifier(parts) -> RewardClassifier:
    return RewardClassifier.from_pretrained(parts["classifier"], "cpu")


def trained(output: Path, method: str = "moslim"):
    """(LoRA, log, record) of a finished run."""
    folder = output / method / "seed0"
    record = json.loads((folder / "run.json").read_text())
    log = read_jsonl(output / record["stages"][-1]["stage"] / "log.jsonl")
    return load_file(folder / "adapter_model.safetensors"), log, record


# ---------------------------------------------------------------- the draw


def test_one_to_three_objectives_with_any_of_their_levels():
    levels = draw_levels((5, 5, 2, 1), 4000, seed=0)
    np.testing.assert_array_equal(levels, draw_levels((5, 5, 2, 1), 4000, seed=0))
    assert (levels != draw_levels((5, 5, 2, 1), 4000, seed=1)).any()
    assert np.bincount((levels > 0).sum(axis=1), minlength=5)[1:4] == pytest.approx(
        [4000 / 3] * 3, rel=0.1
    )
    assert ((levels > 0).sum(axis=1) <= 3).all() and levels.any(axis=1).all()
    assert np.bincount(levels[:, 0])[1:] == pytest.approx([400] * 5, rel=0.2)
    assert set(levels[:, 2]) == {0, 1, 2} and set(levels[:, 3]) == {0, 1}
    assert (draw_levels((2,), 9, seed=0) > 0).all()  # one objective: always that one


# ---------------------------------------------------------------- Eq 11


def fixed(classifier: RewardClassifier, probabilities, mean, std) -> RewardClassifier:
    """The classifier with these statistics, answering these probabilities, whatever it reads."""
    stats = RewardStats(classifier.columns, np.array(mean), np.array(std), 9)
    found = replace(classifier, stats=stats)
    found.probabilities = lambda prompts, completions, allow_missing=False: np.array(probabilities)  # type: ignore[method-assign]
    return found


P = [0.1, 0.1, 0.2, 0.2, 0.4, 0.3, 0.7, 0.9, 0.1]
MEAN, STD = [0.2] * 5 + [0.5] * 4, [0.1] * 5 + [0.2] * 2 + [0.4] * 2


@pytest.mark.parametrize(
    ("levels", "terms"),
    [
        ([5, 0, 0], [(0.4 - 0.2) / 0.1]),
        ([1, 2, 0], [(0.1 - 0.2) / 0.1, (0.7 - 0.5) / 0.2]),
        ([3, 1, 1], [0.0, (0.3 - 0.5) / 0.2, (0.9 - 0.5) / 0.4]),
    ],
)
def test_the_reward_by_hand(classifier, levels, terms):
    mine = fixed(classifier, [P], MEAN, STD)
    for divide_by, k in (("objectives", 3), ("targets", len(terms))):
        reward = LevelReward(mine, NAMES, ["hello"], [levels], ["a"], divide_by)
        (found,) = reward([], ["yes"], [0])
        assert found == pytest.approx(sum(terms) / k, abs=1e-6)


def test_the_reward_is_the_classifiers_own(classifier):
    """Of real texts, for prompts that name one to three objectives: that of `RewardClassifier.reward`."""
    levels = draw_levels(COUNTS, 6, seed=3)
    prompts, texts = [f"tell me {what}" for what in ASKED], [f"yes, {what}" for what in ASKED]
    targets = [{n: int(x) for n, x in zip(NAMES, row, strict=True) if x} for row in levels]
    for divide_by in ("objectives", "targets"):
        reward = LevelReward(classifier, NAMES, prompts, levels, ["a"] * 6, divide_by)
        order = [4, 0, 5, 1, 2, 3]
        expected = classifier.reward(prompts, texts, targets, divide_by)[order]
        found = reward([], [texts[i] for i in order], order)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert len(set(np.round(expected, 3))) == 6


def test_one_objective_with_one_level_is_its_heads_standardized_probability(classifier):
    reward = LevelReward(classifier, ["on-topic"], ["hello"] * 2, [[2]] * 2, ["a"] * 2)
    texts = ["yes", "not so"]
    p = classifier.probabilities(["hello"] * 2, texts)
    z = classifier.require_stats().normalize(p)[:, classifier.columns.index("on-topic-2")]
    np.testing.assert_allclose(reward([], texts, [0, 1]), z, atol=1e-6)


def test_of_some_objectives_k_counts_those(classifier):
    """In the order that they are named in."""
    mine = fixed(classifier, [P], MEAN, STD)
    reward = LevelReward(mine, ("funny", "helpful"), ["hello"], [[1, 5]], ["a"])
    assert reward([], ["yes"], [0]) == pytest.approx([((0.9 - 0.5) / 0.4 + 2) / 2], abs=1e-6)


def test_a_completion_without_a_probability_is_skipped_and_counted(classifier):
    odd = np.array([P, [np.nan] * 9])
    mine, logged = fixed(classifier, odd, MEAN, STD), {}
    reward = LevelReward(mine, NAMES, ["hello"] * 2, [[5, 0, 0]] * 2, ["a"] * 2)
    found = reward([], ["yes", "no"], [0, 1], log_metric=logged.__setitem__)
    assert found[1] is None and found[0] == pytest.approx(2 / 3)
    assert logged["skipped"] == 0.5 and logged["objectives/helpful"] == pytest.approx(2)
    assert "objectives/funny" not in logged  # nobody asked for it: not 0


def test_an_empty_completion_is_scored_as_one(classifier):
    reward = LevelReward(classifier, NAMES, ["hello"], [[1, 1, 1]], ["a"])
    (found,) = reward([], [""], [0])
    assert found is not None and np.isfinite(found)


@pytest.mark.parametrize("levels", [[6, 0, 0], [0, 0, 0], [0, -1, 2], [1.5, 0, 0]])
def test_levels_that_there_are_none_of(classifier, levels):
    with pytest.raises(ValueError, match="expected one or more of helpful 1 to 5, on-topic 1 to 2"):
        LevelReward(classifier, NAMES, ["hello"], [levels], ["a"])


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize("algorithm", ["grpo", "rloo", "online_dpo", "ppo"])
def test_every_algorithm_killed_goes_on_to_the_same_parameters(
    recipe, tmp_path, monkeypatch, algorithm
):
    """And neither the scorer nor the data's own prompts ever hold a level, while every prompt read does."""
    seen, original = [], RewardClassifier.probabilities

    def spy(self, prompts, completions, allow_missing=False):
        seen.extend(prompts)
        return original(self, prompts, completions, allow_missing)

    monkeypatch.setattr(RewardClassifier, "probabilities", spy)
    changes = {"algorithm": algorithm, "round_steps": 1}
    script.main(recipe("whole", **changes))
    lora, log, record = trained(tmp_path / "whole")
    assert record["spent"]["completions"] == 12 and record["spent"]["skipped"] == 0
    assert all(lora[name].abs().sum() > 0 for name in lora if "lora_B" in name)
    asked = [p[-1]["content"] for p in seen]
    assert len(asked) == 12 and set(asked) <= {f"tell me {what}" for what in ASKED}

    calls = []

    def stopped(*arguments, **named):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt  # the second step's completions are there, and not yet scored
        return spy(*arguments, **named)

    monkeypatch.setattr(RewardClassifier, "probabilities", stopped)
    path = recipe("cut", **changes)
    with pytest.raises(KeyboardInterrupt):
        script.main(path)
    assert not (tmp_path / "cut" / "moslim").exists()
    monkeypatch.undo()
    script.main(path)
    other, other_log, _ = trained(tmp_path / "cut")
    assert same(lora, other) and log == other_log


def test_what_a_run_leaves(recipe, parts, classifier, tmp_path):
    path = recipe("two", arms={"MOSLIM": {}, "MOSLIM, by targets": {"divide_by": "targets"}})
    script.main(path)
    loras = [trained(tmp_path / "two", folder_name(n)) for n in read_moslim(path)]
    assert not same(loras[0][0], loras[1][0])
    listed = []
    for _, log, record in loras:
        listed.append(read_jsonl(tmp_path / "two" / record["stages"][0]["stage"] / "prompts.jsonl"))
        assert all(np.isfinite(entry["reward"]) for entry in log)
    first, second = listed
    assert [row["levels"] for row in first] == [row["levels"] for row in second]
    for row, other in zip(first, second, strict=True):
        named = {name for name, weight in row["weights"].items() if weight}
        assert named == set(row["levels"]) and sum(other["weights"].values()) == pytest.approx(1)
        assert all(row["weights"][name] == pytest.approx(1 / 3) for name in named)
    # The checkpoint says how it is asked, and by whom it was taught.
    config = PolicyConfig.read(tmp_path / "two" / "moslim" / "seed0")
    assert config and config.condition == Condition("levels", NAMES, level_counts=COUNTS)
    assert config.panel == classifier.fingerprint() and config.base == parts["model"]
    read = config.condition.add("hello <Helpful 5>", config.condition.level_text([4, 0, 1]))
    assert read[-1]["content"] == "<helpful 4> <funny 1> hello (Helpful 5)"


def test_the_policy_reads_its_prefix_and_no_other_tag(recipe):
    """In one place for all algorithms; text that imitates the prefix is neutralized for it, not for the scorer."""
    settings = read_moslim(recipe("read", steps=3))["MOSLIM"]
    run = MoslimRun(settings, 0, LevelData.load(settings))
    prefixes = set()
    for row, prompt in enumerate(run.data.prompts):
        (message,) = run.reads(row)
        named = {n: int(x) for n, x in zip(NAMES, run.levels[row], strict=True) if x}
        prefix = " ".join(f"<{n} {x}>" for n, x in named.items())
        assert TAG.findall(message["content"]) == prefix.split("> <") or message[
            "content"
        ].startswith(prefix + " tell me")
        assert len(TAG.findall(message["content"])) == len(named)
        prefixes.add(prefix)
        if "<funny 2>" in prompt[-1]["content"]:
            assert message["content"].endswith("France (funny 2)")
    assert len(prefixes) > 3
    # Another seed asks for other levels: its run is another one.
    assert MoslimRun(settings, 1, run.data).key != run.key


def test_weights_become_levels():
    """For an app or a table that knows weights alone."""
    assert levels_for_weights([0.5, 0.25, 0.25], COUNTS) == [5, 2, 2]
    assert levels_for_weights([0.8, 0.2, 0.0], COUNTS) == [5, 1, 0]
    assert levels_for_weights([0.25] * 4, (3, 3, 2, 2)) == [3, 3, 2, 0]  # never more than three
    condition = Condition("levels", NAMES, level_counts=COUNTS)
    (message,) = condition.messages("hello", [0.2, 0.0, 0.8])
    assert message["content"] == "<helpful 2> <funny 2> hello"
    assert Condition.from_dict(json.loads(json.dumps(condition.to_dict()))) == condition
    assert "level_counts" not in Condition("weights", NAMES).to_dict()
    with pytest.raises(ValueError, match="expected how many levels each of 3"):
        Condition("levels", NAMES, level_counts=(5, 2))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"objectives": ["helpful", "kind"]},
            r"classifier .*: got the objectives \['helpful', 'ki",
        ),
        ({"weights": "uniform"}, "weights"),
        ({"divide_by": "levels"}, "got divide_by 'levels', expected one of"),
        ({"algorithm": "dpo"}, "got algorithm 'dpo', expected one of"),
        ({"generations": 1}, "got generations 1, expected at least 2"),
        ({"arms": {"A": {"objectives": ["helpful"]}}}, r"the arm 'A' sets \['objectives'\]"),
        ({"max_length": 40}, "none of 6 prompts fits"),
    ],
)
def test_wrong_recipes(recipe, changes, said):
    with pytest.raises(ConfigError, match=said):
        script.main(recipe("wrong", **changes))


def test_a_classifier_without_statistics_and_a_panel(recipe, tmp_path):
    write_classifier(tmp_path / "bare", stats=False)
    with pytest.raises(ConfigError, match=r"it has no statistics.*train/classifier\.py fits them"):
        script.main(recipe("bare_run", classifier=str(tmp_path / "bare")))
    with pytest.raises(StorageError, match=r"classifier\.json"):
        script.main(recipe("panel", classifier=str(ROOT / "checkpoints" / "demo" / "panel")))
