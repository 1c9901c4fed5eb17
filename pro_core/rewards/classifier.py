"""MOSLIM's reward model: one classifier with a head an objective over its intensity levels, and Eq 11's mapping.

A folder holds ``classifier.json`` (objectives with their levels and thresholds, loss, statistics, accuracies, versions)
and ``model/``, a sequence classifier whose outputs are the heads one after the other, S1||...||Sn. Levels count from 1;
a higher level is more of the objective.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from numbers import Real
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from pro_core.data.objectives import Prompt, check_objective_names
from pro_core.data.schema import DataError, to_messages
from pro_core.rewards.batching import (
    SCORING_VERSION,
    check_scoring,
    encode,
    forward_in_batches,
)
from pro_core.rewards.calibration import RewardStats, check_finite
from pro_core.rewards.models import load_reward_model
from pro_core.system.fingerprints import fingerprint
from pro_core.system.storage import (
    StorageError,
    content_hash,
    first_line,
    library_versions,
    local_folder,
    read_config,
    write_config,
)

FORMAT = "pro-classifier"
Loss = Literal["joint", "per_head"]
LOSSES: tuple[Loss, ...] = get_args(Loss)
DIVISORS = ("objectives", "targets")


@dataclass(frozen=True)
class IntensityScale:
    """How one objective's ratings become intensity levels.

    Attributes:
        name: the objective.
        low, high: the smallest and the largest rating there can be.
        thresholds: ascending ratings at which the next level begins: level 1 is below the first, and without any
            threshold there is one level only (MOSLIM's data type 1).

    Raises:
        ValueError: thresholds that do not ascend within the range.
    """

    name: str
    low: float
    high: float
    thresholds: tuple[float, ...] = ()

    def __post_init__(self):
        check_objective_names([self.name])
        check_objective_names([f"{self.name}-{self.levels}"])  # the outputs' names stand in `stats`
        edges = [self.low, *self.thresholds]
        if self.low >= self.high or any(a >= b for a, b in pairwise(edges)):
            raise ValueError(
                f"{self.name}: got the range {self.low:g} to {self.high:g} and the thresholds "
                f"{list(self.thresholds)}, expected a range and ascending thresholds above its lower end"
            )
        if edges[-1] > self.high:
            raise ValueError(
                f"{self.name}: got the threshold {edges[-1]:g}, expected at most {self.high:g}, the largest rating"
            )

    @property
    def levels(self) -> int:
        """How many levels there are."""
        return len(self.thresholds) + 1

    def level(self, rating: Any) -> int:
        """The level, 1 to ``levels``, of a rating.

        Raises:
            DataError: not a finite number, or outside the range.
        """
        value = float(rating) if isinstance(rating, Real) else math.nan
        if not math.isfinite(value):
            raise DataError(
                f"{self.name}: got the rating {rating!r}, expected a number from {self.low:g} to {self.high:g}; "
                "leave the label out where there is no rating"
            )
        if not self.low <= value <= self.high:
            raise DataError(
                f"{self.name}: got the rating {value:g}, expected {self.low:g} to {self.high:g}; "
                "mend the file or the `range` in the recipe"
            )
        return 1 + sum(value >= threshold for threshold in self.thresholds)


def level_columns(scales: Sequence[IntensityScale]) -> tuple[str, ...]:
    """The names of the S outputs: ``helpful-1``, ``helpful-2``, ..."""
    return tuple(f"{scale.name}-{level + 1}" for scale in scales for level in range(scale.levels))


def saved_scales(config: Mapping[str, Any]) -> tuple[IntensityScale, ...]:
    """The scales that a ``classifier.json`` holds."""
    return tuple(
        IntensityScale(o["name"], o["range"][0], o["range"][1], tuple(o["thresholds"]))
        for o in config["objectives"]
    )


def log_probabilities(logits: torch.Tensor, sizes: Sequence[int], loss: str) -> torch.Tensor:
    """Log-probabilities (N, S) of concatenated logits (N, S).

    ``joint``: one softmax over all S (Eq 10). ``per_head``: one over each head's own outputs (Eq 7).
    """
    if loss == "joint":
        return torch.log_softmax(logits, 1)
    return torch.cat([torch.log_softmax(part, 1) for part in logits.split(list(sizes), 1)], 1)


# ---------------------------------------------------------------- Eq 11


def map_levels(
    probabilities: ArrayLike,
    targets: Sequence[Mapping[str, int]],
    stats: RewardStats,
    divide_by: str = "objectives",
) -> NDArray[np.float32]:
    """One reward a row (N,) for how likely its target levels are (MOSLIM's Eq 11); higher is better.

        r = (1/k) sum_i mask_i (p_i[target_i] - mean_i[target_i]) / std_i[target_i]

    Args:
        probabilities: (N, S), the columns of ``stats``.
        targets: one ``{objective: level}`` a row, levels from 1; an objective that is not named has mask 0.
        stats: mean and deviation of every head's every level; its names are those of :func:`level_columns`.
        divide_by: ``objectives`` (k counts all heads, as printed) or ``targets`` (k counts the row's own targets, so
            that a row with one target is not graded on a smaller scale than a row with three).

    Raises:
        ValueError: another shape, a row without a target, an unknown objective or level.
    """
    if divide_by not in DIVISORS:
        raise ValueError(f"got the divisor {divide_by!r}, expected one of {DIVISORS}")
    z_NK, mask_NK = target_scores(probabilities, targets, stats)
    k = mask_NK.shape[1] if divide_by == "objectives" else mask_NK.sum(axis=1)
    return (np.where(mask_NK, z_NK, 0).sum(axis=1) / k).astype(np.float32)


def target_scores(
    probabilities: ArrayLike, targets: Sequence[Mapping[str, int]], stats: RewardStats
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Eq 11's terms before they are summed: (p_i[target_i] - mean) / std (N, K), NaN where mask_i is 0; and the mask.

    Args, Raises: see :func:`map_levels`.
    """
    z = stats.normalize(probabilities)
    if len(targets) != len(z):
        raise ValueError(f"got {len(targets)} targets for {len(z)} rows of probabilities")
    column = {name: j for j, name in enumerate(stats.objective_names)}
    heads = list(dict.fromkeys(name.rpartition("-")[0] for name in column))
    found = np.full((len(z), len(heads)), np.nan, dtype=np.float32)
    mask = np.zeros(found.shape, dtype=bool)
    for i, row in enumerate(targets):
        unknown = [name for name, level in row.items() if f"{name}-{level}" not in column]
        if unknown or not row:
            raise ValueError(
                f"row {i}: got the targets {dict(row)}, expected at least one objective with one of its levels: "
                f"{', '.join(column)}"
            )
        for name, level in row.items():
            k = heads.index(name)
            found[i, k], mask[i, k] = z[i, column[f"{name}-{level}"]], True
    return found, mask


def moving_stats(stats: RewardStats, probabilities: ArrayLike, momentum: float) -> RewardStats:
    """The statistics moved towards a batch (N, S): an exponential average of p and of p squared.

    mean <- (1 - momentum) mean + momentum batch mean, and so for the second moment that the deviation comes from.

    Raises:
        ValueError: no rows, another S, or a momentum outside (0, 1].
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 2 or not len(p) or p.shape[1] != len(stats.objective_names):
        raise ValueError(f"got shape {p.shape}, expected (N >= 1, {len(stats.objective_names)})")
    if not 0 < momentum <= 1:
        raise ValueError(f"got a momentum of {momentum}, expected one above 0, at most 1")
    check_finite(p, stats.objective_names)
    # A constant column is kept with a deviation of 1; what it really has is 0.
    variance = np.where(np.isin(stats.objective_names, stats.constant), 0.0, stats.std**2)
    mean = (1 - momentum) * stats.mean + momentum * p.mean(axis=0)
    square = (1 - momentum) * (variance + stats.mean**2) + momentum * (p**2).mean(axis=0)
    std = np.sqrt(np.maximum(square - mean**2, 0.0))
    flat = std < 1e-8
    constant = tuple(np.asarray(stats.objective_names)[flat].tolist())
    return replace(stats, mean=mean, std=np.where(flat, 1.0, std), constant=constant)


# ---------------------------------------------------------------- the model


@dataclass
class RewardClassifier:
    """A multi-head classifier with what is needed to use it as a reward.

    Attributes:
        scales: one an objective, in the order of every K axis.
        folder: where ``model/`` lies.
        loss: what it was trained with, and so how its outputs become probabilities; see :func:`log_probabilities`.
        input_format, max_length: see :class:`pro_core.rewards.panel.RewardModelSpec`.
        stats: mean and deviation of every head's every level on training responses; None until fitted.
        label_counts: column of :func:`level_columns` -> training responses of that level.
        accuracy: metric -> ``{"accuracy", "ci95": [lo, hi], "n", "prompts"}``, as measured on held-out responses.
    """

    scales: tuple[IntensityScale, ...]
    model: Any
    tokenizer: Any
    folder: Path
    loss: str = "joint"
    input_format: str = "pair"
    max_length: int = 512
    stats: RewardStats | None = None
    label_counts: dict[str, int] = field(default_factory=dict)
    accuracy: dict[str, dict[str, Any]] = field(default_factory=dict)
    token_budget: int = 4096
    _fingerprint: str = field(default="", init=False, repr=False)

    def __post_init__(self):
        self.objective_names = check_objective_names(scale.name for scale in self.scales)
        self.columns = level_columns(self.scales)
        self.sizes = [scale.levels for scale in self.scales]
        if self.loss not in LOSSES:
            raise StorageError(f"got the loss {self.loss!r}, expected one of {LOSSES}")
        outputs = self.model.config.num_labels
        if outputs != len(self.columns):
            raise StorageError(
                f"the model has {outputs} outputs, the levels of {list(self.objective_names)} are {len(self.columns)}"
            )
        if self.stats is not None and self.stats.objective_names != self.columns:
            raise StorageError(
                f"the statistics are for {self.stats.objective_names}, the heads have {self.columns}"
            )

    def probabilities(
        self,
        prompts: Sequence[Prompt | None],
        completions: Sequence[str],
        allow_missing: bool = False,
    ) -> NDArray[np.float32]:
        """Probabilities (N, S) of every head's every level, in the order of ``columns``.

        Under the loss ``joint`` a row sums to 1, under ``per_head`` each head of a row does. ``None`` or ``[]`` as a
        prompt: the completion stands alone.

        Args:
            allow_missing: give NaN where the model answered NaN or infinity, for a caller that counts them.

        Raises:
            ValueError: lists of different length, an empty prompt, or a model that answers NaN.
        """
        if isinstance(prompts, str) or isinstance(completions, str):
            raise ValueError("expected lists of prompts and completions, got a single text")
        if len(prompts) != len(completions):
            raise ValueError(f"got {len(prompts)} prompts and {len(completions)} completions")
        if not len(prompts):
            return np.zeros((0, len(self.columns)), dtype=np.float32)
        conversations = [to_messages(p) if p is not None and len(p) else [] for p in prompts]
        encoded = encode(
            self.tokenizer, conversations, completions, self.input_format, self.max_length
        )
        logits = forward_in_batches(self.model, self.tokenizer, encoded, self.token_budget)
        if not allow_missing:
            check_finite(logits.numpy(), self.columns)
        p = log_probabilities(logits, self.sizes, self.loss).exp().numpy()
        p[~np.isfinite(logits.numpy()).all(axis=1)] = np.nan
        return p

    def expected_levels(self, probabilities: ArrayLike) -> NDArray[np.float32]:
        """The level (N, K), 1 to its objective's highest, that probabilities (N, S) expect: sum_l l p(l) in each head,
        whose levels are first scaled to 1 (under ``joint`` they share it with the other heads)."""
        heads = np.split(np.asarray(probabilities), np.cumsum(self.sizes)[:-1], axis=1)
        each = [p @ np.arange(1, p.shape[1] + 1) / p.sum(axis=1) for p in heads]
        return np.stack(each, axis=1).astype(np.float32)

    def fingerprint(self) -> str:
        """A hash of all that decides the probabilities."""
        if not self._fingerprint:
            own = [SCORING_VERSION, self.loss, self.input_format, self.max_length, self.columns]
            self._fingerprint = content_hash([own, fingerprint(self.folder / "model")])
        return self._fingerprint

    def reward(
        self,
        prompts: Sequence[Prompt | None],
        completions: Sequence[str],
        targets: Sequence[Mapping[str, int]],
        divide_by: str = "objectives",
        momentum: float = 0.0,
    ) -> NDArray[np.float32]:
        """Rewards (N,) by Eq 11: how much likelier than usual each row's target levels are.

        Args:
            prompts: without the condition ``<helpful 4>`` that the policy reads.
            targets, divide_by: see :func:`map_levels`.
            momentum: 0 leaves the statistics as they are (frozen); above 0 they move towards this batch, after it
                was graded with the old ones. See :func:`moving_stats`.

        Raises:
            ValueError: as :meth:`probabilities` and :func:`map_levels`; no statistics yet.
        """
        stats = self.require_stats()
        p = self.probabilities(prompts, completions)
        rewards = map_levels(p, targets, stats, divide_by)
        if momentum:
            self.stats = moving_stats(stats, p, momentum)
        return rewards

    def require_stats(self) -> RewardStats:
        """The statistics, or a ValueError that says how to get them."""
        if self.stats is None:
            raise ValueError(
                "this classifier has no statistics: call fit_stats(prompts, completions, reference) first"
            )
        return self.stats

    def fit_stats(self, prompts, completions, reference: str) -> RewardStats:
        """Fit and keep ``stats`` on reference responses; they must come from the train split."""
        p = self.probabilities(prompts, completions)
        self.stats = RewardStats.fit(p, self.columns, reference)
        return self.stats

    # ------------------------------------------------------------ disk

    def save_pretrained(self, path: str | Path) -> None:
        """Write ``classifier.json``, and a copy of ``model/`` where ``path`` is another folder than its own."""
        if Path(path).resolve() != self.folder.resolve():
            shutil.copytree(self.folder / "model", Path(path) / "model", dirs_exist_ok=True)
        objectives = [
            {"name": s.name, "range": [s.low, s.high], "thresholds": list(s.thresholds)}
            | {"levels": s.levels}
            for s in self.scales
        ]
        config = {
            "format": FORMAT,
            "objectives": objectives,
            "loss": self.loss,
            "input_format": self.input_format,
            "max_length": self.max_length,
            "stats": self.stats.to_dict() if self.stats else None,
            "label_counts": self.label_counts,
            "accuracy": self.accuracy,
            "versions": library_versions(),
        }
        write_config(path, "classifier.json", config)

    @classmethod
    def from_pretrained(cls, path_or_id: str | Path, device: str | None = None) -> RewardClassifier:
        """Load a classifier from a local folder or a hub id. Nothing remote is executed.

        Raises:
            StorageError: no ``classifier.json``, a truncated file, another format, or a model that does not fit it.
        """
        folder = local_folder(path_or_id)
        config = read_config(folder, "classifier.json", FORMAT)
        try:
            scales = saved_scales(config)
            stats = RewardStats.from_dict(config["stats"]) if config.get("stats") else None
            kept = {key: config[key] for key in ("loss", "input_format", "max_length")}
            kept |= {key: config[key] for key in ("label_counts", "accuracy")}
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(f"{folder / 'classifier.json'}: {error!r}") from None
        model, tokenizer = load_reward_model(str(folder / "model"), device=device)
        classifier = cls(scales, model, tokenizer, folder, stats=stats, **kept)
        try:
            check_scoring(model, tokenizer, classifier.input_format, classifier.max_length)
        except Exception as error:  # every model has exceptions of its own
            raise StorageError(f"{folder / 'model'}: {first_line(error)}") from error
        return classifier
