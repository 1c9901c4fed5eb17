"""Whether a policy of MOSLIM gives the levels that it is asked for: its Figures 5 and 6.

Every policy answers the held-out prompts under each level of each objective alone, and under the lowest and highest
levels of each pair. What it gave is the level that the classifier expects of the response, sum_l l p(l); where a judge
or a held-out panel is there, they say it, too: the classifier taught the policy, and judges nobody. A stock model is
asked in the same words: what training adds is what it does beyond that.

Rows: one for each method and seed, one for each method over all seeds with its leads, paired over prompts, and one for
each request.

    spearman_<objective>: of the level asked for and the level given, within prompts; -1 to 1.
    gain_<objective>: the level given at the highest asked less that at the lowest.
    gain_<objective>_beside_<other>: the same while the other is asked for, too.
    mean_<objective>: the level given, over all requests.

``spearman_heldout_<objective>`` is by the held-out panel's score; ``judge_score`` and ``heldout_<objective>`` are in
units of the base policy's responses under all requests. Intervals are a bootstrap over prompts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pro_core.data.objectives import Prompt
from pro_core.evaluation.policy.metrics import (
    Answers,
    Floats,
    in_units,
    means,
    over_points,
    point_means,
    rank_correlation,
    resampled,
    summary,
    text_measures,
)
from pro_core.evaluation.policy.recipe import OPTIONAL, REQUIRED, RecipePolicies
from pro_core.evaluation.policy.responses import GeneratorPolicy
from pro_core.evaluation.policy.rows import averaged, joined, method_row
from pro_core.evaluation.policy.run import PolicyRun
from pro_core.evaluation.results import lead, result_row
from pro_core.generation.request import Request
from pro_core.policies.recipe import check_objectives
from pro_core.policies.rl.levels import level_condition
from pro_core.prompting.templates import Condition
from pro_core.rewards.calibration import RewardStats
from pro_core.rewards.classifier import RewardClassifier
from pro_core.runs.training import ConfigError

Units = dict[str, RewardStats | None]


class ExpectedLevels:
    """A classifier where the kit has a panel: an objective's score is its expected level, 1 to its highest."""

    def __init__(self, classifier: RewardClassifier):
        self.classifier, self.objective_names = classifier, classifier.objective_names

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        on_progress: Callable[[int, int], None] | None = None,
        allow_missing: bool = False,
    ) -> NDArray[np.float32]:
        """(N, K); NaN where the classifier gave no number."""
        p = self.classifier.probabilities(prompts, completions, allow_missing)
        return self.classifier.expected_levels(p)

    def fingerprint(self) -> str:
        return self.classifier.fingerprint()

    def require_stats(self) -> RewardStats:
        """Those that leave levels as they are."""
        K = len(self.objective_names)
        return RewardStats(self.objective_names, np.zeros(K), np.ones(K))


@dataclass
class LevelPolicy(GeneratorPolicy):
    """A policy whose "weights" are levels (K,), 0 where an objective is not named."""

    condition: Condition | None = None

    def request(self, prompt: Prompt, weights: NDArray[np.float32]) -> Request:
        """The levels stand in the prompt of a stock model, too."""
        assert self.condition is not None
        return Request(self.condition.add(prompt, self.condition.level_text(weights.tolist())))


class LevelPolicies(RecipePolicies):
    """As :class:`RecipePolicies`; every one is asked by one condition, and writes one answer.

    Raises:
        ConfigError: a checkpoint that reads something else, such as other levels.
    """

    def __init__(self, entries: Sequence[Any], condition: Condition):
        super().__init__(entries, condition.objective_names)
        self.condition = condition
        for name, entry in self.entries.items():
            if entry.get("candidates", 1) != 1:
                raise ConfigError(f"{name}: got candidates, expected one answer to each request")

    def __call__(self, name: str, seed: int, candidates: int | None = None) -> LevelPolicy:
        found = super().__call__(name, seed)
        assert isinstance(found, GeneratorPolicy)
        config = found.load().policy
        if config and config.condition and config.condition != self.condition:
            reads = config.condition
            raise ConfigError(
                f"{name}: it reads {reads.kind} of {list(reads.objective_names)}, {reads.level_counts}; this recipe "
                f"asks for levels of {list(self.objective_names)}, {self.condition.level_counts}: name the classifier "
                "and the objectives that it was trained with"
            )
        return LevelPolicy(name, found.load, found.source, self.objective_names, 1, self.condition)


class LevelRun(PolicyRun):
    """A recipe of `train/evaluate.py levels`; the grid holds levels where :class:`PolicyRun` has weights."""

    keys = (
        tuple("classifier" if key == "panel" else key for key in REQUIRED),
        {
            k: v
            for k, v in OPTIONAL.items()
            if k not in ("weights", "adapter", "reference_candidates")
        },
    )

    def _panel(self) -> Any:
        source = self.recipe["classifier"]
        classifier = RewardClassifier.from_pretrained(source, self.device)
        names = self.recipe["objectives"] or classifier.objective_names
        check_objectives("classifier", source, classifier.objective_names, names)
        self.condition = level_condition(classifier, names)
        return ExpectedLevels(classifier)

    def _policies(self) -> RecipePolicies:
        return LevelPolicies(self.recipe["policies"], self.condition)

    def _grid(self) -> Floats:
        return requests(self.condition.level_counts or ())

    def _default_weights(self) -> None:
        return None


def requests(counts: Sequence[int]) -> Floats:
    """What is asked for, levels (W, K), 0 where an objective is not named: each level of each objective alone, then
    the lowest and highest of each pair."""
    K, found = len(counts), []
    for k, count in enumerate(counts):
        found += [{k: level} for level in range(1, count + 1)]
    for a, b in combinations(range(K), 2):
        corners = product(sorted({1, counts[a]}), sorted({1, counts[b]}))
        found += [{a: i, b: j} for i, j in corners]
    levels = np.zeros((len(found), K))
    for w, asked in enumerate(found):
        levels[w, list(asked)] = list(asked.values())
    return levels


def level_rows(recipe_path: str | Path, split: str) -> list[dict[str, Any]]:
    """All rows of a recipe; the base comes first, whose responses are the judges' units."""
    run = LevelRun(recipe_path, split)
    first = run.recipe["base"]
    names = [first, *(name for name in run.policy.entries if name != first)]
    counts_RP = resampled(len(run.prompts))
    asked_WPK = np.repeat(run.weights_WK[:, None, :], len(run.prompts), axis=1)
    answers: dict[str, dict[int, Answers]] = {}
    rows: list[dict[str, Any]] = []
    units: Units | None = None
    for name in names:
        draws, texts = [], []
        for seed in run.seeds_of(name):
            started = time.monotonic()
            mine = run.answers(name, seed, asked_WPK, "request")
            units = units or base_units(run, mine)
            answers.setdefault(name, {})[seed] = mine
            draws.append(control(run, mine, units, counts_RP))
            texts.append(_counts(mine))
            wall = time.monotonic() - started
            rows.append(method_row(run, name, seed, draws[-1], texts[-1], wall))
            rows += _point_rows(run, name, seed, mine, units, counts_RP)
        if draws:
            pooled = joined(draws, texts)
            rows.append(method_row(run, name, None, averaged(draws), pooled))
    for row in [row for row in rows if row["seed"] is None]:
        for other in run.compared:
            common = set(answers[row["method"]]) & set(answers.get(other, ()))
            if other == row["method"] or not common or units is None:
                continue
            gaps = []
            for seed in sorted(common):
                a, b = answers[row["method"]][seed], answers[other][seed]
                of_a = control(run, a.where_also(b), units, counts_RP)
                of_b = control(run, b.where_also(a), units, counts_RP)
                gaps.append({key: of_a[key] - of_b[key] for key in of_a if key in of_b})
            row["leads"][other] = lead(*summary(averaged(gaps)))
    return rows


def base_units(run: LevelRun, answers: Answers) -> Units:
    """Mean and deviation of the judges' scores over these responses; None for a judge that is not there.

    Raises:
        ConfigError: fewer than two responses have scores.
    """
    found: Units = {}
    about = f"responses of {run.recipe['base']} under {len(run.weights_WK)} requests"
    for key, judge, scores in (
        ("judge", run.judge, answers.judge_WP),
        ("heldout", run.heldout, answers.heldout_WPJ),
    ):
        found[key] = None
        if judge is not None and scores is not None:
            flat = scores.reshape(-1, len(judge.objective_names))
            try:
                there = flat[np.isfinite(flat).all(axis=1)]
                found[key] = RewardStats.fit(there, judge.objective_names, about)
            except ValueError as error:
                raise ConfigError(f"{run.recipe['base']}, which is the base: {error}") from None
    return found


def control(run: LevelRun, answers: Answers, units: Units, counts_RP: Floats) -> dict[str, Floats]:
    """Each measure of the module's table under each resample of the prompts, (R,)."""
    asked, names = run.weights_WK, run.objective_names
    named = (asked > 0).sum(axis=1)
    scores = _scores(run, answers, units)
    found: dict[str, Floats] = {}

    def add(key: str, values_P: Sequence[float] | Floats) -> None:
        found[key] = means(np.asarray(values_P)[:, None], counts_RP)[:, 0]

    for k, name in enumerate(names):
        alone = np.flatnonzero((asked[:, k] > 0) & (named == 1))
        if len(alone) < 2:
            continue  # one level: nothing to follow
        for prefix, key in (("", f"mean_{name}"), ("heldout_", f"heldout_{name}")):
            if key in scores:
                at = scores[key][alone]
                follows = [rank_correlation(asked[alone, k], given) for given in at.T]
                add(f"spearman_{prefix}{name}", follows)
        level_WP = scores[f"mean_{name}"]
        add(f"gain_{name}", level_WP[alone[-1]] - level_WP[alone[0]])
        for j, other in enumerate(names):
            pair = (asked[:, k] > 0) & (asked[:, j] > 0) & (named == 2)
            if j == k or not pair.any():
                continue
            high, low = (
                level_WP[pair & (asked[:, k] == level)].mean(axis=0)
                for level in (asked[:, k].max(), 1)
            )
            add(f"gain_{name}_beside_{other}", high - low)
    for key, values_WP in scores.items():
        found[key] = over_points(point_means(values_WP[:, :, None], counts_RP))[:, 0]
    return found


def _scores(run: LevelRun, answers: Answers, units: Units) -> dict[str, Floats]:
    """Everything that is measured of a response, (W, P) each; NaN where there is none."""
    found = {f"mean_{n}": answers.z_WPK[:, :, k] for k, n in enumerate(run.objective_names)}
    judge, heldout = units["judge"], units["heldout"]
    if judge is not None and answers.judge_WP is not None:
        found["judge_score"] = in_units(judge, answers.judge_WP[:, :, None])[:, :, 0]
    if heldout is not None and answers.heldout_WPJ is not None:
        z = in_units(heldout, answers.heldout_WPJ)
        found |= {f"heldout_{n}": z[:, :, j] for j, n in enumerate(heldout.objective_names)}
        found["heldout_score"] = z.mean(axis=2)
    lengths = [[np.nan if t is None else float(len(t)) for t in row] for row in answers.texts]
    found["length"] = np.array(lengths)
    return found


def _counts(answers: Answers) -> dict[str, float]:
    """Of :func:`text_measures` what does not speak of a front."""
    return {k: v for k, v in text_measures(answers).items() if not k.startswith("points")}


def _point_rows(
    run: LevelRun, name: str, seed: int, answers: Answers, units: Units, counts_RP: Floats
) -> list[dict[str, Any]]:
    rows, scores = [], _scores(run, answers, units)
    for w, levels in enumerate(run.weights_WK):
        drawn = {k: means(v[w][:, None], counts_RP)[:, 0] for k, v in scores.items()}
        values, intervals = summary(drawn)
        pairs = zip(run.objective_names, levels, strict=True)
        scored = int(np.isfinite(answers.z_WPK[w]).all(axis=1).sum())
        where = (run.recipe["experiment"], name, seed, run.split, scored)
        columns = {
            "request": {"levels": {n: int(level) for n, level in pairs if level}},
            "objectives": list(run.objective_names),
            "heldout_objectives": list(run.heldout.objective_names) if run.heldout else [],
        }
        rows.append(result_row(*where, values, intervals, run.config, kind="point", **columns))
    return rows
