"""The ``data`` section of a recipe: which files or public sets, and what kind of pairs to make of them."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pro_core.data import (
    DataError,
    LabelledResponse,
    PreferencePair,
    example_of,
    load_examples,
    read_jsonl,
    split_of,
    to_messages,
)
from pro_core.objectives import Message, check_objective_names
from pro_core.pairs import (
    constructed_humor_pairs,
    controlled_pairs,
    harmless_ties,
    pairs_from_labels,
    refusal_pairs,
    unprompted_pairs,
)
from pro_core.public_sets import PUBLIC_SETS, load_public_examples


@dataclass(frozen=True)
class DataSource:
    """One entry of a recipe's ``data`` list.

    Attributes:
        path: a JSON Lines file, absolute or under the data folder; or the hub name of a public set, such as
            ``Anthropic/hh-rlhf`` (see :mod:`pro_core.public_sets`).
        kind: ``pairs``, ``labels`` (pairs within one prompt), ``controlled`` (those that agree on all other labels),
            ``refusals``, ``harmless_ties``, ``unprompted`` or ``constructed_humor``; see the function of that name.
        objectives: which to take; empty for all that a file of pairs has.
        splits: what may be trained on. ``epochs``: how often each of those pairs is seen.
        max_pairs: of each objective and split, the first that many.
        as_objective: one name for all pairs, whatever they were judged by: an overall judge.
        licence: of all rows, where the recipe knows better than the file.
    """

    path: str
    kind: str = "pairs"
    objectives: tuple[str, ...] = ()
    splits: tuple[str, ...] = ("train",)
    epochs: int = 1
    max_per_prompt: int = 20
    max_pairs: int | None = None
    as_objective: str = ""
    licence: str = ""

    def load(self, data_dir: str | Path, notes: list[str] | None = None) -> list[PreferencePair]:
        """All pairs of the file, of every split.

        Args:
            notes: gets a sentence for each kind of row that was left out, or counted as odd, with how many.

        Raises:
            DataError: an unknown kind, no pairs, or an objective without any.
        """
        path, examples = Path(data_dir) / self.path, examples_of(self.path, data_dir)
        pairs = [e for e in examples if isinstance(e, PreferencePair)]
        responses = [e for e in examples if isinstance(e, LabelledResponse)]
        if self.kind == "labels":
            for name in self.objectives:
                pairs += pairs_from_labels(responses, name, self.max_per_prompt)
        elif self.kind == "controlled":
            for name in self.objectives:
                pairs += controlled_pairs(responses, name, self.max_per_prompt)
        elif self.kind == "refusals":
            pairs = refusal_pairs(responses, self.max_per_prompt)
        elif self.kind == "harmless_ties":
            pairs = harmless_ties(responses, self.max_per_prompt)
        elif self.kind == "unprompted":
            for name in self.objectives:
                pairs += unprompted_pairs(responses, name)
        elif self.kind == "constructed_humor":
            pairs = constructed_humor_pairs(responses)
        elif self.kind != "pairs":
            raise DataError(f"{path}: got the kind {self.kind!r}, expected one of {KINDS}")
        if self.objectives:
            pairs = [p for p in pairs if p.objective in self.objectives]
        missing = sorted(set(self.objectives) - {p.objective for p in pairs})
        if missing or not pairs:
            reasons = "".join(f"; {_why_no_pairs(name, responses)}" for name in missing)
            raise DataError(f"{path}: no pairs for {missing or 'any objective'}{reasons}")
        if self.as_objective:
            pairs = [replace(p, objective=self.as_objective) for p in pairs]
        if self.max_pairs is not None:
            seen: Counter[tuple[str, str]] = Counter()
            kept = []
            for pair in pairs:
                seen[pair.objective, pair.split] += 1
                if seen[pair.objective, pair.split] <= self.max_pairs:
                    kept.append(pair)
            pairs = kept
        if self.licence:
            pairs = [replace(p, licence=self.licence) for p in pairs]
        return pairs


def licences_of(examples: Iterable[PreferencePair | LabelledResponse]) -> dict[str, list[str]]:
    """Source -> the licences of its rows, sorted; ``unknown`` stands for rows that name none."""
    licences: dict[str, set[str]] = {}
    for example in examples:
        licences.setdefault(example.source, set()).add(example.licence or "unknown")
    return {source: sorted(names) for source, names in sorted(licences.items())}


def is_public(path: Path, name: str) -> bool:
    """Whether a recipe's ``path`` is the name of a public set rather than a file in the data folder."""
    return not path.exists() and name in {n for s in PUBLIC_SETS.values() for n in (s.name, s.path)}


def _why_no_pairs(objective: str, responses: Sequence[LabelledResponse]) -> str:
    labels = Counter(r.labels[objective] for r in responses if objective in r.labels)
    if not labels:
        return f"nothing there is labelled {objective!r}"
    if len(labels) == 1:
        return f"all {labels.total()} labels {objective!r} are {next(iter(labels))!r}, and a pair needs two that differ"
    return f"no two responses to one prompt differ in their label {objective!r}"


@dataclass(frozen=True)
class RatedSource:
    """One entry of the ``data`` list of a classifier's recipe: responses with a rating an objective.

    Attributes:
        path: as in :class:`DataSource`.
        labels: objective -> the file's name for it. A recipe may give a list where the two are the same.
        splits: what may be trained on. ``epochs``: how often each of those responses is seen.
        max_rows: of each split that may be trained on, a random sample of that many; always the same one.
        licence: of all rows, where the recipe knows better than the file.
    """

    path: str
    labels: dict[str, str]
    splits: tuple[str, ...] = ("train",)
    epochs: int = 1
    max_rows: int | None = None
    licence: str = ""

    def load(self, data_dir: str | Path, notes: list[str] | None = None) -> list[LabelledResponse]:
        """All responses of the file, of every split, that have at least one of the labels; no other label is kept.

        Args:
            notes: as in :meth:`DataSource.load`.

        Raises:
            DataError: no file, no labelled responses, or a label that none of them has.
        """
        rated, found = [], set()
        for e in examples_of(self.path, data_dir):
            if isinstance(e, LabelledResponse):
                labels = {o: e.labels[name] for o, name in self.labels.items() if name in e.labels}
                found |= set(labels)
                if labels:
                    licence = self.licence or e.licence
                    rated.append(replace(e, labels=labels, licence=licence))
        missing = sorted(self.labels[o] for o in set(self.labels) - found)
        if missing or not rated:
            raise DataError(
                f"{self.path}: no response has the label {missing or 'of any objective'}"
            )
        if self.max_rows is None:
            return rated
        kept = {i for i, e in enumerate(rated) if e.split not in self.splits}
        for split in self.splits:
            rows = [i for i, e in enumerate(rated) if e.split == split]
            kept |= set(random.Random(0).sample(rows, min(self.max_rows, len(rows))))
        return [e for i, e in enumerate(rated) if i in kept]


def examples_of(path: str, data_dir: str | Path) -> list[PreferencePair | LabelledResponse]:
    """The examples of a file (absolute, or under ``data_dir``) or, where there is none, of the public set so named."""
    file = Path(data_dir) / path
    return load_public_examples(path) if is_public(file, path) else load_examples(file)


KINDS = (
    "pairs",
    "labels",
    "controlled",
    "refusals",
    "harmless_ties",
    "unprompted",
    "constructed_humor",
)


def data_sources(entries: Sequence[dict[str, Any]]) -> list[DataSource]:
    """A recipe's ``data`` list as sources; a :class:`DataError` names an entry with a wrong key."""
    sources = []
    for entry in entries:
        try:
            lists: dict[str, Any] = {
                key: tuple(entry[key]) for key in ("objectives", "splits") if key in entry
            }
            sources.append(DataSource(**(entry | lists)))
        except TypeError as error:
            raise DataError(f"data entry {entry!r}: {error}") from None
    return sources


def rated_sources(
    entries: Sequence[dict[str, Any]], objectives: Collection[str]
) -> list[RatedSource]:
    """As :func:`data_sources`, for the recipe of a classifier; entries may name these ``objectives`` only."""
    sources = []
    for entry in entries:
        labels = entry.get("labels")
        if not labels or not isinstance(labels, (dict, list)):
            raise DataError(
                f"data entry {entry!r}: expected `labels`, a list of objectives or a mapping of each to the "
                "file's name for it"
            )
        if isinstance(labels, list):
            labels = {name: name for name in labels}
        unknown = sorted(set(labels) - set(objectives))
        if unknown:
            raise DataError(
                f"data entry {entry!r}: got the objectives {unknown}, expected some of {list(objectives)}"
            )
        try:
            splits = {"splits": tuple(entry["splits"])} if "splits" in entry else {}
            sources.append(RatedSource(**(entry | splits | {"labels": labels})))
        except TypeError as error:
            raise DataError(f"data entry {entry!r}: {error}") from None
    return sources


def load_responses(path: str | Path) -> list[LabelledResponse]:
    """Every response of a file, for scoring; its labels are not looked at.

    A record has a ``prompt`` (left out for texts that stand alone) and ``response``, or ``responses`` (a list), or
    ``chosen`` and ``rejected``. Ids of several responses to one prompt get a number.

    Raises:
        DataError: naming the file and the record.
    """
    source = Path(path).name.split(".")[0]
    found = []
    for number, row in enumerate(read_jsonl(path), 1):
        try:
            found += _responses_of(row, source, f"{source}-{number}")
        except (KeyError, TypeError, ValueError) as error:
            reason = f"no field {error}" if isinstance(error, KeyError) else error
            raise DataError(f"{path}, record {number} (id {row.get('id')!r}): {reason}") from None
    return found


def _responses_of(row: dict[str, Any], source: str, default_id: str) -> list[LabelledResponse]:
    if "responses" in row:
        texts = row["responses"]
    elif "chosen" in row:
        texts = [row["chosen"], row["rejected"]]
    else:
        texts = [row["response"]]
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise ValueError(f"got the responses {texts!r}, expected texts")
    common: dict[str, Any] = {k: row[k] for k in ("prompt", "id", "split") if k in row}
    common["labels"] = {}
    found = []
    for i, text in enumerate(texts):
        example = example_of(common | {"response": text}, source, default_id)
        assert isinstance(example, LabelledResponse)
        found.append(example if len(texts) == 1 else replace(example, id=f"{example.id}-{i}"))
    return found


def load_texts(entries: Sequence[dict[str, Any]], data_dir: str | Path) -> list[LabelledResponse]:
    """Every response of a config's ``data`` list, each (prompt, response) once, in the order of the list.

    An entry without a ``kind`` is a file of responses (see :func:`load_responses`) or a public set; one
    with a kind is an entry of a recipe, of whose pairs both completions are taken.

    Raises:
        DataError: as the loaders do.
    """
    found: list[LabelledResponse] = []
    for entry in entries:
        path = Path(data_dir) / str(entry.get("path"))
        if "kind" in entry:
            pairs = data_sources([entry])[0].load(data_dir)
        elif set(entry) != {"path"}:
            raise DataError(
                f"data entry {entry!r}: expected a path, and more only beside a kind of {KINDS}"
            )
        elif is_public(path, entry["path"]):
            examples = load_public_examples(entry["path"])
            pairs = [e for e in examples if isinstance(e, PreferencePair)]
            found += [e for e in examples if isinstance(e, LabelledResponse)]
        else:
            pairs = []
            found += load_responses(path)
        for pair in pairs:
            for side, text in (("chosen", pair.chosen), ("rejected", pair.rejected)):
                identity = f"{pair.id}-{side}"
                found.append(
                    LabelledResponse(
                        pair.prompt,
                        text,
                        {},
                        pair.source,
                        identity,
                        pair.split,
                        licence=pair.licence,
                    )
                )
    unique: dict[tuple[str, str], LabelledResponse] = {}
    for response in found:
        unique.setdefault((json.dumps(response.prompt), response.response), response)
    return list(unique.values())


def load_prompts(
    entries: Sequence[dict[str, Any]], data_dir: str | Path, split: str = "train"
) -> list[list[Message]]:
    """Every prompt of one split that can be answered, each once, in the order of a config's ``data`` list.

    Entries are those of :func:`load_texts`, but a file's rows need a ``prompt`` only. Conversations that end with an
    answer are left out.

    Raises:
        DataError: as the loaders do.
    """
    found: dict[str, list[Message]] = {}
    for entry in entries:
        path = Path(data_dir) / str(entry.get("path"))
        rows: list[tuple[list[Message] | None, str]]
        if "kind" in entry or is_public(path, str(entry.get("path"))):
            rows = [(r.prompt, r.split) for r in load_texts([entry], data_dir)]
        else:
            rows = [_prompt_of(row, path, n) for n, row in enumerate(read_jsonl(path), 1)]
        for prompt, where in rows:
            if prompt and where == split and prompt[-1]["role"] == "user":
                found.setdefault(json.dumps(prompt), prompt)
    return list(found.values())


def _prompt_of(row: dict[str, Any], path: Path, number: int) -> tuple[list[Message] | None, str]:
    try:
        prompt = to_messages(row["prompt"]) if row.get("prompt") is not None else None
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}, record {number} (id {row.get('id')!r}): {error}") from None
    return prompt, row.get("split") or (split_of(prompt) if prompt else "")


def default_data_dir() -> Path:
    """``PRO_DATA_DIR``, or the folder beside the project where its authors keep theirs."""
    return Path(os.environ.get("PRO_DATA_DIR", Path(__file__).parents[2] / "shared" / "data"))


def check_pairs(pairs: Sequence[PreferencePair], objectives: Sequence[str]) -> None:
    """Every objective has training pairs, and every pair an objective of the recipe."""
    try:
        check_objective_names(objectives)
    except ValueError as error:
        raise DataError(str(error)) from None
    found = {p.objective for p in pairs}
    if found != set(objectives):
        raise DataError(
            f"the recipe's objectives are {list(objectives)}, its training pairs have {sorted(found)}; "
            "name the same ones, or choose with `objectives` in a data entry"
        )
