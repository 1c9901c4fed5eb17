"""Rows of the benchmarks that compare each model with a baseline: AlpacaEval 2 and Arena-Hard."""

from __future__ import annotations

from typing import Any

import numpy as np

from pro_core.data.schema import DataError
from pro_core.evaluation.judged.alpaca import (
    OUTPUTS,
    length_controlled_win_rate,
    win_rate,
    write_list,
)
from pro_core.evaluation.judged.alpaca_prompts import PROMPTS, positions
from pro_core.evaluation.judged.arena import arena_win_rates, parse_verdict, style_of
from pro_core.evaluation.judged.preferences import preferences
from pro_core.evaluation.judged.prompts import hub_file
from pro_core.evaluation.judged.rates import Floats, Rate, paired_lead
from pro_core.evaluation.judged.run import JudgedRun, text_counts
from pro_core.evaluation.judged.templates import PREFERENCE, VERDICT
from pro_core.evaluation.results import Row
from pro_core.judges.judge import Question
from pro_core.runs.recipes import folder_name
from pro_core.system.storage import write_jsonl


def alpaca_rows(run: JudgedRun) -> list[Row]:
    """One row per model; its annotations go to ``annotations/<model>.json`` in the official form.

    Raises:
        DataError: the recipe names the official difficulties, but the prompts are others.
    """
    recipe, base = run.recipe, str(run.recipe.baseline)
    table = None if recipe.difficulty is None else str(hub_file(recipe.difficulty))
    standard = sum(place is not None for place in positions([p.turns[0] for p in run.prompts]))
    if table and standard < len(run.prompts):
        raise DataError(
            f"difficulty: got {len(run.prompts)} prompts, {standard} of them of AlpacaEval's {PROMPTS}: leave the "
            "difficulty out for prompts of your own"
        )
    template = run.template(PREFERENCE)
    rows, won = [], {}
    for name in run.contestants:
        texts = [(run.text(base, p), run.text(name, p)) for p in range(len(run.prompts))]
        there = [p for p, (a, b) in enumerate(texts) if a is not None and b is not None]
        pairs = [(run.prompts[p].turns[0], str(texts[p][0]), str(texts[p][1])) for p in there]
        judged = preferences(run.verdicts, template, pairs, recipe.both_orders)
        annotations: list[dict[str, Any]] = [
            {
                "instruction": prompt,
                OUTPUTS[0]: first,
                "generator_1": base,
                OUTPUTS[1]: second,
                "generator_2": name,
                "annotator": run.judge.name,
                "preference": float(value) + 1 if np.isfinite(value) else None,
            }
            for (prompt, first, second), value in zip(pairs, judged.second_P, strict=True)
        ]
        write_list(run.output / "annotations" / f"{folder_name(name)}.json", annotations)
        rates = {
            "win_rate": win_rate(annotations),
            "length_controlled_win_rate": length_controlled_win_rate(annotations, table, table),
            **judged.measures(),
        }
        won[name] = np.full(len(run.prompts), np.nan)
        won[name][there] = judged.second_P
        counts = text_counts([text for _, text in texts])
        counts["unjudged"] = len(run.prompts) - rates["win_rate"].n
        setting = {"read_as": judged.read_as, "difficulty": "official" if table else "none"}
        rows.append(run.row(name, rates, counts, setting, _leads(name, won)))
    return rows


def _leads(name: str, won: dict[str, Floats]) -> dict[str, dict[str, Rate]]:
    """The model minus each earlier one, paired over prompts."""
    return {
        other: {"win_rate": paired_lead(won[name], values)}
        for other, values in won.items()
        if other != name and np.isfinite(won[name] + values).any()
    }


def arena_rows(run: JudgedRun) -> list[Row]:
    """One row per model; its judgments go to ``judgments/<model>.jsonl`` in the official form."""
    base = str(run.recipe.baseline)
    template = run.template(VERDICT)
    judgments: list[dict[str, Any]] = []
    questions: list[Question] = []
    names = [base, *run.contestants]
    styles = {
        name: {
            prompt.uid: style_of(text)
            for p, prompt in enumerate(run.prompts)
            if (text := run.text(name, p)) is not None
        }
        for name in names
    }
    for name in run.contestants:
        for p, prompt in enumerate(run.prompts):
            first, second = run.text(base, p), run.text(name, p)
            if first is None or second is None:
                continue
            about = {"uid": prompt.uid, "category": prompt.category, "judge": run.judge.name}
            judgments.append(about | {"model": name, "baseline": base})
            for swapped, a, b in ((False, first, second), (True, second, first)):
                messages = template.messages(prompt=prompt.turns[0], first=a, second=b)
                longest = run.recipe.judge.max_tokens
                questions.append(Question(messages, template.identity, longest, swapped))
    replies = run.verdicts.ask(questions, "games")
    for i, judgment in enumerate(judgments):
        games = replies[2 * i : 2 * i + 2]
        judgment["games"] = [
            {"score": parse_verdict(r.text), "judgment": r.text} if r else None for r in games
        ]
    for name in run.contestants:
        own = [j for j in judgments if j["model"] == name]
        write_jsonl(run.output / "judgments" / f"{folder_name(name)}.jsonl", own)
    plain = arena_win_rates(judgments)
    controlled = arena_win_rates(judgments, styles)
    centred = arena_win_rates(judgments, styles, centred=True)
    rows = []
    for name in run.contestants:
        if name not in plain:
            raise DataError(f"{name}: the judge gave no verdict in one of the five forms")
        rates = {
            "win_rate": plain[name],
            "style_controlled_win_rate": controlled[name],
            "style_controlled_win_rate_centred": centred[name],
        }
        counts = text_counts([run.text(name, p) for p in range(len(run.prompts))])
        counts["unjudged"] = len(run.prompts) - plain[name].n
        rows.append(run.row(name, rates, counts))
    return rows
