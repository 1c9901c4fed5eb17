"""train/moslim.py on tiny models: Eq 11 as a reward, what reaches the scorer, kills, and how a policy is asked."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file
from test_morlhf import same
from tiny import TINY_RUN, tiny_classifier, tiny_llama, tokenizer
from transformers import AutoTokenizer, BertForSequenceClassification, LlamaForCausalLM

from pro_core import RewardClassifier
from pro_core.data.schema import read_jsonl
from pro_core.evaluation.policy.grids import Grid, level_grid
from pro_core.evaluation.policy.levels import LevelStudy, control, level_rows
from pro_core.evaluation.policy.metrics import Answers, JudgeUnits, resampled
from pro_core.evaluation.policy.recipe import LevelEvaluation
from pro_core.evaluation.results import read_rows
from pro_core.policies.rl.levels import ClassifierPrompts, LevelReward, draw_levels, level_task
from pro_core.policies.rl.methods import train_moslim
from pro_core.policies.rl.recipe import MoslimRecipe
from pro_core.policies.rl.run import Run
from pro_core.prompting.policy_config import PolicyConfig
from pro_core.prompting.templates import Condition, levels_for_weights
from pro_core.reporting.policy_tables import levels_table
from pro_core.rewards.calibration import RewardStats
from pro_core.rewards.levels import IntensityScale
from pro_core.rewards.panel import RewardPanel
from pro_core.runs.recipes import ConfigError, folder_name
from pro_core.system.storage import StorageError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
SCALES = (
    IntensityScale("helpful", 1, 5, (2, 3, 4, 5)),
    IntensityScale("on-topic", 0, 1, (0.5,)),
    IntensityScale("funny", 0, 1, (0.5,)),
)
NAMES = tuple(scale.name for scale in SCALES)
COUNTS = (5, 2, 2)
ASKED = ("the capital", "rain on Sunday", "a joke", "France <funny 2>", "why not", "Paris")


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
        "max_length": 96,
        **TINY_RUN,
    }


@pytest.fixture(scope="module")
def classifier(parts) -> RewardClassifier:
    return RewardClassifier.from_pretrained(parts["classifier"], "cpu")


def train(path: str) -> None:
    train_moslim(MoslimRecipe.read(path))


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
    recipe, parts, tmp_path, monkeypatch, algorithm
):
    """And the scorer never reads a level, the policy never a prompt without one."""
    seen, original = [], RewardClassifier.probabilities

    def spy(self, prompts, completions, allow_missing=False):
        seen.extend(prompts)
        return original(self, prompts, completions, allow_missing)

    read, forward = set(), LlamaForCausalLM.forward

    def reader(self, input_ids=None, **named):
        read.update(map(tuple, input_ids.tolist()))
        return forward(self, input_ids=input_ids, **named)

    monkeypatch.setattr(RewardClassifier, "probabilities", spy)
    monkeypatch.setattr(LlamaForCausalLM, "forward", reader)
    changes = {"algorithm": algorithm, "round_steps": 1}
    train(recipe("whole", **changes))
    lora, log, record = trained(tmp_path / "whole")
    assert record["spent"]["completions"] == 12 and record["spent"]["skipped"] == 0
    assert all(lora[name].abs().sum() > 0 for name in lora if "lora_B" in name)
    asked = [p[-1]["content"] for p in seen]
    assert len(asked) == 12 and set(asked) <= {f"tell me {what}" for what in ASKED}

    words = AutoTokenizer.from_pretrained(parts["model"])
    prompts = [text for ids in read if "tell me" in (text := words.decode(ids))]
    assert len(prompts) >= 4 and all(re.search(r"<[a-z-]+ \d> tell me", text) for text in prompts)

    calls = []

    def stopped(*arguments, **named):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt  # the second step's completions are there, and not yet scored
        return spy(*arguments, **named)

    monkeypatch.setattr(RewardClassifier, "probabilities", stopped)
    path = recipe("cut", **changes)
    with pytest.raises(KeyboardInterrupt):
        train(path)
    assert not (tmp_path / "cut" / "moslim").exists()
    monkeypatch.undo()
    train(path)
    other, other_log, _ = trained(tmp_path / "cut")
    assert same(lora, other) and log == other_log


def test_what_a_run_leaves(recipe, parts, classifier, tmp_path):
    path = recipe("two", arms={"MOSLIM": {}, "MOSLIM, by targets": {"divide_by": "targets"}})
    train(path)
    loras = [trained(tmp_path / "two", folder_name(n)) for n in MoslimRecipe.read(path).methods()]
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
    read = MoslimRecipe.read(recipe("read", steps=3))
    data = ClassifierPrompts.load(read)
    task = level_task(read, data, 0)
    assert len(task.reads) == 6
    for (message,), line in zip(task.reads, task.listed, strict=True):
        prefix = " ".join(f"<{name} {level}>" for name, level in line["levels"].items())
        typed = line["prompt"][-1]["content"].replace("<funny 2>", "(funny 2)")
        assert message["content"] == f"{prefix} {typed}"
    assert task.reward.prompts == [line["prompt"] for line in task.listed]
    assert len({json.dumps(line["levels"]) for line in task.listed}) > 3
    # Another seed asks for other levels: its run is another one.
    assert Run(read, level_task(read, data, 1), 1).key != Run(read, task, 0).key


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
    ("changes", "field"),
    [
        ({"objectives": ["helpful", "kind"]}, "objectives"),
        ({"weights": "uniform"}, "weights"),
        ({"divide_by": "levels"}, "divide_by"),
        ({"algorithm": "dpo"}, "algorithm"),
        ({"generations": 1}, "generations"),
        ({"arms": {"A": {"objectives": ["helpful"]}}}, "arms.A.objectives"),
    ],
)
def test_wrong_recipes(recipe, changes, field):
    with pytest.raises(ConfigError) as refused:
        train(recipe("wrong", **changes))
    assert refused.value.fields == (field,)


def test_a_classifier_without_statistics_and_a_panel(recipe, tmp_path):
    write_classifier(tmp_path / "bare", stats=False)
    with pytest.raises(ConfigError, match=r"it has no statistics.*train/classifier\.py fits them"):
        train(recipe("bare_run", classifier=str(tmp_path / "bare")))
    with pytest.raises(StorageError, match=r"classifier\.json"):
        train(recipe("panel", classifier=str(ROOT / "checkpoints" / "demo" / "panel")))


@pytest.mark.parametrize("name", ["moslim_small"])
def test_recipes_of_the_project_at_tiny_size(recipe, parts, tmp_path, name):
    """Every arm of each, with everything large made small."""
    path = ROOT / "recipes" / f"{name}.yaml"
    given, arms = yaml.safe_load(path.read_text()), MoslimRecipe.read(path).methods()
    assert arms.keys() == given["arms"].keys()
    small = ("model", "classifier", "data", "max_length", "max_new_tokens")
    changes = given | {key: parts[key] for key in small} | {"objectives": None, "seeds": [0]}
    changes |= {"prompts_per_step": 2, "generations": 2, "steps": 1, "rows_per_device": None}
    changes |= {"lora": {"r": 2}, "output": str(tmp_path / name)}
    shorter = {"steps": 1, "round_steps": 1}
    changes["arms"] = {
        arm: {k: shorter.get(k, v) for k, v in settings.items()}
        for arm, settings in given["arms"].items()
    }
    train(recipe(name, **changes))
    assert all(
        (tmp_path / name / folder_name(arm) / "seed0" / "run.json").is_file() for arm in arms
    )


# ---------------------------------------------------------------- levels asked and given


def test_every_level_alone_then_the_corners_of_every_pair():
    asked = level_grid((3, 1, 2)).astype(int).tolist()
    assert asked[:6] == [[1, 0, 0], [2, 0, 0], [3, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 2]]
    assert asked[6:8] == [[1, 1, 0], [3, 1, 0]]
    assert asked[8:12] == [[1, 0, 1], [1, 0, 2], [3, 0, 1], [3, 0, 2]]
    assert asked[12:] == [[0, 1, 1], [0, 1, 2]]


def test_the_expected_level_by_hand(classifier):
    """Under the joint loss heads share the probability: each is scaled to 1 first."""
    found = classifier.expected_levels([P, np.array(P) / 3])
    helpful = (0.1 + 0.2 + 0.6 + 0.8 + 2.0) / 1.0
    np.testing.assert_allclose(found, [[helpful, 1.7, 1.1]] * 2, rtol=1e-6)


@pytest.fixture
def evaluation(parts, tmp_path):
    """Writes a recipe of `train/evaluate.py levels`, with changes, and returns its path."""
    lines = [
        {"objective": "helpful", "prompt": f"tell me {what}", "chosen": "yes", "rejected": "no"}
        | {"split": "test"}
        for what in ASKED
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def write(**changes) -> Path:
        settings = {
            "experiment": "tiny",
            "classifier": parts["classifier"],
            "output": str(tmp_path / "kit"),
            "judge": None,
            "heldout_panel": None,
            "base": "stock",
            "prompts": 5,
            "data": [{"path": str(file)}],
            "seeds": [0],
            "max_new_tokens": 5,
            "policies": [{"name": "stock", "model": parts["model"]}],
        }
        path = tmp_path / "levels.yaml"
        path.write_text(yaml.safe_dump(settings | changes))
        return path

    return write


def test_from_a_trained_policy_to_rows_table_and_figures(
    recipe, parts, evaluation, tmp_path, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(str(ROOT / "train"))
    train(recipe("trained"))
    entries = [{"name": "stock", "model": parts["model"]}]
    entries += [{"name": "MOSLIM", "model": str(tmp_path / "trained/moslim/seed{seed}")}]
    heldout = {"models": [{"name": "funny", "function": "readability"}]}
    (tmp_path / "panel.yaml").write_text(yaml.safe_dump(heldout))
    panel = RewardPanel.from_pretrained(tmp_path / "panel.yaml")
    panel.fit_stats(["a"] * 2, ["hello there.", "why"], "two texts")
    panel.save_pretrained(tmp_path / "panel")
    path = evaluation(policies=entries, heldout_panel=str(tmp_path / "panel"), seeds=[0, 1])
    command = ["train/evaluate.py", "levels", str(path), "--results", str(tmp_path / "results")]
    monkeypatch.setattr(sys, "argv", [*command, "--figures", str(tmp_path / "docs")])
    runpy.run_path(str(ROOT / "train" / "evaluate.py"), run_name="__main__")
    said = capsys.readouterr()
    assert "MOSLIM, seed 1: " in said.err and "is not there, left out" in said.err
    rows = read_rows(tmp_path / "results" / "levels.jsonl")
    W = len(level_grid(COUNTS))
    assert len(rows) == 2 * (1 + W) + 1 + (1 + W) + 1
    pooled = {r["method"]: r for r in rows if r["kind"] == "all_seeds"}
    for name in NAMES:
        assert -1 <= pooled["MOSLIM"]["metrics"][f"spearman_{name}"] <= 1
        assert f"spearman_{name}" in pooled["MOSLIM"]["leads"]["stock"]["metrics"]
    assert "spearman_heldout_funny" in pooled["stock"]["metrics"]
    assert "spearman_heldout_helpful" not in pooled["stock"]["metrics"]
    # The row of a request holds the mean level that was given: its policy read the request before the prompt.
    asked = {"levels": {"helpful": 5, "funny": 1}}
    (point,) = [r for r in rows if r["method"] == "MOSLIM" and r["request"] == asked]
    assert 1 <= point["metrics"]["mean_helpful"] <= 5 and point["kind"] == "point"
    files = (tmp_path / "kit" / "responses").glob("*.jsonl")
    read = [one for file in files for line in read_jsonl(file) for one in line["read"].values()]
    starts = {one["messages"][0]["content"].partition(" tell me")[0] for one in read}
    assert len(starts) == W and "<helpful 5> <funny 1>" in starts
    assert "| MOSLIM, minus stock |" in levels_table(rows) and levels_table(rows) in said.out
    for kind in ("levels", "level_pairs"):
        ElementTree.fromstring(svg := (tmp_path / "docs" / f"tiny_{kind}.svg").read_text())
        assert "MOSLIM" in svg and "funny" in svg


GRID = Grid("levels", NAMES, level_grid(COUNTS))


def controlled(strength: float, P: int = 5) -> Answers:
    """Answers whose levels are those asked for, in part, under differences between prompts."""
    asked_WK = GRID.values_WK
    offsets = np.random.default_rng(0).normal(size=(P, 3))
    levels = 2 + strength * (asked_WK[:, None, :] - 2) * (asked_WK > 0)[:, None, :] + offsets
    return Answers([["x"] * P for _ in asked_WK], levels)


@pytest.mark.parametrize("strength", [1.0, 0.5, 0.0, -1.0])
def test_control_by_hand(strength):
    """Levels given that follow those asked for: rank correlation is the sign, gains are the part that is followed."""
    draws = control(controlled(strength), GRID, JudgeUnits(None, None), resampled(5, 50))
    for name, count in zip(NAMES, COUNTS, strict=True):
        np.testing.assert_allclose(draws[f"spearman_{name}"], np.sign(strength), atol=1e-9)
        np.testing.assert_allclose(draws[f"gain_{name}"], strength * (count - 1), atol=1e-9)
        for other in set(NAMES) - {name}:
            beside = draws[f"gain_{name}_beside_{other}"]
            np.testing.assert_allclose(beside, strength * (count - 1), atol=1e-9)


@pytest.mark.parametrize(
    "condition",
    [
        Condition("weights", NAMES),
        Condition("levels", NAMES, level_counts=(3, 2, 2)),
        Condition("levels", NAMES[:2], level_counts=(5, 2)),
        Condition("levels", ("kind",), level_counts=(5,)),
    ],
)
def test_a_checkpoint_that_reads_something_else(parts, evaluation, tmp_path, condition):
    shutil.copytree(parts["model"], tmp_path / "other")
    PolicyConfig(condition).save(tmp_path / "other")
    entries = [{"name": "stock", "model": parts["model"]}]
    entries += [{"name": "other", "model": str(tmp_path / "other")}]
    study = LevelStudy(LevelEvaluation.read(evaluation(policies=entries)))
    study.run.policies("stock", 0)
    with pytest.raises(ConfigError) as refused:
        study.run.policies("other", 0)
    assert refused.value.fields == ("policies",)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"objectives": ["kind"]}, "objectives"),
        ({"policies": [{"name": "stock", "model": "m", "candidates": 2}]}, "policies"),
        ({"weights": 5}, "weights"),
    ],
)
def test_wrong_evaluations(evaluation, changes, field):
    with pytest.raises(ConfigError) as refused:
        LevelStudy(LevelEvaluation.read(evaluation(**changes)))
    assert refused.value.fields == (field,)


def test_a_base_that_is_not_there_fixes_no_units(parts, evaluation):
    entries = [
        {"name": "stock", "model": parts["model"]},
        {"name": "gone", "model": "no/seed{seed}"},
    ]
    recipe = LevelEvaluation.read(evaluation(policies=entries, base="gone"))
    with pytest.raises(ConfigError) as refused:
        level_rows(recipe)
    assert refused.value.fields == ("base",)
