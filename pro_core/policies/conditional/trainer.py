"""PRO-WIC and RiC on one code path: weights (or scores) in the prompt, learned offline, sharpened online (Eq 10, 11).

Offline, every response of the data is learned under the condition that it obtained: its scores by the panel, or the
weights of Eq 7 on them. An online round asks prompts for goals, samples G responses to each, keeps some, writes beside
each what it did obtain (hindsight), and trains on them, mixed with offline rows.

Every stage is a folder (:mod:`pro_core.policies.stages`), so arms share what they have in common: the offline stage,
and the rollouts of arms that differ in their rule alone.
"""

from __future__ import annotations

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
from pro_core.policies.goals import (
    Goals,
    accept_ric,
    accept_weighted,
    ask,
    distance,
    offline_mask,
)
from pro_core.policies.rollouts import cut_share, failures, sample
from pro_core.policies.sft import TRAINING_VERSION, Row, fine_tune
from pro_core.policies.stages import (
    POLICY,
    ROLLOUTS,
    check_place,
    lora_base,
    publish,
    stage,
)
from pro_core.prompting.policy_config import PolicyConfig
from pro_core.prompting.templates import TEMPLATE_VERSION, Condition
from pro_core.rewards.scores import progress
from pro_core.runs.training import ConfigError
from pro_core.system.artefacts import Artefact
from pro_core.system.fingerprints import fingerprint
from pro_core.system.processes import from_main, main_process, process_device
from pro_core.system.storage import content_hash, write_jsonl
from pro_core.weights import weighted_sum

ROUND_VERSION = 1
"""Of an online round, from goals to rows (:mod:`pro_core.policies.goals`): raised with every change of it."""


class RoundError(ConfigError):
    """An online round that cannot go on; all that was done so far stays."""


class WicRun:
    """One method under one seed.

    Args:
        settings: of a recipe's arm, see :func:`pro_core.policies.conditional.recipe.read_arms`.
        data: what all arms share: panel, adapter, scored responses, prompts.
    """

    def __init__(self, settings: dict[str, Any], seed: int, data: ScoredData):
        self.settings, self.seed, self.data = settings, seed, data
        self.output = Path(settings["output"])
        self.method = settings["method"]
        self.condition = Condition.fit(
            settings["condition"], data.objective_names, data.z_NK, settings["temperature"]
        )
        self.max_prompt = settings["max_length"] - settings["max_new_tokens"]
        self.sampling = GenerationSettings(
            settings["max_new_tokens"], settings["sampling_temperature"], settings["top_p"]
        )
        self.accepted: list[Row] = []
        self.totals: list[float] = []  # of all responses of earlier rounds, under what was asked
        self._endpoint: LoraEndpoint | None = None

    def run(self) -> Path:
        """All stages; the folder of the finished policy.

        Raises:
            RoundError: nothing was accepted, or nothing written. ConfigError: what cannot be loaded or trained.
            StorageError: something else is where the policy is to go.
        """
        check_place(self.settings, self.seed)
        stages = [self.offline()]
        for number in range(1, self.settings["rounds"] + 1):
            policy = stages[-1]
            rollouts = self.rollouts(number, policy)
            stages += [rollouts, self.online(number, policy, rollouts)]
        return self._finish(stages)

    # ------------------------------------------------------------ stages

    def offline(self) -> Artefact:
        """Conditioned SFT on the data's responses (Eq 10)."""
        steps, rate = self.settings["offline_steps"], self.settings["offline_learning_rate"]
        key = content_hash(["offline", self._base(), self.data.key, steps, rate, self.seed])

        def make(folder: Path) -> dict[str, Any]:
            self._say(f"offline stage, {len(self.data.responses)} rows, {steps} steps")
            rows = self._offline_rows(range(len(self.data.responses)))
            return self._train(folder, rows, None, steps, rate, constant=False)

        return stage(self.output / "policies", key, POLICY, make)

    def rollouts(self, number: int, policy: Artefact) -> Artefact:
        """Goals for a round's prompts, and G scored responses to each."""
        s = self.settings
        plan = from_main(self._plan(number) if main_process() else [])
        identity = [policy.key, plan, s["samples"], vars(self.sampling), s["max_length"]]
        where = ["endpoint" if s["endpoint"] else "local", s["rollout_batch"], self.seed, number]
        key = content_hash(["rollouts", WRITING_VERSION, *identity, *where, self.data.panel_key])

        def make(folder: Path) -> dict[str, Any]:
            self._say(f"round {number}, {len(plan)} prompts x {s['samples']} responses")
            if main_process():
                write_jsonl(folder / "prompts.jsonl", plan)
            conversations = [self.condition.add(row["prompt"], row["text"]) for row in plan]
            try:
                responses = sample(
                    lambda: self._generator(policy),
                    conversations,
                    s["samples"],
                    self.sampling,
                    folder,
                    s["rollout_batch"],
                    key,
                    progress(f"{self.method}, seed {self.seed}, round {number}", "written"),
                )
            except (ConfigError, GenerationError) as error:
                raise RoundError(f"round {number}: {error}") from None
            written = [r for r in responses if r.error is None]
            raw = score(
                self.data.panel,
                [
                    LabelledResponse(
                        plan[r.prompt]["prompt"], r.text, {}, "rollouts", f"{r.prompt}-{r.sample}"
                    )
                    for r in written
                ],
                folder / "rewards",
            )
            there = [[None if v != v else v for v in row] for row in raw.tolist()]
            rewards = dict(zip(((r.prompt, r.sample) for r in written), there, strict=True))
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
            count = self.data.count_tokens([r.text for r in written])
            return {
                "prompts": len(plan),
                "responses": len(written),
                "empty": sum(not r.text for r in written),
                "cut": cut_share(responses),
                "failed_prompts": len(failed),
            } | {"new_tokens": count}

        return stage(self.output / "rollouts", key, ROLLOUTS, make)

    def online(self, number: int, policy: Artefact, rollouts: Artefact) -> Artefact:
        """Accept, relabel with what was obtained, train again (Eq 11)."""
        s = self.settings
        steps, rate, share = s["online_steps"], s["online_learning_rate"], s["offline_share"]
        rule = [s["accept"], s["quantile"], share]
        decides = [ROUND_VERSION, policy.key, rollouts.key, self._base(), rule, steps, rate]
        key = content_hash(["online", *decides, self.seed])
        kept, lines, report = self._accept(rollouts)
        self.accepted += kept

        def make(folder: Path) -> dict[str, Any]:
            if not kept:
                raise RoundError(
                    f"round {number}: none of {report['responses']} responses was accepted by the rule {s['accept']!r} "
                    f"at quantile {s['quantile']}. The responses stay in {rollouts.folder} and are used again: lower "
                    f"`quantile`, ask for more `prompts` or `samples`, or set `rounds: {number - 1}`"
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
        folder, spent = publish(stages, self.config(), self.settings, self.seed, budget)
        self._say(f"finished, {spent['tokens']:,} tokens in {spent['steps']} steps: {folder}")
        return folder

    # ------------------------------------------------------------ parts

    def _base(self) -> list[Any]:
        """What decides every training of this run, beside its rows and steps."""
        s = self.settings
        read = [self.condition.to_dict(), TEMPLATE_VERSION, self.data.panel_key]
        sizes = [TRAINING_VERSION, s["max_length"], self.max_prompt, s["batch_size"]]
        return [s["model"], fingerprint(s["model"]), s["lora"], read, sizes]

    def config(self) -> PolicyConfig:
        """What stands beside the policy: how to tell it the weights, and whose scores they weigh."""
        return PolicyConfig(self.condition, lora_base(self.settings), self.data.panel_key)

    def _train(self, folder, rows, start, steps, rate, constant) -> dict[str, Any]:
        s = self.settings
        return fine_tune(
            rows,
            folder / "checkpoint",
            self.config(),
            model=s["model"],
            start=start,
            lora=s["lora"],
            steps=steps,
            batch_size=s["batch_size"],
            learning_rate=rate,
            constant=constant,
            max_length=s["max_length"],
            max_prompt=self.max_prompt,
            seed=self.seed,
            work=folder / "work",
            rows_per_device=s["rows_per_device"],
            gradient_checkpointing=s["gradient_checkpointing"],
            checkpoint_every=s["checkpoint_every"],
        )

    def _offline_rows(self, indices: Sequence[int]) -> list[Row]:
        """Those responses, each under the condition that it obtained."""
        texts = self.condition.obtained(self.data.z_NK[list(indices)])
        found = [self.data.responses[i] for i in indices]
        return [
            (self.condition.add(r.prompt or [], text), r.response)
            for r, text in zip(found, texts, strict=True)
        ]

    def _offline_sample(self, number: int, accepted: int) -> list[int]:
        s, z = self.settings, self.data.z_NK
        good = np.flatnonzero(offline_mask(s["accept"], z, self.condition, s["quantile"]))
        wanted = round(accepted * s["offline_share"] / (1 - s["offline_share"]))
        rng = np.random.default_rng([self.seed, number, 1])
        return sorted(rng.choice(good, min(wanted, len(good)), replace=False).tolist())

    def _plan(self, number: int) -> list[dict[str, Any]]:
        """The round's prompts, the same for every arm, and what each is asked for."""
        s, prompts = self.settings, self.data.prompts
        if len(prompts) < s["prompts"]:
            raise ConfigError(
                f"prompts: got {len(prompts)} prompts of the train split, expected {s['prompts']}"
            )
        rng = np.random.default_rng([self.seed, number])
        drawn = [prompts[i] for i in rng.permutation(len(prompts))[: s["prompts"]]]
        goals = ask(s["goals"], drawn, self.condition, self.data.adapter, [self.seed, number, 2])
        return [
            {
                "prompt": prompt,
                "weights": goals.weights[b].tolist(),
                "scores": None if goals.scores is None else goals.scores[b].tolist(),
                "text": goals.texts[b],
            }
            for b, prompt in enumerate(drawn)
        ]

    def _generator(self, policy: Artefact) -> Generator:
        s = self.settings
        if not s["endpoint"]:
            return LocalGenerator(
                policy.checkpoint, device=process_device(), max_context=s["max_length"]
            )
        if self._endpoint is None:
            token = os.environ.get("PRO_ENDPOINT_TOKEN")
            self._endpoint = LoraEndpoint(s["endpoint"], token=token)
        self._endpoint.use_lora(f"pro-{policy.key[:16]}", policy.checkpoint)
        return self._endpoint

    def _accept(self, rollouts: Artefact) -> tuple[list[Row], list[dict[str, Any]], dict[str, Any]]:
        """The accepted responses as rows under what they obtained, as lines for people, and figures."""
        s = self.settings
        plan = read_jsonl(rollouts.folder / "prompts.jsonl")
        written = [r for r in read_jsonl(rollouts.folder / "responses.jsonl") if r["raw"]]
        asked = np.array([row["weights"] for row in plan], dtype=np.float32)
        scores = [row["scores"] for row in plan]
        goals = Goals(
            asked,
            None if scores[0] is None else np.array(scores, dtype=np.float32),
            [row["text"] for row in plan],
        )
        rows = np.array([r["prompt"] for r in written])
        z = self.data.standardize([r["raw"] for r in written], [r["text"] for r in written])
        if s["accept"] == "ric":
            kept = accept_ric(z, s["quantile"])
        else:
            kept = accept_weighted(z, asked[rows], rows.tolist(), s["quantile"], self.totals)
        whole = np.isfinite(z).all(axis=1)
        # An empty answer was told what it is worth; as a text there is nothing in it to learn.
        kept &= np.array([bool(r["text"].strip()) for r in written], dtype=bool)
        self.totals += weighted_sum(z[whole], asked[rows[whole]]).tolist()
        away = np.full(len(z), np.nan)
        away[whole] = distance(self.condition, goals, rows[whole], z[whole])
        index = np.flatnonzero(kept)
        texts = self.condition.obtained(z[index])
        obtained = self.condition.obtained_weights(z[index])
        lines: list[dict[str, Any]] = []
        found: list[Row] = []
        for n, text, weights in zip(index, texts, obtained, strict=True):
            row, response = plan[rows[n]], written[n]
            found.append((self.condition.add(row["prompt"], text), response["text"]))
            lines.append(
                {
                    **{"prompt": row["prompt"], "response": response["text"]},
                    **{"asked": row["text"], "obtained": text, "distance": float(away[n])},
                    **{"weights_asked": row["weights"], "weights_obtained": weights.tolist()},
                    "z": z[n].tolist(),
                }
            )
        report: dict[str, Any] = {
            "responses": len(written),
            "unscored": int((~whole).sum()),
            "accepted": len(found),
        }
        for name, chosen in (("", index), ("_of_all", np.flatnonzero(whole))):
            if len(chosen):
                means = z[chosen].mean(axis=0).tolist()
                report[f"distance{name}"] = float(away[chosen].mean())
                report[f"z{name}"] = dict(zip(self.data.objective_names, means, strict=True))
        return found, lines, report

    def _say(self, text: str) -> None:
        if main_process():
            print(f"{self.method}, seed {self.seed}: {text}", flush=True)
