"""Which words of an answer raised or lowered its scores: what changes when a word is left out.

A word's effect on an objective is the score of the answer minus its score without that word. An answer of at most
`MOST` words is scored without each of them. Of a longer one, phrases are left out first, and then each word of the
phrases that did most: at most `MOST` texts, however long the answer is.

To check them, the `TOP` words that raised a score most are left out together, and beside them as many random words,
`DRAWS` times.
"""

from __future__ import annotations

import zlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pro_core.data.objectives import Prompt
from pro_core.data.words import without, words_of
from pro_core.rewards.panel import RewardPanel

MOST, TOP, DRAWS = 48, 3, 6
Scores = NDArray[np.float32]
Span = tuple[int, int]
"""Characters `start` to `end` of the answer."""


@dataclass(frozen=True)
class ScoreExplanation:
    """The standardized scores of one answer and the effects of its words; NaN where a score is missing.

    Attributes:
        scores: (K,).
        words: N, in the order of the answer; of a long answer, those of the phrases that did most.
        effects: (N, K), each score minus the score without the word.
        named: (K,), how far each score falls without the `TOP` words that raised it most; NaN for an answer of fewer
            than 2 * `TOP` words, which has no others to compare them with.
        random: (K,), how far it falls without `TOP` random words of the answer, on average.
    """

    scores: Scores
    words: list[Span]
    effects: Scores
    named: Scores
    random: Scores


Steps = Generator[list[str], Scores, ScoreExplanation]


def explain_scores(panel: RewardPanel, prompt: Prompt, response: str) -> ScoreExplanation:
    """The effect of each word of a response on its standardized scores.

    Raises:
        ValueError: an empty response, or a panel without statistics.
    """
    steps = explanation_steps(response)
    texts = next(steps)
    while True:
        try:
            texts = steps.send(panel.standardized([prompt] * len(texts), texts))
        except StopIteration as done:
            return done.value


def explanation_steps(response: str) -> Steps:
    """The same for a caller who scores: yields texts, and is sent their standardized scores (n, K).

    Raises:
        ValueError: an empty response.
    """
    if not response.strip():
        raise ValueError("got an empty response, expected one that has scores")
    spans = words_of(response)
    (scores,) = yield [response]
    if len(spans) < 2:  # without its only word nothing could be scored
        none = np.full_like(scores, np.nan)
        return ScoreExplanation(scores, [], np.zeros((0, len(scores)), np.float32), none, none)

    def leave_out(groups: Sequence[Sequence[Span]]) -> Generator[list[str], Scores, Scores]:
        return scores - (yield [_without_all(response, group) for group in groups])

    words = spans
    if len(spans) > MOST:
        parts = np.array_split(np.arange(len(spans)), MOST // 2)
        rough = yield from leave_out([[spans[i] for i in part] for part in parts])
        most = np.argsort(-np.abs(np.nan_to_num(rough)).max(axis=1), kind="stable")
        kept = np.concatenate([parts[i] for i in most])[: MOST // 2]
        words = [spans[i] for i in sorted(kept)]
    effects = yield from leave_out([[word] for word in words])
    named = random = np.full_like(scores, np.nan)
    if len(spans) >= 2 * TOP and len(words) >= TOP:
        rng = np.random.default_rng(zlib.crc32(response.encode("utf-8", "replace")))
        best = [
            [words[i] for i in np.argsort(-column, kind="stable")[:TOP]] for column in effects.T
        ]
        drawn = [
            [spans[i] for i in rng.choice(len(spans), TOP, replace=False)] for _ in range(DRAWS)
        ]
        together = yield from leave_out([*best, *drawn])
        named, random = np.diagonal(together).copy(), together[len(best) :].mean(axis=0)
    return ScoreExplanation(scores, words, effects, named, random)


def _without_all(response: str, spans: Sequence[Span]) -> str:
    for start, end in sorted(spans, reverse=True):
        response = without(response, start, end)
    return response
