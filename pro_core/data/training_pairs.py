"""The pairs of a recipe's data: those that train, and the held-out pairs that accuracies may count.

A held-out row is not graded if
    its prompt was trained on, under any objective, in any pair and with any answers. Prompts are compared whole, with
        all turns, since unrelated conversations begin alike ("Hi"), and whatever their Unicode form, case and blanks.
        For a text that stands alone, the text itself counts;
    another pair contradicts it: the same prompt, objective and two completions, the other way round. Every model is
        right on one of the two and wrong on the other. In training such pairs stay: people do disagree.
Both are counted and reported, as are pairs that repeat another one, and what the loaders left out.
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

if TYPE_CHECKING:  # typed entries need the extra `train`, but grading does not
    from pro_core.data.entries import PairSource

TRAINED_ON, CONTRADICTED = "its prompt was trained on", "another pair says the opposite"
"""Why a held-out row is not graded: the values of ``ungraded`` in pairs, responses and score tables."""
UNKNOWN = "unknown"


@dataclass
class Entry:
    """What one entry of a recipe's ``data`` contributed to the training.

    Attributes:
        source: the entry. licences: its own, or those of its training rows, ``unknown`` for rows without one.
        pairs: objective -> training pairs, all of them; ``constructed`` of them have made-up prompts.
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
        held_out: pairs of the other splits and of the recipe's objectives, without ties. ``ungraded`` is set in those
            that no accuracy counts.
        entries: one for each entry of the recipe.
        notes: sentences about what was left out, is not graded, or is repeated.
    """

    training: list[PreferencePair] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    held_out: list[PreferencePair] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def gather_pairs(
    sources: Sequence[PairSource], objectives: Sequence[str], data_dir: str | Path
) -> TrainingPairs:
    """Load a recipe's sources, separate training pairs from held-out pairs, and mark those that are not graded.

    Raises:
        DataError: as :meth:`PairSource.load` does; or the recipe's objectives are not those of its training pairs.
    """
    data = load_pairs(sources, data_dir)
    _check_objectives(data.training, objectives)
    for name in objectives:
        if all(p.tie for p in data.training if p.objective == name):
            raise DataError(f"{name}: all its training pairs are ties, which say nothing is better")
    mark_ungraded(data, objectives)
    return data


def load_pairs(sources: Sequence[PairSource], data_dir: str | Path) -> TrainingPairs:
    """The training pairs and the held-out pairs of a recipe's sources, before :func:`mark_ungraded`.

    Raises:
        DataError: as :meth:`PairSource.load` does.
    """
    data = TrainingPairs()
    for source in sources:
        pairs = source.load(data_dir, data.notes)
        training = [p for p in pairs if p.split in source.splits]
        licences = {p.licence or UNKNOWN for p in training}
        constructed = sum(p.constructed for p in training)
        counts = dict(Counter(p.objective for p in training))
        data.entries.append(Entry(source, sorted(licences), counts, constructed))
        data.training += training
        data.epochs += [source.epochs] * len(training)
        data.held_out += [p for p in pairs if p.split not in source.splits and not p.only_trains]
    return data


def mark_ungraded(data: TrainingPairs, objectives: Sequence[str]) -> None:
    """Remove held-out pairs of other objectives, mark those that no accuracy counts, and note how many there are."""
    strange = Counter(p.objective for p in data.held_out if p.objective not in objectives)
    if strange:
        data.notes.append(f"Held-out pairs of other objectives left out: {dict(strange)}.")
        data.held_out = [p for p in data.held_out if p.objective in objectives]
    data.held_out = mark_trained_on(data.training, data.held_out)
    data.notes += ungraded_note(data.held_out)
    _mark_contradicted(data)


def _check_objectives(pairs: Sequence[PreferencePair], objectives: Sequence[str]) -> None:
    """Check that every objective has training pairs, and every training pair an objective of the recipe."""
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
    """The pairs of one split to measure accuracies on; for a table: :func:`pro_core.rewards.scores.graded_rows`."""
    return [
        p for p in pairs if p.split == split and not (p.ungraded or p.constructed or p.only_trains)
    ]


# ---------------------------------------------------------------- what was trained on


def same_text(text: str) -> str:
    """A text in the form used to compare training texts: :func:`pro_core.data.schema.one_spelling`, without case."""
    return one_spelling(text).casefold()


def prompt_key(prompt: Sequence[Message]) -> str:
    """A prompt in the form used for comparison: all turns but system messages, as :func:`same_text`."""
    return same_text(render_messages(prompt))


Row = TypeVar("Row", PreferencePair, LabelledResponse)


class TrainedOn:
    """Whether a row's prompt is among those of the training rows; for a text that stands alone, the text itself."""

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
    """The held-out rows, with ``ungraded`` set in those whose prompt was trained on."""
    trained = TrainedOn(training)
    return [replace(row, ungraded=TRAINED_ON) if row in trained else row for row in held_out]


def ungraded_note(held_out: Sequence[PreferencePair | LabelledResponse]) -> list[str]:
    """One sentence if held-out rows are not graded because their prompts were trained on; else none."""
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


# ---------------------------------------------------------------- contradictions and repeats


def _mark_contradicted(data: TrainingPairs) -> None:
    """Set ``ungraded`` in held-out pairs that another pair contradicts; note their number, and that of repeats."""
    preferred = defaultdict(list)
    for pair in [*data.training, *data.held_out]:
        if not pair.only_trains:
            preferred[_comparison(pair)].append(one_spelling(pair.chosen))
    opposed = {comparison for comparison, chosen in preferred.items() if len(set(chosen)) > 1}
    repeats = sum(len(chosen) - len(set(chosen)) for chosen in preferred.values())
    if opposed:
        trained = sum(_comparison(p) in opposed for p in data.training if not p.only_trains)
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
    """A key that is the same for all pairs of the same two texts, in whatever order and spelling."""
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
    """Those of ``folds`` folds (0: none) that have pairs to score. All pairs of a prompt are in the same fold. Ties
    and augmented pairs train but are not scored.

    Raises:
        DataError: all pairs of an objective are in one fold, so the panel that scores them has not learned it.
    """
    if not folds:
        return []
    numbers = [fold_of(p.prompt or p.chosen, folds) for p in pairs]
    parts = []
    for fold in sorted(set(numbers)):
        scored = [i for i, n in enumerate(numbers) if n == fold and not pairs[i].only_trains]
        rest = [i for i, n in enumerate(numbers) if n != fold]
        if scored:
            parts.append(Fold(fold, scored, rest))
    for name in sorted({p.objective for p in pairs}):
        of = {
            n
            for p, n in zip(pairs, numbers, strict=True)
            if p.objective == name and not p.only_trains
        }
        if len(of) == 1 and parts:
            raise DataError(
                f"{name}: all its training pairs lie in one of {folds} folds, so there is nothing to learn it from for "
                "scores out of fold. Add prompts, or set another number of `folds` (0: no such scores, "
                "and no adapter)"
            )
    return parts
