"""All measurements of one table of scores, and what they say about an adapter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pro_core.data.objectives import check_objective_names
from pro_core.doctor.gain import RIVALS, Floats, Gain, Measured, measure_gain
from pro_core.doctor.measure import (
    Conflict,
    Objective,
    RewardModel,
    Saturation,
    correlation,
    measure_conflict,
    measure_models,
    measure_objectives,
    measure_saturation,
    responses,
)
from pro_core.doctor.next_labels import Saving
from pro_core.metrics import accuracy_with_interval
from pro_core.rewards.calibration import check_finite
from pro_core.rewards.scores import columns, margins, own_margin

MIN_PROMPTS = 40
"""Fewer are not cross-validated: five folds of them say nothing."""
ENOUGH_PROMPTS = 500
"""Fewer never support `none worth having`: an adapter learns too little from them."""
WORTH = 2.0
"""Points below which a gain is not worth having."""
NEVER = 0.02
"""Objectives that conflict on at most this share of the pairs never conflict."""
CHANCE, HARDLY = 0.5, 0.6
"""Reward models disagree with the preferences when no way of weighing them is surely above the first, nor possibly
above the second."""


@dataclass(frozen=True)
class Verdict:
    """``gain``, ``none`` or ``unclear``; a headline, and sentences that say why and what to do."""

    kind: str
    headline: str
    why: list[str]


@dataclass(frozen=True)
class Examination:
    """Everything that a page shows. ``available``: pairs in all, of which ``pairs`` were examined. ``saving``: what
    choosing pairs to label saves, where it was asked for."""

    objective_names: tuple[str, ...]
    pairs: int
    available: int
    prompts: int
    sources: dict[str, int]
    splits: dict[str, int]
    models: list[RewardModel]
    objectives: list[Objective]
    reward_correlation_KK: Floats
    margin_correlation_KK: Floats
    saturation: list[Saturation]
    conflict: Conflict
    conflict_by_objective: dict[str, Conflict]
    gain: Gain | None
    verdict: Verdict
    notes: list[str] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    saving: Saving | None = None


def examine(
    table: pd.DataFrame,
    features_ND: NDArray,
    objective_names: Sequence[str],
    available: int | None = None,
    notes: Sequence[str] = (),
    about: dict[str, Any] | None = None,
    repeats: int = 3,
    seed: int = 0,
) -> Examination:
    """Measure a table of scored pairs and judge whether an adapter can help.

    Args:
        table: as :func:`pro_core.doctor.inputs.scored_table` makes it: one row per pair, with both texts.
        features_ND: features of each pair's prompt, as an adapter would read them.
        objective_names: the panel's; the data may have others, and fewer.
        available: the number of pairs that the table samples.
        notes: sentences to show with the doctor's own. about: what else a page should name (panel, data ...).

    Raises:
        ValueError: no pairs, features of another length, or scores that are not finite (names the objective).
    """
    names = check_objective_names(objective_names)
    features = np.asarray(features_ND, dtype=np.float64)
    if not len(table) or features.shape[:1] != (len(table),):
        raise ValueError(
            f"got {len(table)} pairs and features of shape {features.shape}, expected one row of features per pair"
        )
    for kind in ("raw_chosen", "raw_rejected", "z_chosen", "z_rejected"):
        check_finite(columns(table, kind, names), names)
    margin = margins(table, names).astype(np.float64)
    objectives = table["objective"].to_numpy(str)
    texts = table["text"].to_numpy(str)
    prompts = len(np.unique(texts))
    gain = None
    if len(names) > 1 and prompts >= MIN_PROMPTS and np.any(margin):
        own = np.array([names.index(o) if o in names else -1 for o in objectives])
        gain = measure_gain(margin, features, objectives, texts, own, repeats, seed)
    conflict = measure_conflict(margin)
    measured = measure_objectives(table, names)
    models = measure_models(table, names)
    total = len(table) if available is None else available
    return Examination(
        objective_names=names,
        pairs=len(table),
        available=total,
        prompts=prompts,
        sources=dict(Counter(table["source"])),
        splits=dict(Counter(table["split"])),
        models=models,
        objectives=measured,
        reward_correlation_KK=correlation(columns(responses(table, names), "z", names)),
        margin_correlation_KK=correlation(margin),
        saturation=measure_saturation(table, names),
        conflict=conflict,
        conflict_by_objective={
            o.name: measure_conflict(margin[objectives == o.name]) for o in measured
        },
        gain=gain,
        verdict=judge(len(names), conflict, gain, len(table), total, prompts),
        notes=[*notes, *_observations(table, names, models, measured)],
        about=about or {},
    )


def judge(
    K: int, conflict: Conflict, gain: Gain | None, pairs: int, available: int, prompts: int
) -> Verdict:
    """The verdict, by the first rule that holds; the thresholds are this module's constants."""
    if K == 1:
        return Verdict("none", "none: one reward model, nothing to weigh", [])
    if conflict.ties == 1:
        return Verdict(
            "none",
            "none: the reward models tell no two responses apart",
            ["The two responses of every pair have the same scores under every objective."],
        )
    if gain is None:
        return Verdict(
            "unclear",
            "too little data to tell",
            [f"Got {prompts} prompts; below {MIN_PROMPTS} nothing is cross-validated."],
        )
    rival = strongest(gain)
    lead, over_uniform = gain.lead[rival], gain.lead["uniform"]
    both = f"{points(over_uniform)} over uniform weights and {points(over_global(gain))} over the best global weights"
    if all(gain.lead[r].low > 0 for r in RIVALS):
        return Verdict(
            "gain",
            f"an adapter can help: {lead.value:+.1f} points",
            [
                f"It gains {both} (95% intervals).",
                f"Of 100 new pairs, about {lead.value:.0f} more go the way people chose when the weights follow the "
                "prompt.",
                *_ceiling(gain),
            ],
        )
    if conflict.depends <= NEVER:
        return Verdict(
            "none",
            "none: your reward models never conflict",
            [
                f"On {100 * (1 - conflict.depends):.0f}% of the pairs all of them prefer the same response, so no "
                "weights can change the winner. One of them, or their plain average, will do."
            ],
        )
    ways = ("own objective", "adapter", *RIVALS)
    accuracies = [gain.accuracy[w] for w in ways if w in gain.accuracy]
    if all(a.low <= CHANCE and a.high < HARDLY for a in accuracies):
        best = max(accuracies, key=lambda a: a.value)
        return Verdict(
            "none",
            "none: your reward models disagree with the preferences",
            [
                f"However they are weighed, they prefer what people chose on {percent(best)} of the pairs at best, "
                "where a coin reaches 50%. Weights cannot mend that: other reward models can, or a reversed "
                "direction where a model is far below 50%."
            ],
        )
    enough = prompts >= ENOUGH_PROMPTS and (pairs == available or pairs >= 4 * ENOUGH_PROMPTS)
    if enough and lead.high < WORTH:
        return Verdict(
            "none",
            f"none worth having: less than {WORTH:g} points",
            [
                f"Cross-validated on {pairs:,} pairs, it gains {both} (95% intervals).",
                *_ceiling(gain),
            ],
        )
    return Verdict("unclear", "too little data to tell", _unclear(gain, both, pairs, available))


def _unclear(gain: Gain, both: str, pairs: int, available: int) -> list[str]:
    width = max((gain.lead[r].high - gain.lead[r].low) / 2 for r in RIVALS)
    needed = float(pairs * (width / WORTH) ** 2)
    rounded = int(np.ceil(needed / 10 ** (size := max(0, len(str(int(needed))) - 2)))) * 10**size
    why = [
        f"Cross-validated on {pairs:,} pairs, it gains {both}: not surely above 0, nor surely small."
    ]
    if gain.kept == 0:
        why.append(
            "Every inner fold chose fixed weights: on so few pairs, nothing in the prompts paid."
        )
    why += _ceiling(gain)
    if rounded <= pairs:
        why.append(
            "These pairs are enough to see 2 points, so a gain, if there is one, is about that small."
        )
    elif pairs < available:
        why.append(
            f"About {rounded:,} pairs would narrow them to +-{WORTH:g} points, and you have {available:,}: add "
            f"--max-pairs {min(rounded, available)}."
        )
    else:
        why.append(
            f"About {rounded:,} pairs would narrow them to +-{WORTH:g} points; these are {pairs:,}."
        )
    return why


def _ceiling(gain: Gain) -> list[str]:
    """An upper bound for the adapter; nothing where the pairs' own reward models do no better than the adapter."""
    if gain.ceiling is None or gain.ceiling.value <= gain.lead["uniform"].value:
        return []
    return [
        f"An oracle that knows the objective of each pair would gain {points(gain.ceiling)} over uniform weights: an "
        "optimistic upper bound."
    ]


def strongest(gain: Gain) -> str:
    """The rival over which the adapter leads least."""
    return min(RIVALS, key=lambda rival: gain.lead[rival].value)


def over_global(gain: Gain) -> Measured:
    """The lead over the better of the two global weightings, which errs in the rival's favour."""
    return min((gain.lead[r] for r in RIVALS[1:]), key=lambda lead: lead.value)


def points(lead: Measured) -> str:
    """``+3.1 (+0.9 to +5.2)``."""
    return f"{lead.value:+.1f} ({lead.low:+.1f} to {lead.high:+.1f})"


def percent(accuracy: Measured) -> str:
    """``62% (53 to 71)``."""
    return f"{100 * accuracy.value:.0f}% ({100 * accuracy.low:.0f} to {100 * accuracy.high:.0f})"


def _observations(
    table: pd.DataFrame,
    names: tuple[str, ...],
    models: list[RewardModel],
    objectives: list[Objective],
) -> list[str]:
    """What a reader should not miss, one sentence each."""
    notes = []
    for model in models:
        if model.constant:
            notes.append(
                f"{model.name}: the same score for every response here; it decides nothing."
            )
    for objective in objectives:
        if objective.accuracy is None:
            best = max(objective.by_model, key=lambda n: objective.by_model[n])
            notes.append(
                f"{objective.name}: no reward model of that name; its pairs count as preferences that the weighted sum "
                f"should predict. Nearest: {best}, {100 * objective.by_model[best]:.0f}% of them."
            )
        elif objective.accuracy.high < CHANCE:
            notes.append(
                f"{objective.name}: its reward model prefers what people rejected, {percent(objective.accuracy)}. Is "
                "its direction right?"
            )
        elif objective.accuracy.low <= CHANCE:
            notes.append(
                f"{objective.name}: its reward model cannot be told from a coin on these {objective.pairs:,} pairs, "
                f"{percent(objective.accuracy)}."
            )
    without = [n for n in names if n not in {o.name for o in objectives}]
    if without:
        notes.append(
            f"{', '.join(without)}: in the panel, but no pairs here were judged under it; its scores are in every "
            "weighted sum, and nothing here says how far to trust them."
        )
    return notes + _seen_in_training(table, names)


def _seen_in_training(table: pd.DataFrame, names: tuple[str, ...]) -> list[str]:
    """A warning where the panel does better on rows of the train split than on the others by more than chance."""
    owned = table[table["objective"].isin(names)]
    train = (owned["split"] == "train").to_numpy()
    if min(train.sum(), (~train).sum()) < MIN_PROMPTS:
        return []
    margin = own_margin(owned, names)
    parts = []
    for rows in (train, ~train):
        graded: dict[str, Any] = accuracy_with_interval(margin[rows], list(owned["text"][rows]))
        parts.append((graded["accuracy"], (graded["ci95"][1] - graded["ci95"][0]) / 2))
    (seen, a), (unseen, b) = parts
    if seen - unseen <= np.hypot(a, b):
        return []
    return [
        f"The panel is right on {100 * seen:.0f}% of the rows of the train split and on {100 * unseen:.0f}% of the "
        "others: it has probably trained on the former, and the numbers here are too good. Add --split test."
    ]
