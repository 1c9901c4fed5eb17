"""Responses of a policy to a round's prompts, as files: what is there is not written again.

Responses are written in chunks of fixed composition, each with a seed of its own, and a finished chunk is a file, so a
killed run goes on to the same texts, and many processes share the chunks. What fails is tried again, twice; what fails
then is listed, and the rest goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pro_core.data.objectives import Message
from pro_core.data.schema import read_jsonl, render_messages
from pro_core.generation.base import (
    EMPTY_ANSWER,
    Finish,
    GenerationSettings,
    Generator,
    collect,
)
from pro_core.generation.request import Request
from pro_core.runs.training import ConfigError
from pro_core.system.processes import main_process, processes, wait_for_all
from pro_core.system.storage import content_hash, write_jsonl

TRIES = 3


@dataclass(frozen=True)
class Response:
    """One response: to which prompt (its row), which of the G, its text, and what went wrong if it failed.

    An empty text is no failure: the policy wrote it, and must be told what it is worth. The thought before the answer
    is ``reasoning``, never scored and never learned; one that leaves no answer is a failure. ``finish`` says how the
    answer ended, see :data:`pro_core.generation.base.Finish`.
    """

    prompt: int
    sample: int
    text: str
    error: str | None = None
    reasoning: str = ""
    finish: Finish | None = None


def sample(
    load: Callable[[], Generator],
    conversations: Sequence[Sequence[Message]],
    samples: int,
    settings: GenerationSettings,
    folder: Path,
    batch_size: int,
    identity: str,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Response]:
    """``samples`` responses to each conversation, ordered by prompt and sample; the failed ones with their error.

    Args:
        load: makes the generator; called when something must be written.
        batch_size: responses written side by side, rounded to whole prompts. Another size is another draw.
        identity: of the policy and all that else decides the responses; the seeds follow from it.
        on_progress: called with (responses there, all).

    Raises:
        ConfigError: not one response was written, or all are empty; the next run tries all of them again.
    """
    generator: Generator | None = None
    rank, world = processes().process_index, processes().num_processes
    wanted = [(p, g) for p in range(len(conversations)) for g in range(samples)]
    # Prompts of like length together: less padding.
    by_length = sorted(
        range(len(conversations)), key=lambda p: len(render_messages(conversations[p]))
    )
    todo = [(p, g) for p in by_length for g in range(samples)]
    size = max(1, batch_size // samples) * samples
    found: dict[tuple[int, int], Response] = {}
    for attempt in range(TRIES):
        chunks = [todo[i : i + size] for i in range(0, len(todo), size)]
        files = [folder / f"try{attempt}-{c:05d}.jsonl" for c in range(len(chunks))]
        for c, (chunk, file) in enumerate(zip(chunks, files, strict=True)):
            if c % world != rank or file.is_file():
                continue
            generator = generator or load()
            seed = int(content_hash([identity, attempt, c])[:8], 16) % 2**31
            batch = [Request(conversations[p]) for p, _ in chunk]
            written = collect(generator, batch, replace(settings, seed=seed))
            responses = [
                Response(p, g, w.text, w.error if w.failed else None, w.reasoning, w.finish)
                for (p, g), w in zip(chunk, written, strict=True)
            ]
            write_jsonl(file, map(vars, responses))
            if on_progress:
                on_progress(sum(map(len, chunks[: c + 1])), len(todo))
        wait_for_all()  # every process has written its chunks, or has found them
        for file in files:
            for row in read_jsonl(file):
                response = Response(**row)
                found[response.prompt, response.sample] = response
        todo = [key for key in todo if found[key].error is not None]
        if not todo:
            break
    if not any(response.text for response in found.values() if response.error is None):
        wait_for_all()
        if main_process():  # they hold no text
            for file in folder.glob("try*.jsonl"):
                file.unlink()
        reason = found[todo[0]].error if todo else EMPTY_ANSWER
        raise ConfigError(
            f"not one of {len(wanted)} responses was written: {reason} The next run tries again"
        )
    return [found[key] for key in wanted]


def cut_share(responses: Sequence[Response]) -> float:
    """Of the responses that did not fail, the share that was cut by the token limit or a filter."""
    written = [response for response in responses if response.error is None]
    return sum(r.finish in ("length", "filter") for r in written) / max(1, len(written))


def failures(responses: Sequence[Response]) -> list[dict]:
    """The prompts with failed responses, as lines: ``{"prompt", "failed", "error"}``, the first error of each."""
    failed: dict[int, list[Response]] = {}
    for response in responses:
        if response.error is not None:
            failed.setdefault(response.prompt, []).append(response)
    return [
        {"prompt": prompt, "failed": len(mine), "error": mine[0].error}
        for prompt, mine in failed.items()
    ]
