"""K reward models behind one call.

A panel is a folder: ``panel.json`` (objective order, one spec per objective, statistics, test accuracies,
versions) and the models that live in it. Objectives that name the same source share one forward pass, so
a trunk with K heads and K separate models are scored by the same code and give the same result shape.

A YAML file of specs is a panel too, without statistics: `recipes/panels/` has those of models on the hub.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pro_core.data.objectives import Prompt, check_objective_names
from pro_core.data.schema import render_messages, to_messages
from pro_core.rewards.batching import check_scoring, encode, forward_in_batches
from pro_core.rewards.calibration import RewardStats, check_finite, text_lengths
from pro_core.rewards.checkpoints import load_reward_model
from pro_core.rewards.functions import function_scores
from pro_core.rewards.specs import RewardModelSpec, panel_fingerprint, read_specs
from pro_core.system.storage import (
    StorageError,
    content_hash,
    first_line,
    library_versions,
    local_folder,
    read_config,
    write_config,
)

FORMAT = "pro-panel"


@dataclass
class RewardPanel:
    """K reward models, their statistics, and how far each can be trusted.

    Attributes:
        specs: one per objective, in the order of every K axis.
        models: source -> (model, tokenizer).
        folder: the folder of the sources that are not paths of their own.
        stats: mean and deviation on the reference set; None until fitted.
        accuracy: objective -> ``{"accuracy", "ci95": [lo, hi], "n", "test", "sources"}``, as measured on test pairs.
        trained_on: the sources of its training pairs, where this project trained it.
    """

    specs: list[RewardModelSpec]
    models: dict[str, tuple[Any, Any]]
    stats: RewardStats | None = None
    accuracy: dict[str, dict[str, Any]] = field(default_factory=dict)
    source: str = ""
    token_budget: int = 4096
    folder: str = ""
    trained_on: tuple[str, ...] = ()
    _fingerprint: str = field(default="", init=False, repr=False)

    def __post_init__(self):
        self.objective_names = check_objective_names(spec.name for spec in self.specs)
        if self.stats is not None and self.stats.objective_names != self.objective_names:
            raise StorageError(
                f"the statistics are for {self.stats.objective_names}, the panel has {self.objective_names}"
            )
        for spec in self.specs:
            if spec.function:
                continue
            heads = self.models[spec.source][0].config.num_labels
            if not 0 <= spec.logit < heads:
                raise StorageError(
                    f"{spec.name}: got the logit index {spec.logit}, but {spec.source} has {heads} outputs"
                )

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        on_progress: Callable[[int, int], None] | None = None,
        allow_missing: bool = False,
    ) -> NDArray[np.float32]:
        """Raw rewards (N, K) of N completions to N prompts; higher is better for every objective.

        Args:
            on_progress: called with (finished, total), in scores of one text by one model.
            allow_missing: return NaN where a model gave NaN or infinity, for a caller that counts them.

        Raises:
            ValueError: lists of different length, an empty prompt, or a model that gives NaN (says for which
                objective and how many).
        """
        if isinstance(prompts, str) or isinstance(completions, str):
            raise ValueError("expected lists of prompts and completions, got a single text")
        if len(prompts) != len(completions):
            raise ValueError(f"got {len(prompts)} prompts and {len(completions)} completions")
        rewards = np.zeros((len(prompts), len(self.specs)), dtype=np.float32)
        if not len(prompts):
            return rewards
        # `[]` is the prompt of a completion that stands alone, as humor texts do.
        conversations = [to_messages(p) if len(p) else [] for p in prompts]
        for k, spec in enumerate(self.specs):
            if spec.function:
                values = function_scores(spec.function, spec.pattern, completions)
                rewards[:, k] = spec.direction * values
        groups = self._groups()
        for g, ((source, input_format, max_length), ks) in enumerate(groups.items()):
            model, tokenizer = self.models[source]
            encoded = encode(tokenizer, conversations, completions, input_format, max_length)

            report = partial(_report, on_progress, g * len(prompts), len(groups) * len(prompts))
            logits = forward_in_batches(model, tokenizer, encoded, self.token_budget, report)
            for k in ks:
                rewards[:, k] = self.specs[k].direction * logits[:, self.specs[k].logit].numpy()
        if on_progress and not groups:
            on_progress(len(prompts), len(prompts))
        if allow_missing:
            rewards[~np.isfinite(rewards)] = np.nan
        else:
            check_finite(rewards, self.objective_names)
        return rewards

    def _groups(self) -> dict[tuple[str, str, int], list[int]]:
        """The forward passes: (source, input format, max length) -> the objectives that each of them scores."""
        groups: dict[tuple[str, str, int], list[int]] = {}
        for k, spec in enumerate(self.specs):
            if not spec.function:
                key = (spec.source, spec.input_format, spec.max_length)
                groups.setdefault(key, []).append(k)
        return groups

    def check_models(self) -> None:
        """Raise a StorageError unless each model can read what its spec says, and scores a text alone as in a batch."""
        for (source, input_format, max_length), ks in self._groups().items():
            try:
                check_scoring(*self.models[source], input_format, max_length)
            except Exception as error:  # every model raises its own exceptions
                names = ", ".join(self.specs[k].name for k in ks)
                raise StorageError(f"{names}: {source}: {first_line(error)}") from error

    def standardized(self, prompts: Sequence[Prompt], completions: Sequence[str]):
        """``score`` then ``stats.normalize``: (N, K), comparable across objectives.

        Raises:
            ValueError: the panel has no statistics yet.
        """
        stats = self.require_stats()
        return stats.normalize(self.score(prompts, completions), text_lengths(completions))

    def require_stats(self) -> RewardStats:
        """The statistics, or a ValueError that says how to get them."""
        if self.stats is None:
            raise ValueError(
                "this panel has no statistics: call fit_stats(prompts, completions) first"
            )
        return self.stats

    def fit_stats(
        self, prompts, completions, reference: str, remove_length: bool = False
    ) -> RewardStats:
        """Fit ``stats`` on a reference set and keep them; the set must come from the train split.

        Args:
            remove_length: standardize rewards without their length component, see
                :mod:`pro_core.rewards.calibration`; needs prompts with two responses or more.
        """
        lengths = text_lengths(completions) if remove_length else None
        texts = [render_messages(to_messages(p)) if len(p) else "" for p in prompts]
        rewards = self.score(prompts, completions)
        self.stats = RewardStats.fit(rewards, self.objective_names, reference, lengths, texts)
        return self.stats

    def fingerprint(self) -> str:
        """A hash of all that decides the scores: see :func:`panel_fingerprint`."""
        if not self._fingerprint:
            self._fingerprint = panel_fingerprint(self.specs, self.folder, self.models)
        return self._fingerprint

    # ------------------------------------------------------------ disk

    def save_pretrained(self, path: str | Path) -> None:
        """Write ``panel.json``. The models stay where their trainer saved them. If that is not below ``path``, their
        specs name the absolute folder."""
        specs = []
        for spec in self.specs:
            model_folder = Path(self.folder, spec.source)
            if spec.source and model_folder.is_dir() and not Path(path, spec.source).is_dir():
                spec = replace(spec, source=str(model_folder.resolve()))
            specs.append(asdict(spec))
        write_config(
            path,
            "panel.json",
            {
                "format": FORMAT,
                "objective_names": list(self.objective_names),
                "models": specs,
                "stats": self.stats.to_dict() if self.stats else None,
                "accuracy": self.accuracy,
                "trained_on": list(self.trained_on),
                "versions": library_versions(),
            },
        )

    @classmethod
    def from_pretrained(cls, path_or_id: str | Path, device: str | None = None) -> RewardPanel:
        """Load a panel from a local folder, a YAML file of specs or a hub id. Nothing remote is executed.

        A YAML file has one key, ``models``: a list of :class:`RewardModelSpec`. Such a panel has no statistics until
        they are fitted (:meth:`fit_stats`, or `train/score_rewards.py` with ``save_panel``).

        Raises:
            StorageError: no ``panel.json``, a truncated file, a missing model folder, another format.
        """
        if Path(path_or_id).suffix in (".yaml", ".yml"):
            file = Path(path_or_id)
            config = read_specs(file)
        else:
            file = local_folder(path_or_id) / "panel.json"
            config = read_config(file.parent, file.name, FORMAT)
        try:
            specs = [RewardModelSpec(**spec) for spec in config["models"]]
            check_objective_names(spec.name for spec in specs)
            stats = RewardStats.from_dict(config["stats"]) if config.get("stats") else None
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(f"{file}: {error}") from None
        names = [spec.name for spec in specs]
        if config.get("objective_names", names) != names:
            raise StorageError(
                f"{file}: objective_names {config['objective_names']} are not the models' names in order, {names}"
            )
        accuracy = config.get("accuracy", {})
        panel = cls.build(specs, file.parent, stats, accuracy, str(path_or_id), device=device)
        panel.trained_on = tuple(config.get("trained_on", ()))
        return panel

    @classmethod
    def build(cls, specs, folder, stats=None, accuracy=None, source="", device=None) -> RewardPanel:
        """A panel from specs, each source loaded once and checked; those inside ``folder`` come from there.

        Raises:
            StorageError: a model that cannot be loaded, cannot read what its spec says, or scores a text in another way
                beside other texts.
        """
        models, asked = {}, {}
        for spec in specs:
            if spec.function:
                continue
            settings = {"revision": spec.revision, "outputs": spec.outputs}
            if spec.source not in models:
                inside = Path(folder) / spec.source
                where = str(inside) if inside.is_dir() else spec.source
                models[spec.source] = load_reward_model(where, device=device, **settings)
                asked[spec.source] = settings
            if settings != asked[spec.source]:
                raise StorageError(
                    f"{spec.name}: got {settings} for {spec.source}, but another objective takes "
                    f"{asked[spec.source]}: a panel loads a source once"
                )
        panel = cls(
            list(specs), models, stats, accuracy or {}, source or str(folder), folder=str(folder)
        )
        panel.check_models()
        return panel


def saved_fingerprint(folder: str | Path) -> str:
    """:meth:`RewardPanel.fingerprint` of a saved panel, without loading its models.

    Raises:
        StorageError: no ``panel.json``, or a broken one.
    """
    config = read_config(folder, "panel.json", FORMAT)
    try:
        return panel_fingerprint([RewardModelSpec(**spec) for spec in config["models"]], folder)
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(f"{Path(folder) / 'panel.json'}: {error}") from None


def saved_key(folder: str | Path) -> str:
    """The hash of a saved panel's standardized scores: its fingerprint and its statistics."""
    stats = read_config(folder, "panel.json", FORMAT).get("stats")
    return content_hash([saved_fingerprint(folder), stats])


def _report(on_progress: Callable[[int, int], None] | None, before: int, total: int, finished: int):
    if on_progress:
        on_progress(before + finished, total)
