"""Policies as the evaluation kit sees them, and their responses as files.

A policy answers requests. Where their weights enter is the policy's affair, and there are three places: which model
writes (Rewarded Soups interpolates its parameters), what that model reads (PRO-WIC's weights, RiC's scores, MOSLIM's
levels), and which of several candidates is taken (best-of-N). :class:`Policy` asks for the first two; the kit does the
third with the panel that the policy is measured by.

Responses are kept by :mod:`pro_core.generation.responses` under what the model reads, so more requests or seeds reuse
what is there, and a policy that does not look at its weights answers once for all of them. The random numbers depend on
the seed and the prompts alone, so that two policies, or one under two requests, are compared under the same draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from pro_core.generation.base import GenerationSettings, Generator
from pro_core.generation.request import Request
from pro_core.generation.responses import Response, by_length, write_responses
from pro_core.prompting.policy_config import PolicyConfig
from pro_core.system.storage import content_hash


class Policy(Protocol):
    """What the kit asks of a policy.

    Attributes:
        name: as the results call it, such as ``PRO-WIC online``.
        candidates: how many answers are written for a prompt; of several the panel's weighted sum picks the best.
    """

    name: str
    candidates: int

    def identity(self, request: Request) -> str:
        """Tells one writing model from another: responses of another identity are not used again."""
        ...

    def generator(self, request: Request) -> Generator:
        """Who writes; asked for only when something must be written."""
        ...

    def reads(self, request: Request) -> Request:
        """What the writer reads of it (:meth:`pro_core.generation.request.Request.read_by`): of two requests that it
        does not tell apart, the same."""
        ...


@dataclass
class GeneratorPolicy:
    """One generator for all requests, whose weights stand in the prompt, in the choice among candidates, in both or
    nowhere.

    Args:
        load: makes the generator; it knows what its model reads.
        source: its identity, such as a hash of the model's files.
        asked_by: how the model is asked in place of what its checkpoint says: a stock model as a trained one.
    """

    name: str
    load: Callable[[], Generator]
    source: str
    candidates: int = 1
    asked_by: PolicyConfig | None = None

    def identity(self, request: Request) -> str:
        return self.source

    def generator(self, request: Request) -> Generator:
        return self.load()

    def reads(self, request: Request) -> Request:
        return request.read_by(self.asked_by or self.load().policy)


def respond(
    policy: Policy,
    requests: Sequence[Request],
    settings: GenerationSettings,
    seed: int,
    folder: str | Path,
    batch_size: int = 16,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[list[Response]]:
    """The policy's candidates for each request, (P, candidates); written now or read from ``folder``.

    Args:
        settings: its seed is not used: each batch has one of its own, from ``seed`` and the batch's prompts.
        batch_size: responses written side by side. Another size is another draw.
        on_progress: called with (requests answered, all) when something was written.
    """
    P, candidates = len(requests), policy.candidates
    plain = [list(request.messages) for request in requests]
    by_writer: dict[str, list[int]] = {}
    for p in by_length(plain):
        by_writer.setdefault(policy.identity(requests[p]), []).append(p)
    answers: list[list[Response]] = [[] for _ in requests]
    done = 0
    for identity, mine in by_writer.items():

        def seed_of(attempt: int, batch: int, asked: Sequence[int], mine: list[int] = mine) -> int:
            return int(content_hash([seed, [plain[mine[n]] for n in asked]])[:8], 16) % 2**31

        def report(written: int, _: int, before: int = done) -> None:
            if on_progress:
                on_progress(before + written // candidates, P)

        found = write_responses(
            partial(policy.generator, requests[mine[0]]),
            [policy.reads(requests[p]) for p in mine],
            candidates,
            settings,
            seed_of,
            folder,
            batch_size,
            identity,
            report,
        )
        done += len(mine)
        for p, responses in zip(mine, found, strict=True):
            answers[p] = responses
    return answers


def best_answer(z_NK: ArrayLike, weights: ArrayLike) -> int | None:
    """Which of N candidates best-of-N takes: the largest weighted sum of the scores (N, K); the first of equal ones.

    None where no candidate has all its scores: a NaN is no score.
    """
    totals = (np.asarray(z_NK, dtype=np.float64) * np.asarray(weights)).sum(axis=1)
    finite = np.isfinite(totals)
    return int(np.argmax(np.where(finite, totals, -np.inf))) if finite.any() else None
