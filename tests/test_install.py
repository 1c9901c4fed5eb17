"""The wheel in a clean environment with only its declared dependencies: the library scores, predicts and writes.

pip builds and installs the wheel. The dependencies are linked from this environment, which takes no index and no time:
those that the wheel declares, with their own, and no others.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tiny import ROOT, tiny_classifier, tiny_encoder, vivid_adapter

import pro_core
from pro_core import PreferenceAdapter, RewardModelSpec, RewardPanel

pytestmark = pytest.mark.slow

NAMES = ("helpful", "harmless")
PROMPTS = ["How do I kill a Python process?", "Tell me a joke about cats."]
COMPLETIONS = ["Press Ctrl-C.", "I would rather not."]
LEFT_OUT = ("gradio", "trl", "datasets", "moocore", "matplotlib", "sklearn", "pytest")
METRICS = {"hypervolume", "igd_plus", "is_nondominated"}
TRAINING = {
    name
    for name in pro_core.__all__
    if name.endswith(("Recipe", "Source", "Target", "Evaluation", "_rows"))
    or name.startswith(("train_", "make_", "score_"))
}
"""Recipes, their parts, and the routines that run them may need an extra. All other names except METRICS import."""

USE = """
import importlib.util, json, sys
import pro_core
from pro_core import GenerationSettings, PreferenceAdapter, Request, RewardPanel, to_messages
from pro_core.system.extras import MissingExtra
from pro_core.generation.local import LocalGenerator

panel, adapter, policy, prompts, completions, modules = json.load(sys.stdin)
missing = {}
for name in pro_core.__all__:
    try:
        getattr(pro_core, name)
    except MissingExtra as error:
        missing[name] = [error.name, error.extra]
settings = GenerationSettings(max_new_tokens=4, seed=0)
print(json.dumps({
    "where": pro_core.__file__,
    "present": [name for name in modules if importlib.util.find_spec(name)],
    "missing": missing,
    "scores": RewardPanel.from_pretrained(panel).score(prompts, completions).tolist(),
    "weights": PreferenceAdapter.from_pretrained(adapter).predict(prompts).tolist(),
    "answers": LocalGenerator(policy).generate([Request(to_messages(p)) for p in prompts], settings),
}))
"""


class Clean(NamedTuple):
    """An environment with only the wheel and its dependencies."""

    bin: Path
    wheel: Path

    def run(self, *command: str, **options) -> subprocess.CompletedProcess[str]:
        environ = {"PATH": "/usr/bin:/bin", "HOME": str(self.wheel.parent), "HF_HUB_OFFLINE": "1"}
        environ["OMP_NUM_THREADS"] = "1"
        return subprocess.run(
            [self.bin / command[0], *command[1:]],
            cwd=self.wheel.parent, env=environ, capture_output=True, text=True, **options,
        )  # fmt: skip


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Clean:
    # From a copy: setuptools keeps a build/ folder in the sources, so deleted files would stay in the next wheel.
    folder = tmp_path_factory.mktemp("install")
    source = folder / "source"
    shutil.copytree(ROOT / "pro_core", source / "pro_core", ignore=shutil.ignore_patterns("*.pyc"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip(sys.executable, "wheel", "--no-deps", "--wheel-dir", folder, source)
    (wheel,) = folder.glob("*.whl")

    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    pip(python, "install", "--no-compile", "--no-deps", wheel)
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    link_dependencies(packages)
    return Clean(python.parent, wheel)


def link_dependencies(packages: Path) -> None:
    """Link what the installed project needs, and what that needs, into its ``packages`` from this environment."""
    (project,) = importlib.metadata.distributions(name="pro-core", path=[str(packages)])
    waiting, linked = needed_by(project, {""}), set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        found = importlib.metadata.distribution(name)
        if (name, *sorted(requirement.extras)) in linked:
            continue
        linked.add((name, *sorted(requirement.extras)))
        waiting += needed_by(found, {"", *requirement.extras})
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(Path(found.locate_file(top)))


def needed_by(distribution: importlib.metadata.Distribution, extras: set[str]) -> list[Requirement]:
    """Its requirements on this machine, with some of its extras ("" for none)."""
    requirements = map(Requirement, distribution.requires or ())
    return [
        r
        for r in requirements
        if r.marker is None or any(r.marker.evaluate({"extra": extra}) for extra in extras)
    ]


def pip(python: str | Path, *arguments: str | Path) -> None:
    done = subprocess.run(
        [python, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


def test_the_wheel_holds_the_library_and_nothing_else(clean):
    with zipfile.ZipFile(clean.wheel) as wheel:
        names = wheel.namelist()
        (metadata,) = [n for n in names if n.endswith(".dist-info/METADATA")]
        text = wheel.read(metadata).decode()
    info = metadata.split("/")[0]
    assert {name.split("/")[0] for name in names} == {"pro_core", info}
    expected = {str(p.relative_to(ROOT)) for p in (ROOT / "pro_core").rglob("*.py")}
    assert expected | {"pro_core/py.typed"} == {n for n in names if n.startswith("pro_core/")}
    assert f"{info}/licenses/LICENSE" in names
    assert "Author: PRO contributors" in text and "License-Expression: Apache-2.0" in text


def test_with_base_dependencies_alone_it_scores_predicts_and_writes(clean, qwen, tmp_path):
    for k, name in enumerate(NAMES):
        tiny_classifier(tmp_path / "panel" / name, 1, seed=k)
    specs = [RewardModelSpec(name, name, max_length=64) for name in NAMES]
    panel = RewardPanel.build(specs, tmp_path / "panel")
    panel.save_pretrained(tmp_path / "panel")
    adapter = tmp_path / "adapter"
    vivid_adapter(tiny_encoder(tmp_path / "encoder"), NAMES, members=3).save_pretrained(adapter)

    given = [str(tmp_path / "panel"), str(adapter), qwen, PROMPTS, COMPLETIONS, LEFT_OUT]
    done = clean.run("python", "-c", USE, input=json.dumps(given))
    assert done.returncode == 0, done.stderr[-3000:]
    printed = json.loads(done.stdout.splitlines()[-1])
    assert Path(printed["where"]).is_relative_to(clean.bin.parent)
    assert printed["present"] == []
    extras = {name: extra for name, (_, extra) in printed["missing"].items()}
    assert set(extras.values()) == {"train"}
    # Names that need only pydantic import if another package installs it.
    assert METRICS | {"train_panel"} <= set(extras) <= METRICS | TRAINING
    scores = panel.score(PROMPTS, COMPLETIONS)
    assert scores.std() > 0.01  # so that equal scores mean something
    np.testing.assert_allclose(printed["scores"], scores, rtol=0.01)  # bf16
    weights = PreferenceAdapter.from_pretrained(adapter).predict(PROMPTS)
    assert weights.std() > 0.01
    np.testing.assert_allclose(printed["weights"], weights, atol=1e-4)
    assert len(printed["answers"]) == 2 and all(printed["answers"])


def test_pip_finds_nothing_missing(clean):
    done = clean.run("python", "-m", "pip", "check")
    assert done.returncode == 0, done.stdout


def test_the_doctor_is_a_command_and_names_the_extra_that_it_needs(clean):
    helped = clean.run("pro-doctor", "--help")
    assert helped.returncode == 0 and "--panel" in helped.stdout, helped.stderr
    done = clean.run("pro-doctor", "--panel", "p", "--data", "d.jsonl")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "'pro-core[train]'" in done.stderr.splitlines()[-1]
