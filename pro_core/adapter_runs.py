"""One recipe of the adapter, as its files: what `train/adapter.py` fits and `train/evaluate.py` grades.

The table of scores holds the training rows (out of fold) and the held-out ones; each target and seed has a folder, and
so has each fold of the chosen target. What is in its folder is never fitted again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from pro_core.adapter import PreferenceAdapter
from pro_core.adapter_training import encode_prompts, fit_adapter
from pro_core.rewards.panel import RewardPanel
from pro_core.training import ConfigError, main_process, read_recipe

REQUIRED = ("scores", "panel", "output", "targets")
OPTIONAL = {
    "adapter": None,  # where the chosen adapter goes; default: <output>/adapter
    "encoder": "FacebookAI/xlm-roberta-base",  # the paper's
    "train_encoder": True,
    "layers": 1,  # how many of the encoder's upper layers the heads read
    "hidden": 128,
    "members": 5,  # heads on the one encoder; their spread is the weights' uncertainty
    "max_length": 256,
    "epochs": 3,
    "batch_size": 32,
    "learning_rate": 1e-5,
    "load_balance": 0.0,
    "seeds": [0, 1, 2, 3, 4],
    "folds": 5,  # 0: nothing is fitted again without a fold or a source
    "validation": None,  # a copy of the validation figures, such as results/adapter_validation.csv
}
FITTING = (
    *("encoder", "train_encoder", "layers", "hidden", "members", "max_length"),
    *("epochs", "batch_size", "learning_rate", "load_balance"),
)
"""The settings that go to :func:`pro_core.adapter_training.fit_adapter` as they are."""


def name_of(target: dict[str, Any]) -> str:
    """``pairwise-t1``: a target with its settings, fit for a folder and a table."""
    rest = [f"-{k}{v}" for k, v in target.items() if k not in ("target", "temperature")]
    return f"{target['target']}-t{target['temperature']:g}" + "".join(rest)


class AdapterRun:
    """A recipe with its table of scores.

    Attributes:
        train: rows with out-of-fold scores. scores: all rows; texts without a prompt teach no weights and are left out.

    Raises:
        ConfigError: a wrong recipe, or scores without an out-of-fold part.
    """

    def __init__(self, recipe_path: str | Path):
        self.recipe = read_recipe(recipe_path, REQUIRED, OPTIONAL)
        self.config = Path(recipe_path).name
        self.output = Path(self.recipe["output"])
        self.final = Path(self.recipe["adapter"] or self.output / "adapter")
        self.targets: list[dict[str, Any]] = self.recipe["targets"]
        self.seeds: list[int] = self.recipe["seeds"]
        self.objective_names = RewardPanel.from_pretrained(self.recipe["panel"]).objective_names
        scores = pd.read_parquet(self.recipe["scores"])
        self.scores = scores[scores.prompt != "[]"].reset_index(drop=True)
        self.train = self.scores[self.scores.fold >= 0]
        if self.train.empty:
            raise ConfigError(
                f"{self.recipe['scores']} has no out-of-fold scores: train the panel with folds"
            )
        self._features: dict[str, torch.Tensor] = {}

    def held_out(self, split: str) -> pd.DataFrame:
        """The rows of one split that trained nothing; constructed pairs are never graded."""
        rows = self.scores
        return rows[(rows.fold < 0) & (rows.split == split) & ~rows.constructed]

    def fit(
        self, folder: Path, rows: pd.DataFrame, target: dict[str, Any], seed: int, global_weights
    ) -> PreferenceAdapter:
        """The adapter in ``folder``, fitted on ``rows`` when it is not there yet."""
        if not (folder / "adapter.json").is_file():
            settings = {key: self.recipe[key] for key in FITTING}
            settings |= {"global_weights": global_weights, "seed": seed}
            if not self.recipe["train_encoder"]:
                settings["features"] = self.features(rows["prompt"])
            # A target may have settings of its own, such as its load_balance.
            work = folder / "work"
            adapter = fit_adapter(rows, self.objective_names, work, **(settings | target))
            if main_process():
                adapter.save_pretrained(folder)
                shutil.rmtree(work, ignore_errors=True)
        return PreferenceAdapter.from_pretrained(folder)

    def load(self, target: dict[str, Any], seed: int) -> PreferenceAdapter:
        """The fitted adapter of one target and seed. Raises StorageError when it is not there."""
        return PreferenceAdapter.from_pretrained(self.folder(target, seed))

    def folder(self, target: dict[str, Any], seed: int) -> Path:
        return self.output / name_of(target) / f"seed{seed}"

    def fold_folder(self, seed: int, fold: int) -> Path:
        """Where the chosen target's adapter is that did not see one fold of the training prompts."""
        return self.output / "folds" / f"seed{seed}" / str(fold)

    @property
    def chosen(self) -> dict[str, Any]:
        """The target that won on validation. Raises ConfigError before `train/adapter.py` ended."""
        file = self.output / "chosen.json"
        if not file.is_file():
            raise ConfigError(f"{file} is not there: run train/adapter.py with {self.config} first")
        return json.loads(file.read_text())

    def weights(self, adapter: PreferenceAdapter, rows: pd.DataFrame) -> NDArray[np.float32]:
        """Weights (N, K) for the rows; each prompt is read once, and once for all adapters on one frozen encoder."""
        prompts, index = np.unique(rows["prompt"].to_numpy(str), return_inverse=True)
        if adapter.train_encoder:
            return adapter.predict([json.loads(p) for p in prompts])[index]
        features = self.features(prompts)
        return adapter.weigh(torch.stack([features[p] for p in prompts])).weights[index]

    def features(self, prompts: Iterable[str]) -> dict[str, torch.Tensor]:
        """What the frozen encoder makes of the prompts (messages as JSON), each read once in the life of the run."""
        missing = set(prompts) - set(self._features)
        if missing:
            self._features |= encode_prompts(self._frozen, sorted(missing))
        return self._features

    @cached_property
    def _frozen(self) -> PreferenceAdapter:
        r = self.recipe
        return PreferenceAdapter(
            r["encoder"], self.objective_names, r["hidden"], r["max_length"], layers=r["layers"]
        )
