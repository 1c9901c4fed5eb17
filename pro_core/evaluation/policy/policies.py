"""The policies that an evaluation's recipe names. Only one model at a time is held in memory."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pro_core.evaluation.policy.recipe import PolicyEntry
from pro_core.evaluation.policy.responses import GeneratorPolicy
from pro_core.generation import EndpointGenerator, Generator, LocalGenerator, Mixing
from pro_core.generation.soup import MIXING_VERSION
from pro_core.prompting.policy_config import PolicyConfig
from pro_core.prompting.templates import Condition
from pro_core.rewards.blockwise import BlockwiseGenerator
from pro_core.runs.clock import device_hours
from pro_core.runs.recipes import ConfigError
from pro_core.system.fingerprints import fingerprint
from pro_core.system.storage import content_hash

Check = Callable[[PolicyConfig], None]
"""Raises a ValueError where a policy reads something else than what the evaluation asks for."""


class NamedPolicies:
    """The policies by name and seed.

    Args:
        check: applied to what each checkpoint reads.
        asked_by: how all policies are asked, stock models too; None: each as it was trained.
        panel: the RewardPanel that chooses block by block, where an entry asks for that.
    """

    def __init__(
        self,
        entries: Sequence[PolicyEntry],
        check: Check,
        asked_by: PolicyConfig | None = None,
        panel: Any = None,
    ):
        self.entries = {entry.name: entry for entry in entries}
        self.check, self.asked_by, self.panel = check, asked_by, panel
        self._writer: tuple[Any, Generator] | None = None
        self._fingerprints: dict[str, str] = {}

    @classmethod
    def under_weights(
        cls, entries: Sequence[PolicyEntry], objective_names: Sequence[str], panel: Any = None
    ) -> NamedPolicies:
        """Policies that read weights of these objectives, each in the form of its training, or the prompt alone."""
        return cls(entries, lambda reads: reads.check_objectives(objective_names), panel=panel)

    @classmethod
    def under_levels(cls, entries: Sequence[PolicyEntry], condition: Condition) -> NamedPolicies:
        """Policies that are all asked in the same words, stock models too: the difference is what training adds."""

        def check(config: PolicyConfig) -> None:
            config.check_objectives(condition.objective_names)
            reads = config.condition
            if reads and reads != condition:
                raise ValueError(
                    f"it reads {reads.kind} of {list(reads.objective_names)}, {reads.level_counts}; this recipe "
                    f"asks for levels of {list(condition.objective_names)}, {condition.level_counts}: name the "
                    "classifier and the objectives that it was trained with"
                )

        return cls(entries, check, PolicyConfig(condition))

    def missing(self, name: str, seed: int) -> str | None:
        """The folder that training should have made for this seed, where it is missing."""
        entry = self.entries[name]
        folder = entry.model.format(seed=seed)
        made = "{seed}" in entry.model and not entry.endpoint
        return folder if made and not Path(folder).is_dir() else None

    def training(self, name: str, seed: int) -> dict[str, float]:
        """``device_hours`` of the policy's training, where its folder records them (:mod:`pro_core.runs.clock`)."""
        entry = self.entries[name]
        hours = device_hours((entry.policy or entry.model).format(seed=seed))
        return {} if hours is None else {"device_hours": hours}

    def __call__(self, name: str, seed: int, candidates: int | None = None) -> GeneratorPolicy:
        """One policy under one seed; its model loads when it must write. ``candidates`` replaces the recipe's number.

        Raises:
            ConfigError: a checkpoint cannot be loaded, reads something else than what is asked for, or is not mixed
                where the entry says how; blocks without a panel.
        """
        entry = self.entries[name]
        model, folder = entry.model.format(seed=seed), entry.policy.format(seed=seed)
        endpoint = entry.endpoint
        source = self._fingerprint(folder or model) if folder or not endpoint else ""
        if endpoint:
            source = f"{endpoint} {model} {source}"
        if entry.block and self.panel is None:
            raise ConfigError(f"{name}: got blocks, but no panel chooses here", ["policies"])

        def load() -> Generator:
            key = source, entry.mixing, entry.block, entry.candidates
            if self._writer is None or self._writer[0] != key:
                self._writer = None
                gc.collect()
                writer: Generator = (
                    _endpoint(endpoint, model, folder)
                    if endpoint
                    else LocalGenerator(model, mixing=entry.mixing)
                )
                if entry.block:
                    writer = BlockwiseGenerator(writer, self.panel, entry.candidates, entry.block)
                self._writer = key, writer
            return self._writer[1]

        try:
            reads = load().policy
            if reads is not None:
                self.check(reads)
            mixes = reads is not None and bool(reads.ranks)
            if entry.mixing and not mixes:
                raise ValueError("got how to mix it, but it is no policy of one LoRA per objective")
        except ValueError as error:
            raise ConfigError(f"{name}: {error}", ["policies"]) from None
        identity = source
        if mixes:
            identity += f" mixing {MIXING_VERSION} {entry.mixing or Mixing()}"
        if entry.block:
            chooser = content_hash([self.panel.fingerprint(), self.panel.stats.to_dict()])
            identity += f" best of {entry.candidates} every {entry.block} tokens by {chooser}"
        n = candidates or (1 if entry.block else entry.candidates)
        return GeneratorPolicy(name, load, identity, n, self.asked_by, bool(entry.block))

    def _fingerprint(self, model: str) -> str:
        if model not in self._fingerprints:
            self._fingerprints[model] = fingerprint(model)
        return self._fingerprints[model]


def _endpoint(url: str, model: str, folder: str) -> Generator:
    """A server's model; ``folder`` holds the checkpoint that it serves, if it is a conditioned one."""
    reads = PolicyConfig.read(folder) if folder else None
    if folder and reads is None:
        raise ConfigError(
            f"{folder} holds no pro_policy.json, which says what a policy reads", ["policies"]
        )
    token = os.environ.get("PRO_ENDPOINT_TOKEN")
    return EndpointGenerator(url, model or None, token, policy=reads)
