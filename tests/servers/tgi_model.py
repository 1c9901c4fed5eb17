"""The real model behind ``tgi_dialect.py``: one request's tokens, under the LoRA that it names.

It follows the rules of TGI's model server. If an adapter is not loaded, the base model answers without warning.
Sampling takes the same steps in the same order. The seed of a sampled answer is reported, and drawn if none was given.
A character of several tokens comes with its last token.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

BASE = "__base__"
"""PEFT's name for a row without an adapter."""


@dataclass
class Parameters:
    """A request's parameters, after :func:`tests.servers.tgi_dialect.validate`."""

    max_new_tokens: int
    stop: list[str]
    sampled: bool
    seed: int | None
    processors: LogitsProcessorList
    frequency_penalty: float
    adapter_id: str | None


def processors_of(p: Any) -> LogitsProcessorList:
    """TGI's warpers in its order."""
    made: list[Any] = []
    if p.repetition_penalty not in (None, 1.0):
        made.append(RepetitionPenaltyLogitsProcessor(p.repetition_penalty))
    if p.temperature not in (None, 1.0):
        made.append(TemperatureLogitsWarper(p.temperature))
    if p.top_k:
        made.append(TopKLogitsWarper(p.top_k))
    if p.top_p is not None:
        made.append(TopPLogitsWarper(p.top_p))
    if p.typical_p is not None:
        made.append(TypicalLogitsWarper(p.typical_p))
    return LogitsProcessorList(made)


def with_adapters(model: Any, adapters: str) -> tuple[Any, set[str]]:
    """The model with the LoRAs of a ``LORA_ADAPTERS`` setting (``name=/path,...``), and their names."""
    from peft import PeftModel

    names: set[str] = set()
    for entry in filter(None, (part.strip() for part in adapters.split(","))):
        name, equals, path = entry.partition("=")
        if not equals or "=" in path:
            raise ValueError(f"Invalid LoRA adapter format: {entry}")
        if names:
            model.load_adapter(path, name)
        else:
            model = PeftModel.from_pretrained(model, path, adapter_name=name)
        names.add(name)
    return model.eval(), names


class Writer:
    """One model, its tokenizer and its adapters."""

    def __init__(self, model: Any, tokenizer: Any, adapters: str = ""):
        self.model, self.adapters = with_adapters(model, adapters)
        self.tokenizer = tokenizer

    def encode(self, text: str, special: bool, truncate: int | None) -> list[int]:
        ids = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        return ids[len(ids) - truncate :] if truncate and len(ids) > truncate else ids

    def seed(self, parameters: Parameters) -> int | None:
        """The seed of a sampled answer, drawn if none was given; a greedy answer has none."""
        if not parameters.sampled:
            return None
        return secrets.randbits(63) if parameters.seed is None else parameters.seed

    def write(
        self, ids: list[int], parameters: Parameters, seed: int | None
    ) -> Iterator[dict[str, Any]]:
        """``{"token", "reason", "generated_text"}`` of each token; the last two are None until the last token."""
        tokenizer, written, shown, past = self.tokenizer, [], "", None
        counts: dict[int, int] = {}
        random = torch.Generator().manual_seed(seed % 2**63) if seed is not None else None
        fed = ids
        while True:
            logits, past = self._forward(fed, past, parameters.adapter_id)
            token, logprob = self._choose(logits, ids + written, parameters, counts, random)
            written.append(token)
            counts[token] = counts.get(token, 0) + 1
            text = tokenizer.decode(written, skip_special_tokens=True)
            special = token in tokenizer.all_special_ids
            new = "" if text.endswith("\ufffd") else text[len(shown) :]
            shown += new
            reason = None
            if token == tokenizer.eos_token_id:
                reason = "eos_token"
            elif any(text.endswith(one) for one in parameters.stop):
                reason = "stop_sequence"
            elif len(written) == parameters.max_new_tokens:
                reason = "length"
            piece = tokenizer.decode([token]) if special else new
            yield {
                "token": {"id": token, "text": piece, "logprob": logprob, "special": special},
                "reason": reason,
                "generated_text": text if reason else None,
            }
            if reason:
                return
            fed = [token]

    @torch.inference_mode()
    def _forward(self, ids: list[int], past: Any, adapter: str | None) -> tuple[torch.Tensor, Any]:
        kind = {}
        if self.adapters:  # an unknown one is the base model: TGI looks it up with 0 as the default
            kind = {"adapter_names": [adapter if adapter in self.adapters else BASE]}
        out = self.model(torch.tensor([ids]), past_key_values=past, use_cache=True, **kind)
        return out.logits[0, -1].float(), out.past_key_values

    def _choose(
        self,
        logits: torch.Tensor,
        ids: list[int],
        parameters: Parameters,
        counts: dict[int, int],
        random: torch.Generator | None,
    ) -> tuple[int, float]:
        """The next token and its log-probability after the warpers."""
        scores = parameters.processors(torch.tensor([ids]), logits[None].clone())[0]
        for token, count in counts.items():
            scores[token] -= parameters.frequency_penalty * count
        logprobs = torch.log_softmax(scores, -1)
        if random is None:
            token = int(scores.argmax())
        else:
            token = int(torch.multinomial(logprobs.exp(), 1, generator=random))
        return token, float(logprobs[token])
