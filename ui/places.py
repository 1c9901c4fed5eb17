"""Places for visitors whose answers are being written; the others wait in the order in which they came."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from types import TracebackType

from pro_core.generation import GenerationError

NEWS = 0.05
"""Seconds between two looks, per waiting visitor: all of them together look 20 times a second, and each at most once a
second. A look lets the page's server notice that a visitor has left."""


class Full(GenerationError):
    """No more visitors may wait."""


class Places:
    """At most `many` visitors hold a place at once, and at most `most` wait for one.

    ::

        async with places.ask() as place:
            async for ahead in place.turns():  # how many are ahead, until it is this visitor's turn
                ...
            ...  # the place is held until the end of the block
    """

    def __init__(self, many: int, most: int):
        self.many, self.most = many, most
        self.held = 0
        self._waiting: deque[Place] = deque()

    def ask(self) -> Place:
        """A free place, or the end of the line.

        Raises:
            Full: `most` visitors are already waiting.
        """
        place = Place(self)
        if self.held < self.many and not self._waiting:
            self._give(place)
        elif len(self._waiting) < self.most:
            self._waiting.append(place)
        else:
            raise Full(
                f"Too many visitors are waiting for answers ({self.most}). Please ask again in a minute."
            )
        return place

    def news(self) -> float:
        """Seconds until a waiting visitor looks again; the more are waiting, the longer."""
        return max(1.0, NEWS * len(self._waiting))

    def ahead_of(self, place: Place) -> int:
        """How many wait ahead of this place."""
        return self._waiting.index(place)

    def leave(self, place: Place) -> None:
        """Give up a place that is held or waited for; the next in line gets it."""
        if place.turn.is_set():
            self.held -= 1
        elif place in self._waiting:
            self._waiting.remove(place)
        while self._waiting and self.held < self.many:
            self._give(self._waiting.popleft())

    def _give(self, place: Place) -> None:
        self.held += 1
        place.turn.set()


class Place:
    """One visitor's place in line; see :class:`Places`."""

    def __init__(self, places: Places):
        self._places = places
        self.turn = asyncio.Event()

    async def turns(self) -> AsyncIterator[int]:
        """How many are ahead, at most once a second, until it is this visitor's turn; nothing if it already is."""
        while not self.turn.is_set():
            yield self._places.ahead_of(self)
            # Not wait_for: before Python 3.12 it swallows a cancellation that comes together with the turn.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._places.news()):
                    await self.turn.wait()

    async def __aenter__(self) -> Place:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._places.leave(self)
