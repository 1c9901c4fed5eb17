"""The run of a scoring recipe: what `train/score_rewards.py` makes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from pro_core.data.entries import PairSource
from pro_core.data.schema import fold_of
from pro_core.data.sources import default_data_dir
from pro_core.data.texts import load_texts
from pro_core.data.training_pairs import load_pairs, mark_ungraded
from pro_core.rewards.calibration import RewardStats
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.panel_card import grade, write_scored_card
from pro_core.rewards.recipes import ScoreRecipe
from pro_core.rewards.scores import distinct_texts, pair_table, progress
from pro_core.rewards.shards import plan_shards, read_rewards, score_shards, write_manifest
from pro_core.runs.recipes import ConfigError
from pro_core.system.artefacts import MANIFEST
from pro_core.system.processes import main_process, process_device, processes
from pro_core.system.storage import replacing


def score_rewards(recipe: ScoreRecipe) -> Path | None:
    """Score those responses of a recipe that have no rewards yet; print notes and progress.

    Processes share the shards. The last one to finish writes the manifest and, if the recipe asks for it, the
    calibrated panel.

    Returns:
        The folder, for :func:`pro_core.read_rewards`; None where another process is still at work and will finish it.

    Raises:
        ConfigError: the panel to save exists, or there are too few rewards for it. DataError: unreadable responses.
            StorageError: a panel that cannot be loaded, or a full disk.
    """
    rank, world = processes().process_index, processes().num_processes
    output = Path(recipe.output)
    notes: list[str] = []
    responses = load_texts(recipe.data, recipe.data_dir or default_data_dir(), notes)
    if main_process():
        print("".join(f"{note}\n" for note in notes), end="", flush=True)
    panel = RewardPanel.from_pretrained(recipe.panel, process_device())
    if recipe.pair_table and panel.stats is None and not recipe.save_panel:
        raise ConfigError(
            "pair_table: the panel has no statistics: name a folder for it as save_panel",
            ["pair_table", "save_panel"],
        )
    shards = plan_shards(panel, responses, output, recipe.shard_size)
    assigned = shards[rank::world]
    finished = sum(shard.finished for shard in assigned)
    print(
        f"process {rank} of {world}: {len(assigned)} of {len(shards)} shards, {finished} there already, "
        f"{len(responses)} responses in all",
        flush=True,
    )
    score_shards(panel, assigned, progress(f"process {rank}"))
    manifest = write_manifest(panel, shards)
    if manifest is None:
        return None
    missing = {name: n for name, n in manifest["missing"].items() if n}
    print(
        f"{output}: {manifest['rows']} responses, {len(panel.objective_names)} objectives, {len(shards)} shards; "
        + (
            f"missing rewards, stored as null (objective: count): {missing}"
            if missing
            else "none missing"
        ),
        flush=True,
    )
    rows = read_rewards(output) if recipe.save_panel or recipe.pair_table else None
    if rows is not None and recipe.save_panel:
        _save_calibrated(panel, rows, recipe.save_panel, recipe.remove_length)
    if rows is not None and recipe.pair_table:
        table = _write_pair_table(panel, rows, recipe)
        if recipe.save_panel:
            panel.accuracy = grade(table, panel.objective_names, "test")
            panel.save_pretrained(recipe.save_panel)
    if recipe.save_panel:
        write_scored_card(Path(recipe.save_panel), panel)
    return output


def _save_calibrated(
    panel: RewardPanel, rows: pd.DataFrame, folder: str, remove_length: bool
) -> None:
    """Fit the panel's statistics on the training responses that have all rewards, and save it."""
    if (Path(folder) / MANIFEST).is_file():
        raise ConfigError(
            f"save_panel: {folder} holds a finished panel of train/reward_models.py: name another folder",
            ["save_panel"],
        )
    names = [f"raw_{name}" for name in panel.objective_names]
    whole = rows[names].notna().all(axis=1)
    train = rows[(rows["split"] == "train") & whole]
    if len(train) < 2:
        raise ConfigError(
            f"save_panel: got {len(train)} training responses with all rewards, expected at least 2",
            ["save_panel"],
        )
    described = f"{len(train)} training responses of {', '.join(sorted(train['source'].unique()))}"
    try:
        panel.stats = RewardStats.fit(
            train[names],
            panel.objective_names,
            described,
            train["length"] if remove_length else None,
            list(train["prompt"]),
        )
    except ValueError as error:
        raise ConfigError(f"save_panel: {error}", ["save_panel"]) from None
    panel.save_pretrained(folder)
    constant = f"; the same for all of them: {panel.stats.constant}" if panel.stats.constant else ""
    print(f"{folder}: calibrated on {described}{constant}", flush=True)


def _write_pair_table(panel: RewardPanel, rows: pd.DataFrame, recipe: ScoreRecipe) -> pd.DataFrame:
    """Write, and return, the table of :mod:`pro_core.rewards.scores` for the pairs that have all rewards."""
    output, names = Path(recipe.output), panel.objective_names
    sources = [PairSource(**s.model_dump()) for s in recipe.data if s.kind is not None]
    data = load_pairs(sources, recipe.data_dir or default_data_dir())
    mark_ungraded(data, names)
    training = [p for p in data.training if p.objective in names and not p.only_trains]
    if not training:
        raise ConfigError(
            f"pair_table: the data has no training pairs of {list(names)}", ["pair_table", "data"]
        )
    raw = rows[[f"raw_{name}" for name in names]].to_numpy(np.float32)
    at = {text: i for i, text in enumerate(zip(rows["prompt"], rows["completion"], strict=True))}
    pairs = [
        p
        for p in [*training, *data.held_out]
        if all(
            np.isfinite(raw[at[json.dumps(p.prompt), text]]).all()
            for text in (p.chosen, p.rejected)
        )
    ]
    prompts, completions, where = distinct_texts(pairs)
    texts = zip(map(json.dumps, prompts), completions, strict=True)
    table = pair_table(
        pairs, completions, where, raw[[at[text] for text in texts]], panel.require_stats()
    )
    of_training = {id(p) for p in training}
    table["fold"] = [
        fold_of(p.prompt or p.chosen, recipe.folds) if id(p) in of_training else -1 for p in pairs
    ]
    with replacing(output / "scores.parquet") as partial:
        table.to_parquet(partial)
    left_out = len(training) + len(data.held_out) - len(pairs)
    note = f", {left_out} without a reward left out" if left_out else ""
    print(f"{output / 'scores.parquet'}: {len(pairs)} pairs{note}", flush=True)
    return table
