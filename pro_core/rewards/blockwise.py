"""Blockwise best-of-N: weights that steer any model while it writes.

Every B tokens, N continuations are written, each candidate (the answer so far and its continuation) is scored by the
panel, and the one with the best weighted sum sum_k w_k z_k goes on. With B at least the length of the answer, this is
best-of-N. Reward models judge the beginning of an answer as if it were all of it.

It works with a model in this process and at every server that continues an answer: vLLM and SGLang
(:mod:`pro_core.generation.continuing`), and TGI in its own dialect.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pro_core.generation.base import (
    GenerationSettings,
    Generator,
    Piece,
    StreamingGenerator,
    Written,
)
from pro_core.generation.request import Request, RequestError
from pro_core.prompting.policy_config import PolicyConfig
from pro_core.rewards.best_of_n import Array, candidate_of, rank
from pro_core.system.storage import first_line

logger = logging.getLogger(__name__)

SHIFT = 104_729
"""Between the seeds of two blocks: a prime, so that none meets the seed of another candidate."""


@dataclass
class _Answer:
    """An answer on its way: what it is for, and its text so far. ``index``: its place among all that were asked."""

    index: int
    request: Request
    weights: Array
    text: str = ""
    notes: list[str] = field(default_factory=list)


class BlockwiseGenerator(StreamingGenerator):
    """A generator that writes with another one, block by block, and chooses under the weights of each request.

    A policy that reads weights reads them, too. Each block reads the prompt and the answer so far once more. The text
    comes block by block.

    Args:
        generator: where the continuations come from.
        panel: a RewardPanel.
        n: continuations of each block, at least 2.
        block: tokens in a block, at least 1.

    Raises:
        ValueError: n below 2, where nothing is chosen, or an empty block.
    """

    def __init__(self, generator: Generator, panel: Any, n: int = 4, block: int = 16):
        if n < 2:
            raise ValueError(f"got n={n}, expected at least 2: of one there is nothing to choose")
        if block < 1:
            raise ValueError(f"got block={block}, expected at least 1 token")
        self.generator, self.panel, self.n, self.block = generator, panel, n, block

    @property
    def name(self) -> str:
        """See :class:`~pro_core.generation.base.Generator`."""
        return f"{self.generator.name}, best of {self.n} every {self.block} tokens"

    @property
    def policy(self) -> PolicyConfig | None:
        """See :class:`~pro_core.generation.base.Generator`."""
        return self.generator.policy

    def status(self) -> dict[str, Any]:
        """See :class:`~pro_core.generation.base.Generator`."""
        return self.generator.status() | {"name": self.name}

    async def stream_batch(
        self, batch: Sequence[Request], settings: GenerationSettings | None = None
    ) -> AsyncGenerator[Piece, None]:
        """See :class:`~pro_core.generation.base.Generator`. Each request needs weights of the panel's objectives."""
        settings = settings or GenerationSettings()
        going: list[_Answer] = []
        for index, request in enumerate(batch):
            try:
                weights = self._weights(request)
            except RequestError as error:
                yield Piece(index, error=error.message, done=True)
                continue
            going.append(_Answer(index, request, weights, request.begun))
        for number, size in enumerate(self._sizes(settings.max_new_tokens)):
            if not going:
                return
            seed = settings.seed
            step = replace(
                settings,
                max_new_tokens=size,
                seed=None if seed is None else (seed + SHIFT * number) % 2**31,
            )
            last = (number + 1) * self.block >= settings.max_new_tokens
            written = await self._continued(going, step, settings.max_new_tokens)
            still: list[_Answer] = []
            for place, answer in enumerate(going):
                its = written[place * self.n : (place + 1) * self.n]
                try:
                    piece = await asyncio.to_thread(self._chosen, answer, its, last)
                except Exception as error:  # such as a reward model's server that went away
                    logger.exception("scoring continuations failed")
                    message = f"The answer could not be scored ({first_line(error)})."
                    piece = Piece(answer.index, error=message, done=True)
                for note in its[0].notes:
                    if note not in answer.notes:
                        answer.notes.append(note)
                        yield Piece(answer.index, note=note)
                answer.text += piece.text
                yield piece
                if not piece.done:
                    still.append(answer)
            going = still

    def _sizes(self, tokens: int) -> list[int]:
        """The tokens of each block."""
        return [min(self.block, tokens - start) for start in range(0, tokens, self.block)]

    def _weights(self, request: Request) -> Array:
        """The weights (K,) of the panel's objectives. Raises RequestError."""
        names = list(self.panel.objective_names)
        if request.weights is None or set(request.weights) - set(names):
            got = "none" if request.weights is None else list(request.weights)
            raise RequestError(
                f"Candidates are chosen by weights of {names}: got {got}, expected weights of some of these."
            )
        return np.array([request.weights.get(name, 0.0) for name in names], dtype=np.float32)

    async def _continued(
        self, going: Sequence[_Answer], settings: GenerationSettings, tokens: int
    ) -> list[Written]:
        """N continuations of each answer, one answer after the other.

        ``tokens``: of the whole answer. What an answer draws does not depend on which others have ended.
        """
        asked = [
            replace(
                answer.request,
                begun=answer.text,
                answer_tokens=tokens,
                candidate=answer.index * self.n + i,
            )
            for answer in going
            for i in range(self.n)
        ]
        written = [Written() for _ in asked]
        async with aclosing(self.generator.stream_batch(asked, settings)) as pieces:
            async for piece in pieces:
                written[piece.index].add(piece)
        return written

    def _chosen(self, answer: _Answer, written: Sequence[Written], last: bool) -> Piece:
        """What the best continuation adds; ``done`` where it ends the answer, or all have failed."""
        candidates = [candidate_of(one) for one in written]
        for candidate in candidates:
            candidate.text = answer.text + candidate.text
            if candidate.reasoning:  # its tokens may have ended within the thought
                candidate.error = "A model that thinks first is not steered block by block."
        best = rank(
            self.panel, answer.request.messages, candidates, answer.weights, "the request"
        ).best
        chosen = written[next(i for i, one in enumerate(candidates) if one is best)]
        done = last or best.error is not None or best.finish != "length"
        return Piece(
            answer.index,
            best.text[len(answer.text) :],
            error=best.error,
            done=done,
            finish=best.finish if done else None,
            empty=chosen.empty,
        )
