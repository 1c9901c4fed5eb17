"""How far a prompt lies from the training prompts, on features whose answer is known."""

import numpy as np
import pytest

from pro_core.adapter.familiarity import FEWEST, Familiarity

D = 24


def features(n: int, seed: int, shift: float = 0.0, tokens=None) -> np.ndarray:
    """(n, 2D + 1): token means as of prompts of 5 to 80 tokens, so the fewer tokens the noisier; shifted if strange."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, 80, n) if tokens is None else np.full(n, tokens)
    kinds = np.random.default_rng(7).normal(0, 1, (3, 2 * D))
    means = kinds[rng.integers(0, 3, n)] + rng.normal(0, 0.6, (n, 2 * D)) / np.sqrt(tokens)[:, None]
    direction = np.random.default_rng(8).normal(0, 1, 2 * D)
    return np.column_stack([means + shift * direction, tokens]).astype(np.float32)


@pytest.fixture(scope="module")
def known():
    return Familiarity.fit(features(1500, 0), np.arange(1500) % 5).known


def test_prompts_like_the_training_ones_are_known_and_others_are_not(known):
    assert (known(features(500, 1)) == 1).mean() > 0.97
    assert known(features(500, 2, shift=3)).mean() < 0.02
    between = known(features(500, 3, shift=1))
    assert between.min() >= 0 and between.max() <= 1 and between.dtype == np.float32


def test_no_prompts_give_no_numbers(known):
    assert known(features(3, 1)[:0]).shape == (0,)


def test_a_short_prompt_is_not_strange_for_being_short(known):
    # The mean of 5 tokens scatters four times as far as the mean of 80.
    assert (known(features(300, 4, tokens=5)) > 0.9).mean() > 0.9
    assert (known(features(300, 5, tokens=79)) > 0.9).mean() > 0.9
    assert known(features(300, 6, shift=3, tokens=5)).mean() < 0.1


def test_its_arrays_are_small_and_complete():
    fitted = Familiarity.fit(features(200, 0), np.arange(200) % 5)
    arrays = fitted.arrays()
    assert sum(a.nbytes for a in arrays.values()) < 10_000
    x = features(40, 1, shift=0.7)
    np.testing.assert_array_equal(Familiarity(**arrays).known(x), fitted.known(x))


def test_too_few_prompts_are_not_described():
    assert Familiarity.fit(features(FEWEST - 1, 0), np.arange(FEWEST - 1) % 5) is None
    assert Familiarity.fit(features(100, 0), np.zeros(100)) is None


def test_prompts_that_are_all_the_same_know_only_themselves():
    one = np.repeat(features(1, 0), 50, axis=0)
    fitted = Familiarity.fit(one, np.arange(50) % 5)
    assert fitted.known(one[:1])[0] == 1
    assert fitted.known(features(5, 1)).max() == 0
