"""Where data comes from: a JSON Lines file, or a public set by its hub name."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path

from pro_core.data.public_sets import PUBLIC_SETS, load_public_examples
from pro_core.data.schema import LabelledResponse, PreferencePair, load_examples


def default_data_dir() -> Path:
    """``PRO_DATA_DIR``, or the folder beside the project where its authors keep their data."""
    return Path(os.environ.get("PRO_DATA_DIR", Path(__file__).parents[3] / "shared" / "data"))


def is_public(path: Path, name: str) -> bool:
    """Whether a recipe's ``path`` is the name of a public set rather than a file in the data folder."""
    return not path.exists() and name in {n for s in PUBLIC_SETS.values() for n in (s.name, s.path)}


def examples_of(
    path: str,
    data_dir: str | Path,
    objective: str = "",
    columns: Collection[str] = (),
    notes: list[str] | None = None,
) -> list[PreferencePair | LabelledResponse]:
    """The examples of a file (absolute, or under ``data_dir``), or of the public set of that name if there is no file.

    The other arguments are those of :func:`pro_core.data.schema.load_examples`.
    """
    file = Path(data_dir) / path
    if is_public(file, path):
        return load_public_examples(path, notes=notes)
    return load_examples(file, objective, columns, notes)


def counted(count: int, what: str) -> list[str]:
    """One sentence with a number of rows; nothing if it is 0."""
    return [f"{count:,} {what}."] if count else []


def add_notes(notes: list[str] | None, path: str, sentences: Iterable[str]) -> None:
    """Append sentences about a file to the notes of a run, unless ``notes`` is None."""
    if notes is not None:
        notes += [f"{path}: {sentence}" for sentence in sentences]
