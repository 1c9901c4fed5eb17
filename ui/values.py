"""Checks of what visitors and callers send, and numbers as JSON can carry them.

Gradio's components take whatever they get: a list in a text box becomes its `repr`, and the board's run may be any
JSON. So every handler checks its values here. An error is a ValueError with one sentence.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np

from pro_core.data.objectives import Message, check_objective_names
from pro_core.data.schema import MAX_PROMPT_CHARS, clean_text, to_messages
from pro_core.generation import STYLES, Finish
from pro_core.generation.mixing import STRONGEST
from pro_core.weights import as_weights
from ui.board import Added, Answer, Asked, Moved, Run

MAX_ANSWERS, MAX_TOKENS, LONGEST = 8, 512, 200_000
"""Limits: answers per request, tokens per answer, and characters of a text that is not a prompt."""
MAX_ADDED, LONGEST_SENTENCE = 3, 200
"""Limits: objectives that a visitor adds to a run, and characters of the sentence of one."""
SHORT, MAX_WORDS, MAX_OBJECTIVES, MAX_MEMBERS = 1_000, 512, 40, 32
PHASES = ("recorded", "writing", "done", "stopped", "shared")
FOREIGN = ("recorded", "shared")
"""Runs in these phases may be of another panel."""
WARMEST = 2.0
STALE = "What this page shows is out of date: ask a new question."

# ---------------------------------------------------------------- single values


def text(value: Any, what: str) -> str:
    """A clean text (see :func:`pro_core.data.schema.clean_text`). Raises ValueError for anything else, also None."""
    if not isinstance(value, str):
        raise ValueError(f"got {kind(value)} as {what}, expected a text")
    return clean_text(value)


def whole(value: Any, low: int, high: int, what: str) -> int:
    """A whole number from low to high; JSON and sliders may send it as 4.0. Raises ValueError for anything else."""
    wanted = f"expected a whole number from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"got {kind(value)} as the number of {what}, {wanted}")
    if not low <= value <= high or value != int(value):  # the first is true of NaN, too
        raise ValueError(f"got {reprlib.repr(value)} {what}, {wanted}")
    return int(value)


def flag(value: Any, what: str) -> bool:
    """True or False. Raises ValueError for anything else, also for 1."""
    if not isinstance(value, bool):
        raise ValueError(f"got {kind(value)} as {what}, expected true or false")
    return value


def conversation(prompt: Any) -> list[Message]:
    """Clean messages from a caller's prompt, a text or a list of messages. Raises ValueError."""
    if not isinstance(prompt, (str, list)):
        raise ValueError(f"got {kind(prompt)} as the prompt, expected a text or a list of messages")
    return to_messages(prompt)


def weights_or_none(value: Any, objectives: Sequence[str]) -> list[float | None] | None:
    """The weights (K,) of the page's sliders, or None while the visitor has set none.

    None in place of a weight: the visitor has not set it, and the predicted weights share what the others leave.

    Raises:
        ValueError: they are not K finite numbers from 0 to 1 that sum to 1, within 0.02, or to at most 1 where some
            are None.
    """
    if value is None:
        return None
    if not isinstance(value, list) or not all(is_number(x) for x in value if x is not None):
        raise ValueError(f"got {kind(value)} as weights, expected {len(objectives)} numbers")
    given = [None if x is None else float(x) for x in value]
    known = [x for x in given if x is not None]
    if None not in given or len(given) != len(objectives):
        as_weights(known, objectives)
    elif min(known, default=0.0) < 0 or sum(known) > 1.02:
        raise ValueError("got weights below 0 or with a sum above 1, expected from 0 to 1 together")
    return given


def completed(given: Sequence[float | None], predicted: np.ndarray) -> np.ndarray:
    """Weights (K,): those that are given, and for the others what is left, in the proportions of the predicted ones."""
    free = np.array([x is None for x in given])
    weights = np.array([0.0 if x is None else x for x in given])
    parts = predicted[free] if predicted[free].sum() > 0 else np.ones(free.sum())
    weights[free] = max(0.0, 1 - weights.sum()) * parts / parts.sum() if free.any() else 0.0
    return weights


def some_of(value: Any, count: int) -> list[int] | None:
    """The places (at least one) of some of `count` answers, or None for all. Raises ValueError for anything else."""
    if value is None:
        return None
    if value == []:
        raise ValueError("All answers are pinned: unpin one to write it again.")
    if not isinstance(value, list):
        raise ValueError(f"got {kind(value)} as the answers to write, expected their numbers")
    return sorted({whole(one, 0, count - 1, "answers") for one in value})


def temperature(value: Any) -> float:
    """A sampling temperature from 0 to 2. Raises ValueError for anything else."""
    if not is_number(value) or not 0 <= value <= WARMEST:
        raise ValueError(f"got {reprlib.repr(value)} as the temperature, expected 0 to {WARMEST:g}")
    return float(value)


def strength(value: Any) -> float:
    """How strongly weights mix a policy, from 0 to 2. Raises ValueError for anything else."""
    if not is_number(value) or not 0 <= value <= STRONGEST:
        raise ValueError(f"got {reprlib.repr(value)} as the strength, expected 0 to {STRONGEST:g}")
    return float(value)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number below 1e12 in size; true and false are not numbers."""
    # JSON may hold an integer over 1e308, which no float can.
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return real and abs(value) < 1e12 and math.isfinite(value)


def kind(value: Any) -> str:
    """The kind of a JSON value, in words."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    if value is None:
        return "nothing"
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else "a value")


# ---------------------------------------------------------------- the run that a browser sends back


def previous_run(value: Any, objectives: Sequence[str] | None = None) -> Run:
    """The board's run from the browser, checked key by key, so that handlers may score it and send it back.

    Args:
        value: the run; None or {} gives an empty run. Unknown keys are dropped.
        objectives: the panel's, or None while it is loading. Recorded runs may be of another panel.

    Raises:
        ValueError: the run is forged, or from a page older than this server. A new question needs no old run, and
            a reload would bring the same run back; so the sentence asks for a question.
    """
    if value is None or value == {}:
        return {}
    try:
        if not isinstance(value, dict):
            raise ValueError("a run is an object")
        run = _run(value)
        names = [*(objectives or ()), *(one["name"] for one in run.get("added", []))]
        of_another_panel = objectives is not None and run["objectives"] != names
        if of_another_panel and run["phase"] not in FOREIGN:
            raise ValueError("its objectives are another panel's")
    except ValueError:  # details would help only a forger
        raise ValueError(STALE) from None
    return run


def _run(value: dict[str, Any]) -> Run:
    names = _list_of(_short, value.get("objectives"), MAX_OBJECTIVES)
    check_objective_names(names)
    messages = to_messages(_list_of(_object, value.get("messages"), SHORT))
    if messages[-1]["role"] != "user":
        raise ValueError("a run ends with the turn that is being answered")
    K = len(names)
    row = _row(K)
    checks: dict[str, Callable[[Any], Any]] = {
        "id": _short,
        "phase": _one_of(PHASES),
        "busy": lambda v: flag(v, "busy"),
        "note": _short,
        "tone": _one_of(("", "error")),
        "messages": lambda _: messages,
        "objectives": lambda _: names,
        "added": lambda v: _added(v, names),
        "elsewhere": lambda v: _list_of(_short, v, MAX_OBJECTIVES),
        "about": lambda v: _named(v, names, _short),
        "floors": row,
        "accuracy": lambda v: _named(v, names, _plain),
        "predicted": _or_none(row),
        "lower": _or_none(row),
        "upper": _or_none(row),
        "known": _or_none(_number),
        "words": lambda v: _list_of(lambda w: _moved(w, row, messages), v, MAX_WORDS),
        "conditioned": _short,
        "used": _or_none(row),
        "candidates": lambda v: _list_of(lambda c: _answer(c, K), v, MAX_ANSWERS),
        "presets": lambda v: {_short(name): row(one) for name, one in _object(v).items()},
        "asked": _asked,
        "model": _short,
        "date": _short,
        "panel": _short,
        "at": _short,
    }
    if missing := {"id", "phase", "candidates", "floors"} - value.keys():
        raise ValueError(f"a run has {missing}")
    run = {key: check(value[key]) for key, check in checks.items() if key in value}
    return run  # type: ignore[return-value]


def _added(value: Any, names: Sequence[str]) -> list[Added]:
    """The added objectives, whose names are the last of the run's."""
    added = _list_of(_object, value, MAX_ADDED)
    checked: list[Added] = [
        {"name": _short(one.get("name")), "sentence": _long(one.get("sentence"), LONGEST_SENTENCE)}
        for one in added
    ]
    if [one["name"] for one in checked] != list(names[len(names) - len(checked) :]):
        raise ValueError("the added objectives are the last ones")
    if not all(one["sentence"].strip() for one in checked):
        raise ValueError("an added objective has a sentence")
    return checked


def _asked(value: Any) -> Asked:
    asked = _object(value)
    seed, strong = asked.get("seed"), asked.get("strength")
    return {
        "n": whole(asked.get("n"), 1, MAX_ANSWERS, "answers"),
        "tokens": whole(asked.get("tokens"), 1, MAX_TOKENS, "tokens"),
        "temperature": temperature(asked.get("temperature")),
        "seed": None if seed is None else whole(seed, 0, 2**31 - 1, "seeds"),
        "strength": None if strong is None else strength(strong),
    }


def _answer(value: Any, K: int) -> Answer:
    card, row = _object(value), _row(K, _or_none(_number))
    return {
        "text": _long(card.get("text")),
        "reasoning": _long(card.get("reasoning", "")),
        "finish": _or_none(_one_of(get_args(Finish)))(card.get("finish")),
        "style": _or_none(_one_of(tuple(STYLES)))(card.get("style")),
        "z": _or_none(row)(card.get("z")),
        "raw": _or_none(row)(card.get("raw")),
        "members": _or_none(_members(K))(card.get("members")),
        "error": _or_none(_short)(card.get("error")),
    }


def _moved(value: Any, row: Callable[[Any], list[float]], messages: Sequence[Message]) -> Moved:
    word = _object(value)
    turn = whole(word.get("turn"), 0, len(messages) - 1, "turns")
    start = whole(word.get("start"), 0, MAX_PROMPT_CHARS, "characters")
    end = whole(word.get("end"), start, MAX_PROMPT_CHARS, "characters")
    return {"turn": turn, "start": start, "end": end, "effects": row(word.get("effects"))}


def _plain(value: Any, deep: int = 4) -> Any:
    """Numbers, short texts, and short lists and objects of them, as in a panel's accuracy."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _short(value)
    if not isinstance(value, (dict, list)):
        return _number(value)
    if deep == 0 or len(value) > 100:
        raise ValueError(f"got {kind(value)} of {len(value)}, expected fewer and not so deep")
    if isinstance(value, list):
        return [_plain(part, deep - 1) for part in value]
    return {_short(key): _plain(part, deep - 1) for key, part in value.items()}


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"got {kind(value)}, expected an object")
    return value


def _long(value: Any, most: int = LONGEST) -> str:
    checked = text(value, "a text of the run")
    if len(checked) > most:
        raise ValueError(f"got {len(checked):,} characters, expected at most {most:,}")
    return checked


def _short(value: Any) -> str:
    return _long(value, SHORT)


def _number(value: Any) -> float:
    if not is_number(value):
        raise ValueError(f"got {kind(value)}, expected a number")
    return value


def _row(K: int, one: Callable[[Any], Any] = _number) -> Callable[[Any], list[Any]]:
    def check(value: Any) -> list[Any]:
        values = _list_of(one, value, K)
        if len(values) != K:
            raise ValueError(f"got {len(values)} numbers, expected {K}")
        return values

    return check


def _members(K: int) -> Callable[[Any], list[list[float]]]:
    def check(value: Any) -> list[list[float]]:
        members = _list_of(lambda scores: _list_of(_number, scores, MAX_MEMBERS), value, K)
        if len(members) != K:
            raise ValueError(f"got members of {len(members)}, expected those of {K}")
        return members

    return check


def _list_of(check: Callable[[Any], Any], value: Any, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise ValueError(f"got {kind(value)}, expected a list of at most {most}")
    return [check(part) for part in value]


def _named(value: Any, names: Sequence[str], check: Callable[[Any], Any]) -> dict[str, Any]:
    by_name = _object(value)
    return {name: check(by_name[name]) for name in names if name in by_name}


def _one_of(known: Sequence[str]) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in known:
            raise ValueError(f"got {reprlib.repr(value)}, expected one of {known}")
        return value

    return check


def _or_none(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else check(value)


# ---------------------------------------------------------------- what goes back


def number(value: Any) -> float | None:
    """A number as JSON can carry it; None for NaN."""
    return float(value) if np.isfinite(value) else None


def numbers(values: np.ndarray) -> list[float] | None:
    """Numbers as JSON can carry them; None if any is NaN. An adapter with one head has no interval and gives NaN."""
    return values.tolist() if np.isfinite(values).all() else None
