"""Files on disk: JSON configs with a format, writes that are whole or not at all, and clear errors."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import platform
import re
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
"""Files that we neither load nor download: unpickling can run code."""


class StorageError(ValueError):
    """A checkpoint that is missing, truncated or of another kind. The message says which file and what to do."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, as a part of a sentence; its type if the message is empty."""
    text = str(error).strip().split("\n", 1)[0]
    return (text or type(error).__name__)[:300].rstrip(".")


def library_versions() -> dict[str, str]:
    """The versions that a checkpoint was made with."""
    versions = {"python": platform.python_version()}
    for name in ("torch", "transformers", "peft"):
        versions[name] = metadata.version(name)
    return versions


def is_hub_id(text: str) -> bool:
    """Whether a text can be the hub's name of a repository, and not only a path: ``owner/name`` or ``name``."""
    return not Path(text).is_absolute() and not text.startswith(".") and text.count("/") <= 1


def local_folder(path_or_id: str | Path, revision: str | None = None) -> Path:
    """The folder of a local path, or of a hub id, which is downloaded to the hub's cache without pickles.

    Raises:
        StorageError: neither a local folder nor a hub repository that can be reached.
    """
    folder = Path(path_or_id)
    if folder.is_dir():
        return folder
    text = str(path_or_id)
    if not is_hub_id(text) or "/" not in text:
        raise StorageError(f"{text}: no such folder")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(text, revision=revision, ignore_patterns=[*PICKLES]))
    except Exception as error:
        raise StorageError(
            f"{text}: neither a local folder nor a hub repository that can be reached "
            f"({type(error).__name__})"
        ) from None


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path``. It replaces ``path`` when the block ends, and is deleted if the block fails.

    A reader sees the old file or the new one, never half of it.

    Raises:
        StorageError: the disk is full, or cannot be written, in one sentence.
    """
    path = Path(path)
    partial = path.with_name(f".{os.getpid()}-{path.name}")

    def undo() -> None:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)

    with explained_disk(path.parent, path, undo):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_partial(path.parent, path.name)
        yield partial
        os.replace(partial, path)


@contextlib.contextmanager
def explained_disk(folder: Path, target: Path, undo: Callable[[], None] = lambda: None):
    """Turn the errors of a full disk, or one that cannot be written, below ``folder`` into one sentence.

    Args:
        target: what is written, for the message. undo: removes half-written files after any failure.

    Raises:
        StorageError: that sentence. Other errors pass unchanged.
    """
    try:
        yield
    except BaseException as error:
        trouble = disk_trouble(error, folder)
        undo()
        if trouble:
            raise StorageError(f"{target}: {trouble} ({first_line(error)})") from error
        raise


def remove_partial(folder: Path, name: str = "*") -> None:
    """Delete half-written copies of one file in ``folder``, or of all files, that killed processes left behind."""
    for partial in folder.glob(f".[0-9]*-{name if name == '*' else glob.escape(name)}"):
        pid = partial.name[1:].partition("-")[0]
        if pid.isdigit() and not _runs(int(pid)):
            with contextlib.suppress(OSError):
                partial.unlink()


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's process
        return True
    return True


DISK = {
    errno.ENOSPC: "the disk is full: free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up: free some space and run the same command again",
    errno.EFBIG: "the file is larger than this system allows",
    errno.EROFS: "the disk is read-only: name a folder that can be written",
    errno.EACCES: "writing there is not allowed: name a folder that can be written",
    errno.EPERM: "writing there is not allowed: name a folder that can be written",
    errno.EIO: "the disk fails to read or write",
}
"""errno -> what a user should know about it."""
PROBE = 1 << 20


def disk_trouble(error: BaseException, folder: Path) -> str | None:
    """What is wrong with the disk, if that caused an error while writing to ``folder``; None for any other error.

    Errors elsewhere, such as a data file that cannot be read, do not count. When a disk is full, torch raises an error
    without an errno; then a megabyte is written as a test. Call this before half-written files are deleted.
    """
    if isinstance(error, OSError):
        return None if _elsewhere(error.filename, folder) else DISK.get(error.errno or 0)
    if isinstance(error, SafetensorError):  # it keeps the errno only in its text
        number = re.search(r"\(os error (\d+)\)", str(error))
        return DISK.get(int(number[1])) if number else None
    if not isinstance(error, RuntimeError):
        return None
    probe = folder / f".{os.getpid()}-probe"
    try:
        probe.write_bytes(bytes(PROBE))
    except OSError as write_error:
        return DISK.get(write_error.errno or 0)
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    return None


def _elsewhere(name: Any, folder: Path) -> bool:
    """Whether a file that an error names is neither beside nor below ``folder``, nor one of the folders above it."""
    if name is None or isinstance(name, int):
        return False
    file, place = Path(os.fsdecode(name)).resolve(), folder.resolve()
    return not (file.is_relative_to(place.parent) or place.is_relative_to(file))


def write_config(folder: str | Path, name: str, config: dict[str, Any]) -> None:
    """Write a JSON file so that a reader sees the old one or the new one, never half of it."""
    with replacing(Path(folder) / name) as partial:
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        partial.write_text(text, encoding="utf-8")


def write_jsonl(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a JSON Lines file, whole or not at all. :func:`pro_core.data.schema.read_jsonl` reads it."""
    with replacing(path) as partial:
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def append_jsonl(path: str | Path, row: dict[str, Any]) -> None:
    """Append a line to a JSON Lines file. An incomplete last line, left by a kill, is removed; processes take turns.

    Raises:
        StorageError: the disk is full, or cannot be written, in one sentence.
    """
    import fcntl

    path, line = Path(path), json.dumps(row).encode() + b"\n"
    with explained_disk(path.parent, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # the system releases it when a process dies
            file.truncate(_whole_lines(file))
            file.write(line)


def _whole_lines(file: BinaryIO) -> int:
    """The number of bytes up to the end of a file's last whole line."""
    place = file.seek(0, os.SEEK_END)
    while place:
        start = max(0, place - (1 << 16))
        file.seek(start)
        end = file.read(place - start).rfind(b"\n")
        if end >= 0:
            return start + end + 1
        place = start
    return 0


def write_tensors(path: str | Path, tensors: dict[str, Any], **settings: Any) -> None:
    """Write a safetensors file, whole or not at all."""
    from safetensors.torch import save_file

    with replacing(path) as partial:
        save_file(tensors, partial, **settings)


def read_config(folder: str | Path, name: str, *formats: str) -> dict[str, Any]:
    """Read a JSON config whose ``format`` is one of ``formats``.

    Raises:
        StorageError: missing, truncated, or of another format.
    """
    file = Path(folder) / name
    if not file.is_file():
        raise StorageError(f"{folder}: has no {name}, so it is not a {formats[0]} checkpoint")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StorageError(f"{file}: truncated or not JSON ({error}); copy it again") from None
    if not isinstance(config, dict) or config.get("format") not in formats:
        actual = config.get("format") if isinstance(config, dict) else type(config).__name__
        raise StorageError(
            f"{file}: got the format {actual!r}, expected {' or '.join(map(repr, formats))}"
        )
    return config


def file_hash(path: str | Path) -> str:
    """The SHA-256 of a file. Raises StorageError if it does not exist."""
    if not Path(path).is_file():
        raise StorageError(f"{path}: no such file")
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(content: Any) -> str:
    """The SHA-256 of a JSON-ready value; equal values have equal hashes in every process."""
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def quiet_loading():
    """Hide transformers' progress bars and load reports; our own errors say what is missing."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
