"""How far to trust a checkpoint, and the model card that says so: what went into this one, what was measured on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pro_core.data.sources import RatedSource, default_data_dir
from pro_core.data.training_pairs import TrainingPairs
from pro_core.metrics import accuracy_with_interval
from pro_core.prompting.policy_config import PolicyConfig
from pro_core.reporting.card_parts import (
    card_head,
    data_licences,
    entry_line,
    licence_text,
    name_of,
    named_base,
    one_line,
    shown_path,
    write_card,
)
from pro_core.rewards.baselines import EQUAL_LENGTH, length_report, share_cut
from pro_core.rewards.classifier import RewardClassifier, level_columns
from pro_core.rewards.classifier_training import RatedResponses
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.scores import graded_rows, own_margin
from pro_core.system.storage import library_versions

LENGTH_MATTERS = 0.3
"""A score whose margins have at least this correlation with length owes enough to it to be named a limit."""


def grade(
    scores: pd.DataFrame, objective_names: Sequence[str], split: str
) -> dict[str, dict[str, Any]]:
    """Pairwise accuracy of each objective on its own pairs of :func:`graded_rows`, and what length has to do with it.

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


# ---------------------------------------------------------------- reward panels


def write_panel_card(
    folder: Path,
    panel: RewardPanel,
    recipe: Mapping[str, Any],
    data: TrainingPairs,
    scores: pd.DataFrame,
) -> None:
    """``README.md`` in the panel's folder: what it is, what it was trained on, how well it does.

    Args:
        scores: the panel's table, of which ``panel.accuracy`` was measured.
    """
    stats, trained = panel.require_stats(), Counter(p.objective for p in data.training)
    split = recipe["grade_on"]
    rows = [
        _measured_row(name, trained[name], panel.accuracy.get(name), scores, split)
        for name in panel.objective_names
    ]
    title = f"Reward panel: {', '.join(panel.objective_names)}"
    lines = [
        *card_head(title, recipe["licence"], recipe["model"], "reward-model"),
        f"Bradley-Terry reward models on {named_base(recipe['model'])}, "
        + ("one trunk with a head an objective" if recipe["shared_trunk"] else "one an objective")
        + f", trained by `train/reward_models.py` (method `{recipe['method']}`, "
        f"{recipe['max_length']} tokens, seed {recipe['seed']}). Higher is better for every objective.",
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


def _measured_row(
    name: str, trained: int, measured: dict[str, Any] | None, scores: pd.DataFrame, split: str
) -> str:
    if measured is None:
        here = scores[(scores.objective == name) & (scores.split == split) & (scores.fold < 0)]
        why = f"no {split} pairs"
        if len(here):
            reasons = Counter(here.ungraded.where(here.ungraded != "", "made-up prompts"))
            why += f" to grade, of {len(here)}: " + ", ".join(
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
    """Sentences about what was measured and falls short."""
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


# ---------------------------------------------------------------- reward classifiers


def write_classifier_card(
    folder: Path,
    classifier: RewardClassifier,
    recipe: Mapping[str, Any],
    sources: Sequence[RatedSource],
    data: RatedResponses,
    majority: Mapping[str, dict[str, Any]],
) -> None:
    """``README.md`` in the classifier's folder: its levels, what it was trained on, how well it does.

    Args:
        majority: the same metrics as ``classifier.accuracy``, for the majority class.
    """
    title = f"Reward classifier: {', '.join(classifier.objective_names)}"
    lines = [
        *card_head(title, recipe["licence"], recipe["model"], "reward-model"),
        f"MOSLIM's multi-head classifier on {named_base(recipe['model'])}, trained by `train/classifier.py` (loss "
        f"`{classifier.loss}`, method `{recipe['method']}`, {recipe['max_length']} tokens). Each head answers with "
        "the intensity of its objective; a higher level is more of it.",
        "",
        "| objective | ratings | level 2, 3, ... begins at | training responses a level |",
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
        f"Measured on {recipe['grade_on']} responses. Preference and intensity accuracy: the head, and head and level, "
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
    for source, licences in zip(sources, data.licences, strict=True):
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


def _classifier_limits(classifier: RewardClassifier, majority: Mapping[str, dict[str, Any]]):
    for name in classifier.objective_names:
        metric = f"level_accuracy_{name}"
        measured = classifier.accuracy.get(metric)
        if measured is None:
            yield f"{name}: not measured, so nothing says how far to trust it."
        elif measured["ci95"][0] <= majority[metric]["accuracy"]:
            yield f"{name}: its levels cannot be told from always answering the most frequent one."


# ---------------------------------------------------------------- soups of policies


def write_soup_card(
    folder: Path,
    config: PolicyConfig,
    records: Mapping[str, dict[str, Any]],
    licence: str | None = None,
) -> None:
    """``README.md`` beside a Rewarded Soup: what it is, how to mix it, and what its policies learned from.

    Args:
        records: objective -> the ``run.json`` of its policy. licence: the soup's own.
    """
    weights = config.training["weights"]
    shown = dict(zip(records, weights or [], strict=False))
    mixed = (
        f"It is saved under the weights {shown}."
        if weights
        else "It is mixed as it writes, by the weights of each prompt: with PRO's code, in process."
    )
    runs = [record["settings"] | record["spent"] for record in records.values()]
    entries = {str(entry["path"]): (entry, run) for run in runs for entry in run["data"]}
    listed = [
        f"- {name}: {run['algorithm']}, {run['steps']} steps, {run['completions']:,} answers of at most "
        f"{run['max_new_tokens']} tokens to {run['prompts']} prompts, weights {run['weights']}, "
        f"learning rate {run['learning_rate']:g}, KL {run['kl']:g}, LoRA {run['lora']}"
        for name, run in zip(records, runs, strict=True)
    ]
    title = f"Rewarded Soup of {len(records)} policies: {', '.join(records)}"
    tags = ("multi-objective", "rewarded-soups", "rlhf")
    lines = [
        *card_head(title, licence, config.base, *tags, library="peft"),
        f"LoRAs of {named_base(config.base)}, each trained by `train/morlhf.py` as follows, side by side; made by "
        f"`train/soups.py` (arXiv 2306.04488). {mixed}",
        "",
        *listed,
        "",
        "## Data",
        "",
        f"Rewards: the panel `{shown_path(runs[0]['panel'])}`. Prompts (none of the text is in here):",
        "",
        *[
            f"- {name_of(path)}: {licence_text(data_licences(entry, run.get('data_dir') or default_data_dir()))}"
            for path, (entry, run) in entries.items()
        ],
        "",
        "## Limits",
        "",
        "- It says what its reward models like, not what is true or safe. Nothing about its answers was measured here: "
        "`python train/evaluate.py policies` does that.",
        "",
        f"Versions: {library_versions()}",
    ]
    write_card(folder, lines)


# ---------------------------------------------------------------- adapters


def write_adapter_card(
    folder: Path,
    recipe: Mapping[str, Any],
    target: str,
    names: Sequence[str],
    summary: pd.DataFrame,
    scores: pd.DataFrame,
) -> None:
    """``README.md`` beside the adapter: what it is, what it was fitted on, how it did on validation.

    Args:
        summary: the validation figures, a row a target and seed; without rows where nothing could be measured.
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
        *card_head(title, recipe["licence"], recipe["encoder"], "preference-adapter"),
        f"Target `{target}`, {chosen}. Encoder {named_base(recipe['encoder'])}, "
        f"{'trained' if recipe['train_encoder'] else 'frozen'}. Fitted by `train/adapter.py` on out-of-fold scores of "
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


def _adapter_limits(names: Sequence[str], rows: pd.DataFrame, scores: pd.DataFrame):
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
