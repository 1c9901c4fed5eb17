"""The handlers behind the page.

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

from pro_core.data.objectives import DESCRIPTIONS, Message
from pro_core.data.schema import to_messages
from pro_core.data.turns import split_reasoning
from pro_core.generation import (
    GenerationError,
    Request,
)
from pro_core.weights import apply_floors, as_weights
from ui.board import Answer, Moved, Run, answer, follow_up, scored
from ui.models import Models, SignInWanted, sentence, short
from ui.places import Full
from ui.runs import (
    Turn,
    Wanted,
    explained,
    extended,
    failed,
    kept,
    line,
    predicted_of,
    prepared,
    unscored,
    with_written,
)
from ui.values import (
    FOREIGN,
    LONGEST,
    STALE,
    completed,
    number,
    numbers,
    previous_run,
    some_of,
    text,
    weights_or_none,
)

PATIENCE = 3.0
"""Seconds that scored answers wait for the words behind their weights. The models' thread does explanations last, so
with many visitors there are none."""
SORRY = "Something went wrong on the server. Please try again."
log = logging.getLogger("pro.app")


def _streamed(handler: Callable[..., AsyncGenerator[Run, None]]) -> Callable[..., Any]:
    """The same handler as a generator function, which is how Gradio tells what streams. It closes what it opens."""

    @wraps(handler)
    async def stream(*args: Any, **kwargs: Any) -> AsyncGenerator[Run, None]:
        async with aclosing(handler(*args, **kwargs)) as runs:
            async for run in runs:
                yield run

    return stream


class Page:
    """The page's handlers. Each takes a run and returns runs (see `ui.board.Run`).

    Args:
        token: the visitor's own for the endpoint, where visitors sign in (:mod:`ui.sign_in`).
    """

    def __init__(self, models: Models, token: str | None = None):
        self.models, self.token = models, token

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

    def previous(self, old: Any) -> Run:
        """The previous run, as the browser sent it back. Raises ValueError if this page cannot have sent it."""
        run = previous_run(old, self.models.panel.objective_names if self.models.panel else None)
        if self.models.sentences.allowed(run.get("added")) != run.get("added", []):
            raise ValueError(STALE)  # the owner no longer allows what was added
        return run

    async def _new_run(
        self, messages: list[Message], candidates: list[Answer], added: Any = ()
    ) -> Run:
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
        run: Run = {
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
            "presets": self.models.presets,
            "panel": short(self.models.panel_source),
            "candidates": candidates,
            **weights,
        }
        return extended(run, self.models.sentences.allowed(added))

    async def words(self, messages: list[Message]) -> list[Moved] | None:
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

    async def _scored(self, run: Run) -> Run:
        texts = [
            "" if c["error"] else c["text"] for c in run["candidates"]
        ]  # failed ones get no score
        added = run.get("added", [])
        scores, why = await self.models.score_with(added, run["messages"], texts)
        run = {**run, "busy": False, "candidates": scored(run["candidates"], *scores)}
        if why:
            run = {**run, "note": f"A score is missing. {why}", "tone": "error"}
        errors = [c["error"] for c in run["candidates"] if c["error"]]
        if errors and len(errors) == len(texts):
            run = {**run, "note": errors[0], "tone": "error"}
        return run

    async def stop(self, old: Run) -> Run:
        """After Stop: score what was written so far."""
        try:
            run = self.previous(old)
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
            return failed(kept(old), sentence(error))
        except Exception:
            log.exception("scoring after a stop failed")
            return failed(kept(old), SORRY)

    async def paste(self, prompt: str, old: Run, *texts: str) -> Run:
        """Score two to four answers that the visitor pasted."""

        def pasted() -> Run:
            given = [text(one, "answer") for one in texts]
            if max(map(len, given), default=0) > LONGEST:
                raise ValueError(f"An answer may have at most {LONGEST:,} characters.")
            split = map(split_reasoning, given)
            cards = [answer(reply, reasoning) for reasoning, reply in split if reply.strip()]
            if len(cards) < 2:
                raise ValueError("Paste at least two answers to compare.")
            messages = to_messages([{"role": "user", "content": text(prompt, "prompt")}])
            note = "Your own answers, scored."
            return {"messages": messages, "candidates": cards, "note": note}

        return await self.compare(pasted, old)

    async def rescore(self, old: Run) -> Run:
        """Score the answers of a run that came by a link, or that was left while its answers were written."""

        def shown() -> Run:
            run = self.previous(old)
            if not run.get("candidates"):
                raise ValueError("There are no answers to score yet: ask something first.")
            cards = [{**c, "error": None} for c in run["candidates"]]
            writer: Run = {name: run[name] for name in ("model", "date") if name in run}  # type: ignore[assignment,literal-required]
            note = "Scored here, by this page's reward models."
            return {**writer, "messages": run["messages"], "candidates": cards, "note": note}

        return await self.compare(shown, old)

    async def compare(self, given: Callable[[], Run], old: Run) -> Run:
        """A new run from answers that are there already.

        `given` returns its conversation, its cards, its note, and who wrote the cards if that is known.
        """
        try:
            parts = given()
            added = parts.get("added", kept(old).get("added"))
            run = await self._new_run(parts["messages"], parts["candidates"], added)  # type: ignore[arg-type]
            explaining = asyncio.create_task(self.words(parts["messages"]))  # type: ignore[arg-type]
            try:
                run = await self._scored({**run, **parts})
                await asyncio.wait([explaining], timeout=PATIENCE)
                return explained(run, explaining)
            finally:
                explaining.cancel()
        except (ValueError, GenerationError) as error:
            return failed(kept(old), sentence(error))
        except Exception:
            log.exception("scoring given answers failed")
            return failed(kept(old), SORRY)

    async def why(self, old: Run, which: Any) -> dict[str, Any]:
        """The words that moved the panel's scores of an answer (`which`: a list of its number).

        Returns `words`, `named` and `random` as in :class:`pro_core.rewards.explanations.ScoreExplanation`; or `error`,
        a sentence.
        """
        try:
            panel = await self.models.when_ready()
            run, names = self.previous(old), list(panel.objective_names)
            if not run:
                raise ValueError("There are no answers to explain yet: ask something first.")
            [place] = some_of(which, len(run["candidates"])) or [0]
            if run["objectives"][: len(names)] != names:
                raise ValueError("Another panel gave these scores: ask, and yours are explained.")
            why = await self.models.why(run["messages"], run["candidates"][place]["text"])
            words = [
                {"start": start, "end": end, "effects": row.tolist()}
                for (start, end), row in zip(why.words, why.effects.round(3), strict=True)
            ]
            return {"words": words, "named": numbers(why.named), "random": numbers(why.random)}
        except (ValueError, GenerationError) as error:
            return {"error": sentence(error)}
        except Exception:
            log.exception("explaining scores failed")
            return {"error": SORRY}
