"""Tiny random models, saved to disk at test time, so that tests run the real loading code in a second."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BartConfig,
    BartForSequenceClassification,
    BartTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DebertaV2Tokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2Tokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
    Qwen2Tokenizer,
)

from pro_core.adapter.encoder import PromptEncoder
from pro_core.adapter.model import PreferenceAdapter
from pro_core.generation import Piece
from pro_core.generation.base import EMPTY_ANSWER, StreamingGenerator
from pro_core.prompting.policy_config import PolicyConfig
from pro_core.prompting.templates import Condition
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.specs import RewardModelSpec
from pro_core.system.bundled_models import MINILM, resolve_encoder

TINY_RUN = {
    "lora": {"r": 4},
    "max_new_tokens": 8,
    "steps": 2,
    "prompts_per_step": 2,
    "generations": 3,
    "checkpoint_every": 1,
    "learning_rate": 0.01,
}
"""Settings of a run of `train/morlhf.py` or `train/moslim.py` that ends in seconds."""


ROOT = Path(__file__).resolve().parent.parent


def in_two_processes(script: str, recipe: str) -> subprocess.CompletedProcess:
    """Run one of the project's scripts in two processes on the CPU. Raises AssertionError if it fails."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
    launch += ["--multi_gpu", "--main_process_port", "0"]  # with --cpu, it starts one process
    done = subprocess.run(
        [*launch, script, recipe],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    return done


def tiny_config(**settings) -> BertConfig:
    sizes = {
        "vocab_size": 30522,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    return BertConfig(**(sizes | settings))


def tokenizer():
    return AutoTokenizer.from_pretrained(resolve_encoder(MINILM))


def tiny_encoder(folder: Path, seed: int = 0) -> str:
    """A random two-layer BERT without heads, saved in ``folder``."""
    torch.manual_seed(seed)
    BertModel(tiny_config()).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def tiny_classifier(folder: Path, num_labels: int, seed: int = 0) -> str:
    """A random two-layer BERT with ``num_labels`` outputs, saved in ``folder``."""
    torch.manual_seed(seed)
    model = BertForSequenceClassification(tiny_config(num_labels=num_labels, initializer_range=0.3))
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def panel_of_members(folder: Path) -> str:
    """A panel with statistics, saved in ``folder``: three members for "helpful" that disagree, one for "harmless"."""
    tiny_classifier(folder / "trunk", 4)
    heads = (("helpful", 1), ("helpful", 1), ("helpful", -1), ("harmless", 1))
    specs = [
        RewardModelSpec(name, "trunk", logit=i, direction=sign)
        for i, (name, sign) in enumerate(heads)
    ]
    panel = RewardPanel.build(specs, folder)
    texts = ["Use cold water.", "I do not know.", "No.", "It rained on Sunday and we stayed in."]
    panel.fit_stats(["Hi", "How do I kill a Python process?"] * 2, texts, "four texts")
    panel.save_pretrained(folder)
    return str(folder)


def byte_encoder(folder: Path) -> str:
    """A random two-layer BERT behind a byte-level BPE, as GPT-like encoders have, saved in ``folder``."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["tell me a joke about cats please " * 9], vocab_size=320)
    torch.manual_seed(0)
    BertModel(tiny_config(vocab_size=400)).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, pad_token="!").save_pretrained(folder)
    return str(folder)


def panel_of_functions(folder: Path, texts: Sequence[str]) -> RewardPanel:
    """A panel of two functions, ``long`` and ``plain``, with the statistics of these texts, saved in ``folder``/panel;
    ``panel.yaml`` beside it is the same without statistics."""
    models = [{"name": "long", "function": "length"}, {"name": "plain", "function": "readability"}]
    (folder / "panel.yaml").write_text(yaml.safe_dump({"models": models}))
    panel = RewardPanel.from_pretrained(folder / "panel.yaml")
    panel.fit_stats(["a"] * len(texts), list(texts), f"{len(texts)} texts")
    panel.save_pretrained(folder / "panel")
    return panel


def vivid_adapter(encoder: str, names: Sequence[str], members: int = 1) -> PreferenceAdapter:
    """An untrained adapter that reacts strongly to its prompt; its heads differ a little."""
    torch.manual_seed(0)
    adapter = PreferenceAdapter(PromptEncoder(encoder), names, hidden=16, members=members)
    with torch.no_grad():
        for head in adapter.heads:
            pairs = zip(head.parameters(), adapter.heads[0].parameters(), strict=True)
            for parameter, first in pairs:
                parameter.copy_(first + 0.1 * (parameter - first))
            head[-1].weight.mul_(12)
            head[-1].weight.sub_(head[-1].weight.mean(dim=1, keepdim=True))
    return adapter.eval()


# ---------------------------------------------------------------- other architectures, with tokenizers trained here

TEXT = (
    "Human: Assistant: User: Instruction: Input: Response: Generate a one-sentence summary of this post. "
    "hello there what is the capital of France? Paris. tell me a joke, why not? it rained on Sunday and we stayed in"
)
ALTERNATING = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
"""As strict as Gemma's: no system turn, and user and assistant must alternate."""
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
)


def _bpe(special: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a byte-level BPE, trained on a few words."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator([TEXT] * 4, trainer)
    model = json.loads(trained.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def _save(folder: Path, model, tok, seed: int = 0) -> str:
    """Save a model with random parameters, so large that scores differ by far more than bf16 rounding."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3, generator=generator)
            elif "norm" not in name.lower() and "ln_" not in name:
                parameter.zero_()
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return str(folder)


def tiny_gpt2(folder: Path, num_labels: int = 1, seed: int = 0) -> str:
    """A random GPT-2 with a reward head; like the real one, its tokenizer has no padding token."""
    vocab, merges = _bpe(["<|endoftext|>"])
    config = GPT2Config(
        vocab_size=len(vocab), n_positions=1024, n_embd=32, n_layer=2, n_head=2, num_labels=num_labels,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    tok = GPT2Tokenizer(vocab=vocab, merges=merges)
    return _save(folder, GPT2ForSequenceClassification(config), tok, seed)


def tiny_distilbert(folder: Path, num_labels: int = 2, seed: int = 0) -> str:
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    trained.train_from_iterator([TEXT.lower()] * 4, trainer)
    tok = DistilBertTokenizer(vocab=trained.get_vocab())
    config = DistilBertConfig(
        vocab_size=len(tok), dim=32, n_layers=2, n_heads=2, hidden_dim=64, num_labels=num_labels
    )
    return _save(folder, DistilBertForSequenceClassification(config), tok, seed)


def tiny_bart(folder: Path, num_labels: int = 2, seed: int = 0) -> str:
    vocab, merges = _bpe(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tok = BartTokenizer(vocab=vocab, merges=merges)
    config = BartConfig(
        vocab_size=len(vocab), d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=1026,
        num_labels=num_labels, bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2,
        forced_eos_token_id=None,
    )  # fmt: skip
    return _save(folder, BartForSequenceClassification(config), tok, seed)


def tiny_deberta(folder: Path, num_labels: int = 1, seed: int = 0) -> str:
    """A random DeBERTa-v3: relative positions, no token types, as in the real one."""
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=special, unk_token="[UNK]", show_progress=False
    )
    trained.train_from_iterator([TEXT] * 4, trainer)
    pieces = [tuple(piece) for piece in json.loads(trained.to_str())["model"]["vocab"]]
    tok = DebertaV2Tokenizer(vocab=pieces, unk_id=3)
    config = DebertaV2Config(
        vocab_size=len(tok), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        type_vocab_size=0, relative_attention=True, position_buckets=32, pos_att_type=["p2c", "c2p"],
        norm_rel_ebd="layer_norm", share_att_key=True, position_biased_input=False, num_labels=num_labels,
        pooler_hidden_size=32,
    )  # fmt: skip
    return _save(folder, DebertaV2ForSequenceClassification(config), tok, seed)


def tiny_qwen(folder: Path, seed: int = 0) -> str:
    """A random causal Qwen2, as its base models are published: a language model, no reward head, a chat template."""
    vocab, merges = _bpe(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tok = Qwen2Tokenizer(
        vocab=vocab, merges=merges, extra_special_tokens=["<|im_start|>", "<|im_end|>"]
    )
    tok.chat_template = CHATML
    config = Qwen2Config(
        vocab_size=len(tok), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=64, max_position_embeddings=512, tie_word_embeddings=True,
    )  # fmt: skip
    return _save(folder, Qwen2ForCausalLM(config), tok, seed)


def tiny_reward_qwen(folder: Path, num_labels: int) -> str:
    """A random Qwen2 reward model with ``num_labels`` outputs, whose heads are wide enough for vLLM on a CPU.

    Its parameters are small, so that rounding to bf16 keeps the order of its scores.
    """
    tok = AutoTokenizer.from_pretrained(tiny_qwen(folder))
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tok), hidden_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=128, max_position_embeddings=512, initializer_range=0.05, num_labels=num_labels,
        pad_token_id=tok.pad_token_id,
    )  # fmt: skip
    Qwen2ForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


def conditioned_qwen(folder: Path, qwen: str, condition: Condition) -> str:
    """A tiny model whose config says which condition it was trained to read."""
    shutil.copytree(qwen, folder)
    PolicyConfig(condition).save(folder)
    return str(folder)


def tiny_llama(folder: Path, seed: int = 0, template: bool = True) -> str:
    """A random two-layer Llama that writes words and ends its answers; without a chat template it is a base model."""
    special = ["<|end|>", "<|im_start|>", "<|im_end|>"]
    vocab, merges = _bpe(special)
    bpe = Tokenizer(models.BPE(vocab, merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(special)
    tok = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|end|>",
        additional_special_tokens=["<|im_start|>"],
        model_max_length=256,
    )
    if template:
        tok.chat_template = CHATML + (
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        )
    config = LlamaConfig(
        vocab_size=len(tok), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=64, max_position_embeddings=256, tie_word_embeddings=True, eos_token_id=tok.eos_token_id,
        bos_token_id=None, pad_token_id=tok.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return str(folder)


def reciting_llama(
    folder: Path, pieces: Sequence[str], eos: str = "<|im_end|>", thinks: str = ""
) -> str:
    """A Llama that recites: it answers with the pieces, ends its turn with ``<|im_end|>``, and begins again unless
    stopped there.

    Args:
        pieces: texts in which no token occurs twice, not even in two pieces: each token determines the next one.
        eos: the end token of tokenizer and model.
        thinks: the text with which the template opens an answer.
    """
    tiny_llama(folder)
    tok = AutoTokenizer.from_pretrained(folder)
    tok.add_tokens(["<think>", "</think>"])
    tok.chat_template = CHATML + (
        "{% if add_generation_prompt %}<|im_start|>assistant\n" + thinks + "{% endif %}"
    )
    tok.eos_token = eos
    ids = [i for piece in pieces for i in tok(piece, add_special_tokens=False)["input_ids"]]
    assert len(ids) == len(set(ids)), pieces
    [line] = tok("\n", add_special_tokens=False)["input_ids"]
    end = tok.convert_tokens_to_ids("<|im_end|>")
    start = tok.convert_tokens_to_ids(thinks) if thinks else line
    after = dict(zip([start, *ids], [*ids, end], strict=True)) | {end: line}
    V = len(tok) + len(tok) % 2
    config = LlamaConfig(
        vocab_size=V, hidden_size=V, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
        intermediate_size=8, max_position_embeddings=256, tie_word_embeddings=False,
        eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # the state of a token is the token: attention and the rest add nothing
        model.model.embed_tokens.weight.copy_(torch.eye(V))
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        for one, following in after.items():
            model.lm_head.weight[following, one] = 9.0
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return str(folder)


def peft_adapter(folder: Path, base: str, tokenizer: bool = False) -> str:
    """A LoRA as PEFT saves it. Its config names the base model, whose tokenizer is saved only if ``tokenizer``."""
    from peft import LoraConfig, get_peft_model

    model = LlamaForCausalLM.from_pretrained(base)
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"])
    get_peft_model(model, lora).save_pretrained(folder)
    if tokenizer:
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return str(folder)


def lora_policies(
    folder: Path,
    base: str,
    names: Sequence[str],
    kinds: Sequence[dict[str, Any]] | None = None,
) -> dict[str, str]:
    """A LoRA of the base for each objective, each in a folder of its name; large enough to change most texts.

    Args:
        kinds: each one's settings. None: ranks and scales that are powers of 2, which a soup in bf16 holds exactly.
    """
    from peft import LoraConfig, get_peft_model

    if kinds is None:
        kinds = [{"r": 2 << i, "target_modules": "all-linear"} for i in range(len(names))]
    for seed, (name, kind) in enumerate(zip(names, kinds, strict=True)):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **kind))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:  # such as a soup in bf16 can hold exactly
                    parameter.copy_(parameter.normal_(0, 0.3).bfloat16())
        model.save_pretrained(folder / name)
        PolicyConfig(Condition("none", tuple(names)), base, "panel").save(folder / name)
    return {name: str(folder / name) for name in names}


def without_ends(folder: Path) -> str:
    """Remove the end and padding tokens from the tokenizer of a saved model."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            content = json.loads((folder / name).read_text())
            kept = {k: v for k, v in content.items() if k not in ("eos_token", "pad_token")}
            (folder / name).write_text(json.dumps(kept))
    return str(folder)


# ---------------------------------------------------------------- a generator without a model


class Script(StreamingGenerator):
    """Answers by a rule. For prompts with a word of ``fails`` it fails so many times."""

    name = "script"

    def __init__(self, fails=None, empty: str = "", condition: Condition | None = None):
        self.fails, self.empty = dict(fails or {}), empty
        self._policy = PolicyConfig(condition) if condition else None
        self.asked: list[list[str]] = []
        self.seeds: list[int] = []

    async def stream_batch(self, batch, settings):
        read = [request.read_by(self.policy) for request in batch]
        self.asked.append([request.messages[-1]["content"] for request in read])
        self.seeds.append(settings.seed)
        for i, text in enumerate(self.asked[-1]):
            word = next((w for w, left in self.fails.items() if w in text and left), None)
            if word:
                self.fails[word] -= 1
                yield Piece(i, "half an")
                yield Piece(i, error=f"{word} failed", done=True)
            elif self.empty and self.empty in text:
                yield Piece(i, error=EMPTY_ANSWER, done=True, finish="stop", empty=True)
            else:
                yield Piece(i, f"[{text}] {settings.seed}")
                yield Piece(i, done=True, finish="stop")
