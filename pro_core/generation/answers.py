"""Turns what a model writes into the pieces of its answer: keeps the thought apart, joins halves of characters, and
says how the answer ended.

Both kinds of generator hand over what they get, piece by piece, to one :class:`AnswerPieces` per candidate.
"""

from __future__ import annotations

from collections.abc import Iterator

from pro_core.data.schema import clean_text
from pro_core.data.turns import Heard, ThoughtSplitter
from pro_core.generation.base import EMPTY_ANSWER, Finish, Piece

WITHHELD = "A filter of the endpoint withheld the answer."
LONGEST_TOKEN = 16
SLACK, THOUGHT_SLACK = 4_096, 100_000
"""An answer has at most 16 characters for each token that it may have, and 4,096 more: a server that never stops is cut
off there. A thought has more room, since some servers do not count its tokens."""
UNFINISHED_THOUGHT = "The model ended within its reasoning, without an answer; ask again."


def spent(tokens: int, on: str) -> str:
    """The error of an answer whose tokens were used up before it began."""
    return (
        f"The model spent all {tokens:,} tokens {on}; allow more (`max_new_tokens`, on the page "
        "the longest answer) or turn its thinking off."
    )


class AnswerPieces:
    """What one candidate's model writes, as :class:`~pro_core.generation.base.Piece`.

    Args:
        index: the candidate's. ``max_new_tokens``: its limit, which decides the length at which an answer is cut and
            stands in the error when it is used up.

    Attributes:
        full: more text came than that many tokens can hold. It was cut off, and the rest is ignored.
    """

    def __init__(self, index: int, max_new_tokens: int):
        self._index, self._tokens = index, max_new_tokens
        self._splitter = ThoughtSplitter()
        self._joiner, self._reasoning_joiner = SurrogateJoiner(), SurrogateJoiner()
        self._spoke = self._thought = self._answered = self.full = self._goes_on = False
        self._room = self._whole_room = LONGEST_TOKEN * max_new_tokens + SLACK
        self._thought_room = LONGEST_TOKEN * max_new_tokens + THOUGHT_SLACK

    @property
    def begun(self) -> bool:
        """Whether something was handed out, which a second try would repeat."""
        return self._thought or self._answered

    def open(self, tag: str | None) -> None:
        """The prompt ends with this tag: the answer begins within a thought
        (:func:`pro_core.data.turns.opened_thought`)."""
        self._splitter = ThoughtSplitter(tag)

    def go_on(self) -> None:
        """What comes continues an answer that has begun: blanks at its start belong to it, no thought comes before it,
        and nothing more is an end like any other."""
        self._goes_on = True

    def push(self, text: str) -> Iterator[Piece]:
        """More of what the model writes, thought or answer."""
        self._spoke = self._spoke or bool(text)
        if self._goes_on:
            yield from self._heard(Heard(text=self._joiner.push(text)))
            return
        yield from self._heard(self._splitter.push(self._joiner.push(text)))

    def reason(self, text: str) -> Iterator[Piece]:
        """More of a thought that comes in a field of its own."""
        yield from self._heard(Heard(reasoning=self._reasoning_joiner.push(text)))

    def end(self, finish: Finish) -> Iterator[Piece]:
        """What was held back, and the last piece."""
        yield from self._heard(Heard(reasoning=self._reasoning_joiner.flush()))
        yield from self.push(self._joiner.flush())
        yield from self._heard(self._splitter.flush())
        if self.full:
            finish = "length"
        if self._answered or self._goes_on:
            yield Piece(self._index, done=True, finish=finish)
        elif failure := self._failure(finish):
            yield Piece(self._index, error=failure, done=True, finish=finish)
        else:
            yield Piece(self._index, error=EMPTY_ANSWER, done=True, finish=finish, empty=True)

    def _failure(self, finish: Finish) -> str | None:
        """Why there is no answer; None where the model ended at once, which is an answer too: an empty one."""
        if finish == "filter":
            return WITHHELD
        if finish == "length" and self._thought:
            return spent(self._tokens, "on its reasoning")
        if finish == "length" and not self._spoke:  # some servers keep the reasoning to themselves
            return spent(self._tokens, "without a word of an answer")
        return UNFINISHED_THOUGHT if self._thought else None

    def _heard(self, heard: Heard) -> Iterator[Piece]:
        reasoning, text, retract = heard
        if retract:
            self._thought, self._answered = self._thought or self._answered, False
        if not self._thought:
            reasoning = reasoning.lstrip()
        if not self._answered and not self._goes_on:
            text = text.lstrip()
        reasoning, text = self._cut(reasoning, text, retract)
        self._thought = self._thought or bool(reasoning)
        self._answered = self._answered or bool(text)
        if reasoning or text or retract:
            yield Piece(self._index, text, reasoning=reasoning, retract=retract)

    def _cut(self, reasoning: str, text: str, retract: bool) -> tuple[str, str]:
        """The parts of both that still fit; text that is taken back makes room again, as it does on the page."""
        if self.full:
            return "", ""
        if retract:
            self._room = self._whole_room
        self.full = len(reasoning) > self._thought_room or len(text) > self._room
        reasoning, text = reasoning[: self._thought_room], text[: self._room]
        self._thought_room -= len(reasoning)
        self._room -= len(text)
        return reasoning, text


class SurrogateJoiner:
    """Joins the halves of a character that a server spreads over two pieces; a lone one is replaced."""

    def __init__(self) -> None:
        self._half = ""

    def push(self, text: str) -> str:
        """The text that is whole."""
        text, self._half = self._half + text, ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return clean_text(text) if text else ""

    def flush(self) -> str:
        half, self._half = self._half, ""
        return clean_text(half) if half else ""
