"""Generation in this process: N candidates in one batch of a transformers model, streamed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pro_core.generation.base import GenerationSettings, Piece, StreamingGenerator
from pro_core.generation.chat import beginning, fit
from pro_core.generation.decoding import Emit, Prompt, decode
from pro_core.generation.mixing import Mixing
from pro_core.generation.request import GenerationError, Request, checked
from pro_core.generation.soup import Mixer
from pro_core.prompting.policy_config import PolicyConfig, load_language_model
from pro_core.system.bundled_models import SMOLLM2
from pro_core.system.storage import StorageError, first_line

logger = logging.getLogger(__name__)

MAX_CONTEXT = 4096
"""Most tokens of prompt and answer together, even if the model allows more: beyond it a CPU takes minutes."""


class LocalGenerator(StreamingGenerator):
    """A language model in this process, loaded at first use: a stock one, or a policy that reads its weights.

    One batch runs at a time; others wait their turn in the order they came. Sampling draws from
    random generators of its own, one per candidate, so neither the global random state nor another
    thread changes a seeded result.

    Args:
        path_or_id: a model folder or hub id; :data:`~pro_core.system.bundled_models.SMOLLM2` comes from its package.
        device: such as "cpu" or "cuda:1"; by default the first GPU, else the CPU.
        max_context: prompt and answer together hold at most this many tokens, and at most what the
            model was made for. Older turns of a longer conversation are left out, and a piece's
            ``note`` says so.
        mixing: how weights mix a policy of one LoRA per objective, where a request does not say it; None: a soup of
            strength 1. Any other policy refuses to write under it.
    """

    def __init__(
        self,
        path_or_id: str | os.PathLike[str] = SMOLLM2,
        *,
        device: str | None = None,
        max_context: int = MAX_CONTEXT,
        mixing: Mixing | None = None,
    ):
        self.path_or_id = os.fspath(path_or_id)
        self.short_name = _short_name(self.path_or_id)
        self.name = f"{self.short_name}, in this process"
        # A hub id as it is; of a folder only its name, since visitors need not know where it lies.
        self._shown = self.short_name if os.path.isabs(self.path_or_id) else self.path_or_id
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.max_context = max_context
        self.mixing = mixing
        self._loading = threading.Lock()
        self._loaded: tuple[Any, Any] | None = None
        self._failure: str | None = None
        self._mixer: Mixer | None = None
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pro-generate")

    def __repr__(self) -> str:
        return f"LocalGenerator({self.path_or_id!r}, device={self.device!r})"

    def load(self) -> None:
        """Load the model now; returns at once if it is loaded. Safe to call from any thread.

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
        """See :class:`~pro_core.generation.base.Generator`. For a hub id this loads the model, whose files say it."""
        if self._loaded is None and self.path_or_id != SMOLLM2:
            # What cannot be read or loaded is reported when it is asked to write.
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

    def first_tokens(self, request: Request, top: int) -> list[tuple[str, float]]:
        """The ``top`` likeliest first tokens of an answer with their log-probabilities, the likeliest first.

        A template that can turn thinking off does so: the first token is the answer's.

        Raises:
            GenerationError: the model cannot be loaded, or the request is too long.
        """
        self.load()
        assert self._loaded is not None
        model, tokenizer = self._loaded
        messages = checked(request.read_by(self._policy).messages)
        ids, _ = fit(tokenizer, messages, self._context() - 1, enable_thinking=False)
        with torch.inference_mode():
            read = torch.tensor([ids], device=self.device)
            logits = model(input_ids=read, logits_to_keep=1).logits[0, -1].float()
        values, tokens = logits.log_softmax(dim=-1).topk(min(top, len(logits)))
        texts = [tokenizer.decode([token]) for token in tokens.tolist()]
        return list(zip(texts, values.tolist(), strict=True))

    async def stream_batch(
        self, batch: Sequence[Request], settings: GenerationSettings | None = None
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
            future.cancel()  # or does not start at all

    def _run(
        self,
        batch: Sequence[Request],
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
        batch: Sequence[Request],
        settings: GenerationSettings,
        emit: Emit,
        stop: threading.Event,
    ) -> None:
        assert self._loaded is not None
        model, tokenizer = self._loaded
        prompts: dict[int, Prompt] = {}
        context = self._context()
        for index, request in enumerate(batch):
            try:
                if request.mixing is None and self.mixing:
                    request = replace(request, mixing=self.mixing)
                read = request.read_by(self._policy)
                begun = beginning(tokenizer, read.begun, self.short_name)
                start = tokenizer(begun, add_special_tokens=False)["input_ids"] if begun else []
                tokens = max(request.answer_tokens, len(start) + settings.max_new_tokens)
                if tokens >= context:
                    raise GenerationError(
                        f"An answer of {tokens:,} tokens does not fit: {self.short_name} holds {context:,} here, "
                        "prompt and answer together. Ask for a shorter one."
                    )
                ids, dropped = fit(tokenizer, checked(read.messages), context - tokens)
            except GenerationError as error:
                emit([Piece(index, error=error.message, done=True)])
                continue
            number = index if request.candidate is None else request.candidate
            parts = (read.mixing or Mixing()).parts(list((read.weights or {}).values()))
            prompts[index] = Prompt(ids + start, len(start), number, parts)
            if dropped:
                turns = "turn was" if dropped == 1 else f"{dropped} turns were"
                emit([Piece(index, note=f"The oldest {turns} left out: the chat is too long.")])
        if not prompts:
            return
        decode(model, tokenizer, prompts, settings, emit, stop, self._mixer)

    def _context(self) -> int:
        assert self._loaded is not None
        model, tokenizer = self._loaded
        limits = (
            self.max_context,
            tokenizer.model_max_length,
            getattr(model.config, "max_position_embeddings", None),
        )
        return min(limit for limit in limits if limit)


def _short_name(path_or_id: str) -> str:
    """A model's own name; for a LoRA policy, its base model's name and the LoRA's folder."""
    path = Path(path_or_id)
    with contextlib.suppress(StorageError):  # reported when it is loaded
        if path.is_dir() and (policy := PolicyConfig.read(path)) and policy.base:
            return f"{_short_name(policy.base)} with {'/'.join(path.parts[-2:])}"
    return path.name or path_or_id
