"""Blockwise best-of-N: its arithmetic, its limit, and servers that continue an answer or do not."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import numpy as np
import pytest
from tiny import tiny_llama

from pro_core.generation import (
    EndpointGenerator,
    GenerationSettings,
    LocalGenerator,
    Piece,
    Request,
    collect,
)
from pro_core.generation.base import StreamingGenerator
from pro_core.rewards.best_of_n import best_of_n
from pro_core.rewards.blockwise import BlockwiseGenerator
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

    async def stream_batch(self, batch, settings):
        begun = [request.begun for request in batch]
        self.asked.append((begun, settings.max_new_tokens, settings.seed))
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
        [answer] = collect(generator, [Request(HI, begun="One,")], GenerationSettings(8))
    assert (answer.text, answer.error) == (" two", None)
    assert seen[0]["inputs"] == "Human: Name three colours.\n\nAssistant: One,"
