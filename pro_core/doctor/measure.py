"""What the reward models do on these pairs: scale, offset, length, accuracy, saturation of Eq 7, conflict."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import spearmanr

from pro_core.doctor.gain import Floats, Measured
from pro_core.metrics import accuracy_with_interval, correct
from pro_core.rewards.scores import columns, margins, own_margin
from pro_core.weights import entropy, implicit_weights

TEMPERATURES = (0.05, 0.1, 0.5, 1.0)
ONE_HOT = 0.9
"""A weight above this is called nearly one-hot."""
EQUAL_LENGTH = 0.8
"""Two completions are about equally long when the shorter has this share of the longer's characters."""


@dataclass(frozen=True)
class RewardModel:
    """One reward model on the distinct responses.

    Attributes:
        mean, std: of its raw scores. z_mean, z_std: of the standardized ones; 0 and 1 where these responses are like
            the panel's reference set.
        quantiles: 5, 25, 50, 75 and 95% of the raw scores.
        prompt_share: share of the variance that lies between prompts, 0 to 1; NaN where it cannot be told.
        length, length_margin: Spearman correlation of score and length, and of their differences within pairs.
        constant: whether it gives every response the same score.
    """

    name: str
    mean: float
    std: float
    z_mean: float
    z_std: float
    quantiles: tuple[float, ...]
    prompt_share: float
    length: float
    length_margin: float
    constant: bool


@dataclass(frozen=True)
class Objective:
    """The pairs judged under one objective; accuracies are of the reward model of the same name, if there is one."""

    name: str
    pairs: int
    prompts: int
    accuracy: Measured | None
    equal_length: float | None
    equal_length_pairs: int
    longer: float
    by_model: dict[str, float]


@dataclass(frozen=True)
class Saturation:
    """Eq 7's targets softmax(r(chosen) / tau): how many are nearly one-hot, their mean entropy as a share of log K,
    and how often each objective gets the largest weight."""

    standardized: bool
    temperature: float
    one_hot: float
    entropy: float
    largest: dict[str, float]


@dataclass(frozen=True)
class Conflict:
    """Where weights decide.

    Attributes:
        right, wrong: share of pairs that every weighting gets right, or wrong. ties: all margins are 0.
        depends: the rest: some weights give one winner, some the other.
        easily: share of pairs whose winner changes for between a tenth and nine tenths of all weightings.
        opposite_KK: share of pairs in which two objectives' margins have opposite signs.
    """

    right: float
    wrong: float
    ties: float
    depends: float
    easily: float
    opposite_KK: Floats


def responses(table: pd.DataFrame, objective_names: Sequence[str]) -> pd.DataFrame:
    """Each response to each prompt once: ``prompt``, ``completion``, ``raw_<name>``, ``z_<name>``."""
    sides = []
    for side in ("chosen", "rejected"):
        part = {"prompt": table["prompt"], "completion": table[side]}
        for name in objective_names:
            part |= {f"{kind}_{name}": table[f"{kind}_{side}_{name}"] for kind in ("raw", "z")}
        sides.append(pd.DataFrame(part))
    return pd.concat(sides, ignore_index=True).drop_duplicates(["prompt", "completion"])


def prompt_share(values: Floats, prompts: NDArray) -> float:
    """Share of the variance that lies between prompts: one-way variance components, unequal group sizes allowed.

    With n_0 = (N - sum n_i^2 / N) / (P - 1), the variance between prompts is (MSB - MSW) / n_0, at least 0; within
    them MSW. NaN for fewer than two prompts, no prompt with two responses, or no variance.
    """
    _, index, sizes = np.unique(prompts, return_inverse=True, return_counts=True)
    N, P = len(values), len(sizes)
    if P < 2 or N == P:
        return float("nan")
    means = np.bincount(index, values) / sizes
    within = ((values - means[index]) ** 2).sum() / (N - P)
    between = (sizes * (means - values.mean()) ** 2).sum() / (P - 1)
    offset = max(0.0, (between - within) / ((N - (sizes**2).sum() / N) / (P - 1)))
    total = offset + within
    return float(offset / total) if total > 1e-12 else float("nan")


def measure_models(table: pd.DataFrame, objective_names: Sequence[str]) -> list[RewardModel]:
    """Scale, offset and length effect of each reward model."""
    seen = responses(table, objective_names)
    lengths = seen["completion"].str.len().to_numpy(float)
    longer = (table["chosen"].str.len() - table["rejected"].str.len()).to_numpy(float)
    margin_NK = margins(table, objective_names)
    models = []
    for k, name in enumerate(objective_names):
        raw = seen[f"raw_{name}"].to_numpy(np.float64)
        z = seen[f"z_{name}"].to_numpy(np.float64)
        models.append(
            RewardModel(
                name,
                float(raw.mean()),
                float(raw.std()),
                float(z.mean()),
                float(z.std()),
                tuple(float(q) for q in np.quantile(raw, [0.05, 0.25, 0.5, 0.75, 0.95])),
                prompt_share(raw, seen["prompt"].to_numpy(str)),
                _spearman(raw, lengths),
                _spearman(margin_NK[:, k], longer),
                bool(raw.std() < 1e-8),
            )
        )
    return models


def measure_objectives(table: pd.DataFrame, objective_names: Sequence[str]) -> list[Objective]:
    """Accuracies, one entry per objective of the data; the panel's come first, in its order."""
    present = set(table["objective"])
    order = [n for n in objective_names if n in present] + sorted(present - set(objective_names))
    chosen, rejected = (table[s].str.len().to_numpy(float) for s in ("chosen", "rejected"))
    shorter, longer = np.minimum(chosen, rejected), np.maximum(chosen, rejected)
    alike = shorter >= EQUAL_LENGTH * longer
    margin_NK = margins(table, objective_names)
    objectives = []
    for name in order:
        rows = (table["objective"] == name).to_numpy()
        texts = list(table["text"][rows])
        accuracy = equal = None
        if name in objective_names:
            own = own_margin(table[rows], objective_names)
            result = accuracy_with_interval(own, texts)
            accuracy = Measured(result["accuracy"], *result["ci95"])  # type: ignore[misc,arg-type]
            equal = float(correct(own[alike[rows]]).mean()) if alike[rows].any() else None
        objectives.append(
            Objective(
                name,
                int(rows.sum()),
                len(set(texts)),
                accuracy,
                equal,
                int(alike[rows].sum()),
                float(correct((chosen - rejected)[rows]).mean()),
                {
                    n: float(correct(margin_NK[rows, k]).mean())
                    for k, n in enumerate(objective_names)
                },
            )
        )
    return objectives


def correlation(values_NK: Floats) -> Floats:
    """Pearson correlation between objectives (K, K); NaN for a constant one."""
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore")
        return np.atleast_2d(np.corrcoef(values_NK, rowvar=False))


def measure_saturation(table: pd.DataFrame, objective_names: Sequence[str]) -> list[Saturation]:
    """Eq 7 on raw and on standardized rewards of the chosen responses, at four temperatures."""
    rows, K = [], len(objective_names)
    for kind in ("raw", "z"):
        rewards = columns(table, f"{kind}_chosen", objective_names)
        for temperature in TEMPERATURES:
            weights = implicit_weights(rewards, temperature)
            share = np.bincount(weights.argmax(axis=1), minlength=K) / len(weights)
            rows.append(
                Saturation(
                    kind == "z",
                    temperature,
                    float((weights.max(axis=1) > ONE_HOT).mean()),
                    float(entropy(weights).mean() / np.log(K)) if K > 1 else 0.0,
                    dict(zip(objective_names, map(float, share), strict=True)),
                )
            )
    return rows


def measure_conflict(margin_NK: Floats, draws: int = 200, seed: int = 0) -> Conflict:
    """How many pairs the weights decide. Weightings are drawn uniformly from the simplex for ``easily``."""
    least, most = margin_NK.min(axis=1), margin_NK.max(axis=1)
    K = margin_NK.shape[1]
    weightings = np.random.default_rng(seed).dirichlet(np.ones(K), draws)
    won = correct(margin_NK @ weightings.T).mean(axis=1)
    sign = np.sign(margin_NK)
    return Conflict(
        right=float(((least >= 0) & (most > 0)).mean()),
        wrong=float(((most <= 0) & (least < 0)).mean()),
        ties=float(((most == 0) & (least == 0)).mean()),
        depends=float(((least < 0) & (most > 0)).mean()),
        easily=float(((won > 0.1) & (won < 0.9) & (least < 0) & (most > 0)).mean()),
        opposite_KK=np.array(
            [[(sign[:, j] * sign[:, k] < 0).mean() for k in range(K)] for j in range(K)]
        ),
    )


def _spearman(a: Floats, b: Floats) -> float:
    """NaN where one of the two is constant."""
    if len(a) < 3 or np.ptp(a) < 1e-12 or np.ptp(b) < 1e-12:
        return float("nan")
    return float(spearmanr(a, b).statistic)
