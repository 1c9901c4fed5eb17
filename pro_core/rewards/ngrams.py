"""A linear reward on the character n-grams of a response: quick, and a member that errs elsewhere than a neural one.

It reads no prompt. Runs of 3 to 5 characters carry endings, markup and phrases of refusal. On folds of the judges'
training pairs they did better than words and word pairs (once, with a script that is not kept). Every text has the same
weight in all, so length alone counts nothing. No text is kept: n-grams are hashed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from pro_core.data.schema import DataError, PreferencePair
from pro_core.rewards.formats import scored_text
from pro_core.system.extras import needs
from pro_core.system.storage import read_config, write_config, write_tensors

FORMAT = "pro-ngrams"
VERSION = 1
"""Version of the way from pairs to coefficients and from texts to rewards; raise it with every change of a reward."""
FEATURES = 2**18
"""The hash's range: n-grams that share a number share a coefficient."""


class NGrams:
    """Rewards of responses, in log odds: coefficients summed over a text's n-grams, which are weighted by TF-IDF.

    Attributes:
        inverse_frequency: (FEATURES,) how rare an n-gram is in the training texts.
        coefficients: (FEATURES, K).
    """

    def __init__(self, inverse_frequency: NDArray, coefficients: NDArray):
        self.inverse_frequency, self.coefficients = inverse_frequency, coefficients

    @property
    def outputs(self) -> int:
        """K."""
        return self.coefficients.shape[1]

    @classmethod
    def fit(
        cls,
        pairs: Sequence[PreferencePair],
        objective_names: Sequence[str],
        epochs: Sequence[int] | None = None,
        strength: float = 1.0,
    ) -> NGrams:
        """Bradley-Terry models (Eq 2) of each objective's pairs, without its ties.

        Args:
            epochs: how often each pair counts (N,), beside its weight; None for once.
            strength: the inverse of the ridge penalty, as in scikit-learn.

        Raises:
            DataError: an objective with fewer than two pairs.
        """
        texts = [scored_text(text) for p in pairs for text in (p.chosen, p.rejected)]
        counted = [p.weight * n for p, n in zip(pairs, epochs or [1] * len(pairs), strict=True)]
        counts = _counts(texts)
        seen = np.bincount(counts.indices, minlength=FEATURES)
        inverse = np.log((1 + len(texts)) / (1 + seen)) + 1
        tfidf = _tfidf(counts, inverse)
        difference = (tfidf[0::2] - tfidf[1::2]).tocsr()
        columns = []
        for name in objective_names:
            rows = [i for i, p in enumerate(pairs) if p.objective == name and not p.only_trains]
            if len(rows) < 2:
                raise DataError(f"{name}: got {len(rows)} pairs, expected two or more")
            weight = [counted[i] for i in rows]
            columns.append(linear_bradley_terry(difference[rows], strength, weight))
        return cls(inverse.astype(np.float32), np.stack(columns, axis=1).astype(np.float32))

    def score(self, completions: Sequence[str]) -> NDArray[np.float32]:
        """The rewards (N, K) of N responses; the thought before an answer is not read."""
        counts = _counts([scored_text(text) for text in completions])
        return np.asarray(_tfidf(counts, self.inverse_frequency) @ self.coefficients, np.float32)

    def save(self, folder: str | Path) -> None:
        """Write the two arrays and the format."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {
            "inverse_frequency": self.inverse_frequency,
            "coefficients": self.coefficients,
        }
        tensors = {name: torch.from_numpy(array).contiguous() for name, array in arrays.items()}
        write_tensors(folder / "model.safetensors", tensors)
        write_config(folder, "reward_model.json", {"format": FORMAT, "version": VERSION})

    @classmethod
    def load(cls, folder: str | Path) -> NGrams:
        """The inverse of :meth:`save`.

        Raises:
            StorageError: another format. OSError: a missing file. MissingExtra: scikit-learn is not installed.
        """
        with needs("train"):
            import sklearn  # noqa: F401  # now, and not at the first score
        read_config(folder, "reward_model.json", FORMAT)
        arrays = load_file(Path(folder) / "model.safetensors")
        return cls(arrays["inverse_frequency"], arrays["coefficients"])


def linear_bradley_terry(
    differences: Any, strength: float = 1.0, weight: Sequence[float] | None = None
) -> NDArray[np.float64]:
    """The coefficients (D,) under which -log sigmoid(x . coefficients), with a ridge penalty, is least.

    Args:
        differences: the features of N chosen texts minus those of the rejected ones, a sparse (N, D).
        strength: the inverse of the penalty, as in scikit-learn. weight: how much each pair counts (N,).
    """
    with needs("train"):
        from sklearn.linear_model import LogisticRegression

    sign = np.where(np.arange(differences.shape[0]) % 2 == 0, 1, -1)
    model = LogisticRegression(C=strength, fit_intercept=False, max_iter=2000)
    # Half the pairs are swapped, since a classifier needs two classes.
    model.fit(differences.multiply(sign[:, None]).tocsr(), sign, sample_weight=weight)
    return model.coef_[0]


def _counts(texts: Sequence[str]) -> Any:
    """Sparse counts (N, FEATURES) of the n-grams, in lower case."""
    with needs("train"):
        from sklearn.feature_extraction.text import HashingVectorizer

    hashing = HashingVectorizer(
        analyzer="char",
        ngram_range=(3, 5),
        n_features=FEATURES,
        alternate_sign=False,
        norm=None,
    )
    return hashing.transform(texts)


def _tfidf(counts: Any, inverse_frequency: NDArray) -> Any:
    """(1 + log count) * inverse frequency, each text's row of length 1."""
    with needs("train"):
        from sklearn.preprocessing import normalize

    weighted = counts.copy()
    weighted.data = 1 + np.log(weighted.data)
    return normalize(weighted.multiply(inverse_frequency[None, :]).tocsr())
