"""How far to trust a judge: its agreement with people on pairs that they labelled, beside longer-wins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pro_core.data.schema import DataError, PreferencePair, render_messages
from pro_core.data.sources import default_data_dir
from pro_core.evaluation.judged.preferences import preferences
from pro_core.evaluation.judged.rates import Floats, mean_rate, paired_lead
from pro_core.evaluation.judged.run import JudgedRun
from pro_core.evaluation.judged.templates import PREFERENCE
from pro_core.evaluation.results import Row
from pro_core.metrics import correct
from pro_core.rewards.baselines import longer_wins
from pro_core.rewards.panel import RewardPanel

LONGER_WINS = "longer wins"


def trust_rows(run: JudgedRun) -> list[Row]:
    """A row of the judge, one of longer-wins, and one of a reward panel where the recipe names one.

    ``agreement`` is the share of pairs whose chosen answer is preferred, a tie counting half.
    ``agreement_chosen_shorter`` is that of the pairs where people chose the shorter answer: a judge that only counts
    characters has 0 there. ``beats_longer_wins`` is 1 where the paired lead's interval lies above 0; otherwise the
    judge is none, and says nothing about models.

    Raises:
        DataError: no pairs of the split.
    """
    recipe = run.recipe
    data_dir = recipe.data_dir or default_data_dir()
    pairs = [p for source in recipe.pairs for p in source.load(data_dir) if p.split == run.split]
    pairs = pairs[: recipe.count]
    if not pairs:
        raise DataError(f"pairs: got none of the {run.split} split")
    template = run.template(PREFERENCE)
    # The rejected answer stands as the first text, so that 1 means that the judge agrees.
    prompts = [render_messages(p.prompt) for p in pairs]
    triples = [(x, p.rejected, p.chosen) for x, p in zip(prompts, pairs, strict=True)]
    judged = preferences(run.verdicts, template, triples, recipe.both_orders)
    verdicts = judged.second_P
    agreed = np.where(np.isfinite(verdicts), correct(verdicts - 0.5), np.nan)
    gaps = longer_wins(pairs)
    by_length = correct(gaps)
    rates = {"agreement": mean_rate(agreed, prompts=prompts), **judged.measures()}
    for name, where in (("shorter", gaps < 0), ("longer", gaps > 0)):
        if np.isfinite(agreed[where]).any():
            of_these = [prompt for prompt, chosen in zip(prompts, where, strict=True) if chosen]
            rates[f"agreement_chosen_{name}"] = mean_rate(agreed[where], prompts=of_these)
    over = paired_lead(agreed, by_length, prompts=prompts)
    counts = {
        "unjudged": int(np.isnan(agreed).sum()),
        "beats_longer_wins": float(over.interval[0] > 0),
    }
    n, said = len(pairs), {"read_as": judged.read_as}
    leads = {LONGER_WINS: {"agreement": over}}
    rows = [run.row(run.judge.name, rates, counts, said, leads, n)]
    rows.append(run.row(LONGER_WINS, {"agreement": mean_rate(by_length, prompts=prompts)}, n=n))
    rows[-1]["kind"] = "baseline"
    if recipe.panel is not None:
        right = _panel_agrees(recipe.panel, pairs)
        leads = {run.judge.name: {"agreement": paired_lead(right, agreed, prompts=prompts)}}
        rate = mean_rate(right, prompts=prompts)
        rows.append(run.row(recipe.panel, {"agreement": rate}, leads=leads, n=n))
    return rows


def _panel_agrees(folder: str, pairs: Sequence[PreferencePair]) -> Floats:
    """Whether a panel prefers the chosen answer, (P,): by the pair's objective, or by the mean of z without it."""
    panel = RewardPanel.from_pretrained(folder)
    prompts = [p.prompt for p in pairs]
    z_chosen = panel.standardized(prompts, [p.chosen for p in pairs])
    z_rejected = panel.standardized(prompts, [p.rejected for p in pairs])
    names = list(panel.objective_names)
    gaps = np.asarray(z_chosen - z_rejected, dtype=np.float64)
    margins = [
        gap[names.index(p.objective)] if p.objective in names else gap.mean()
        for p, gap in zip(pairs, gaps, strict=True)
    ]
    return correct(margins)
