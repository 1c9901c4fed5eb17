"""Which model is it? One answer for panels, classifiers, encoders and policies: a hash of what is in its files.

Only what decides a model's outputs counts: parameters, configs, tokenizers. Cards, manifests and records of training do
not, nor where the files lie. A model of the hub is known by its commit, whatever part of it is on this machine. What
code makes of a model has a version beside that code (such as ``SCORING_VERSION``), which belongs into the same key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pro_core.packaged import resolve_encoder
from pro_core.storage import file_hash

SUFFIXES = (".safetensors", ".json", ".jinja", ".txt", ".model", ".gguf", ".tiktoken")
NOT_THE_MODEL = (
    *("manifest.json", "run.json", "panel.json", "adapter.json", "classifier.json"),
    *("trainer_state.json", "log.jsonl"),
)
RECORDS = ("versions", "training", "transformers_version", "_name_or_path", "name_or_path")
"""Keys of a config that say how a model was made, not what it does."""
BASES = {
    "reward_model.json": "base",
    "adapter_config.json": "base_model_name_or_path",
    "pro_policy.json": "base",
}
"""Ours, and LoRAs, hold what was trained, and name the base that holds the rest."""


def fingerprint(source: str | Path, revision: str | None = None, inside: str | Path = "") -> str:
    """The SHA-256 of a model.

    Args:
        source: a folder, a hub id, or the id of a packaged model. revision: of a hub id.
        inside: a folder (a panel's own) in which the source is looked for first.

    A hub id that is neither on this machine nor to be reached counts by its name.
    """
    digest = hashlib.sha256()
    queue, done = [(str(source), revision)], set()
    while queue:
        name, asked = queue.pop(0)
        if name in done:
            continue
        done.add(name)
        folder = _folder_of(name, inside)
        if folder is None:
            digest.update(f"{name}@{_commit_of(name, asked)}".encode())
            continue
        for file in _model_files(folder):
            digest.update(f"{file.relative_to(folder).as_posix()} {_hash_of(file)} ".encode())
        for config, key in BASES.items():
            if base := _config(folder / config).get(key):
                queue.append((str(base), None))
    return digest.hexdigest()


def _folder_of(name: str, inside: str | Path) -> Path | None:
    if inside and (Path(inside) / name).is_dir():
        return Path(inside) / name
    folder = Path(resolve_encoder(name))
    return folder if folder.is_dir() else None


def _model_files(folder: Path) -> Iterable[Path]:
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        hidden = any(part.startswith(".") for part in parts)
        if file.suffix in SUFFIXES and file.name not in NOT_THE_MODEL and not hidden:
            yield file


def _hash_of(file: Path) -> str:
    """Of a config without its records; of any other file its bytes."""
    if file.suffix != ".json" or file.stat().st_size > 1_000_000:
        return file_hash(file)
    config = {k: v for k, v in _config(file).items() if k not in RECORDS}
    for config_file, key in BASES.items():
        if file.name == config_file:  # the base counts by its own content, wherever it lies
            config.pop(key, None)
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _config(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {"": found}


def _commit_of(name: str, revision: str | None) -> str | None:
    """The commit that a hub id stands for, of which a small file is fetched if need be; None where there is none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    for cached in (True, False):
        for file in ("config.json", "adapter_config.json"):
            try:
                found = hf_hub_download(name, file, revision=revision, local_files_only=cached)
            except EntryNotFoundError:  # of a missing file in the cache, too
                continue
            except Exception:  # no hub, or no hub id at all
                return None
            return Path(found).parent.name
    return None
