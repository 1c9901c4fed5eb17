"""How far a prompt lies from the prompts an adapter learned from, as one number: ``known`` in [0, 1].

Features are those of :class:`pro_core.adapter.encoder.PromptEncoder`, (B, 2D + 1): two mean token states, normalized
here one by one, and the number of tokens. A Gaussian with a few main directions (probabilistic PCA) describes the
training prompts' features. A prompt is strange if its Mahalanobis distance to that Gaussian exceeds the usual distance
at its length. Held-out training prompts set the scale. The description takes tens of kilobytes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pro_core.system.extras import needs

DIRECTIONS = 16
FEWEST = 20
FALL = 0.5
"""``known`` falls from 1 to 0 over half the distance from the median to the 99th percentile of held-out prompts. Chosen
with MiniLM on strange prompts (other languages, gibberish, code, emoji) beside ordinary ones; others confirmed it."""


@dataclass(frozen=True)
class Familiarity:
    """A short description of the training prompts' E = 2D features.

    Attributes:
        mean (E,), directions (Q, E), variances (Q,), noise (): the Gaussian; ``noise`` is the variance in every
            direction that is not listed.
        length (4,): the usual log distance at n tokens is a + b log n: a, b, and the range of log n it was fitted on.
        scale (2,): median and 99th percentile, over held-out training prompts, of the log distance minus the usual one.
    """

    mean: NDArray
    directions: NDArray
    variances: NDArray
    noise: NDArray
    length: NDArray
    scale: NDArray

    @classmethod
    def fit(cls, features: NDArray, fold_P: ArrayLike) -> Familiarity | None:
        """Describe P training prompts. Each fold's distances are measured to a Gaussian of the other folds.

        Args:
            features: (P, 2D + 1). fold_P: each prompt's fold; prompts that belong together share one.

        Returns:
            None for fewer than 20 prompts or a single fold: too few to say what is ordinary.
        """
        features, logs = _split(features)
        fold = np.asarray(fold_P)
        if len(features) < FEWEST or len(np.unique(fold)) < 2:
            return None
        distance = np.zeros(len(features))
        for f in np.unique(fold):
            distance[fold == f] = _distance(features[fold == f], _gaussian(features[fold != f]))
        spread = logs.max() - logs.min() > 1e-6
        b, a = np.polyfit(logs, distance, 1) if spread else (0.0, distance.mean())
        length = np.array([a, b, logs.min(), logs.max()])
        excess = distance - _usual(logs, length)
        scale = np.quantile(excess, [0.5, 0.99])
        gaussian = _gaussian(features)
        return cls(*(np.asarray(x, np.float32) for x in (*gaussian, length, scale)))

    def strangeness(self, features: NDArray) -> NDArray[np.float64]:
        """(B,) from (B, 2D + 1): 0 for the median of held-out training prompts, 1 for their 99th percentile."""
        gaussian = (self.mean, self.directions, self.variances, self.noise)
        features, logs = _split(features)
        excess = _distance(features, gaussian) - _usual(logs, self.length)
        median, high = self.scale.astype(np.float64)
        return (excess - median) / max(high - median, 0.01)

    def known(self, features: NDArray) -> NDArray[np.float32]:
        """(B,) in [0, 1]: 1 up to a strangeness of 1 (99 in 100 held-out prompts), 0 from 1.5."""
        strangeness = self.strangeness(features)
        return np.clip(1 - (strangeness - 1) / FALL, 0, 1).astype(np.float32)

    def arrays(self) -> dict[str, Any]:
        """What a checkpoint keeps; ``Familiarity(**arrays)`` reads it."""
        return asdict(self)


def _split(features: NDArray) -> tuple[NDArray, NDArray]:
    """Both mean states (B, 2D), each normalized over its D numbers; and the log of the tokens (B,)."""
    B, E = len(features), features.shape[1] - 1  # reshape cannot infer it from zero rows
    features = features.astype(np.float64)
    halves = features[:, :-1].reshape(B, 2, E // 2)
    halves = halves - halves.mean(axis=2, keepdims=True)
    halves /= np.maximum(halves.std(axis=2, keepdims=True), 1e-6)
    return halves.reshape(B, E), np.log(features[:, -1])


def _gaussian(features: NDArray) -> tuple[NDArray, NDArray, NDArray, float]:
    with needs("train"):  # its import takes a second, and only fitting needs it
        from sklearn.decomposition import PCA

    pca = PCA(min(DIRECTIONS, len(features) // 4), svd_solver="covariance_eigh").fit(features)
    # Identical prompts have no variance at all; then any other is far.
    variances = np.maximum(pca.explained_variance_, 1e-6)
    return pca.mean_, pca.components_, variances, max(float(pca.noise_variance_), 1e-6)


def _distance(features: NDArray, gaussian) -> NDArray[np.float64]:
    """The log of 1 + the squared Mahalanobis distance (B,)."""
    mean, directions, variances, noise = gaussian
    centred = features - mean
    along = centred @ directions.T
    rest = (centred**2).sum(axis=1) - (along**2).sum(axis=1)
    return np.log1p((along**2 / variances).sum(axis=1) + np.maximum(rest, 0) / noise)


def _usual(logs: NDArray, length: NDArray) -> NDArray[np.float64]:
    """The usual log distance at the log of a number of tokens."""
    a, b, low, high = length
    return a + b * np.clip(logs, low, high)
