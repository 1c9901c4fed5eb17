"""Files of the public sets in a folder: each is made once, and again when what it is made of has changed.

``<name>.jsonl.gz`` holds the records of a set, ``manifest.json`` what each file was made of, and its hash. A file
appears only when it is complete, so that after a kill the same call goes on with the set that was cut off.
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
    """Make a set's file, unless the one that is there was made of the same and is whole; print which it was.

    Args:
        name: a key of :data:`pro_core.data.public_sets.PUBLIC_SETS`.
        source: a local copy of the set's folder; its hub name or address by default.
        limit: at most so many records.
        force: make it even so.

    Raises:
        DataError: a source that cannot be reached or read, or without a usable row. StorageError: a full disk.
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
    """Write one set and return what the manifest says of it. Bytes depend on the records alone."""
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
    """All that decides a set's file; of a local copy its content, of the hub's the name."""
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
    """What the files in ``out`` were made of; nothing where there is no manifest yet, or no longer a whole one."""
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        print(f"{out / MANIFEST}: not JSON, so all files are made again", flush=True)
        return {}
    return manifest if isinstance(manifest, dict) else {}
