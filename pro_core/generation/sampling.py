"""How a model in this process draws its tokens: temperature, top-p, and noise of its own for each candidate."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from pro_core.generation.base import GenerationSettings
from pro_core.generation.mixing import Row

WRITING_VERSION = 1
"""Version of the path from a conversation to an answer (prompt, noise, ends). Every change that moves a text raises
it."""


def sampler(
    settings: GenerationSettings, candidates: Sequence[int], device: str
) -> LogitsProcessorList:
    """Temperature, top-p and random choice; nothing at temperature 0, where the likeliest wins."""
    processors = LogitsProcessorList()
    if settings.temperature > 0:
        processors.append(TemperatureLogitsWarper(settings.temperature))
        if settings.top_p < 1:
            processors.append(TopP(settings.top_p))
        seed = secrets.randbits(31) if settings.seed is None else settings.seed
        processors.append(GumbelNoise(seed, candidates, device))
    return processors


class MixedLogits(LogitsProcessor):
    """Turns the logits (M, V) of rows into those of their N candidates, and draws from these.

    A candidate's logits are the weighted sum of its rows'. All of its rows are then told to write the token that it
    draws.
    """

    def __init__(self, rows: Sequence[Row], draw: LogitsProcessorList, device: str):
        self._draw: Any = draw  # typed for a subclass of tensors only
        self._owners = torch.tensor([row.owner for row in rows], device=device)
        self._coefficients = torch.tensor([[row.coefficient] for row in rows], device=device)
        self._N = max(row.owner for row in rows) + 1

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        mixed = scores.new_zeros(self._N, scores.shape[1])
        mixed.index_add_(0, self._owners, scores * self._coefficients)
        return self._draw(input_ids[: self._N], mixed)[self._owners]


class TopP(TopPLogitsWarper):
    """transformers' top-p from the likeliest few hundred tokens: sorting the whole vocabulary takes a third of a
    token's time on a CPU."""

    FEW = 512

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        few = scores.topk(min(self.FEW, scores.shape[-1])).values
        mass = (few - scores.logsumexp(-1, keepdim=True)).exp().cumsum(-1)
        # A token stays if those above it are less than top_p.
        kept = 1 + (mass < self.top_p).sum(-1, keepdim=True)
        wide = (kept > few.shape[-1])[:, 0]
        least = few.gather(-1, kept.clamp(max=few.shape[-1]) - 1)
        masked = scores.masked_fill(scores < least, self.filter_value)
        if wide.any():
            masked[wide] = super().__call__(input_ids[wide], scores[wide])
        return masked


class GumbelNoise(LogitsProcessor):
    """Adds Gumbel noise, so that the largest score is a sample of the softmax (the Gumbel-max trick).

    Candidate i draws from a random generator seeded by (seed, i), whatever else is in the batch.
    """

    def __init__(self, seed: int, candidates: Sequence[int], device: str):
        self._device = device
        self._random = [
            torch.Generator(device).manual_seed((seed << 16) + index) for index in candidates
        ]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise = torch.empty_like(scores)
        for row, generator in zip(noise, self._random, strict=True):
            row.exponential_(generator=generator)
        return scores - noise.log_()
