"""Weights in the reward (Eq 5, 9): one reward function for TRL, R(x, y) = sum_k w_k(x) z_k(x, y).

The weights are computed once for all prompts of a run. The panel's standardized scores z are computed in token-budget
batches. Each objective is logged by itself, and so are the weights that each kind of prompt got.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pro_core.data.objectives import Prompt
from pro_core.data.schema import clean_text
from pro_core.data.turns import split_reasoning
from pro_core.generation.chat import whole_text
from pro_core.policies.rl.recipe import Aggregation
from pro_core.rewards.calibration import text_lengths
from pro_core.rewards.panel import RewardPanel

Array = NDArray[np.float32]

AGGREGATIONS: tuple[Aggregation, ...] = get_args(Aggregation)

EPSILON = 1e-4
"""Added to a group's deviation, as TRL does."""


class WeightedReward:
    """The reward function of a run, for TRL's trainers and for our own loops; a subclass says what the scores are.

    Args:
        objective_names: K of them. prompts: the P prompts of the run, as scorers read them; the dataset has a column
            ``row`` that says which one a row asks.
        weights_PK: each prompt's weights. ``kinds``: each prompt's kind, under which its weights are logged.
        aggregation: ``sum_then_normalize``: the plain weighted sum. ``normalize_then_sum``: each objective is first
            centred and scaled within its prompt's group of completions, as in GDPO (arXiv 2601.05242), and weighted
            after that: weights inside a group's deviation would cancel. Use it with TRL's ``scale_rewards="batch"``,
            GDPO's second normalization.
        generations: completions per prompt, in consecutive rows; needed by ``normalize_then_sum``.

    Attributes:
        tokenizer: the policy's, where completions come with their token ids; else their texts are taken as they are.
    """

    __name__ = "composite"

    def __init__(
        self,
        objective_names: Sequence[str],
        prompts: Sequence[Prompt],
        weights_PK: ArrayLike,
        kinds: Sequence[str],
        aggregation: str = "sum_then_normalize",
        generations: int = 1,
    ):
        self.weights = np.asarray(weights_PK, dtype=np.float32)
        expected = (len(prompts), len(objective_names))
        if self.weights.shape != expected or len(kinds) != len(prompts):
            raise ValueError(
                f"got weights {self.weights.shape} and {len(kinds)} kinds, expected {expected} and one kind per prompt"
            )
        if aggregation not in AGGREGATIONS:
            raise ValueError(f"got the aggregation {aggregation!r}, expected one of {AGGREGATIONS}")
        self.objective_names = tuple(objective_names)
        self.prompts, self.kinds = list(prompts), list(kinds)
        self.aggregation, self.generations = aggregation, generations
        self.tokenizer: Any = None

    def standardized(self, rows: Sequence[int], completions: Sequence[str]) -> Array:
        """z scores (N, K) of completions to the prompts ``rows``; NaN where there is none."""
        raise NotImplementedError

    def total(self, z_NK: ArrayLike, weights_NK: ArrayLike) -> Array:
        """The scalarization (N,): NaN where an objective that has a weight has no score."""
        z, weights = np.asarray(z_NK, dtype=np.float32), np.asarray(weights_NK)
        if self.aggregation == "normalize_then_sum":
            z = normalize_groups(z, self.generations)
        return np.where(weights > 0, z * weights, 0).sum(axis=1, dtype=np.float32)

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        row: Sequence[int],
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """TRL's form of a reward function: N floats, None for a completion that has no reward and is to be skipped.

        Thoughts are not scored, and a completion that is all thought has no reward.
        """
        texts = [text_of(completion) for completion in completions]
        if self.tokenizer is not None and columns.get("completion_ids") is not None:
            # TRL's texts lack the tags of a thought that are special tokens, or that the template opened.
            texts = [whole_text(self.tokenizer, ids) for ids in columns["completion_ids"]]
        thoughts, answers = zip(*(split_reasoning(clean_text(t)) for t in texts), strict=True)
        z = self.standardized(row, answers)
        # All tokens went into the thought: there is no answer to score.
        unanswered = [bool(t) and not a.strip() for t, a in zip(thoughts, answers, strict=True)]
        z[unanswered] = np.nan
        weights = self.weights[list(row)]
        totals = self.total(z, weights)
        if log_metric:
            self._log(log_metric, row, z, weights, totals)
        return [float(total) if np.isfinite(total) else None for total in totals]

    def _log(self, log_metric, row: Sequence[int], z: Array, weights: Array, totals: Array) -> None:
        """Log means over the scores that exist: a missing score is counted as skipped, never taken for 0."""
        log_metric("skipped", float((~np.isfinite(totals)).mean()))
        for k, name in enumerate(self.objective_names):
            if (scored := np.isfinite(z[:, k])).any():
                log_metric(f"objectives/{name}", float(z[scored, k].mean()))
        of_kind: dict[str, list[int]] = defaultdict(list)
        for n, index in enumerate(row):
            of_kind[self.kinds[index]].append(n)
        for kind, rows in sorted(of_kind.items()):
            for name, weight in zip(self.objective_names, weights[rows].mean(axis=0), strict=True):
                log_metric(f"weights/{kind}/{name}", float(weight))


class CompositeReward(WeightedReward):
    """The weighted reward by a panel.

    Args:
        panel: with statistics; only its objectives in ``objective_names`` count.
        weights_PK: on the simplex. The rest: see :class:`WeightedReward`.
    """

    def __init__(self, panel: RewardPanel, *arguments: Any, **named: Any):
        panel.require_stats()
        super().__init__(*arguments, **named)
        self.panel = panel

    def standardized(self, rows: Sequence[int], completions: Sequence[str]) -> Array:
        """z scores (N, K) of completions to the prompts ``rows``; NaN where the panel has none."""
        raw = self.panel.score([self.prompts[row] for row in rows], completions, allow_missing=True)
        z = self.panel.require_stats().normalize(raw, text_lengths(completions))
        return z[:, [self.panel.objective_names.index(name) for name in self.objective_names]]


def normalize_groups(z_NK: ArrayLike, generations: int) -> Array:
    """Each objective (N, K) centred and scaled within groups of ``generations`` rows; NaN stays NaN.

    0 where all of a group are equal or only one has a score. The deviation has Bessel's correction, as TRL's has.

    Raises:
        ValueError: N is not a multiple of ``generations``.
    """
    # In float32 the mean of equal numbers can differ from them, which the deviation would then blow up.
    z = np.asarray(z_NK, dtype=np.float64)
    if len(z) % generations:
        raise ValueError(
            f"got {len(z)} completions, expected whole groups of {generations}: each process needs whole groups"
        )
    groups = z.reshape(-1, generations, z.shape[1])
    scored = np.isfinite(groups)
    count = scored.sum(axis=1, keepdims=True)
    mean = np.where(scored, groups, 0).sum(axis=1, keepdims=True) / np.maximum(count, 1)
    centred = groups - mean
    square = np.where(scored, centred**2, 0).sum(axis=1, keepdims=True)
    deviation = np.sqrt(square / np.maximum(count - 1, 1))
    return (centred / (deviation + EPSILON)).reshape(z.shape).astype(np.float32)


def text_of(completion: Any) -> str:
    """A completion as text: TRL gives conversations a list with one message."""
    return (completion if isinstance(completion, str) else completion[-1]["content"]) or ""
