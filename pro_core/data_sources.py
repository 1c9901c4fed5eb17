"""The ``data`` section of a recipe: which files or public sets, and what kind of pairs to make of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pro_core.data import (
    DataError,
    LabelledResponse,
    PreferencePair,
    constructed_humor_pairs,
    controlled_pairs,
    harmless_ties,
    load_examples,
    pairs_from_labels,
    refusal_pairs,
    unprompted_pairs,
)
from pro_core.objectives import check_objective_names
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
    """

    path: str
    kind: str = "pairs"
    objectives: tuple[str, ...] = ()
    splits: tuple[str, ...] = ("train",)
    epochs: int = 1
    max_per_prompt: int = 20
    max_pairs: int | None = None

    def load(self, data_dir: str | Path) -> list[PreferencePair]:
        """All pairs of the file, of every split.

        Raises:
            DataError: an unknown kind, no pairs, or an objective without any.
        """
        path = Path(data_dir) / self.path
        public = {name for s in PUBLIC_SETS.values() for name in (s.name, s.path)}
        if self.path in public and not path.exists():
            examples = load_public_examples(self.path)
        else:
            examples = load_examples(path)
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
        missing = set(self.objectives) - {p.objective for p in pairs}
        if missing or not pairs:
            raise DataError(f"{path}: no pairs for {sorted(missing) or 'any objective'}")
        if self.max_pairs is not None:
            seen: Counter[tuple[str, str]] = Counter()
            kept = []
            for pair in pairs:
                seen[pair.objective, pair.split] += 1
                if seen[pair.objective, pair.split] <= self.max_pairs:
                    kept.append(pair)
            pairs = kept
        return pairs


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
