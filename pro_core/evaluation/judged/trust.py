"""How far to trust a judge: its agreement with people on pairs that they labelled, beside longer-wins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pro_core.data.schema import DataError, PreferencePair, render_messages
from pro_core.data.sources import default_data_dir
from pro_core.evaluation.judged.preferences import preferences
from pro_core.evaluation.judged.rates import Floats, mean_rate, paired_lead
from pro_core.evaluation.judged.recipe import JudgedRecipe
from pro_core.evaluation.judged.run import JudgedRun
from pro_core.evaluation.judged.templates import PREFERENCE
from pro_core.evaluation.policy.scoring import LevelScores, PanelScores, Taught
from pro_core.evaluation.results import Row
from pro_core.metrics import correct
from pro_core.rewards.baselines import longer_wins
from pro_core.rewards.classifier import RewardClassifier
from pro_core.rewards.panel import RewardPanel

LONGER_WINS = "longer wins"


def trust_rows(run: JudgedRun) -> list[Row]:
    """A row of the judge, one of longer-wins, and one of the panel and of the classifier where the recipe names them.

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
    if not np.isfinite(agreed).any():
        raise DataError(f"{run.judge.name}: no pair has a verdict in each order that was asked")
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
    for name, scores in _scorers(recipe):
        right = _agrees(scores, pairs)
        leads = {run.judge.name: {"agreement": paired_lead(right, agreed, prompts=prompts)}}
        rate = mean_rate(right, prompts=prompts)
        rows.append(run.row(name, {"agreement": rate}, leads=leads, n=n))
    return rows


def _scorers(recipe: JudgedRecipe) -> Iterator[tuple[str, Taught]]:
    """What the recipe grades beside the judge, by name."""
    if recipe.panel is not None:
        panel = RewardPanel.from_pretrained(recipe.panel)
        yield "panel", PanelScores(recipe.panel, panel, None)
    if recipe.classifier is not None:
        classifier = RewardClassifier.from_pretrained(recipe.classifier)
        yield "classifier", LevelScores(recipe.classifier, classifier, None)


def _agrees(scores: Taught, pairs: Sequence[PreferencePair]) -> Floats:
    """Whether the chosen answer scores higher, (P,): by the pair's objective, or by the mean of all without it."""
    prompts, names = [p.prompt for p in pairs], list(scores.objective_names)

    def shown(texts: list[str]) -> Floats:
        return scores.shown(scores.scorer.score(prompts, texts), texts).astype(np.float64)

    gaps = shown([p.chosen for p in pairs]) - shown([p.rejected for p in pairs])
    margins = [
        gap[names.index(p.objective)] if p.objective in names else gap.mean()
        for p, gap in zip(pairs, gaps, strict=True)
    ]
    return correct(margins)
