"""Answers under way: asked for at once, looked at again and again, given up as soon as nobody looks."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any

from pro_core.generation import GenerationSettings, Generator, Request, Written

OFTEN, SELDOM = 0.025, 0.3
"""Seconds between two looks: at least, for each visitor who has answers written (40 looks a second in all, none more
than ten); and at most, while nothing comes. The page's server notices only when it is handed something that a visitor
has left: the second figure sets how long the work then goes on."""


class Writing:
    """N answers that a generator writes, from the first line of the ``async with`` block to its end.

    Attributes:
        written: (N) what is there of each.

    Args:
        visitors: how many have answers written just now.
    """

    def __init__(
        self,
        generator: Any,
        batch: Sequence[Request],
        settings: GenerationSettings,
        visitors: Callable[[], int] = lambda: 1,
    ):
        self.written = [Written() for _ in batch]
        self._note, self._waits = "", dict[int, str]()
        self._visitors = visitors
        self._news = asyncio.Event()
        self._work = asyncio.create_task(self._write(generator, batch, settings))

    async def _write(
        self, generator: Generator, batch: Sequence[Request], settings: GenerationSettings
    ) -> None:
        try:
            async with aclosing(generator.stream_batch(batch, settings)) as pieces:
                async for piece in pieces:
                    self.written[piece.index].add(piece)
                    if piece.note and piece.progress:
                        self._waits[piece.index] = piece.note
                    else:
                        self._waits.pop(piece.index, None)
                        self._note = piece.note or self._note
                    self._news.set()
        finally:
            self._news.set()

    @property
    def note(self) -> str:
        """What the answers wait for, else what the generator last had to say, such as that old turns were left out."""
        return next(iter(self._waits.values()), self._note)

    async def __aenter__(self) -> Writing:
        try:
            await asyncio.sleep(0)  # the request leaves before anything else is done
        except BaseException:  # a block that is not entered is not left either
            self._work.cancel()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._work.cancel()
        await asyncio.gather(self._work, return_exceptions=True)

    async def looks(self) -> AsyncIterator[None]:
        """Comes back with news, and without at times, until all is written; the last news come after its end.

        Raises what the generator raises.
        """
        shown = 0.0
        while not self._work.done():
            # Not wait_for: until Python 3.12 it swallows a cancellation that comes together with the news.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SELDOM):
                    await self._news.wait()
            self._news.clear()
            pause = max(0.1, OFTEN * self._visitors())
            await asyncio.sleep(max(0.0, shown + pause - time.perf_counter()))
            shown = time.perf_counter()
            yield
        await self._work
