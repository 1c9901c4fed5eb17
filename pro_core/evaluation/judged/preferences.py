"""Which of two texts a judge prefers, in one order or both, and what its order and length have to do with it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pro_core.data.schema import DataError
from pro_core.evaluation.judged.alpaca import preference_from_logprobs
from pro_core.evaluation.judged.rates import Floats, Rate, mean_rate
from pro_core.judges.judge import Question, Reply
from pro_core.judges.templates import Template
from pro_core.judges.verdicts import Verdicts
from pro_core.system.storage import content_hash

LABEL_TOKENS = 4
"""The longest reply to a question for one label: a judge without log-probabilities may put a blank before it."""
Triple = tuple[str, str, str]
"""A prompt and two answers to it."""


@dataclass(frozen=True)
class Preferences:
    """A judge's verdicts on P pairs of texts.

    Attributes:
        second_PO: how much the pair's second text is preferred, 0 to 1: where it was shown second and where it was
            shown first (O = 2), or in one order of the two (O = 1). NaN: no verdict.
        read: replies that are verdicts. by_words: those among them that were read from the judge's words, for want of
            log-probabilities.
        lengths_P2: of both texts, in characters.
        asked_P: whether the judge was asked: two equal texts are a draw.
    """

    second_PO: Floats
    read: int
    by_words: int
    lengths_P2: Floats
    asked_P: NDArray[np.bool_]

    @property
    def second_P(self) -> Floats:
        """The mean over the orders; NaN where one of them has no verdict."""
        return self.second_PO.mean(axis=1)

    @property
    def read_as(self) -> str:
        """How the verdicts were read, for result rows."""
        if not self.by_words:
            return "log-probabilities"
        return "words" if self.by_words == self.read else "log-probabilities, else words"

    def measures(self) -> dict[str, Rate]:
        """Position and length, in percent; of the pairs with a verdict that the judge was asked about.

        ``first_preferred``: how much the text shown first is preferred over both orders; 50 without a position bias.
        ``orders_agree``: pairs whose verdict is the same in both orders. ``longer_preferred``: how much the longer
        text is preferred, over pairs of different lengths.
        """
        both = np.isfinite(self.second_PO).all(axis=1) & self.asked_P
        rates: dict[str, Rate] = {}
        if both.any() and self.second_PO.shape[1] == 2:
            forth, back = self.second_PO[both].T
            rates["first_preferred"] = mean_rate((1 - forth + back) / 2)
            agree = ((forth - 0.5) * (back - 0.5) > 0) | ((forth == 0.5) & (back == 0.5))
            rates["orders_agree"] = mean_rate(agree)
        gaps = self.lengths_P2[:, 1] - self.lengths_P2[:, 0]
        second = self.second_P
        longer = np.where(gaps > 0, second, 1 - second)[(gaps != 0) & np.isfinite(second)]
        if len(longer):
            rates["longer_preferred"] = mean_rate(longer)
        return rates


def preferences(
    verdicts: Verdicts, template: Template, pairs: Sequence[Triple], both_orders: bool
) -> Preferences:
    """Ask the judge about P pairs of answers; equal texts are a draw and are not asked about.

    In one order alone, a hash of the prompt decides which, so that all models are asked alike.

    Raises:
        DataError: not one reply is a verdict.
    """
    assert template.labels is not None
    questions, places = [], []
    values = np.full((len(pairs), 2 if both_orders else 1), np.nan)
    asked = np.array([first != second for _, first, second in pairs], dtype=bool)
    for p, (prompt, first, second) in enumerate(pairs):
        chosen = int(content_hash([prompt])[0], 16) % 2
        for order in (0, 1) if both_orders else (chosen,):
            if first == second:
                values[p, order if both_orders else 0] = 0.5
                continue
            a, b = (second, first) if order else (first, second)
            messages = template.messages(prompt=prompt, first=a, second=b)
            questions.append(
                Question(messages, template.identity, LABEL_TOKENS, bool(order), template.labels)
            )
            places.append((p, order))
    by_words, read = 0, 0
    replies = verdicts.ask(questions, "preferences")
    for (p, order), reply in zip(places, replies, strict=True):
        shown_second, in_words = _second_preferred(reply, template.labels)
        by_words, read = by_words + in_words, read + bool(np.isfinite(shown_second))
        preferred = 1 - shown_second if order else shown_second
        values[p, order if both_orders else 0] = preferred
    if questions and not read:
        raise DataError(
            f"the judge {verdicts.judge.name} gave no verdict: neither log-probabilities of {template.labels} nor one "
            "of them as its first word"
        )
    lengths = np.array([[len(first), len(second)] for _, first, second in pairs], dtype=float)
    return Preferences(values, read, by_words, lengths.reshape(len(pairs), 2), asked)


def _second_preferred(reply: Reply | None, labels: tuple[str, ...]) -> tuple[float, bool]:
    """(how much the text shown second is preferred, whether that was read from words); NaN without a verdict."""
    if reply is None:
        return np.nan, False
    if reply.logprobs:
        value, _ = preference_from_logprobs(reply.logprobs, labels[0], labels[1])
        if np.isfinite(value):
            return value - 1, False
    words = re.match(r"\W*(\w+)", reply.text)
    if words and words[1] in labels:
        return float(labels.index(words[1])), True
    return np.nan, False
