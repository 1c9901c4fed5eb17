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

from pro_core.adapter.runs import AdapterRun
from pro_core.data.schema import DataError
from pro_core.data.training_pairs import TrainingPairs, graded_pairs
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
from pro_core.evaluation.results import panel_row, read_rows, write_rows
from pro_core.reporting.policy_figures import draw_figures
from pro_core.reporting.tables import TABLES, fill_tables
from pro_core.rewards.baselines import beside_baselines
from pro_core.rewards.classifier_runs import ClassifierRun
from pro_core.rewards.length import length_removed
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.panel_runs import PanelRun
from pro_core.runs.training import ConfigError
from pro_core.system.storage import StorageError

ROOT = Path(__file__).parent.parent


def reward_models(recipe_path: str, split: str, experiment: str = "reward_models") -> list[dict]:
    """Rows for one panel's recipe, and for the two baselines on the same pairs."""
    started, run = time.monotonic(), PanelRun(recipe_path)
    scores, data = run.table(), said_pairs(run)
    panel = f"panel ({run.recipe['method']})"
    measured = beside_baselines(panel, scores, data, split, run.objective_names)
    if not measured:
        raise ConfigError(f"{run.config}: no {split} pairs to grade on; {' '.join(data.notes)}")
    wall = time.monotonic() - started
    return [
        panel_row(experiment, method, run.recipe["seed"], split, report, run.config, wall)
        for method, report in measured.items()
    ]


def said_pairs(run: PanelRun) -> TrainingPairs:
    """A panel's pairs; says what of them is not graded."""
    for note in run.data.notes:
        print(note, file=sys.stderr)
    return run.data


def judges(recipe_path: str, split: str) -> list[dict]:
    """The same rows for a judge."""
    return reward_models(recipe_path, split, "judges")


def length(recipe_path: str, split: str) -> list[dict]:
    """Rows for a finished panel with the length component of its scores kept and removed."""
    started, run = time.monotonic(), PanelRun(recipe_path)
    run.table()  # says when the panel is not this recipe's
    panel, data = RewardPanel.from_pretrained(run.final), said_pairs(run)
    test = graded_pairs(data.held_out, split)
    if not test:
        raise ConfigError(f"{run.config}: no {split} pairs to grade on; {' '.join(data.notes)}")
    measured = length_removed(panel, data.training, test)
    wall = time.monotonic() - started
    return [
        panel_row("length", f"panel, {how}", run.recipe["seed"], split, report, run.config, wall)
        for how, report in measured.items()
    ]


def adapters(recipe_path: str, split: str) -> list[dict]:
    """Rows of an adapter's recipe: chosen target beside its controls, all targets, unseen sources, XSTest."""
    run = AdapterRun(recipe_path)
    rows = held_out(run, split) + all_targets(run, split)
    return rows + unseen_sources(run, split) + xstest(run)


def classifiers(recipe_path: str, split: str) -> list[dict]:
    """Rows of every classifier of a recipe and of the majority class."""
    run = ClassifierRun(recipe_path)
    graded = [
        classifier_rows(run.made(loss, seed, folder).folder, seed, split, run.config)
        for loss, seed, folder in run.arms()
    ]
    return [own for own, _ in graded] + [graded[0][1]]  # the baseline is the same for all


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
