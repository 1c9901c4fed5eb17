"""What every generator has in common: settings, pieces of text, and the one protocol.

A generator writes N candidates side by side and hands out *pieces* as they are written. The two kinds
are :class:`~pro_core.generation.local.LocalGenerator` (a model in this process) and
:class:`~pro_core.generation.endpoint.EndpointGenerator` (a server). What goes wrong with one
candidate comes back as that candidate's ``Piece.error``, one sentence fit for a visitor; the others
go on, and what was already written stays.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from pro_core.generation.request import GenerationError, Request
from pro_core.prompting.policy_config import PolicyConfig

T = TypeVar("T")

EMPTY_ANSWER = "The model ended its answer without writing anything."

Finish = Literal["stop", "length", "filter"]
"""How an answer ended: by the model, cut by the token limit, or cut by a filter of the endpoint."""


@dataclass(frozen=True)
class GenerationSettings:
    """How to sample.

    Attributes:
        max_new_tokens: at least 1.
        temperature: at least 0; 0 always takes the likeliest token.
        top_p: in (0, 1]; sample from the likeliest tokens that hold this share of probability.
        seed: the same seed and batch give the same texts in process; an endpoint may ignore it.
            None draws afresh. Candidate i is sampled with a seed of its own.
    """

    max_new_tokens: int = 192
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"got max_new_tokens={self.max_new_tokens}, expected at least 1")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"got temperature={self.temperature}, expected 0 or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"got top_p={self.top_p}, expected above 0 and at most 1")
        if self.seed is not None and not 0 <= self.seed < 2**31:
            raise ValueError(f"got seed={self.seed}, expected a whole number from 0 to 2**31 - 1")


@dataclass(frozen=True)
class Piece:
    """News of candidate ``index``: more text, a note, or its end.

    Attributes:
        text: what was written of the answer since the last piece; may be empty.
        error: one sentence when this candidate failed; then ``done`` is set and the text stays.
        done: the last piece of this candidate.
        note: one sentence worth showing, such as that old turns were left out.
        progress: the note is news of a wait, which the next piece makes stale: worth showing, not worth keeping.
        reasoning: what was written of the thought before the answer since the last piece.
        retract: a tag that came only now says that the text of the earlier pieces was reasoning.
        finish: on the last piece, how the answer ended; None when it broke off.
        empty: the error says only that the model ended without writing anything. That counts as an empty answer.
    """

    index: int
    text: str = ""
    error: str | None = None
    done: bool = False
    note: str | None = None
    progress: bool = False
    reasoning: str = ""
    retract: bool = False
    finish: Finish | None = None
    empty: bool = False


class Generator(Protocol):
    """One interface, two kinds."""

    @property
    def name(self) -> str:
        """Shown to people, such as "SmolLM2-135M-Instruct, in this process"."""
        ...

    @property
    def policy(self) -> PolicyConfig | None:
        """What the model was trained to read beside the prompt; None for a stock model."""
        ...

    def stream(self, request: Request, settings: GenerationSettings) -> AsyncGenerator[str, None]:
        """One answer as it is written, without its reasoning. Raises GenerationError; closing it stops the work."""
        ...

    def stream_batch(
        self, batch: Sequence[Request], settings: GenerationSettings
    ) -> AsyncGenerator[Piece, None]:
        """One answer for each of N requests, side by side.

        Every candidate ends in exactly one piece with ``done``, with ``error`` if it failed; nothing
        is raised for a failure. Closing the iterator (``aclose``) stops the work.
        """
        ...

    def generate(self, batch: Sequence[Request], settings: GenerationSettings) -> list[str]:
        """N whole answers. Raises GenerationError if any of them failed."""
        ...

    def status(self) -> dict[str, Any]:
        """``name``, ``kind`` (local, endpoint), ``state`` (loading, ready, unreachable),
        ``reachable`` (bool) and ``detail`` (one line)."""
        ...


class StreamingGenerator:
    """What follows from ``stream_batch`` alone, the same for both kinds."""

    _policy: PolicyConfig | None = None

    @property
    def policy(self) -> PolicyConfig | None:
        """See :class:`Generator`."""
        return self._policy

    def stream_batch(
        self, batch: Sequence[Request], settings: GenerationSettings
    ) -> AsyncGenerator[Piece, None]:
        raise NotImplementedError

    async def stream(
        self, request: Request, settings: GenerationSettings | None = None
    ) -> AsyncGenerator[str, None]:
        """One answer as it is written, without its reasoning. Raises GenerationError; closing it stops the work.

        What was handed out cannot be taken back: if a server sends only the end tag of a thought, the thought comes as
        text. ``stream_batch`` says so (:attr:`Piece.retract`).
        """
        async with aclosing(self.stream_batch([request], settings or GenerationSettings())) as run:
            async for piece in run:
                if piece.text:
                    yield piece.text
                if piece.error:
                    raise GenerationError(piece.error)

    def generate(
        self, batch: Sequence[Request], settings: GenerationSettings | None = None
    ) -> list[str]:
        """N whole answers. Raises GenerationError if any of them failed."""
        written = collect(self, batch, settings or GenerationSettings())
        for answer in written:
            if answer.error:
                raise GenerationError(answer.error)
        return [answer.text for answer in written]


@dataclass
class Written:
    """All that one candidate wrote, and what went wrong with it if anything did; see :class:`Piece`."""

    text: str = ""
    error: str | None = None
    notes: list[str] = field(default_factory=list)
    reasoning: str = ""
    finish: Finish | None = None
    empty: bool = False

    @property
    def failed(self) -> bool:
        """A text whose generation broke off is not an answer; an empty text that the model ended itself is one."""
        return self.error is not None and not self.empty

    def add(self, piece: Piece) -> None:
        """Take in the next piece."""
        if piece.retract:
            self.reasoning, self.text = self.reasoning + self.text, ""
        self.reasoning += piece.reasoning
        self.text += piece.text
        if piece.note and not piece.progress:
            self.notes.append(piece.note)
        if piece.done:
            self.reasoning = self.reasoning.strip()
            self.error, self.finish, self.empty = piece.error, piece.finish, piece.empty


def collect(
    generator: Generator | StreamingGenerator,
    batch: Sequence[Request],
    settings: GenerationSettings,
) -> list[Written]:
    """Run ``stream_batch`` to its end; works inside and outside of an event loop."""

    async def run() -> list[Written]:
        written = [Written() for _ in batch]
        async with aclosing(generator.stream_batch(batch, settings)) as pieces:
            async for piece in pieces:
                written[piece.index].add(piece)
        return written

    return run_sync(run())


def run_sync(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, from sync code, even where an event loop already runs (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    outcome: list[T] = []
    failure: list[BaseException] = []

    def target() -> None:
        try:
            outcome.append(asyncio.run(work))
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=target, name="pro-run-sync")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]
