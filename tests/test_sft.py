"""Conditioned SFT: training reads what generation reads, the loss is on the response, the right parameters move."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_llama
from transformers import AutoTokenizer
from trl.kernels import chunked_logprob as kernels
from trl.trainer import utils

from pro_core.data.schema import to_messages
from pro_core.generation import GenerationSettings, LocalGenerator, Request
from pro_core.generation.chat import fit
from pro_core.policies.sft import fine_tune, score_only_labelled_tokens, tokenize_row, tokenize_rows
from pro_core.prompting.policy_config import PolicyConfig, load_language_model
from pro_core.prompting.templates import Condition
from pro_core.runs.recipes import ConfigError

CONDITION = Condition.fit("weights", ("long", "short"), [[0, 0], [1, 1]], 1.0)


def asked(text: str, long: float):
    return CONDITION.messages(text, [long, 1 - long])


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def tokenizer(llama):
    return AutoTokenizer.from_pretrained(llama)


def test_a_row_is_the_prompt_as_it_is_read_and_the_response_to_its_end(tokenizer):
    row = tokenize_row(tokenizer, (asked("What is the capital?", 0.25), " Paris. "), 200, 150)
    text = tokenizer.decode(row["input_ids"])
    assert text == (
        "<|im_start|>user\nWhat is the capital? <long> 0.25 <short> 0.75<|im_end|>\n"
        "<|im_start|>assistant\nParis.<|im_end|>"
    )
    learned = [i for i in row["labels"] if i != -100]
    assert tokenizer.decode(learned) == "Paris.<|im_end|>"
    assert row["labels"][-len(learned) :] == row["input_ids"][-len(learned) :] == learned
    prompt = row["input_ids"][: -len(learned)]
    assert prompt == fit(tokenizer, asked("What is the capital?", 0.25), 150)[0]


def test_a_base_model_goes_on_after_assistant(tmp_path):
    plain = AutoTokenizer.from_pretrained(tiny_llama(tmp_path / "base", template=False))
    row = tokenize_row(plain, (asked("Why?", 1.0), "It rained."), 200, 150)
    assert plain.decode(row["input_ids"]) == (
        "Human: Why? <long> 1.00 <short> 0.00\n\nAssistant: It rained.<|im_end|>"
    )
    assert plain.decode([i for i in row["labels"] if i != -100]) == " It rained.<|im_end|>"


def test_what_is_too_long_is_cut_or_left_out(tokenizer):
    said = asked("What is it?", 0.5)
    room = len(fit(tokenizer, said, 1000)[0])
    row = tokenize_row(tokenizer, (said, "it rained on Sunday " * 20), room + 10, room)
    assert len(row["input_ids"]) == room + 10 and row["cut"]
    assert row["input_ids"][-1] != tokenizer.eos_token_id  # not taught to stop in the middle
    assert tokenize_row(tokenizer, (said, "Yes."), 200, room - 1) is None
    long_chat = [
        {"role": "user", "content": "hello there " * 30},
        {"role": "assistant", "content": "yes"},
        *said,
    ]
    row = tokenize_row(tokenizer, (long_chat, "Yes."), 200, room + 5)
    assert (
        row["input_ids"][:room] == fit(tokenizer, said, 1000)[0]
    )  # the oldest turns go, the condition stays
    rows = [(said, "Yes."), (asked("hello " * 200, 0.5), "No.")]
    data = tokenize_rows(tokenizer, rows, 3, 2, 200, room, seed=0)
    assert len(data.rows) == 6 and data.left_out == 1
    with pytest.raises(ConfigError, match="none of 1 prompts fits into 4 tokens"):
        tokenize_rows(tokenizer, rows[:1], 1, 1, 200, 4, seed=0)
    with pytest.raises(ConfigError, match="no rows"):
        tokenize_rows(tokenizer, [], 1, 1, 200, 4, seed=0)


def test_marks_in_a_response_are_text(tokenizer):
    row = tokenize_row(tokenizer, (asked("Hi", 0.5), "a <|im_end|> b \ud83d"), 200, 150)
    assert (
        row["input_ids"].count(tokenizer.eos_token_id) == 2
    )  # of the user's turn and of the answer


def test_the_order_is_fixed_and_every_row_comes_about_as_often(tokenizer):
    rows = [(asked("hello", 0.5), "yes " * (i + 1)) for i in range(10)]
    first = tokenize_rows(tokenizer, rows, 6, 5, 200, 100, seed=1)
    assert first.rows == tokenize_rows(tokenizer, rows, 6, 5, 200, 100, seed=1).rows
    assert first.rows != tokenize_rows(tokenizer, rows, 6, 5, 200, 100, seed=2).rows
    lengths = [len(row["input_ids"]) for row in first.rows]
    assert all(lengths.count(n) == 3 for n in set(lengths)) and len(set(lengths)) == 10
    spread = [max(lengths[i : i + 5]) - min(lengths[i : i + 5]) for i in range(0, 30, 5)]
    assert max(spread) < max(lengths) - min(lengths)  # like lengths together
    tokens = first.tokens()
    assert tokens["tokens"] == sum(lengths)
    assert tokens["completion_tokens"] == 3 * sum(
        len(tokenizer("yes " * (i + 1)).input_ids) for i in range(10)
    )


SETTINGS = {
    "start": None, "steps": 2, "batch_size": 2, "learning_rate": 0.01, "constant": False, "max_length": 128,
    "max_prompt": 100, "seed": 0,
}  # fmt: skip


def test_a_lora_moves_and_its_base_does_not(llama, tmp_path):
    rows = [(asked("hello there", 1.0), "it rained on Sunday"), (asked("hello", 0.0), "no")]
    config = PolicyConfig(CONDITION, base=llama, panel="p")
    record = fine_tune(
        rows, tmp_path / "a", config, model=llama, lora={"r": 4}, work=tmp_path / "w", **SETTINGS
    )
    assert record["steps"] == 2 and record["rows"] == 2 and record["left_out"] == 0
    assert {p.name for p in (tmp_path / "a").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "pro_policy.json",
    }  # fmt: skip
    lora = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert len(lora) == 2 * 7 * 2  # A and B of every linear layer of two layers
    assert all(tensor.abs().sum() > 0 for name, tensor in lora.items())  # B starts at 0
    # Further training starts from it, and moves every part again.
    again = SETTINGS | {"start": tmp_path / "a", "constant": True}
    fine_tune(
        rows, tmp_path / "b", config, model=llama, lora={"r": 4}, work=tmp_path / "v", **again
    )
    later = load_file(tmp_path / "b" / "adapter_model.safetensors")
    assert all(not torch.equal(lora[name], later[name]) for name in lora)
    assert PolicyConfig.read(tmp_path / "b") == config


def test_a_whole_model_moves_everywhere(llama, tmp_path):
    rows = [(asked("hello there", 1.0), "it rained on Sunday")]
    fine_tune(
        rows, tmp_path / "a", PolicyConfig(CONDITION), model=llama, lora=None, work=tmp_path / "w", **SETTINGS
    )  # fmt: skip
    model, tok, config = load_language_model(tmp_path / "a", dtype=torch.bfloat16)
    before, _, none = load_language_model(llama, dtype=torch.bfloat16)
    assert none is None and config == PolicyConfig(CONDITION) and tok.chat_template
    moved = dict(model.named_parameters())
    assert all(not torch.equal(moved[n], p) for n, p in before.named_parameters())


def test_the_models_own_repetition_penalty_is_left_out(llama, tmp_path):
    """Otherwise samples would not have the probability that training assumes."""
    model, tokenizer, _ = load_language_model(llama)
    model.generation_config.repetition_penalty = 5.0
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert "penalty" in (tmp_path / "generation_config.json").read_text()
    read, _, _ = load_language_model(tmp_path)
    assert read.generation_config.repetition_penalty is None
    assert read.generation_config.eos_token_id == model.generation_config.eos_token_id is not None


def test_the_head_reads_contiguous_states(llama):
    """For a slice, a CPU's product copies the head's weights for each row: most of a prompt's time in a large batch."""
    model, _, _ = load_language_model(llama)
    seen = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0].is_contiguous()))
    model(input_ids=torch.ones(3, 4, dtype=torch.long), logits_to_keep=1)
    assert seen == [True]


def test_a_missing_model_is_an_error_of_the_recipe(tmp_path):
    with pytest.raises(ConfigError, match="cannot load the model '/absent"):
        fine_tune(
            [(asked("a", 1), "b")], tmp_path / "a", PolicyConfig(CONDITION), model="/absent/model",
            lora={}, work=tmp_path / "w", **SETTINGS,
        )  # fmt: skip


def test_a_length_beyond_the_models_positions_is_refused_before_training(llama, tmp_path):
    with pytest.raises(ConfigError, match="max_length 300, expected at most the 256 tokens"):
        fine_tune(
            [(asked("a", 1), "b")], tmp_path / "a", PolicyConfig(CONDITION), model=llama,
            lora={}, work=tmp_path / "w", **(SETTINGS | {"max_length": 300}),
        )  # fmt: skip
    assert not (tmp_path / "w").exists()


def test_what_was_learned_is_what_is_written(llama, tmp_path):
    """Training and generation read the same prompt: the tiny model says what it learned, and ends there."""
    answer = "it rained on Sunday and we stayed in"
    rows = [(asked(f"tell me {what}", 0.9), answer) for what in ("why", "what", "a joke")]
    settings = SETTINGS | {"steps": 40, "batch_size": 6, "learning_rate": 0.01}
    fine_tune(rows, tmp_path / "a", PolicyConfig(CONDITION), model=llama, lora=None,
              work=tmp_path / "w", **settings)  # fmt: skip
    generator = LocalGenerator(tmp_path / "a")
    greedy = GenerationSettings(max_new_tokens=24, temperature=0)
    told = Request(to_messages("tell me why"), {"long": 0.9, "short": 0.1})
    assert told.read_by(generator.policy).messages == asked("tell me why", 0.9)
    assert generator.generate([told], greedy) == [answer]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU does so by itself")
def test_where_a_script_asks_for_it_only_tokens_with_a_label_are_scored(llama, monkeypatch):
    """Where Triton does not run, TRL's head scores all positions of a batch: on a CPU, most of a step is wasted."""
    monkeypatch.setattr(utils, "_use_triton", kernels._use_triton)  # as TRL is when imported
    model, _, _ = load_language_model(llama)
    ids = torch.randint(0, model.config.vocab_size, (3, 20))
    labels = ids.masked_fill(torch.arange(20) < 15, -100)
    expected = model(input_ids=ids).logits[:, :-1].float().log_softmax(-1)
    expected = expected.gather(-1, ids[:, 1:, None])[..., 0].masked_fill(labels[:, 1:] < 0, 0)
    utils.add_fused_lm_head(model)
    scored, real = [], utils._ChunkedLogProbFunction.apply

    class Spy:
        @staticmethod
        def apply(hidden, *rest):
            scored.append(len(hidden))
            return real(hidden, *rest)

    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", Spy)
    for tokens in (3 * 19, 3 * 5):
        found = model(input_ids=ids, labels=labels, fused_lm_head=True).log_probs
        torch.testing.assert_close(found, expected)
        assert scored.pop() == tokens
        score_only_labelled_tokens()


@pytest.mark.skipif(torch.cuda.is_available(), reason="it does nothing beside a GPU")
def test_a_trl_that_decides_it_elsewhere_is_an_error(monkeypatch):
    monkeypatch.delattr(utils, "_use_triton")
    with pytest.raises(RuntimeError):
        score_only_labelled_tokens()
    assert not hasattr(utils, "_use_triton")
