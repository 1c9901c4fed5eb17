"""How a model in this process draws its tokens: temperature, top-p, and noise of its own for each candidate."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from pro_core.generation.base import GenerationSettings

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
