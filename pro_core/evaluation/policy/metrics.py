"""From scores of responses to measures of policies, with paired intervals. Higher is better, but for IGD+, perplexity.

A policy was asked for P prompts under W weightings. A response that is not there, or a score that is NaN, is counted
and left out, never taken for 0: means run over what there is, and two policies are compared over the prompts that both
answered under the same weighting.

Intervals are a bootstrap over prompts. Every policy, weighting and seed is measured on the same resamples of the same
prompts, so that differences are paired, and a difference between seeds does not pass for one between prompts.

Two scales. ``mean_<objective>`` and ``mean_weighted_score`` are in the panel's own standardized scores z. Whatever
adds or compares objectives geometrically (hypervolume, IGD+), and the judges, stand in units of the base model: 0 is
the mean of its responses, 1 their standard deviation, fixed before any other policy is looked at (:class:`Base`).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from pro_core.evaluation.policy.fronts import front
from pro_core.evaluation.policy.text_quality import distinct_n
from pro_core.metrics import RESAMPLES, correct, hypervolume, igd_plus, prompt_counts
from pro_core.rewards.calibration import RewardStats

Floats = NDArray[np.float64]
REFERENCE_POINT = -1.0
"""In every objective, in base units: one deviation below the base model's mean. A point at its mean dominates a unit
cube,
so that the base model's own hypervolume is about 1 for any number of objectives."""


@dataclass
class Answers:
    """The responses of one policy under one seed, and their scores; higher is better.

    Attributes:
        weights_WPK: what was asked for. texts: W lists of P, None where generation failed.
        z_WPK: the panel's standardized scores. judge_WP: the overall judge's raw score. heldout_WPJ: the held-out
            panel's.
        surprise_WP2: nats and tokens under the base model. kl_WP: log p of the response under the policy less that
            under the base. NaN in any: no score. None: not measured.
        failures: (weighting, prompt, what went wrong). cut: how many were cut by the token limit or a filter.
    """

    weights_WPK: Floats
    texts: list[list[str | None]]
    z_WPK: Floats
    judge_WP: Floats | None = None
    heldout_WPJ: Floats | None = None
    surprise_WP2: Floats | None = None
    kl_WP: Floats | None = None
    failures: list[tuple[int, int, str]] = field(default_factory=list)
    cut: int = 0

    def where_also(self, other: Answers) -> Answers:
        """Without the scores that the other has none of at the same place, so that the two can be compared."""

        def kept(mine: Floats | None, theirs: Floats | None) -> Floats | None:
            if mine is None or theirs is None:
                return None
            return np.where(np.isfinite(theirs), mine, np.nan)

        there = np.isfinite(other.z_WPK).all(axis=2, keepdims=True)
        return replace(
            self,
            z_WPK=np.where(there, self.z_WPK, np.nan),
            judge_WP=kept(self.judge_WP, other.judge_WP),
            heldout_WPJ=kept(self.heldout_WPJ, other.heldout_WPJ),
        )


@dataclass(frozen=True)
class Base:
    """What the base model fixes beforehand: units, reference point, reference front.

    Attributes:
        panel: mean and deviation of the panel's z over the base model's responses. judge, heldout: the same of the raw
            scores of the overall judge and of the held-out panel; None without them.
        front_FK: in base units, what best-of-n of the base model reaches under each of the grid's weightings.
        candidates: that n. reference: what the responses are, in words.
    """

    panel: RewardStats
    judge: RewardStats | None
    heldout: RewardStats | None
    front_FK: Floats
    candidates: int
    reference: str = ""

    def to_dict(self) -> dict[str, Any]:
        stats = {"panel": self.panel, "judge": self.judge, "heldout": self.heldout}
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
            stats["judge"],
            stats["heldout"],
            front_FK,
            data["candidates"],
            data["reference"],
        )


def in_units(stats: RewardStats, scores: ArrayLike) -> Floats:
    """Scores (..., K) less their mean over the base model's responses, in its deviations."""
    return (np.asarray(scores, dtype=np.float64) - stats.mean) / stats.std


def resampled(P: int, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """How often each prompt counts, (1 + resamples, P): first once each, then as drawn."""
    counts = (
        prompt_counts([str(p) for p in range(P)], resamples, seed)[1] if P else np.zeros((0, 0))
    )
    return np.concatenate([np.ones((1, P)), counts]).astype(np.float64)


def means(values_PM: ArrayLike, counts_RP: Floats) -> Floats:
    """Means over prompts (R, M) of values (P, M), NaN left out; NaN where a resample holds no value at all."""
    values = np.asarray(values_PM, dtype=np.float64)
    there = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return (counts_RP @ np.where(there, values, 0.0)) / (counts_RP @ there)


def point_means(values_WPK: ArrayLike, counts_RP: Floats) -> Floats:
    """The mean over prompts of each weighting: (R, W, K) from (W, P, K)."""
    return np.stack([means(values, counts_RP) for values in np.asarray(values_WPK)], axis=1)


def over_points(values_RWK: Floats) -> Floats:
    """The mean over the weightings that have one: (R, K)."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", RuntimeWarning
        )  # no weighting has one: NaN, as it should be
        return np.nanmean(values_RWK, axis=1)


def rank_correlation(asked_W: ArrayLike, obtained_W: ArrayLike) -> float:
    """Spearman's over the weightings of one prompt that have a score; 0 where all scores are the same.

    NaN where fewer than two weightings have one, or all ask for the same.
    """
    asked, obtained = np.asarray(asked_W, dtype=float), np.asarray(obtained_W, dtype=float)
    there = np.isfinite(obtained)
    if there.sum() < 2 or np.ptp(asked[there]) == 0:
        return float("nan")
    x, y = rankdata(asked[there]), rankdata(obtained[there])
    if np.ptp(y) == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def controllability(weights_WPK: ArrayLike, scores_WPK: ArrayLike) -> Floats:
    """Within each prompt, how the score of an objective follows its weight: Spearman's, (P, K), -1 to 1.

    Within prompts, because prompts differ far more in their scores than weights can change. Where several weightings
    ask for the same weight of an objective, as on grids of more than two, not even perfect control reaches 1.
    """
    weights, scores = np.asarray(weights_WPK, dtype=float), np.asarray(scores_WPK, dtype=float)
    _, P, K = scores.shape
    return np.array(
        [[rank_correlation(weights[:, p, k], scores[:, p, k]) for k in range(K)] for p in range(P)]
    ).reshape(P, K)


def measure(
    answers: Answers, base: Base, of_base: Answers | None, counts_RP: Floats
) -> dict[str, Floats]:
    """Each measure under each resample, (R,); what was not measured is left out.

    Args:
        of_base: the base policy's answers to the same prompts under the same weightings and seed, for the win rate.
    """
    names = base.panel.objective_names
    found: dict[str, Floats] = {}

    def add(prefix: str, keys: Sequence[str], values_RK: Floats) -> None:
        found.update({prefix + key: values_RK[:, k] for k, key in enumerate(keys)})

    points = point_means(in_units(base.panel, answers.z_WPK), counts_RP)
    found["hypervolume"] = _each(points, lambda p: _hypervolume(p, len(names)))
    found["igd_plus"] = _each(points, lambda p: igd_plus(p, base.front_FK))
    add("mean_", names, over_points(point_means(answers.z_WPK, counts_RP)))
    weighted = (answers.weights_WPK * answers.z_WPK).sum(axis=2, keepdims=True)
    found["mean_weighted_score"] = over_points(point_means(weighted, counts_RP))[:, 0]
    add("spearman_", names, means(controllability(answers.weights_WPK, answers.z_WPK), counts_RP))
    if answers.judge_WP is not None and base.judge is not None:
        z = in_units(base.judge, answers.judge_WP[:, :, None])
        found["judge_score"] = over_points(point_means(z, counts_RP))[:, 0]
        if of_base is not None and of_base.judge_WP is not None:
            lead = answers.judge_WP - of_base.judge_WP
            wins = np.where(np.isfinite(lead), correct(lead), np.nan)[:, :, None]
            found["judge_win_rate"] = over_points(point_means(wins, counts_RP))[:, 0]
    if answers.heldout_WPJ is not None and base.heldout is not None:
        z = in_units(base.heldout, answers.heldout_WPJ)
        of = base.heldout.objective_names
        found["heldout_score"] = over_points(point_means(z.mean(axis=2, keepdims=True), counts_RP))[
            :, 0
        ]
        add("heldout_", of, over_points(point_means(z, counts_RP)))
        both = [j for j, name in enumerate(of) if name in names]
        asked = answers.weights_WPK[:, :, [names.index(of[j]) for j in both]]
        follows = means(controllability(asked, z[:, :, both]), counts_RP)
        add("spearman_heldout_", [of[j] for j in both], follows)
    lengths = [[np.nan if t is None else len(t) for t in texts] for texts in answers.texts]
    found["length"] = over_points(point_means(np.array(lengths)[:, :, None], counts_RP))[:, 0]
    if answers.surprise_WP2 is not None:
        there = np.isfinite(answers.surprise_WP2).all(axis=2, keepdims=True)
        nats, tokens = (counts_RP @ np.where(there, answers.surprise_WP2, 0.0).sum(axis=0)).T
        with np.errstate(invalid="ignore", divide="ignore"):
            found["perplexity"] = np.exp(nats / tokens)
    if answers.kl_WP is not None:
        found["kl"] = over_points(point_means(answers.kl_WP[:, :, None], counts_RP))[:, 0]
    return found


def _hypervolume(points_WK: Floats, K: int) -> float:
    return hypervolume(points_WK, np.full(K, REFERENCE_POINT))


def _each(points_RWK: Floats, function) -> Floats:
    """A function of the finite points (N, K) of each resample; NaN where there are none."""
    values = []
    for points in points_RWK:
        there = points[np.isfinite(points).all(axis=1)]
        values.append(function(there) if len(there) else np.nan)
    return np.array(values, dtype=np.float64)


def text_measures(answers: Answers) -> dict[str, float]:
    """Distinct n-grams (averaged over weightings) and counts: what failed, was cut, empty or went without a score.

    They have no interval: a resample that draws a prompt twice would count its text as repetition.
    """
    written = [[t for t in texts if t is not None] for texts in answers.texts]
    measures: dict[str, float] = {}
    for n in (1, 2, 3):
        values = [v for v in (distinct_n(texts, n) for texts in written) if np.isfinite(v)]
        if values:
            measures[f"distinct_{n}"] = float(np.mean(values))
    there = np.isfinite(answers.z_WPK).all(axis=2)
    texts = [t for row in written for t in row]
    z = point_means(answers.z_WPK, np.ones((1, answers.z_WPK.shape[1])))[0]
    return measures | {
        "responses": len(texts),
        "failed": len(answers.failures),
        "cut": answers.cut,
        "empty": sum(not t.strip() for t in texts),
        "unscored": int(len(texts) - there.sum()),
        "points": int(np.isfinite(z).all(axis=1).sum()),
        "points_on_front": len(front(z)),
    }


def summary(draws: dict[str, Floats]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """(value, 95% interval) of each measure that has one, from its draws (R,), the first being the value itself."""
    values, intervals = {}, {}
    for name, drawn in draws.items():
        if np.isfinite(drawn[0]):
            values[name] = float(drawn[0])
            resamples = drawn[1:][np.isfinite(drawn[1:])]
            if len(resamples):
                intervals[name] = [float(x) for x in np.percentile(resamples, [2.5, 97.5])]
    return values, intervals


LEADS = ("hypervolume", "judge_score", "heldout_score", "mean_weighted_score")


def leads(
    mine: Sequence[Answers], theirs: Sequence[Answers], base: Base, counts_RP: Floats
) -> dict[str, Floats]:
    """Differences of :data:`LEADS`, the first policy less the second, averaged over their common seeds: (R,) each.

    Paired: over the same resamples, and the same prompts and weightings.
    """
    found: dict[str, list[Floats]] = {}
    for a, b in zip(mine, theirs, strict=True):
        of_a = measure(a.where_also(b), base, None, counts_RP)
        of_b = measure(b.where_also(a), base, None, counts_RP)
        for name in LEADS:
            if name in of_a and name in of_b:
                found.setdefault(name, []).append(of_a[name] - of_b[name])
    return {name: np.mean(drawn, axis=0) for name, drawn in found.items()}
