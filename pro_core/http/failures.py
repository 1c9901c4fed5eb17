"""Everything that can go wrong with a server, each as one sentence that a visitor may read.

The sentences are written here, not taken from exceptions: an exception's text can hold an address with a password, or
a header. A server's own explanation is shortened, put on one line, and stripped of the token and its parts.
"""

from __future__ import annotations

import email.utils
import errno
import re
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import httpx2

from pro_core.http.error_bodies import (
    code_of,
    kind_of,
    named_by,
    parsed,
    said_by,
    unsupported_by,
)
from pro_core.http.events import TooLong

MAX_WORDS = 200
"""Maximum characters of a server's own words in a sentence."""

Again = Literal["busy", "waking"]


@dataclass(eq=False)
class Failure(Exception):
    """One sentence for people, and whether a retry could help.

    Attributes:
        again: "busy": retry soon, a few times (429, an overload, a refused connection). "waking": retry for as long as
            a server takes to start (503). None: a retry would give the same.
        wait: the seconds that the server asks to wait, if it does.
        status: the HTTP status, if there was one.
        named: the request's parameter that the server's error object blames; empty without one.
        unsupported: that object says that the server does not know the parameter, whatever its value.
        words: the server's message, cleaned.
    """

    message: str
    again: Again | None = None
    wait: float | None = None
    status: int | None = None
    named: str = ""
    words: str = ""
    unsupported: bool = False

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Settings:
    """The names of a server's settings, so that sentences can tell people which one to check."""

    url: str = "PRO_ENDPOINT_URL"
    token: str = "PRO_ENDPOINT_TOKEN"
    check: str = "PRO_ENDPOINT_URL and PRO_ENDPOINT_DIALECT"
    model: str = "PRO_ENDPOINT_MODEL"


class Explainer:
    """Turns exceptions and HTTP answers of one server into :class:`Failure`.

    Args:
        host: as shown to people. ``timeout``: the seconds of silence after which we give up.
        proxy: the host of the proxy between us and it; None without one.
    """

    def __init__(
        self,
        host: str,
        token: str | None,
        timeout: float,
        settings: Settings | None = None,
        proxy: str | None = None,
    ):
        self._host = host
        self._token = token
        self._timeout = timeout
        self._settings = settings or Settings()
        self.proxy = proxy

    # ------------------------------------------------------------ HTTP answers

    def status(self, code: int, body: bytes = b"", headers: Mapping[str, str] = {}) -> Failure:
        """What an HTTP status other than success means."""
        return self.answer(code, parsed(body), headers)

    def answer(self, code: int, data: Any, headers: Mapping[str, str] = {}) -> Failure:
        """Like :meth:`status`, for a body that is already parsed."""
        failure = self._status(code, self.words(data), named_by(data), _retry_after(headers))
        failure.unsupported = unsupported_by(data)
        return failure

    def _status(
        self, code: int, words: str = "", named: str = "", wait: float | None = None
    ) -> Failure:
        host, s = f"The endpoint {self._host}", self._settings
        because = f" ({words})" if words else ""
        through = f", asked through the proxy {self.proxy}" if self.proxy else ""
        again: Again | None = None
        if 300 <= code < 400:
            says = (
                f"{host} sends us on to another address, which we do not follow; "
                f"set {s.url} to the final address."
            )
        elif code == 401:  # no words: servers echo parts of the token here
            says = f"{host} refuses our token (401); check {s.token}."
        elif code == 403:
            says = f"{host} forbids us to use this model (403){because}; the token lacks the right."
        elif code in (404, 405):
            says = (
                f"{host} does not know this model or address ({code}){because}; "
                f"check {s.model} and {s.url}."
            )
        elif code == 407:
            says = (
                f"The proxy {self.proxy or 'before ' + self._host} asks for a name and a password (407); "
                "check http_proxy, https_proxy and no_proxy."
            )
        elif code in (400, 413, 422):
            says = f"{host} does not accept this request ({code}){because}."
        elif code in (429, 529):
            again, says = "busy", f"{host} has too many requests ({code}){because}{_LATER}"
        elif code in (202, 503):
            again, says = "waking", f"{host} is not ready ({code}){because}{_LATER}"
        else:
            says = f"{host} failed ({code}){because}{through}."
        return Failure(says, again, wait, code, named, words)

    def in_stream(self, data: Any) -> Failure:
        """An error inside an answer that began with status 200."""
        words, code, kind = self.words(data), code_of(data), kind_of(data)
        because = f" ({words})" if words else ""
        if "overloaded" in kind or code in (429, 529) or words == TGI_FULL:
            busy = f"The endpoint {self._host} is overloaded{because}{_LATER}"
            return Failure(busy, "busy", status=code, words=words)
        if kind == "validation":
            code = 422
        if code is not None:
            return self._status(code, words, named_by(data))
        return Failure(
            f"The endpoint {self._host} failed while it wrote{because}.",
            words=words,
            named=named_by(data),
        )

    # ------------------------------------------------------------ exceptions

    def exception(self, error: BaseException, timeout: float | None = None) -> Failure:
        """The meaning of an exception from a request or its stream. Only its type is used, never its text.

        ``timeout``: the seconds of silence allowed for this request, if they differ from the client's.
        """
        if isinstance(error, Failure):
            return error
        where = f"The endpoint {self._host}"
        way = f"The proxy {self.proxy}, used for {self._host}," if self.proxy else where
        causes = list(_causes(error))

        def has(*kinds: type[BaseException]) -> bool:
            return any(isinstance(cause, kinds) for cause in causes)

        if has(httpx2.ConnectTimeout):
            return Failure(f"{way} cannot be reached: connecting took too long.")
        if has(httpx2.TimeoutException, TimeoutError):
            return self.silent(timeout)
        if has(httpx2.ProxyError):
            return Failure(
                f"The proxy {self.proxy or ''} does not let us through to {self._host}; "
                "check http_proxy, https_proxy and no_proxy.".replace("  ", " ")
            )
        if has(ssl.SSLCertVerificationError):
            return Failure(
                f"{where} cannot be trusted: its TLS certificate is not valid (self-signed, expired, or another "
                "host's); name the file of its certificate authority in SSL_CERT_FILE."
            )
        if has(ssl.SSLError):
            return Failure(
                f"{where} does not speak TLS with us: it may be a plain http server; check the https:// in "
                f"{self._settings.url}."
            )
        if has(socket.gaierror):
            return Failure(
                f"{way} cannot be found: no address is known for this name; "
                f"check {'http_proxy and https_proxy' if self.proxy else self._settings.url}."
            )
        if has(ConnectionRefusedError):
            return Failure(f"{way} cannot be reached: the connection was refused.", "busy")
        if any(isinstance(cause, OSError) and cause.errno in _NO_WAY for cause in causes):
            return Failure(f"{way} cannot be reached: there is no route to its network.")
        if has(httpx2.DecodingError):
            return Failure(f"{where} sent a body that is not in the encoding that it names.")
        if has(TooLong):
            return Failure(f"{where} sent an event that is too long to be part of an answer.")
        if has(httpx2.TransportError, OSError):
            return Failure(f"The connection to the endpoint {self._host} broke off.")
        return self.no_answer()

    # ------------------------------------------------------------ answers that cannot be used

    def silent(self, timeout: float | None = None) -> Failure:
        seconds = timeout or self._timeout
        return Failure(f"The endpoint {self._host} sent nothing for {seconds:g} seconds.")

    def unfinished(self, seconds: float) -> Failure:
        return Failure(f"The endpoint {self._host} gave no complete answer in {seconds:g} seconds.")

    def broke_off(self, words: str = "") -> Failure:
        """``words``: what the server said beside the answer, which may tell why."""
        because = f" ({words})" if words else ""
        return Failure(f"The endpoint {self._host} ended the answer half-way{because}.")

    def nothing(self, words: str = "") -> Failure:
        because = f" ({words})" if words else ""
        return Failure(
            f"The endpoint {self._host} sent an empty answer{because}; check {self._settings.check}."
        )

    def no_answer(self, what: str = "something that is no answer", data: Any = None) -> Failure:
        """The server sent ``what``; ``data`` may say why."""
        words = self.words(data)
        because = f" ({words})" if words else ""
        return Failure(
            f"The endpoint {self._host} sent {what}{because}; check {self._settings.check}.",
            words=words,
        )

    # ------------------------------------------------------------ a server's own words

    def words(self, data: Any) -> str:
        """The message of an error object or text, on one short line without the token; empty if there is none."""
        return masked(said_by(data), self._token)[:MAX_WORDS].rstrip(" .")


_NO_WAY = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN)
_LATER = "; try again in a while."
TGI_FULL = "Model is overloaded"
"""TGI's message in the stream of a chat, where it gives no error type, and 422 as the status of every error."""
_PART = 6
_STARRED = re.compile(r"([\w-]*)(?:\*{2,}|\.{3,}|…|•{2,}|[xX]{4,})([\w-]*)")


def masked(text: str, token: str | None) -> str:
    """The text without the token, its parts of 6 characters or more, and forms such as ``sk-ab***wxyz``."""
    if not token:
        return text

    def starred(match: re.Match[str]) -> str:
        head, tail = match.groups()
        echoes = (len(head) > 1 and token.startswith(head)) or (
            len(tail) > 1 and token.endswith(tail)
        )
        return "(token)" if echoes else match[0]

    text = _STARRED.sub(starred, text)
    if len(token) < _PART:
        return re.sub(rf"(?<!\w){re.escape(token)}(?!\w)", "(token)", text)
    kept, i = [], 0
    while i < len(text):
        if text[i : i + _PART] not in token or len(text) - i < _PART:
            kept.append(text[i])
            i += 1
            continue
        end = i + _PART
        while end < len(text) and text[i : end + 1] in token:
            end += 1
        kept.append("(token)")
        i = end
    return "".join(kept)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exception, its causes, and the members of exception groups among them."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a Retry-After header asks for, given as seconds or as a date."""
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
