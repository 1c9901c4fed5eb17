"""The prompts of a benchmark and models' answers to them, from files in the forms that benchmarks publish.

The project ships neither. A name such as ``owner/name:path/in/it.json`` is a file of a hub data set, which is
downloaded; any other name is a file here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pro_core.data.jsonl import read_jsonl
from pro_core.data.schema import DataError
from pro_core.system.storage import content_hash, first_line

_UIDS = ("uid", "question_id", "prompt_id", "id")
_TEXTS = ("instruction", "prompt", "turns", "user_query", "query", "question")


@dataclass(frozen=True)
class BenchPrompt:
    """One prompt of a benchmark.

    Attributes:
        turns: what the user says, one text, or two in MT-Bench.
        category: "" without one. reference: the correct answer to each turn; () without.
    """

    uid: str
    turns: tuple[str, ...]
    category: str = ""
    reference: tuple[str, ...] = ()


def hub_file(name: str) -> Path:
    """The local file of a name; see the module.

    Raises:
        DataError: there is no such file, here or on the hub.
    """
    path = Path(name)
    if path.is_file():
        return path
    repository, colon, inside = name.partition(":")
    if not colon or repository.count("/") != 1 or not inside:
        raise DataError(
            f"{name}: no such file, and not a file of the hub, such as owner/name:file.json"
        )
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, inside, repo_type="dataset"))
    except Exception as error:
        raise DataError(
            f"{name}: the hub gives no such file ({type(error).__name__}: {first_line(error)})"
        ) from None


def load_prompts(name: str, count: int | None = None) -> list[BenchPrompt]:
    """The prompts of a file, in its order; the first ``count``.

    Read are AlpacaEval's ``instruction``, Arena-Hard's ``uid``, ``category`` and ``prompt``, MT-Bench's
    ``question_id``, ``category``, ``turns`` and ``reference`` (or its hub form, ``prompt`` as a list), and HaluEval
    2.0's ``user_query``.

    Raises:
        DataError: another form, no prompts, fewer than ``count``, or two of one uid.
    """
    prompts = [
        _prompt(row, f"{name}, entry {i}") for i, row in enumerate(read_jsonl(hub_file(name)))
    ]
    uids = [p.uid for p in prompts]
    if twice := next((uid for uid in uids if uids.count(uid) > 1), None):
        raise DataError(f"{name}: got two prompts {twice!r}, expected different ones")
    if not prompts or (count is not None and len(prompts) < count):
        raise DataError(f"{name}: got {len(prompts)} prompts, expected {count or 'at least one'}")
    return prompts[:count]


def _prompt(row: Mapping[str, Any], where: str) -> BenchPrompt:
    turns = _texts(next((row[key] for key in _TEXTS if row.get(key)), None))
    if not turns:
        raise DataError(
            f"{where}: got {sorted(row)}, expected one of {', '.join(_TEXTS)} with a text"
        )
    uid = next((str(row[key]) for key in _UIDS if row.get(key) is not None), "")
    return BenchPrompt(
        uid or content_hash(list(turns))[:16],
        turns,
        str(row.get("category") or ""),
        _texts(row.get("reference")),
    )


def _texts(value: Any) -> tuple[str, ...]:
    """A text, or a list of texts, as a tuple; empty if it is neither."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return ()
    return tuple(texts)


def load_answers(name: str, prompts: Sequence[BenchPrompt]) -> list[tuple[str, ...]]:
    """A model's answer to each turn of each prompt, from a file in the form of one of the official tools.

    Read are AlpacaEval's ``instruction`` and ``output``, Arena-Hard's ``uid`` and ``messages``, and MT-Bench's
    ``question_id`` and ``choices``, HaluEval 2.0's ``id`` and ``<model>_response``; or ``uid`` with ``answer``, a text
    or one per turn.

    Raises:
        DataError: another form, answers of several models, or prompts without an answer.
    """
    rows = read_jsonl(hub_file(name))
    models = {str(row[k]) for row in rows for k in ("generator", "model", "model_id") if row.get(k)}
    if len(models) > 1:
        raise DataError(f"{name}: got answers of {len(models)} models, expected one model's")
    by_uid: dict[str, tuple[str, ...]] = {}
    for row in rows:
        answer = _answer(row)
        uid = next((str(row[key]) for key in _UIDS if row.get(key) is not None), "")
        for key in (uid, row.get("instruction")):
            if key and answer is not None:
                by_uid[key] = answer
    answers = [by_uid.get(p.uid, by_uid.get(p.turns[0])) for p in prompts]
    lacking = [
        p.uid for p, a in zip(prompts, answers, strict=True) if a is None or len(a) < len(p.turns)
    ]
    if lacking:
        raise DataError(
            f"{name}: {len(lacking)} of {len(prompts)} prompts, the first {lacking[0]!r}, have no answer there: it "
            "answers another prompt set, or is not finished"
        )
    return [answer for answer in answers if answer is not None]


def _answer(row: Mapping[str, Any]) -> tuple[str, ...] | None:
    try:
        if "choices" in row:
            found = row["choices"][0]["turns"]
        elif "messages" in row:
            contents = [m["content"] for m in row["messages"] if m["role"] == "assistant"]
            found = [c["answer"] if isinstance(c, Mapping) else c for c in contents]
        else:
            keys = ("answer", "output", *(key for key in row if key.endswith("_response")))
            found = next(row[key] for key in keys if key in row)
    except (KeyError, IndexError, TypeError, StopIteration):
        return None
    return _texts(found) or None
