"""What scores responses: the panel or classifier that taught the policies, independent judges, a language model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pro_core.data.objectives import Message, Prompt
from pro_core.evaluation.policy.recipe import EvaluationRecipe
from pro_core.evaluation.policy.text_quality import LanguageModel
from pro_core.policies.recipe import check_objectives
from pro_core.policies.rl.levels import level_condition
from pro_core.rewards.calibration import text_lengths
from pro_core.rewards.classifier import RewardClassifier
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.scores import progress
from pro_core.runs.recipes import ConfigError
from pro_core.system.cache import Cache, text_key

Array = NDArray[np.float32]
Conversation = Sequence[Message]
Texts = Sequence[tuple[int, str]]
"""Responses, each with the index of its prompt."""
RECIPES = {"judge": "recipes/judge.yaml", "heldout_panel": "recipes/heldout_panel.yaml"}


class Scorer(Protocol):
    """A :class:`RewardPanel`, or anything that scores like one."""

    @property
    def objective_names(self) -> Sequence[str]: ...

    def fingerprint(self) -> str: ...

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        on_progress: Callable[[int, int], None] | None = None,
        allow_missing: bool = False,
    ) -> Array: ...


class Taught(Protocol):
    """What taught the policies, and the scores that it reports of a response.

    Attributes:
        role: its name in recipes and in ``scored_by`` of result rows, "panel" or "classifier".
        objective_names: the run's objectives, K of the scorer's.
    """

    @property
    def role(self) -> str: ...

    @property
    def scorer(self) -> Scorer: ...

    @property
    def objective_names(self) -> tuple[str, ...]: ...

    def shown(self, raw: Array, texts: Sequence[str]) -> Array:
        """The reported scores (N, K), from the raw scores of N texts."""
        ...


class PanelScores:
    """A panel's standardized scores z of some of its objectives.

    Raises:
        ConfigError: objectives that the panel does not have, or a panel without statistics.
    """

    role = "panel"

    def __init__(self, source: str, panel: RewardPanel, objective_names: Sequence[str] | None):
        self.scorer = panel
        self.objective_names = tuple(objective_names or panel.objective_names)
        check_objectives(self.role, source, panel.objective_names, self.objective_names)
        try:
            self.stats = panel.require_stats()
        except ValueError as error:
            raise ConfigError(f"{source}: {error}", [self.role]) from None
        self._columns = [panel.objective_names.index(name) for name in self.objective_names]

    def shown(self, raw: Array, texts: Sequence[str]) -> Array:
        return self.stats.normalize(raw, text_lengths(list(texts)))[:, self._columns]


class LevelScores:
    """The levels that a classifier expects of a response, 1 to each objective's highest.

    Raises:
        ConfigError: objectives that the classifier does not have.
    """

    role = "classifier"

    def __init__(
        self, source: str, classifier: RewardClassifier, objective_names: Sequence[str] | None
    ):
        self.scorer = ExpectedLevels(classifier)
        names = tuple(objective_names or classifier.objective_names)
        check_objectives(self.role, source, classifier.objective_names, names)
        self.objective_names = names
        self.condition = level_condition(classifier, names)
        self._columns = [classifier.objective_names.index(name) for name in names]

    def shown(self, raw: Array, texts: Sequence[str]) -> Array:
        return raw[:, self._columns]


@dataclass(frozen=True)
class ExpectedLevels:
    """A classifier as a scorer: an objective's score is its expected level; NaN where there is no probability."""

    classifier: RewardClassifier

    @property
    def objective_names(self) -> Sequence[str]:
        return self.classifier.objective_names

    def fingerprint(self) -> str:
        return self.classifier.fingerprint()

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        on_progress: Callable[[int, int], None] | None = None,
        allow_missing: bool = False,
    ) -> Array:
        p = self.classifier.probabilities(prompts, completions, allow_missing)
        return self.classifier.expected_levels(p)


def version_of(scorer: Scorer) -> str:
    """What result rows call a scorer: eight characters that change with its standardized scores."""
    return (scorer.key() if isinstance(scorer, RewardPanel) else scorer.fingerprint())[:8]


@dataclass(frozen=True)
class Judges:
    """Scorers that taught no policy; None for a missing one."""

    overall: RewardPanel | None
    heldout: RewardPanel | None

    @classmethod
    def load(cls, recipe: EvaluationRecipe, taught_by: Scorer, device: str) -> Judges:
        """The recipe's judges. For a missing one, a message names the command that trains it.

        Raises:
            ConfigError: a judge that is the policies' own teacher, or an overall judge of several objectives.
        """
        judges: dict[str, RewardPanel | None] = dict.fromkeys(RECIPES)
        for key in RECIPES:
            path = getattr(recipe, key)
            if path is None:
                continue
            if not (Path(path) / "panel.json").is_file():
                print(
                    f"{key}: {path} is not there, so its measures are left out. `python train/reward_models.py "
                    f"{RECIPES[key]}` trains it (half an hour on two cores); this evaluation, run again, adds its "
                    "scores",
                    file=sys.stderr,
                )
                continue
            judge = judges[key] = RewardPanel.from_pretrained(path, device)
            if judge.fingerprint() == taught_by.fingerprint():
                raise ConfigError(
                    f"{key}: {path} is the panel itself, and a policy is never judged by what chose or trained it",
                    [key],
                )
        overall = judges["judge"]
        if overall is not None and len(overall.objective_names) != 1:
            raise ConfigError(
                f"{recipe.judge}: got {list(overall.objective_names)}, expected one overall judge",
                ["judge"],
            )
        return cls(overall, judges["heldout_panel"])

    @property
    def by_role(self) -> dict[str, RewardPanel]:
        """The judges that are there, by their settings in the recipe."""
        judges = dict(zip(RECIPES, (self.overall, self.heldout), strict=True))
        return {role: judge for role, judge in judges.items() if judge is not None}

    def described(self) -> str:
        """Each judge's folder, version and accuracy on its own test pairs, in one line."""
        parts = []
        for role, judge in self.by_role.items():
            own = [f"{name} {m['accuracy']:.3f}" for name, m in judge.accuracy.items()]
            accuracy = ", ".join(own) or "accuracy not recorded"
            parts.append(f"{role} {judge.source} ({version_of(judge)}): {accuracy}")
        return "; ".join(parts) or "none"

    @property
    def heldout_names(self) -> list[str]:
        """The held-out panel's objectives; none without it."""
        return list(self.heldout.objective_names) if self.heldout else []

    def accuracies(self) -> tuple[dict[str, float], dict[str, list[float]]]:
        """The judges' own accuracies on test pairs, as their folders record them, and the intervals."""
        measured: dict[str, dict[str, Any]] = {}
        if self.overall and self.overall.accuracy:
            (measured["judge_accuracy"],) = self.overall.accuracy.values()
        if self.heldout:
            by_objective = self.heldout.accuracy
            measured |= {f"heldout_accuracy_{name}": m for name, m in by_objective.items()}
        values = {key: m["accuracy"] for key, m in measured.items()}
        return values, {key: m["ci95"] for key, m in measured.items()}


class ScoreCache:
    """Raw scores of responses to a run's prompts, kept in a file: no response is scored twice."""

    def __init__(self, file: Path, prompts: Sequence[Conversation]):
        self.prompts = prompts
        self._cache = Cache(file)
        self._keys: dict[int, str] = {}

    def scores(self, scorer: Scorer, texts: Texts, about: str) -> Array:
        """Raw scores of N responses, (N, the scorer's objectives)."""
        # By id, which stays unique: callers keep their scorers to the end.
        key = self._keys[id(scorer)] = self._keys.get(id(scorer)) or scorer.fingerprint()

        def score(prompts: Sequence[Conversation], responses: Sequence[str]) -> Array:
            return scorer.score(prompts, responses, progress(about), allow_missing=True)

        return self._cached(key, texts, None, len(scorer.objective_names), score)

    def surprise(
        self,
        model: LanguageModel,
        texts: Texts,
        about: str,
        read: Sequence[Conversation] | None = None,
    ) -> Array:
        """Nats and tokens of N responses (N, 2), see :meth:`LanguageModel.surprise`.

        Args:
            read: the conversation that each response answers, where that is not the prompt alone.
        """

        def score(prompts: Sequence[Conversation], responses: Sequence[str]) -> Array:
            return model.surprise(prompts, responses, progress(about))

        return self._cached(model.fingerprint(), texts, read, 2, score)

    def _cached(
        self,
        key: str,
        texts: Texts,
        read: Sequence[Conversation] | None,
        width: int,
        score: Callable[[Sequence[Conversation], Sequence[str]], Array],
    ) -> Array:
        if not texts:
            return np.zeros((0, width), np.float32)
        answered = read or [self.prompts[p] for p, _ in texts]
        pairs = [(asked, text) for asked, (_, text) in zip(answered, texts, strict=True)]
        keys = [text_key(key, json.dumps(asked), text) for asked, text in pairs]
        unique = dict(zip(keys, pairs, strict=True))
        todo = list(unique.values())

        def compute(missing: list[int]) -> Array:
            prompts, responses = zip(*(todo[i] for i in missing), strict=True)
            return score(prompts, responses)

        place = {key: i for i, key in enumerate(unique)}
        return self._cache.rows(list(unique), width, compute)[[place[key] for key in keys]]
