"""Thinking models: the thought is kept apart wherever answers are written, scored and learned; cut ones are marked."""

import asyncio
import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import reciting_llama
from transformers import AutoTokenizer

from pro_core.data.turns import THOUGHTS, ThoughtSplitter, split_reasoning, without_reasoning
from pro_core.evaluation.policy.responses import GeneratorPolicy, respond
from pro_core.generation import (
    EndpointGenerator,
    GenerationSettings,
    LocalGenerator,
    Piece,
    Request,
    Written,
    collect,
)
from pro_core.generation.answers import SurrogateJoiner
from pro_core.generation.chat import whole_text
from pro_core.policies.rl.online_dpo import best_and_worst
from pro_core.policies.rl.reward import CompositeReward
from pro_core.policies.rollouts import cut_share, failures, sample
from pro_core.rewards.batching import encode
from pro_core.rewards.best_of_n import best_of_n
from pro_core.rewards.calibration import RewardStats, text_lengths
from pro_core.rewards.formats import thoughts_note
from pro_core.rewards.panel import RewardPanel
from pro_core.rewards.specs import RewardModelSpec
from tests.servers.scripted import says, scripted, token

HI = [{"role": "user", "content": "Name three colours."}]
ASK = Request(HI)
EIGHT = GenerationSettings(max_new_tokens=8, temperature=0.0)

# ---------------------------------------------------------------- what is a thought


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("<think>\nHm.\n</think>\n\nRed.", "Hm.", "Red."),
        ("  <think>Hm.</think>Red. ", "Hm.", "Red. "),
        ("[THINK]Hm.[/THINK]Red.", "Hm.", "Red."),
        ("<think>\n\n</think>\n\nRed.", "", "Red."),  # thinking was off
        ("So red it is.\n</think>\n\nRed.", "So red it is.", "Red."),  # the prompt opened it
        ("<think>Hm, and then", "Hm, and then", ""),
        ("<think>", "", ""),
        ("<think>One <think> in it</think>Red.", "One <think> in it", "Red."),
        # Anywhere else a tag is text.
        ("Red.", "", "Red."),
        (" Red.\n", "", " Red.\n"),
        ("", "", ""),
        ("Write <think> first.", "", "Write <think> first."),
        ("Write <think>x</think> first.", "", "Write <think>x</think> first."),
        ("It ends with `</think>`.", "", "It ends with `</think>`."),
        ("`<think>` and `</think>` are tags.", "", "`<think>` and `</think>` are tags."),
        ("<think>Hm.</think>It ends with </think>.", "Hm.", "It ends with </think>."),
        ("<thin", "", "<thin"),
        ("<thought>Hm.</thought>Red.", "", "<thought>Hm.</thought>Red."),
    ],
)
def test_a_thought_is_what_stands_before_an_answer(text, thought, answer):
    assert split_reasoning(text) == (thought, answer)


def heard(pieces, opened=None) -> tuple[str, str]:
    """(reasoning, text) after all pieces."""
    splitter, written = ThoughtSplitter(opened), Written()
    for news in (*map(splitter.push, pieces), splitter.flush()):
        written.add(Piece(0, news.text, reasoning=news.reasoning, retract=news.retract))
    return written.reasoning, written.text


bits = st.sampled_from(
    ["<", "think", ">", "</", "[THINK]", "[/THINK]", "\n", " ", "`", "red", "<think>", "</think>"]
)


@given(st.lists(bits, max_size=12), st.lists(st.integers(0, 60), max_size=8))
def test_however_a_text_is_cut_into_pieces_the_thought_is_the_same(parts, cuts):
    text = "".join(parts)
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    pieces = [text[i:j] for i, j in pairwise(places)]
    whole = heard([text])
    assert heard(pieces) == whole
    assert whole[1].lstrip() == without_reasoning(text).lstrip()
    tags = [tag for pair in THOUGHTS for tag in pair]
    if not any(tag in text for tag in tags):
        assert whole == ("", text.lstrip())


def test_a_prompt_that_opens_the_thought_leaves_only_its_end_to_the_model():
    assert heard(["Hm", ".</th", "ink>", "\n\nRed."], "<think>") == ("Hm.", "Red.")
    assert heard(["Hm, `</think>", "Red."], "<think>") == ("Hm, `", "Red.")
    assert heard(["Hm, and then"], "<think>") == ("Hm, and then", "")


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (["Good luck \ud83d", "\ude00!"], "Good luck 😀!"),
        (["\ud83d", "\ude00", "\ud83d", "\ude00"], "😀😀"),
        (["a\ud83d", "b"], "a\ufffdb"),
        (["a\ude00"], "a\ufffd"),
        (["a\ud83d"], "a\ufffd"),
        (["\ud83d", "\ud83d\ude00"], "\ufffd😀"),
    ],
)
def test_halves_of_a_character_are_joined_or_replaced(pieces, text):
    joiner = SurrogateJoiner()
    found = [*map(joiner.push, pieces), joiner.flush()]
    assert "".join(found) == text
    for piece in found:
        piece.encode("utf-8")


# ---------------------------------------------------------------- scoring

THOUGHT = "<think>\nThat is terrible, awful and cruel. Or a joke about a snake?\n</think>\n\n"


def test_a_thought_is_neither_scored_nor_counted():
    specs = [
        RewardModelSpec("long", function="length"),
        RewardModelSpec("plain", function="readability"),
        RewardModelSpec("kind", function="rule", pattern="cruel", direction=-1),
    ]
    panel = RewardPanel.build(specs, ".")
    answers = ["Find its id.", "Then run kill."]
    thoughts = [THOUGHT + answers[0], f"Hm.</think>{answers[1]}"]
    panel.fit_stats([HI] * 2 + ["b"] * 2, [*answers, "x", "yes it is"], "four", remove_length=True)
    assert np.array_equal(panel.score([HI] * 2, thoughts), panel.score([HI] * 2, answers))
    assert np.array_equal(
        panel.standardized([HI] * 2, thoughts), panel.standardized([HI] * 2, answers)
    )
    assert text_lengths(thoughts).tolist() == text_lengths(answers).tolist() == [12, 14]
    specs = [RewardModelSpec("long", function="length")]
    panel = RewardPanel(specs, {}, RewardStats.fit([[0.0], [2.0]], ["long"]))
    reward = CompositeReward(panel, ["long"], [HI], [[1.0]], ["a"])
    said = [[{"role": "assistant", "content": text}] for text in (*thoughts, "<think>only")]
    found = reward([None] * 3, said, [0] * 3)
    assert found[:2] == reward([None] * 2, answers, [0] * 2)
    assert found[2] is None  # all of it is a thought: there is nothing to score


def test_responses_with_a_thought_that_is_cut_off_are_counted():
    plain = ["Find its id.", "A tag is written `</think>`.", " ", ""]
    assert thoughts_note(plain) == []
    [note] = thoughts_note([*plain, THOUGHT + "Yes.", "Hm.</think>No.", "<think>only", THOUGHT])
    assert note.startswith("4 of 8 responses begin with a thought")
    assert "; 2 of these have no answer" in note


@pytest.mark.parametrize("input_format", ["pair", "chat", "{dialogue}\n\nAssistant: {completion}"])
def test_reward_models_read_the_answer_alone(qwen, input_format):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(qwen)
    read = encode(tokenizer, [HI] * 2, [THOUGHT + "Red. \ud83d", "Red. \ufffd"], input_format, 400)
    assert read[0] == read[1]


# ---------------------------------------------------------------- servers


def wrote(*events, dialect="openai", model="m", tokens=8) -> Written:
    """What is collected from a stream of these events."""
    with scripted(lambda body: (200, events)) as (url, _):
        generator = EndpointGenerator(url, model=model, dialect=dialect, retries=0)
        [answer] = collect(generator, [ASK], GenerationSettings(max_new_tokens=tokens))
        return answer


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_in_a_field_of_its_own_is_kept_apart(field):
    answer = wrote(
        says(role="assistant"),
        says(**{field: "\nHm, "}),
        says(None, **{field: "\ud83d"}),
        says(**{field: "\ude00\n"}),
        says("\n\nRed"),
        says(".", "stop"),
        "[DONE]",
    )
    expected = ("Red.", "Hm, 😀", "stop", None)
    assert (answer.text, answer.reasoning, answer.finish, answer.error) == expected


@pytest.mark.parametrize(
    "said", [["<think>Hm", ".</think>\n", "\nRed."], ["Hm", ".</th", "ink>Red."]]
)
def test_reasoning_in_the_text_is_kept_apart(said):
    """Also where the server's prompt opened the thought, so that only its end is in the text."""
    answer = wrote(*map(says, said), says("", "stop"))
    assert (answer.text, answer.reasoning, answer.error) == ("Red.", "Hm.", None)
    last = [token("x", whole="", reason="eos_token")]
    answer = wrote(*map(token, said[:-1]), token(said[-1]), *last, dialect="tgi")
    assert (answer.text, answer.reasoning) == ("Red.x", "Hm.")


def test_text_that_turns_out_to_be_a_thought_is_taken_back_piece_by_piece():
    """What a page shows while the answer is written: text, then the same as reasoning."""

    async def news(url):
        generator = EndpointGenerator(url, model="m", retries=0)
        written, shown = Written(), []
        async for piece in generator.stream_batch([ASK], EIGHT):
            written.add(piece)
            shown.append((written.reasoning, written.text))
        return shown

    events = [says("Hm"), says(", so"), says("</think>Red"), says(".", "stop")]
    with scripted(lambda body: (200, events)) as (url, _):
        shown = asyncio.run(news(url))
    expected = [
        ("", "Hm"),
        ("", "Hm, so"),
        ("Hm, so", "Red"),
        ("Hm, so", "Red."),
        ("Hm, so", "Red."),
    ]
    assert shown == expected


@pytest.mark.parametrize(
    "events",
    [
        [says(reasoning_content="The user wants"), says("", "length")],
        [says("<think>The user wants"), says("", "length")],
        [says("", "length")],  # a server that keeps the reasoning to itself
    ],
)
def test_an_answer_that_is_all_reasoning_is_a_failure_with_a_remedy(events):
    answer = wrote(*events, tokens=40)
    assert answer.failed and not answer.text and answer.finish == "length"
    assert answer.error.startswith("The model spent all 40 tokens ")
    assert "allow more (`max_new_tokens`" in answer.error and "thinking off" in answer.error
    assert "\n" not in answer.error


def test_a_model_that_ends_within_its_thought_has_not_answered():
    answer = wrote(says("<think>Hm."), says("", "stop"))
    assert answer.failed and "within its reasoning" in answer.error and answer.reasoning == "Hm."


@pytest.mark.parametrize(
    ("reason", "finish"),
    [("stop", "stop"), ("length", "length"), ("content_filter", "filter"), ("eos", "stop")],
)
def test_an_answer_says_how_it_ended(reason, finish):
    answer = wrote(says("Red."), says("", reason))
    assert (answer.text, answer.finish, answer.error) == ("Red.", finish, None)
    if reason in ("length", "eos"):
        reason = {"eos": "eos_token"}.get(reason, reason)
        last = token(".", whole="Red.", reason=reason)
        assert wrote(token("Red"), last, dialect="tgi").finish == finish


def test_what_a_filter_withholds_is_not_an_empty_answer():
    answer = wrote(says("", "content_filter"))
    assert answer.failed and "filter" in answer.error and answer.finish == "filter"
    assert not wrote(says("", "stop")).failed  # this one the model ended itself


def test_an_emoji_over_two_events_is_one_character():
    answer = wrote(says("Good luck \ud83d"), says("\ude00 \ud83d", "stop"))
    assert answer.text == "Good luck 😀 \ufffd"
    assert wrote(token("\ud83d"), token("\ude00", whole=""), dialect="tgi").text == "😀"


# ---------------------------------------------------------------- models in this process


@pytest.mark.parametrize("special", [False, True])
def test_a_local_models_thought_is_kept_apart(tmp_path, special):
    """As in Qwen 3; also where the tags are special tokens, which no decoded text has."""
    folder = reciting_llama(tmp_path, ["<think>", "why", "</think>", "Paris"])
    if special:
        tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
        for added in tokenizer["added_tokens"]:
            added["special"] = True
        (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    generator = LocalGenerator(folder, device="cpu")
    [answer] = collect(generator, [ASK], GenerationSettings(24, temperature=0.0))
    assert (answer.text, answer.reasoning, answer.finish) == ("Paris", "why", "stop")


def test_a_template_that_opens_the_thought_is_known(tmp_path):
    """As in DeepSeek-R1: the model writes the end of its thought alone, and cut before that there is no answer."""
    folder = reciting_llama(tmp_path, ["why", "</think>", "Paris"], thinks="<think>")
    generator = LocalGenerator(folder, device="cpu")
    [answer] = collect(generator, [ASK], GenerationSettings(24, temperature=0.0))
    assert (answer.text, answer.reasoning, answer.error) == ("Paris", "why", None)
    [cut] = collect(generator, [ASK], GenerationSettings(1, temperature=0.0))
    assert cut.failed and cut.error.startswith("The model spent all 1 tokens on its reasoning")


@pytest.mark.parametrize(("special", "opened"), [(True, False), (False, True), (False, False)])
def test_a_reward_reads_thoughts_whose_tags_no_decoded_text_has(tmp_path, special, opened):
    """TRL decodes without special tokens, and never has the tag that the template wrote."""
    folder = reciting_llama(tmp_path, ["<think>", "why", "</think>", "Paris"])
    tok = AutoTokenizer.from_pretrained(folder)
    if special:
        tok.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    if opened:
        tok.chat_template += "<think>"
    said = ["why</think>Paris", "why"] if opened else ["<think>why</think>Paris", "<think>why"]
    ids = [tok(text, add_special_tokens=False)["input_ids"] + [tok.eos_token_id] for text in said]
    assert [split_reasoning(whole_text(tok, row)) for row in ids] == [("why", "Paris"), ("why", "")]
    panel = RewardPanel([RewardModelSpec("long", function="length")], {})
    panel.stats = RewardStats.fit([[0.0], [2.0]], ["long"])
    reward = CompositeReward(panel, ["long"], [HI], [[1.0]], ["a"])
    reward.tokenizer = tok
    decoded = tok.batch_decode(ids, skip_special_tokens=True)
    assert reward([None] * 2, decoded, [0, 0], completion_ids=ids) == [pytest.approx(4.0), None]


def test_an_answer_that_ran_into_its_limit_is_marked(tmp_path):
    generator = LocalGenerator(reciting_llama(tmp_path, ["Paris", "hello"]), device="cpu")
    [whole] = collect(generator, [ASK], GenerationSettings(24, temperature=0.0))
    [cut] = collect(generator, [ASK], GenerationSettings(2, temperature=0.0))
    assert (whole.finish, cut.finish, cut.error) == ("stop", "length", None)
    assert whole.text.startswith(cut.text) and len(cut.text) < len(whole.text)


# ---------------------------------------------------------------- best of N, rollouts, evaluation

ONLY_THINKS = [says(reasoning_content="So, "), says("", "length")]
THINKS = [says(reasoning_content="Hm."), says("Red."), says("", "length")]
ANSWERS = [says("A long answer without a thought."), says("", "stop")]


def by_prompt(body):
    asked = body["messages"][-1]["content"]
    return 200, {"only": ONLY_THINKS, "both": THINKS}.get(asked.split()[0], ANSWERS)


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


class Seen:
    """A panel that remembers what it was shown; it likes length."""

    objective_names = ("long",)

    class stats:
        @staticmethod
        def normalize(raw_NK, lengths):
            return raw_NK.astype(np.float32)

    def __init__(self):
        self.completions: list[str] = []

    def score_with_members(self, prompts, completions, allow_missing):
        self.completions += completions
        scores = np.array([[len(text)] for text in completions], dtype=np.float32)
        return scores, scores[None]


def test_best_of_n_scores_answers_and_carries_thoughts_beside_them():
    turns = [iter([THINKS, ONLY_THINKS, ANSWERS])]
    with scripted(lambda body: (200, next(turns[0]))) as (url, _):
        panel = Seen()
        found = best_of_n(EndpointGenerator(url, model="m", retries=0), panel, None, HI, 3, EIGHT)
    texts = {c.text: c for c in found.candidates}
    assert sorted(panel.completions) == ["A long answer without a thought.", "Red."]
    assert (texts["Red."].reasoning, texts["Red."].finish) == ("Hm.", "length")
    assert found.best.reasoning == "" and found.best.finish == "stop"
    assert texts[""].z is None and texts[""].reasoning == "So,"


def test_rollouts_keep_thoughts_apart_and_answers_that_are_all_thought_fail(tmp_path):
    with scripted(by_prompt) as (url, seen):
        prompts = [ask("only thoughts"), ask("both"), ask("neither")]

        def load():
            return EndpointGenerator(url, model="m", retries=0)

        found = sample(load, prompts, 1, EIGHT, tmp_path, 3, "own")
        assert len(seen) == 3 + 1 + 1  # what failed is tried again, twice
    assert [(r.text, r.reasoning, r.finish) for r in found[1:]] == [
        ("Red.", "Hm.", "length"),
        ("A long answer without a thought.", "", "stop"),
    ]
    [failed] = failures(found)
    assert failed["prompt"] == 0 and "spent all 8 tokens on its reasoning" in failed["error"]
    assert cut_share(found) == 0.5
    # Read from the file again, what failed too: a run that goes on goes on from the same rollouts.
    with scripted(by_prompt) as (url, seen):
        assert sample(load, prompts, 1, EIGHT, tmp_path, 3, "own") == found
        assert not seen


def test_evaluation_keeps_thoughts_apart(tmp_path):
    with scripted(by_prompt) as (url, _):
        generator = EndpointGenerator(url, model="m", retries=0)
        policy = GeneratorPolicy("p", lambda: generator, "server")
        requests = [Request(ask(prompt)) for prompt in ("only thoughts", "both", "neither")]
        answers = respond(policy, requests, EIGHT, 0, tmp_path)
        again = respond(policy, requests, EIGHT, 0, tmp_path)
    found = [(a.text, a.reasoning, a.finish) for [a] in answers]
    assert found == [
        (None, "So,", "length"),
        ("Red.", "Hm.", "length"),
        ("A long answer without a thought.", "", "stop"),
    ]
    assert again == answers


def test_an_empty_answer_is_in_no_pair():
    lines = [
        {"prompt": 0, "row": 4, "text": "", "total": 3.0},
        {"prompt": 0, "row": 4, "text": "yes", "total": 1.0},
        {"prompt": 0, "row": 4, "text": "no", "total": 2.0},
        {"prompt": 1, "row": 5, "text": " ", "total": 3.0},
        {"prompt": 1, "row": 5, "text": "yes", "total": 1.0},
    ]
    assert best_and_worst(lines) == ([{"row": 4, "chosen": "no", "rejected": "yes"}], 1)
