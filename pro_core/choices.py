"""Weights from clicks: what a person's choices among answers say about their weights (AMPLe, arXiv 2411.00524).

A person's weights are the adapter's answer, tilted: w(x) = softmax(log g(x) + d). The tilt d in R^K is the person's own
and the same for every prompt; its prior is normal around 0. With probability ``lapse`` the person clicks at random;
else answer i of N is preferred with probability softmax_i(w(x) . z_i / temperature). For two answers that is
Bradley-Terry (Eq 2, 4). The app's page has the same arithmetic in `ui/choices.js`, and the two are tested against each
other.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pro_core.data.objectives import Prompt
from pro_core.data.schema import is_blank, one_spelling, to_messages
from pro_core.weights import WeightSource, weighted_sum

Array = NDArray[np.float64]

DRAWS = 1024
POWERS = (1 / 8, 1 / 4, 1 / 2, 1, 1)
"""Of the likelihood, round by round: each round draws near what the one before it found."""
LEAST = 0.01
"""No objective's weight is taken as smaller than this before it is tilted: clicks can still raise it."""


@dataclass(frozen=True)
class Choice:
    """What a person preferred among the answers to one prompt.

    Attributes:
        z_NK: the answers' standardized scores, N >= 2.
        picked: the preferred answer's row; None for "none of them", which counts as a question but says nothing of the
            weights.
        predicted: (K,) the weights that the adapter (or another source) gave for the prompt.
        prompt, answers: the N texts; only :func:`choice_pairs` needs them.

    Raises:
        ValueError: shapes that do not fit, scores that are not finite, weights off the simplex, no such answer.
    """

    z_NK: Array
    picked: int | None
    predicted: Array
    prompt: Prompt = ""
    answers: Sequence[str] = ()

    def __post_init__(self) -> None:
        z, predicted = _scores(self.z_NK), np.asarray(self.predicted, dtype=np.float64)
        N, K = z.shape
        if predicted.shape != (K,):
            raise ValueError(f"got weights of shape {predicted.shape}, expected ({K},) as in z_NK")
        if not ((predicted >= 0).all() and abs(predicted.sum() - 1) < 0.02):
            raise ValueError(
                f"got the weights {predicted.tolist()}, expected none below 0 and a sum of 1"
            )
        if self.picked is not None and not (
            isinstance(self.picked, (int, np.integer)) and 0 <= self.picked < N
        ):
            raise ValueError(
                f"got picked={self.picked!r}, expected None or a row from 0 to {N - 1}"
            )
        if self.answers and len(self.answers) != N:
            raise ValueError(f"got {len(self.answers)} answers and scores of {N}, expected as many")
        object.__setattr__(self, "z_NK", z)
        object.__setattr__(self, "predicted", predicted)


@dataclass(frozen=True)
class ChoiceModel:
    """How people click.

    Attributes:
        temperature: of the choice, in units of the weighted sum of z; below it a lead is nearly a coin flip.
        lapse: the probability of a click at random.
        spread: the prior's standard deviation of each log-weight's tilt. At 1.5, two objectives with the same weight
            are expected to differ by a factor of about 8 for one person in three.
    """

    temperature: float = 0.5
    lapse: float = 0.1
    spread: float = 1.5

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and self.spread > 0 and 0 <= self.lapse < 1):
            raise ValueError(
                f"got {self}, expected temperature and spread above 0, lapse in [0, 1)"
            )

    def probabilities(self, totals_SN: Array) -> Array:
        """Of each of N answers to be preferred, from their weighted sums (S, N): rows that sum to 1."""
        logits = totals_SN / self.temperature
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        rule = odds / odds.sum(axis=1, keepdims=True)
        return (1 - self.lapse) * rule + self.lapse / totals_SN.shape[1]


@dataclass(frozen=True)
class ChoicePosterior:
    """What is known of a person's tilt after their choices, from :func:`choice_posterior`.

    Attributes:
        tilts_SK: possible tilts. shares_S: how probable each is; their sum is 1.
    """

    tilts_SK: Array
    shares_S: Array
    model: ChoiceModel = field(default_factory=ChoiceModel)

    @property
    def tilt(self) -> Array:
        """The mean tilt (K,); 0 without choices."""
        return self.shares_S @ self.tilts_SK

    def weights(self, predicted: ArrayLike) -> Array:
        """The person's weights (..., K) under the mean tilt, for prompts whose predicted weights are (..., K).

        Predicted weights below ``LEAST`` are raised to it, with or without choices.
        """
        return _tilted(np.asarray(predicted, dtype=np.float64), self.tilt)

    def information(self, z_NK: ArrayLike, predicted: ArrayLike) -> float:
        """The nats about the tilt that a choice among these answers is expected to bring: 0 to log N."""
        weights_SK = _tilted(np.asarray(predicted, dtype=np.float64), self.tilts_SK)
        chances = self.model.probabilities(weights_SK @ _scores(z_NK).T)
        return float(_entropy(self.shares_S @ chances) - self.shares_S @ _entropy(chances))

    def next_pair(
        self,
        z_NK: ArrayLike,
        predicted: ArrayLike,
        pairs: Sequence[tuple[int, int]] | None = None,
    ) -> tuple[int, int]:
        """The pair of rows of ``z_NK`` whose comparison is expected to tell most; the first of equals.

        Args:
            pairs: those to choose among; all by default.

        Raises:
            ValueError: fewer than two answers, or no pairs.
        """
        z = _scores(z_NK)
        among = list(combinations(range(len(z)), 2)) if pairs is None else list(pairs)
        if not among:
            raise ValueError("got no pairs, expected at least one to choose among")
        return max(among, key=lambda pair: self.information(z[list(pair)], predicted))


def choice_posterior(
    choices: Sequence[Choice], objectives: int, model: ChoiceModel | None = None
) -> ChoicePosterior:
    """The posterior of a person's tilt, p(d | choices), by importance sampling in rounds.

    The draws are a fixed sequence, so the same choices give the same weights, here and on the page.

    Args:
        objectives: K. Without choices the posterior is the prior.

    Raises:
        ValueError: choices of another number of objectives.
    """
    model = model or ChoiceModel()
    for choice in choices:
        if choice.z_NK.shape[1] != objectives:
            raise ValueError(
                f"got a choice over {choice.z_NK.shape[1]} objectives, expected {objectives}"
            )
    points_SK = _points(objectives)
    center, width = np.zeros(objectives), np.full(objectives, model.spread)
    for power in POWERS:
        tilts_SK = center + width * points_SK
        log_share = power * _log_likelihood(choices, tilts_SK, model)
        log_share -= (tilts_SK**2).sum(axis=1) / (2 * model.spread**2)
        log_share -= _log_density(points_SK)
        shares = np.exp(log_share - log_share.max())
        shares /= shares.sum()
        center = shares @ tilts_SK
        width = np.sqrt(shares @ (tilts_SK - center) ** 2)
    return ChoicePosterior(tilts_SK, shares, model)


def weights_from_choices(
    predicted: ArrayLike, choices: Sequence[Choice], model: ChoiceModel | None = None
) -> Array:
    """A person's weights (..., K) given their choices, for prompts whose predicted weights are (..., K).

    The choices may be about other prompts: what counts is how far the person's weights were from the predicted ones.
    """
    return choice_posterior(choices, np.shape(predicted)[-1], model).weights(predicted)


class ChoiceWeights:
    """Another source's weights (the adapter's, say), tilted by what a person chose: see :func:`weights_from_choices`.

    Choices of other objectives raise a ValueError.
    """

    def __init__(
        self, source: WeightSource, choices: Sequence[Choice], model: ChoiceModel | None = None
    ):
        self.source, self.objective_names = source, tuple(source.objective_names)
        self.posterior = choice_posterior(choices, len(self.objective_names), model)

    def __call__(self, prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        return self.posterior.weights(self.source(prompts)).astype(np.float32)


def choice_agreement(
    choices: Sequence[Choice], weights: ArrayLike | None = None
) -> tuple[int, int]:
    """(how many of the picked answers are the best one under some weights, how many were picked).

    Args:
        weights: (K,) or one row per choice; None for the predicted weights of each choice.
    """
    if weights is None:
        weights = np.array([choice.predicted for choice in choices])
    rows = np.broadcast_to(weights, (len(choices), np.shape(weights)[-1]))
    made = [(c, w) for c, w in zip(choices, rows, strict=True) if c.picked is not None]
    agreed = sum(int(weighted_sum(c.z_NK, w).argmax()) == c.picked for c, w in made)
    return agreed, len(made)


def choice_pairs(choices: Sequence[Choice], objective: str = "overall") -> list[dict[str, Any]]:
    """The choices as rows of a file of preference pairs, which :func:`pro_core.load_examples` reads.

    The picked answer is better than each other one: N answers make up to N - 1 pairs. "None of them" makes none, nor
    does an answer that is blank or the same text as the picked one. The same pair stands only once.

    Raises:
        ValueError: a choice without its prompt or its answers' texts.
    """
    rows: dict[str, dict[str, Any]] = {}
    for choice in choices:
        if choice.picked is None:
            continue
        if not choice.answers:
            raise ValueError("got a choice without answers, expected the texts that were shown")
        messages, chosen = to_messages(choice.prompt), choice.answers[choice.picked]
        for rejected in choice.answers:
            same = one_spelling(rejected) == one_spelling(chosen)
            if same or is_blank(rejected) or is_blank(chosen):
                continue
            row = {"objective": objective, "prompt": messages}
            row |= {"chosen": chosen, "rejected": rejected, "source": "choices"}
            rows[json.dumps(row)] = row
    return list(rows.values())


# ---------------------------------------------------------------- the arithmetic, as in ui/choices.js


def _scores(z_NK: ArrayLike) -> Array:
    z = np.asarray(z_NK, dtype=np.float64)
    if z.ndim != 2 or len(z) < 2 or not np.isfinite(z).all():
        raise ValueError(
            f"got scores of shape {z.shape}, expected finite ones (N, K) of at least 2 answers"
        )
    return z


def _tilted(predicted: Array, tilts: Array) -> Array:
    """softmax(log g + d): (..., K)."""
    logits = np.log(np.maximum(predicted, LEAST)) + tilts
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return odds / odds.sum(axis=-1, keepdims=True)


def _log_likelihood(choices: Sequence[Choice], tilts_SK: Array, model: ChoiceModel) -> Array:
    total = np.zeros(len(tilts_SK))
    for choice in choices:
        if choice.picked is not None:
            totals_SN = _tilted(choice.predicted, tilts_SK) @ choice.z_NK.T
            total += np.log(model.probabilities(totals_SN)[:, choice.picked])
    return total


def _points(K: int) -> Array:
    """A fixed sequence (DRAWS, K) that fills a product of logistic distributions of unit variance; their mean is 0.

    The uniforms behind it are Richtmyer's sequence, the fractional parts of multiples of square roots of primes; the
    second half of the points mirrors the first. Logistic tails are heavier than normal ones, so that no probable tilt
    is missed.
    """
    primes: list[int] = []
    number = 2
    while len(primes) < K:
        if all(number % prime for prime in primes):
            primes.append(number)
        number += 1
    uniforms = np.outer(np.arange(1, DRAWS // 2 + 1), np.sqrt(np.array(primes, np.float64))) % 1
    half = np.log(uniforms / (1 - uniforms)) * (np.sqrt(3) / np.pi)
    return np.concatenate([half, -half])


def _log_density(points_SK: Array) -> Array:
    """Of :func:`_points`, up to a constant."""
    x = np.abs(points_SK) * (np.pi / np.sqrt(3))
    return -(x + 2 * np.log1p(np.exp(-x))).sum(axis=1)


def _entropy(chances: Array) -> Array:
    """In nats, over the last axis."""
    return -(chances * np.log(np.maximum(chances, 1e-300))).sum(axis=-1)
