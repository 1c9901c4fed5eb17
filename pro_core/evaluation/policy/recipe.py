"""The recipes of the evaluation kit for policies: under a grid of weights, or under MOSLIM's levels."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pro_core.data.entries import PairSource
from pro_core.generation.mixing import STRONGEST, Method, Mixing
from pro_core.policies.stages import KEPT
from pro_core.runs.recipes import ConfigError, Recipe
from pro_core.system.extras import needs
from pro_core.system.settings import Count, Names, Seeds, Settings, TopP

with needs("train"):
    from pydantic import Field, PrivateAttr, field_validator, model_validator

Text = Annotated[str, Field(min_length=1)]


class PolicyEntry(Settings):
    """One policy. A checkpoint of this project says what it reads; a stock model reads the prompt alone."""

    name: Text
    """its name in the results"""
    model: str = ""
    """a folder or hub id, {seed} stands for the seed; with an endpoint, the model's name on that server"""
    endpoint: str | None = None
    """the base URL of a server (its token: PRO_ENDPOINT_TOKEN)"""
    policy: str = ""
    """the folder of the checkpoint that an endpoint serves, which says what it reads; without it: a stock model"""
    candidates: Count = 1
    """answers written per prompt; of several, the panel's weighted sum takes the best"""
    block: Count | None = None
    """the best of the candidates goes on every so many tokens; null: the best whole answer is taken"""
    decoding: Method | None = None
    """how weights mix a policy of one LoRA per objective: soup (its parameters) or mod (its logits); null for soup"""
    strength: Annotated[float, Field(ge=0, le=STRONGEST)] | None = None
    """of that mixing; null for 1"""
    steps: list[Count] = []
    """the training steps whose policies are graded, one curve in a figure: `model`/steps/N, where `keep_every` put
    them; the last one is `model` itself"""
    _setting: dict[str, Any] | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _somewhere(self) -> Self:
        if not self.model and not self.endpoint:
            raise ConfigError(
                f"got neither for {self.name!r}, expected a model or an endpoint", ["model"]
            )
        if self.steps and self.endpoint:
            raise ConfigError(
                f"got steps of {self.name!r}, which an endpoint serves; expected them only of a folder",
                ["steps"],
            )
        if self.block and self.candidates < 2:
            raise ConfigError(
                f"got blocks of {self.name!r} and {self.candidates} candidate, expected at least 2 to choose from",
                ["candidates"],
            )
        if self.mixing and self.endpoint:
            raise ConfigError(
                f"got an endpoint for {self.name!r}, expected a model: a server does not mix as it writes",
                ["endpoint"],
            )
        return self

    @property
    def mixing(self) -> Mixing | None:
        """How the policy is mixed; None where the recipe does not say."""
        if self.decoding is None and self.strength is None:
            return None
        return Mixing(self.decoding or "soup", 1.0 if self.strength is None else self.strength)

    def at_each_step(self) -> list[PolicyEntry]:
        """The policies of ``steps``, in order; this entry alone where there are none."""
        entries = []
        for step in sorted(set(self.steps)):
            last = step == max(self.steps)
            one = self.model_copy(
                update={
                    "name": self.name if last else f"{self.name}, step {step}",
                    "model": self.model if last else f"{self.model}/{KEPT}/{step}",
                    "steps": [],
                }
            )
            one._setting = {"curve": self.name, "step": step}
            entries.append(one)
        return entries or [self]

    @property
    def setting(self) -> dict[str, Any] | None:
        """``{"curve": name, "step": N}`` for a policy of ``steps``, else None."""
        return self._setting


class EvaluationRecipe(Recipe):
    """The settings that both kinds of evaluation share."""

    experiment: Text
    """its name in the results"""
    objectives: Names | None = None
    """some of the panel's or classifier's, in the order of the policies; null for all"""
    output: Text
    """the folder of responses and scores, from which a killed run resumes"""
    policies: Annotated[list[PolicyEntry], Field(min_length=1)]
    """one whose folder has {seed} in its name is left out, with a message, while that folder is missing"""
    base: Text
    """the policy that fixes the units"""
    compare_with: Names | None = None
    """policies that the others are compared with; null for the base"""
    judge: str | None = "outputs/judge/panel"
    """the overall judge; where it is missing or null, its measures are left out, and the tables say so"""
    heldout_panel: str | None = "outputs/heldout_panel/panel"
    """the held-out panel, likewise"""
    prompts: Count = 100
    longest_prompt: Count | None = None
    """in characters; longer prompts are left out, which saves a CPU most of its work"""
    data: Annotated[list[PairSource], Field(min_length=1)] = [PairSource(path="hh_pairs.jsonl.gz")]
    """sources of the prompts: those of their held-out pairs"""
    data_dir: str | None = None
    """default: PRO_DATA_DIR"""
    seeds: Seeds = [0, 1, 2]
    batch_size: Count = 16
    """answers written at once; another size draws other answers"""
    max_new_tokens: Count = 128
    temperature: Annotated[float, Field(ge=0)] = 0.7
    top_p: TopP = 0.9

    @field_validator("policies")
    @classmethod
    def _each_step(cls, policies: list[PolicyEntry]) -> list[PolicyEntry]:
        return [one for entry in policies for one in entry.at_each_step()]

    @model_validator(mode="after")
    def _policies(self) -> Self:
        names = [entry.name for entry in self.policies]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(
                f"got two policies called {twice[0]!r}, expected different names", ["policies"]
            )
        for setting, named in (("base", [self.base]), ("compare_with", self.compared)):
            if unknown := [name for name in named if name not in names]:
                raise ConfigError(
                    f"got the policy {unknown[0]!r}, expected one of {names}", [setting]
                )
        return self

    @property
    def compared(self) -> list[str]:
        """The policies that the others are compared with."""
        return self.compare_with or [self.base]

    @property
    def names(self) -> list[str]:
        """All policies, the base first."""
        return [self.base, *(e.name for e in self.policies if e.name != self.base)]

    def entry(self, name: str) -> PolicyEntry:
        """The policy of that name."""
        return next(entry for entry in self.policies if entry.name == name)


class PolicyEvaluation(EvaluationRecipe):
    """Policies under a grid of weights: `train/evaluate.py policies`."""

    panel: Text
    """the weights are applied to its standardized scores"""
    adapter: str | None = None
    """its weights for each prompt are one more request, besides the grid"""
    weights: Count = 5
    """weightings in the grid"""
    reference_candidates: Count = 4
    """answers of the base policy per prompt, for its statistics and the reference front"""
    perplexity: str | Literal[False] | None = None
    """a causal model; null for the base policy's, false for none"""
    kl: bool = False
    """measure each policy's log-ratio to the perplexity model on its own responses, which are read once more"""

    @model_validator(mode="after")
    def _language_model(self) -> Self:
        if self.perplexity is None and self.entry(self.base).endpoint:
            raise ConfigError(
                "got an endpoint as base, which gives no perplexity: name a local model, or set `perplexity: false`",
                ["perplexity"],
            )
        return self


class LevelEvaluation(EvaluationRecipe):
    """MOSLIM's policies under levels: `train/evaluate.py levels`."""

    classifier: Text
    """the one that taught the policies; it defines the levels, and says which one a response has"""

    @model_validator(mode="after")
    def _one_answer(self) -> Self:
        for entry in self.policies:
            if entry.candidates != 1:
                raise ConfigError(
                    f"got {entry.candidates} candidates of {entry.name!r}, expected one answer to each request",
                    ["policies"],
                )
        return self
