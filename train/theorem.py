"""Measure Theorem 5.1 on finite candidate sets, and adapters against a planted truth: rows, a figure, tables.

    python train/theorem.py recipes/theorem.yaml

What is measured, and what the paper's proof shows of it: pro_core/theory/theorem.py and planted.py. Rows of a
finished seed and setting are kept and not done again, unless a setting that they depend on, or the panel, has changed.
"""

from __future__ import annotations

import itertools
import time
from functools import cache
from pathlib import Path
from typing import Any

from pro_core.adapter.encoder import FEATURES_VERSION
from pro_core.data.sources import default_data_dir
from pro_core.evaluation.results import read_rows, result_row, write_rows
from pro_core.reporting.theory_figures import theorem_figure
from pro_core.reporting.theory_tables import planted_table, theorem_table
from pro_core.rewards.panel import RewardPanel, saved_key
from pro_core.runs.training import read_recipe, run_script
from pro_core.system.fingerprints import fingerprint
from pro_core.system.storage import content_hash, file_hash, write_jsonl
from pro_core.theory.planted import PLANTED_METHODS, compare_targets
from pro_core.theory.theorem import (
    FIXED,
    WORLD_VERSION,
    PlantedWeights,
    adapter_name,
    load_world,
    measure_adapters,
    measure_fixed,
    real_world,
    save_world,
    synthetic_world,
)

SWEPT = (
    "seeds",
    "betas",
    "spreads",
    "spread",
    "sizes",
    "targets",
    "synthetic",
)  # they stand in the rows
PLACES = ("output", "results", "figure")
FITTING = ("preference_temperature", "steps", "batch_size", "learning_rate")
SETTINGS = ("responses", "panel", "encoder", "components", "base", *FITTING)


def digest(recipe: dict[str, Any], responses: Path) -> str:
    """Eight characters for what all rows depend on: settings, responses, panel, encoder and code."""
    models = saved_key(recipe["panel"]), fingerprint(recipe["encoder"])
    code = WORLD_VERSION, FEATURES_VERSION
    settings = {key: recipe[key] for key in SETTINGS}
    return content_hash([settings, file_hash(responses), models, code])[:8]


class Results:
    """The rows of one recipe: none is measured twice, and those of an older version of it are dropped."""

    def __init__(self, path: str, recipe: str, version: str, seeds: list[int]):
        self.path, self.recipe, self.config, self.seeds = path, recipe, f"{recipe} {version}", seeds
        rows = read_rows(path)
        kept = [r for r in rows if r["config"].startswith(self.config) or not self._mine(r)]
        if len(kept) < len(rows):
            print(
                f"{path}: dropped {len(rows) - len(kept)} rows of other settings or another panel"
            )
            write_jsonl(path, kept)

    def _mine(self, row: dict[str, Any]) -> bool:
        return row["config"].startswith(f"{self.recipe} ")

    def rows(self) -> list[dict[str, Any]]:
        return [r for r in read_rows(self.path) if self._mine(r)]

    def record(self, experiment: str, setting: dict[str, Any], methods, measure) -> None:
        """Rows of one setting. ``measure``: seeds -> for each of them, method -> metrics with ``n``."""
        config = " ".join([f"{self.config}:", *(f"{k}={v}" for k, v in setting.items())])
        done = {(r["experiment"], r["config"], r["method"], r["seed"]) for r in self.rows()}
        seeds = [
            s for s in self.seeds if any((experiment, config, m, s) not in done for m in methods)
        ]
        if not seeds:
            return
        started = time.monotonic()
        reports = measure(seeds)
        wall = (time.monotonic() - started) / len(seeds)
        rows = []
        for seed, report in zip(seeds, reports, strict=True):
            for method, metrics in report.items():
                n = int(metrics.pop("n"))
                metrics = setting | metrics
                rows.append(
                    result_row(experiment, method, seed, "test", n, metrics, {}, config, wall)
                )
        write_rows(self.path, rows)
        print(f"{experiment} {config}: {', '.join(methods)}; {wall:.2f} s a seed", flush=True)


def main(recipe_path: str) -> None:
    recipe = read_recipe(recipe_path, (*SWEPT, *PLACES, *SETTINGS), {"data_dir": None})
    responses = Path(recipe["data_dir"] or default_data_dir()) / recipe["responses"]
    version = digest(recipe, responses)
    results = Results(recipe["results"], Path(recipe_path).name, version, recipe["seeds"])
    fitting = {key: recipe[key] for key in FITTING}

    @cache
    def world(experiment: str):
        if experiment == "theorem_synthetic":
            return synthetic_world(max(recipe["sizes"]))
        saved = Path(recipe["output"]) / f"world-{version}.npz"
        if not saved.is_file():
            panel = RewardPanel.from_pretrained(recipe["panel"])
            save_world(real_world(responses, panel, recipe["encoder"]), saved)
        return load_world(saved)

    @cache
    def plant(experiment: str, seed: int) -> PlantedWeights:
        return PlantedWeights.draw(world(experiment), seed, recipe["components"], recipe["base"])

    for name in ("theorem", "theorem_synthetic"):
        for beta, spread in itertools.product(recipe["betas"], recipe["spreads"]):

            def fixed(seeds, name=name, spread=spread, beta=beta):
                return [measure_fixed(world(name), plant(name, s), spread, beta, s) for s in seeds]

            results.record(name, {"spread": spread, "beta": beta}, FIXED, fixed)

        spread, beta = recipe["spread"], recipe["betas"][0]
        own = recipe["synthetic"] if name == "theorem_synthetic" else {}
        for n, entry in itertools.product(recipe["sizes"], recipe["targets"]):
            method = adapter_name(**entry)

            def adapters(
                seeds, name=name, spread=spread, beta=beta, n=n, entry=entry, method=method, own=own
            ):
                plants = [plant(name, s) for s in seeds]
                here, settings = world(name), fitting | own | entry
                found = measure_adapters(here, plants, spread, beta, n, seeds, **settings)
                return [{method: metrics} for metrics in found]

            setting = {"spread": spread, "beta": beta, "examples": n, **own}
            results.record(name, setting, [method], adapters)

    def planted(seeds):
        return [compare_targets(seed, recipe["encoder"]) for seed in seeds]

    results.record("theorem_planted", {}, PLANTED_METHODS, planted)
    theorem_figure(results.rows(), recipe["figure"])
    print(f"\n{theorem_table(results.rows())}\n\n{planted_table(results.rows())}")


if __name__ == "__main__":
    run_script(main, __doc__)
