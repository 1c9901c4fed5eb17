"""What the arms of a recipe share: the panel, the adapter, the training responses with their scores, and the prompts.

All of it comes from the train split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pro_core.adapter.model import PreferenceAdapter
from pro_core.data.objectives import Message
from pro_core.data.schema import LabelledResponse
from pro_core.data.texts import load_prompts, load_texts
from pro_core.policies.conditional.recipe import WicRecipe
from pro_core.policies.recipe import load_panel
from pro_core.prompting.policy_config import load_tokenizer
from pro_core.rewards.calibration import RewardStats, text_lengths
from pro_core.rewards.formats import scored_text, thoughts_note
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.scores import progress
from pro_core.rewards.shards import plan_shards, read_rewards, score_shards, write_manifest
from pro_core.runs.recipes import ConfigError
from pro_core.system.processes import main_process, processes, wait_for_all
from pro_core.system.storage import content_hash

Array = NDArray[np.float32]
SHARD = 1000


@dataclass
class ScoredData:
    """See :meth:`load`.

    Attributes:
        objective_names: the K objectives of the panel that the recipe uses.
        panel_key: the panel's fingerprint. ``key``: a hash of the responses and of all that decides their scores.
        responses: N training responses, each with a prompt that ends with the user's turn.
        z_NK: their standardized scores, finite, float32.
        prompts: the prompts of the online rounds.
        adapter: None if the recipe names none.
    """

    panel: RewardPanel
    panel_key: str
    objective_names: tuple[str, ...]
    responses: list[LabelledResponse]
    z_NK: Array
    prompts: list[list[Message]]
    adapter: PreferenceAdapter | None
    model: str
    key: str = ""

    @classmethod
    def load(cls, recipe: WicRecipe) -> ScoredData:
        """Load and score what a recipe names; scores are computed once and kept in ``<output>/rewards``.

        A panel without statistics, such as one of a YAML file, is standardized on these responses, as RiC does, and
        saved in ``<output>/panel``.

        Raises:
            ConfigError: objectives that the panel or the adapter does not have, or no training responses.
        """
        output, data_dir = Path(recipe.output), recipe.data_folder
        panel, names, adapter = load_panel(recipe)
        notes: list[str] = []
        rows = [
            r
            for r in load_texts(recipe.data, data_dir, notes)
            if r.split == "train" and r.prompt and r.prompt[-1]["role"] == "user"
        ]
        notes += thoughts_note([r.response for r in rows])
        responses = [replace(r, response=scored_text(r.response).strip()) for r in rows]
        if main_process():
            print("".join(f"{note}\n" for note in notes), end="", flush=True)
        responses = [r for r in responses if r.response]
        if len(responses) < 2:
            raise ConfigError(
                f"data: got {len(responses)} responses to prompts of the train split, expected at least 2",
                ["data"],
            )
        raw = score(panel, responses, output / "rewards")
        whole = ~np.isnan(raw.sum(axis=1))
        if main_process() and not whole.all():
            print(f"{(~whole).sum()} responses have no reward and are left out", flush=True)
        responses = [r for r, kept in zip(responses, whole, strict=True) if kept]
        if panel.stats is None:
            described = f"{len(responses)} training responses"
            panel.stats = RewardStats.fit(raw[whole], panel.objective_names, described)
            if main_process():
                panel.save_pretrained(output / "panel")
        prompts = load_prompts(recipe.prompt_data or recipe.data, data_dir)
        empty = np.zeros((0, len(names)), np.float32)
        data = cls(
            panel, panel.fingerprint(), names, responses, empty, prompts, adapter, recipe.model
        )
        data.z_NK = data.standardize(raw[whole], [r.response for r in responses])
        texts = [[r.prompt, r.response] for r in responses]
        data.key = content_hash([data.panel_key, panel.stats.to_dict(), names, texts])
        return data

    def standardize(self, raw_NP: ArrayLike, texts: Sequence[str]) -> Array:
        """The z scores (N, K) of this recipe's objectives from the panel's raw ones; None or NaN stays NaN."""
        raw = np.asarray(raw_NP, dtype=np.float64).reshape(len(texts), -1)
        z = self.panel.require_stats().normalize(raw, text_lengths(texts))
        return z[:, [self.panel.objective_names.index(name) for name in self.objective_names]]

    @cached_property
    def _tokenizer(self):
        return load_tokenizer(self.model)

    def count_tokens(self, texts: Sequence[str]) -> int:
        return (
            sum(map(len, self._tokenizer(list(texts), verbose=False)["input_ids"])) if texts else 0
        )


def score(panel: RewardPanel, responses: list[LabelledResponse], folder: Path) -> Array:
    """Raw rewards (N, P) by the panel's P objectives, NaN where there is none; the processes share the work."""
    rank, world = processes().process_index, processes().num_processes
    shards = plan_shards(panel, responses, folder, SHARD)
    score_shards(panel, shards[rank::world], progress(folder.name))
    wait_for_all()
    if main_process():
        write_manifest(panel, shards)
    wait_for_all()
    rows = read_rewards(folder)
    return rows[[f"raw_{name}" for name in panel.objective_names]].to_numpy(np.float32)
