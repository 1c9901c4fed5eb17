"""Human preference data: messages, preference pairs, labelled responses, splits and loaders.

There are two kinds of rows. A *pair* says which of two completions people preferred, under one objective. A
*labelled response* carries labels (``truthful: 1``); :mod:`pro_core.data.pairs` turns those of one prompt into
pairs. Every prompt becomes a list of messages and is rendered by one function, so that the form of a text never
tells a model which source it came from.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from pro_core.data.formats import LeftOut, Row, message_of, parse_turns, schema_rows
from pro_core.data.jsonl import (
    DataError as DataError,  # `as` re-exports these to readers of data
)
from pro_core.data.jsonl import read_jsonl as read_jsonl
from pro_core.data.objectives import Message, Prompt

MAX_PROMPT_CHARS = 200_000
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_INVISIBLE_CATEGORIES = ("Cc", "Cf", "Zs", "Zl", "Zp")
_INVISIBLE_LETTERS = re.compile(
    r"[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Invisible characters that Unicode calls letters, marks or symbols: fillers, variation selectors, blank braille."""


@dataclass(frozen=True)
class PreferencePair:
    """One comparison under one objective. ``chosen`` is the better completion, unless the two are a ``tie``.

    In ``augmented`` pairs a completion answers another prompt; :attr:`only_trains` is true of these and of ties.
    ``ungraded`` says why accuracies leave it out, see :mod:`pro_core.data.training_pairs`. ``weight`` is how much it
    counts in training.
    """

    prompt: list[Message]
    chosen: str
    rejected: str
    objective: str
    source: str = ""
    id: str = ""
    split: str = "train"
    constructed: bool = False
    tie: bool = False
    augmented: bool = False
    ungraded: str = ""
    licence: str = ""
    weight: float = 1.0

    @property
    def only_trains(self) -> bool:
        """Whether the pair trains a reward model and is never scored or graded."""
        return self.tie or self.augmented


@dataclass(frozen=True)
class LabelledResponse:
    """One response with its labels, such as ``{"truthful": 1, "informative": 0}``; ``ungraded`` as in a pair."""

    prompt: list[Message] | None
    response: str
    labels: dict[str, Any]
    source: str = ""
    id: str = ""
    split: str = "train"
    extra: dict[str, Any] = field(default_factory=dict)
    ungraded: str = ""
    licence: str = ""


# ---------------------------------------------------------------- text


def clean_text(text: str) -> str:
    """Text that every model, file and page can hold. All prompts, completions and responses are cleaned when read.

    Control characters are removed, except tabs and line ends. Two adjacent halves of a surrogate pair, as broken JSON
    has them, become their character; a single half becomes U+FFFD. Other text is returned as it is. Cleaning clean
    text changes nothing.
    """
    text = _CONTROL.sub("", text)
    if _SURROGATE.search(text):
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def one_spelling(text: str) -> str:
    """A completion in the form used for comparison: composed letters (NFC), single blanks, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: only white space, zero-width and format characters, fillers."""
    return all(
        unicodedata.category(character) in _INVISIBLE_CATEGORIES
        or _INVISIBLE_LETTERS.match(character)
        for character in text
    )


# ---------------------------------------------------------------- prompts


def to_messages(prompt: Prompt) -> list[Message]:
    """A prompt as a list of messages: clean text (see :func:`clean_text`) in Unicode's composed form, NFC.

    So a prompt that was typed on two systems is the same prompt in splits and folds, and for models. A string that
    starts with ``Human:`` is parsed into turns, each after a blank line; one that starts with ``Q:`` loses that mark
    (and a trailing ``A:``); any other string is one user message. Messages may be OpenAI's, with text or text parts as
    content, or ShareGPT's. A final assistant turn is kept: the completion then continues after it.

    Raises:
        ValueError: a blank prompt, one over 200,000 characters, or messages of another form.
    """
    messages = parse_turns(prompt) if isinstance(prompt, str) else [message_of(m) for m in prompt]
    messages = [m | {"content": _composed(m["content"]).strip()} for m in messages]
    messages = [m for m in messages if not is_blank(m["content"])]
    if not any(m["role"] == "user" for m in messages):
        raise ValueError("got an empty prompt, expected at least one user message with text")
    length = sum(len(m["content"]) for m in messages)
    if length > MAX_PROMPT_CHARS:
        raise ValueError(
            f"got a prompt of {length:,} characters, expected at most {MAX_PROMPT_CHARS:,}"
        )
    return messages


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", clean_text(text))


def render_messages(messages: Sequence[Message]) -> str:
    """The text of a conversation as encoders read it: a single user turn is its text alone.

    Longer conversations read ``User: ...``, ``Assistant: ...`` with a blank line between turns. System messages
    are left out: a candidate's style must not change the weights or the scores of its prompt.
    """
    turns = [m for m in messages if m["role"] != "system"]
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in turns)


def content_spans(messages: Sequence[Message]) -> list[tuple[int, int, int]]:
    """The spans of the messages' contents in :func:`render_messages`: (message index, start, end)."""
    spans, read = [], 0
    turns = [i for i, m in enumerate(messages) if m["role"] != "system"]
    for count, i in enumerate(turns, 1):
        content = messages[i]["content"]
        if len(turns) > 1:
            read += (2 if count > 1 else 0) + len(f"{messages[i]['role']}: ")
        spans.append((i, read, read + len(content)))
        read += len(content)
    return spans


def first_user_turn(prompt: Prompt) -> str:
    """The text that decides a row's split and fold."""
    return next(m["content"] for m in to_messages(prompt) if m["role"] == "user")


def hash_unit(text: str) -> float:
    """A number in [0, 1) that depends on the text, but not on its case, white space or way of composing letters."""
    normal = " ".join(_composed(text).lower().split())
    return int.from_bytes(hashlib.sha256(normal.encode()).digest()[:8], "big") / 2**64


def split_of(prompt: Prompt) -> str:
    """``train`` (70%), ``validation`` (10%) or ``test`` (20%), by hash of the first user turn."""
    unit = hash_unit(first_user_turn(prompt))
    return "train" if unit < 0.7 else "validation" if unit < 0.8 else "test"


def fold_of(prompt: Prompt, folds: int = 5) -> int:
    """The fold of a prompt, 0 to ``folds - 1``: all rows with the same first user turn share it."""
    return int(hash_unit("fold:" + first_user_turn(prompt)) * folds)


# ---------------------------------------------------------------- examples


def load_examples(
    path: str | Path,
    objective: str = "",
    columns: Collection[str] = (),
    notes: list[str] | None = None,
) -> list[PreferencePair | LabelledResponse]:
    """Pairs and labelled responses of one file, in our schema or a form that :mod:`pro_core.data.formats` knows.

    A pair has ``objective``, ``prompt``, ``chosen``, ``rejected``. A labelled response has ``response``, ``labels``
    and, unless its text stands alone, a ``prompt``. ``split`` comes from the file, or else from a hash.

    Args:
        objective: the objective of pairs that name none.
        columns: fields that hold ratings, in rows without ``labels``.
        notes: gets a sentence, with a count, for each kind of row that was left out.

    Raises:
        DataError: a record that cannot be read, named with its file; or no row is left.
    """
    path = Path(path)
    source = clean_text(path.name.split(".")[0])
    examples: list[PreferencePair | LabelledResponse] = []
    left_out: Counter[str] = Counter()
    rows = read_jsonl(path)
    for number, row in enumerate(rows, 1):
        try:
            records = schema_rows(row, columns)
            for i, record in enumerate(records):
                default_id = f"{source}-{number}" + (f"-{i}" if len(records) > 1 else "")
                examples.append(example_of(record, source, default_id, objective))
        except LeftOut as error:
            left_out[error.reason] += 1
        except NO_EXAMPLE as error:
            raise DataError(broken_record(path, number, row, error)) from None
    sentences = [f"{n:,} rows left out, {reason}." for reason, n in left_out.items()]
    if rows and not examples:
        raise DataError(f"{path}: no row is left. {' '.join(sentences)}")
    if notes is not None:
        notes += sentences
    return examples


NO_EXAMPLE = (LookupError, TypeError, ValueError, AttributeError)
"""The errors that readers raise for a record of an unknown form."""


def broken_record(path: Path, number: int, row: Row, error: Exception) -> str:
    """Which record cannot be read, and why."""
    reason = f"no field {error}" if isinstance(error, KeyError) else error
    return f"{path}, record {number} (id {row.get('id')!r}): {reason}"


def example_of(
    row: Row, source: str, default_id: str, objective: str = ""
) -> PreferencePair | LabelledResponse:
    """One record of the schema as an example; KeyError, TypeError or ValueError if it is not one."""
    prompt = to_messages(row["prompt"]) if row.get("prompt") is not None else None
    if "chosen" in row:
        if prompt is None:
            raise ValueError("no field 'prompt', and `chosen` and `rejected` are not conversations")
        named = row.get("objective") or objective
        if not isinstance(named, str):
            raise ValueError(f"got {named!r} as 'objective', expected text")
        if not named:
            raise ValueError(
                "no field 'objective': expected it in every row, or exactly one in the recipe's entry "
                "(`objectives: [helpful]`, or `as_objective`)"
            )
        chosen, rejected = _text(row, "chosen"), _text(row, "rejected")
        for key, text in (("chosen", chosen), ("rejected", rejected)):
            if not text.strip():
                raise ValueError(f"got {row[key]!r} as {key!r}, expected text")
        common = _common(row, source, default_id, prompt)
        return PreferencePair(prompt, chosen, rejected, clean_text(named), **common)
    response = _text(row, "response")
    extra: Row = {key: _clean(row[key]) for key in ("prompt_unsafe", "context") if key in row}
    given = dict(row["labels"]).items()
    labels = {_clean(name): _clean(label) for name, label in given if label is not None}
    for name, label in labels.items():  # `behaviour` alone is a word, see `refusal_pairs`
        if name != "behaviour" and not _is_finite(label):
            raise ValueError(f"got the label {name}: {label!r}, expected a finite number, or null")
    common = _common(row, source, default_id, prompt or response)
    return LabelledResponse(prompt, response, labels, extra=extra, **common)


def _common(row: Row, source: str, default_id: str, split_by: Prompt) -> Row:
    """The fields that both kinds of example share. ``split_by``: the prompt, or the text that stands alone."""
    split = row.get("split") or split_of(split_by)
    if split not in SPLITS:
        raise ValueError(f"got the split {split!r}, expected one of {SPLITS}")
    name = default_id if row.get("id") is None else clean_text(str(row["id"]))
    licence = clean_text(str(row.get("licence") or row.get("license") or ""))
    return {"source": source, "id": name, "split": split, "licence": licence}


def _text(row: Row, key: str) -> str:
    if not isinstance(row[key], str):
        raise ValueError(f"got {row[key]!r} as {key!r}, expected text")
    return clean_text(row[key])


def _clean(value: Any) -> Any:
    return clean_text(value) if isinstance(value, str) else value


def _is_finite(label: Any) -> bool:
    try:
        return isinstance(label, (bool, int, float)) and math.isfinite(label)
    except OverflowError:  # an integer too large for a float
        return False


# ---------------------------------------------------------------- responses alone


def load_responses(path: str | Path, notes: list[str] | None = None) -> list[LabelledResponse]:
    """Every response of a file, for scoring; labels are ignored.

    A record has a ``prompt`` (none if its text stands alone) and ``response``, or ``responses`` (a list), or
    ``chosen`` and ``rejected``, or another form that :mod:`pro_core.data.formats` knows. If a record has several
    responses, their ids get a number. ``notes`` as in :func:`pro_core.data.schema.load_examples`.

    Raises:
        DataError: a record that cannot be read, named with its file.
    """
    path = Path(path)
    source = clean_text(path.name.split(".")[0])
    responses = []
    left_out: Counter[str] = Counter()
    for number, row in enumerate(read_jsonl(path), 1):
        try:
            responses += _responses_of(row, source, f"{source}-{number}")
        except LeftOut as error:
            left_out[error.reason] += 1
        except NO_EXAMPLE as error:
            raise DataError(broken_record(path, number, row, error)) from None
    if notes is not None:
        notes += [f"{n:,} rows left out, {reason}." for reason, n in left_out.items()]
    return responses


def _responses_of(row: Row, source: str, default_id: str) -> list[LabelledResponse]:
    rows = [row] if "responses" in row else schema_rows(row)
    texts = []
    for record in rows:
        if "responses" in record:
            completions = record["responses"]
            if not isinstance(completions, list) or not completions:
                raise ValueError(f"got the responses {completions!r}, expected texts")
        elif "chosen" in record:
            completions = [record["chosen"], record["rejected"]]
        else:
            completions = [record["response"]]
        texts += [(record, text) for text in completions]
    responses = []
    for i, (record, text) in enumerate(texts):
        kept = {k: record[k] for k in KEPT if k in record}
        name = default_id if row.get("id") is None else row["id"]
        kept |= {"id": f"{name}-{i}" if len(texts) > 1 else name, "response": text, "labels": {}}
        example = example_of(kept, source, default_id)
        assert isinstance(example, LabelledResponse)
        responses.append(example)
    return responses


KEPT = ("prompt", "split", "licence", "license")
"""The fields of a row that a response keeps when it is to be scored."""
