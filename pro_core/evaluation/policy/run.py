"""One recipe of policies, as its files: responses, their scores, what the base model fixes, and the result rows.

`python train/evaluate.py policies recipes/stock_policies.yaml` ends here, see
:mod:`pro_core.evaluation.policy.recipe`.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pro_core.adapter.model import PreferenceAdapter
from pro_core.data.objectives import Message
from pro_core.data.sources import default_data_dir
from pro_core.evaluation.policy.fronts import simplex_grid
from pro_core.evaluation.policy.metrics import Answers, Base, in_units, point_means
from pro_core.evaluation.policy.recipe import (
    OPTIONAL,
    REQUIRED,
    RecipePolicies,
    held_out_prompts,
)
from pro_core.evaluation.policy.responses import Answer, Policy, best_answer, respond
from pro_core.evaluation.policy.text_quality import LanguageModel
from pro_core.generation import GenerationSettings, LocalGenerator
from pro_core.rewards.calibration import RewardStats, text_lengths
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.scores import progress
from pro_core.runs.training import ConfigError, read_recipe
from pro_core.system.cache import Cache, text_key
from pro_core.system.storage import read_config, write_config
from pro_core.weights import AdapterWeights, SelectedWeights

FORMAT = "pro-policy-base"
JUDGES = {"judge": "recipes/judge.yaml", "heldout_panel": "recipes/heldout_panel.yaml"}

REFERENCE_DRAW = -1
"""In place of a seed: a best-of-N graded on the very texts of the reference front would be its own measure."""

Array = NDArray[np.float32]


class PolicyRun:
    """A recipe with what it names: panel, judges, prompts and the grid of weights.

    Attributes:
        columns: of the panel's objectives, those that this run is about. weights_WK: the grid.

    Judges that are not there are said, with the command that makes them, and nothing is measured by them.

    Raises:
        ConfigError: a wrong recipe, a judge that is the panel itself. StorageError, DataError: as their loaders do.
    """

    keys: tuple[tuple[str, ...], dict[str, Any]] = (REQUIRED, OPTIONAL)

    def __init__(self, recipe_path: str | Path, split: str = "test"):
        self.recipe = read_recipe(recipe_path, *self.keys)
        self.config, self.split = Path(recipe_path).name, split
        self.output = Path(self.recipe["output"])
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.panel: RewardPanel = self._panel()
        self.objective_names = tuple(self.recipe["objectives"] or self.panel.objective_names)
        unknown = sorted(set(self.objective_names) - set(self.panel.objective_names))
        if unknown:
            raise ConfigError(
                f"objectives: got {unknown}, expected some of the panel's {list(self.panel.objective_names)}"
            )
        self.columns = [self.panel.objective_names.index(name) for name in self.objective_names]
        self.policy = self._policies()
        self.compared = self.recipe["compare_with"] or [self.recipe["base"]]
        known = list(self.policy.entries)
        for name in (self.recipe["base"], *self.compared):
            if name not in known:
                raise ConfigError(
                    f"got the policy {name!r}, expected one of {known} (base, compare_with)"
                )
        self.judge, self.heldout = self._judge("judge"), self._judge("heldout_panel")
        if self.judge is not None and len(self.judge.objective_names) != 1:
            raise ConfigError(
                f"{self.recipe['judge']}: got {list(self.judge.objective_names)}, expected one overall judge"
            )
        self.seeds: list[int] = self.recipe["seeds"]
        try:
            self.stats = self.panel.require_stats()
            self.weights_WK = self._grid()
            self.settings = GenerationSettings(
                self.recipe["max_new_tokens"], self.recipe["temperature"], self.recipe["top_p"]
            )
        except ValueError as error:
            raise ConfigError(f"{recipe_path}: {error}") from None
        self.prompts = held_out_prompts(
            self.recipe["data"],
            self.recipe["data_dir"] or default_data_dir(),
            split,
            self.recipe["prompts"],
            self.recipe["longest_prompt"],
        )
        self.cache = Cache(self.output / "scores.sqlite")
        self._keys: dict[int, str] = {}
        self.language_model = self._language_model()
        self.default_weights_PK = self._default_weights()

    def _panel(self) -> Any:
        return RewardPanel.from_pretrained(self.recipe["panel"], self.device)

    def _policies(self) -> RecipePolicies:
        return RecipePolicies(self.recipe["policies"], self.objective_names)

    def _grid(self) -> NDArray[np.float64]:
        return simplex_grid(len(self.objective_names), self.recipe["weights"])

    def _judge(self, key: str) -> RewardPanel | None:
        path = self.recipe[key]
        if path is None:
            return None
        if not (Path(path) / "panel.json").is_file():
            print(
                f"{key}: {path} is not there, so nothing is measured by it. `python train/reward_models.py "
                f"{JUDGES[key]}` trains it (half an hour on two cores); the same command then adds its scores",
                file=sys.stderr,
            )
            return None
        judge = RewardPanel.from_pretrained(path, self.device)
        if judge.fingerprint() == self.panel.fingerprint():
            raise ConfigError(
                f"{key}: {path} is the panel itself, and a policy is never judged by what chose or trained it"
            )
        return judge

    def _language_model(self) -> LanguageModel | None:
        named = self.recipe["perplexity"]
        if named is False:
            return None
        base = self.policy.entries[self.recipe["base"]]
        if named is None and "endpoint" in base:
            raise ConfigError(
                "perplexity: an endpoint gives none; name a local model, or set `perplexity: false`"
            )
        model = named or str(base["model"]).format(seed=self.seeds[0])
        return LanguageModel(model, self.device)

    def _default_weights(self) -> Array | None:
        """The adapter's weights (P, K), among this run's objectives; None without an adapter."""
        if self.recipe["adapter"] is None:
            return None
        adapter = PreferenceAdapter.from_pretrained(self.recipe["adapter"])
        names = tuple(adapter.objective_names)
        if not set(self.objective_names) <= set(names):
            raise ConfigError(
                f"{self.recipe['adapter']}: an adapter of {list(names)}, expected {list(self.objective_names)}"
            )
        return SelectedWeights(AdapterWeights(adapter), self.objective_names)(self.prompts)

    def seeds_of(self, name: str) -> list[int]:
        """The seeds whose checkpoint is there; says which are not."""
        missing = {seed: self.policy.missing(name, seed) for seed in self.seeds}
        for seed, folder in missing.items():
            if folder:
                print(f"{name}, seed {seed}: {folder} is not there, left out", file=sys.stderr)
        return [seed for seed in self.seeds if not missing[seed]]

    def responses(
        self, policy: Policy, seed: int, weights_PK: NDArray, about: str
    ) -> list[list[Answer]]:
        """See :func:`pro_core.evaluation.policy.responses.respond`."""
        return respond(
            policy,
            self.prompts,
            weights_PK,
            self.settings,
            seed,
            self.output / "responses",
            self.recipe["batch_size"],
            progress(f"{policy.name}, seed {seed}, {about}", "prompts answered"),
        )

    # ------------------------------------------------------------ scores

    def scores(
        self,
        scorer: RewardPanel | LanguageModel,
        texts: Sequence[tuple[int, str]],
        about: str,
        width: int,
        read: Sequence[Sequence[Message]] | None = None,
    ) -> Array:
        """Raw scores (N, width) of (prompt index, response), each pair once in the life of the output folder.

        Args:
            read: what each response is scored as an answer to, where that is not the prompt alone.
        """
        if not texts:
            return np.zeros((0, width), np.float32)
        if isinstance(scorer, LanguageModel):
            key = scorer.fingerprint()
        else:  # the run holds its panels to the end
            key = self._keys[id(scorer)] = self._keys.get(id(scorer)) or scorer.fingerprint()
        answered = read or [self.prompts[p] for p, _ in texts]
        rows = [(asked, text) for asked, (_, text) in zip(answered, texts, strict=True)]
        keys = [text_key(key, json.dumps(asked), text) for asked, text in rows]
        unique = dict(zip(keys, rows, strict=True))
        todo = list(unique.values())

        def compute(missing: list[int]) -> Array:
            prompts, responses = zip(*(todo[i] for i in missing), strict=True)
            report = progress(about)
            if isinstance(scorer, LanguageModel):
                return scorer.surprise(prompts, responses, report)
            return scorer.score(prompts, responses, report, allow_missing=True)

        place = {key: i for i, key in enumerate(unique)}
        return self.cache.rows(list(unique), width, compute)[[place[key] for key in keys]]

    def z(self, texts: Sequence[tuple[int, str]]) -> Array:
        """The panel's standardized scores (N, K) of this run's objectives; NaN where there is none."""
        width = len(self.panel.objective_names)
        raw = self.scores(self.panel, texts, "panel", width)
        z = self.stats.normalize(raw, text_lengths([text for _, text in texts]))
        return z[:, self.columns]

    def answers(
        self, name: str, seed: int, weights_WPK: NDArray, about: str = "weights"
    ) -> Answers:
        """The policy's responses under W weightings of P prompts (a row a prompt), with all their scores.

        Args:
            about: what progress calls a weighting.

        Raises:
            ConfigError: not one response, with the first reason.
        """
        policy, (W, P) = self.policy(name, seed), weights_WPK.shape[:2]
        texts: list[list[str | None]] = []
        failures: list[tuple[int, int, str]] = []
        cut = 0
        for w, weights_PK in enumerate(weights_WPK):
            number = f"{about} {w + 1} of {W}" if W > 1 else about
            written = self.responses(policy, seed, weights_PK, number)
            chosen = self._chosen(written, weights_PK)
            texts.append([None if answer is None else answer.text for answer in chosen])
            cut += sum(a is not None and a.finish in ("length", "filter") for a in chosen)
            for p in (p for p, text in enumerate(texts[w]) if text is None):
                reasons = [a.error for a in written[p] if a.error] or ["no candidate has a score"]
                failures.append((w, p, reasons[0]))
        if failures:
            print(f"{name}, seed {seed}: {_listed(failures, self.prompts)}", file=sys.stderr)
        if len(failures) == W * P:
            raise ConfigError(f"{name}, seed {seed}: not one response; {failures[0][2]}")
        there = [(w, p) for w in range(W) for p in range(P) if texts[w][p] is not None]
        pairs = [(p, str(texts[w][p])) for w, p in there]
        rows = tuple(np.array(there).T)

        def placed(values: NDArray) -> NDArray[np.float64]:
            grid = np.full((W, P, values.shape[1]), np.nan)
            grid[rows] = values
            return grid

        result = Answers(weights_WPK, texts, placed(self.z(pairs)), failures=failures, cut=cut)
        if self.judge is not None:
            result.judge_WP = placed(self.scores(self.judge, pairs, "judge", 1))[:, :, 0]
        if self.heldout is not None:
            width = len(self.heldout.objective_names)
            result.heldout_WPJ = placed(self.scores(self.heldout, pairs, "held-out panel", width))
        if self.language_model is not None:
            found = self.scores(self.language_model, pairs, "perplexity", 2)
            result.surprise_WP2 = placed(found)
            writer = policy.generator(weights_WPK[0, 0]) if self.recipe["kl"] else None
            mixed = writer is not None and writer.policy is not None and bool(writer.policy.ranks)
            if isinstance(writer, LocalGenerator) and policy.candidates == 1 and not mixed:
                read = [
                    policy.request(self.prompts[p], weights_WPK[w, p]).messages for w, p in there
                ]
                own_model = LanguageModel(writer.path_or_id, self.device)
                own = self.scores(own_model, pairs, f"{name}, log-ratio", 2, read)
                result.kl_WP = placed(found[:, :1] - own[:, :1])[:, :, 0]
        return result

    def _chosen(self, written: list[list[Answer]], weights_PK: NDArray) -> list[Answer | None]:
        """Of each prompt's candidates the one that the panel's weighted sum prefers; None where all failed."""
        listed = [(p, a) for p, mine in enumerate(written) for a in mine if a.text is not None]
        if all(len(mine) == 1 for mine in written):
            single = dict(listed)
            return [single.get(p) for p in range(len(written))]
        z = self.z([(p, str(answer.text)) for p, answer in listed])
        of_prompt = np.array([p for p, _ in listed])
        chosen: list[Answer | None] = []
        for p in range(len(written)):
            rows = np.flatnonzero(of_prompt == p)
            best = best_answer(z[rows], weights_PK[p]) if len(rows) else None
            chosen.append(None if best is None else listed[rows[best]][1])
        return chosen

    # ------------------------------------------------------------ what the base model fixes

    def base(self) -> Base:
        """Units, reference point and reference front, from the base model alone; written once, read ever after.

        From ``reference_candidates`` responses of the base policy to each prompt, a draw that no policy is graded by.
        """
        name, n, seed = self.recipe["base"], self.recipe["reference_candidates"], self.seeds[0]
        policy = self.policy(name, seed, candidates=n)
        center = self.weights_WK.mean(axis=0)
        even = np.full(len(center), 1 / len(center))
        decides = [
            policy.identity(even.astype(np.float32)),
            self.panel.fingerprint(),
            self.stats.to_dict(),
            [
                None if judge is None else judge.fingerprint()
                for judge in (self.judge, self.heldout)
            ],
            [self.objective_names, self.prompts, self.weights_WK.tolist(), str(self.settings)],
            [seed, REFERENCE_DRAW, n, self.recipe["batch_size"], self.policy.entries[name]],
        ]
        key = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]
        file = f"base-{key}.json"
        if (self.output / file).is_file():
            return Base.from_dict(read_config(self.output, file, FORMAT))
        written = self.responses(policy, REFERENCE_DRAW, even, f"{n} for reference")
        texts = [(p, a.text) for p, mine in enumerate(written) for a in mine if a.text is not None]
        if not texts:
            raise ConfigError(f"{name}, which is the base: not one response; {written[0][0].error}")
        reference = f"{len(texts)} responses of {name} to {len(self.prompts)} {self.split} prompts, a draw of their own"

        def fitted(values: NDArray, names: Sequence[str]) -> RewardStats:
            finite = values[np.isfinite(values).all(axis=1)]
            try:
                return RewardStats.fit(finite, names, reference)
            except ValueError as error:
                raise ConfigError(f"{name}, which is the base: {error}") from None

        stats = fitted(self.z(texts), self.objective_names)
        judges = [
            None
            if judge is None
            else fitted(
                self.scores(judge, texts, about, len(judge.objective_names)), judge.objective_names
            )
            for judge, about in ((self.judge, "judge"), (self.heldout, "held-out panel"))
        ]
        best_WPK = np.full((len(self.weights_WK), len(self.prompts), len(center)), np.nan)
        for w, weights in enumerate(self.weights_WK):
            rows = np.tile(weights, (len(self.prompts), 1))
            chosen = self._chosen(written, rows)
            there = [(p, str(answer.text)) for p, answer in enumerate(chosen) if answer is not None]
            best_WPK[w, [p for p, _ in there]] = self.z(there)
        once = np.ones((1, len(self.prompts)))
        points = point_means(in_units(stats, best_WPK), once)[0]
        points = points[np.isfinite(points).all(axis=1)]
        base = Base(stats, judges[0], judges[1], points, n, reference)
        write_config(self.output, file, {"format": FORMAT} | base.to_dict())
        return base


def _listed(failures: Sequence[tuple[int, int, str]], prompts: Sequence[Sequence[Message]]) -> str:
    """How many responses failed, for how many prompts, and the first three of these."""
    of_prompt = {p: error for _, p, error in reversed(failures)}
    shown = [f"prompt {p} ({error})" for p, error in list(of_prompt.items())[::-1][:3]]
    return (
        f"{len(failures)} responses to {len(of_prompt)} of {len(prompts)} prompts failed, are left out and will be "
        f"tried again by the next run: {'; '.join(shown)}"
    )
