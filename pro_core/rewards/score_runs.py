"""One recipe of scoring a data set, as its files: what `train/score_rewards.py` makes."""

from __future__ import annotations

from pathlib import Path

from pro_core.data.sources import default_data_dir
from pro_core.data.texts import load_texts
from pro_core.rewards.calibration import RewardStats
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.recipes import ScoreRecipe
from pro_core.rewards.scores import progress
from pro_core.rewards.shards import plan_shards, read_rewards, score_shards, write_manifest
from pro_core.runs.recipes import ConfigError
from pro_core.system.artefacts import MANIFEST
from pro_core.system.processes import main_process, process_device, processes


def score_rewards(recipe: ScoreRecipe) -> Path | None:
    """Score what a recipe names and has no rewards yet; print notes and progress.

    Many processes deal the shards among themselves. The one that comes last writes the manifest and, where the recipe
    asks for it, the calibrated panel.

    Returns:
        The folder, for :func:`pro_core.read_rewards`; None where another process is still at work and will finish it.

    Raises:
        ConfigError: a panel to save where one is, or with too few rewards. DataError: responses that cannot be read.
            StorageError: a panel that cannot be loaded, or a full disk.
    """
    rank, world = processes().process_index, processes().num_processes
    output = Path(recipe.output)
    notes: list[str] = []
    responses = load_texts(recipe.data, recipe.data_dir or default_data_dir(), notes)
    if main_process():
        print("".join(f"{note}\n" for note in notes), end="", flush=True)
    panel = RewardPanel.from_pretrained(recipe.panel, process_device())
    shards = plan_shards(panel, responses, output, recipe.shard_size)
    mine = shards[rank::world]
    there = sum(shard.finished for shard in mine)
    print(
        f"process {rank} of {world}: {len(mine)} of {len(shards)} shards, {there} there already, "
        f"{len(responses)} responses in all",
        flush=True,
    )
    score_shards(panel, mine, progress(f"process {rank}"))
    manifest = write_manifest(panel, shards)
    if manifest is None:
        return None
    missing = {name: n for name, n in manifest["missing"].items() if n}
    print(
        f"{output}: {manifest['rows']} responses, {len(panel.objective_names)} objectives, {len(shards)} shards; "
        + (
            f"missing rewards, null there (objective: count): {missing}"
            if missing
            else "none missing"
        ),
        flush=True,
    )
    if recipe.save_panel:
        _save_calibrated(panel, output, recipe.save_panel, recipe.remove_length)
    return output


def _save_calibrated(panel: RewardPanel, output: Path, folder: str, remove_length: bool) -> None:
    """Fit the panel's statistics on the training responses that have all rewards, and save it."""
    if (Path(folder) / MANIFEST).is_file():
        raise ConfigError(
            f"save_panel: {folder} holds a finished panel of train/reward_models.py: name another folder",
            ["save_panel"],
        )
    rows = read_rewards(output)
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
