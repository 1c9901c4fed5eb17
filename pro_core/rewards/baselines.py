"""Baselines without a neural network for reward models: a bag of words, and always preferring the longer response."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pro_core.data.schema import DataError, PreferencePair
from pro_core.data.training_pairs import TrainingPairs
from pro_core.metrics import accuracy_lead, accuracy_with_interval
from pro_core.rewards.length import length_report
from pro_core.rewards.ngrams import linear_bradley_terry
from pro_core.rewards.scores import graded_rows
from pro_core.rewards.scores import margins as margins_of_heads
from pro_core.system.extras import needs


def longer_wins(pairs: Sequence[PreferencePair]) -> NDArray[np.float64]:
    """Margins (N,) of the rule that prefers the longer completion, in characters."""
    return np.array([len(p.chosen) - len(p.rejected) for p in pairs], dtype=np.float64)


def bag_of_words(
    train: Sequence[PreferencePair], test: Sequence[PreferencePair], strength: float = 1.0
) -> NDArray[np.float64] | None:
    """Margins (N,) of a Bradley-Terry model on differences of word and word-pair counts.

    The prompt is the same on both sides and cancels, as it does in any linear model of counts. None if there is
    nothing to learn from: a single pair, or no word that occurs in three training texts.
    """
    with needs("train"):
        from sklearn.feature_extraction.text import CountVectorizer

    words = CountVectorizer(ngram_range=(1, 2), binary=True)
    words_of = words.build_analyzer()
    texts = [text for p in train for text in (p.chosen, p.rejected)]
    count = Counter(word for text in texts for word in set(words_of(text)))
    known = sorted(word for word, n in count.items() if n >= 3)
    if len(train) < 2 or not known:
        return None
    words.set_params(vocabulary=known)

    def differences(pairs):
        return words.transform([p.chosen for p in pairs]) - words.transform(
            [p.rejected for p in pairs]
        )

    return differences(test) @ linear_bradley_terry(differences(train), strength)


def beside_baselines(
    method: str,
    scores: pd.DataFrame,
    data: TrainingPairs,
    split: str,
    objective_names: Sequence[str],
    other_sets: bool = False,
) -> dict[str, dict[str, dict[str, Any]]]:
    """The panel and both baselines on the same held-out pairs: method -> objective -> accuracy with its interval.

    The pairs are those of :func:`pro_core.rewards.scores.graded_rows`. Every entry also has its :func:`length_report`;
    the panel's has ``leads``, {baseline: :func:`pro_core.metrics.accuracy_lead`}. If the pairs of an objective come
    from several sources, ``by_source`` has the same entry for each. What cannot be measured is left out.

    ``on`` holds, for the panel and the bag of words, how often the objective's model prefers what people chose under
    another objective, {other: accuracy with its interval}: below one half where the two oppose each other.

    Args:
        scores: the panel's table; its held-out rows are those of ``data``.
        other_sets: the held-out pairs are of sets that nothing was trained on, so the bag of words learns from all
            training pairs of the objective; otherwise from those of the sources that are graded.

    Raises:
        DataError: the table was made from other pairs.
    """
    held_out = scores[scores["fold"] < 0].reset_index(drop=True)
    if list(held_out["id"]) != [p.id for p in data.held_out]:
        raise DataError(
            f"the scores are of {len(held_out)} held-out pairs, but the recipe's data has others "
            f"({len(data.held_out)}): train the panel again, then grade it"
        )
    graded = graded_rows(held_out, split)
    every = [data.held_out[i] for i in graded.index]
    scored = margins_of_heads(graded, objective_names)
    measured: dict[str, dict[str, dict[str, Any]]] = {}
    for name in objective_names:
        rows = graded[graded["objective"] == name]
        if rows.empty:
            continue
        sources = sorted(rows["source"].unique())
        train = [
            p
            for p in data.training
            if p.objective == name and not p.only_trains and (other_sets or p.source in sources)
        ]
        by_method: dict[str, NDArray | None] = {
            method: scored[:, list(objective_names).index(name)],
            "bag of words": bag_of_words(train, every),
            "longer wins": longer_wins(every),
        }
        known = {k: m for k, m in by_method.items() if m is not None}
        on_all = pd.DataFrame(known, graded.index)
        margins = on_all.loc[rows.index]
        for key, report in _reports(margins, rows).items():
            measured.setdefault(key, {})[name] = report
        for key in [key for key in on_all if key != "longer wins"]:
            measured[key][name]["on"] = {
                other: accuracy_with_interval(on_all[key].loc[of_other.index], list(of_other.text))
                for other, of_other in graded.groupby("objective")
                if other != name
            }
        for source in sources if len(sources) > 1 else ():
            of_source = rows["source"] == source
            for key, report in _reports(margins[of_source], rows[of_source]).items():
                measured[key][name].setdefault("by_source", {})[source] = report
    return measured


def _reports(margins: pd.DataFrame, rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The measures of each method, a column of the margins; those of the first with its leads over the others."""
    texts = list(rows["text"])
    reports: dict[str, dict[str, Any]] = {
        method: accuracy_with_interval(margin, texts)
        | length_report(margin, rows["length_chosen"], rows["length_rejected"], texts)
        for method, margin in margins.items()
    }
    first, *others = margins
    reports[first]["leads"] = {
        other: accuracy_lead(margins[first], margins[other], texts) for other in others
    }
    return reports
