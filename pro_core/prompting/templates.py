"""Every prompt template: how weights, scores and levels are written into a prompt.

PRO-WIC appends weights to the last user turn, RiC appends scores, MOSLIM prefixes levels. Tags are the
objectives' own names in their fixed order. Such a tag in a user's text is neutralized.
:class:`Condition` is one of these templates for a policy that was trained to read it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pro_core.data.objectives import Message, Prompt, check_objective_names
from pro_core.data.schema import to_messages
from pro_core.weights import as_weights, implicit_weights, select_weights

TEMPLATE_VERSION = 1
"""Kept in the config of every conditioned checkpoint; a change of any format below raises it."""

LEVEL = "level"
CONDITIONS = ("none", "weights", "weights+level", "scores")
"""What the data's responses can teach (`train/wic.py`); ``levels`` (MOSLIM) is taught by rewards alone."""
LEVELS = "levels"
MOST_LEVELS = 3
"""How many objectives a prompt of MOSLIM names at most."""

Array = NDArray[np.float32]


def format_weights(weights: Mapping[str, float] | ArrayLike, objective_names: Sequence[str]) -> str:
    """PRO-WIC's condition (Eq 10): ``<helpful> 0.62 <harmless> 0.38``, two decimals that sum to 1.00.

    Rounded by largest remainder, so that the text states a point of the simplex.

    Raises:
        ValueError: weights that are not on the simplex over these objectives.
    """
    vector = as_weights(weights, objective_names)  # type: ignore[arg-type]
    hundredths = _largest_remainder(vector, 100)
    return " ".join(
        f"<{name}> {h / 100:.2f}" for name, h in zip(objective_names, hundredths, strict=True)
    )


def _largest_remainder(weights, total: int) -> list[int]:
    exact = np.asarray(weights, dtype=np.float64) * total
    # Rounding first keeps 0.29 * 100 = 28.999999 from counting as a remainder.
    whole = np.floor(np.round(exact, 4)).astype(int)
    order = np.argsort(-(np.round(exact, 4) - whole), kind="stable")
    whole[order[: total - whole.sum()]] += 1
    return whole.tolist()


def format_scores(z: ArrayLike, objective_names: Sequence[str]) -> str:
    """RiC's condition: standardized scores with one decimal, ``<helpful_score> 0.3 <harmless_score> -1.2``.

    Raises:
        ValueError: another number of scores, or one that is not finite.
    """
    names = check_objective_names(objective_names)
    scores = np.asarray(z, dtype=np.float64)
    if scores.shape != (len(names),) or not np.isfinite(scores).all():
        raise ValueError(f"got the scores {scores.tolist()}, expected {len(names)} finite numbers")
    rounded = np.round(scores, 1) + 0.0  # no "-0.0"
    return " ".join(f"<{name}_score> {s:.1f}" for name, s in zip(names, rounded, strict=True))


def format_weights_and_level(
    weights: Mapping[str, float] | ArrayLike, level: float, objective_names: Sequence[str]
) -> str:
    """Weights, and how good the response is overall: ``<helpful> 0.62 <harmless> 0.38 <level> 0.9``.

    Args:
        level: the mean standardized score, one decimal. Eq 7's weights do not hold it: responses that are bad at
            everything or good at everything have the same weights.

    Raises:
        ValueError: as :func:`format_weights`; a level that is not finite; an objective called ``level``.
    """
    if LEVEL in objective_names:
        raise ValueError(f"an objective is called {LEVEL!r}, which is the name of the level's tag")
    if not np.isfinite(level):
        raise ValueError(f"got the level {level}, expected a finite number")
    return f"{format_weights(weights, objective_names)} <{LEVEL}> {np.round(level, 1) + 0.0:.1f}"


def format_levels(levels: Mapping[str, int], objective_names: Sequence[str]) -> str:
    """MOSLIM's condition: ``<helpful 4> <humor 2>``, with levels from 1, for the named objectives only.

    Raises:
        ValueError: an unknown objective, or a level below 1.
    """
    names = check_objective_names(objective_names)
    unknown = sorted(set(levels) - set(names))
    if unknown:
        raise ValueError(f"got levels for {unknown}, expected some of {list(names)}")
    for name, level in levels.items():
        if int(level) != level or level < 1:
            raise ValueError(f"got the level {level} for {name}, expected a whole number from 1")
    return " ".join(f"<{name} {int(levels[name])}>" for name in names if name in levels)


def neutralize(text: str, objective_names: Sequence[str]) -> str:
    """The text with anything that reads as one of our tags made harmless: ``<humor> 1.00`` becomes ``(humor) 1.00``.

    Covers weights, scores and levels, any case, spaces inside the brackets, and the full-width and mathematical
    brackets that look alike.
    """
    names = "|".join(re.escape(name) for name in (*check_objective_names(objective_names), LEVEL))
    tag = re.compile(
        rf"[<＜‹⟨〈]\s*((?:{names})(?:_score)?(?:\s+-?\d+(?:\.\d+)?)?)\s*[>＞›⟩〉]", re.IGNORECASE
    )
    while (clean := tag.sub(r"(\1)", text)) != text:
        text = clean
    return text


def add_condition(
    prompt: Prompt, condition: str, objective_names: Sequence[str], prefix: bool = False
) -> list[Message]:
    """Messages whose last user turn carries ``condition`` after its text (before it with ``prefix``).

    All turns but system ones are neutralized first, so the condition is the only one a model reads.

    Raises:
        ValueError: an empty prompt.
    """
    messages = [
        m if m["role"] == "system" else m | {"content": neutralize(m["content"], objective_names)}
        for m in to_messages(prompt)
    ]
    last = max(i for i, m in enumerate(messages) if m["role"] == "user")
    text = messages[last]["content"]
    joined = f"{condition} {text}" if prefix else f"{text} {condition}"
    return [*messages[:last], messages[last] | {"content": joined}, *messages[last + 1 :]]


def scores_for_weights(weights: ArrayLike, low: ArrayLike, high: ArrayLike) -> Array:
    """RiC's targets at test time, w_k / norm_2(w) * (high_k - low_k) + low_k: weights (..., K) to scores (..., K)."""
    w, lowest, highest = (np.asarray(a, dtype=np.float64) for a in (weights, low, high))
    length = np.linalg.norm(w, axis=-1, keepdims=True)
    return (w / length * (highest - lowest) + lowest).astype(np.float32)


def weights_for_scores(scores: ArrayLike, low: ArrayLike, high: ArrayLike) -> Array:
    """The weights (..., K) whose targets point where these scores do: proportional to (s_k - low_k) / (high_k - low_k).

    The inverse of :func:`scores_for_weights` up to the norm, which weights do not have; uniform for the lowest scores.
    """
    s, lowest, highest = (np.asarray(a, dtype=np.float64) for a in (scores, low, high))
    part = np.clip((s - lowest) / np.maximum(highest - lowest, 1e-9), 0, 1)
    mass = part.sum(axis=-1, keepdims=True)
    even = 1 / part.shape[-1]
    return np.where(mass > 1e-9, part / np.maximum(mass, 1e-9), even).astype(np.float32)


def levels_for_weights(weights: ArrayLike, counts: Sequence[int]) -> list[int]:
    """MOSLIM's levels (K,) for weights (K,): the heaviest objective gets its highest level, the others get levels in
    proportion, and 0 (not named) without weight. This is our choice; MOSLIM has no weights.

    Args:
        counts: how many levels each objective has. At most :data:`MOST_LEVELS` objectives are named, the heaviest
            (among equals, the first): MOSLIM is trained on no more.
    """
    w = np.asarray(weights, dtype=np.float64)
    named = set(np.argsort(-w, kind="stable")[:MOST_LEVELS].tolist())
    return [
        1 + int(np.floor(w[k] / w.max() * (count - 1) + 0.5)) if k in named and w[k] > 0 else 0
        for k, count in enumerate(counts)
    ]


@dataclass(frozen=True)
class Condition:
    """What a policy reads beside its prompt. False if it reads the prompt alone (``none``).

    Attributes:
        kind: ``weights`` (PRO-WIC), ``weights+level``, ``scores`` (RiC), ``levels`` (MOSLIM), or ``none``.
        objective_names: in the order of the tags.
        temperature: tau of Eq 7, which turns a response's standardized scores into its weights.
        score_range: (K, 2), the lowest and highest standardized scores of the training responses; RiC's targets lie
            between them. Needed by ``scores``.
        level: the level to ask for, a high one among the training responses; needed by ``weights+level``.
        level_counts: how many levels each objective has; needed by ``levels``.

    Raises:
        ValueError: an unknown kind, or a needed setting that is missing or makes no sense.
    """

    kind: str
    objective_names: tuple[str, ...]
    temperature: float = 1.0
    score_range: tuple[tuple[float, float], ...] | None = None
    level: float | None = None
    level_counts: tuple[int, ...] | None = None

    def __post_init__(self):
        names = check_objective_names(self.objective_names)
        if self.kind not in (known := (*CONDITIONS, LEVELS)):
            raise ValueError(f"got the condition {self.kind!r}, expected one of {known}")
        if not self.temperature > 0:
            raise ValueError(f"got the temperature {self.temperature}, expected a number above 0")
        if self.kind == "weights+level":
            format_weights_and_level([1 / len(names)] * len(names), self._level(), names)
        if self.kind == "scores":
            self._range()
        if self.kind == LEVELS:
            self._counts()

    def __bool__(self) -> bool:
        return self.kind != "none"

    @classmethod
    def fit(
        cls, kind: str, objective_names: Sequence[str], z_NK: ArrayLike, temperature: float
    ) -> Condition:
        """The condition for a policy that learns from responses with the standardized scores (N, K)."""
        z = np.asarray(z_NK, dtype=np.float64)
        lows, highs = (np.round(f(z, axis=0), 1) + 0.0 for f in (np.min, np.max))
        level = float(np.round(np.quantile(z.mean(axis=1), 0.9), 1) + 0.0)
        bounds = tuple((float(a), float(b)) for a, b in zip(lows, highs, strict=True))
        return cls(kind, tuple(objective_names), float(temperature), bounds, level)

    def obtained(self, z_NK: ArrayLike) -> list[str]:
        """N texts that state what responses with the standardized scores (N, K) obtained."""
        z, names = np.asarray(z_NK, dtype=np.float64), self.objective_names
        if self.kind == "scores":
            return [format_scores(row, names) for row in z]
        weights = self.obtained_weights(z)
        if self.kind == "weights":
            return [format_weights(row, names) for row in weights]
        if self.kind == "weights+level":
            levels = z.mean(axis=1)
            return [
                format_weights_and_level(row, level, names)
                for row, level in zip(weights, levels, strict=True)
            ]
        return [""] * len(z)

    def obtained_weights(self, z_NK: ArrayLike) -> Array:
        """Eq 7 on standardized scores: (N, K) to (N, K)."""
        return implicit_weights(z_NK, self.temperature)

    def target_scores(self, weights: ArrayLike) -> Array:
        """RiC's targets for weights (..., K), see :func:`scores_for_weights`."""
        return scores_for_weights(weights, *self._range())

    def text(self, weights: ArrayLike) -> str:
        """The condition that asks for weights (K,)."""
        if self.kind == "scores":
            return format_scores(self.target_scores(weights), self.objective_names)
        if self.kind == "weights":
            return format_weights(weights, self.objective_names)
        if self.kind == "weights+level":
            return format_weights_and_level(weights, self._level(), self.objective_names)
        if self.kind == LEVELS:
            return self.level_text(levels_for_weights(weights, self._counts()))
        return ""

    def level_text(self, levels: Sequence[int]) -> str:
        """The condition that asks for levels (K,), 0 where an objective is not named: ``<helpful 4> <honest 2>``.

        Raises:
            ValueError: a level that its objective does not have, or none named.
        """
        names, counts = self.objective_names, self._counts()
        right = len(levels) == len(names) and all(
            int(level) == level and 0 <= level <= count
            for level, count in zip(levels, counts, strict=True)
        )
        if not right or not any(levels):
            known = ", ".join(f"{n} 1 to {c}" for n, c in zip(names, counts, strict=True))
            raise ValueError(f"got the levels {list(levels)}, expected one or more of {known}")
        asked = {name: int(level) for name, level in zip(names, levels, strict=True) if level}
        return format_levels(asked, names)

    def messages(
        self, prompt: Prompt, weights: ArrayLike, objective_names: Sequence[str] | None = None
    ) -> list[Message]:
        """What the policy reads under weights (K,): the prompt with the condition in its last user turn.

        Args:
            objective_names: the weights' objectives, if they are not the condition's: it takes its own among them,
                scaled to a sum of 1 (:func:`pro_core.weights.select_weights`).

        Raises:
            ValueError: weights for other objectives, or an empty prompt.
        """
        if self and objective_names is not None:
            weights = select_weights(weights, objective_names, self.objective_names)
        return self.add(prompt, self.text(weights))

    def add(self, prompt: Prompt, text: str) -> list[Message]:
        """The prompt with a condition's text in it; unchanged for a policy that reads the prompt alone."""
        if not self:
            return to_messages(prompt)
        return add_condition(prompt, text, self.objective_names, prefix=self.kind == LEVELS)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form; :meth:`from_dict` reads it back."""
        data = asdict(self) | {"objective_names": list(self.objective_names)}
        if self.level_counts is None:  # stages of other kinds are named by a hash of this
            del data["level_counts"]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Condition:
        """The inverse of :meth:`to_dict`. Raises KeyError, TypeError or ValueError if ``data`` is no condition."""
        bounds, counts = data.get("score_range"), data.get("level_counts")
        return cls(
            data["kind"],
            tuple(data["objective_names"]),
            data["temperature"],
            None if bounds is None else tuple((float(low), float(high)) for low, high in bounds),
            data.get("level"),
            None if counts is None else tuple(counts),
        )

    def _range(self) -> tuple[Array, Array]:
        K = len(self.objective_names)
        bounds = np.asarray(self.score_range if self.score_range else [], dtype=np.float32)
        if (
            bounds.shape != (K, 2)
            or not np.isfinite(bounds).all()
            or (bounds[:, 0] > bounds[:, 1]).any()
        ):
            raise ValueError(
                f"got the score_range {self.score_range}, expected a lowest and a highest score for {K} objectives"
            )
        return bounds[:, 0], bounds[:, 1]

    def _level(self) -> float:
        if self.level is None:
            raise ValueError(f"the condition {self.kind!r} needs a level to ask for")
        return self.level

    def _counts(self) -> tuple[int, ...]:
        counts = self.level_counts or ()
        whole = all(type(count) is int and count >= 1 for count in counts)
        if len(counts) != len(self.objective_names) or not whole:
            raise ValueError(
                f"got the level_counts {self.level_counts}, expected how many levels each of "
                f"{len(self.objective_names)} objectives has"
            )
        return counts
