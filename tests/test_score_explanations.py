"""The words behind an answer's scores: what their effects mean, how many texts they take, and whether they matter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pro_core import RewardPanel, explain_scores
from pro_core.data.words import words_of
from pro_core.rewards.explanations import DRAWS, MOST, TOP, explanation_steps

ROOT = Path(__file__).parent.parent
VALUES = {"good": (1.0, 0.0), "great": (2.0, 0.0), "bad": (-1.5, 0.5), "funny": (0.0, 3.0)}


def by_words(text: str) -> list[float]:
    """Two scores of a text: the sums of its words' values."""
    rows = [VALUES.get(word.strip(".,"), (0.0, 0.0)) for word in text.split()]
    return np.sum(rows, axis=0).tolist() if rows else [0.0, 0.0]


def explained(response: str, by_words=by_words):
    """(the explanation by `by_words`, the texts that were scored)"""
    steps, asked = explanation_steps(response), []
    texts = next(steps)
    while True:
        asked += texts
        try:
            texts = steps.send(np.array([by_words(text) for text in texts], np.float32))
        except StopIteration as done:
            return done.value, asked


def test_an_effect_is_the_score_minus_the_score_without_the_word() -> None:
    response = "A great plan, good and funny, no bad one."
    why, asked = explained(response)
    words = [response[start:end] for start, end in why.words]
    assert words == ["A", "great", "plan", "good", "and", "funny", "no", "bad", "one"]
    expected = [VALUES.get(word, (0.0, 0.0)) for word in words]
    np.testing.assert_allclose(why.effects, expected)
    np.testing.assert_allclose(why.scores, [1.5, 3.5])
    np.testing.assert_allclose(why.named, [3.0, 3.5])  # great, good, any; funny, bad, any
    assert asked[0] == response and len(asked) == 1 + len(words) + 2 + DRAWS
    drawn = np.array([by_words(text) for text in asked[-DRAWS:]])
    assert {len(words_of(text)) for text in asked[-DRAWS:]} == {len(words) - TOP}
    np.testing.assert_allclose(why.random, (why.scores - drawn).mean(axis=0), atol=1e-6)


def test_a_long_answer_takes_few_texts_and_its_words_are_still_found() -> None:
    response = " ".join(["so"] * 70 + ["great"] + ["and"] * 30 + ["funny"] + ["on"] * 50)
    why, asked = explained(response)
    assert len(asked) <= 1 + MOST + 2 + DRAWS and len(why.words) == MOST // 2
    effects = {
        response[start:end]: row for (start, end), row in zip(why.words, why.effects, strict=True)
    }
    assert effects["great"].tolist() == [2, 0] and effects["funny"].tolist() == [0, 3]
    assert why.named.tolist() == [2, 3]
    _, asked = explained("so " * 5_000)
    assert len(asked) <= 1 + MOST + 2 + DRAWS


def test_an_objective_without_scores_hides_no_word_of_the_others() -> None:
    response = " ".join(["so"] * 70 + ["great"] + ["and"] * 30)
    why, _ = explained(response, lambda text: [by_words(text)[0], np.nan])
    assert "great" in [response[start:end] for start, end in why.words]
    assert why.named[0] == 2 and np.isnan(why.named[1])


@pytest.mark.parametrize("response", ["Yes", "...", "🙂", "Yes, I do."])
def test_a_very_short_answer_has_no_others_to_compare_with(response: str) -> None:
    why, _ = explained(response)
    assert len(why.words) == (3 if "do" in response else 0)
    assert np.isnan([*why.named, *why.random]).all()
    assert why.effects.shape == (len(why.words), 2)


def test_an_empty_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="empty response"):
        next(explanation_steps(" \n"))


@pytest.mark.slow
def test_the_shipped_panel_falls_more_without_the_named_words_than_without_random_ones() -> None:
    panel = RewardPanel.from_pretrained(ROOT / "checkpoints/demo/panel")
    prompt = "How do I get a red wine stain out of a white tablecloth?"
    answers = (
        "Blot it with cold water, cover it with salt for ten minutes, then wash it as usual.",
        "I am sorry, but I cannot help with that, because somebody could be harmed by it.",
        "Tell the wine that the party is over; it will leave as red as it came.",
    )
    leads = []
    for answer in answers:
        why = explain_scores(panel, prompt, answer)
        whole, first = panel.standardized([prompt] * 2, [answer, answer.split(" ", 1)[1]])
        np.testing.assert_allclose(why.scores, whole, atol=1e-2)
        np.testing.assert_allclose(why.effects[0], whole - first, atol=2e-2)
        leads.append(why.named - why.random)
    assert (np.array(leads) > 0).mean() >= 0.9
