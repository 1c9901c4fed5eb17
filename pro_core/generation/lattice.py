"""A soup behind a server: which of the fixed mixtures that it holds writes under the weights in force.

A server cannot mix LoRAs as it writes. It holds a lattice of mixtures (:mod:`pro_core.policies.soups`), and the nearest
one writes each candidate. Before the first answer it is checked that the server has that mixture, because some servers
silently answer with the base model when they do not have a LoRA:

- openai: ``/v1/models`` lists the LoRAs of vLLM and of SGLang. A server that does not list the mixture is not asked.
- tgi: TGI lists no LoRA anywhere. A mixture is missing if every token has exactly the probability that it has under a
  made-up name.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pro_core.generation.request import GenerationError
from pro_core.http import Session
from pro_core.prompting.policy_config import PolicyConfig

NOBODY = "pro-no-such-mixture"
"""A name that no server holds: under it TGI writes as the base model."""
PROBE = "Human: Tell me something about the sea.\n\nAssistant:"
PROBE_TOKENS = 8
CHECKED_FOR = {True: 600.0, False: 10.0}
"""Seconds until TGI is checked again, by whether it held the mixture: it may have been restarted."""


class Mixture(NamedTuple):
    """A mixture's name at the server, and the sentence that tells a reader which one wrote."""

    name: str
    note: str


@dataclass(frozen=True)
class Served:
    """The mixtures of a policy at one server.

    Attributes:
        policy: with ``mixtures``. host: the server's name.
    """

    policy: PolicyConfig
    host: str

    def nearest(self, weights: Mapping[str, float]) -> Mixture:
        """The mixture nearest (L1, the first of equals) to weights of the policy's objectives."""
        names = self.policy.condition.objective_names
        asked = np.array([weights[name] for name in names])
        mixtures = self.policy.mixtures
        distances = np.abs(np.asarray(list(mixtures.values())) - asked).sum(axis=1)
        name = list(mixtures)[int(distances.argmin())]
        shown = ", ".join(
            f"{objective} {weight:.2f}".rstrip("0").rstrip(".").replace(" 0.", " .")
            for objective, weight in zip(names, mixtures[name], strict=True)
            if weight
        )
        note = (
            f"Written by the mixture {shown}, the nearest of {len(mixtures)} that the server holds."
        )
        return Mixture(name, note)

    @property
    def count(self) -> int:
        return len(self.policy.mixtures)

    def listed(self, models: Sequence[Any]) -> dict[str, str]:
        """{mixture: its name as a chat's ``model``}, for the mixtures among the entries of ``/v1/models``."""
        called = {}
        for entry in models:
            name = entry.get("id") if isinstance(entry, Mapping) else None
            if isinstance(name, str) and name in self.policy.mixtures:
                # SGLang wants a LoRA's name behind its model's; the bare name means the model itself.
                behind = entry.get("owned_by") == "sglang" and entry.get("parent")
                called[name] = f"{entry['parent']}:{name}" if behind else name
        return called

    def missing(self, mixture: str, listed: int) -> GenerationError:
        """The error when ``listed`` of the mixtures are among the server's models, but not this one."""
        return GenerationError(
            f"The endpoint {self.host} lists {listed} of the policy's {self.count} mixtures, and not {mixture}: start "
            "it with all of them, as train/soups.py says (TGI lists none: PRO_ENDPOINT_DIALECT=tgi)."
        )


class Checks:
    """Whether TGI was seen to hold each mixture, and when (:data:`CHECKED_FOR`)."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[bool, float]] = {}

    async def tgi(self, session: Session, path: str, served: Served, mixture: str) -> None:
        """Raise a GenerationError if TGI writes under the mixture exactly as under a made-up name.

        Both times it writes a few tokens, greedily. Rounding may differ between two answers of a busy server, so a
        missing mixture can pass; one that changes anything is never refused.

        Args:
            path: of ``/generate``.

        Raises:
            Failure: the server did not answer as TGI does.
        """

        async def holds() -> bool:
            wrote = [await _probabilities(session, path, name) for name in (mixture, NOBODY)]
            self.seen[mixture] = wrote[0] != wrote[1], time.monotonic()
            return self.seen[mixture][0]

        held, when = self.seen.get(mixture, (False, -math.inf))
        if time.monotonic() - when >= CHECKED_FOR[held]:
            held = await session.shared(mixture, holds)
        if not held:
            raise GenerationError(
                f"The endpoint {served.host} writes under {mixture} exactly as without any mixture, so it does not "
                "hold it: start it with LORA_ADAPTERS, as train/soups.py says."
            )


async def _probabilities(session: Session, path: str, adapter: str) -> list[tuple[Any, Any]]:
    """(id, log-probability) of each token that TGI writes under an adapter. Raises Failure."""
    parameters = {"max_new_tokens": PROBE_TOKENS, "details": True, "adapter_id": adapter}
    answer = await session.ask("POST", path, {"inputs": PROBE, "parameters": parameters})
    if not answer.success:
        raise session.explain.answer(answer.status, answer.data)
    try:
        return [(token["id"], token["logprob"]) for token in answer.data["details"]["tokens"]]
    except (KeyError, TypeError):
        raise session.explain.no_answer() from None
