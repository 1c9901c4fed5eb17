"""The typed entries of a recipe's ``data`` list: what to take from which file or public set.

Each kind of recipe has its own kind of entry: :class:`PairSource` gives preference pairs, :class:`RatedSource` rated
responses, :class:`pro_core.data.texts.TextSource` texts to be scored and prompts to be answered.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Self

from pro_core.data.pairs import (
    GRADED,
    RATED,
    Kind,
    other_prompt_pairs,
    pairs_of_kind,
    why_no_pairs,
)
from pro_core.data.schema import (
    DataError,
    LabelledResponse,
    PreferencePair,
    Split,
    is_blank,
    one_spelling,
)
from pro_core.data.sources import add_notes, counted, examples_of
from pro_core.system.extras import needs
from pro_core.system.settings import Count, Names, Settings

with needs("train"):
    from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

Splits = Annotated[list[Split], Field(min_length=1)]


class DataEntry(Settings):
    """An entry of a recipe's ``data`` list. As plain data it holds what the recipe said, without defaults."""

    path: Annotated[str, Field(min_length=1)]
    """a JSON Lines file, absolute or under the data folder; or the hub name of a public set"""

    @model_serializer(mode="wrap")
    def _as_said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if key in self.model_fields_set}


class PairSettings(DataEntry):
    """Which preference pairs to make from a file, and which of them to take."""

    objectives: list[str] | dict[str, str] = []
    """which objectives to take, [] for all in a file of pairs; {name: the file's name for it} renames"""
    splits: Splits = ["train"]
    """the splits to train on"""
    epochs: Count = 1
    """how often each training pair is seen"""
    max_per_prompt: Count = 20
    """at most this many pairs of one prompt's responses"""
    max_pairs: Count | None = None
    """at most this many pairs of each objective and split, the first ones"""
    as_objective: str = ""
    """one objective for all pairs, whatever they were judged on: for an overall judge"""
    licence: str = ""
    """the licence of all rows, if the recipe knows it better than the file"""


class PairSource(PairSettings):
    """An entry that gives preference pairs.

    Ratings are read from the rows' ``labels``, or from fields with the objective's name. Pairs that name no objective
    get the entry's, if it has exactly one.
    """

    kind: Kind = "pairs"
    """`pairs` for those of the file, or how to pair responses: see the function of that name in pro_core.data.pairs"""
    weigh_by_rating: bool = False
    """pairs made from ratings count in proportion to the difference of their two ratings, on average 1"""

    @model_validator(mode="after")
    def _rated(self) -> Self:
        if self.weigh_by_rating and self.kind not in GRADED:
            raise ValueError(
                f"got weigh_by_rating with the kind {self.kind!r}, expected one of {', '.join(GRADED)}"
            )
        return self

    def load(self, data_dir: str | Path, notes: list[str] | None = None) -> list[PreferencePair]:
        """All pairs of the file, from every split.

        Args:
            notes: gets a sentence, with a count, for each kind of row that was left out or is odd.

        Raises:
            DataError: no pairs, or an objective without any.
        """
        sentences: list[str] = []
        pairs, responses = self._examples(data_dir, sentences)
        if self.kind == "pairs":
            sentences += counted(
                len(responses), "labelled responses left out, kind `labels` pairs them"
            )
        elif self.kind == "other_prompts":
            pairs = other_prompt_pairs(pairs)
        else:
            made = pairs_of_kind(self.kind, responses, tuple(self.objectives), self.max_per_prompt)
            pairs = [*pairs, *made] if self.kind in RATED else made
        if self.objectives:
            pairs = [p for p in pairs if p.objective in self.objectives]
        told_apart = [p for p in pairs if one_spelling(p.chosen) != one_spelling(p.rejected)]
        same, pairs = len(pairs) - len(told_apart), told_apart
        sentences += counted(same, "pairs left out, their two completions are the same text")
        blank = sum(is_blank(p.chosen) or is_blank(p.rejected) for p in pairs)
        sentences += counted(blank, "pairs kept in which a completion shows no text")
        missing = sorted(set(self.objectives) - {p.objective for p in pairs})
        if missing or not pairs:
            reasons = "".join(f"; {why_no_pairs(name, responses)}" for name in missing)
            where = f"{Path(data_dir) / self.path}: no pairs for {missing or 'any objective'}"
            raise DataError(" ".join([f"{where}{reasons}.", *sentences]))
        add_notes(notes, self.path, sentences)
        if self.as_objective:
            pairs = [replace(p, objective=self.as_objective) for p in pairs]
        if self.max_pairs is not None:
            pairs = _first_of_each(pairs, self.max_pairs)
        if self.weigh_by_rating:
            pairs = _weighted(pairs)
        else:
            pairs = [replace(p, weight=1.0) for p in pairs]
        if self.licence:
            pairs = [replace(p, licence=self.licence) for p in pairs]
        return pairs

    def _examples(
        self, data_dir: str | Path, notes: list[str]
    ) -> tuple[list[PreferencePair], list[LabelledResponse]]:
        """The file's pairs and responses, with the recipe's names of the objectives."""
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
            notes += counted(unrated, f"responses have no rating of {', '.join(names)}")
            texts = {(json.dumps(r.prompt), one_spelling(r.response)) for r in responses}
            notes += counted(
                len(responses) - len(texts),
                "responses repeat another one to their prompt; a text makes no pair with itself",
            )
        return pairs, responses


def _weighted(pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    """The pairs with weights whose mean is 1 in each objective and split."""
    total: defaultdict[tuple[str, str], float] = defaultdict(float)
    for pair in pairs:
        total[pair.objective, pair.split] += pair.weight
    count = Counter((p.objective, p.split) for p in pairs)
    return [
        replace(p, weight=p.weight * count[p.objective, p.split] / total[p.objective, p.split])
        for p in pairs
    ]


def _first_of_each(pairs: Sequence[PreferencePair], most: int) -> list[PreferencePair]:
    """The first ``most`` pairs of each objective and split."""
    seen: Counter[tuple[str, str]] = Counter()
    kept = []
    for pair in pairs:
        seen[pair.objective, pair.split] += 1
        if seen[pair.objective, pair.split] <= most:
            kept.append(pair)
    return kept


def _names_in_file(objectives: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """Objective -> its name in the file."""
    if isinstance(objectives, Mapping):
        return dict(objectives)
    return {name: name for name in objectives}


def _renamed(labels: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Labels under the recipe's names of the objectives; the file's others stay, unless such a name replaces them."""
    others = {k: v for k, v in labels.items() if k not in names and k not in names.values()}
    return others | {name: labels[k] for name, k in names.items() if k in labels}


class RatedSource(DataEntry):
    """An entry that gives responses with a rating for each of some objectives."""

    labels: Names | Annotated[dict[str, str], Field(min_length=1)]
    """objectives that the file has ratings for; {name: the file's name for it} renames"""
    splits: Splits = ["train"]
    """the splits to train on"""
    epochs: Count = 1
    """how often each training response is seen"""
    max_rows: Count | None = None
    """at most this many responses of each training split, always the same random sample"""
    licence: str = ""
    """the licence of all rows, if the recipe knows it better than the file"""

    def load(self, data_dir: str | Path, notes: list[str] | None = None) -> list[LabelledResponse]:
        """All responses of the file, from every split, that have one of the labels or more; other labels are dropped.

        Args:
            notes: as in :meth:`PairSource.load`.

        Raises:
            DataError: no file, no labelled responses, or a label that none of them has.
        """
        names = _names_in_file(self.labels)
        sentences: list[str] = []
        rated: list[LabelledResponse] = []
        labelled: set[str] = set()
        left_out: Counter[str] = Counter()
        for e in examples_of(self.path, data_dir, "", tuple(names.values()), sentences):
            if isinstance(e, PreferencePair):
                left_out["pairs, not rated responses"] += 1
                continue
            labels = {o: e.labels[name] for o, name in names.items() if name in e.labels}
            labelled |= set(labels)
            if labels:
                rated.append(replace(e, labels=labels, licence=self.licence or e.licence))
            else:
                left_out["responses without a rating"] += 1
        sentences += [f"{n:,} {what} left out." for what, n in left_out.items()]
        add_notes(notes, self.path, sentences)
        missing = sorted(names[o] for o in set(names) - labelled)
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
