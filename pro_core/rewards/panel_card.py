"""How far to trust a reward panel, and its model card: what it was trained on, what was measured on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pro_core.data.card_parts import card_head, entry_line, named_base, one_line, write_card
from pro_core.data.training_pairs import TrainingPairs
from pro_core.http.addresses import address_of
from pro_core.metrics import accuracy_with_interval
from pro_core.rewards.length import EQUAL_LENGTH, length_report, share_cut
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.recipes import PanelRecipe
from pro_core.rewards.scores import graded_rows, own_margin
from pro_core.rewards.specs import RewardModelSpec
from pro_core.system.storage import library_versions

LENGTH_MATTERS = 0.3
"""From this correlation of its margins with length on, a score's dependence on length is named as a limit."""


def grade(
    scores: pd.DataFrame, objective_names: Sequence[str], split: str
) -> dict[str, dict[str, Any]]:
    """Pairwise accuracy of each objective on its own pairs of :func:`graded_rows`, and its dependence on length.

    Objectives without such pairs are left out.
    """
    report = {}
    graded = graded_rows(scores, split)
    for name in objective_names:
        rows = graded[graded.objective == name]
        if len(rows):
            sources = sorted(rows.source.unique())
            margins, texts = own_margin(rows, objective_names), list(rows.text)
            measured = accuracy_with_interval(margins, texts)
            measured |= length_report(margins, rows.length_chosen, rows.length_rejected, texts)
            named = f"{split} pairs of {', '.join(sources)}"
            report[name] = measured | {"test": named, "sources": sources}
    return report


def write_panel_card(
    folder: Path,
    panel: RewardPanel,
    recipe: PanelRecipe,
    data: TrainingPairs,
    scores: pd.DataFrame,
) -> None:
    """``README.md`` in the panel's folder: what it is, what it was trained on, how well it does.

    Args:
        scores: the panel's table, on which ``panel.accuracy`` was measured.
    """
    stats, trained = panel.require_stats(), Counter(p.objective for p in data.training)
    split = recipe.grade_on
    rows = [
        _measured_row(name, trained[name], panel.accuracy.get(name), scores, split)
        for name in panel.objective_names
    ]
    title = f"Reward panel: {', '.join(panel.objective_names)}"
    lines = [
        *card_head(title, recipe.licence, recipe.model, "reward-model"),
        f"Bradley-Terry reward models on {named_base(recipe.model)}, {_shape(recipe)}, trained by "
        f"`train/reward_models.py` (method `{recipe.method}`, {recipe.max_length} tokens, seed {recipe.seed}"
        + (f", label smoothing {recipe.label_smoothing:g}" if recipe.label_smoothing else "")
        + "). Higher is better for every objective."
        + _members(recipe),
        "",
        "| objective | training pairs | accuracy on pairs | 95% interval | pairs | prompts | measured on | "
        "correlation with length | accuracy at equal length |",
        "|" + "---|" * 9,
        *rows,
        "",
        "Length is in characters. Correlation with length: Spearman's, over pairs, of the score's margin with the "
        f"difference in length. About equal length: the shorter lacks at most {EQUAL_LENGTH:.0%} of the longer. "
        + (
            "Standardized scores are without their length component."
            if stats.length_slope is not None
            else "Standardized scores keep what they owe to length."
        ),
        "",
        "## Data",
        "",
        "Trained on (none of the text is in here):",
        "",
        *[entry_line(entry) for entry in data.entries],
        *[f"- {one_line(note, 500)}" for note in data.notes],
        "",
        "## Limits",
        "",
        *[f"- {limit}" for limit in _panel_limits(panel, data)],
        "- A score is a guess about which answer would have been preferred, by those whose preferences are above, and "
        "not a fact about the text. Compare scores within one prompt.",
        "",
        f"Statistics: {stats.reference}. Versions: {library_versions()}",
    ]
    write_card(folder, lines)


def write_scored_card(folder: Path, panel: RewardPanel) -> None:
    """``README.md`` in the folder of a panel that was calibrated, not trained: what gives each objective's score, and
    how far people agree with it."""
    names = ", ".join(panel.objective_names)
    lines = [
        *card_head(f"Reward panel: {names}", None, "", "reward-model"),
        "A panel of models, judges and functions from elsewhere, calibrated by `train/score_rewards.py`. Higher is "
        "better for every objective.",
        "",
        "| objective | scored by | accuracy on pairs | 95% interval | pairs | measured on |",
        "|" + "---|" * 6,
    ]
    for name in panel.objective_names:
        by = "; ".join(_scored_by(spec) for spec in panel.specs if spec.name == name)
        measured = panel.accuracy.get(name)
        cells = ["not measured", "", "", "no pairs"]
        if measured:
            low, high = measured["ci95"]
            cells = [f"{measured['accuracy']:.3f}", f"{low:.3f} to {high:.3f}", str(measured["n"])]
            cells.append(one_line(measured["test"]))
        lines.append(f"| {name} | {by} | {' | '.join(cells)} |")
    unmeasured = [name for name in panel.objective_names if name not in panel.accuracy]
    lines += ["", "## Limits", ""]
    if unmeasured:
        lines.append(f"- {', '.join(unmeasured)}: nothing says how far to trust these scores.")
    if any(spec.endpoint for spec in panel.specs):
        lines.append(
            "- Texts are sent to the endpoints above. The panel refuses a model there that scores known texts "
            "otherwise than it did."
        )
    lines += [
        "- A score is a guess about which answer would be preferred, and not a fact about the text. Compare scores "
        "within one prompt.",
        "",
        f"Statistics: {panel.require_stats().reference}. Versions: {library_versions()}",
    ]
    write_card(folder, lines)


def _scored_by(spec: RewardModelSpec) -> str:
    sign = ", lower is better" if spec.direction < 0 else ""
    if spec.function:
        return f"the function `{spec.function}`{sign}"
    served = (spec.identity or {}).get("served") or spec.model or Path(spec.source).name
    where = f" at {address_of(spec.endpoint).host}" if spec.endpoint else ""
    model = f"`{one_line(str(served))}`{where}"
    if spec.judge:
        return f'"{one_line(spec.judge, 1000)}", judged by {model}{sign}'
    return f"{model}, output {spec.logit}{sign}"


def _shape(recipe: PanelRecipe) -> str:
    heads = "a head" if recipe.members == 1 else f"{recipe.members} heads"
    if recipe.shared_trunk:
        return f"one trunk with {heads} for each objective"
    return "one for each objective" + (f", with {heads} each" if recipe.members > 1 else "")


def _members(recipe: PanelRecipe) -> str:
    """A sentence about objectives of several members; empty where they have one."""
    kinds = []
    if recipe.members > 1:
        kinds.append("heads that are each fitted to their own bootstrap of the prompts")
    if recipe.ngrams:
        kinds.append("a linear model on character n-grams of the answer")
    if not kinds:
        return ""
    beside = "" if recipe.members > 1 else "the head and "
    return f" A score is the mean of its standardized members: {beside}{' and '.join(kinds)}."


def _measured_row(
    name: str, trained: int, measured: dict[str, Any] | None, scores: pd.DataFrame, split: str
) -> str:
    if measured is None:
        rows = scores[(scores.objective == name) & (scores.split == split) & (scores.fold < 0)]
        why = f"no {split} pairs"
        if len(rows):
            reasons = Counter(rows.ungraded.where(rows.ungraded != "", "made-up prompts"))
            why += f" to grade, of {len(rows)}: " + ", ".join(
                f"{r} ({n})" for r, n in reasons.items()
            )
        return f"| {name} | {trained:,} | not measured | | | | {why} | | |"
    correlation, equal = measured["length_correlation"], measured["equal_length"]
    low, high = measured["ci95"]
    cells = [
        name,
        f"{trained:,}",
        f"{measured['accuracy']:.3f}",
        f"{low:.3f} to {high:.3f}",
        f"{measured['n']}",
        f"{measured['prompts']}",
        one_line(measured["test"]),
        "not measured" if correlation is None else f"{correlation:+.2f}",
        f"{equal['accuracy']:.3f} ({equal['n']} pairs)" if equal else "no such pairs",
    ]
    return f"| {' | '.join(cells)} |"


def _panel_limits(panel: RewardPanel, data: TrainingPairs) -> list[str]:
    """Sentences about what falls short or was not measured."""
    limits = []
    for name in panel.objective_names:
        measured = panel.accuracy.get(name)
        if measured is None:
            limits.append(f"{name}: not measured, so nothing says how far to trust it.")
            continue
        low, high = measured["ci95"]
        if high < 0.5:
            limits.append(f"{name}: prefers what was rejected, more often than not.")
        elif low <= 0.5:
            limits.append(f"{name}: cannot be told from a coin, its interval holds 0.5.")
        length = measured["length_correlation"] or 0.0
        if abs(length) >= LENGTH_MATTERS:
            kind = "Longer" if length > 0 else "Shorter"
            limits.append(f"{name}: {kind.lower()} answers score higher ({length:+.2f}).")
    constant = panel.require_stats().constant
    if constant:
        limits.append(f"The same score for every text of the reference set: {', '.join(constant)}.")
    cut = share_cut(panel, data.training)
    if cut:
        limits.append(
            f"Of the training texts {cut:.1%} were longer than the panel reads, and were cut."
        )
    constructed = sum(entry.constructed for entry in data.entries)
    if constructed:
        limits.append(
            f"The prompts of {constructed:,} training pairs are made up; such pairs count in no accuracy."
        )
    return limits
