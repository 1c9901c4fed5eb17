"""The exact text that a reward model reads: one template per model.

A reward model is worth little on texts in another form than it was trained on: another order, other marks of turns,
one more blank. A template is plain text with fields:

| field | stands for |
|---|---|
| `{completion}` | the response, without blanks at its ends; every template has it once |
| `{prompt}` | the conversation as :func:`pro_core.data.schema.render_messages` gives it |
| `{dialogue}` | its turns as hh-rlhf writes them, `\\n\\nHuman: ...\\n\\nAssistant: ...\\n\\nHuman: ...` |
| `{post}` | the text to summarize, from the last user turn: without the request, with blanks for newlines |
| `{bos}` | the tokenizer's first token |
| `{sep}` | the border between the two segments of the tokenizer's pair of texts |

A template shows at most one of the three views of the prompt. `pair` is `{prompt}{sep}{completion}`; `chat` is the
tokenizer's own chat template. System messages are left out of all: a candidate's style must not change its score.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pro_core.data.objectives import Message
from pro_core.data.schema import DataError, clean_text, render_messages
from pro_core.data.turns import REFUSED, alternating, marks_pattern, taken, without_reasoning
from pro_core.system.storage import StorageError, first_line

PAIR = "{prompt}{sep}{completion}"
VIEWS = ("prompt", "dialogue", "post")
_FIELD = re.compile(r"\{([a-z_]+)\}")
_SUMMARY = re.compile(r"\b(summari[sz]e|summary|tl;?dr)\b", re.IGNORECASE)


def scored_text(completion: str) -> str:
    """The part of a completion that is scored and counted: clean text, without the thought before the answer."""
    return without_reasoning(clean_text(completion))


def thoughts_note(completions: Sequence[str]) -> list[str]:
    """One sentence if completions begin with a thought, which :func:`scored_text` cuts off; else none."""
    texts = [clean_text(text) for text in completions]
    answers = [answer for text in texts if (answer := without_reasoning(text)) != text]
    if not answers:
        return []
    unanswered = sum(not answer.strip() for answer in answers)
    return [
        f"{len(answers):,} of {len(texts):,} responses begin with a thought, which is neither scored nor learned; "
        f"{unanswered:,} of these have no answer after it."
    ]


def check_format(input_format: str) -> None:
    """Raise a ValueError that says what is wrong with a format, if anything is."""
    if input_format == "chat":
        return
    fields = _FIELD.findall(template_of(input_format))
    known = (*VIEWS, "completion", "bos", "sep")
    wrong = [name for name in fields if name not in known]
    views = [name for name in fields if name in VIEWS]
    if wrong or fields.count("completion") != 1 or len(views) > 1 or fields.count("sep") > 1:
        raise ValueError(
            f"got the input format {input_format!r}, expected 'pair', 'chat' or a text with {{completion}} once, at "
            f"most one of {', '.join(f'{{{view}}}' for view in VIEWS)}, at most one {{sep}}, and {{bos}}"
        )


def template_of(input_format: str) -> str:
    """The template that a format other than ``chat`` stands for."""
    return PAIR if input_format == "pair" else input_format


def view_of(template: str) -> str | None:
    """Which view of the prompt a template shows: ``prompt``, ``dialogue``, ``post``, or None for none."""
    return next((name for name in _FIELD.findall(template) if name in VIEWS), None)


def render(conversation: Sequence[Message], view: str | None) -> str:
    """A conversation, possibly an empty one, in one view."""
    if view is None or not conversation:
        return ""
    if view == "post":
        return _post(conversation)
    if view == "dialogue":
        speakers = {"user": "Human", "assistant": "Assistant"}
        turns = [m for m in conversation if m["role"] in speakers]
        return "".join(f"\n\n{speakers[m['role']]}: {m['content']}" for m in turns)
    return render_messages(conversation)


def _post(conversation: Sequence[Message]) -> str:
    """The text between RiC's marks, or what follows a first paragraph that asks for a summary, as in most prompts."""
    turn = next((m["content"] for m in reversed(conversation) if m["role"] == "user"), "")
    if "### Input:" in turn:
        turn = turn.split("### Input:", 1)[1].split("### Response:")[0]
    else:
        request, blank, rest = turn.partition("\n\n")
        if blank and len(request) <= 200 and _SUMMARY.search(request):
            turn = rest
    return turn.replace("\n", " ").strip()


def fill(template: str, prompt: str, completion: str, bos: str | None) -> tuple[str, str | None]:
    """The text, or the two segments, that reach the tokenizer.

    Raises:
        StorageError: ``{bos}`` for a tokenizer without one.
    """
    if "{bos}" in template and not bos:
        raise StorageError(
            "the input format has {bos}, but the model's tokenizer has no such token"
        )
    values = {"completion": completion, "bos": bos or "", **dict.fromkeys(VIEWS, prompt)}
    # One pass, so that text in a prompt is never read as a field.
    parts = [_FIELD.sub(lambda m: values[m[1]], part) for part in template.split("{sep}")]
    return parts[0], parts[1] if len(parts) == 2 else None


def chat_text(tokenizer, conversation: Sequence[Message], completion: str) -> str:
    """The conversation and the completion as its last turn, in the tokenizer's chat template.

    If a template refuses the two as they are, it gets the first form that it accepts. In that form, a completion
    after an assistant's turn is the rest of that turn (:func:`pro_core.data.turns.taken`).

    Raises:
        StorageError: the tokenizer has no template. DataError: its template refuses the conversation.
    """
    if not tokenizer.chat_template:
        raise StorageError(
            f"the input format is 'chat', but the tokenizer of {tokenizer.name_or_path!r} has no chat template: "
            "take 'pair' or a text with {prompt} and {completion}"
        )

    def render(turns: Sequence[Message]) -> str:
        return tokenizer.apply_chat_template(turns, tokenize=False)

    turns = [m for m in conversation if m["role"] != "system"]
    last = {"role": "assistant", "content": completion}
    try:
        return render([*turns, last])
    except REFUSED:
        if turns and turns[-1]["role"] == "assistant":
            last["content"] = f"{turns.pop()['content']} {completion}".strip()
    try:
        return taken(render, alternating([*turns, last]))[1]
    except REFUSED as error:
        raise DataError(
            f"the chat template of {tokenizer.name_or_path!r} refuses the conversation ({first_line(error)})"
        ) from None


def special_tokens(tokenizer) -> re.Pattern[str] | None:
    """A pattern for the tokenizer's special tokens, written out."""
    return marks_pattern(tokenizer)


def without_special_tokens(text: str, tokens: re.Pattern[str] | None) -> str:
    """The text with a blank inside every special token that it contains.

    Otherwise a response could end its own segment or turn and write the next one. (BART's classifier, which counts its
    end marks, would refuse the batch.)
    """
    return tokens.sub(lambda m: f"{m[0][0]} {m[0][1:]}", text) if tokens else text
