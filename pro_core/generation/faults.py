"""What can go wrong between us and an endpoint, each as one sentence fit for a visitor.

The sentences are written here, not taken from exceptions: an exception's text can hold an address
with a password, or a header. Where a server explains itself, its words are shortened, put on one line,
and cleared of the token.
"""

from __future__ import annotations

import email.utils
import json
import time
from dataclasses import dataclass
from typing import Any

import httpx2
from huggingface_hub.errors import (
    InferenceTimeoutError,
    OfflineModeIsEnabled,
    OverloadedError,
    TextGenerationError,
    ValidationError,
)

_MAX_BODY = 64 * 1024
_MAX_DETAIL = 200


@dataclass
class Failure(Exception):
    """One sentence; whether trying again can help; how long the server asked to wait, in seconds; its HTTP status."""

    message: str
    retry: bool = False
    wait: float | None = None
    status: int | None = None

    def __str__(self) -> str:
        return self.message


class Explainer:
    """Turns exceptions and HTTP answers of one endpoint into :class:`Failure`."""

    def __init__(self, host: str, token: str | None, timeout: float):
        self._host = host
        self._token = token
        self._timeout = timeout

    async def check(self, response: httpx2.Response) -> None:
        """An event hook: raises Failure unless the answer is a success that can hold a stream."""
        kind = response.headers.get("content-type", "").split(";")[0].strip().lower()
        if response.is_success and kind not in ("text/html", "application/json", "application/xml"):
            return
        body = await _read(response)
        if response.is_success:
            detail = self.detail(body) if kind == "application/json" else ""
            raise Failure(
                f"The endpoint {self._host} answered with {kind}, not with a stream of text"
                + (f" ({detail})" if detail else "")
                + "; check PRO_ENDPOINT_URL and PRO_ENDPOINT_DIALECT."
            )
        raise self.status(response.status_code, self.detail(body), response.headers)

    def status(self, code: int, detail: str = "", headers: Any = None) -> Failure:
        """What an HTTP status other than success means."""
        host, because = self._host, f" ({detail})" if detail else ""
        if 300 <= code < 400:
            return Failure(
                f"The endpoint {host} sends us on to another address, which we do not follow; "
                "set PRO_ENDPOINT_URL to the final address."
            )
        if code == 401:  # no detail: servers echo parts of the token here
            return Failure(
                f"The endpoint {host} refuses our token (401); check PRO_ENDPOINT_TOKEN."
            )
        if code == 403:
            return Failure(
                f"The endpoint {host} forbids us to use this model (403); the token lacks the right."
            )
        if code == 404:
            return Failure(
                f"The endpoint {host} does not know this model or address (404){because}; "
                "check PRO_ENDPOINT_MODEL and PRO_ENDPOINT_URL."
            )
        if code in (400, 413, 422):
            sentence = f"The endpoint {host} does not accept this request ({code}){because}."
            return Failure(sentence, status=code)
        if code == 429:
            return self._busy(f"has too many requests (429){because}", headers)
        if code == 503:
            return self._busy(f"is not ready (503){because}", headers)
        return Failure(f"The endpoint {host} failed ({code}){because}.")

    def exception(self, error: Exception) -> Failure:
        """What any exception of a request or of its stream means."""
        host = self._host
        if isinstance(error, Failure):
            return error
        if isinstance(error, TextGenerationError):
            return self._in_stream(error)
        if isinstance(error, httpx2.ConnectTimeout) or isinstance(
            error.__cause__, httpx2.ConnectTimeout
        ):
            return Failure(f"The endpoint {host} cannot be reached: connecting took too long.")
        if isinstance(error, InferenceTimeoutError | httpx2.TimeoutException):
            return Failure(f"The endpoint {host} sent nothing for {self._timeout:g} seconds.")
        if isinstance(error, httpx2.ConnectError):
            return Failure(
                f"The endpoint {host} cannot be reached: the connection was refused.", retry=True
            )
        if isinstance(error, httpx2.TransportError):
            return Failure(f"The connection to the endpoint {host} broke off.")
        if isinstance(error, OfflineModeIsEnabled):
            return Failure("HF_HUB_OFFLINE keeps us from any endpoint; unset it.")
        return Failure(
            f"The endpoint {host} sent something that is no answer; "
            "check PRO_ENDPOINT_URL and PRO_ENDPOINT_DIALECT."
        )

    def broke_off(self) -> Failure:
        return Failure(f"The endpoint {self._host} ended the answer half-way.")

    def nothing(self) -> Failure:
        return Failure(
            f"The endpoint {self._host} sent an empty answer; "
            "check PRO_ENDPOINT_URL and PRO_ENDPOINT_DIALECT."
        )

    def _in_stream(self, error: TextGenerationError) -> Failure:
        """An error event inside a stream that began with status 200."""
        content = error.args[0] if error.args else ""
        code = content.get("code") if isinstance(content, dict) else None
        detail = self.detail(json.dumps({"error": content}).encode())
        if isinstance(error, OverloadedError) or code == 429:
            return self._busy("is overloaded", None)
        if isinstance(error, ValidationError):
            return self.status(422, detail)
        if isinstance(code, int) and 400 <= code < 600:
            return self.status(code, detail)
        because = f" ({detail})" if detail else ""
        return Failure(f"The endpoint {self._host} failed while it wrote{because}.")

    def _busy(self, what: str, headers: Any) -> Failure:
        message = f"The endpoint {self._host} {what}; try again in a while."
        return Failure(message, retry=True, wait=_retry_after(headers))

    def detail(self, body: bytes) -> str:
        """What a server's JSON error says, on one short line without the token; else nothing."""
        try:
            data: Any = json.loads(body)
        except ValueError:
            return ""
        for key in ("error", "detail", "message"):
            if isinstance(data, dict) and data.get(key):
                data = data[key]
        if isinstance(data, list):
            data = "; ".join(
                str(one.get("msg", one) if isinstance(one, dict) else one) for one in data
            )
        text = " ".join(data.split()) if isinstance(data, str) else ""
        if self._token:
            text = text.replace(self._token, "(token)")
        return text[:_MAX_DETAIL].rstrip(" .")


async def _read(response: httpx2.Response) -> bytes:
    """The body, or its beginning if it is long."""
    try:
        return response.content
    except httpx2.ResponseNotRead:
        body = b""
    async for part in response.aiter_bytes():
        body += part
        if len(body) > _MAX_BODY:
            break
    return body


def _retry_after(headers: Any) -> float | None:
    """Seconds that a Retry-After header asks for, given as seconds or as a date."""
    value = (headers or {}).get("retry-after", "").strip()
    if not value:
        return None
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
