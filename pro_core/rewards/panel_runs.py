"""The run of a panel recipe: what `train/reward_models.py` makes and `train/evaluate.py` grades.

Under ``<output>``, ``folds/all`` is the panel trained on all training pairs, and ``folds/0`` ... are each trained
without one fold of the prompts. ``scores/`` has each panel's scores of pairs that it was not trained on, and
``scores.parquet`` all of these together. ``panel`` (or the recipe's ``panel``) is ``folds/all`` with its accuracies and
its card. Each is a finished folder of :mod:`pro_core.system.artefacts`: made once, and again when its inputs change.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from pro_core.data.schema import PreferencePair
from pro_core.data.sources import default_data_dir
from pro_core.data.training_pairs import TrainingPairs, gather_pairs, out_of_fold
from pro_core.rewards.batching import scoring_version
from pro_core.rewards.bradley_terry import (
    TRAINING_VERSION,
    BradleyTerryTrainer,
    save_trained,
    tokenize_pairs,
)
from pro_core.rewards.models import new_reward_model
from pro_core.rewards.ngrams import VERSION as NGRAMS_VERSION
from pro_core.rewards.ngrams import NGrams
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.panel_card import grade, write_panel_card
from pro_core.rewards.recipes import PanelRecipe
from pro_core.rewards.scores import (
    PANEL,
    check_table,
    fit_reference_stats,
    read_scores,
    score_pairs,
    table_hash,
)
from pro_core.rewards.specs import RewardModelSpec
from pro_core.runs.training import (
    Progress,
    cast_for_training,
    train_resuming,
    training_arguments,
)
from pro_core.system.artefacts import (
    WORK,
    Artefact,
    copy_files,
    finished,
    once,
)
from pro_core.system.fingerprints import fingerprint
from pro_core.system.processes import from_main, main_process, process_device
from pro_core.system.storage import content_hash, replacing

ARCHITECTURE = ("method", "upper_layers", "trunk_layers", "lora", "pooling")
DECIDING = (
    *("model", *ARCHITECTURE),
    *("objectives", "shared_trunk", "batch_size", "learning_rate", "max_length", "input_format"),
    *("seed", "remove_length", "label_smoothing", "members", "ngrams"),
)
"""The settings that determine a panel's parameters and statistics, beside its base model and its pairs."""
TRAINED, SCORES = "pro-trained-panel", "pro-scores"
"""The kinds of finished folders beside :data:`pro_core.rewards.scores.PANEL`, which is for people."""
TABLE = "scores.parquet"
NGRAMS = "ngrams"
"""The source of the members that read n-grams, in a panel's folder."""
GRADING_VERSION = 1
"""Version of accuracies and card; raise it with every change of what they say."""


def train_panel(recipe: PanelRecipe) -> RewardPanel | None:
    """Train what is not finished yet of a recipe's panel; print notes and progress.

    Returns:
        The finished panel in the main process; None in the others that `accelerate launch` started.

    Raises:
        ConfigError: a batch that the processes cannot share. DataError: pairs that cannot be read, do not fit the
            objectives, or are too few. StorageError: a base model that cannot be loaded, or a full disk.
    """
    run = PanelRun(recipe)
    if main_process():
        for note in run.data.notes:
            print(note, flush=True)
    return run.make()


class PanelRun:
    """A recipe with its pairs.

    Raises:
        DataError: pairs that cannot be read, or do not fit the objectives.
    """

    def __init__(self, recipe: PanelRecipe):
        self.recipe = recipe
        self.config = recipe.config
        self.command = f"python train/reward_models.py {recipe.arguments}"
        self.output = Path(recipe.output)
        self.final = Path(recipe.panel or self.output / "panel")
        self.objective_names = tuple(recipe.objectives)

    @cached_property
    def data(self) -> TrainingPairs:
        """The recipe's pairs, of all splits."""
        folder = self.recipe.data_dir or default_data_dir()
        return gather_pairs(self.recipe.data, self.objective_names, folder)

    def make(self) -> RewardPanel | None:
        """Make everything; return the finished panel in the main process, and None in the others."""
        folds = out_of_fold(self.data.training, self.recipe.folds)  # before anything is trained
        whole = self.trained("all", range(len(self.data.training)))
        scores = [self._scores(whole, self.data.held_out, -1, "held_out")]
        for fold in folds:
            panel = self.trained(str(fold.number), fold.rest)
            scored = [self.data.training[i] for i in fold.scored]
            scores.append(self._scores(panel, scored, fold.number, f"fold{fold.number}"))
        if not main_process():
            self._finish(whole, pd.DataFrame(), scores)
            return None
        tables = [pd.read_parquet(part.folder / TABLE) for part in scores]
        for part in scores:
            part.check()
        table = pd.concat(tables, ignore_index=True)
        with replacing(self.output / TABLE) as partial:
            table.to_parquet(partial)
        return RewardPanel.from_pretrained(self._finish(whole, table, scores).folder)

    def trained(self, name: str, rows: Sequence[int]) -> Artefact:
        """The panel ``folds/<name>``, trained on ``rows`` of the training pairs."""
        pairs = [self.data.training[i] for i in rows]
        epochs = [self.data.epochs[i] for i in rows]
        inputs, target = self._inputs(pairs, epochs), self.output / "folds" / name

        def make(folder: Path) -> dict[str, Any]:
            return self._train(pairs, epochs, folder, target)

        return once(target, TRAINED, inputs, make)

    def table(self) -> pd.DataFrame:
        """The finished ``scores.parquet``.

        Raises:
            StorageError: it does not exist, or the recipe or its data have changed since.
        """
        training, epochs = self.data.training, self.data.epochs
        inputs = self._inputs(training, epochs)
        finished(self.output / "folds" / "all", TRAINED, inputs, self.command)
        keys = [self._scores_key(inputs, self.data.held_out, -1)]
        for fold in out_of_fold(training, self.recipe.folds):
            rest = [training[i] for i in fold.rest], [epochs[i] for i in fold.rest]
            scored = [training[i] for i in fold.scored]
            keys.append(self._scores_key(self._inputs(*rest), scored, fold.number))
        finished(self.final, PANEL, self._final_inputs(keys), self.command)  # it is made last
        table = read_scores(self.output / TABLE, self.objective_names)
        check_table(self.final, self.output / TABLE, table)
        return table

    # ------------------------------------------------------------ parts

    def _inputs(self, pairs: Sequence[PreferencePair], epochs: Sequence[int]) -> dict[str, Any]:
        code = [TRAINING_VERSION, scoring_version(self.recipe.input_format)]
        return {
            "code": [*code, *([NGRAMS_VERSION] if self.recipe.ngrams else [])],
            "model's files": fingerprint(self.recipe.model),
            **self.recipe.decides(*DECIDING),
            "training pairs": pairs_hash(pairs, epochs),
        }

    def _train(
        self, pairs: Sequence[PreferencePair], epochs: Sequence[int], folder: Path, target: Path
    ) -> dict[str, Any]:
        """Train what a panel still lacks, one trunk or one model per objective, and fit its statistics.

        Args:
            folder: where it is made. target: its final place, for messages.
        """
        recipe, names = self.recipe, self.objective_names
        shared = recipe.shared_trunk
        groups = {"trunk": names} if shared else {name: (name,) for name in names}
        specs: dict[str, list[RewardModelSpec]] = {name: [] for name in names}
        for source, objectives in groups.items():
            rows = [i for i, p in enumerate(pairs) if p.objective in objectives]
            if not from_main((folder / source / "reward_model.json").is_file()):  # written last
                some = [pairs[i] for i in rows], [epochs[i] for i in rows]
                self._train_model(*some, objectives, folder, source, f"{target}: {source}")
            for k, name in enumerate(objectives):
                read = RewardModelSpec(
                    name, source, input_format=recipe.input_format, max_length=recipe.max_length
                )
                heads = range(k * recipe.members, (k + 1) * recipe.members)
                specs[name] += [replace(read, logit=head) for head in heads]
        if recipe.ngrams:
            if main_process() and not (folder / NGRAMS / "reward_model.json").is_file():
                NGrams.fit(pairs, names, epochs).save(folder / NGRAMS)
            for k, name in enumerate(names):
                specs[name].append(RewardModelSpec(name, NGRAMS, logit=k))
        if main_process():
            members = [spec for of_name in specs.values() for spec in of_name]
            panel = RewardPanel.build(members, folder, device=process_device())
            fit_reference_stats(panel, pairs, remove_length=recipe.remove_length)
            panel.save_pretrained(folder)
        return {"pairs": len(pairs)}

    def _train_model(
        self,
        pairs: Sequence[PreferencePair],
        epochs: Sequence[int],
        objectives: Sequence[str],
        folder: Path,
        source: str,
        what: str,
    ) -> None:
        recipe = self.recipe
        parts = recipe.decides(*ARCHITECTURE)
        parts |= {"base": recipe.model, "num_labels": len(objectives) * recipe.members}
        # On a CPU the backward pass of PyTorch's fused attention is slow: MiniLM learns 1.25 times as fast without it.
        attention = None if torch.cuda.is_available() else "eager"
        model, tokenizer = new_reward_model(**parts, seed=recipe.seed, attention=attention)
        rows = tokenize_pairs(
            tokenizer,
            pairs,
            objectives,
            epochs,
            recipe.batch_size,
            recipe.max_length,
            recipe.seed,
            recipe.input_format,
            recipe.members,
        )
        arguments = training_arguments(
            folder / WORK / source,
            len(rows),
            recipe.batch_size,
            recipe.learning_rate,
            recipe.seed,
            checkpoint_every=recipe.checkpoint_every,
            disable_tqdm=not sys.stderr.isatty(),
        )
        trainer = BradleyTerryTrainer(
            cast_for_training(model),
            tokenizer,
            arguments,
            rows,
            recipe.members,
            recipe.label_smoothing,
            callbacks=[Progress()],
        )
        if main_process():
            world = arguments.world_size
            among = f", {world} processes" if world > 1 else ""
            print(f"{what}: {len(pairs)} pairs, {len(rows)} rows{among}", flush=True)
        train_resuming(trainer)
        save_trained(trainer, folder / source, parts)

    def _scores(
        self, panel: Artefact, pairs: Sequence[PreferencePair], fold: int, name: str
    ) -> Artefact:
        """The table of pairs that a panel was not trained on."""

        def make(folder: Path) -> dict[str, Any]:
            if main_process():
                loaded = RewardPanel.from_pretrained(panel.folder, process_device())
                panel.check()
                score_pairs(loaded, pairs, fold, folder / TABLE)
            return {"pairs": len(pairs)}

        inputs = self._scores_inputs(panel.key, pairs, fold)
        return once(self.output / "scores" / name, SCORES, inputs, make)

    def _scores_inputs(
        self, panel_key: str, pairs: Sequence[PreferencePair], fold: int
    ) -> dict[str, Any]:
        columns = [[p.id, p.source, p.licence, p.split, p.constructed, p.ungraded] for p in pairs]
        return {
            "panel": panel_key,
            "pairs": pairs_hash(pairs),
            "columns": content_hash(columns),
            "fold": fold,
        }

    def _scores_key(
        self, panel: Mapping[str, Any], pairs: Sequence[PreferencePair], fold: int
    ) -> str:
        """The key of the scores by the panel that these inputs make."""
        return content_hash(self._scores_inputs(content_hash(panel), pairs, fold))

    def _finish(
        self, trained: Artefact, table: pd.DataFrame, scores: Sequence[Artefact]
    ) -> Artefact:
        """The final panel, with its accuracies and its card."""
        recipe = self.recipe

        def make(folder: Path) -> dict[str, Any]:
            if main_process():
                copy_files(trained.folder, folder)
                trained.check()
                panel = RewardPanel.from_pretrained(folder)
                panel.accuracy = grade(table, panel.objective_names, recipe.grade_on)
                panel.save_pretrained(folder)
                write_panel_card(folder, panel, recipe, self.data, table)
            return {"notes": self.data.notes, "table": table_hash(table)}

        return once(self.final, PANEL, self._final_inputs([part.key for part in scores]), make)

    def _final_inputs(self, scores: Sequence[str]) -> dict[str, Any]:
        settings = self.recipe.decides("grade_on", "licence", "data")
        licences = [entry.licences for entry in self.data.entries]
        read = {"notes": self.data.notes, "licences": licences}
        return {"code": GRADING_VERSION, "scores": list(scores)} | read | settings


def pairs_hash(pairs: Sequence[PreferencePair], epochs: Sequence[int] = ()) -> str:
    """The number of pairs, and a hash of what they teach in order: texts, objectives, sources, weights and epochs."""
    rows = [[p.prompt, p.chosen, p.rejected, p.objective, p.source, p.tie, p.weight] for p in pairs]
    return f"{len(pairs):,} of hash {content_hash([rows, list(epochs)])}"
