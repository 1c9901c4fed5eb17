"""Score every response of a data set with a panel: (N, K) raw rewards as Parquet shards.

    python train/score_rewards.py recipes/score_rewards.yaml
    python train/score_rewards.py --help                                   # every setting of a recipe
    accelerate launch --multi_gpu --num_processes 2 train/score_rewards.py recipes/score_rewards.yaml

A killed run resumes with the missing shards and loses only the shard that each process was working on. Several
processes share the shards and write the same files as one (`--multi_gpu` starts them without a GPU too; `--cpu` starts
one). Rewards that a model could not give (NaN) are null, and counted at the end.
`pro_core.rewards.shards.read_rewards` reads the result.
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
