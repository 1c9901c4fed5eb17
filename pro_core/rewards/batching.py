"""Batches by token budget: as many sequences as fit, sorted by length to keep padding small.

On a CPU one big padded batch is slower than no batching at all; sorted batches under a budget are several
times faster (`tests/bench_scoring.py` prints the ratios).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from pro_core.data.schema import DataError
from pro_core.rewards.formats import (
    chat_text,
    fill,
    render,
    scored_text,
    special_tokens,
    template_of,
    view_of,
    without_special_tokens,
)
from pro_core.system.loading import check_neighbours
from pro_core.system.storage import StorageError

SCORING_VERSION, CHAT_VERSION = 1, 2
"""Versions of the way from texts to scores (templates, cutting, batches), the second for ``chat``; raise one with every
change of a score."""


def scoring_version(input_format: str) -> int:
    """The version of the scores of a model that reads this format."""
    return CHAT_VERSION if input_format == "chat" else SCORING_VERSION


def token_budget_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Index lists whose padded size (count x longest) stays within ``budget`` tokens, longest first.

    A sequence longer than the budget is a batch of its own. Every index appears exactly once.
    """
    if budget < 1:
        raise ValueError(f"got a token budget of {budget}, expected at least 1")
    batch: list[int] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and longest * (len(batch) + 1) > budget:
            yield batch
            batch = []
        if not batch:
            longest = max(1, lengths[index])
        batch.append(index)
    if batch:
        yield batch


def cut_to_fit(
    tokenizer,
    prompts: Sequence[str],
    completions: Sequence[str],
    room: int,
    keep_end: bool = True,
) -> tuple[list[str], list[str]]:
    """Prompts and completions, cut so that each pair has at most ``room`` tokens.

    A completion loses its end. A prompt loses its beginning (the last turn matters most), or its end if ``keep_end`` is
    false. If both are too long, the prompt keeps at least a third of the room.
    """
    prompt_tokens, completion_tokens = (
        tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        for texts in (prompts, completions)
    )
    firsts, seconds = [], []
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        n_prompt = len(prompt_tokens["input_ids"][i])
        n_completion = len(completion_tokens["input_ids"][i])
        if n_prompt + n_completion > room:
            keep_prompt = max(room // 3, room - n_completion)
            if n_prompt > keep_prompt:
                offsets = prompt_tokens["offset_mapping"][i]
                if keep_end:
                    prompt = prompt[offsets[n_prompt - keep_prompt][0] :]
                else:
                    prompt = prompt[: offsets[keep_prompt - 1][1]]
            keep_completion = room - min(n_prompt, keep_prompt)
            if n_completion > keep_completion:
                cut = completion_tokens["offset_mapping"][i][keep_completion - 1][1]
                completion = completion[:cut]
        firsts.append(prompt)
        seconds.append(completion)
    return firsts, seconds


def check_length(tokenizer, max_length: int) -> None:
    """Raise a StorageError for a length that the model cannot read. Call it once, before the first text."""
    if max_length > tokenizer.model_max_length:
        raise StorageError(
            f"got max_length {max_length}, expected at most the {tokenizer.model_max_length} tokens that the model "
            "can read"
        )


def encode(tokenizer, conversations, completions, input_format: str, max_length: int):
    """Token lists of N (conversation, completion) pairs in one spec's input format, at most ``max_length`` tokens.

    Args:
        conversations: message lists; an empty one for a completion without a prompt.
        completions: read without the thought before the answer (:func:`pro_core.rewards.formats.scored_text`).
        input_format: see :mod:`pro_core.rewards.formats`. Long texts are cut inside the prompt and the completion,
            never inside the template's own text.

    Raises:
        StorageError: ``chat`` without a chat template, ``{bos}`` without such a token, or a ``max_length`` that the
            template alone fills.
    """
    specials = special_tokens(tokenizer)
    completions = [without_special_tokens(scored_text(c), specials) for c in completions]
    if input_format == "chat":
        return _encode_chat(tokenizer, conversations, completions, max_length, specials)
    template = template_of(input_format)
    view = view_of(template)
    own_text = "".join(part or "" for part in fill(template, "", "", tokenizer.bos_token))
    # Special tokens of a pair: at most 4 in the encoders we know.
    room = max_length - 4 - len(tokenizer(own_text, add_special_tokens=False)["input_ids"])
    if room < 4:
        raise StorageError(
            f"got max_length {max_length}, which leaves no room for text in {input_format!r}"
        )
    prompts = [without_special_tokens(render(c, view), specials) for c in conversations]
    completions = [c.strip() for c in completions]
    # A post is cut at its end, as its authors cut it; a conversation at its beginning.
    cut = cut_to_fit(tokenizer, prompts, completions, room, keep_end=view != "post")
    filled = [fill(template, p, c, tokenizer.bos_token) for p, c in zip(*cut, strict=True)]
    firsts = [first for first, _ in filled]
    if "{sep}" in template:
        seconds = [second for _, second in filled]
        encoded = tokenizer(firsts, seconds, truncation="longest_first", max_length=max_length)
        keys = list(encoded)
    else:
        encoded = tokenizer(firsts, truncation=True, max_length=max_length)
        keys = [key for key in encoded if key != "token_type_ids"]
    return [
        _at_least_one(tokenizer, {key: encoded[key][i] for key in keys}) for i in range(len(firsts))
    ]


def _encode_chat(tokenizer, conversations, completions, max_length: int, specials):
    """A long completion loses its end, which leaves a third of the room to the rest; then a long text its beginning."""
    turns = [
        [m | {"content": without_special_tokens(m["content"], specials)} for m in conversation]
        for conversation in conversations
    ]

    def tokens(numbers, completions) -> list[list[int]]:
        texts = []
        for i, completion in zip(numbers, completions, strict=True):
            try:
                texts.append(chat_text(tokenizer, turns[i], completion))
            except DataError as error:
                raise DataError(f"row {i}: {error}") from None
        return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]

    rows = tokens(range(len(turns)), completions)
    long = [i for i, row in enumerate(rows) if len(row) > max_length]
    if long:
        alone = tokenizer(
            [completions[i] for i in long],
            add_special_tokens=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        kept = []
        for i, spans in zip(long, alone["offset_mapping"], strict=True):
            room = max(max_length - (len(rows[i]) - len(spans)), max_length - max_length // 3)
            kept.append(completions[i][: spans[room - 1][1] if len(spans) > room else None])
        for i, row in zip(long, tokens(long, kept), strict=True):
            rows[i] = row[-max_length:]
    return [
        _at_least_one(tokenizer, {"input_ids": row, "attention_mask": [1] * len(row)})
        for row in rows
    ]


def _at_least_one(tokenizer, row: dict[str, list[int]]) -> dict[str, list[int]]:
    """An empty text is read as one padding token, since a model needs a token to give a score."""
    if row["input_ids"]:
        return row
    first = {"input_ids": tokenizer.pad_token_id, "attention_mask": 1}
    return {key: [first.get(key, 0)] for key in row}


def collate(tokenizer, encoded: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
    """Pad token lists to the longest one and return tensors."""
    return dict(
        tokenizer.pad({key: [e[key] for e in encoded] for key in encoded[0]}, return_tensors="pt")
    )


def check_scoring(model, tokenizer, input_format: str, max_length: int) -> None:
    """Raise unless a short and a long text score the same together as alone; see :func:`check_neighbours`.

    Costs three passes over short texts, without autocast.

    Raises:
        StorageError: as :func:`check_length` and :func:`encode`. ValueError: a score depends on its neighbours.
    """
    check_length(tokenizer, max_length)
    device = next(model.parameters()).device
    question = [{"role": "user", "content": "What is the capital of France?"}]
    answers = ["Paris.", "It is Paris, a city on the Seine. " * 2]
    short, long = encode(tokenizer, [question] * 2, answers, input_format, max_length)

    def read(rows):
        inputs = {key: value.to(device) for key, value in collate(tokenizer, rows).items()}
        return model(**inputs).logits.float().cpu()

    check_neighbours(read, short, long)


@torch.inference_mode()
def forward_in_batches(model, tokenizer, encoded, budget: int, on_batch=None) -> torch.Tensor:
    """The model's logits for every sequence, in the order given: (N, heads) float32 on the CPU.

    Args:
        budget: tokens per batch, padding included.
        on_batch: called with the number of sequences finished so far (progress).
    """
    device = next(model.parameters()).device
    bf16 = device.type == "cpu" or torch.cuda.is_bf16_supported()
    rows: dict[int, torch.Tensor] = {}
    lengths = [len(e["input_ids"]) for e in encoded]
    for batch in token_budget_batches(lengths, budget):
        inputs = collate(tokenizer, [encoded[i] for i in batch])
        inputs = {key: value.to(device) for key, value in inputs.items()}
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            logits = model(**inputs).logits
        rows.update(zip(batch, logits.float().cpu(), strict=True))
        if on_batch:
            on_batch(len(rows))
    return torch.stack([rows[i] for i in range(len(encoded))])
