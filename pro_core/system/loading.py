"""Loading models from disk and from the hub: their code and pickles never run, and what does not fit fails at load.

People combine models and tokenizers. If the two disagree about the padding token, a sequence classifier reads a text's
score at the padding, so the score depends on the rest of the batch. If they disagree about lengths or vocabularies, the
first long or rare text fails. Both are checked here, before any text is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pro_core.system.storage import PICKLES, StorageError, first_line

SAFE: dict[str, Any] = {"trust_remote_code": False}
"""For every ``from_pretrained`` of a config or a tokenizer. If unset, transformers asks on the terminal whether to run
the code in a model's folder."""
SAFE_MODEL: dict[str, Any] = SAFE | {"use_safetensors": True}
"""For every ``from_pretrained`` of a model: unpickling parameters can run code too."""

NO_LIMIT = int(1e30)
"""transformers' value for a tokenizer without a maximum length."""
POSITION_TABLES = (
    *("position_embeddings", "position_embedding", "embed_positions", "positions_embed", "wpe"),
)
"""The names that architectures give their table of learned positions."""


PICKLED = (
    "its parameters exist only as pickles, which can run code; if you trust it, load it with transformers and call "
    "save_pretrained, which writes safetensors"
)


def loading_failure(error: Exception, source: str) -> str:
    """Why a model did not load, as a part of a sentence."""
    if isinstance(error, OSError) and pickled_only(source):
        return PICKLED
    return first_line(error)


PEFT_FILE = "adapter_model.safetensors"
"""The one file whose parameters PEFT reads without unpickling."""


def refuse_pickles(folder: str | Path) -> None:
    """Refuse a local folder that would be loaded from pickles; anything else, such as a hub id, passes.

    PEFT has no ``use_safetensors``: without :data:`PEFT_FILE` it loads a pickle, whatever else the folder holds.

    Raises:
        StorageError: a folder with pickles only, or an adapter without that file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return
    adapter = (folder / "adapter_config.json").is_file() and not (folder / PEFT_FILE).is_file()
    if adapter and not any(folder.glob("adapter_model*")):
        raise StorageError(
            f"cannot load {str(folder)!r}: it has an adapter_config.json and no {PEFT_FILE}"
        )
    if adapter or pickled_only(str(folder)):
        raise StorageError(f"cannot load {str(folder)!r}: {PICKLED}")


def pickled_only(source: str) -> bool:
    """Whether a folder or hub repository holds pickles and no safetensors; False where the hub cannot be asked."""
    if Path(source).is_dir():
        names = [file.name for file in Path(source).iterdir()]
    else:
        from huggingface_hub import list_repo_files

        try:
            names = list_repo_files(source)
        except Exception:  # no hub, or no such id: the loader's error says which
            return False
    pickles = any(Path(name).match(pattern) for name in names for pattern in PICKLES)
    return pickles and not any(name.endswith(".safetensors") for name in names)


# ---------------------------------------------------------------- a model and its tokenizer


def match_tokenizer(model: Any, tokenizer: Any) -> None:
    """Give both the same padding token, padding on the right, and the maximum length (``model_max_length``).

    Padding is on the right because GPT-2 counts positions from the left, padding included, and encoders use the first
    token. A tokenizer's own maximum length is often a default, so only the model's positions count.

    Raises:
        ValueError: no token can serve as padding, or the tokenizer belongs to another model.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        # A text never produces special tokens; sooner or later one would produce any other token.
        special = set(tokenizer.all_special_ids)
        beyond = {t: i for t, i in tokenizer.get_vocab().items() if i >= rows and i not in special}
        if beyond:
            token, number = min(beyond.items(), key=lambda item: item[1])
            raise ValueError(
                f"its tokenizer gives the token {token!r} the number {number}, but its embeddings have {rows} rows: "
                "they belong to different models"
            )
    pad = _padding(model.config, tokenizer, rows)
    if tokenizer.pad_token_id != pad:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = pad
    tokenizer.padding_side = "right"
    tokenizer.model_max_length = greatest_length(model) or NO_LIMIT


def _padding(config: Any, tokenizer: Any, rows: int) -> int:
    """The id of the tokenizer's padding token or, if the model does not know it, of one that no text produces."""
    if _is_row(tokenizer.pad_token_id, rows):
        return tokenizer.pad_token_id
    special = set(tokenizer.all_special_ids)
    named = config.get_text_config().pad_token_id
    for token in (named, tokenizer.eos_token_id, tokenizer.unk_token_id):
        if _is_row(token, rows) and token in special:
            return token
    raise ValueError(
        "neither its tokenizer nor its config names a usable padding token, and there is no end-of-text token, so "
        "texts of different lengths cannot be read together: set pad_token in its tokenizer_config.json"
    )


def _is_row(token: Any, rows: int) -> bool:
    return isinstance(token, int) and 0 <= token < rows


def greatest_length(model: nn.Module) -> int | None:
    """The number of tokens that a model can read; None if there is no limit.

    For rotary positions, which degrade gradually, it is the number in the config. For a table of positions it is the
    number of rows without the reserved ones (the first two of RoBERTa and BART).
    """
    config: Any = model.config
    text = config.get_text_config()
    named = getattr(text, "max_position_embeddings", None)
    if getattr(text, "rope_parameters", None):
        return named  # a table may belong to images
    tables = [
        module.num_embeddings - _not_given_out(module)
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in POSITION_TABLES and isinstance(module, nn.Embedding)
    ]
    if tables and named:
        tables.append(named)
    return min(tables, default=None)


def _not_given_out(table: nn.Embedding) -> int:
    if table.padding_idx is not None:
        return table.padding_idx + 1
    return getattr(table, "offset", 0)


# ---------------------------------------------------------------- a text and its neighbours


@torch.inference_mode()
def check_neighbours(
    read: Callable[[Sequence[dict[str, list[int]]]], torch.Tensor],
    short: dict[str, list[int]],
    long: dict[str, list[int]],
) -> None:
    """Check that a short and a long text give the same numbers alone and in one batch.

    Args:
        read: maps token lists to numbers (B, D), in fp32, so that rounding does not matter.

    Raises:
        ValueError: a text's numbers depend on the rest of the batch, or are not finite.
    """
    alone = torch.cat([read([short]), read([long])]).float()
    together = read([short, long]).float()
    spread, size = (alone[0] - alone[1]).abs().max(), alone.abs().max()
    difference = (alone - together).abs()
    if not bool((difference <= 0.01 * spread + 1e-4 * size).all()):
        row, column = divmod(int(difference.nan_to_num(torch.inf).argmax()), alone.shape[1])
        raise ValueError(
            f"the same text gives {alone[row, column]:.4g} alone and {together[row, column]:.4g} beside a longer one, "
            "so the model reads the padding: its padding token or its pooling is wrong"
        )
