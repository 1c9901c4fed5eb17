"""The model card of a preference adapter: what it was fitted on, and how it did on validation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from pro_core.adapter.recipe import AdapterRecipe
from pro_core.data.card_parts import card_head, licence_text, named_base, one_line, write_card
from pro_core.rewards.scores import graded_rows


def write_adapter_card(
    folder: Path,
    recipe: AdapterRecipe,
    target: str,
    names: Sequence[str],
    summary: pd.DataFrame,
    scores: pd.DataFrame,
) -> None:
    """``README.md`` beside the adapter: what it is, what it was fitted on, how it did on validation.

    Args:
        summary: the validation figures, one row per target and seed; without rows where nothing could be measured.
        scores: the table that it was fitted on (out of fold) and graded on.
    """
    train = scores[scores.fold >= 0]
    rows = summary[summary["target"] == target] if len(summary) else summary
    chosen = (
        f"chosen on validation among {summary['target'].nunique()}"
        if len(summary)
        else "the first of its recipe: without validation pairs none can be chosen"
    )
    figures = ", ".join(
        f"{m} {rows[m].mean():.3f}"
        for m in ("uniform", "best global", "mean", "adapter", "shuffled")
        if len(rows) and m in rows
    )
    measured = (
        f"Validation accuracy, averaged over objectives ({len(rows)} seeds): {figures}. It is too good for the chosen "
        "target: `python train/evaluate.py adapter` grades it on test pairs."
        if figures
        else "Nothing about its weights was measured."
    )
    title = f"Preference adapter: a prompt to weights over {', '.join(names)}"
    lines = [
        *card_head(title, recipe.licence, recipe.encoder, "preference-adapter"),
        f"Target `{target}`, {chosen}. Encoder {named_base(recipe.encoder)}, "
        f"{'trained' if recipe.train_encoder else 'frozen'}. Fitted by `train/adapter.py` on out-of-fold scores of "
        f"{len(train):,} pairs of {train.prompt.nunique():,} prompts.",
        "",
        measured,
        "",
        "## Data",
        "",
        "Fitted on (none of the text is in here):",
        "",
    ]
    for source, part in train.groupby("source"):
        counts = ", ".join(f"{name} {n:,}" for name, n in part.objective.value_counts().items())
        lines.append(
            f"- {one_line(str(source))}: {licence_text(set(part.licence))}; pairs: {counts}"
        )
    lines += ["", "## Limits", ""]
    lines += [f"- {limit}" for limit in _adapter_limits(names, rows, scores)]
    lines.append(
        "- It knows the kinds of prompts that it was fitted on. Soft weights can be talked down: give an "
        "objective that must count a floor."
    )
    write_card(folder, lines)


def _adapter_limits(
    names: Sequence[str], rows: pd.DataFrame, scores: pd.DataFrame
) -> Iterator[str]:
    train = scores[scores.fold >= 0]
    never = [name for name in names if not (train.objective == name).any()]
    if never:
        yield f"No training pair with a prompt was judged by {', '.join(never)}."
    if len(names) == 1:
        yield "One objective has nothing to be weighed against: its weight is always 1."
    if len(rows) and rows["adapter"].mean() <= rows["uniform"].mean():
        yield "On validation it is no better than uniform weights."
    graded = graded_rows(scores, "validation")
    unmeasured = [name for name in names if not (graded.objective == name).any()]
    if len(rows) and unmeasured:
        yield f"No part in the validation accuracy, for want of pairs: {', '.join(unmeasured)}."
    held_out = scores[(scores.fold < 0) & (scores.split == "validation")]
    for reason, n in held_out[held_out.ungraded != ""].ungraded.value_counts().items():
        yield f"{n:,} of {len(held_out):,} validation pairs are not graded: {reason}."
    constructed = int(train.constructed.sum())
    if constructed:
        yield f"The prompts of {constructed:,} pairs are made up; such pairs count in no accuracy."
