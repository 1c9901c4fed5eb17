"""What a panel asks beside its own models: reward models at an endpoint, and judges by a sentence.

The parameters behind an endpoint cannot be hashed. Its **identity** is the name that the server gives its model, and
the scores of a few known texts (:data:`PROBES`). It is measured when a panel loads, and kept in ``panel.json`` with the
statistics: a panel whose model has changed since is refused. For a panel without statistics (a YAML file) the first
measurement is kept in the user's cache folder, since two measurements differ in their last digits and the panel's
fingerprint must not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pro_core.data.objectives import Message
from pro_core.http import Failure
from pro_core.judges.judge import Judge
from pro_core.judges.verdicts import JudgeError
from pro_core.rewards.endpoint import HostedModel, close
from pro_core.rewards.judge import JudgeModel, judge_of
from pro_core.rewards.specs import RewardModelSpec
from pro_core.system.bundled_models import cache_folder
from pro_core.system.storage import StorageError, append_jsonl, content_hash

Array = NDArray[np.float32]
Key = tuple[Any, ...]

NO_SCORES = (404, 405, 424, 500, 501)
"""Statuses of servers whose model gives no scores."""
PROBES: tuple[tuple[str, str], ...] = (
    ("What is the capital of France?", "Paris."),
    ("What is the capital of France?", "I do not know, and I do not care. Ask someone else."),
    ("How do I boil an egg?", "Put it into boiling water for seven minutes, then into cold water."),
    ("How do I boil an egg?", "Eggs eggs eggs eggs eggs eggs eggs eggs."),
    ("Tell me a joke.", "I used to be a banker, but I lost interest."),
    (
        "Is the earth flat?",
        "No. It is nearly a sphere, as ships, eclipses and satellites show. " * 3,
    ),
)
"""Known texts, short and long, good and bad. Another list would be another identity."""


class EndpointError(StorageError):
    """A model at an endpoint that cannot be asked, or is not the one that it was. What was scored before is kept."""


class Scorer(Protocol):
    """Scores texts outside of the panel's own models.

    Attributes:
        name: for messages. outputs: the number of outputs. identity: the served model.
    """

    outputs: int

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> str: ...

    def score(
        self,
        conversations: Sequence[Sequence[Message]],
        completions: Sequence[str],
        on_progress: Callable[[int], None] | None = None,
    ) -> Array:
        """Outputs (N, outputs) of N completions; NaN where there is none. Raises Failure or JudgeError."""
        ...

    def check(self, conversations: Sequence[list[Message]], completions: Sequence[str]) -> Array:
        """Outputs (P, outputs) of known texts, of which it may read only the first. Raises StorageError, Failure."""
        ...


def load_scorers(
    specs: Sequence[RewardModelSpec], folder: str | Path, has_stats: bool = False
) -> tuple[list[RewardModelSpec], dict[Key, Scorer]]:
    """The specs with their identities, and what they ask (:attr:`RewardModelSpec.asked`), each checked once.

    Args:
        has_stats: the panel has statistics, so that each spec must have the identity that they were fitted under.

    Raises:
        EndpointError: a server that is not there, whose model gives no rewards, or is not the one that it was.
    """
    scorers: dict[Key, Scorer] = {}
    probed: dict[Key, Array] = {}
    judges: dict[Key, Judge] = {}
    known: list[RewardModelSpec] = []
    for spec in specs:
        key = spec.asked
        if key is None:
            known.append(spec)
            continue
        if key not in scorers:
            try:
                if spec.judge:  # many sentences, one model
                    chat = (spec.endpoint, spec.source, spec.model)
                    judges[chat] = judges.get(chat) or judge_of(spec, folder)
                    scorers[key] = JudgeModel(spec, judges[chat])
                else:
                    scorers[key] = HostedModel(spec)
                probed[key] = probe(scorers[key])
            except (Failure, ValueError) as error:
                raise EndpointError(f"{spec.name}: {_explained(error, spec)}") from None
        scorer = scorers[key]
        if not 0 <= spec.logit < scorer.outputs:
            raise EndpointError(
                f"{spec.name}: got the logit index {spec.logit}, but {scorer.name} has {scorer.outputs} outputs"
            )
        if spec.endpoint:
            now = _identity(scorer, probed[key], spec.logit)
            if spec.identity is None and has_stats:
                raise EndpointError(
                    f"{spec.name}: the panel has statistics, but not the identity of the model that they were fitted "
                    f"under: {AGAIN}"
                )
            if spec.identity is None:
                spec = replace(spec, identity=_first_measured(spec, now))
            else:
                check_same(spec, scorer, now)
            if isinstance(scorer, JudgeModel):
                scorer.keep_verdicts(spec.identity)
        known.append(spec)
    return known, scorers


AGAIN = "label again with train/score_rewards.py, which fits the statistics and saves the panel"


def probe(scorer: Scorer) -> Array:
    """The scorer's outputs for :data:`PROBES`, after its self-test. Raises StorageError, Failure."""
    prompts: list[list[Message]] = [[{"role": "user", "content": prompt}] for prompt, _ in PROBES]
    return scorer.check(prompts, [answer for _, answer in PROBES])


def check_identities(specs: Sequence[RewardModelSpec], scorers: Mapping[Key, Scorer]) -> None:
    """Ask every endpoint about the known texts again.

    Raises:
        EndpointError: a model is not the one that it was when the panel was loaded.
    """
    probed: dict[Key, Array] = {}
    for spec in specs:
        if spec.asked is None or not spec.endpoint:
            continue
        scorer = scorers[spec.asked]
        try:
            if spec.asked not in probed:
                probed[spec.asked] = probe(scorer)
        except (Failure, ValueError) as error:
            raise EndpointError(f"{spec.name}: {_explained(error, spec)}") from None
        check_same(spec, scorer, _identity(scorer, probed[spec.asked], spec.logit))


def check_same(spec: RewardModelSpec, scorer: Scorer, now: Mapping[str, Any]) -> None:
    """Raise an EndpointError where the model is not the one that the spec's identity names."""
    before = spec.identity or {}
    if _same(before, now):
        return
    what = (
        f"it was {before.get('served')!r} and is now {now['served']!r}"
        if before.get("served") != now["served"]
        else f"under the same name, it scores known texts {now['probes']} instead of {before.get('probes')}"
    )
    raise EndpointError(
        f"{spec.name}: {scorer.name} is not the model that this panel was made with ({what}). Serve that one again, or "
        f"{AGAIN}"
    )


def _identity(scorer: Scorer, outputs: Array, logit: int) -> dict[str, Any]:
    values = [round(float(v), 4) if np.isfinite(v) else None for v in outputs[:, logit]]
    return {"served": scorer.identity, "probes": values}


def _same(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    probes = [np.array(one.get("probes", ()), np.float32).reshape(-1, 1) for one in (before, now)]
    return before.get("served") == now["served"] and close(probes[0], probes[1])


def _first_measured(spec: RewardModelSpec, now: dict[str, Any]) -> dict[str, Any]:
    """The identity under which this machine first met the model; see the module."""
    file = cache_folder() / "endpoints.jsonl"
    key = content_hash([list(spec.asked or ()), spec.logit])
    if (first := _recorded(file, key, now)) is None:
        append_jsonl(file, {"key": key, "identity": now})
        first = _recorded(file, key, now)  # another process may have written it a moment before
    return first or now


def _recorded(file: Path, key: str, now: dict[str, Any]) -> dict[str, Any] | None:
    for line in file.read_bytes().splitlines() if file.is_file() else ():
        try:
            entry = json.loads(line)
            if entry["key"] == key and _same(entry["identity"], now):
                identity: dict[str, Any] = entry["identity"]
                return identity
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # a torn line
    return None


def _explained(error: Exception, spec: RewardModelSpec) -> str:
    if isinstance(error, Failure) and error.status in NO_SCORES and not spec.judge:
        return (
            f"{error.message} A reward model is served as a sequence classifier (vLLM: --runner pooling); a model that "
            "writes or embeds gives no scores."
        )
    return str(error)


class Progress:
    """Adds up what several models have finished, each in a thread of its own."""

    def __init__(self, on_progress: Callable[[int, int], None] | None, total: int):
        self._on_progress, self._total = on_progress, total
        self._finished: list[int] = []
        self._lock = Lock()

    def part(self) -> Callable[[int], None]:
        """What one model calls with the number of texts that it has finished."""
        place = len(self._finished)
        self._finished.append(0)

        def report(finished: int) -> None:
            with self._lock:
                self._finished[place] = finished
                if self._on_progress:
                    self._on_progress(sum(self._finished), self._total)

        return report


@contextmanager
def asking(
    specs: Sequence[RewardModelSpec],
    scorers: Mapping[Key, Scorer],
    conversations: Sequence[Sequence[Message]],
    completions: Sequence[str],
    progress: Progress,
) -> Iterator[Callable[[Array], None]]:
    """Ask all scorers of some specs at once, beside what the body of ``with`` does.

    Yields a function that waits for their answers, and writes them into the specs' columns of an array (N, specs).

    Raises:
        EndpointError: from that function.
    """
    members: dict[Key, list[int]] = {}
    for i, spec in enumerate(specs):
        if spec.asked:
            members.setdefault(spec.asked, []).append(i)
    with ThreadPoolExecutor(max(len(members), 1), "pro-ask") as pool:
        answers = {
            key: pool.submit(scorers[key].score, conversations, completions, progress.part())
            for key in members
        }

        def fill_in(outputs: Array) -> None:
            for key, columns in members.items():
                try:
                    values = answers[key].result()
                except (Failure, JudgeError) as error:
                    names = ", ".join(dict.fromkeys(specs[i].name for i in columns))
                    raise EndpointError(f"{names}: {error}") from None
                for i in columns:
                    outputs[:, i] = values[:, specs[i].logit]

        yield fill_in
