"""One batch through a model in this process: tokens are drawn step by step, and handed out as pieces of text."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from pro_core.data.turns import THOUGHTS, opened_thought, special_marks
from pro_core.generation.answers import AnswerPieces
from pro_core.generation.base import Finish, GenerationSettings, Piece
from pro_core.generation.chat import PLAIN_STOP, IncrementalText, StopText, has_template
from pro_core.generation.mixing import Part, Row, in_rows
from pro_core.generation.sampling import MixedLogits, sampler
from pro_core.generation.soup import Mixer

Emit = Callable[[Sequence[Piece]], None]


class Prompt(NamedTuple):
    """What one candidate is written from.

    Attributes:
        ids: its prompt's token ids, its answer's beginning included.
        begun: how many of the last of them are that beginning.
        number: whose random numbers it draws.
        parts: how a policy that is mixed as it writes is mixed for it.
    """

    ids: list[int]
    begun: int
    number: int
    parts: Sequence[Part]


def decode(
    model: Any,
    tokenizer: Any,
    prompts: Mapping[int, Prompt],
    settings: GenerationSettings,
    emit: Emit,
    stop: threading.Event,
    mixer: Mixer | None,
) -> None:
    """Write one answer to each prompt, in one batch, until all have ended or ``stop`` is set.

    Args:
        prompts: {candidate: its prompt}; the candidate indexes its pieces.
        emit: gets the pieces of each step.
        mixer: for a policy that is mixed as it writes.
    """
    device = str(model.device)
    batch = list(prompts.values())
    rows = in_rows([prompt.parts if mixer else [Part()] for prompt in batch])
    read = {"input_ids": [batch[row.owner].ids for row in rows]}
    padded = tokenizer.pad(read, return_tensors="pt").to(device)
    ends = end_tokens(model, tokenizer)
    streamer = _BatchStreamer(list(prompts), tokenizer, ends, settings.max_new_tokens, emit)
    for n, prompt in enumerate(batch):
        if prompt.begun:
            streamer.go_on(n, prompt.ids[-prompt.begun :])
    processors = sampler(settings, [prompt.number for prompt in batch], device)
    if len(rows) > len(batch):
        processors = LogitsProcessorList([MixedLogits(rows, processors, device)])
    scales = [row.scales for row in rows]
    G = _repeats([(batch[row.owner].ids, row.scales) for row in rows])
    mixed = mixer.mixed if mixer else contextlib.nullcontext
    with torch.inference_mode():
        with mixed(scales[::G]):
            cache = _shared_prefix(model, padded, G)
        with mixed(scales):
            model.generate(
                **padded,
                past_key_values=cache,
                generation_config=GenerationConfig(
                    max_new_tokens=settings.max_new_tokens,
                    do_sample=False,  # our sampler has random generators of its own
                    pad_token_id=tokenizer.pad_token_id,
                    eos_token_id=sorted(streamer.ends),
                ),
                logits_processor=processors,
                stopping_criteria=StoppingCriteriaList([_Stop(stop, streamer, rows)]),
                streamer=streamer,
            )


class _BatchStreamer(BaseStreamer):
    """Turns each step's tokens (M,) into pieces of text, one stream per candidate.

    The first N rows are the candidates' own; further rows of a candidate write the same token.
    """

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
        self._tokenizer = tokenizer
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

    def go_on(self, n: int, before: Sequence[int]) -> None:
        """Candidate n's answer has begun with these tokens, whose text is known."""
        self._texts[n] = IncrementalText(self._tokenizer, before)
        self._stops[n].go_on(self._tokenizer.decode(before, skip_special_tokens=True))
        self._answers[n].go_on()

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt_seen:  # transformers hands over the prompts (M, L) first
            self._prompt_seen = True
            return
        pieces: list[Piece] = []
        for row, token in enumerate(value.tolist()[: len(self.candidates)]):
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

    def __init__(self, stop: threading.Event, streamer: _BatchStreamer, rows: Sequence[Row]):
        self._stop = stop
        self._streamer = streamer
        self._owners = [row.owner for row in rows]

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if self._stop.is_set():
            return torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        done = [self._streamer.done[owner] for owner in self._owners]
        return torch.tensor(done, device=input_ids.device)


def _repeats(rows: Sequence[Any]) -> int:
    """G if every row is repeated G times in a row; else 1."""
    G = next((i for i, row in enumerate(rows) if row != rows[0]), len(rows))
    alike = len(rows) % G == 0 and all(row == rows[i - i % G] for i, row in enumerate(rows))
    return G if alike else 1


def _shared_prefix(model: Any, padded: Any, G: int) -> Any:
    """A cache of the prompts, where each prompt fills G > 1 consecutive rows and is computed once."""
    if G == 1 or padded["input_ids"].shape[1] < 2:
        return None
    ids, mask = (padded[key][::G, :-1] for key in ("input_ids", "attention_mask"))
    inputs = {"input_ids": ids}
    # Padding is on the left. A mask without padding would be slower, and round differently.
    if not mask.all():
        inputs |= {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    cache = model(**inputs, use_cache=True, logits_to_keep=1).past_key_values
    cache.batch_repeat_interleave(G)
    return cache


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end an answer: the model's own, which include its chat template's, and the tokenizer's."""
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return {end for end in [*ends, tokenizer.eos_token_id] if end is not None}
