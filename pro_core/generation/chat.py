"""Between conversations and tokens: rendering, fitting into a context, decoding piece by piece."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pro_core.data.objectives import Message
from pro_core.data.turns import (
    REFUSED,
    THOUGHTS,
    marks_pattern,
    merged,
    opened_thought,
    special_ids,
    special_marks,
    taken,
)
from pro_core.generation.request import GenerationError
from pro_core.system.storage import first_line

PLAIN_STOP = "\nHuman:"
_NAMES = {"system": "System", "user": "Human", "assistant": "Assistant"}


class PromptTooLong(GenerationError):
    """The last message alone is longer than the model reads: it has ``tokens``, and ``limit`` of them would fit."""

    def __init__(self, tokens: int, limit: int):
        super().__init__(
            f"The message is too long for this model: {tokens:,} tokens, "
            f"and it reads at most {limit:,}. Shorten it."
        )
        self.tokens, self.limit = tokens, limit


def plain_prompt(messages: Sequence[Message]) -> str:
    """A conversation as plain text, for models whose chat template is not known.

    System text first, then ``Human: ...`` and ``Assistant: ...`` turns with an empty line between,
    and an open ``Assistant:`` at the end. Generation should stop at :data:`PLAIN_STOP`.
    Neighbours with the same role become one turn, and empty turns are left out.
    """
    turns = [f"{_NAMES[m['role']]}: {m['content']}" for m in _plain_turns(messages)]
    return "\n\n".join([*turns, "Assistant:"])


def _plain_turns(messages: Sequence[Message]) -> list[Message]:
    return merged([m for m in messages if m["content"].strip()])


def has_template(tokenizer: Any) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))


def chat_prompt(tokenizer: Any, messages: Sequence[Message], **template: Any) -> str:
    """A conversation rendered by the tokenizer's chat template, else by :func:`plain_prompt`; see :func:`readable`.

    Args:
        template: variables of the template, such as ``enable_thinking=False``; one that it does not read changes
            nothing.

    Raises:
        GenerationError: the template takes the conversation in none of its forms.
    """
    return _rendered(tokenizer, messages, **template)[1]


def readable(tokenizer: Any, messages: Sequence[Message]) -> list[Message]:
    """The conversation in the form that the chat template takes (:func:`pro_core.data.turns.taken`), or in that of
    plain text.

    People cannot type the template's own marks: a special token in their text, such as ``<|im_end|>``, is broken by a
    space.

    Raises:
        GenerationError: the template takes the conversation in none of its forms.
    """
    return _rendered(tokenizer, messages)[0]


def _rendered(
    tokenizer: Any, messages: Sequence[Message], **template: Any
) -> tuple[list[Message], str]:
    messages = [
        {"role": m["role"], "content": without_marks(tokenizer, m["content"])} for m in messages
    ]
    if not has_template(tokenizer):
        return _plain_turns(messages), plain_prompt(messages)

    def render(turns: list[Message]) -> str:
        text = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, **template
        )
        assert isinstance(text, str)
        return text

    try:
        return taken(render, messages)
    except REFUSED as error:
        raise GenerationError(
            f"The model's chat template refuses this conversation ({first_line(error)})."
        ) from None


def without_marks(tokenizer: Any, text: str) -> str:
    """The text with every special token of the tokenizer broken by a space."""
    pattern = marks_pattern(tokenizer)
    if pattern is None or not pattern.search(text):
        return text
    for mark in special_marks(tokenizer):
        if len(mark) > 1 and mark in text:
            text = text.replace(mark, f"{mark[0]} {mark[1:]}")
    return text


def beginning(tokenizer: Any, begun: str, writer: str = "The model's chat template") -> str:
    """What follows a rendered prompt if the answer has begun.

    Args:
        tokenizer: None if it is not known: there are no marks to break, and the prompt is plain text.
        writer: who would open the answer with a thought, for the message.

    Raises:
        GenerationError: a thought would have to come before it.
    """
    if not begun:
        return ""
    if opened_thought(tokenizer):
        raise GenerationError(
            f"{writer} opens each answer with a thought, so an answer cannot be begun for it."
        )
    if not has_template(tokenizer):
        begun = f" {begun}"  # after "Assistant:"
    return begun if tokenizer is None else without_marks(tokenizer, begun)


def fit(
    tokenizer: Any, messages: Sequence[Message], limit: int, **template: Any
) -> tuple[list[int], int]:
    """Token ids of the rendered conversation, with the oldest turns left out until it fits.

    The system text and the last message always stay, and a conversation never starts with an answer. ``template``:
    see :func:`chat_prompt`.

    Returns:
        (ids, at most ``limit`` of them; how many turns were left out).

    Raises:
        PromptTooLong: the last message alone is too long.
        GenerationError: the template refuses the conversation.
    """
    system = [m for m in messages[:1] if m["role"] == "system"]
    turns = list(messages[len(system) :])
    dropped = 0
    while True:
        ids = tokenizer(
            chat_prompt(tokenizer, [*system, *turns], **template),
            # A chat template writes its own opening token; plain text needs the tokenizer's.
            add_special_tokens=not has_template(tokenizer),
        )["input_ids"]
        if len(ids) <= limit:
            return ids, dropped
        if len(turns) == 1:
            raise PromptTooLong(len(ids), limit)
        step = 1
        while step < len(turns) - 1 and turns[step]["role"] != "user":
            step += 1
        turns, dropped = turns[step:], dropped + step


def whole_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """What a model wrote, as one text: without special tokens, but with the tags around its thought, even one that the
    chat template opened. :func:`pro_core.data.turns.split_reasoning` can then find the answer."""
    numbers = special_ids(tokenizer)
    kept = {numbers[tag] for pair in THOUGHTS for tag in pair if tag in numbers}
    dropped = set(numbers.values()) - kept
    text = tokenizer.decode([i for i in ids if i not in dropped], skip_special_tokens=not kept)
    return (opened_thought(tokenizer) or "") + text


class IncrementalText:
    """Token ids in, text out, never half a character.

    A character of several bytes may be spread over tokens; its text is held back until it is whole.
    Tokens are decoded together with those before them, since some tokenizers decode a token differently
    at the start of a text.

    Args:
        before: the tokens of the text that goes before, which is not handed out again.
    """

    def __init__(self, tokenizer: Any, before: Sequence[int] = ()):
        self._tokenizer = tokenizer
        self._ids = list(before)
        self._start = 0  # decode from here: the last tokens that were handed out
        self._done = len(self._ids)  # tokens before this one were handed out

    def push(self, token: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        self._ids.append(token)
        text, known = self._decode(self._ids[self._start :]), self._decode(self._known())
        if len(text) <= len(known) or text.endswith("\ufffd"):
            return ""
        self._start, self._done = self._done, len(self._ids)
        return text[len(known) :]

    def flush(self) -> str:
        """What was held back, without a character that never became whole."""
        text, known = self._decode(self._ids[self._start :]), self._decode(self._known())
        self._start = self._done = len(self._ids)
        return text[len(known) :].rstrip("\ufffd")

    def _known(self) -> list[int]:
        return self._ids[self._start : self._done]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


class StopText:
    """Cuts a stream of text at ``stop``, holding back what could be its beginning."""

    def __init__(self, stop: str | None):
        self._stop = stop
        self._held = ""
        self._known = 0  # characters of what is held back that were handed out before
        self.reached = False

    def go_on(self, before: str) -> None:
        """What comes follows this text, which was handed out already: the stop may begin within it."""
        if self._stop is not None:
            self._known = self._beginning(before)
            self._held = before[len(before) - self._known :]

    def push(self, text: str) -> str:
        """The text that is safe to show."""
        if self._stop is None:
            return text
        if self.reached:
            return ""
        self._held += text
        before, stop, _ = self._held.partition(self._stop)
        if stop:
            self.reached, self._held = True, ""
            return self._new(before)
        keep = self._beginning(self._held)
        shown = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return self._new(shown)

    def flush(self) -> str:
        held, self._held = self._held, ""
        return self._new(held)

    def _beginning(self, text: str) -> int:
        """How many of the text's last characters could begin the stop."""
        assert self._stop is not None
        return next(n for n in range(len(self._stop) - 1, -1, -1) if text.endswith(self._stop[:n]))

    def _new(self, text: str) -> str:
        """The text without what was handed out before."""
        known = min(self._known, len(text))
        self._known -= known
        return text[known:]
