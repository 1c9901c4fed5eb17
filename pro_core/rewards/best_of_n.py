"""Best-of-N: weights that steer any model, at the moment of choice.

N candidates are written, scored by the K reward models, and ranked by the weighted sum of their
standardized scores z: total = sum_k w_k z_k. A policy that was trained to read weights reads them, too. A score that is
missing (a judge gave no verdict) neither helps nor hurts its candidate: see :func:`filled`. A candidate without any
score comes after those that have one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pro_core.data.objectives import Message, Prompt
from pro_core.data.schema import to_messages
from pro_core.generation.base import Finish, GenerationSettings, Generator, Written, collect
from pro_core.generation.request import STYLES, Request, styled
from pro_core.rewards.calibration import member_spread, text_lengths
from pro_core.weights import WeightSource, as_weights, weighted_sum

Array = NDArray[np.float32]


@dataclass
class Candidate:
    """One answer with its scores.

    Attributes:
        text: the answer as written, also when generation failed half-way; without its reasoning.
        style: the style of STYLES it was written under; None where styles were not asked for.
        raw: (K,) reward model outputs, higher is better; None when it failed or all of them are missing: no score,
            not 0. NaN: this one is missing.
        z: (K,) the same, standardized by the panel's statistics.
        counted: (K,) what the totals count: z, with :func:`filled` in place of what is missing.
        members: (M, K) the standardized scores of each objective's members, whose mean is z; NaN where there are fewer.
        totals: weighted sums of z, under "used" and "uniform" weights; empty where there are no scores.
        error: what went wrong, in one sentence.
        notes: what else to know, such as that old turns were left out.
        reasoning: the thought before the answer; it is never scored.
        finish: how the answer ended: "stop", or cut by the token limit ("length") or an endpoint's "filter"; None when
            it broke off.
    """

    text: str
    style: str | None = None
    raw: Array | None = None
    z: Array | None = None
    members: Array | None = None
    counted: Array | None = None
    totals: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    notes: list[str] = field(default_factory=list)
    reasoning: str = ""
    finish: Finish | None = None


@dataclass
class BestOfN:
    """Candidates: best first, then those without scores, failed ones last. ``source`` says where the weights (K,) came
    from."""

    candidates: list[Candidate]
    weights: Array
    objective_names: tuple[str, ...]
    source: str

    @property
    def best(self) -> Candidate:
        return self.candidates[0]

    def lead(self, candidate: Candidate) -> tuple[float, float]:
        """How far the best candidate's total is ahead of another's, and how uncertain this lead is.

        The uncertainty is the standard deviation of the leads that the panel's members give, each by its own scores
        under the same weights; an objective without such a member counts with its mean, and one that lacks a score
        with nothing. A lead within it is too close to call. It is NaN where no objective has several members.

        Raises:
            ValueError: a candidate without scores.
        """
        differences = _by_member(self.best) - _by_member(candidate)
        leads_M = weighted_sum(np.where(np.isfinite(differences), differences, 0), self.weights)
        ahead = self.best.totals["used"] - candidate.totals["used"]
        return ahead, float(member_spread(leads_M))


def _by_member(candidate: Candidate) -> Array:
    """Its scores (M, K) by each member; an objective without such a member has its mean."""
    if candidate.z is None or candidate.members is None:
        raise ValueError("got a candidate without scores, expected one that did not fail")
    return np.where(np.isnan(candidate.members), candidate.z, candidate.members)


def best_of_n(
    generator: Generator,
    panel: Any,
    weights: WeightSource | Mapping[str, float] | Sequence[float] | Array | None,
    messages: Prompt,
    n: int = 4,
    settings: GenerationSettings | None = None,
    styles: bool = False,
) -> BestOfN:
    """Write n candidates, score them, and rank them under the weights.

    Args:
        generator: where the candidates come from.
        panel: a RewardPanel.
        weights: a source of weights (such as AdapterWeights), K weights, or None for uniform.
        messages: a prompt, or a whole conversation that ends with the user's message.
        n: how many candidates, at least 1.
        styles: give the candidates the styles of STYLES in turn.

    Raises:
        ValueError: an empty prompt, n below 1, weights of other objectives than the panel's, a policy trained for
            objectives that the panel does not have.
    """
    if n < 1:
        raise ValueError(f"got n={n}, expected at least 1 candidate")
    conversation = to_messages(messages)
    used, source = _weights(weights, panel.objective_names, conversation)
    names = [style if styles else None for style in _cycle(n)]
    if generator.policy is not None:
        generator.policy.check_objectives(panel.objective_names)
    batch = [
        Request.weighted(styled(conversation, name), used, panel.objective_names) for name in names
    ]
    written = collect(generator, batch, settings or GenerationSettings())
    candidates = [candidate_of(w, name) for w, name in zip(written, names, strict=True)]
    return rank(panel, conversation, candidates, used, source)


def candidate_of(written: Written, style: str | None = None) -> Candidate:
    """A candidate without scores yet."""
    return Candidate(
        written.text,
        style=style,
        error=written.error,
        notes=written.notes,
        reasoning=written.reasoning,
        finish=written.finish,
    )


def rank(
    panel: Any,
    messages: Sequence[Message],
    candidates: Sequence[Candidate],
    weights: Array,
    source: str,
) -> BestOfN:
    """Score the candidates that did not fail, and sort: best total first, failed ones last.

    The panel sees the conversation without the candidates' styles: they answer the same request.
    """
    texts = [c.text for c in candidates if c.error is None]
    K = len(weights)
    raw_NK = z_NK = np.zeros((0, K), dtype=np.float32)
    members_MNK = np.zeros((1, 0, K), dtype=np.float32)
    if texts:
        raw_NK, members_MNK = panel.score_with_members(
            [messages] * len(texts), texts, allow_missing=True
        )
        lengths = text_lengths(texts)
        z_NK = panel.stats.normalize(raw_NK, lengths)
        members_MNK = panel.stats.normalize(members_MNK, lengths)
    return ranked(candidates, raw_NK, z_NK, members_MNK, weights, panel.objective_names, source)


def filled(z_NK: Array) -> Array:
    """The scores (N, K) of N candidates as a ranking counts them.

    A missing score (NaN) becomes the mean of the other candidates' scores of its objective, so that it neither helps
    nor hurts; an objective that nobody has a score of counts 0 for all.
    """
    there = np.isfinite(z_NK)
    if there.all():
        return z_NK
    sums = np.where(there, z_NK, 0).sum(axis=0, dtype=np.float64)
    means = sums / np.maximum(there.sum(axis=0), 1)
    return np.where(there, z_NK, means).astype(z_NK.dtype)


def ranked(
    candidates: Sequence[Candidate],
    raw_NK: Array,
    z_NK: Array,
    members_MNK: Array,
    weights: Array,
    objective_names: Sequence[str],
    source: str,
) -> BestOfN:
    """The candidates, best total first, then those without any score, failed ones last.

    The scores belong to the N that did not fail.
    """
    unfailed = [candidate for candidate in candidates if candidate.error is None]
    uniform = np.full(len(weights), 1 / len(weights), dtype=np.float32)
    counted_NK = filled(z_NK)
    scores = zip(raw_NK, z_NK, np.swapaxes(members_MNK, 0, 1), counted_NK, strict=True)
    totals = zip(weighted_sum(counted_NK, weights), weighted_sum(counted_NK, uniform), strict=True)
    scored: list[Candidate] = []
    for candidate, one, (used, even) in zip(unfailed, scores, totals, strict=True):
        _, z, _, _ = one
        if not np.isfinite(z).any():
            continue  # the others' means would rank it above answers that were read
        candidate.raw, candidate.z, candidate.members, candidate.counted = one
        candidate.totals = {"used": float(used), "uniform": float(even)}
        scored.append(candidate)
    scored.sort(key=lambda candidate: -candidate.totals["used"])
    unscored = [candidate for candidate in unfailed if not candidate.totals]
    failed = [candidate for candidate in candidates if candidate.error is not None]
    return BestOfN([*scored, *unscored, *failed], weights, tuple(objective_names), source)


def _weights(weights: Any, names: Sequence[str], prompt: Sequence[Message]) -> tuple[Array, str]:
    """The weights (K,) for this prompt, and a word on where they come from."""
    if weights is None:
        K = len(names)
        return np.full(K, 1 / K, dtype=np.float32), "uniform: no adapter"
    if not callable(weights):
        return as_weights(weights, names), "given"
    if tuple(weights.objective_names) != tuple(names):
        raise ValueError(
            f"the weights are for {list(weights.objective_names)}, "
            f"the panel has {list(names)}: expected the same objectives in the same order"
        )
    return as_weights(weights([prompt])[0], names), type(weights).__name__


def _cycle(n: int) -> list[str]:
    styles = list(STYLES)
    return [styles[i % len(styles)] for i in range(n)]
