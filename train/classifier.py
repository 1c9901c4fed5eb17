"""Train MOSLIM's multi-head reward classifier on rated responses (its Eq 6-10).

    python train/classifier.py recipes/small_classifier.yaml
    accelerate launch --num_processes 8 train/classifier.py recipes/moslim_type4.yaml
    python train/evaluate.py classifier recipes/small_classifier.yaml

One classifier a loss and seed, in `<output>/<loss>-seed<n>`: the model, statistics for Eq 11, held-out predictions and
a model card. A killed run, started again, goes on from its last checkpoint to the same result.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

from pro_core.data import DataError
from pro_core.data_sources import default_data_dir, rated_sources
from pro_core.evaluation.cards import write_classifier_card
from pro_core.evaluation.classifier import (
    classifier_rows,
    grade_levels,
    graded_responses,
    majority_class,
    prediction_table,
)
from pro_core.rewards.classifier import RewardClassifier, level_columns
from pro_core.rewards.classifier_training import (
    ClassifierTrainer,
    RatedResponses,
    check_losses,
    intensity_scales,
    tokenize_rated,
)
from pro_core.rewards.models import load_reward_model, new_reward_model, save_reward_model
from pro_core.training import (
    Progress,
    cast_for_training,
    main_process,
    read_recipe,
    run_script,
    train_resuming,
    training_arguments,
)

REQUIRED = ("objectives", "model", "data", "output")
OPTIONAL = {
    "licence": None,  # the classifiers' own, for their cards
    "losses": ["joint"],  # joint, per_head
    "seeds": [0],
    "method": "full",  # full, upper, lora, heads
    "upper_layers": 3,
    "lora": None,
    "pooling": "own",  # "mean" for sentence encoders
    "batch_size": 32,  # rows a step
    "accumulation": 1,  # forward passes that share a step's rows
    "learning_rate": 1e-4,
    "fast_heads": True,  # the fresh heads at ten times the rate
    "warmup_steps": None,  # default: 6% of the steps
    "weight_decay": 0.01,
    "activation_checkpointing": False,  # less memory, a third more time
    "max_length": 256,
    "input_format": "pair",  # "chat" for causal models
    "grade_on": "test",  # "validation" while settings are being chosen
    "checkpoint_every": 100,
    "data_dir": None,
}
REFERENCE_SIZE = 2000
"""Training responses, at most, that the statistics of Eq 11 are fitted on."""


def arms(recipe: dict) -> Iterator[tuple[str, int, Path]]:
    """Each (loss, seed) of a recipe and the folder of its classifier."""
    for loss in recipe["losses"]:
        for seed in recipe["seeds"]:
            yield loss, seed, Path(recipe["output"]) / f"{loss}-seed{seed}"


def train_model(recipe, scales, loss, seed, data: RatedResponses, folder: Path) -> None:
    """Train the network into `<folder>/model`, unless it is there."""
    if (folder / "model" / "reward_model.json").is_file():
        return
    parts = {key: recipe[key] for key in ("method", "upper_layers", "lora", "pooling")}
    parts |= {"base": recipe["model"], "num_labels": len(level_columns(scales))}
    model, tokenizer = new_reward_model(**parts, seed=seed)
    shape = (recipe["batch_size"], recipe["max_length"], seed, recipe["input_format"])
    dataset = tokenize_rated(tokenizer, data, *shape)
    passed_on = ("accumulation", "weight_decay", "checkpoint_every", "activation_checkpointing")
    overrides = {key: recipe[key] for key in passed_on}
    if recipe["warmup_steps"] is not None:
        overrides["warmup_steps"] = recipe["warmup_steps"]
    work = Path(recipe["output"]) / "work" / folder.name
    sizes = (len(dataset), recipe["batch_size"], recipe["learning_rate"], seed)
    quiet = not sys.stderr.isatty()
    arguments = training_arguments(work, *sizes, disable_tqdm=quiet, **overrides)
    model, fast, show = cast_for_training(model), recipe["fast_heads"], [Progress()]
    trainer = ClassifierTrainer(
        model, tokenizer, arguments, dataset, scales, loss, fast, callbacks=show
    )
    print(f"{folder}: {len(data.train)} responses, {len(dataset)} rows", flush=True)
    train_resuming(trainer)
    if main_process():
        trained = trainer.accelerator.unwrap_model(trainer.model)
        save_reward_model(trained, folder / "model", parts)


def finish(recipe, scales, loss, sources, data: RatedResponses, folder: Path) -> None:
    """Statistics, held-out predictions, accuracies and the card of a trained model."""
    model, tokenizer = load_reward_model(str(folder / "model"))
    settings = {key: recipe[key] for key in ("input_format", "max_length")}
    settings |= {"loss": loss, "label_counts": data.counts}
    classifier = RewardClassifier(scales, model, tokenizer, folder, **settings)
    sample = random.Random(0).sample(data.train, min(REFERENCE_SIZE, len(data.train)))
    named = ", ".join(sorted({r.source for r in data.train}))
    reference = f"{len(sample)} training responses of {named}"
    classifier.fit_stats([r.prompt for r in sample], [r.response for r in sample], reference)
    predictions = prediction_table(classifier, data.held_out, data.held_out_levels)
    predictions.to_parquet(folder / "predictions.parquet")
    table = graded_responses(predictions, recipe["grade_on"])
    classifier.accuracy = grade_levels(table, scales, loss)
    majority = majority_class(table, scales, data.counts)
    write_classifier_card(folder, classifier, recipe, sources, data, majority)
    classifier.save_pretrained(folder)
    for metric, measured in classifier.accuracy.items():
        print(f"{metric} {measured['accuracy']:.3f}, majority {majority[metric]['accuracy']:.3f}")


def main(recipe_path: str) -> None:
    recipe = read_recipe(recipe_path, REQUIRED, OPTIONAL)
    scales = intensity_scales(recipe["objectives"])
    check_losses(recipe["losses"], scales)
    sources = rated_sources(recipe["data"], recipe["objectives"])
    data = RatedResponses.load(sources, scales, recipe["data_dir"] or default_data_dir())
    if main_process():
        for note in data.notes:
            print(note, flush=True)
    if not any(r.split == recipe["grade_on"] and not r.ungraded for r in data.held_out):
        raise DataError(
            f"no {recipe['grade_on']} responses to grade on, or none whose prompt is not trained on too"
        )
    for loss, seed, folder in arms(recipe):
        train_model(recipe, scales, loss, seed, data, folder)
        if main_process() and not (folder / "classifier.json").is_file():
            finish(recipe, scales, loss, sources, data, folder)


def classifiers(recipe_path: str, split: str) -> list[dict]:
    """Result rows of every classifier of a recipe and of the majority class; for `train/evaluate.py`."""
    recipe, config = read_recipe(recipe_path, REQUIRED, OPTIONAL), Path(recipe_path).name
    graded = [classifier_rows(folder, seed, split, config) for _, seed, folder in arms(recipe)]
    return [own for own, _ in graded] + [graded[0][1]]  # the baseline is the same for all


if __name__ == "__main__":
    run_script(main, __doc__)
