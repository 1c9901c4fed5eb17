"""Can a preference adapter help on your data? One page here, and an HTML report with plots.

    python -m pro_core.doctor --panel checkpoints/demo/panel --data pairs.jsonl
    python -m pro_core.doctor --panel my/panel --data a.jsonl b.jsonl.gz nvidia/HelpSteer2 --split test

How far to trust an objective that is written as a sentence, or which of several to take:

    python -m pro_core.doctor --sentence "The answer is concise." --sentence "The answer has few words." \\
        --judge http://localhost:8000 --data pairs.jsonl

`pro-doctor` is the same. Its plots and fits need `pip install 'pro-core[train]'`.

The exit code is 0 whatever the verdict; 1 for input that cannot be used, with one line that says why.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pro_core.system.extras import MissingExtra

if TYPE_CHECKING:  # the libraries are loaded once the arguments are right
    from pro_core.doctor.inputs import StoredPanel
    from pro_core.system.cache import Cache

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

STARTED = time.monotonic()


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pro_core.doctor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--panel", help="the reward models: a folder or a hub id")
    parser.add_argument(
        "--sentence",
        action="append",
        default=[],
        metavar="S",
        help="grade this sentence as an objective; may be given several times, to compare them on the same pairs",
    )
    parser.add_argument(
        "--judge",
        metavar="J",
        help="with --sentence: the address of a chat server with log-probabilities (its token: PRO_JUDGE_TOKEN), or "
        "the folder or hub id of a model for this process",
    )
    parser.add_argument(
        "--judge-model", default="", metavar="M", help="the judge's name at its server"
    )
    parser.add_argument(
        "--objective",
        default="",
        metavar="O",
        help="with --sentence: the objective whose pairs it stands for (default: all pairs)",
    )
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
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
        "--label-next",
        nargs="+",
        default=[],
        metavar="D",
        help="files with responses and no preference: rank their pairs by what a label is worth, into label_next.jsonl "
        "beside the report",
    )
    parser.add_argument(
        "--html",
        type=Path,
        default=Path("outputs/doctor.html"),
        metavar="PATH",
        help="where the report goes (default outputs/doctor.html)",
    )
    options = parser.parse_args(arguments)
    if options.sentence and not options.judge:
        parser.error("--sentence needs --judge")
    if not options.sentence and not (options.panel and options.data):
        parser.error("expected --panel and --data, or --sentence and --judge")
    return options


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected at least 1")
    return number


def scored(arguments: argparse.Namespace, panel: StoredPanel, cache: Cache) -> dict[str, Any]:
    """Load, sample and score: the arguments of :func:`pro_core.doctor.verdict.examine`.

    Raises:
        DataError, StorageError, ValueError, OSError: input that cannot be used.
    """
    from pro_core.doctor.inputs import (
        load_pairs,
        prompt_features,
        sample_pairs,
        scored_table,
        seen_in_training,
    )

    loaded = load_pairs(arguments.data, panel.objective_names, arguments.split)
    pairs = sample_pairs(loaded.pairs, arguments.max_pairs, arguments.seed)
    say(f"scoring {len(pairs):,} of {len(loaded.pairs):,} pairs")
    table = scored_table(panel, pairs, cache, progress("texts scored"))
    notes = [*seen_in_training(panel, pairs), *loaded.notes]
    if len(table) < len(pairs):
        notes.append(
            f"{len(pairs) - len(table):,} of {len(pairs):,} pairs left out: a text of theirs has no score under some "
            "objective."
        )
    say(f"reading the prompts ({cache.found:,} texts were cached, {cache.computed:,} scored)")
    return {
        "table": table,
        "features_ND": prompt_features(table, arguments.encoder, cache, progress("prompts read")),
        "objective_names": panel.objective_names,
        "available": len(loaded.pairs),
        "notes": notes,
        "about": {
            "panel": arguments.panel,
            "reference": panel.stats.n if panel.stats else 0,
            "encoder": arguments.encoder,
            "seed": arguments.seed,
        },
        "seed": arguments.seed,
    }


def label_next(
    arguments: argparse.Namespace, panel: StoredPanel, cache: Cache, inputs: dict[str, Any]
) -> tuple[Any, list[dict[str, Any]]]:
    """The saving that labelled pairs let expect, and the pairs of ``--label-next``, the most useful first.

    Args:
        inputs: of :func:`scored`, by the same panel.

    Raises:
        DataError, StorageError, ValueError, OSError: input that cannot be used.
    """
    from pro_core.doctor.inputs import load_unlabelled, prompt_features, scored_table
    from pro_core.doctor.next_labels import rank_pairs, simulate_saving
    from pro_core.rewards.scores import margins

    table, names = inputs["table"], panel.objective_names
    if panel.stats is None:
        raise ValueError(
            f"{arguments.panel}: it has no statistics, without which scores of two files are not comparable: "
            "run train/score_rewards.py with save_panel"
        )
    pairs = load_unlabelled(arguments.label_next)
    others = scored_table(panel, pairs, cache, progress("texts to label scored"))
    features = prompt_features(others, arguments.encoder, cache, progress("prompts read"))
    labelled = (
        margins(table, names).astype(float),
        inputs["features_ND"].astype(float),
        table["objective"].to_numpy(str),
        table["text"].to_numpy(str),
    )
    say("simulating what a ranking saves")
    saving = simulate_saving(*labelled, seed=arguments.seed)
    unlabelled = margins(others, names).astype(float)
    order, found = rank_pairs(labelled, features.astype(float), unlabelled, arguments.seed)
    lines = [
        {
            "id": str(others["id"].iloc[i]),
            "disagreement": float(found[i]),
            "prompt": json.loads(others["prompt"].iloc[i]),
            "responses": [others["chosen"].iloc[i], others["rejected"].iloc[i]],
        }
        for i in order
    ]
    return saving, lines


def judged(arguments: argparse.Namespace) -> str:
    """The page about sentences.

    Raises:
        DataError, StorageError, ValueError, OSError: input that cannot be used.
    """
    from pro_core.doctor.inputs import load_pairs, sample_pairs
    from pro_core.doctor.sentences import grade_sentences, render_sentences
    from pro_core.rewards.panel import RewardPanel
    from pro_core.rewards.specs import RewardModelSpec

    where = "endpoint" if "://" in arguments.judge else "source"
    at: dict[str, Any] = {where: arguments.judge, "model": arguments.judge_model}
    specs = [
        RewardModelSpec(f"sentence-{number}", judge=sentence, **at)
        for number, sentence in enumerate(arguments.sentence, 1)
    ]
    panel = RewardPanel.from_pretrained(arguments.panel) if arguments.panel else None
    names = panel.objective_names if panel else (arguments.objective,) * bool(arguments.objective)
    pairs = load_pairs(arguments.data, names, arguments.split).pairs if arguments.data else []
    sample = sample_pairs(pairs, arguments.max_pairs, arguments.seed)
    say(f"judging {len(sample):,} of {len(pairs):,} pairs by {len(specs)} sentences")
    grades = grade_sentences(
        specs, sample, arguments.objective, panel, progress("scores", every=10.0)
    )
    return render_sentences(grades, arguments.judge, arguments.objective)


def say(what: str) -> None:
    """Report progress on standard error; standard output gets only the page."""
    print(f"[{time.monotonic() - STARTED:5.1f} s] {what}", file=sys.stderr, flush=True)


def progress(what: str, every: float = 0.0):
    """What reports progress, at most once in ``every`` seconds and at the end."""
    last = [-every]

    def report(done: int, total: int) -> None:
        if done == total or time.monotonic() - last[0] >= every:
            last[0] = time.monotonic()
            say(f"{done:,} of {total:,} {what}")

    return report


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    say("loading the libraries")
    if options.sentence:
        try:
            print(judged(options), end="", flush=True)
        except (MissingExtra, ValueError, OSError) as error:
            sys.exit(f"doctor: {' '.join(str(error).split())}")
        return
    try:
        from pro_core.doctor.inputs import StoredPanel
        from pro_core.doctor.page import render_html
        from pro_core.doctor.text import render_text
        from pro_core.doctor.verdict import examine
        from pro_core.system.cache import Cache
        from pro_core.system.storage import write_jsonl
    except MissingExtra as error:
        sys.exit(f"doctor: {error}")

    try:
        panel, cache = StoredPanel(options.panel), Cache()
        inputs = scored(options, panel, cache)
        saving, lines = (
            label_next(options, panel, cache, inputs) if options.label_next else (None, [])
        )
    except (ValueError, OSError) as error:  # DataError and StorageError are ValueErrors
        sys.exit(f"doctor: {' '.join(str(error).split())}")
    say("cross-validating an adapter")
    examination = replace(examine(**inputs), saving=saving)
    say("drawing the report")
    html = render_html(examination)
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    print(render_text(examination), flush=True)
    try:
        options.html.parent.mkdir(parents=True, exist_ok=True)
        options.html.write_text(html, encoding="utf-8")
        if lines:
            write_jsonl(options.html.with_name("label_next.jsonl"), lines)
    except OSError as error:
        sys.exit(f"doctor: the report cannot be written ({error}); name another place with --html")
    print(f"The same with plots: {options.html}")
    if lines:
        print(f"{len(lines):,} pairs to label: {options.html.with_name('label_next.jsonl')}")
    say("done")


if __name__ == "__main__":
    main()
