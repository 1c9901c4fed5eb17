"""MORLHF against PRO-MORLHF with exact expectations: rows, a figure, a table.

    python train/convergence.py recipes/convergence.yaml

What is trained and measured: pro_core/theory/convergence.py; on what: labelled_worlds.py. Every arm takes the KL
weight and the learning rate that are best for it on the validation prompts, of the same grid; and is trained again
under MORLHF uniform's choice, where steps can be compared. The scored world is a file, made once.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np

from pro_core.adapter.encoder import FEATURES_VERSION
from pro_core.adapter.runs import AdapterRun
from pro_core.data.sources import default_data_dir
from pro_core.evaluation.results import read_rows, result_row
from pro_core.reporting.theory_figures import convergence_figure
from pro_core.reporting.theory_tables import convergence_table
from pro_core.rewards.panel import saved_key
from pro_core.runs.training import read_recipe, run_script
from pro_core.system.artefacts import WORK, once
from pro_core.system.fingerprints import fingerprint
from pro_core.system.storage import file_hash, write_jsonl
from pro_core.theory.convergence import (
    ARMS,
    UNIFORM,
    Experiment,
    LabelledWorld,
    Run,
    draw_parts,
    steps_to,
)
from pro_core.theory.labelled_worlds import WORLD_VERSION, labelled_world

WORLD = ("responses", "adapter", "panel_folds", "encoder")
REQUIRED = (
    *(*WORLD, "output", "results", "figure", "seeds", "prompt_components", "response_components"),
    *("steps", "batch_size", "every", "betas", "learning_rates"),
)


def load_world(recipe: dict[str, Any]) -> LabelledWorld:
    """The recipe's world, scored the first time; again when its settings, responses, panels, adapters or encoder have
    changed."""
    run = AdapterRun(recipe["adapter"])
    data = Path(recipe["data_dir"] or default_data_dir())
    files = [data / name for name in recipe["responses"]]
    folds = [Path(recipe["panel_folds"]) / str(fold) for fold in range(run.recipe["folds"])]
    numbered = [None, *range(run.recipe["folds"])]
    inputs = {
        "code": [WORLD_VERSION, FEATURES_VERSION],
        "responses": [file_hash(file) for file in files],
        "panels": [saved_key(path) for path in (run.recipe["panel"], *folds)],
        "adapters": [run.made(run.chosen, s, fold).key for s in run.seeds for fold in numbered],
        "encoder": fingerprint(recipe["encoder"]),
    }

    def make(folder: Path) -> None:
        world = labelled_world(files, run, recipe["panel_folds"], recipe["encoder"], folder / WORK)
        world.save(folder / "world.npz")

    made = once(Path(recipe["output"]) / "world", "pro-labelled-world", inputs, make)
    return LabelledWorld.load(made.folder / "world.npz")


def choose(experiment: Experiment, recipe: dict[str, Any]) -> dict[str, list[Run]]:
    """For each arm its best learning rate at every beta, the best beta first: by the validation prompts' labels."""
    grid = itertools.product(ARMS, recipe["betas"], recipe["learning_rates"])
    runs = [Run(*setting) for setting in grid]
    labels = []
    for seed in recipe["seeds"]:
        theta = experiment.train(
            runs, seed, recipe["steps"], recipe["batch_size"], [recipe["steps"]]
        )
        validation = draw_parts(experiment.world, seed).validation
        labels.append(experiment.measure(theta[recipe["steps"]], validation)["label"])
    mean = dict(zip(runs, np.mean(labels, axis=0), strict=True))
    ranked = sorted(runs, key=lambda run: -mean[run])
    chosen: dict[str, dict[float, Run]] = {arm: {} for arm in ARMS}
    for run in ranked:
        chosen[run.arm].setdefault(run.beta, run)
    for arm, best in chosen.items():
        first = next(iter(best.values()))
        print(
            f"{arm}: beta {first.beta}, learning rate {first.learning_rate}: {mean[first]:.4f} on validation",
            flush=True,
        )
    return {arm: list(best.values()) for arm, best in chosen.items()}


def rows_of(experiment: Experiment, recipe: dict[str, Any], chosen, seed: int, config: str):
    """One row a run of this seed: ``own`` is 1 for the arm's own choice, ``tuned`` for its best learning rate at this
    beta, ``shared`` for MORLHF uniform's choice."""
    started = time.monotonic()
    rival = chosen[UNIFORM][0]
    shared = [Run(arm, rival.beta, rival.learning_rate) for arm in ARMS]
    runs = list(dict.fromkeys([run for arm in ARMS for run in chosen[arm]] + shared))
    at = sorted({*range(0, recipe["steps"], recipe["every"]), recipe["steps"]})
    paths = experiment.train(runs, seed, recipe["steps"], recipe["batch_size"], at)
    parts = draw_parts(experiment.world, seed)
    test = [experiment.measure(paths[step], parts.test) for step in at]
    train = [experiment.measure(paths[step], parts.train)["label"] for step in at]
    train_kl = experiment.measure(paths[at[-1]], parts.train)["kl"]
    level = test[-1]["label"][runs.index(rival)], train[-1][runs.index(rival)]
    wall = (time.monotonic() - started) / len(runs)

    rows = []
    for c, run in enumerate(runs):
        weights = experiment.weights(seed, run.beta)[run.arm]
        curves = [m["label"][c] for m in test], [values[c] for values in train]
        metrics: dict[str, float] = {
            "beta": run.beta,
            "learning_rate": run.learning_rate,
            "own": float(run == chosen[run.arm][0]),
            "shared": float(run in shared),
            "tuned": float(run in chosen[run.arm]),
            **{name: float(values[c]) for name, values in test[-1].items()},
            "train_label": float(train[-1][c]),
            "train_kl": float(train_kl[c]),
            "optimum_label": float(experiment.optimum(weights, run.beta, parts.test)["label"][0]),
        }
        for name, curve, aim in zip(("steps", "train_steps"), curves, level, strict=True):
            if np.isfinite(reached := steps_to(aim, at, curve)):
                metrics[name] = reached
        for step, m in zip(at, test, strict=True):
            metrics |= {f"{name}@{step}": float(m[name][c]) for name in (*experiment.sources, "kl")}
        setting = f"{config}: beta={run.beta:g} learning_rate={run.learning_rate:g}"
        rows.append(
            result_row(
                "convergence", run.arm, seed, "test", len(parts.test), metrics, {}, setting, wall
            )
        )
    return rows


def main(recipe_path: str) -> None:
    recipe = read_recipe(recipe_path, REQUIRED, {"data_dir": None})
    name, path = Path(recipe_path).name, Path(recipe["results"])
    sizes = recipe["prompt_components"], recipe["response_components"]
    experiment = Experiment(load_world(recipe), *sizes)
    chosen = choose(experiment, recipe)
    rows = [
        row for seed in recipe["seeds"] for row in rows_of(experiment, recipe, chosen, seed, name)
    ]
    others = [row for row in read_rows(path) if not row["config"].startswith(f"{name}:")]
    write_jsonl(path, others + rows)
    convergence_figure(rows, recipe["figure"])
    print(f"\n{convergence_table(rows)}")


if __name__ == "__main__":
    run_script(main, __doc__)
