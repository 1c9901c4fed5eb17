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

from pro_core.data.formats import LeftOut, Row, schema_rows
from pro_core.data.objectives import Message, check_objective_names
from pro_core.data.pairs import KINDS, RATED, pairs_of_kind, why_no_pairs
from pro_core.data.public_sets import PUBLIC_SETS, load_public_examples
from pro_core.data.schema import (
    NO_EXAMPLE,
    SPLITS,
    DataError,
    LabelledResponse,
    PreferencePair,
    broken_record,
    is_blank,
    load_examples,
    load_responses,
    one_spelling,
    read_jsonl,
    split_of,
    to_messages,
)


@dataclass(frozen=True)
class DataSource:
    """One entry of a recipe's ``data`` list.

    Attributes:
        path: a JSON Lines file, absolute or under the data folder; or the hub name of a public set, such as
            ``Anthropic/hh-rlhf`` (see :mod:`pro_core.data.public_sets`).
        kind: ``pairs``, ``labels`` (pairs within one prompt), ``controlled`` (those that agree on all other labels),
            ``refusals``, ``harmless_ties``, ``unprompted`` or ``constructed_humor``; see the function of that name.
        objectives: which to take; empty for all that a file of pairs has. A mapping says what the file calls each:
            ``{helpful: helpfulness}``. The ratings of a file are its rows' ``labels`` or fields of that name.
            Pairs that name no objective are taken under the only one, where there is one only.
        splits: what may be trained on. ``epochs``: how often each of those pairs is seen.
        max_pairs: of each objective and split, the first that many.
        as_objective: one name for all pairs, whatever they were judged by: an overall judge.
        licence: of all rows, where the recipe knows better than the file.
    """

    path: str
    kind: str = "pairs"
    objectives: tuple[str, ...] | dict[str, str] = ()
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
        if self.kind not in KINDS:
            raise DataError(f"{self.path}: got the kind {self.kind!r}, expected one of {KINDS}")
        said: list[str] = []
        pairs, responses = self._examples(data_dir, said)
        if self.kind == "pairs":
            said += _counted(
                len(responses), "labelled responses left out, kind `labels` pairs them"
            )
        else:
            made = pairs_of_kind(self.kind, responses, tuple(self.objectives), self.max_per_prompt)
            pairs = [*pairs, *made] if self.kind in RATED else made
        if self.objectives:
            pairs = [p for p in pairs if p.objective in self.objectives]
        told_apart = [p for p in pairs if one_spelling(p.chosen) != one_spelling(p.rejected)]
        same, pairs = len(pairs) - len(told_apart), told_apart
        said += _counted(same, "pairs left out, their two completions are the same text")
        blank = sum(is_blank(p.chosen) or is_blank(p.rejected) for p in pairs)
        said += _counted(blank, "pairs kept in which a completion shows no text")
        missing = sorted(set(self.objectives) - {p.objective for p in pairs})
        if missing or not pairs:
            reasons = "".join(f"; {why_no_pairs(name, responses)}" for name in missing)
            where = f"{Path(data_dir) / self.path}: no pairs for {missing or 'any objective'}"
            raise DataError(" ".join([f"{where}{reasons}.", *said]))
        _say(notes, self.path, said)
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

    def _examples(
        self, data_dir: str | Path, notes: list[str]
    ) -> tuple[list[PreferencePair], list[LabelledResponse]]:
        """The file's pairs and responses under this recipe's names of the objectives."""
        names = _names_in_file(self.objectives)
        only = next(iter(names.values())) if len(names) == 1 else ""
        columns = tuple(names.values()) if self.kind in RATED else ()
        default = only if names else self.as_objective
        examples = examples_of(self.path, data_dir, default, columns, notes)
        pairs = [e for e in examples if isinstance(e, PreferencePair)]
        responses = [e for e in examples if isinstance(e, LabelledResponse)]
        if isinstance(self.objectives, dict):
            pairs = [
                replace(p, objective=name)
                for p in pairs
                for name, in_file in names.items()
                if p.objective == in_file
            ]
            responses = [replace(r, labels=_renamed(r.labels, names)) for r in responses]
        if self.kind in RATED:
            rated = set(self.objectives)
            unrated = sum(rated.isdisjoint(r.labels) for r in responses)
            notes += _counted(unrated, f"responses have no rating of {', '.join(names)}")
            texts = {(json.dumps(r.prompt), one_spelling(r.response)) for r in responses}
            notes += _counted(
                len(responses) - len(texts),
                "responses repeat another one to their prompt; a text makes no pair with itself",
            )
        return pairs, responses


def _counted(count: int, what: str) -> list[str]:
    return [f"{count:,} {what}."] if count else []


def _say(notes: list[str] | None, path: str, sentences: Iterable[str]) -> None:
    if notes is not None:
        notes += [f"{path}: {sentence}" for sentence in sentences]


def _names_in_file(objectives: tuple[str, ...] | dict[str, str]) -> dict[str, str]:
    """Objective -> what the file calls it."""
    return dict(objectives) if isinstance(objectives, dict) else {name: name for name in objectives}


def _renamed(labels: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Labels under the recipe's names of the objectives; the file's others stay, unless such a name hides them."""
    others = {k: v for k, v in labels.items() if k not in names and k not in names.values()}
    return others | {name: labels[k] for name, k in names.items() if k in labels}


def is_public(path: Path, name: str) -> bool:
    """Whether a recipe's ``path`` is the name of a public set rather than a file in the data folder."""
    return not path.exists() and name in {n for s in PUBLIC_SETS.values() for n in (s.name, s.path)}


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
        said: list[str] = []
        rated, found = [], set()
        left_out: Counter[str] = Counter()
        for e in examples_of(self.path, data_dir, "", tuple(self.labels.values()), said):
            if isinstance(e, PreferencePair):
                left_out["pairs, not rated responses"] += 1
                continue
            labels = {o: e.labels[name] for o, name in self.labels.items() if name in e.labels}
            found |= set(labels)
            if labels:
                rated.append(replace(e, labels=labels, licence=self.licence or e.licence))
            else:
                left_out["responses without a rating"] += 1
        said += [f"{n:,} {what} left out." for what, n in left_out.items()]
        _say(notes, self.path, said)
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


def examples_of(
    path: str,
    data_dir: str | Path,
    objective: str = "",
    columns: Collection[str] = (),
    notes: list[str] | None = None,
) -> list[PreferencePair | LabelledResponse]:
    """The examples of a file (absolute, or under ``data_dir``) or, where there is none, of the public set so named.

    The other arguments are those of :func:`pro_core.data.schema.load_examples`.
    """
    file = Path(data_dir) / path
    if is_public(file, path):
        return load_public_examples(path, notes=notes)
    return load_examples(file, objective, columns, notes)


def data_sources(entries: Sequence[dict[str, Any]]) -> list[DataSource]:
    """A recipe's ``data`` list as sources; a :class:`DataError` names an entry with a wrong key."""
    sources = []
    for entry in _checked(entries):
        try:
            objectives = entry.get("objectives", ())
            if not isinstance(objectives, dict):
                objectives = tuple(objectives)
            sources.append(DataSource(**(entry | {"objectives": objectives})))
        except TypeError as error:
            raise DataError(f"data entry {entry!r}: {error}") from None
    return sources


def _checked(entries: Any) -> list[dict[str, Any]]:
    """The entries of a ``data`` list, their lists as tuples.

    Raises:
        DataError: no list, an entry that is no mapping, or a text where a list belongs, which would be read by letters.
    """
    if not isinstance(entries, (list, tuple)):
        raise DataError(f"data: got {entries!r}, expected a list such as [{{path: pairs.jsonl}}]")
    checked = []
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
            raise DataError(f"data entry {entry!r}: expected a mapping with a `path`")
        for key in ("objectives", "splits"):
            if not isinstance(entry.get(key, []), (list, tuple, dict)):
                raise DataError(
                    f"data entry {entry!r}: got {entry[key]!r} as `{key}`, expected a list"
                )
        splits = tuple(entry.get("splits", ("train",)))
        if not splits or not set(splits) <= set(SPLITS):
            raise DataError(
                f"data entry {entry!r}: got the splits {list(splits)}, expected some of {list(SPLITS)}"
            )
        checked.append(entry | {"splits": splits})
    return checked


def rated_sources(
    entries: Sequence[dict[str, Any]], objectives: Collection[str]
) -> list[RatedSource]:
    """As :func:`data_sources`, for the recipe of a classifier; entries may name these ``objectives`` only."""
    sources = []
    for entry in _checked(entries):
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
            sources.append(RatedSource(**(entry | {"labels": labels})))
        except TypeError as error:
            raise DataError(f"data entry {entry!r}: {error}") from None
    return sources


def load_texts(
    entries: Sequence[dict[str, Any]], data_dir: str | Path, notes: list[str] | None = None
) -> list[LabelledResponse]:
    """Every response of a config's ``data`` list, each (prompt, response) once, in the order of the list.

    An entry without a ``kind`` is a file of responses (see :func:`load_responses`) or a public set; one
    with a kind is an entry of a recipe, of whose pairs both completions are taken. ``notes`` as in
    :meth:`DataSource.load`.

    Raises:
        DataError: as the loaders do.
    """
    found: list[LabelledResponse] = []
    for entry in entries:
        path = Path(data_dir) / str(entry.get("path"))
        if "kind" in entry:
            pairs = data_sources([entry])[0].load(data_dir, notes)
        elif set(entry) != {"path"}:
            raise DataError(
                f"data entry {entry!r}: expected a path, and more only beside a kind of {KINDS}"
            )
        elif is_public(path, entry["path"]):
            said: list[str] = []
            examples = load_public_examples(entry["path"], notes=said)
            _say(notes, entry["path"], said)
            pairs = [e for e in examples if isinstance(e, PreferencePair)]
            found += [e for e in examples if isinstance(e, LabelledResponse)]
        else:
            pairs, said = [], []
            found += load_responses(path, said)
            _say(notes, entry["path"], said)
        for pair in pairs:
            for side, text in (("chosen", pair.chosen), ("rejected", pair.rejected)):
                alone = LabelledResponse(pair.prompt, text, {}, pair.source, f"{pair.id}-{side}")
                found.append(replace(alone, split=pair.split, licence=pair.licence))
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


def _prompt_of(row: Row, path: Path, number: int) -> tuple[list[Message] | None, str]:
    try:
        said = next(iter(schema_rows(row)), row).get("prompt")
        prompt = to_messages(said) if said is not None else None
    except LeftOut:  # two conversations that have no prompt in common
        prompt = None
    except NO_EXAMPLE as error:
        raise DataError(broken_record(path, number, row, error)) from None
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
