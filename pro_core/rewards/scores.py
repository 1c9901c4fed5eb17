"""Pairs scored by a panel, as a table: one row per pair, what adapters learn from and evaluations read.

Columns: ``id, source, licence, objective, split, fold, constructed, ungraded`` (why no accuracy counts it; empty for
most), ``prompt`` (messages as JSON), ``text`` (the first user turn, which decides folds), ``length_chosen,
length_rejected`` (characters), and for each objective ``raw_chosen_<name>, raw_rejected_<name>, z_chosen_<name>,
z_rejected_<name>``. ``fold`` is -1 for pairs that the panel's recipe did not train on. Every grader selects its rows
with :func:`graded_rows`.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pro_core.data.objectives import Message
from pro_core.data.schema import DataError, PreferencePair, first_user_turn
from pro_core.rewards.calibration import RewardStats, text_lengths
from pro_core.rewards.panel import RewardPanel
from pro_core.system.artefacts import MANIFEST, read_manifest
from pro_core.system.storage import StorageError, content_hash, first_line, replacing

REFERENCE_SIZE = 250
PANEL = "pro-finished-panel"
"""The kind of a finished panel's folder, whose record holds the hash of its table."""
KINDS = ("raw_chosen", "raw_rejected", "z_chosen", "z_rejected")


def reference_pairs(pairs: Sequence[PreferencePair], seed: int = 0) -> list[PreferencePair]:
    """Up to 250 pairs of each source and objective, without ties: what a panel is calibrated on."""
    groups: dict[tuple[str, str], list[PreferencePair]] = defaultdict(list)
    for pair in pairs:
        if not pair.only_trains:
            groups[pair.source, pair.objective].append(pair)
    reference: list[PreferencePair] = []
    for key in sorted(groups):
        drawn = random.Random(f"{seed}:{key}").sample(
            groups[key], min(REFERENCE_SIZE, len(groups[key]))
        )
        reference += drawn
    return reference


def fit_reference_stats(
    panel: RewardPanel,
    pairs: Sequence[PreferencePair],
    seed: int = 0,
    remove_length: bool = False,
) -> None:
    """Fit ``panel.stats`` on both completions of :func:`reference_pairs` of training pairs; note their sources.

    Raises:
        DataError: scores that are not finite; with ``remove_length``, no prompt with two answers of different length.
    """
    panel.trained_on = tuple(sorted({p.source for p in pairs}))
    reference = reference_pairs(pairs, seed)
    kinds = sorted({(p.source, p.objective) for p in pairs})
    described = ", ".join(f"{source}/{objective}" for source, objective in kinds)
    try:
        panel.fit_stats(
            [p.prompt for p in reference for _ in range(2)],
            [text for p in reference for text in (p.chosen, p.rejected)],
            f"training pairs, up to {REFERENCE_SIZE} each of {described}",
            remove_length,
        )
    except ValueError as error:
        raise DataError(f"the panel's statistics: {error}") from None


def score_pairs(
    panel: RewardPanel, pairs: Sequence[PreferencePair], fold: int, path: str | Path
) -> None:
    """Score both completions of each pair and write the table to ``path``."""
    path = Path(path)
    prompts, completions, where = distinct_texts(pairs)
    stats = panel.require_stats()
    raw = panel.score(prompts, completions, progress(path.name))
    table = pair_table(pairs, completions, where, raw, stats, fold)
    with replacing(path) as partial:
        table.to_parquet(partial)


def distinct_texts(
    pairs: Sequence[PreferencePair],
) -> tuple[list[list[Message]], list[str], NDArray[np.int64]]:
    """Each (prompt, response) once, since a response can be in many pairs: prompts, completions, and the indices (N, 2)
    of each pair's chosen and rejected completion in them."""
    keys: dict[tuple[str, str], int] = {}
    prompts, completions = [], []
    where = np.zeros((len(pairs), 2), dtype=np.int64)
    for i, pair in enumerate(pairs):
        text = json.dumps(pair.prompt)
        for side, completion in enumerate((pair.chosen, pair.rejected)):
            if (text, completion) not in keys:
                keys[text, completion] = len(keys)
                prompts.append(pair.prompt)
                completions.append(completion)
            where[i, side] = keys[text, completion]
    return prompts, completions, where


def pair_table(
    pairs: Sequence[PreferencePair],
    completions: Sequence[str],
    where: NDArray[np.int64],
    raw_MK: NDArray,
    stats: RewardStats,
    fold: int = -1,
) -> pd.DataFrame:
    """The table of N pairs from the raw scores of their M distinct texts (see :func:`distinct_texts`)."""
    lengths = text_lengths(completions)
    z_MK = stats.normalize(raw_MK, lengths)
    table = {
        "id": [p.id for p in pairs],
        "source": [p.source for p in pairs],
        "licence": [p.licence for p in pairs],
        "objective": [p.objective for p in pairs],
        "split": [p.split for p in pairs],
        "fold": [fold] * len(pairs),
        "constructed": [p.constructed for p in pairs],
        "ungraded": [p.ungraded for p in pairs],
        "prompt": [json.dumps(p.prompt) for p in pairs],
        "text": [first_user_turn(p.prompt) if p.prompt else p.chosen for p in pairs],
    }
    # Without rows, the types would differ and spread to any table that it is joined to.
    types = dict.fromkeys(table, "str") | {"fold": "int64", "constructed": "bool"}
    for side, name in enumerate(("chosen", "rejected")):
        table[f"length_{name}"] = lengths[where[:, side]].astype(int)
        for k, objective in enumerate(stats.objective_names):
            table[f"raw_{name}_{objective}"] = raw_MK[where[:, side], k]
            table[f"z_{name}_{objective}"] = z_MK[where[:, side], k]
    return pd.DataFrame(table).astype(types)


def read_scores(path: str | Path, objective_names: Sequence[str]) -> pd.DataFrame:
    """A table of scores, with all of its columns.

    Raises:
        StorageError: missing, damaged, of another panel's objectives, or of an older version of this code.
    """
    make = "run `python train/reward_models.py` with its recipe"
    if not Path(path).is_file():
        raise StorageError(f"{path}: no such table of scores: {make} first")
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise StorageError(f"{path}: cannot be read ({first_line(error)}): {make} again") from None
    scores = [f"{kind}_{name}" for kind in KINDS for name in objective_names]
    missing = [c for c in ("fold", "licence", "ungraded", "prompt", *scores) if c not in table]
    if missing:
        raise StorageError(
            f"{path}: got a table without {', '.join(missing[:3])}, expected the scores of "
            f"{', '.join(objective_names)} as this version writes them: {make} again"
        )
    return table


def check_table(panel: str | Path, path: str | Path, table: pd.DataFrame) -> None:
    """Raise a StorageError if one of our panels was finished with other scores than these.

    An interrupted run can leave a new table beside the old panel, or somebody edits a table.
    """
    if not (Path(panel) / MANIFEST).is_file():
        return  # a panel from elsewhere names no table
    if read_manifest(Path(panel), PANEL)["record"]["table"] != table_hash(table):
        raise StorageError(
            f"{path}: these are not the scores that {panel} was finished with: run `python train/reward_models.py` to "
            "its end"
        )


def what_fits(objective_names: Sequence[str]) -> list[str]:
    """The columns that an adapter learns from."""
    return ["prompt", "source", "objective", *(f"{k}_{n}" for k in KINDS for n in objective_names)]


def graded_rows(table: pd.DataFrame, split: str) -> pd.DataFrame:
    """The rows of one split that accuracies are measured on: the panel was trained on neither the pair nor its prompt,
    nothing in it is made up, and no other pair contradicts it. See
    :func:`pro_core.data.training_pairs.graded_pairs`."""
    held_out = (table["fold"] < 0) & (table["split"] == split)
    return table[held_out & ~table["constructed"] & (table["ungraded"] == "")]


def table_hash(table: pd.DataFrame) -> str:
    """The number of rows, and a hash of all that is in them, in order."""
    rows = pd.util.hash_pandas_object(table, index=False).to_numpy()
    return f"{len(table):,} rows of hash {content_hash([list(table.columns), rows.tolist()])}"


def columns(table: pd.DataFrame, kind: str, objective_names: Sequence[str]) -> NDArray[np.float32]:
    """``raw_chosen``, ``z_rejected`` ... as (N, K) in the order of ``objective_names``."""
    return table[[f"{kind}_{name}" for name in objective_names]].to_numpy(np.float32)


def margins(table: pd.DataFrame, objective_names: Sequence[str]) -> NDArray[np.float32]:
    """z(chosen) - z(rejected): (N, K)."""
    return columns(table, "z_chosen", objective_names) - columns(
        table, "z_rejected", objective_names
    )


def own_margin(table: pd.DataFrame, objective_names: Sequence[str]) -> NDArray[np.float32]:
    """Each pair's margin under the reward model of its own objective: (N,)."""
    k = table["objective"].map({name: i for i, name in enumerate(objective_names)}).to_numpy()
    return margins(table, objective_names)[np.arange(len(table)), k]


def progress(name: str, what: str = "scored"):
    """A function of (done, total) that prints progress and the time left to stderr, every ten seconds."""
    started, shown = time.monotonic(), [0.0]

    def report(done: int, total: int) -> None:
        elapsed = time.monotonic() - started
        if elapsed - shown[0] >= 10 or done == total:
            shown[0] = elapsed
            left = elapsed * (total - done) / max(done, 1)
            print(f"{name}: {done}/{total} {what}, {left:.0f} s left", file=sys.stderr, flush=True)

    return report
