"""Train K reward models on preference pairs, as one trunk with K heads or one model an objective (Eq 2).

    python train/reward_models.py recipes/demo_panel.yaml
    accelerate launch --multi_gpu --num_processes 2 train/reward_models.py recipes/demo_panel.yaml   # on CPUs too

Writes a panel (models, statistics, accuracies, model card) and `scores.parquet`: every pair scored by a panel
that was not trained on its prompt, which is what `train/adapter.py` learns from. A killed run, started again,
goes on from its last checkpoint to the same result.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from pro_core.data import fold_of
from pro_core.data_sources import check_pairs, data_sources, default_data_dir
from pro_core.evaluation.cards import grade, write_panel_card
from pro_core.rewards.bradley_terry import BradleyTerryTrainer, tokenize_pairs
from pro_core.rewards.models import new_reward_model, save_reward_model
from pro_core.rewards.panel import RewardModelSpec, RewardPanel
from pro_core.rewards.scores import fit_reference_stats, score_pairs
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
    "panel": None,  # where the finished panel goes; default: <output>/panel
    "shared_trunk": True,  # false: one model an objective, as in the papers
    "method": "full",  # full, upper, lora, heads
    "upper_layers": 3,
    "trunk_layers": None,  # how many of the base's layers to keep, from the bottom; None for all
    "lora": None,
    "pooling": "own",  # "mean" for sentence encoders
    "batch_size": 32,
    "learning_rate": 1e-4,
    "max_length": 256,
    "input_format": "pair",  # "chat" for causal models
    "seed": 0,
    "folds": 5,  # 0: no out-of-fold scores
    "remove_length": False,  # take the length component out of standardized scores
    "grade_on": "test",  # "validation" while settings are being chosen
    "checkpoint_every": 100,
    "data_dir": None,
}


def train_panel(recipe: dict, pairs, epochs, folder: Path, work: Path) -> RewardPanel | None:
    """Train, or load when finished. Other processes than the main one get None."""
    if not (folder / "panel.json").is_file():
        names = recipe["objectives"]
        groups = {"trunk": names} if recipe["shared_trunk"] else {name: [name] for name in names}
        specs = {}
        for source, objectives in groups.items():
            rows = [i for i, p in enumerate(pairs) if p.objective in objectives]
            parts = {
                key: recipe[key]
                for key in ("method", "upper_layers", "trunk_layers", "lora", "pooling")
            }
            parts |= {"base": recipe["model"], "num_labels": len(objectives)}
            model, tokenizer = new_reward_model(**parts, seed=recipe["seed"])
            if not (folder / source).is_dir():
                dataset = tokenize_pairs(
                    tokenizer,
                    [pairs[i] for i in rows],
                    objectives,
                    [epochs[i] for i in rows],
                    recipe["batch_size"],
                    recipe["max_length"],
                    recipe["seed"],
                    recipe["input_format"],
                )
                arguments = training_arguments(
                    work / source,
                    len(dataset),
                    recipe["batch_size"],
                    recipe["learning_rate"],
                    recipe["seed"],
                    checkpoint_every=recipe["checkpoint_every"],
                    disable_tqdm=not sys.stderr.isatty(),
                )
                trainer = BradleyTerryTrainer(
                    cast_for_training(model), tokenizer, arguments, dataset, callbacks=[Progress()]
                )
                print(f"{folder}: {source}, {len(rows)} pairs, {len(dataset)} rows", flush=True)
                train_resuming(trainer)
                if main_process():
                    trained = trainer.accelerator.unwrap_model(trainer.model)
                    save_reward_model(trained, folder / source, parts)
            for k, name in enumerate(objectives):
                specs[name] = RewardModelSpec(
                    name, source, None, recipe["input_format"], k, 1, recipe["max_length"]
                )
        if main_process():
            panel = RewardPanel.build([specs[name] for name in names], folder)
            fit_reference_stats(panel, pairs, remove_length=recipe["remove_length"])
            panel.save_pretrained(folder)
    return RewardPanel.from_pretrained(folder) if main_process() else None


def main(recipe_path: str) -> None:
    recipe = read_recipe(recipe_path, REQUIRED, OPTIONAL)
    output = Path(recipe["output"])
    final = Path(recipe["panel"] or output / "panel")
    sources = data_sources(recipe["data"])
    loaded = [(s, p) for s in sources for p in s.load(recipe["data_dir"] or default_data_dir())]
    training = [(p, s.epochs) for s, p in loaded if p.split in s.splits]
    held_out = [p for s, p in loaded if p.split not in s.splits and not p.tie]
    pairs, epochs = [p for p, _ in training], [e for _, e in training]
    check_pairs(pairs, recipe["objectives"])

    panel = train_panel(recipe, pairs, epochs, final, output / "work" / "final")
    parts = [output / "scores" / "held_out.parquet"]
    if panel:
        score_pairs(panel, held_out, -1, parts[0])
    for fold in range(recipe["folds"]):
        folds = [fold_of(p.prompt or p.chosen, recipe["folds"]) for p in pairs]
        rest = [i for i, f in enumerate(folds) if f != fold]
        fold_panel = train_panel(
            recipe,
            [pairs[i] for i in rest],
            [epochs[i] for i in rest],
            output / "folds" / str(fold),
            output / "work" / f"fold{fold}",
        )
        parts.append(output / "scores" / f"fold{fold}.parquet")
        if fold_panel:
            mine = [p for p, f in zip(pairs, folds, strict=True) if f == fold and not p.tie]
            score_pairs(fold_panel, mine, fold, parts[-1])
    if panel:
        scores = pd.concat([pd.read_parquet(path) for path in parts], ignore_index=True)
        scores.to_parquet(output / "scores.parquet")
        panel.accuracy = grade(scores, panel.objective_names, recipe["grade_on"])
        panel.save_pretrained(final)
        write_panel_card(final, panel, recipe, sources, scores)


if __name__ == "__main__":
    run_script(main, __doc__)
