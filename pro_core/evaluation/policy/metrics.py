"""Answers of policies, and the measures that fit every kind of request: means with intervals, judges, texts.

A policy answered P prompts under W requests. A missing response or a NaN score is counted and left out, never taken
for 0: means run over the rest, and two policies are compared on the prompts that both answered under the same request.

Intervals are a bootstrap over prompts. Every policy, request and seed is measured on the same resamples of the same
prompts. So differences are paired, and a difference between seeds is not mistaken for one between prompts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from pro_core.evaluation.policy.text_quality import distinct_n
from pro_core.metrics import RESAMPLES, prompt_counts
from pro_core.rewards.calibration import RewardStats
from pro_core.runs.recipes import ConfigError

Floats = NDArray[np.float64]
Draws = dict[str, Floats]
"""Each measure under each resample of the prompts, (R,); the first entry is the value itself."""


@dataclass
class Answers:
    """The responses of one policy under one seed, and their scores; higher is better.

    Attributes:
        texts: W lists of P texts, None where generation failed.
        scores_WPK: by what taught the policies: a panel's standardized scores, or a classifier's expected levels.
        judge_WP: the overall judge's raw scores. heldout_WPJ: the held-out panel's.
        surprise_WP2: nats and tokens under the base model. kl_WP: log p of the response under the policy minus that
            under the base model. NaN in any of these: no score. None: not measured.
        failures: (request, prompt, what went wrong). cut: responses that the token limit or a filter cut.
    """

    texts: list[list[str | None]]
    scores_WPK: Floats
    judge_WP: Floats | None = None
    heldout_WPJ: Floats | None = None
    surprise_WP2: Floats | None = None
    kl_WP: Floats | None = None
    failures: list[tuple[int, int, str]] = field(default_factory=list)
    cut: int = 0

    def where_also(self, other: Answers) -> Answers:
        """A copy with only the scores that the other has at the same place, so that the two can be compared."""

        def kept(scores: Floats | None, others: Floats | None) -> Floats | None:
            if scores is None or others is None:
                return None
            return np.where(np.isfinite(others), scores, np.nan)

        scored = np.isfinite(other.scores_WPK).all(axis=2, keepdims=True)
        return replace(
            self,
            scores_WPK=np.where(scored, self.scores_WPK, np.nan),
            judge_WP=kept(self.judge_WP, other.judge_WP),
            heldout_WPJ=kept(self.heldout_WPJ, other.heldout_WPJ),
        )


@dataclass(frozen=True)
class JudgeUnits:
    """Means and deviations of the judges' raw scores over responses of the base policy; None without a judge.

    In these units 0 is the mean of the base's responses, 1 their standard deviation.
    """

    judge: RewardStats | None
    heldout: RewardStats | None


def fitted_units(
    scores_NK: ArrayLike, objective_names: Sequence[str], reference: str, base: str
) -> RewardStats:
    """Mean and deviation of the finite scores of the policy ``base``.

    Raises:
        ConfigError: fewer than two responses have scores.
    """
    scores = np.asarray(scores_NK)
    finite = scores[np.isfinite(scores).all(axis=1)]
    try:
        return RewardStats.fit(finite, objective_names, reference)
    except ValueError as error:
        raise ConfigError(f"{base}, the base policy: {error}", ["base"]) from None


def judged(answers: Answers, units: JudgeUnits) -> dict[str, Floats]:
    """The judges' scores of each response in ``units``, and its length in characters: (W, P) each, NaN where missing.

    ``heldout_score`` is the mean over the held-out panel's objectives.
    """
    values: dict[str, Floats] = {}
    if units.judge is not None and answers.judge_WP is not None:
        values["judge_score"] = in_units(units.judge, answers.judge_WP[:, :, None])[:, :, 0]
    if units.heldout is not None and answers.heldout_WPJ is not None:
        z = in_units(units.heldout, answers.heldout_WPJ)
        values |= {f"heldout_{n}": z[:, :, j] for j, n in enumerate(units.heldout.objective_names)}
        values["heldout_score"] = z.mean(axis=2)
    lengths = [[np.nan if t is None else float(len(t)) for t in row] for row in answers.texts]
    return values | {"length": np.array(lengths)}


def in_units(stats: RewardStats, scores: ArrayLike) -> Floats:
    """Scores (..., K) in units of the base model's responses: minus their mean, divided by their deviation."""
    return (np.asarray(scores, dtype=np.float64) - stats.mean) / stats.std


def resampled(P: int, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """How often each prompt counts in each resample, (1 + resamples, P); once each in the first."""
    counts = (
        prompt_counts([str(p) for p in range(P)], resamples, seed)[1] if P else np.zeros((0, 0))
    )
    return np.concatenate([np.ones((1, P)), counts]).astype(np.float64)


def means(values_PM: ArrayLike, counts_RP: Floats) -> Floats:
    """Means over prompts, (R, M) from values (P, M). NaN is left out; NaN where a resample has no value at all."""
    values = np.asarray(values_PM, dtype=np.float64)
    finite = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return (counts_RP @ np.where(finite, values, 0.0)) / (counts_RP @ finite)


def point_means(values_WPK: ArrayLike, counts_RP: Floats) -> Floats:
    """The mean over prompts under each request: (R, W, K) from (W, P, K)."""
    return np.stack([means(values, counts_RP) for values in np.asarray(values_WPK)], axis=1)


def over_points(values_RWK: Floats) -> Floats:
    """The mean over the requests that have a value: (R, K)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NaN is right where no request has a value
        return np.nanmean(values_RWK, axis=1)


def rank_correlation(asked_W: ArrayLike, obtained_W: ArrayLike) -> float:
    """Spearman's correlation over one prompt's requests that have a score; 0 where all scores are the same.

    NaN where fewer than two requests have a score, or all ask for the same.
    """
    asked, obtained = np.asarray(asked_W, dtype=float), np.asarray(obtained_W, dtype=float)
    scored = np.isfinite(obtained)
    if scored.sum() < 2 or np.ptp(asked[scored]) == 0:
        return float("nan")
    x, y = rankdata(asked[scored]), rankdata(obtained[scored])
    if np.ptp(y) == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def over_requests(values_WP: ArrayLike, counts_RP: Floats) -> Floats:
    """The mean of values (W, P) over prompts, then over the requests that have a value: (R,)."""
    return over_points(point_means(np.asarray(values_WP)[:, :, None], counts_RP))[:, 0]


def paired_gaps(
    pairs: Iterable[tuple[Answers, Answers]], measured: Callable[[Answers], Draws]
) -> Draws:
    """Each measure of the first answers minus that of the second, averaged over the pairs: (R,) each.

    They are paired: the same resamples, prompts and requests, and only what both have scores for.
    """
    gaps = []
    for a, b in pairs:
        of_a, of_b = measured(a.where_also(b)), measured(b.where_also(a))
        gaps.append({name: of_a[name] - of_b[name] for name in of_a if name in of_b})
    return averaged(gaps)


def averaged(draws: Sequence[Draws]) -> Draws:
    """The mean over seeds under each resample, of the measures that every seed has."""
    common = [name for name in draws[0] if all(name in drawn for drawn in draws)]
    return {name: np.mean([drawn[name] for drawn in draws], axis=0) for name in common}


def text_measures(answers: Answers) -> dict[str, float]:
    """Distinct n-grams (averaged over requests), and the counts of failed, cut, empty and unscored responses.

    They have no interval: a resample that draws a prompt twice would count its text as repetition.
    """
    written = [[t for t in texts if t is not None] for texts in answers.texts]
    measures: dict[str, float] = {}
    for n in (1, 2, 3):
        values = [v for v in (distinct_n(texts, n) for texts in written) if np.isfinite(v)]
        if values:
            measures[f"distinct_{n}"] = float(np.mean(values))
    scored = np.isfinite(answers.scores_WPK).all(axis=2)
    texts = [t for row in written for t in row]
    return measures | {
        "responses": len(texts),
        "failed": len(answers.failures),
        "cut": answers.cut,
        "empty": sum(not t.strip() for t in texts),
        "unscored": int(len(texts) - scored.sum()),
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
