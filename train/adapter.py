"""Fit the preference adapter on out-of-fold panel scores (Eq 6-8), for several targets and seeds.

    python train/adapter.py recipes/demo_adapter.yaml

Every target is fitted with every seed and graded on the validation pairs; the one with the best accuracy, averaged
over objectives and seeds, becomes the adapter (its first seed). For the prompts that trained the panel, weights come
from adapters that never saw them (folds). Finished parts are files and are not done again.
"""

from __future__ import annotations

import json
import shutil
from typing import Any

import pandas as pd

from pro_core.adapter_runs import AdapterRun, name_of
from pro_core.evaluation.adapters import best_global_weights, compare, control_weights
from pro_core.evaluation.cards import write_adapter_card
from pro_core.training import main_process, run_script
from pro_core.weights import entropy


def main(recipe_path: str) -> None:
    run = AdapterRun(recipe_path)
    names, train, validation = run.objective_names, run.train, run.held_out("validation")
    best = best_global_weights(train, names)
    table: list[dict[str, Any]] = []
    for target in run.targets:
        for seed in run.seeds:
            adapter = run.fit(run.folder(target, seed), train, target, seed, best)
            weights = run.weights(adapter, validation)
            controls = control_weights(train, validation, weights, names, seed, best)
            report = compare(validation, controls, names)
            row: dict[str, Any] = {"target": name_of(target), "seed": seed}
            row |= {method: r["accuracy"] for method, r in report.items()}
            row["entropy_of_targets"] = adapter.training_record["entropy_of_targets"]
            row["entropy_of_weights"] = float(entropy(weights).mean())
            table.append(row)
            if main_process():
                shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
                print(shown, flush=True)
    if not main_process():
        return
    summary = pd.DataFrame(table)
    for path in filter(None, (run.output / "validation.csv", run.recipe["validation"])):
        summary.round(4).to_csv(path, index=False)
    means = summary.groupby("target")["adapter"].mean().sort_values(ascending=False)
    print(f"\nvalidation accuracy, mean over seeds:\n{means.round(4).to_string()}")
    chosen = next(t for t in run.targets if name_of(t) == means.index[0])
    (run.output / "chosen.json").write_text(json.dumps(chosen))

    shutil.copytree(run.folder(chosen, run.seeds[0]), run.final, dirs_exist_ok=True)
    for seed in run.seeds:
        for fold in range(run.recipe["folds"]):
            rest = train[train.fold != fold]
            run.fit(run.fold_folder(seed, fold), rest, chosen, seed, best)
    write_adapter_card(run.final, run.recipe, name_of(chosen), names, summary, train)
    print(f"\nchosen: {name_of(chosen)}; saved in {run.final}")


if __name__ == "__main__":
    run_script(main, __doc__)
