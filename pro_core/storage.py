"""Folders on disk: JSON configs with versions, and clear words when one is broken."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any


class StorageError(ValueError):
    """A checkpoint that is missing, truncated or of another kind: says which file and what to do."""


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
