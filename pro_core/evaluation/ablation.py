"""An ablation of reward panels: two rows per arm and seed, on validation and on test pairs.

All arms are graded on the pairs of the first arm: also on those of a ``data`` entry that they leave out, and on no
others but those of objectives that the first arm lacks. Beside the metrics of
:func:`pro_core.evaluation.reward_models.panel_row`, a row has

    head_correlation_<a>_<b>   whether two heads are one axis: :func:`head_correlation`
    margin_auc_<objective>     how well a small margin tells an error: :func:`auc`
    spread_auc_<objective>     the same of the margin divided by the members' disagreement about it

The last two are there if objectives have several members. ``leads`` has each arm's accuracy minus that of the first arm
under the same seed, on the same pairs.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from pro_core.data.schema import PreferencePair
from pro_core.data.training_pairs import TrainingPairs, mark_trained_on
from pro_core.evaluation.results import (
    Row,
    check_own_results,
    lead,
    read_rows,
    replace_rows,
    write_rows,
)
from pro_core.evaluation.reward_models import PANEL, panel_row
from pro_core.metrics import accuracy_lead
from pro_core.rewards.baselines import beside_baselines
from pro_core.rewards.calibration import member_spread, text_lengths
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.panel_runs import PanelRun
from pro_core.rewards.recipes import AblationRecipe
from pro_core.rewards.scores import (
    distinct_texts,
    graded_rows,
    margins,
    own_margin,
    progress,
    table_hash,
)
from pro_core.runs.recipes import ConfigError
from pro_core.system.processes import main_process
from pro_core.system.storage import content_hash

EXPERIMENT = "ablation"
SPLITS = ("validation", "test")
GRADES_VERSION = 1
"""Version of the rows' metrics; raise it with every change of what they say."""


@dataclass(frozen=True)
class Arm:
    """A finished panel of an ablation: its arm's name and seed, its run, and its scores of the held-out pairs."""

    name: str
    seed: int
    run: PanelRun
    panel: RewardPanel
    table: pd.DataFrame

    def graded(self, split: str) -> tuple[list[PreferencePair], pd.DataFrame, NDArray[np.float32]]:
        """The graded pairs of a split, their rows of the table, and their margins under their own objectives (N,)."""
        rows = graded_rows(self.table, split)
        pairs = [self.run.data.held_out[i] for i in rows.index]  # the table has no folds
        return pairs, rows, own_margin(rows, self.run.objective_names)


def ablation_rows(recipe: AblationRecipe) -> list[Row]:
    """Train and grade what is not finished yet of every arm and seed; return all of the recipe's rows.

    Safe to kill: rows are written as soon as a panel is graded, and no finished panel is trained or graded again. Rows
    of arms and seeds that the recipe no longer has are removed.

    Returns:
        The rows in the main process; none in the others that `accelerate launch` started.

    Raises:
        As :func:`pro_core.rewards.panel_runs.train_panel`. ConfigError: a changed recipe whose rows would stand beside
            those of the recipe as it is, or a split without pairs to grade on.
    """
    check_own_results(recipe)
    panels = list(recipe.panels())
    if main_process():
        _remove_others(recipe, {(arm, seed) for arm, seed, _ in panels})
    first: Arm | None = None  # under the same seed
    for name, seed, panel_recipe in panels:
        run = PanelRun(panel_recipe)
        if name == panels[0][0]:
            first, shared = None, run.data.held_out
        share_held_out(run.data, shared, run.objective_names)
        if main_process():
            print(f"{name}, seed {seed}", *run.data.notes, sep="\n  ", flush=True)
        if panel := run.make():  # None outside the main process
            arm = Arm(name, seed, run, panel, run.table())
            _record(recipe, arm, first)
            first = first or arm
    return _rows_of(recipe) if main_process() else []


def share_held_out(
    data: TrainingPairs, others: Sequence[PreferencePair], objective_names: Sequence[str]
) -> None:
    """Make the held-out pairs of ``data`` those of another recipe, in the objectives that both have, and mark those
    whose prompts ``data`` trains on."""
    theirs, shared = {p.objective for p in others}, {_pair_key(p) for p in others}
    data.held_out = [
        p for p in data.held_out if p.objective not in theirs or _pair_key(p) in shared
    ]
    own = {_pair_key(p) for p in (*data.training, *data.held_out)}
    more = [p for p in others if p.objective in objective_names and _pair_key(p) not in own]
    data.held_out = [*data.held_out, *mark_trained_on(data.training, more)]


def head_correlation(table: pd.DataFrame, a: str, b: str) -> float:
    """The correlation of the margins of two objectives' heads over both objectives' pairs, each pair in both orders.

    So it does not depend on which answer is called chosen: sum(m_a m_b) / sqrt(sum(m_a^2) sum(m_b^2)), where m is
    z(chosen) - z(rejected). -1 to 1; at -1 and 1 the two heads are one axis. NaN if a head's margins are all 0.
    """
    m_a, m_b = margins(table[table["objective"].isin([a, b])], (a, b)).astype(np.float64).T
    size = np.sqrt((m_a @ m_a) * (m_b @ m_b))
    return float(m_a @ m_b / size) if size else float("nan")


def auc(confidence: ArrayLike, right: ArrayLike) -> float:
    """The probability that a pair that the panel gets right has the higher confidence (N,) than one that it gets wrong.

    0.5: the confidence says nothing about errors; 1: it tells all of them. Equal confidences count half. NaN if all
    pairs are right, or all wrong.
    """
    is_right = np.asarray(right, dtype=bool)
    rights, wrongs = int(is_right.sum()), int((~is_right).sum())
    if not rights or not wrongs:
        return float("nan")
    ranks = rankdata(np.asarray(confidence, dtype=np.float64))
    return float((ranks[is_right].sum() - rights * (rights + 1) / 2) / (rights * wrongs))


# ---------------------------------------------------------------- parts


def _rows_of(recipe: AblationRecipe) -> list[Row]:
    return [r for r in read_rows(recipe.results) if _is_of(recipe, r)]


def _is_of(recipe: AblationRecipe, row: Row) -> bool:
    return (row["experiment"], row["config"]) == (EXPERIMENT, recipe.config)


def _remove_others(recipe: AblationRecipe, named: set[tuple[str, int]]) -> None:
    """Remove the recipe's rows of other arms and seeds than these."""
    rows = read_rows(recipe.results)
    kept = [r for r in rows if not _is_of(recipe, r) or (r["method"], r["seed"]) in named]
    if len(kept) < len(rows):
        print(f"{recipe.results}: removed {len(rows) - len(kept)} rows of other arms and seeds")
        replace_rows(recipe.results, kept)


def _record(recipe: AblationRecipe, arm: Arm, first: Arm | None) -> None:
    """Write the rows of one panel, unless they are there already.

    Args:
        first: the first arm under the same seed; None if this is the first arm.
    """
    decides = [GRADES_VERSION, table_hash(arm.table), arm.panel.fingerprint()]
    decides += [first.name, table_hash(first.table)] if first else []
    version = content_hash(decides)[:8]
    own = [r for r in _rows_of(recipe) if (r["method"], r["seed"]) == (arm.name, arm.seed)]
    if {r["split"]: r["version"] for r in own} == dict.fromkeys(SPLITS, version):
        return
    rows = []
    for split in SPLITS:
        started, names = time.monotonic(), arm.run.objective_names
        report = beside_baselines(PANEL, arm.table, arm.run.data, split, names).get(PANEL)
        if not report:
            raise ConfigError(
                f"{recipe.config}: {arm.name}: no {split} pairs to grade on", ["data"]
            )
        metrics, leads = (
            _metrics(arm, split),
            {first.name: _lead(arm, first, split)} if first else {},
        )
        wall = time.monotonic() - started
        row = panel_row(EXPERIMENT, arm.name, arm.seed, split, report, recipe.config, wall)
        row["metrics"] |= {k: round(v, 5) for k, v in metrics.items() if np.isfinite(v)}
        row["leads"] |= leads
        rows.append(row | {"version": version})
    write_rows(recipe.results, rows)


def _metrics(arm: Arm, split: str) -> dict[str, float]:
    """The metrics of this experiment alone; NaN for what cannot be measured."""
    pairs, rows, margin = arm.graded(split)
    names = [n for n in arm.run.objective_names if (rows["objective"] == n).any()]
    measured = {
        f"head_correlation_{a}_{b}": head_correlation(rows, a, b)
        for a, b in itertools.combinations(names, 2)
    }
    if len(arm.panel.specs) == len(arm.panel.objective_names):  # one member each
        return measured
    spread = _margin_spread(arm, pairs)
    for name in names:
        of_name = (rows["objective"] == name).to_numpy() & (margin != 0)  # a tie is no error
        size, right = np.abs(margin[of_name]), margin[of_name] > 0
        measured[f"margin_auc_{name}"] = auc(size, right)
        measured[f"spread_auc_{name}"] = auc(size / spread[of_name], right)
    return measured


def _margin_spread(arm: Arm, pairs: Sequence[PreferencePair]) -> NDArray[np.float64]:
    """How far the members disagree about each pair's margin under its own objective, (N,), standardized."""
    panel, names = arm.panel, arm.panel.objective_names
    prompts, completions, where = distinct_texts(pairs)
    _, scores = panel.score_with_members(prompts, completions, progress(f"{arm.name}, members"))
    z = panel.require_stats().normalize(scores, text_lengths(completions))  # (members, texts, K)
    spread_NK = member_spread(z[:, where[:, 0]] - z[:, where[:, 1]])
    return spread_NK[np.arange(len(pairs)), [names.index(p.objective) for p in pairs]]


def _lead(arm: Arm, first: Arm, split: str) -> dict[str, Any]:
    """The entry of ``leads`` for the first arm: differences of accuracy on the pairs that both are graded on."""
    pairs, rows, margin = arm.graded(split)
    first_pairs, _, first_margin = first.graded(split)
    others = dict(zip(map(_pair_key, first_pairs), first_margin, strict=True))
    keys, texts = [_pair_key(p) for p in pairs], list(rows["text"])
    differences: dict[str, Any] = {}
    intervals: dict[str, Any] = {}
    for name in arm.run.objective_names:
        both = [i for i, p in enumerate(pairs) if p.objective == name and keys[i] in others]
        if both:
            other = [others[keys[i]] for i in both]
            led = accuracy_lead(margin[both], other, [texts[i] for i in both])
            differences[f"accuracy_{name}"], intervals[f"accuracy_{name}"] = led.values()
    return lead(differences, intervals)


def _pair_key(pair: PreferencePair) -> tuple[str, ...]:
    prompt = json.dumps(pair.prompt)
    return pair.objective, pair.source, pair.split, prompt, pair.chosen, pair.rejected
