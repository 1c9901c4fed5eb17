"""Policies as the evaluation kit sees them, and their responses as files.

A policy answers prompts under weights. Where the weights enter is the policy's affair, and there are three places:
which model writes (Rewarded Soups interpolates its parameters), what that model reads (PRO-WIC's weights, RiC's
scores, MOSLIM's levels), and which of several candidates is taken (best-of-N). :class:`Policy` asks for the first two;
the kit does the third with the panel that the policy is measured by.

Responses are written in batches of fixed composition, and a batch is a file named by a hash of all that decides it: the
model's identity, the messages, the settings and the seed. It holds a hash of its answers, too: a file that was changed
since is written again. What is there is not written again: a killed run goes on where it stopped, to the same texts,
more weightings or seeds reuse what is there, and a policy that does not look at its weights answers once for all of
them. The random numbers depend on the seed and the prompts alone, so that two policies, or one under two weights, are
compared under the same draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pro_core.data.objectives import Prompt
from pro_core.data.schema import render_messages, to_messages
from pro_core.generation.base import (
    Finish,
    GenerationSettings,
    Generator,
    Written,
    collect,
)
from pro_core.generation.request import Request
from pro_core.generation.sampling import WRITING_VERSION
from pro_core.system.storage import StorageError, content_hash, read_config, write_config

Array = NDArray[np.float32]
FORMAT = "pro-responses-2"
"""Its number is raised with every change of what an answer is: 2 tells the thought from the answer."""


class Policy(Protocol):
    """What the kit asks of a policy; weights are (K,), in the objectives' order.

    Attributes:
        name: as the results call it, such as ``PRO-WIC online``.
        candidates: how many answers are written for a prompt; of several the panel's weighted sum picks the best.
    """

    name: str
    candidates: int

    def identity(self, weights: Array) -> str:
        """Tells one writing model from another: responses of another identity are not used again."""
        ...

    def generator(self, weights: Array) -> Generator:
        """Who writes under these weights; asked for only when something must be written."""
        ...

    def request(self, prompt: Prompt, weights: Array) -> Request:
        """What the writer reads (:meth:`pro_core.generation.request.Request.read_by`): under two weights that it does
        not tell apart, the same."""
        ...


@dataclass
class GeneratorPolicy:
    """One generator for all weights, which stand in the prompt, in the choice among candidates, in both or nowhere.

    Args:
        load: makes the generator; it knows what its model reads of the weights.
        source: its identity, such as a hash of the model's files.
        objective_names: those of the weights.
    """

    name: str
    load: Callable[[], Generator]
    source: str
    objective_names: Sequence[str]
    candidates: int = 1

    def identity(self, weights: Array) -> str:
        return self.source

    def generator(self, weights: Array) -> Generator:
        return self.load()

    def request(self, prompt: Prompt, weights: Array) -> Request:
        asked = Request.weighted(to_messages(prompt), weights, self.objective_names)
        return asked.read_by(self.load().policy)


@dataclass(frozen=True)
class Answer:
    """One candidate. ``text`` is None when generation failed, and ``error`` says why; an empty answer is no failure.

    ``reasoning`` is the thought before it, which nobody scores. ``finish`` says how it ended, see
    :data:`pro_core.generation.base.Finish`.
    """

    text: str | None
    error: str | None = None
    reasoning: str = ""
    finish: Finish | None = None


def respond(
    policy: Policy,
    prompts: Sequence[Prompt],
    weights_PK: ArrayLike,
    settings: GenerationSettings,
    seed: int,
    folder: str | Path,
    batch_size: int = 16,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[list[Answer]]:
    """The policy's candidates for each prompt under its weights, (P, candidates); written now or read from ``folder``.

    What fails is tried again, by this call and by every later one; the rest stands.

    Args:
        weights_PK: a row a prompt, or one (K,) for all.
        settings: its seed is not used: each batch has one of its own, from ``seed`` and the batch's prompts.
        batch_size: answers written side by side. Another size is another draw.
        on_progress: called with (prompts answered, all) when something was written.
    """
    P, n = len(prompts), policy.candidates
    rows = np.asarray(weights_PK, dtype=np.float32)
    rows = np.broadcast_to(rows, (P, rows.shape[-1]))
    by_writer: dict[str, list[int]] = {}
    # Prompts of about one length stand side by side: little is read that is only padding.
    for p in sorted(range(P), key=lambda p: (len(render_messages(to_messages(prompts[p]))), p)):
        by_writer.setdefault(policy.identity(rows[p]), []).append(p)
    step = max(1, batch_size // n)
    answers: list[list[Answer]] = [[] for _ in prompts]
    done = 0
    for identity, indices in by_writer.items():
        for start in range(0, len(indices), step):
            batch = indices[start : start + step]
            plain = [to_messages(prompts[p]) for p in batch]
            drawn = replace(settings, seed=_number([seed, plain]))
            asked = [policy.request(prompts[p], rows[p]) for p in batch]
            read = [_content(request) for request in asked]
            key = content_hash([FORMAT, WRITING_VERSION, identity, read, n, asdict(drawn)])
            file = Path(folder) / f"{key[:32]}.json"
            known = file.is_file()
            written = _batch(policy, rows[batch[0]], asked, drawn, file)
            for p, mine in zip(batch, written, strict=True):
                answers[p] = [_answer(one) for one in mine]
            done += len(batch)
            if on_progress and not known:
                on_progress(done, P)
    return answers


def _batch(
    policy: Policy,
    weights: Array,
    asked: list[Request],
    settings: GenerationSettings,
    file: Path,
) -> list[list[Written]]:
    """The batch's file, completed: (prompts, candidates)."""
    n, tries = policy.candidates, 2
    whole: list[Written | None] = [None] * (len(asked) * n)
    with suppress(StorageError):  # not there yet, or spoilt from outside: it is written now
        found = read_config(file.parent, file.name, FORMAT)
        if found.get("answers_hash") == content_hash(found.get("answers")):
            whole = [Written(**one) for mine in found["answers"] for one in mine]
    for _ in range(tries):
        todo = [i for i, one in enumerate(whole) if one is None or one.failed]
        if not todo:
            break
        fresh = collect(policy.generator(weights), [asked[i // n] for i in todo], settings)
        for i, one in zip(todo, fresh, strict=True):
            whole[i] = one
        held = [[asdict(one) for one in whole[p * n : p * n + n] if one] for p in range(len(asked))]
        content: dict[str, Any] = {
            "format": FORMAT,
            "policy": policy.name,
            "messages": [_content(request) for request in asked],
        }
        content |= {"settings": asdict(settings), "answers": held}
        write_config(file.parent, file.name, content | {"answers_hash": content_hash(held)})
    kept = [one for one in whole if one is not None]
    return [kept[p * n : p * n + n] for p in range(len(asked))]


def _content(request: Request) -> Any:
    """A request as JSON: its messages, and with a soup's weights beside them where it has some."""
    messages = list(request.messages)
    return (
        messages if request.weights is None else {"messages": messages, "weights": request.weights}
    )


def _answer(written: Written) -> Answer:
    text, error = (None, written.error) if written.failed else (written.text, None)
    return Answer(text, error, written.reasoning, written.finish)


def _number(content: Any) -> int:
    """A seed for :class:`GenerationSettings`."""
    return int(content_hash(content)[:8], 16) % 2**31


def best_answer(z_NK: ArrayLike, weights: ArrayLike) -> int | None:
    """Which of N candidates best-of-N takes: the largest weighted sum of the scores (N, K); the first of equal ones.

    None where no candidate has all its scores: a NaN is no score.
    """
    totals = (np.asarray(z_NK, dtype=np.float64) * np.asarray(weights)).sum(axis=1)
    finite = np.isfinite(totals)
    return int(np.argmax(np.where(finite, totals, -np.inf))) if finite.any() else None
