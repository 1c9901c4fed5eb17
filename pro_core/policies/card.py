"""The model card of a soup of policies: how it is mixed, and what its policies learned from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pro_core.data.card_parts import (
    card_head,
    data_licences,
    licence_text,
    name_of,
    named_base,
    shown_path,
    write_card,
)
from pro_core.data.sources import default_data_dir
from pro_core.prompting.policy_config import PolicyConfig
from pro_core.system.storage import library_versions


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
