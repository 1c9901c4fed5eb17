"""What a generator is asked: a conversation and, where its policy reads them, weights or levels.

Weights and levels travel as data. The generator knows its policy, and :meth:`Request.read_by` says what the policy
reads of a request: a condition's text in the last user turn, weights that mix LoRAs, or the conversation alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from pro_core.data.objectives import Message
from pro_core.data.schema import clean_text
from pro_core.generation.mixing import Mixing
from pro_core.prompting.policy_config import PolicyConfig
from pro_core.prompting.templates import LEVELS
from pro_core.weights import select_weights

STYLES: dict[str, str] = {
    "plain": "",
    "cautious": (
        "You are a careful assistant. Put safety first: warn of risks, refuse what could hurt someone, "
        "and offer a safe alternative."
    ),
    "factual": (
        "You are a precise assistant. Give facts, figures and reasons, say what is uncertain, "
        "and never invent anything."
    ),
    "playful": "You are a witty assistant. Answer the question, and make the reader laugh on the way.",
}
"""System texts that make candidates really differ; ``plain`` adds none."""


class GenerationError(RuntimeError):
    """Generation failed. ``.message`` is one clear sentence fit for a visitor, never with a token."""

    def __init__(self, message: str):
        super().__init__(message)
        self.message = message


class RequestError(GenerationError, ValueError):
    """The policy cannot read this request: weights that it needs are missing, or are not for its objectives."""


@dataclass(frozen=True)
class Request:
    """One conversation to answer.

    Attributes:
        messages: ends with the user's turn. It may hold a condition's text already, as it does in training; then the
            request has neither weights nor levels.
        weights: {objective: weight}, non-negative. They may be for more objectives than the policy's: it takes its own,
            scaled to a sum of 1 (:func:`pro_core.weights.select_weights`).
        levels: {objective: level} from 1, of the objectives that are asked for. Only MOSLIM's policies read levels.
        mixing: how the weights mix a policy of one LoRA per objective; None: as its generator does.
        begun: the answer's beginning. The generator writes on from there, and hands out only what it adds.
        answer_tokens: an answer that is written part by part has so many tokens in the end: the prompt leaves room for
            them from the first part on. 0: no more than this part. A server does not read it.
        candidate: whose random numbers are drawn under a seed; None: those of its place in the batch.

    Raises:
        ValueError: both weights and levels, or a weight below 0 or not finite.
    """

    messages: Sequence[Message]
    weights: Mapping[str, float] | None = None
    levels: Mapping[str, int] | None = None
    mixing: Mixing | None = None
    begun: str = ""
    answer_tokens: int = 0
    candidate: int | None = None

    def __post_init__(self) -> None:
        if self.weights is not None and self.levels is not None:
            raise ValueError("got weights and levels, expected one of them or neither")
        if not all(0 <= weight < math.inf for weight in (self.weights or {}).values()):
            raise ValueError(f"got the weights {self.weights}, expected finite numbers from 0")

    @classmethod
    def weighted(
        cls, messages: Sequence[Message], weights: ArrayLike, objective_names: Sequence[str]
    ) -> Request:
        """A conversation under weights (K,) in the objectives' order."""
        values = np.asarray(weights, dtype=np.float64).tolist()
        return cls(messages, dict(zip(objective_names, values, strict=True)))

    def read_by(self, policy: PolicyConfig | None) -> Request:
        """The request as a model of this policy reads it; None stands for a stock model.

        A policy that reads its condition in the prompt gets messages that hold its text. A soup gets the weights of its
        own objectives. All others read the messages alone. Reading the result again changes nothing.

        Raises:
            RequestError: a soup without weights, weights for other objectives, levels that the policy does not have, a
                way of mixing for a policy that is not mixed.
        """
        reads = policy.reads if policy else None
        if self.mixing and reads != "mixture":
            raise RequestError(
                "This policy is not mixed, so it has no strength and no way of mixing: that takes a policy with a LoRA "
                "for each objective (train/soups.py)."
            )
        if policy is None or reads is None:
            return Request(self.messages, begun=self.begun)
        try:
            if reads == "mixture":
                return replace(self, weights=self._weights_for(policy), levels=None)
            if self.weights is None and self.levels is None:
                return self
            text = self._text_for(policy)
            return Request(policy.condition.add(self.messages, text), begun=self.begun)
        except ValueError as error:
            raise RequestError(str(error)) from None

    def _weights_for(self, policy: PolicyConfig) -> dict[str, float]:
        if self.weights is None:
            raise ValueError("This policy is mixed by weights, and none were given.")
        names = policy.condition.objective_names
        chosen = select_weights(list(self.weights.values()), list(self.weights), names)
        return dict(zip(names, chosen.tolist(), strict=True))

    def _text_for(self, policy: PolicyConfig) -> str:
        condition = policy.condition
        if self.levels is None:
            return condition.text(list(self._weights_for(policy).values()))
        unknown = sorted(set(self.levels) - set(condition.objective_names))
        if condition.kind != LEVELS or unknown:
            raise ValueError(
                f"got the levels {dict(self.levels)}, but this policy reads {condition.kind} of "
                f"{list(condition.objective_names)}"
            )
        return condition.level_text([self.levels.get(n, 0) for n in condition.objective_names])


def styled(messages: Sequence[Message], style: str | None) -> list[Message]:
    """The conversation under a style of :data:`STYLES`; an existing system text stays in front.

    Raises:
        ValueError: an unknown style.
    """
    if style is not None and style not in STYLES:
        raise ValueError(f"got the style {style!r}, expected one of {list(STYLES)}")
    messages = [dict(message) for message in messages]
    text = STYLES[style] if style else ""
    if not text:
        return messages
    if messages and messages[0]["role"] == "system":
        first, rest = messages[0]["content"], messages[1:]
        return [{"role": "system", "content": f"{first}\n\n{text}"}, *rest]
    return [{"role": "system", "content": text}, *messages]


def checked(messages: Sequence[Message]) -> list[Message]:
    """The conversation as it can be sent: clean text (:func:`pro_core.data.schema.clean_text`).

    Raises:
        GenerationError: it does not end with something to answer.
    """
    if not messages or messages[-1].get("role") != "user" or not messages[-1]["content"].strip():
        raise GenerationError("There is nothing to answer: the last message must be the user's.")
    return [{"role": m["role"], "content": clean_text(m["content"])} for m in messages]
