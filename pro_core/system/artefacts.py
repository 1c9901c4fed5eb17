"""Finished work as folders. Each records what made it, appears whole or not at all, and is never mistaken for another.

:func:`once` makes panels, tables of scores, adapters, classifiers, rollouts and policies. Beside its files, a finished
folder has a ``manifest.json``: the *inputs* that determine it (settings in full, data and models as hashes, the version
of the code), a *record* of how the run went, and a hash of every file. Work happens in a hidden folder named after the
inputs, which is moved into place at the end. A killed run that is started again therefore continues where it stopped,
and never from what other inputs left behind.
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
"""The subfolder for checkpoints while the work goes on; it is deleted when the work is done."""
LINKED = 1 << 30
"""Files of at least this many bytes are hard-linked, not copied. A copy can be edited without changing its source."""
CARD = "README.md"
"""The model card. People may edit it, so its hash is not checked."""
_HASH = re.compile(r"[0-9a-f]{32,64}")


@dataclass(frozen=True)
class Artefact:
    """A finished folder: its kind, the hash of its inputs, and the record of how it was made."""

    folder: Path
    kind: str
    key: str
    record: dict[str, Any]

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    def check(self) -> None:
        """Raise a StorageError if another run has remade the folder from other inputs in the meantime."""
        if content_hash(_manifest(self.folder, self.kind)["inputs"]) != self.key:
            raise StorageError(
                f"{self.folder}: another run with other inputs has remade it in the meantime: let one recipe at a time "
                "write to a folder, then run the same command again"
            )


def once(
    target: str | Path,
    kind: str,
    inputs: Mapping[str, Any],
    make: Callable[[Path], dict[str, Any] | None],
) -> Artefact:
    """The folder ``target`` as ``inputs`` make it. It is made now, unless the same inputs have made it already.

    A folder that other inputs made is replaced, and the changes are printed. Every process calls this function; one
    run at a time makes the folder, and the others wait.

    Args:
        kind: the kind of folder, which is the manifest's ``format``.
        inputs: everything that determines the content, ready for JSON; large things as hashes.
        make: fills the folder that it is given, and returns the record. Called again after a kill, it finds its files.

    Raises:
        StorageError: ``target`` holds something else, one of its files was changed, or the disk is full or read-only.
    """
    target, key = Path(target), content_hash(inputs)
    record = from_main(_made_already(target, kind, inputs) if main_process() else None)
    if record is not None:
        return Artefact(target, kind, key, record)
    with _only_one(target) if main_process() else nullcontext():
        wait_for_all()  # until the main process has the lock
        building = target.with_name(f".{target.name}-{key[:16]}")
        record = from_main(_finished(target, building, kind, inputs) if main_process() else None)
        if record is None:
            record = _plain(_make(building, target, make))
            wait_for_all()
            if main_process():
                with explained_disk(building, target):
                    shutil.rmtree(building / WORK, ignore_errors=True)
                    _seal(building, kind, inputs, record)
                    _put(building, target)
            record = from_main(record)
        wait_for_all()
    return Artefact(target, kind, key, record)


def finished(target: str | Path, kind: str, inputs: Mapping[str, Any], command: str) -> Artefact:
    """The finished folder that :func:`once` made from these inputs.

    Raises:
        StorageError: it does not exist, or other inputs made it; the message names the command that makes it.
    """
    target = Path(target)
    if not (target / MANIFEST).is_file():
        raise StorageError(f"{target}: missing or not finished: run {command} first")
    manifest = read_manifest(target, kind)
    if manifest["inputs"] != _plain(inputs):
        changes = "; ".join(_changes(manifest["inputs"], _plain(inputs)))
        raise StorageError(f"{target}: other inputs made it ({changes}): run {command} again first")
    return Artefact(target, kind, content_hash(inputs), manifest["record"])


def read_manifest(folder: Path, kind: str) -> dict[str, Any]:
    """``{"inputs", "record", "files"}`` of a finished folder.

    Raises:
        StorageError: no manifest, a manifest of another kind, or a file that is missing or was changed.
    """
    manifest = _manifest(folder, kind)
    for name, expected in manifest["files"].items():
        file = folder / name
        if not file.is_file() or file_hash(file) != expected:
            raise StorageError(
                f"{file}: missing or changed since it was written; delete {folder} and run the same command again"
            )
    return manifest


def files_of(folder: str | Path) -> Iterable[Path]:
    """The files of a finished folder, without its manifest and hidden files."""
    paths = sorted(p for p in Path(folder).rglob("*") if p.is_file())
    return [p for p in paths if p.name != MANIFEST and not p.name.startswith(".")]


def copy_files(source: str | Path, folder: Path) -> None:
    """Copy a finished folder's files into another folder. Large files become hard links where the disk allows it."""
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
    """A lock that one run at a time holds. Prints a line if another run holds it."""
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
    """The record of ``target`` if these inputs made it. It takes no lock, so a finished folder may be read-only."""
    with suppress(StorageError):
        if _manifest(target, kind)["inputs"] == _plain(inputs):
            return read_manifest(target, kind)["record"]
    return None


def _finished(
    target: Path, building: Path, kind: str, inputs: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The record of ``target`` if these inputs made it; None if it is still to be made."""
    if (building / MANIFEST).is_file():  # killed after sealing, before moving
        _put(building, target)
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return None
    if not (target / MANIFEST).is_file():
        raise StorageError(
            f"{target}: it exists but has no {MANIFEST}, so nothing says what made it: move it away, or name "
            "another folder"
        )
    manifest = _manifest(target, kind)
    if manifest["inputs"] == _plain(inputs):
        return read_manifest(target, kind)["record"]
    print(
        f"{target}: made again: {'; '.join(_changes(manifest['inputs'], _plain(inputs)))}",
        flush=True,
    )
    return None


def _manifest(folder: Path, kind: str) -> dict[str, Any]:
    try:
        return read_config(folder, MANIFEST, kind)
    except StorageError as error:
        again = (
            f"if it holds none of your own files, delete {folder} and run the same command again"
        )
        raise StorageError(f"{error}; {again}") from None


def _plain(content: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs or a record, as a JSON file returns them."""
    return json.loads(json.dumps(content))


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The differences, in a few words each."""
    changes = []
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if old != new:
            shown = [
                repr(v) if len(repr(v)) <= 60 and not _HASH.search(repr(v)) else ""
                for v in (old, new)
            ]
            changes.append(
                f"{name} was {shown[0]}, is {shown[1]}" if all(shown) else f"{name} changed"
            )
    return changes


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
    """Move the sealed folder into the target's place. It is called again if a kill interrupts it."""
    old = target.with_name(f".{target.name}-old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(building, target)
    shutil.rmtree(old, ignore_errors=True)
    for other in target.parent.glob(f".{target.name}-" + "[0-9a-f]" * 16):
        shutil.rmtree(other, ignore_errors=True)  # unfinished work for other inputs
