"""Prompts to features: a Hugging Face encoder reads the rendered prompt, and the token states of each upper layer are
averaged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from pro_core.data.objectives import Prompt
from pro_core.data.schema import render_messages, to_messages
from pro_core.rewards.batching import token_budget_batches
from pro_core.system.bundled_models import resolve_encoder
from pro_core.system.loading import (
    SAFE,
    SAFE_MODEL,
    check_neighbours,
    loading_failure,
    match_tokenizer,
)
from pro_core.system.storage import StorageError, first_line, quiet_loading

FEATURES_VERSION = 1
"""Version of the path from prompts to features. Every change that moves a feature raises it."""
TRAINING_BUDGET = 1024
"""Tokens that an encoder reads at once in training, padding included."""


class PromptEncoder(nn.Module):
    """A Hugging Face encoder with its tokenizer, for reading prompts: by itself, or as a part of an adapter.

    Args:
        encoder: a Hugging Face id or folder. folder: where to load it from instead.
        max_length: tokens read of a prompt; a longer prompt loses its beginning.
        layers: how many upper layers are read. MiniLM's middle layers tell a dangerous request from one that only
            sounds dangerous better than its last: four layers did so for 85% of XSTest's prompts, the last alone for
            78% (cross-validated, first trials).

    Attributes:
        model, tokenizer: Hugging Face's. encoder_id: the id or folder that was given.
        width: L * D, the features that heads read.

    Raises:
        StorageError: it cannot be loaded, reads fewer tokens than ``max_length``, or reads a prompt differently in a
            batch. ValueError: more layers than it has.
    """

    def __init__(
        self,
        encoder: str,
        max_length: int = 256,
        layers: int = 1,
        folder: str | Path | None = None,
    ):
        super().__init__()
        from transformers import AutoModel, AutoTokenizer

        self.encoder_id, self.max_length = encoder, max_length
        source = str(folder or resolve_encoder(encoder))
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(source, truncation_side="left", **SAFE)
            with quiet_loading():
                self.model = AutoModel.from_pretrained(source, dtype=torch.float32, **SAFE_MODEL)
            match_tokenizer(self.model, self.tokenizer)
        except Exception as error:  # every loader has exceptions of its own
            reason = loading_failure(error, source)
            raise StorageError(
                f"cannot load the adapter's encoder {encoder!r}: {reason}"
            ) from error
        if max_length > self.tokenizer.model_max_length:
            raise StorageError(
                f"got max_length {max_length}, expected at most the {self.tokenizer.model_max_length} tokens that the "
                f"adapter's encoder {encoder!r} can read"
            )
        depth = self.model.config.num_hidden_layers
        if not 1 <= layers <= depth:
            raise ValueError(f"got {layers} layers, expected 1 to the encoder's {depth}")
        self.layers, self.width = layers, layers * self.model.config.hidden_size
        try:
            self._check_neighbours()
        except Exception as error:  # every encoder has exceptions of its own
            raise StorageError(f"the adapter's encoder {encoder!r}: {first_line(error)}") from error

    def _check_neighbours(self) -> None:
        """Raise a ValueError if a prompt's features depend on what else is in the batch."""
        self.model.eval()
        short, long = self.tokenize_texts(["What is it?", "What is the capital of France? " * 5])[0]

        def read(encoded):
            return self.features(**self.batch(encoded))[:, :-1]  # without the number of tokens

        check_neighbours(read, short, long)

    def forward(self, **tokens) -> torch.Tensor:
        """The features (B, L D) that heads read of a tokenized batch, in training.

        Prompts of similar length go through the encoder together, so short ones are not padded to the longest. This
        costs a third where most prompts are questions and some are conversations.
        """
        mask = tokens["attention_mask"]
        rows, means = [], []
        for batch in token_budget_batches(mask.sum(1).tolist(), TRAINING_BUDGET):
            used = mask[batch].any(dim=0)
            part = {key: value[batch][:, used] for key, value in tokens.items()}
            states = self.model(**part, output_hidden_states=True).hidden_states[-self.layers :]
            means.append(torch.cat([mean_states(s, part["attention_mask"]) for s in states], dim=1))
            rows += batch
        back = torch.tensor(rows, device=mask.device).argsort()
        return torch.cat(means)[back]

    def features(self, **tokens) -> torch.Tensor:
        """(B, (L + 1) D + 1): the mean token states of the L upper layers and of the layer a third of the way up, and
        the number of tokens.

        Heads read the first L D. The lower layer, closer to the words, tells strange prompts from ordinary ones.
        """
        return pooled(self.token_states(**tokens), tokens["attention_mask"])

    def token_states(self, **tokens) -> tuple[torch.Tensor, ...]:
        """Each token's state (B, T, D) in the L upper layers, and in the one a third of the way up."""
        states = self.model(**tokens, output_hidden_states=True).hidden_states
        return *states[-self.layers :], states[(len(states) - 1) // 3]

    def tokenize(self, prompts: Sequence[Prompt]) -> list[dict[str, list[int]]]:
        """Token lists of the rendered prompts, at most ``max_length`` tokens each."""
        return self.tokenize_texts([render_messages(to_messages(p)) for p in prompts])[0]

    def tokenize_texts(self, texts: Sequence[str], offsets: bool = False):
        """Token lists of texts as they are, even empty ones; with ``offsets``, also each token's (start, end) in its
        text.

        Raises:
            ValueError: offsets of a tokenizer that has none (a slow one).
        """
        if not len(texts):
            return [], []
        if offsets and not self.tokenizer.is_fast:
            raise ValueError(
                f"the tokenizer of {self.encoder_id!r} gives no token offsets: "
                "expected a fast one (a tokenizer.json)"
            )
        # A token is rarely longer than 32 characters: what lies further back would be cut anyway.
        cut = [max(0, len(text) - 32 * self.max_length) for text in texts]
        encoded = self.tokenizer(
            [text[c:] for text, c in zip(texts, cut, strict=True)],
            truncation=True,
            max_length=self.max_length,
            return_offsets_mapping=offsets,
        )
        where = encoded.pop("offset_mapping") if offsets else [[] for _ in texts]
        where = [[(a + c, b + c) for a, b in tokens] for tokens, c in zip(where, cut, strict=True)]
        return [{key: encoded[key][i] for key in encoded} for i in range(len(texts))], where

    def padded(self, encoded: Sequence[dict[str, list[int]]]):
        """Token lists padded to one length, as tensors on the CPU."""
        lists = {key: [e[key] for e in encoded] for key in encoded[0]}
        return self.tokenizer.pad(lists, return_tensors="pt")

    def batch(self, encoded: Sequence[dict[str, list[int]]]):
        """:meth:`padded`, on the encoder's device."""
        return self.padded(encoded).to(next(self.parameters()).device)

    def encode(self, prompts: Sequence[Prompt], token_budget: int = 4096) -> torch.Tensor:
        """Features (B, (L + 1) D + 1) of prompts, in token-budget batches: what frozen training caches."""
        return self.encode_tokens(self.tokenize(prompts), token_budget)

    @torch.inference_mode()
    def encode_tokens(self, encoded: Sequence[dict], token_budget: int = 4096) -> torch.Tensor:
        """:meth:`features` of token lists, without dropout; on the CPU."""
        training = self.training
        self.eval()
        rows: dict[int, torch.Tensor] = {}
        for batch in token_budget_batches([len(e["input_ids"]) for e in encoded], token_budget):
            tokens = self.batch([encoded[i] for i in batch])
            rows.update(zip(batch, self.features(**tokens).cpu(), strict=True))
        self.train(training)
        if not rows:
            return torch.zeros(0, self.width + self.model.config.hidden_size + 1)
        return torch.stack([rows[i] for i in range(len(encoded))])


def encode_prompts(encoder: PromptEncoder, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """{prompt: features}, prompts as tables hold them (messages as JSON); each distinct prompt is read once."""
    distinct = sorted(set(prompts))
    encoded = encoder.encode([json.loads(p) for p in distinct]).clone()
    return dict(zip(distinct, encoded, strict=True))


def pooled(states: Sequence[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    """(B, (L + 1) D + 1) from L + 1 layers' token states, (B, T, D) or (1, T, D) each, and their mask (B, T)."""
    count = mask.sum(1, keepdim=True).to(states[0].dtype)
    return torch.cat([*(mean_states(s, mask) for s in states), count], dim=1)


def mean_states(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean (B, D) of the token states under the mask; one text's states (1, T, D) serve all rows of the mask."""
    mask = mask.to(states.dtype)
    if len(states) == 1:
        return mask @ states[0] / mask.sum(1, keepdim=True)
    return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
