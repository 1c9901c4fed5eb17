"""The demo that ships, made again by one script: run as it stands, on tiny models and a few rows of the real data."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import tiny_encoder, tiny_llama

from pro_core.evaluation.results import read_rows

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
SMALL: dict[str, dict[str, Any]] = {
    "demo_panel": {"max_length": 32, "folds": 2, "upper_layers": 1, "checkpoint_every": 1000},
    "demo_adapter": {"layers": 1, "epochs": 1, "seeds": [0], "folds": 2, "validation": None},
    "demo_morlhf": {"steps": 1, "prompts_per_step": 2, "generations": 2, "max_new_tokens": 4},
    "demo_soup": {},
    "demo_soup_evaluation": {"weights": 6, "prompts": 4, "max_new_tokens": 4, "batch_size": 4},
}


def small_recipes(folder: Path) -> None:
    """The demo's recipes in ``folder``, with everything large made small."""
    encoder, llama = tiny_encoder(folder / "encoder"), tiny_llama(folder / "llama")
    for name, changes in SMALL.items():
        recipe = yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text()) | changes
        if name == "demo_panel":
            recipe["model"] = encoder
            for entry in recipe["data"]:
                entry["max_pairs"] = 24
        if name == "demo_adapter":
            recipe["encoder"] = encoder
            recipe["targets"] = recipe["targets"][-2:]
        if name == "demo_morlhf":
            recipe["model"] = llama
            recipe["arms"]["humor alone"].pop("steps")
        if name == "demo_soup_evaluation":
            for entry in recipe["policies"][:2]:
                entry["model"] = llama
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))


def test_one_script_leads_from_the_data_to_the_app_and_goes_on_after_a_kill(tmp_path, data_dir):
    for name in ("train", "pro_core", "ui", "app.py", "checkpoints"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "small").mkdir()
    small_recipes(tmp_path / "small")
    environment = os.environ | {"PYTHON": sys.executable, "RECIPES": "small"}
    environment |= {"PRO_DATA_DIR": str(data_dir), "OMP_NUM_THREADS": "1"}
    command = ["bash", str(ROOT / "train" / "demo.sh"), "--help"]
    outputs = tmp_path / "outputs"
    panel = outputs / "demo_panel" / "panel" / "trunk" / "model.safetensors"

    with (tmp_path / "log").open("wb") as log:
        killed = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        while not panel.is_file():
            assert killed.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
    made = panel.stat().st_mtime_ns

    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PRO_PANEL" in done.stdout  # the app would start: it shows its settings
    assert panel.stat().st_mtime_ns == made  # the panel was not made again
    results = {path.name for path in (outputs / "demo" / "results").iterdir()}
    assert results == {"reward_models.jsonl", "adapter.jsonl", "policies.jsonl"}
    assert not (tmp_path / "results").exists()  # the published rows are not touched
    assert (outputs / "demo_soup" / "policy" / "pro_policy.json").is_file()


def test_the_numbers_to_expect_stand_in_the_results():
    script = (ROOT / "train" / "demo.sh").read_text().replace("\n#   ", "")

    def metrics(file: str, experiment: str, method: str) -> dict[str, float]:
        rows = read_rows(ROOT / "results" / file)
        named = (experiment, method, "test")
        mine = [r for r in rows if (r["experiment"], r["method"], r["split"]) == named]
        return next(r["metrics"] for r in mine if r["kind"] in ("method", "all_seeds"))

    panel = metrics("reward_models.jsonl", "reward_models", "panel")
    soup = metrics("policies.jsonl", "demo_soup", "demo soup")
    for name in ("helpful", "harmless", "truthful", "informative", "humor"):
        for number in (panel[f"accuracy_{name}"], soup[f"spearman_{name}"]):
            assert f"{name} {number:.2f}".replace(" 0.", " .") in script
