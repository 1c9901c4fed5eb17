"""AlpacaEval 2: win rate and length-controlled win rate of public or own annotations (Dubois et al., 2404.04475).

An annotation is a mapping with ``instruction``, ``output_1`` (the baseline's), ``output_2`` (the model's) and
``preference`` from 1 (the baseline's is better) to 2 (the model's is). The win rate is 100 mean(preference - 1).

The length-controlled rate asks how often the model would win at the baseline's length. It fits

    P(model wins on prompt i) = sigmoid(a tanh((l1_i - l2_i) / s) + b d_i + c)

to the preferences, where l are lengths in characters, s is the deviation of l1 - l2 and d_i how difficult the prompt
is, and averages sigmoid(b d_i + c). Answers of the baseline that were only told to be short or long, ``gamed``, keep
the fit from explaining a model's wins by its length: they have the baseline's c = 0.

The official package chooses an L1 penalty by cross-validation. This fit has none and is deterministic; on the 50
models whose annotations we could read, the published rates differ from it by .05 points in the median and .15 at most.
That package takes the difficulties by row. Six public files lack some annotations, so theirs are those of other
prompts from there on; here they are taken by prompt, which moves these six rates by up to 2.7 points.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from pro_core.data.jsonl import read_jsonl
from pro_core.data.schema import DataError
from pro_core.evaluation.judged.alpaca_prompts import PROMPTS, positions
from pro_core.evaluation.judged.rates import (
    Floats,
    Rate,
    mean_rate,
    only_one,
    rate_of,
    resampled,
)
from pro_core.metrics import fit_resampled
from pro_core.system.storage import replacing

Annotation = Mapping[str, Any]
Table = str | Path | Sequence[Mapping[str, Any]]
"""A CSV file, or its rows."""
GAMED_WEIGHT = 0.1
"""How much a row of the gamed baselines counts: the official 0.2, halved since there are two of them."""
OUTPUTS = ("output_1", "output_2")


def win_rate(annotations: Sequence[Annotation]) -> Rate:
    """100 mean(preference - 1) over the annotations, with a 95% interval (bootstrap over prompts).

    An annotation without a preference is left out and counted. A preference of 0, which old files have, is a draw.

    Raises:
        DataError: no preferences, a preference outside 1 to 2, or annotations of more than one model.
    """
    _, preferences = _checked(annotations)
    return mean_rate(preferences)


def length_controlled_win_rate(
    annotations: Sequence[Annotation],
    difficulty: Sequence[float] | Mapping[str, float] | Table | None = None,
    gamed: Table | None = None,
) -> Rate:
    """The win rate at the baseline's length, with a 95% interval (bootstrap over prompts, with a fit in each).

    Args:
        difficulty: of each annotation's prompt, in their order; or by instruction or index; or the official table,
            a CSV file or its rows, with ``index`` and ``instruction_difficulty``. The 805 of AlpacaEval's prompts are
            matched by prompt, so annotations may be missing. None leaves the term out, as it must be for prompts of
            your own.
        gamed: the official rows of the baseline's short and long answers, a CSV file or its rows, with
            ``preference`` (0 to 1), ``std_delta_len`` and ``instruction_difficulty``. None leaves them out.

    Raises:
        DataError: as :func:`win_rate`, or a difficulty that is not for these prompts.
    """
    rows, preferences = _checked(annotations)
    gaps = np.array([len(_text(r, "output_1")) - len(_text(r, "output_2")) for r in rows], float)
    deviation = gaps.std(ddof=1) if len(gaps) > 1 else 0.0
    lengths = np.tanh(gaps / deviation) if deviation > 0 else np.zeros(len(gaps))
    terms = [lengths, np.ones(len(rows))]
    if difficulty is not None:
        terms.insert(1, _difficulties(rows, difficulty))
    features, outcomes = np.stack(terms, axis=1), preferences
    kept = np.isfinite(outcomes)
    x, y = features[kept], outcomes[kept]
    counts_RP = resampled(len(y))
    weights = counts_RP
    if gamed is not None:
        x_gamed, y_gamed = _gamed(gamed, difficulty is not None)
        x, y = np.concatenate([x, x_gamed]), np.concatenate([y, y_gamed])
        always = np.full((len(counts_RP), len(y_gamed)), GAMED_WEIGHT)
        weights = np.concatenate([counts_RP, always], axis=1)
    coefficients = fit_resampled(x, y, weights)
    at_equal_length = features[kept].copy()
    at_equal_length[:, 0] = 0
    predicted_RP = expit(coefficients @ at_equal_length.T)
    drawn = 100 * (predicted_RP * counts_RP).sum(axis=1) / counts_RP.sum(axis=1)
    return rate_of(drawn, int(kept.sum()), int((~kept).sum()))


def preference_from_logprobs(
    logprobs: Mapping[str, float], first: str, second: str
) -> tuple[float, str]:
    """(preference from 1 to 2, how it was read) from the log-probabilities of a judge's answer.

    preference = 1 + P(second) / (P(first) + P(second)). A token that the judge does not list counts as impossible. The
    preference is NaN where it lists neither.
    """
    a, b = (logprobs.get(token, -math.inf) for token in (first, second))
    if a == b == -math.inf:
        return math.nan, "neither label is among the listed tokens"
    return 1 + float(expit(b - a)), "log-probabilities"


# ---------------------------------------------------------------- files


def read_annotations(path: str | Path) -> list[dict[str, Any]]:
    """The annotations of a JSON file, as the official package writes them (``annotations.json``).

    Raises:
        DataError: not such a file.
    """
    return _read_list(path, ("instruction", *OUTPUTS, "preference"))


def read_outputs(path: str | Path) -> list[dict[str, Any]]:
    """The answers of one model in a JSON file, as the official package reads them (``model_outputs.json``).

    Raises:
        DataError: not such a file, or answers of several models.
    """
    rows = _read_list(path, ("instruction", "output"))
    _one_model(rows, "generator", str(path))
    return rows


def write_list(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write annotations or outputs as one JSON list, which the official package and pandas read."""
    with replacing(path) as partial:
        text = json.dumps([dict(row) for row in rows], indent=2, ensure_ascii=False)
        partial.write_text(text + "\n", encoding="utf-8")


def _read_list(path: str | Path, needed: Sequence[str]) -> list[dict[str, Any]]:
    rows = read_jsonl(path)
    if not rows:
        raise DataError(f"{path}: expected a JSON list of objects, got none")
    for i, row in enumerate(rows):
        if missing := [name for name in needed if name not in row]:
            raise DataError(f"{path}: entry {i} has no {', '.join(missing)}")
    return rows


# ---------------------------------------------------------------- what was given


def _checked(annotations: Sequence[Annotation]) -> tuple[list[Annotation], Floats]:
    """The annotations, and each preference from 0 to 1; NaN where it is missing."""
    if hasattr(annotations, "to_dict"):  # a pandas table
        annotations = annotations.to_dict("records")
    rows = list(annotations)
    preferences = np.full(len(rows), np.nan)
    for i, row in enumerate(rows):
        value = row.get("preference")
        if value is None or (isinstance(value, float) and math.isnan(value)):
            continue
        number = float(value) if isinstance(value, Real) else math.inf
        if number == 0:
            number = 1.5
        if not 1 <= number <= 2:
            raise DataError(f"annotation {i}: got the preference {value!r}, expected 1 to 2")
        preferences[i] = number - 1
    if not np.isfinite(preferences).any():
        raise DataError(f"got {len(rows)} annotations without one preference")
    _one_model(rows, "generator_2", "annotations")
    return rows, preferences


def _one_model(rows: Sequence[Mapping[str, Any]], column: str, where: str) -> None:
    names = [str(row[column]) for row in rows if row.get(column) is not None]
    if names:
        try:
            only_one(names, "models")
        except ValueError as error:
            raise DataError(f"{where}: {error}: measure each model apart") from None


def _text(row: Annotation, column: str) -> str:
    text = row.get(column)
    if not isinstance(text, str):
        raise DataError(f"an annotation has no text in {column}, whose length is needed")
    return text


def _difficulties(rows: Sequence[Annotation], difficulty: Any) -> Floats:
    """One difficulty per annotation, (N,)."""
    if isinstance(difficulty, Mapping) and all(isinstance(key, int) for key in difficulty):
        difficulty = [difficulty[index] for index in sorted(difficulty)]
    if isinstance(difficulty, Mapping):
        unknown = [i for i, row in enumerate(rows) if row.get("instruction") not in difficulty]
        if unknown:
            raise DataError(
                f"{len(unknown)} of {len(rows)} annotations, the first at {unknown[0]}, are of prompts without a "
                "difficulty: they are of another prompt set; leave the difficulty out for prompts of your own"
            )
        return _finite([difficulty[row["instruction"]] for row in rows], "difficulty")
    if (
        isinstance(difficulty, str | Path)
        or hasattr(difficulty, "columns")
        or _is_table(difficulty)
    ):
        listed = _rows_of(difficulty, ("index", "instruction_difficulty"))
        by_index = {int(float(r["index"])): float(r["instruction_difficulty"]) for r in listed}
        difficulty = [by_index[i] for i in sorted(by_index)]
    values = _finite(difficulty, "difficulty")
    places = positions([row.get("instruction") for row in rows])
    standard = sum(place is not None for place in places)
    if len(values) == PROMPTS and standard == len(rows):
        return values[[place for place in places if place is not None]]  # in any order
    if len(values) != len(rows) or (len(values) == PROMPTS and standard):
        raise DataError(
            f"got {len(values)} difficulties for {len(rows)} annotations, {standard} of them of AlpacaEval's {PROMPTS} "
            "prompts: they are of another prompt set; give one difficulty per annotation, or leave them out for "
            "prompts of your own"
        )
    return values


def _is_table(value: Any) -> bool:
    return len(value) > 0 and isinstance(next(iter(value)), Mapping)


def _gamed(gamed: Table, with_difficulty: bool) -> tuple[Floats, Floats]:
    """Features and outcomes of the gamed baselines; their model term is 0."""
    columns = ["preference", "std_delta_len", *(["instruction_difficulty"] * with_difficulty)]
    rows = _rows_of(gamed, columns)
    values = {c: _finite([float(r[c]) for r in rows], c) for c in columns}
    if not (values["preference"].min() >= 0 and values["preference"].max() <= 1):
        raise DataError("gamed: expected preferences from 0 to 1")
    terms = [np.tanh(values["std_delta_len"]), np.zeros(len(rows))]
    if with_difficulty:
        terms.insert(1, values["instruction_difficulty"])
    return np.stack(terms, axis=1), values["preference"]


def _rows_of(table: Any, columns: Sequence[str]) -> list[Mapping[str, Any]]:
    if isinstance(table, str | Path):
        try:
            with open(table, newline="", encoding="utf-8") as file:
                rows: list[Mapping[str, Any]] = list(csv.DictReader(file))
        except OSError as error:
            raise DataError(f"{table}: cannot be read ({error})") from None
    elif hasattr(table, "to_dict"):
        rows = table.reset_index().to_dict("records")
    else:
        rows = list(table)
    if missing := [c for c in columns if not rows or c not in rows[0]]:
        raise DataError(f"got a table without {', '.join(missing)}, expected {', '.join(columns)}")
    return rows


def _finite(values: Any, what: str) -> NDArray[np.float64]:
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.array([np.nan])
    if numbers.ndim != 1 or not np.isfinite(numbers).all():
        raise DataError(f"{what}: expected one finite number each")
    return numbers
