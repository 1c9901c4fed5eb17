"""Who writes answers now, and who waits: so many at once, the others in the order in which they came."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from types import TracebackType

from pro_core.generation import GenerationError

NEWS = 0.05
"""Seconds between two looks at one's place, for each who waits: 20 a second in all. None looks more than once a second.
Each lets the page's server see that a visitor has left."""


class Full(GenerationError):
    """As many wait as may."""


class Places:
    """`many` may hold a place at once, and `most` may wait for one.

    ::

        async with places.ask() as place:
            async for ahead in place.turns():  # how many are before this one, until it is its turn
                ...
            ...  # the place is held until the end of the block
    """

    def __init__(self, many: int, most: int):
        self.many, self.most = many, most
        self.held = 0
        self._waiting: deque[Place] = deque()

    def ask(self) -> Place:
        """A place, held at once where one is free, else at the end of those who wait.

        Raises:
            Full: `most` wait already.
        """
        place = Place(self)
        if self.held < self.many and not self._waiting:
            self._give(place)
        elif len(self._waiting) < self.most:
            self._waiting.append(place)
        else:
            raise Full(
                f"Too many visitors wait for answers already ({self.most}): there are none this time, "
                "please ask again in a minute."
            )
        return place

    def news(self) -> float:
        """Seconds until one who waits looks again: the more wait, the more seldom each does."""
        return max(1.0, NEWS * len(self._waiting))

    def ahead_of(self, place: Place) -> int:
        """How many wait before this one."""
        return self._waiting.index(place)

    def leave(self, place: Place) -> None:
        """Give the place up, held or waited for; the next in line gets it."""
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
        """How many are ahead, every second or more seldom, until it is this one's turn; nothing where it already is."""
        while not self.turn.is_set():
            yield self._places.ahead_of(self)
            # Not wait_for: until Python 3.12 it swallows a cancellation that comes together with the turn.
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
