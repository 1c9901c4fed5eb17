"""The run of a classifier recipe: what `train/classifier.py` makes and `evaluate.py` grades.

There is one classifier per loss and seed, in ``<output>/<loss>-seed<n>``: the model, statistics for Eq 11, held-out
predictions and a model card. The model alone is in ``<output>/trained``. Each is a finished folder of
:mod:`pro_core.system.artefacts`.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pro_core.data.schema import DataError, LabelledResponse
from pro_core.data.sources import default_data_dir
from pro_core.rewards.batching import scoring_version
from pro_core.rewards.bradley_terry import save_trained
from pro_core.rewards.checkpoints import load_reward_model
from pro_core.rewards.classifier import RewardClassifier
from pro_core.rewards.classifier_card import write_classifier_card
from pro_core.rewards.classifier_grades import (
    grade_levels,
    graded_responses,
    majority_class,
    prediction_table,
)
from pro_core.rewards.classifier_training import (
    TRAINING_VERSION,
    ClassifierTrainer,
    RatedResponses,
    tokenize_rated,
)
from pro_core.rewards.levels import level_columns
from pro_core.rewards.models import new_reward_model
from pro_core.rewards.recipes import ClassifierRecipe
from pro_core.runs.training import (
    Progress,
    cast_for_training,
    train_resuming,
    training_arguments,
)
from pro_core.system.artefacts import WORK, Artefact, copy_files, finished, once
from pro_core.system.fingerprints import fingerprint
from pro_core.system.processes import from_main, main_process, process_device
from pro_core.system.storage import content_hash, replacing

ARCHITECTURE = ("method", "upper_layers", "lora", "pooling")
OPTIMIZATION = ("accumulation", "weight_decay", "activation_checkpointing")
DECIDING = (
    *("model", *ARCHITECTURE, *OPTIMIZATION, "objectives", "batch_size", "learning_rate"),
    *("fast_heads", "warmup_steps", "max_length", "input_format"),
)
"""The settings that determine a classifier's parameters, beside its base model's files and training responses."""
TRAINED, CLASSIFIER = "pro-trained-classifier", "pro-finished-classifier"
"""The kinds of finished folders; the second is for people."""
PREDICTIONS = "predictions.parquet"
GRADING_VERSION = 1
"""Version of statistics, figures and card; raise it with every change of what they say."""
REFERENCE_SIZE = 2000
"""Maximum number of training responses that the statistics of Eq 11 are fitted on."""


def train_classifiers(recipe: ClassifierRecipe) -> list[Path]:
    """Train those classifiers of a recipe that are not finished yet; print notes, progress and accuracies.

    Returns:
        The folders of its classifiers, one per loss and seed, for ``RewardClassifier.from_pretrained``.

    Raises:
        ConfigError: a batch that the processes cannot share. DataError: responses that cannot be read, do not fit the
            objectives, or none to grade on. StorageError: a base model that cannot be loaded, or a full disk.
    """
    run = ClassifierRun(recipe)
    if main_process():
        for note in run.data.notes:
            print(note, flush=True)
    run.make()
    return [folder for _, _, folder in run.arms()]


class ClassifierRun:
    """A recipe with its rated responses.

    Raises:
        DataError: responses that cannot be read, or do not fit the objectives.
    """

    def __init__(self, recipe: ClassifierRecipe):
        self.recipe = recipe
        self.config = recipe.config
        self.command = f"python train/classifier.py {recipe.arguments}"
        self.scales = recipe.scales

    @cached_property
    def data(self) -> RatedResponses:
        folder = self.recipe.data_dir or default_data_dir()
        return RatedResponses.load(self.recipe.data, self.scales, folder)

    def arms(self) -> Iterator[tuple[str, int, Path]]:
        """Each loss and seed of the recipe, and the folder of its classifier."""
        for loss in self.recipe.losses:
            for seed in self.recipe.seeds:
                yield loss, seed, Path(self.recipe.output) / f"{loss}-seed{seed}"

    def make(self) -> None:
        """Make all classifiers of the recipe.

        Raises:
            DataError: nothing to grade them on.
        """
        split = self.recipe.grade_on
        if not any(r.split == split and not r.ungraded for r in self.data.held_out):
            raise DataError(
                f"no {split} responses to grade on, or none whose prompt is not trained on too"
            )
        for loss, seed, target in self.arms():
            trained = self._trained(loss, seed, target.name)

            def make(folder: Path, trained=trained, loss=loss) -> dict[str, Any]:
                if main_process():
                    copy_files(trained.folder, folder)
                    trained.check()
                    self._finish(loss, folder)
                return {"notes": self.data.notes}

            once(target, CLASSIFIER, self._final_inputs(trained.key), make)

    def made(self, loss: str, seed: int, folder: Path) -> Artefact:
        """A finished classifier.

        Raises:
            StorageError: it does not exist, or the recipe or its data have changed since.
        """
        trained = self._inputs(loss, seed)
        finished(self._place(folder.name), TRAINED, trained, self.command)
        inputs = self._final_inputs(content_hash(trained))
        return finished(folder, CLASSIFIER, inputs, self.command)

    # ------------------------------------------------------------ parts

    def _place(self, name: str) -> Path:
        return Path(self.recipe.output) / "trained" / name

    def _trained(self, loss: str, seed: int, name: str) -> Artefact:
        """The trained network alone, without statistics and card."""
        target = self._place(name)

        def make(folder: Path) -> dict[str, Any]:
            if not from_main((folder / "model" / "reward_model.json").is_file()):  # written last
                self._train(loss, seed, folder, target)
            return {"responses": len(self.data.train)}

        return once(target, TRAINED, self._inputs(loss, seed), make)

    def _inputs(self, loss: str, seed: int) -> dict[str, Any]:
        """Everything that determines the parameters."""
        data = self.data
        return {
            "code": [TRAINING_VERSION, scoring_version(self.recipe.input_format)],
            "model's files": fingerprint(self.recipe.model),
            **self.recipe.decides(*DECIDING),
            **{"loss": loss, "seed": seed},
            "training responses": _responses_hash(data.train, data.epochs),
        }

    def _final_inputs(self, trained: str) -> dict[str, Any]:
        """Everything that determines the figures and the card as well."""
        data = self.data
        settings = self.recipe.decides("grade_on", "licence", "data")
        held_out = _responses_hash(data.held_out, [r.ungraded for r in data.held_out])
        read = {"held-out responses": held_out, "notes": data.notes, "licences": data.licences}
        return {"code": GRADING_VERSION, "trained": trained} | read | settings

    def _train(self, loss: str, seed: int, folder: Path, target: Path) -> None:
        """Train the network into ``folder/model``; ``target`` is its final place, for messages."""
        recipe, data = self.recipe, self.data
        parts = recipe.decides(*ARCHITECTURE)
        parts |= {"base": recipe.model, "num_labels": len(level_columns(self.scales))}
        model, tokenizer = new_reward_model(**parts, seed=seed)
        shape = (recipe.batch_size, recipe.max_length, seed, recipe.input_format)
        rows = tokenize_rated(tokenizer, data, *shape)
        overrides = recipe.decides(*OPTIMIZATION, "checkpoint_every")
        if recipe.warmup_steps is not None:
            overrides["warmup_steps"] = recipe.warmup_steps
        sizes = (len(rows), recipe.batch_size, recipe.learning_rate, seed)
        overrides["disable_tqdm"] = not sys.stderr.isatty()
        arguments = training_arguments(folder / WORK, *sizes, **overrides)
        model, fast, show = cast_for_training(model), recipe.fast_heads, [Progress()]
        trainer = ClassifierTrainer(
            model, tokenizer, arguments, rows, self.scales, loss, fast, callbacks=show
        )
        if main_process():
            print(f"{target}: {len(data.train)} responses, {len(rows)} rows", flush=True)
        train_resuming(trainer)
        save_trained(trainer, folder / "model", parts)

    def _finish(self, loss: str, folder: Path) -> None:
        """Write the statistics, held-out predictions, accuracies and card of a trained model."""
        recipe, data = self.recipe, self.data
        model, tokenizer = load_reward_model(str(folder / "model"), device=process_device())
        settings = recipe.decides("input_format", "max_length")
        settings |= {"loss": loss, "label_counts": data.counts}
        classifier = RewardClassifier(self.scales, model, tokenizer, folder, **settings)
        sample = random.Random(0).sample(data.train, min(REFERENCE_SIZE, len(data.train)))
        named = ", ".join(sorted({r.source for r in data.train}))
        reference = f"{len(sample)} training responses of {named}"
        classifier.fit_stats([r.prompt for r in sample], [r.response for r in sample], reference)
        predictions = prediction_table(classifier, data.held_out, data.held_out_levels)
        with replacing(folder / PREDICTIONS) as partial:
            predictions.to_parquet(partial)
        table = graded_responses(predictions, recipe.grade_on)
        classifier.accuracy = grade_levels(table, self.scales, loss)
        majority = majority_class(table, self.scales, data.counts)
        write_classifier_card(folder, classifier, recipe, data, majority)
        classifier.save_pretrained(folder)
        for metric, measured in classifier.accuracy.items():
            baseline = majority[metric]["accuracy"]
            print(f"{metric} {measured['accuracy']:.3f}, majority {baseline:.3f}", flush=True)


def _responses_hash(responses: Sequence[LabelledResponse], more: Sequence[Any]) -> str:
    """The number of rated responses, and a hash of them in order, with one more thing for each of them."""
    rows = [[r.prompt, r.response, r.labels, r.source, r.split] for r in responses]
    return f"{len(responses):,} of hash {content_hash([rows, list(more)])}"
