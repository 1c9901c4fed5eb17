"""Grade reward models, adapters and policies on held-out data; print tables and keep the rows in `results/`.

python train/evaluate.py reward_models recipes/demo_panel.yaml recipes/full_panel.yaml
python train/evaluate.py judges recipes/judge.yaml recipes/heldout_panel.yaml
python train/evaluate.py out_of_distribution recipes/demo_panel.yaml   # on pairs of sets that trained nothing
python train/evaluate.py length recipes/demo_panel.yaml       # the effect of length on the finished panel's scores
python train/evaluate.py adapter recipes/demo_adapter.yaml
python train/evaluate.py weights recipes/demo_adapter.yaml    # the shipped adapter's weights for ten prompts
python train/evaluate.py classifier recipes/small_classifier.yaml
python train/evaluate.py policies recipes/wic_evaluation.yaml    # what train/wic.py trained; resumes when killed
python train/evaluate.py levels recipes/moslim_evaluation.yaml   # what train/moslim.py trained: levels asked and given
python train/evaluate.py judged recipes/judged_trust.yaml    # benchmarks with a language model as judge, or the judge
python train/evaluate.py readme          # tables and figures of policies again, from results/ alone

Changes, `key=value`, may follow the recipes and hold for all of them. With --help after one of the words above, its
recipes' settings are listed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pro_core.adapter.recipe import AdapterRecipe
from pro_core.data.schema import DataError
from pro_core.evaluation.adapter_grades import adapter_rows, example_weights
from pro_core.evaluation.classifiers import classifier_rows
from pro_core.evaluation.judged.recipe import JudgedRecipe
from pro_core.evaluation.judged.rows import judged_rows
from pro_core.evaluation.policy.levels import level_rows
from pro_core.evaluation.policy.recipe import EvaluationRecipe, LevelEvaluation, PolicyEvaluation
from pro_core.evaluation.policy.weight_rows import policy_rows
from pro_core.evaluation.results import Row, read_rows, write_rows
from pro_core.evaluation.reward_models import (
    judge_rows,
    length_rows,
    out_of_distribution_rows,
    panel_rows,
)
from pro_core.reporting.policy_figures import draw_figures
from pro_core.reporting.tables import TABLES, fill_tables
from pro_core.rewards.recipes import ClassifierRecipe, PanelRecipe
from pro_core.runs.recipes import ConfigError, Recipe, described
from pro_core.system.storage import StorageError

ROOT = Path(__file__).parent.parent
RECIPES: dict[str, type[Recipe]] = {
    "reward_models": PanelRecipe,
    "judges": PanelRecipe,
    "out_of_distribution": PanelRecipe,
    "length": PanelRecipe,
    "adapter": AdapterRecipe,
    "weights": AdapterRecipe,
    "classifier": ClassifierRecipe,
    "policies": PolicyEvaluation,
    "levels": LevelEvaluation,
    "judged": JudgedRecipe,
}
GRADERS: dict[str, Callable[[Any, str], list[Row]]] = {
    "reward_models": panel_rows,
    "judges": judge_rows,
    "out_of_distribution": out_of_distribution_rows,
    "length": length_rows,
    "adapter": adapter_rows,
    "weights": example_weights,
    "classifier": classifier_rows,
    "policies": policy_rows,
    "levels": level_rows,
    "judged": judged_rows,
}
DRAWN = ("policies", "levels")
"""The kinds that have figures."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; ``recipes`` are its files, ``set`` its changes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False
    )
    parser.add_argument("what", nargs="?", choices=(*GRADERS, "readme"))
    parser.add_argument("recipes", nargs="*", help="recipes, and changes key=value")
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument(
        "--figures",
        type=Path,
        default=ROOT / "docs" / "figures",
        help="folder of the policies' figures",
    )
    parser.add_argument("--help", "-h", action="store_true")
    parsed = parser.parse_intermixed_args(arguments)
    if parsed.help:
        print(parser.format_help())
        if parsed.what in RECIPES:
            print("\n".join(["Settings of a recipe:", *described(RECIPES[parsed.what])]))
        sys.exit()
    words = parsed.recipes
    parsed.set = [word for word in words if "=" in word]
    parsed.recipes = [word for word in words if "=" not in word]
    if not parsed.what or (parsed.what != "readme" and not parsed.recipes):
        parser.error("name what to grade, and its recipes")
    if parsed.set and parsed.results.resolve() == ROOT / "results":
        # Its rows would stand beside those of the recipe as it is, in the same tables.
        parser.error("a changed recipe is another experiment: name a folder with --results")
    return parsed


def main() -> None:
    options = parse()
    what, results = options.what, options.results
    graded: list[Row] = []
    for path in options.recipes:
        try:
            recipe = RECIPES[what].read(path, options.set)
            rows = GRADERS[what](recipe, options.split)
        except (ConfigError, DataError, StorageError) as error:
            sys.exit(f"{type(error).__name__}: {error}")
        methods = recipe.names if isinstance(recipe, EvaluationRecipe) else None
        write_rows(results / f"{what}.jsonl", rows, methods)
        graded += rows
    if what == "readme":
        for document in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
            fill_tables(document, results)
    for name in DRAWN:
        if what in ("readme", name):
            draw_figures(read_rows(results / f"{name}.jsonl"), options.figures)
    for name, (file, table) in TABLES.items():
        # Behind a recipe: what it gave, and not all that stands in the file.
        shown = read_rows(results / file) if what == "readme" else graded
        if shown and what in ("readme", file.removesuffix(".jsonl")) and (text := table(shown)):
            print(f"\n{name}\n{text}")


if __name__ == "__main__":
    main()
