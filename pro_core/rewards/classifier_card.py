"""The model card of a reward classifier: its levels, what it was trained on, what was measured on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pro_core.data.card_parts import (
    card_head,
    licence_text,
    name_of,
    named_base,
    one_line,
    write_card,
)
from pro_core.rewards.classifier import RewardClassifier
from pro_core.rewards.classifier_training import RatedResponses
from pro_core.rewards.levels import level_columns
from pro_core.rewards.recipes import ClassifierRecipe
from pro_core.system.storage import library_versions


def write_classifier_card(
    folder: Path,
    classifier: RewardClassifier,
    recipe: ClassifierRecipe,
    data: RatedResponses,
    majority: Mapping[str, dict[str, Any]],
) -> None:
    """``README.md`` in the classifier's folder: its levels, what it was trained on, how well it does.

    Args:
        majority: the same metrics as ``classifier.accuracy``, for the majority class.
    """
    title = f"Reward classifier: {', '.join(classifier.objective_names)}"
    lines = [
        *card_head(title, recipe.licence, recipe.model, "reward-model"),
        f"MOSLIM's multi-head classifier on {named_base(recipe.model)}, trained by `train/classifier.py` (loss "
        f"`{classifier.loss}`, method `{recipe.method}`, {recipe.max_length} tokens). Each head answers with "
        "the intensity of its objective; a higher level is more of it.",
        "",
        "| objective | ratings | level 2, 3, ... begins at | training responses per level |",
        "|---|---|---|---|",
    ]
    for scale in classifier.scales:
        counts = [str(classifier.label_counts[column]) for column in level_columns([scale])]
        begins = ", ".join(f"{t:g}" for t in scale.thresholds) or "one level"
        lines.append(
            f"| {scale.name} | {scale.low:g} to {scale.high:g} | {begins} | {', '.join(counts)} |"
        )
    lines += [
        "",
        f"Measured on {recipe.grade_on} responses. Preference and intensity accuracy: the head, and head and level, "
        "of the joint argmax; level accuracy: within a labelled head.",
        "",
        "| metric | accuracy | 95% interval | majority class | responses | prompts |",
        "|---|---|---|---|---|---|",
    ]
    for metric, a in classifier.accuracy.items():
        lines.append(
            f"| {metric} | {a['accuracy']:.3f} | {a['ci95'][0]:.3f} to {a['ci95'][1]:.3f} | "
            f"{majority[metric]['accuracy']:.3f} | {a['n']} | {a['prompts']} |"
        )
    lines += ["", "## Data", "", "Trained on (none of the text is in here):", ""]
    for source, licences in zip(recipe.data, data.licences, strict=True):
        labels, splits = ", ".join(source.labels), ", ".join(source.splits)
        lines.append(
            f"- {name_of(source.path)}: {labels}; splits {splits}; {licence_text(licences)}"
        )
    lines += [f"- {one_line(note, 500)}" for note in data.notes]
    lines += ["", "## Limits", ""]
    lines += [f"- {limit}" for limit in _classifier_limits(classifier, majority)]
    if len({r.source for r in data.train}) > 1:
        lines.append(
            "- The objectives come from several sources: preference accuracy is in part telling these apart."
        )
    reference = classifier.stats.reference if classifier.stats else "none"
    lines += ["", f"Statistics (Eq 11): {reference}. Versions: {library_versions()}"]
    write_card(folder, lines)


def _classifier_limits(
    classifier: RewardClassifier, majority: Mapping[str, dict[str, Any]]
) -> Iterator[str]:
    for name in classifier.objective_names:
        metric = f"level_accuracy_{name}"
        measured = classifier.accuracy.get(metric)
        if measured is None:
            yield f"{name}: not measured, so nothing says how far to trust it."
        elif measured["ci95"][0] <= majority[metric]["accuracy"]:
            yield f"{name}: its levels cannot be told from always answering the most frequent one."
