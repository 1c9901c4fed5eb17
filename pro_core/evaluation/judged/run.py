"""One judged benchmark: answers from files or policies, verdicts of a judge, result rows.

`python train/evaluate.py judged recipes/judged.yaml` leads here. Answers come from the response store of the policies'
evaluation (:mod:`pro_core.evaluation.policy.responses`), verdicts from :mod:`pro_core.judges.verdicts`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pro_core.data.schema import DataError
from pro_core.evaluation.judged.answers import Answers, written_answers
from pro_core.evaluation.judged.prompts import BenchPrompt, load_answers, load_prompts
from pro_core.evaluation.judged.rates import Rate
from pro_core.evaluation.judged.recipe import Benchmark, JudgedRecipe, JudgeEntry
from pro_core.evaluation.results import Row, lead, result_row
from pro_core.http.failures import Failure
from pro_core.judges.judge import EndpointJudge, Judge, LocalJudge
from pro_core.judges.templates import Template, read_template
from pro_core.judges.verdicts import Verdicts
from pro_core.runs.recipes import ConfigError

TURNS: dict[Benchmark, int] = {"mt_bench": 2}
"""How many of a prompt's turns are answered; one in the others."""


def load_judge(entry: JudgeEntry) -> Judge:
    """The judge of a recipe.

    Raises:
        ConfigError: an invalid address, or no server that says which model it has.
    """
    try:
        if entry.endpoint is None:
            return LocalJudge(entry.model)
        token = os.environ.get("PRO_JUDGE_TOKEN")
        return EndpointJudge(entry.endpoint, entry.model, token, float(entry.timeout))
    except (ValueError, Failure) as error:
        raise ConfigError(f"judge: {error}", ["judge"]) from None


class JudgedRun:
    """A recipe with its judge, its prompts and the models' answers.

    Attributes:
        answers: model -> its answer to each prompt, one text per turn; None where writing failed.
        template_names: of the templates that were asked so far.

    Raises:
        ConfigError, DataError: something that the recipe names cannot be used.
    """

    def __init__(self, recipe: JudgedRecipe, split: str):
        self.recipe, self.split, self.output = recipe, split, Path(recipe.output)
        self.started = time.monotonic()
        self.judge = load_judge(recipe.judge)
        local = recipe.judge.endpoint is None
        self.verdicts = Verdicts(
            self.judge,
            self.output / "verdicts",
            1 if local else recipe.concurrency,
            recipe.budget,
        )
        self.template_names: list[str] = []
        self.prompts: list[BenchPrompt] = []
        self.answers: dict[str, Answers] = {}
        if recipe.prompts is not None:
            self._load(recipe.prompts)

    def _load(self, prompts: str) -> None:
        recipe, turns = self.recipe, TURNS.get(self.recipe.benchmark, 1)
        loaded = load_prompts(prompts)
        if recipe.category is not None:
            loaded = [p for p in loaded if p.category == recipe.category]
        self.prompts = loaded[: recipe.count]
        if len(self.prompts) < (recipe.count or 1):
            raise DataError(
                f"{prompts}: got {len(self.prompts)} prompts"
                + (f" of the category {recipe.category!r}" if recipe.category else "")
                + f", expected {recipe.count or 'at least one'}"
            )
        if any(len(p.turns) < turns for p in self.prompts):
            raise DataError(f"{prompts}: {recipe.benchmark} needs prompts of {turns} turns")
        writers = [entry for entry in recipe.models if not entry.answers]
        self.answers = written_answers(recipe, writers, self.prompts, turns) if writers else {}
        for entry in recipe.models:
            if entry.answers:
                self.answers[entry.name] = list(load_answers(entry.answers, self.prompts))

    @property
    def contestants(self) -> list[str]:
        """All models but the baseline, in the recipe's order."""
        return [entry.name for entry in self.recipe.models if entry.name != self.recipe.baseline]

    def template(self, ours: Template) -> Template:
        """The template of this name: a file that the recipe names, or ours.

        Raises:
            DataError: the file cannot be used.
        """
        file = self.recipe.judge.templates.get(ours.name)
        labels = self.recipe.judge.labels
        given = (labels[0], labels[1]) if labels and ours.labels else ours.labels
        template = read_template(file, ours.places, given) if file else ours
        if template.identity not in self.template_names:
            self.template_names.append(template.identity)
        return template

    def row(
        self,
        method: str,
        rates: Mapping[str, Rate],
        counts: Mapping[str, float] | None = None,
        setting: Mapping[str, str] | None = None,
        leads: Mapping[str, Mapping[str, Rate]] | None = None,
        n: int | None = None,
    ) -> Row:
        """A result row. Rates have their intervals; ``counts`` have none."""
        said = {
            "benchmark": self.recipe.benchmark,
            "judge": self.judge.name,
            "template": ", ".join(self.template_names),
        }
        if self.recipe.baseline:
            said["baseline"] = self.recipe.baseline
        row = result_row(
            self.recipe.experiment,
            method,
            self.recipe.seed,
            self.split,
            len(self.prompts) if n is None else n,
            {name: rate.value for name, rate in rates.items()} | dict(counts or {}),
            {name: rate.interval for name, rate in rates.items()},
            self.recipe.config,
            time.monotonic() - self.started,
            setting=said | dict(setting or {}),
            scored_by={"judge": self.judge.identity},
        )
        for other, gaps in (leads or {}).items():
            values = {name: rate.value for name, rate in gaps.items()}
            row["leads"][other] = lead(values, {name: r.interval for name, r in gaps.items()})
        return row

    def text(self, name: str, p: int, turn: int = 0) -> str | None:
        """A model's answer to one turn; None where writing failed."""
        answer = self.answers[name][p]
        return None if answer is None else answer[turn]


def text_counts(texts: Sequence[str | None]) -> dict[str, float]:
    """How many answers failed or are empty, and the mean length of the others in characters."""
    there = [text for text in texts if text is not None]
    lengths = [len(text) for text in there]
    return {
        "failed": len(texts) - len(there),
        "empty": sum(not text.strip() for text in there),
        "mean_length": sum(lengths) / max(len(lengths), 1),
    }
