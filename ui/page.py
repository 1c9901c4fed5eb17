"""The handlers behind the page that write answers; :mod:`ui.scoring` has the others.

A visitor's mistake or a failing endpoint never ends a handler: the page gets one sentence in the run's `note`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from datetime import date
from functools import wraps
from typing import Any

import numpy as np

from pro_core.generation import GenerationError, Request
from pro_core.weights import apply_floors, as_weights
from ui.board import Run, follow_up
from ui.models import SignInWanted, sentence
from ui.places import Full
from ui.runs import (
    Turn,
    Wanted,
    explained,
    failed,
    kept,
    line,
    predicted_of,
    prepared,
    unscored,
    with_written,
)
from ui.scoring import PATIENCE, SORRY, Scoring
from ui.values import FOREIGN, completed, some_of, weights_or_none

log = logging.getLogger("pro.app")


def _streamed(handler: Callable[..., AsyncGenerator[Run, None]]) -> Callable[..., Any]:
    """The same handler as a generator function, which is how Gradio tells what streams. It closes what it opens."""

    @wraps(handler)
    async def stream(*args: Any, **kwargs: Any) -> AsyncGenerator[Run, None]:
        async with aclosing(handler(*args, **kwargs)) as runs:
            async for run in runs:
                yield run

    return stream


class Page(Scoring):
    """All of the page's handlers: those that write answers are here. Each takes a run and returns runs."""

    @_streamed
    def ask(
        self,
        prompt: str,
        n: int,
        tokens: int,
        styles: bool,
        old: Run,
        sliders: list[float | None] | None = None,
        *sampling: Any,
    ) -> AsyncGenerator[Run, None]:
        """A new conversation: its weights, the words behind them, answers as they are written, and their scores.

        A policy that reads weights gets those that `sliders` sets, and the predicted ones for the others.

        Args:
            sampling: see `ui.runs.sampled`; missing values have its defaults.
        """

        given = n, tokens, styles, old, sliders, sampling
        return self._answer(lambda: Turn([], prompt), *given)

    @_streamed
    def follow(
        self,
        prompt: str,
        n: int,
        tokens: int,
        styles: bool,
        old: Run,
        sliders: list[float | None] | None,
        pick: int,
        *sampling: Any,
    ) -> AsyncGenerator[Run, None]:
        """The next turn of the conversation, after answer `pick` of the previous run."""

        given = n, tokens, styles, old, sliders, sampling
        return self._answer(lambda: Turn(follow_up(self.previous(old), pick), prompt), *given)

    @_streamed
    def again(
        self,
        n: int,
        tokens: int,
        styles: bool,
        old: Run,
        sliders: list[float | None] | None,
        which: list[int] | None = None,
        *sampling: Any,
    ) -> AsyncGenerator[Run, None]:
        """The same turn again. A policy that reads weights writes the answers under those of the sliders.

        Args:
            which: the answers to write (their numbers); the others stay. None: all.
        """

        given = n, tokens, styles, old, sliders, sampling
        return self._answer(lambda: self._same_turn(old, which), *given)

    @_streamed
    def go_on(
        self,
        n: int,
        tokens: int,
        styles: bool,
        old: Run,
        sliders: list[float | None] | None,
        which: list[int] | None = None,
        *sampling: Any,
    ) -> AsyncGenerator[Run, None]:
        """Continue the answers `which`, such as one that hit the token limit; the others stay."""

        given = n, tokens, styles, old, sliders, sampling
        return self._answer(lambda: self._same_turn(old, which)._replace(goes_on=True), *given)

    def _same_turn(self, old: Any, which: Any) -> Turn:
        run = self.previous(old)
        messages = run.get("messages")
        if not messages:
            raise ValueError("There is nothing to write again yet: ask something first.")
        cards = run["candidates"]
        places = some_of(which, len(cards))
        kept_cards = cards if places else None
        return Turn(messages[:-1], messages[-1]["content"], kept_cards, places, same=True)

    async def _answer(
        self,
        turn: Callable[[], Turn],
        n: int,
        tokens: int,
        styles: bool,
        old: Run,
        sliders: list[float | None] | None,
        sampling: Sequence[Any],
    ) -> AsyncGenerator[Run, None]:
        """Answer a prompt. `turn` returns what to answer, or raises ValueError with the reason why it cannot be."""
        run: Run = kept(old)
        tasks: list[asyncio.Task[Any]] = []
        try:
            wanted = prepared(turn(), n, tokens, styles, sampling)
            if not self.models.ready:
                yield {**run, "note": "Loading the reward models…", "tone": "", "busy": True}
            weighed = asyncio.create_task(self._weighed(wanted, sliders, run))
            explaining = asyncio.create_task(self.words(wanted.messages))
            tasks += [weighed, explaining]
            async with aclosing(self._written(weighed, wanted)) as runs:
                async for written in runs:
                    run = explained(written, explaining)
                    yield run
            run = await self._scored({**run, "phase": "done"})
            if not explaining.done():
                yield {**run, "busy": True}
                await asyncio.wait([explaining], timeout=PATIENCE)
            yield explained(run, explaining)
        except (ValueError, GenerationError) as error:
            yield failed(run, sentence(error))
        except Exception:
            log.exception("asking failed")
            yield failed(run, SORRY)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _weighed(self, wanted: Wanted, sliders: list[float | None] | None, old: Run) -> Run:
        """A new run with its weights. For a policy that reads weights it also holds those that the visitor set.

        Args:
            old: the run that the visitor saw, {} for none; sliders and scores of another panel's run count for nothing.
        """
        run = await self._new_run(wanted.messages, wanted.cards, old.get("added"))
        run["asked"] = wanted.asked
        run["model"], run["date"] = self.models.generator.name, date.today().isoformat()
        own = not old or old["objectives"] == run["objectives"]
        if old and (not own or old["phase"] in FOREIGN):
            run["candidates"] = unscored(run["candidates"])
        given = weights_or_none(sliders, run["objectives"]) if own else None
        policy = await self.models.policy_in_use()
        if policy is None or not policy.reads:
            return run
        used = None
        if given is not None:
            weights = as_weights(completed(given, predicted_of(run)), run["objectives"])
            used = apply_floors(weights, run["floors"]).tolist()
        return {**run, "conditioned": policy.reads, "used": used}

    async def _written(
        self, weighed: asyncio.Task[Run], wanted: Wanted
    ) -> AsyncGenerator[Run, None]:
        """The run at once, again as its turn comes nearer, and again while its answers grow.

        A stock model reads no weights, so it is asked for answers before they are known. If no answers can be written,
        a run with the weights alone comes before the exception.
        """
        models = self.models
        reads_weights = await models.policy_in_use() is not None
        batch = [Request(messages) for messages in wanted.conversations]
        async with AsyncExitStack() as held:
            try:
                models.check_signed_in(self.token)
                place = await held.enter_async_context(models.places.ask())
                if reads_weights:
                    run = await weighed
                    weights = np.array(run.get("used") or predicted_of(run))
                    batch = await models.requests(wanted.conversations, weights, wanted.strength)
            except (Full, SignInWanted, ValueError):
                if not wanted.same:
                    yield {**await weighed, "candidates": []}
                raise
            async for ahead in place.turns():
                run = {**await weighed, "phase": "writing", "busy": True}
                yield {**run, "note": f"The weights are ready; {line(ahead)}"}
            begun = time.perf_counter()
            writing = await held.enter_async_context(
                models.writing(batch, wanted.settings, self.token)
            )
            writing.written[:] = wanted.begun
            run = {**await weighed, "phase": "writing", "busy": True}
            loading = "The weights are ready; the language model is still loading…"
            yield {**run, "note": "" if models.finished else loading}
            async for _ in writing.looks():
                models.note_first_token(writing.written, begun)
                note = writing.note or ("" if models.finished else loading)
                yield with_written(run, wanted.places, writing.written, note)
            yield with_written(run, wanted.places, writing.written, writing.note)
