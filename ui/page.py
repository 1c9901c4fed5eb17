"""The handlers behind the page.

A visitor's mistake or a failing endpoint never ends a handler: the page gets one sentence in the run's `note`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing
from typing import Any

import numpy as np

from pro_core.data.objectives import DESCRIPTIONS, Message
from pro_core.data.schema import to_messages
from pro_core.data.turns import split_reasoning
from pro_core.generation import (
    STYLES,
    GenerationError,
    GenerationSettings,
    Request,
    Written,
    styled,
)
from pro_core.weights import apply_floors, as_weights
from ui.board import Answer, Moved, Run, answer, follow_up, scored
from ui.models import Models, sentence
from ui.places import Full
from ui.values import (
    LONGEST,
    MAX_ANSWERS,
    MAX_TOKENS,
    flag,
    number,
    numbers,
    previous_run,
    text,
    weights_or_none,
    whole,
)

PATIENCE = 3.0
"""Seconds that scored answers wait for the words behind their weights. The models' thread does explanations last, so
with many visitors there are none."""
SORRY = "Something went wrong on the server. Please try again."
log = logging.getLogger("pro.app")


class Page:
    """The page's handlers. Each takes a run and returns runs (see `ui.board.Run`)."""

    def __init__(self, models: Models):
        self.models = models

    async def ask(
        self,
        prompt: str,
        n: int,
        tokens: int,
        styles: bool,
        old: Run,
        sliders: list[float] | None = None,
        seed: int | None = None,
    ) -> AsyncGenerator[Run, None]:
        """A new conversation: its weights, the words behind them, answers as they are written, and their scores.

        A policy that reads weights gets those of the sliders if the visitor has moved any, else the predicted ones.
        """
        answers = self._answer(lambda: ([], prompt), n, tokens, styles, old, sliders, seed)
        async with aclosing(answers) as runs:
            async for run in runs:
                yield run

    async def follow(
        self,
        prompt: str,
        n: int,
        tokens: int,
        styles: bool,
        old: Run,
        sliders: list[float] | None,
        pick: int,
    ) -> AsyncGenerator[Run, None]:
        """The next turn of the conversation, after answer `pick` of the previous run."""

        def turn() -> tuple[list[Message], str]:
            return follow_up(self._previous(old), pick), prompt

        answers = self._answer(turn, n, tokens, styles, old, sliders, None)
        async with aclosing(answers) as runs:
            async for run in runs:
                yield run

    async def again(
        self,
        n: int,
        tokens: int,
        styles: bool,
        old: Run,
        sliders: list[float] | None,
    ) -> AsyncGenerator[Run, None]:
        """The same turn again. A policy that reads weights writes the answers under those of the sliders."""

        def turn() -> tuple[list[Message], str]:
            messages = self._previous(old).get("messages")
            if not messages:
                raise ValueError("There is nothing to write again yet: ask something first.")
            return messages[:-1], messages[-1]["content"]

        answers = self._answer(turn, n, tokens, styles, old, sliders, None)
        async with aclosing(answers) as runs:
            async for run in runs:
                yield run

    async def _answer(
        self,
        turn: Callable[[], tuple[list[Message], str]],
        n: int,
        tokens: int,
        styles: bool,
        old: Run,
        sliders: list[float] | None,
        seed: int | None,
    ) -> AsyncGenerator[Run, None]:
        """Answer a prompt. `turn` returns the earlier messages and the prompt, or raises ValueError with the reason."""
        run: Run = _kept(old)
        tasks: list[asyncio.Task[Any]] = []
        try:
            earlier, prompt = turn()
            n, tokens = whole(n, 1, MAX_ANSWERS, "answers"), whole(tokens, 1, MAX_TOKENS, "tokens")
            content = text(prompt, "prompt")
            messages = to_messages([*earlier, {"role": "user", "content": content}])
            if not self.models.ready:
                yield {**run, "note": "Loading the reward models…", "tone": "", "busy": True}
            cycle = list(STYLES) if flag(styles, "different styles") else [None]
            card_styles = [cycle[i % len(cycle)] for i in range(n)]
            cards = [answer(style=style) for style in card_styles]
            weighed = asyncio.create_task(self._weighed(messages, cards, sliders))
            explaining = asyncio.create_task(self._words(messages))
            tasks += [weighed, explaining]
            conversations = [styled(messages, style) for style in card_styles]
            settings = GenerationSettings(max_new_tokens=tokens, seed=seed)
            async with aclosing(self._written(weighed, conversations, settings)) as runs:
                async for written in runs:
                    run = _explained(written, explaining)
                    yield run
            run = await self._scored({**run, "phase": "done"})
            if not explaining.done():
                yield {**run, "busy": True}
                await asyncio.wait([explaining], timeout=PATIENCE)
            yield _explained(run, explaining)
        except (ValueError, GenerationError) as error:
            yield _failed(run, sentence(error))
        except Exception:
            log.exception("asking failed")
            yield _failed(run, SORRY)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _previous(self, old: Any) -> Run:
        """The previous run, as the browser sent it back. Raises ValueError if this page cannot have sent it."""
        return previous_run(old, self.models.panel.objective_names if self.models.panel else None)

    async def _new_run(self, messages: list[Message], candidates: list[Answer]) -> Run:
        panel = await self.models.when_ready()
        predicted = await self.models.predict(messages)
        weights: Run = {"predicted": None, "lower": None, "upper": None, "known": None}
        if predicted is not None:
            weights = {
                "predicted": predicted.weights.tolist(),
                "lower": numbers(predicted.lower),
                "upper": numbers(predicted.upper),
                "known": number(predicted.known),
            }
        return {
            "id": str(time.time_ns()),
            "phase": "done",
            "busy": False,
            "note": "",
            "tone": "",
            "messages": messages,
            "objectives": list(panel.objective_names),
            "about": {name: DESCRIPTIONS.get(name, "") for name in panel.objective_names},
            "floors": self.models.floors.tolist(),
            "accuracy": panel.accuracy,
            "candidates": candidates,
            **weights,
        }

    async def _words(self, messages: list[Message]) -> list[Moved] | None:
        """The words that moved the weights; None without an adapter, or if it could not be asked."""
        try:
            await self.models.when_ready()
            explained = await self.models.explain(messages)
        except GenerationError as error:
            log.info("no explanation: %s", error)
            return None
        except Exception:
            log.exception("explaining failed")
            return None
        if explained is None:
            return None
        _, why = explained
        return [
            {"turn": w.turn, "start": w.start, "end": w.end, "effects": row.tolist()}
            for w, row in zip(why.words, why.effects.round(4), strict=True)
        ]

    async def _weighed(
        self, messages: list[Message], cards: list[Answer], sliders: list[float] | None
    ) -> Run:
        """A new run with its weights. For a policy that reads weights it also holds those that the visitor set."""
        run = await self._new_run(messages, cards)
        given = weights_or_none(sliders, run["objectives"])
        policy = await self.models.policy_in_use()
        if policy is None or not policy.reads:
            return run
        used = None
        if given is not None:
            used = apply_floors(as_weights(given, run["objectives"]), self.models.floors).tolist()
        return {**run, "conditioned": policy.reads, "used": used}

    def _in_force(self, run: Run) -> list[float]:
        return run.get("used") or run["predicted"] or self.models.uniform().tolist()

    async def _written(
        self,
        weighed: asyncio.Task[Run],
        conversations: list[list[Message]],
        settings: GenerationSettings,
    ) -> AsyncGenerator[Run, None]:
        """The run at once, again as its turn comes nearer, and again while its answers grow.

        A stock model reads no weights, so it is asked for answers before they are known. If no answers can be written,
        a run with the weights alone comes before the exception.
        """
        models = self.models
        reads_weights = await models.policy_in_use() is not None
        batch = [Request(messages) for messages in conversations]
        async with AsyncExitStack() as held:
            try:
                place = await held.enter_async_context(models.places.ask())
                if reads_weights:
                    weights = np.array(self._in_force(await weighed))
                    batch = await models.requests(conversations, weights)
            except (Full, ValueError):
                yield {**await weighed, "candidates": []}
                raise
            async for ahead in place.turns():
                run: Run = {**await weighed, "phase": "writing", "busy": True}
                yield {**run, "note": f"The weights are ready; {_line(ahead)}"}
            begun = time.perf_counter()
            writing = await held.enter_async_context(models.writing(batch, settings))
            run = {**await weighed, "phase": "writing", "busy": True}
            loading = "The weights are ready; the language model is still loading…"
            yield {**run, "note": "" if models.finished else loading}
            async for _ in writing.looks():
                models.note_first_token(writing.written, begun)
                note = writing.note or ("" if models.finished else loading)
                yield _with(run, writing.written, note)
            yield _with(run, writing.written, writing.note)

    async def _scored(self, run: Run) -> Run:
        texts = [
            "" if c["error"] else c["text"] for c in run["candidates"]
        ]  # failed ones get no score
        scores = await self.models.score(run["messages"], texts)
        run = {**run, "busy": False, "candidates": scored(run["candidates"], *scores)}
        errors = [c["error"] for c in run["candidates"] if c["error"]]
        if errors and len(errors) == len(texts):
            run = {**run, "note": errors[0], "tone": "error"}
        return run

    async def stop(self, old: Run) -> Run:
        """After Stop: score what was written so far."""
        try:
            run = self._previous(old)
            if not run.get("busy"):
                return run
            if run.get("phase") != "writing":  # nothing was shown yet for the new prompt
                return {**run, "busy": False, "note": "Stopped.", "tone": ""}
            written = any(c["text"].strip() for c in run["candidates"])
            note = (
                "The scores are for what was written so far." if written else "Ask again any time."
            )
            await self.models.when_ready()
            return await self._scored({**run, "phase": "stopped", "note": f"Stopped. {note}"})
        except (ValueError, GenerationError) as error:
            return _failed(_kept(old), sentence(error))
        except Exception:
            log.exception("scoring after a stop failed")
            return _failed(_kept(old), SORRY)

    async def paste(self, prompt: str, old: Run, *texts: str) -> Run:
        """Score two to four answers that the visitor pasted."""
        try:
            pasted = [text(one, "answer") for one in texts]
            if max(map(len, pasted), default=0) > LONGEST:
                raise ValueError(f"An answer may have at most {LONGEST:,} characters.")
            split = map(split_reasoning, pasted)
            cards = [answer(reply, reasoning) for reasoning, reply in split if reply.strip()]
            if len(cards) < 2:
                raise ValueError("Paste at least two answers to compare.")
            messages = to_messages([{"role": "user", "content": text(prompt, "prompt")}])
            run = await self._new_run(messages, cards)
            explaining = asyncio.create_task(self._words(messages))
            try:
                run = await self._scored({**run, "note": "Your own answers, scored."})
                await asyncio.wait([explaining], timeout=PATIENCE)
                return _explained(run, explaining)
            finally:
                explaining.cancel()
        except (ValueError, GenerationError) as error:
            return _failed(_kept(old), sentence(error))
        except Exception:
            log.exception("scoring pasted answers failed")
            return _failed(_kept(old), SORRY)

    async def watch_status(self) -> AsyncGenerator[str, None]:
        """The status line, until everything is loaded."""
        shown = ""
        while True:
            finished, line = self.models.finished, self.models.status_text()
            if line != shown:
                shown = line
                yield line
            if finished:
                return
            await asyncio.sleep(0.2)


def _kept(old: Any) -> Run:
    """The browser's run, to be sent back as it is: of any panel, but {} if no page can hold it."""
    try:
        return previous_run(old)
    except ValueError:
        return {}


def _failed(run: Run, note: str) -> Run:
    """The run with one sentence that says what went wrong."""
    return {**run, "note": note, "tone": "error", "busy": False}


def _line(ahead: int) -> str:
    """A visitor's place in line, in words."""
    if not ahead:
        return "you are next for answers…"
    return f"{ahead} {'visitor is' if ahead == 1 else 'visitors are'} ahead of you for answers…"


def _with(run: Run, written: list[Written], note: str) -> Run:
    """The run with what was written so far."""
    names = ("text", "reasoning", "finish", "error")
    cards = [
        {**card, **{name: getattr(one, name) for name in names}}
        for card, one in zip(run["candidates"], written, strict=True)
    ]
    return {**run, "note": note, "candidates": cards}  # type: ignore[typeddict-item]


def _explained(run: Run, explaining: asyncio.Task[list[Moved] | None]) -> Run:
    """The run with the words behind its weights, once they are known."""
    words = explaining.result() if explaining.done() else None
    return run if words is None else {**run, "words": words}
