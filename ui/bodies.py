"""Checks of a request's body, before Gradio reads it.

Gradio prints a traceback for every body that its own code cannot handle: an unknown function, too few values, a text
in place of a slider's number, a file. Each check here raises a :class:`Refusal` with one sentence. The handlers check
what an event's values mean (`ui.values`).
"""

from __future__ import annotations

import inspect
import json
import math
import re
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import gradio as gr

from ui.values import is_number, kind

MAX_DEPTH, MAX_PARTS = 32, 50_000
"""How deep a body may nest and how many values it may hold; a run of 8 answers with its prompt's words has 4,000."""
HALF = re.compile(rb"\\u[dD][89a-fA-F]")
SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Refusal(ValueError):
    """A refused request: one sentence, and the HTTP status of the answer."""

    def __init__(self, sentence: str, status: int = 400):
        super().__init__(sentence)
        self.status = status


def parsed(raw: bytes) -> dict[str, Any]:
    """The JSON object of a body. Raises Refusal for any other body, and for one too deep or with too many values."""
    try:
        body = json.loads(raw, parse_int=_whole)
    except RecursionError:
        _deep()
    except Refusal:
        raise
    except ValueError:  # not JSON, not UTF-8, or a number with thousands of digits
        raise Refusal("got a body that is not JSON, expected a JSON object") from None
    if not isinstance(body, dict):
        raise Refusal(f"got a body that is {kind(body)}, expected a JSON object")
    level, depth, parts = [body], 0, 0
    while level:
        below: list[Any] = []
        for part in level:
            if isinstance(part, dict) and "path" in part and "meta" in part:
                raise Refusal("got a file, but this app takes none: send texts and numbers")
            inner = part.values() if isinstance(part, dict) else part
            below.extend(x for x in inner if isinstance(x, (dict, list)))
            parts += len(part)
        depth += 1
        if depth > MAX_DEPTH:
            _deep()
        if parts > MAX_PARTS:
            raise Refusal(f"got a body with over {MAX_PARTS:,} values, expected fewer")
        level = below
    return body


def whole_characters(raw: bytes, body: dict[str, Any], changed: bool = False) -> bytes:
    """The body as bytes without lone halves of surrogate pairs, which Gradio could not send back.

    `changed`: `body` is no longer what `raw` says.
    """
    if not changed and not HALF.search(raw):
        return raw
    text = json.dumps(body, ensure_ascii=False)
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


def _whole(digits: str) -> int:
    value = int(digits)
    if not -(2**63) <= value < 2**63:  # Gradio could not send it back either
        raise Refusal("got a number of over 64 bits, expected smaller ones")
    return value


def _deep() -> NoReturn:
    raise Refusal(f"got a body nested over {MAX_DEPTH} deep, expected less") from None


# ---------------------------------------------------------------- bodies by route


def event(body: Mapping[str, Any], blocks: gr.Blocks, direct: bool = False) -> None:
    """A body of ``queue/join``, or of ``run`` if ``direct``, which takes only functions without a queue."""
    _keys(body, "data", "fn_index", "session_hash", "event_data", "trigger_id", "event_id")
    index: Any = body.get("fn_index")
    function = blocks.fns.get(index) if _is_index(index) else None
    if function is None or function.fn is None or (direct and function.queue):
        raise Refusal(f"got the function {reprlib.repr(index)}, which this page does not have")
    _session(body.get("session_hash"))
    if body.get("event_id") is not None:
        _session(body["event_id"])
    if body.get("trigger_id") is not None and not _is_index(body["trigger_id"]):
        raise Refusal(f"got {kind(body['trigger_id'])} as trigger_id, expected a whole number")
    if not isinstance(body.get("event_data"), (dict, type(None))):
        raise Refusal(f"got {kind(body['event_data'])} as event_data, expected an object")
    _values(body, function)


def call(body: Mapping[str, Any], blocks: gr.Blocks, name: str) -> None:
    """A body of ``call/NAME``: the values in order, and optionally a session."""
    _keys(body, "data", "session_hash")
    if body.get("session_hash") is not None:
        _session(body["session_hash"])
    _values(body, _public(blocks, name))


def call_by_name(body: Mapping[str, Any], blocks: gr.Blocks, name: str) -> None:
    """A body of ``call/v2/NAME``: an object with the values by name."""
    _public(blocks, name)
    parameters = blocks.get_api_info()["named_endpoints"][f"/{name}"]["parameters"]
    known = [p["parameter_name"] for p in parameters]
    needed = {p["parameter_name"] for p in parameters if not p["parameter_has_default"]}
    if strange := body.keys() - set(known):  # even null: Gradio takes it for a value
        raise Refusal(f"got the value {min(strange)[:40]!r}, expected {known}")
    if missing := sorted(needed - body.keys()):
        raise Refusal(f"got no {missing[0]!r}, expected the values {known}")


def completed(body: Mapping[str, Any], blocks: gr.Blocks, name: str = "") -> bool:
    """Add the defaults of the last values that a caller of the API left out. Returns whether there were any.

    Gradio itself wants all values of a positional call, so that every new one of an endpoint would break old callers.
    """
    index: Any = body.get("fn_index")
    function = (
        _public(blocks, name) if name else blocks.fns.get(index) if _is_index(index) else None
    )
    data = body.get("data")
    if not isinstance(data, list) or getattr(function, "api_visibility", "") != "public":
        return False
    missing = [*inspect.signature(function.fn).parameters.values()][len(data) :]
    if not missing or any(one.default is one.empty for one in missing):
        return False
    data.extend(one.default for one in missing)
    return True


def cancel(body: Mapping[str, Any], blocks: gr.Blocks) -> None:
    """A body of ``cancel``, or of ``reset``, which holds only the event."""
    _keys(body, "session_hash", "fn_index", "event_id")
    _session(body.get("event_id"))
    if "session_hash" in body or "fn_index" in body:
        _session(body.get("session_hash"))
        if not _is_index(body.get("fn_index")):
            raise Refusal(f"got {kind(body.get('fn_index'))} as fn_index, expected a whole number")


# ---------------------------------------------------------------- parts of them


def _public(blocks: gr.Blocks, name: str) -> Any:
    public = {str(f.api_name): f for f in blocks.fns.values() if f.api_visibility == "public"}
    if name not in public:
        raise Refusal(f"got the endpoint /{name[:40]}, expected one of {sorted(public)}", 404)
    return public[name]


def _keys(body: Mapping[str, Any], *known: str) -> None:
    # JSON clients send null or false for keys that they do not set.
    strange = [
        key for key, value in body.items() if key not in known and value not in (None, False)
    ]
    if strange:
        raise Refusal(f"got the key {strange[0][:40]!r}, expected {list(known)}")


def _session(value: Any) -> None:
    if not isinstance(value, str) or not SESSION.fullmatch(value):
        got = kind(value) if not isinstance(value, str) else "another text"
        raise Refusal(f"got {got} as a session or event, expected 1 to 64 letters and digits")


def _values(body: Mapping[str, Any], function: Any) -> None:
    data, inputs = body.get("data"), function.inputs
    if not isinstance(data, list) or len(data) != len(inputs):
        got = f"{len(data)} values" if isinstance(data, list) else kind(data)
        raise Refusal(f"got {got} as data, expected a list of {len(inputs)} values")
    for component, value in zip(inputs, data, strict=True):
        for part, check in KINDS.items():
            if isinstance(component, part):
                check(component, value)


def _text(component: gr.Textbox, value: Any) -> None:
    if not isinstance(value, (str, type(None))):
        raise Refusal(f"got {kind(value)} as {_name(component)}, expected a text")


def _number(component: gr.Slider | gr.Number, value: Any) -> None:
    if value is None and isinstance(component, gr.Number):
        return
    # Gradio rounds the value, which fails for NaN and for integers too large for a float.
    if not is_number(value):
        raise Refusal(f"got {kind(value)} as {_name(component)}, expected a number")
    low = -math.inf if component.minimum is None else component.minimum
    high = math.inf if component.maximum is None else component.maximum
    if not low <= value <= high:
        raise Refusal(f"got {value:g} as {_name(component)}, expected {low:g} to {high:g}")


def _flag(component: gr.Checkbox, value: Any) -> None:
    if not isinstance(value, (bool, type(None))):
        raise Refusal(f"got {kind(value)} as {_name(component)}, expected true or false")


KINDS: dict[type, Callable[[Any, Any], None]] = {
    gr.Textbox: _text,
    gr.Slider: _number,
    gr.Number: _number,
    gr.Checkbox: _flag,
}
"""The components whose Gradio class changes or fails on a foreign value. The others pass on any JSON."""


def _name(component: Any) -> str:
    return f"{component.label!r}" if component.label else "a value"


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
