"""Recipes: what fits is read, what does not is refused with the setting's name, before anything is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import yaml
from pydantic import ValidationError, model_validator

from pro_core.evaluation.results import check_own_results
from pro_core.evaluation.theorem import TheoremRecipe
from pro_core.policies.recipe import PolicyRecipe
from pro_core.rewards.recipes import AblationRecipe, ClassifierRecipe, PanelRecipe, ScoreRecipe
from pro_core.runs.recipes import ConfigError, Recipe, described, folder_name
from pro_core.system.settings import Count, Names, Positive, Settings, Share
from train import evaluate

ROOT = Path(__file__).resolve().parent.parent


class Target(Settings):
    target: Literal["paper", "pairwise"]
    temperature: Positive = 1.0


class Small(Recipe):
    """A recipe with one field of each sort."""

    objectives: Names
    """of the panel's, in its order"""
    steps: Count = 10
    """updates of the optimizer"""
    learning_rate: Positive = 1e-4
    share: Share = 0.5
    frozen: bool = False
    lora: dict[str, Any] | None = {}
    """PEFT settings"""
    targets: list[Target] = []
    weights: Literal["uniform", "adapter"] | dict[str, float] = "uniform"
    count: Count | None = None


class Method(Settings):
    kl: Positive = 0.1
    steps: Count = 10


class Arms(Method, PolicyRecipe):
    varies: ClassVar[type[Settings]] = Method
    method: str = "GRPO"

    @model_validator(mode="after")
    def _even(self) -> Arms:
        if self.steps % 2:
            raise ValueError(f"got steps {self.steps}, expected an even number")
        if self.steps * self.kl > 1000:
            raise ConfigError(f"got steps {self.steps} and kl {self.kl}", ["steps", "kl"])
        return self


ARMS = "model: m\noutput: o\ndata: [{path: d.jsonl}]\n"
"""What a recipe of arms must say."""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_recipe_gives_its_settings_and_defaults(tmp_path):
    path = written(tmp_path, "objectives: [helpful]\nlearning_rate: 1e-3\nlora: {r: 8}\n")
    recipe = Small.read(path)
    assert (recipe.objectives, recipe.steps, recipe.learning_rate) == (["helpful"], 10, 1e-3)
    assert recipe.lora == {"r": 8} and recipe.targets == []
    assert recipe.config == "recipe.yaml" and recipe.arguments == str(path)
    assert recipe.decides("steps", "share") == {"steps": 10, "share": 0.5}


def test_python_says_the_same_as_a_file(tmp_path):
    path = written(tmp_path, "objectives: [a, b]\ntargets: [{target: paper, temperature: 2}]\n")
    made = Small(objectives=("a", "b"), targets=[{"target": "paper", "temperature": 2.0}])  # type: ignore[arg-type]
    assert Small.read(path).model_dump() == made.model_dump()
    with pytest.raises(ValidationError):
        Small(objectives=["a"], steps=0)


def test_the_command_line_changes_settings(tmp_path):
    path = written(tmp_path, "objectives: [a]\nlora: {r: 8}\n")
    changes = ["steps=3", "learning_rate=5e-5", "lora.lora_alpha=32", "objectives=[b, c]"]
    recipe = Small.read(path, changes)
    assert (recipe.steps, recipe.learning_rate, recipe.objectives) == (3, 5e-5, ["b", "c"])
    assert recipe.lora == {"r": 8, "lora_alpha": 32}
    assert recipe.config == f"recipe.yaml {' '.join(changes)}"
    assert Small.read(path, ["lora=null"]).lora is None


def test_the_command_line_changes_a_part_of_a_list(tmp_path):
    path = written(tmp_path, "objectives: [a]\ntargets: [{target: paper}, {target: pairwise}]\n")
    recipe = Small.read(path, ["targets.1.temperature=0.5"])
    assert [t.temperature for t in recipe.targets] == [1.0, 0.5]
    for change in ("targets.2.temperature=1", "targets.x=1", "objectives.0.b=1"):
        with pytest.raises(ConfigError) as refused:
            Small.read(path, [change])
        assert refused.value.fields == (change.partition("=")[0],)


WRONG = {
    "misspelt": ("objectives: [a]\nlearing_rate: 1.0", "learing_rate"),
    "missing": ("steps: 1", "objectives"),
    "a text for a number": ("objectives: [a]\nsteps: many", "steps"),
    "true for a number": ("objectives: [a]\nsteps: true", "steps"),
    "a number for true": ("objectives: [a]\nfrozen: 1", "frozen"),
    "out of range": ("objectives: [a]\nshare: 1.0", "share"),
    "not a number": ("objectives: [a]\nlearning_rate: .nan", "learning_rate"),
    "an empty list": ("objectives: []", "objectives"),
    "in a part": ("objectives: [a]\ntargets: [{target: pairwise, temperature: -1}]", "targets.0.temperature"),
    "misspelt in a part": ("objectives: [a]\ntargets: [{target: paper, temprature: 1}]", "targets.0.temprature"),
    "another choice": ("objectives: [a]\ntargets: [{target: papers}]", "targets.0.target"),
    "none of two forms": ("objectives: [a]\nweights: unifrom", "weights"),
    "one of two forms": ("objectives: [a]\nweights: {a: much}", "weights.a"),
    "null or a number": ("objectives: [a]\ncount: 0", "count"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "field"), WRONG.values(), ids=WRONG)
def test_an_invalid_setting_is_named(tmp_path, text, field):
    with pytest.raises(ConfigError) as refused:
        Small.read(written(tmp_path, text))
    assert refused.value.fields == (field,)


def test_a_misspelt_setting_gets_the_nearest_name(tmp_path):
    near = {
        "objectives: [a]\nlearing_rate: 1.0": "'learning_rate'",
        "objectives: [a]\ntargets: [{target: paper, temprature: 1}]": "'temperature'",
    }
    for text, name in near.items():
        with pytest.raises(ConfigError, match=name):
            Small.read(written(tmp_path, text))


@pytest.mark.parametrize("text", ["- a", "a: [", "", "\x00"], ids=["list", "cut", "empty", "null"])
def test_a_file_that_is_not_a_mapping_is_refused(tmp_path, text):
    with pytest.raises(ConfigError):
        Small.read(written(tmp_path, text))
    with pytest.raises(ConfigError):
        Small.read(tmp_path / "absent.yaml")


@pytest.mark.parametrize("change", ["steps", "=3", "lora..r=1", "steps=[1"])
def test_a_malformed_change_is_refused(tmp_path, change):
    with pytest.raises(ConfigError):
        Small.read(written(tmp_path, "objectives: [a]"), [change])


def test_arms_differ_in_what_may_vary(tmp_path):
    text = "steps: 4\nkl: 0.5\narms:\n  A: {kl: 0.2}\n  B: null\n  C, again: {steps: 6}\n"
    arms = Arms.read(written(tmp_path, ARMS + text)).methods()
    assert {name: (arm.kl, arm.steps, arm.method) for name, arm in arms.items()} == {
        "A": (0.2, 4, "A"),
        "B": (0.5, 4, "B"),
        "C, again": (0.5, 6, "C, again"),
    }
    alone = Arms.read(written(tmp_path, ARMS)).methods()
    assert list(alone) == ["GRPO"] and folder_name("C, again") == "c-again"


WRONG_ARMS = {
    "misspelt": ("arms: {A: {kll: 1.0}}", "arms.A.kll"),
    "one for all": ("arms: {A: {model: n}}", "arms.A.model"),
    "out of range": ("arms: {A: {kl: 0}}", "arms.A.kl"),
    "together": ("arms: {A: {steps: 3}}", "arms.A"),
    "one folder": ("arms: {A b: {}, a-B: {}}", "arms.a-B"),
    "none": ("arms: {}", "arms"),
    "two in one place": ("policy: p\nseeds: [0, 1]\narms: {A: {}}", "policy"),
}


def test_settings_that_do_not_go_together_are_named(tmp_path):
    for text, place in (("steps: 90000", ""), ("arms: {A: {steps: 90000}}", "arms.A.")):
        with pytest.raises(ConfigError) as refused:
            Arms.read(written(tmp_path, ARMS + text))
        assert refused.value.fields == (f"{place}steps", f"{place}kl")


@pytest.mark.parametrize(("text", "field"), WRONG_ARMS.values(), ids=WRONG_ARMS)
def test_an_invalid_arm_is_named(tmp_path, text, field):
    with pytest.raises(ConfigError) as refused:
        Arms.read(written(tmp_path, ARMS + text))
    assert refused.value.fields == (field,)


def test_every_setting_is_described_with_type_range_default_and_meaning():
    lines = [line.strip() for line in described(Small)]
    assert lines == [
        "objectives: list of text; required. of the panel's, in its order",
        "steps: whole number > 0; default 10. updates of the optimizer",
        "learning_rate: number > 0; default 0.0001",
        "share: number >= 0 and < 1; default 0.5",
        "frozen: true or false; default false",
        "lora: {name: value} or null; default {}. PEFT settings",
        "targets: list of {...}; default []",
        "target: paper | pairwise; required",
        "temperature: number > 0; default 1.0",
        "weights: uniform | adapter or {name: number}; default uniform",
        "count: whole number > 0 or null; default null",
    ]
    assert list(described(Arms))[-1] == "Arms may differ in: kl, steps."


SCRIPT = '''
"""Usage here."""
from huggingface_hub import constants
from pro_core.runs.recipes import Recipe
from pro_core.system.settings import Count
from pro_core.runs.scripts import run_script
class Own(Recipe):
    steps: Count
    """updates"""
def main(recipe):
    print("steps", recipe.steps)
    print("telemetry off:", constants.HF_HUB_DISABLE_TELEMETRY)
run_script(main, Own, __doc__)
'''


def test_a_script_takes_a_recipe_and_changes(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    script, recipe = tmp_path / "own.py", written(tmp_path, "steps: 3")
    script.write_text(SCRIPT)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert run(str(recipe), "steps=4").stdout == "steps 4\ntelemetry off: True\n"
    shown = run("--help")
    assert shown.returncode == 0 and "Usage here." in shown.stdout
    assert "steps: whole number > 0; required. updates" in shown.stdout
    assert run().returncode == 1
    refused = run(str(recipe), "step=4")
    assert refused.returncode == 1 and refused.stderr.startswith("ConfigError: ")


# ---------------------------------------------------------------- the recipes of the repository

FILES = {
    PanelRecipe: ("*_panel.yaml", "judge.yaml"),
    ClassifierRecipe: ("*_classifier.yaml", "paper/moslim_type*.yaml"),
    ScoreRecipe: ("score_rewards.yaml",),
    AblationRecipe: ("panel_ablation.yaml",),
}


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [(kind, pattern) for kind, patterns in FILES.items() for pattern in patterns],
)
def test_the_repositorys_recipes_are_read(kind, pattern):
    files = sorted((ROOT / "recipes").glob(pattern))
    assert files
    for file in files:
        recipe = kind.read(file)
        assert recipe.config == file.name
        said = yaml.safe_load(file.read_text())
        # What is hashed of a `data` list is what was written: no default is added.
        assert recipe.decides("data") == {"data": said["data"]}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"learning_rat": 1.0}, "learning_rat"),
        ({"objectives": ["helpful", "helpful"]}, "objectives"),
        ({"objectives": ["Helpful!"]}, "objectives"),
        ({"folds": -1}, "folds"),
        ({"method": "upper_layers"}, "method"),
        ({"input_format": "{prompt}"}, "input_format"),  # without the completion
        ({"data": [{"path": "a.jsonl"}, {"path": "b.jsonl", "objectves": []}]}, "data.1.objectves"),
        (
            {"out_of_distribution": [{"path": "b.jsonl", "splits": ["test"]}]},
            "out_of_distribution.0.splits",
        ),
    ],
)
def test_an_invalid_panel_recipe_names_the_setting(tmp_path, changes, field):
    settings = {"objectives": ["helpful"], "model": "m", "data": [{"path": "a.jsonl"}]}
    text = yaml.safe_dump(settings | {"output": "o"} | changes)
    with pytest.raises(ConfigError) as refused:
        PanelRecipe.read(written(tmp_path, text))
    assert refused.value.fields == (field,)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"pair_table": True}, "pair_table"),
        ({"data": [{"path": "a.jsonl", "kind": "pair"}]}, "data.0.kind"),
    ],
)
def test_a_scoring_recipe_names_what_does_not_fit(tmp_path, changes, field):
    settings = {"panel": "p", "output": "o", "data": [{"path": "a.jsonl"}]} | changes
    with pytest.raises(ConfigError) as refused:
        ScoreRecipe.read(written(tmp_path, yaml.safe_dump(settings)))
    assert refused.value.fields[0] == field


def test_rows_of_a_changed_recipe_do_not_join_the_published_ones():
    """They would stand in the same tables as those of the recipe as it is."""
    theorem = ROOT / "recipes" / "theorem.yaml"
    with pytest.raises(ConfigError) as refused:
        check_own_results(TheoremRecipe.read(theorem, ["seeds=[0]"]))
    assert refused.value.fields == ("results",)
    for changes in ([], ["seeds=[0]", "results=outputs/own.jsonl"]):
        check_own_results(TheoremRecipe.read(theorem, changes))
    call = ["policies", "recipes/wic_evaluation.yaml", "prompts=4"]
    with pytest.raises(SystemExit):
        evaluate.parse(call)
    assert evaluate.parse([*call, "--results", "outputs/own"]).set == ["prompts=4"]
