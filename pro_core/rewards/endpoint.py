"""Reward models behind a URL: scores, and the self-test that they are rewards.

How each kind of server is asked is in :mod:`pro_core.rewards.dialects`; everything about HTTP (retries, time-outs, the
token, sentences for faults) in :mod:`pro_core.http`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pro_core.data.objectives import Message
from pro_core.data.turns import alternating
from pro_core.generation.base import run_sync
from pro_core.http import Client, Explainer, Failure, Patience, Session, Settings, persist
from pro_core.rewards.dialects import DIALECTS, Row, Vllm
from pro_core.rewards.formats import fill, render, scored_text, template_of, view_of
from pro_core.rewards.specs import REWARD_TOKEN, RewardModelSpec
from pro_core.system.storage import StorageError

Array = NDArray[np.float32]
Progress = Callable[[int], None]

REFUSED = (400, 413, 422)
"""Statuses of a request that the server does not take: a batch is halved, and a text alone has no score."""
MOST_OUTPUTS = 128
"""More numbers for one text are an embedding."""
_MARK = re.compile(r"<\|[^<>|]{1,40}\|>|</?s>|\[/?INST\]|<(?:bos|eos|start_of_turn|end_of_turn)>")
"""Marks of chat templates. Which of them the server's tokenizer has cannot be seen from here."""


class HostedModel:
    """A reward model behind a URL; see :class:`pro_core.rewards.scorers.Scorer`.

    Args:
        spec: its endpoint, dialect, model, input format, maximum length, concurrency and time-out count.

    Raises:
        ValueError: an invalid address or token. StorageError: an input format that the server cannot be sent.
        Failure: the server is not there.
    """

    def __init__(
        self,
        spec: RewardModelSpec,
        patience: Patience | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ):
        self.spec = spec
        token = spec.token or REWARD_TOKEN
        settings = Settings("endpoint", token, "endpoint and dialect", "model")
        self.client = Client(spec.endpoint, spec.token_value(), spec.timeout, settings)
        self.dialect = DIALECTS[spec.dialect](self.client, spec)
        if "{bos}" in spec.input_format:
            raise StorageError(
                "the input format has {bos}, which the server's tokenizer adds: leave it out"
            )
        self.dialect.check_format()
        self._patience, self._sleep = patience or Patience(), sleep
        self.outputs = 0
        self.served = self.dialect.look(self.client)

    @property
    def name(self) -> str:
        return f"{self.served.name or 'the model'} at {self.client.host}"

    @property
    def identity(self) -> str:
        return self.served.name

    def score(
        self,
        conversations: Sequence[Sequence[Message]],
        completions: Sequence[str],
        on_progress: Progress | None = None,
        activated: bool = False,
        together: bool = True,
    ) -> Array:
        """The outputs (N, K) for N completions; NaN for a text that the server refuses, such as one that is too long.

        Args:
            on_progress: called with the number of texts finished.
            activated: with the model's activation function. together: several texts in a request, where possible.

        Raises:
            Failure: the server failed, or refuses every text.
        """
        rows = [self._row(c, t) for c, t in zip(conversations, completions, strict=True)]
        size = self.served.most if together else 1
        return run_sync(self._score(rows, size, activated, on_progress))

    def _row(self, conversation: Sequence[Message], completion: str) -> Row:
        """Marks of chat templates inside a text are broken by a blank, so that no answer ends its own turn."""
        answer = _unmarked(scored_text(completion))
        if self.spec.input_format == "chat":
            turns = [
                {"role": m["role"], "content": _unmarked(m["content"])}
                for m in conversation
                if m["role"] != "system"
            ]
            return [*turns, {"role": "assistant", "content": answer}]
        template = template_of(self.spec.input_format)
        prompt = _unmarked(render(conversation, view_of(template)))
        first, second = fill(template, prompt, answer.strip(), None)
        return (first,) if second is None else (first, second)

    async def _score(
        self, rows: Sequence[Row], size: int, activated: bool, on_progress: Progress | None
    ) -> Array:
        starts = list(range(0, len(rows), size))[::-1]
        scores: dict[int, Array] = {}
        refused: list[Failure] = []
        done = 0

        async def work(session: Session) -> None:
            nonlocal done
            while starts:
                start = starts.pop()
                some = rows[start : start + size]
                scores[start] = await self._ask(session, some, activated, refused)
                done += len(some)
                if on_progress:
                    on_progress(done)

        async with self.client.session() as session:
            count = min(self.spec.concurrency, len(starts))
            workers = [asyncio.create_task(work(session)) for _ in range(count)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        if refused and len(refused) == len(rows):
            raise refused[0]
        width = max(self.outputs, *(part.shape[1] for part in scores.values()))
        parts = [scores[start] for start in sorted(scores)]
        return np.concatenate([_wide(part, width) for part in parts]).astype(np.float32)

    async def _ask(
        self, session: Session, rows: Sequence[Row], activated: bool, refused: list[Failure]
    ) -> Array:
        """The outputs of some rows, asked once more in halves if the server refuses them together."""

        async def post() -> Array:
            body = self.dialect.body(rows, activated)
            try:
                async with asyncio.timeout(session.timeout):
                    path = self.dialect.base + self.dialect.route
                    async with session.post(path, body) as reply:
                        data = await reply.json()
            except TimeoutError:
                raise session.explain.silent() from None
            return self._read(session.explain, data, len(rows))

        try:
            return await persist(post, self._patience, self._sleep, lambda failure, waited: None)
        except Failure as failure:
            if failure.status not in REFUSED:
                raise
            if len(rows) > 1:
                half = len(rows) // 2
                parts = [
                    await self._ask(session, some, activated, refused)
                    for some in (rows[:half], rows[half:])
                ]
                width = max(part.shape[1] for part in parts)
                return np.concatenate([_wide(part, width) for part in parts])
            row = rows[0]
            if isinstance(row, list) and (plain := alternating(row)) != row:
                # As for a model in this process: a template that refuses the turns as they are gets them in turn.
                return await self._ask(session, [plain], activated, refused)
            refused.append(failure)
            return np.full((1, max(self.outputs, 1)), np.nan, np.float32)

    def _read(self, explain: Explainer, data: Any, count: int) -> Array:
        try:
            values = np.array(self.dialect.read(data), dtype=np.float32)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise explain.no_answer("JSON that is no scores", data) from None
        if values.ndim != 2 or len(values) != count:
            raise explain.no_answer(f"scores of {len(values)} texts where {count} were asked for")
        if self.outputs and values.shape[1] != self.outputs:
            raise explain.no_answer(
                f"{values.shape[1]} scores for a text where {self.outputs} were expected"
            )
        return values

    # ------------------------------------------------------------ the self-test

    def check(self, conversations: Sequence[list[Message]], completions: Sequence[str]) -> Array:
        """Prove on P known texts that the server's outputs are rewards, and return them, (P, K).

        Alone and together in another order, texts score the same; the outputs are not one number for all; no sigmoid
        or softmax is on them; the text does not begin twice.

        Raises:
            StorageError: what is wrong, and what to do. Failure: the server failed.
        """
        alone = self.score(conversations, completions, together=False)
        self.outputs = alone.shape[1]
        if self.outputs > MOST_OUTPUTS:
            raise StorageError(
                f"{self.name} gives {self.outputs:,} numbers for a text, as an embedding model does, not a reward model"
            )
        if self.spec.outputs is not None and self.outputs != self.spec.outputs:
            raise StorageError(
                f"{self.name} gives {self.outputs} outputs for a text, but `outputs` of the spec is {self.spec.outputs}"
            )
        if not np.isfinite(alone).all():
            raise StorageError(f"{self.name} gives no finite scores for plain short texts")
        flipped = self.score(conversations[::-1], completions[::-1])[::-1]
        if not close(alone, flipped):
            raise StorageError(
                f"{self.name} scores a text in another way beside other texts, or in another order than they were sent"
            )
        if (np.ptp(alone, axis=0) <= 1e-6 * (1 + np.abs(alone).max(axis=0))).all():
            raise StorageError(
                f"{self.name} gives every text the same score ({alone[0, 0]:g}): it is saturated, or "
                "has a softmax over one output"
            )
        self._check_activation(conversations, completions, alone)
        if isinstance(self.dialect, Vllm):
            row = self._row(conversations[0], completions[0])
            tokens = self.dialect.tokens(self.client, row)
            if len(tokens) == 2 and tokens[0] == tokens[1]:
                raise StorageError(
                    f"{self.name} reads its first token ({tokens[0]}) twice: leave it out of the input format, since "
                    "the server's tokenizer adds it"
                )
        return alone

    def _check_activation(
        self, conversations: Sequence[list[Message]], completions: Sequence[str], raw: Array
    ) -> None:
        probabilities = bool(((raw >= 0) & (raw <= 1)).all())
        if not probabilities:
            return
        if self.dialect.flagged:
            # If asking for the activation changes the numbers, leaving it out is understood.
            activated = self.score(conversations, completions, activated=True)
            if not np.allclose(activated, raw, atol=1e-3):
                return
            what = "with and without its activation function alike"
        else:
            sums = raw.shape[1] > 1 and np.allclose(raw.sum(axis=1), 1, atol=1e-3)
            what = "summing to 1 for each text" if sums else "for every text"
        raise StorageError(
            f"{self.name} gives numbers from 0 to 1, {what}: a sigmoid or softmax is on them, which flattens rewards "
            "and ties objectives to one another. Serve the raw outputs (vLLM: --pooler-config "
            "'{\"use_activation\": false}')"
        )


def close(one: Array, other: Array) -> bool:
    """Whether two measurements (P, K) of the same texts agree, but for the rounding of another batch or machine.

    Within a tenth of a deviation between the texts, and a hundredth of the largest number. What is missing in one is
    missing in the other.
    """
    a, b = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if a.shape != b.shape or (np.isnan(a) != np.isnan(b)).any():
        return False
    if np.isnan(a).all():
        return True
    room = 0.1 * np.nanstd(a, axis=0) + 0.01 * np.nanmax(np.abs(a), axis=0) + 1e-4
    return bool((np.isnan(a) | (np.abs(a - b) <= room)).all())


def _wide(part: Array, width: int) -> Array:
    """Rows of a refused text have one NaN, as long as nobody knows how many outputs there are."""
    return part if part.shape[1] == width else np.full((len(part), width), np.nan, np.float32)


def _unmarked(text: str) -> str:
    return _MARK.sub(lambda mark: f"{mark[0][0]} {mark[0][1:]}", text)
