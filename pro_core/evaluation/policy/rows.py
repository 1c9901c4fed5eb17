"""Result rows of a recipe of policies. Higher is better, save for ``igd_plus`` and ``perplexity``.

| kind | one row for each |
|---|---|
| ``method`` | method and seed: every measure of :mod:`pro_core.evaluation.policy.metrics` |
| ``all_seeds`` | method: the means over seeds, ``sd_over_seeds_<measure>``, and the leads over other methods |
| ``point`` | method, seed and weighting: what figures and the equal-weight tables are made of |
| ``base`` | recipe: the units that the base model fixed |

Measures that end in ``_adapter`` are under the adapter's weights for each prompt instead of the grid.
``judge_accuracy`` and ``heldout_accuracy_<objective>`` are the judges' own, on test pairs.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from pro_core.evaluation.policy.metrics import (
    LEADS,
    REFERENCE_POINT,
    Answers,
    Base,
    Floats,
    in_units,
    leads,
    means,
    measure,
    resampled,
    summary,
    text_measures,
)
from pro_core.evaluation.policy.run import PolicyRun
from pro_core.evaluation.results import lead, result_row

Rows = list[dict[str, Any]]
Draws = dict[str, Floats]
BySeed = dict[int, Answers]
COUNTS = ("responses", "failed", "cut", "empty", "unscored")
UNDER_ADAPTER = ("judge_score", "judge_win_rate", "heldout_score", "mean_weighted_score", "length")


def policy_rows(run: PolicyRun) -> Rows:
    """All rows of the recipe. The base model's statistics come first, before any policy is looked at."""
    base = run.base()
    first = run.recipe["base"]
    names = [first, *(name for name in run.policy.entries if name != first)]
    counts_RP = resampled(len(run.prompts))
    P = len(run.prompts)
    grid_WPK = np.repeat(run.weights_WK[:, None, :], P, axis=1)
    answers: dict[str, BySeed] = {}
    defaults: dict[str, BySeed] = {}
    rows = [_base_row(run, base)]
    for name in names:
        draws: list[Draws] = []
        texts: list[dict[str, float]] = []
        for seed in run.seeds_of(name):
            started = time.monotonic()
            mine = run.answers(name, seed, grid_WPK)
            answers.setdefault(name, {})[seed] = mine
            drawn = measure(mine, base, answers[first].get(seed), counts_RP)
            if run.default_weights_PK is not None:
                weights = run.default_weights_PK[None].astype(np.float64)
                default = run.answers(name, seed, weights, "the adapter's weights")
                defaults.setdefault(name, {})[seed] = default
                under = measure(default, base, defaults[first].get(seed), counts_RP)
                drawn |= _under_adapter(under, base)
            draws.append(drawn)
            texts.append(text_measures(mine))
            wall = time.monotonic() - started
            rows.append(method_row(run, name, seed, drawn, texts[-1], wall))
            rows += _point_rows(run, name, seed, mine, base, counts_RP)
        if not draws:
            continue
        rows.append(method_row(run, name, None, averaged(draws), joined(draws, texts)))
    for pooled in [row for row in rows if row["seed"] is None]:
        name = pooled["method"]
        for other in run.compared:
            if other == name or not set(answers.get(other, ())) & set(answers[name]):
                continue
            gap = _leads(answers[name], answers[other], base, counts_RP)
            if defaults:
                led = _leads(defaults[name], defaults[other], base, counts_RP)
                gap |= {f"{k}_adapter": v for k, v in led.items() if k in UNDER_ADAPTER}
            pooled["leads"][other] = lead(*summary(gap))
    return rows


def _leads(mine: BySeed, theirs: BySeed, base: Base, counts_RP: Floats) -> Draws:
    """See :func:`pro_core.evaluation.policy.metrics.leads`; over the seeds that both have."""
    common = [seed for seed in mine if seed in theirs]
    return leads([mine[s] for s in common], [theirs[s] for s in common], base, counts_RP)


def _under_adapter(drawn: Draws, base: Base) -> Draws:
    kept = (*UNDER_ADAPTER, *(f"mean_{name}" for name in base.panel.objective_names))
    return {f"{name}_adapter": drawn[name] for name in kept if name in drawn}


def averaged(draws: list[Draws]) -> Draws:
    """The mean over seeds under each resample, for what every seed has."""
    common = [name for name in draws[0] if all(name in drawn for drawn in draws)]
    return {name: np.mean([drawn[name] for drawn in draws], axis=0) for name in common}


def joined(draws: list[Draws], texts: list[dict[str, float]]) -> dict[str, float]:
    """What has no interval: counts summed over seeds, the rest averaged, and the deviation between seeds."""
    joined: dict[str, float] = {"seeds": len(draws)}
    for name in texts[0]:
        values = [t[name] for t in texts if name in t]
        joined[name] = float(np.sum(values) if name in COUNTS else np.mean(values))
    if len(draws) > 1:
        for name in LEADS:
            values = [float(drawn[name][0]) for drawn in draws if name in drawn]
            if len(values) == len(draws) and np.isfinite(values).all():
                joined[f"sd_over_seeds_{name}"] = float(np.std(values, ddof=1))
    return joined


def method_row(
    run: PolicyRun,
    name: str,
    seed: int | None,
    drawn: Draws,
    more: dict[str, float],
    wall_s: float = 0.0,
) -> dict[str, Any]:
    """A row of one seed, or of all: draws (R,) as values with intervals, ``more`` without, the judges' accuracies."""
    values, intervals = summary(drawn)
    accuracy, of_accuracy = _judges(run)
    return result_row(
        run.recipe["experiment"],
        name,
        seed,
        run.split,
        len(run.prompts),
        values | more | accuracy,
        intervals | of_accuracy,
        run.config,
        wall_s,
        kind="all_seeds" if seed is None else "method",
        objectives=list(run.objective_names),
        heldout_objectives=list(run.heldout.objective_names) if run.heldout else [],
    )


def _judges(run: PolicyRun) -> tuple[dict[str, float], dict[str, list[float]]]:
    """The judges' own accuracies on test pairs, as their folders say."""
    values: dict[str, float] = {}
    intervals: dict[str, list[float]] = {}
    for judge, key in ((run.judge, "judge_accuracy"), (run.heldout, "heldout_accuracy")):
        for name, measured in (judge.accuracy if judge else {}).items():
            full = key if judge is run.judge else f"{key}_{name}"
            values[full], intervals[full] = measured["accuracy"], measured["ci95"]
    return values, intervals


def _point_rows(
    run: PolicyRun, name: str, seed: int, answers: Answers, base: Base, counts_RP: Floats
) -> Rows:
    """One row a weighting: its weights, the mean scores under it, and how many responses had all the panel's."""
    rows = []
    for w, weights in enumerate(run.weights_WK):
        parts = {f"mean_{n}": answers.z_WPK[w, :, [k]].T for k, n in enumerate(run.objective_names)}
        if answers.judge_WP is not None and base.judge is not None:
            parts["judge_score"] = in_units(base.judge, answers.judge_WP[w][:, None])
        if answers.heldout_WPJ is not None and base.heldout is not None:
            z = in_units(base.heldout, answers.heldout_WPJ[w])
            parts["heldout_score"] = z.mean(axis=1, keepdims=True)
        lengths = [np.nan if t is None else float(len(t)) for t in answers.texts[w]]
        parts["length"] = np.array(lengths)[:, None]
        drawn = {key: means(values, counts_RP)[:, 0] for key, values in parts.items()}
        values, intervals = summary(drawn)
        asked = {n: float(x) for n, x in zip(run.objective_names, weights, strict=True)}
        scored = int(np.isfinite(answers.z_WPK[w]).all(axis=1).sum())
        rows.append(
            result_row(
                run.recipe["experiment"],
                name,
                seed,
                run.split,
                scored,
                values,
                intervals,
                run.config,
                kind="point",
                request={"weights": asked},
                objectives=list(run.objective_names),
            )
        )
    return rows


def _base_row(run: PolicyRun, base: Base) -> dict[str, Any]:
    """Means and deviations of the base model's responses, and the reference point in those units."""
    metrics: dict[str, float] = {
        "reference_point": REFERENCE_POINT,
        "reference_candidates": base.candidates,
    }
    for prefix, stats in (("z", base.panel), ("judge", base.judge), ("heldout", base.heldout)):
        for k, name in enumerate(stats.objective_names if stats else ()):
            assert stats is not None
            metrics[f"mean_{prefix}_{name}"] = float(stats.mean[k])
            metrics[f"std_{prefix}_{name}"] = float(stats.std[k])
    name, seed = run.recipe["base"], run.seeds[0]
    return result_row(
        run.recipe["experiment"],
        name,
        seed,
        run.split,
        base.panel.n,
        metrics,
        config=run.config,
        kind="base",
        objectives=list(base.panel.objective_names),
        heldout_objectives=list(base.heldout.objective_names) if base.heldout else [],
    )
