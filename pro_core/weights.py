"""Sources of preference weights.

PRO, MORLHF, RiC and best-of-N differ mainly in where their preference weights come from. A source is a callable
``source(prompts) -> weights_BK`` (float32, rows on the simplex) with ``objective_names``; everything downstream
accepts any source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pro_core.data.objectives import Prompt, check_objective_names

Array = NDArray[np.float32]


class WeightSource(Protocol):
    """Anything that gives weights for prompts."""

    objective_names: tuple[str, ...]

    def __call__(self, prompts: Sequence[Prompt]) -> Array:
        """Weights (B, K) for B prompts: non-negative rows that sum to 1."""
        ...


def as_weights(
    weights: Mapping[str, float] | Sequence[float] | Array, objective_names: Sequence[str]
) -> Array:
    """Check one weight vector and return it as (K,) float32 in the order of ``objective_names``.

    A sum within 0.02 of 1 (rounded hundredths) is scaled to 1 exactly.

    Raises:
        ValueError: wrong or missing names, a wrong length, negative or non-finite values, or a sum that is not 1.
    """
    names = check_objective_names(objective_names)
    if isinstance(weights, Mapping):
        unknown = sorted(set(weights) - set(names))
        missing = [name for name in names if name not in weights]
        if unknown or missing:
            raise ValueError(
                f"got weights for {sorted(weights)}, expected exactly {list(names)}"
                + (f"; unknown: {unknown}" if unknown else "")
                + (f"; missing: {missing}" if missing else "")
            )
        weights = [weights[name] for name in names]
    try:
        vector = np.asarray(weights, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"got the weights {weights!r}, expected {len(names)} numbers") from None
    if vector.shape != (len(names),):
        raise ValueError(
            f"got weights of shape {vector.shape}, expected {len(names)} numbers, one each for {list(names)}"
        )
    if not np.isfinite(vector).all():
        raise ValueError(f"got the weights {vector.tolist()}, expected finite numbers")
    if (vector < 0).any():
        raise ValueError(f"got the weights {vector.tolist()}, expected none below 0")
    if abs(vector.sum() - 1) > 0.02:
        raise ValueError(f"got weights that sum to {vector.sum():.4g}, expected a sum of 1")
    return (vector / vector.sum()).astype(np.float32)


def parse_floors(text: str, objective_names: Sequence[str]) -> Array:
    """Floors (K,) from ``"harmless=0.1,helpful=0.05"``; an empty text gives no floors.

    Raises:
        ValueError: an unknown objective, a value outside [0, 1), or floors that sum above 1.
    """
    names = check_objective_names(objective_names)
    floors = np.zeros(len(names), dtype=np.float32)
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in names:
            raise ValueError(f"got a floor for {name!r}, expected one of {list(names)}")
        try:
            floor = float(value)
        except ValueError:
            raise ValueError(f"got the floor {part!r}, expected the form harmless=0.1") from None
        if not 0 <= floor < 1:
            raise ValueError(f"got a floor of {value} for {name}, expected at least 0 and below 1")
        floors[names.index(name)] = floor
    if floors.sum() > 1:
        raise ValueError(f"got floors that sum to {floors.sum():.3g}, expected at most 1")
    return floors


def apply_floors(weights: ArrayLike, floors: ArrayLike) -> Array:
    """Raise weights (..., K) that are below their floors (K,) to them; scale the others to keep the sum at 1.

    The others keep their proportions. Scaling can push one of them below its own floor; it is then
    raised too, until none is below. Where nothing is left to scale, the remainder is spread evenly.
    """
    weights = np.asarray(weights, dtype=np.float64)
    floors = np.asarray(floors, dtype=np.float64)
    if weights.ndim > 1:
        rows = [apply_floors(row, floors) for row in weights.reshape(-1, weights.shape[-1])]
        return np.stack(rows).reshape(weights.shape)
    raised = np.zeros(len(weights), dtype=bool)
    result = weights
    while (below := ~raised & (result < floors)).any():
        raised |= below
        free = ~raised
        rest, mass = 1 - floors[raised].sum(), weights[free].sum()
        share = weights[free] / mass if mass > 0 else np.full(free.sum(), 1 / max(free.sum(), 1))
        result = floors.copy()
        result[free] = rest * share
        if not free.any():
            result = result + rest / len(result)
    return result.astype(np.float32)


def weighted_sum(rewards_NK: ArrayLike, weights: ArrayLike) -> Array:
    """The scalarization sum_k w_k r_k (Eq 4): (N,) from rewards (N, K) and weights (K,) or (N, K)."""
    rewards, weights = np.asarray(rewards_NK), np.asarray(weights)
    if rewards.ndim != 2 or weights.shape not in (rewards.shape, rewards.shape[1:]):
        raise ValueError(
            f"got rewards {rewards.shape} and weights {weights.shape}, expected (N, K) and (K,) or (N, K)"
        )
    return (rewards * weights).sum(axis=1, dtype=np.float32)


def select_weights(
    weights_BK: ArrayLike, objective_names: Sequence[str], chosen: Sequence[str]
) -> Array:
    """The weights of the ``chosen`` objectives, in that order, scaled to a sum of 1: (..., K) to (..., chosen).

    A row without any weight on the chosen objectives gets uniform weights.

    Raises:
        ValueError: a chosen objective is not among ``objective_names``.
    """
    names = list(objective_names)
    missing = [name for name in chosen if name not in names]
    if missing:
        raise ValueError(f"got no weights for {missing}, only for {names}")
    rows = np.asarray(weights_BK, dtype=np.float64)[..., [names.index(name) for name in chosen]]
    mass = rows.sum(axis=-1, keepdims=True)
    return np.where(mass > 1e-6, rows / np.maximum(mass, 1e-6), 1 / len(chosen)).astype(np.float32)


def implicit_weights(rewards_NK: ArrayLike, temperature: float = 0.1) -> Array:
    """Eq 7: w*_k = softmax_k(r_k / tau), row by row over the objectives; (N, K) to (N, K).

    The rewards decide what this means: see :func:`pro_core.adapter.targets.target_weights`.

    Raises:
        ValueError: a temperature that is not above 0, or rewards that are not finite and of shape (N, K).
    """
    rewards = np.asarray(rewards_NK, dtype=np.float64)
    if not temperature > 0:
        raise ValueError(f"got the temperature {temperature}, expected a number above 0")
    if rewards.ndim != 2 or not np.isfinite(rewards).all():
        raise ValueError(f"expected finite rewards of shape (N, K), got shape {rewards.shape}")
    logits = rewards / temperature
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)


def entropy(weights: ArrayLike) -> Array:
    """Entropy of each row in nats: 0 (one objective takes all) to log K (uniform)."""
    weights = np.asarray(weights, dtype=np.float64)
    return -(weights * np.log(np.clip(weights, 1e-12, 1))).sum(axis=-1).astype(np.float32)


class FixedWeights:
    """The same weights for every prompt (MORLHF); uniform when none are given."""

    def __init__(self, objective_names: Sequence[str], weights=None):
        self.objective_names = check_objective_names(objective_names)
        K = len(self.objective_names)
        self.weights = as_weights([1 / K] * K if weights is None else weights, self.objective_names)

    def __call__(self, prompts: Sequence[Prompt]) -> Array:
        return np.tile(self.weights, (len(prompts), 1))


class UserWeights(FixedWeights):
    """Weights that a person set by hand: required, and checked."""

    def __init__(self, objective_names: Sequence[str], weights):
        super().__init__(objective_names, weights)


class AdapterWeights:
    """The adapter's prediction for each prompt: w = g_phi(x) (Eq 8, 9)."""

    def __init__(self, adapter):
        self.adapter, self.objective_names = adapter, tuple(adapter.objective_names)

    def __call__(self, prompts: Sequence[Prompt]) -> Array:
        return self.adapter.predict(prompts)


class BlendWeights:
    """``share`` of one source's weights plus the rest of another's, with the same share for every prompt."""

    def __init__(self, first: WeightSource, second: WeightSource, share: float = 0.5):
        if not 0 <= share <= 1:
            raise ValueError(f"got the share {share}, expected 0 to 1")
        self.first, self.second, self.share = first, second, share
        self.objective_names = _same_objectives(first, second)

    def __call__(self, prompts: Sequence[Prompt]) -> Array:
        blend = self.share * self.first(prompts) + (1 - self.share) * self.second(prompts)
        return blend.astype(np.float32)


class DirichletWeights:
    """Random weights: uniform on the simplex, or around another source's weights.

    Args:
        center: a source whose weights become the Dirichlet's mean; None for uniform on the simplex.
        concentration: the larger, the closer to ``center``. Ignored without one.
        seed: the draws are a function of the seed and the number of calls so far.
    """

    def __init__(
        self,
        objective_names: Sequence[str],
        center: WeightSource | None = None,
        concentration: float = 10.0,
        seed: int = 0,
    ):
        self.objective_names = check_objective_names(objective_names)
        if center is not None and tuple(center.objective_names) != self.objective_names:
            raise ValueError(
                f"the center has {center.objective_names}, expected {self.objective_names}"
            )
        self.center, self.concentration = center, concentration
        self.rng = np.random.default_rng(seed)

    def __call__(self, prompts: Sequence[Prompt]) -> Array:
        if self.center is None:
            alphas = np.ones((len(prompts), len(self.objective_names)))
        else:
            alphas = np.clip(self.center(prompts) * self.concentration, 1e-3, None)
        draws = np.stack([self.rng.dirichlet(alpha) for alpha in alphas])
        return draws.astype(np.float32)


class MixedWeights:
    """Each prompt's weights come from one of several sources, drawn with the given probabilities."""

    def __init__(
        self, sources: Sequence[WeightSource], probabilities: Sequence[float], seed: int = 0
    ):
        if len(sources) != len(probabilities) or abs(sum(probabilities) - 1) > 1e-6:
            raise ValueError("expected one probability per source, with a sum of 1")
        self.sources, self.probabilities = list(sources), list(probabilities)
        self.objective_names = _same_objectives(*sources)
        self.rng = np.random.default_rng(seed)

    def __call__(self, prompts: Sequence[Prompt]) -> Array:
        drawn = self.rng.choice(len(self.sources), size=len(prompts), p=self.probabilities)
        weights = np.stack([source(prompts) for source in self.sources])
        return weights[drawn, np.arange(len(prompts))]


class ShuffledWeights:
    """A control: another source's weights, shuffled among the prompts of the same call."""

    def __init__(self, source: WeightSource, seed: int = 0):
        self.source, self.objective_names = source, tuple(source.objective_names)
        self.rng = np.random.default_rng(seed)

    def __call__(self, prompts: Sequence[Prompt]) -> Array:
        return self.source(prompts)[self.rng.permutation(len(prompts))]


class SelectedWeights:
    """Another source's weights, restricted to some of its objectives: see :func:`select_weights`."""

    def __init__(self, source: WeightSource, chosen: Sequence[str]):
        self.source, self.objective_names = source, check_objective_names(chosen)
        select_weights(np.zeros(len(source.objective_names)), source.objective_names, chosen)

    def __call__(self, prompts: Sequence[Prompt]) -> Array:
        return select_weights(
            self.source(prompts), self.source.objective_names, self.objective_names
        )


class AddedWeights:
    """Another source's weights beside those of objectives that it does not know, such as one without pairs.

    Args:
        shares: objective -> its share of the weights: a number, or a rule that gives one number per prompt (B,). What
            the shares leave is the source's, in its proportions.

    Raises:
        ValueError: an objective twice, or (when called) shares below 0, not finite, or with a sum above 1.
    """

    def __init__(
        self,
        source: WeightSource,
        shares: Mapping[str, float | Callable[[Sequence[Prompt]], ArrayLike]],
    ):
        self.source, self.shares = source, dict(shares)
        self.objective_names = check_objective_names([*source.objective_names, *shares])

    def __call__(self, prompts: Sequence[Prompt]) -> Array:
        B = len(prompts)
        columns = [share(prompts) if callable(share) else share for share in self.shares.values()]
        shares_BA = np.empty((B, len(columns)))
        for a, column in enumerate(columns):
            shares_BA[:, a] = column
        taken = shares_BA.sum(axis=1, keepdims=True)
        if not (
            np.isfinite(shares_BA).all() and (shares_BA >= 0).all() and (taken <= 1 + 1e-6).all()
        ):
            raise ValueError(
                f"got shares of {list(self.shares)} from {shares_BA.min(initial=0):g}, in sum up to "
                f"{taken.max(initial=0):g}, expected none below 0 and a sum of at most 1"
            )
        rest = np.maximum(1 - taken, 0) * self.source(prompts)
        return np.concatenate([rest, shares_BA], axis=1).astype(np.float32)


class FlooredWeights:
    """Another source's weights, raised to the owner's floors (K,): see :func:`apply_floors`."""

    def __init__(self, source: WeightSource, floors: ArrayLike):
        self.source, self.objective_names = source, tuple(source.objective_names)
        self.floors = np.asarray(floors, dtype=np.float32)
        if self.floors.shape != (len(self.objective_names),):
            raise ValueError(
                f"got floors of shape {self.floors.shape}, expected one each for {self.objective_names}"
            )

    def __call__(self, prompts: Sequence[Prompt]) -> Array:
        return apply_floors(self.source(prompts), self.floors)


def _same_objectives(*sources: WeightSource) -> tuple[str, ...]:
    names = {tuple(source.objective_names) for source in sources}
    if len(names) != 1:
        raise ValueError(f"the sources have different objectives: {sorted(names)}")
    return names.pop()
