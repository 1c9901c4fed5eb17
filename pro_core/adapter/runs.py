"""The files of one adapter recipe: what `train/adapter.py` fits and `train/evaluate.py` grades.

The table of scores holds the training rows (out of fold) and the held-out ones; each target and seed has a folder, and
so has each fold of the chosen target. Each is a finished folder of :mod:`pro_core.system.artefacts`: fitted once, and
again when the scores, a setting, the encoder or the code has changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from pro_core.adapter.card import write_adapter_card
from pro_core.adapter.controls import compare, control_weights
from pro_core.adapter.encoder import FEATURES_VERSION, PromptEncoder, encode_prompts
from pro_core.adapter.global_weights import best_global_weights
from pro_core.adapter.model import PreferenceAdapter
from pro_core.adapter.recipe import AdapterRecipe, AdapterTarget
from pro_core.adapter.training import TRAINING_VERSION, fit_adapter
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.scores import check_table, graded_rows, read_scores, table_hash, what_fits
from pro_core.runs.recipes import ConfigError
from pro_core.system.artefacts import MANIFEST, WORK, Artefact, copy_files, finished, once
from pro_core.system.fingerprints import fingerprint
from pro_core.system.processes import from_main, main_process
from pro_core.system.storage import read_config, replacing
from pro_core.weights import entropy

FITTING = (
    *("encoder", "train_encoder", "layers", "hidden", "members", "max_length"),
    *("epochs", "batch_size", "learning_rate", "load_balance"),
)
"""The settings that go to :func:`pro_core.adapter.training.fit_adapter` as they are."""
FITTED, ADAPTER = "pro-fitted-adapter", "pro-finished-adapter"
"""The kinds of finished folders; the second is the adapter to use."""
CHOOSING_VERSION = 1
"""Version of the choice and the card. Every change of what they say raises it."""
CHOSEN = "validation accuracy"
FIRST = "no validation pairs to choose by: the first target of the recipe"


def train_adapter(recipe: AdapterRecipe) -> PreferenceAdapter | None:
    """Fit what is not finished yet, choose a target on the validation pairs, and finish its adapter.

    Every target is fitted with every seed. The one with the best accuracy, averaged over objectives and seeds, becomes
    the adapter (its first seed); without validation pairs, the recipe's first. Prints the figures as they come.

    Returns:
        The finished adapter in the main process; None in the others that `accelerate launch` started.

    Raises:
        ConfigError: scores without an out-of-fold part, or a batch that the processes cannot share.
        StorageError: scores, a panel or an encoder that cannot be read, or a full disk.
    """
    run = AdapterRun(recipe)
    fits = [(target, seed) for target in run.targets for seed in run.seeds]
    rows = [row for fit in fits if (row := run.graded(*fit))]
    summary = pd.DataFrame(rows, columns=list(rows[0]) if rows else ["target", "adapter"]).round(4)
    means = summary.groupby("target")["adapter"].mean().sort_values(ascending=False)
    chosen, reason = run.targets[0], FIRST
    if rows:
        chosen, reason = next(t for t in run.targets if t.name == means.index[0]), CHOSEN
    chosen, reason, summary = from_main(
        (chosen, reason, summary)
    )  # processes may round differently
    if main_process():
        for path in filter(None, (str(run.output / "validation.csv"), recipe.validation)):
            with replacing(path) as partial:
                summary.to_csv(partial, index=False)
        figures = means.round(4).to_string() if rows else f"not measured, {FIRST}"
        print(f"\nvalidation accuracy, mean over seeds:\n{figures}", flush=True)
    run.fit_folds(chosen)
    adapter = run.finish(chosen, reason, summary).folder
    if not main_process():
        return None
    print(f"\nchosen: {chosen.name}; saved in {adapter}", flush=True)
    return PreferenceAdapter.from_pretrained(adapter)


class AdapterRun:
    """A recipe with its table of scores.

    Attributes:
        train: rows with out-of-fold scores. scores: all rows; texts without a prompt teach no weights and are left out.

    Raises:
        ConfigError: scores without an out-of-fold part.
    """

    def __init__(self, recipe: AdapterRecipe):
        self.recipe, self.config = recipe, recipe.config
        self.command = f"python train/adapter.py {recipe.arguments}"
        self.output = Path(recipe.output)
        self.final = Path(recipe.adapter or self.output / "adapter")
        self.targets, self.seeds = recipe.targets, recipe.seeds
        self.objective_names = RewardPanel.from_pretrained(recipe.panel).objective_names
        scores = read_scores(recipe.scores, self.objective_names)
        check_table(recipe.panel, recipe.scores, scores)
        self.scores = scores[scores.prompt != "[]"].reset_index(drop=True)
        self.train = self.scores[self.scores.fold >= 0]
        if self.train.empty:
            raise ConfigError(
                f"{recipe.scores} has no out-of-fold scores: train the panel with folds"
            )
        self._features: dict[str, torch.Tensor] = {}

    @cached_property
    def best(self) -> NDArray[np.float32]:
        """The fixed weights (K,) that do best on the training rows: what the adapters are pulled to."""
        return best_global_weights(self.train, self.objective_names)

    def held_out(self, split: str) -> pd.DataFrame:
        """The rows of one split that accuracies are measured on, see :func:`pro_core.rewards.scores.graded_rows`."""
        return graded_rows(self.scores, split)

    def graded(self, target: AdapterTarget, seed: int) -> dict[str, Any] | None:
        """The validation figures of one fit, which are printed; None where there are no validation pairs."""
        adapter = self.fit(self.folder(target, seed), self.train, target, seed)
        validation, names = self.held_out("validation"), self.objective_names
        if validation.empty:
            return None
        weights = self.weights(adapter, validation)
        controls = control_weights(self.train, validation, weights, names, seed, self.best)
        report = compare(validation, controls, names)
        row: dict[str, Any] = {"target": target.name, "seed": seed}
        row |= {method: r["accuracy"] for method, r in report.items()}
        row["entropy_of_targets"] = adapter.training_record["entropy_of_targets"]
        row["entropy_of_weights"] = float(entropy(weights).mean())
        if main_process():
            shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
            print(shown, flush=True)
        return row

    def fit_folds(self, chosen: AdapterTarget) -> None:
        """Fit the chosen target without each fold of the prompts that trained the panel."""
        for seed in self.seeds:
            for fold in sorted(self.train.fold.unique()) if self.recipe.folds else ():
                self.fit(
                    self.fold_folder(seed, fold), self.train[self.train.fold != fold], chosen, seed
                )

    def fit(
        self,
        folder: Path,
        rows: pd.DataFrame,
        target: AdapterTarget,
        seed: int,
        global_weights: NDArray | None = None,
    ) -> PreferenceAdapter:
        """The adapter in ``folder``, fitted on ``rows`` unless it is finished.

        Args:
            global_weights: (K,) what it is pulled to; :attr:`best` when not given.
        """
        towards = self.best if global_weights is None else global_weights

        def make(building: Path) -> dict[str, Any]:
            settings = self._settings(target, seed) | {"global_weights": towards}
            if not self.recipe.train_encoder:
                settings |= {"encoder": self.encoder, "features": self.features(rows["prompt"])}
            adapter = fit_adapter(rows, self.objective_names, building / WORK, **settings)
            if main_process():
                adapter.save_pretrained(building)
            return {}

        inputs = self._inputs(rows, target, seed, towards)
        return PreferenceAdapter.from_pretrained(once(folder, FITTED, inputs, make).folder)

    def load(self, target: AdapterTarget, seed: int, fold: int | None = None) -> PreferenceAdapter:
        """See :meth:`made`."""
        return PreferenceAdapter.from_pretrained(self.made(target, seed, fold).folder)

    def made(self, target: AdapterTarget, seed: int, fold: int | None = None) -> Artefact:
        """The fitted adapter of one target and seed; with ``fold``, the chosen target's that did not see that fold.

        Raises:
            StorageError: it is not finished, or the recipe or its scores have changed since.
        """
        rows, folder = self.train, self.folder(target, seed)
        if fold is not None:
            rows, folder = rows[rows.fold != fold], self.fold_folder(seed, fold)
        inputs = self._inputs(rows, target, seed, self.best)
        return finished(folder, FITTED, inputs, self.command)

    def finish(self, chosen: AdapterTarget, reason: str, summary: pd.DataFrame) -> Artefact:
        """The adapter to use: the chosen target's under the first seed, with its card.

        Args:
            reason: how the target was chosen. summary: the validation figures, one row per target and seed.
        """
        fitted = self.made(chosen, self.seeds[0])

        def make(folder: Path) -> dict[str, Any]:
            if main_process():
                copy_files(fitted.folder, folder)
                fitted.check()
                names = self.objective_names
                write_adapter_card(folder, self.recipe, chosen.name, names, summary, self.scores)
            return {"target": chosen.plain, "reason": reason}

        inputs = {
            "code": CHOOSING_VERSION,
            "chosen": chosen.plain,
            "reason": reason,
            "adapter": fitted.key,
            "validation": summary.to_csv(index=False),
            "scores": table_hash(self.scores),
            "licence": self.recipe.licence,
        }
        return once(self.final, ADAPTER, inputs, make)

    @property
    def chosen(self) -> AdapterTarget:
        """The target that was chosen. Raises ConfigError before :func:`train_adapter` ended."""
        if not (self.final / MANIFEST).is_file():
            raise ConfigError(f"{self.final} is not finished: run {self.command} first")
        record = read_config(self.final, MANIFEST, ADAPTER)["record"]
        return AdapterTarget.model_validate(record["target"])

    def folder(self, target: AdapterTarget, seed: int) -> Path:
        return self.output / target.name / f"seed{seed}"

    def fold_folder(self, seed: int, fold: int) -> Path:
        """The folder of the chosen target's adapter that did not see one fold of the training prompts."""
        return self.output / "folds" / f"seed{seed}" / str(fold)

    def _settings(self, target: AdapterTarget, seed: int) -> dict[str, Any]:
        """The settings of one fit: the recipe's, overridden by the target's own, such as its load_balance."""
        return self.recipe.decides(*FITTING) | {"seed": seed} | target.plain

    def _inputs(
        self, rows: pd.DataFrame, target: AdapterTarget, seed: int, global_weights: NDArray
    ) -> dict[str, Any]:
        """Everything that decides a fit."""
        return self._settings(target, seed) | {
            "code": [TRAINING_VERSION, FEATURES_VERSION],
            "encoder's files": fingerprint(self.recipe.encoder),
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
        """The frozen encoder's features of the prompts (messages as JSON), each read once in the life of the run."""
        missing = set(prompts) - set(self._features)
        if missing:
            self._features |= encode_prompts(self.encoder, sorted(missing))
        return self._features

    @cached_property
    def encoder(self) -> PromptEncoder:
        """The recipe's encoder, not trained further, loaded once for all adapters on it."""
        r = self.recipe
        return PromptEncoder(r.encoder, r.max_length, r.layers)
