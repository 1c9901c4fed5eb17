"""How far to trust a checkpoint, and the model card that says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pro_core.conditioned import PolicyConfig
from pro_core.data_sources import DataSource, RatedSource
from pro_core.evaluation.metrics import accuracy_with_interval
from pro_core.evaluation.reward_models import EQUAL_LENGTH, length_report
from pro_core.public_sets import PUBLIC_SETS
from pro_core.rewards.classifier import RewardClassifier, level_columns
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.scores import own_margin
from pro_core.storage import library_versions

LICENCES = {
    "hh_pairs": "Anthropic hh-rlhf (its public test files), MIT",
    "truthfulqa_responses": "TruthfulQA, Apache-2.0",
    "xstest_responses": "XSTest, CC-BY-4.0",
    "colbert_humor_texts": "ColBERT humor, MIT",
    "halueval_responses": "HaluEval, MIT",
    "summeval_responses": "SummEval, MIT",
    "judge_pairs": "RMB, which states no licence: for judges only, never to be shipped",
    "ultrafeedback_responses": "UltraFeedback, MIT",
    "ultrafeedback_pairs": "UltraFeedback binarized, MIT",
    "topicalchat_responses": "Topical-Chat via UniEval, MIT",
}
HUB_NAMES = {public.path: name for name, public in PUBLIC_SETS.items()}


def _name_of(path: str) -> str:
    """What a data source is called: a public set's name of ours, or the file's without its endings."""
    return HUB_NAMES.get(path, Path(path).name.split(".")[0])


def grade(
    scores: pd.DataFrame, objective_names: Sequence[str], split: str
) -> dict[str, dict[str, Any]]:
    """Pairwise accuracy of each objective on its own held-out pairs, and what length has to do with it.

    Objectives without held-out pairs are left out, constructed pairs are not counted. Of a table without lengths
    (made before they were kept) :func:`length_report` is left out.
    """
    report = {}
    for name in objective_names:
        rows = scores[
            (scores.objective == name)
            & (scores.split == split)
            & (scores.fold == -1)
            & ~scores.constructed
        ]
        if len(rows):
            sources = ", ".join(sorted(rows.source.unique()))
            margins, texts = own_margin(rows, objective_names), list(rows.text)
            measured = accuracy_with_interval(margins, texts)
            if "length_chosen" in rows and rows.length_chosen.notna().all():
                measured |= length_report(margins, rows.length_chosen, rows.length_rejected, texts)
            report[name] = measured | {"test": f"{split} pairs of {sources}"}
    return report


def write_panel_card(
    folder: Path,
    panel: RewardPanel,
    recipe: dict[str, Any],
    sources: Sequence[DataSource],
    scores: pd.DataFrame,
) -> None:
    """``README.md`` in the panel's folder: what it is, what it was trained on, how well it does."""
    lines = [
        "---",
        "license: apache-2.0",
        f"base_model: {recipe['model']}",
        "tags: [reward-model, preference, multi-objective]",
        "---",
        f"# Reward panel: {', '.join(panel.objective_names)}",
        "",
        f"Bradley-Terry reward models on `{recipe['model']}`, "
        + ("one trunk with a head an objective" if recipe["shared_trunk"] else "one an objective")
        + f", trained by `train/reward_models.py` (method `{recipe['method']}`, "
        f"{recipe['max_length']} tokens, seed {recipe['seed']}). Higher is better for every objective.",
        "",
        "| objective | pairwise accuracy | 95% interval | pairs | prompts | measured on | correlation with length | "
        "accuracy at equal length |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in panel.objective_names:
        if name in panel.accuracy:
            a = panel.accuracy[name]
            lines.append(
                f"| {name} | {a['accuracy']:.3f} | {a['ci95'][0]:.3f} to {a['ci95'][1]:.3f} | "
                f"{a['n']} | {a['prompts']} | {a['test']} | {_length_cells(a)} |"
            )
        else:
            lines.append(f"| {name} | not measured | | | | no held-out pairs | | |")
    stats = panel.require_stats()
    lines += [
        "",
        "Length is in characters. Correlation with length: Spearman's, over pairs, of the score's margin with the "
        f"difference in length. About equal length: the shorter lacks at most {EQUAL_LENGTH:.0%} of the longer. "
        + (
            "Standardized scores are without their length component."
            if stats.length_slope is not None
            else "Standardized scores keep what they owe to length."
        ),
    ]
    if stats.constant:
        lines += [
            "",
            f"The same score for every text of the reference set: {', '.join(stats.constant)}.",
        ]
    lines += ["", "Trained on (pairs; none of the text is shipped):", ""]
    trained = scores[scores.fold >= 0] if (scores.fold >= 0).any() else scores
    for source in sources:
        name = _name_of(source.path)
        counts = trained[trained.source == name].objective.value_counts().to_dict()
        licence = LICENCES.get(name, "see the data's own card")
        shown = f"; pairs: {counts}" if counts else ""
        lines.append(
            f"- {name} ({source.kind}), splits {', '.join(source.splits)}: {licence}{shown}"
        )
    lines += [
        "",
        "Limits: a small encoder, English, little data. A score is a guess about what annotators preferred, "
        "not a fact about the text; compare scores within one prompt. Texts may be cut to the length above.",
        "",
        f"Statistics: {stats.reference}. Versions: {library_versions()}",
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _length_cells(measured: dict[str, Any]) -> str:
    """Two cells: the correlation with length, and the accuracy on pairs of about equal length with their number."""
    if "length_correlation" not in measured:
        return "not measured | not measured"
    equal = measured["equal_length"]
    shown = f"{equal['accuracy']:.3f} ({equal['n']} pairs)" if equal else "no such pairs"
    return f"{measured['length_correlation']:+.2f} | {shown}"


def write_classifier_card(
    folder: Path,
    classifier: RewardClassifier,
    recipe: dict[str, Any],
    sources: Sequence[RatedSource],
    majority: dict[str, dict[str, Any]],
) -> None:
    """``README.md`` in the classifier's folder: its levels, what it was trained on, how well it does.

    Args:
        majority: the same metrics as ``classifier.accuracy``, for the majority class.
    """
    lines = [
        "---",
        "license: apache-2.0",
        f"base_model: {recipe['model']}",
        "tags: [reward-model, preference, multi-objective]",
        "---",
        f"# Reward classifier: {', '.join(classifier.objective_names)}",
        "",
        f"MOSLIM's multi-head classifier on `{recipe['model']}`, trained by `train/classifier.py` (loss "
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
    lines += ["", "Trained on (none of the text is shipped):", ""]
    for source in sources:
        name = _name_of(source.path)
        licence = LICENCES.get(name, "see the data's own card")
        lines.append(
            f"- {name}: {', '.join(source.labels)}; splits {', '.join(source.splits)}: {licence}"
        )
    lines += [
        "",
        "Limits: where objectives come from different data, preference accuracy is mostly telling the data apart. "
        "Texts may be cut to the length above.",
        "",
        f"Statistics (Eq 11): {classifier.stats.reference if classifier.stats else 'none'}. "
        f"Versions: {library_versions()}",
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_soup_card(
    folder: Path, config: PolicyConfig, records: Mapping[str, dict[str, Any]]
) -> None:
    """``README.md`` beside a Rewarded Soup: what it is, how to mix it, and what its policies learned from.

    Args:
        records: objective -> the ``run.json`` of its policy.
    """
    weights = config.training["weights"]
    shown = dict(zip(records, weights or [], strict=False))
    mixed = (
        f"It is saved under the weights {shown}."
        if weights
        else "It is mixed as it writes, by the weights of each prompt: with PRO's code, in process."
    )
    runs = [record["settings"] | record["spent"] for record in records.values()]
    paths = dict.fromkeys(entry["path"] for run in runs for entry in run["data"])
    listed = [
        f"- {name}: {run['algorithm']}, {run['steps']} steps, {run['completions']:,} answers of at most "
        f"{run['max_new_tokens']} tokens to {run['prompts']} prompts, weights {run['weights']}, "
        f"learning rate {run['learning_rate']:g}, KL {run['kl']:g}, LoRA {run['lora']}"
        for name, run in zip(records, runs, strict=True)
    ]
    lines = [
        "---",
        "license: apache-2.0",
        f"base_model: {config.base}",
        "library_name: peft",
        "tags: [multi-objective, rewarded-soups, rlhf]",
        "---",
        f"# Rewarded Soup of {len(records)} policies: {', '.join(records)}",
        "",
        f"LoRAs of `{config.base}`, each trained on one objective alone by `train/morlhf.py`, side by side; "
        f"made by `train/soups.py` (arXiv 2306.04488). {mixed}",
        "",
        *listed,
        "",
        f"Rewards: the panel `{runs[0]['panel']}`. Prompts (none of the text is shipped):",
        "",
        *[f"- {_name_of(p)}: {LICENCES.get(_name_of(p), 'see its own card')}" for p in paths],
        "",
        "Limits: it says what its reward models like, not what is true or safe. Figures: the project's README.",
        "",
        f"Versions: {library_versions()}",
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_adapter_card(
    final: Path,
    recipe: dict[str, Any],
    target: str,
    names: Sequence[str],
    summary: pd.DataFrame,
    train: pd.DataFrame,
) -> None:
    """``README.md`` beside the adapter: what it is and how it did on validation."""
    rows = summary[summary["target"] == target]
    methods = [m for m in ("uniform", "best global", "mean", "adapter", "shuffled") if m in rows]
    sources = train.groupby("source").size().to_dict()
    lines = [
        "---",
        "license: apache-2.0",
        f"base_model: {recipe['encoder']}",
        "tags: [preference-adapter, multi-objective]",
        "---",
        f"# Preference adapter: a prompt to weights over {', '.join(names)}",
        "",
        f"Target `{target}`, chosen on validation among {summary['target'].nunique()}; encoder "
        f"{'trained' if recipe['train_encoder'] else 'frozen'}. Fitted by `train/adapter.py` on out-of-fold scores of "
        f"{len(train)} pairs: {sources}. Humor requests are constructed and count in no figure.",
        "",
        f"Validation accuracy, averaged over objectives ({len(rows)} seeds): "
        + ", ".join(f"{m} {rows[m].mean():.3f}" for m in methods)
        + ". Test figures: the project's README.",
        "",
        "Data licences: hh-rlhf MIT, TruthfulQA Apache-2.0, XSTest CC-BY-4.0, ColBERT humor MIT.",
        "",
        "Limits: it knows the kinds of prompts it was trained on; safety by soft weights can be talked down, so "
        "give harmless a floor where it matters.",
    ]
    (final / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
