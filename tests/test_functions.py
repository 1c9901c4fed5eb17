"""Objectives that need no model: length, readability, a rule."""

import numpy as np
import pytest

from pro_core.rewards.functions import check_function, function_scores, reading_ease


def test_length_counts_characters():
    np.testing.assert_array_equal(function_scores("length", "", ["", "abc", "naïve"]), [0, 3, 5])


def test_reading_ease_by_hand():
    # 6 words, 2 sentences, 6 syllables: 206.835 - 1.015 * 3 - 84.6 = 119.19.
    assert reading_ease("The cat sat. I saw it.") == pytest.approx(119.19)
    # one word, one sentence; in-com-pre-hen-si-bil-i-ty has 8 groups of vowels.
    assert reading_ease("Incomprehensibility") == pytest.approx(206.835 - 1.015 - 84.6 * 8)
    # a silent e: "name" has one syllable, "table" two, "free" one.
    assert reading_ease("name table free") == pytest.approx(206.835 - 1.015 * 3 - 84.6 * 4 / 3)
    assert reading_ease("3.14 is pi") == reading_ease("is pi")  # numbers are no words, 3.14 no end
    assert reading_ease("") == reading_ease("42!") == 0.0


def test_a_rule_is_1_where_it_matches():
    pattern = r"(?i)\bas an ai\b"
    texts = ["As an AI model", "has an air", ""]
    np.testing.assert_array_equal(function_scores("rule", pattern, texts), [1, 0, 0])


def test_functions_are_deterministic():
    texts = ["One two three.", "Übergrößen? Ja!", "x" * 1000]
    for name, pattern in (("length", ""), ("readability", ""), ("rule", "x{3}")):
        first = function_scores(name, pattern, texts)
        assert first.dtype == np.float32 and first.shape == (3,)
        np.testing.assert_array_equal(first, function_scores(name, pattern, texts))


@pytest.mark.parametrize(
    ("name", "pattern", "said"),
    [
        ("wordiness", "", "expected one of"),
        ("rule", "", "a rule has one"),
        ("readability", "a", "a rule has one"),
        ("rule", "[a", "unterminated"),
    ],
)
def test_an_unknown_function_is_refused(name, pattern, said):
    with pytest.raises(ValueError, match=said):
        check_function(name, pattern)
