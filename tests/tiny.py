"""Tiny random models on disk, built at test time: the real loading code, in a second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel

from pro_core.adapter import PreferenceAdapter
from pro_core.packaged import MINILM, resolve_encoder


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


def vivid_adapter(encoder: str, names: Sequence[str], members: int = 1) -> PreferenceAdapter:
    """An adapter that was not trained but reacts strongly to its prompt; heads differ a little."""
    torch.manual_seed(0)
    adapter = PreferenceAdapter(encoder, names, hidden=16, members=members)
    with torch.no_grad():
        for head in adapter.heads:
            for mine, first in zip(head.parameters(), adapter.heads[0].parameters(), strict=True):
                mine.copy_(first + 0.1 * (mine - first))
            head[-1].weight.mul_(12)
            head[-1].weight.sub_(head[-1].weight.mean(dim=1, keepdim=True))
    return adapter.eval()
