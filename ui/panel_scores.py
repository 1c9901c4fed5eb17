"""The panel's scores of the answers of several visitors at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from pro_core.data.objectives import Message
from pro_core.rewards.calibration import text_lengths
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.specs import RewardModelSpec


class Scores(NamedTuple):
    """Raw and standardized scores (N, K), and the standardized ones of the panel's members (M, N, K).

    The row of an empty text is NaN, and so are a missing score and the last members of an objective that has fewer.
    """

    raw: np.ndarray
    z: np.ndarray
    members: np.ndarray

    def beside(self, raw: np.ndarray, z: np.ndarray) -> Scores:
        """These scores, and then those (N, A) of A more objectives of one member each."""
        members = np.full((len(self.members), *z.shape), np.nan, dtype=np.float32)
        members[0] = z
        parts = zip(self, (raw, z, members), strict=True)
        return Scores(*(np.concatenate(both, axis=-1) for both in parts))


def scores_of(
    panel: RewardPanel, requests: Sequence[tuple[Sequence[Message], Sequence[str]]], judged: bool
) -> list[Scores]:
    """Score conversations with their answers in one call of the panel; empty answers are left out.

    Args:
        judged: also by the objectives that a judge scores; otherwise these are missing.
    """
    asked = panel if judged else replace(panel, specs=unjudged(panel), stats=None)
    kept = [(m, text) for m, texts in requests for text in texts if text.strip()]
    written = [text for _, text in kept]
    raw_NJ, members_MNJ = asked.score_with_members(
        [m for m, _ in kept], written, allow_missing=True
    )
    columns = [panel.objective_names.index(name) for name in asked.objective_names]
    shape = 1 + len(members_MNJ), len(written), len(panel.objective_names)
    rewards = np.full(shape, np.nan, dtype=np.float32)
    rewards[:, :, columns] = np.stack([raw_NJ, *members_MNJ])
    standardized = panel.require_stats().normalize(rewards, text_lengths(written))
    known = np.concatenate([rewards[:1], standardized])  # raw, z, and each member's z
    scores, done = [], 0
    for _, texts in requests:
        rows = np.full((len(known), len(texts), known.shape[2]), np.nan, dtype=np.float32)
        places = [n for n, text in enumerate(texts) if text.strip()]
        rows[:, places] = known[:, done : done + len(places)]
        done += len(places)
        scores.append(Scores(rows[0], rows[1], rows[2:]))
    return scores


def unjudged(panel: RewardPanel) -> list[RewardModelSpec]:
    """The specs of the objectives that no judge scores."""
    judged = {spec.name for spec in panel.specs if spec.judge}
    return [spec for spec in panel.specs if spec.name not in judged]
