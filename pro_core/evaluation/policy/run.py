"""One evaluation of policies and its files: their responses to a grid of requests, and all scores of these.

`python train/evaluate.py policies recipes/stock_policies.yaml` leads here. The measures of the answers are in
:mod:`pro_core.evaluation.policy.weights` and :mod:`pro_core.evaluation.policy.levels`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pro_core.data.objectives import Message
from pro_core.data.sources import default_data_dir
from pro_core.evaluation.policy.grids import Requests
from pro_core.evaluation.policy.metrics import Answers
from pro_core.evaluation.policy.policies import NamedPolicies
from pro_core.evaluation.policy.prompts import held_out_prompts
from pro_core.evaluation.policy.recipe import EvaluationRecipe
from pro_core.evaluation.policy.responses import Policy, best_answer, respond
from pro_core.evaluation.policy.scoring import (
    Array,
    Judges,
    ScoreCache,
    Taught,
    Texts,
    version_of,
)
from pro_core.evaluation.policy.text_quality import LanguageModel
from pro_core.generation import GenerationSettings, LocalGenerator, Request
from pro_core.generation.responses import Response
from pro_core.rewards.scores import progress
from pro_core.runs.recipes import ConfigError
from pro_core.system.processes import process_device


@dataclass(frozen=True)
class Likelihood:
    """The model that measures perplexity, and whether each policy is compared with it on its own responses."""

    model: LanguageModel
    of_policies: bool


class PolicyRun:
    """A recipe with what it names: policies, judges and prompts.

    Args:
        taught: what trained the policies or chose their answers. likelihood: None: no perplexity, no log-ratio.

    The measures of a missing judge are left out, with a message that names the command to train it. One line says which
    judges there are, and their own accuracies.

    Attributes:
        scored_by: role -> version of what taught the policies and of each judge, as in result rows.

    Raises:
        ConfigError: a judge is the panel that taught the policies. StorageError, DataError: as their loaders do.
    """

    def __init__(
        self,
        recipe: EvaluationRecipe,
        split: str,
        taught: Taught,
        policies: NamedPolicies,
        likelihood: Likelihood | None = None,
    ):
        self.recipe, self.split, self.taught, self.policies = recipe, split, taught, policies
        self.objective_names = taught.objective_names
        self.output = Path(recipe.output)
        self.judges = Judges.load(recipe, taught.scorer, process_device())
        print(f"judges, with accuracy on test pairs: {self.judges.described()}", file=sys.stderr)
        scorers = {taught.role: taught.scorer, **self.judges.by_role}
        self.scored_by = {role: version_of(scorer) for role, scorer in scorers.items()}
        self.settings = GenerationSettings(recipe.max_new_tokens, recipe.temperature, recipe.top_p)
        self.prompts = held_out_prompts(
            recipe.data,
            recipe.data_dir or default_data_dir(),
            split,
            recipe.prompts,
            recipe.longest_prompt,
        )
        self.likelihood = likelihood
        self.cache = ScoreCache(self.output / "scores.sqlite", self.prompts)

    def seeds_of(self, name: str) -> list[int]:
        """The seeds whose checkpoint exists; prints which are missing."""
        missing = {seed: self.policies.missing(name, seed) for seed in self.recipe.seeds}
        for seed, folder in missing.items():
            if folder:
                print(f"{name}, seed {seed}: {folder} is not there, left out", file=sys.stderr)
        return [seed for seed in self.recipe.seeds if not missing[seed]]

    def responses(
        self, policy: Policy, seed: int, requests: Sequence[Request], about: str
    ) -> list[list[Response]]:
        """See :func:`pro_core.evaluation.policy.responses.respond`."""
        return respond(
            policy,
            requests,
            self.settings,
            seed,
            self.output / "responses",
            self.recipe.batch_size,
            progress(f"{policy.name}, seed {seed}, {about}", "prompts answered"),
        )

    def shown(self, texts: Texts) -> Array:
        """Scores (N, K) of responses by what taught the policies, over this run's objectives; NaN where missing."""
        raw = self.cache.scores(self.taught.scorer, texts, "panel")
        return self.taught.shown(raw, [text for _, text in texts])

    def chosen(
        self, written: Sequence[Sequence[Response]], requests: Sequence[Request]
    ) -> list[Response | None]:
        """Each prompt's candidate with the largest weighted sum of the panel's scores; None where all failed."""
        listed = [
            (p, a) for p, candidates in enumerate(written) for a in candidates if a.text is not None
        ]
        if all(len(candidates) == 1 for candidates in written):
            single = dict(listed)
            return [single.get(p) for p in range(len(written))]
        z = self.shown([(p, str(answer.text)) for p, answer in listed])
        of_prompt = np.array([p for p, _ in listed])
        chosen: list[Response | None] = []
        for p, request in enumerate(requests):
            rows = np.flatnonzero(of_prompt == p)
            weights = list((request.weights or {}).values())
            best = best_answer(z[rows], weights) if len(rows) else None
            chosen.append(None if best is None else listed[rows[best]][1])
        return chosen

    def answers(self, name: str, seed: int, requests: Requests, about: str) -> Answers:
        """The policy's responses to W requests for each of P prompts, with all their scores.

        Args:
            about: the word for a request in progress messages.

        Raises:
            ConfigError: there is not one response; the message gives the first reason.
        """
        policy, W, P = self.policies(name, seed), len(requests), len(self.prompts)
        texts: list[list[str | None]] = []
        failures: list[tuple[int, int, str]] = []
        cut = 0
        for w, asked in enumerate(requests):
            number = f"{about} {w + 1} of {W}" if W > 1 else about
            written = self.responses(policy, seed, asked, number)
            chosen = self.chosen(written, asked)
            texts.append([None if answer is None else answer.text for answer in chosen])
            cut += sum(a is not None and a.finish in ("length", "filter") for a in chosen)
            for p in (p for p, text in enumerate(texts[w]) if text is None):
                reasons = [a.error for a in written[p] if a.error] or ["no candidate has a score"]
                failures.append((w, p, reasons[0]))
        if failures:
            print(f"{name}, seed {seed}: {_listed(failures, self.prompts)}", file=sys.stderr)
        if len(failures) == W * P:
            raise ConfigError(f"{name}, seed {seed}: not one response; {failures[0][2]}")
        answered = [(w, p) for w in range(W) for p in range(P) if texts[w][p] is not None]
        written_texts = [(p, str(texts[w][p])) for w, p in answered]
        rows = tuple(np.array(answered).T)

        def placed(values: NDArray) -> NDArray[np.float64]:
            grid = np.full((W, P, values.shape[1]), np.nan)
            grid[rows] = values
            return grid

        scores = placed(self.shown(written_texts))
        result = Answers(texts, scores, failures=failures, cut=cut)
        overall, heldout = self.judges.overall, self.judges.heldout
        if overall is not None:
            scores_N1 = self.cache.scores(overall, written_texts, "judge")
            result.judge_WP = placed(scores_N1)[:, :, 0]
        if heldout is not None:
            result.heldout_WPJ = placed(self.cache.scores(heldout, written_texts, "held-out panel"))
        if self.likelihood is not None:
            surprise = self.cache.surprise(self.likelihood.model, written_texts, "perplexity")
            result.surprise_WP2 = placed(surprise)
            if self.likelihood.of_policies:
                asked = [requests[w][p] for w, p in answered]
                under_policy = self._own_surprise(policy, asked, written_texts)
                if under_policy is not None:
                    result.kl_WP = placed(surprise[:, :1] - under_policy[:, :1])[:, :, 0]
        return result

    def _own_surprise(
        self, policy: Policy, requests: Sequence[Request], texts: Texts
    ) -> Array | None:
        """Nats and tokens of a policy's responses under itself, (N, 2); None unless they come from one local model."""
        writer = policy.generator(requests[0])
        mixed = writer.policy is not None and bool(writer.policy.ranks)
        if not isinstance(writer, LocalGenerator) or policy.candidates != 1 or mixed:
            return None
        read = [policy.reads(request).messages for request in requests]
        model = LanguageModel(writer.path_or_id, process_device())
        return self.cache.surprise(model, texts, f"{policy.name}, log-ratio", read)


def _listed(failures: Sequence[tuple[int, int, str]], prompts: Sequence[Sequence[Message]]) -> str:
    """How many responses failed, for how many prompts, and the first three of these."""
    of_prompt = {p: error for _, p, error in reversed(failures)}
    shown = [f"prompt {p} ({error})" for p, error in list(of_prompt.items())[::-1][:3]]
    return (
        f"{len(failures)} responses to {len(of_prompt)} of {len(prompts)} prompts failed and are left out; the next "
        f"run tries them again: {'; '.join(shown)}"
    )
