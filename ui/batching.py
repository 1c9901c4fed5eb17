"""One thread that runs the small models, for all visitors: what waits is read together, the most urgent kind first.

Weights are what a visitor looks at first and what the language model may have to be told, so predictions go before
scores, and scores before explanations. Requests of one kind that wait are one batch. An explanation takes as long as
ten predictions; one that nobody waits for any more is left out.
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
"""Most requests of one kind that wait; a further one is refused in words."""

Run = Callable[[list[Any]], Sequence[Any]]
"""What a kind does: a batch of requests to as many results."""


@dataclass
class Kind:
    """Requests of one kind. ``size`` says how much of a batch's ``room`` a request takes."""

    run: Run
    room: int
    size: Callable[[Any], int] = lambda request: 1
    waiting: deque[tuple[Any, Future[Any]]] = field(default_factory=deque)

    def batch(self) -> list[tuple[Any, Future[Any]]]:
        """The oldest requests that fit into one batch, at least one; those that were given up are dropped."""
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
    """Runs requests in one thread of its own, the first kind's before the second's, and so on.

    Args:
        kinds: from the most urgent on. Their functions are only ever called in that thread, one at a time.
    """

    def __init__(self, kinds: dict[str, Kind]):
        self._kinds = kinds
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, "pro-batcher")

    async def ask(self, kind: str, request: Any) -> Any:
        """The result of one request, or the exception that it alone raises.

        A caller that is cancelled takes its request with it, unless it is being worked on.

        Raises:
            GenerationError: :data:`WAITING` requests of this kind wait already.
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
        """The most urgent batch. One turn is asked for with every request; those that find nothing left do nothing."""
        with self._lock:
            for kind in self._kinds.values():
                if batch := kind.batch():
                    break
            else:
                return
        _settle(kind.run, batch)


def _settle(run: Run, batch: list[tuple[Any, Future[Any]]]) -> None:
    """Give every request its result; where one cannot be read, each runs alone."""
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
