"""What ways of steering cost while they write, beside the stock model, in one run.

    OMP_NUM_THREADS=1 python tests/bench_decoding.py

Four candidates of one prompt by SmolLM2 and the app's default policy. All ways take turns in every round, and what
counts is the processor's time per step (one token of each candidate), the least of all rounds, so that other programs
on the machine disturb little. What it takes to fold other weights into the parameters is printed apart.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from pro_core.generation import GenerationSettings, LocalGenerator, Mixing, Request, collect

POLICY = Path(__file__).resolve().parent.parent / "checkpoints/demo/policy"
NAMES = ("helpful", "harmless", "truthful", "informative", "humor")
HI = [{"role": "user", "content": "Tell me a long story about a cat and the sea."}]
EVEN = [0.2] * 5
TWO = [0.5, 0.5, 0.0, 0.0, 0.0]


class Counted:
    """A generator whose forward passes are counted."""

    def __init__(self, generator: LocalGenerator):
        self.generator, self.steps = generator, 0
        generator.load()
        head = generator._loaded[0].get_output_embeddings()
        head.register_forward_hook(self._step)

    def _step(self, *_: object) -> None:
        self.steps += 1

    def milliseconds(self, batch: list[Request], settings: GenerationSettings) -> float:
        """Processor time per step, the reading of the prompt included, but not the fold."""
        collect(self.generator, batch, GenerationSettings(1))
        self.steps, begun = 0, time.process_time()
        errors = [one.error for one in collect(self.generator, batch, settings) if one.failed]
        if errors:
            raise SystemExit(errors[0])
        return 1000 * (time.process_time() - begun) / self.steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=48)
    options = parser.parse_args()
    stock, soup = Counted(LocalGenerator()), Counted(LocalGenerator(POLICY))
    nearly = [[*EVEN[:4], 0.2 + i * 1e-4] for i in range(4)]  # no two alike: nothing is folded

    def weighted(weights: list[float], mixing: Mixing | None = None) -> list[Request]:
        return [Request(HI, dict(zip(NAMES, weights, strict=True)), mixing=mixing)] * 4

    ways = {
        "stock model": (stock, [Request(HI)] * 4),
        "soup, folded": (soup, weighted(EVEN)),
        "soup, row by row": (soup, [weighted(w)[0] for w in nearly]),
        "soup at strength 0": (soup, weighted(EVEN, Mixing(strength=0.0))),
        "MOD of 1 objective": (soup, weighted([1.0, 0, 0, 0, 0], Mixing("mod"))),
        "MOD of 2 objectives": (soup, weighted(TWO, Mixing("mod"))),
        "MOD of 5 objectives": (soup, weighted(EVEN, Mixing("mod"))),
        "MOD of 5, strength 0.5": (soup, weighted(EVEN, Mixing("mod", 0.5))),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.rounds):
        for name, (writer, batch) in ways.items():
            settings = GenerationSettings(options.tokens, seed=number)
            times[name].append(writer.milliseconds(batch, settings))
    base = min(times["stock model"])
    for name, taken in times.items():
        least = min(taken)
        print(f"{name:28}{least:8.1f} ms per step{least / base:7.2f} times the stock model")
    mixer, folds = soup.generator._mixer, []
    for i in range(options.rounds):
        begun = time.process_time()
        with mixer.mixed([[0.1 + i / 100, *EVEN[1:]]]):
            folds.append(1000 * (time.process_time() - begun))
    print(f"{'to fold other weights':28}{min(folds):8.1f} ms, once")
    print(
        f"{torch.get_num_threads()} thread(s), {options.rounds} rounds of {options.tokens} tokens"
    )


if __name__ == "__main__":
    main()
