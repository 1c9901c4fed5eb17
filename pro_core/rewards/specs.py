"""The sources of each objective's reward, and what determines the scores of a panel of them."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from pro_core.data.objectives import check_objective_names
from pro_core.data.schema import clean_text
from pro_core.http.addresses import address_of
from pro_core.rewards.batching import SCORING_VERSION, scoring_version
from pro_core.rewards.formats import check_format
from pro_core.rewards.functions import check_function
from pro_core.system.fingerprints import fingerprint
from pro_core.system.storage import StorageError, content_hash

DIALECTS = ("vllm", "tei", "sglang", "openrlhf")
REWARD_TOKEN, JUDGE_TOKEN = "PRO_REWARD_TOKEN", "PRO_JUDGE_TOKEN"
_TOKEN = re.compile(r"PRO_([A-Z0-9]+_)*TOKEN")
MARKS = ("1", "2", "3", "4", "5")
LONGEST_SENTENCE, LONGEST_EXAMPLE, MOST_EXAMPLES = 1000, 4000, 8
"""Characters of a judge's sentence and of one example, and how many examples it has at most."""


@dataclass(frozen=True)
class RewardModelSpec:
    """A source of one objective's reward: a model's output, in this process or at an endpoint, a plain function of the
    response, or a sentence that a chat model judges by.

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
        endpoint: instead of a source, the address of the server that has the model (:mod:`pro_core.rewards.endpoint`);
            ``dialect`` is how it is asked, ``model`` its name there. K outputs of one hosted model are K specs.
        judge: a sentence that answers should satisfy, see :mod:`pro_core.rewards.judge`; ``source`` or ``endpoint``
            (with ``model``) names the chat model that judges. ``examples``: answers with the right verdict. ``marks``:
            it is asked for a mark from 1 to 5 in place of yes or no.
        token: the environment variable that holds the server's token; by default :data:`REWARD_TOKEN`, for a judge
            :data:`JUDGE_TOKEN`.
        concurrency, timeout: requests at once, and seconds of silence after which one has failed.
        identity: what the model at the endpoint was when the panel first asked it, see
            :mod:`pro_core.rewards.scorers`.
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
    endpoint: str = ""
    dialect: str = "vllm"
    model: str = ""
    judge: str = ""
    examples: Sequence[Mapping[str, str]] = ()
    marks: bool = False
    token: str = ""
    concurrency: int = 16
    timeout: float = 60.0
    identity: Mapping[str, Any] | None = None

    def __post_init__(self):
        # In YAML `verdict: yes` is true, and a mark is a number.
        words = {True: "yes", False: "no"}
        examples = [
            {k: words[v] if isinstance(v, bool) else str(v) for k, v in example.items()}
            if isinstance(example, Mapping)
            else example
            for example in self.examples
        ]
        object.__setattr__(self, "examples", tuple(examples))
        try:
            if not (math.isfinite(self.center) and 0 < self.scale < math.inf):
                raise ValueError(
                    f"got the center {self.center} and the scale {self.scale}, expected a number and one above 0"
                )
            if self.direction not in (1, -1):
                raise ValueError(f"got the direction {self.direction}, expected 1 or -1")
            given = [
                f"the {kind} {getattr(self, kind)!r}"
                for kind in ("source", "endpoint", "function")
                if getattr(self, kind)
            ]
            if len(given) != 1:
                kinds = " and ".join(given) or "neither a source nor an endpoint nor a function"
                raise ValueError(f"got {kinds}, expected one of them")
            if self.function:
                check_function(self.function, self.pattern)
            check_format(self.input_format)
            self._check_asked()
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None

    def _check_asked(self) -> None:
        """Raise a ValueError that says what is wrong with what is asked of an endpoint or a judge."""
        if self.endpoint:
            address_of(self.endpoint, "endpoint")
        if self.dialect not in DIALECTS:
            raise ValueError(f"got the dialect {self.dialect!r}, expected one of {DIALECTS}")
        if self.token and not _TOKEN.fullmatch(self.token):
            # A panel from elsewhere must not name any secret of this machine, such as HF_TOKEN.
            raise ValueError(
                f"got the token {self.token!r}, expected the name of an environment variable such as {REWARD_TOKEN}: "
                "PRO_..., ending in _TOKEN"
            )
        if self.concurrency < 1 or not 0 < self.timeout < math.inf:
            raise ValueError(
                f"got the concurrency {self.concurrency} and the timeout {self.timeout}, expected at least 1 and "
                "seconds above 0"
            )
        if self.function and self.judge:
            raise ValueError("got a function and a judge, expected one of them")
        if self.judge:
            check_sentence(self.judge, self.examples, self.marks)
        elif self.examples or self.marks:
            raise ValueError("got examples or marks, which only a judge reads")

    @property
    def asked(self) -> tuple[Any, ...] | None:
        """What tells the scorers of a panel apart, see :mod:`pro_core.rewards.scorers`; None for a function and for a
        reward model in this process. Specs of the same scorer share its requests."""
        if self.judge:
            examples = content_hash([dict(example) for example in self.examples])
            return (
                "judge",
                self.endpoint,
                self.source,
                self.model,
                self.judge,
                examples,
                self.marks,
            )
        if self.endpoint:
            return (
                *("endpoint", self.endpoint, self.dialect, self.model),
                *(self.input_format, self.max_length),
            )
        return None

    def token_value(self) -> str | None:
        """The server's token, from the environment; None without one."""
        return os.environ.get(self.token or (JUDGE_TOKEN if self.judge else REWARD_TOKEN))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields; those that only hosted models and judges have are left out where they are the default."""
        fields = asdict(self)
        return {k: v for k, v in fields.items() if k not in _OF_ASKED or v != _DEFAULTS[k]}


def check_sentence(judge: str, examples: Sequence[Mapping[str, str]], marks: bool) -> None:
    """Raise a ValueError that says what is wrong with an objective written as a sentence, if anything is."""
    if not judge.strip() or len(judge) > LONGEST_SENTENCE or clean_text(judge) != judge:
        raise ValueError(
            f"got a sentence of {len(judge):,} characters, expected a plain one of 1 to {LONGEST_SENTENCE:,}"
        )
    verdicts = MARKS if marks else ("yes", "no")
    for example in examples:
        known = isinstance(example, Mapping) and set(example) in ({"answer", "verdict"}, _WHOLE)
        if not known or example["verdict"] not in verdicts:
            raise ValueError(
                f"got the example {example!r}, expected `answer`, `verdict` (one of {', '.join(verdicts)}) and perhaps "
                "`prompt`"
            )
        if sum(len(text) for text in example.values()) > LONGEST_EXAMPLE:
            raise ValueError(f"got an example longer than {LONGEST_EXAMPLE:,} characters")
    if len(examples) > MOST_EXAMPLES:
        raise ValueError(f"got {len(examples)} examples, expected at most {MOST_EXAMPLES}")


_WHOLE = {"prompt", "answer", "verdict"}
_OF_ASKED = (
    *("endpoint", "dialect", "model", "judge", "examples", "marks"),
    *("token", "concurrency", "timeout", "identity"),
)
_DEFAULTS = {f.name: f.default for f in fields(RewardModelSpec)} | {"examples": ()}


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
    fields = spec.to_dict() | {"revision": None, "scoring": scoring_version(spec.input_format)}
    for name in ("token", "concurrency", "timeout"):  # how a server is reached, not what it says
        fields.pop(name, None)
    for name, default in (("center", 0.0), ("scale", 1.0), ("scoring", SCORING_VERSION)):
        if fields[name] == default:
            del fields[name]
    return fields
