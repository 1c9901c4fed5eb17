"""How a reward model's scores depend on length, and how many texts are longer than it reads."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pro_core.data.schema import DataError, PreferencePair, first_user_turn
from pro_core.metrics import accuracy_with_interval
from pro_core.rewards.batching import encode
from pro_core.rewards.calibration import RewardStats, text_lengths
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.scores import reference_pairs


def length_correlation(margins: ArrayLike, longer: ArrayLike) -> float | None:
    """Spearman correlation, over pairs, of the margin (N,) with how much longer the chosen response is (N,).

    Differences within pairs cancel a prompt's effect on the scores and lengths of all its responses. 0 if either is
    the same for all pairs; None for fewer than three pairs, since any two are perfectly correlated.
    """
    from scipy.stats import spearmanr

    if len(np.asarray(margins)) < 3:
        return None
    if np.ptp(margins) == 0 or np.ptp(longer) == 0:
        return 0.0
    return float(spearmanr(margins, longer).statistic)


SIDES = ("chosen", "rejected")
EQUAL_LENGTH = 0.1
"""Two responses have about equal length if the shorter lacks at most this share of the longer, in characters."""


def length_report(
    margins: ArrayLike, chosen: ArrayLike, rejected: ArrayLike, prompts: Sequence[str]
) -> dict[str, Any]:
    """How a reward model's margins (N,) depend on length; lengths (N,) in characters.

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


def length_removed(
    panel: RewardPanel, training: Sequence[PreferencePair], test: Sequence[PreferencePair]
) -> dict[str, dict[str, dict[str, Any]]]:
    """The panel with the length component of its scores kept and removed: method -> objective -> report.

    The slopes are fitted on the reference set that calibration uses. Each report has an objective's accuracy on its own
    graded test pairs, :func:`length_report`, and ``slope`` (raw reward per unit of log length; 0 where nothing is
    removed).

    Raises:
        DataError: no prompt of the reference set has two responses of different length.
    """
    names = panel.objective_names
    reference = reference_pairs(training)
    prompts = [p.prompt for p in reference for _ in SIDES]
    texts = [getattr(p, side) for p in reference for side in SIDES]
    rewards = panel.score(prompts, texts)
    told_apart = [json.dumps(prompt) for prompt in prompts]
    plain = RewardStats.fit(rewards, names)
    try:
        removed = RewardStats.fit(rewards, names, "", text_lengths(texts), told_apart)
    except ValueError as error:
        raise DataError(f"the length component: {error}") from None
    pairs = [p for p in test if p.objective in names]
    chosen, rejected = (text_lengths([getattr(p, side) for p in pairs]) for side in SIDES)
    raw = [
        panel.score([p.prompt for p in pairs], [getattr(p, side) for p in pairs]) for side in SIDES
    ]
    first = [first_user_turn(p.prompt) if p.prompt else p.chosen for p in pairs]
    measured: dict[str, dict[str, dict[str, Any]]] = {}
    for method, stats in (("length kept", plain), ("length removed", removed)):
        z_chosen, z_rejected = stats.normalize(raw[0], chosen), stats.normalize(raw[1], rejected)
        for k, name in enumerate(names):
            rows = [i for i, p in enumerate(pairs) if p.objective == name]
            if not rows:
                continue
            margin, of_prompt = (z_chosen - z_rejected)[rows, k], [first[i] for i in rows]
            measured.setdefault(method, {})[name] = (
                accuracy_with_interval(margin, of_prompt)
                | length_report(margin, chosen[rows], rejected[rows], of_prompt)
                | {"slope": 0.0 if stats.length_slope is None else float(stats.length_slope[k])}
            )
    return measured


CUT_SAMPLE = 500
"""Maximum number of pairs whose texts :func:`share_cut` looks at."""


def share_cut(panel: RewardPanel, pairs: Sequence[PreferencePair]) -> float:
    """The share of texts in a sample of the pairs that are longer than the panel's models read: 0 to 1."""
    sample = random.Random(0).sample(list(pairs), min(CUT_SAMPLE, len(pairs)))
    prompts = [p.prompt for p in sample for _ in SIDES]
    texts = [getattr(p, side) for p in sample for side in SIDES]
    shares = []
    read_here = [s for s in panel.specs if s.source and not s.asked]
    for source, form, most in {(s.source, s.input_format, s.max_length) for s in read_here}:
        tokenizer = panel.models[source][1]
        if tokenizer is None:  # n-grams read every text whole
            continue
        read, whole = (
            [len(e["input_ids"]) for e in encode(tokenizer, prompts, texts, form, length)]
            for length in (most, most + 8)
        )
        shares.append(sum(a < b for a, b in zip(read, whole, strict=True)) / len(texts))
    return max(shares, default=0.0)
