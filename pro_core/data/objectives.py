"""The K objectives: their names, their fixed order, and a phrase for each that people read.

Every K axis in the project follows one tuple of names. All rewards point the same way: higher is better.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

Message = dict[str, str]
"""One turn: ``{"role": "system" | "user" | "assistant", "content": str}``."""

Prompt = str | Sequence[Message]
"""A string (one user message, or ``Human:`` / ``Assistant:`` turns) or a list of messages."""

DESCRIPTIONS = {
    "helpful": "does what was asked",
    "harmless": "does no harm, refuses what it should",
    "truthful": "says nothing false",
    "informative": "tells you something rather than dodging",
    "humor": "is funny",
    "faithful": "adds nothing that its source does not say",
}
"""One plain phrase for each objective that the embedded panel knows; others are shown by name alone."""

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")


def check_objective_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return ``names`` as a tuple, or say what is wrong with them.

    A name is lower-case letters, digits, ``_`` and ``-``, starts with a letter, and has at most 40
    characters, so that it can stand in a weight tag such as ``<helpful>``.

    Raises:
        ValueError: no names, an invalid name, or a name given twice.
    """
    checked = tuple(names)
    if not checked:
        raise ValueError("got no objective names, expected at least one")
    for name in checked:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(
                f"got the objective name {name!r}, expected lower-case letters, digits, '_' or '-', "
                "starting with a letter, at most 40 characters"
            )
    doubled = sorted({name for name in checked if checked.count(name) > 1})
    if doubled:
        raise ValueError(
            f"two objectives are called {doubled[0]!r}: give each reward model a name of its own"
        )
    return checked
