"""Answers that are being written: requested at once, shown while they grow, cancelled when nobody looks."""

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
"""Seconds between two looks. At least OFTEN for each visitor whose answers are written: 40 looks a second in all, and
at most ten for each. At most SELDOM while nothing comes. The page's server notices that a visitor has left only when
it gets something to send, so SELDOM limits how long the work then goes on."""


class Writing:
    """N answers that a generator writes during an ``async with`` block.

    Attributes:
        written: (N) each answer so far.

    Args:
        visitors: returns how many visitors have answers written now.
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
        """What the answers wait for, else the generator's last note, such as that old turns were left out."""
        return next(iter(self._waits.values()), self._note)

    async def __aenter__(self) -> Writing:
        try:
            await asyncio.sleep(0)  # sends the request before anything else is done
        except BaseException:  # Python calls no __aexit__ when __aenter__ fails
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
        """Yields when there is news, and at least every SELDOM seconds, until all is written.

        The last news may come after the last look. Raises what the generator raises.
        """
        shown = 0.0
        while not self._work.done():
            # Not wait_for: before Python 3.12 it swallows a cancellation that comes together with the news.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SELDOM):
                    await self._news.wait()
            self._news.clear()
            pause = max(0.1, OFTEN * self._visitors())
            await asyncio.sleep(max(0.0, shown + pause - time.perf_counter()))
            shown = time.perf_counter()
            yield
        await self._work
