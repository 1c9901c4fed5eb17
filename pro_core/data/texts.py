"""Texts to score and prompts to answer: the ``data`` of recipes that compare nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pro_core.data.entries import PairSettings, PairSource
from pro_core.data.formats import LeftOut, Row, schema_rows
from pro_core.data.objectives import Message
from pro_core.data.pairs import Kind
from pro_core.data.public_sets import load_public_examples
from pro_core.data.schema import (
    NO_EXAMPLE,
    DataError,
    LabelledResponse,
    PreferencePair,
    Split,
    broken_record,
    load_responses,
    read_jsonl,
    split_of,
    to_messages,
)
from pro_core.data.sources import add_notes, is_public
from pro_core.system.extras import needs

with needs("train"):
    from pydantic import model_validator


class TextSource(PairSettings):
    """An entry that gives texts: with a ``kind`` both completions of its pairs, else every response of its file."""

    kind: Kind | None = None
    """how to get pairs, see PairSource; null for all responses of a file or a public set, whatever their labels"""

    @model_validator(mode="after")
    def _more_beside_a_kind(self) -> TextSource:
        if self.kind is None and (more := self.model_fields_set - {"path", "kind"}):
            raise ValueError(f"got {sorted(more)} without a kind, expected a path alone")
        return self

    def load(self, data_dir: str | Path, notes: list[str] | None = None) -> list[LabelledResponse]:
        """Every response, as often as it occurs; ``notes`` as in :meth:`PairSource.load`.

        Raises:
            DataError: as the loaders of files, public sets and pairs do.
        """
        path = Path(data_dir) / self.path
        responses: list[LabelledResponse] = []
        pairs: list[PreferencePair] = []
        sentences: list[str] = []
        if self.kind is not None:
            pairs = PairSource(**self.model_dump()).load(data_dir, notes)
        elif is_public(path, self.path):
            examples = load_public_examples(self.path, notes=sentences)
            pairs = [e for e in examples if isinstance(e, PreferencePair)]
            responses = [e for e in examples if isinstance(e, LabelledResponse)]
        else:
            responses = load_responses(path, sentences)
        add_notes(notes, self.path, sentences)
        for pair in pairs:
            for side, text in (("chosen", pair.chosen), ("rejected", pair.rejected)):
                alone = LabelledResponse(pair.prompt, text, {}, pair.source, f"{pair.id}-{side}")
                responses.append(replace(alone, split=pair.split, licence=pair.licence))
        return responses

    def prompts(self, data_dir: str | Path, split: Split = "train") -> list[list[Message]]:
        """Every prompt of one split that ends with the user's turn; a file's rows need only a ``prompt``.

        Raises:
            DataError: as :meth:`load` does.
        """
        path = Path(data_dir) / self.path
        rows: list[tuple[list[Message] | None, str]]
        if self.kind is not None or is_public(path, self.path):
            rows = [(r.prompt, r.split) for r in self.load(data_dir)]
        else:
            rows = [_prompt_of(row, path, n) for n, row in enumerate(read_jsonl(path), 1)]
        return [p for p, where in rows if p and where == split and p[-1]["role"] == "user"]


def load_texts(
    sources: Sequence[TextSource], data_dir: str | Path, notes: list[str] | None = None
) -> list[LabelledResponse]:
    """Every response of a recipe's ``data`` list, each (prompt, response) once, in the order of the list.

    Raises:
        DataError: as :meth:`TextSource.load` does.
    """
    unique: dict[tuple[str, str], LabelledResponse] = {}
    for source in sources:
        for response in source.load(data_dir, notes):
            unique.setdefault((json.dumps(response.prompt), response.response), response)
    return list(unique.values())


def load_prompts(
    sources: Sequence[TextSource], data_dir: str | Path, split: Split = "train"
) -> list[list[Message]]:
    """Every prompt of one split that can be answered, each once, in the order of a recipe's ``data`` list.

    Conversations that end with an answer are left out.

    Raises:
        DataError: as :meth:`TextSource.load` does.
    """
    prompts = [prompt for source in sources for prompt in source.prompts(data_dir, split)]
    return list({json.dumps(prompt): prompt for prompt in prompts}.values())


def _prompt_of(row: Row, path: Path, number: int) -> tuple[list[Message] | None, str]:
    try:
        value = next(iter(schema_rows(row)), row).get("prompt")
        prompt = to_messages(value) if value is not None else None
    except LeftOut:  # two conversations without a common prompt
        prompt = None
    except NO_EXAMPLE as error:
        raise DataError(broken_record(path, number, row, error)) from None
    return prompt, row.get("split") or (split_of(prompt) if prompt else "")
