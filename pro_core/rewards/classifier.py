"""MOSLIM's reward model: one classifier with a head for each objective over its intensity levels.

A folder holds ``classifier.json`` (objectives with their levels and thresholds, loss, statistics, accuracies, versions)
and ``model/``, a sequence classifier whose outputs are the heads one after the other, see
:mod:`pro_core.rewards.levels`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pro_core.data.objectives import Prompt, check_objective_names
from pro_core.data.schema import to_messages
from pro_core.rewards.batching import (
    check_scoring,
    encode,
    forward_in_batches,
    scoring_version,
)
from pro_core.rewards.calibration import RewardStats, check_finite
from pro_core.rewards.checkpoints import load_reward_model
from pro_core.rewards.levels import (
    LOSSES,
    IntensityScale,
    level_columns,
    log_probabilities,
    map_levels,
    moving_stats,
    saved_scales,
)
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


@dataclass
class RewardClassifier:
    """A multi-head classifier, with everything needed to use it as a reward.

    Attributes:
        scales: one per objective, in the order of every K axis.
        folder: the folder that holds ``model/``.
        loss: its training loss, which decides how outputs become probabilities; see :func:`log_probabilities`.
        input_format, max_length: see :class:`pro_core.rewards.specs.RewardModelSpec`.
        stats: mean and deviation of each level of each head on training responses; None until fitted.
        label_counts: column of :func:`level_columns` -> number of training responses of that level.
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
                f"the model has {outputs} outputs, but {list(self.objective_names)} have {len(self.columns)} levels"
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
        """Probabilities (N, S) of each level of each head, in the order of ``columns``.

        With the loss ``joint`` a row sums to 1, with ``per_head`` each head of a row does. A prompt of ``None`` or
        ``[]`` means a completion without a prompt.

        Args:
            allow_missing: return NaN where the model gave NaN or infinity, for a caller that counts them.

        Raises:
            ValueError: lists of different length, an empty prompt, or a model that gives NaN.
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
        """The expected levels (N, K) under probabilities (N, S), 1 to each objective's highest: sum_l l p(l) per head.
        Each head is first scaled to a sum of 1, since under ``joint`` it shares its sum with the other heads."""
        heads = np.split(np.asarray(probabilities), np.cumsum(self.sizes)[:-1], axis=1)
        each = [p @ np.arange(1, p.shape[1] + 1) / p.sum(axis=1) for p in heads]
        return np.stack(each, axis=1).astype(np.float32)

    def fingerprint(self) -> str:
        """A hash of everything that determines the probabilities."""
        if not self._fingerprint:
            settings = [
                scoring_version(self.input_format),
                self.loss,
                self.input_format,
                self.max_length,
                self.columns,
            ]
            self._fingerprint = content_hash([settings, fingerprint(self.folder / "model")])
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
                was scored with the old ones. See :func:`moving_stats`.

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
        """Fit ``stats`` on reference responses and keep them; the responses must come from the train split."""
        p = self.probabilities(prompts, completions)
        self.stats = RewardStats.fit(p, self.columns, reference)
        return self.stats

    # ------------------------------------------------------------ disk

    def save_pretrained(self, path: str | Path) -> None:
        """Write ``classifier.json``, and copy ``model/`` if ``path`` is another folder than its own."""
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
        except Exception as error:  # every model raises its own exceptions
            raise StorageError(f"{folder / 'model'}: {first_line(error)}") from error
        return classifier
