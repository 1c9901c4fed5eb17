"""Which pairs to label next (arXiv 2312.00267): those on whose winner small adapters disagree most.

Each of several heads is fitted on its own Bayesian bootstrap of the labelled prompts. Where the heads give a pair
w_m(x) . (z(a) - z(b)), its label is worth most where the variance over m is largest; the order of a and b, and so the
label, does not matter. How much that saves is simulated on labelled pairs, with random order beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pro_core.doctor.gain import (
    Floats,
    Measured,
    balanced,
    head_weights,
    prompt_components,
    solve_head,
)
from pro_core.metrics import correct
from pro_core.system.extras import needs

with needs("train"):
    from threadpoolctl import threadpool_limits

MEMBERS = 8
STRENGTH = 0.03
"""Shrinkage of every head here, a middle one of the page's; choosing it anew for each number of labels takes hours."""
HELD_OUT = 0.3
"""The share of prompts on which the simulation is graded."""
BUDGETS = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
"""The shares of the other prompts' pairs that are labelled, one after the other; the first is drawn at random."""
REPEATS = 20
LEAST = 40
"""Fewer prompts say nothing about an adapter."""


@dataclass(frozen=True)
class Saving:
    """What choosing pairs to label would have saved on these pairs.

    Attributes:
        labels: numbers of labelled pairs, rising, averaged over repeats.
        ranked, random: held-out accuracy at each, in percent, averaged over objectives.
        lead: ranked minus random at each, in points; the interval is over repeats, which share their pairs.
        needed: the labels at which ranked and random order first have the accuracy of all labels.
    """

    labels: list[int]
    ranked: list[float]
    random: list[float]
    lead: list[Measured]
    needed: tuple[int, int]


def fit_heads(
    x_ND: Floats, margin_NK: Floats, objective_N: NDArray, text_N: NDArray, seed: int
) -> list[Floats]:
    """Heads that differ in how much each prompt counts."""
    prompts, index = np.unique(text_N, return_inverse=True)
    counts = np.random.default_rng(seed).exponential(1, (MEMBERS, len(prompts)))
    weight = balanced(objective_N)
    return [solve_head(x_ND, margin_NK, weight * of_head[index], STRENGTH) for of_head in counts]


def disagreement(heads: Sequence[Floats], x_ND: Floats, margin_NK: Floats) -> Floats:
    """(N,) the variance over heads of w . margin, the same for both orders of a pair."""
    mixed = [(head_weights(head, x_ND) * margin_NK).sum(axis=1) for head in heads]
    return np.var(mixed, axis=0)


def rank_pairs(
    labelled: tuple[Floats, Floats, NDArray, NDArray],
    features_MD: Floats,
    margin_MK: Floats,
    seed: int = 0,
) -> tuple[NDArray[np.int64], Floats]:
    """The order in which to label M pairs, the most useful first, and each one's disagreement (M,).

    Args:
        labelled: margins (N, K), features (N, D), objectives (N,) and prompts (N,) of the labelled pairs.
    """
    margin, features, objective, text = labelled
    with threadpool_limits(1):
        x, others = prompt_components(features, features_MD, text)
        found = disagreement(fit_heads(x, margin, objective, text, seed), others, margin_MK)
    return np.argsort(-found, kind="stable"), found


def _accuracies(
    data: tuple[Floats, Floats, NDArray, NDArray],
    test: NDArray[np.bool_],
    pool: NDArray[np.int64],
    sizes: Sequence[int],
    seed: int | None,
) -> list[float]:
    """Points on the test pairs after each number of labels, drawn from the pool in its order (``seed`` None), or each
    batch by the disagreement of heads fitted to those before."""
    margin, features, objective, text = data
    labelled, points = pool[: sizes[0]], []
    left = pool[sizes[0] :]
    for size, following in zip(sizes, [*sizes[1:], None], strict=True):
        x, others = prompt_components(features[labelled], features, text[labelled])
        parts = margin[labelled], objective[labelled]
        head = solve_head(x, parts[0], balanced(parts[1]), STRENGTH)
        mixed = (head_weights(head, others[test]) * margin[test]).sum(axis=1)
        points.append(float(100 * (correct(mixed) * balanced(objective[test])).mean()))
        if following is None:
            break
        if seed is not None:
            heads = fit_heads(x, *parts, text[labelled], seed)
            found = disagreement(heads, others[left], margin[left])
            left = left[np.argsort(-found, kind="stable")]
        more = following - size
        labelled, left = np.concatenate([labelled, left[:more]]), left[more:]
    return points


def simulate_saving(
    margin_NK: Floats,
    features_ND: Floats,
    objective_N: NDArray,
    text_N: NDArray,
    seed: int = 0,
    repeats: int = REPEATS,
) -> Saving:
    """Label pairs of known label one batch after the other, by :func:`disagreement` and at random, from the same start.

    Each repeat holds out other prompts and starts with other pairs.

    Raises:
        ValueError: fewer than :data:`LEAST` prompts.
    """
    prompts = np.unique(text_N)
    if len(prompts) < LEAST:
        raise ValueError(
            f"got labelled pairs of {len(prompts)} prompts, expected at least {LEAST} to rank others"
        )
    right: NDArray[np.float64] = np.zeros((repeats, 2, len(BUDGETS)))
    counts: NDArray[np.float64] = np.zeros((repeats, len(BUDGETS)))
    with threadpool_limits(1):
        for r in range(repeats):
            rng = np.random.default_rng([seed, r])
            drawn = rng.permutation(prompts)[: max(1, round(HELD_OUT * len(prompts)))]
            test = np.isin(text_N, drawn)
            pool = rng.permutation(np.flatnonzero(~test))
            sizes = [max(2, round(share * len(pool))) for share in BUDGETS]
            counts[r] = sizes
            data = margin_NK, features_ND, objective_N, text_N
            for way, seed_of_heads in enumerate((r, None)):
                right[r, way] = _accuracies(data, test, pool, sizes, seed_of_heads)
    ranked, random = right.mean(axis=0)
    labels = counts.mean(axis=0).round().astype(int).tolist()
    lead = right[:, 0] - right[:, 1]
    half = (
        1.96 * lead.std(axis=0, ddof=1) / np.sqrt(repeats)
        if repeats > 1
        else np.full(len(BUDGETS), np.nan)
    )
    leads = [
        Measured(float(m), float(m - h), float(m + h))
        for m, h in zip(lead.mean(axis=0), half, strict=True)
    ]
    needed = [
        next(n for n, value in zip(labels, way, strict=True) if value >= min(way[-1], random[-1]))
        for way in (ranked, random)
    ]
    return Saving(labels, ranked.tolist(), random.tolist(), leads, (needed[0], needed[1]))
