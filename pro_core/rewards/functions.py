"""Objectives that need no model: deterministic functions of the response, named by words alone.

A spec lists them beside reward models (`function: length`). They are saved in ``panel.json`` as written there, and
standardized like any reward. No code is read from a file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pro_core.rewards.formats import scored_text

FUNCTIONS = ("length", "readability", "rule")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")
_VOWELS = re.compile(r"[aeiouy]+")


def check_function(name: str, pattern: str) -> None:
    """Raise a ValueError that says what is wrong with a function or its pattern, if anything is."""
    if name not in FUNCTIONS:
        raise ValueError(f"got the function {name!r}, expected one of {FUNCTIONS}")
    if (name == "rule") != bool(pattern):
        raise ValueError(f"got the pattern {pattern!r} for {name!r}: a rule has one, nothing else")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"got the pattern {pattern!r}: {error}") from None


def function_scores(name: str, pattern: str, completions: Sequence[str]) -> NDArray[np.float32]:
    """The function's value for each response: (N,).

    - ``length``: characters; use direction -1 where shorter is better.
    - ``readability``: Flesch's reading ease, see :func:`reading_ease`.
    - ``rule``: 1 if the regular expression ``pattern`` matches somewhere, else 0; direction -1 to forbid it. Avoid
      nested repetition: a pattern that backtracks for minutes stops the panel.
    """
    completions = [scored_text(text) for text in completions]
    if name == "length":
        values: list[float] = [len(text) for text in completions]
    elif name == "readability":
        values = [reading_ease(text) for text in completions]
    else:
        search = re.compile(pattern).search
        values = [float(search(text) is not None) for text in completions]
    return np.asarray(values, dtype=np.float32)


def reading_ease(text: str) -> float:
    """Flesch's reading ease of an English text: about 100 is very easy, 0 very hard; 0 for a text without words.

    206.835 - 1.015 words / sentences - 84.6 syllables / words (Flesch 1948). Syllables are counted as groups of
    vowels, without a silent final e.
    """
    words = _WORD.findall(text)
    if not words:
        return 0.0
    sentences = max(1, len(_SENTENCE_END.findall(text)))
    syllables = sum(_syllables(word.lower()) for word in words)
    return 206.835 - 1.015 * len(words) / sentences - 84.6 * syllables / len(words)


def _syllables(word: str) -> int:
    groups = len(_VOWELS.findall(word))
    if word.endswith("e") and not word.endswith(("le", "ee")) and groups > 1:
        groups -= 1
    return max(1, groups)
