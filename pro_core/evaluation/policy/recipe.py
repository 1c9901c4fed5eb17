"""The policies, prompts and settings that a recipe of the evaluation kit names.

A recipe's policy is ``{name, model}`` (a folder or hub id; ``{seed}`` stands for the seed) or ``{name, endpoint,
model, policy}`` (its token: PRO_ENDPOINT_TOKEN; ``policy`` is the folder of the checkpoint that it serves as ``model``,
which says what that one reads; without it the endpoint is a stock model's). A checkpoint of `train/wic.py` knows what
its policy reads and is asked in its own way; a stock model reads the prompt alone. ``candidates: 4`` makes it
best-of-4, whatever it reads. A folder with ``{seed}`` in its name that is not there (yet) is said and left out, so that
what is trained can be looked at.
"""

from __future__ import annotations

import gc
import hashlib
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pro_core.data.objectives import Message
from pro_core.data.schema import render_messages
from pro_core.data.sources import data_sources
from pro_core.data.training_pairs import TrainedOn
from pro_core.evaluation.policy.responses import GeneratorPolicy, Policy
from pro_core.generation import EndpointGenerator, Generator, LocalGenerator
from pro_core.prompting.policy_config import PolicyConfig
from pro_core.runs.training import ConfigError
from pro_core.system.fingerprints import fingerprint

REQUIRED = ("experiment", "panel", "output", "base", "policies")
OPTIONAL: dict[str, Any] = {
    "objectives": None,  # of the panel's, in its order; None for all
    "judge": "outputs/judge/panel",  # where it is not, or None: without, which the tables say
    "heldout_panel": "outputs/heldout_panel/panel",  # the same
    "adapter": None,  # its weights for each prompt are one more request, beside the grid
    "perplexity": None,  # a causal model; None for the base policy's, false for none
    "kl": False,  # log-ratio of each policy to the perplexity's model on its own responses; one more reading of each
    "weights": 5,  # weightings in the grid
    "prompts": 100,
    "longest_prompt": None,  # characters; longer ones are left out, which spares a CPU most of its work
    "data": [{"path": "hh_pairs.jsonl.gz"}],
    "data_dir": None,
    "seeds": [0, 1, 2],
    "compare_with": None,  # policies that the others are compared with; None for the base
    "reference_candidates": 4,  # of the base model, for its statistics and the reference front
    "batch_size": 16,
    "max_new_tokens": 128,
    "temperature": 0.7,
    "top_p": 0.9,
}
ENTRY = {"name", "model", "endpoint", "policy", "candidates"}


class RecipePolicies:
    """The recipe's policies by name. One model at a time is held: there may be many policies, and seeds of each.

    Raises:
        ConfigError: an entry that is none, or two of one name.
    """

    def __init__(self, entries: Sequence[Any], objective_names: Sequence[str]):
        self.objective_names = tuple(objective_names)
        self.entries: dict[str, dict[str, Any]] = {}
        for entry in entries:
            self._check(entry)
            self.entries[entry["name"]] = entry
        self._writer: tuple[str, Generator] | None = None
        self._fingerprints: dict[str, str] = {}

    def _check(self, entry: Any) -> None:
        wrong = set(entry) - ENTRY if isinstance(entry, dict) else {str(entry)}
        if wrong or "name" not in entry or not ({"model", "endpoint"} & set(entry)):
            raise ConfigError(
                f"policies: got {entry!r}, expected a name, a model or an endpoint, and else of {sorted(ENTRY)}"
            )
        name, candidates = entry["name"], entry.get("candidates", 1)
        if name in self.entries:
            raise ConfigError(f"policies: two are called {name!r}")
        if not isinstance(candidates, int) or candidates < 1:
            raise ConfigError(f"{name}: got {candidates!r} candidates, expected at least 1")

    def missing(self, name: str, seed: int) -> str | None:
        """The folder that a training should have made for this seed, if it is not there."""
        model = str(self.entries[name].get("model", ""))
        folder = model.format(seed=seed)
        made = "{seed}" in model and "endpoint" not in self.entries[name]
        return folder if made and not Path(folder).is_dir() else None

    def __call__(self, name: str, seed: int, candidates: int | None = None) -> Policy:
        """One policy under one seed, its model loads when it must write; with ``candidates`` of another number."""
        entry = self.entries[name]
        model, folder = (str(entry.get(key, "")).format(seed=seed) for key in ("model", "policy"))
        endpoint = entry.get("endpoint")
        source = self._fingerprint(folder or model) if folder or not endpoint else ""
        if endpoint:
            source = f"{endpoint} {model} {source}"

        def load() -> Generator:
            if self._writer is None or self._writer[0] != source:
                self._writer = None
                gc.collect()
                self._writer = (
                    source,
                    (_endpoint(endpoint, model, folder) if endpoint else LocalGenerator(model)),
                )
            return self._writer[1]

        try:
            reads = load().policy
            if reads is not None:
                reads.check_objectives(self.objective_names)
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from None
        n = entry.get("candidates", 1) if candidates is None else candidates
        return GeneratorPolicy(name, load, source, self.objective_names, n)

    def _fingerprint(self, model: str) -> str:
        if model not in self._fingerprints:
            self._fingerprints[model] = fingerprint(model)
        return self._fingerprints[model]


def _endpoint(url: str, model: str, folder: str) -> Generator:
    """A server's model; ``folder`` holds the checkpoint that it serves, if it is a conditioned one."""
    reads = PolicyConfig.read(folder) if folder else None
    if folder and reads is None:
        raise ConfigError(f"{folder} holds no pro_policy.json, which says what a policy reads")
    token = os.environ.get("PRO_ENDPOINT_TOKEN")
    return EndpointGenerator(url, model or None, token, policy=reads)


def held_out_prompts(
    entries: Iterable[dict[str, Any]],
    data_dir: str | Path,
    split: str,
    count: int,
    longest: int | None = None,
) -> list[list[Message]]:
    """``count`` prompts of a split, as many from each objective's pairs as there are, in an order that a hash decides.

    Conversations that end with an answer are left out: there is nothing to respond to. So are those of more than
    ``longest`` characters, and, counted, those that stand in rows too that the data's entries train on.

    Raises:
        DataError: as the loaders do. ConfigError: fewer prompts than asked for.
    """
    loaded = [(s, pair) for s in data_sources(list(entries)) for pair in s.load(data_dir)]
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
            of = by_objective.setdefault(pair.objective, {})
            of[hashlib.sha256(text.encode()).hexdigest()] = pair.prompt
    if left_out:
        print(
            f"prompts: {len(left_out):,} {split} prompts left out, the data trains on them too",
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
            + f", expected {count} (at least 1)"
        )
    return list(taken.values())
