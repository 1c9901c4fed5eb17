"""The page's handlers that score answers which are there already: pasted, shared, stopped, or just written.

A visitor's mistake or a failing endpoint never ends a handler: the page gets one sentence in the run's `note`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from pro_core.data.objectives import DESCRIPTIONS, Message
from pro_core.data.schema import to_messages
from pro_core.data.turns import split_reasoning
from pro_core.generation import GenerationError
from ui.board import Answer, Moved, Run, answer, scored
from ui.models import Models, sentence, short
from ui.runs import explained, extended, failed, kept, unscored
from ui.values import LONGEST, STALE, number, numbers, previous_run, some_of, text

PATIENCE = 3.0
"""Seconds that scored answers wait for the words behind their weights. The models' thread does explanations last, so
with many visitors there are none."""
SORRY = "Something went wrong on the server. Please try again."
log = logging.getLogger("pro.app")


class Scoring:
    """Handlers that take a run and return one (see `ui.board.Run`), and what they share with those that write answers.

    Args:
        token: the visitor's own for the endpoint, where visitors sign in (:mod:`ui.sign_in`).
    """

    def __init__(self, models: Models, token: str | None = None):
        self.models, self.token = models, token

    def previous(self, old: Any) -> Run:
        """The previous run, as the browser sent it back. Raises ValueError if this page cannot have sent it."""
        run = previous_run(old, self.models.panel.objective_names if self.models.panel else None)
        if self.models.sentences.allowed(run.get("added")) != run.get("added", []):
            raise ValueError(STALE)  # the owner no longer allows what was added
        return run

    async def _new_run(self, messages: list[Message], candidates: list[Answer], added: Any) -> Run:
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
            cards = unscored([{**c, "error": None} for c in run["candidates"]])
            writer: Run = {name: run[name] for name in ("model", "date") if name in run}  # type: ignore[assignment,literal-required]
            note = "Scored here, by this page's reward models."
            return {**writer, "messages": run["messages"], "candidates": cards, "note": note}

        run = await self.compare(shown, old)
        names = kept(old).get("objectives", [])
        if lost := [name for name in names if name not in run.get("objectives", names)]:
            run["note"] += f" This page does not score {', '.join(lost)}."
        return run

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

        Returns `words`, `named` and `random` as in :class:`pro_core.rewards.explanations.ScoreExplanation`, with None
        for NaN; or `error`, a sentence.
        """
        try:
            panel = await self.models.when_ready()
            run, names = self.previous(old), list(panel.objective_names)
            if not run:
                raise ValueError("There are no answers to explain yet: ask something first.")
            [place] = some_of(which, len(run["candidates"])) or [0]
            if run["objectives"] != [*names, *(one["name"] for one in run.get("added", []))]:
                raise ValueError("Another panel gave these scores: ask, and yours are explained.")
            why = await self.models.why(run["messages"], run["candidates"][place]["text"])
            words = [
                {"start": start, "end": end, "effects": [number(v) for v in row]}
                for (start, end), row in zip(why.words, why.effects.round(3), strict=True)
            ]
            named, random = ([number(v) for v in row] for row in (why.named, why.random))
            return {"words": words, "named": named, "random": random}
        except (ValueError, GenerationError) as error:
            return {"error": sentence(error)}
        except Exception:
            log.exception("explaining scores failed")
            return {"error": SORRY}
