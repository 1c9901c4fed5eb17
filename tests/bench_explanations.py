"""Do the words that `/explain` names matter? Compares deleting them to deleting random words, and measures the cost.

    python tests/bench_explanations.py [--adapter checkpoints/demo/adapter] [--prompts 200] [--rounds 5]
    python tests/bench_explanations.py --panel checkpoints/demo/panel   # the words of answers, behind their scores

Uses held-out prompts of people. Prints by prompt length how far the largest weight falls when the words that are said
to raise it most are deleted together, and when as many random words are (mean over prompts, 95% interval of the paired
difference). Then prints the time of an explanation as a multiple of a prediction for the same prompt (medians of
alternating runs). With --panel: the same for the scores of the answers in ui/recorded.json, in their standard
deviations, without the three words that raised a score most and without three random ones.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from pro_core import (
    PreferenceAdapter,
    RewardPanel,
    explain_scores,
    load_examples,
    to_messages,
)
from pro_core.adapter.explanations import explain
from pro_core.data.schema import content_spans, render_messages
from pro_core.data.sources import default_data_dir
from pro_core.data.words import words_of

ROOT = Path(__file__).parent.parent
FILES = ("hh_pairs", "truthfulqa_responses", "xstest_responses")
LENGTHS = ((0, 16), (16, 64), (64, 10**9))


def held_out_prompts(count: int) -> list:
    """Equally many conversations of each file that trained no adapter; for XSTest, its validation prompts."""
    chosen = []
    for name in FILES:
        examples = load_examples(default_data_dir() / f"{name}.jsonl.gz")
        split = "validation" if name == "xstest_responses" else "test"
        prompts = {render_messages(e.prompt): e.prompt for e in examples if e.split == split}
        rows = list(prompts.values())
        chosen += [
            rows[i] for i in np.linspace(0, len(rows) - 1, -(-count // len(FILES))).astype(int)
        ]
    return chosen[:count]


def places(messages) -> list[tuple[int, int, int]]:
    """Every word of a conversation as (message, start, end)."""
    return [
        (turn, start, end)
        for turn, _, _ in content_spans(messages)
        for start, end in words_of(messages[turn]["content"])
    ]


def without(messages, words) -> list:
    """The conversation without some words, each given as (message, start, end)."""
    left = [dict(m) for m in messages]
    for turn, start, end in sorted(words, reverse=True):
        text = left[turn]["content"]
        left[turn]["content"] = text[:start] + text[end:]
    return left


def falls(adapter, messages, top: int, rng) -> tuple[float, float] | None:
    """How far the largest weight falls without its ``top`` words, and without as many random words on average."""
    explanation, everywhere = explain(adapter, messages), places(messages)
    if len(everywhere) <= top or len(explanation.words) < top:
        return None
    k = int(explanation.weights.argmax())
    best = np.argsort(-explanation.effects[:, k], kind="stable")[:top]
    named = [
        (explanation.words[i].turn, explanation.words[i].start, explanation.words[i].end)
        for i in best
    ]
    drawn = [
        [everywhere[i] for i in rng.choice(len(everywhere), top, replace=False)] for _ in range(5)
    ]
    try:
        weights = adapter.predict([without(messages, words) for words in (named, *drawn)])[:, k]
    except ValueError:  # nothing was left of the prompt
        return None
    falls = explanation.weights[k] - weights
    return float(falls[0]), float(falls[1:].mean())


def compare_scores(panel: RewardPanel) -> None:
    """Print how far each score falls without the named words and without random ones, and the time it takes."""
    runs = json.loads((ROOT / "ui" / "recorded.json").read_text(encoding="utf-8"))
    named, drawn, seconds = [], [], []
    for run in runs:
        for card in run["candidates"]:
            started = time.perf_counter()
            why = explain_scores(panel, run["messages"], card["text"])
            seconds.append(time.perf_counter() - started)
            named.append(why.named)
            drawn.append(why.random)
    rng = np.random.default_rng(0)
    print(
        "score, standard deviations it falls    3 named words   3 random words   difference (95%)"
    )
    for name, a_N, b_N in zip(
        panel.objective_names, np.transpose(named), np.transpose(drawn), strict=True
    ):
        kept = np.isfinite(a_N)
        leads = (a_N - b_N)[kept]
        lo, hi = np.percentile(rng.choice(leads, (2000, len(leads))).mean(axis=1), [2.5, 97.5])
        print(
            f"{name:20s} n={len(leads):<12d} {a_N[kept].mean():13.2f} {b_N[kept].mean():16.2f} "
            f"{leads.mean():13.2f} ({lo:.2f} to {hi:.2f}); larger in {(leads > 0).mean():.0%}"
        )
    print(f"an explanation: median {statistics.median(seconds):.2f} s, most {max(seconds):.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapter", default="checkpoints/demo/adapter")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--panel", help="explain the scores of this panel instead")
    arguments = parser.parse_args()
    if arguments.panel:
        return compare_scores(RewardPanel.from_pretrained(arguments.panel))
    adapter = PreferenceAdapter.from_pretrained(arguments.adapter)
    prompts = [to_messages(p) for p in held_out_prompts(arguments.prompts)]
    words = np.array([len(places(p)) for p in prompts])
    rng = np.random.default_rng(0)
    print("largest weight, points it falls        named words   random words   difference (95%)")
    for top in (1, 3):
        rows = [falls(adapter, p, top, rng) for p in prompts]
        for low, high in ((0, 10**9), *LENGTHS):
            kept = [
                r for r, n in zip(rows, words, strict=True) if r is not None and low <= n < high
            ]
            if len(kept) < 5:
                continue
            named, drawn = 100 * np.array(kept).T
            resampled = rng.choice(named - drawn, (2000, len(named))).mean(axis=1)
            lo, hi = np.percentile(resampled, [2.5, 97.5])
            size = "all prompts" if high - low > 10**8 and not low else f"{low} to {high - 1} words"
            size = f"{low} words and more" if low and high > 10**8 else size
            print(
                f"top {top}, {size:20s} n={len(kept):<5d} {named.mean():10.1f} {drawn.mean():14.1f} "
                f"{(named - drawn).mean():14.1f} ({lo:.1f} to {hi:.1f})"
            )

    print(f"\ntime, in the adapter's own for the same prompt ({torch.get_num_threads()} threads)")
    for low, high in LENGTHS:
        some = [p for p, n in zip(prompts, words, strict=True) if low <= n < high][:12]
        ratios, predictions = [], []
        for prompt in some:
            seconds: dict = {adapter.predict: [], explain: []}
            for _ in range(arguments.rounds + 1):  # the first warms up
                started = time.perf_counter()
                adapter.predict([prompt])
                middle = time.perf_counter()
                explain(adapter, prompt)
                seconds[adapter.predict].append(middle - started)
                seconds[explain].append(time.perf_counter() - middle)
            prediction, whole = (statistics.median(times[1:]) for times in seconds.values())
            predictions.append(prediction)
            ratios.append(whole / prediction)
        if some:
            print(
                f"{low} words and more: adapter {1000 * statistics.median(predictions):.0f} ms, explanation "
                f"{statistics.median(ratios):.1f} x (most {max(ratios):.1f} x) over {len(some)} prompts"
            )


if __name__ == "__main__":
    main()
