"""What one device does of this project's work: tokens written, scored and learned per second, and of which peak.

    python tests/bench_gpu.py                                    # two minutes on an H100 or H200
    python tests/bench_gpu.py --tiny                             # the same code on random models of two layers

The peak is that of a large bf16 matrix product in the same run. A model's FLOPs are 2 per parameter and token that it
reads, 6 where it also learns; embeddings do not count. Texts are random tokens: speed does not depend on what they say.
Prints one table as it goes, so a run that is cut short has told what it measured. Figures are medians of ``--rounds``.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, Qwen2Config
from transformers.utils.logging import disable_progress_bar

from pro_core import RewardPanel
from pro_core.data.schema import to_messages
from pro_core.generation import GenerationSettings, LocalGenerator, Request
from pro_core.prompting.policy_config import load_language_model
from pro_core.rewards.batching import collate, encode
from pro_core.runs.training import cast_for_training, optimizer_for
from pro_core.system.bundled_models import SMOLLM2, resolve_policy

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
QWEN_05B: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
}
"""The shape of Qwen2.5-0.5B, the reward models of the paper."""
TINY: dict[str, Any] = QWEN_05B | {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def seconds(work: Callable[[], object], rounds: int) -> float:
    """The median time of ``work``, after one call that warms up."""
    times = []
    for _ in range(rounds + 1):
        _finish()
        started = time.perf_counter()
        work()
        _finish()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def _finish() -> None:
    if CUDA:
        torch.cuda.synchronize()


def peak(size: int, rounds: int) -> float:
    """FLOPs per second of a bf16 matrix product."""
    a, b = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    repeats = 10 if CUDA else 1

    def product() -> None:
        for _ in range(repeats):
            a @ b

    return repeats * 2 * size**3 / seconds(product, rounds)


def body(model: Any) -> int:
    """Parameters without the embeddings, with the output layer, also where it is tied to them."""
    count = sum(p.numel() for n, p in model.named_parameters() if "embed" not in n)
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    tied = output is not None and model.config.tie_word_embeddings
    return count + (output.weight.numel() if tied else 0)


class Table:
    """Rows of a Markdown table, printed as they come."""

    def __init__(self, peak: float):
        self.peak = peak
        print("| work | batch | s | tokens/s | TFLOP/s | of the peak | memory, GB |")
        print("|---|---|---|---|---|---|---|", flush=True)

    def row(self, work: str, batch: str, spent: float, tokens: int, flops_per_token: float) -> None:
        rate = tokens / spent
        flops = rate * flops_per_token
        memory = f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if CUDA else ""
        cells = [work, batch, f"{spent:.3f}", f"{rate:,.0f}", f"{flops / 1e12:.2f}"]
        print(f"| {' | '.join([*cells, f'{flops / self.peak:.1%}', memory])} |", flush=True)
        if CUDA:
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.empty_cache()


# ---------------------------------------------------------------- what is measured


def writing(table: Table, policy: str, sizes: list[int], new: int, rounds: int) -> None:
    """Rollouts, beside transformers' own ``generate``."""
    generator = LocalGenerator(policy)
    generator.load()
    assert generator._loaded is not None
    model, tokenizer = generator._loaded
    prompt = "Tell me about the weather in the mountains."
    for size in sizes:
        written = 0

        def ours(size: int = size) -> None:
            nonlocal written
            settings = GenerationSettings(new, 1.0, 1.0, seed=0)
            answers = generator.generate([Request(to_messages(prompt))] * size, settings)
            written = sum(map(len, tokenizer(answers)["input_ids"]))

        spent = seconds(ours, rounds)
        table.row(f"write, {new} tokens", f"{size}", spent, written, 2 * body(model))
    inputs = tokenizer([prompt] * sizes[-1], return_tensors="pt").to(DEVICE)
    model.generation_config.eos_token_id = None  # every answer has all its tokens

    def bare() -> None:
        model.generate(**inputs, max_new_tokens=new, do_sample=True, top_k=0, pad_token_id=0)

    spent = seconds(bare, rounds)
    table.row("write, bare generate", f"{sizes[-1]}", spent, sizes[-1] * new, 2 * body(model))


def scoring(table: Table, panel_folder: str, count: int, rounds: int) -> None:
    """K objectives on one trunk, in batches of a token budget and one after the other as K models in batches of 32."""
    panel = RewardPanel.from_pretrained(panel_folder, DEVICE)
    model, tokenizer = panel.models[panel.specs[0].source]
    spec, K = panel.specs[0], len(panel.objective_names)
    prompts, completions = _texts(count)
    encoded = encode(tokenizer, prompts, completions, spec.input_format, spec.max_length)
    tokens = sum(len(row["input_ids"]) for row in encoded)
    flops = 2 * body(model)
    spent = seconds(lambda: panel.score(prompts, completions), rounds)
    table.row(f"score, {K} objectives, one trunk", f"{count} texts", spent, tokens, flops)

    @torch.inference_mode()
    def padded() -> None:
        for _ in range(K):
            for start in range(0, count, 32):
                with torch.autocast(DEVICE, dtype=torch.bfloat16):
                    batch = collate(tokenizer, encoded[start : start + 32])
                    model(**{name: tensor.to(DEVICE) for name, tensor in batch.items()})

    spent = seconds(padded, rounds)
    table.row(f"score, {K} models, batches of 32", f"{count} texts", spent, K * tokens, flops)


def learning(
    table: Table, name: str, model: Any, rows: int, length: int, rounds: int, lora: bool
) -> None:
    """Steps of the optimizer on ``rows`` texts of ``length`` tokens; labels for a language model, a score otherwise."""
    size = body(model)
    if lora:
        model = get_peft_model(
            model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        )
    model = cast_for_training(model.to(DEVICE)).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = optimizer_for([{"params": trained, "lr": 1e-5}], 0.01)
    vocabulary = model.config.vocab_size
    ids = torch.randint(1, vocabulary, (rows, length), device=DEVICE)
    mask = torch.ones_like(ids)

    def step() -> None:
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=CUDA):
            logits = model(input_ids=ids, attention_mask=mask).logits
        if lora:
            logits = logits[:, :-1].float().reshape(-1, vocabulary)
            loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:].reshape(-1))
        else:
            margins = logits[::2].float() - logits[1::2].float()
            loss = -torch.nn.functional.logsigmoid(margins).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    spent = seconds(step, rounds)
    # A LoRA needs no gradient of the frozen parameters: 4 FLOPs instead of 6.
    table.row(name, f"{rows} x {length}", spent, rows * length, (4 if lora else 6) * size)


def _texts(count: int) -> tuple[list[list[dict[str, str]]], list[str]]:
    """Prompts, and answers of 10 to 150 words."""
    words = ("the", "weather", "people", "often", "rain", "can", "you", "tell", "me", "about", "in")

    def text(length: int) -> str:
        return " ".join(words[(i * length) % len(words)] for i in range(length))

    prompts = [to_messages(text(12 + i % 9)) for i in range(count)]
    return prompts, [text(10 + (37 * i) % 140) for i in range(count)]


def parts(arguments: argparse.Namespace) -> Iterator[Callable[[Table], None]]:
    """All measurements, cheap ones first."""
    rounds, tiny = arguments.rounds, arguments.tiny
    shape = Qwen2Config(**(TINY if tiny else QWEN_05B), num_labels=1)
    policy = resolve_policy(arguments.policy)
    sizes, new = ([2], 4) if tiny else ([16, 256, 1024], 64)

    def reward_model(rows: int) -> Callable[[Table], None]:
        def measure(table: Table) -> None:
            torch.manual_seed(0)
            model = AutoModelForSequenceClassification.from_config(shape)
            learning(table, "learn, Qwen2.5-0.5B's shape, all", model, rows, length, rounds, False)

        return measure

    def language_model(table: Table) -> None:
        model, _, _ = load_language_model(policy, trainable=True, dtype=torch.bfloat16)
        learning(table, "learn, the policy's LoRA", model, rows, length, rounds, True)

    rows, length = (2, 8) if tiny else (256, 192)
    yield lambda table: scoring(table, arguments.panel, 4 if tiny else 4096, rounds)
    yield language_model
    yield lambda table: writing(table, policy, sizes, new, rounds)
    for count in [2] if tiny else [16, 64]:
        yield reward_model(count)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--panel", default="checkpoints/demo/panel")
    parser.add_argument("--policy", default=SMOLLM2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)  # transformers', about its own code
    name = torch.cuda.get_device_name() if CUDA else f"CPU, {torch.get_num_threads()} threads"
    most = peak(256 if arguments.tiny else 8192 if CUDA else 2048, arguments.rounds)
    print(f"{name}; Python {platform.python_version()}, torch {torch.__version__}; ", end="")
    print(f"bf16 matrix products: {most / 1e12:.2f} TFLOP/s\n", flush=True)
    table = Table(most)
    for measure in parts(arguments):
        measure(table)


if __name__ == "__main__":
    main()
