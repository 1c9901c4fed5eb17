"""Server-sent events, read from bytes: https://html.spec.whatwg.org/multipage/server-sent-events.html.

Why not ``httpx2.EventSource``: it refuses every other content type, decodes by the charset that the server names,
does not recognize a byte order mark, holds back an event that ends in CR until more arrives, and loses the last event
of a stream that ends with ``data: [DONE]`` and no blank line.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_EVENT = 4 * 1024 * 1024
"""Maximum bytes of one event; even a whole answer in one event is far smaller."""

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class TooLong(ValueError):
    """An event of more than :data:`MAX_EVENT` bytes."""


class Event(NamedTuple):
    """One event.

    Attributes:
        data: its data lines, joined by line feeds.
        name: what its ``event`` line says; empty without one.
        cut: the stream ended before the blank line that ends an event, so its data may be incomplete.
    """

    data: str
    name: str = ""
    cut: bool = False


class EventReader:
    """Takes a stream in parts and returns the events that they complete; where it is split makes no difference.

    The text is read as UTF-8, whatever the server says; invalid bytes become U+FFFD. Lines end in CR, LF or both.
    Comments, ``id``, ``retry`` and events without data are skipped.
    """

    def __init__(self) -> None:
        self._unfinished: list[bytes] = []  # parts of the unfinished line
        self._size = 0  # bytes of the unfinished event, with that line
        self._after_cr = False
        self._first = True
        self._data: list[str] = []
        self._name = ""

    def push(self, part: bytes) -> list[Event]:
        """The events that end in this part. Raises TooLong."""
        if self._after_cr and part:
            part, self._after_cr = part.removeprefix(b"\n"), False
        if not part:
            return []
        self._after_cr = part.endswith(b"\r")
        *lines, rest = _LINE_END.split(part)
        events: list[Event] = []
        for line in lines:
            self._keep(line)
            event = self._line(b"".join(self._unfinished))
            self._unfinished.clear()
            if event is not None:
                events.append(event)
        self._keep(rest)
        return events

    def end(self) -> list[Event]:
        """The last event, if the stream ended without its blank line. The standard drops it, but it often is
        ``data: [DONE]``."""
        if self._unfinished:
            self._line(b"".join(self._unfinished))
            self._unfinished.clear()
        event = self._line(b"")
        return [] if event is None else [event._replace(cut=True)]

    def _keep(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > MAX_EVENT:
            raise TooLong(f"an event has more than {MAX_EVENT:,} bytes")
        if part:
            self._unfinished.append(part)

    def _line(self, line: bytes) -> Event | None:
        """The event that this line ends, if it is a blank line after data."""
        if self._first:
            line, self._first = line.removeprefix(_BYTE_ORDER_MARK), False
        if not line:
            data, name = self._data, self._name
            self._data, self._name, self._size = [], "", 0
            return Event("\n".join(data), name) if data else None
        field, _, value = line.decode("utf-8", "replace").partition(":")
        if field == "data":
            self._data.append(value.removeprefix(" "))
        elif field == "event":
            self._name = value.removeprefix(" ")
        elif not field:
            self._size -= len(line)  # comments are not kept
        return None
