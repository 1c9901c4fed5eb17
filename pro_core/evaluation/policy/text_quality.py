"""Signs that a policy collapsed: few distinct words, or text that its base model finds unlikely."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pro_core.data.objectives import Prompt
from pro_core.data.schema import to_messages
from pro_core.generation.chat import chat_prompt, has_template
from pro_core.prompting.policy_config import load_language_model
from pro_core.rewards.batching import token_budget_batches
from pro_core.rewards.formats import special_tokens, without_special_tokens
from pro_core.system.fingerprints import fingerprint
from pro_core.system.storage import content_hash

_WORD = re.compile(r"\w+|[^\w\s]")
SURPRISE_VERSION = 1
"""Raised with every change of :meth:`LanguageModel.surprise` that changes a number."""


def distinct_n(texts: Sequence[str], n: int) -> float:
    """The share of distinct n-grams among all n-grams of the texts, in lower case; in (0, 1], higher is more varied.

    It falls as more text is counted, so compare equally many texts of the same kind. NaN where no text has n words.
    """
    grams = []
    for text in texts:
        words = _WORD.findall(text.lower())
        grams += [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else math.nan


class LanguageModel:
    """A causal model, or a policy, that says how likely responses are; its parameters load when first needed."""

    def __init__(self, path_or_id: str, device: str | None = None, token_budget: int = 1024):
        self.path_or_id, self.token_budget = path_or_id, token_budget
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")

    def fingerprint(self) -> str:
        """A hash of the model and of the way it is asked."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return content_hash([SURPRISE_VERSION, fingerprint(self.path_or_id)])

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        model, tokenizer, _ = load_language_model(self.path_or_id, dtype=torch.bfloat16)
        return model.to(self.device).eval(), tokenizer

    def surprise(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[str],
        on_progress: Callable[[int, int], None] | None = None,
    ) -> NDArray[np.float32]:
        """-log p(response given prompt) in nats, and its number of tokens: (N, 2). Perplexity is exp(sum / sum).

        The prompt is put into the model's chat template; the end of the answer is not counted. An empty response has
        no token. Text that is too long for the model loses the beginning of its prompt. A prompt is read once for all
        its responses.
        """
        model, tokenizer = self._loaded
        marks = special_tokens(tokenizer)
        limit = min(getattr(model.config, "max_position_embeddings", None) or 4096, 4096)
        of_prompt: dict[str, list[int]] = {}
        for i, prompt in enumerate(prompts):
            of_prompt.setdefault(chat_prompt(tokenizer, to_messages(prompt)), []).append(i)
        surprise = np.zeros((len(prompts), 2), dtype=np.float32)
        done = 0
        for text, rows in of_prompt.items():
            before = tokenizer(text, add_special_tokens=not has_template(tokenizer))["input_ids"]
            texts = [without_special_tokens(responses[i], marks) for i in rows]
            ids = [tokenizer(t, add_special_tokens=False)["input_ids"][: limit - 1] for t in texts]
            longest = max(map(len, ids))
            if longest:
                surprise[rows] = self._read(before[-(limit - longest) :], ids)
            done += len(rows)
            if on_progress:
                on_progress(done, len(prompts))
        return surprise

    @torch.inference_mode()
    def _read(self, prompt: list[int], responses: list[list[int]]) -> NDArray[np.float32]:
        """(nats, tokens) of each response (R, 2), token ids all."""
        model, _ = self._loaded
        start = torch.tensor([prompt[:-1]], device=self.device)
        shared = None
        if len(prompt) > 1:
            shared = model(input_ids=start, use_cache=True, logits_to_keep=1).past_key_values
        surprise = np.zeros((len(responses), 2), dtype=np.float32)
        for batch in token_budget_batches([len(r) for r in responses], self.token_budget):
            answers = [responses[b] for b in batch]
            width = max(1, *map(len, answers))
            read = torch.zeros((len(answers), width), dtype=torch.long)
            target = torch.full_like(read, -100)
            for row, ids in enumerate(answers):
                read[row, : len(ids)] = torch.tensor([prompt[-1], *ids][: len(ids)])
                target[row, : len(ids)] = torch.tensor(ids)
            before = torch.ones(len(answers), start.shape[1])
            mask = torch.cat([before, target != -100], dim=1).long()
            cache = copy.deepcopy(shared)
            if cache is not None:
                cache.batch_repeat_interleave(len(answers))
            logits = model(
                input_ids=read.to(self.device),
                attention_mask=mask.to(self.device),
                past_key_values=cache,
            ).logits
            loss = torch.nn.functional.cross_entropy(
                logits.float().transpose(1, 2), target.to(self.device), reduction="none"
            )
            surprise[batch, 0] = loss.sum(dim=1).cpu().numpy()
            surprise[batch, 1] = [len(ids) for ids in answers]
        return surprise
