"""Generation in this process: N candidates in one batch of a transformers model, streamed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from pro_core.data.objectives import Message
from pro_core.data.turns import THOUGHTS, opened_thought, special_marks
from pro_core.generation.answers import AnswerPieces
from pro_core.generation.base import (
    Finish,
    GenerationError,
    GenerationSettings,
    Piece,
    StreamingGenerator,
    checked,
)
from pro_core.generation.chat import PLAIN_STOP, IncrementalText, StopText, fit, has_template
from pro_core.generation.mixing import Mixer, weights_of
from pro_core.generation.sampling import sampler
from pro_core.prompting.policy_config import PolicyConfig, load_language_model
from pro_core.system.bundled_models import SMOLLM2
from pro_core.system.storage import StorageError, first_line

logger = logging.getLogger(__name__)

Emit = Callable[[Sequence[Piece]], None]

MAX_CONTEXT = 4096
"""Tokens of prompt and answer together, where the model allows more: beyond it a CPU takes minutes."""


class LocalGenerator(StreamingGenerator):
    """A language model in this process, loaded at first use: a stock one, or a policy that reads its weights.

    One batch runs at a time; others wait their turn in the order they came. Sampling draws from
    random generators of its own, one a candidate, so neither the global random state nor another
    thread changes a seeded result.

    Args:
        path_or_id: a model folder or hub id; :data:`~pro_core.system.bundled_models.SMOLLM2` comes from its package.
        device: such as "cpu" or "cuda:1"; by default the first GPU, else the CPU.
        max_context: prompt and answer together hold at most this many tokens, and at most what the
            model was made for. Older turns of a longer conversation are left out, and a piece's
            ``note`` says so.
    """

    def __init__(
        self,
        path_or_id: str | os.PathLike[str] = SMOLLM2,
        *,
        device: str | None = None,
        max_context: int = MAX_CONTEXT,
    ):
        self.path_or_id = os.fspath(path_or_id)
        self.short_name = _short_name(self.path_or_id)
        self.name = f"{self.short_name}, in this process"
        # A hub id as it is; where a folder lies on this machine is no visitor's business.
        self._shown = self.short_name if os.path.isabs(self.path_or_id) else self.path_or_id
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.max_context = max_context
        self._loading = threading.Lock()
        self._loaded: tuple[Any, Any] | None = None
        self._failure: str | None = None
        self._mixer: Mixer | None = None
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pro-generate")

    def __repr__(self) -> str:
        return f"LocalGenerator({self.path_or_id!r}, device={self.device!r})"

    def load(self) -> None:
        """Load the model now; returns at once when it is there. Safe to call from any thread.

        Raises:
            GenerationError: it cannot be loaded. The next call tries again.
        """
        with self._loading:
            if self._loaded is not None:
                return
            try:
                self._loaded = self._read()
                self._failure = None
            except Exception as error:
                logger.warning("cannot load %s", self.path_or_id, exc_info=True)
                self._failure = (
                    f"The model {self._shown!r} cannot be loaded ({first_line(error)}); "
                    "PRO_POLICY must name a model folder or a model on the hub."
                )
                raise GenerationError(self._failure) from error

    def _read(self) -> tuple[Any, Any]:
        model, tokenizer, self._policy = load_language_model(self.path_or_id, dtype=torch.bfloat16)
        model.to(self.device)
        ranks = self._policy.ranks if self._policy else None
        self._mixer = Mixer(model, ranks) if ranks else None
        return model.eval(), tokenizer

    @property
    def policy(self) -> PolicyConfig | None:
        """See :class:`~pro_core.generation.base.Generator`. Of a hub id only its files say it: this loads the model."""
        if self._loaded is None and self.path_or_id != SMOLLM2:
            # What cannot be read or loaded is said when it is asked to write.
            with contextlib.suppress(GenerationError, StorageError):
                if os.path.isdir(self.path_or_id):
                    return PolicyConfig.read(self.path_or_id)
                self.load()
        return self._policy

    def status(self) -> dict[str, Any]:
        """See :class:`~pro_core.generation.base.Generator`; never loads anything."""
        if self._loaded is not None:
            state, detail = "ready", f"{self._shown} on {self.device}"
        elif self._failure is not None:
            state, detail = "unreachable", self._failure
        else:
            state, detail = "loading", f"{self._shown} is loading, or loads at the first answer"
        return {
            "name": self.name,
            "kind": "local",
            "state": state,
            "reachable": state != "unreachable",
            "detail": detail,
        }

    async def stream_batch(
        self, batch: Sequence[Sequence[Message]], settings: GenerationSettings | None = None
    ) -> AsyncGenerator[Piece, None]:
        """See :class:`~pro_core.generation.base.Generator`."""
        loop = asyncio.get_running_loop()
        news: asyncio.Queue[Sequence[Piece] | None] = asyncio.Queue()
        stop = threading.Event()

        def post(pieces: Sequence[Piece] | None) -> None:
            try:
                loop.call_soon_threadsafe(news.put_nowait, pieces)
            except RuntimeError:  # the loop is closed: nobody listens any more
                stop.set()

        def work() -> None:
            try:
                if not stop.is_set():
                    self._run(batch, settings or GenerationSettings(), post, stop)
            finally:
                post(None)

        future = self._worker.submit(work)
        try:
            while (pieces := await news.get()) is not None:
                for piece in pieces:
                    yield piece
        finally:
            stop.set()  # the model stops after the token at hand
            future.cancel()  # and does not start if it had not

    def _run(
        self,
        batch: Sequence[Sequence[Message]],
        settings: GenerationSettings,
        emit: Emit,
        stop: threading.Event,
    ) -> None:
        """Generate for the batch in this thread, handing out pieces; every failure becomes a piece."""
        open_rows = set(range(len(batch)))

        def tracked(pieces: Sequence[Piece]) -> None:
            open_rows.difference_update(piece.index for piece in pieces if piece.done)
            emit(pieces)

        try:
            self.load()
            self._generate(batch, settings, tracked, stop)
        except GenerationError as error:
            emit([Piece(index, error=error.message, done=True) for index in sorted(open_rows)])
        except torch.OutOfMemoryError:
            message = "The model ran out of memory; ask for fewer candidates or a shorter answer."
            emit([Piece(index, error=message, done=True) for index in sorted(open_rows)])
        except Exception as error:
            logger.exception("generation failed")
            message = f"The model failed ({first_line(error)})."
            emit([Piece(index, error=message, done=True) for index in sorted(open_rows)])

    def _generate(
        self,
        batch: Sequence[Sequence[Message]],
        settings: GenerationSettings,
        emit: Emit,
        stop: threading.Event,
    ) -> None:
        assert self._loaded is not None
        model, tokenizer = self._loaded
        mixer = self._mixer
        weights: list[list[float]] = []
        rows: dict[int, list[int]] = {}
        room = self._context() - settings.max_new_tokens
        if room < 1:
            raise GenerationError(
                f"An answer of {settings.max_new_tokens:,} tokens does not fit: {self.short_name} "
                f"holds {self._context():,} here, prompt and answer together. Ask for a shorter one."
            )
        for index, messages in enumerate(batch):
            try:
                asked = weights_of(messages, mixer.ranks) if mixer else []
                rows[index], dropped = fit(tokenizer, checked(messages), room)
                weights.append(asked)
            except GenerationError as error:
                emit([Piece(index, error=error.message, done=True)])
                continue
            if dropped:
                turns = "turn was" if dropped == 1 else f"{dropped} turns were"
                emit([Piece(index, note=f"The oldest {turns} left out: the chat is too long.")])
        if not rows:
            return
        padded = tokenizer.pad({"input_ids": list(rows.values())}, return_tensors="pt").to(
            self.device
        )
        streamer = _BatchStreamer(
            list(rows), tokenizer, end_tokens(model, tokenizer), settings.max_new_tokens, emit
        )
        G = _repeats(list(zip(rows.values(), weights, strict=True)))
        mixed = mixer.mixed if mixer else contextlib.nullcontext
        with torch.inference_mode():
            with mixed(weights[::G]):
                cache = _shared_prefix(model, padded, G)
            with mixed(weights):
                model.generate(
                    **padded,
                    past_key_values=cache,
                    generation_config=GenerationConfig(
                        max_new_tokens=settings.max_new_tokens,
                        do_sample=False,  # the sampler is ours, for its random generators' sake
                        pad_token_id=tokenizer.pad_token_id,
                        eos_token_id=sorted(streamer.ends),
                    ),
                    logits_processor=sampler(settings, list(rows), self.device),
                    stopping_criteria=StoppingCriteriaList([_Stop(stop, streamer)]),
                    streamer=streamer,
                )

    def _context(self) -> int:
        assert self._loaded is not None
        model, tokenizer = self._loaded
        limits = (
            self.max_context,
            tokenizer.model_max_length,
            getattr(model.config, "max_position_embeddings", None),
        )
        return min(limit for limit in limits if limit)


class _BatchStreamer(BaseStreamer):
    """Turns each step's tokens (N,) into pieces of text, one stream a candidate."""

    def __init__(
        self,
        candidates: Sequence[int],
        tokenizer: Any,
        ends: set[int],
        max_new_tokens: int,
        emit: Emit,
    ):
        self.candidates = candidates
        self.ends = ends
        self.done = [False] * len(candidates)
        self._emit = emit
        self._texts = [IncrementalText(tokenizer) for _ in candidates]
        stop = None if has_template(tokenizer) else PLAIN_STOP
        self._stops = [StopText(stop) for _ in candidates]
        self._answers = [AnswerPieces(index, max_new_tokens) for index in candidates]
        opened = opened_thought(tokenizer)
        for answer in self._answers:
            answer.open(opened)
        # Where a thought's tags are special tokens, no decoded text has them.
        tags = {tag for pair in THOUGHTS for tag in pair} & set(special_marks(tokenizer))
        self._tags = {tokenizer.convert_tokens_to_ids(tag): tag for tag in tags}
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt_seen:  # transformers hands over the prompt (N, L) first
            self._prompt_seen = True
            return
        pieces: list[Piece] = []
        for row, token in enumerate(value.tolist()):
            if self.done[row]:
                continue
            if token in self.ends:
                pieces += self._last(row, "stop")
                continue
            text = self._texts[row].push(token)
            text += self._tags.get(token, "")
            pieces += self._answers[row].push(self._stops[row].push(text))
            if self._stops[row].reached:
                pieces += self._last(row, "stop")
        if pieces:
            self._emit(pieces)

    def end(self) -> None:
        open_rows = [row for row, done in enumerate(self.done) if not done]
        self._emit([piece for row in open_rows for piece in self._last(row, "length")])

    def _last(self, row: int, finish: Finish) -> list[Piece]:
        self.done[row] = True
        text = self._stops[row].push(self._texts[row].flush()) + self._stops[row].flush()
        return [*self._answers[row].push(text), *self._answers[row].end(finish)]


class _Stop(StoppingCriteria):
    """Ends the whole batch when asked to, and a candidate whose text reached its stop."""

    def __init__(self, stop: threading.Event, streamer: _BatchStreamer):
        self._stop = stop
        self._streamer = streamer

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if self._stop.is_set():
            return torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        return torch.tensor(self._streamer.done, device=input_ids.device)


def _short_name(path_or_id: str) -> str:
    """A model's own name; of a policy the name of its base, and where its LoRA lies."""
    path = Path(path_or_id)
    with contextlib.suppress(StorageError):  # said when it is loaded
        if path.is_dir() and (policy := PolicyConfig.read(path)) and policy.base:
            return f"{_short_name(policy.base)} with {'/'.join(path.parts[-2:])}"
    return path.name or path_or_id


def _repeats(rows: Sequence[Any]) -> int:
    """G where every row stands there G times, one after the other; else 1."""
    G = next((i for i, row in enumerate(rows) if row != rows[0]), len(rows))
    alike = len(rows) % G == 0 and all(row == rows[i - i % G] for i, row in enumerate(rows))
    return G if alike else 1


def _shared_prefix(model: Any, padded: Any, G: int) -> Any:
    """A cache of the prompts, each computed once, where every prompt stands in G > 1 rows, one after the other."""
    if G == 1 or padded["input_ids"].shape[1] < 2:
        return None
    ids, mask = (padded[key][::G, :-1] for key in ("input_ids", "attention_mask"))
    inputs = {"input_ids": ids}
    if (
        not mask.all()
    ):  # padding stands on the left; a mask without any is slower, and rounds otherwise
        inputs |= {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    cache = model(**inputs, use_cache=True, logits_to_keep=1).past_key_values
    cache.batch_repeat_interleave(G)
    return cache


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end an answer: the model's own, which hold its chat template's, and the tokenizer's."""
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return {end for end in [*ends, tokenizer.eos_token_id] if end is not None}
