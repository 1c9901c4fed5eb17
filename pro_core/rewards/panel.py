"""K reward models behind one call.

A panel is a folder: ``panel.json`` (objective order, specs, statistics, test accuracies, versions) and the models that
live in it. Objectives that name the same source share one forward pass, so a trunk with K heads and K separate models
are scored by the same code and give the same result shape. An objective may have several members: their mean is its
reward, and their disagreement says how uncertain it is.

Models at endpoints and judges by a sentence (:mod:`pro_core.rewards.scorers`) are asked while the panel's own models
compute.

A YAML file of specs is a panel too, without statistics: `recipes/panels/` has those of models on the hub.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pro_core.data.objectives import Prompt
from pro_core.data.schema import render_messages, to_messages
from pro_core.rewards.batching import check_scoring, encode, forward_in_batches
from pro_core.rewards.calibration import RewardStats, check_finite, text_lengths
from pro_core.rewards.checkpoints import load_reward_model
from pro_core.rewards.functions import function_scores
from pro_core.rewards.ngrams import NGrams
from pro_core.rewards.scorers import Progress, Scorer, asking, check_identities, load_scorers
from pro_core.rewards.specs import RewardModelSpec, members_of, panel_fingerprint, read_specs
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
        specs: one per objective or, where it has several members, one per member. The order of every K axis is that in
            which they first name an objective.
        models: source -> (model, tokenizer); an n-gram model has no tokenizer.
        scorers: what is asked besides: :attr:`RewardModelSpec.asked` -> a model at an endpoint or a judge.
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
    scorers: dict[tuple[Any, ...], Scorer] = field(default_factory=dict)
    _fingerprint: str = field(default="", init=False, repr=False)

    def __post_init__(self):
        self._members = members_of(self.specs)
        self.objective_names = tuple(self._members)
        if self.stats is not None and self.stats.objective_names != self.objective_names:
            raise StorageError(
                f"the statistics are for {self.stats.objective_names}, the panel has {self.objective_names}"
            )
        for spec in self.specs:
            if spec.function or spec.asked:
                continue
            model = self.models[spec.source][0]
            heads = model.outputs if isinstance(model, NGrams) else model.config.num_labels
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
                objective and how many). EndpointError: a model at an endpoint cannot be asked.
        """
        return self.score_with_members(prompts, completions, on_progress, allow_missing)[0]

    def score_with_members(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        on_progress: Callable[[int, int], None] | None = None,
        allow_missing: bool = False,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """:meth:`score`, and the scores (M, N, K) of each objective's members, whose mean over M is the reward.

        :func:`~pro_core.rewards.calibration.member_spread` says how far they disagree. Much of that is common to two
        texts, so the disagreement about their difference is the spread of the members' own differences. M is the
        largest number of members; an objective with fewer has NaN in the last places. ``stats.normalize`` standardizes
        them too.
        """
        if isinstance(prompts, str) or isinstance(completions, str):
            raise ValueError("expected lists of prompts and completions, got a single text")
        if len(prompts) != len(completions):
            raise ValueError(f"got {len(prompts)} prompts and {len(completions)} completions")
        N, K, M = len(prompts), len(self.objective_names), max(map(len, self._members.values()))
        rewards, scores = np.zeros((N, K), np.float32), np.full((M, N, K), np.nan, np.float32)
        if not N:
            return rewards, scores
        outputs = self._outputs(prompts, completions, on_progress)
        for k, members in enumerate(self._members.values()):
            rewards[:, k] = outputs[:, members].mean(axis=1)
            scores[: len(members), :, k] = outputs[:, members].T
        if allow_missing:
            rewards[~np.isfinite(rewards)] = np.nan
        else:
            check_finite(rewards, self.objective_names)
        return rewards, scores

    def _outputs(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        on_progress: Callable[[int, int], None] | None = None,
    ) -> NDArray[np.float32]:
        """What each spec gives each text, (N, specs), in its direction and standardized."""
        outputs = np.zeros((len(prompts), len(self.specs)), dtype=np.float32)
        # `[]` is the prompt of a completion that stands alone, as humor texts do.
        conversations = [to_messages(p) if len(p) else [] for p in prompts]
        for i, spec in enumerate(self.specs):
            if spec.function:
                outputs[:, i] = function_scores(spec.function, spec.pattern, completions)
        groups = self._groups()
        parts = len(groups) + len({spec.asked for spec in self.specs} - {None})
        progress = Progress(on_progress, parts * len(prompts))
        with asking(self.specs, self.scorers, conversations, completions, progress) as fill_in:
            for (source, input_format, max_length), members in groups.items():
                model, tokenizer = self.models[source]
                finished = progress.part()
                if isinstance(model, NGrams):
                    logits = model.score(completions)
                    finished(len(prompts))
                else:
                    encoded = encode(
                        tokenizer, conversations, completions, input_format, max_length
                    )
                    budget = self.token_budget
                    logits = forward_in_batches(model, tokenizer, encoded, budget, finished).numpy()
                for i in members:
                    outputs[:, i] = logits[:, self.specs[i].logit]
            fill_in(outputs)
        if on_progress and not parts:
            on_progress(len(prompts), len(prompts))
        for i, spec in enumerate(self.specs):
            outputs[:, i] = (spec.direction * outputs[:, i] - spec.center) / spec.scale
        return outputs

    def _groups(self) -> dict[tuple[str, str, int], list[int]]:
        """The forward passes: (source, input format, max length) -> the specs that each of them serves."""
        groups: dict[tuple[str, str, int], list[int]] = {}
        for i, spec in enumerate(self.specs):
            if not spec.function and not spec.asked:
                key = (spec.source, spec.input_format, spec.max_length)
                groups.setdefault(key, []).append(i)
        return groups

    def check_endpoints(self) -> None:
        """Raise an EndpointError unless every model at an endpoint is the one that it was when the panel was loaded."""
        check_identities(self.specs, self.scorers)

    def check_models(self) -> None:
        """Raise a StorageError unless each model can read what its spec says, and scores a text alone as in a batch."""
        for (source, input_format, max_length), served in self._groups().items():
            model, tokenizer = self.models[source]
            if isinstance(model, NGrams):
                continue
            try:
                check_scoring(model, tokenizer, input_format, max_length)
            except Exception as error:  # every model raises its own exceptions
                names = ", ".join(dict.fromkeys(self.specs[i].name for i in served))
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
        if len(self.specs) > len(self.objective_names):
            self._standardize_members(prompts, completions)
        rewards = self.score(prompts, completions)
        self.stats = RewardStats.fit(rewards, self.objective_names, reference, lengths, texts)
        return self.stats

    def _standardize_members(self, prompts, completions) -> None:
        """Set ``center`` and ``scale`` of every member, so that none outweighs another by its units."""
        self.specs = [replace(spec, center=0.0, scale=1.0) for spec in self.specs]
        outputs = self._outputs(prompts, completions)
        check_finite(outputs, [f"{s.name} by {s.source}[{s.logit}]" for s in self.specs])
        std = outputs.std(axis=0, dtype=np.float64)
        scales = np.where(std < 1e-8, 1.0, std)
        centers = outputs.mean(axis=0, dtype=np.float64)
        self.specs = [
            replace(spec, center=float(center), scale=float(scale))
            for spec, center, scale in zip(self.specs, centers, scales, strict=True)
        ]
        self._fingerprint = ""

    def fingerprint(self) -> str:
        """A hash of all that decides the scores: see :func:`panel_fingerprint`."""
        if not self._fingerprint:
            self._fingerprint = panel_fingerprint(self.specs, self.folder, self.models)
        return self._fingerprint

    def key(self) -> str:
        """The hash of the standardized scores: the fingerprint and the statistics; :func:`saved_key` of a saved one."""
        return content_hash([self.fingerprint(), self.stats.to_dict() if self.stats else None])

    # ------------------------------------------------------------ disk

    def save_pretrained(self, path: str | Path) -> None:
        """Write ``panel.json``. The models stay where their trainer saved them. If that is not below ``path``, their
        specs name the absolute folder."""
        specs = []
        for spec in self.specs:
            model_folder = Path(self.folder, spec.source)
            if spec.source and model_folder.is_dir() and not Path(path, spec.source).is_dir():
                spec = replace(spec, source=str(model_folder.resolve()))
            specs.append(spec.to_dict())
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
            if not Path(path_or_id).exists() and (
                hosts := sorted({s.endpoint for s in specs} - {""})
            ):
                raise ValueError(
                    f"this panel from the hub would send texts to {', '.join(hosts)}: look at it, copy it into a "
                    "folder, and load that"
                )
            names = list(members_of(specs))
            stats = RewardStats.from_dict(config["stats"]) if config.get("stats") else None
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(f"{file}: {error}") from None
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
        specs, scorers = load_scorers(specs, folder, has_stats=stats is not None)
        for spec in specs:
            if spec.function or spec.asked:
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
            list(specs),
            models,
            stats,
            accuracy or {},
            source or str(folder),
            folder=str(folder),
            scorers=scorers,
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
    """:meth:`RewardPanel.key` of a saved panel, without loading its models."""
    stats = read_config(folder, "panel.json", FORMAT).get("stats")
    return content_hash([saved_fingerprint(folder), stats])
