"""Score every response of a data set with a panel: (N, K) raw rewards as Parquet shards.

    python train/score_rewards.py recipes/score_rewards.yaml
    python train/score_rewards.py --help                                   # every setting of a recipe
    accelerate launch --multi_gpu --num_processes 2 train/score_rewards.py recipes/score_rewards.yaml

Killed and started again, it goes on with the shards that are not there yet: what a kill costs is the shard that each
process was at. Many processes deal the shards among themselves and give the same files as one (without a GPU too it
is `--multi_gpu` that starts them; `--cpu` starts one). Rewards that a model could not give (NaN) are null, and
counted at the end. `pro_core.rewards.shards.read_rewards` reads the result.
"""

from __future__ import annotations

from pro_core.rewards.recipes import ScoreRecipe
from pro_core.rewards.score_runs import score_rewards
from pro_core.runs.scripts import run_script
from pro_core.system.processes import join_processes


def main(recipe: ScoreRecipe) -> None:
    join_processes()
    score_rewards(recipe)


if __name__ == "__main__":
    run_script(main, ScoreRecipe, __doc__)
