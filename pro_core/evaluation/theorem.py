"""Theorem 5.1 on finite candidate sets, and adapters against a planted truth: a recipe's result rows.

What is measured, and what the paper's proof shows of it: :mod:`pro_core.theory.theorem` and
:mod:`pro_core.theory.planted`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pro_core.adapter.encoder import FEATURES_VERSION
from pro_core.data.sources import default_data_dir
from pro_core.evaluation.results import (
    Row,
    check_own_results,
    read_rows,
    replace_rows,
    result_row,
    write_rows,
)
from pro_core.rewards.panel import RewardPanel, saved_key
from pro_core.runs.recipes import Recipe
from pro_core.system.extras import needs
from pro_core.system.fingerprints import fingerprint
from pro_core.system.settings import Count, Positive, Seeds, Settings, Several
from pro_core.system.storage import content_hash, file_hash
from pro_core.theory.planted import PLANTED_METHODS, compare_targets
from pro_core.theory.theorem import (
    FIXED,
    WORLD_VERSION,
    PlantedWeights,
    World,
    adapter_name,
    load_world,
    measure_adapters,
    measure_fixed,
    real_world,
    save_world,
    synthetic_world,
)

with needs("train"):
    from pydantic import Field

FITTING = ("preference_temperature", "steps", "batch_size", "learning_rate")
DECIDING = ("responses", "panel", "encoder", "components", "base", *FITTING)
"""The settings that all rows depend on; the swept ones are columns of the rows."""
SYNTHETIC = "theorem_synthetic"
Measure = Callable[[list[int]], Sequence[dict[str, dict[str, float]]]]
"""Seeds -> for each of them, method -> metrics with ``n``."""


class LearnedFrom(Settings):
    """What an adapter learns from, see :func:`pro_core.theory.linear_adapters.fit_adapters`."""

    target: str
    temperature: Positive


class OtherFitting(Settings):
    """Settings of the synthetic world's adapters that differ from the real world's."""

    preference_temperature: Positive | None = None
    steps: Count | None = None
    batch_size: Count | None = None
    learning_rate: Positive | None = None


class WorldRecipe(Recipe):
    """A recipe of exact measurements on real prompts, responses and rewards."""

    responses: str
    """a file of labelled responses in `data_dir`; their prompts are the real world"""
    data_dir: str | None = None
    """default: PRO_DATA_DIR"""
    panel: str
    """its scores are the real rewards"""
    encoder: str
    """the frozen encoder of prompts"""
    output: str
    """the folder of the scored world"""

    @property
    def file(self) -> Path:
        """The file of labelled responses."""
        return Path(self.data_dir or default_data_dir()) / self.responses

    def version_of(self, settings: Any, *code: int) -> str:
        """Eight characters for what all rows depend on: settings, responses, panel, encoder and code."""
        models = saved_key(self.panel), fingerprint(self.encoder)
        versions = WORLD_VERSION, FEATURES_VERSION, *code
        return content_hash([settings, file_hash(self.file), models, versions])[:8]

    def world(self, version: str) -> World:
        """The real world, scored once and kept in `output`."""
        saved = Path(self.output) / f"world-{version}.npz"
        if not saved.is_file():
            panel = RewardPanel.from_pretrained(self.panel)
            save_world(real_world(self.file, panel, self.encoder), saved)
        return load_world(saved)


class TheoremRecipe(WorldRecipe):
    """What `train/theorem.py` measures."""

    results: str
    """the file of rows; finished settings are not measured again"""
    figure: str
    """the figure's file"""
    seeds: Seeds
    """each draws its own w*, pairs, random weights and start"""
    betas: Several
    """KL weights, all for fixed weights; adapters take the first"""
    spreads: Several
    """for fixed weights: the diversity of w*, as deviation of its logits"""
    spread: Positive
    """the same, for adapters"""
    sizes: Annotated[list[Count], Field(min_length=1)]
    """training pairs of adapters"""
    targets: Annotated[list[LearnedFrom], Field(min_length=1)]
    components: Count
    """components of the prompts' features that w* depends on"""
    base: Annotated[float, Field(ge=0)]
    """deviation of w*'s base logits: what uniform weights miss at any diversity"""
    preference_temperature: Positive
    """of the people who label the pairs"""
    steps: Count
    batch_size: Count
    learning_rate: Positive
    synthetic: OtherFitting = OtherFitting()

    def version(self) -> str:
        """Eight characters for what all rows depend on."""
        return self.version_of(self.decides(*DECIDING))


class KeptRows:
    """The rows of one recipe in its results file. No row is measured twice; rows of another version are dropped."""

    def __init__(self, path: str, config: str, version: str, seeds: list[int]):
        self.path, self.config, self.version, self.seeds = path, config, version, seeds
        rows = read_rows(path)
        kept = [r for r in rows if r["config"] != config or r["version"] == version]
        if len(kept) < len(rows):
            print(
                f"{path}: dropped {len(rows) - len(kept)} rows of other settings or another panel"
            )
            replace_rows(path, kept)

    def rows(self) -> list[Row]:
        return [r for r in read_rows(self.path) if r["config"] == self.config]

    def record(
        self, experiment: str, setting: dict[str, Any], methods: Sequence[str], measure: Measure
    ) -> None:
        """Measure one setting for the seeds that lack one of its methods."""
        done = {
            (r["method"], r["seed"])
            for r in self.rows()
            if (r["experiment"], r["setting"]) == (experiment, setting)
        }
        seeds = [s for s in self.seeds if any((method, s) not in done for method in methods)]
        if not seeds:
            return
        started = time.monotonic()
        reports = measure(seeds)
        wall = (time.monotonic() - started) / len(seeds)
        columns: dict[str, Any] = {"version": self.version, "setting": setting}
        rows = []
        for seed, report in zip(seeds, reports, strict=True):
            for method, metrics in report.items():
                where = (experiment, method, seed, "test", int(metrics.pop("n")))
                rows.append(result_row(*where, metrics, {}, self.config, wall, **columns))
        write_rows(self.path, rows)
        shown = " ".join(f"{name}={value:g}" for name, value in setting.items())
        print(f"{experiment} {shown}: {', '.join(methods)}; {wall:.2f} s per seed", flush=True)


def theorem_rows(recipe: TheoremRecipe) -> list[Row]:
    """Measure what is not in the recipe's results file yet, write it there, and return all of the recipe's rows."""
    check_own_results(recipe)
    version = recipe.version()
    results = KeptRows(recipe.results, recipe.config, version, recipe.seeds)
    fitting = recipe.decides(*FITTING)

    @cache
    def world(experiment: str) -> World:
        return (
            synthetic_world(max(recipe.sizes)) if experiment == SYNTHETIC else recipe.world(version)
        )

    @cache
    def plant(experiment: str, seed: int) -> PlantedWeights:
        return PlantedWeights.draw(world(experiment), seed, recipe.components, recipe.base)

    for name in ("theorem", SYNTHETIC):
        for beta, spread in itertools.product(recipe.betas, recipe.spreads):

            def fixed(seeds, name=name, spread=spread, beta=beta):
                return [measure_fixed(world(name), plant(name, s), spread, beta, s) for s in seeds]

            results.record(name, {"spread": spread, "beta": beta}, FIXED, fixed)

        spread, beta = recipe.spread, recipe.betas[0]
        others = recipe.synthetic.model_dump(exclude_none=True) if name == SYNTHETIC else {}
        for n, entry in itertools.product(recipe.sizes, recipe.targets):
            learned = entry.model_dump()
            method = adapter_name(**learned)

            def adapters(
                seeds, name=name, spread=spread, beta=beta, n=n, how=others | learned, method=method
            ):
                plants = [plant(name, s) for s in seeds]
                settings = fitting | how
                measured = measure_adapters(world(name), plants, spread, beta, n, seeds, **settings)
                return [{method: metrics} for metrics in measured]

            setting = {"spread": spread, "beta": beta, "examples": n, **others}
            results.record(name, setting, [method], adapters)

    def planted(seeds):
        return [compare_targets(seed, recipe.encoder) for seed in seeds]

    results.record("theorem_planted", {}, PLANTED_METHODS, planted)
    return results.rows()
