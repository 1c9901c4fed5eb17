"""How a policy of one LoRA per objective is mixed as it writes: in its parameters or in its logits, and how strongly.

Either way the next token's logits are a weighted sum over *parts*. A part is one row of the batch: the base model with
each LoRA times a scale of its own. A soup is one part, multi-objective decoding one for each objective that counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

Method = Literal["soup", "mod"]
STRONGEST = 2.0
"""The greatest strength: beyond twice a soup, text falls apart."""


class Part(NamedTuple):
    """One row of a batch: its logits count ``coefficient`` times, and its K LoRAs are scaled by ``scales``."""

    coefficient: float = 1.0
    scales: tuple[float, ...] = ()


class Row(NamedTuple):
    """A part of the candidate ``owner`` (its place in the batch)."""

    owner: int
    coefficient: float
    scales: tuple[float, ...]


@dataclass(frozen=True)
class Mixing:
    """How weights w mix the LoRAs of a policy, with the strength s.

    Attributes:
        method: ``soup``: the LoRAs are averaged, as in Rewarded Soups (arXiv 2306.04488): W + s sum_k w_k B_k A_k, one
            forward pass per token. ``mod``: multi-objective decoding (arXiv 2406.18853): the logits are (1 - s) base +
            s sum_k w_k logits_k, one pass for each objective with a weight above 0, and one of the base model unless s
            is 1.
        strength: s, from 0 to :data:`STRONGEST`: 0 is the base model exactly, 1 the method as published; more goes
            beyond it.

    Raises:
        ValueError: another method, or a strength out of range.
    """

    method: Method = "soup"
    strength: float = 1.0

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ValueError(
                f"got the method {self.method!r}, expected one of {list(get_args(Method))}"
            )
        if not (math.isfinite(self.strength) and 0 <= self.strength <= STRONGEST):
            raise ValueError(
                f"got the strength {self.strength}, expected from 0 (the base model) to {STRONGEST:g}; 1 is the "
                "method as published"
            )

    def parts(self, weights: Sequence[float]) -> list[Part]:
        """The parts of one candidate under weights (K,)."""
        s, K = self.strength, len(weights)
        if self.method == "soup":
            return [Part(1.0, tuple(s * w for w in weights))]
        mixed = [
            Part(s * w, tuple(float(j == k) for j in range(K)))
            for k, w in enumerate(weights)
            if s * w > 0
        ]
        return mixed if s == 1 else [*mixed, Part(1 - s, (0.0,) * K)]


def in_rows(parts: Sequence[Sequence[Part]]) -> list[Row]:
    """The rows of a batch: the first part of each candidate, then every second part, and so on.

    So row n < N is candidate n's first, and where neighbours have the same prompt and the same weights, their rows with
    the same LoRAs are neighbours too: each LoRA reads such a prompt once.
    """
    most = max(map(len, parts))
    return [
        Row(owner, *of_one[j])
        for j in range(most)
        for owner, of_one in enumerate(parts)
        if j < len(of_one)
    ]
