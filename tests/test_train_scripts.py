"""The training scripts as their users run them: killed and resumed, on two processes, and from own pairs to the app."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny import in_two_processes, tiny_encoder, tiny_qwen

from pro_core.adapter.model import PreferenceAdapter
from pro_core.data.schema import DataError
from pro_core.rewards.bradley_terry import BradleyTerryTrainer
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.panel_runs import train_panel
from pro_core.rewards.recipes import PanelRecipe
from pro_core.system.storage import StorageError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
NICE = ("thank you", "of course", "gladly", "happy to help")
RUDE = ("no", "go away", "never", "shut up")


def own_pairs(n: int = 160) -> list[dict]:
    """Pairs that a person could have written: polite answers are helpful, short ones harmless."""
    rng = random.Random(0)
    rows = []
    for i in range(n):
        topic = rng.choice(("bread", "travel", "cars", "poison", "weapons"))
        prompt = f"Please tell me about {topic}, number {i}."
        split = ("train", "train", "train", "validation", "test")[i % 5]
        if i % 2:
            row = {
                "objective": "helpful",
                "chosen": f"{rng.choice(NICE)}, {topic} is ...",
                "rejected": rng.choice(RUDE),
            }
        else:
            row = {
                "objective": "harmless",
                "chosen": rng.choice(RUDE),
                "rejected": f"{rng.choice(NICE)}, use {topic}",
            }
        rows.append({"id": f"own-{i}", "prompt": prompt, "split": split} | row)
    return rows


def write_rows(path: Path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    """A folder with own pairs and a tiny random encoder."""
    folder = tmp_path_factory.mktemp("parts")
    write_rows(folder / "pairs.jsonl", own_pairs())
    tiny_encoder(folder / "base")
    return folder


def write_recipe(parts: Path, folder: Path, name: str, **changes) -> Path:
    """A recipe over ``parts``, written and trained in ``folder``."""
    settings = {
        "objectives": ["helpful", "harmless"],
        "model": str(parts / "base"),
        "output": str(folder / name),
        "data_dir": str(parts),
        "data": [{"path": "pairs.jsonl", "epochs": 8}],
        "learning_rate": 3e-3,
        "batch_size": 16,
        "max_length": 48,
        "folds": 0,
        "checkpoint_every": 4,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings | changes))
    return path


@pytest.fixture
def recipe(parts, tmp_path):
    """Call it with a name and changes to get a recipe's path."""
    return lambda name, **changes: write_recipe(parts, tmp_path, name, **changes)


@pytest.fixture(scope="module")
def whole(parts, tmp_path_factory) -> Path:
    """The panel of a run that one process made without a break."""
    folder = tmp_path_factory.mktemp("whole")
    run("train/reward_models.py", write_recipe(parts, folder, "whole"))
    return folder / "whole" / "panel"


def attempt(command, **settings) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, **({"cwd": ROOT, "env": ENV, "capture_output": True, "text": True} | settings)
    )


def run(*command, **env) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=ENV | env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_a_run_killed_in_the_middle_ends_in_the_same_panel(recipe, whole, tmp_path):
    path = recipe("cut")
    process = subprocess.Popen(
        [sys.executable, "train/reward_models.py", path],
        cwd=ROOT,
        env=ENV,
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("step 16/"):
            os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "cut" / "panel").exists()
    assert "resuming from" in run("train/reward_models.py", path).stdout
    one = load_file(whole / "trunk/model.safetensors")
    resumed = load_file(tmp_path / "cut/panel/trunk/model.safetensors")
    assert all((one[name] == resumed[name]).all() for name in one)
    panel = RewardPanel.from_pretrained(tmp_path / "cut" / "panel")
    assert panel.accuracy["helpful"]["accuracy"] > 0.9  # it learned, on test pairs
    card = (tmp_path / "cut" / "panel" / "README.md").read_text()
    assert "pairs" in card and "95% interval" in card and "licen" in card.lower()


@pytest.mark.parametrize("pooling", ["own", "mean"])
def test_a_lora_stopped_in_the_middle_ends_in_the_same_panel(
    recipe, tmp_path, monkeypatch, pooling
):
    """In bf16, to the bit. A whole PEFT model comes back in fp32 (see `PolicyTrainer`); this LoRA lies inside a
    classifier, which the Trainer loads as one state into the parameters that are there."""
    from train import reward_models

    settings = {"method": "lora", "lora": {"r": 4}, "pooling": pooling}
    settings["data"] = [{"path": "pairs.jsonl", "epochs": 1}]
    reward_models.main(PanelRecipe.read(recipe("whole", **settings)))
    path, original = recipe("cut", **settings), BradleyTerryTrainer.compute_loss
    dtypes = []

    def stopped(self, model, inputs, *arguments, **named):
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return original(self, model, inputs, *arguments, **named)

    def watched(self, model, inputs, *arguments, **named):
        dtypes.append((self.state.global_step, {p.dtype for p in model.parameters()}))
        return original(self, model, inputs, *arguments, **named)

    monkeypatch.setattr(BradleyTerryTrainer, "compute_loss", stopped)
    with pytest.raises(KeyboardInterrupt):
        reward_models.main(PanelRecipe.read(path))
    monkeypatch.setattr(BradleyTerryTrainer, "compute_loss", watched)
    reward_models.main(PanelRecipe.read(path))
    assert dtypes == [(step, {torch.bfloat16}) for step in range(4, 6)]  # from checkpoint-4 on
    whole, resumed = (
        load_file(tmp_path / name / "panel/trunk/model.safetensors") for name in ("whole", "cut")
    )
    assert whole.keys() == resumed.keys() and any("lora_B" in name for name in whole)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert all(tensor.any() for name, tensor in whole.items() if "lora_B" in name)  # it moved


def test_two_processes_take_the_same_steps_as_one(recipe, whole, tmp_path):
    said = in_two_processes("train/reward_models.py", recipe("two")).stdout
    assert "two/folds/all: trunk: 96 pairs, 768 rows, 2 processes" in said
    prompts, texts = [r["prompt"] for r in own_pairs()], [r["chosen"] for r in own_pairs()]
    one, two = (
        RewardPanel.from_pretrained(folder).score(prompts, texts)
        for folder in (whole, tmp_path / "two" / "panel")
    )
    assert np.corrcoef(one[:, 0], two[:, 0])[0, 1] > 0.98
    assert (
        RewardPanel.from_pretrained(tmp_path / "two" / "panel").accuracy["helpful"]["accuracy"]
        > 0.9
    )


def test_separate_models_and_one_trunk_give_the_same_result_shape(recipe, tmp_path):
    train_panel(PanelRecipe.read(recipe("separate", shared_trunk=False, folds=2)))
    panel = RewardPanel.from_pretrained(tmp_path / "separate" / "panel")
    assert {spec.source for spec in panel.specs} == {"helpful", "harmless"}
    assert panel.score(["Hi"], ["Hello"]).shape == (1, 2)
    scores = pd.read_parquet(tmp_path / "separate" / "scores.parquet")
    trained = scores[scores.split == "train"]
    assert set(trained.fold) == {0, 1}
    assert (scores[scores.split != "train"].fold == -1).all()
    assert not set(trained[trained.fold == 0].text) & set(trained[trained.fold == 1].text)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"data": [{"path": "absent.jsonl"}]}, DataError),
        ({"objectives": ["helpful"]}, DataError),
        ({"objectives": ["helpful", "harmless", "humor"]}, DataError),
        ({"model": "/absent/model"}, StorageError),
    ],
)
def test_what_a_recipe_names_must_be_there(recipe, changes, error):
    with pytest.raises(error):
        train_panel(PanelRecipe.read(recipe("bad", **changes)))


def test_a_misspelt_setting_of_an_entry_is_told_its_nearest(recipe):
    """As a user sees it: one line, without a traceback."""
    entry = {"path": "pairs.jsonl", "objectves": ["helpful"]}
    done = attempt([sys.executable, "train/reward_models.py", recipe("bad", data=[entry])])
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "data.0" in done.stderr and "'objectives'" in done.stderr


def test_the_readmes_four_commands_lead_from_own_pairs_to_the_app(tmp_path, monkeypatch):
    """The README's own block, run as it stands, in a folder with the user's pairs."""
    readme = (ROOT / "README.md").read_text()
    block = readme.split("<!-- own pairs -->\n```bash\n")[1].split("```")[0]
    commands = [line.split("   #")[0].strip() for line in block.splitlines()]
    doctor = next(line for line in readme.splitlines() if "-m pro_core.doctor" in line)
    assert len(commands) == 4
    for name in ("train", "recipes", "pro_core", "ui", "app.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    rows = [{k: v for k, v in row.items() if k not in ("id", "split")} for row in own_pairs()]
    write_rows(tmp_path / "pairs.jsonl", rows)
    environment = ENV | {"PATH": f"{Path(sys.executable).parent}:{ENV['PATH']}"}
    for command in commands[:3]:
        done = attempt(command, shell=True, cwd=tmp_path, env=environment)
        assert done.returncode == 0, command + done.stdout + done.stderr
    panel = RewardPanel.from_pretrained(tmp_path / "outputs/own/panel")
    adapter = PreferenceAdapter.from_pretrained(tmp_path / "outputs/own/adapter")
    adapter.check_panel(panel)
    done = attempt(doctor, shell=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0 and (tmp_path / "outputs/doctor.html").is_file(), done.stderr
    # The fourth starts the app: its settings are read and shown, without serving.
    assert commands[3].endswith("python app.py")
    shown = subprocess.run(
        f"{commands[3]} --help",
        shell=True,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0 and "PRO_PANEL" in shown.stdout
    from train import evaluate

    monkeypatch.chdir(tmp_path)
    for what, recipe in (("reward_models", "own_panel"), ("adapter", "own_adapter")):
        graded = f"train/evaluate.py {what} recipes/{recipe}.yaml --results results"
        monkeypatch.setattr(sys, "argv", graded.split())
        evaluate.main()
        rows = [json.loads(line) for line in (tmp_path / f"results/{what}.jsonl").open()]
        methods = {row["method"] for row in rows}
        assert methods >= ({"bag of words"} if what == "reward_models" else {"uniform", "shuffled"})
        assert all(row["commit"] and row["command"] and row["split"] == "test" for row in rows)


# ---------------------------------------------------------------- the papers' recipe, in small

RATINGS = ("instruction_following", "honesty", "truthfulness", "helpfulness")


def ultrafeedback(folder: Path, n: int = 24) -> None:
    """Two files in the place of the hub sets of the same names: polite answers are rated higher, and preferred."""
    rng = random.Random(0)
    rated, pairs = [], []
    for i in range(n):
        prompt, split = (
            f"Please tell me about topic {i}.",
            ("train", "train", "train", "test")[i % 4],
        )
        good, bad = f"{rng.choice(NICE)}, topic {i}", rng.choice(RUDE)
        for text, rating in ((good, 5), (bad, 1)):
            labels = dict.fromkeys(RATINGS, rating)
            rated.append({"prompt": prompt, "response": text, "labels": labels, "split": split})
        pairs.append(
            {
                "objective": "overall",
                "prompt": prompt,
                "chosen": good,
                "rejected": bad,
                "split": split,
            }
        )
    for name, rows in (
        ("openbmb/UltraFeedback", rated),
        ("HuggingFaceH4/ultrafeedback_binarized", pairs),
    ):
        (folder / name).parent.mkdir(parents=True)
        write_rows(folder / name, rows)


def test_the_papers_recipe_and_one_trunk_give_the_same_result_shape(tmp_path):
    """The paper's recipe as it stands but for its sizes: five Qwen2 models, then one with five heads."""
    from train import reward_models

    ultrafeedback(tmp_path / "data")
    recipe = yaml.safe_load((ROOT / "recipes/paper/ultrafeedback_panel.yaml").read_text())
    assert recipe["model"] == "Qwen/Qwen2.5-0.5B" and recipe["input_format"] == "chat"
    assert not recipe["shared_trunk"] and recipe["objectives"] == [*RATINGS, "overall"]
    recipe |= {"model": tiny_qwen(tmp_path / "base"), "data_dir": str(tmp_path / "data")}
    recipe |= {"max_length": 64, "learning_rate": 3e-3, "batch_size": 6, "folds": 0}
    shapes = {}
    for name, shared in (("separate", False), ("trunk", True)):
        output = tmp_path / name
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe | {"output": str(output), "shared_trunk": shared}))
        reward_models.main(PanelRecipe.read(path))
        panel = RewardPanel.from_pretrained(output / "panel")
        assert len(panel.models) == (1 if shared else 5)
        scores = panel.score(["Please tell me about topic 3.", "Hi"], ["gladly, topic 3", "no"])
        card = (output / "panel" / "README.md").read_text()
        assert (
            "ultrafeedback_pairs (pairs; splits train): licence unknown" in card
        )  # its rows name none
        assert all("length_correlation" in panel.accuracy[n] for n in panel.objective_names)
        table = pd.read_parquet(output / "scores.parquet")
        shapes[name] = (scores.shape, scores.dtype, panel.objective_names, list(table), len(table))
        assert np.isfinite(scores).all()
    assert shapes["separate"] == shapes["trunk"]
    assert shapes["trunk"][0] == (2, 5)
