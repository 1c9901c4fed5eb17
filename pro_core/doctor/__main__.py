"""Can a preference adapter help on your data? One page here, and an HTML report with plots.

    python -m pro_core.doctor --panel checkpoints/demo/panel --data pairs.jsonl
    python -m pro_core.doctor --panel my/panel --data a.jsonl b.jsonl.gz nvidia/HelpSteer2 --split test

`pro-doctor` is the same. Its plots and fits need `pip install 'pro-core[train]'`.

The exit code is 0 whatever the verdict; 1 for input that cannot be used, with one line that says why.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pro_core.system.extras import MissingExtra

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

STARTED = time.monotonic()


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pro_core.doctor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--panel", required=True, help="the reward models: a folder or a hub id")
    parser.add_argument(
        "--data",
        required=True,
        nargs="+",
        metavar="D",
        help="JSON Lines files in the project's schema (pairs, or labelled responses), also by name in PRO_DATA_DIR, "
        "or hub names of public sets",
    )
    parser.add_argument(
        "--split",
        choices=("train", "validation", "test"),
        help="only these rows; test when the panel was trained on this data",
    )
    parser.add_argument(
        "--max-pairs",
        type=_positive,
        default=400,
        metavar="N",
        help="sample at most this many pairs (default 400)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the sample and the folds (default 0)"
    )
    parser.add_argument(
        "--encoder",
        default="sentence-transformers/all-MiniLM-L6-v2",
        help="the frozen encoder that reads the prompts (default: MiniLM, for English)",
    )
    parser.add_argument(
        "--html",
        type=Path,
        default=Path("outputs/doctor.html"),
        metavar="PATH",
        help="where the report goes (default outputs/doctor.html)",
    )
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected at least 1")
    return number


def scored(arguments: argparse.Namespace) -> dict[str, Any]:
    """Load, sample and score: the arguments of :func:`pro_core.doctor.verdict.examine`.

    Raises:
        DataError, StorageError, ValueError, OSError: input that cannot be used.
    """
    from pro_core.doctor.inputs import (
        StoredPanel,
        load_pairs,
        prompt_features,
        sample_pairs,
        scored_table,
        seen_in_training,
    )
    from pro_core.system.cache import Cache

    panel = StoredPanel(arguments.panel)
    loaded = load_pairs(arguments.data, panel.objective_names, arguments.split)
    pairs = sample_pairs(loaded.pairs, arguments.max_pairs, arguments.seed)
    say(f"scoring {len(pairs):,} of {len(loaded.pairs):,} pairs")
    cache = Cache()
    table = scored_table(panel, pairs, cache, progress("texts scored"))
    say(f"reading the prompts ({cache.found:,} texts were cached, {cache.computed:,} scored)")
    return {
        "table": table,
        "features_ND": prompt_features(table, arguments.encoder, cache, progress("prompts read")),
        "objective_names": panel.objective_names,
        "available": len(loaded.pairs),
        "notes": [*seen_in_training(panel, pairs), *loaded.notes],
        "about": {
            "panel": arguments.panel,
            "reference": panel.stats.n if panel.stats else 0,
            "encoder": arguments.encoder,
            "seed": arguments.seed,
        },
        "seed": arguments.seed,
    }


def say(what: str) -> None:
    """Report progress on standard error; standard output gets only the page."""
    print(f"[{time.monotonic() - STARTED:5.1f} s] {what}", file=sys.stderr, flush=True)


def progress(what: str):
    return lambda done, total: say(f"{done:,} of {total:,} {what}")


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    say("loading the libraries")
    try:
        from pro_core.doctor.page import render_html
        from pro_core.doctor.text import render_text
        from pro_core.doctor.verdict import examine
    except MissingExtra as error:
        sys.exit(f"doctor: {error}")

    try:
        inputs = scored(options)
    except (ValueError, OSError) as error:  # DataError and StorageError are ValueErrors
        sys.exit(f"doctor: {' '.join(str(error).split())}")
    say("cross-validating an adapter")
    examination = examine(**inputs)
    say("drawing the report")
    html = render_html(examination)
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    print(render_text(examination), flush=True)
    try:
        options.html.parent.mkdir(parents=True, exist_ok=True)
        options.html.write_text(html, encoding="utf-8")
    except OSError as error:
        sys.exit(f"doctor: the report cannot be written ({error}); name another place with --html")
    print(f"The same with plots: {options.html}")
    say("done")


if __name__ == "__main__":
    main()
