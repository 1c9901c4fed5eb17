"""The sources of each objective's reward, and what determines the scores of a panel of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from pro_core.data.objectives import check_objective_names
from pro_core.rewards.batching import SCORING_VERSION, scoring_version
from pro_core.rewards.formats import check_format
from pro_core.rewards.functions import check_function
from pro_core.system.fingerprints import fingerprint
from pro_core.system.storage import StorageError, content_hash


@dataclass(frozen=True)
class RewardModelSpec:
    """A source of one objective's reward: a model's output, or a plain function of the response.

    Specs of the same objective are its members: each output is standardized by ``center`` and ``scale``, and the reward
    is their mean.

    Attributes:
        name: the objective.
        source: a folder inside the panel's folder, another local folder, or a hub id.
        revision: of a hub id.
        input_format: the text that the model reads, see :mod:`pro_core.rewards.formats`: ``"pair"`` (prompt and
            completion as the two segments of an encoder), ``"chat"`` (the tokenizer's chat template), or a text
            with ``{completion}``.
        logit: index of the model's output that is this objective's reward.
        direction: 1 when a higher logit (or value) is better, -1 when a lower one is.
        max_length: tokens of prompt and completion together.
        outputs: the number of outputs of a hub checkpoint whose config does not say.
        function: instead of a source, see :mod:`pro_core.rewards.functions`; ``pattern`` is a rule's.
        center, scale: the member's output (after ``direction``) is (output - center) / scale; fitted on the reference
            set where an objective has several members.
    """

    name: str
    source: str = ""
    revision: str | None = None
    input_format: str = "pair"
    logit: int = 0
    direction: int = 1
    max_length: int = 512
    outputs: int | None = None
    function: str | None = None
    pattern: str = ""
    center: float = 0.0
    scale: float = 1.0

    def __post_init__(self):
        try:
            if not (math.isfinite(self.center) and 0 < self.scale < math.inf):
                raise ValueError(
                    f"got the center {self.center} and the scale {self.scale}, expected a number and one above 0"
                )
            if self.direction not in (1, -1):
                raise ValueError(f"got the direction {self.direction}, expected 1 or -1")
            if bool(self.source) == bool(self.function):
                raise ValueError(
                    f"got the source {self.source!r} and the function {self.function!r}, expected one of them"
                )
            if self.function:
                check_function(self.function, self.pattern)
            check_format(self.input_format)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None


def read_specs(file: Path) -> dict[str, Any]:
    """``{"models": [...]}`` of a YAML file.

    Raises:
        StorageError: no such file, not YAML, or of another form.
    """
    if not file.is_file():
        raise StorageError(f"{file}: no such file")
    try:
        config = yaml.safe_load(file.read_bytes())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise StorageError(f"{file}: not YAML ({error})") from None
    if not isinstance(config, dict) or set(config) != {"models"}:
        actual = sorted(config) if isinstance(config, dict) else type(config).__name__
        raise StorageError(
            f"{file}: got {actual}, expected one key, 'models', with a list of specs"
        )
    models = config["models"]
    if not isinstance(models, list) or not all(isinstance(spec, dict) for spec in models):
        raise StorageError(f"{file}: got models {models!r}, expected a list of specs")
    try:  # members are put in one unit when statistics are fitted, and a YAML file holds none
        check_objective_names(spec.get("name", "") for spec in models)
    except ValueError as error:
        raise StorageError(f"{file}: {error}") from None
    return config


def members_of(specs: Sequence[RewardModelSpec]) -> dict[str, list[int]]:
    """Objective -> the numbers of its members' specs, in order of first mention. Raises ValueError for bad names."""
    members: dict[str, list[int]] = {}
    for i, spec in enumerate(specs):
        members.setdefault(spec.name, []).append(i)
    check_objective_names(members)
    return members


def panel_fingerprint(
    specs: Sequence[RewardModelSpec],
    folder: str | Path,
    models: Mapping[str, tuple[Any, Any]] = MappingProxyType({}),
) -> str:
    """A hash of everything that determines a panel's scores, wherever its files are: specs, models, scoring code.
    Nothing is loaded.

    Args:
        folder: the folder of the sources that are not paths of their own. models: source -> a loaded model, which
            counts by its parameters if it has no files.
    """
    sources = {spec.source: i for i, spec in enumerate(specs)}
    read = [_deciding(spec) | {"source": sources[spec.source]} for spec in specs]
    fingerprints = {
        s.source: fingerprint(s.source, s.revision, folder, models.get(s.source))
        for s in specs
        if s.source
    }
    return content_hash([SCORING_VERSION, read, list(fingerprints.values())])


def _deciding(spec: RewardModelSpec) -> dict[str, Any]:
    """What decides a spec's scores. What came later counts only where it is not the default, so that older panels keep
    their hash."""
    fields = asdict(spec) | {"revision": None, "scoring": scoring_version(spec.input_format)}
    for name, default in (("center", 0.0), ("scale", 1.0), ("scoring", SCORING_VERSION)):
        if fields[name] == default:
            del fields[name]
    return fields
