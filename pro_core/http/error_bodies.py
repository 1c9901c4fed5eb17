"""The error bodies of servers. Each kind of server has its own form:

- OpenAI and most: ``{"error": {"message", "type", "param", "code"}}``; OpenRouter adds ``metadata.raw``
- vLLM: ``{"object": "error", "message", "param", "code"}``
- TGI and TEI: ``{"error": "text", "error_type": "validation"}``; Ollama: ``{"error": "text"}``
- FastAPI: ``{"detail": "text"}`` or ``{"detail": [{"loc": ["body", "seed"], "msg", "type"}]}``
- Cloudflare and other gateways: ``{"errors": [{"message", "code"}]}``; also plain text, and whole web pages
"""

from __future__ import annotations

import json
import unicodedata
from typing import Any

_SAY = ("message", "error", "errors", "detail", "details", "msg", "error_message", "title", "raw")
MAX_SAID = 2000
"""Maximum characters of an error's text that are used."""
_DEPTH = 8


def parsed(body: bytes) -> Any:
    """The JSON of a body, else its text; empty for a web page."""
    text = body.decode("utf-8", "replace").strip().removeprefix("\ufeff")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return "" if text.startswith("<") else text


def said_by(data: Any) -> str:
    """The message of an error object or text, on one line, without control characters; empty if there is none."""
    line = " ".join(_said(data, _DEPTH).split())[:MAX_SAID]
    return "".join(c for c in line if unicodedata.category(c)[0] != "C")


def _said(data: Any, depth: int) -> str:
    if not depth:
        return ""
    if isinstance(data, str):
        return _unwrapped(data, depth)
    if isinstance(data, list):
        return "; ".join(filter(None, (_said(one, depth - 1) for one in data[:8])))
    if not isinstance(data, dict):
        return ""
    message = next(filter(None, (_said(data.get(key), depth - 1) for key in _SAY)), "")
    # A gateway's own message says only that the provider failed; the provider's message is in `metadata`.
    meta = data.get("metadata")
    raw = _said(meta.get("raw"), depth - 1) if isinstance(meta, dict) else ""
    return f"{message}: {raw}" if message and raw and raw != message else message or raw


def _unwrapped(text: str, depth: int) -> str:
    """The message inside a text that is itself a JSON error, as gateways pass on; else the text."""
    if text.lstrip().startswith(("{", "[")):
        try:
            return _said(json.loads(text), depth - 1) or text
        except (ValueError, RecursionError):
            pass
    return text


def _objects(data: Any) -> list[dict[str, Any]]:
    """The error object and what it wraps, the innermost first."""
    objects: list[dict[str, Any]] = []
    while len(objects) < _DEPTH:
        if isinstance(data, list):
            data = next((one for one in data if isinstance(one, dict)), None)
        if not isinstance(data, dict):
            break
        objects.insert(0, data)
        data = next((data[k] for k in ("error", "errors", "detail") if data.get(k)), None)
    return objects


def code_of(data: Any) -> int | None:
    """The HTTP status that an error object carries; None without one."""
    for one in _objects(data):
        for key in ("code", "status", "status_code", "http_status"):
            try:
                code = int(one.get(key, 0))
            except (ValueError, TypeError):
                continue
            if 400 <= code < 600:
                return code
    return None


def kind_of(data: Any) -> str:
    """The kind of failure that an error object names, in lower case, such as TGI's "overloaded" or "validation"."""
    for one in _objects(data):
        kind = one.get("error_type") or one.get("type")
        if isinstance(kind, str):
            return kind.lower()
    return ""


def named_by(data: Any) -> str:
    """The parameter that an error object names (OpenAI's ``param``, FastAPI's ``loc``); empty without one."""
    for one in _objects(data):
        if isinstance(one.get("param"), str):
            return one["param"]
        loc = one.get("loc")
        if isinstance(loc, list) and len(loc) > 1 and isinstance(loc[1], str):
            return loc[1]
    return ""


_UNSUPPORTED = (
    "unsupported_parameter",
    "unknown_parameter",
    "extra_forbidden",
    "unexpected_keyword",
)


def unsupported_by(data: Any) -> bool:
    """Whether an error object says that the server does not know the parameter, as opposed to rejecting its value."""
    return any(one.get(key) in _UNSUPPORTED for one in _objects(data) for key in ("code", "type"))
