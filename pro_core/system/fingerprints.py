"""Fingerprints of models: a hash of the contents of their files, for panels, classifiers, encoders and policies.

Only what determines a model's outputs counts: parameters, configs, tokenizer. Cards, manifests and training records do
not count, nor does the location: a folder, a package and the hub's cache give the same fingerprint. The code that uses
a model has its own version (such as ``SCORING_VERSION``), which belongs in the same key.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from pro_core.system.bundled_models import resolve_encoder
from pro_core.system.storage import file_hash

FILES = (
    *("*.safetensors", "*.gguf", "config.json", "generation_config.json", "chat_template.jinja"),
    *("adapter_config.json", "reward_model.json", "pro_policy.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)
TOKENIZER = "tokenizer.json"
SLOW_TOKENIZERS = ("*.model", "*.tiktoken", "vocab.*", "merges.txt")
"""The files of a tokenizer that has no ``tokenizer.json``."""
RECORDS = ("versions", "training", "transformers_version", "_name_or_path", "name_or_path")
"""Keys of a config that say how a model was made, not what it does."""
BASES = {
    "reward_model.json": "base",
    "adapter_config.json": "base_model_name_or_path",
    "pro_policy.json": "base",
}
"""Config file -> its key for the base model. Our checkpoints and LoRAs hold only what was trained."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


def fingerprint(
    source: str | Path,
    revision: str | None = None,
    inside: str | Path = "",
    loaded: tuple[Any, Any] | None = None,
) -> str:
    """The SHA-256 of a model, which is fetched from the hub if it is not on this machine.

    Args:
        source: a folder, a hub id, or the id of a packaged model. revision: of a hub id.
        inside: a folder, such as a panel's, that is searched for the source first. A base model is searched for in the
            folder that names it, then in this one.
        loaded: (model, tokenizer) of a model that exists only in memory; its parameters count instead of files.

    A model that has no files, cannot be fetched and is not loaded counts by its name.
    """
    digest = hashlib.sha256()
    beside = [Path(inside)] if inside else []
    queue, done = [(str(source), revision, beside)], set()
    while queue:
        name, asked, places = queue.pop(0)
        folder = _folder_of(name, asked, places)
        if (name, folder) in done:
            continue
        done.add((name, folder))
        if folder is None:
            digest.update(_of_loaded(*loaded) if loaded else f"{name}@{asked}".encode())
            continue
        for file in _model_files(folder):
            digest.update(f"{file.name} {_hash_of(file)} ".encode())
        for config, key in BASES.items():
            if base := _config(folder / config).get(key):
                queue.append((str(base), None, [folder, *beside]))
    return digest.hexdigest()


def _folder_of(name: str, revision: str | None, places: Sequence[Path]) -> Path | None:
    for folder in (*(place / name for place in places), Path(resolve_encoder(name))):
        if folder.is_dir():
            return folder.resolve()
    from huggingface_hub import snapshot_download

    for cached in (True, False):
        try:
            wanted = [*FILES, TOKENIZER, *SLOW_TOKENIZERS]
            snapshot = Path(
                snapshot_download(
                    name, revision=revision, allow_patterns=wanted, local_files_only=cached
                )
            )
        except Exception:  # not in the cache, no hub, or not a hub id
            continue
        if any(snapshot.glob("*.safetensors")) or not cached:
            return snapshot
    return None


def _model_files(folder: Path) -> Iterator[Path]:
    fast = (folder / TOKENIZER).is_file()
    for pattern in (*FILES, *((TOKENIZER,) if fast else SLOW_TOKENIZERS)):
        yield from (p for p in sorted(folder.glob(pattern)) if not p.name.startswith("."))


def _hash_of(file: Path) -> str:
    """The hash of a file's bytes; for a config, without the keys that only record how the model was made."""
    if file.suffix == ".json" and file.name != TOKENIZER:
        config = {k: v for k, v in _config(file).items() if k not in RECORDS}
        config.pop(BASES.get(file.name, ""), None)  # the base model counts by its own content
        return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    blob = file.resolve().name  # in the hub's cache a large file is named by its hash
    if _SHA256.fullmatch(blob):
        return blob
    status = file.stat()
    return _read_once(file.resolve(), status.st_ino, status.st_size, status.st_ctime_ns)


@lru_cache(maxsize=1024)
def _read_once(file: Path, *version: int) -> str:
    """The hash of a file, read once per process: many arms, seeds and folds use the same base model.

    ``version``: its inode, size and ctime, which, unlike the mtime, nobody resets.
    """
    return file_hash(file)


def _of_loaded(model: Any, tokenizer: Any) -> bytes:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(name.encode() + raw.numpy().tobytes())
    words = [sorted(tokenizer.get_vocab().items()), str(tokenizer.chat_template)]
    digest.update(json.dumps(words).encode())
    return digest.digest()


def _config(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {"": content}
