"""One recipe of the adapter, as its files: what `train/adapter.py` fits and `train/evaluate.py` grades.

The table of scores holds the training rows (out of fold) and the held-out ones; each target and seed has a folder, and
so has each fold of the chosen target. Each is a finished folder of :mod:`pro_core.system.artefacts`: fitted once, and
again when the scores, a setting, the encoder or the code has changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from pro_core.adapter.encoder import FEATURES_VERSION, PromptEncoder, encode_prompts
from pro_core.adapter.global_weights import best_global_weights
from pro_core.adapter.model import PreferenceAdapter
from pro_core.adapter.training import TRAINING_VERSION, fit_adapter
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.scores import check_table, graded_rows, read_scores, table_hash, what_fits
from pro_core.runs.training import ConfigError, read_recipe
from pro_core.system.artefacts import MANIFEST, WORK, Artefact, copy_files, finished, once
from pro_core.system.fingerprints import fingerprint
from pro_core.system.processes import main_process
from pro_core.system.storage import read_config

REQUIRED = ("scores", "panel", "output", "targets")
OPTIONAL = {
    "adapter": None,  # where the chosen adapter goes; default: <output>/adapter
    "licence": None,  # the adapter's own, for its card
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
"""The settings that go to :func:`pro_core.adapter.training.fit_adapter` as they are."""
FITTED, ADAPTER = "pro-fitted-adapter", "pro-finished-adapter"
"""The kinds of finished folders; the second is for people."""
CHOOSING_VERSION = 1
"""Of the choice and the card: raised with every change of what they say."""


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
        self.command = f"python train/adapter.py {recipe_path}"
        self.output = Path(self.recipe["output"])
        self.final = Path(self.recipe["adapter"] or self.output / "adapter")
        self.targets: list[dict[str, Any]] = self.recipe["targets"]
        self.seeds: list[int] = self.recipe["seeds"]
        self.objective_names = RewardPanel.from_pretrained(self.recipe["panel"]).objective_names
        scores = read_scores(self.recipe["scores"], self.objective_names)
        check_table(self.recipe["panel"], self.recipe["scores"], scores)
        self.scores = scores[scores.prompt != "[]"].reset_index(drop=True)
        self.train = self.scores[self.scores.fold >= 0]
        if self.train.empty:
            raise ConfigError(
                f"{self.recipe['scores']} has no out-of-fold scores: train the panel with folds"
            )
        self._features: dict[str, torch.Tensor] = {}

    @cached_property
    def best(self) -> NDArray[np.float32]:
        """The fixed weights (K,) that do best on the training rows: what the adapters are pulled to."""
        return best_global_weights(self.train, self.objective_names)

    def held_out(self, split: str) -> pd.DataFrame:
        """The rows of one split that accuracies are measured on, see :func:`pro_core.rewards.scores.graded_rows`."""
        return graded_rows(self.scores, split)

    def fit(
        self, folder: Path, rows: pd.DataFrame, target: dict[str, Any], seed: int, global_weights
    ) -> PreferenceAdapter:
        """The adapter in ``folder``, fitted on ``rows`` unless it is there."""

        def make(building: Path) -> dict[str, Any]:
            own = self._settings(target, seed) | {"global_weights": global_weights}
            if not self.recipe["train_encoder"]:
                own |= {"encoder": self.encoder, "features": self.features(rows["prompt"])}
            adapter = fit_adapter(rows, self.objective_names, building / WORK, **own)
            if main_process():
                adapter.save_pretrained(building)
            return {}

        inputs = self._inputs(rows, target, seed, global_weights)
        return PreferenceAdapter.from_pretrained(once(folder, FITTED, inputs, make).folder)

    def load(self, target: dict[str, Any], seed: int, fold: int | None = None) -> PreferenceAdapter:
        """See :meth:`made`."""
        return PreferenceAdapter.from_pretrained(self.made(target, seed, fold).folder)

    def made(self, target: dict[str, Any], seed: int, fold: int | None = None) -> Artefact:
        """The fitted adapter of one target and seed; of the chosen one also that which did not see one fold.

        Raises:
            StorageError: it is not there, or the recipe or its scores have changed since.
        """
        rows, folder = self.train, self.folder(target, seed)
        if fold is not None:
            rows, folder = rows[rows.fold != fold], self.fold_folder(seed, fold)
        inputs = self._inputs(rows, target, seed, self.best)
        return finished(folder, FITTED, inputs, self.command)

    def finish(
        self,
        chosen: dict[str, Any],
        reason: str,
        summary: pd.DataFrame,
        write_card: Callable[[Path], None],
    ) -> Artefact:
        """The adapter for people: that of the chosen target under the first seed, with its card.

        Args:
            reason: how the target was chosen. summary: the validation figures, a row a target and seed.
            write_card: writes the card into a folder; it may read these and the run.
        """
        fitted = self.made(chosen, self.seeds[0])

        def make(folder: Path) -> dict[str, Any]:
            if main_process():
                copy_files(fitted.folder, folder)
                fitted.check()
                write_card(folder)
            return {"target": chosen, "reason": reason}

        inputs = {
            "code": CHOOSING_VERSION,
            "chosen": chosen,
            "reason": reason,
            "adapter": fitted.key,
            "validation": summary.to_csv(index=False),
            "scores": table_hash(self.scores),
            "licence": self.recipe["licence"],
        }
        return once(self.final, ADAPTER, inputs, make)

    @property
    def chosen(self) -> dict[str, Any]:
        """The target that was chosen. Raises ConfigError before `train/adapter.py` ended."""
        if not (self.final / MANIFEST).is_file():
            raise ConfigError(f"{self.final} is not finished: run {self.command} first")
        return read_config(self.final, MANIFEST, ADAPTER)["record"]["target"]

    def folder(self, target: dict[str, Any], seed: int) -> Path:
        return self.output / name_of(target) / f"seed{seed}"

    def fold_folder(self, seed: int, fold: int) -> Path:
        """Where the chosen target's adapter is that did not see one fold of the training prompts."""
        return self.output / "folds" / f"seed{seed}" / str(fold)

    def _settings(self, target: dict[str, Any], seed: int) -> dict[str, Any]:
        """Of one fit: the recipe's, but where its target has some of its own, such as its load_balance."""
        return {key: self.recipe[key] for key in FITTING} | {"seed": seed} | target

    def _inputs(self, rows: pd.DataFrame, target, seed: int, global_weights) -> dict[str, Any]:
        """All that decides a fit."""
        return self._settings(target, seed) | {
            "code": [TRAINING_VERSION, FEATURES_VERSION],
            "encoder's files": fingerprint(self.recipe["encoder"]),
            "objectives": list(self.objective_names),
            "global weights": [round(float(w), 4) for w in global_weights],
            "scores": table_hash(rows[what_fits(self.objective_names)]),
        }

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
            self._features |= encode_prompts(self.encoder, sorted(missing))
        return self._features

    @cached_property
    def encoder(self) -> PromptEncoder:
        """The recipe's encoder as it comes, loaded once for all adapters on it."""
        r = self.recipe
        return PromptEncoder(r["encoder"], r["max_length"], r["layers"])
