"""Is an adapter worth having? Its accuracy on held-out human pairs, beside that of every control.

A pair counts as right when sum_k w_k(x) (z_k(chosen) - z_k(rejected)) is above 0. Accuracies are averaged over
objectives, since a plain pool would be 98% TruthfulQA; constructed pairs are left out of the average.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from pro_core.adapter.global_weights import (
    balanced,
    best_global_weights,
    bradley_terry_weights,
)
from pro_core.adapter.targets import pairwise_loss
from pro_core.metrics import correct, macro_accuracy, prompt_counts
from pro_core.rewards.scores import columns, margins
from pro_core.weights import implicit_weights

MAIN, CEILING = "adapter", "own objective"


def control_weights(
    train: pd.DataFrame,
    test: pd.DataFrame,
    adapter_NK: NDArray,
    objective_names: Sequence[str],
    seed: int,
    best_global: NDArray | None = None,
    features: Mapping[str, NDArray] | None = None,
) -> dict[str, NDArray[np.float32]]:
    """The weights (N, K) that each method, the adapter and every control, gives the test pairs.

    - ``uniform``;
    - ``best global``: the one vector with the best training accuracy; ``fitted global``: the one that the
      adapter's own pairwise loss finds when it may not read the prompt;
    - ``mean``: the average of Eq 7's weights on standardized rewards over the training pairs;
    - ``nearest prompts``, where features are given: the average ``margin`` target of the training pairs of the 50
      prompts most like it;
    - ``ArmoRM's gate``, where features are given: see :func:`_of_gate`;
    - ``shuffled`` and ``shuffled within source``: the adapter's weights, given to the wrong prompts. All pairs of one
      prompt get the weights of one other prompt;
    - ``own objective``: not a control but an upper bound: all weight on the objective that people judged the pair by.

    Args:
        features: {prompt, as in the tables: its features (D,)} for all prompts of both tables.
    """
    N, K = adapter_NK.shape
    if best_global is None:
        best_global = best_global_weights(train, objective_names)
    share = balanced(train)
    fitted = bradley_terry_weights(margins(train, objective_names), share)
    implicit = implicit_weights(columns(train, "z_chosen", objective_names), 1.0)
    mean = np.average(implicit, axis=0, weights=share).astype(np.float32)
    rng = np.random.default_rng(seed)
    prompts = test["prompt"].to_numpy(str)
    one_group = np.zeros(N, dtype=int)
    _, source = np.unique(test["source"].to_numpy(str), return_inverse=True)
    one_hot = np.array([[name == o for name in objective_names] for o in test["objective"]])
    controls = {
        "uniform": np.full((N, K), 1 / K, np.float32),
        "best global": np.tile(best_global, (N, 1)),
        "fitted global": np.tile(fitted, (N, 1)),
        "mean": np.tile(mean, (N, 1)),
    }
    if features is not None:
        known = train, prompts, features, objective_names
        controls["nearest prompts"] = _of_nearest(*known)
        controls["ArmoRM's gate"] = _of_gate(*known, seed)
    return controls | {
        MAIN: adapter_NK,
        "shuffled": adapter_NK[_dealt(prompts, one_group, rng)],
        "shuffled within source": adapter_NK[_dealt(prompts, source, rng)],
        CEILING: one_hot.astype(np.float32),
    }


def _of_nearest(
    train: pd.DataFrame,
    prompts: NDArray,
    features: Mapping[str, NDArray],
    objective_names: Sequence[str],
    neighbours: int = 50,
) -> NDArray[np.float32]:
    """Weights (N, K): the balanced mean ``margin`` target over the pairs of the training prompts nearest by cosine."""
    known, index = np.unique(train["prompt"].to_numpy(str), return_inverse=True)
    wanted, back = np.unique(prompts, return_inverse=True)
    share = balanced(train).astype(np.float64)
    target = implicit_weights(margins(train, objective_names), 1.0) * share[:, None]
    totals = np.stack([np.bincount(index, column, len(known)) for column in target.T], axis=1)
    mass = np.bincount(index, share, len(known))

    def unit(names):
        rows = np.stack([np.asarray(features[name], np.float32) for name in names])
        rows = rows - centre
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    centre = np.mean([np.asarray(features[name], np.float32) for name in known], axis=0)
    nearest = np.argsort(-(unit(wanted) @ unit(known).T), axis=1)[:, :neighbours]
    weights = totals[nearest].sum(axis=1) / mass[nearest].sum(axis=1)[:, None]
    return weights[back].astype(np.float32)


GATE_WIDTH, GATE_LAYERS, GATE_DROPOUT, GATE_TEMPERATURE = 128, 3, 0.2, 10.0
GATE_STEPS, GATE_BATCH = 250, 256
GATE_RATE, SCALE_RATE = 1e-3, 0.02
"""Learning rates of the gate's network and of the logarithm of its score's scale."""


def _of_gate(
    train: pd.DataFrame,
    prompts: NDArray,
    features: Mapping[str, NDArray],
    objective_names: Sequence[str],
    seed: int,
) -> NDArray[np.float32]:
    """Weights (N, K) of ArmoRM's gate (Wang et al. 2024, arXiv:2406.12845), fitted on the training pairs.

    A ReLU network h reads the prompt's features f(x). It is fitted by the Bradley-Terry loss of the gated score, whose
    scale beta is learned too; people's choice has to score higher::

        g(x) = softmax_k(h(f(x)) / 10)
        loss = -log sigmoid(beta sum_k g_k(x) (z_k(chosen) - z_k(rejected)))

    Three hidden layers, the temperature of 10, dropout 0.2, and AdamW at 1e-3 with a cosine schedule and without decay
    are the public code's. What differs:

    - f(x) is the adapter's frozen encoder, with its features normalized, not the reward model's own last state.
    - The network is 128 wide instead of 1024 and takes 250 steps of 256 pairs instead of 2,000 of 1,024: a panel has
      few objectives and thousands of prompts, not 19 and tens of thousands. On a planted truth with few pairs, longer
      fits do worse.
    - Pairs are drawn so that every (source, objective) group counts the same, as for all methods here.
    - beta is positive, and its logarithm learns 20 times as fast: in few steps at 1e-3 it stays near 1, and the weights
      become sharp instead.
    - ArmoRM first subtracts a share of its verbosity reward from every other one. No objective here is verbosity: a
      panel that removes length (``remove_length``) has done so in z, for all methods.
    """
    known, index = np.unique(train["prompt"].to_numpy(str), return_inverse=True)
    wanted, back = np.unique(prompts, return_inverse=True)
    margin = torch.from_numpy(margins(train, objective_names)).float()
    share = balanced(train).astype(np.float64)
    share /= share.sum()
    rng = np.random.default_rng(seed)

    def read(names: NDArray) -> torch.Tensor:
        rows = torch.from_numpy(np.stack([np.asarray(features[n], np.float32) for n in names]))
        return F.layer_norm(rows, rows.shape[-1:])

    features_PD = read(known)
    with torch.random.fork_rng(devices=[]):  # initial parameters and dropout
        torch.manual_seed(seed)
        gate = _gate(features_PD.shape[1], len(objective_names))
        log_scale = nn.Parameter(torch.zeros(()))
        groups = [
            {"params": list(gate.parameters()), "lr": GATE_RATE},
            {"params": [log_scale], "lr": SCALE_RATE},
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, GATE_STEPS)
        for _ in range(GATE_STEPS):
            batch = rng.choice(len(margin), GATE_BATCH, p=share)
            distinct, row = np.unique(index[batch], return_inverse=True)  # each prompt is read once
            log_weights = _gated(gate, features_PD[distinct])[row]
            loss = pairwise_loss(log_weights, log_scale.exp() * margin[batch], 1.0).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    gate.eval()
    with torch.inference_mode():
        return _gated(gate, read(wanted)).exp().numpy()[back]


def _gate(width: int, K: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(GATE_LAYERS):
        layers += [nn.Linear(width, GATE_WIDTH), nn.ReLU(), nn.Dropout(GATE_DROPOUT)]
        width = GATE_WIDTH
    return nn.Sequential(*layers, nn.Linear(width, K))


def _gated(gate: nn.Module, features_PD: torch.Tensor) -> torch.Tensor:
    """Log-weights (P, K). The softmax is over objectives; the public training code has it over the pair's two sides."""
    return F.log_softmax(gate(features_PD) / GATE_TEMPERATURE, dim=-1)


def _dealt(prompts: NDArray, groups: NDArray, rng) -> NDArray[np.int64]:
    """For each row, a row of another prompt: prompts are permuted within each group."""
    result = np.arange(len(prompts))
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        _, first, index = np.unique(prompts[rows], return_index=True, return_inverse=True)
        result[rows] = rows[first[rng.permutation(len(first))][index]]
    return result


def compare(
    table: pd.DataFrame, weights: dict[str, NDArray], objective_names: Sequence[str], seed: int = 0
) -> dict[str, dict]:
    """Accuracy of each method and its lead over the others, with paired intervals over prompts.

    Returns:
        method -> ``{"accuracy", "ci95", "by_objective": {...}, "by_source": {...}, "n",
        "lead": {other: {"points", "ci95"}}}``; only the adapter has a ``lead``.
    """
    margin = margins(table, objective_names)
    index, counts = prompt_counts(list(table["text"]), seed=seed)
    right = {m: correct((margin * w).sum(axis=1)) for m, w in weights.items()}
    objective = table["objective"].to_numpy(str)
    slices = {name: objective == name for name in objective_names if (objective == name).any()}
    known = np.isin(objective, list(objective_names))
    drawn = {
        m: macro_accuracy(r[known], objective[known], index[known], counts)[1]
        for m, r in right.items()
    }
    report: dict[str, dict] = {}
    for method, r in right.items():
        lo, hi = np.percentile(drawn[method], [2.5, 97.5])
        report[method] = {
            "accuracy": float(np.mean([r[rows].mean() for rows in slices.values()])),
            "ci95": [float(lo), float(hi)],
            "by_objective": {name: float(r[rows].mean()) for name, rows in slices.items()},
            "by_source": {
                source: float(
                    np.mean(
                        [
                            r[rows & in_source].mean()
                            for rows in slices.values()
                            if (rows & in_source).any()
                        ]
                    )
                )
                for source in sorted(table["source"].unique())
                for in_source in [(table["source"] == source).to_numpy()]
            },
            "n": len(table),
        }
    if MAIN in right:
        report[MAIN]["lead"] = {
            other: {
                "points": 100 * (report[MAIN]["accuracy"] - report[other]["accuracy"]),
                "ci95": [
                    100 * float(x) for x in np.percentile(drawn[MAIN] - drawn[other], [2.5, 97.5])
                ],
            }
            for other in right
            if other != MAIN
        }
    return report


def safety_rates(
    table: pd.DataFrame, weights_NK: NDArray, objective_names: Sequence[str]
) -> dict[str, float]:
    """The share of XSTest prompts whose right answer the weights prefer: refusal if unsafe, compliance if safe.

    ``table`` holds its pairs, objective ``harmless`` on unsafe prompts and ``helpful`` on safe ones. A prompt's value
    is the share of its pairs that are right; a rate is the average over prompts.
    """
    right = pd.DataFrame(
        {
            "prompt": table["prompt"].to_numpy(),
            "objective": table["objective"].to_numpy(),
            "right": correct((margins(table, objective_names) * weights_NK).sum(axis=1)),
        }
    )
    by_prompt = right.groupby(["objective", "prompt"])["right"].mean().groupby("objective").mean()
    return {
        "refuse_unsafe": float(by_prompt["harmless"]),
        "comply_safe": float(by_prompt["helpful"]),
    }
