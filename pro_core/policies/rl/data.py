"""What the arms of a recipe of `train/morlhf.py` share: the panel, the adapter, and the prompts with their kinds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pro_core.adapter.model import PreferenceAdapter
from pro_core.data.objectives import Message
from pro_core.data.schema import PreferencePair, read_jsonl, to_messages
from pro_core.data.sources import default_data_dir, examples_of, is_public, load_prompts
from pro_core.policies.conditional.data import load_panel
from pro_core.rewards.panel import RewardPanel
from pro_core.runs.training import ConfigError
from pro_core.system.storage import content_hash

UNSAFE: dict[Any, str] = {0: "safe", 1: "unsafe"}


@dataclass
class RewardData:
    """What the arms of a recipe share: the panel, the adapter (None where there is none), and the prompts with their
    kinds, all of the train split."""

    panel: RewardPanel
    panel_key: str
    objective_names: tuple[str, ...]
    adapter: PreferenceAdapter | None
    prompts: list[list[Message]]
    kinds: list[str]

    @classmethod
    def load(cls, recipe: dict[str, Any]) -> RewardData:
        """Load what a recipe names.

        Raises:
            ConfigError: objectives that the panel or the adapter does not have, a panel without statistics, no prompts.
        """
        panel, names, adapter = load_panel(recipe)
        if panel.stats is None:
            raise ConfigError(
                f"panel {recipe['panel']}: it has no statistics, without which objectives cannot be summed: run "
                "train/score_rewards.py with save_panel, and name the panel that it saves"
            )
        prompts, kinds = load_kinds(recipe["data"], recipe["data_dir"] or default_data_dir())
        key = content_hash([panel.fingerprint(), panel.stats.to_dict(), names])
        return cls(panel, key, names, adapter, prompts, kinds)


def load_kinds(
    entries: Sequence[dict[str, Any]], data_dir: str | Path
) -> tuple[list[list[Message]], list[str]]:
    """The train prompts of :func:`pro_core.data.sources.load_prompts`, and of what kind each is.

    ``hh_pairs/harmless`` by the objective that a pair was judged by, ``xstest_responses/unsafe`` by a prompt's own
    label, else the file's name; the first kind of a prompt that is there twice.

    Raises:
        ConfigError: no prompts.
    """
    kinds: dict[str, str] = {}
    prompts: dict[str, list[Message]] = {}
    for entry in entries:
        file, name = Path(data_dir) / entry["path"], str(entry["path"])
        stem = Path(name).name.split(".")[0]
        details: dict[str, str] = {}
        if is_public(file, name):
            for example in examples_of(name, data_dir):
                detail = example.objective if isinstance(example, PreferencePair) else ""
                details.setdefault(content_hash(example.prompt), detail)
        else:
            for row in read_jsonl(file):
                detail = row.get("objective") or UNSAFE.get(row.get("prompt_unsafe"), "")
                if row.get("prompt"):
                    details.setdefault(content_hash(to_messages(row["prompt"])), detail)
        for prompt in load_prompts([entry], data_dir):
            key = content_hash(prompt)
            prompts.setdefault(key, prompt)
            kinds.setdefault(key, "/".join(filter(None, (stem, details.get(key, "")))))
    if not prompts:
        raise ConfigError("data: got no prompts of the train split")
    return list(prompts.values()), [kinds[key] for key in prompts]
