"""What visitors and callers send, checked, and what JSON can carry back."""

from __future__ import annotations

from typing import Any

import numpy as np

from pro_core.data import clean_text, to_messages
from pro_core.objectives import Message


def whole(value: Any, low: int, high: int, what: str) -> int:
    if not isinstance(value, (int, float)) or value != value or not low <= value <= high:
        raise ValueError(f"got {value!r} {what}, expected {low} to {high}")
    return int(value)


def clean(text: Any) -> str:
    """Text that can be sent back: half a surrogate pair, which JSON can carry, is replaced."""
    return clean_text(str(text or ""))


def number(value: Any) -> float | None:
    """A number as JSON can carry it: None for NaN."""
    return float(value) if np.isfinite(value) else None


def numbers(values: np.ndarray) -> list[float] | None:
    """Numbers as JSON can carry them: None where they are NaN, which an adapter of one member gives for all."""
    return values.tolist() if np.isfinite(values).all() else None


def conversation(prompt: Any) -> list[Message]:
    """A caller's prompt, a text or a list of messages, as clean messages. Raises ValueError."""
    if isinstance(prompt, list):
        return to_messages(prompt)
    return to_messages(str(prompt or ""))
