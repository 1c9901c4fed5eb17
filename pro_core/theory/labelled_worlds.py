"""Real prompts with real responses that people labelled, as arrays without any text, for exact training.

TruthfulQA: about 22 responses per question, each right when it is truthful and informative. XSTest: up to five models'
responses per prompt, each right when it refuses an unsafe request or complies with a safe one (a partial refusal is
neither). No reward and no weight comes from a model that was trained on its prompt. Where the panel trained on a
prompt's part of the data, the panel and the adapters of its fold stand in, which saw only the other folds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pro_core.adapter.encoder import PromptEncoder
from pro_core.adapter.runs import AdapterRun
from pro_core.data.objectives import Message
from pro_core.data.schema import LabelledResponse, fold_of, load_examples, render_messages
from pro_core.rewards.panel import RewardPanel
from pro_core.system.storage import replacing
from pro_core.theory.alignment_gap import CandidateSets, candidate_sets


@dataclass(frozen=True)
class LabelledWorld:
    """P prompts with at most G candidate responses each, N in all.

    Attributes:
        rewards: (N, K) standardized, out of fold, candidates in the order of the prompts.
        labels: (N,) of people: 1 right, 0 wrong, in between where a text was labelled twice.
        sizes: (P,) candidates of each prompt.
        prompts: (P, D), responses: (N, D) a frozen encoder's features.
        weights: (A, P, K) of the adapters of A seeds, out of fold.
        source: (P,) file of each prompt. split: (P,) its split there. fold: (P,) -1 where the panel never trained.
    """

    rewards: NDArray
    labels: NDArray
    sizes: NDArray
    prompts: NDArray
    responses: NDArray
    weights: NDArray
    source: NDArray
    split: NDArray
    fold: NDArray

    def __len__(self) -> int:
        return len(self.sizes)

    def candidate_sets(self) -> CandidateSets:
        """The same as padded arrays; the reference policy is uniform over a prompt's candidates."""
        return candidate_sets(np.split(self.rewards, np.cumsum(self.sizes)[:-1]), self.prompts)

    def padded(self, values: NDArray) -> NDArray:
        """(P, G, ...) from one value per candidate (N, ...); 0 where a prompt has fewer than G."""
        inside = np.arange(self.sizes.max()) < self.sizes[:, None]
        result = np.zeros((*inside.shape, *values.shape[1:]), values.dtype)
        result[inside] = values
        return result

    def save(self, path: str | Path) -> None:
        """Write the arrays to one file that appears whole or not at all."""
        with replacing(path) as partial:
            np.savez_compressed(partial, **{f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def load(cls, path: str | Path) -> LabelledWorld:
        """What :meth:`save` wrote."""
        with np.load(path) as arrays:
            return cls(**{f.name: arrays[f.name] for f in fields(cls)})


def labelled_world(
    files: Sequence[str | Path],
    run: AdapterRun,
    panel_folds: str | Path,
    encoder: str,
    parts: str | Path,
) -> LabelledWorld:
    """The prompts of these files that have at least two different responses.

    Args:
        run: an adapter's recipe, fitted with its folds.
        panel_folds: the folder of the panels that each skipped one fold.
        encoder: the frozen encoder of the features that the policy reads.
        parts: a folder for each fold's rewards, which are scored once; only for these files, panels and adapters.

    Raises:
        StorageError: a panel or an adapter is missing.
    """
    prompts, responses, labels, source, split = _grouped(files)
    sizes = np.array([len(texts) for texts in responses])
    trained = set(zip(run.train["source"], run.train["split"], strict=True))
    fold = np.array(
        [
            fold_of(prompt, run.recipe.folds) if (file, part) in trained else -1
            for prompt, file, part in zip(prompts, source, split, strict=True)
        ]
    )

    owner = np.repeat(np.arange(len(prompts)), sizes)
    texts = [text for of_prompt in responses for text in of_prompt]
    table = pd.DataFrame({"prompt": [json.dumps(p) for p in prompts]})
    rewards = np.zeros((len(texts), len(run.objective_names)))
    weights = np.zeros((len(run.seeds), len(prompts), len(run.objective_names)))
    for f in map(int, np.unique(fold)):
        rows = np.flatnonzero(fold[owner] == f)
        panel = run.recipe.panel if f < 0 else Path(panel_folds) / str(f)
        of_rows = [prompts[owner[i]] for i in rows], [texts[i] for i in rows]
        rewards[rows] = _scored(panel, *of_rows, Path(parts) / f"fold{f}.npy")
        for a, seed in enumerate(run.seeds):
            adapter = run.load(run.chosen, seed, None if f < 0 else f)
            weights[a, fold == f] = run.weights(adapter, table[fold == f])

    reader = PromptEncoder(encoder, max_length=256)
    prompt_features = _read(reader, [render_messages(p) for p in prompts])
    return LabelledWorld(
        rewards,
        np.concatenate(labels),
        sizes,
        prompt_features,
        _read(reader, texts),
        weights,
        np.array(source),
        np.array(split),
        fold,
    )


def _scored(panel: str | Path, prompts, texts, path: Path) -> NDArray[np.float32]:
    """The panel's standardized rewards (N, K), from the file when they are there."""
    if not path.is_file():
        rewards = RewardPanel.from_pretrained(panel).standardized(prompts, texts)
        with replacing(path) as partial:
            np.save(partial, rewards)
        print(f"{path}: {len(texts)} responses scored", flush=True)
    return np.load(path)


def _grouped(files: Sequence[str | Path]):
    """Prompts with their different responses and the mean label of each, source and split."""
    groups: dict[tuple[str, str, str], tuple[list[Message], dict[str, list[float]]]] = {}
    for file in files:
        for example in load_examples(file):
            if isinstance(example, LabelledResponse) and example.prompt:
                key = example.source, example.split, render_messages(example.prompt)
                _, texts = groups.setdefault(key, (example.prompt, {}))
                texts.setdefault(example.response, []).append(right(example))
    kept = {key: value for key, value in groups.items() if len(value[1]) > 1}
    prompts = [prompt for prompt, _ in kept.values()]
    responses = [list(texts) for _, texts in kept.values()]
    labels = [np.array([np.mean(x) for x in texts.values()]) for _, texts in kept.values()]
    return prompts, responses, labels, [key[0] for key in kept], [key[1] for key in kept]


def right(example: LabelledResponse) -> float:
    """1 for a truthful and informative answer, a refusal of an unsafe request or compliance with a safe one; else 0."""
    labels = example.labels
    if "behaviour" in labels:
        wanted = "refusal" if example.extra["prompt_unsafe"] else "compliance"
        return float(labels["behaviour"] == wanted)
    return float(labels["truthful"] * labels["informative"])


WORLD_VERSION = 1
"""Raised with every change of :func:`labelled_world` that changes a number."""
OPENING = 300
"""Characters of a response that the policy reads: whether it refuses shows in its first words."""


def _read(reader: PromptEncoder, texts: Sequence[str]) -> NDArray[np.float32]:
    """Mean token states (N, D) of the encoder's last layer for the texts' openings; each is read once."""
    openings = np.array([text[:OPENING] for text in texts], dtype=object).astype(str)
    distinct, back = np.unique(openings, return_inverse=True)
    encoded, _ = reader.tokenize_texts([str(text) for text in distinct])
    return reader.encode_tokens(encoded)[:, : reader.width].numpy()[back]
