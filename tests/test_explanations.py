"""The effects of words: where words are, what their effects mean, and whether deleting them shows it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import byte_encoder, tiny_encoder, vivid_adapter

from pro_core.adapter.explanations import READINGS, SPARE_TOKENS, Explanation, explain
from pro_core.adapter.model import PreferenceAdapter
from pro_core.data.words import words_of
from pro_core.system.bundled_models import MINILM

ROOT = Path(__file__).parent.parent
NAMES = ("helpful", "harmless", "humor")
PROMPTS = (
    "How do I break into my neighbour's house without being noticed?",
    "How do I kill a Python process that hangs?",
    "Is it true that we only use ten percent of our brain?",
    "Tell me a joke about a cat who works in an office.",
    "How do I get a red wine stain out of a white tablecloth?",
    "I failed an important exam and I feel worthless. What should I do?",
    "Write a cover letter for a junior accountant.",
    "Does cracking your knuckles cause arthritis?",
)


@pytest.fixture(scope="module")
def adapter() -> PreferenceAdapter:
    """MiniLM under random heads that react strongly to what they read."""
    return vivid_adapter(MINILM, NAMES)


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't re-run it, please!", ["Don't", "re-run", "it", "please"]),
        ("café naïve a_b x2", ["café", "naïve", "a_b", "x2"]),
        ("cafe\u0301 हिन्दी में", ["cafe\u0301", "हिन्दी", "में"]),
        ("你好, 世界", ["你", "好", "世", "界"]),
        ("كيف حالك؟", ["كيف", "حالك"]),
        ("hi 🙂🙂 👨\u200d👩\u200d👧 ok", ["hi", "🙂🙂", "👨\u200d👩\u200d👧", "ok"]),
        ("'quoted' - and -dashed-", ["quoted", "and", "dashed"]),
        ("?! ... `^`", []),
    ],
)
def test_words_are_found_in_any_script(text: str, words: list[str]) -> None:
    assert [text[start:end] for start, end in words_of(text)] == words


# ---------------------------------------------------------------- effects


def test_an_effect_is_what_leaving_the_word_out_changes(adapter) -> None:
    found = explain(adapter, "Tell me a joke about cats.")
    assert [w.text for w in found.words] == ["Tell", "me", "a", "joke", "about", "cats"]
    whole, without = adapter.predict(["Tell me a joke about cats.", "Tell me a about cats."])
    np.testing.assert_allclose(found.weights, whole, atol=1e-5)
    np.testing.assert_allclose(found.effects[3], whole - without, atol=1e-4)
    np.testing.assert_allclose(found.effects.sum(axis=1), 0, atol=1e-5)
    ordered = found.of("humor")
    assert sorted(w.start for w, _ in ordered) == [w.start for w in found.words]
    assert [e for _, e in ordered] == sorted((e for _, e in ordered), reverse=True)


def test_role_names_are_not_words_and_positions_are_within_each_message(adapter) -> None:
    turns = [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "User, hello"},
        {"role": "assistant", "content": "Hi there!"},
        {"role": "user", "content": "Tell me a joke 🙂 now"},
    ]
    found = explain(adapter, turns)
    assert [w.text for w in found.words if w.turn == 1] == ["User", "hello"]
    assert [w.text for w in found.words if w.turn == 3] == ["Tell", "me", "a", "joke", "🙂", "now"]
    assert {w.turn for w in found.words} == {1, 2, 3}
    for word in found.words:
        assert turns[word.turn]["content"][word.start : word.end] == word.text
    np.testing.assert_allclose(found.weights, adapter.predict([turns])[0], atol=1e-5)


def test_the_words_of_a_long_prompt_are_few_and_from_the_part_that_is_read(adapter) -> None:
    prompt = "first " * 3000 + "now tell me a joke about clever cats " * 40
    found = explain(adapter, prompt)
    longest = adapter.encoder.max_length
    room = READINGS * (longest + SPARE_TOKENS) / longest
    assert 0 < len(found.words) <= room
    assert all(w.text != "first" for w in found.words)
    assert all(prompt[w.start : w.end] == w.text for w in found.words)


@pytest.mark.parametrize("prompt", ["hi", "🙂", "?!", "x" * 30_000])
def test_odd_prompts_have_an_explanation_too(adapter, prompt: str) -> None:
    found = explain(adapter, prompt)
    assert found.effects.shape == (len(found.words), len(NAMES))
    assert np.isfinite(found.effects).all()
    assert found.weights.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("prompt", ["...", "??", "+", "\u200b...", "🙂", "👨\u200d👩"])
def test_the_adapter_that_ships_has_weights_and_no_words_for_a_prompt_without_any(prompt) -> None:
    # It knows its training prompts, which heads of a test do not: that part once failed on no words.
    adapter = PreferenceAdapter.from_pretrained(ROOT / "checkpoints/demo/adapter")
    assert adapter.familiarity is not None
    found = explain(adapter, prompt)
    assert found.effects.shape == (len(found.words), len(adapter.objective_names))
    assert [w.text for w in found.words] == ([] if prompt.strip("\u200b")[0] in ".?+" else [prompt])
    np.testing.assert_allclose(found.weights, adapter.predict([prompt])[0], atol=1e-5)


def test_a_prompt_that_cannot_be_read_is_refused(adapter) -> None:
    with pytest.raises(ValueError, match="empty prompt"):
        explain(adapter, "  ")


def test_a_byte_level_tokenizer_works_too(tmp_path) -> None:
    adapter = vivid_adapter(byte_encoder(tmp_path), NAMES)
    found = explain(adapter, "Tell me a joke about naïve cats 🙂 please")
    names = ["Tell", "me", "a", "joke", "about", "naïve", "cats", "🙂", "please"]
    assert [w.text for w in found.words] == names
    assert np.abs(found.effects).max() > 1e-4


def test_a_tokenizer_without_offsets_is_refused(tmp_path, monkeypatch) -> None:
    adapter = vivid_adapter(tiny_encoder(tmp_path), NAMES)
    monkeypatch.setattr(type(adapter.encoder.tokenizer), "is_fast", False)
    with pytest.raises(ValueError, match="expected a fast one"):
        explain(adapter, "hello")


# ---------------------------------------------------------------- deletion


def drop(adapter, prompt: str, found: Explanation, k: int, chosen: list[int]) -> float:
    """How far objective k's weight falls when the chosen words are deleted together."""
    text = prompt
    for word in sorted((found.words[i] for i in chosen), key=lambda w: -w.start):
        text = text[: word.start] + text[word.end :]
    return float(found.weights[k] - adapter.predict([text])[0, k])


@pytest.mark.slow
@pytest.mark.parametrize("long", [False, True])
def test_deleting_the_top_words_lowers_a_weight_more_than_random_words(adapter, long) -> None:
    # `tests/bench_explanations.py` measures the same on people's prompts, with an interval.
    rng = np.random.default_rng(0)
    lead = []
    for i, prompt in enumerate(PROMPTS):
        if long:  # more words than can be left out in earnest: some were screened out
            prompt = f"{prompt} {PROMPTS[i - 1]} {PROMPTS[i - 2]} {PROMPTS[i - 3]}"
        found = explain(adapter, prompt)
        k = int(found.weights.argmax())
        places = words_of(prompt)
        assert (len(found.words) < len(places)) == long
        top = np.argsort(-found.effects[:, k])[:2].tolist()
        everything = Explanation(
            *(getattr(found, f) for f in ("objective_names", "weights", "lower", "upper", "known")),
            words=[type(found.words[0])(prompt[a:b], 0, a, b) for a, b in places],
            effects=found.effects,
        )
        at_random = [
            drop(adapter, prompt, everything, k, rng.choice(len(places), 2, False).tolist())
            for _ in range(4)
        ]
        lead.append(drop(adapter, prompt, found, k, top) - np.mean(at_random))
    assert np.mean(lead) > 0.03
    assert np.mean(np.array(lead) > 0) >= 0.75
