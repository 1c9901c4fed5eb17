"""Which words of a prompt raised or lowered each objective's weight: what changes when a word is left out.

A word's effect on an objective is the weight predicted for the prompt minus the weight predicted without that word.
Leaving out each word of a long prompt would take one pass of the encoder per word. So words are screened first: one
pass gives every token's state, and the mean without a word's states shows roughly what the word does. Only the words
with the largest rough effects are then really left out. `tests/bench_explanations.py` compares the effects with random
words, by deletion, and the time with the adapter's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pro_core.adapter.encoder import pooled
from pro_core.adapter.model import PreferenceAdapter
from pro_core.data.objectives import Prompt
from pro_core.data.schema import content_spans, render_messages, to_messages
from pro_core.data.words import without, words_of

READINGS, SPARE_TOKENS = 6, 40
"""The texts without a word have at most `READINGS` * (n + `SPARE_TOKENS`) tokens together, for a prompt of n tokens:
dozens of words of a short prompt, and at least six of any. This stays within ten times the adapter's own time."""


@dataclass(frozen=True)
class Word:
    """One word of the prompt: characters ``start`` to ``end`` of the message number ``turn``, as it was read."""

    text: str
    turn: int
    start: int
    end: int


@dataclass(frozen=True)
class Explanation:
    """The weights of one prompt and the effects of its words, before any floor.

    Attributes:
        weights, lower, upper (K,), known: of :class:`pro_core.adapter.model.UncertainWeights`.
        words: N, in the order of the prompt; of a long prompt, those with the largest rough effects.
        effects: (N, K), each objective's weight minus its weight without the word; rows sum to 0.
    """

    objective_names: tuple[str, ...]
    weights: NDArray[np.float32]
    lower: NDArray[np.float32]
    upper: NDArray[np.float32]
    known: float
    words: list[Word]
    effects: NDArray[np.float32]

    def of(self, objective: str) -> list[tuple[Word, float]]:
        """The words with their effect on one objective, from the one that raised it most."""
        column = self.effects[:, self.objective_names.index(objective)]
        return [(self.words[i], float(column[i])) for i in np.argsort(-column, kind="stable")]


@torch.inference_mode()
def explain(adapter: PreferenceAdapter, prompt: Prompt) -> Explanation:
    """The effect of each word of a prompt on its weights; words before the part that the adapter reads have none.

    Raises:
        ValueError: an empty or malformed prompt (see :func:`pro_core.data.schema.to_messages`), or a tokenizer
            without offsets.
    """
    messages = to_messages(prompt)
    text = render_messages(messages)
    (tokens,), (offsets,) = adapter.encoder.tokenize_texts([text], offsets=True)
    inside = [(start, end) for start, end in offsets if end > start]
    read_from = min((start for start, _ in inside), default=0)
    words, spans = [], []
    for turn, begin, end in content_spans(messages):
        for start, stop in words_of(text[max(begin, read_from) : end]):
            start, stop = start + max(begin, read_from), stop + max(begin, read_from)
            words.append(Word(text[start:stop], turn, start - begin, stop - begin))
            spans.append((start, stop))

    read = adapter.encoder.batch([tokens])
    states = [layer.cpu() for layer in adapter.encoder.token_states(**read)]
    whole = adapter.weigh(pooled(states, torch.ones(1, len(offsets))))
    room = int(READINGS * (len(offsets) + SPARE_TOKENS) / len(offsets))
    if len(words) > room:
        kept_states = torch.ones(len(words), len(offsets))
        for row, (start, stop) in zip(kept_states, spans, strict=True):
            for t, (a, b) in enumerate(offsets):
                row[t] = not (a < stop and b > start)
        rough = whole.weights - adapter.weigh(pooled(states, kept_states)).weights
        kept = sorted(np.argsort(-np.abs(rough).max(axis=1), kind="stable")[:room])
        words, spans = [words[i] for i in kept], [spans[i] for i in kept]
    read_text = text[read_from:]
    shorter = [without(read_text, start - read_from, stop - read_from) for start, stop in spans]
    without_each, _ = adapter.encoder.tokenize_texts(shorter)
    reduced = adapter.weigh(adapter.encoder.encode_tokens(without_each))
    return Explanation(
        adapter.objective_names,
        whole.weights[0],
        whole.lower[0],
        whole.upper[0],
        float(whole.known[0]),
        words,
        whole.weights - reduced.weights,
    )
