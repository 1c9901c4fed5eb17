"""Generation through servers: a real one, one that speaks TGI's dialect, and one that fails."""

import asyncio
import logging
import os
import socket
import subprocess
import sys
import time
from contextlib import aclosing

import httpx2
import pytest

from pro_core.generation import (
    EndpointGenerator,
    GenerationError,
    GenerationSettings,
    LocalGenerator,
    Request,
    collect,
    generator_from_env,
    styled,
)
from tests.servers.faulty import WORDS, Fault, beginning, faulty_server, sse
from tests.servers.tgi_dialect import Log, Options, build, serving

pytestmark = pytest.mark.slow

HI = [{"role": "user", "content": "Name three colours."}]
ASK = Request(HI)
TINY = GenerationSettings(max_new_tokens=6, seed=1)
HF_TOKEN = "hf_this_is_the_machines_own_token"


@pytest.fixture(autouse=True)
def machine_token(monkeypatch):
    """The machine has a Hugging Face token of its own, which must never reach an endpoint."""
    monkeypatch.setenv("HF_TOKEN", HF_TOKEN)
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", HF_TOKEN)


class Pauses(list):
    """A sleep that only takes note."""

    async def __call__(self, seconds):
        self.append(seconds)


@pytest.fixture(scope="module")
def faulty():
    with faulty_server() as server, faulty_server() as elsewhere:
        server.elsewhere = elsewhere.url
        server.other = elsewhere
        yield server


def meet(faulty, name, dialect="openai", **options):
    options = {"sleep": Pauses(), "token": faulty.token, "timeout": 5.0} | options
    return EndpointGenerator(f"{faulty.url}/{name}", model="m", dialect=dialect, **options)


def outcome(generator, n=1):
    return collect(generator, [ASK] * n, TINY)[0]


def news_of(generator):
    """Every piece of one answer."""

    async def watch():
        return [piece async for piece in generator.stream_batch([ASK], TINY)]

    return asyncio.run(watch())


# ---------------------------------------------------------------- faults, in both dialects


@pytest.mark.parametrize("dialect", ["openai", "tgi"])
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("401", "refuses our token"),
        ("401-echo", "refuses our token"),
        ("403", "forbids"),
        ("404", "does not know this model or address (404) (The model `m` does not exist)"),
        ("422", "does not accept this request (422) (max_tokens must be <= 512)"),
        ("422-echo", "bad header Bearer (token) second line"),
        ("500", "failed (500) (oops)"),
        ("502-html", "failed (502)"),
        ("html", "sent a web page; check PRO_ENDPOINT_URL"),
        ("json", "streaming is off"),
        ("empty", "empty answer"),
        ("no-words", "without writing anything"),
        ("rubbish", "is no answer"),
        ("other-json", "is no answer"),
        ("redirect", "set PRO_ENDPOINT_URL to the final address"),
    ],
)
def test_each_fault_is_one_sentence(faulty, name, says, dialect):
    answer = outcome(meet(faulty, name, dialect))
    assert says in answer.error
    assert answer.text == ""
    assert answer.error.endswith(".")
    assert "\n" not in answer.error
    assert faulty.token not in answer.error
    with pytest.raises(GenerationError, match=r"endpoint|model"):
        meet(faulty, name, dialect).generate([ASK], TINY)


@pytest.mark.parametrize("dialect", ["openai", "tgi"])
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ends-early", "half-way"),
        ("cut", "broke off"),
        ("error-inside", "Request failed during generation: CUDA"),
        ("stall", "sent nothing for 0.3 seconds"),
    ],
)
def test_what_was_written_stays(faulty, name, says, dialect):
    before = faulty.visits(name)
    answer = outcome(meet(faulty, name, dialect, timeout=0.3))
    assert says in answer.error
    assert answer.text == "Well, here"
    assert faulty.visits(name) == before + 1  # nothing is tried again once text is there


@pytest.mark.parametrize("dialect", ["openai", "tgi"])
def test_a_silent_server_times_out(faulty, dialect):
    assert (
        "sent nothing for 0.3 seconds"
        in outcome(meet(faulty, "silent", dialect, timeout=0.3)).error
    )


@pytest.mark.parametrize("dialect", ["openai", "tgi"])
def test_a_working_server_answers_and_gets_the_right_request(faulty, dialect):
    answer = outcome(meet(faulty, "fine", dialect))
    assert (answer.text, answer.error) == ("".join(WORDS), None)
    path, headers, body = faulty.requests[-1]
    assert headers["authorization"] == f"Bearer {faulty.token}"
    if dialect == "openai":
        assert path == "/fine/chat/completions"
        assert body["messages"] == HI
        assert body["max_tokens"] == 6
    else:
        assert path == "/fine/generate_stream"
        assert body["inputs"] == "Human: Name three colours.\n\nAssistant:"
        assert body["parameters"]["stop"] == ["\nHuman:"]


# ---------------------------------------------------------------- trying again


@pytest.mark.parametrize("dialect", ["openai", "tgi"])
@pytest.mark.parametrize(
    ("name", "pauses"), [("429-once", [2.0]), ("503-once", [0.5]), ("overloaded-once", [0.5])]
)
def test_a_busy_server_is_tried_again(dialect, name, pauses):
    with faulty_server() as faulty:
        generator = meet(faulty, name, dialect)
        assert outcome(generator).text == "".join(WORDS)
        assert generator._sleep == pauses
        assert faulty.visits(name) == 2


def test_only_a_server_that_wakes_up_is_worth_a_note():
    with faulty_server() as faulty:
        for name, told in (("429-once", []), ("503-once", [True])):
            pieces = news_of(meet(faulty, name))
            assert [piece.progress for piece in pieces if piece.note] == told


@pytest.mark.parametrize("dialect", ["openai", "tgi"])
def test_nothing_is_tried_again_once_text_is_there(dialect):
    tgi = dialect == "tgi"
    busy = {"error": "overloaded", "error_type": "overloaded"} if tgi else {"error": {"code": 503}}
    with faulty_server({"x": Fault(body=beginning(tgi) + sse(busy))}) as server:
        generator = meet(server, "x", dialect)
        answer = outcome(generator)
        assert answer.text == "Well, here" and answer.error
        assert (server.visits("x"), generator._sleep) == (1, [])


def test_retries_end(faulty):
    generator = meet(faulty, "429")
    assert "too many requests (429)" in outcome(generator).error
    assert generator._sleep == [0.5, 1.0, 2.0]
    patient = meet(faulty, "429-long")  # asks for an hour
    assert "try again in a while" in outcome(patient).error
    assert patient._sleep == []


def test_a_refused_connection_is_tried_again():
    with socket.socket() as taken:  # bound and not listening: nobody answers there
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        generator = EndpointGenerator(url, model="m", sleep=Pauses())
        assert "connection was refused" in outcome(generator).error
        assert generator._sleep == [0.5, 1.0, 2.0]
        status = generator.status()
    assert status["state"] == "unreachable"
    assert status["reachable"] is False


# ---------------------------------------------------------------- the token


@pytest.mark.parametrize("dialect", ["openai", "tgi"])
@pytest.mark.parametrize("token", [None, "", "  "])
def test_the_machines_own_token_is_never_sent(faulty, dialect, token):
    generator = meet(faulty, "fine", dialect, token=token)
    assert outcome(generator).error is None
    generator.status()
    for _, headers, _ in faulty.requests[-2:]:
        assert "authorization" not in headers
        assert HF_TOKEN not in str(headers)


@pytest.mark.parametrize("dialect", ["openai", "tgi"])
def test_a_redirect_is_not_followed(faulty, dialect):
    generator = meet(faulty, "redirect", dialect)
    assert outcome(generator).error
    assert generator.status()["reachable"] is False
    assert faulty.other.requests == []


def test_the_token_stays_out_of_sight(faulty, caplog):
    caplog.set_level(logging.DEBUG)
    for name in ["401-echo", "422-echo", "500", "fine", "rubbish", "cut"]:
        for dialect in ["openai", "tgi"]:
            generator = meet(faulty, name, dialect)
            shown = [repr(generator), str(generator.status()), generator.name]
            shown.append(str(outcome(generator)))
            assert faulty.token not in "".join(shown)
    assert faulty.token not in caplog.text
    assert caplog.text  # something was logged at all


@pytest.mark.parametrize(
    "url",
    ["http://user:pass@host", "http://host?key=abc", "host:80", "ftp://host", "", "http://h:x"],
)
def test_a_bad_address_is_refused(url):
    with pytest.raises(ValueError, match="PRO_ENDPOINT_URL") as caught:
        EndpointGenerator(url)
    assert "pass" not in str(caught.value).replace("password", "")


def test_a_bad_token_and_an_unknown_dialect_are_refused():
    with pytest.raises(ValueError, match="dialect 'grpc'"):
        EndpointGenerator("http://h", dialect="grpc")
    with pytest.raises(ValueError, match="PRO_ENDPOINT_TOKEN. has spaces") as caught:
        EndpointGenerator("http://h", token="abc\ndef")
    assert "abc" not in str(caught.value)


# ---------------------------------------------------------------- side by side, and stopping


def test_one_candidate_fails_and_the_others_go_on(faulty):
    generator = meet(faulty, "fine")
    answers = collect(generator, [ASK, Request([]), ASK], TINY)
    assert [bool(a.error) for a in answers] == [False, True, False]
    assert answers[0].text == answers[2].text == "".join(WORDS)


@pytest.mark.parametrize("dialect", ["openai", "tgi"])
def test_half_a_surrogate_pair_can_be_sent(faulty, dialect):
    asked = Request([{"role": "user", "content": "x\ud83d"}])
    answer = collect(meet(faulty, "fine", dialect), [asked], TINY)
    assert answer[0].error is None
    assert "x\ufffd" in str(faulty.requests[-1][2])


def test_candidates_have_seeds_of_their_own(faulty):
    before = len(faulty.requests)
    collect(meet(faulty, "fine"), [ASK] * 3, TINY)
    seeds = [body["seed"] for _, _, body in faulty.requests[before:]]
    assert len(set(seeds)) == 3


@pytest.mark.parametrize("dialect", ["openai", "tgi"])
def test_closing_hangs_up(faulty, dialect):
    async def look_and_leave():
        generator = meet(faulty, "stall", dialect, timeout=120.0)
        async with aclosing(generator.stream_batch([ASK, ASK], TINY)) as pieces:
            async for piece in pieces:
                if piece.text:
                    return

    faulty.closed.clear()
    asyncio.run(asyncio.wait_for(look_and_leave(), 30))  # not the two minutes of the time-out
    assert faulty.closed.wait(5)


def test_status_says_what_is_there(faulty):
    assert meet(faulty, "fine").status()["state"] == "ready"
    assert meet(faulty, "503-once").status()["state"] == "loading"
    web_page = meet(faulty, "html").status()
    assert web_page["state"] == "unreachable"
    assert "web page" in web_page["detail"]
    refused = meet(faulty, "401").status()
    assert "refuses our token" in refused["detail"]


def test_the_environment_names_the_generator():
    assert isinstance(generator_from_env({}), LocalGenerator)
    assert generator_from_env({"PRO_POLICY": "some/model", "PRO_ENDPOINT_URL": " "}).path_or_id == (
        "some/model"
    )
    generator = generator_from_env(
        {
            "PRO_ENDPOINT_URL": "https://host:8080/v1/",
            "PRO_ENDPOINT_MODEL": "m",
            "PRO_ENDPOINT_TOKEN": "t",
            "PRO_ENDPOINT_DIALECT": "tgi",
        }
    )
    assert (generator.name, generator.dialect) == ("m at host:8080", "tgi")
    with pytest.raises(ValueError, match="PRO_ENDPOINT_TOKEN is set but PRO_ENDPOINT_URL is not"):
        generator_from_env({"PRO_ENDPOINT_TOKEN": "t"})


# ---------------------------------------------------------------- TGI's dialect around the real model


@pytest.fixture(scope="module")
def tgi(smollm2):
    """(address, log, options) of the server that speaks TGI's dialect."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.bfloat16).eval()
    log, options = Log(), Options(api_key="the-key")
    app = build(model, AutoTokenizer.from_pretrained(smollm2), options, log)
    with serving(app) as url:
        yield url, log, options


def tgi_generator(tgi, model, **options):
    options = {"token": "the-key", "sleep": Pauses(), "dialect": "tgi"} | options
    return EndpointGenerator(tgi[0], model, **options)


def test_tgi_candidates_run_side_by_side(tgi, smollm2):
    _, log, _ = tgi
    generator = tgi_generator(tgi, smollm2)
    order = []

    async def watch():
        async for piece in generator.stream_batch([ASK] * 3, GenerationSettings(max_new_tokens=8)):
            if piece.text:
                order.append(piece.index)
            assert piece.error is None

    asyncio.run(watch())
    assert log.most_running == 3
    assert order != sorted(order)  # they come in turns, not one after the other
    assert (
        generator.status()["detail"] == "tgi dialect, chats rendered by the model's chat template"
    )
    assert log.bodies[-1]["inputs"].endswith(
        "Name three colours.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_tgi_seeds_repeat(tgi, smollm2):
    generator = tgi_generator(tgi, smollm2)
    settings = GenerationSettings(max_new_tokens=8, temperature=1.0, seed=5)
    first, second = generator.generate([ASK] * 2, settings), generator.generate([ASK] * 2, settings)
    assert first == second
    assert first[0] != first[1]


def test_tgi_traps_are_stepped_around(tgi, smollm2):
    """top_p 1.0 and temperature 0 mean something to people; TGI refuses both numbers."""
    generator = tgi_generator(tgi, smollm2)
    settings = GenerationSettings(max_new_tokens=4, temperature=0.0, top_p=1.0, seed=3)
    greedy = generator.generate([ASK, ASK], settings)
    assert greedy[0] == greedy[1]
    assert generator.generate([ASK], GenerationSettings(max_new_tokens=4, top_p=1.0))
    for body in tgi[1].bodies[-3:]:
        assert "top_p" not in body["parameters"]


def test_tgi_writes_characters_whole(tgi, smollm2):
    generator = tgi_generator(tgi, smollm2)
    asks = Request([{"role": "user", "content": "Repeat exactly: 😀🎉 日本語"}])
    settings = GenerationSettings(max_new_tokens=16, temperature=0.0)

    async def pieces():
        return [text async for text in generator.stream(asks, settings)]

    assert "\ufffd" not in "".join(asyncio.run(pieces()))


def test_tgi_errors_come_inside_the_stream(tgi, smollm2):
    generator = tgi_generator(tgi, smollm2)
    long = [{"role": "user", "content": "word " * 600}]
    answer = collect(generator, [Request(long)], TINY)[0]
    assert "does not accept this request (422)" in answer.error
    assert "must be <= 512" in answer.error


def test_tgi_overload_is_tried_again(tgi, smollm2):
    _, log, options = tgi
    options.max_concurrent_requests = 1
    log.finished.clear()
    try:
        generator = tgi_generator(tgi, smollm2, retries=0)
        answers = collect(generator, [ASK] * 3, TINY)
    finally:
        options.max_concurrent_requests = 8
    assert log.finished.count("overloaded") == 2
    assert sum("is overloaded" in (a.error or "") for a in answers) == 2
    assert sum(bool(a.text) for a in answers) == 1


def test_tgi_refuses_a_wrong_key_and_gets_plain_turns_without_a_tokenizer(tgi):
    assert "refuses our token" in outcome(tgi_generator(tgi, None, token="wrong")).error
    assert "refuses our token" in outcome(tgi_generator(tgi, None, token=None)).error
    generator = tgi_generator(tgi, "no-tokenizer")
    assert outcome(generator).text
    assert "Human/Assistant turns" in generator.status()["detail"]
    assert tgi[1].bodies[-1]["inputs"] == "Human: Name three colours.\n\nAssistant:"


def test_tgi_stop_ends_the_servers_work(tgi, smollm2):
    _, log, _ = tgi
    log.finished.clear()

    async def look_and_leave():
        settings = GenerationSettings(max_new_tokens=400)
        async with aclosing(tgi_generator(tgi, smollm2).stream_batch([ASK], settings)) as pieces:
            async for piece in pieces:
                if piece.text:
                    break

    asyncio.run(look_and_leave())
    deadline = time.monotonic() + 10
    while not log.finished and time.monotonic() < deadline:
        asyncio.run(asyncio.sleep(0.01))
    assert log.finished == ["abandoned"]


# ---------------------------------------------------------------- transformers serve, a real server


@pytest.fixture(scope="module")
def serve(smollm2, tmp_path_factory):
    """The address of `transformers serve` with the small model; it takes one request at a time."""
    pytest.importorskip("openai", reason="`transformers serve` needs the openai package")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (tmp_path_factory.mktemp("serve") / "log").open("w+")
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", smollm2]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    process = subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"HF_TOKEN": ""}
    )
    try:
        deadline = time.monotonic() + 300
        while True:
            try:
                if httpx2.get(f"http://127.0.0.1:{port}/health", timeout=5).is_success:
                    break
            except httpx2.TransportError:
                pass
            log.seek(0)
            assert process.poll() is None, f"transformers serve ended: {log.read()}"
            assert time.monotonic() < deadline, f"transformers serve did not start: {log.read()}"
            time.sleep(0.2)  # a process that starts can only be polled
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def test_a_real_server_streams_candidates(serve, smollm2):
    generator = EndpointGenerator(serve, smollm2)
    batch = [Request(styled(HI, style)) for style in ("plain", "playful")]

    async def watch():
        news = []
        async for piece in generator.stream_batch(batch, GenerationSettings(max_new_tokens=8)):
            assert piece.error is None
            news.append(piece)
        return news

    news = asyncio.run(watch())
    texts = ["".join(p.text for p in news if p.index == i) for i in range(2)]
    assert all(texts)
    assert sum(bool(piece.text) for piece in news) > 4  # in pieces, not at once
    assert sum(piece.done for piece in news) == 2
    status = generator.status()
    assert status["state"] == "ready", status["detail"]


def test_a_real_server_at_temperature_zero_says_what_the_model_says(serve, smollm2):
    settings = GenerationSettings(max_new_tokens=8, temperature=0.0)
    here = LocalGenerator(smollm2).generate([ASK], settings)[0]
    there = EndpointGenerator(serve, smollm2).generate([ASK], settings)[0]
    assert here[:12] == there[:12]  # bf16 may part ways later


def test_a_real_server_refuses_an_unknown_model(serve):
    answer = outcome(EndpointGenerator(serve, "no/such-model", sleep=Pauses()))
    assert answer.error
    assert answer.error.endswith(".")
