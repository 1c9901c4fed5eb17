"""Scores and prompt features, cached by content, so that reading the same texts again takes seconds.

A key is a hash of the model (:mod:`pro_core.system.fingerprints`), of the version of the code that reads and scores
texts, and of the text. One SQLite file, by default in the user's cache folder; deleting it costs nothing but time.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pro_core.system.bundled_models import cache_folder

CHUNK = 1000
"""Texts per write; a killed run loses at most this many."""


def text_key(*texts: str) -> str:
    """A hash of several texts that also depends on where each of them ends."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


class Cache:
    """Rows of numbers by key.

    If the file cannot be read or written, that is printed once, and the run goes on without a cache.

    Attributes:
        found, computed: how many rows were in the cache, and how many were not.
    """

    def __init__(self, path: Path | None = None):
        self.path = path or cache_folder() / "doctor.sqlite"
        self.found = self.computed = 0
        self.broken = False

    def rows(
        self,
        keys: Sequence[str],
        width: int | None,
        compute: Callable[[list[int]], NDArray[np.float32]],
        on_progress: Callable[[int, int], None] | None = None,
    ) -> NDArray[np.float32]:
        """One row per key, (N, width) float32; ``compute`` is called with the indices of the missing rows.

        Args:
            width: the length that a row must have; None for any.
            on_progress: called with (finished, total) of the missing rows.
        """
        known = self._read(keys)
        # A missing score is not kept for ever: its model is asked again.
        known = {
            k: row
            for k, row in known.items()
            if (width is None or len(row) == width) and np.isfinite(row).all()
        }
        missing = [i for i, key in enumerate(keys) if key not in known]
        self.found += len(keys) - len(missing)
        self.computed += len(missing)
        for start in range(0, len(missing), CHUNK):
            chunk = missing[start : start + CHUNK]
            fresh = dict(zip([keys[i] for i in chunk], compute(chunk), strict=True))
            self._write(fresh)
            known |= fresh
            if on_progress:
                on_progress(start + len(chunk), len(missing))
        return np.stack([known[key] for key in keys]).astype(np.float32)

    def _read(self, keys: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        known: dict[str, NDArray[np.float32]] = {}
        try:
            if self.broken or not self.path.is_file():
                return known
            with closing(self._connect()) as connection:
                for start in range(0, len(keys), 500):
                    some = keys[start : start + 500]
                    marks = ",".join("?" * len(some))
                    query = f"select key, row from rows where key in ({marks})"
                    for key, row in connection.execute(query, list(some)):
                        known[key] = np.frombuffer(row, dtype=np.float32)
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)
        return known

    def _write(self, rows: Mapping[str, NDArray[np.float32]]) -> None:
        if self.broken:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._connect()) as connection, connection:
                connection.executemany(
                    "insert or replace into rows values (?, ?)",
                    [(key, np.asarray(row, np.float32).tobytes()) for key, row in rows.items()],
                )
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=30)
        connection.execute("create table if not exists rows (key text primary key, row blob)")
        return connection

    def _give_up(self, error: Exception) -> None:
        self.broken = True
        print(
            f"scores are not kept: {self.path} cannot be used ({error}); delete it, or set "
            "XDG_CACHE_HOME to a folder that can be written",
            file=sys.stderr,
        )
