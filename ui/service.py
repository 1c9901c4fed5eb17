"""The handlers behind the page and the API.

A visitor's mistake or a failing endpoint never ends a handler: the page gets one sentence in the run's `note`,
a caller of the API gets it as an error.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing
from functools import wraps
from typing import Any

import gradio as gr
import numpy as np

from pro_core.data import to_messages
from pro_core.explanations import Explanation
from pro_core.generation import (
    STYLES,
    Candidate,
    GenerationError,
    GenerationSettings,
    Written,
    best_of_n,
    styled,
)
from pro_core.objectives import DESCRIPTIONS, Message
from pro_core.rewards.panel import RewardPanel
from pro_core.turns import split_reasoning, without_reasoning
from pro_core.weights import apply_floors, as_weights, weighted_sum
from ui import since_start
from ui.board import Answer, Run, answer, follow_up, scored
from ui.models import Models, sentence
from ui.values import clean, conversation, number, numbers, whole

MAX_ANSWERS, MAX_TOKENS, LONGEST = 8, 512, 200_000
log = logging.getLogger("pro.app")


class Page:
    """The page's handlers. Each takes and gives runs (see `ui.board.Run`)."""

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
    ) -> AsyncIterator[Run]:
        """A new conversation: weights at once, the words behind them, answers as they are written, their scores.

        A policy that reads weights is told those of the sliders, once a visitor has moved them; else the predicted.
        """
        async for run in self._answer([], prompt, n, tokens, styles, old, sliders, seed):
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
    ) -> AsyncIterator[Run]:
        """The next turn of the conversation, after answer `pick` of the run before."""
        try:
            earlier = follow_up(old, pick)
        except ValueError as error:
            yield {**old, "note": sentence(error), "tone": "error", "busy": False}
            return
        async for run in self._answer(earlier, prompt, n, tokens, styles, old, sliders, None):
            yield run

    async def again(
        self,
        n: int,
        tokens: int,
        styles: bool,
        old: Run,
        sliders: list[float] | None,
    ) -> AsyncIterator[Run]:
        """The same turn once more, for a policy that reads weights: answers written under those of the sliders."""
        *earlier, last = old["messages"]
        async for run in self._answer(
            earlier, last["content"], n, tokens, styles, old, sliders, None
        ):
            yield run

    async def _answer(
        self,
        earlier: list[Message],
        prompt: str,
        n: int,
        tokens: int,
        styles: bool,
        old: Run,
        sliders: list[float] | None,
        seed: int | None,
    ) -> AsyncIterator[Run]:
        run = old
        try:
            n, tokens = whole(n, 1, MAX_ANSWERS, "answers"), whole(tokens, 1, MAX_TOKENS, "tokens")
            messages = to_messages([*earlier, {"role": "user", "content": clean(prompt)}])
            if not self.models.ready:
                yield {**old, "note": "Loading the reward models…", "tone": "", "busy": True}
            cycle = list(STYLES)
            given = [cycle[i % len(cycle)] if styles else None for i in range(n)]
            run = await self._new_run(messages, [answer(style=style) for style in given])
            run = await self._under_weights(run, sliders)
            run["phase"], run["busy"] = "writing", True
            if not self.models.finished:
                run["note"] = "The weights are there; the language model is still loading…"
            yield run
            run = await self._explained(run)
            batch = await asyncio.to_thread(
                self.models.conditioned,
                [styled(messages, style) for style in given],
                np.array(self._in_force(run)),
            )
            settings = GenerationSettings(max_new_tokens=tokens, seed=seed)
            async for written in self._write(run, batch, settings):
                run = written
                yield run
            yield await self._finish({**run, "phase": "done"})
        except (ValueError, GenerationError) as error:
            yield {**run, "note": sentence(error), "tone": "error", "busy": False}
        except Exception:
            log.exception("asking failed")
            sorry = "Something went wrong on the server. Please try again."
            yield {**run, "note": sorry, "tone": "error", "busy": False}

    async def _new_run(self, messages: list[Message], candidates: list[Answer]) -> Run:
        panel = await self.models.when_ready()
        predicted = await asyncio.to_thread(self.models.predict, messages)
        if predicted is None:
            found = dict.fromkeys(("predicted", "lower", "upper", "known"))
        else:
            found = {
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
            **found,
        }

    async def _under_weights(self, run: Run, sliders: list[float] | None) -> Run:
        """The run with the visitor's weights, for a policy that reads them; with a stock model they only rank."""
        policy = await asyncio.to_thread(lambda: self.models.generator.policy)
        if policy is None or not policy.reads:
            return run
        used = None
        if sliders is not None:
            used = apply_floors(as_weights(sliders, run["objectives"]), self.models.floors).tolist()
        return {**run, "conditioned": policy.reads, "used": used}

    def _in_force(self, run: Run) -> list[float]:
        return run.get("used") or run["predicted"] or self.models.uniform().tolist()

    async def _explained(self, run: Run) -> Run:
        """The run with the words behind its weights."""
        found = await asyncio.to_thread(self.models.explain, run["messages"])
        if found is None:
            return run
        _, why = found
        words = [
            {"turn": w.turn, "start": w.start, "end": w.end, "effects": row.tolist()}
            for w, row in zip(why.words, why.effects.round(4), strict=True)
        ]
        return {**run, "words": words}

    async def _write(
        self, run: Run, batch: list[list[Message]], settings: GenerationSettings
    ) -> AsyncIterator[Run]:
        """The run again and again while its answers grow, about ten times a second."""
        models, begun, shown = self.models, time.perf_counter(), 0.0
        candidates = run["candidates"]
        written = [Written() for _ in candidates]
        note = run["note"]

        def current() -> Run:
            answers = [_with(c, w) for c, w in zip(candidates, written, strict=True)]
            return {**run, "note": note, "candidates": answers}

        async with aclosing(models.generator.stream_batch(batch, settings)) as pieces:
            async for piece in pieces:
                written[piece.index].add(piece)
                note = piece.note or ("" if models.finished else note)
                now = time.perf_counter()
                if (piece.text or piece.reasoning) and not models.said_first_token:
                    models.said_first_token = True
                    message = "first token %.1f s after start, %.1f s after its prompt"
                    log.info(message, since_start(), now - begun)
                if now - shown > 0.1:
                    shown = now
                    yield current()
        yield current()

    async def _finish(self, run: Run) -> Run:
        texts = ["" if c["error"] else c["text"] for c in run["candidates"]]  # failed: no score
        raw_NK, z_NK = await asyncio.to_thread(self.models.score, run["messages"], texts)
        run = {**run, "busy": False, "candidates": scored(run["candidates"], raw_NK, z_NK)}
        errors = [c["error"] for c in run["candidates"] if c["error"]]
        if errors and len(errors) == len(texts):
            run = {**run, "note": errors[0], "tone": "error"}
        return run

    async def stop(self, run: Run) -> Run:
        """After a Stop: score what was written so far."""
        if not run.get("busy"):
            return run
        if run.get("phase") != "writing":  # nothing of the new prompt was shown yet
            return {**run, "busy": False, "note": "Stopped.", "tone": ""}
        try:
            written = any(c["text"].strip() for c in run["candidates"])
            note = (
                "The scores are for what was written so far." if written else "Ask again any time."
            )
            return await self._finish({**run, "phase": "stopped", "note": f"Stopped. {note}"})
        except Exception as error:
            log.exception("scoring after a stop failed")
            return {**run, "busy": False, "note": sentence(error), "tone": "error"}

    async def paste(self, prompt: str, old: Run, *texts: str) -> Run:
        """Two to four answers of the visitor's own, scored."""
        try:
            pasted = [clean(text) for text in texts]
            if max(map(len, pasted), default=0) > LONGEST:
                raise ValueError(f"An answer may have at most {LONGEST:,} characters.")
            split = map(split_reasoning, pasted)
            kept = [answer(text, thought) for thought, text in split if text.strip()]
            if len(kept) < 2:
                raise ValueError("Paste at least two answers to compare.")
            messages = to_messages([{"role": "user", "content": clean(prompt)}])
            run = await self._new_run(messages, kept)
            run = await self._explained(run)
            return await self._finish({**run, "note": "Your own answers, scored."})
        except (ValueError, GenerationError) as error:
            return {**old, "note": sentence(error), "tone": "error", "busy": False}

    async def watch_status(self) -> AsyncIterator[str]:
        """The status line, until everything is loaded."""
        shown = ""
        while True:
            finished, text = self.models.finished, self.models.status_text()
            if text != shown:
                shown = text
                yield text
            if finished:
                return
            await asyncio.sleep(0.2)


def _with(card: Answer, written: Written) -> Answer:
    """The card with what was written so far."""
    news = {name: getattr(written, name) for name in ("text", "reasoning", "finish", "error")}
    return {**card, **news}  # type: ignore[typeddict-item]


def _for_callers(function: Callable[..., Any]) -> Callable[..., Any]:
    """Mistakes and failing endpoints reach a caller of the API as one sentence."""

    @wraps(function)
    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return await function(*args, **kwargs)
        except (ValueError, GenerationError) as error:
            raise gr.Error(sentence(error), print_exception=False) from None

    return wrapped


class Api:
    """The named endpoints, as people script them with `gradio_client`."""

    def __init__(self, models: Models):
        self.models = models

    async def predict_weights(self, prompt: str | list) -> dict:
        """{objective: weight} for a prompt, floors applied; uniform without an adapter."""
        panel = await self.models.when_ready()
        weights = await asyncio.to_thread(self.models.weights, conversation(prompt))
        return self._named(panel, self.models.uniform() if weights is None else weights)

    async def explain(self, prompt: str | list) -> dict:
        """The weights, their 90% interval, how far the prompt is known, and the words that moved each weight.

        `words` holds for each objective {"word", "turn", "start", "end", "effect"}, from the word that raised it most
        to the one that lowered it most: `effect` is the weight minus the weight without the word, before floors; the
        word stands in message number `turn`, at these characters. `lower`, `upper` and `known` are null where the
        adapter cannot say.
        """
        panel = await self.models.when_ready()
        found = await asyncio.to_thread(self.models.explain, conversation(prompt))
        if found is None:
            words: dict = {name: [] for name in panel.objective_names}
            unsaid = dict.fromkeys(("lower", "upper", "known"))
            return {"weights": self._named(panel, self.models.uniform()), **unsaid, "words": words}
        predicted, why = found
        lower, upper = numbers(predicted.lower), numbers(predicted.upper)
        return {
            "weights": self._named(panel, predicted.weights),
            "lower": None if lower is None else self._named(panel, lower),
            "upper": None if upper is None else self._named(panel, upper),
            "known": number(predicted.known),
            "words": {name: self._words(why, name) for name in panel.objective_names},
        }

    @staticmethod
    def _words(why: Explanation, objective: str) -> list[dict[str, Any]]:
        return [
            {"word": w.text, "turn": w.turn, "start": w.start, "end": w.end, "effect": effect}
            for w, effect in why.of(objective)
        ]

    async def score(self, prompt: str | list, response: str) -> dict:
        """{objective: {"raw": float, "z": float}} for one response to a prompt."""
        panel = await self.models.when_ready()
        messages, response = conversation(prompt), clean(response)
        if not response.strip() or len(response) > LONGEST:
            raise ValueError(
                f"got a response of {len(response):,} characters, expected 1 to {LONGEST:,}"
            )
        if not without_reasoning(response).strip():
            raise ValueError("got a response of reasoning alone, expected an answer after it")
        raw_NK, z_NK = await asyncio.to_thread(self.models.score, messages, [response])
        return self._scores(panel, raw_NK[0], z_NK[0])

    async def generate(
        self,
        prompt: str | list,
        weights: dict | None = None,
        n: int = 4,
        max_new_tokens: int = 192,
    ) -> dict:
        """N answers, best first under `weights` (null: predicted), with scores and totals.

        `reasoning` is the thought before an answer, which is not scored. `finish` says how the answer ended: "stop", or
        cut by "length" (`max_new_tokens`) or by the endpoint's "filter"; null where it broke off, as `error` says.
        """
        models, panel = self.models, await self.models.when_ready()
        settings = GenerationSettings(
            max_new_tokens=whole(max_new_tokens, 1, MAX_TOKENS, "new tokens")
        )
        n = whole(n, 1, MAX_ANSWERS, "answers")
        messages = conversation(prompt)
        given = None if weights is None else as_weights(weights, panel.objective_names)
        predicted = await asyncio.to_thread(models.weights, messages)
        fallback = models.uniform() if predicted is None else predicted
        used = fallback if given is None else apply_floors(given, models.floors)
        best = await asyncio.to_thread(
            best_of_n, models.generator, panel, used, messages, n, settings
        )
        if all(c.z is None for c in best.candidates):
            raise GenerationError(best.candidates[0].error or "No answer could be scored.")
        K = len(panel.objective_names)
        schemes = {"predicted": fallback, "used": used, "uniform": np.full(K, 1 / K)}
        return {
            "weights": self._named(panel, used),
            "source": "user"
            if given is not None
            else "uniform"
            if predicted is None
            else "adapter",
            "candidates": [self._candidate(panel, c, schemes) for c in best.candidates],
        }

    def _candidate(
        self, panel: RewardPanel, c: Candidate, schemes: dict[str, np.ndarray]
    ) -> dict[str, Any]:
        written = {"text": c.text, "reasoning": c.reasoning, "finish": c.finish}
        if c.raw is None or c.z is None:
            return {**written, "scores": None, "totals": None, "error": c.error}
        totals = {name: float(weighted_sum(c.z[None], w)[0]) for name, w in schemes.items()}
        return {**written, "scores": self._scores(panel, c.raw, c.z), "totals": totals}

    async def status(self) -> dict:
        """Which generator, panel and adapter are in use; K; whether the generator is reachable."""
        return await asyncio.to_thread(self.models.status)

    @staticmethod
    def _named(panel: RewardPanel, weights_K: Iterable[float]) -> dict[str, float]:
        return dict(zip(panel.objective_names, map(float, weights_K), strict=True))

    @staticmethod
    def _scores(
        panel: RewardPanel, raw_K: np.ndarray, z_K: np.ndarray
    ) -> dict[str, dict[str, float]]:
        return {
            name: {"raw": float(raw_K[k]), "z": float(z_K[k])}
            for k, name in enumerate(panel.objective_names)
        }

    def endpoints(self) -> dict[str, Callable[..., Any]]:
        functions: list[Callable[..., Any]] = [
            self.predict_weights,
            self.explain,
            self.score,
            self.generate,
            self.status,
        ]
        return {function.__name__: _for_callers(function) for function in functions}
