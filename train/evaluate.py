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
from pathlib import Path

from pro_core.adapter.recipe import AdapterRecipe
from pro_core.adapter.runs import AdapterRun
from pro_core.data.schema import DataError
from pro_core.evaluation.adapter_grades import (
    all_targets,
    example_weights,
    held_out,
    unseen_sources,
    xstest,
)
from pro_core.evaluation.classifiers import classifier_rows
from pro_core.evaluation.policy.levels import level_rows
from pro_core.evaluation.policy.rows import policy_rows
from pro_core.evaluation.policy.run import PolicyRun
from pro_core.evaluation.results import Row, read_rows, write_rows
from pro_core.evaluation.reward_models import length_rows, panel_rows
from pro_core.reporting.policy_figures import draw_figures
from pro_core.reporting.tables import TABLES, fill_tables
from pro_core.rewards.classifier_runs import ClassifierRun
from pro_core.rewards.panel_runs import PanelRun
from pro_core.rewards.recipes import ClassifierRecipe, PanelRecipe
from pro_core.runs.training import ConfigError
from pro_core.system.storage import StorageError

ROOT = Path(__file__).parent.parent


def reward_models(recipe_path: str, split: str) -> list[Row]:
    """A panel and the two baselines on the same pairs."""
    return panel_rows(PanelRun(PanelRecipe.read(recipe_path)), split)


def judges(recipe_path: str, split: str) -> list[Row]:
    """The same rows for a judge."""
    return panel_rows(PanelRun(PanelRecipe.read(recipe_path)), split, "judges")


def length(recipe_path: str, split: str) -> list[Row]:
    """A panel with the length component of its scores kept and removed."""
    return length_rows(PanelRun(PanelRecipe.read(recipe_path)), split)


def adapters(recipe_path: str, split: str) -> list[Row]:
    """Rows of an adapter's recipe: chosen target beside its controls, all targets, unseen sources, XSTest."""
    run = AdapterRun(AdapterRecipe.read(recipe_path))
    rows = held_out(run, split) + all_targets(run, split)
    return rows + unseen_sources(run, split) + xstest(run)


def classifiers(recipe_path: str, split: str) -> list[Row]:
    """Rows of every classifier of a recipe and of the majority class."""
    run = ClassifierRun(ClassifierRecipe.read(recipe_path))
    graded = [
        classifier_rows(run.made(loss, seed, folder).folder, seed, split, run.config)
        for loss, seed, folder in run.arms()
    ]
    return [own for own, _ in graded] + [graded[0][1]]  # the baseline is the same for all


def policies(recipe_path: str, split: str) -> list[Row]:
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
        "--figures", type=Path, default=ROOT / "docs" / "figures", help="where policies' are drawn"
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
        for document in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
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
