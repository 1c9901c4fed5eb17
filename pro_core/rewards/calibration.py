"""One scale for K reward models.

A Bradley-Terry reward is defined up to a constant for each prompt, and every reward model has its own scale, so raw
rewards of different models cannot be added or compared. ``RewardStats`` holds the mean and deviation of each objective
on a fixed reference set (train split only) and travels with its panel.

On request it also removes the length component of a reward: r - slope (log(1 + length) - center). The slope is fitted
by least squares *within prompts*, because only there is a reward defined and are responses compared. (A prompt that
asks for a long answer has an offset of its own, which a slope over all texts would attribute to length.) Lengths are
characters, the same for K models with K tokenizers; with their logarithm, doubling is the same step everywhere. One
slope serves all kinds of prompts, so the reference set should resemble what is to be scored: fitted on hh-rlhf alone,
the demo panel's helpful and harmless lose their correlation with length (+.43 and -.46 become -.03 and -.01); fitted on
all its sources, the correlation changes sign (-.15 and +.19, `results/length.jsonl`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pro_core.data.objectives import check_objective_names
from pro_core.rewards.formats import scored_text


@dataclass(frozen=True)
class RewardStats:
    """Mean and standard deviation of each objective's raw reward on the reference set.

    Attributes:
        mean, std: (K,) float64; a constant reward gets a deviation of 1, so that it normalizes to 0.
        n: responses in the reference set. ``reference``: a description of that set.
        constant: objectives whose reward is the same for the whole reference set.
        length_slope: (K,) reward per unit of log length, removed before standardizing; None: nothing is removed.
        length_center: mean log(1 + characters) of the reference set.
    """

    objective_names: tuple[str, ...]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    n: int = 0
    reference: str = ""
    constant: tuple[str, ...] = field(default=())
    length_slope: NDArray[np.float64] | None = None
    length_center: float = 0.0

    @classmethod
    def fit(
        cls,
        rewards_NK: ArrayLike,
        objective_names: Sequence[str],
        reference: str = "",
        lengths: ArrayLike | None = None,
        prompts: Sequence[str] | None = None,
    ) -> RewardStats:
        """Statistics of raw rewards (N, K); with lengths, those of the rewards without their length component.

        Args:
            lengths: (N,) characters, see :func:`text_lengths`. ``prompts``: (N,) texts that identify the prompts.

        Raises:
            ValueError: fewer than 2 rows, another K, rewards that are not finite (names the objective), or lengths
                without any prompt that has two responses of different length.
        """
        names = check_objective_names(objective_names)
        rewards = np.asarray(rewards_NK, dtype=np.float64)
        if rewards.ndim != 2 or rewards.shape[1] != len(names) or len(rewards) < 2:
            raise ValueError(
                f"got rewards of shape {rewards.shape}, expected (N >= 2, {len(names)}) for {list(names)}"
            )
        check_finite(rewards, names)
        slope, center = None, 0.0
        if lengths is not None:
            steps = _log_lengths(lengths, len(rewards))
            slope, center = _slopes_within_prompts(rewards, steps, prompts), float(steps.mean())
            rewards = rewards - slope * (steps - center)[:, None]
        std = rewards.std(axis=0)
        flat = std < 1e-8
        return cls(
            names,
            rewards.mean(axis=0),
            np.where(flat, 1.0, std),
            len(rewards),
            reference,
            tuple(name for name, constant in zip(names, flat, strict=True) if constant),
            slope,
            center,
        )

    def normalize(
        self, rewards_NK: ArrayLike, lengths: ArrayLike | None = None
    ) -> NDArray[np.float32]:
        """Standardized rewards z = (r - mean) / std, (N, K) to (N, K); higher stays better.

        Args:
            rewards_NK: raw rewards, or the scores (M, N, K) of a panel's members, whose shape stays.
            lengths: (N,) characters of the responses, see :func:`text_lengths`; needed if the statistics remove the
                length component, else ignored.

        Raises:
            ValueError: another K, or no lengths where they are needed.
        """
        rewards = np.asarray(rewards_NK, dtype=np.float64)
        if rewards.ndim not in (2, 3) or rewards.shape[-1] != len(self.objective_names):
            raise ValueError(
                f"got rewards of shape {rewards.shape}, expected (N, {len(self.objective_names)})"
            )
        if self.length_slope is not None:
            if lengths is None:
                raise ValueError(
                    "these statistics remove the length component of the rewards: pass the responses' lengths too, "
                    "normalize(rewards, text_lengths(completions)), or score with panel.standardized"
                )
            steps = _log_lengths(lengths, rewards.shape[-2]) - self.length_center
            rewards = rewards - self.length_slope * steps[:, None]
        return ((rewards - self.mean) / self.std).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form; :meth:`from_dict` reads it back."""
        return {
            "objective_names": list(self.objective_names),
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "n": self.n,
            "reference": self.reference,
            "constant": list(self.constant),
            "length_slope": None if self.length_slope is None else self.length_slope.tolist(),
            "length_center": self.length_center,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RewardStats:
        """The inverse of :meth:`to_dict`."""
        slope = data.get("length_slope")
        return cls(
            check_objective_names(data["objective_names"]),
            np.asarray(data["mean"], dtype=np.float64),
            np.asarray(data["std"], dtype=np.float64),
            data.get("n", 0),
            data.get("reference", ""),
            tuple(data.get("constant", ())),
            None if slope is None else np.asarray(slope, dtype=np.float64),
            data.get("length_center", 0.0),
        )


def text_lengths(completions: Sequence[str]) -> NDArray[np.float64]:
    """Characters of each response, without the thought before its answer: (N,)."""
    return np.array([len(scored_text(text)) for text in completions], dtype=np.float64)


def _log_lengths(lengths: ArrayLike, N: int) -> NDArray[np.float64]:
    values = np.asarray(lengths, dtype=np.float64)
    if values.shape != (N,) or not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError(f"got lengths of shape {values.shape}, expected {N} numbers of at least 0")
    return np.log1p(values)


def _slopes_within_prompts(
    rewards_NK: NDArray, steps: NDArray, prompts: Sequence[str] | None
) -> NDArray[np.float64]:
    """Least squares of each reward's deviation from its prompt's mean on that of the log length: (K,)."""
    if prompts is None or len(prompts) != len(steps):
        raise ValueError(
            "the length component is fitted within prompts: pass the prompt of every response"
        )
    ids: dict[str, int] = {}
    index = np.array([ids.setdefault(prompt, len(ids)) for prompt in prompts])
    counts = np.bincount(index)

    def deviations(values):
        return values - (np.bincount(index, values) / counts)[index]

    x = deviations(steps)
    if x @ x < 1e-8:
        raise ValueError(
            "no prompt has two responses of different length: there is no length component to remove"
        )
    return np.array([x @ deviations(reward) / (x @ x) for reward in rewards_NK.T])


def member_spread(scores: NDArray) -> NDArray[np.float64]:
    """The standard deviation between members, (M, ...) to (...), in the scores' units; NaN where fewer than two scored.

    Its square has the divisor M - 1. It says how far a score depends on which pairs, and which kind of model, the
    members were fitted with. What all members get wrong alike is not in it.
    """
    counts = np.isfinite(scores).sum(axis=0)
    means = np.nansum(scores, axis=0, dtype=np.float64) / np.maximum(counts, 1)
    squares = np.nansum((scores - means) ** 2, axis=0)
    return np.where(counts > 1, np.sqrt(squares / np.maximum(counts - 1, 1)), np.nan)


def check_finite(rewards: NDArray, names: Sequence[str]) -> None:
    """Raise a ValueError that names the objectives with a NaN or infinite reward."""
    bad = ~np.isfinite(rewards)
    if bad.any():
        where = {n: int(c) for n, c in zip(names, bad.sum(axis=0), strict=True) if c}
        raise ValueError(f"got rewards that are not finite (objective: count): {where}")
