"""Result rows of policies under a grid of weights; :mod:`pro_core.evaluation.policy.weights` has the measures.

Besides the rows of :mod:`pro_core.evaluation.policy.rows`, a row of kind ``base`` holds the units that the base model
fixes. Measures that end in ``_adapter`` use the adapter's weights for each prompt instead of the grid.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from pro_core.adapter.model import PreferenceAdapter
from pro_core.evaluation.policy.grids import Grid, simplex_grid, weight_requests
from pro_core.evaluation.policy.metrics import (
    Answers,
    Draws,
    Floats,
    JudgeUnits,
    fitted_units,
    in_units,
    judged,
    point_means,
    text_measures,
)
from pro_core.evaluation.policy.policies import NamedPolicies
from pro_core.evaluation.policy.recipe import PolicyEvaluation
from pro_core.evaluation.policy.rows import Answered, study_rows
from pro_core.evaluation.policy.run import Likelihood, PolicyRun
from pro_core.evaluation.policy.scoring import PanelScores
from pro_core.evaluation.policy.text_quality import LanguageModel
from pro_core.evaluation.policy.weights import (
    REFERENCE_POINT,
    Base,
    front_size,
    leads,
    measure,
)
from pro_core.evaluation.results import Row, result_row
from pro_core.policies.recipe import check_objectives
from pro_core.rewards.panel import RewardPanel
from pro_core.runs.recipes import ConfigError
from pro_core.system.processes import process_device
from pro_core.system.storage import read_config, write_config
from pro_core.weights import AdapterWeights, SelectedWeights

FORMAT = "pro-policy-base"
REFERENCE_DRAW = -1
"""Used in place of a seed, so that no best-of-N is graded on the very texts that make the reference front."""
UNDER_ADAPTER = ("judge_score", "judge_win_rate", "heldout_score", "mean_weighted_score", "length")
POINT = ("judge_score", "heldout_score", "length")


def policy_rows(recipe: PolicyEvaluation, split: str = "test") -> list[Row]:
    """All rows of a recipe. The base model's statistics are fixed before any policy is measured."""
    study = WeightStudy(recipe, split)
    return [_base_row(study), *study_rows(study)]


class WeightStudy:
    """Policies under a grid of weights and, with an adapter, under its weights for each prompt.

    Raises:
        ConfigError: the panel or adapter lacks an objective, or the grid is too small. Otherwise as :class:`PolicyRun`.
    """

    about = "weights"

    def __init__(self, recipe: PolicyEvaluation, split: str = "test"):
        panel = RewardPanel.from_pretrained(recipe.panel, process_device())
        self.scores = PanelScores(recipe.panel, panel, recipe.objectives)
        names = self.scores.objective_names
        try:
            self.grid = Grid("weights", names, simplex_grid(len(names), recipe.weights))
        except ValueError as error:
            raise ConfigError(str(error), ["weights"]) from None
        policies = NamedPolicies.under_weights(recipe.policies, names, panel)
        self.recipe = recipe
        self.run = PolicyRun(recipe, split, self.scores, policies, _likelihood(recipe))
        self.adapter_weights_PK = self._adapter_weights()
        self._under_adapter: Answered = {}

    def _adapter_weights(self) -> Floats | None:
        """The adapter's weights for each prompt (P, K), among this run's objectives; None without an adapter."""
        if self.recipe.adapter is None:
            return None
        adapter = PreferenceAdapter.from_pretrained(self.recipe.adapter)
        names = self.grid.objective_names
        check_objectives("adapter", self.recipe.adapter, adapter.objective_names, names)
        selected = SelectedWeights(AdapterWeights(adapter), names)
        return selected(self.run.prompts).astype(np.float64)

    @cached_property
    def base(self) -> Base:
        """Units, reference point and reference front, from the base model alone; made once, then read from a file."""
        return base_of(self)

    @property
    def weights_WPK(self) -> Floats:
        """The grid's weights, repeated for each prompt."""
        return np.repeat(self.grid.values_WK[:, None, :], len(self.run.prompts), axis=1)

    def measures(self, name: str, seed: int, answered: Answered, counts_RP: Floats) -> Draws:
        of_base = answered[self.recipe.base].get(seed)
        draws = measure(answered[name][seed], self.weights_WPK, self.base, of_base, counts_RP)
        weights = self.adapter_weights_PK
        if weights is None:
            return draws
        requests = [weight_requests(self.run.prompts, weights, self.grid.objective_names)]
        answers = self.run.answers(name, seed, requests, "the adapter's weights")
        self._under_adapter.setdefault(name, {})[seed] = answers
        of_base = self._under_adapter[self.recipe.base].get(seed)
        under = measure(answers, weights[None], self.base, of_base, counts_RP)
        kept = (*UNDER_ADAPTER, *(f"mean_{name}" for name in self.grid.objective_names))
        return draws | {f"{key}_adapter": under[key] for key in kept if key in under}

    def without_interval(self, answers: Answers) -> dict[str, float]:
        return text_measures(answers) | front_size(answers)

    def of_response(self, answers: Answers) -> dict[str, Floats]:
        names = self.grid.objective_names
        values = {f"mean_{name}": answers.scores_WPK[:, :, k] for k, name in enumerate(names)}
        of_judges = judged(answers, self.base.judges)
        return values | {key: of_judges[key] for key in POINT if key in of_judges}

    def leads(
        self, name: str, other: str, seeds: Sequence[int], answered: Answered, counts_RP: Floats
    ) -> Draws:
        def led(of: Answered, weights_WPK: Floats) -> Draws:
            mine, theirs = ([of[policy][seed] for seed in seeds] for policy in (name, other))
            return leads(mine, theirs, weights_WPK, self.base, counts_RP)

        draws = led(answered, self.weights_WPK)
        if self.adapter_weights_PK is not None:
            under = led(self._under_adapter, self.adapter_weights_PK[None])
            draws |= {f"{key}_adapter": v for key, v in under.items() if key in UNDER_ADAPTER}
        return draws


def _likelihood(recipe: PolicyEvaluation) -> Likelihood | None:
    if recipe.perplexity is False:
        return None
    of_base = recipe.entry(recipe.base).model.format(seed=recipe.seeds[0])
    return Likelihood(LanguageModel(recipe.perplexity or of_base, process_device()), recipe.kl)


def base_of(study: WeightStudy) -> Base:
    """What the base model fixes, see :class:`Base`; read from the output folder once it is there.

    It is made from ``reference_candidates`` responses of the base policy to each prompt, a draw that grades no policy.

    Raises:
        ConfigError: there is not one response, or fewer than two have scores.
    """
    run, recipe, grid = study.run, study.recipe, study.grid
    name, n, seed = recipe.base, recipe.reference_candidates, recipe.seeds[0]
    policy, entry = run.policies(name, seed, candidates=n), recipe.entry(name)
    K = len(grid.objective_names)
    even = weight_requests(run.prompts, np.full((len(run.prompts), K), 1 / K), grid.objective_names)
    judges = (run.judges.overall, run.judges.heldout)
    decides = [
        policy.identity(even[0]),
        study.scores.scorer.fingerprint(),
        study.scores.stats.to_dict(),
        [None if judge is None else judge.fingerprint() for judge in judges],
        [grid.objective_names, run.prompts, grid.values_WK.tolist(), str(run.settings)],
        [seed, REFERENCE_DRAW, n, recipe.batch_size, entry.model_dump(exclude_unset=True)],
    ]
    key = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]
    file = f"base-{key}.json"
    if (run.output / file).is_file():
        return Base.from_dict(read_config(run.output, file, FORMAT))
    written = run.responses(policy, REFERENCE_DRAW, even, f"{n} for reference")
    texts = [
        (p, a.text)
        for p, candidates in enumerate(written)
        for a in candidates
        if a.text is not None
    ]
    if not texts:
        raise ConfigError(f"{name}, the base policy: not one response; {written[0][0].error}")
    reference = f"{len(texts)} responses of {name} to {len(run.prompts)} {run.split} prompts, a draw of their own"
    stats = fitted_units(run.shown(texts), grid.objective_names, reference, name)
    units = [
        None
        if judge is None
        else fitted_units(
            run.cache.scores(judge, texts, about), judge.objective_names, reference, name
        )
        for judge, about in zip(judges, ("judge", "held-out panel"), strict=True)
    ]
    best_WPK = np.full((len(grid), len(run.prompts), K), np.nan)
    for w, requests in enumerate(grid.requests(run.prompts)):
        chosen = run.chosen(written, requests)
        best = [(p, str(answer.text)) for p, answer in enumerate(chosen) if answer is not None]
        best_WPK[w, [p for p, _ in best]] = run.shown(best)
    once = np.ones((1, len(run.prompts)))
    points = point_means(in_units(stats, best_WPK), once)[0]
    points = points[np.isfinite(points).all(axis=1)]
    base = Base(stats, JudgeUnits(*units), points, n, reference)
    write_config(run.output, file, {"format": FORMAT} | base.to_dict())
    return base


def _base_row(study: WeightStudy) -> Row:
    """Means and deviations of the scores of the base model's responses, and the reference point in those units."""
    run, base = study.run, study.base
    metrics: dict[str, float] = {
        "reference_point": REFERENCE_POINT,
        "reference_candidates": base.candidates,
    }
    units = (("z", base.panel), ("judge", base.judges.judge), ("heldout", base.judges.heldout))
    for prefix, stats in units:
        if stats is None:
            continue
        for k, name in enumerate(stats.objective_names):
            metrics[f"mean_{prefix}_{name}"] = float(stats.mean[k])
            metrics[f"std_{prefix}_{name}"] = float(stats.std[k])
    return result_row(
        study.recipe.experiment,
        study.recipe.base,
        study.recipe.seeds[0],
        run.split,
        base.panel.n,
        metrics,
        config=study.recipe.config,
        kind="base",
        objectives=list(run.objective_names),
        heldout_objectives=run.judges.heldout_names,
        scored_by=run.scored_by,
    )
