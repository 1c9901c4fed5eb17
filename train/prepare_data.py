"""Build the project's data files from the public sets.

    python train/prepare_data.py data                                  # every set (a few GB are downloaded)
    python train/prepare_data.py data hh_pairs truthfulqa_responses xstest_responses
    python train/prepare_data.py data hh_pairs --source hh_pairs=/mirrors/hh-rlhf
    PRO_DATA_DIR=data python train/reward_models.py RECIPE

Each set becomes ``OUT/<name>.jsonl.gz``, in the schema that ``pro_core.data.schema.load_examples`` reads; the sets,
their licences and what is not covered are in ``pro_core/data/public_sets.py`` (``--list`` prints them). A file appears
only when it is complete, so after an interruption the same command resumes with the set that was cut off.
``OUT/manifest.json`` says what each file was made from, and its hash. A file is made again if it was made otherwise
(another ``--limit`` or ``--source``, other files in it, an older version of this code) or has changed since.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pro_core.data.prepared import prepare_set
from pro_core.data.public_sets import PUBLIC_SETS
from pro_core.data.schema import DataError
from pro_core.system.storage import StorageError


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and write what is missing; an error is one line and status 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, nargs="?", help="folder for the files")
    parser.add_argument("names", nargs="*", metavar="NAME", help="sets to prepare (all)")
    parser.add_argument("--source", action="append", default=[], metavar="NAME=FOLDER",
                        help="read a set from a local copy instead of the hub; repeatable")  # fmt: skip
    parser.add_argument("--limit", type=int, help="at most this many records per set")
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
            prepare_set(name, options.out, sources.get(name), options.limit, options.force)
    except (DataError, StorageError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
