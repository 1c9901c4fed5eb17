"""Responses to N requests, S to each, as a file that grows: what is there is not written again.

Responses are written in batches of fixed composition, each under a seed of its own, and a finished batch is a line of
an append-only JSON Lines file that is named by a hash of all that decides the responses. So a run that is killed goes
on to the same texts, and one file serves everybody who asks the same. Many processes share the batches, each with a
file of its own. A line holds a hash of its content: half a line, or one that was changed since, is written again.

What fails is tried again, by this call and by every later one; the rest stands.
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

FORMAT = "pro-responses-3"
"""Its number is raised with every change of what a line is."""
TRIES = 3

Place = tuple[int, int]
"""A request, and which of its S responses."""


@dataclass(frozen=True)
class Response:
    """One response. ``text`` is None when generation failed, and ``error`` says why.

    An empty text is no failure: the policy wrote it, and must be told what it is worth. The thought before the answer
    is ``reasoning``, never scored and never learned; one that leaves no answer is a failure. ``finish`` says how the
    answer ended, see :data:`pro_core.generation.base.Finish`.
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
) -> list[list[Response]]:
    """The responses to each request, (N, samples); written now or read from ``folder``. Every process calls it.

    Args:
        load: makes the generator; called when something must be written.
        requests: in the order in which they are written; those of like length side by side spare padding, see
            :func:`by_length`.
        settings: their seed is not used: each batch has one of its own.
        seed_of: (which try, which batch of it, rows of its requests) -> the batch's seed.
        batch_size: responses written side by side, rounded to whole requests. Another size is another draw.
        identity: of the model: responses of another one are not used again.
        on_progress: called with (responses there, all) when something was written.
    """
    todo = [(n, s) for n in range(len(requests)) for s in range(samples)]
    size = max(1, batch_size // samples) * samples
    rank, world = processes().process_index, processes().num_processes

    def batches(places: Sequence[Place], attempt: int) -> list[tuple[Sequence[Place], int]]:
        """The places of each batch, and its seed."""
        parts = [places[i : i + size] for i in range(0, len(places), size)]
        rows = [list(dict.fromkeys(n for n, _ in part)) for part in parts]
        return [(part, seed_of(attempt, c, rows[c])) for c, part in enumerate(parts)]

    first = batches(todo, 0)
    asked = [_content(request) for request in requests]
    how = [samples, size, asdict(replace(settings, seed=None)), [seed for _, seed in first]]
    key = content_hash([FORMAT, WRITING_VERSION, identity, asked, how])[:32]
    folder = Path(folder)
    found = _read(folder, key)
    generator: Generator | None = None
    for attempt in range(TRIES):
        of_attempt = batches(todo, attempt) if attempt else first
        for c, (places, seed) in enumerate(of_attempt):
            there = attempt == 0 and all(place in found for place in places)
            if c % world != rank or there:
                continue
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
            append_jsonl(folder / f"{key}-{rank}.jsonl", _line(seed, read, places, responses))
            if on_progress:
                on_progress(sum(len(part) for part, _ in of_attempt[: c + 1]), len(todo))
        wait_for_all()  # every process has written its batches, or has found them
        found = _read(folder, key)
        wait_for_all()  # no process writes before all have read the same
        todo = [place for place in todo if found[place].error is not None]
        if not todo:
            break
    return [[found[n, s] for s in range(samples)] for n in range(len(requests))]


def by_length(conversations: Sequence[Sequence[Message]]) -> list[int]:
    """Rows of conversations, the shortest first."""
    lengths = [len(render_messages(conversation)) for conversation in conversations]
    return sorted(range(len(conversations)), key=lengths.__getitem__)


def _content(request: Request) -> dict[str, Any]:
    """A request as JSON."""
    beside = {"weights": request.weights, "levels": request.levels}
    given = {name: dict(values) for name, values in beside.items() if values is not None}
    return {"messages": list(request.messages)} | given


def _line(
    seed: int,
    read: dict[int, dict[str, Any]],
    places: Sequence[Place],
    responses: Sequence[Response],
) -> dict[str, Any]:
    """A batch as a line: what was read, by the request's row, and a response for each place."""
    content = {
        "seed": seed,
        "read": {str(n): one for n, one in read.items()},
        "places": [list(place) for place in places],
        "responses": [asdict(response) for response in responses],
    }
    return content | {"hash": content_hash(content)}


def _read(folder: Path, key: str) -> dict[Place, Response]:
    """All responses of the key's files; of two to one place the one that did not fail."""
    found: dict[Place, Response] = {}
    for file in sorted(folder.glob(f"{key}-*.jsonl")):
        for text in file.read_bytes().split(b"\n"):
            try:
                line = json.loads(text)
                sound = line.pop("hash") == content_hash(line)
            except (ValueError, KeyError, AttributeError):
                continue  # half a line, which a kill left
            if not sound:
                continue
            for (n, s), one in zip(line["places"], line["responses"], strict=True):
                response, before = Response(**one), found.get((n, s))
                if before is None or before.error is not None:
                    found[n, s] = response
    return found
