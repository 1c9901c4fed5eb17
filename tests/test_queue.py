"""Many visitors: the small models' batches, places for answers, and visitors who leave."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

import httpx2
import pytest

from pro_core.generation import GenerationError, GenerationSettings
from tests.servers.instant import WORDS, instant
from ui import batching
from ui.api import Api
from ui.batching import Batcher, Kind
from ui.models import Models
from ui.page import Page
from ui.places import Full, Places
from ui.writing import Writing

pytestmark = pytest.mark.slow

# ---------------------------------------------------------------- one thread for the small models


class Held:
    """Kinds that record their batches; the first batch waits until ``go`` is set."""

    def __init__(self, *names: str, room: int = 8):
        self.batches: list[tuple[str, list]] = []
        self.go, self.begun = threading.Event(), threading.Event()
        self.batcher = Batcher(
            {name: Kind(lambda batch, name=name: self.run(name, batch), room) for name in names}
        )

    def run(self, name: str, batch: list) -> list:
        self.begun.set()
        assert self.go.wait(30)
        self.batches.append((name, batch))
        if "bad" in batch:
            raise ValueError("got bad, expected good")
        return [f"{name} {one}" for one in batch]

    async def all_of(self, *requests: tuple[str, object]) -> list:
        """Results or errors of all requests; the others wait behind the first one."""
        first = asyncio.create_task(self.batcher.ask(*requests[0]))
        await asyncio.to_thread(self.begun.wait)
        rest = [asyncio.create_task(self.batcher.ask(*one)) for one in requests[1:]]
        await asyncio.sleep(0)  # now they are waiting
        self.go.set()
        return await asyncio.gather(first, *rest, return_exceptions=True)


def test_waiting_requests_become_batches_and_the_most_urgent_goes_first() -> None:
    held = Held("predict", "score")
    asked = [("score", 1), ("score", 2), ("predict", 3), ("score", 4), ("predict", 5)]
    results = asyncio.run(held.all_of(*asked))
    assert held.batches == [("score", [1]), ("predict", [3, 5]), ("score", [2, 4])]
    assert results == ["score 1", "score 2", "predict 3", "score 4", "predict 5"]


def test_a_batch_holds_no_more_than_its_room() -> None:
    held = Held("score", room=2)
    asyncio.run(held.all_of(*[("score", n) for n in range(6)]))
    assert [batch for _, batch in held.batches] == [[0], [1, 2], [3, 4], [5]]


def test_a_request_that_fails_does_not_fail_the_rest_of_its_batch() -> None:
    held = Held("predict")
    first, good, bad, other = asyncio.run(
        held.all_of(("predict", 0), ("predict", 1), ("predict", "bad"), ("predict", 2))
    )
    assert (first, good, other) == ("predict 0", "predict 1", "predict 2")
    assert isinstance(bad, ValueError)


def test_a_request_that_nobody_waits_for_is_not_run() -> None:
    held = Held("explain")

    async def give_up() -> None:
        first = asyncio.create_task(held.batcher.ask("explain", 0))
        await asyncio.to_thread(held.begun.wait)
        second = asyncio.create_task(held.batcher.ask("explain", 1))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        held.go.set()
        await first
        await held.batcher.ask("explain", 2)

    asyncio.run(give_up())
    assert [batch for _, batch in held.batches] == [[0], [2]]


def test_too_many_requests_are_refused_with_a_sentence(monkeypatch) -> None:
    monkeypatch.setattr(batching, "WAITING", 2)
    held = Held("predict")
    results = asyncio.run(held.all_of(*[("predict", n) for n in range(4)]))
    assert isinstance(results[3], GenerationError) and "Too many visitors" in str(results[3])
    assert results[:3] == ["predict 0", "predict 1", "predict 2"]


# ---------------------------------------------------------------- places


def test_places_are_given_in_the_order_in_which_people_came() -> None:
    async def story() -> None:
        line = Places(1, 2)
        first, second, third = line.ask(), line.ask(), line.ask()
        assert [p.turn.is_set() for p in (first, second, third)] == [True, False, False]
        with pytest.raises(Full, match=r"Too many visitors .* \(2\)"):
            line.ask()
        assert (line.ahead_of(second), line.ahead_of(third)) == (0, 1)
        line.leave(second)  # when one leaves the line, the others move up
        assert line.ahead_of(third) == 0
        line.leave(first)
        assert third.turn.is_set() and line.held == 1
        line.leave(third)
        assert line.held == 0 and line.ask().turn.is_set()

    asyncio.run(story())


def test_a_waiting_visitor_hears_how_many_are_ahead(monkeypatch) -> None:
    monkeypatch.setattr(Places, "news", lambda self: 0.0)

    async def story() -> list[int]:
        line = Places(1, 2)
        first, second, third = line.ask(), line.ask(), line.ask()
        heard = []
        async for ahead in third.turns():
            heard.append(ahead)
            line.leave(first if len(heard) == 1 else second)
        return heard

    assert asyncio.run(story()) == [1, 0]


# ---------------------------------------------------------------- whenever a cancellation comes


async def cancelled_after(ticks: int, work: Callable[[], Awaitable]) -> None:
    """Cancel the work after it has yielded to the loop so many times; it must end."""
    task = asyncio.ensure_future(work())
    for _ in range(ticks):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)


@pytest.mark.parametrize("ticks", range(8))
def test_a_visitor_who_is_cancelled_as_the_turn_comes_keeps_no_place(ticks: int) -> None:
    async def story() -> None:
        line = Places(1, 1)
        first, second = line.ask(), line.ask()

        async def wait() -> None:
            async with second:
                async for _ in second.turns():
                    pass
                await asyncio.sleep(30)  # holds the place

        task = asyncio.ensure_future(cancelled_after(3 + ticks, wait))
        for _ in range(4):
            await asyncio.sleep(0)
        line.leave(first)
        await task
        assert line.held == 0

    asyncio.run(story())


class Endless:
    """A silent generator that counts its open streams."""

    open = 0

    async def stream_batch(self, batch, settings):
        self.open += 1
        try:
            await asyncio.sleep(30)
            yield
        finally:
            self.open -= 1


@pytest.mark.parametrize("ticks", range(6))
def test_a_visitor_who_is_cancelled_leaves_no_answer_being_written(ticks: int) -> None:
    async def story() -> None:
        generator = Endless()

        async def look() -> None:
            writing = Writing(generator, [[]], GenerationSettings())
            async with writing:
                async for _ in writing.looks():
                    pass

        await cancelled_after(ticks + 1, look)
        for _ in range(5):
            await asyncio.sleep(0)
        assert generator.open == 0

    asyncio.run(story())


# ---------------------------------------------------------------- the app before a slow endpoint

PROMPT = "How do I get a red wine stain out of a white tablecloth?"


@pytest.fixture
def endpoint(crowded):
    """The endpoint, idle."""
    crowded[2].begun.clear()
    crowded[2].idle.clear()
    return crowded[2]


def first_run(page: Page, until) -> asyncio.Task:
    """A visitor who asks. The task's `seen` gets the first run for which `until(run)`; the visitor goes on waiting."""
    seen: asyncio.Future = asyncio.get_running_loop().create_future()

    async def look() -> None:
        async with aclosing(page.ask(PROMPT, 2, 8, False, {})) as runs:
            async for run in runs:
                if not seen.done() and until(run):
                    seen.set_result(run)

    task = asyncio.create_task(look())
    task.seen = seen  # type: ignore[attr-defined]
    return task


def test_weights_and_scores_never_wait_for_answers(crowded, endpoint) -> None:
    _, models, _ = crowded
    page = Page(models)

    async def story() -> None:
        writing = first_run(page, lambda run: run.get("phase") == "writing")
        waiting = first_run(page, lambda run: "of you" in run["note"] or "next" in run["note"])
        await writing.seen
        second = await waiting.seen
        assert second["predicted"] and "you are next for answers" in second["note"]
        third = [run async for run in page.ask(PROMPT, 2, 8, False, {})][-1]
        assert third["predicted"] and not third["busy"] and third["candidates"] == []
        assert third["tone"] == "error" and "Too many visitors" in third["note"]
        # Visitors who want no answers written are served as usual.
        assert sum((await Api(models).predict_weights(PROMPT)).values()) == pytest.approx(1)
        assert await Api(models).score(PROMPT, "Use salt.")
        assert all(
            c["z"] for c in (await page.paste(PROMPT, {}, "a b", "c d", "", ""))["candidates"]
        )
        stopped = await page.stop(second)
        assert not stopped["busy"]
        for task in (writing, waiting):
            task.cancel()
        await asyncio.gather(writing, waiting, return_exceptions=True)
        assert models.places.held == 0

    asyncio.run(story())
    assert endpoint.idle.wait(5)


def test_weights_wait_for_no_thread(crowded) -> None:
    """Each of asyncio's threads may be looking up the endpoint's address."""
    page, done = Page(crowded[1]), threading.Event()

    async def story() -> dict:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        asyncio.get_running_loop().run_in_executor(None, done.wait)
        try:
            async with asyncio.timeout(60), aclosing(page.ask(PROMPT, 2, 8, False, {})) as runs:
                return await anext(runs)
        finally:
            done.set()

    assert asyncio.run(story())["predicted"]


def test_a_follow_up_that_got_no_place_can_be_asked_again(crowded, monkeypatch) -> None:
    _, models, _ = crowded
    page = Page(models)
    card = {"text": "Use salt.", "reasoning": "", "finish": "stop", "style": None, "error": None}
    monkeypatch.setattr(models, "places", Places(0, 0))

    async def story() -> None:
        old = [run async for run in page.ask(PROMPT, 1, 8, False, {})][-1]
        old = {**old, "candidates": [{**card, "z": None, "raw": None}]}
        full = [run async for run in page.follow("Why?", 1, 8, False, old, None, 0)][-1]
        assert "Too many visitors" in full["note"] and full["candidates"] == []
        again = [run async for run in page.follow("And how?", 1, 8, False, full, None, -1)][-1]
        assert [m["content"] for m in again["messages"]] == [PROMPT, "Use salt.", "And how?"]
        alone = {**full, "messages": full["messages"][-1:]}  # no earlier turn
        [none] = [run async for run in page.follow("And how?", 1, 8, False, alone, None, -1)]
        assert "ask something first" in none["note"]

    asyncio.run(story())


BODIES = {
    "/generate": [PROMPT, None, 2, 8],
    "/predict_weights": [PROMPT],
}


@pytest.mark.parametrize("by", ["queue", "call"])
def test_a_caller_who_leaves_frees_the_endpoint(crowded, endpoint, by: str) -> None:
    url, models, _ = crowded
    with httpx2.Client(base_url=url, trust_env=False, timeout=60) as web:
        if by == "call":
            event = web.post("/gradio_api/call/generate", json={"data": BODIES["/generate"]})
            news = f"/gradio_api/call/generate/{event.json()['event_id']}"
        else:
            functions = web.get("/config").json()["dependencies"]
            index = next(f["id"] for f in functions if f["api_name"] == "generate")
            body = {"data": BODIES["/generate"], "fn_index": index, "session_hash": "leaver"}
            web.post("/gradio_api/queue/join", json=body).raise_for_status()
            news = "/gradio_api/queue/data?session_hash=leaver"
        with web.stream("GET", news) as stream:
            for _ in stream.iter_lines():
                if endpoint.begun.is_set():
                    break
            endpoint.idle.clear()
    assert endpoint.idle.wait(10)  # the endpoint itself would say something in an hour
    deadline = time.monotonic() + 10
    while models.places.held and time.monotonic() < deadline:
        time.sleep(0.01)  # the handler is on its way out
    assert models.places.held == 0


def test_the_api_shows_answers_while_they_are_written() -> None:
    with instant(pause=0.05) as quick:
        models = Models({"PRO_ENDPOINT_URL": quick.url, "PRO_ENDPOINT_MODEL": "m"})
        models.load()

        async def story() -> list[dict]:
            return [result async for result in Api(models).generate(PROMPT, None, 2, 99)]

        *earlier, last = asyncio.run(story())
    assert all(c["scores"] is None for result in earlier for c in result["candidates"])
    lengths = [len(result["candidates"][0]["text"]) for result in earlier]
    assert lengths == sorted(lengths) and len(set(lengths)) > 2
    assert [c["text"].split() for c in last["candidates"]] == [WORDS, WORDS]
    assert all(c["scores"] for c in last["candidates"])
    json.dumps(last)


@pytest.mark.parametrize("kind", ["explain", "predict"])
def test_the_request_leaves_before_the_small_models_are_asked(kind: str) -> None:
    """A stock model reads no weights, and explanations are slow, so the request waits for neither."""
    with instant() as quick:
        models = Models({"PRO_ENDPOINT_URL": quick.url, "PRO_ENDPOINT_MODEL": "m"})
        models.load()
        ran, original = threading.Event(), models._batcher._kinds[kind].run

        def wait_for_the_request(prompts):
            assert quick.begun.wait(30), "the endpoint was never asked"
            ran.set()
            return original(prompts)

        models._batcher._kinds[kind].run = wait_for_the_request

        async def story() -> list[dict]:
            return [run async for run in Page(models).ask(PROMPT, 2, 99, False, {})]

        runs = asyncio.run(story())
    assert ran.is_set() and runs[-1]["words"] and not runs[-1]["busy"]
    assert "words" not in runs[0] and runs[0]["predicted"]
