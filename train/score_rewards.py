"""Score every response of a data set with a panel: (N, K) raw rewards as Parquet shards.

    python train/score_rewards.py recipes/score_rewards.yaml
    accelerate launch --multi_gpu --num_processes 2 train/score_rewards.py recipes/score_rewards.yaml

Killed and started again, it goes on with the shards that are not there yet: what a kill costs is the shard that each
process was at. Many processes deal the shards among themselves and give the same files as one (without a GPU too it
is `--multi_gpu` that starts them; `--cpu` starts one). Rewards that a model could not give (NaN) are null, and
counted at the end. `pro_core.rewards.shards.read_rewards` reads the result.
"""

from __future__ import annotations

from pathlib import Path

from pro_core.data.sources import default_data_dir, load_texts
from pro_core.rewards.calibration import RewardStats
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.scores import progress
from pro_core.rewards.shards import plan_shards, read_rewards, score_shards, write_manifest
from pro_core.runs.training import ConfigError, read_recipe, run_script
from pro_core.system.artefacts import MANIFEST
from pro_core.system.processes import join_processes, main_process, process_device, processes

REQUIRED = ("panel", "data", "output")
OPTIONAL = {
    "data_dir": None,
    "shard_size": 1000,  # responses a file, and what a kill can cost
    "save_panel": None,  # a folder: the panel, calibrated on the train split of these rewards
    "remove_length": False,  # at that calibration
}


def save_calibrated(panel: RewardPanel, output: Path, folder: str, remove_length: bool) -> None:
    """Fit the panel's statistics on the training responses that have all rewards, and save it."""
    if (Path(folder) / MANIFEST).is_file():
        raise ConfigError(
            f"save_panel: {folder} holds a finished panel of train/reward_models.py: name another folder"
        )
    rows = read_rewards(output)
    names = [f"raw_{name}" for name in panel.objective_names]
    whole = rows[names].notna().all(axis=1)
    train = rows[(rows["split"] == "train") & whole]
    if len(train) < 2:
        raise ConfigError(
            f"save_panel: got {len(train)} training responses with all rewards, expected at least 2"
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
        raise ConfigError(f"save_panel: {error}") from None
    panel.save_pretrained(folder)
    constant = f"; the same for all of them: {panel.stats.constant}" if panel.stats.constant else ""
    print(f"{folder}: calibrated on {described}{constant}", flush=True)


def main(recipe_path: str) -> None:
    recipe = read_recipe(recipe_path, REQUIRED, OPTIONAL)
    join_processes()
    rank, world = processes().process_index, processes().num_processes
    output = Path(recipe["output"])
    notes: list[str] = []
    responses = load_texts(recipe["data"], recipe["data_dir"] or default_data_dir(), notes)
    if main_process():
        print("".join(f"{note}\n" for note in notes), end="", flush=True)
    panel = RewardPanel.from_pretrained(recipe["panel"], process_device())
    shards = plan_shards(panel, responses, output, recipe["shard_size"])
    mine = shards[rank::world]
    there = sum(shard.finished for shard in mine)
    print(
        f"process {rank} of {world}: {len(mine)} of {len(shards)} shards, {there} there already, "
        f"{len(responses)} responses in all",
        flush=True,
    )
    score_shards(panel, mine, progress(f"process {rank}"))
    manifest = write_manifest(panel, shards)
    if manifest is None:  # another process is still at work, and will finish
        return
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
    if recipe["save_panel"]:
        save_calibrated(panel, output, recipe["save_panel"], recipe["remove_length"])


if __name__ == "__main__":
    run_script(main, __doc__)
