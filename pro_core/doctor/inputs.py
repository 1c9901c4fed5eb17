"""What the doctor reads: pairs from files or public sets, a sample of them, and a panel's scores of the sample."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pro_core.adapter.encoder import FEATURES_VERSION, PromptEncoder
from pro_core.data.objectives import check_objective_names
from pro_core.data.pairs import pairs_from_labels, refusal_pairs
from pro_core.data.public_sets import PUBLIC_SETS, load_public_examples
from pro_core.data.schema import (
    DataError,
    LabelledResponse,
    PreferencePair,
    first_user_turn,
    load_examples,
    load_responses,
    one_spelling,
    render_messages,
)
from pro_core.data.sources import default_data_dir
from pro_core.data.training_pairs import TrainedOn
from pro_core.rewards.calibration import RewardStats, check_finite
from pro_core.rewards.panel import FORMAT, RewardPanel, saved_fingerprint
from pro_core.rewards.scores import distinct_texts, pair_table
from pro_core.system.cache import Cache, text_key
from pro_core.system.fingerprints import fingerprint
from pro_core.system.storage import StorageError, local_folder, read_config

MAX_PER_PROMPT = 20
"""The most pairs per objective that the labelled responses to one prompt give."""


@dataclass
class Loaded:
    """Pairs, and sentences about what was left out."""

    pairs: list[PreferencePair] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def load_pairs(
    sources: Sequence[str], objective_names: Sequence[str], split: str | None = None
) -> Loaded:
    """All pairs of the files or public sets, of one split or of all.

    Pairs are taken under whatever objective they have: each is a preference that the weighted sum should predict.
    Labelled responses become pairs for those labels that are objectives of the panel. Any other label is a property,
    and nothing says that people prefer more of it. XSTest's ``behaviour`` becomes its two objectives. Validation and
    test rows whose prompts also occur in train rows are left out: the panel may have learned them.

    Raises:
        DataError: a file is missing or broken, or there are no pairs at all.
    """
    loaded = Loaded()
    read = {source: _examples(source, objective_names, loaded.notes) for source in sources}
    trained = TrainedOn(e for examples in read.values() for e in examples if e.split == "train")
    for source, examples in read.items():
        kept = [e for e in examples if split is None or e.split == split]
        if not kept:
            raise DataError(
                f"{source}: none of its {len(examples):,} rows is in the split {split!r}"
                if examples
                else f"{source}: no rows"
            )
        if split in ("validation", "test"):
            unseen = [e for e in kept if e not in trained]
            if len(unseen) < len(kept):
                loaded.notes.append(
                    f"{source}: {len(kept) - len(unseen):,} of {len(kept):,} {split} rows left out: train rows have "
                    "the same prompts."
                )
            kept = unseen
        responses = [e for e in kept if isinstance(e, LabelledResponse)]
        pairs = [e for e in kept if isinstance(e, PreferencePair)]
        pairs += _labelled_pairs(source, responses, objective_names, loaded.notes)
        told_apart = [p for p in pairs if one_spelling(p.chosen) != one_spelling(p.rejected)]
        if len(told_apart) < len(pairs):
            same = len(pairs) - len(told_apart)
            loaded.notes.append(
                f"{source}: {same:,} pairs left out: their two completions are the same text."
            )
        loaded.pairs += told_apart
    if not loaded.pairs:
        raise DataError(
            " ".join(loaded.notes)
            + " No pairs are left: expected rows with `objective`, `prompt`, "
            "`chosen` and `rejected`, or responses to one prompt that differ in a label of the panel "
            f"({', '.join(objective_names)})"
        )
    return loaded


def _examples(source: str, objective_names: Sequence[str], notes: list[str]):
    only = objective_names[0] if len(objective_names) == 1 else ""  # for pairs that name none
    public = {name for s in PUBLIC_SETS.values() for name in (s.name, s.path)}
    if path := _file(source):
        sentences: list[str] = []
        examples = load_examples(path, only, tuple(objective_names), sentences)
        notes += [f"{source}: {sentence}" for sentence in sentences]
        return examples
    if source in public:
        return load_public_examples(source)
    raise DataError(f"{source}: no such file, and not a public set ({', '.join(sorted(public))})")


def _file(source: str) -> Path | None:
    """The file of that name, as it is or in the data folder."""
    return next((p for p in (Path(source), default_data_dir() / source) if p.is_file()), None)


def _labelled_pairs(source, responses: list[LabelledResponse], objective_names, notes: list[str]):
    if not responses:
        return []
    alone = sum(r.prompt is None for r in responses)
    if alone:
        notes.append(
            f"{source}: {alone:,} texts without a prompt left out: an adapter reads prompts."
        )
    behaviour = [r for r in responses if "behaviour" in r.labels and "prompt_unsafe" in r.extra]
    pairs = list(refusal_pairs(behaviour, MAX_PER_PROMPT))
    graded = [
        replace(r, labels={k: v for k, v in r.labels.items() if isinstance(v, int | float)})
        for r in responses
    ]
    labels = sorted({name for r in graded for name in r.labels})
    for name in labels:
        if name in objective_names:
            pairs += pairs_from_labels(graded, name, MAX_PER_PROMPT)
    unknown = [name for name in labels if name not in objective_names]
    if unknown:
        notes.append(
            f"{source}: the labels {', '.join(unknown)} left out: the panel has no such objective."
        )
    if not pairs and alone < len(responses) and set(labels) & set(objective_names):
        notes.append(
            f"{source}: no two of its {len(responses) - alone:,} responses answer the same prompt and differ in a "
            "label: ties give no pairs."
        )
    return pairs


def load_unlabelled(sources: Sequence[str]) -> list[PreferencePair]:
    """Pairs of responses to one prompt, without a preference: every two of a prompt's responses in the files, whatever
    their labels. A pair has no objective, and which response is ``chosen`` means nothing.

    Raises:
        DataError: a file is missing or broken, or no prompt has two different responses.
    """
    by_prompt: dict[str, list[LabelledResponse]] = defaultdict(list)
    for source in sources:
        path = _file(source)
        if path is None:
            raise DataError(f"{source}: no such file")
        for response in load_responses(path):
            if response.prompt:
                by_prompt[render_messages(response.prompt)].append(response)
    pairs: list[PreferencePair] = []
    for responses in by_prompt.values():
        distinct = list({one_spelling(r.response): r for r in responses}.values())
        pairs += [
            PreferencePair(
                a.prompt or [], a.response, b.response, "", a.source, f"{a.id} {b.id}", a.split
            )
            for a, b in list(combinations(distinct, 2))[:MAX_PER_PROMPT]
        ]
    if not pairs:
        raise DataError(
            f"{', '.join(sources)}: no prompt has two different responses: expected rows with a `prompt` and "
            "`responses`, or several rows with the same `prompt`"
        )
    return pairs


# ---------------------------------------------------------------- the sample


def sample_pairs(
    pairs: Sequence[PreferencePair], max_pairs: int, seed: int = 0
) -> list[PreferencePair]:
    """At most ``max_pairs`` pairs, spread evenly over objectives, and in each over as many prompts as possible.

    An objective with fewer pairs than its share gives them all, and the others share the rest.
    """
    if len(pairs) <= max_pairs:
        return list(pairs)
    by_objective: dict[str, list[PreferencePair]] = defaultdict(list)
    for pair in pairs:
        by_objective[pair.objective].append(pair)
    sample: list[PreferencePair] = []
    smallest_first = sorted(by_objective, key=lambda name: (len(by_objective[name]), name))
    for i, name in enumerate(smallest_first):
        share = (max_pairs - len(sample)) // (len(smallest_first) - i)
        sample += _by_prompt(by_objective[name], random.Random(f"{seed}:{name}"))[:share]
    return sample


def _by_prompt(pairs: list[PreferencePair], rng: random.Random) -> list[PreferencePair]:
    """Shuffled so that every prompt's first pair comes before any prompt's second."""
    shuffled = rng.sample(pairs, len(pairs))
    seen: Counter[str] = Counter()
    turns = []
    for pair in shuffled:
        text = first_user_turn(pair.prompt)
        turns.append(seen[text])
        seen[text] += 1
    return [shuffled[i] for i in sorted(range(len(shuffled)), key=lambda i: turns[i])]


# ---------------------------------------------------------------- scores and features


class StoredPanel:
    """A saved panel whose models load only when a text has no cached score.

    Attributes:
        objective_names, stats: as in ``panel.json``; no statistics where the panel has none.
    """

    def __init__(self, path_or_id: str):
        self.folder = local_folder(path_or_id)
        self.config = read_config(self.folder, "panel.json", FORMAT)
        try:
            self.objective_names = check_objective_names(self.config["objective_names"])
            stats = self.config.get("stats")
            self.stats = RewardStats.from_dict(stats) if stats else None
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(f"{self.folder / 'panel.json'}: {error}") from None

    @cached_property
    def panel(self) -> RewardPanel:
        return RewardPanel.from_pretrained(self.folder)

    @cached_property
    def fingerprint(self) -> str:
        """:meth:`RewardPanel.fingerprint`, without its models."""
        return saved_fingerprint(self.folder)


def seen_in_training(stored: StoredPanel, pairs: Sequence[PreferencePair]) -> list[str]:
    """A warning where train rows come from a source that the panel's own record names, for training or for test."""
    known = set(stored.config.get("trained_on") or ())
    for measured in (stored.config.get("accuracy") or {}).values():
        known |= set(measured["sources"] if "sources" in measured else _named_in(measured))
    sources = sorted({p.source for p in pairs if p.split == "train" and p.source in known})
    if not sources:
        return []
    return [
        f"The panel's own record names {', '.join(sources)}, so it has probably trained on the train rows in this data "
        "and looks too good. Add --split test."
    ]


def _named_in(measured: dict[str, Any]) -> list[str]:
    """The sources in an older panel's record, where they are a text: ``test pairs of a, b``."""
    return str(measured.get("test", "")).partition(" pairs of ")[2].split(", ")


def scored_table(
    stored: StoredPanel, pairs: Sequence[PreferencePair], cache: Cache, on_progress=None
) -> pd.DataFrame:
    """The table of :mod:`pro_core.rewards.scores` with the texts themselves, ``chosen`` and ``rejected``.

    Standardized by the panel's statistics or, where it has none, by the mean and deviation of these texts. Pairs for
    one of whose texts an objective has no score, as judges may give none, are left out.

    Raises:
        ValueError: an objective has no score for any pair (names it).
    """
    prompts, completions, where = distinct_texts(pairs)

    def score(rows: list[int]) -> NDArray[np.float32]:
        texts = [completions[i] for i in rows]
        return stored.panel.score([prompts[i] for i in rows], texts, allow_missing=True)

    keys = [
        text_key(stored.fingerprint, json.dumps(p), c)
        for p, c in zip(prompts, completions, strict=True)
    ]
    raw = cache.rows(keys, len(stored.objective_names), score, on_progress)
    whole = np.asarray(np.isfinite(raw)[where].all(axis=(1, 2)))
    if not np.any(whole):
        check_finite(raw, stored.objective_names)
    pairs, where = [p for p, kept in zip(pairs, whole, strict=True) if kept], where[whole]
    finite = raw[np.isfinite(raw).all(axis=1)]
    stats = stored.stats or RewardStats.fit(finite, stored.objective_names)
    table = pair_table(pairs, completions, where, raw, stats)
    table["chosen"] = [p.chosen for p in pairs]
    table["rejected"] = [p.rejected for p in pairs]
    return table


def prompt_features(
    table: pd.DataFrame, encoder: str, cache: Cache, on_progress=None
) -> NDArray[np.float32]:
    """The frozen encoder's features of each pair's prompt: (N, D)."""
    distinct, index = np.unique(table["prompt"].to_numpy(str), return_inverse=True)
    loaded: list[PromptEncoder] = []

    def load() -> PromptEncoder:
        if not loaded:
            loaded.append(PromptEncoder(encoder))
        return loaded[0]

    def encode(rows: list[int]) -> NDArray[np.float32]:
        features = load().encode([json.loads(distinct[i]) for i in rows])
        return features[:, : load().width].numpy()

    model = fingerprint(encoder)
    keys = [text_key(model, str(FEATURES_VERSION), text) for text in distinct]
    return cache.rows(keys, None, encode, on_progress)[index]
