"""Readers of the formats that preference data comes in. They give rows of our own schema (:mod:`pro_core.data.schema`).

They read messages of OpenAI and ShareGPT, transcripts of hh-rlhf, TRL's preference format (with a prompt field, or with
two conversations that share their start), and ratings of UltraFeedback and HelpSteer. A row's fields decide its format,
never the name of its file.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Collection, Iterator
from typing import Any

from pro_core.data.objectives import Message, Prompt

Row = dict[str, Any]

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
"""The role names of OpenAI and ShareGPT -> ours."""

HELPSTEER_RATINGS = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
NOT_RATED = (None, "N/A")

# A turn of a transcript begins after a blank line: "Human:" at the start of a line within a turn is text.
_TURN = re.compile(r"(?:\A|\r?\n\r?\n)(Human|Assistant):[ \t]*")
_NEXT_TURN = re.compile(r"\r?\n\r?\nHuman:")
_NEXT_TURNS = re.compile(_NEXT_TURN.pattern + r".*?\r?\n\r?\nAssistant:", re.DOTALL)
_PARTED = "the two conversations do not share all turns up to one last answer each"


class LeftOut(Exception):
    """A row that is well formed but gives no example. ``reason`` is the same for all rows of its kind."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


# ---------------------------------------------------------------- conversations


def parse_turns(text: str) -> list[Message]:
    """The turns of a ``Human:`` / ``Assistant:`` transcript; one user message for any other text."""
    text = text.strip()
    if text.startswith("Human:"):
        pieces = _TURN.split(text)[1:]
        roles = {"Human": "user", "Assistant": "assistant"}
        return [
            {"role": roles[speaker], "content": content.strip()}
            for speaker, content in zip(pieces[::2], pieces[1::2], strict=True)
        ]
    if text.startswith("Q:"):
        text = re.sub(r"\s*\n+A:\s*$", "", text[2:])
    return [{"role": "user", "content": text}]


def message_of(message: Any) -> Message:
    """One message in OpenAI's form (``role``, ``content``) or ShareGPT's (``from``, ``value``).

    Raises:
        ValueError: another form, a role that a prompt cannot have (such as a tool's), or content that is not text.
    """
    if not isinstance(message, dict):
        raise ValueError(
            f"got the message {reprlib.repr(message)}, expected {{'role': ..., 'content': text}}"
        )
    who, what = (
        ("from", "value") if "from" in message and "role" not in message else ("role", "content")
    )
    role = message.get(who)
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(
            f"got the role {role!r}, expected 'system', 'user' or 'assistant': leave out conversations with other turns"
        )
    return {"role": ROLES[role], "content": _text_of_content(message.get(what))}


def _text_of_content(content: Any) -> str:
    """A message's text: its content, or its text parts, one per line."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError(
            f"got the message content {reprlib.repr(content)}, expected text or a list of text parts"
        )
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        text = part.get("text") if isinstance(part, dict) else part
        if kind not in ("text", "str") or not isinstance(text, str):
            raise ValueError(f"got a content part of the type {kind!r}, expected 'text' parts only")
        texts.append(text)
    return "\n".join(texts)


def _messages_of(content: Any) -> list[Message]:
    """The messages of a list, or of a single message."""
    messages = [message_of(m) for m in (content if isinstance(content, list) else [content])]
    if not messages:
        raise ValueError(
            "got an empty list of messages, expected an assistant's message at its end"
        )
    return messages


def _conversation_of(row: Row) -> list[Message] | None:
    messages = next((row[key] for key in ("messages", "conversations") if row.get(key)), None)
    return None if messages is None else _messages_of(messages)


# ---------------------------------------------------------------- rows


def schema_rows(row: Row, columns: Collection[str] = ()) -> list[Row]:
    """A row of any known form as rows of the schema; several if it holds several responses.

    Args:
        columns: fields to read as ratings, in rows without ``labels``.

    Raises:
        LeftOut: the row gives no example. KeyError, TypeError, ValueError: it has another form.
    """
    if "instruction" in row and "completions" in row:
        kept = {key: row[key] for key in ("id", "split", "licence", "license") if key in row}
        rows = [kept | rated for rated in ultrafeedback_rows(row)]
        if kept.get("id") is not None:
            rows = [rated | {"id": f"{row['id']}-{i}"} for i, rated in enumerate(rows)]
        return rows
    if "chosen" in row or "preferred_output" in row:
        return [_pair_row(row)]
    return [_rated_row(row, columns)]


def _pair_row(row: Row) -> Row:
    if "preferred_output" in row:  # OpenAI's preference format
        prompt: Any = row["input"]["messages"]
        chosen, rejected = row["preferred_output"], row["non_preferred_output"]
    else:
        prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
        prompt = _conversation_of(row) if prompt is None else prompt
    scored = "score_chosen" in row and "score_rejected" in row
    if scored and not _score(row, "score_chosen") > _score(row, "score_rejected"):
        raise LeftOut("their scores do not say that `chosen` is better than `rejected`")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if _are_transcripts(prompt, chosen, rejected):
            prompt, chosen, rejected = split_transcripts(chosen, rejected)
    elif isinstance(chosen, (list, dict)) and isinstance(rejected, (list, dict)):
        prompt, chosen, rejected = _split_conversations(
            prompt, _messages_of(chosen), _messages_of(rejected)
        )
    if any(isinstance(text, str) and _goes_on(prompt, text) for text in (chosen, rejected)):
        raise LeftOut("a completion goes on with a `Human:` turn")
    return row | {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _are_transcripts(prompt: Any, chosen: str, rejected: str) -> bool:
    """Whether two completions are whole conversations as hh-rlhf writes them."""
    whole = all(
        text.lstrip().startswith("Human:") and "Assistant:" in text for text in (chosen, rejected)
    )
    same = isinstance(prompt, str) and chosen.strip().startswith(prompt.strip())
    return whole and (prompt is None or same)


def _goes_on(prompt: Any, completion: str) -> bool:
    """Whether a completion holds the user's next turn.

    If the prompt is not a transcript, ``Human:`` alone is plain text, as in a play. If an assistant's turn follows it,
    the conversation goes on, whatever the prompt's form.
    """
    transcript = isinstance(prompt, str) and prompt.lstrip().startswith("Human:")
    return (_NEXT_TURN if transcript else _NEXT_TURNS).search(completion) is not None


def _score(row: Row, key: str) -> float:
    score = finite_number(row[key])
    if score is None:
        raise ValueError(f"got {row[key]!r} as {key!r}, expected a finite number")
    return score


def finite_number(value: Any) -> float | None:
    """The number in a value or in a text (``"4.5"``), an int if it is whole; None for anything else."""
    if not isinstance(value, (str, int, float)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() else number


def split_transcripts(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Two transcripts as (their common prompt, the chosen answer, the rejected answer), stripped of white space.

    Raises:
        LeftOut: they differ before the last turn, or one of them goes on after its answer. Cut there, they would make
            a comparison that nobody judged.
    """
    (prompt, speaker, answer), other = _last_turn(chosen), _last_turn(rejected)
    if (prompt, speaker) != other[:2] or speaker != "Assistant":
        raise LeftOut(_PARTED)
    return prompt, answer, other[2]


def _last_turn(transcript: str) -> tuple[str, str, str]:
    """(the text before the last turn, its speaker, its text)."""
    transcript = transcript.strip()
    *_, last = [None, *_TURN.finditer(transcript)]
    if last is None:
        raise LeftOut(_PARTED)
    return transcript[: last.start()].strip(), last[1], transcript[last.end() :].strip()


def _split_conversations(
    prompt: Prompt | None, chosen: list[Message], rejected: list[Message]
) -> tuple[Prompt, str, str]:
    """TRL's formats: an explicit prompt and two answers, or two conversations that share all but the answer."""
    before, answers = chosen[:-1], (chosen[-1], rejected[-1])
    if before != rejected[:-1] or any(m["role"] != "assistant" for m in answers):
        raise LeftOut(_PARTED)
    texts = (answers[0]["content"], answers[1]["content"])
    if prompt is None:
        return before, *texts
    before = _not_empty(before)
    if not before:
        return prompt, *texts
    asked = parse_turns(prompt) if isinstance(prompt, str) else _messages_of(list(prompt))
    asked = _not_empty(asked)  # a transcript may end with an open `Assistant:`
    common = _overlap(asked, before)
    if common or before[0]["role"] == "assistant":  # both go on from the prompt
        return [*asked, *before[common:]], *texts
    rest = iter(map(_said, before))
    if not all(turn in rest for turn in map(_said, asked)):
        raise ValueError(
            "`prompt` and the turns that `chosen` answers are not one conversation: expected the same turns, the "
            "beginning or end of them, or those that they go on from"
        )
    return before, *texts


def _not_empty(messages: list[Message]) -> list[Message]:
    return [m for m in messages if m["content"].strip()]


def _overlap(asked: list[Message], before: list[Message]) -> int:
    """How many turns at the end of ``asked`` are also the turns at the beginning of ``before``."""
    ends, begins = [_said(m) for m in asked], [_said(m) for m in before]
    counts = range(min(len(ends), len(begins)), 0, -1)
    return next((n for n in counts if ends[-n:] == begins[:n]), 0)


def _said(message: Message) -> tuple[str, str]:
    return message["role"], message["content"].strip()


def _rated_row(row: Row, columns: Collection[str]) -> Row:
    """A response with ratings, a response alone, or a prompt alone. The caller reports missing fields."""
    rated = dict(row)
    if "response" not in rated and "completion" in rated:
        rated["response"] = rated["completion"]
    if rated.get("prompt") is None and (turns := _conversation_of(row)) is not None:
        if "response" not in rated and turns[-1]["role"] == "assistant":
            rated["response"] = turns.pop()["content"]
        rated["prompt"] = turns
    if isinstance(rated.get("response"), (list, dict)):
        *more, answer = _messages_of(rated["response"])
        if more or answer["role"] != "assistant":
            raise ValueError(
                f"got {len(more) + 1} messages as the response, expected the assistant's one"
            )
        rated["response"] = answer["content"]
    helpsteer = "labels" not in row and all(name in row for name in HELPSTEER_RATINGS)
    if helpsteer and isinstance(row.get("prompt"), str):
        rated["prompt"] = helpsteer_prompt(row["prompt"])
    names = [*(HELPSTEER_RATINGS if helpsteer else ()), *columns]
    if names:
        ratings = {name: row[name] for name in names if row.get(name) not in NOT_RATED}
        rated["labels"] = ratings | dict(row.get("labels") or {})
    return rated


# ---------------------------------------------------------------- ratings of known sets


def ultrafeedback_rows(row: Row) -> Iterator[Row]:
    """Each completion of an instruction with its ratings: what was rated -> 1 to 5.

    ``N/A``, or anything else that is not a finite number, is not a rating.
    """
    for completion in row["completions"]:
        annotations = completion.get("annotations") or {}
        ratings = {
            n: finite_number((annotation or {}).get("Rating"))
            for n, annotation in annotations.items()
        }
        labels = {name: rating for name, rating in ratings.items() if rating is not None}
        yield {"prompt": row["instruction"], "response": completion["response"], "labels": labels}


def helpsteer_prompt(prompt: str) -> str:
    """HelpSteer2's prompt as a transcript: its later turns are marked ``<extra_id_1>User`` and ``Assistant``."""
    if "<extra_id_1>" not in prompt:
        return prompt
    first, *later = prompt.split("<extra_id_1>")
    turns = [f"Human: {first.strip()}"]
    for turn in later:
        who, _, content = turn.partition("\n")
        if content.strip():
            speaker = "Human" if who.strip() == "User" else "Assistant"
            turns.append(f"{speaker}: {content.strip()}")
    return "\n\n".join(turns)
