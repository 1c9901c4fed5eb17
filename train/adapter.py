"""Fit the preference adapter on out-of-fold panel scores (Eq 6-8), for several targets and seeds.

    python train/adapter.py recipes/demo_adapter.yaml

Every target is fitted with every seed and graded on the validation pairs; the one with the best accuracy, averaged
over objectives and seeds, becomes the adapter (its first seed); without such pairs, the recipe's first. For the prompts
that trained the panel, weights come from adapters that never saw them (folds). What is finished is fitted again only
when the scores, a setting, the encoder or the code has changed.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from pro_core.adapter.card import write_adapter_card
from pro_core.adapter.controls import compare, control_weights
from pro_core.adapter.runs import AdapterRun, name_of
from pro_core.runs.training import run_script
from pro_core.system.processes import from_main, join_processes, keep_freed_memory, main_process
from pro_core.system.storage import replacing
from pro_core.weights import entropy

CHOSEN = "validation accuracy"
FIRST = "no validation pairs to choose by: the first target of the recipe"


def main(recipe_path: str) -> None:
    join_processes()
    run = AdapterRun(recipe_path)
    if run.recipe["train_encoder"]:  # heads alone are small
        keep_freed_memory()
    names, train, validation = run.objective_names, run.train, run.held_out("validation")
    table: list[dict[str, Any]] = []
    for target in run.targets:
        for seed in run.seeds:
            adapter = run.fit(run.folder(target, seed), train, target, seed, run.best)
            if validation.empty:
                continue
            weights = run.weights(adapter, validation)
            controls = control_weights(train, validation, weights, names, seed, run.best)
            report = compare(validation, controls, names)
            row: dict[str, Any] = {"target": name_of(target), "seed": seed}
            row |= {method: r["accuracy"] for method, r in report.items()}
            row["entropy_of_targets"] = adapter.training_record["entropy_of_targets"]
            row["entropy_of_weights"] = float(entropy(weights).mean())
            table.append(row)
            if main_process():
                shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
                print(shown, flush=True)
    summary = pd.DataFrame(table, columns=list(table[0]) if table else ["target", "adapter"])
    summary = summary.round(4)
    means = summary.groupby("target")["adapter"].mean().sort_values(ascending=False)
    if table:
        chosen, reason = next(t for t in run.targets if name_of(t) == means.index[0]), CHOSEN
    else:
        chosen, reason = run.targets[0], FIRST
    chosen, reason, summary = from_main((chosen, reason, summary))  # processes may round otherwise
    if main_process():
        for path in filter(None, (run.output / "validation.csv", run.recipe["validation"])):
            with replacing(path) as partial:
                summary.to_csv(partial, index=False)
        figures = means.round(4).to_string() if table else f"not measured, {FIRST}"
        print(f"\nvalidation accuracy, mean over seeds:\n{figures}")
    for seed in run.seeds:
        for fold in sorted(train.fold.unique()) if run.recipe["folds"] else ():
            rest = train[train.fold != fold]
            run.fit(run.fold_folder(seed, fold), rest, chosen, seed, run.best)
    card = (run.recipe, name_of(chosen), names, summary, run.scores)
    run.finish(chosen, reason, summary, lambda folder: write_adapter_card(folder, *card))
    if main_process():
        print(f"\nchosen: {name_of(chosen)}; saved in {run.final}")


if __name__ == "__main__":
    run_script(main, __doc__)
