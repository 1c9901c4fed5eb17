"""What a recipe's data comes to: the pairs that train, and the held-out ones that accuracies may count.

A held-out row is not graded when
    its prompt was trained on: under whatever objective, in whatever pair, whatever became of its answers. Prompts are
        compared whole, with all turns, since conversations that have nothing in common begin alike ("Hi"); in one
        Unicode form, and whatever their case and blanks. Of a text that stands alone, the text itself counts;
    another pair says the opposite of it: the same prompt, objective and two completions the other way round. Every
        model is right on one of the two and wrong on the other. In training they stay: people do disagree.
Both are counted and said. So are pairs that repeat another one, and what the loaders left out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pro_core.data.objectives import Message, check_objective_names
from pro_core.data.schema import (
    DataError,
    LabelledResponse,
    PreferencePair,
    fold_of,
    one_spelling,
    render_messages,
)

if TYPE_CHECKING:  # typed entries need the extra `train`, and who only grades does not
    from pro_core.data.entries import PairSource

TRAINED_ON, CONTRADICTED = "its prompt was trained on", "another pair says the opposite"
"""Why a held-out row is not graded; what stands in the ``ungraded`` of pairs, responses and score tables."""
UNKNOWN = "unknown"


@dataclass
class Entry:
    """What one entry of a recipe's ``data`` gave to the training.

    Attributes:
        source: the entry. licences: what it, or its training rows, name; among them ``unknown`` where rows name none.
        pairs: objective -> training pairs, ties among them, of which ``constructed`` have made-up prompts.
    """

    source: PairSource
    licences: list[str]
    pairs: dict[str, int]
    constructed: int


@dataclass
class TrainingPairs:
    """What a recipe trains on and what it may be graded on.

    Attributes:
        training, epochs: pairs, and how often each is seen.
        held_out: pairs of the other splits, of the recipe's objectives, ties aside. ``ungraded`` is set in those that
            no accuracy counts.
        entries: one for each entry of the recipe.
        notes: sentences about what was left out, is not graded, or stands there twice.
    """

    training: list[PreferencePair] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    held_out: list[PreferencePair] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def gather_pairs(
    sources: Sequence[PairSource], objectives: Sequence[str], data_dir: str | Path
) -> TrainingPairs:
    """Load a recipe's sources and tell apart what trains, what is held out and what of that is graded.

    Raises:
        DataError: as :meth:`PairSource.load` does; an objective of the recipe without training pairs, or of another
            name.
    """
    data = load_pairs(sources, data_dir)
    _check_objectives(data.training, objectives)
    for name in objectives:
        if all(p.tie for p in data.training if p.objective == name):
            raise DataError(f"{name}: all its training pairs are ties, which say nothing is better")
    mark_ungraded(data, objectives)
    return data


def load_pairs(sources: Sequence[PairSource], data_dir: str | Path) -> TrainingPairs:
    """What a recipe's sources give to the training, and what they hold out; :func:`mark_ungraded` looks at it next.

    Raises:
        DataError: as :meth:`PairSource.load` does.
    """
    data = TrainingPairs()
    for source in sources:
        pairs = source.load(data_dir, data.notes)
        mine = [p for p in pairs if p.split in source.splits]
        licences = {p.licence or UNKNOWN for p in mine}
        constructed = sum(p.constructed for p in mine)
        counts = dict(Counter(p.objective for p in mine))
        data.entries.append(Entry(source, sorted(licences), counts, constructed))
        data.training += mine
        data.epochs += [source.epochs] * len(mine)
        data.held_out += [p for p in pairs if p.split not in source.splits and not p.tie]
    return data


def mark_ungraded(data: TrainingPairs, objectives: Sequence[str]) -> None:
    """Leave held-out pairs of other objectives out, and mark those that no accuracy counts; note how many."""
    strange = Counter(p.objective for p in data.held_out if p.objective not in objectives)
    if strange:
        data.notes.append(f"Held-out pairs of other objectives left out: {dict(strange)}.")
        data.held_out = [p for p in data.held_out if p.objective in objectives]
    data.held_out = mark_trained_on(data.training, data.held_out)
    data.notes += ungraded_note(data.held_out)
    _mark_contradicted(data)


def _check_objectives(pairs: Sequence[PreferencePair], objectives: Sequence[str]) -> None:
    """Every objective has training pairs, and every pair an objective of the recipe."""
    try:
        check_objective_names(objectives)
    except ValueError as error:
        raise DataError(str(error)) from None
    judged = {p.objective for p in pairs}
    if judged != set(objectives):
        raise DataError(
            f"the recipe's objectives are {list(objectives)}, its training pairs have {sorted(judged)}; "
            "name the same ones, or choose with `objectives` in a data entry"
        )


def graded_pairs(pairs: Iterable[PreferencePair], split: str) -> list[PreferencePair]:
    """Those of one split that accuracies are measured on; of a table: :func:`pro_core.rewards.scores.graded_rows`."""
    return [p for p in pairs if p.split == split and not (p.ungraded or p.constructed or p.tie)]


# ---------------------------------------------------------------- what was trained on


def same_text(text: str) -> str:
    """The form in which what was trained on is compared: :func:`pro_core.data.schema.one_spelling`, and no case."""
    return one_spelling(text).casefold()


def prompt_key(prompt: Sequence[Message]) -> str:
    """The form in which prompts are compared: all turns, system messages aside, as :func:`same_text`."""
    return same_text(render_messages(prompt))


Row = TypeVar("Row", PreferencePair, LabelledResponse)


class TrainedOn:
    """Whether a row's prompt, or of a text that stands alone the text, is among those of the training rows."""

    def __init__(self, training: Iterable[PreferencePair | LabelledResponse]):
        self.prompts: set[str] = set()
        self.texts: set[str] = set()
        for row in training:
            if row.prompt:
                self.prompts.add(prompt_key(row.prompt))
            self.texts |= {same_text(text) for text in _texts(row)}

    def __contains__(self, row: PreferencePair | LabelledResponse) -> bool:
        if row.prompt:
            return prompt_key(row.prompt) in self.prompts
        return any(same_text(text) in self.texts for text in _texts(row))


def _texts(row: PreferencePair | LabelledResponse) -> tuple[str, ...]:
    return (row.chosen, row.rejected) if isinstance(row, PreferencePair) else (row.response,)


def mark_trained_on(training: Sequence[Row], held_out: Sequence[Row]) -> list[Row]:
    """The held-out rows, ``ungraded`` set in those whose prompt was trained on."""
    trained = TrainedOn(training)
    return [replace(row, ungraded=TRAINED_ON) if row in trained else row for row in held_out]


def ungraded_note(held_out: Sequence[PreferencePair | LabelledResponse]) -> list[str]:
    """One sentence where held-out rows are not graded since their prompts were trained on; else none."""
    trained = Counter(row.split for row in held_out if row.ungraded == TRAINED_ON)
    if not trained:
        return []
    every = Counter(row.split for row in held_out)
    parts = ", ".join(f"{n:,} of {every[split]:,} {split}" for split, n in sorted(trained.items()))
    what = "pairs" if isinstance(held_out[0], PreferencePair) else "responses"
    return [
        f"Leak: the prompts of {parts} {what} were trained on, so these are not graded. Give all rows of a prompt one "
        "`split`, or leave `split` out."
    ]


# ---------------------------------------------------------------- pairs that say the opposite, or the same again


def _mark_contradicted(data: TrainingPairs) -> None:
    """Set ``ungraded`` in held-out pairs that another one contradicts; note how many there are, and the repeats."""
    preferred = defaultdict(list)
    for pair in [*data.training, *data.held_out]:
        if not pair.tie:
            preferred[_comparison(pair)].append(one_spelling(pair.chosen))
    opposed = {comparison for comparison, chosen in preferred.items() if len(set(chosen)) > 1}
    repeats = sum(len(chosen) - len(set(chosen)) for chosen in preferred.values())
    if opposed:
        trained = sum(_comparison(p) in opposed for p in data.training if not p.tie)
        held_out = [_comparison(p) in opposed for p in data.held_out]
        data.held_out = [
            replace(p, ungraded=CONTRADICTED) if against and not p.ungraded else p
            for p, against in zip(data.held_out, held_out, strict=True)
        ]
        data.notes.append(
            "Pairs that say the opposite of another one, the same two texts the other way round: "
            f"{trained:,} in training, which train all the same, {sum(held_out):,} held out, which are not graded."
        )
    if repeats:
        data.notes.append(
            f"Pairs that repeat another one: {repeats:,}; they count as often as they stand there."
        )


def _comparison(pair: PreferencePair) -> tuple[str, str, frozenset[str]]:
    """What two pairs have in common that compare the same two texts, in whatever order and spelling."""
    texts = frozenset(map(one_spelling, (pair.chosen, pair.rejected)))
    return pair.objective, prompt_key(pair.prompt), texts


# ---------------------------------------------------------------- folds


@dataclass(frozen=True)
class Fold:
    """One part of the training pairs, to be scored by a panel that was trained on the rest; indices of pairs."""

    number: int
    scored: list[int]
    rest: list[int]


def out_of_fold(pairs: Sequence[PreferencePair], folds: int) -> list[Fold]:
    """The folds that have pairs to score, of so many (0: none); all pairs of a prompt lie in one of them. Ties train
    and are not scored.

    Raises:
        DataError: all pairs of an objective lie in one fold: who is to score them has not learned it.
    """
    if not folds:
        return []
    numbers = [fold_of(p.prompt or p.chosen, folds) for p in pairs]
    parts = []
    for fold in sorted(set(numbers)):
        scored = [i for i, n in enumerate(numbers) if n == fold and not pairs[i].tie]
        rest = [i for i, n in enumerate(numbers) if n != fold]
        if scored:
            parts.append(Fold(fold, scored, rest))
    for name in sorted({p.objective for p in pairs}):
        of = {n for p, n in zip(pairs, numbers, strict=True) if p.objective == name and not p.tie}
        if len(of) == 1 and parts:
            raise DataError(
                f"{name}: all its training pairs lie in one of {folds} folds, so there is nothing to learn it from for "
                "scores out of fold. Add prompts, or set another number of `folds` (0: no such scores, "
                "and no adapter)"
            )
    return parts
