""" "Add an objective": a visitor's sentence becomes one more slider (:mod:`ui.sentences` has the judge).

What is added belongs to the run that the browser holds, so that it survives a reload, comes along to the next question,
and is forgotten by the server.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

import gradio as gr

from pro_core.generation import GenerationError
from ui.board import Added, Run, note_line
from ui.models import sentence
from ui.page import Page
from ui.runs import failed, kept, unscored
from ui.scoring import SORRY
from ui.values import LONGEST_SENTENCE, text

EXAMPLE = "The answer is concise and gets to the point."
WRITER = ("model", "date", "asked", "conditioned")
"""Keys of a run that stay when only its objectives change."""
log = logging.getLogger("pro.app")


class Adding:
    """The handlers. Each takes a run and returns one (see `ui.board.Run`)."""

    def __init__(self, page: Page):
        self.page, self.sentences = page, page.models.sentences

    async def add(self, wanted: str, old: Run) -> Run:
        """The run with one more objective, by which its answers are scored at once."""
        try:
            run = await self._open(old)
            panel = await self.page.models.when_ready()
            taken = [*panel.objective_names, *run["objectives"]]  # a recorded run has other ones
            added = self.sentences.with_one(run.get("added", []), wanted, taken)
            await self.sentences.check(added[-1]["sentence"])
        except (ValueError, GenerationError) as error:
            return refused(old, sentence(error))
        except Exception:
            log.exception("adding an objective failed")
            return refused(old, SORRY)
        note = f"Added: “{added[-1]['sentence']}” Nobody measured how often its scores agree with people."
        return await self._with(run, added, note)

    async def drop(self, name: str, old: Run) -> Run:
        """The run without the added objective of that name."""
        try:
            run = await self._open(old)
            gone = text(name, "an objective")
        except (ValueError, GenerationError) as error:
            return refused(old, sentence(error))
        rest = [one for one in run.get("added", []) if one["name"] != gone]
        return await self._with(run, rest, "")

    async def _open(self, old: Any) -> Run:
        await self.page.models.when_ready()
        run = self.page.previous(old)
        if not run.get("objectives"):
            raise ValueError("There is no run to add it to yet: ask something first.")
        if run.get("busy"):
            raise ValueError("Wait until the answers are written and scored.")
        return run

    async def _with(self, run: Run, added: list[Added], note: str) -> Run:
        panel = await self.page.models.when_ready()
        names = [*panel.objective_names, *(one["name"] for one in added)]
        parts: dict[str, Any] = {name: run[name] for name in WRITER if name in run}  # type: ignore[literal-required]
        parts |= {"messages": run["messages"], "candidates": unscored(run["candidates"])}
        parts |= {"note": note, "added": added}
        if used := run.get("used"):
            parts["used"] = carried(run["objectives"], used, names)
        return await self.page.compare(lambda: parts, run)  # type: ignore[arg-type,return-value]


def refused(old: Any, note: str) -> Run:
    """The run with one sentence that says why nothing was added. Its answers are written on, if they are."""
    run = kept(old)
    going: Any = {name: run[name] for name in ("busy", "phase") if name in run}  # type: ignore[literal-required]
    return {**failed(run, note), **going}


def carried(old: Sequence[str], weights: Sequence[float], names: Sequence[str]) -> list[float]:
    """Weights for other objectives: a new one gets an equal share, those that stay share the rest as before."""
    before = dict(zip(old, weights, strict=True))
    share, mass = 1 / len(names), sum(before.get(name, 0.0) for name in names)
    if mass <= 0:
        return [share] * len(names)
    rest = 1 - share * sum(name not in before for name in names)
    return [before[name] / mass * rest if name in before else share for name in names]


def controls(page: Page, view: gr.HTML, begins: str, free: dict[str, Any]) -> list[Any]:
    """The section of the page, and its events; nothing where no objective can be added.

    Args:
        view: the board. begins: JavaScript that tells the board of a request, with a place for its name. free: settings
            of the events.
    """
    offered = page.models.sentences.offered
    if offered is None:
        return []
    adding = Adding(page)
    with gr.Accordion("Add an objective", open=False, elem_id="own"):
        wanted = gr.Textbox(
            label="A sentence that is true of a good answer",
            placeholder=EXAMPLE,
            max_length=LONGEST_SENTENCE,
            visible=not offered,
            elem_id="sentence",
        )
        choices = [gr.Button(one, size="sm") for one in offered]
        add = gr.Button("Add it as a slider", visible=not offered, elem_id="add-own")
        note_line("own-note")
        gone = gr.Textbox(visible=False)
        drop = gr.Button(elem_id="drop", visible="hidden")
    begin = begins.format("own")
    events = [gr.on([add.click, wanted.submit], adding.add, [wanted, view], view, js=begin, **free)]
    for choice, one in zip(choices, offered, strict=True):
        says = f"(...v) => {{ v[0] = {json.dumps(one)}; return ({begin})(...v); }}"
        events.append(choice.click(adding.add, [wanted, view], view, js=says, **free))
    dropped = f"(...v) => {{ v[0] = window.proBoard.dropped; return ({begin})(...v); }}"
    events.append(drop.click(adding.drop, [gone, view], view, js=dropped, **free))
    return events
