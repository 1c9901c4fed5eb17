"""Fit the preference adapter on out-of-fold panel scores (Eq 6-8), for several targets and seeds.

    python train/adapter.py recipes/demo_adapter.yaml

Every target is fitted with every seed and graded on the validation pairs; the one with the best accuracy, averaged
over objectives and seeds, becomes the adapter (its first seed). For the prompts that trained the panel, weights come
from adapters that never saw them (folds). Finished parts are files and are not done again.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pro_core.adapter import PreferenceAdapter
from pro_core.adapter_training import encode_prompts, fit_adapter
from pro_core.evaluation.adapters import best_global_weights, compare, control_weights
from pro_core.evaluation.cards import write_adapter_card
from pro_core.rewards.panel import RewardPanel
from pro_core.training import ConfigError, main_process, read_recipe, run_script
from pro_core.weights import entropy

REQUIRED = ("scores", "panel", "output", "targets")
OPTIONAL = {
    "adapter": None,  # where the chosen adapter goes; default: <output>/adapter
    "encoder": "FacebookAI/xlm-roberta-base",  # the paper's
    "train_encoder": True,
    "hidden": 128,
    "max_length": 256,
    "epochs": 3,
    "batch_size": 32,
    "learning_rate": 1e-5,
    "seeds": [0, 1, 2, 3, 4],
    "layers": 1,  # how many of the encoder's upper layers the heads read
    "members": 5,  # heads on the one encoder; their spread is the weights' uncertainty
    "load_balance": 0.0,
    "folds": 5,
    "validation": None,  # a copy of the validation figures, such as results/adapter_validation.csv
}


def name_of(target: dict) -> str:
    """``pairwise-t1``: a target with its settings, fit for a folder and a table."""
    rest = [f"-{k}{v}" for k, v in target.items() if k not in ("target", "temperature")]
    return f"{target['target']}-t{target['temperature']:g}" + "".join(rest)


def fit_or_load(folder: Path, table, names, target, seed, **settings):
    """The adapter in ``folder``, fitted when it is not there yet."""
    if not (folder / "adapter.json").is_file():
        # A target may have settings of its own, such as its load_balance.
        adapter = fit_adapter(table, names, folder / "work", seed=seed, **(settings | target))
        if main_process():
            adapter.save_pretrained(folder)
            shutil.rmtree(folder / "work", ignore_errors=True)
    return PreferenceAdapter.from_pretrained(folder)


def predict(adapter, table: pd.DataFrame) -> np.ndarray:
    """Weights (N, K) for the rows of a table; each prompt is read once."""
    prompts, index = np.unique(table["prompt"].to_numpy(str), return_inverse=True)
    return adapter.predict([json.loads(p) for p in prompts])[index]


def main(recipe_path: str) -> None:
    recipe = read_recipe(recipe_path, REQUIRED, OPTIONAL)
    names = RewardPanel.from_pretrained(recipe["panel"]).objective_names
    output = Path(recipe["output"])
    scores = pd.read_parquet(recipe["scores"])
    scores = scores[scores.prompt != "[]"].reset_index(
        drop=True
    )  # texts without a prompt teach no weights
    train = scores[scores.fold >= 0]
    validation = scores[(scores.fold < 0) & (scores.split == "validation") & ~scores.constructed]
    if train.empty:
        raise ConfigError(
            f"{recipe['scores']} has no out-of-fold scores: train the panel with folds"
        )
    keys = (
        "encoder",
        "train_encoder",
        "hidden",
        "max_length",
        "epochs",
        "batch_size",
        "learning_rate",
        "layers",
        "members",
        "load_balance",
    )
    settings: dict[str, Any] = {key: recipe[key] for key in keys}
    settings["global_weights"] = best = best_global_weights(train, names)
    if not recipe["train_encoder"]:
        frozen = PreferenceAdapter(
            recipe["encoder"],
            names,
            recipe["hidden"],
            recipe["max_length"],
            layers=recipe["layers"],
        )
        settings["features"] = encode_prompts(frozen, list(train.prompt))

    table = []
    for target in recipe["targets"]:
        for seed in recipe["seeds"]:
            folder = output / name_of(target) / f"seed{seed}"
            adapter = fit_or_load(folder, train, names, target, seed, **settings)
            weights = predict(adapter, validation)
            controls = control_weights(train, validation, weights, names, seed, best)
            report = compare(validation, controls, names)
            row = {"target": name_of(target), "seed": seed}
            row |= {method: r["accuracy"] for method, r in report.items()}
            row["entropy_of_targets"] = adapter.training_record["entropy_of_targets"]
            row["entropy_of_weights"] = float(entropy(weights).mean())
            table.append(row)
            if main_process():
                print(
                    {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()},
                    flush=True,
                )
    if not main_process():
        return
    summary = pd.DataFrame(table)
    for path in filter(None, (output / "validation.csv", recipe["validation"])):
        summary.round(4).to_csv(path, index=False)
    means = summary.groupby("target")["adapter"].mean().sort_values(ascending=False)
    print(f"\nvalidation accuracy, mean over seeds:\n{means.round(4).to_string()}")
    chosen = next(t for t in recipe["targets"] if name_of(t) == means.index[0])
    (output / "chosen.json").write_text(json.dumps(chosen))

    final = Path(recipe["adapter"] or output / "adapter")
    first = output / name_of(chosen) / f"seed{recipe['seeds'][0]}"
    shutil.copytree(first, final, dirs_exist_ok=True)
    for seed in recipe["seeds"]:
        for fold in range(recipe["folds"]):
            folder = output / "folds" / f"seed{seed}" / str(fold)
            rest = train[train.fold != fold]
            fit_or_load(folder, rest, names, chosen, seed, **settings)
    write_adapter_card(final, recipe, name_of(chosen), names, summary, train)
    print(f"\nchosen: {name_of(chosen)}; saved in {final}")


if __name__ == "__main__":
    run_script(main, __doc__)
