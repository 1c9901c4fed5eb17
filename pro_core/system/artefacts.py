"""Finished work as folders: each knows what made it, appears whole or not at all, and is never taken for another.

Panels, tables of scores, adapters, classifiers, rollouts and policies are all made by :func:`once`. Beside its files a
finished folder has ``manifest.json``: the *inputs* that decide it (settings as they are, data and models as hashes, the
version of the code), a *record* of how it went, and a hash of every file. Work goes on in a hidden folder that is named
by the inputs and takes its place at the end, so a killed run, started again, goes on where it was, and never with what
other inputs left.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pro_core.system.processes import from_main, main_process, wait_for_all
from pro_core.system.storage import (
    StorageError,
    content_hash,
    explained_disk,
    file_hash,
    read_config,
    remove_partial,
    write_config,
)

MANIFEST = "manifest.json"
WORK = "work"
"""The folder, inside of what is being made, for checkpoints: it goes when the work is done."""
LINKED = 1 << 30
"""Bytes from which a file is linked and not copied: smaller ones may be changed without changing what they are of."""
CARD = "README.md"
"""People may write on a model card: it is not held against its hash."""
_HASH = re.compile(r"[0-9a-f]{32,64}")


@dataclass(frozen=True)
class Artefact:
    """A finished folder: its kind, the hash of its inputs, and what its making recorded."""

    folder: Path
    kind: str
    key: str
    record: dict[str, Any]

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    def check(self) -> None:
        """Raise a StorageError unless the folder still is what it was: another run may have made it again since."""
        if content_hash(_manifest(self.folder, self.kind)["inputs"]) != self.key:
            raise StorageError(
                f"{self.folder}: another run, of other inputs, has made it again meanwhile: let one recipe at a time "
                "write to a folder, then run the same command again"
            )


def once(
    target: str | Path,
    kind: str,
    inputs: Mapping[str, Any],
    make: Callable[[Path], dict[str, Any] | None],
) -> Artefact:
    """What ``inputs`` make, in the folder ``target``: made now, unless the same inputs made what is there.

    What other inputs made is replaced, after saying what has changed. Every process calls it; one run at a time makes
    the folder, others wait for it.

    Args:
        kind: what it is; the manifest's format.
        inputs: all that decides the content, ready for JSON. Large things stand as hashes.
        make: fills the folder that it gets, and returns the record. Called again after a kill, it finds what it left.

    Raises:
        StorageError: something else is in ``target``; a file of it was changed; a full or read-only disk.
    """
    target, key = Path(target), content_hash(inputs)
    found = from_main(_made_already(target, kind, inputs) if main_process() else None)
    if found is not None:
        return Artefact(target, kind, key, found)
    with _only_one(target) if main_process() else nullcontext():
        wait_for_all()  # until the main process has the lock
        building = target.with_name(f".{target.name}-{key[:16]}")
        found = from_main(_finished(target, building, kind, inputs) if main_process() else None)
        if found is None:
            record = _plain(_make(building, target, make))
            wait_for_all()
            if main_process():
                with explained_disk(building, target):
                    shutil.rmtree(building / WORK, ignore_errors=True)
                    _seal(building, kind, inputs, record)
                    _put(building, target)
            found = from_main(record)
        wait_for_all()
    return Artefact(target, kind, key, found)


def finished(target: str | Path, kind: str, inputs: Mapping[str, Any], command: str) -> Artefact:
    """What :func:`once` made of these inputs.

    Raises:
        StorageError: it is not there, or other inputs made it; names the command that makes it.
    """
    target = Path(target)
    if not (target / MANIFEST).is_file():
        raise StorageError(f"{target}: not there yet, or not finished: run {command} first")
    found = read_manifest(target, kind)
    if found["inputs"] != _plain(inputs):
        changes = "; ".join(_changes(found["inputs"], _plain(inputs)))
        raise StorageError(f"{target}: other inputs made it ({changes}): run {command} again first")
    return Artefact(target, kind, content_hash(inputs), found["record"])


def read_manifest(folder: Path, kind: str) -> dict[str, Any]:
    """``{"inputs", "record", "files"}`` of a finished folder.

    Raises:
        StorageError: no manifest, one of another kind, or a file that is missing or has changed since.
    """
    found = _manifest(folder, kind)
    for name, expected in found["files"].items():
        file = folder / name
        if not file.is_file() or file_hash(file) != expected:
            raise StorageError(
                f"{file}: missing or changed since it was written; delete {folder} and run the same command again"
            )
    return found


def files_of(folder: str | Path) -> Iterable[Path]:
    """The files of a finished folder that belong to what was made, to be copied into another."""
    paths = sorted(p for p in Path(folder).rglob("*") if p.is_file())
    return [p for p in paths if p.name != MANIFEST and not p.name.startswith(".")]


def copy_files(source: str | Path, folder: Path) -> None:
    """A finished folder's files in another one. Large ones are hard links where the disk can: whole models."""
    for file in files_of(source):
        place = folder / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        if file.stat().st_size >= LINKED:
            with suppress(OSError):
                os.link(file, place)
        if not place.exists():
            shutil.copyfile(file, place)


# ---------------------------------------------------------------- parts


def _make(building: Path, target: Path, make) -> dict[str, Any]:
    with explained_disk(building, target):
        if main_process():
            building.mkdir(parents=True, exist_ok=True)
        wait_for_all()
        return make(building) or {}


@contextmanager
def _only_one(target: Path):
    """Held by one run at a time; says so when another one holds it."""
    with explained_disk(target.parent, target):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.with_name(f".{target.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"{target}: another run is making it; waiting for that one", flush=True)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _made_already(target: Path, kind: str, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of ``target`` if these inputs made it, without a lock: nothing is written where nothing is to do."""
    with suppress(StorageError):
        if _manifest(target, kind)["inputs"] == _plain(inputs):
            return read_manifest(target, kind)["record"]
    return None


def _finished(
    target: Path, building: Path, kind: str, inputs: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The record of ``target`` if these inputs made it; None when it is to be made."""
    if (building / MANIFEST).is_file():  # a kill came between the seal and its place
        _put(building, target)
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return None
    if not (target / MANIFEST).is_file():
        raise StorageError(
            f"{target}: something is there that has no {MANIFEST}, so nothing says what made it: move it away, or name "
            "another folder"
        )
    found = _manifest(target, kind)
    if found["inputs"] == _plain(inputs):
        return read_manifest(target, kind)["record"]
    print(
        f"{target}: made again: {'; '.join(_changes(found['inputs'], _plain(inputs)))}", flush=True
    )
    return None


def _manifest(folder: Path, kind: str) -> dict[str, Any]:
    try:
        return read_config(folder, MANIFEST, kind)
    except StorageError as error:
        again = (
            f"if nothing in it is a person's own, delete {folder} and run the same command again"
        )
        raise StorageError(f"{error}; {again}") from None


def _plain(content: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs or a record as they come back from a JSON file."""
    return json.loads(json.dumps(content))


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is different, a few words each."""
    found = []
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if old != new:
            shown = [
                repr(v) if len(repr(v)) <= 60 and not _HASH.search(repr(v)) else ""
                for v in (old, new)
            ]
            found.append(
                f"{name} was {shown[0]}, is {shown[1]}" if all(shown) else f"{name} changed"
            )
    return found


def _seal(building: Path, kind: str, inputs: Mapping[str, Any], record: dict[str, Any]) -> None:
    """Close a finished folder. The manifest is written last, so a folder that has one is whole."""
    for folder in (building, *(p for p in building.rglob("*") if p.is_dir())):
        remove_partial(folder)
    hashes = {
        p.relative_to(building).as_posix(): file_hash(p)
        for p in files_of(building)
        if p.name != CARD
    }
    content = {"format": kind, "inputs": inputs, "record": record, "files": hashes}
    write_config(building, MANIFEST, content)


def _put(building: Path, target: Path) -> None:
    """The sealed folder in the target's place. Cut short by a kill, it is called again."""
    old = target.with_name(f".{target.name}-old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(building, target)
    shutil.rmtree(old, ignore_errors=True)
    for other in target.parent.glob(f".{target.name}-" + "[0-9a-f]" * 16):
        shutil.rmtree(other, ignore_errors=True)  # of inputs that nobody asks for any more
