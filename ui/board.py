"""The board component: sliders, answer cards and scatter, drawn in the browser by `SCRIPTS`.

Python sends one JSON value, a *run* (see `Run`). Only that value holds texts of models and visitors. The template is
constant, because Gradio evaluates rendered templates as JavaScript.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import gradio as gr
import numpy as np

from pro_core.generation import Finish
from pro_core.weights import as_weights

HERE = Path(__file__).parent
SCRIPTS = (
    "dom.js",
    "toolbar.js",
    "simplex.js",
    "objectives.js",
    "state.js",
    "words.js",
    "conversation.js",
    "switches.js",
    "sliders.js",
    "markdown.js",
    "reasons.js",
    "cards.js",
    "scatter.js",
    "export.js",
    "code.js",
    "choices.js",
    "preferred.js",
    "verdict.js",
    "share.js",
    "asking.js",
    "memory.js",
    "board.js",
)
"""The component's code. Gradio runs a single text, so the files are joined in this order. Each defines one capitalized
name that all of them see, and `board.js` starts the board."""
PAGE_CSS = (HERE / "page.css").read_text(encoding="utf-8")
NOUNS = {"humor": "funny"}
"""Objectives that are nouns, as the header's adjectives."""
PRESETS = {
    "Cautious": {"harmless": 0.6, "truthful": 0.4},
    "Teacher": {"informative": 0.4, "truthful": 0.3, "helpful": 0.3},
    "Comedian": {"humor": 0.8, "helpful": 0.2},
}
"""Weights to start from, by objective; only those count whose objectives the panel has. `PRO_PRESETS` adds more."""


class Answer(TypedDict):
    """One card. `z` and `raw` hold K numbers in the objectives' order, or None until the answer is scored; a number is
    None where the score is missing, such as where a judge gave no verdict.

    `members` holds the standardized scores of each objective's members, whose mean is its `z` (none where it is
    missing); None where no objective has several, and absent in old recordings.

    `reasoning` is the model's reasoning before the answer; it is not scored. `finish` says how the answer ended (see
    `pro_core.generation.Finish`); it is None while the answer is written, and if it broke off. Old recordings may lack
    both.
    """

    text: str
    reasoning: str
    finish: Finish | None
    style: str | None
    z: list[float | None] | None
    raw: list[float | None] | None
    members: list[list[float]] | None
    error: str | None


class Moved(TypedDict):
    """A word of the prompt: characters `start` to `end` of `messages[turn]`, and its effects on the K weights."""

    turn: int
    start: int
    end: int
    effects: list[float]


class Asked(TypedDict):
    """How the answers of a run were asked for."""

    n: int
    tokens: int
    temperature: float
    seed: int | None
    strength: float | None  # None: the policy is not mixed, or as its owner says


class Added(TypedDict):
    """An objective that the visitor added: its name, and the sentence by which a chat model judges."""

    name: str
    sentence: str


class Run(TypedDict, total=False):
    """One prompt with its weights and answers: everything that the board draws."""

    id: str  # a new id moves the unlocked sliders to the new predicted weights
    phase: str  # recorded | writing | done | stopped | shared (by a link; the browser makes it)
    busy: bool  # answers are still being written or scored
    note: str  # one sentence above the board
    tone: str  # "" | "error"
    messages: list[dict[str, str]]  # ends with the user turn that is being answered
    objectives: list[str]  # the panel's, then the added ones
    added: list[Added]  # absent where there are none
    # A shared run's last objectives, if added there: a link holds no sentences.
    elsewhere: list[str]
    about: dict[str, str]  # a plain phrase for each objective, or ""
    floors: list[float]
    accuracy: dict[str, dict[str, Any]]
    predicted: list[float] | None  # None: no adapter, uniform weights stand in
    lower: list[float] | None  # 90% interval of each weight; None or absent if the adapter has none
    upper: list[float] | None
    known: float | None  # 1: like the training prompts; 0: nothing like them
    words: list[Moved]  # absent until they are known, and in older recordings
    conditioned: str  # what the policy reads beside the prompt, absent for a stock model
    used: list[float] | None  # the visitor's weights that the policy read; None: the predicted ones
    candidates: list[Answer]
    presets: dict[str, list[float]]  # K weights by the preset's name
    asked: Asked
    model: str  # who wrote the answers, and when; absent where nobody knows
    date: str
    panel: str  # who scored them
    at: str  # when the last request failed: the same mistake twice makes two runs


def board(runs: Sequence[Run]) -> gr.HTML:
    """The component. Its value, at first `runs[0]`, goes to the browser, and handlers get it back as a `Run`.

    The other runs stay in the browser; it switches to one when its chip is pressed.
    """
    return gr.HTML(
        value=runs[0],
        others=runs[1:],
        elem_id="board",
        html_template='<div class="board"></div>',
        css_template=(HERE / "board.css").read_text(encoding="utf-8"),
        js_on_load="\n".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS),
        apply_default_css=False,
    )


def answer(text: str = "", reasoning: str = "", style: str | None = None) -> Answer:
    """A card without scores."""
    known = {"text": text, "reasoning": reasoning, "style": style}
    unknown = dict.fromkeys(("finish", "z", "raw", "members", "error"))
    return {**known, **unknown}  # type: ignore[typeddict-item]


def scored(
    answers: Sequence[Answer], raw_NK: np.ndarray, z_NK: np.ndarray, members_MNK: np.ndarray
) -> list[Answer]:
    """The same answers with these scores: None in place of NaN, and of rows that are all NaN (not scored)."""

    def row(values_K: np.ndarray) -> list[float | None]:
        return [float(v) if np.isfinite(v) else None for v in values_K]

    def members_of(n: int) -> list[list[float]] | None:
        if len(members_MNK) < 2:
            return None
        return [one[np.isfinite(one)].tolist() for one in members_MNK[:, n].T]

    none = dict.fromkeys(("raw", "z", "members"))
    return [
        {**a, "raw": row(raw), "z": row(z), "members": members_of(n)}
        if np.isfinite(raw).any()
        else {**a, **none}
        for n, (a, raw, z) in enumerate(zip(answers, raw_NK, z_NK, strict=True))
    ]


def follow_up(run: Run, pick: Any) -> list[dict[str, str]]:
    """The conversation of a run, ending with its answer number `pick`.

    A turn without any text (no place was free, Stop came first, the endpoint failed) is left out, and the next turn
    takes its place. Raises ValueError if there is no conversation or no such answer.
    """
    candidates, messages = run.get("candidates"), run.get("messages")
    if not isinstance(candidates, list) or not isinstance(messages, list):
        raise ValueError("There is no conversation to continue yet: ask something first.")
    if len(messages) > 1 and not any(one["text"].strip() for one in candidates):
        return messages[:-1]
    if not isinstance(pick, int) or not 0 <= pick < len(candidates):
        raise ValueError("There is no answer to continue from yet: ask something first.")
    text = candidates[pick].get("text")
    if not isinstance(text, str) or not text.strip():
        raise ValueError("That answer is empty; continue from another one.")
    return [*messages, {"role": "assistant", "content": text}]


def presets(objectives: Sequence[str], own: str = "") -> dict[str, list[float]]:
    """The presets for a panel: K weights, which sum to 1, by name.

    Args:
        own: the owner's, such as "Family: harmless=0.7, humor=0.3; Strict: harmless=1". They come last, and replace
            one of the same name.

    Raises:
        ValueError: a preset of the owner's has no name, names an unknown objective, or its weights do not sum to 1.
    """
    known = {
        name: weights for name, weights in PRESETS.items() if weights.keys() <= set(objectives)
    }
    made = {name: [weights.get(o, 0.0) for o in objectives] for name, weights in known.items()}
    for part in filter(None, map(str.strip, own.split(";"))):
        name, colon, weights = part.partition(":")
        if not colon or not name.strip():
            raise ValueError(f"got the preset {part!r}, expected 'name: objective=weight, ...'")
        given = dict.fromkeys(objectives, 0.0)
        for pair in filter(None, map(str.strip, weights.split(","))):
            objective, _, value = map(str.strip, pair.partition("="))
            try:
                given[objective] = float(value)
            except ValueError:
                raise ValueError(f"got {pair!r} in a preset, expected objective=weight") from None
        made[name.strip()] = as_weights(given, objectives).tolist()
    return made


def header(objectives: Sequence[str] = ()) -> gr.HTML:
    """The app's name, and what the page does. `objectives`: those of the shipped panel, () for the owner's."""
    *first, last = [NOUNS.get(name, name) for name in objectives] or ["each quality"]
    qualities = f"{', '.join(first)} and {last} matter" if first else f"{last} matters"
    return gr.HTML(
        html_template=f"""<header class="masthead">
<h1>What should a good answer to <em>this</em> question be?</h1>
<p>PRO guesses how much {qualities}, writes four answers and ranks them. <b>Disagree? Move a slider.</b></p>
</header>""",
        apply_default_css=False,
        js_on_load=None,
    )


def note_line(elem_id: str) -> gr.HTML:
    """A line of plain text that the board fills: an error beside what caused it."""
    return gr.HTML(
        elem_id=elem_id,
        html_template='<p class="beside" role="status"></p>',
        apply_default_css=False,
        js_on_load=None,
    )
