"""Check the Space, and deploy it to the Hugging Face hub.

    python spaces/deploy.py --dry-run                       # everything that can be checked without the hub, also
                                                            # what each set-up of the card would run where
    python spaces/deploy.py --dry-run --keep /tmp/space     # and keep the exact tree there, to look at or to run
    HF_TOKEN=... python spaces/deploy.py me/my-space        # the same checks, then create or update the Space
    python spaces/deploy.py me/my-space --token-file FILE --private

The uploaded tree has the card, ``requirements.txt`` and ``space_app.py`` of this folder at its top, next to ``app.py``,
``ui/``, ``pro_core/`` and ``checkpoints/demo/``. No folder in it is called ``spaces``: on a Space, Gradio imports a
package of that name and would take ours for it.

The app's settings in this environment (``PRO_ENDPOINT_URL`` and the others of :data:`VARIABLES` and :data:`SECRETS`)
become the Space's: the endpoint's address and token as secrets, because variables are public.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from huggingface_hub import HfApi, SpaceHardware

ROOT = Path(__file__).resolve().parent.parent
CHECKOUT = ("app.py", "ui", "pro_core", "checkpoints/demo", "LICENSE")
TOP = ("README.md", "requirements.txt", "space_app.py")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.py[cod]", "*.pyi", ".*")

VARIABLES = (
    "PRO_POLICY", "PRO_PANEL", "PRO_ADAPTER", "PRO_FLOORS", "PRO_PRESETS", "PRO_ENDPOINT_MODEL", "PRO_ENDPOINT_DIALECT",
    "PRO_ENDPOINT_SIGN_IN", "PRO_JUDGE_MODEL", "PRO_SENTENCES", "PRO_STRENGTH", "PRO_DECODING",
)  # fmt: skip
ADDRESSES = ("PRO_ENDPOINT_URL", "PRO_JUDGE")
SECRETS = (*ADDRESSES, "PRO_ENDPOINT_TOKEN", "PRO_JUDGE_TOKEN")
SCOPE = "inference-api"
"""What visitors who sign in let the Space do: call inference with their account."""
SETUPS = {
    "CPU only": {},
    "own endpoint, vLLM": {
        "PRO_ENDPOINT_URL": "https://name.endpoints.huggingface.cloud",
        "PRO_ENDPOINT_TOKEN": "token",
    },
    "own endpoint, TGI": {
        "PRO_ENDPOINT_URL": "https://name.endpoints.huggingface.cloud",
        "PRO_ENDPOINT_TOKEN": "token",
        "PRO_ENDPOINT_DIALECT": "tgi",
    },
    "visitors' sign-in": {
        "PRO_ENDPOINT_URL": "https://router.huggingface.co/v1",
        "PRO_ENDPOINT_MODEL": "Qwen/Qwen3-8B",
        "PRO_ENDPOINT_SIGN_IN": "1",
    },
}
"""The set-ups of the card: the app's settings in each."""
SET_UP = """
import json, sys
from ui.models import Models
from ui.where import where
for name, settings in json.load(sys.stdin).items():
    try:
        shown = where(Models(settings))
        row = shown["parts"][0]
        print(json.dumps([name, "", f"{row['name']}; {row['sent'] or shown['sent'].partition(': ')[2]}"]))
    except ValueError as error:
        print(json.dumps([name, str(error), ""]))
"""
"""Run in the tree: what each set-up would write its answers with. Nothing is loaded, and no server is asked."""
OUTBOUND_PORTS = (80, 443, 8080)

MB = 1_000_000
LFS_FROM = 10 * MB  # the hub wants larger files in LFS; upload_folder does that by itself
MAX_CHECKPOINTS, MAX_TOTAL = 30 * MB, 60 * MB


def assemble(tree: Path, root: Path = ROOT) -> None:
    """Copy what is uploaded into the empty folder ``tree``. Raises FileNotFoundError for what is missing."""
    for name in CHECKOUT:
        source, target = root / name, tree / name
        if not source.exists():
            raise FileNotFoundError(f"{source} is missing, and the Space needs it")
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=LEFT_OUT)
        else:
            shutil.copy2(source, target)
    for name in TOP:
        shutil.copy2(root / "spaces" / name, tree / name)


# ---------------------------------------------------------------- checks: each yields what is wrong


def pins(requirements: Path) -> dict[str, str]:
    """Package to exact version. Raises ValueError for a line without ``==``."""
    versions = {}
    for line in requirements.read_text(encoding="utf-8").splitlines():
        line = line.split("#")[0].strip()
        if line and not line.startswith("-"):
            name, equals, version = line.partition("==")
            if not equals or not version:
                raise ValueError(
                    f"{requirements.name}: got {line!r}, expected an exact pin, name==version"
                )
            versions[name.strip().lower().replace("-", "_")] = version.strip()
    return versions


def check_files(tree: Path) -> Iterator[str]:
    """Missing files, forbidden names, sizes, and Python that does not compile."""
    for name in (
        *CHECKOUT,
        *TOP,
        "pro_core/__init__.py",
        "checkpoints/demo/panel",
        "checkpoints/demo/adapter",
        "checkpoints/demo/policy",
    ):
        if not (tree / name).exists():
            yield f"{name} is missing from the tree"
    files = [path for path in tree.rglob("*") if path.is_file()]
    for path in sorted(tree.rglob("*")):
        name = path.relative_to(tree)
        if path.stem == "spaces":
            yield f"{name}: nothing may be called 'spaces', Gradio would import it on a Space"
        if path.name.startswith(".") or "__pycache__" in path.parts or path.is_symlink():
            yield f"{name}: hidden files, caches and links do not belong in the tree"
        if path.suffix in {".bin", ".pt", ".pth", ".pkl", ".pickle"}:
            yield f"{name}: a pickle; checkpoints are safetensors and JSON"
        if path.suffix == ".py":
            try:
                compile(path.read_bytes(), str(name), "exec")
            except (SyntaxError, ValueError) as error:
                yield f"{name} does not compile: {error}"
    demo = sum(path.stat().st_size for path in files if tree / "checkpoints" in path.parents)
    total = sum(path.stat().st_size for path in files)
    if demo > MAX_CHECKPOINTS:
        yield f"checkpoints/demo holds {demo / MB:.1f} MB, expected at most {MAX_CHECKPOINTS / MB:.0f}"
    if total > MAX_TOTAL:
        yield f"the tree holds {total / MB:.1f} MB, expected at most {MAX_TOTAL / MB:.0f}"


def front_matter(card: Path) -> dict[str, Any]:
    """The fields between the two ``---`` of a card. Raises ValueError when there are none."""
    parts = re.match(r"---\n(.*?)\n---\n", card.read_text(encoding="utf-8"), re.DOTALL)
    try:
        fields = yaml.safe_load(parts[1]) if parts else None
    except yaml.YAMLError as error:
        raise ValueError(f"{card.name}: the front matter is not YAML ({error})") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{card.name}: no front matter between two lines of ---")
    return fields


COLORS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def check_card(tree: Path, root: Path = ROOT) -> Iterator[str]:
    """The card's fields and their values."""
    try:
        card = front_matter(tree / "README.md")
    except (OSError, ValueError) as error:
        yield str(error)
        return
    gradio = pins(root / "requirements.txt").get("gradio")
    expected = {
        "sdk": "gradio",
        "sdk_version": gradio,
        "python_version": "3.11",
        "license": "apache-2.0",
    }
    for field, value in expected.items():
        if card.get(field) != value:
            yield f"card: got {field} {card.get(field)!r}, expected {value!r}"
    for field in ("title", "emoji", "short_description"):
        if not isinstance(card.get(field), str) or not card[field].strip():
            yield f"card: got {field} {card.get(field)!r}, expected text"
    if len(str(card.get("short_description", ""))) > 60:
        yield f"card: short_description has {len(card['short_description'])} characters, at most 60 are shown"
    for field in ("colorFrom", "colorTo"):
        if card.get(field) not in COLORS:
            yield f"card: got {field} {card.get(field)!r}, expected one of {', '.join(COLORS)}"
    hardware = [member.value for member in SpaceHardware]
    if card.get("suggested_hardware") not in hardware:
        yield f"card: got suggested_hardware {card.get('suggested_hardware')!r}, expected one of {hardware}"
    app_file = card.get("app_file")
    if not isinstance(app_file, str) or not (tree / app_file).is_file():
        yield f"card: app_file {app_file!r} is not in the tree"
    for field in ("models", "datasets", "tags", "preload_from_hub"):
        entries = card.get(field)
        if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
            yield f"card: got {field} {entries!r}, expected a list of texts"
        elif field != "tags" and not all(HUB_ID.fullmatch(entry.split()[0]) for entry in entries):
            yield f"card: {field} {entries!r}: expected hub ids, owner/name"
    scopes = card.get("hf_oauth_scopes")
    if card.get("hf_oauth") is not True or scopes != [SCOPE]:
        yield f"card: got hf_oauth {card.get('hf_oauth')!r} with {scopes!r}, expected true with [{SCOPE}]"
    preloaded = {str(entry).split()[0] for entry in card.get("preload_from_hub") or []}
    if not preloaded <= set(card.get("models") or []):
        yield "card: preload_from_hub names a model that models does not"


def imported(tree: Path, module: str) -> set[str]:
    """Packages that ``module`` imports, also inside functions and by way of the tree's own modules."""
    seen: set[str] = set()
    outside: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        path = tree / name.replace(".", "/")
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in seen or not path.is_file():
            continue
        seen.add(name)
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for full in names:
                parents = full.split(".")
                if (tree / parents[0]).is_dir() or (tree / f"{parents[0]}.py").is_file():
                    todo += [".".join(parents[: i + 1]) for i in range(len(parents))]
                elif parents[0] not in sys.stdlib_module_names:
                    outside.add(parents[0])
    return outside


def check_requirements(tree: Path, root: Path = ROOT) -> Iterator[str]:
    """Exact pins, the project's own versions, the CPU build of torch, and all that the app imports."""
    try:
        ours, project = pins(tree / "requirements.txt"), pins(root / "requirements.txt")
    except (OSError, ValueError) as error:
        yield str(error)
        return
    for name, version in ours.items():
        if project.get(name) != version:
            yield f"requirements: got {name}=={version}, expected the project's pin {project.get(name)}"
    if "whl/cpu" not in (tree / "requirements.txt").read_text(encoding="utf-8"):
        yield "requirements: no index of torch's CPU build; the CUDA build takes several GB on a CPU Space"
    if "gradio" in ours:
        yield "requirements: gradio comes by sdk_version, a second pin can contradict it"
    distributions = packages_distributions()  # yaml is PyYAML's, sklearn scikit-learn's
    for name in sorted(imported(tree, "space_app") - {"gradio"}):
        providers = distributions.get(name, [name])
        if not {d.lower().replace("-", "_") for d in providers} & set(ours):
            yield f"requirements: the app imports {name}, which is not listed"


SECRET_PATTERNS = {
    "a Hugging Face token": rb"\bhf_[A-Za-z0-9]{20,}",
    "a private key": rb"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "an OpenAI key": rb"\bsk-[A-Za-z0-9_-]{20,}",
    "a GitHub token": rb"\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_[A-Za-z0-9_]{30,}",
    "an AWS key": rb"\bAKIA[0-9A-Z]{16}\b",
}


def check_secrets(
    tree: Path, root: Path = ROOT, environ: Mapping[str, str] = os.environ
) -> Iterator[str]:
    """No token, no key, no token of this environment, no path of this machine. The secret is not printed."""
    private = {
        f"the value of {k}": environ[k]
        for k in ("HF_TOKEN", "PRO_ENDPOINT_TOKEN", "PRO_JUDGE_TOKEN")
        if environ.get(k)
    }
    private |= {"a path of this machine": f"{root}/"}
    patterns = SECRET_PATTERNS | {what: re.escape(text.encode()) for what, text in private.items()}
    for path in sorted(p for p in tree.rglob("*") if p.is_file()):
        content = path.read_bytes()
        for what, pattern in patterns.items():
            if re.search(pattern, content):
                yield f"{path.relative_to(tree)} holds {what}"


def check_settings(environ: Mapping[str, str]) -> Iterator[str]:
    """Settings that would not work on a Space: local folders, ports that Spaces cannot reach."""
    for name in ("PRO_POLICY", "PRO_PANEL", "PRO_ADAPTER", "PRO_JUDGE"):
        if environ.get(name) and Path(environ[name]).exists():
            yield f"{name}={environ[name]} is a folder here; a Space needs a hub id (upload it first)"
    for name in ADDRESSES:
        url = environ.get(name, "")
        if not url or (name == "PRO_JUDGE" and "://" not in url):  # a model in the app's process
            continue
        try:
            parts = urlsplit(url)
            port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
        except ValueError:
            port = None
        if port not in OUTBOUND_PORTS:
            yield f"{name}: got port {port}, a Space reaches only {OUTBOUND_PORTS}"


def dry_run(tree: Path, environ: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(set-up, what is wrong with it, who writes the answers where) of :data:`SETUPS` and of this environment."""
    own = {k: v for k, v in environ.items() if k in (*VARIABLES, *SECRETS) and v}
    setups = SETUPS | ({"this environment": own} if own else {})
    done = subprocess.run(
        [sys.executable, "-B", "-c", SET_UP],
        input=json.dumps(setups),
        capture_output=True,
        text=True,
        cwd=tree,
        env={k: v for k, v in environ.items() if not k.startswith("PRO_")},
    )
    if done.returncode:
        return [("the app", (done.stderr.strip().splitlines() or ["it does not start"])[-1], "")]
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def problems(tree: Path, root: Path = ROOT) -> list[str]:
    """Everything wrong with a tree; empty when it can be uploaded."""
    checks = (
        check_files(tree), check_card(tree, root), check_requirements(tree, root), check_secrets(tree, root)
    )  # fmt: skip
    return [problem for check in checks for problem in check]


# ---------------------------------------------------------------- deploying


def deploy(
    tree: Path, repo_id: str, token: str, private: bool, environ: Mapping[str, str], wait_s: float
) -> str:
    """Create or update the Space and wait until it runs. Returns its stage, such as ``RUNNING``."""
    api = HfApi(token=token)
    api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
    for name in SECRETS:
        if environ.get(name):
            api.add_space_secret(repo_id, name, environ[name])
    for name in VARIABLES:
        if environ.get(name):
            api.add_space_variable(repo_id, name, environ[name])
    api.upload_folder(
        repo_id=repo_id, repo_type="space", folder_path=tree, delete_patterns="*",
        commit_message="Deploy the Preference Orchestrator",
    )  # fmt: skip
    print(f"uploaded; waiting for the build, at most {wait_s:.0f} s ...", flush=True)
    return str(api.wait_for_space(repo_id, timeout=wait_s, poll_interval=5).stage)


def main(arguments: list[str] | None = None) -> None:
    """Assemble, check, and deploy unless ``--dry-run``. Problems are printed one per line, with status 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("repo_id", nargs="?", help="owner/name of the Space")
    parser.add_argument("--dry-run", action="store_true", help="check, upload nothing")
    parser.add_argument("--keep", type=Path, help="leave the tree in this new folder")
    parser.add_argument(
        "--token-file", type=Path, help="file with a token that can write (default: HF_TOKEN)"
    )
    parser.add_argument("--private", action="store_true", help="make a new Space private")
    parser.add_argument(
        "--wait", type=float, default=1800, metavar="S", help="seconds to wait for it (1800)"
    )
    options = parser.parse_args(arguments)
    if not options.dry_run and not (options.repo_id and HUB_ID.fullmatch(options.repo_id)):
        parser.error(f"got the Space {options.repo_id!r}, expected owner/name (or --dry-run)")

    with tempfile.TemporaryDirectory() as scratch:
        tree = options.keep or Path(scratch) / "tree"
        tree.mkdir(parents=True)
        try:
            assemble(tree)
        except FileNotFoundError as error:
            sys.exit(f"error: {error}")
        wrong = [*problems(tree), *check_settings(os.environ)]
        if options.dry_run and not wrong:
            for name, problem, answers in dry_run(tree, os.environ):
                if problem:
                    wrong.append(f"set-up {name}: {problem}")
                else:
                    print(f"set-up {name}: {answers}")
        for problem in wrong:
            print(f"problem: {problem}", file=sys.stderr)
        if wrong:
            sys.exit(f"error: {len(wrong)} problem{'s' * (len(wrong) > 1)}, nothing was uploaded")
        files = sorted(path for path in tree.rglob("*") if path.is_file())
        for path in files:
            size = path.stat().st_size
            note = "  (over 10 MB: goes to LFS)" if size > LFS_FROM else ""
            print(f"{size:>12,}  {path.relative_to(tree)}{note}")
        print(
            f"{sum(p.stat().st_size for p in files):>12,}  in {len(files)} files; all checks passed"
        )
        if options.dry_run:
            return

        token = (
            options.token_file.read_text().strip()
            if options.token_file
            else os.environ.get("HF_TOKEN")
        )
        if not token:
            sys.exit(
                "error: no token: set HF_TOKEN or name a --token-file (a token that can write)"
            )
        try:
            stage = deploy(tree, options.repo_id, token, options.private, os.environ, options.wait)
        except (
            Exception
        ) as error:  # the client's, its HTTP library's, OSError: no common base class
            sys.exit(f"error: the hub did not take it: {str(error).replace(token, '***')}")
    url = f"https://huggingface.co/spaces/{options.repo_id}"
    if stage != "RUNNING":
        sys.exit(f"error: the Space ended in stage {stage}; its log is at {url}?logs=build")
    print(f"running: {url}")


if __name__ == "__main__":
    main()
