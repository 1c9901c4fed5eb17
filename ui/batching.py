"""One thread runs the small models for all visitors, in batches, the most urgent kind of request first.

Visitors look at the weights first, and the language model may need them, so predictions go before scores, and scores
before explanations. Waiting requests of one kind become one batch. An explanation takes as long as ten predictions; it
is skipped when nobody waits for it any more.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pro_core.generation import GenerationError

WAITING = 512
"""Most waiting requests of one kind; a further one is refused with a sentence."""

Run = Callable[[list[Any]], Sequence[Any]]
"""Turns a batch of requests into as many results."""


@dataclass
class Kind:
    """Requests of one kind. A batch holds requests whose ``size`` sums to at most ``room``."""

    run: Run
    room: int
    size: Callable[[Any], int] = lambda request: 1
    waiting: deque[tuple[Any, Future[Any]]] = field(default_factory=deque)

    def batch(self) -> list[tuple[Any, Future[Any]]]:
        """The oldest requests that fit into one batch, at least one; cancelled requests are dropped."""
        taken: list[tuple[Any, Future[Any]]] = []
        left = self.room
        while self.waiting:
            request, future = self.waiting[0]
            if taken and self.size(request) > left:
                break
            self.waiting.popleft()
            if future.set_running_or_notify_cancel():
                taken.append((request, future))
                left -= self.size(request)
        return taken


class Batcher:
    """Runs requests in one thread of its own, the most urgent kind first.

    Args:
        kinds: the most urgent one first. Their functions are called only in that thread, one at a time.
    """

    def __init__(self, kinds: dict[str, Kind]):
        self._kinds = kinds
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, "pro-batcher")

    async def ask(self, kind: str, request: Any) -> Any:
        """The result of one request, or the exception that this request raises.

        Cancelling the caller removes the request, unless it is already being worked on.

        Raises:
            GenerationError: :data:`WAITING` requests of this kind are already waiting.
        """
        future: Future[Any] = Future()
        with self._lock:
            waiting = self._kinds[kind].waiting
            if len(waiting) >= WAITING:
                raise GenerationError("Too many visitors at once; please try again in a minute.")
            waiting.append((request, future))
        self._thread.submit(self._turn)
        return await asyncio.wrap_future(future)

    def _turn(self) -> None:
        """Run the most urgent batch. Every request submits one turn; a turn that finds no request left does nothing."""
        with self._lock:
            for kind in self._kinds.values():
                if batch := kind.batch():
                    break
            else:
                return
        _settle(kind.run, batch)


def _settle(run: Run, batch: list[tuple[Any, Future[Any]]]) -> None:
    """Give every request its result. When a batch fails, each of its requests runs alone."""
    try:
        results = run([request for request, _ in batch])
    except Exception as error:
        if len(batch) == 1:
            batch[0][1].set_exception(error)
            return
        for one in batch:
            _settle(run, [one])
        return
    for (_, future), result in zip(batch, results, strict=True):
        future.set_result(result)
