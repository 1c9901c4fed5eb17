"""Blockwise best-of-N: its arithmetic, its limit, and servers that continue an answer or do not."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace

import numpy as np
import pytest
from tiny import reciting_llama, tiny_llama
from transformers import AutoTokenizer

from pro_core.generation import (
    EndpointGenerator,
    GenerationSettings,
    LocalGenerator,
    Piece,
    Request,
    collect,
)
from pro_core.generation.base import StreamingGenerator
from pro_core.generation.chat import StopText
from pro_core.rewards.best_of_n import best_of_n
from pro_core.rewards.blockwise import BlockwiseGenerator
from pro_core.rewards.scorers import EndpointError
from tests.servers.scripted import refuses, says, scripted, token

HI = [{"role": "user", "content": "Name three colours."}]
NAMES = ("vowels", "short")
SEEDED = GenerationSettings(12, temperature=1.5, seed=4)


class Counting:
    """A panel that counts vowels, and letters as something bad."""

    objective_names = NAMES

    class stats:
        @staticmethod
        def normalize(raw_NK, lengths):
            return raw_NK.astype(np.float32)

    def score_with_members(self, prompts, completions, **_):
        vowels = [sum(text.count(v) for v in "aeiou") for text in completions]
        scores = np.array([[v, -len(t)] for v, t in zip(vowels, completions, strict=True)])
        return scores.astype(np.float32), scores[None].astype(np.float32)


class Letters(StreamingGenerator):
    """Candidate i adds as many letters as it may, the i-th of its alphabet; at ``end`` letters an answer ends."""

    name, policy = "letters", None

    def __init__(self, alphabet: str, end: int = 99, fails: str = ""):
        self.alphabet, self.end, self.fails = alphabet, end, fails
        self.asked: list[tuple[list[str], int, int | None]] = []
        self.candidates: list[list[int | None]] = []

    async def stream_batch(self, batch, settings):
        begun = [request.begun for request in batch]
        self.asked.append((begun, settings.max_new_tokens, settings.seed))
        self.candidates.append([request.candidate for request in batch])
        for i, before in enumerate(begun):
            letter = self.alphabet[i % len(self.alphabet)]
            count = min(settings.max_new_tokens, self.end - len(before))
            if letter in self.fails:
                yield Piece(i, error="It broke off.", done=True)
                continue
            for _ in range(count):
                yield Piece(i, letter)
            cut = len(before) + count < self.end
            yield Piece(i, done=True, finish="length" if cut else "stop")

    def status(self):
        return {"name": self.name, "state": "ready"}


def asked(vowels: float, short: float) -> Request:
    return Request.weighted(HI, [vowels, short], NAMES)


def test_each_block_goes_on_from_the_best_of_the_last():
    writer = Letters("xa", end=8)
    blocks = BlockwiseGenerator(writer, Counting(), n=2, block=3)
    one, other = collect(blocks, [asked(1, 0), asked(0, 1)], GenerationSettings(20, seed=5))
    assert (one.text, one.finish) == ("a" * 8, "stop")
    assert (other.text, other.finish) == ("x" * 8, "stop")  # equal lengths: the first
    begun = [before for before, _, _ in writer.asked]
    assert begun == [[""] * 4, ["aaa"] * 2 + ["xxx"] * 2, ["a" * 6] * 2 + ["x" * 6] * 2]
    seeds = [seed for _, _, seed in writer.asked]
    assert seeds[0] == 5 and len({*seeds}) == 3
    [cut] = collect(blocks, [asked(1, 0)], GenerationSettings(7))
    assert (cut.text, cut.finish) == ("a" * 7, "length")
    assert [tokens for _, tokens, _ in writer.asked[3:]] == [3, 3, 1]


def test_text_comes_block_by_block_and_leaving_stops_the_work():
    writer = Letters("xa")
    blocks = BlockwiseGenerator(writer, Counting(), n=2, block=3)

    async def two_blocks():
        async with aclosing(blocks.stream_batch([asked(1, 0)], GenerationSettings(30))) as pieces:
            return [(await anext(pieces)).text for _ in range(2)]

    assert asyncio.run(two_blocks()) == ["aaa", "aaa"]
    assert len(writer.asked) == 2


def test_failed_continuations_are_not_chosen():
    blocks = BlockwiseGenerator(Letters("xa", 8, fails="a"), Counting(), n=2, block=4)
    [answer] = collect(blocks, [asked(1, 0)], GenerationSettings(8))
    assert (answer.text, answer.error) == ("x" * 8, None)
    blocks = BlockwiseGenerator(Letters("xa", 8, fails="xa"), Counting(), n=2, block=4)
    assert collect(blocks, [asked(1, 0)], GenerationSettings(8))[0].failed


def test_what_an_answer_draws_does_not_depend_on_when_others_end():
    writer = Letters("xa", end=8)
    blocks = BlockwiseGenerator(writer, Counting(), n=2, block=3)
    early = replace(asked(1, 0), begun="a" * 6)
    collect(blocks, [early, asked(0, 1)], GenerationSettings(20))
    assert writer.candidates == [[0, 1, 2, 3], [2, 3], [2, 3]]


def test_a_panel_that_fails_fails_the_answer():
    class Gone(Counting):
        def score_with_members(self, prompts, completions, **_):
            if len(completions[0]) > 4:
                raise EndpointError("the server went away")
            return super().score_with_members(prompts, completions)

    blocks = BlockwiseGenerator(Letters("xa"), Gone(), n=2, block=4)
    [answer] = collect(blocks, [asked(1, 0)], GenerationSettings(12))
    assert answer.failed and answer.text == "aaaa"


def test_a_model_that_ends_a_block_within_its_thought_is_told_what_to_do():
    class Thinks(Letters):
        async def stream_batch(self, batch, settings):
            for i in range(len(batch)):
                yield Piece(i, reasoning="Hm")
                yield Piece(i, error="no tokens left", done=True, finish="length")

    blocks = BlockwiseGenerator(Thinks("x"), Counting(), n=2, block=4)
    [answer] = collect(blocks, [asked(1, 0)], GenerationSettings(12))
    assert answer.failed and answer.error != "no tokens left"


@pytest.mark.slow
def test_the_prompt_leaves_room_for_the_whole_answer(tmp_path):
    """A prompt that is too long for it is refused at once, not when the room is used up."""
    folder = reciting_llama(tmp_path, ["Paris", " rained", " joke"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = len(tokenizer.apply_chat_template(HI, add_generation_prompt=True, return_dict=False))
    for room, text in ((4, "Paris rained joke"), (3, "")):
        generator = LocalGenerator(folder, device="cpu", max_context=prompt + room)
        blocks = BlockwiseGenerator(generator, Counting(), n=2, block=1)
        [answer] = collect(blocks, [asked(1, 0)], GenerationSettings(4, temperature=0))
        assert (answer.text, answer.failed) == (text, not text)


def test_what_makes_no_sense_is_refused():
    for wrong in ({"n": 1}, {"block": 0}):
        with pytest.raises(ValueError, match=rf"{next(iter(wrong))}=.*expected"):
            BlockwiseGenerator(Letters("xa"), Counting(), **wrong)
    blocks = BlockwiseGenerator(Letters("xa"), Counting(), n=2)
    stranger = Request.weighted(HI, [1.0], ("kind",))
    answers = collect(blocks, [Request(HI), stranger, asked(1, 0)], GenerationSettings(2))
    assert [answer.failed for answer in answers] == [True, True, False]


@pytest.mark.slow
def test_a_block_of_the_answers_length_is_best_of_n_and_shorter_ones_are_not(tmp_path):
    generator = LocalGenerator(tiny_llama(tmp_path), device="cpu")
    both = [Request(HI, candidate=i) for i in (1, 0)]
    drawn = [one.text for one in collect(generator, both, SEEDED)]
    assert drawn == [one.text for one in collect(generator, [Request(HI)] * 2, SEEDED)][::-1]
    best = best_of_n(generator, Counting(), [1, 0], HI, 3, SEEDED).best
    for block in (12, 50):
        blocks = BlockwiseGenerator(generator, Counting(), n=3, block=block)
        [answer] = collect(blocks, [asked(1, 0)], SEEDED)
        assert (answer.text, answer.finish) == (best.text, best.finish)
    blocks = BlockwiseGenerator(generator, Counting(), n=3, block=4)
    first, again = (collect(blocks, [asked(1, 0)], SEEDED)[0].text for _ in range(2))
    assert first == again
    # The first block is best-of-N of so many tokens.
    four = GenerationSettings(4, temperature=1.5, seed=4)
    assert first.startswith(best_of_n(generator, Counting(), [1, 0], HI, 3, four).best.text)


# ---------------------------------------------------------------- servers


def server(continues: bool, counts: bool = True):
    """An openai server that reads 6 tokens more where it closes the last turn and opens another."""

    def answer(body):
        if body["stream"]:
            return 200, [says(" two", "stop"), "[DONE]"]
        open_turn = continues and body.get("continue_final_message") is True
        usage = {"usage": {"prompt_tokens": 20 if open_turn else 26}} if counts else {}
        return 201, [usage]

    return scripted(answer)


def test_a_server_that_continues_an_answer_is_asked_to():
    with server(continues=True) as (url, seen):
        generator = EndpointGenerator(url, "m")
        [first, second] = collect(generator, [Request(HI, begun="One,")] * 2, GenerationSettings(8))
    assert first.text == second.text == " two" and not first.error
    *probes, last, _ = seen
    assert [(body["stream"], body["max_tokens"]) for body in probes] == [(False, 1)] * 2
    assert last["messages"] == [*HI, {"role": "assistant", "content": "One,"}]
    assert last["continue_final_message"] is True and last["add_generation_prompt"] is False


@pytest.mark.parametrize("kind", ["ignores it", "does not count", "refuses it"])
def test_a_server_that_would_begin_anew_is_refused(kind):
    """Nothing is streamed from it: its answer would be the beginning of another one."""
    refusing = scripted(lambda body: refuses("Unrecognized request argument"))
    with refusing if kind == "refuses it" else server(False, kind == "ignores it") as (url, seen):
        generator = EndpointGenerator(url, "m")
        [answer] = collect(generator, [Request(HI, begun="One,")], GenerationSettings(8))
    assert answer.failed and not answer.text
    assert not any(body["stream"] for body in seen)


def test_tgi_continues_the_prompt_that_is_rendered_here():
    events = [token(" two", whole=" two", reason="eos_token")]
    with scripted(lambda body: (200, events)) as (url, seen):
        generator = EndpointGenerator(url, dialect="tgi")
        asked_for = [Request(HI, begun="One,", candidate=2)]
        [answer] = collect(generator, asked_for, GenerationSettings(8, seed=3))
    assert (answer.text, answer.error) == (" two", None)
    assert seen[0]["inputs"] == "Human: Name three colours.\n\nAssistant: One,"
    assert seen[0]["parameters"]["seed"] == 3 + 2 * 7919


def test_a_stop_that_begins_in_the_block_before_ends_the_answer(tmp_path):
    events = [token("an:"), token(" Hi", whole="an: Hi", reason="length")]
    with scripted(lambda body: (200, events)) as (url, _):
        generator = EndpointGenerator(url, dialect="tgi")
        [answer] = collect(generator, [Request(HI, begun="One.\nHum")], GenerationSettings(2))
    assert (answer.text, answer.finish) == ("", "stop")
    generator = LocalGenerator(reciting_llama(tmp_path, ["Hum", "an:", "!"]), device="cpu")
    generator.load()
    generator._loaded[1].chat_template = None
    for begun in ("\n", "\nHum"):
        [answer] = collect(
            generator, [Request(HI, begun=begun)], GenerationSettings(9, temperature=0)
        )
        assert (answer.text, answer.finish) == ("", "stop")
    stop = StopText("\nHuman:")
    stop.go_on("One.\nHum")
    assert [stop.push("ble"), stop.push("."), stop.flush(), stop.reached] == ["ble", ".", "", False]
