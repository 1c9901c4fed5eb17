"""Prepared files of the public sets in a folder. Each file is made once, and again when its inputs have changed.

``<name>.jsonl.gz`` holds the records of a set; ``manifest.json`` says what each file was made from, with its hash. A
file appears only when it is complete, so after a kill the same call goes on with the set that was interrupted.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from pro_core.data.public_sets import CONVERSION, PUBLIC_SETS, load_public_records
from pro_core.data.schema import DataError
from pro_core.system.extras import needs
from pro_core.system.storage import file_hash, replacing, write_config

with needs("train"):
    from tqdm import tqdm

MANIFEST = "manifest.json"


def prepare_set(
    name: str,
    out: Path,
    source: str | None = None,
    limit: int | None = None,
    force: bool = False,
) -> None:
    """Make a set's file, unless a whole file made from the same inputs exists; print which was the case.

    Args:
        name: a key of :data:`pro_core.data.public_sets.PUBLIC_SETS`.
        source: a local copy of the set's folder; its hub name or address by default.
        limit: at most this many records.
        force: make the file in any case.

    Raises:
        DataError: a source that cannot be reached or read, or has no usable row. StorageError: a full disk.
    """
    file, manifest = out / f"{name}.jsonl.gz", _read_manifest(out)
    inputs, before = _made_of(name, source, limit), manifest.get(name, {})
    if before and file.is_file() and not force:
        changes = [key for key, value in inputs.items() if before.get(key) != value]
        if not changes and before.get("sha256") == file_hash(file):
            print(f"{name}: already there, {before['rows']}")
            return
        print(f"{name}: made again, changed: {', '.join(changes) or file.name}", flush=True)
    made = inputs | _write(name, out, source, limit)
    write_config(out, MANIFEST, manifest | {name: made})
    print(f"{name}: {made['rows']}")


def _write(name: str, out: Path, source: str | None, limit: int | None) -> dict[str, Any]:
    """Write one set and return its entry in the manifest. The bytes depend on the records alone."""
    splits: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    file = out / f"{name}.jsonl.gz"
    with replacing(file) as partial:
        with (
            partial.open("wb") as raw,
            gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as lines,
        ):
            records = load_public_records(name, source, limit, counts)
            for record in tqdm(records, desc=name, unit=" rows"):
                splits[record["split"]] += 1
                lines.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
        if not splits:
            raise DataError(f"{name}: {source or PUBLIC_SETS[name].path} gave no usable row")
    read = {"rows_read": counts["rows"], "repeated": counts["repeated"]}
    return {"rows": dict(sorted(splits.items())), "sha256": file_hash(file)} | read


def _made_of(name: str, source: str | None, limit: int | None) -> dict[str, Any]:
    """Everything that determines a set's file: a local copy by its content, a set on the hub by its name."""
    public = PUBLIC_SETS[name]
    inputs = {"source": source or public.path, "limit": limit, "licence": public.licence}
    inputs |= {"conversion": CONVERSION}
    if source and Path(source).is_dir():
        digest = hashlib.sha256()
        for file in sorted(p for p in Path(source).rglob("*") if p.is_file()):
            digest.update(f"{file.relative_to(source).as_posix()} {file_hash(file)} ".encode())
        inputs["content"] = digest.hexdigest()
    return inputs


def _read_manifest(out: Path) -> dict[str, dict[str, Any]]:
    """The manifest of ``out``; empty if there is none, or only a broken one."""
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        print(f"{out / MANIFEST}: not JSON, so all files are made again", flush=True)
        return {}
    return manifest if isinstance(manifest, dict) else {}
