"""Responses to N requests, S per request, in a file that grows: what it holds is not written again.

Responses are written in batches of fixed composition, each with its own seed. A finished batch is one line of an
append-only JSON Lines file, which is named by a hash of everything that decides the responses. So a killed run goes on
to the same texts, and all runs that ask the same share one file. Processes share the batches, each with its own file. A
line holds a hash of its content: a torn or changed line is written again.

Failed responses are tried again, three times in all, or three times more by every later call; the others stay.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pro_core.data.objectives import Message
from pro_core.data.schema import render_messages
from pro_core.generation.base import Finish, GenerationSettings, Generator, collect
from pro_core.generation.request import Request
from pro_core.generation.sampling import WRITING_VERSION
from pro_core.system.processes import processes, wait_for_all
from pro_core.system.storage import append_jsonl, content_hash

FORMAT = "pro-responses-4"
"""Every change of what a line holds raises its number."""
TRIES = 3

Place = tuple[int, int]
"""A request's row, and which of its S responses."""


@dataclass(frozen=True)
class Response:
    """One response. ``text`` is None when generation failed, and ``error`` says why.

    An empty text is not a failure: the policy wrote it, and it is scored like any other. ``reasoning`` is the thought
    before the answer, which is never scored or learned; a thought without an answer is a failure. ``finish`` says how
    the answer ended, see :data:`pro_core.generation.base.Finish`.
    """

    text: str | None
    error: str | None = None
    reasoning: str = ""
    finish: Finish | None = None


def write_responses(
    load: Callable[[], Generator],
    requests: Sequence[Request],
    samples: int,
    settings: GenerationSettings,
    seed_of: Callable[[int, int, Sequence[int]], int],
    folder: str | Path,
    batch_size: int,
    identity: str,
    on_progress: Callable[[int, int], None] | None = None,
    again: bool = False,
) -> list[list[Response]]:
    """The responses to each request, (N, samples); written now or read from ``folder``. Every process calls it.

    Args:
        load: makes the generator; called when something must be written.
        requests: in the order in which they are written; neighbours of similar length save padding, see
            :func:`by_length`.
        settings: their seed is not used: each batch has one of its own.
        seed_of: (which try, which batch of it, rows of its requests) -> the batch's seed.
        batch_size: responses written side by side, rounded to whole requests. Another size draws other responses.
        identity: the model's; responses of another model are not reused.
        on_progress: called with (responses there, all) when something was written.
        again: try what failed in all attempts of an earlier call three times more. Without it a later call gives what
            the first one gave.
    """
    size = max(1, batch_size // samples) * samples
    rank, world = processes().process_index, processes().num_processes

    def batches(places: Sequence[Place], attempt: int) -> list[tuple[Sequence[Place], int]]:
        """The places of each batch, and its seed."""
        parts = [places[i : i + size] for i in range(0, len(places), size)]
        rows = [list(dict.fromkeys(n for n, _ in part)) for part in parts]
        return [(part, seed_of(attempt, c, rows[c])) for c, part in enumerate(parts)]

    everything = [(n, s) for n in range(len(requests)) for s in range(samples)]
    first = batches(everything, 0)
    asked = [_content(request) for request in requests]
    how = [samples, size, asdict(replace(settings, seed=None)), [seed for _, seed in first]]
    key = content_hash([FORMAT, WRITING_VERSION, identity, asked, how])[:32]
    folder = Path(folder)
    generator: Generator | None = None
    stored, attempt, wrote = _read(folder, key), 0, False
    # What an attempt asks follows from the attempts before it alone, so that a killed one goes on as it would have.
    while todo := [place for place in everything if stored.failed_before(attempt, place)]:
        of_attempt = batches(todo, attempt) if attempt else first
        missing = [c for c, (part, _) in enumerate(of_attempt) if not stored.has(attempt, part)]
        for c in missing:
            if c % world != rank:
                continue
            places, seed = of_attempt[c]
            generator = generator or load()
            batch = [requests[n] for n, _ in places]
            written = collect(generator, batch, replace(settings, seed=seed))
            responses = [
                Response(None, one.error, one.reasoning, one.finish)
                if one.failed
                else Response(one.text, None, one.reasoning, one.finish)
                for one in written
            ]
            read = {n: asked[n] for n, _ in places}
            line = _line(attempt, seed, read, places, responses)
            append_jsonl(folder / f"{key}-{rank}.jsonl", line)
            if on_progress:
                there = len(everything) - len(todo) + sum(len(p) for p, _ in of_attempt[: c + 1])
                on_progress(there, len(everything))
        wrote = wrote or bool(missing)
        wait_for_all()  # every process has written its batches, or has found them
        stored = _read(folder, key)
        wait_for_all()  # no process writes before all have read the same
        attempt += 1
        if attempt % TRIES == 0 and (wrote or not again):
            break
    last = {place: stored.last(place) for place in everything}
    return [[last[n, s] for s in range(samples)] for n in range(len(requests))]


def by_length(conversations: Sequence[Sequence[Message]]) -> list[int]:
    """Rows of conversations, the shortest first."""
    lengths = [len(render_messages(conversation)) for conversation in conversations]
    return sorted(range(len(conversations)), key=lengths.__getitem__)


def _content(request: Request) -> dict[str, Any]:
    """A request as JSON."""
    beside = {"weights": request.weights, "levels": request.levels}
    given: dict[str, Any] = {name: dict(v) for name, v in beside.items() if v is not None}
    if request.mixing:
        given["mixing"] = asdict(request.mixing)
    if request.begun:
        given["begun"] = request.begun
    if request.answer_tokens:
        given["answer_tokens"] = request.answer_tokens
    if request.candidate is not None:
        given["candidate"] = request.candidate
    return {"messages": list(request.messages)} | given


def _line(
    attempt: int,
    seed: int,
    read: dict[int, dict[str, Any]],
    places: Sequence[Place],
    responses: Sequence[Response],
) -> dict[str, Any]:
    """A batch as a line: what was read, by the request's row, and a response for each place."""
    content = {
        "attempt": attempt,
        "seed": seed,
        "read": {str(n): one for n, one in read.items()},
        "places": [list(place) for place in places],
        "responses": [asdict(response) for response in responses],
    }
    return content | {"hash": content_hash(content)}


@dataclass
class _Stored:
    """What the files of a key hold, by attempt."""

    attempts: dict[Place, dict[int, Response]]

    def has(self, attempt: int, places: Sequence[Place]) -> bool:
        """Whether a batch of an attempt is there."""
        return all(attempt in self.attempts.get(place, {}) for place in places)

    def failed_before(self, attempt: int, place: Place) -> bool:
        """Whether no earlier attempt gave a response."""
        tries = self.attempts.get(place, {})
        return all(one.error is not None for a, one in tries.items() if a < attempt)

    def last(self, place: Place) -> Response:
        tries = self.attempts[place]
        return tries[max(tries)]


def _read(folder: Path, key: str) -> _Stored:
    """All responses of the key's files."""
    attempts: dict[Place, dict[int, Response]] = {}
    for file in sorted(folder.glob(f"{key}-*.jsonl")):
        for text in file.read_bytes().split(b"\n"):
            try:
                line = json.loads(text)
                sound = line.pop("hash") == content_hash(line)
            except (ValueError, KeyError, AttributeError):
                continue  # a torn line, left by a kill
            if not sound:
                continue
            for (n, s), one in zip(line["places"], line["responses"], strict=True):
                attempts.setdefault((n, s), {}).setdefault(line["attempt"], Response(**one))
    return _Stored(attempts)
