"""What policies are asked for: a grid of weights on the simplex, or of levels, the same for every prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import comb
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pro_core.data.objectives import Message
from pro_core.generation.request import Request

Floats = NDArray[np.float64]
Requests = list[list[Request]]
"""W requests for each of P prompts, (W, P)."""


@dataclass(frozen=True)
class Grid:
    """W requests, the same for every prompt.

    Attributes:
        kind: what is asked for. values_WK: weights, or levels with 0 where an objective is not named.
    """

    kind: Literal["weights", "levels"]
    objective_names: tuple[str, ...]
    values_WK: Floats

    def __len__(self) -> int:
        return len(self.values_WK)

    def requests(self, prompts: Sequence[Sequence[Message]]) -> Requests:
        """All requests for all prompts, (W, P)."""
        if self.kind == "weights":
            P = len(prompts)
            return [
                weight_requests(prompts, np.tile(weights, (P, 1)), self.objective_names)
                for weights in self.values_WK
            ]
        return [
            [Request(prompt, levels=self.asked(w)["levels"]) for prompt in prompts]
            for w in range(len(self))
        ]

    def asked(self, w: int) -> dict[str, dict[str, Any]]:
        """Request w in the form of the result rows."""
        pairs = zip(self.objective_names, self.values_WK[w].tolist(), strict=True)
        if self.kind == "weights":
            return {"weights": dict(pairs)}
        return {"levels": {name: int(level) for name, level in pairs if level}}


def weight_requests(
    prompts: Sequence[Sequence[Message]], weights_PK: ArrayLike, objective_names: Sequence[str]
) -> list[Request]:
    """One request per prompt under its own weights, in single precision, as for all published responses."""
    rows = np.asarray(weights_PK, dtype=np.float32)
    return [
        Request.weighted(prompt, weights, objective_names)
        for prompt, weights in zip(prompts, rows, strict=True)
    ]


def simplex_grid(K: int, count: int) -> Floats:
    """``count`` weightings of K objectives, (count, K): the corners, the centre, and others as far apart as possible.

    The others come from the coarsest lattice on the simplex with enough points. Each is the point farthest from those
    already taken; a tie goes to the point that keeps the objectives' total weights most even. Two objectives and 5
    weightings give the weights 0, 1/4, 1/2, 3/4, 1. One objective has one weighting.

    Raises:
        ValueError: K is below 1, or the count is too small for the corners and the centre.
    """
    if K < 1:
        raise ValueError(f"got {K} objectives, expected at least 1")
    if K == 1:
        return np.ones((1, 1))
    if count < K + 1:
        raise ValueError(
            f"got a grid of {count} weightings for {K} objectives, expected at least {K + 1}: "
            "the corners and the centre"
        )
    resolution = 1
    while comb(resolution + K - 1, K - 1) < count:
        resolution += 1
    lattice = np.array(list(_compositions(resolution, K))) / resolution
    chosen = [*np.eye(K), np.full(K, 1 / K)]
    while len(chosen) < count:
        taken = np.array(chosen)
        gaps = np.linalg.norm(lattice[:, None] - taken, axis=2).min(axis=1)
        uneven = (taken.sum(axis=0) + lattice).std(axis=1)
        order = np.lexsort((np.arange(len(lattice)), uneven.round(9), -gaps.round(9)))
        chosen.append(lattice[order[0]])
    return np.array(sorted(map(tuple, chosen)))


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to write ``total`` as a sum of ``parts`` whole numbers of at least 0."""
    if parts == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in _compositions(total - first, parts - 1):
            yield (first, *rest)


def level_grid(counts: Sequence[int]) -> Floats:
    """Each level of each objective alone, then the lowest and highest levels of each pair: (W, K).

    0 where an objective is not named.

    Args:
        counts: how many levels each of the K objectives has.
    """
    K = len(counts)
    requests = [{k: level} for k, count in enumerate(counts) for level in range(1, count + 1)]
    for a, b in combinations(range(K), 2):
        corners = product(sorted({1, counts[a]}), sorted({1, counts[b]}))
        requests += [{a: i, b: j} for i, j in corners]
    levels = np.zeros((len(requests), K))
    for w, named in enumerate(requests):
        levels[w, list(named)] = list(named.values())
    return levels
