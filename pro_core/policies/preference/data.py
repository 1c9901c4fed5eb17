"""The pairs of a recipe as a policy reads them, and the prompts on which trials are compared."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pro_core.data.objectives import Message
from pro_core.data.schema import PreferencePair
from pro_core.data.training_pairs import TrainedOn, load_pairs
from pro_core.policies.preference.recipe import PreferenceRecipe
from pro_core.policies.recipe import tokenizer_of
from pro_core.policies.sft import tokenize_row
from pro_core.runs.recipes import ConfigError
from pro_core.system.processes import main_process
from pro_core.system.storage import content_hash


@dataclass(frozen=True)
class TokenPair:
    """Token ids of a prompt and of its two completions, each with the token that ends it unless it was cut."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


@dataclass
class PairData:
    """What all methods of a recipe share.

    Attributes:
        pairs, tokens: N training pairs that fit. ``pool``: the pairs of one pass, each as often as its `epochs` says.
        left_out: pairs whose last message alone is too long, or whose completions are the same where they are cut.
        validation: prompts of the validation split, each once, none of them trained on.
        key: a hash of the pairs, in order.
    """

    pairs: list[PreferencePair]
    tokens: list[TokenPair]
    pool: list[int]
    left_out: int
    validation: list[list[Message]]
    key: str

    @classmethod
    def load(cls, recipe: PreferenceRecipe) -> PairData:
        """Load and tokenize what a recipe names. Ties, augmented pairs and texts without a prompt are not learned.

        Raises:
            ConfigError: no pairs, none that fits, weighed pairs, or a model that cannot be loaded. DataError: a source
                without pairs, such as labelled responses without a `kind` that pairs them.
        """
        if any(source.weigh_by_rating for source in recipe.data):
            raise ConfigError(
                "got weigh_by_rating, expected it left out: every pair counts the same here",
                ["data"],
            )
        loaded = load_pairs(recipe.data, recipe.data_folder)
        if main_process():
            print("".join(f"{note}\n" for note in loaded.notes), end="", flush=True)
        tokenizer = tokenizer_of(recipe.model)
        pairs: list[PreferencePair] = []
        tokens: list[TokenPair] = []
        pool: list[int] = []
        left_out = 0
        for pair, epochs in zip(loaded.training, loaded.epochs, strict=True):
            if pair.only_trains or not _asked(pair.prompt):
                continue
            made = tokenize_pair(tokenizer, pair, recipe.max_length, recipe.max_prompt)
            if made is None:
                left_out += 1
                continue
            pool += [len(pairs)] * epochs
            pairs.append(pair)
            tokens.append(made)
        if not pairs:
            raise ConfigError(
                f"data: got no pairs to learn, {left_out} that do not fit into {recipe.max_prompt} tokens of a prompt",
                ["data", "max_length"],
            )
        trained = TrainedOn(loaded.training)
        validation = {
            content_hash(p.prompt): p.prompt
            for p in loaded.held_out
            if p.split == "validation" and _asked(p.prompt) and p not in trained
        }
        texts = [[p.prompt, p.chosen, p.rejected] for p in pairs]
        return cls(
            pairs, tokens, pool, left_out, list(validation.values()), content_hash([texts, pool])
        )

    def order(self, count: int, seed: int | str, among: Sequence[int] | None = None) -> list[int]:
        """``count`` pairs in training order, shuffled in every pass.

        Args:
            among: some of the pairs; None for all.
        """
        allowed = None if among is None else set(among)
        pool = [i for i in self.pool if allowed is None or i in allowed]
        if not pool:
            raise ValueError("got no pairs to put in order")
        rng, order = random.Random(seed), list[int]()
        while len(order) < count:
            order += rng.sample(pool, len(pool))
        return order[:count]

    def validation_prompts(self, count: int) -> list[list[Message]]:
        """At most ``count`` of the validation prompts, drawn once for all methods and seeds."""
        drawn = random.Random(0).sample(self.validation, len(self.validation))
        return drawn[:count]


def _asked(prompt: Sequence[Message]) -> bool:
    return bool(prompt) and prompt[-1]["role"] == "user"


def tokenize_pair(
    tokenizer: Any, pair: PreferencePair, max_length: int, max_prompt: int
) -> TokenPair | None:
    """A pair as SFT and generation read it (:func:`pro_core.policies.sft.tokenize_row`); None if its prompt does not
    fit, or if its completions are the same after cutting."""
    made = [
        tokenize_row(tokenizer, (pair.prompt, text), max_length, max_prompt)
        for text in (pair.chosen, pair.rejected)
    ]
    if made[0] is None or made[1] is None:
        return None
    start = made[0]["labels"].count(-100)
    chosen, rejected = (row["input_ids"][start:] for row in made if row is not None)
    return None if chosen == rejected else TokenPair(made[0]["input_ids"][:start], chosen, rejected)


# ---------------------------------------------------------------- rows for TRL's trainers


def pair_rows(
    tokens: Sequence[TokenPair],
    reference_N2: ArrayLike,
    order: Sequence[int],
    swapped: ArrayLike | None = None,
) -> list[dict[str, Any]]:
    """Rows for TRL's DPOTrainer, in training order, with the reference's log-probabilities in them.

    Args:
        reference_N2: sum of log-probabilities of each chosen and rejected completion; what is added to them shifts the
            margin of the pair.
        swapped: (N,), whether a pair's completions change places; None for no pair.
    """
    reference = np.asarray(reference_N2, dtype=np.float64)
    swap = np.zeros(len(tokens), bool) if swapped is None else np.asarray(swapped, bool)
    rows = []
    for i in order:
        pair, (first, second) = tokens[i], reference[i].tolist()
        completions, logps = (pair.chosen, pair.rejected), (first, second)
        if swap[i]:
            completions, logps = completions[::-1], logps[::-1]
        rows.append(
            {
                "prompt_ids": pair.prompt,
                "chosen_ids": completions[0],
                "rejected_ids": completions[1],
                "ref_chosen_logps": logps[0],
                "ref_rejected_logps": logps[1],
            }
        )
    return rows


def single_rows(
    tokens: Sequence[TokenPair],
    reference_N2: ArrayLike,
    order: Sequence[int],
    pairs_at_once: int,
    max_length: int,
) -> list[dict[str, Any]]:
    """Rows for TRL's KTOTrainer, all but ``ref_KL_logps``.

    Of each ``pairs_at_once`` pairs the chosen completions come first, then the rejected ones. ``KL_completion_ids`` is
    the completion of the last row before, in a circle, that has another prompt; of the row before where all pairs that
    are read at once have the same prompt.
    """
    reference = np.asarray(reference_N2, dtype=np.float64)
    rows = []
    for start in range(0, len(order), pairs_at_once):
        part = order[start : start + pairs_at_once]
        block = [(tokens[i].prompt, tokens[i].chosen, reference[i, 0], True) for i in part]
        block += [(tokens[i].prompt, tokens[i].rejected, reference[i, 1], False) for i in part]
        for n, (prompt, completion, logp, label) in enumerate(block):
            before = [block[n - k] for k in range(1, len(block))]
            other = next((row for row in before if row[0] != prompt), before[0])
            rows.append(
                {
                    "prompt_ids": prompt,
                    "completion_ids": completion,
                    "KL_completion_ids": other[1][: max_length - len(prompt)],
                    "label": label,
                    "ref_logps": float(logp),
                }
            )
    return rows
