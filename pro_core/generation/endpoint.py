"""Generation by a server: TGI, vLLM or any other that speaks one of two dialects.

- ``openai``: ``POST /v1/chat/completions``; the server renders the chat. Its template is out of sight, so equal
  neighbours are sent as one turn, and a conversation that it refuses is sent once more in the plainest form, without a
  system turn (:mod:`pro_core.turns`).
- ``tgi``: ``POST /generate_stream``; the chat is rendered here, by the chat template of the tokenizer
  that PRO_ENDPOINT_MODEL names when that loads, else as ``Human:`` / ``Assistant:`` turns.

N candidates are N requests at once, each with its own outcome. The token goes to this one host only:
redirects are not followed, and the machine's own Hugging Face token is never sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from typing import Any
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import AsyncInferenceClient

from pro_core.conditioned import PolicyConfig, load_tokenizer
from pro_core.generation.answers import AnswerPieces
from pro_core.generation.base import (
    Finish,
    GenerationError,
    GenerationSettings,
    Piece,
    StreamingGenerator,
    checked,
)
from pro_core.generation.chat import PLAIN_STOP, StopText, chat_prompt, has_template, plain_prompt
from pro_core.generation.faults import Explainer, Failure
from pro_core.objectives import Message
from pro_core.turns import THOUGHTS, merged, opened_thought, plainest, turn_end

logger = logging.getLogger(__name__)

DIALECTS = ("openai", "tgi")
TOKENIZER_WAIT = 15.0
"""Seconds that an answer waits for the tokenizer; the hub may be out of reach."""

FINISHES: dict[str, Finish] = {"length": "length", "content_filter": "filter"}
"""What a server's finish_reason means; every other one is the model's own end."""
_ROLES_REFUSED = (400, 422)
"""What servers answer when their chat template refuses a conversation, as they do to much else."""

_ROUTES = ("/chat/completions", "/v1/completions", "/generate_stream", "/generate", "/v1")


class EndpointGenerator(StreamingGenerator):
    """A language model behind a URL.

    Args:
        url: the server's address, with or without ``/v1`` or the route.
        model: the model's name at the server. In the openai dialect, without one the first that
            the server lists is used. In the tgi dialect it names a tokenizer (a folder or hub id).
        token: sent as ``Authorization: Bearer``; without one, no such header is sent.
        dialect: "openai" or "tgi".
        timeout: seconds without a word from the server before giving up.
        retries: how often a request is tried again after 429, 503 or a refused connection, as long as
            nothing was written yet.
        max_wait: the longest pause between two tries, in seconds; a server that asks for more is
            not tried again.
        policy: what the served model was trained to read beside the prompt; None for a stock model.
        sleep: what waits between tries.

    Raises:
        ValueError: a URL that is none, or holds a password or a query; an unknown dialect.
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
        policy: PolicyConfig | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ):
        if dialect not in DIALECTS:
            raise ValueError(f"got the dialect {dialect!r}, expected one of {list(DIALECTS)}")
        self._root, self.host = address_of(url)
        token = (token or "").strip() or None
        if token and not (token.isascii() and token.isprintable() and " " not in token):
            raise ValueError(
                "the endpoint's token has spaces or characters that no header can hold"
            )
        self.dialect = dialect
        self.model = model
        self.timeout = timeout
        self.retries = retries
        self.max_wait = max_wait
        self._sleep = sleep
        self._token = token
        if policy and policy.ranks:
            raise ValueError(
                "this policy is a soup that is mixed as it writes, which a server cannot do: save it under fixed "
                "weights (train/soups.py), or run it in this process (PRO_POLICY without PRO_ENDPOINT_URL)"
            )
        self._policy = policy
        self._explain = Explainer(self.host, token, timeout)
        self._listed: str | None = None
        self._system_turns = True  # until the server refuses them
        self._tokenizer: Future[Any] | None = None
        self._tokenizer_lock = threading.Lock()

    def __repr__(self) -> str:
        return f"EndpointGenerator({self.host!r}, model={self.model!r}, dialect={self.dialect!r})"

    @property
    def name(self) -> str:
        """ "model X at host Y"."""
        model = self.model or self._listed
        if model is None:
            return f"the model at {self.host}"
        return f"{os.path.basename(model) if os.path.isabs(model) else model} at {self.host}"

    def status(self) -> dict[str, Any]:
        """See :class:`~pro_core.generation.base.Generator`; asks the server, for 3 seconds at most."""
        state, detail = "unreachable", ""
        try:
            state, detail = self._probe()
        except httpx2.TimeoutException:
            detail = f"The endpoint {self.host} did not answer within 3 seconds."
        except Exception as error:
            detail = self._explain.exception(error).message
        if state == "ready" and self.dialect == "tgi":
            tokenizer = self._load_tokenizer()
            known = tokenizer.done() and has_template(tokenizer.result())
            form = "the model's chat template" if known else "Human/Assistant turns"
            detail = f"tgi dialect, chats rendered by {form}"
        return {
            "name": self.name,
            "kind": "endpoint",
            "state": state,
            "reachable": state != "unreachable",
            "detail": detail,
        }

    def _probe(self) -> tuple[str, str]:
        """(state, detail) by asking the server's cheap routes."""
        # `transformers serve` fails (500) to list its models where there is no hub cache.
        for path in ("/health",) if self.dialect == "tgi" else ("/v1/models", "/health"):
            # Each on a connection of its own: some servers hang up after a 500.
            response = httpx2.get(self._root + path, headers=self._headers(), timeout=3.0)
            if response.status_code < 500 or response.status_code == 503:
                break
        code = response.status_code
        if code == 503:
            return "loading", f"The endpoint {self.host} is not ready yet."
        if response.is_success and "html" in response.headers.get("content-type", ""):
            detail = f"{self.host} is a web page, not an endpoint; check PRO_ENDPOINT_URL."
            return "unreachable", detail
        if response.is_success or code in (404, 405, 429):
            # Not every server has these routes: one that answers like this is there.
            self._note_listed(response)
            return "ready", f"{self.dialect} dialect"
        return "unreachable", self._explain.status(code).message

    async def stream_batch(
        self, batch: Sequence[Sequence[Message]], settings: GenerationSettings | None = None
    ) -> AsyncGenerator[Piece, None]:
        """See :class:`~pro_core.generation.base.Generator`."""
        news: asyncio.Queue[Piece] = asyncio.Queue()
        tasks = [
            asyncio.create_task(
                self._candidate(index, messages, settings or GenerationSettings(), news)
            )
            for index, messages in enumerate(batch)
        ]
        try:
            for _ in batch:
                while not (piece := await news.get()).done:
                    yield piece
                yield piece
        finally:
            for task in tasks:
                task.cancel()
            # Each task closes its connection on the way out, which stops the server's work.
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _candidate(
        self,
        index: int,
        messages: Sequence[Message],
        settings: GenerationSettings,
        news: asyncio.Queue[Piece],
    ) -> None:
        """One answer, with retries before its first text; ends in exactly one piece with ``done``."""
        for attempt in range(self.retries + 1):
            pieces = AnswerPieces(index, settings.max_new_tokens)
            try:
                news.put_nowait(
                    await self._attempt(pieces, index, checked(messages), settings, news)
                )
                return
            except GenerationError as error:
                news.put_nowait(Piece(index, error=error.message, done=True))
                return
            except Exception as error:
                failure = self._explain.exception(error)
            wait = 0.5 * 2**attempt if failure.wait is None else failure.wait
            last = attempt == self.retries or wait > self.max_wait
            if pieces.begun or not failure.retry or last:
                logger.warning("candidate %d: %s", index, failure.message)
                news.put_nowait(Piece(index, error=failure.message, done=True))
                return
            logger.info("candidate %d: %s Next try in %g s.", index, failure.message, wait)
            await self._sleep(wait)

    async def _attempt(
        self,
        pieces: AnswerPieces,
        index: int,
        messages: Sequence[Message],
        settings: GenerationSettings,
        news: asyncio.Queue[Piece],
    ) -> Piece:
        """One try, and its last piece; in the openai dialect in the plainest form where the server refuses the first.

        Which of two turns it refuses a server says in words alone. That it refuses system turns is remembered once
        the same conversation without them is answered.
        """
        if self.dialect == "tgi":
            return await self._answer(pieces, self._tgi, index, messages, settings, news)
        plain, full = plainest(messages), merged(messages)
        system = any(m["role"] == "system" for m in full)
        if system and not self._system_turns:
            full = plain
        try:
            return await self._answer(pieces, self._openai, index, full, settings, news)
        except Failure as failure:
            if failure.status not in _ROLES_REFUSED or full == plain or pieces.begun:
                raise
            refused = failure
        try:
            last = await self._answer(pieces, self._openai, index, plain, settings, news)
        except Failure as failure:
            # What the server says of the conversation as it is, not of what we made of it.
            raise (refused if failure.status in _ROLES_REFUSED else failure) from None
        if system and self._system_turns:
            self._system_turns = False
            logger.info("%s takes no system turns: they stand in the user's from now on", self.host)
        return last

    async def _answer(
        self,
        pieces: AnswerPieces,
        talk: Callable[..., AsyncGenerator[Piece, None]],
        index: int,
        messages: Sequence[Message],
        settings: GenerationSettings,
        news: asyncio.Queue[Piece],
    ) -> Piece:
        """One request, and its last piece. Raises what goes wrong, as a Failure; closes the connection in the end."""
        client = _Client(
            base_url=self._root if self.dialect == "openai" else None,
            # Never None and never empty: either makes the client send the machine's own token.
            api_key=self._token or "none",
            # None removes the header that the client would make of that placeholder.
            headers=None if self._token else {"authorization": None},  # type: ignore[dict-item]
            timeout=httpx2.Timeout(self.timeout, connect=min(10.0, self.timeout)),  # type: ignore[arg-type]
        )
        client.check = self._explain.check
        try:
            async with aclosing(talk(client, pieces, index, messages, settings)) as written:
                async for piece in written:
                    if piece.done:
                        return piece
                    news.put_nowait(piece)
            raise self._explain.broke_off()
        except GenerationError:
            raise
        except Exception as error:
            raise self._explain.exception(error) from error
        finally:
            await client.close()

    async def _openai(
        self,
        client: AsyncInferenceClient,
        pieces: AnswerPieces,
        index: int,
        messages: Sequence[Message],
        settings: GenerationSettings,
    ) -> AsyncGenerator[Piece, None]:
        chunks = await client.chat_completion(
            list(messages),
            model=await asyncio.to_thread(self._model_name),
            stream=True,
            max_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_p=_top_p(settings),
            seed=_seed(settings, index),
        )
        finish: Finish | None = None
        began = False
        async for chunk in chunks:
            began = True
            for choice in chunk.choices or []:
                for piece in _news_of(choice.delta, pieces):
                    yield piece
                if choice.finish_reason is not None:
                    finish = FINISHES.get(choice.finish_reason, "stop")
        if finish is None:
            raise self._explain.broke_off() if began else self._explain.nothing()
        for piece in pieces.end(finish):
            yield piece

    async def _tgi(
        self,
        client: AsyncInferenceClient,
        pieces: AnswerPieces,
        index: int,
        messages: Sequence[Message],
        settings: GenerationSettings,
    ) -> AsyncGenerator[Piece, None]:
        prompt, stop, opened = await self._render(messages)
        pieces.open(opened)
        sampled = settings.temperature > 0  # TGI refuses a temperature of 0
        events = await client.text_generation(
            prompt,
            model=f"{self._root}/generate_stream",
            stream=True,
            details=True,
            do_sample=sampled,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature if sampled else None,
            top_p=_top_p(settings) if sampled else None,
            seed=_seed(settings, index) if sampled else None,
            stop=[stop] if stop else None,
        )
        cut = StopText(stop)
        finish: Finish | None = None
        began = False
        async for event in events:
            began = True
            for piece in pieces.push(cut.push(_token_text(event.token, stop))):
                yield piece
            if cut.reached:  # whatever the server goes on with is no part of the answer
                finish = "stop"
                break
            if event.generated_text is not None:  # on the last event only
                reason = event.details.finish_reason if event.details else ""
                finish = FINISHES.get(reason, "stop")
        if finish is None:
            raise self._explain.broke_off() if began else self._explain.nothing()
        for piece in [*pieces.push(cut.flush()), *pieces.end(finish)]:
            yield piece

    async def _render(self, messages: Sequence[Message]) -> tuple[str, str | None, str | None]:
        """The prompt for /generate_stream, the text to stop at, and the thought's tag that the prompt ends with."""
        loading = asyncio.wrap_future(self._load_tokenizer())
        # Not cancelled when the time is up: it may be there for the next answer.
        await asyncio.wait([loading], timeout=TOKENIZER_WAIT)
        tokenizer = loading.result() if loading.done() else None
        if tokenizer is None or not has_template(tokenizer):
            return plain_prompt(messages), PLAIN_STOP, None
        prompt = chat_prompt(tokenizer, messages)
        # TGI adds the opening token itself; a template that writes it too would double it.
        bos = tokenizer.bos_token
        if bos and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id:
            prompt = prompt.removeprefix(bos)
        return prompt, turn_end(tokenizer), opened_thought(tokenizer)

    def _load_tokenizer(self) -> Future[Any]:
        """The model's tokenizer, or None, as it comes; loaded once, in a thread of its own."""
        with self._tokenizer_lock:
            if self._tokenizer is None:
                future: Future[Any] = Future()
                self._tokenizer = future
                threading.Thread(
                    target=lambda: future.set_result(_read_tokenizer(self.model)),
                    name="pro-tokenizer",
                    daemon=True,  # a hub out of reach must not keep the program from ending
                ).start()
            return self._tokenizer

    def _model_name(self) -> str:
        """What to call the model: as given, else the first that the server lists, else "tgi"."""
        if self.model is None and self._listed is None:
            self.status()
        return self.model or self._listed or "tgi"

    def _note_listed(self, response: httpx2.Response) -> None:
        with contextlib.suppress(ValueError, LookupError, TypeError):
            self._listed = str(response.json()["data"][0]["id"])

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}


class _Client(AsyncInferenceClient):
    """The hub's client, that follows no redirect and checks every answer before reading its stream."""

    check: Callable[[httpx2.Response], Awaitable[None]]

    async def _get_async_client(self) -> httpx2.AsyncClient:
        client = await super()._get_async_client()
        if client.follow_redirects:
            client.follow_redirects = False
            hooks = client.event_hooks
            client.event_hooks = {**hooks, "response": [self.check]}
        return client


def address_of(url: str, setting: str = "PRO_ENDPOINT_URL") -> tuple[str, str]:
    """(the address without its route, the host to show). Raises a ValueError that names the setting."""
    # The errors do not repeat the URL: it may hold a password.
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{setting} is no address: expected something like https://host:8080")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            f"{setting} holds a user name, password or query: expected the bare address, "
            "with the secret in PRO_ENDPOINT_TOKEN"
        )
    try:
        host = f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname
    except ValueError:
        raise ValueError(f"{setting} has a port that is no number from 0 to 65535") from None
    path = parts.path.rstrip("/")
    for route in _ROUTES:
        path = path.removesuffix(route)
    return f"{parts.scheme}://{parts.netloc}{path}", host


def _read_tokenizer(model: str | None) -> Any:
    """The tokenizer of a folder or hub id; None for other names, or when it does not load."""
    if model is None or not (os.path.isdir(model) or model.count("/") == 1):
        return None
    try:
        return load_tokenizer(model)
    except Exception as error:
        logger.warning(
            "no tokenizer %r (%s): chats go to the endpoint as plain Human/Assistant turns",
            model,
            type(error).__name__,
        )
        return None


def _news_of(delta: Any, pieces: AnswerPieces) -> Iterator[Piece]:
    """The thought, which servers send in a field of one of two names, and the text of one chunk."""
    if not delta:
        return
    thought = getattr(delta, "reasoning_content", None) or getattr(delta, "reasoning", None)
    if isinstance(thought, str):
        yield from pieces.reason(thought)
    if delta.content:
        yield from pieces.push(delta.content)


def _token_text(token: Any, stop: str | None) -> str:
    """What a token of /generate_stream says: of special ones only a thought's tags and the end of the turn."""
    if token is None:
        return ""
    tags = {stop, *(tag for pair in THOUGHTS for tag in pair)}
    return token.text if not token.special or token.text.strip() in tags else ""


def _top_p(settings: GenerationSettings) -> float | None:
    return settings.top_p if settings.top_p < 1 else None  # TGI refuses 1.0, which says nothing


def _seed(settings: GenerationSettings, index: int) -> int | None:
    """Each candidate's own seed, or N seeded candidates would be one text N times."""
    return None if settings.seed is None else (settings.seed + 7919 * index) % 2**31
