"""The recipe of a judged benchmark: `train/evaluate.py judged RECIPE`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pro_core.data.entries import PairSource
from pro_core.evaluation.policy.recipe import PolicyEntry
from pro_core.runs.recipes import ConfigError, Recipe
from pro_core.system.extras import needs
from pro_core.system.settings import AtLeastZero, Count, Settings, TopP

with needs("train"):
    from pydantic import Field, model_validator

Text = Annotated[str, Field(min_length=1)]
Benchmark = Literal["alpaca_eval", "arena_hard", "mt_bench", "halueval", "trust"]
COMPARED = ("alpaca_eval", "arena_hard")
"""The benchmarks that compare each model with a baseline."""


class Contestant(Settings):
    """One model: a file with its answers, or what writes them."""

    name: Text
    """its name in the results"""
    answers: str | None = None
    """a file of answers, in the form of one of the official tools; here or owner/name:file of a hub data set"""
    model: str = ""
    """a folder or hub id; with an endpoint, the model's name on that server"""
    endpoint: str | None = None
    """the base URL of a server (its token: PRO_ENDPOINT_TOKEN)"""
    policy: str = ""
    """the folder of the checkpoint that an endpoint serves, which says what it reads; without it: a stock model"""
    candidates: Count = 1
    """answers written per prompt; of several, the panel's weighted sum takes the best"""
    weights: dict[str, Annotated[float, Field(ge=0)]] | None = None
    """{objective: weight} for a policy that reads weights and for the choice among candidates; null: equal weights"""
    adapter: str | None = None
    """the folder of an adapter, whose weights for each prompt stand in place of `weights`"""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.answers) == bool(self.model or self.endpoint):
            raise ConfigError(
                f"{self.name!r}: expected either a file of answers, or a model or endpoint that writes them",
                ["answers"],
            )
        if self.adapter and self.weights:
            raise ConfigError(
                f"{self.name!r}: expected weights or an adapter, not both", ["adapter"]
            )
        return self

    def entry(self) -> PolicyEntry:
        """As the evaluation of policies names it."""
        return PolicyEntry(
            name=self.name,
            model=self.model,
            endpoint=self.endpoint,
            policy=self.policy,
            candidates=self.candidates,
        )


class JudgeEntry(Settings):
    """The judge: a model behind an endpoint, or in this process."""

    model: str = ""
    """a folder or hub id; with an endpoint, the model's name on that server, or empty for the first that it lists"""
    endpoint: str | None = None
    """the base URL of a server (its token: PRO_JUDGE_TOKEN)"""
    templates: dict[str, Text] = {}
    """{template's name: file} in place of ours, such as {preference: alpaca_eval_clf.txt}"""
    labels: Annotated[list[Text], Field(min_length=2, max_length=2)] | None = None
    """the words for the first and second answer, where a template's file does not name them"""
    max_tokens: Count = 1024
    """the longest verdict of a judge that writes"""
    timeout: Count = 120
    """seconds of silence after which an answer has failed"""

    @model_validator(mode="after")
    def _somewhere(self) -> Self:
        if not self.model and not self.endpoint:
            raise ConfigError("got neither, expected a model or an endpoint", ["model"])
        return self


class JudgedRecipe(Recipe):
    """Models judged on one benchmark, or the judge itself on pairs that people labelled (`benchmark: trust`)."""

    experiment: Text
    """its name in the results"""
    benchmark: Benchmark
    judge: JudgeEntry
    output: Text
    """the folder of answers and verdicts, from which a killed run resumes"""
    prompts: str | None = None
    """a file of prompts in the benchmark's own form; here or owner/name:file of a hub data set"""
    count: Count | None = None
    """only the first so many prompts; null for all"""
    category: str | None = None
    """only prompts of this category; Arena-Hard 2.0 has a baseline for each"""
    models: list[Contestant] = []
    baseline: str | None = None
    """the model that the others are compared with, one of `models` (alpaca_eval, arena_hard)"""
    both_orders: bool = True
    """alpaca_eval: ask in both orders and average; false: in one that a hash of the prompt decides, at half the cost"""
    difficulty: str | None = None
    """alpaca_eval with its own 805 prompts: the official table df_gamed.csv, for the length-controlled rate"""
    pairs: list[PairSource] = []
    """trust: pairs that people labelled; those of the split that is graded"""
    data_dir: str | None = None
    """of `pairs`; default: PRO_DATA_DIR"""
    panel: str | None = None
    """a reward panel: it chooses among candidates; under trust it is graded on the same pairs, beside the judge"""
    classifier: str | None = None
    """trust: MOSLIM's classifier, graded on the same pairs by the levels that it expects, as in MOSLIM's Figure 9"""
    concurrency: Count = 8
    """questions that an endpoint gets at once"""
    budget: AtLeastZero | None = None
    """tokens that one run may spend on the judge; 0: only verdicts that are there; null: no limit"""
    seed: int = 0
    batch_size: Count = 16
    """answers written at once; another size draws other answers"""
    max_new_tokens: Count = 1024
    temperature: Annotated[float, Field(ge=0)] = 0.7
    top_p: TopP = 0.95

    @model_validator(mode="after")
    def _whole(self) -> Self:
        names = [entry.name for entry in self.models]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(
                f"got two models called {twice[0]!r}, expected different names", ["models"]
            )
        if not self.panel and any(entry.candidates > 1 for entry in self.models):
            raise ConfigError("expected a panel, which chooses among candidates", ["panel"])
        if self.benchmark == "trust":
            if not self.pairs:
                raise ConfigError("expected pairs that people labelled", ["pairs"])
            return self
        for setting, given in (("prompts", self.prompts), ("models", self.models)):
            if not given:
                raise ConfigError(f"{self.benchmark} needs {setting}", [setting])
        if self.benchmark in COMPARED and (self.baseline not in names or len(names) < 2):
            raise ConfigError(
                f"got the baseline {self.baseline!r}, expected one of the models {names} and another to compare",
                ["baseline"],
            )
        return self
