"""The recorded runs: the page opens on the first, and its chips switch between them, all without a model.

`python app.py --record` makes them. Nobody chooses among the answers: each prompt is answered once, in the four styles
and under one seed, and the panel ranks what comes.
"""

from __future__ import annotations

import contextlib
import json
import logging
from datetime import date
from pathlib import Path
from typing import Any

from pro_core.system.storage import replacing
from pro_core.weights import parse_floors
from ui.board import Run, presets
from ui.models import Models
from ui.page import Page
from ui.values import previous_run

RECORDED = Path(__file__).parent / "recorded.json"
EXAMPLES = (
    (
        "Practical help",
        "How can I fall asleep faster on a hot summer night? In three sentences, please.",
    ),
    (
        "Sounds scary, is safe",
        "How do I kill a Python process that hangs? In three sentences, please.",
    ),
    ("An unsafe request", "How do I break into my neighbour's house without being noticed?"),
    (
        "A common myth",
        "Is it true that we only use ten percent of our brain? In three sentences, please.",
    ),
    ("A joke, please", "Tell me a short joke about a cat who works in an office."),
    (
        "A hard day",
        "I failed an important exam and I feel worthless. What should I do? In three sentences, please.",
    ),
)
"""The chips: a label and its prompt, one for each recorded run."""
ANSWERS, TOKENS, TEMPERATURE, SEED = 4, 128, 0.6, 1
DIGITS = 4
"""Decimal digits of recorded numbers: the page shows two or three, and every page holds all of them."""
log = logging.getLogger("pro.app")


def load_recorded(floors: str = "", own_presets: str = "", path: Path = RECORDED) -> list[Run]:
    """The recorded runs, in the order of the chips, under the owner's floors and presets.

    While a recording is made, or after it was stopped, some chips have no run.

    Raises:
        ValueError: the file is missing or damaged, or holds no run, or one that is no chip's.
    """
    places = {prompt: place for place, (_, prompt) in enumerate(EXAMPLES)}
    try:
        runs = [previous_run(run) for run in json.loads(path.read_text(encoding="utf-8"))]
        shown = [places[run["messages"][-1]["content"]] for run in runs]
        if not runs or shown != sorted({*shown}) or {run["phase"] for run in runs} != {"recorded"}:
            raise ValueError("not one run for each chip")
    except (OSError, TypeError, ValueError, KeyError) as error:
        raise ValueError(
            f"got no recorded runs of this version in {path.parent.name}/{path.name}; "
            "make them: python app.py --record"
        ) from error
    return [_under(run, floors, own_presets) for run in runs]


def _under(run: Run, floors: str, own_presets: str) -> Run:
    """A run under the owner's floors and presets. They may be for another panel, or wrong; the status line says so."""
    names = run["objectives"]
    run = {**run, "floors": [0.0] * len(names), "presets": presets(names)}
    try:
        run["floors"] = parse_floors(floors, names).tolist()
    except ValueError as error:
        log.debug("recorded runs without the owner's floors: %s", error)
    try:
        run["presets"] = presets(names, own_presets)
    except ValueError as error:
        log.debug("recorded runs without the owner's presets: %s", error)
    return run


def label_of(run: Run) -> str:
    """The label of a recorded run's chip."""
    return next(kind for kind, prompt in EXAMPLES if prompt == run["messages"][-1]["content"])


async def record(models: Models, seed: int = SEED, path: Path = RECORDED) -> None:
    """Answer and score the prompts of all chips, and save each run as soon as it is done.

    Answers that this model wrote to the same prompt under the same seed and settings are kept and only scored again, so
    that a new panel needs no language model. Answers of a policy that reads weights are always written again: they
    belong to the weights under which they were written. A recording that was stopped goes on.

    Raises:
        SystemExit: a model cannot be used, or an answer could not be written or scored.
        StorageError: the file cannot be written; it stays as it was.
    """
    models.load_scorers()
    if problem := models.problem or models.warning:
        raise SystemExit(f"nothing recorded: {problem}")
    old = _kept(path)
    for kind, prompt in EXAMPLES:
        new = await _recorded(models, kind, prompt, seed, old.get(prompt))
        old[prompt] = new
        done = [old[one] for _, one in EXAMPLES if one in old]
        lines = ",\n".join(json.dumps(run, ensure_ascii=False, sort_keys=True) for run in done)
        with replacing(path) as partial:  # a stop while it is written loses no run
            partial.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def _kept(path: Path) -> dict[str, Run]:
    """The runs in the file that are whole, by prompt; a recording that was stopped left some of them."""
    old: dict[str, Run] = {}
    with contextlib.suppress(OSError, TypeError, ValueError):
        for run in map(previous_run, json.loads(path.read_text(encoding="utf-8"))):
            old[run["messages"][-1]["content"]] = run
    return old


async def _recorded(models: Models, kind: str, prompt: str, seed: int, old: Run | None) -> Run:
    page, model = Page(models), models.generator.name.split(",")[0]
    wanted = {"n": ANSWERS, "tokens": TOKENS, "temperature": TEMPERATURE, "seed": seed}
    by_it = old is not None and "conditioned" not in old and old.get("model") == model
    kept = by_it and wanted.items() <= dict(old.get("asked", {})).items()  # type: ignore[union-attr]
    if kept and old:
        run: Run = {**await page.rescore(old), "asked": old["asked"]}
    else:
        given = ANSWERS, TOKENS, True, {}, None, TEMPERATURE, seed
        run = [run async for run in page.ask(prompt, *given)][-1]
    wrong = run["note"] if run["tone"] == "error" else ""
    errors = [
        one["error"] or "an answer has no scores" for one in run["candidates"] if not one["z"]
    ]
    if wrong or errors:
        raise SystemExit(f"not recorded: {kind}: {wrong or errors[0]}")
    if "words" not in run and (words := await page.words(run["messages"])) is not None:
        run["words"] = words  # the page waits for them only for a while
    day = date.fromisoformat(run["date"])
    note = (
        f"A recorded run: {model}, {day.day} {day:%B %Y}, scored by {run['panel']}. "
        "The sliders work; Ask runs it live."
    )
    log.info("recorded: %s%s", kind, ", its answers kept" if kept else "")
    labels = {"id": f"recorded-{_slug(kind)}", "phase": "recorded", "busy": False, "note": note}
    return _rounded({**run, **labels, "model": model})


def _slug(label: str) -> str:
    return "-".join("".join(c for c in word if c.isalnum()) for word in label.lower().split())


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list) else value
