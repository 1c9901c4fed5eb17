"""What both dialects share: how an answer is read as it comes, and when it is over.

An answer is over when the server ends it (a finish reason, ``[DONE]``, TGI's ``generated_text``) or when it is longer
than its tokens could be. The connection is then closed, so nothing that comes later can take the answer back.
"""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from pro_core.data.objectives import Message
from pro_core.generation.answers import AnswerPieces
from pro_core.generation.base import Finish, GenerationSettings, Piece
from pro_core.http import Answer, Session
from pro_core.http.error_bodies import code_of
from pro_core.http.events import Event
from pro_core.http.failures import Explainer, Failure

Tell = Callable[[Piece], None]
Json = Mapping[str, Any]

FINISHES: dict[str, Finish] = {
    **dict.fromkeys(("length", "max_tokens", "max_length", "model_length"), "length"),
    **dict.fromkeys(("content_filter", "filter", "safety", "sensitive"), "filter"),
    **dict.fromkeys(("recitation", "blocklist", "prohibited_content", "spii", "refusal"), "filter"),
}
"""What a server's finish reason means; every other one is the model's own end."""
BROKEN = ("error", "abort", "cancelled", "network_error", "insufficient_system_resource")
"""Finish reasons of an answer that broke off."""
PROBE = 5.0
"""Seconds that a look at the server's state or at its models may take."""


class Dialect(Protocol):
    """How to talk with one kind of server.

    Attributes:
        model: the model's name, as given; None for whichever the server has.
        listed: the model that the server has; empty if it does not say, None before it was asked.
    """

    model: str | None
    listed: str | None

    @property
    def probes(self) -> Sequence[str]:
        """The paths that say whether the server is there, the likeliest first."""
        ...

    def learn(self, path: str, answer: Answer) -> bool:
        """Note what a probe said; True if it shows that the server is there. Raises Failure."""
        ...

    def detail(self) -> str:
        """One line for the status."""
        ...

    async def answer(
        self,
        session: Session,
        index: int,
        messages: Sequence[Message],
        settings: GenerationSettings,
        tell: Tell,
        mixture: str | None = None,
        begun: str = "",
    ) -> Piece:
        """One answer: its pieces to ``tell`` as they come, and its last one. Raises Failure.

        ``settings``: with this candidate's own seed.
        ``mixture``: which of the server's writes (:mod:`pro_core.generation.lattice`). Raises GenerationError where
        the server does not hold it.
        ``begun``: what the answer begins with (:attr:`pro_core.generation.request.Request.begun`). Raises
        GenerationError where the server would begin anew.
        """
        ...


class Reader(ABC):
    """Turns what a server sends for one candidate into pieces.

    Attributes:
        over: the answer has its end, whatever else comes.
        fields: an object that is part of an answer has at least one of these.
    """

    fields: tuple[str, ...]

    def __init__(self, pieces: AnswerPieces, explain: Explainer):
        self.pieces = pieces
        self._explain = explain
        self._finish: Finish | None = None
        self._understood = False  # something of an answer came
        self._done = False
        self._aside = ""  # the words of an object that is not part of an answer

    @property
    def over(self) -> bool:
        return self._finish is not None or self._done or self.pieces.full

    def read(self, event: Event) -> Iterator[Piece]:
        """The pieces of one event, none once the answer is over. Raises Failure if it is an error or not an answer."""
        if self.over:
            return
        if event.data.strip() == "[DONE]":
            self._done = True
            return
        try:
            data = json.loads(event.data)
        except (ValueError, RecursionError):
            if event.name == "error":
                raise self._explain.in_stream(event.data) from None
            if event.cut or _keeps_alive(event):  # cut: half of an event
                return
            raise self._explain.no_answer() from None
        if data is None:
            return
        self._refuse(data, event.name)
        if not any(field in data for field in self.fields):
            self._aside = self._explain.words(data) or self._aside
        yield from self._news(data)

    def whole(self, data: Any) -> Iterator[Piece]:
        """The pieces of an answer that came whole, as one JSON object. Raises Failure."""
        if isinstance(data, list) and len(data) == 1:
            data = data[0]
        self._refuse(data)
        yield from self._news(data)
        if not self._understood:
            raise self._explain.no_answer("JSON that is no answer", data)
        self._done = True

    def end(self) -> list[Piece]:
        """What was held back, and the last piece. Raises Failure where the answer did not come to its end."""
        if not self._understood:
            raise self._explain.nothing(self._aside)
        if not self.over:
            raise self._explain.broke_off(self._aside)
        return list(self.pieces.end("length" if self.pieces.full else self._finish or "stop"))

    def _refuse(self, data: Any, name: str = "") -> None:
        if not isinstance(data, dict):
            raise self._explain.no_answer()
        error = "error" in (name, data.get("object"), data.get("type")) or data.get("error")
        part = any(field in data for field in self.fields)
        if error or (not part and code_of(data) is not None):
            raise self._explain.in_stream(data)

    def _ends(self, reason: Any, data: Any) -> None:
        """Note a finish reason; null and "" are not one."""
        if not reason:
            return
        reason = str(reason).lower()
        if reason in BROKEN:
            raise self._explain.in_stream(data) if "error" in data else self._explain.broke_off()
        self._finish = FINISHES.get(reason, "stop")

    @abstractmethod
    def _news(self, data: dict[str, Any]) -> Iterator[Piece]:
        """The pieces of one object; notes that it was understood, and the answer's end."""


def _keeps_alive(event: Event) -> bool:
    """Whether data that is not JSON only keeps the connection alive: empty, a comment, or an event such as a ping."""
    text = event.data.strip()
    return not text or text.startswith(":") or event.name not in ("", "message")


async def written(session: Session, path: str, body: Json, reader: Reader, tell: Tell) -> Piece:
    """One request: its pieces to ``tell`` as they come, and its last one.

    Only parts of the answer extend the time-out; comments and empty events do not.

    Raises:
        Failure: what went wrong. Once a piece was handed out, it has no word on how to ask again.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(session.timeout) as clock, session.post(path, body) as reply:
            if await reply.is_json():
                for piece in reader.whole(await reply.json()):
                    tell(piece)
            while not reader.over and (events := await reply.more()) is not None:
                for event in events:
                    for piece in reader.read(event):
                        tell(piece)
                        clock.reschedule(loop.time() + session.timeout)
        *rest, last = reader.end()
    except (TimeoutError, Failure) as error:
        failure = error if isinstance(error, Failure) else session.explain.silent()
        raise Failure(failure.message) if reader.pieces.begun else failure from None
    for piece in rest:
        tell(piece)
    return last


def top_p(settings: GenerationSettings) -> float | None:
    """None where it has no effect: TGI refuses 1.0, and with any other value it samples even at a temperature of 0."""
    return settings.top_p if settings.top_p < 1 and settings.temperature > 0 else None


def candidate_seed(seed: int | None, candidate: int) -> int | None:
    """Each candidate's own seed: with one seed, all N candidates would be the same text."""
    return None if seed is None else (seed + 7919 * candidate) % 2**31
