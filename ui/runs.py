"""Runs, step by step: what a handler of the page is asked for, and the run that it sends next."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from pro_core.data.objectives import Message
from pro_core.data.schema import to_messages
from pro_core.generation import STYLES, GenerationSettings, Written, styled
from pro_core.weights import apply_floors
from ui.board import Added, Answer, Asked, Moved, Run, answer
from ui.values import (
    MAX_ANSWERS,
    MAX_TOKENS,
    flag,
    previous_run,
    strength,
    temperature,
    text,
    whole,
)

GO_ON: Message = {"role": "user", "content": "Continue exactly where you stopped."}
"""The turn after an answer that hit the token limit. Servers differ in how an answer itself can be begun for them."""


class Turn(NamedTuple):
    """What to answer: the earlier messages and the prompt.

    `kept` and `places`: the previous run's cards, and those of them that are written; None: all are new. `same`: it is
    the previous run's turn. `goes_on`: the answers continue their texts.
    """

    earlier: list[Message]
    prompt: str
    kept: list[Answer] | None = None
    places: list[int] | None = None
    same: bool = False
    goes_on: bool = False


class Wanted(NamedTuple):
    """The answers to write.

    `messages` and `cards`: of the whole run. `conversations` (one per answer to write), `places` (its card) and `begun`
    (what it holds already). `same`: the turn was answered before, so that the page has answers to keep. `strength`: of
    the policy's mixing; None: as its owner says.
    """

    messages: list[Message]
    cards: list[Answer]
    asked: Asked
    settings: GenerationSettings
    conversations: list[list[Message]]
    places: list[int]
    begun: list[Written]
    same: bool
    strength: float | None


def prepared(turn: Turn, n: Any, tokens: Any, styles: Any, sampling: Sequence[Any]) -> Wanted:
    """What a handler is asked for, checked.

    Args:
        n, tokens: how many new answers, and tokens per answer. styles: whether new answers get different styles.
        sampling: see `sampled`; a fourth value is the strength of a policy that is mixed.

    Raises:
        ValueError: a value is not what it should be; one sentence.
    """
    n, tokens = whole(n, 1, MAX_ANSWERS, "answers"), whole(tokens, 1, MAX_TOKENS, "tokens")
    settings, system = sampled(tokens, *sampling[:3])
    strong = strength(sampling[3]) if len(sampling) > 3 else None
    earlier = turn.earlier
    if system is not None:
        earlier = [system, *(m for m in earlier if m["role"] != "system")]
    messages = to_messages([*earlier, {"role": "user", "content": text(turn.prompt, "prompt")}])
    cycle = list(STYLES) if flag(styles, "different styles") else [None]
    cards = turn.kept or [answer(style=cycle[i % len(cycle)]) for i in range(n)]
    places = turn.places or list(range(len(cards)))
    conversations = [styled(messages, cards[i]["style"]) for i in places]
    begun = ["" for _ in places]
    if turn.goes_on:
        texts = [cards[i]["text"] for i in places]
        conversations = [
            [*before, {"role": "assistant", "content": written}, GO_ON]
            for before, written in zip(conversations, texts, strict=True)
        ]
        begun = [f"{written.rstrip()} " for written in texts]
    cards = [*cards]
    for i, written in zip(places, begun, strict=True):
        cards[i] = answer(written, style=cards[i]["style"])
    asked: Asked = {
        "n": len(cards),
        "tokens": tokens,
        "temperature": settings.temperature,
        "seed": settings.seed,
        "strength": strong,
    }
    if turn.places and settings.seed is not None:
        settings = replace(settings, seed=_shifted(settings.seed, places[0], turn.kept or []))
    held = [Written(text=written) for written in begun]
    return Wanted(messages, cards, asked, settings, conversations, places, held, turn.same, strong)


def _shifted(seed: int, place: int, cards: Sequence[Answer]) -> int:
    """A seed for writing some answers again, the first of them at `place`.

    Under the run's own seed the first would be a copy of answer A. The text that it replaces makes each try differ.
    """
    before = cards[place]["text"].encode("utf-8", "replace") if cards else b""
    return (seed + zlib.crc32(before, place)) % 2**31


def kept(old: Any) -> Run:
    """The browser's run, to be sent back as it is: of any panel, but {} if no page can hold it."""
    try:
        return previous_run(old)
    except ValueError:
        return {}


def failed(run: Run, note: str) -> Run:
    """The run with one sentence that says what went wrong. Answers that broke off can be scored as they are."""
    at = str(
        time.time_ns()
    )  # Gradio's page takes no notice of a value equal to the one that it holds
    over: Run = {**run, "note": note, "tone": "error", "busy": False, "at": at}
    return {**over, "phase": "stopped"} if run.get("phase") == "writing" else over


def line(ahead: int) -> str:
    """A visitor's place in line, in words."""
    if not ahead:
        return "you are next for answers…"
    return f"{ahead} {'visitor is' if ahead == 1 else 'visitors are'} ahead of you for answers…"


def with_written(run: Run, places: Sequence[int], written: list[Written], note: str) -> Run:
    """The run with what was written so far of the answers at `places`."""
    names = ("text", "reasoning", "finish", "error")
    cards = [*run["candidates"]]
    for place, one in zip(places, written, strict=True):
        cards[place] = {**cards[place], **{name: getattr(one, name) for name in names}}  # type: ignore[typeddict-item]
    return {**run, "note": note, "candidates": cards}


def sampled(
    tokens: int, warmth: Any = None, seed: Any = None, system: Any = ""
) -> tuple[GenerationSettings, Message | None]:
    """The sampling settings and the system message of a request. Raises ValueError.

    Args:
        tokens: per answer. warmth: the temperature; None: the default. seed: a whole number, also as a text; None or
            an empty text draws afresh.
        system: the system prompt; empty or blank: none.
    """
    settings = GenerationSettings(max_new_tokens=tokens)
    if warmth is not None:
        settings = replace(settings, temperature=temperature(warmth))
    if isinstance(seed, str):
        digits = seed.strip()
        if digits and not digits.isdecimal():
            raise ValueError("got a seed that is no number, expected a whole number or nothing")
        seed = int(digits) if digits else None
    if seed is not None:
        settings = replace(settings, seed=whole(seed, 0, 2**31 - 1, "seeds"))
    content = text(system, "system prompt").strip()
    return settings, {"role": "system", "content": content} if content else None


def unscored(cards: Sequence[Answer]) -> list[Answer]:
    """The cards without their scores."""
    return [{**c, "z": None, "raw": None, "members": None} for c in cards]


def explained(run: Run, explaining: asyncio.Task[list[Moved] | None]) -> Run:
    """The run with the words behind its weights, once they are known."""
    words = explaining.result() if explaining.done() else None
    if words is None:
        return run
    none = [0.0] * len(run.get("added", []))  # no word moves an added objective
    return {**run, "words": [{**word, "effects": [*word["effects"], *none]} for word in words]}


def predicted_of(run: Run) -> np.ndarray:
    """The predicted weights of a run's objectives; uniform ones under the floors without an adapter."""
    K = len(run["objectives"])
    return np.array(run["predicted"] or apply_floors(np.full(K, 1 / K), run["floors"]))


def extended(run: Run, added: Sequence[Added]) -> Run:
    """A panel's run with A objectives more.

    Each has an equal share of the weights, 1 / (K + A); the panel's K share the rest as the adapter predicts.
    """
    if not added:
        return run
    A = len(added)
    share = 1 / (len(run["objectives"]) + A)
    floors = [*run["floors"], *[0.0] * A]

    def longer(values: list[float] | None) -> list[float] | None:
        return None if values is None else [*((1 - A * share) * v for v in values), *[share] * A]

    predicted = longer(run["predicted"])
    return {
        **run,
        "objectives": [*run["objectives"], *(one["name"] for one in added)],
        "added": list(added),
        "about": run["about"] | {one["name"]: one["sentence"] for one in added},
        "floors": floors,
        "presets": {name: [*row, *[0.0] * A] for name, row in run["presets"].items()},
        "predicted": predicted and apply_floors(predicted, floors).tolist(),
        "lower": longer(run["lower"]),
        "upper": longer(run["upper"]),
    }
