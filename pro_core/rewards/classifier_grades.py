"""MOSLIM's reward classifier on held-out responses: the accuracies of its Table 1, beside the majority class.

Metrics, each with a bootstrap interval over prompts:
    preference_accuracy: the head of the joint argmax is one that the response has a label for.
        intensity_accuracy: the joint argmax is exactly a labelled head and its level.
        level_accuracy_<objective>: among responses with a label for it, the head's own argmax is the level.
        level_accuracy: the mean of those over objectives.
    The first two compare outputs of different heads, which are comparable only after training with the loss ``joint``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pro_core.data.schema import LabelledResponse, first_user_turn
from pro_core.metrics import accuracy_with_interval, prompt_counts
from pro_core.rewards.classifier import RewardClassifier
from pro_core.rewards.levels import IntensityScale, level_columns

Measured = dict[str, dict[str, Any]]


def prediction_table(
    classifier: RewardClassifier, responses: Sequence[LabelledResponse], levels: NDArray
) -> pd.DataFrame:
    """One row per response: ``id, source, split, ungraded`` (why no accuracy counts it), ``text`` (the first user turn,
    else the response), ``level_<objective>`` (0 without a label) and ``p_<objective>-<level>``."""
    p = classifier.probabilities([r.prompt for r in responses], [r.response for r in responses])
    table: dict[str, Any] = {
        "id": [r.id for r in responses],
        "source": [r.source for r in responses],
        "split": [r.split for r in responses],
        "ungraded": [r.ungraded for r in responses],
        "text": [first_user_turn(r.prompt) if r.prompt else r.response for r in responses],
    }
    table |= {f"level_{name}": levels[:, k] for k, name in enumerate(classifier.objective_names)}
    table |= {f"p_{column}": p[:, j] for j, column in enumerate(classifier.columns)}
    return pd.DataFrame(table)


def graded_responses(table: pd.DataFrame, split: str) -> pd.DataFrame:
    """The rows of one split that accuracies are measured on: those whose prompt was not trained on."""
    return table[(table["split"] == split) & (table["ungraded"] == "")].reset_index(drop=True)


def grade_levels(table: pd.DataFrame, scales: Sequence[IntensityScale], loss: str) -> Measured:
    """Accuracies of a table of :func:`prediction_table`: metric -> ``{"accuracy", "ci95", "n", "prompts"}``."""
    p, starts = table[[f"p_{c}" for c in level_columns(scales)]].to_numpy(), _starts(scales)
    parts = np.split(p, starts[1:], axis=1)
    answered = np.stack([part.argmax(axis=1) + 1 for part in parts], axis=1)
    if loss == "per_head":
        return _measure(table, scales, answered)
    best = p.argmax(axis=1)
    head = np.searchsorted(starts, best, side="right") - 1
    return _measure(table, scales, answered, head, head, best - starts[head] + 1)


def majority_class(
    table: pd.DataFrame, scales: Sequence[IntensityScale], counts: Mapping[str, int]
) -> Measured:
    """The same metrics for always answering what was most frequent in training: the head with the most labels, the
    most frequent head and level, and each head's most frequent level."""
    n = np.array([counts[column] for column in level_columns(scales)])
    starts = _starts(scales)
    parts = np.split(n, starts[1:])
    most_frequent = np.array([part.argmax() + 1 for part in parts])
    most_labelled = int(np.argmax([part.sum() for part in parts]))
    head = int(np.searchsorted(starts, n.argmax(), side="right") - 1)
    level = int(n.argmax() - starts[head] + 1)
    rows = np.ones(len(table), dtype=int)
    return _measure(
        table,
        scales,
        np.outer(rows, most_frequent),
        most_labelled * rows,
        head * rows,
        level * rows,
    )


def _starts(scales: Sequence[IntensityScale]) -> NDArray[np.int64]:
    """The column where each head begins."""
    return np.cumsum([0, *(scale.levels for scale in scales[:-1])])


def _measure(table, scales, own_NK, preferred=None, head=None, level=None) -> Measured:
    """Grade the levels answered within heads (N, K) and, if given, one head and one (head, level) per row."""
    truth = table[[f"level_{scale.name}" for scale in scales]].to_numpy()
    texts, rows = list(table["text"]), np.arange(len(table))
    measured: Measured = {}
    if preferred is not None:
        measured["preference_accuracy"] = _accuracy(truth[rows, preferred] > 0, texts)
        measured["intensity_accuracy"] = _accuracy(truth[rows, head] == level, texts)
    index, counts = prompt_counts(texts)
    by_objective: Measured = {}
    drawn = []
    for k, scale in enumerate(scales):
        labelled = np.flatnonzero(truth[:, k])
        if not len(labelled):
            continue
        right = own_NK[labelled, k] == truth[labelled, k]
        by_objective[f"level_accuracy_{scale.name}"] = _accuracy(
            right, [texts[i] for i in labelled]
        )
        P = counts.shape[1]
        totals = counts @ np.bincount(index[labelled], minlength=P)
        with np.errstate(
            invalid="ignore"
        ):  # a resample may hold none of a small objective's prompts
            drawn.append((counts @ np.bincount(index[labelled], right, P)) / totals)
    measured["level_accuracy"] = {
        "accuracy": float(np.mean([m["accuracy"] for m in by_objective.values()])),
        "ci95": np.percentile(np.nanmean(drawn, axis=0), [2.5, 97.5]).tolist(),
        "n": len(table),
        "prompts": counts.shape[1],
    }
    return measured | by_objective


def _accuracy(right: NDArray[np.bool_], texts: Sequence[str]) -> dict[str, Any]:
    return accuracy_with_interval(np.where(right, 1.0, -1.0), texts)
