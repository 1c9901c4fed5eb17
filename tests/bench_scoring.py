"""How fast the panel scores, compared to single rows and to padded batches of 32, in the same run.

    python tests/bench_scoring.py [--panel checkpoints/demo/panel] [--responses 250] [--rounds 3]

Prints seconds (the median of alternating rounds) and the ratio to token-budget batches.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from pro_core import RewardPanel, load_examples
from pro_core.data.sources import default_data_dir
from pro_core.rewards.batching import collate, encode


@torch.inference_mode()
def padded(panel, prompts, completions, size: int) -> None:
    """Batches of ``size`` in the order given, each padded to its longest row."""
    model, tokenizer = panel.models[panel.specs[0].source]
    spec = panel.specs[0]
    encoded = encode(tokenizer, prompts, completions, spec.input_format, spec.max_length)
    for start in range(0, len(encoded), size):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(**collate(tokenizer, encoded[start : start + size]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--panel", default="checkpoints/demo/panel")
    parser.add_argument("--responses", type=int, default=250)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    panel = RewardPanel.from_pretrained(arguments.panel)
    pairs = load_examples(default_data_dir() / "hh_pairs.jsonl.gz")
    short = load_examples(default_data_dir() / "truthfulqa_responses.jsonl.gz")
    rows = [(p.prompt, p.chosen) for p in pairs[:: max(1, 2 * len(pairs) // arguments.responses)]]
    rows += [
        (r.prompt, r.response) for r in short[:: max(1, 2 * len(short) // arguments.responses)]
    ]
    rows = rows[: arguments.responses]
    prompts, completions = [r[0] for r in rows], [r[1] for r in rows]
    ways = {
        "token-budget batches (the panel)": lambda: panel.score(prompts, completions),
        "one by one": lambda: padded(panel, prompts, completions, 1),
        "padded batches of 32": lambda: padded(panel, prompts, completions, 32),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    medians = {
        name: statistics.median(times[1:]) for name, times in seconds.items()
    }  # first: warm-up
    best = medians["token-budget batches (the panel)"]
    print(
        f"{len(rows)} responses, {len(panel.objective_names)} objectives, {torch.get_num_threads()} threads"
    )
    for name, median in medians.items():
        print(f"{name:34s} {median:7.2f} s   {median / best:5.2f} x")


if __name__ == "__main__":
    main()
