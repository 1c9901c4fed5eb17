"""Turns of a conversation: the forms that chat templates accept, where a turn ends, and the thought before an answer.

Chat templates differ. Gemma's has no system turn, Mistral's wants user and assistant to alternate, and both refuse
anything else. A template gets a conversation as it is if it accepts it, else in the first of :func:`forms` that it
accepts. So what one template refuses changes nothing for another.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError

from pro_core.data.objectives import Message

REFUSED = (TemplateError, TypeError)
"""What a chat template raises for a conversation that it refuses."""

THOUGHTS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
"""How models mark their reasoning. Between quotation marks or backticks, a tag is only mentioned."""

_OPEN = dict(THOUGHTS)
_TAG = re.compile("|".join(re.escape(tag) for pair in THOUGHTS for tag in pair))
_PROBE = "Fine, thanks"

# ---------------------------------------------------------------- the forms of a conversation


def without_system(messages: Sequence[Message]) -> list[Message]:
    """The conversation without system turns: their texts stand in front of the first user turn."""
    texts = [m["content"] for m in messages if m["role"] == "system"]
    turns = [dict(m) for m in messages if m["role"] != "system"]
    if not texts:
        return turns
    first = next((m for m in turns if m["role"] == "user"), None)
    if first is None:
        return [{"role": "user", "content": "\n\n".join(texts)}, *turns]
    first["content"] = "\n\n".join(filter(None, [*texts, first["content"]]))
    return turns


def merged(messages: Sequence[Message]) -> list[Message]:
    """The conversation with adjacent turns of one role joined by a blank line, and without empty turns.

    The last turn is kept: an empty one may be a completion.
    """
    turns: list[Message] = []
    for i, message in enumerate(messages):
        if not message["content"].strip() and i < len(messages) - 1:
            continue
        if turns and turns[-1]["role"] == message["role"]:
            texts = filter(None, (turns[-1]["content"], message["content"]))
            turns[-1] = turns[-1] | message | {"content": "\n\n".join(texts)}
        else:
            turns.append(dict(message))
    return turns


def alternating(messages: Sequence[Message]) -> list[Message]:
    """The conversation :func:`merged` and starting with the user; system turns stay where they are.

    If the assistant speaks first, an empty user turn is put before it, so that no text is lost.
    """
    turns = merged(messages)
    first = next((i for i, m in enumerate(turns) if m["role"] != "system"), None)
    if first is not None and turns[first]["role"] == "assistant":
        turns.insert(first, {"role": "user", "content": ""})
    return turns


def plainest(messages: Sequence[Message]) -> list[Message]:
    """The form that every model accepts: no system turn, user and assistant alternating."""
    return alternating(without_system(alternating(messages)))


def forms(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """The conversation as it is, then in ever plainer forms, each form once."""
    seen: list[list[Message]] = []
    for change in (list, without_system, alternating, plainest):
        form = change(messages)
        if form not in seen:
            seen.append(form)
            yield form


def taken(
    render: Callable[[list[Message]], str], messages: Sequence[Message]
) -> tuple[list[Message], str]:
    """The first form of the conversation that a template accepts, and the text that ``render`` makes of it.

    A template that silently drops a system turn does not accept it either.

    Raises:
        jinja2.TemplateError, TypeError: the template's own, if it accepts none of the forms.
    """
    refusal: Exception | None = None
    without: tuple[list[Message], str] | None = None
    for form in forms(messages):
        try:
            text = render(form)
        except REFUSED as error:
            refusal = refusal or error
            continue
        if all(m["content"].strip() in text for m in form if m["role"] == "system"):
            return form, text
        without = without or (form, text)
    if without is None:
        assert refusal is not None
        raise refusal
    return without


# ---------------------------------------------------------------- where a turn ends


class _Marks(NamedTuple):
    """A tokenizer's special tokens: their origin, text -> id, and a pattern for all but single characters."""

    read_from: tuple[int, list[str]]
    ids: dict[str, int]
    pattern: re.Pattern[str] | None


def special_marks(tokenizer: Any) -> list[str]:
    """The texts of all special tokens, the longest first: those with a role such as eos, and those that were merely
    added, as most ends of turns are."""
    return list(_marks(tokenizer).ids)


def special_ids(tokenizer: Any) -> dict[str, int]:
    """The ids of :func:`special_marks`."""
    return dict(_marks(tokenizer).ids)


def marks_pattern(tokenizer: Any) -> re.Pattern[str] | None:
    """A pattern for the tokenizer's special tokens, written out in a text; None if there are none."""
    return _marks(tokenizer).pattern


def _marks(tokenizer: Any) -> _Marks:
    """A tokenizer's marks, cached on it: every text needs them, and some tokenizers have thousands.

    They are read again when a token is added or a role changes. Code that makes an ordinary word special without a
    role, which nothing here does, must do so before the first text.
    """
    named = tokenizer.all_special_tokens
    read_from = (len(tokenizer), named)
    kept = getattr(tokenizer, "_pro_marks", None)
    if kept is None or kept.read_from != read_from:
        added = tokenizer.added_tokens_decoder.values()
        marks = {str(token) for token in added if token.special} | set(named)
        texts = sorted(filter(None, marks), key=lambda mark: (-len(mark), mark))
        written_out = "|".join(re.escape(mark) for mark in texts if len(mark) > 1)
        ids = dict(zip(texts, tokenizer.convert_tokens_to_ids(texts), strict=True))
        kept = _Marks(read_from, ids, re.compile(written_out) if written_out else None)
        tokenizer._pro_marks = kept
    return kept


def turn_end(tokenizer: Any) -> str | None:
    """The special token with which the chat template ends an assistant's turn; None if it has none.

    Unless it is stopped there, a model goes on with the user's turn, whatever end the tokenizer or the model names.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    turns = [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": _PROBE}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except REFUSED:
        return None
    _, probe, after = text.rpartition(_PROBE)
    marks = special_marks(tokenizer) if probe else []
    return next((mark for mark in marks if after.lstrip().startswith(mark)), None)


def opened_thought(tokenizer: Any) -> str | None:
    """The tag of :data:`THOUGHTS` that the chat template itself writes before an answer; None if it writes none."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    turns = [{"role": "user", "content": "How are you?"}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except REFUSED:
        return None
    return next((tag for tag in _OPEN if text.rstrip().endswith(tag)), None)


# ---------------------------------------------------------------- the thought before an answer


class Heard(NamedTuple):
    """The next part of an answer. ``retract``: the text so far was reasoning; it comes before what is new."""

    reasoning: str = ""
    text: str = ""
    retract: bool = False


class ThoughtSplitter:
    """Separates the thought at the start of an answer from the answer, piece by piece, wherever it is split.

    A thought is between the tags of :data:`THOUGHTS` at the start, or ends with a closing tag whose opening tag is in
    the prompt. A thought that is never closed goes to the end. Anywhere else a tag is text.

    Args:
        opened: the opening tag that the prompt ends with, see :func:`opened_thought`.

    Attributes:
        found: whether there was a thought, even an empty one.
    """

    def __init__(self, opened: str | None = None):
        self._held = ""
        self._close = _OPEN[opened] if opened else ""
        self._state = "thought" if opened else "start"
        self._before = ""  # the last character handed out as text
        self.found = bool(opened)

    def push(self, piece: str) -> Heard:
        """What is certain after this piece; a possible beginning of a tag is held back."""
        self._held += piece
        heard = Heard()
        while (news := self._step()) is not None:
            reasoning, text, retract = news
            if retract:
                heard = Heard(heard.reasoning + heard.text + reasoning, text, True)
            else:
                heard = Heard(heard.reasoning + reasoning, heard.text + text, heard.retract)
        return heard

    def flush(self) -> Heard:
        """What was held back, at the end of the answer."""
        held, self._held = self._held, ""
        return Heard(reasoning=held) if self._state == "thought" else Heard(text=held)

    def _step(self) -> Heard | None:
        """One step through the text that is held; None if more text must come first."""
        held = self._held
        if self._state in ("start", "answer"):  # blanks before an answer are no part of it
            self._held = held = held.lstrip()
        if not held:
            return None
        if self._state == "start":
            return self._start(held)
        if self._state == "thought":
            before, closed, after = held.partition(self._close)
            if closed:
                self._held, self._state = after, "answer"
                return Heard(reasoning=before)
            return self._hand_out(len(held) - _half(held, [self._close]), thought=True)
        if self._state == "unsure":
            return self._unsure(held)
        self._state = "text"  # the thought is over, or there was none
        return self._hand_out(len(held))

    def _start(self, held: str) -> Heard | None:
        for opening, closing in THOUGHTS:
            if held.startswith(opening):
                self._held, self._close = held[len(opening) :], closing
                self._state, self.found = "thought", True
                return Heard()
        if any(opening.startswith(held) for opening in _OPEN):
            return None
        self._state = "unsure"
        return Heard()

    def _unsure(self, held: str) -> Heard | None:
        """Text, unless a closing tag follows that nothing opened."""
        tag = _TAG.search(held)
        if tag is None:
            return self._hand_out(len(held) - _half(held, [t for p in THOUGHTS for t in p]))
        before = held[tag.start() - 1] if tag.start() else self._before
        if before and before in "`'\"":
            return self._hand_out(tag.end())
        if tag[0] in _OPEN:
            self._state = "text"
            return Heard()
        self._held, self._state, self.found = held[tag.end() :], "answer", True
        return Heard(reasoning=held[: tag.start()], retract=True)

    def _hand_out(self, count: int, thought: bool = False) -> Heard | None:
        if not count:
            return None
        out, self._held = self._held[:count], self._held[count:]
        if thought:
            return Heard(reasoning=out)
        self._before = out[-1]
        return Heard(text=out)


def _half(text: str, tags: Sequence[str]) -> int:
    """How many characters at the end of the text may begin a tag."""
    longest = min(len(text), max(map(len, tags)) - 1)
    ends = (n for n in range(longest, 0, -1) if any(tag.startswith(text[-n:]) for tag in tags))
    return next(ends, 0)


def split_reasoning(text: str) -> tuple[str, str]:
    """(the thought at the start of a text, the answer); a text without a thought stays as it is."""
    if not _TAG.search(text):
        return "", text
    splitter = ThoughtSplitter()
    heard, rest = splitter.push(text), splitter.flush()
    if not splitter.found:
        return "", text
    return (heard.reasoning + rest.reasoning).strip(), heard.text + rest.text


def without_reasoning(text: str) -> str:
    """The answer alone: the part that is scored, counted, judged and learned."""
    return split_reasoning(text)[1]
