"""Build the project's data files from the public sets, for people who do not have ours.

    python train/prepare_data.py data                                  # every set (a few GB are downloaded)
    python train/prepare_data.py data hh_pairs truthfulqa_responses xstest_responses
    python train/prepare_data.py data hh_pairs --source hh_pairs=/mirrors/hh-rlhf
    PRO_DATA_DIR=data python train/reward_models.py CONFIG

Each set becomes ``OUT/<name>.jsonl.gz``, in the schema that ``pro_core.data.schema.load_examples`` reads; the sets,
their licences and what is not covered stand in ``pro_core/data/public_sets.py`` (``--list`` prints them). A file
appears only when it is complete, so after an interruption the same command goes on with the set that was cut off;
``OUT/manifest.json`` says what each file was made of, and its hash. A file that was made otherwise (another ``--limit``
or ``--source``, other files in it, an older version of this code) or was changed since is made again.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pro_core.data.public_sets import CONVERSION, PUBLIC_SETS, load_public_records
from pro_core.data.schema import DataError
from pro_core.system.storage import StorageError, file_hash, replacing, write_config

MANIFEST = "manifest.json"


def prepare(name: str, out: Path, source: str | None, limit: int | None) -> dict[str, Any]:
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


def made_of(name: str, source: str | None, limit: int | None) -> dict[str, Any]:
    """All that decides a set's file; of a local copy its content, of the hub's the name."""
    public = PUBLIC_SETS[name]
    found = {"source": source or public.path, "limit": limit, "licence": public.licence}
    found |= {"conversion": CONVERSION}
    if source and Path(source).is_dir():
        digest = hashlib.sha256()
        for file in sorted(p for p in Path(source).rglob("*") if p.is_file()):
            digest.update(f"{file.relative_to(source).as_posix()} {file_hash(file)} ".encode())
        found["content"] = digest.hexdigest()
    return found


def read_manifest(out: Path) -> dict[str, dict[str, Any]]:
    """What the files in ``out`` were made of; nothing where there is no manifest yet, or no longer a whole one."""
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        print(f"{out / MANIFEST}: not JSON, so all files are made again", flush=True)
        return {}
    return manifest if isinstance(manifest, dict) else {}


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and write what is missing; a one-line error ends with status 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, nargs="?", help="folder for the files")
    parser.add_argument("names", nargs="*", metavar="NAME", help="sets to prepare (all)")
    parser.add_argument("--source", action="append", default=[], metavar="NAME=FOLDER",
                        help="read a set from a local copy instead of the hub; repeatable")  # fmt: skip
    parser.add_argument("--limit", type=int, help="at most so many records a set")
    parser.add_argument("--force", action="store_true", help="make finished files again")
    parser.add_argument("--list", action="store_true", help="print the sets and stop")
    options = parser.parse_args(arguments)

    if options.list:
        for public in PUBLIC_SETS.values():
            print(
                f"{public.name:26} {public.path}  ({public.licence}; labels: {public.annotators})"
            )
        return
    if options.out is None:
        parser.error("name the folder to write to (or --list)")
    sources = dict(entry.partition("=")[::2] for entry in options.source)
    names = options.names or list(PUBLIC_SETS)
    unknown = sorted({*names, *sources} - set(PUBLIC_SETS))
    if unknown:
        parser.error(f"got the set {unknown[0]!r}, expected one of {', '.join(PUBLIC_SETS)}")
    if not all(sources.values()):
        parser.error("--source takes NAME=FOLDER")

    try:
        for name in names:
            bring_up_to_date(name, options.out, sources.get(name), options.limit, options.force)
    except (DataError, StorageError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def bring_up_to_date(
    name: str, out: Path, source: str | None, limit: int | None, force: bool
) -> None:
    """Make a set's file, unless the one that is there was made of the same and is whole."""
    file, manifest = out / f"{name}.jsonl.gz", read_manifest(out)
    inputs, before = made_of(name, source, limit), manifest.get(name, {})
    if before and file.is_file() and not force:
        changes = [key for key, value in inputs.items() if before.get(key) != value]
        if not changes and before.get("sha256") == file_hash(file):
            print(f"{name}: already there, {before['rows']}")
            return
        print(f"{name}: made again, changed: {', '.join(changes) or file.name}", flush=True)
    made = inputs | prepare(name, out, source, limit)
    write_config(out, MANIFEST, manifest | {name: made})
    print(f"{name}: {made['rows']}")


if __name__ == "__main__":
    main()
