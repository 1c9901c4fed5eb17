"""What a panel says of pairs: PRO-DPO's labels under each prompt's weights, and MODPO's margins under fixed ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pro_core.adapter.model import PreferenceAdapter
from pro_core.data.schema import LabelledResponse
from pro_core.policies.conditional.data import score
from pro_core.policies.preference.data import PairData
from pro_core.policies.preference.recipe import PreferenceRecipe
from pro_core.policies.recipe import load_panel, without_statistics
from pro_core.policies.rl.weighted import run_weights
from pro_core.rewards.calibration import text_lengths
from pro_core.rewards.formats import scored_text
from pro_core.runs.recipes import ConfigError
from pro_core.system.processes import from_main, main_process
from pro_core.system.storage import content_hash

Array = NDArray[np.float64]


@dataclass
class PanelScores:
    """A panel's scores of both completions of N pairs; NaN where it gives none.

    Attributes:
        fingerprint: the panel's. objective_names: the K objectives of the recipe.
        raw_N2K: Bradley-Terry rewards. z_N2K: standardized, None if the panel has no statistics.
    """

    fingerprint: str
    objective_names: tuple[str, ...]
    adapter: PreferenceAdapter | None
    raw_N2K: Array
    z_N2K: Array | None

    @classmethod
    def load(cls, recipe: PreferenceRecipe, data: PairData) -> PanelScores:
        """Score the pairs once; the scores are kept in ``<output>/rewards``.

        Raises:
            ConfigError: objectives that the panel or the adapter does not have.
        """
        panel, names, adapter = load_panel(recipe)
        responses = [
            LabelledResponse(pair.prompt, scored_text(text), {}, pair.source, f"{i}-{side}")
            for i, pair in enumerate(data.pairs)
            for side, text in (("chosen", pair.chosen), ("rejected", pair.rejected))
        ]
        raw = score(panel, responses, Path(recipe.output) / "rewards").astype(np.float64)
        columns = [panel.objective_names.index(name) for name in names]
        shape = (len(data.pairs), 2, len(names))
        z_N2K: Array | None = None
        if panel.stats is not None:
            z = panel.stats.normalize(raw, text_lengths([r.response for r in responses]))
            z_N2K = z[:, columns].astype(np.float64).reshape(shape)
        return cls(panel.fingerprint(), names, adapter, raw[:, columns].reshape(shape), z_N2K)


@dataclass(frozen=True)
class Relabelled:
    """PRO-DPO's pairs: ``kept`` of N in their order, and whether each of N changes its sides (N,)."""

    kept: list[int]
    swapped: NDArray[np.bool_]
    record: dict[str, Any]


def relabel(recipe: PreferenceRecipe, data: PairData, scores: PanelScores, seed: int) -> Relabelled:
    """Each pair labelled again by sum_k w_k(x) z_k: the completion with more is chosen.

    A pair with equal sums, or with one that the panel could not score, is left out.

    Raises:
        ConfigError: a panel without statistics, or weights that make no sense.
    """
    if scores.z_N2K is None:
        raise without_statistics(recipe.panel)
    keys = [content_hash(pair.prompt) for pair in data.pairs]
    prompts = {key: pair.prompt for key, pair in zip(keys, data.pairs, strict=True)}
    weights = None
    if main_process():
        try:
            weights = run_weights(
                recipe.weights, list(prompts.values()), scores.objective_names, scores.adapter, seed
            )
        except ValueError as error:
            raise ConfigError(f"{recipe.method}: {error}", ["weights"]) from None
    of_prompt = dict(zip(prompts, from_main(weights), strict=True))  # type: ignore[arg-type]
    weights_NK = np.array([of_prompt[key] for key in keys], dtype=np.float64)
    margin = (weights_NK * (scores.z_N2K[:, 0] - scores.z_N2K[:, 1])).sum(axis=1)
    kept = np.flatnonzero(np.isfinite(margin) & (margin != 0)).tolist()
    swapped = margin < 0
    if not kept:
        raise ConfigError(
            f"panel {recipe.panel}: it prefers no completion of any of {len(margin)} pairs",
            ["panel", "weights"],
        )
    record = {"relabelled": int(swapped.sum()), "without_label": len(margin) - len(kept)}
    return Relabelled(kept, swapped, record)


def margins(
    recipe: PreferenceRecipe, data: PairData, scores: PanelScores
) -> tuple[list[int], Array]:
    """MODPO's pairs of the objective k in ``pairs_of``, and w_-k r_-k(y) of all N pairs' completions (N, 2).

    Raises:
        ConfigError: weights off the simplex or of unknown objectives, or no pairs of that objective.
    """
    names, k = scores.objective_names, recipe.pairs_of
    assert k is not None and isinstance(recipe.weights, dict)
    try:
        weights = run_weights(recipe.weights, [data.pairs[0].prompt], names)[0]
    except ValueError as error:
        raise ConfigError(f"{recipe.method}: {error}", ["weights"]) from None
    others = np.array([w * (name != k) for w, name in zip(weights, names, strict=True)], np.float64)
    margin = (scores.raw_N2K * others).sum(axis=2)
    kept = [
        i
        for i, pair in enumerate(data.pairs)
        if pair.objective == k and np.isfinite(margin[i]).all()
    ]
    if not kept:
        there = sorted({pair.objective for pair in data.pairs})
        raise ConfigError(
            f"got no scored pairs of pairs_of {k!r}, expected some; the data have pairs of {there}",
            ["pairs_of", "data"],
        )
    return kept, margin
