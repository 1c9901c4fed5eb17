"""Generation by a server: TGI, vLLM or any other that speaks one of two dialects.

- ``openai``: ``POST .../chat/completions`` (:mod:`pro_core.generation.dialect_openai`)
- ``tgi``: ``POST /generate_stream`` (:mod:`pro_core.generation.dialect_tgi`)

N candidates are N requests at once, each with its own outcome. What both need of HTTP, and where the token goes, is in
:mod:`pro_core.http`.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from pro_core.generation.base import GenerationSettings, Piece, StreamingGenerator
from pro_core.generation.dialect_openai import OpenAI
from pro_core.generation.dialect_tgi import TGI
from pro_core.generation.dialects import PROBE, Dialect, Tell, candidate_seed
from pro_core.generation.lattice import Mixture, Served
from pro_core.generation.request import GenerationError, Request, checked
from pro_core.http import Answer, Client, Patience, Session, Settings, persist
from pro_core.http.failures import Failure
from pro_core.prompting.policy_config import PolicyConfig

logger = logging.getLogger(__name__)

DIALECTS: dict[str, Callable[[Client, str | None, Served | None], Dialect]] = {
    "openai": OpenAI,
    "tgi": TGI,
}


class EndpointGenerator(StreamingGenerator):
    """A language model behind a URL.

    Args:
        url: the server's address, in any form (:func:`pro_core.generation.dialect_openai.bases`).
        model: the model's name at the server. Without one, the openai dialect uses the first that the server lists. In
            the tgi dialect it names a tokenizer (a folder or hub id).
        token: sent as ``Authorization: Bearer``; without one, no such header is sent.
        dialect: "openai" or "tgi".
        timeout: seconds without more of the answer before giving up.
        retries: how often a request is tried again after 429, an overload or a refused connection, as long as
            nothing was written yet.
        max_wait: the longest pause between two such tries, in seconds; a server that asks for more is
            not tried again.
        patience: the seconds for which a server that is not ready (503) is asked again, such as a Hugging Face
            Inference Endpoint that was scaled to zero. A note says so every 5 s.
        policy: what the served model was trained to read beside the prompt; None for a stock model.
        sleep: what waits between tries.
        settings: the names of the settings, for messages.

    Raises:
        ValueError: not a URL, or one with a password or a query; an unknown dialect.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        token: str | None = None,
        dialect: str = "openai",
        *,
        timeout: float = 60.0,
        retries: int = 3,
        max_wait: float = 10.0,
        patience: float = 600.0,
        policy: PolicyConfig | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        settings: Settings | None = None,
    ):
        if dialect not in DIALECTS:
            raise ValueError(f"got the dialect {dialect!r}, expected one of {list(DIALECTS)}")
        if policy and policy.ranks:
            raise ValueError(
                "this policy is a soup that is mixed as it writes, which a server cannot do: save it as a lattice "
                "of mixtures or under fixed weights (train/soups.py), or run it in this process (PRO_POLICY without "
                "PRO_ENDPOINT_URL)"
            )
        self.dialect = dialect
        self._url = url
        self.client = Client(url, token, timeout, settings)
        served = Served(policy, self.client.host) if policy and policy.mixtures else None
        self._served = served
        self._dialect = DIALECTS[dialect](self.client, model, served)
        self._patience = Patience(retries, max_wait, patience)
        self._policy = policy
        self._sleep = sleep

    def with_token(self, token: str, settings: Settings | None = None) -> EndpointGenerator:
        """The same model asked with another token, such as a visitor's own.

        Args:
            settings: the names of its settings, for messages.

        Raises:
            ValueError: a token that no header can hold.
        """
        other = copy.copy(self)
        other.client = Client(self._url, token, self.client.timeout, settings)
        other._dialect = DIALECTS[self.dialect](other.client, self.model, self._served)
        return other

    def __repr__(self) -> str:
        return f"EndpointGenerator({self.host!r}, model={self.model!r}, dialect={self.dialect!r})"

    @property
    def host(self) -> str:
        """The server, without its token."""
        return self.client.host

    @property
    def model(self) -> str | None:
        """The model's name as given; None for whichever the server has."""
        return self._dialect.model

    @property
    def name(self) -> str:
        """ "model X at host Y"."""
        model = self.model or self._dialect.listed
        if not model:
            return f"the model at {self.host}"
        return f"{os.path.basename(model) if os.path.isabs(model) else model} at {self.host}"

    # ------------------------------------------------------------ its state

    def status(self) -> dict[str, Any]:
        """See :class:`~pro_core.generation.base.Generator`; asks the server, for some seconds at most."""
        try:
            state, detail = self._probe()
        except Failure as failure:
            state, detail = "unreachable", failure.message
        return {
            "name": self.name,
            "kind": "endpoint",
            "state": state,
            "reachable": state != "unreachable",
            "detail": detail,
        }

    def _probe(self) -> tuple[str, str]:
        """(state, detail) by asking the server's cheap routes. Raises Failure where it is not there."""
        page: Answer | None = None
        for path in self._dialect.probes:
            # Each on a connection of its own: some servers hang up after a 500.
            answer = self.client.ask("GET", path, timeout=PROBE)
            if answer.status in (202, 503):
                return "loading", f"The endpoint {self.host} is not ready yet."
            if answer.success and "html" in answer.kind:
                page = answer
            elif self._dialect.learn(path, answer):
                return "ready", self._dialect.detail()
            elif 400 <= answer.status < 500 and answer.status not in (404, 405, 429):
                break
        if page:
            detail = f"{self.host} is a web page, not an endpoint; check PRO_ENDPOINT_URL."
            return "unreachable", detail
        if answer.success or answer.status in (404, 405, 429):
            # Not every server has these routes: one that answers like this is there.
            return "ready", self._dialect.detail()
        raise self.client.explain.answer(answer.status, answer.data)

    # ------------------------------------------------------------ answers

    async def stream_batch(
        self, batch: Sequence[Request], settings: GenerationSettings | None = None
    ) -> AsyncGenerator[Piece, None]:
        """See :class:`~pro_core.generation.base.Generator`."""
        news: asyncio.Queue[Piece] = asyncio.Queue()
        work = asyncio.create_task(self._write(batch, settings or GenerationSettings(), news))
        try:
            for _ in batch:
                while not (piece := await news.get()).done:
                    yield piece
                yield piece
        finally:
            # On its way out it closes every connection, which stops the server's work.
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _write(
        self,
        batch: Sequence[Request],
        settings: GenerationSettings,
        news: asyncio.Queue[Piece],
    ) -> None:
        """All candidates side by side, on connections that end with them."""
        try:
            async with self.client.session() as session:
                tell = news.put_nowait
                asks = [
                    self._candidate(session, index, request, settings, tell)
                    for index, request in enumerate(batch)
                ]
                await asyncio.gather(*asks)
        except Exception as error:  # such as a Failure: the environment's proxy makes no sense
            message = self._sentence(error)
            for index in range(len(batch)):
                news.put_nowait(Piece(index, error=message, done=True))

    async def _candidate(
        self,
        session: Session,
        index: int,
        request: Request,
        settings: GenerationSettings,
        tell: Tell,
    ) -> None:
        """One answer, with retries before its first text; ends in exactly one piece with ``done``."""

        def waiting(failure: Failure, waited: float) -> None:
            logger.info("candidate %d: %s Waited %.0f s.", index, failure.message, waited)
            if failure.again == "waking":
                tell(Piece(index, note=self._waking(failure, waited), progress=True))

        async def ask() -> Piece:
            name = mixture.name if mixture else None
            turns = checked(read.messages)
            return await self._dialect.answer(session, index, turns, drawn, tell, name, read.begun)

        candidate = index if request.candidate is None else request.candidate
        drawn = replace(settings, seed=candidate_seed(settings.seed, candidate))
        try:
            read = request.read_by(self._policy)
            async with self._mixture(read) as mixture:
                last = await persist(ask, self._patience, self._sleep, waiting)
            if mixture and mixture.note:
                tell(Piece(index, note=mixture.note))
        except Exception as error:
            last = Piece(index, error=self._sentence(error), done=True)
            logger.warning("candidate %d: %s", index, last.error)
        tell(last)

    @asynccontextmanager
    async def _mixture(self, read: Request) -> AsyncGenerator[Mixture | None, None]:
        """Which of the server's mixtures writes; it stays there as long as the block lasts. None: not a policy of such.

        Raises:
            GenerationError: the server has none that is mixed in this way.
        """
        if read.mixing:
            raise GenerationError(
                "A server that holds fixed mixtures cannot mix them in another way or strength: run the policy in this "
                "process."
            )
        yield self._served.nearest(read.weights) if self._served and read.weights else None

    def _sentence(self, error: Exception) -> str:
        """What to tell a visitor. For a fault of ours, the log says where to look; the other candidates go on."""
        if isinstance(error, Failure | GenerationError):
            return error.message
        logger.exception("reading the answer of %s failed", self.host)
        return f"What the endpoint {self.host} sent could not be read; the log says more."

    def _waking(self, failure: Failure, waited: float) -> str:
        because = f" ({failure.words})" if failure.words else ""
        return (
            f"The endpoint {self.host} is waking up{because}; waited {waited:.0f} s, "
            f"at most {self._patience.waking:.0f}."
        )
