"""The recipes of the papers' tables: each is read by its class, and the whole way of each table runs at tiny size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_panels_hub import BUILDERS, PANELS
from tiny import tiny_encoder, tiny_llama, tiny_qwen

from pro_core import (
    AdapterRecipe,
    ClassifierRecipe,
    LevelEvaluation,
    MorlhfRecipe,
    MoslimRecipe,
    PanelRecipe,
    PolicyEvaluation,
    PreferenceAdapter,
    PreferenceRecipe,
    ScoreRecipe,
    SoupRecipe,
    WicRecipe,
    level_rows,
    make_soups,
    policy_rows,
    score_rewards,
    train_adapter,
    train_classifiers,
    train_morlhf,
    train_moslim,
    train_panel,
    train_preference,
    train_wic,
)
from pro_core.data.sources import is_public
from pro_core.reporting.policy_tables import levels_table
from pro_core.rewards.scores import read_scores

pytestmark = pytest.mark.slow

PAPER = Path(__file__).resolve().parent.parent / "recipes" / "paper"
KINDS: dict[str, Any] = {
    "scores": (ScoreRecipe, score_rewards),
    "adapter": (AdapterRecipe, train_adapter),
    "wic": (WicRecipe, train_wic),
    "sft": (WicRecipe, train_wic),
    "panel": (PanelRecipe, train_panel),
    "type1": (ClassifierRecipe, train_classifiers),
    "type2": (ClassifierRecipe, train_classifiers),
    "type3": (ClassifierRecipe, train_classifiers),
    "type4": (ClassifierRecipe, train_classifiers),
    "morlhf": (MorlhfRecipe, train_morlhf),
    "single": (MorlhfRecipe, train_morlhf),
    "ppo": (MorlhfRecipe, train_morlhf),
    "grpo": (MorlhfRecipe, train_morlhf),
    "policies": (MoslimRecipe, train_moslim),
    "paper": (PreferenceRecipe, train_preference),
    "soups": (SoupRecipe, make_soups),
    "evaluation": (PolicyEvaluation, policy_rows),
}
"""What the last word of a recipe's name says: its class, and what runs it."""
TINY = {
    **{"max_length": 160, "max_new_tokens": 4, "steps": 1, "prompts_per_step": 2, "generations": 2},
    **{"rows_per_device": None, "round_steps": 1, "epochs": 1, "batch_size": 4, "seeds": [0]},
    **{"offline_steps": 1, "online_steps": 1, "prompts": 4, "samples": 2, "rollout_batch": 8},
    **{"weights": 4, "quantile": 0.1, "warmup_steps": 1, "accumulation": 1, "folds": 2},
    **{"offline_learning_rate": 1e-3, "learning_rate": 1e-3},
}
LORA = {"r": 2, "target_modules": "all-linear"}
TASKS = {
    "assistant": ("Anthropic/hh-rlhf", ("helpful", "harmless")),
    "summary": ("openai/summarize_from_feedback", ("summary",)),
}


def kind_of(name: str) -> tuple[Any, Any]:
    if name == "moslim_evaluation":
        return LevelEvaluation, level_rows
    return KINDS[name.rpartition("_")[2]]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def run(tmp_path):
    """run(name, **changes): a recipe at tiny size, its outputs in a folder of the test."""

    def run(name: str, **changes: Any) -> Any:
        text = (PAPER / f"{name}.yaml").read_text().replace("outputs/paper", str(tmp_path / "out"))
        settings = yaml.safe_load(text)
        kind, routine = kind_of(name)
        small = {key: value for key, value in TINY.items() if key in settings}
        if settings.get("lora"):
            small["lora"] = LORA
        if "data" in kind.model_fields:
            small["data_dir"] = str(tmp_path)
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings | small | changes))
        return routine(kind.read(path))

    return run


def shorter(arms: dict[str, Any]) -> dict[str, Any]:
    """Arms of one step each."""
    small = {"steps": 1, "round_steps": 1}
    return {
        arm: {key: small.get(key, value) for key, value in (changes or {}).items()}
        for arm, changes in arms.items()
    }


# ---------------------------------------------------------------- every file


@pytest.mark.parametrize("path", sorted(PAPER.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_is_read(path):
    kind, _ = kind_of(path.stem)
    recipe = kind.read(path)
    said = yaml.safe_load(path.read_text())
    for entry in said.get("data", ()):
        public = is_public(Path("/absent"), entry["path"])
        assert public or entry["path"] == "ultrasafety_responses.jsonl"
    if said.get("arms"):
        assert recipe.methods().keys() == said["arms"].keys()


def test_the_recipes_have_the_settings_of_table_6():
    for name in ("ultrafeedback_ppo", "ultrafeedback_grpo"):
        recipe = MorlhfRecipe.read(PAPER / f"{name}.yaml")
        assert (recipe.max_length, recipe.max_new_tokens) == (4096, 2048)
        assert recipe.prompts_per_step * recipe.generations == 128 and recipe.generations == 8
        assert (recipe.sampling_temperature, recipe.top_p, recipe.kl) == (0.8, 0.95, 0.1)
    faithful = MorlhfRecipe.read(PAPER / "ultrafeedback_ppo.yaml")
    assert (faithful.algorithm, faithful.lora, faithful.learning_rate) == ("ppo", None, 5e-7)
    assert PanelRecipe.read(PAPER / "ultrafeedback_panel.yaml").max_length == 4096


# ---------------------------------------------------------------- the way of each table


@pytest.mark.parametrize("task", TASKS)
def test_tables_1_to_4_run_at_tiny_size(task, run, tmp_path):
    path, objectives = TASKS[task]
    rows = [
        {
            **{"prompt": f"Human: tell me of Paris {i} times", "chosen": f"Paris {i}, gladly"},
            **{"rejected": f"no {i}", "objective": objectives[i % len(objectives)]},
            "split": ("train", "train", "validation", "test")[i % 4],
        }
        for i in range(24)
    ]
    write_rows(tmp_path / path, rows)
    panel = tmp_path / f"ric_{task}.yaml"
    panel.write_text((PANELS / panel.name).read_text())
    for model in yaml.safe_load(panel.read_text())["models"]:
        BUILDERS[model["source"]](tmp_path / model["source"])
    run(f"{task}_scores", panel=str(panel))
    names = run_names(tmp_path / "out" / task / "panel")
    table = read_scores(tmp_path / "out" / task / "scores.parquet", names)
    assert len(table) == 24
    assert set(table.fold[table.split == "train"]) <= set(range(2))
    assert set(table.fold[table.split != "train"]) == {-1}

    run(f"{task}_adapter", encoder=tiny_encoder(tmp_path / "encoder"))
    adapter = PreferenceAdapter.from_pretrained(tmp_path / "out" / f"{task}_adapter" / "adapter")
    assert adapter.objective_names == names

    llama = tiny_llama(tmp_path / "llama", template=False)  # as LLaMA-7B, a base model
    run(f"{task}_wic", model=llama)
    run(f"{task}_sft", model=llama)
    run(f"{task}_morlhf", rows_per_device=2)
    run(f"{task}_soups")
    measured = run(f"{task}_evaluation")
    methods = {row["method"] for row in measured}
    assert methods >= {"SFT", "MORLHF uniform", "Rewarded Soups", "RiC online", "PRO-WIC online"}


def run_names(folder: Path) -> tuple[str, ...]:
    return tuple(json.loads((folder / "panel.json").read_text())["objective_names"])


RATINGS = ("instruction_following", "honesty", "truthfulness", "helpfulness")


def test_table_5_runs_at_tiny_size(run, tmp_path):
    rated, pairs = [], []
    for i in range(24):
        split, prompt = ("train", "train", "train", "test")[i % 4], f"tell me of topic {i}"
        for text, rating in ((f"gladly, topic {i}", 5), ("go away", 1)):
            labels = dict.fromkeys(RATINGS, rating)
            rated.append({"prompt": prompt, "response": text, "labels": labels, "split": split})
        both = {"chosen": f"gladly, topic {i}", "rejected": "go away", "objective": "overall"}
        pairs.append({"prompt": prompt, "split": split} | both)
    write_rows(tmp_path / "openbmb/UltraFeedback", rated)
    write_rows(tmp_path / "HuggingFaceH4/ultrafeedback_binarized", pairs)
    run("ultrafeedback_panel", model=tiny_qwen(tmp_path / "qwen"))
    run("ultrafeedback_adapter", encoder=tiny_encoder(tmp_path / "encoder"))
    llama = tiny_llama(tmp_path / "llama")
    run("ultrafeedback_ppo", model=llama)
    run("ultrafeedback_grpo", model=llama, trainer={})
    on_pairs = ["DPO", "PRO-DPO"]
    run("table5_paper", model=llama, only=on_pairs, sft_steps=1)
    for arm in on_pairs:
        assert (tmp_path / "out" / "table5" / arm.lower() / "seed0" / "run.json").is_file()
    for name, arms in (("ppo", 3), ("grpo", 4)):
        done = list((tmp_path / "out" / f"ultrafeedback_{name}").glob("*/seed0/run.json"))
        assert len(done) == arms


def test_moslims_tables_run_at_tiny_size(run, tmp_path):
    rated = [
        {
            **{"prompt": f"tell me of topic {i // 4}", "response": f"well, topic {i} {'so ' * i}"},
            **{"labels": {"helpfulness": 1 + i % 5, "honesty": 1 + (i // 5) % 5}},
            "split": ("train", "train", "test")[(i // 4) % 3],
        }
        for i in range(60)
    ]
    safe = [
        {
            **{"prompt": f"how to topic {i // 2}", "response": f"no {i}"},
            **{"labels": {"harmlessness": i % 2}, "split": ("train", "test")[(i // 2) % 2]},
        }
        for i in range(24)
    ]
    write_rows(tmp_path / "openbmb/UltraFeedback", rated)
    write_rows(tmp_path / "ultrasafety_responses.jsonl", safe)
    asked = [{"prompt": f"tell me {i}", "chosen": "a", "rejected": "b", "objective": "helpful"}
             | {"split": ("train", "test")[i % 2]} for i in range(12)]  # fmt: skip
    write_rows(tmp_path / "Anthropic/hh-rlhf", asked)
    qwen, llama = tiny_qwen(tmp_path / "qwen"), tiny_llama(tmp_path / "llama")
    for number in (1, 2, 3, 4):  # Table 1
        run(f"moslim_type{number}", model=qwen, seeds=[42], max_length=32)
    run("moslim_panel", model=qwen, folds=0, max_length=32)
    for name in ("morlhf", "single", "policies"):
        arms = shorter(yaml.safe_load((PAPER / f"moslim_{name}.yaml").read_text())["arms"])
        run(f"moslim_{name}", model=llama, arms=arms, generations=2)
    run("moslim_soups")
    entries = yaml.safe_load((PAPER / "moslim_evaluation.yaml").read_text())["policies"]
    entries = yaml.safe_load(json.dumps(entries).replace("outputs/paper", str(tmp_path / "out")))
    entries[0]["model"] = llama
    measured = run("moslim_evaluation", policies=entries)
    assert {row["method"] for row in measured} >= {entry["name"] for entry in entries}
    trained = [
        row for row in measured if row["kind"] == "method" and row["method"] != "stock model"
    ]
    assert trained and all(row["metrics"]["device_hours"] > 0 for row in trained)  # Table 8
    assert "hours of training" in levels_table(measured)
