"""Run a queue of commands for as long as a GPU is lent: each turn goes on where the last one stopped.

    python train/gpu_queue.py recipes/gpu/queue.yaml                 # eight minutes
    python train/gpu_queue.py recipes/gpu/queue.yaml minutes=50 only=[morlhf]
    python train/gpu_queue.py --help                                 # every setting of a recipe

The commands of a part run side by side on the GPU. When the time is up, each saves a checkpoint and ends. Their lines
stand in <output>/logs. Exit status 0 when all parts are finished, 3 when the queue must be continued.
"""

from __future__ import annotations

import sys

from pro_core.runs.queue import QueueRecipe, run_queue
from pro_core.runs.scripts import run_script

TO_BE_CONTINUED = 3


def main(recipe: QueueRecipe) -> None:
    if not run_queue(recipe):
        sys.exit(TO_BE_CONTINUED)


if __name__ == "__main__":
    run_script(main, QueueRecipe, __doc__)
