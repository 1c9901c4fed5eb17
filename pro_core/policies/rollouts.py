"""Responses of a policy to the prompts of an online round (:mod:`pro_core.generation.responses`)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pro_core.data.objectives import Message
from pro_core.generation.base import EMPTY_ANSWER, Finish, GenerationSettings, Generator
from pro_core.generation.request import Request
from pro_core.generation.responses import by_length, write_responses
from pro_core.runs.recipes import ConfigError
from pro_core.system.processes import main_process, wait_for_all
from pro_core.system.storage import content_hash


@dataclass(frozen=True)
class Rollout:
    """Response number ``sample`` of G to the prompt in row ``prompt``; the rest as in
    :class:`pro_core.generation.responses.Response`."""

    prompt: int
    sample: int
    text: str | None
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
) -> list[Rollout]:
    """``samples`` responses to each conversation, ordered by prompt and sample; the failed ones with their error.

    Args:
        load: makes the generator; called when something must be written.
        folder: keeps the responses until the round is done.
        batch_size: responses written side by side, rounded to whole prompts. Another size draws other responses.
        identity: of the policy and everything else that decides the responses; the seeds follow from it.
        on_progress: called with (responses written, all).

    Raises:
        ConfigError: not one response was written, or all are empty; the next run tries all of them again.
    """
    order = by_length(conversations)
    responses = write_responses(
        load,
        [Request(conversations[p]) for p in order],
        samples,
        settings,
        lambda attempt, batch, _: int(content_hash([identity, attempt, batch])[:8], 16) % 2**31,
        folder,
        batch_size,
        identity,
        on_progress,
    )
    of_prompt = dict(zip(order, responses, strict=True))
    rollouts = [
        Rollout(p, g, **vars(response))
        for p in range(len(conversations))
        for g, response in enumerate(of_prompt[p])
    ]
    if not any(rollout.text for rollout in rollouts):
        wait_for_all()
        if main_process():  # nothing there is worth keeping
            shutil.rmtree(folder, ignore_errors=True)
        reason = next((r.error for r in rollouts if r.error is not None), EMPTY_ANSWER)
        raise ConfigError(
            f"not one of {len(rollouts)} responses was written: {reason} The next run tries again"
        )
    return rollouts


def cut_share(rollouts: Sequence[Rollout]) -> float:
    """The share of responses cut by the token limit or a filter, among those that did not fail."""
    written = [rollout for rollout in rollouts if rollout.error is None]
    return sum(r.finish in ("length", "filter") for r in written) / max(1, len(written))


def failures(rollouts: Sequence[Rollout]) -> list[dict[str, Any]]:
    """The prompts with failed responses, as lines: ``{"prompt", "failed", "error"}``, the first error of each."""
    failed: dict[int, list[Rollout]] = {}
    for rollout in rollouts:
        if rollout.error is not None:
            failed.setdefault(rollout.prompt, []).append(rollout)
    return [
        {"prompt": prompt, "failed": len(of_prompt), "error": of_prompt[0].error}
        for prompt, of_prompt in failed.items()
    ]
