"""How soon do clicks reveal a person's weights? Planted weights, random scores; NumPy alone.

    python tests/bench_choices.py [--people 100]

Each person tilts the adapter's weights by a draw from the prior of `pro_core/choices.py`; K = 5. Prints by number
of clicks the error of learned weights on 20 new prompts: half the sum of absolute differences to the true weights,
0 to 1, mean over people (95% interval). "Four answers": the best of four is clicked; "pair": one of two of the four,
which are drawn at random or asked by `next_pair`.
"""

from __future__ import annotations

import argparse

import numpy as np

from pro_core.choices import LEAST, Choice, choice_posterior

K, ANSWERS, TEST_PROMPTS, CLICKS = 5, 4, 20, (0, 5, 10, 20, 40)
SPREAD = 1.5  # of the tilts, as the prior has it
WORLDS = (
    # questions, the people's own temperature, the share of clicks at random
    ("four answers", 0.0, 0.0),
    ("four answers", 0.5, 0.0),
    ("four answers", 0.5, 0.2),
    ("four answers", 1.0, 0.0),
    ("random pair", 0.5, 0.0),
    ("next_pair", 0.5, 0.0),
)


def errors(seed: int, questions: str, temperature: float, lapse: float) -> list[float]:
    """One person's error after each number of CLICKS."""
    rng = np.random.default_rng(seed)
    tilt = rng.normal(0, SPREAD, K)

    def predicted(n: int):
        return rng.dirichlet(np.full(K, 0.7), n)

    def true(weights):
        tilted = np.maximum(weights, LEAST) * np.exp(tilt)
        return tilted / tilted.sum(axis=-1, keepdims=True)

    new = predicted(TEST_PROMPTS)
    choices: list[Choice] = []
    found = []
    for clicks in range(max(CLICKS) + 1):
        if clicks in CLICKS:
            learned = choice_posterior(choices, K).weights(new)
            found.append(float(np.abs(learned - true(new)).sum(axis=1).mean() / 2))
        (weights,), z = predicted(1), rng.normal(0, 0.7, (ANSWERS, K))
        if questions == "random pair":
            z = z[rng.choice(ANSWERS, 2, replace=False)]
        elif questions == "next_pair":
            z = z[list(choice_posterior(choices, K).next_pair(z, weights))]
        totals = z @ true(weights)
        if rng.random() < lapse:
            picked = rng.integers(len(z))
        else:
            noise = rng.gumbel(size=len(z)) * temperature  # makes a softmax of totals / temperature
            picked = (totals + noise).argmax()
        choices.append(Choice(z, int(picked), weights))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--people", type=int, default=100)
    people = parser.parse_args().people
    print(f"{'error after this many clicks':46s}" + "".join(f"{n:<23d}" for n in CLICKS))
    rng = np.random.default_rng(0)
    for questions, temperature, lapse in WORLDS:
        rows = np.array([errors(seed, questions, temperature, lapse) for seed in range(people)])
        means = rng.choice(rows, (2000, people)).mean(axis=1)
        low, high = np.percentile(means, [2.5, 97.5], axis=0)
        cells = zip(rows.mean(axis=0), low, high, strict=True)
        name = f"{questions}, temperature {temperature:g}, {lapse:.0%} at random"
        print(f"{name:46s}" + "  ".join(f"{m:.3f} ({a:.3f} to {b:.3f})" for m, a, b in cells))


if __name__ == "__main__":
    main()
