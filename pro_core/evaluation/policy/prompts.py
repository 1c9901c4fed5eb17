"""The held-out prompts that policies answer."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from pro_core.data.entries import PairSource
from pro_core.data.objectives import Message
from pro_core.data.schema import render_messages
from pro_core.data.training_pairs import TrainedOn
from pro_core.runs.recipes import ConfigError


def held_out_prompts(
    sources: Sequence[PairSource],
    data_dir: str | Path,
    split: str,
    count: int,
    longest: int | None = None,
) -> list[list[Message]]:
    """``count`` prompts of a split, taken in turn from each objective's pairs, in an order that a hash decides.

    Conversations that end with an answer are left out, since there is nothing to respond to, and so are those of more
    than ``longest`` characters. Prompts that the data's entries also train on are left out too, and counted.

    Raises:
        DataError: as the loaders do. ConfigError: fewer prompts than asked for.
    """
    loaded = [(source, pair) for source in sources for pair in source.load(data_dir)]
    trained = TrainedOn(pair for source, pair in loaded if pair.split in source.splits)
    by_objective: dict[str, dict[str, list[Message]]] = {}
    left_out = set()
    for _, pair in loaded:
        if pair.split == split and pair.prompt and pair.prompt[-1]["role"] == "user":
            text = render_messages(pair.prompt)
            if longest is not None and len(text) > longest:
                continue
            if pair in trained:
                left_out.add(text)
                continue
            of_objective = by_objective.setdefault(pair.objective, {})
            of_objective[hashlib.sha256(text.encode()).hexdigest()] = pair.prompt
    if left_out:
        print(
            f"prompts: {len(left_out):,} {split} prompts left out: the data also trains on them",
            file=sys.stderr,
        )
    queues = [sorted(prompts.items()) for _, prompts in sorted(by_objective.items())]
    taken: dict[str, list[Message]] = {}
    for turn in range(max(map(len, queues), default=0)):
        for queue in queues:
            if turn < len(queue) and len(taken) < count:
                taken.setdefault(*queue[turn])
    if len(taken) < count or count < 1:
        raise ConfigError(
            f"prompts: got {len(taken)} {split} prompts"
            + (f" of at most {longest} characters" if longest is not None else "")
            + f", expected {count} (at least 1)",
            ["prompts"],
        )
    return list(taken.values())
