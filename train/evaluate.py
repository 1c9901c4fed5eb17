"""Grade reward models, adapters and policies on held-out data; print tables and keep the rows in `results/`.

python train/evaluate.py reward_models recipes/demo_panel.yaml recipes/full_panel.yaml
python train/evaluate.py judges recipes/judge.yaml recipes/heldout_panel.yaml
python train/evaluate.py length recipes/demo_panel.yaml       # what the finished panel's scores owe to length
python train/evaluate.py adapter recipes/demo_adapter.yaml
python train/evaluate.py classifier recipes/small_classifier.yaml
python train/evaluate.py policies recipes/wic_evaluation.yaml    # what train/wic.py trained; killed, it goes on
python train/evaluate.py levels recipes/moslim_evaluation.yaml   # the same of train/moslim.py: levels asked and given
python train/evaluate.py readme          # tables and figures of policies again, from results/ alone
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import pandas as pd
from classifier import classifiers
from reward_models import OPTIONAL as PANEL_OPTIONAL
from reward_models import REQUIRED as PANEL_REQUIRED

from pro_core.adapter_runs import AdapterRun
from pro_core.data import DataError
from pro_core.data_sources import data_sources, default_data_dir
from pro_core.evaluation.adapter_grades import (
    all_targets,
    example_weights,
    held_out,
    unseen_sources,
    xstest,
)
from pro_core.evaluation.levels import level_rows
from pro_core.evaluation.policy_figures import draw_figures
from pro_core.evaluation.policy_reports import policy_rows
from pro_core.evaluation.policy_runs import PolicyRun
from pro_core.evaluation.report import panel_row, read_rows, write_rows
from pro_core.evaluation.reward_models import beside_baselines, length_removed
from pro_core.evaluation.tables import TABLES, fill_tables
from pro_core.rewards.panel import RewardPanel
from pro_core.storage import StorageError
from pro_core.training import ConfigError, read_recipe
from pro_core.training_pairs import TrainingPairs, gather_pairs, graded_pairs

ROOT = Path(__file__).parent.parent


def reward_models(recipe_path: str, split: str, experiment: str = "reward_models") -> list[dict]:
    """Rows for one panel's recipe, and for the two baselines on the same pairs."""
    recipe = read_recipe(recipe_path, PANEL_REQUIRED, PANEL_OPTIONAL)
    started, config = time.monotonic(), Path(recipe_path).name
    table = Path(recipe["output"]) / "scores.parquet"
    if not table.is_file():
        raise ConfigError(f"{table} is not there: run train/reward_models.py with {config} first")
    data = pairs_of(recipe)
    panel = f"panel ({recipe['method']})"
    scores = pd.read_parquet(table)
    measured = beside_baselines(panel, scores, data, split, recipe["objectives"])
    if not measured:
        raise ConfigError(f"{config}: no {split} pairs to grade on; {' '.join(data.notes)}")
    wall = time.monotonic() - started
    return [
        panel_row(experiment, method, recipe["seed"], split, report, config, wall)
        for method, report in measured.items()
    ]


def pairs_of(recipe: dict) -> TrainingPairs:
    """A panel's recipe's pairs; says what of them is not graded."""
    data_dir = recipe["data_dir"] or default_data_dir()
    data = gather_pairs(data_sources(recipe["data"]), recipe["objectives"], data_dir)
    for note in data.notes:
        print(note, file=sys.stderr)
    return data


def judges(recipe_path: str, split: str) -> list[dict]:
    """The same rows for a judge."""
    return reward_models(recipe_path, split, "judges")


def length(recipe_path: str, split: str) -> list[dict]:
    """Rows for a finished panel with the length component of its scores kept and removed."""
    recipe = read_recipe(recipe_path, PANEL_REQUIRED, PANEL_OPTIONAL)
    started, config = time.monotonic(), Path(recipe_path).name
    panel = RewardPanel.from_pretrained(recipe["panel"] or Path(recipe["output"]) / "panel")
    data = pairs_of(recipe)
    test = graded_pairs(data.held_out, split)
    if not test:
        raise ConfigError(f"{config}: no {split} pairs to grade on; {' '.join(data.notes)}")
    measured = length_removed(panel, data.training, test)
    wall = time.monotonic() - started
    return [
        panel_row("length", f"panel, {how}", recipe["seed"], split, report, config, wall)
        for how, report in measured.items()
    ]


def adapters(recipe_path: str, split: str) -> list[dict]:
    """Rows of an adapter's recipe: chosen target beside its controls, all targets, unseen sources, XSTest."""
    run = AdapterRun(recipe_path)
    rows = held_out(run, split) + all_targets(run, split)
    return rows + unseen_sources(run, split) + xstest(run)


def policies(recipe_path: str, split: str) -> list[dict]:
    """Rows of a recipe of policies: fronts, judges, controllability."""
    return policy_rows(PolicyRun(recipe_path, split))


GRADERS = {
    "reward_models": reward_models,
    "judges": judges,
    "length": length,
    "adapter": adapters,
    "weights": example_weights,
    "policies": policies,
    "levels": level_rows,
    "classifier": classifiers,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=(*GRADERS, "readme"))
    parser.add_argument("recipes", nargs="*")
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument(
        "--figures", type=Path, default=ROOT / "docs", help="where policies' are drawn"
    )
    arguments = parser.parse_args()
    for recipe in arguments.recipes:
        try:
            rows = GRADERS[arguments.what](recipe, arguments.split)
        except (ConfigError, DataError, StorageError) as error:
            sys.exit(f"{type(error).__name__}: {error}")
        file = arguments.results / f"{arguments.what}.jsonl"
        write_rows(file, rows, whole=arguments.what in ("policies", "levels"))
    if arguments.what == "readme":
        for document in (ROOT / "README.md", ROOT / "results" / "README.md"):
            fill_tables(document, arguments.results)
    for name in ("policies", "levels"):
        if arguments.what in ("readme", name):
            draw_figures(read_rows(arguments.results / f"{name}.jsonl"), arguments.figures)
    for name, (file, table) in TABLES.items():
        rows = read_rows(arguments.results / file)
        if rows and arguments.what in ("readme", file.removesuffix(".jsonl")):
            print(f"\n{name}\n{table(rows)}")


if __name__ == "__main__":
    main()
