"""PRO-WIC and RiC on one code path: weights (or scores) in the prompt, learned offline, sharpened online (Eq 10, 11).

Offline, every response of the data is learned under the condition that it obtained: its scores by the panel, or the
weights of Eq 7 on them. An online round sets a goal for each prompt, samples G responses to it, keeps some, labels each
with what it obtained (hindsight), and trains on them, mixed with offline rows.

Every stage is a folder (:mod:`pro_core.policies.stages`), so arms share what they have in common: the offline stage,
and the rollouts of arms that differ only in their rule.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pro_core.data.schema import LabelledResponse, read_jsonl
from pro_core.generation import GenerationError, GenerationSettings, Generator, LocalGenerator
from pro_core.generation.sampling import WRITING_VERSION
from pro_core.generation.vllm_lora import LoraEndpoint
from pro_core.policies.conditional.data import ScoredData, score
from pro_core.policies.conditional.recipe import WicRecipe
from pro_core.policies.conditional.rounds import accept, plan_round
from pro_core.policies.goals import offline_mask
from pro_core.policies.rollouts import cut_share, failures, sample
from pro_core.policies.sft import TRAINING_VERSION, Row, fine_tune, tuning_settings
from pro_core.policies.stages import POLICY, ROLLOUTS, check_place, publish, stage
from pro_core.prompting.policy_config import PolicyConfig
from pro_core.prompting.templates import TEMPLATE_VERSION, Condition
from pro_core.rewards.scores import progress
from pro_core.runs.recipes import ConfigError
from pro_core.system.artefacts import WORK, Artefact
from pro_core.system.fingerprints import fingerprint
from pro_core.system.processes import from_main, main_process, process_device
from pro_core.system.storage import content_hash, write_jsonl

ROUND_VERSION = 1
"""Version of an online round, from goals to rows (:mod:`pro_core.policies.goals`). Every change raises it."""


def train_wic(recipe: WicRecipe) -> list[Path]:
    """Train the policies of a recipe that read weights (PRO-WIC) or scores (RiC) in their prompt (Eq 10, 11).

    Finished stages are not repeated, and a killed run goes on to the same files. A method whose online round cannot go
    on is reported at the end; the others go on.

    Returns:
        The folder of each method under each seed, ``<output>/<method>/seed<n>``.

    Raises:
        ConfigError: something cannot be loaded or trained, or a method did not finish. StorageError: a full disk, or
            the place of a policy is taken.
    """
    methods, data = recipe.methods(), ScoredData.load(recipe)
    folders: list[Path] = []
    problems: list[str] = []
    for seed in recipe.seeds:
        for name, method in methods.items():
            try:
                folders.append(WicRun(method, seed, data).run())
            except RoundError as error:
                problems.append(f"{name}, seed {seed}: {error}")
                if main_process():
                    print(problems[-1], flush=True)
    if problems:
        raise ConfigError(f"{len(problems)} not finished; " + "; ".join(problems))
    return folders


class RoundError(ConfigError):
    """An online round that cannot go on; all that was done so far stays."""


class WicRun:
    """One method under one seed.

    Args:
        recipe: of one method. data: what all methods share: panel, adapter, scored responses, prompts.
    """

    def __init__(self, recipe: WicRecipe, seed: int, data: ScoredData):
        self.recipe, self.seed, self.data = recipe, seed, data
        self.output = Path(recipe.output)
        self.condition = Condition.fit(
            recipe.condition, data.objective_names, data.z_NK, recipe.temperature
        )
        # Saved beside the policy: how it reads weights, and whose scores they weigh.
        self.config = PolicyConfig(self.condition, recipe.base, data.panel_key)
        self.sampling = GenerationSettings(
            recipe.max_new_tokens, recipe.sampling_temperature, recipe.top_p
        )
        self.accepted: list[Row] = []
        self.totals: list[float] = []  # of all responses of earlier rounds, under what was asked
        self._endpoint: LoraEndpoint | None = None

    def run(self) -> Path:
        """Run all stages; returns the folder of the finished policy.

        Raises:
            RoundError: nothing was accepted, or nothing written. ConfigError: something cannot be loaded or trained.
            StorageError: the place of the policy is taken.
        """
        check_place(self.recipe, self.seed)
        stages = [self.offline()]
        for number in range(1, self.recipe.rounds + 1):
            policy = stages[-1]
            rollouts = self.rollouts(number, policy)
            stages += [rollouts, self.online(number, policy, rollouts)]
        return self._finish(stages)

    # ------------------------------------------------------------ stages

    def offline(self) -> Artefact:
        """Conditioned SFT on the data's responses (Eq 10)."""
        steps, rate = self.recipe.offline_steps, self.recipe.offline_learning_rate
        key = content_hash(["offline", self._base(), self.data.key, steps, rate, self.seed])

        def make(folder: Path) -> dict[str, Any]:
            self._say(f"offline stage, {len(self.data.responses)} rows, {steps} steps")
            rows = self._offline_rows(range(len(self.data.responses)))
            return self._train(folder, rows, None, steps, rate, constant=False)

        return stage(self.output / "policies", key, POLICY, make)

    def rollouts(self, number: int, policy: Artefact) -> Artefact:
        """Goals for a round's prompts, and G scored responses to each."""
        recipe = self.recipe
        plan = from_main(
            plan_round(recipe, number, self.seed, self.data, self.condition)
            if main_process()
            else []
        )
        identity = [policy.key, plan, recipe.samples, vars(self.sampling), recipe.max_length]
        where = [
            "endpoint" if recipe.endpoint else "local",
            recipe.rollout_batch,
            self.seed,
            number,
        ]
        key = content_hash(["rollouts", WRITING_VERSION, *identity, *where, self.data.panel_key])

        def make(folder: Path) -> dict[str, Any]:
            self._say(f"round {number}, {len(plan)} prompts x {recipe.samples} responses")
            if main_process():
                write_jsonl(folder / "prompts.jsonl", plan)
            try:
                responses = sample(
                    lambda: self._generator(policy),
                    [self.condition.add(row["prompt"], row["text"]) for row in plan],
                    recipe.samples,
                    self.sampling,
                    folder / WORK,
                    recipe.rollout_batch,
                    key,
                    progress(f"{recipe.method}, seed {self.seed}, round {number}", "written"),
                )
            except (ConfigError, GenerationError) as error:
                raise RoundError(f"round {number}: {error}") from None
            written = [(r.prompt, r.sample, r.text) for r in responses if r.text is not None]
            scored = [
                LabelledResponse(plan[p]["prompt"], text, {}, "rollouts", f"{p}-{g}")
                for p, g, text in written
            ]
            raw = score(self.data.panel, scored, folder / "rewards").tolist()
            rewards = {
                (p, g): [None if math.isnan(reward) else reward for reward in row]
                for (p, g, _), row in zip(written, raw, strict=True)
            }
            failed = failures(responses)
            if main_process():
                write_jsonl(folder / "failed.jsonl", failed)
                write_jsonl(
                    folder / "responses.jsonl",
                    [vars(r) | {"raw": rewards.get((r.prompt, r.sample))} for r in responses],
                )
            if failed:
                self._say(
                    f"round {number}: {len(responses) - len(written)} responses to {len(failed)} prompts failed three "
                    f"times and are left out ({failed[0]['error']}); listed in {folder / 'failed.jsonl'}"
                )
            texts = [text for _, _, text in written]
            return {
                "prompts": len(plan),
                "responses": len(written),
                "empty": sum(not text for text in texts),
                "cut": cut_share(responses),
                "failed_prompts": len(failed),
                "new_tokens": self.data.count_tokens(texts),
            }

        return stage(self.output / "rollouts", key, ROLLOUTS, make)

    def online(self, number: int, policy: Artefact, rollouts: Artefact) -> Artefact:
        """Accept, relabel with what was obtained, train again (Eq 11)."""
        recipe = self.recipe
        steps, rate, share = recipe.online_steps, recipe.online_learning_rate, recipe.offline_share
        rule = [recipe.accept, recipe.quantile, share]
        decides = [ROUND_VERSION, policy.key, rollouts.key, self._base(), rule, steps, rate]
        key = content_hash(["online", *decides, self.seed])
        responses = read_jsonl(rollouts.folder / "responses.jsonl")
        plan = read_jsonl(rollouts.folder / "prompts.jsonl")
        result = accept(recipe, plan, responses, self.data, self.condition, self.totals)
        kept, lines, report = result.rows, result.lines, result.report
        self.accepted += kept
        self.totals += result.totals

        def make(folder: Path) -> dict[str, Any]:
            if not kept:
                raise RoundError(
                    f"round {number}: none of {report['responses']} responses was accepted by the rule "
                    f"{recipe.accept!r} at quantile {recipe.quantile}. The responses stay in {rollouts.folder} and are "
                    "used again: lower `quantile`, ask for more `prompts` or `samples`, or set "
                    f"`rounds: {number - 1}`",
                    ["quantile", "prompts", "samples", "rounds"],
                )
            if main_process():
                write_jsonl(folder / "accepted.jsonl", lines)
            self._say(
                f"round {number}: {len(kept)} of {report['responses']} accepted, distance from the goal "
                f"{report['distance']:.3f} (all: {report['distance_of_all']:.3f}), {steps} steps"
            )
            chosen = self._offline_sample(number, len(self.accepted))
            rows = [*self.accepted, *self._offline_rows(chosen)]
            trained = self._train(folder, rows, policy.checkpoint, steps, rate, constant=True)
            return report | {"offline_rows": len(chosen)} | trained

        return stage(self.output / "policies", key, POLICY, make)

    def _finish(self, stages: Sequence[Artefact]) -> Path:
        budget = ("tokens", "completion_tokens", "new_tokens", "steps")
        folder, spent = publish(
            stages, self.config, self.recipe, self.seed, self.recipe.used(), budget
        )
        self._say(f"finished, {spent['tokens']:,} tokens in {spent['steps']} steps: {folder}")
        return folder

    # ------------------------------------------------------------ parts

    def _base(self) -> list[Any]:
        """Everything that decides a training of this run, except its rows and steps."""
        recipe = self.recipe
        read = [self.condition.to_dict(), TEMPLATE_VERSION, self.data.panel_key]
        sizes = [TRAINING_VERSION, recipe.max_length, recipe.max_prompt, recipe.batch_size]
        return [recipe.model, fingerprint(recipe.model), recipe.lora, read, sizes]

    def _train(self, folder, rows, start, steps, rate, constant) -> dict[str, Any]:
        return fine_tune(
            rows,
            folder / "checkpoint",
            self.config,
            start=start,
            steps=steps,
            learning_rate=rate,
            constant=constant,
            seed=self.seed,
            work=folder / "work",
            **tuning_settings(self.recipe),
        )

    def _offline_rows(self, indices: Sequence[int]) -> list[Row]:
        """Those responses, each under the condition that it obtained."""
        texts = self.condition.obtained(self.data.z_NK[list(indices)])
        responses = [self.data.responses[i] for i in indices]
        return [
            (self.condition.add(r.prompt or [], text), r.response)
            for r, text in zip(responses, texts, strict=True)
        ]

    def _offline_sample(self, number: int, accepted: int) -> list[int]:
        recipe, z = self.recipe, self.data.z_NK
        good = np.flatnonzero(offline_mask(recipe.accept, z, self.condition, recipe.quantile))
        wanted = round(accepted * recipe.offline_share / (1 - recipe.offline_share))
        rng = np.random.default_rng([self.seed, number, 1])
        return sorted(rng.choice(good, min(wanted, len(good)), replace=False).tolist())

    def _generator(self, policy: Artefact) -> Generator:
        recipe = self.recipe
        if not recipe.endpoint:
            return LocalGenerator(
                policy.checkpoint, device=process_device(), max_context=recipe.max_length
            )
        if self._endpoint is None:
            token = os.environ.get("PRO_ENDPOINT_TOKEN")
            self._endpoint = LoraEndpoint(recipe.endpoint, token=token)
        self._endpoint.use_lora(f"pro-{policy.key[:16]}", policy.checkpoint)
        return self._endpoint

    def _say(self, text: str) -> None:
        if main_process():
            print(f"{self.recipe.method}, seed {self.seed}: {text}", flush=True)
