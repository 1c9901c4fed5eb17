"""Training on preference pairs, from a recipe to finished policies.

All arms of a recipe share the start (SFT on the chosen completions), and what it says of the pairs (the reference's
log-probabilities). Then each arm trains its trials; if there are several, each answers the same validation prompts, and
the judge chooses. Every part is a stage (:mod:`pro_core.policies.stages`), so a killed run goes on to the same files,
and runs that come to the same pairs in the same order under the same loss are one.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pro_core.policies.preference.choice import choose, judged_answers, load_judge
from pro_core.policies.preference.data import PairData, pair_rows, single_rows
from pro_core.policies.preference.labels import PanelScores, Relabelled, margins, relabel
from pro_core.policies.preference.log_probs import Tokens, read_log_probs, write_log_probs
from pro_core.policies.preference.recipe import WEIGHED, PreferenceRecipe, Trial
from pro_core.policies.preference.start import Start, check_start
from pro_core.policies.preference.trainers import loss_of, pairs_at_once, train_pairs
from pro_core.policies.sft import TRAINING_VERSION as SFT_VERSION
from pro_core.policies.sft import fine_tune, load_to_train, tuning_settings
from pro_core.policies.stages import POLICY, check_place, publish, stage
from pro_core.prompting.policy_config import PolicyConfig
from pro_core.prompting.templates import Condition
from pro_core.rewards.panel import RewardPanel
from pro_core.runs.recipes import ConfigError
from pro_core.system.artefacts import WORK, Artefact
from pro_core.system.fingerprints import fingerprint
from pro_core.system.processes import main_process
from pro_core.system.storage import content_hash

TRAINING_VERSION = 2
"""Version of the path from pairs to parameters. Every change that moves a parameter raises it."""
LOG_PROBS = "pro-log-probs"
SPLITS = 3
"""selective_dpo: in how many ways the pairs are cut into two halves (arXiv 2502.09650)."""


def train_preference(recipe: PreferenceRecipe) -> list[Path]:
    """Train the policies of a recipe on preference pairs.

    Finished stages are not repeated, and a killed run goes on to the same parameters.

    Returns:
        The folder of each method under each seed, ``<output>/<method>/seed<n>``.

    Raises:
        ConfigError: something cannot be loaded or trained. DataError: no pairs. StorageError: a full disk, or the place
            of a policy is taken.
    """
    methods = recipe.methods().values()
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        if os.environ.get(name) == "true":
            raise ConfigError(
                f"got {name}=true, expected every process to hold the whole model: train a LoRA, or start with "
                "`accelerate launch --multi_gpu`",
                ["lora"],
            )
    if recipe.start:
        check_start(recipe)
    data = PairData.load(recipe)
    weighed = [method for method in methods if method.algorithm in WEIGHED]
    scores = PanelScores.load(recipe, data) if weighed else None
    judge = load_judge(recipe, data)
    return [
        PreferenceRun(method, seed, data, scores, judge).run()
        for seed in recipe.seeds
        for method in methods
    ]


@dataclass(frozen=True)
class Plan:
    """Which pairs a trial learns, and how.

    Attributes:
        order: pairs in training order, a multiple of the batch size.
        beta: as TRL's loss has it.
        swapped: (N,), whether a pair's completions change places.
        shift: (N, 2), added to the reference's log-probabilities; for simpo in place of them.
        record: figures for the stage's record.
    """

    order: list[int]
    beta: float
    swapped: NDArray[np.bool_] | None = None
    shift: NDArray[np.float64] | None = None
    record: dict[str, Any] | None = None

    @property
    def decides(self) -> list[Any]:
        """Everything here that decides the parameters, pair by pair."""
        swapped = [False] * len(self.order) if self.swapped is None else self.swapped[self.order]
        shift = None if self.shift is None else self.shift[self.order].tolist()
        return [self.order, np.asarray(swapped).tolist(), shift, self.beta]


class PreferenceRun:
    """One method under one seed.

    Args:
        recipe: of one method. data: the pairs. scores: the panel's, for the methods that need them. judge: chooses
            among trials; None where there is one.
    """

    def __init__(
        self,
        recipe: PreferenceRecipe,
        seed: int,
        data: PairData,
        scores: PanelScores | None = None,
        judge: RewardPanel | None = None,
    ):
        self.recipe, self.seed, self.data = recipe, seed, data
        self.scores, self.judge = scores, judge
        self.output = Path(recipe.output)
        names = tuple(dict.fromkeys(pair.objective for pair in data.pairs))
        self.config = PolicyConfig(Condition("none", names), recipe.base)

    def run(self) -> Path:
        """Run all stages; returns the folder of the finished policy.

        Raises:
            ConfigError: something cannot be loaded or trained. StorageError: the place of the policy is taken.
        """
        recipe = self.recipe
        check_place(recipe, self.seed)
        start = self.start
        if recipe.algorithm == "sft":
            return self._finish(start.stages, {})
        stages, trained = list(start.stages), []
        if recipe.algorithm == "selective_dpo":
            stages += self.easiest[1]
        for number, trial in enumerate(recipe.trials, 1):
            plan = self.plan(trial)
            self._say(
                f"trial {number} of {len(recipe.trials)}, {len(plan.order)} pairs ({self.data.left_out} do not fit), "
                f"learning rate {trial.learning_rate:g}, beta {trial.beta:g}"
            )
            trained.append(self.learn(plan, trial.learning_rate, recipe))
        judged = []
        if len(trained) > 1:
            assert self.judge is not None
            prompts = self.data.validation_prompts(recipe.validation_prompts)
            judged = [judged_answers(recipe, one, prompts, self.judge) for one in trained]
        best = choose(judged) if judged else 0
        choice = {
            "chosen": best,
            "trials": [
                trial.model_dump() | trained[n].record | (judged[n].record if judged else {})
                for n, trial in enumerate(recipe.trials)
            ],
        }
        others = [policy for n, policy in enumerate(trained) if n != best]
        return self._finish([*stages, *others, *judged, trained[best]], {"choice": choice})

    # ------------------------------------------------------------ the common start

    @cached_property
    def start(self) -> Start:
        """The policy that all arms of a seed start from: SFT on the chosen completions, or the recipe's own."""
        recipe = self.recipe
        if recipe.start == recipe.model:
            return Start(fingerprint(recipe.model), None, [])
        if recipe.start:
            return Start(fingerprint(recipe.start), Path(recipe.start), [])
        steps, rate = recipe.sft_steps, recipe.sft_learning_rate
        key = content_hash(["preference sft", *self._base(), steps, rate])

        def make(folder: Path) -> dict[str, Any]:
            self._say(f"SFT on {len(self.data.pairs)} chosen completions, {steps} steps")
            return fine_tune(
                [(self.data.pairs[i].prompt, self.data.pairs[i].chosen) for i in self.data.pool],
                folder / "checkpoint",
                self.config,
                start=None,
                steps=steps,
                learning_rate=rate,
                constant=False,
                seed=self.seed,
                work=folder / WORK,
                **tuning_settings(recipe),
            )

        made = stage(self.output / "policies", key, POLICY, make)
        return Start(made.key, made.checkpoint, [made])

    def log_probs(
        self, key: str, policy: Path | None, sequences: list[Tokens], what: Any
    ) -> NDArray[np.float64]:
        """(N,) log-probabilities of completions under a policy.

        Args:
            key: of the policy. what: all that decides the sequences, beside the data.
        """
        recipe = self.recipe
        size = 2 * (recipe.rows_per_device or recipe.batch_size)
        named = content_hash(["log probs", TRAINING_VERSION, key, *self._base(), what, size])

        def make(folder: Path) -> dict[str, Any]:
            def load() -> tuple[Any, Any]:
                return load_to_train(recipe.model, policy, recipe.lora, recipe.max_length)

            return write_log_probs(load, sequences, folder, size, str(policy or recipe.model))

        return read_log_probs(stage(self.output / "log_probs", named, LOG_PROBS, make).folder)

    def pair_log_probs(
        self, key: str, policy: Path | None, among: list[int] | None = None
    ) -> NDArray[np.float64]:
        """(n, 2) log-probabilities of both completions of the pairs in ``among``, or of all."""
        tokens = self.data.tokens
        chosen = [tokens[i] for i in (range(len(tokens)) if among is None else among)]
        sequences = [(p.prompt, ids) for p in chosen for ids in (p.chosen, p.rejected)]
        return self.log_probs(key, policy, sequences, among).reshape(-1, 2)

    @cached_property
    def reference(self) -> NDArray[np.float64]:
        """(N, 2): the start's log-probabilities."""
        return self.pair_log_probs(self.start.key, self.start.checkpoint)

    # ------------------------------------------------------------ which pairs, and how

    @cached_property
    def labels(self) -> Relabelled:
        """pro_dpo: the pairs labelled again."""
        assert self.scores is not None
        return relabel(self.recipe, self.data, self.scores, self.seed)

    @cached_property
    def margins(self) -> tuple[list[int], NDArray[np.float64]]:
        """modpo: the pairs that are learned, and the margin of each under the other objectives."""
        assert self.scores is not None
        return margins(self.recipe, self.data, self.scores)

    def plan(self, trial: Trial) -> Plan:
        """What one trial learns."""
        recipe, data, beta = self.recipe, self.data, trial.beta
        count = recipe.steps * recipe.batch_size
        if recipe.algorithm == "pro_dpo":
            order = data.order(count, self.seed, self.labels.kept)
            return Plan(order, beta, self.labels.swapped, record=self.labels.record)
        if recipe.algorithm == "modpo":
            assert isinstance(recipe.weights, dict)
            kept, margin = self.margins
            weight = recipe.weights[str(recipe.pairs_of)]
            order = data.order(count, self.seed, kept)
            return Plan(order, beta / weight, shift=margin / beta)
        if recipe.algorithm == "selective_dpo":
            kept, _ = self.easiest
            learned = min(count, len(kept) // recipe.batch_size * recipe.batch_size)
            if not learned:
                raise ConfigError(
                    f"got {len(data.pairs)} pairs and keep {recipe.keep}, expected at least a batch of "
                    f"{recipe.batch_size} pairs to stay",
                    ["keep", "batch_size"],
                )
            # Where steps do not reach for all, the hard ones of the share must not be those that are missing.
            drawn = sorted(random.Random(f"{self.seed} kept").sample(range(len(kept)), learned))
            return Plan([kept[i] for i in drawn], beta, record={"kept": len(kept)})
        order = data.order(count, self.seed)
        if recipe.algorithm == "simpo":
            lengths = [[len(p.chosen) * recipe.gamma_beta_ratio, 0.0] for p in data.tokens]
            return Plan(order, beta, shift=np.array(lengths))
        return Plan(order, beta)

    @cached_property
    def easiest(self) -> tuple[list[int], list[Artefact]]:
        """The share ``keep`` of the pairs, easy to hard: by their mean DPO loss under policies that learned from the
        other half of the pairs, in three random cuts. And these policies, which use the first trial's settings."""
        policies: list[Artefact] = []
        recipe, N = self.recipe, len(self.data.pairs)
        if N < 2:
            raise ConfigError("got 1 pair, expected at least 2 to cut in halves", ["data"])
        trial, losses = recipe.trials[0], np.full((SPLITS, N), np.nan)
        plain = recipe.model_copy(update={"algorithm": "dpo"})
        for cut in range(SPLITS):
            shuffled = random.Random(f"{self.seed} {cut}").sample(range(N), N)
            halves = sorted(shuffled[: N // 2]), sorted(shuffled[N // 2 :])
            for half, held_out in (halves, halves[::-1]):
                order = self.data.order(recipe.steps * recipe.batch_size, self.seed, half)
                self._say(f"cut {cut + 1} of {SPLITS}: learns {len(half)} pairs")
                policy = self.learn(Plan(order, trial.beta), trial.learning_rate, plain)
                if policy not in policies:  # two cuts of few pairs may be the same
                    policies.append(policy)
                found = self.pair_log_probs(policy.key, policy.checkpoint, held_out)
                ratio = found - self.reference[held_out]
                losses[cut, held_out] = np.logaddexp(0, -trial.beta * (ratio[:, 0] - ratio[:, 1]))
        order = np.argsort(losses.mean(axis=0), kind="stable").tolist()
        return order[: max(1, round(N * recipe.keep))], policies

    def learn(self, plan: Plan, learning_rate: float, recipe: PreferenceRecipe) -> Artefact:
        """The policy of one trial.

        Args:
            recipe: this run's, or as one of another algorithm.
        """
        loss = loss_of(recipe.algorithm)
        gamma = recipe.gamma if recipe.algorithm == "adpo" else None
        pairs = pairs_at_once(recipe)
        decides = [*self._base(), self.start.key, plan.decides, loss, gamma, learning_rate]
        if recipe.algorithm == "kto":
            decides.append(pairs)
            if pairs < 2:
                raise ConfigError(
                    "kto reads at least two pairs at once, since it compares completions across prompts: raise "
                    "rows_per_device or batch_size",
                    ["rows_per_device", "batch_size"],
                )
        key = content_hash(["preference", TRAINING_VERSION, *decides])

        def make(folder: Path) -> dict[str, Any]:
            record = train_pairs(
                recipe,
                self._rows(plan, recipe),
                self.start.checkpoint,
                self.config,
                folder,
                plan.beta,
                learning_rate,
                self.seed,
            )
            return record | (plan.record or {})

        return stage(self.output / "policies", key, POLICY, make)

    def _rows(self, plan: Plan, recipe: PreferenceRecipe) -> list[dict[str, Any]]:
        tokens = self.data.tokens
        if recipe.algorithm == "simpo":
            assert plan.shift is not None
            return pair_rows(tokens, plan.shift, plan.order)
        if recipe.algorithm == "kto":
            pairs = pairs_at_once(recipe)
            rows = single_rows(tokens, self.reference, plan.order, pairs, recipe.max_length)
            sequences = [(row["prompt_ids"], row["KL_completion_ids"]) for row in rows]
            what = ["other prompts", plan.order, pairs]
            found = self.log_probs(self.start.key, self.start.checkpoint, sequences, what)
            return [
                row | {"ref_KL_logps": logp} for row, logp in zip(rows, found.tolist(), strict=True)
            ]
        shift = 0.0 if plan.shift is None else plan.shift
        return pair_rows(tokens, self.reference + shift, plan.order, plan.swapped)

    # ------------------------------------------------------------ the end

    def _finish(self, stages: list[Artefact], more: dict[str, Any]) -> Path:
        names, panel = self.config.condition.objective_names, ""
        if self.scores is not None and self.recipe.algorithm in WEIGHED:
            names, panel = self.scores.objective_names, self.scores.fingerprint
        config = PolicyConfig(Condition("none", names), self.recipe.base, panel)
        used = self.recipe.used() | more
        counts = ("steps", "tokens")
        folder, spent = publish(stages, config, self.recipe, self.seed, used, counts)
        self._say(f"finished, {spent['tokens']:,} tokens in {spent['steps']} steps: {folder}")
        return folder

    def _base(self) -> list[Any]:
        """Everything that decides a stage of this run, except what it does."""
        recipe = self.recipe
        sizes = [SFT_VERSION, recipe.max_length, recipe.max_prompt, recipe.batch_size, self.seed]
        return [recipe.model, fingerprint(recipe.model), recipe.lora, self.data.key, sizes]

    def _say(self, text: str) -> None:
        if main_process():
            print(f"{self.recipe.method}, seed {self.seed}: {text}", flush=True)
