"""Folders on disk: JSON configs with versions, and clear words when one is broken."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


class StorageError(ValueError):
    """A checkpoint that is missing, truncated or of another kind: says which file and what to do."""


def first_line(error: Exception) -> str:
    """An error's own words for the middle of a sentence: its first line, its kind where it has none."""
    text = str(error).strip().split("\n", 1)[0]
    return (text or type(error).__name__)[:300].rstrip(".")


def library_versions() -> dict[str, str]:
    """The versions that a checkpoint was made with."""
    versions = {"python": platform.python_version()}
    for name in ("torch", "transformers", "peft"):
        versions[name] = metadata.version(name)
    return versions


def local_folder(path_or_id: str | Path) -> Path:
    """A local folder as it is; a hub id downloaded to the hub's cache.

    Raises:
        StorageError: neither a folder nor a hub repository that can be reached.
    """
    folder = Path(path_or_id)
    if folder.is_dir():
        return folder
    text = str(path_or_id)
    if folder.is_absolute() or text.startswith(".") or text.count("/") != 1:
        raise StorageError(f"{text}: no such folder")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(text))
    except Exception as error:
        raise StorageError(
            f"{text}: neither a local folder nor a hub repository that can be reached "
            f"({type(error).__name__})"
        ) from None


def write_config(folder: str | Path, name: str, config: dict[str, Any]) -> None:
    """Write a JSON file so that a reader sees the old one or the new one, never half of it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}.{os.getpid()}"
    temporary.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, folder / name)


def write_jsonl(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a JSON Lines file, whole or not at all. :func:`pro_core.data.read_jsonl` reads it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    os.replace(temporary, path)


def read_config(folder: str | Path, name: str, *formats: str) -> dict[str, Any]:
    """Read a JSON config whose ``format`` is one of ``formats``.

    Raises:
        StorageError: missing, truncated, or of another format.
    """
    file = Path(folder) / name
    if not file.is_file():
        raise StorageError(f"{folder}: no {name} there, so it is not a {formats[0]} checkpoint")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StorageError(f"{file}: truncated or not JSON ({error}); copy it again") from None
    if not isinstance(config, dict) or config.get("format") not in formats:
        found = config.get("format") if isinstance(config, dict) else type(config).__name__
        raise StorageError(
            f"{file}: got the format {found!r}, expected {' or '.join(map(repr, formats))}"
        )
    return config


def file_hash(path: str | Path) -> str:
    """The SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(content: Any) -> str:
    """The SHA-256 of a JSON-ready value: the same value, the same hash, in any process."""
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def seal(folder: str | Path, kind: str, record: dict[str, Any]) -> None:
    """Close a finished folder: ``manifest.json`` with its record and the hash of every file in it.

    It is written last, so a folder with a manifest is whole; :func:`read_sealed` notices what changed since.
    """
    folder = Path(folder)
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith(".")]
    hashes = {str(p.relative_to(folder)): file_hash(p) for p in files if p != folder / MANIFEST}
    write_config(folder, MANIFEST, {"format": kind, "record": record, "files": hashes})


def read_sealed(folder: str | Path, kind: str) -> dict[str, Any] | None:
    """The record of a sealed folder; None where it is not finished.

    Raises:
        StorageError: a file is missing or has changed since it was sealed.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        return None
    found = read_config(folder, MANIFEST, kind)
    for name, expected in found["files"].items():
        file = folder / name
        if not file.is_file() or file_hash(file) != expected:
            raise StorageError(
                f"{file}: missing or changed since it was written; delete {folder} and run the same command again"
            )
    return found["record"]


@contextlib.contextmanager
def quiet_loading():
    """Without transformers' progress bars and load reports: we say in our own words what is missing."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
