"""What policies do with the weights that they are asked for: fronts, weighted scores, control.

Higher is better, except for IGD+ and perplexity. There are two scales. ``mean_<objective>`` and ``mean_weighted_score``
are in the panel's own standardized scores z. Hypervolume, IGD+ and the judges' scores are in units of the base model: 0
is the mean of its responses, 1 their standard deviation, fixed before any other policy is measured (:class:`Base`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pro_core.evaluation.policy.fronts import front
from pro_core.evaluation.policy.metrics import (
    Answers,
    Draws,
    Floats,
    JudgeUnits,
    in_units,
    judged,
    means,
    over_points,
    over_requests,
    paired_gaps,
    point_means,
    rank_correlation,
)
from pro_core.metrics import correct, hypervolume, igd_plus
from pro_core.rewards.calibration import RewardStats

REFERENCE_POINT = -1.0
"""In every objective, in base units: one deviation below the base model's mean. A point at its mean dominates a unit
cube, so that the base model's own hypervolume is about 1 for any number of objectives."""
LEADS = ("hypervolume", "judge_score", "heldout_score", "mean_weighted_score")


@dataclass(frozen=True)
class Base:
    """What the base model fixes beforehand: units, reference point, reference front.

    Attributes:
        panel: mean and deviation of the panel's z over the base model's responses. judges: those of the judges.
        front_FK: in base units, what best-of-n of the base model reaches under each of the grid's weightings.
        candidates: n. reference: the responses, described in words.
    """

    panel: RewardStats
    judges: JudgeUnits
    front_FK: Floats
    candidates: int
    reference: str = ""

    def to_dict(self) -> dict[str, Any]:
        stats = {"panel": self.panel, "judge": self.judges.judge, "heldout": self.judges.heldout}
        held: dict[str, Any] = {k: None if s is None else s.to_dict() for k, s in stats.items()}
        return held | {
            "front": self.front_FK.tolist(),
            "candidates": self.candidates,
            "reference": self.reference,
            "reference_point": [REFERENCE_POINT] * len(self.panel.objective_names),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Base:
        stats = {
            k: RewardStats.from_dict(data[k]) if data[k] else None
            for k in ("panel", "judge", "heldout")
        }
        assert stats["panel"] is not None
        front_FK = np.array(data["front"], dtype=np.float64)
        return cls(
            stats["panel"],
            JudgeUnits(stats["judge"], stats["heldout"]),
            front_FK,
            data["candidates"],
            data["reference"],
        )


def controllability(weights_WPK: ArrayLike, scores_WPK: ArrayLike) -> Floats:
    """How an objective's score follows its weight within each prompt: Spearman's correlation (P, K), -1 to 1.

    It is taken within prompts because their scores differ by far more than weights can change. Where several weightings
    give an objective the same weight, as on grids of more than two objectives, even perfect control stays below 1.
    """
    weights, scores = np.asarray(weights_WPK, dtype=float), np.asarray(scores_WPK, dtype=float)
    _, P, K = scores.shape
    return np.array(
        [[rank_correlation(weights[:, p, k], scores[:, p, k]) for k in range(K)] for p in range(P)]
    ).reshape(P, K)


def measure(
    answers: Answers, weights_WPK: Floats, base: Base, of_base: Answers | None, counts_RP: Floats
) -> Draws:
    """Each measure under each resample, (R,); what was not measured is left out.

    Args:
        weights_WPK: the weights asked for.
        of_base: the base policy's answers to the same prompts under the same weightings and seed, for the win rate.
    """
    names, z_WPK = base.panel.objective_names, answers.scores_WPK
    draws: Draws = {}

    def add(prefix: str, keys: Sequence[str], values_RK: Floats) -> None:
        draws.update({prefix + key: values_RK[:, k] for k, key in enumerate(keys)})

    points = point_means(in_units(base.panel, z_WPK), counts_RP)
    reference = np.full(len(names), REFERENCE_POINT)
    draws["hypervolume"] = _each(points, lambda p: hypervolume(p, reference))
    draws["igd_plus"] = _each(points, lambda p: igd_plus(p, base.front_FK))
    add("mean_", names, over_points(point_means(z_WPK, counts_RP)))
    draws["mean_weighted_score"] = over_requests((weights_WPK * z_WPK).sum(axis=2), counts_RP)
    add("spearman_", names, means(controllability(weights_WPK, z_WPK), counts_RP))
    for key, values_WP in judged(answers, base.judges).items():
        draws[key] = over_requests(values_WP, counts_RP)
    if answers.judge_WP is not None and of_base is not None and of_base.judge_WP is not None:
        lead = answers.judge_WP - of_base.judge_WP
        wins = np.where(np.isfinite(lead), correct(lead), np.nan)
        draws["judge_win_rate"] = over_requests(wins, counts_RP)
    if answers.heldout_WPJ is not None and base.judges.heldout is not None:
        z = in_units(base.judges.heldout, answers.heldout_WPJ)
        of = base.judges.heldout.objective_names
        both = [j for j, name in enumerate(of) if name in names]
        asked = weights_WPK[:, :, [names.index(of[j]) for j in both]]
        follows = means(controllability(asked, z[:, :, both]), counts_RP)
        add("spearman_heldout_", [of[j] for j in both], follows)
    if answers.surprise_WP2 is not None:
        read = np.isfinite(answers.surprise_WP2).all(axis=2, keepdims=True)
        nats, tokens = (counts_RP @ np.where(read, answers.surprise_WP2, 0.0).sum(axis=0)).T
        with np.errstate(invalid="ignore", divide="ignore"):
            draws["perplexity"] = np.exp(nats / tokens)
    if answers.kl_WP is not None:
        draws["kl"] = over_requests(answers.kl_WP, counts_RP)
    return draws


def _each(points_RWK: Floats, function) -> Floats:
    """A function of the finite points (N, K) of each resample; NaN where there are none."""
    values = []
    for points in points_RWK:
        finite = points[np.isfinite(points).all(axis=1)]
        values.append(function(finite) if len(finite) else np.nan)
    return np.array(values, dtype=np.float64)


def front_size(answers: Answers) -> dict[str, float]:
    """How many weightings have a mean score, and how many of these points are on the front. They have no interval."""
    z = point_means(answers.scores_WPK, np.ones((1, answers.scores_WPK.shape[1])))[0]
    return {"points": int(np.isfinite(z).all(axis=1).sum()), "points_on_front": len(front(z))}


def leads(
    mine: Sequence[Answers],
    theirs: Sequence[Answers],
    weights_WPK: Floats,
    base: Base,
    counts_RP: Floats,
) -> Draws:
    """Differences of :data:`LEADS`, the first policy minus the second, averaged over their common seeds: (R,) each.

    They are paired: the same resamples, prompts and weightings.
    """
    gaps = paired_gaps(
        zip(mine, theirs, strict=True),
        lambda answers: measure(answers, weights_WPK, base, None, counts_RP),
    )
    return {name: gaps[name] for name in LEADS if name in gaps}
