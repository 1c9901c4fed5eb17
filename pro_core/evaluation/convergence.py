"""MORLHF against PRO-MORLHF with exact expectations: a recipe's result rows.

A row is a run of one arm under one KL weight and learning rate. Its metrics: ``label`` (expected human label) and
``kl`` on the test prompts, ``train_label`` and ``train_kl`` on the training prompts, ``optimum_label`` at the exact
optimum of the arm's own objective; ``steps`` and ``train_steps`` until it reaches MORLHF uniform's final label, missing
where it never does. Three flags say what the run is for: ``own`` is 1 for the arm's own choice, ``tuned`` for its best
learning rate at this KL weight, ``shared`` for MORLHF uniform's choice. ``curves`` hold the steps, ``kl``, and
``label`` of each source.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np

from pro_core.adapter.encoder import FEATURES_VERSION
from pro_core.adapter.recipe import AdapterRecipe
from pro_core.adapter.runs import AdapterRun
from pro_core.data.sources import default_data_dir
from pro_core.evaluation.results import Row, check_own_results, result_row
from pro_core.rewards.panel import saved_key
from pro_core.runs.recipes import Recipe
from pro_core.system.artefacts import WORK, once
from pro_core.system.extras import needs
from pro_core.system.fingerprints import fingerprint
from pro_core.system.settings import Count, Names, Seeds, Several
from pro_core.system.storage import file_hash
from pro_core.theory.convergence import ARMS, UNIFORM, Experiment, Run, draw_parts, steps_to
from pro_core.theory.labelled_worlds import WORLD_VERSION, LabelledWorld, labelled_world

with needs("train"):
    pass


class ConvergenceRecipe(Recipe):
    """What `train/convergence.py` trains and measures."""

    responses: Names
    """files of labelled responses in `data_dir`: TruthfulQA's, XSTest's"""
    data_dir: str | None = None
    """default: PRO_DATA_DIR"""
    adapter: str
    """the recipe of the adapter, fitted with its folds"""
    panel_folds: str
    """the folder of its panel's folds"""
    encoder: str
    """the frozen encoder of prompts and responses"""
    output: str
    """the folder of the scored world"""
    results: str
    figure: str
    """the figure's file"""
    seeds: Seeds
    """each draws its prompts, their order and the shuffles; the adapters' seeds are used in turn"""
    prompt_components: Count
    """components of the prompts' features that the policy reads"""
    response_components: Count
    """the same for responses"""
    steps: Count
    batch_size: Count
    """prompts of each file per step"""
    every: Count
    """steps between two measurements"""
    betas: Several
    """KL weights; each arm takes the best on the validation prompts"""
    learning_rates: Several
    """the same"""


def load_world(recipe: ConvergenceRecipe) -> LabelledWorld:
    """The recipe's world, scored once, and again when its responses, panels, adapters, encoder or code have changed."""
    run = AdapterRun(AdapterRecipe.read(recipe.adapter))
    data = Path(recipe.data_dir or default_data_dir())
    files = [data / name for name in recipe.responses]
    folds = [Path(recipe.panel_folds) / str(fold) for fold in range(run.recipe.folds)]
    numbered = [None, *range(run.recipe.folds)]
    inputs = {
        "code": [WORLD_VERSION, FEATURES_VERSION],
        "responses": [file_hash(file) for file in files],
        "panels": [saved_key(path) for path in (run.recipe.panel, *map(str, folds))],
        "adapters": [run.made(run.chosen, s, fold).key for s in run.seeds for fold in numbered],
        "encoder": fingerprint(recipe.encoder),
    }

    def make(folder: Path) -> None:
        world = labelled_world(files, run, recipe.panel_folds, recipe.encoder, folder / WORK)
        world.save(folder / "world.npz")

    made = once(Path(recipe.output) / "world", "pro-labelled-world", inputs, make)
    return LabelledWorld.load(made.folder / "world.npz")


Chosen = dict[str, list[Run]]
"""Arm -> its best learning rate at every beta, the best beta first."""


def convergence_rows(recipe: ConvergenceRecipe) -> list[Row]:
    """All rows of the recipe, one per seed and run."""
    check_own_results(recipe)
    sizes = recipe.prompt_components, recipe.response_components
    experiment = Experiment(load_world(recipe), *sizes)
    chosen = choose(experiment, recipe)
    return [row for seed in recipe.seeds for row in _rows_of(experiment, recipe, chosen, seed)]


def choose(experiment: Experiment, recipe: ConvergenceRecipe) -> Chosen:
    """Each arm's settings with the best label on the validation prompts, averaged over seeds."""
    grid = itertools.product(ARMS, recipe.betas, recipe.learning_rates)
    runs = [Run(*setting) for setting in grid]
    labels = []
    for seed in recipe.seeds:
        theta = experiment.train(runs, seed, recipe.steps, recipe.batch_size, [recipe.steps])
        validation = draw_parts(experiment.world, seed).validation
        labels.append(experiment.measure(theta[recipe.steps], validation)["label"])
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


def _rows_of(
    experiment: Experiment, recipe: ConvergenceRecipe, chosen: Chosen, seed: int
) -> list[Row]:
    """A row for each run of this seed."""
    started = time.monotonic()
    uniform = chosen[UNIFORM][0]
    shared = [Run(arm, uniform.beta, uniform.learning_rate) for arm in ARMS]
    runs = list(dict.fromkeys([run for arm in ARMS for run in chosen[arm]] + shared))
    at = sorted({*range(0, recipe.steps, recipe.every), recipe.steps})
    paths = experiment.train(runs, seed, recipe.steps, recipe.batch_size, at)
    parts = draw_parts(experiment.world, seed)
    test = [experiment.measure(paths[step], parts.test) for step in at]
    train = [experiment.measure(paths[step], parts.train)["label"] for step in at]
    train_kl = experiment.measure(paths[at[-1]], parts.train)["kl"]
    level = test[-1]["label"][runs.index(uniform)], train[-1][runs.index(uniform)]
    wall = (time.monotonic() - started) / len(runs)

    rows = []
    for c, run in enumerate(runs):
        weights = experiment.weights(seed, run.beta)[run.arm]
        labels = [m["label"][c] for m in test], [values[c] for values in train]
        metrics: dict[str, float] = {
            "own": float(run == chosen[run.arm][0]),
            "shared": float(run in shared),
            "tuned": float(run in chosen[run.arm]),
            **{name: float(values[c]) for name, values in test[-1].items()},
            "train_label": float(train[-1][c]),
            "train_kl": float(train_kl[c]),
            "optimum_label": float(experiment.optimum(weights, run.beta, parts.test)["label"][0]),
        }
        for name, curve, aim in zip(("steps", "train_steps"), labels, level, strict=True):
            if np.isfinite(reached := steps_to(aim, at, curve)):
                metrics[name] = reached
        columns: dict[str, Any] = {
            "setting": {"beta": run.beta, "learning_rate": run.learning_rate},
            "curves": {
                "steps": at,
                "label": {s: [float(m[s][c]) for m in test] for s in experiment.sources},
                "kl": [float(m["kl"][c]) for m in test],
            },
        }
        where = ("convergence", run.arm, seed, "test", len(parts.test))
        rows.append(result_row(*where, metrics, {}, recipe.config, wall, **columns))
    return rows
