"""The one HTTP client for model servers: language models today; it suits hosted reward models and judges as well.

- The token goes to this one host only: redirects are not followed, and no other token or password is sent.
- Addresses of this machine are never reached through a proxy. For other hosts the environment decides (http_proxy,
  https_proxy, all_proxy, no_proxy).
- Certificates are checked; SSL_CERT_FILE or SSL_CERT_DIR name other authorities than the system's.
- Every error is a :class:`~pro_core.http.failures.Failure`: one sentence, and whether to retry (:class:`Patience`).
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import httpx2

from pro_core.http.addresses import address_of, proxy_of
from pro_core.http.error_bodies import parsed
from pro_core.http.events import Event, EventReader, TooLong
from pro_core.http.failures import Explainer, Failure, Settings

T = TypeVar("T")

MAX_BODY = 16 * 1024 * 1024
"""Maximum bytes of a JSON answer."""
MAX_ERROR = 64 * 1024
"""Maximum bytes that are read of an error's body."""
ERROR_WAIT = 5.0
"""Seconds to wait for an error's body; its status says enough."""
CONNECT = 10.0
"""Maximum seconds for connecting; less if the time-out is shorter."""

# ---------------------------------------------------------------- retries


@dataclass(frozen=True)
class Patience:
    """How long to retry a failing server, as long as no part of its answer has arrived.

    Attributes:
        retries: the number of retries after "busy": 429, an overload, a refused connection.
        max_wait: the longest pause before such a retry, in seconds; a server that asks for more is not retried.
        waking: the seconds that a server that answers 503 has to wake up, for example after it was scaled to zero.
    """

    retries: int = 3
    max_wait: float = 10.0
    waking: float = 600.0

    def pause(self, failure: Failure, attempt: int, waited: float) -> float | None:
        """The seconds to wait after this failed attempt (from 0); None to give up.

        Pauses double from half a second, unless the server names one. ``waited``: the seconds waited so far.
        """
        if failure.again == "busy":
            pause = 0.5 * 2**attempt if failure.wait is None else failure.wait
            return pause if attempt < self.retries and pause <= self.max_wait else None
        if failure.again == "waking":
            pause = min(0.5 * 2 ** min(attempt, 8), 5.0) if failure.wait is None else failure.wait
            return max(pause, 0.5) if waited + pause <= self.waking else None
        return None


async def persist(
    ask: Callable[[], Awaitable[T]],
    patience: Patience,
    sleep: Callable[[float], Awaitable[None]],
    waiting: Callable[[Failure, float], None],
) -> T:
    """The result of ``ask``, retried after failures for which that can help.

    ``waiting`` is called before every pause, and every 5 s during a longer one, with the failure and the seconds waited
    so far.

    Raises:
        Failure: the last one.
    """
    attempts: Counter[str | None] = Counter()
    waited, begun = 0.0, time.monotonic()
    while True:
        try:
            return await ask()
        except Failure as failure:
            # A gateway may hold each request for a while: that counts as waiting, too.
            waited = max(waited, time.monotonic() - begun)
            left = patience.pause(failure, attempts[failure.again], waited)
            if left is None:
                raise
            attempts[failure.again] += 1
            while left > 0:
                waiting(failure, waited)
                step = min(left, 5.0)
                await sleep(step)
                left, waited = left - step, waited + step


# ---------------------------------------------------------------- the client


class Answer(NamedTuple):
    """A server's answer to :meth:`Client.ask`: its status, its JSON or text, and its content type."""

    status: int
    data: Any
    kind: str

    @property
    def success(self) -> bool:
        return 200 <= self.status < 300


class Client:
    """A client of one server, for many threads and event loops. Only a :meth:`session` holds connections.

    Args:
        url: any form of its address.
        token: sent as ``Authorization: Bearer``; without one, no such header is sent.
        timeout: seconds without a word from the server before giving up.
        settings: the names of these settings, for messages.

    Raises:
        ValueError: an invalid URL or token.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        timeout: float = 60.0,
        settings: Settings | None = None,
    ):
        settings = settings or Settings()
        self.address = address_of(url, settings.url)
        token = (token or "").strip() or None
        if token and not (token.isascii() and token.isprintable() and " " not in token):
            raise ValueError(
                f"the endpoint's token ({settings.token}) has spaces or characters that no header can hold"
            )
        self.timeout = timeout
        self._token = token
        self.explain = Explainer(self.address.host, token, timeout, settings)

    @property
    def host(self) -> str:
        return self.address.host

    def ask(self, method: str, path: str, body: Any = None, timeout: float | None = None) -> Answer:
        """One call outside of any event loop, on its own connection; ``path`` is the full path.

        Raises:
            Failure: no complete answer came in time. An error status is an answer, not a Failure.
        """
        url = self.address.origin + path
        seconds = timeout or self.timeout
        begun = time.monotonic()
        try:
            with httpx2.Client(**self._options(seconds)) as client:
                with client.stream(method, url, json=body) as response:
                    parts, size = [b""], 0
                    for part in response.iter_bytes():
                        parts.append(part)
                        size += len(part)
                        if size > MAX_BODY:
                            raise self.explain.no_answer("more than an answer can hold")
                        if (
                            time.monotonic() > begun + seconds
                        ):  # the server sends a little at a time
                            raise self.explain.unfinished(seconds)
        except (httpx2.HTTPError, httpx2.StreamError, ssl.SSLError) as error:
            raise self.explain.exception(error, seconds) from error
        return Answer(response.status_code, parsed(b"".join(parts)), _kind(response))

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """Connections for parallel requests on this event loop. Leaving closes them all at once."""
        async with httpx2.AsyncClient(**self._options(self.timeout)) as client:
            yield Session(self, client)

    def _options(self, timeout: float) -> dict[str, Any]:
        """The arguments of both kinds of httpx client. Raises Failure if the environment's settings are invalid."""
        proxy = proxy_of(self.address)
        headers = {"User-Agent": "pro-core", "Accept-Encoding": "identity"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            via = httpx2.Proxy(proxy) if proxy else None
            self.explain.proxy = via.url.netloc.decode("ascii") if via else None
            tls = self.address.origin.startswith("https") or (via and via.url.scheme == "https")
            context = _system_tls(*map(os.environ.get, _TLS)) if tls else _no_tls()
            transport: dict[str, Any] = {"verify": context, "proxy": via, "trust_env": False}
            if via is not None:  # a SOCKS proxy needs a package that may be missing
                httpx2.HTTPTransport(**transport)
        except (ValueError, httpx2.InvalidURL):
            raise Failure(
                "The environment names a proxy that is not an address: expected something like http://host:3128 in "
                "http_proxy, https_proxy and all_proxy."
            ) from None
        except ImportError:
            raise Failure(
                "The environment names a SOCKS proxy, which needs the package socksio: install it, or add "
                f"{self.host} to no_proxy."
            ) from None
        except OSError:  # from the context; ssl.SSLError is one, too
            raise Failure(
                "SSL_CERT_FILE or SSL_CERT_DIR names no certificates that can be read: correct or unset it."
            ) from None
        return {
            **transport,
            "headers": headers,
            "follow_redirects": False,
            "timeout": httpx2.Timeout(timeout, connect=min(CONNECT, timeout), pool=None),
            # No limit on parallel requests: the server says when it has too many.
            "limits": httpx2.Limits(max_connections=None, max_keepalive_connections=None),
        }


_TLS = ("SSL_CERT_FILE", "SSL_CERT_DIR")


@functools.lru_cache(maxsize=4)
def _system_tls(*environment: str | None) -> ssl.SSLContext:
    """The TLS context for these values of :data:`_TLS`; making one takes 20 ms or more."""
    return httpx2.create_ssl_context()


@functools.lru_cache(maxsize=1)
def _no_tls() -> ssl.SSLContext:
    """An unused context; without it, httpx would read all certificates to make its own."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class Session:
    """Parallel requests; see :meth:`Client.session`."""

    def __init__(self, client: Client, http: httpx2.AsyncClient):
        self.explain = client.explain
        self.timeout = client.timeout
        self._origin = client.address.origin
        self._http = http
        self._shared: dict[str, asyncio.Task[Any]] = {}

    async def shared(self, what: str, look_up: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result or error of ``look_up``, called once for all requests that want it at the same time.

        These requests end together: cancelling one of them cancels the look-up.
        """
        if what not in self._shared:
            task = self._shared[what] = asyncio.create_task(look_up())
            task.add_done_callback(lambda _: self._shared.pop(what))
        return await self._shared[what]

    @asynccontextmanager
    async def request(self, method: str, path: str, body: Any = None) -> AsyncIterator[Reply]:
        """One request, and its answer as it arrives. Leaving closes the connection, unless the whole answer was read.

        Raises:
            Failure: anything that goes wrong with the connection, also while the answer is read.
        """
        try:
            async with self._http.stream(method, self._origin + path, json=body) as response:
                yield Reply(response, self.explain)
        except (httpx2.HTTPError, httpx2.StreamError, ssl.SSLError) as error:
            raise self.explain.exception(error) from error

    async def ask(
        self, method: str, path: str, body: Any = None, timeout: float | None = None
    ) -> Answer:
        """One call, like :meth:`Client.ask`."""
        seconds = timeout or self.timeout
        try:
            async with asyncio.timeout(seconds), self.request(method, path, body) as reply:
                read = await reply.rest(MAX_BODY + 1)
                if len(read) > MAX_BODY:
                    raise self.explain.no_answer("more than an answer can hold")
                return Answer(reply.status, parsed(read), reply.kind)
        except TimeoutError:
            raise self.explain.unfinished(seconds) from None

    @asynccontextmanager
    async def post(self, path: str, body: Any) -> AsyncIterator[Reply]:
        """One POST request whose answer is read as it arrives. Raises Failure for an error status, too."""
        async with self.request("POST", path, body) as reply:
            if reply.status not in (200, 201):
                raise self.explain.status(reply.status, await reply.error(), reply.headers)
            yield reply


class Reply:
    """An answer as it arrives. Its first character decides what it is, whatever content type the server names.

    Attributes:
        status, headers, kind: its HTTP status, its headers, and its content type.
    """

    def __init__(self, response: httpx2.Response, explain: Explainer):
        self.status = response.status_code
        self.headers = response.headers
        self.kind = _kind(response)
        self._parts = response.aiter_bytes()
        self._explain = explain
        self._events = EventReader()
        self._head = b""
        self._ended = False

    async def is_json(self) -> bool:
        """Whether this is one JSON answer rather than a stream of events. Raises Failure for a web page."""
        start = b""
        while not start and not self._ended and len(self._head) < MAX_ERROR:
            self._head += await self._part()
            start = self._head.lstrip(b"\xef\xbb\xbf \t\r\n")
        if start.startswith(b"<"):
            raise self._explain.no_answer("a web page")
        return start.startswith((b"{", b"["))

    async def json(self) -> Any:
        """The whole answer. Raises Failure if it is too long or not JSON."""
        body = await self.rest(MAX_BODY + 1)
        try:
            if len(body) > MAX_BODY:
                raise ValueError
            return json.loads(body)
        except (ValueError, RecursionError):
            raise self._explain.no_answer() from None

    async def more(self) -> list[Event] | None:
        """The events in the next part, possibly none; None at the end. Raises Failure for an event that is too long."""
        if self._ended and not self._head:
            return None
        part, self._head = self._head, b""
        part = part or await self._part()
        try:
            return self._events.end() if self._ended and not part else self._events.push(part)
        except TooLong as error:
            raise self._explain.exception(error) from error

    async def rest(self, most: int) -> bytes:
        """The rest of the body, at most ``most`` bytes."""
        parts, self._head = [self._head], b""
        size = len(parts[0])
        while not self._ended and size < most:
            parts.append(await self._part())
            size += len(parts[-1])
        return b"".join(parts)[:most]

    async def error(self) -> bytes:
        """The body of an error, or the part that arrived before the connection broke or the time was up."""
        parts, size = [b""], 0
        with suppress(TimeoutError, httpx2.HTTPError, httpx2.StreamError, ssl.SSLError):
            async with asyncio.timeout(ERROR_WAIT):
                while size < MAX_ERROR and (part := await self._part()):
                    parts.append(part)
                    size += len(part)
        return b"".join(parts)[:MAX_ERROR]

    async def _part(self) -> bytes:
        part = await anext(self._parts, None)
        self._ended = part is None
        return part or b""


def _kind(response: httpx2.Response) -> str:
    return response.headers.get("content-type", "").split(";")[0].strip().lower()
