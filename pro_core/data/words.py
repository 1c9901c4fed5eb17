"""Where the words of a text are, in any script, and the text without one of them."""

from __future__ import annotations

import unicodedata

JOINING = "'’-‐"  # between two letters they belong to the word


def words_of(text: str) -> list[tuple[int, int]]:
    """The (start, end) of each word of a text, in any script.

    A word is a run of letters, digits and their marks, with an apostrophe or hyphen between two letters; each Chinese
    character and each run of emoji counts as one. Punctuation does not count.
    """
    spans: list[list[int]] = []
    last = ""
    for i, character in enumerate(text):
        kind = _kind(character)
        joins = character in JOINING and _kind(text[i + 1 : i + 2]) == last == "word"
        if last and (joins or kind == "mark" or kind == last != "ideograph"):
            spans[-1][1] = i + 1
        elif kind not in ("", "mark"):
            spans.append([i, i + 1])
            last = kind
        else:
            last = ""
    return [(start, end) for start, end in spans]


def _kind(character: str) -> str:
    if not character:
        return ""
    category = unicodedata.category(character)
    if category[0] in "LN":
        ideograph = unicodedata.name(character, "").startswith("CJK")
        return "ideograph" if ideograph else "word"
    if category[0] == "M" or character == "\u200d":  # accents; the joiner of emoji
        return "mark"
    if category == "So" or (category == "Sk" and ord(character) > 127):
        return "symbol"
    return "word" if character == "_" else ""


def without(text: str, start: int, end: int) -> str:
    """A text without its characters ``start`` to ``end``, and without the double space that they would leave."""
    before, after = text[:start], text[end:]
    return before + (after if before and not before[-1].isspace() else after.lstrip(" "))
