"""Reward models against what needs no neural network: a bag of words, and always taking the longer response."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from pro_core.data import PreferencePair, first_user_turn
from pro_core.evaluation.metrics import accuracy_with_interval
from pro_core.rewards.calibration import RewardStats, text_lengths
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.scores import own_margin, reference_pairs


def longer_wins(pairs: Sequence[PreferencePair]) -> NDArray[np.float64]:
    """Margins (N,) of the rule that prefers the longer completion, in characters."""
    return np.array([len(p.chosen) - len(p.rejected) for p in pairs], dtype=np.float64)


def bag_of_words(
    train: Sequence[PreferencePair], test: Sequence[PreferencePair], strength: float = 1.0
) -> NDArray[np.float64]:
    """Margins (N,) of a Bradley-Terry model on differences of word and word-pair counts.

    The prompt is the same on both sides and cancels, as it does in any linear model of counts.
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    words = CountVectorizer(ngram_range=(1, 2), min_df=3, binary=True)
    words.fit([text for p in train for text in (p.chosen, p.rejected)])

    def differences(pairs):
        return words.transform([p.chosen for p in pairs]) - words.transform(
            [p.rejected for p in pairs]
        )

    x = differences(train)
    sign = np.where(
        np.arange(x.shape[0]) % 2 == 0, 1, -1
    )  # half the pairs turned round: two classes
    model = LogisticRegression(C=strength, fit_intercept=False, max_iter=2000)
    model.fit(x.multiply(sign[:, None]).tocsr(), sign)
    return model.decision_function(differences(test))


def length_correlation(margins: ArrayLike, longer: ArrayLike) -> float:
    """Spearman correlation, over pairs, of the margin (N,) with how much longer the chosen response is (N,).

    Within pairs, so that what a prompt does to the scores and lengths of all its responses does not count. 0 where
    either is the same for all pairs.
    """
    from scipy.stats import spearmanr

    if np.ptp(margins) == 0 or np.ptp(longer) == 0:
        return 0.0
    return float(spearmanr(margins, longer).statistic)


SIDES = ("chosen", "rejected")
EQUAL_LENGTH = 0.1
"""Two responses are of about equal length when the shorter lacks at most this share of the longer, in characters."""


def length_report(
    margins: ArrayLike, chosen: ArrayLike, rejected: ArrayLike, prompts: Sequence[str]
) -> dict[str, Any]:
    """What length has to do with a reward model's margins (N,); lengths (N,) in characters.

    Returns:
        ``{"length_correlation", "equal_length": {"accuracy", "ci95", "n", "prompts"} or None}``: the accuracy on the
        pairs of about equal length, None where there are no such pairs.
    """
    margins, chosen, rejected = (
        np.asarray(v, dtype=np.float64) for v in (margins, chosen, rejected)
    )
    equal = np.abs(chosen - rejected) <= EQUAL_LENGTH * np.maximum(chosen, rejected)
    texts = [text for text, is_equal in zip(prompts, equal, strict=True) if is_equal]
    return {
        "length_correlation": length_correlation(margins, chosen - rejected),
        "equal_length": accuracy_with_interval(margins[equal], texts) if texts else None,
    }


def beside_baselines(
    method: str,
    scores: pd.DataFrame,
    pairs: Sequence[PreferencePair],
    test: Sequence[PreferencePair],
    objective_names: Sequence[str],
) -> dict[str, dict[str, dict[str, Any]]]:
    """The panel and both baselines on the same held-out pairs: method -> objective -> accuracy with its interval.

    Args:
        scores: the panel's scores of the test pairs. pairs: all pairs, of which the bag of words reads the training
            pairs of the test pairs' own sources.

    Every entry also has what :func:`length_report` says of it. Constructed pairs are left out.
    """
    measured: dict[str, dict[str, dict[str, Any]]] = {}
    for name in objective_names:
        mine = [p for p in test if p.objective == name and not p.constructed]
        if not mine:
            continue
        sources = {p.source for p in mine}
        train = [
            p for p in pairs if p.objective == name and p.split == "train" and p.source in sources
        ]
        rows = scores[scores["objective"] == name].set_index("id").loc[[p.id for p in mine]]
        margins: dict[str, NDArray] = {
            method: own_margin(rows, objective_names),
            "bag of words": bag_of_words(train, mine),
            "longer wins": longer_wins(mine),
        }
        chosen, rejected = (text_lengths([getattr(p, side) for p in mine]) for side in SIDES)
        for key, margin in margins.items():
            texts = list(rows["text"])
            accuracy = accuracy_with_interval(margin, texts)
            owed = length_report(margin, chosen, rejected, texts)
            measured.setdefault(key, {})[name] = accuracy | owed
    return measured


def length_removed(
    panel: RewardPanel, training: Sequence[PreferencePair], test: Sequence[PreferencePair]
) -> dict[str, dict[str, dict[str, Any]]]:
    """The panel with the length component of its scores kept and removed: method -> objective -> report.

    The slopes are fitted on the reference set that calibration uses; each report has an objective's accuracy on its own
    test pairs, :func:`length_report`, and ``slope`` (raw reward a unit of log length; 0 where nothing is removed).
    Constructed pairs are left out.
    """
    names = panel.objective_names
    reference = reference_pairs(training)
    prompts = [p.prompt for p in reference for _ in SIDES]
    texts = [getattr(p, side) for p in reference for side in SIDES]
    rewards = panel.score(prompts, texts)
    told_apart = [json.dumps(prompt) for prompt in prompts]
    plain = RewardStats.fit(rewards, names)
    removed = RewardStats.fit(rewards, names, "", text_lengths(texts), told_apart)
    mine = [p for p in test if p.objective in names and not p.constructed]
    chosen, rejected = (text_lengths([getattr(p, side) for p in mine]) for side in SIDES)
    raw = [
        panel.score([p.prompt for p in mine], [getattr(p, side) for p in mine]) for side in SIDES
    ]
    first = [first_user_turn(p.prompt) if p.prompt else p.chosen for p in mine]
    measured: dict[str, dict[str, dict[str, Any]]] = {}
    for method, stats in (("length kept", plain), ("length removed", removed)):
        z_chosen, z_rejected = stats.normalize(raw[0], chosen), stats.normalize(raw[1], rejected)
        for k, name in enumerate(names):
            here = [i for i, p in enumerate(mine) if p.objective == name]
            if not here:
                continue
            margin, of_prompt = (z_chosen - z_rejected)[here, k], [first[i] for i in here]
            measured.setdefault(method, {})[name] = (
                accuracy_with_interval(margin, of_prompt)
                | length_report(margin, chosen[here], rejected[here], of_prompt)
                | {"slope": 0.0 if stats.length_slope is None else float(stats.length_slope[k])}
            )
    return measured
