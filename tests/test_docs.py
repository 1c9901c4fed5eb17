"""README and docs: everything they show works. Examples print what the page says, commands exist and take their
arguments, links lead somewhere, tables agree with the result rows, and every metric is explained.

A comment above a block of commands says what it needs. Blocks under `<!-- gpu -->`, `<!-- server -->` or `<!-- hub -->`
are checked but never run; test_train_scripts runs the block under `<!-- own pairs -->`.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import get_type_hints

import pytest
from test_train_scripts import own_pairs, write_rows

from pro_core.data.public_sets import PUBLIC_SETS
from pro_core.doctor.__main__ import parse as parse_doctor
from pro_core.evaluation.results import read_rows
from pro_core.reporting.tables import fill_tables
from pro_core.runs.recipes import Recipe

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
NEEDS = ("gpu", "server", "hub", "own pairs")
SERVERS = ("vllm", "docker", "hf")
"""Programs of other projects, which only blocks that need a server or the hub may call."""
SETTINGS = {"KEY", "POLICY", "HF_TOKEN", "PRO_DATA_DIR", "VLLM_ALLOW_RUNTIME_LORA_UPDATING"}
"""Environment variables in commands, besides those that `app.py --help` lists."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, first line, language and text, and what it needs by the comment above."""

    page: Path
    line: int
    language: str
    text: str
    needs: str = ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """A page's fenced blocks, in order.

    Raises:
        ValueError: a fence does not close.
    """
    found, opened, lines = [], 0, page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.startswith("```"):
            continue
        if not opened:
            opened = number
            continue
        above = lines[opened - 2] if opened > 1 else ""
        needs = re.fullmatch(r"<!-- (.+) -->", above)
        text = "\n".join(lines[opened : number - 1])
        language = lines[opened - 1][3:].strip()
        found.append(Block(page, opened, language, text, needs[1] if needs else ""))
        opened = 0
    if opened:
        raise ValueError(f"{page}:{opened}: the fence does not close")
    return found


BLOCKS = [block for page in PAGES for block in blocks(page)]


def commands(text: str) -> list[list[str]]:
    """The commands of a block as lists of words, without comments. A quoted text may span lines."""
    found, waiting = [], ""
    for line in text.splitlines():
        waiting += line + "\n"
        if line.endswith("\\"):
            continue
        lexer = shlex.shlex(waiting.replace("\\\n", " "), posix=True, punctuation_chars=";&|")
        lexer.whitespace_split, lexer.commenters = True, "#"
        try:
            words = list(lexer)
        except ValueError:  # a quote is open
            continue
        waiting, command = "", []
        for word in [*words, ";"]:
            if set(word) <= set(";&|"):
                found += [command] if command else []
                command = []
            else:
                command.append(word)
    assert not waiting, f"a quote does not close: {waiting}"
    return found


COMMANDS = [
    pytest.param(block, command, id=f"{block} {' '.join(command)[:60]}")
    for block in BLOCKS
    if block.language == "bash"
    for command in commands(block.text)
]


def test_every_block_has_a_language_and_a_known_need():
    for block in BLOCKS:
        assert block.language in ("bash", "python", "text", "json"), str(block)
        assert not block.needs or block.needs in NEEDS, f"{block}: {block.needs}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(b.language == "python" for b in blocks(page))],
    ids=lambda page: page.name,
)
def test_examples_print_what_the_page_says(page, tmp_path, monkeypatch, capsys):
    """A page's Python blocks run in order, in one namespace. A text block below one is the end of its output."""
    for name in ("checkpoints", "recipes"):
        (tmp_path / name).symlink_to(ROOT / name)
    write_rows(tmp_path / "pairs.jsonl", own_pairs(160))
    monkeypatch.chdir(tmp_path)
    of_page = blocks(page)
    known: dict[str, object] = {"__name__": "example"}
    for block, below in zip(of_page, [*of_page[1:], None], strict=True):
        if block.language != "python":
            continue
        exec(compile(block.text, str(block), "exec"), known)
        printed = capsys.readouterr().out.splitlines()
        if below is not None and below.language == "text":
            lines = below.text.splitlines()
            assert printed[-len(lines) :] == lines, str(block)


# ---------------------------------------------------------------- commands


@cache
def help_of(*script: str) -> str:
    done = subprocess.run(
        [sys.executable, *script, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


def app_settings() -> set[str]:
    return set(re.findall(r"^  ([A-Z_]+)  ", help_of("app.py"), re.MULTILINE)) | SETTINGS


def recipe_class(script: str) -> type[Recipe]:
    """The class of a script's recipe, which its ``main`` takes."""
    main = importlib.import_module(f"train.{script}").main
    return get_type_hints(main)[next(iter(inspect.signature(main).parameters))]


def read_by(kind: type[Recipe], arguments: list[str]) -> None:
    """Check a script's arguments: a recipe of this repository, and changes that it accepts."""
    recipe, *changes = arguments
    kind.read(ROOT / recipe, changes)


def check_evaluate(arguments: list[str]) -> None:
    evaluate = importlib.import_module("train.evaluate")
    options = evaluate.parse(arguments)
    for recipe in options.recipes:
        evaluate.RECIPES[options.what].read(ROOT / recipe, options.set)


def check_prepare_data(arguments: list[str]) -> None:
    _, *names = arguments
    assert set(names) - {"--list"} <= set(PUBLIC_SETS)


def check_script(path: str, arguments: list[str]) -> None:
    """Check a script of this repository and its arguments."""
    assert (ROOT / path).is_file(), path
    folder, script = Path(path).parts[0], Path(path).stem
    if script == "evaluate":
        check_evaluate(arguments)
    elif script == "prepare_data":
        check_prepare_data(arguments)
    elif folder == "train":
        read_by(recipe_class(script), arguments)
    else:
        before = [word for word in arguments[:1] if not word.startswith("-")]
        for option in (word for word in arguments if word.startswith("--")):
            assert option in help_of(path, *before), f"{path} has no {option}"


def check_python(arguments: list[str], block: Block) -> None:
    first, *rest = arguments
    if first == "-c":
        for node in ast.walk(ast.parse(rest[0])):
            if isinstance(node, ast.ImportFrom):
                home = importlib.import_module(node.module or "")
                assert all(hasattr(home, alias.name) for alias in node.names), rest[0]
    elif first == "-m" and rest[0] == "pro_core.doctor":
        parse_doctor(rest[1:])
    elif first == "-m":
        assert block.needs == "server", rest[0]
    else:
        check_script(first, rest)


def check_launch(arguments: list[str], block: Block) -> None:
    """Check ``accelerate launch`` with the options that these pages use, and the script after it."""
    assert arguments[0] == "launch"
    script = next(i for i, word in enumerate(arguments) if word.endswith(".py"))
    options = iter(arguments[1:script])
    for option in options:
        if option == "--config_file":
            assert (ROOT / next(options)).is_file()
        elif option == "--num_processes":
            assert int(next(options)) > 1
        else:
            assert option == "--multi_gpu", option
    check_python(arguments[script:], block)


@pytest.mark.slow  # it imports every script
@pytest.mark.parametrize(("block", "command"), COMMANDS)
def test_a_command_is_one_that_exists_and_takes_what_it_is_given(block, command):
    words = list(command)
    while words and (setting := re.match(r"([A-Z_]+)=", words[0])):
        assert setting[1] in app_settings(), f"no setting {setting[1]}"
        words.pop(0)
    if not words:
        return
    program, *arguments = words
    if program == "python":
        check_python(arguments, block)
    elif program == "accelerate":
        check_launch(arguments, block)
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert arguments[0] in targets
    elif program == "pro-doctor":
        parse_doctor(arguments)
    else:
        assert program in SERVERS and block.needs in ("server", "hub"), f"unknown: {program}"


def test_extras_that_the_readme_installs_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.findall(r'pip install "\.\[([a-z,]+)\]"', (ROOT / "README.md").read_text())
    assert named and all(set(n.split(",")) <= set(project["optional-dependencies"]) for n in named)


def test_both_pages_have_the_same_four_commands_for_own_pairs():
    readme = next(b for b in BLOCKS if b.needs == "own pairs")
    page = next(b for b in blocks(ROOT / "docs" / "own_data.md") if "own_panel" in b.text)
    assert readme.text == page.text


# ---------------------------------------------------------------- the pages themselves


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 170
    assert len(text.split()) <= 1800


def slug(heading: str) -> str:
    """GitHub's anchor of a heading."""
    plain = re.sub(r"[^\w\s-]", "", re.sub(r"[`*]", "", heading).strip().lower())
    return re.sub(r"\s", "-", plain)


def anchors(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "results" / "README.md"], ids=lambda p: f"{p.parent.name}/{p.name}"
)
def test_every_link_leads_to_a_file_and_a_heading(page):
    links = re.findall(r"(?:\]\(|src=\")([^)\"\s]+)[)\"]", page.read_text(encoding="utf-8"))
    for link in links:
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_and_names_in_the_texts_exist(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:train|recipes|pro_core|docs|tests|spaces|ui)/[\w./-]+)`", text)
    named += re.findall(r"`python ([\w/]+\.py)", text)
    for path in named:
        assert (ROOT / path).exists(), path
    for module, name in re.findall(r"`(pro_core(?:\.\w+)*)\.(\w+)`", text):
        assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_those_of_the_result_rows(page, tmp_path):
    copy = tmp_path / page.name
    copy.write_bytes(page.read_bytes())
    fill_tables(copy, ROOT / "results")
    assert copy.read_text(encoding="utf-8") == page.read_text(encoding="utf-8"), (
        "run: python train/evaluate.py readme"
    )


def imported_rooms(module: Path) -> set[str]:
    """The rooms of `pro_core` from which a module imports."""
    tree = ast.walk(ast.parse(module.read_text(encoding="utf-8")))
    nodes = [node for node in tree if isinstance(node, ast.ImportFrom | ast.Import)]
    names = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    names |= {alias.name for node in nodes for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("pro_core.")}


def test_a_room_imports_only_from_rooms_above_it_in_the_architecture():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = re.findall(r"^\| `pro_core/(\w+)", text, re.MULTILINE)
    folder = ROOT / "pro_core"
    parts = {p.stem for p in folder.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}
    assert set(rooms) == parts - {"__init__"}
    for place, room in enumerate(rooms):
        modules = [*(folder / room).rglob("*.py"), folder / f"{room}.py"]
        for module in filter(Path.is_file, modules):
            assert imported_rooms(module) <= set(rooms[: place + 1]), module


# ---------------------------------------------------------------- the glossary


@cache
def glossary() -> list[re.Pattern[str]]:
    """One pattern per name of the glossary. A placeholder matches the names that the page lists or that rows have."""
    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8").split("## Glossary")[1]
    about, *_ = text.split("\n### ")
    objectives = re.findall(r"`([a-z-]+)`", about)
    cells = re.findall(r"^\| (`.+?) \|", text, re.MULTILINE)
    names = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    stands_for = {
        "<objective>": f"(?:{'|'.join(objectives)})",
        "<source>": r"[a-z]+(?:_[a-z]+)*_(?:pairs|responses)",
    }
    plain = []
    for name in names:
        pattern = re.escape(name)
        for word, meaning in stands_for.items():
            pattern = pattern.replace(re.escape(word), meaning)
        plain.append(pattern)
    metric = re.escape("<metric>")
    one = "|".join(p for p in plain if metric not in p)
    return [re.compile(p.replace(metric, f"(?:{one})")) for p in plain]


@cache
def measured() -> frozenset[tuple[str, str]]:
    """(file, name) of every number in the result rows, their leads and their curves."""
    return frozenset(
        (file.name, name)
        for file in (ROOT / "results").glob("*.jsonl")
        for row in read_rows(file)
        for part in (row, *row["leads"].values(), {"metrics": row["curves"]})
        for name in part["metrics"]
    )


def test_the_glossary_explains_every_metric_of_the_results():
    assert measured()
    missing = [
        (file, name)
        for file, name in measured()
        if not any(pattern.fullmatch(name) for pattern in glossary())
    ]
    assert not missing


def test_the_glossary_has_no_metric_that_no_row_has():
    names = {name for _, name in measured()}
    unused = [p.pattern for p in glossary() if not any(p.fullmatch(name) for name in names)]
    assert not unused


# ---------------------------------------------------------------- recipes


def test_the_list_of_recipes_names_every_one_and_no_other():
    named = set(re.findall(r"`([\w/]+\.yaml)`", (ROOT / "recipes" / "README.md").read_text()))
    assert named == {path.relative_to(ROOT / "recipes").as_posix() for path in RECIPES}


RUN = re.compile(r"train/(\w+\.py (?:\w+ )?recipes/[\w/.]+\.yaml(?: [\w.]+=(?:'[^']*'|[^\s;]+))*)")
"""A call of a script in a recipe's header, without what follows it."""


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_recipes_header_has_its_command_what_it_took_and_what_to_expect(recipe):
    """Panels and launchers are not runs, so they need no time and no number."""
    lines = recipe.read_text(encoding="utf-8").splitlines()
    head = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    assert head
    if recipe.parent.name in ("panels", "accelerate"):
        return
    calls = [call for line in head if line.startswith("#   ") for call in RUN.findall(line)]
    for call in calls:
        script, *arguments = shlex.split(call.replace("$seed", "0"))
        check_script(f"train/{script}", arguments)
    assert any(recipe.relative_to(ROOT).as_posix() in call for call in calls), head
    for label in ("# Took", "# Expect"):
        assert any(line.startswith(label) for line in head), head
