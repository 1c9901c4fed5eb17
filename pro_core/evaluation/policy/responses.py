"""Policies as the evaluation sees them, and their responses as files.

A policy answers requests. Weights can enter in three places: in which model writes (Rewarded Soups interpolates its
parameters), in what that model reads (PRO-WIC's weights, RiC's scores, MOSLIM's levels), and in which of several
candidates is taken (best-of-N). :class:`Policy` covers the first two. The evaluation does the third, with the panel
that measures the policy.

Responses are stored by :mod:`pro_core.generation.responses` under what the model reads, so that more requests or seeds
reuse them, and a policy that ignores its weights answers once for all. The random numbers depend only on the seed and
the prompts, so two policies, or one policy under two requests, are compared under the same draws.
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
    """What the evaluation needs from a policy.

    Attributes:
        name: its name in the results, such as ``PRO-WIC online``.
        candidates: answers written per prompt; of several, the panel's weighted sum picks the best.
    """

    name: str
    candidates: int

    def identity(self, request: Request) -> str:
        """Identifies the model that writes: responses of another identity are not reused."""
        ...

    def generator(self, request: Request) -> Generator:
        """The model that writes; called only when something must be written."""
        ...

    def reads(self, request: Request) -> Request:
        """What the writer reads of the request (:meth:`pro_core.generation.request.Request.read_by`): equal for two
        requests that it cannot tell apart."""
        ...


@dataclass
class GeneratorPolicy:
    """One generator for all requests. Weights enter in the prompt, in the choice among candidates, in both or nowhere.

    Args:
        load: makes the generator, which knows what its model reads.
        source: its identity, such as a hash of the model's files.
        asked_by: replaces what the checkpoint says of how it is asked: a stock model is then asked like a trained one.
        chooses: the generator itself chooses by the weights, whatever its model reads.
    """

    name: str
    load: Callable[[], Generator]
    source: str
    candidates: int = 1
    asked_by: PolicyConfig | None = None
    chooses: bool = False

    def identity(self, request: Request) -> str:
        return self.source

    def generator(self, request: Request) -> Generator:
        return self.load()

    def reads(self, request: Request) -> Request:
        if self.chooses:
            return request
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
        settings: its seed is not used; each batch has its own, made from ``seed`` and the batch's prompts.
        batch_size: responses written at once. Another size draws other answers.
        on_progress: called with (requests answered, all) when something was written.
    """
    P, candidates = len(requests), policy.candidates
    plain = [list(request.messages) for request in requests]
    by_writer: dict[str, list[int]] = {}
    for p in by_length(plain):
        by_writer.setdefault(policy.identity(requests[p]), []).append(p)
    answers: list[list[Response]] = [[] for _ in requests]
    done = 0
    for identity, rows in by_writer.items():

        def seed_of(attempt: int, batch: int, asked: Sequence[int], rows: list[int] = rows) -> int:
            drawn = [seed, [plain[rows[n]] for n in asked], *([attempt] if attempt else [])]
            return int(content_hash(drawn)[:8], 16) % 2**31

        def report(written: int, _: int, before: int = done) -> None:
            if on_progress:
                on_progress(before + written // candidates, P)

        written = write_responses(
            partial(policy.generator, requests[rows[0]]),
            [policy.reads(requests[p]) for p in rows],
            candidates,
            settings,
            seed_of,
            folder,
            batch_size,
            identity,
            report,
            again=True,
        )
        done += len(rows)
        for p, responses in zip(rows, written, strict=True):
            answers[p] = responses
    return answers


def best_answer(z_NK: ArrayLike, weights: ArrayLike) -> int | None:
    """The candidate that best-of-N takes: the largest weighted sum of scores (N, K), the first of equal ones.

    None where no candidate has all its scores; NaN is a missing score.
    """
    totals = (np.asarray(z_NK, dtype=np.float64) * np.asarray(weights)).sum(axis=1)
    finite = np.isfinite(totals)
    return int(np.argmax(np.where(finite, totals, -np.inf))) if finite.any() else None
