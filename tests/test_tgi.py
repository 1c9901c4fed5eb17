"""TGI's API by TGI's rules around the real small model (`tests/servers/tgi_dialect.py`, which is not TGI), and on it:
a policy that reads weights, a soup as a lattice of mixtures, and an endpoint that wakes up."""

from __future__ import annotations

import json
from pathlib import Path

import httpx2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from pro_core.generation import (
    EndpointGenerator,
    GenerationSettings,
    LocalGenerator,
    Request,
    RequestError,
    collect,
    generator_from_env,
)
from pro_core.generation.lattice import CHECKED_FOR, NOBODY, Served
from pro_core.policies.soups import interpolate_lattice
from pro_core.prompting.policy_config import PolicyConfig
from pro_core.prompting.templates import Condition
from pro_core.system.bundled_models import SMOLLM2, resolve_policy
from tests.servers.tgi_dialect import Log, Options, build, serving

pytestmark = pytest.mark.slow

SOUP = Path(__file__).parent.parent / "checkpoints/demo/policy"
NAMES = ("helpful", "harmless", "truthful", "informative", "humor")
HI = [{"role": "user", "content": "How do I clean a cat?"}]
ASK = Request(HI)
GREEDY = GenerationSettings(max_new_tokens=12, temperature=0.0)
PROMPT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nHow do I clean a cat?<|im_end|>\n<|im_start|>assistant\n"
)
"""What SmolLM2's template makes of HI."""


class TGI:
    """The server: its address, its options and what it saw; `post` asks it without our client."""

    def __init__(self, url: str, options: Options, log: Log):
        self.url, self.options, self.log = url, options, log

    def post(self, route: str, body: dict, key: str | None = "the-key") -> httpx2.Response:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx2.post(self.url + route, json=body, headers=headers, timeout=60)

    def generate(self, route: str = "/generate", inputs: str = PROMPT, **parameters):
        return self.post(route, {"inputs": inputs, "parameters": parameters})

    def events(self, route: str, body: dict) -> list[dict | str]:
        lines = self.post(route, body).text.split("\n\n")
        data = [line.removeprefix("data: ") for line in lines if line]
        return [one if one == "[DONE]" else json.loads(one) for one in data]


@pytest.fixture(scope="module")
def lattice(tmp_path_factory):
    """The demo policy's five LoRAs as a lattice of one step: a folder of five mixtures."""
    folder = tmp_path_factory.mktemp("soups") / "lattice"
    interpolate_lattice(SOUP, folder, 1)
    return folder


@pytest.fixture(scope="module")
def running(smollm2, lattice):
    """The server with all mixtures except that of humor."""
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.bfloat16).eval()
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    options, log = Options(api_key="the-key", model_id=SMOLLM2), Log()
    held = ",".join(f"{name}-100={lattice / f'{name}-100'}" for name in NAMES[:-1])
    with serving(build(model, tokenizer, options, log, held)) as url:
        yield TGI(url, options, log)


@pytest.fixture
def tgi(running):
    fresh = Options(api_key="the-key", model_id=SMOLLM2)
    running.options.__dict__.update(fresh.__dict__)
    # Of those that still run each will count itself out.
    running.log.__dict__.update(Log(running=running.log.running).__dict__)
    return running


# ---------------------------------------------------------------- the server's rules


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"temperature": 0.0}, "`temperature` must be strictly positive"),
        ({"top_p": 1.0}, "`top_p` must be > 0.0 and < 1.0"),
        ({"top_k": 0}, "`top_k` must be strictly positive"),
        ({"typical_p": 1.5}, "`typical_p` must be > 0.0 and < 1.0"),
        ({"repetition_penalty": 0.0}, "`repetition_penalty` must be strictly positive"),
        ({"frequency_penalty": 3.0}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
        ({"stop": list("abcde")}, "`stop` supports up to 4 stop sequences. Given: 5"),
        ({"truncate": 501}, "`truncate` must be strictly positive and less than 500. Given: 501"),
        ({"max_new_tokens": 600}, "must be <= 512. Given: 37 `inputs` tokens and 600 `max_new_tokens`"),
        ({"grammar": {"type": "regex", "value": "a"}}, "grammar is not supported"),
    ],
)  # fmt: skip
def test_tgi_says_what_it_refuses(tgi, parameters, says):
    """The same sentence as a status and as an event of a stream that began with 200."""
    answer = tgi.generate(**parameters)
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("Input validation error: ")
    assert says in answer.json()["error"]
    [event] = tgi.events("/generate_stream", {"inputs": PROMPT, "parameters": parameters})
    assert event == answer.json() and event["error_type"] == "validation"


def test_each_route_says_what_it_refuses(tgi):
    assert "cannot be empty" in tgi.generate(inputs="").json()["error"]
    assert "must be > 0 and <= 2. Given: 3" in tgi.generate(best_of=3, do_sample=True).json()["error"]  # fmt: skip
    assert "use sampling when `best_of`" in tgi.generate(best_of=2).json()["error"]
    assert "`seed` must not be set" in tgi.generate(best_of=2, do_sample=True, seed=1).json()["error"]  # fmt: skip
    body = {"inputs": "Hi", "parameters": {"best_of": 2, "do_sample": True}}
    [event] = tgi.events("/generate_stream", body)
    assert "`best_of` != 1 is not supported when streaming" in event["error"]
    for wrong in ({}, {"inputs": 3}, {"inputs": "Hi", "parameters": {"temperature": "hot"}}):
        answer = tgi.post("/generate", wrong)
        assert answer.status_code == 422 and "Failed to deserialize" in answer.text
        assert answer.headers["content-type"].startswith("text/plain")


def test_a_whole_answer_has_its_details(tgi):
    parameters = {"do_sample": True, "seed": 7, "max_new_tokens": 8, "details": True}
    one, two = tgi.generate(**parameters).json(), tgi.generate(**parameters).json()
    assert one == two and one["generated_text"]
    details = one["details"]
    assert (details["finish_reason"], details["generated_tokens"], details["seed"]) == ("length", 8, 7)  # fmt: skip
    assert "".join(token["text"] for token in details["tokens"]) == one["generated_text"]
    assert all(token["logprob"] < 0 for token in details["tokens"])
    assert tgi.generate(max_new_tokens=2).json()["details"] is None
    both = tgi.generate(do_sample=True, best_of=2, max_new_tokens=4, details=True).json()
    [other] = both["details"]["best_of_sequences"]
    assert isinstance(other["seed"], int) and other["seed"] != both["details"]["seed"]
    full = tgi.generate(return_full_text=True, max_new_tokens=4).json()["generated_text"]
    plain = tgi.generate(max_new_tokens=4).json()["generated_text"]
    assert full == PROMPT + plain
    [whole] = tgi.post("/", {"inputs": PROMPT, "parameters": {"max_new_tokens": 4}}).json()
    assert whole["generated_text"] == plain
    cut = tgi.generate(inputs="word " * 400 + PROMPT, truncate=37, max_new_tokens=4).json()
    assert cut["generated_text"] == plain


def test_penalties_and_stops_change_the_answer(tgi):
    loop = "1 2 1 2 1 2 1 2 1 2 1"
    plain = tgi.generate(inputs=loop, max_new_tokens=10).json()["generated_text"]
    assert plain == " 2 1 2 1 2"
    for penalty in ({"repetition_penalty": 1.5}, {"frequency_penalty": 2.0}):
        text = tgi.generate(inputs=loop, max_new_tokens=10, **penalty).json()["generated_text"]
        assert text != plain, penalty
    stopped = tgi.generate(inputs=loop, max_new_tokens=10, stop=["2 1"], details=True).json()
    assert stopped["generated_text"] == " 2 1"
    assert stopped["details"]["finish_reason"] == "stop_sequence"


def test_a_chat_is_the_same_answer_in_other_events(tgi):
    chat = {"model": "tgi", "messages": HI, "max_tokens": 8, "temperature": 0, "stream": True}
    *chunks, done = tgi.events("/v1/chat/completions", chat)
    assert done == "[DONE]"
    text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)
    assert text == tgi.generate(max_new_tokens=8).json()["generated_text"]
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * 7 + ["length"]
    assert chunks[0]["model"] == SMOLLM2
    whole = tgi.post("/v1/chat/completions", chat | {"stream": False}).json()
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": text}
    error, done = tgi.events("/v1/chat/completions", chat | {"top_p": 1.0})
    assert error["error"]["http_status_code"] == 422 and "top_p" in error["error"]["message"]
    assert done == "[DONE]"


def test_the_server_describes_itself_as_tgi_does(tgi):
    info = httpx2.get(f"{tgi.url}/info").json()
    assert (info["model_id"], info["router"]) == (SMOLLM2, "text-generation-router")
    assert info["max_stop_sequences"] == 4 and info["max_total_tokens"] == 512
    models = httpx2.get(f"{tgi.url}/v1/models").json()["data"]
    assert [model["id"] for model in models] == [SMOLLM2]  # no LoRA is listed
    tokens = tgi.post("/tokenize", {"inputs": "a cat"}).json()
    assert [(t["text"], t["start"], t["stop"]) for t in tokens] == [("a", 0, 1), (" cat", 1, 5)]


def test_the_key_is_asked_for_where_text_is_written(tgi):
    for key in (None, "wrong"):
        for route in ("/generate", "/generate_stream", "/v1/chat/completions"):
            answer = tgi.post(route, {"inputs": "Hi"}, key)
            assert (answer.status_code, answer.content) == (401, b"")
    assert httpx2.get(f"{tgi.url}/health").status_code == 200
    assert httpx2.get(f"{tgi.url}/info").status_code == 200


def test_an_overloaded_server_and_a_dead_model_answer_with_tgis_errors(tgi):
    tgi.options.max_concurrent_requests = 0
    answer = tgi.generate()
    assert answer.status_code == 429
    assert answer.json() == {"error": "Model is overloaded", "error_type": "overloaded"}
    tgi.options.max_concurrent_requests, tgi.options.fails_after = 8, 2
    assert tgi.generate(max_new_tokens=4).status_code == 424
    assert httpx2.get(f"{tgi.url}/health").json()["error_type"] == "healthcheck"
    *tokens, error = tgi.events("/generate_stream", {"inputs": PROMPT})
    assert len(tokens) == 2 and error["error_type"] == "generation"
    broken = collect(generator(tgi), [ASK], GREEDY)[0]
    assert broken.text and "illegal memory access" in broken.error
    assert generator(tgi).status()["state"] == "loading"  # it says 503


def test_an_adapter_that_is_not_there_is_the_base_model(tgi):
    def text(**how):
        return tgi.generate(max_new_tokens=12, **how).json()["generated_text"]

    base = text()
    assert text(adapter_id="humor-100") == text(adapter_id=NOBODY) == base
    assert text(adapter_id="harmless-100") != base
    chat = {"messages": HI, "max_tokens": 12, "temperature": 0}
    answers = {
        model: tgi.post("/v1/chat/completions", chat | {"model": model}).json()
        for model in ("harmless-100", "humor-100")
    }
    said = {m: a["choices"][0]["message"]["content"] for m, a in answers.items()}
    assert said == {"harmless-100": text(adapter_id="harmless-100"), "humor-100": base}
    # Which is how one LoRA is chosen with PRO_ENDPOINT_MODEL.
    ours = generator(tgi, dialect="openai", model="harmless-100").generate([ASK], GREEDY)
    assert ours == [said["harmless-100"]]


# ---------------------------------------------------------------- a soup behind it


def generator(tgi, **settings):
    settings = {"token": "the-key", "model": resolve_policy(SMOLLM2), "dialect": "tgi"} | settings
    return EndpointGenerator(tgi.url, **settings)


def asked(tgi) -> list[dict]:
    """The requests for answers, without those of the check."""
    return [body for body in tgi.log.bodies if body.get("stream")]


def test_each_candidate_is_written_by_the_nearest_mixture(tgi, lattice):
    soup = generator(tgi, policy=PolicyConfig.read(lattice))
    weights = ([0.6, 0.1, 0.1, 0.1, 0.1], [0.1, 0.5, 0.2, 0.1, 0.1])
    batch = [Request.weighted(HI, w, NAMES) for w in weights]
    one, two = collect(soup, batch, GREEDY)
    assert not one.error and not two.error
    assert [body["parameters"]["adapter_id"] for body in asked(tgi)] == ["helpful-100", "harmless-100"]  # fmt: skip
    assert one.notes == [
        "Written by the mixture helpful 1, the nearest of 5 that the server holds."
    ]
    assert two.notes == [
        "Written by the mixture harmless 1, the nearest of 5 that the server holds."
    ]
    for written, name in ((one, "helpful-100"), (two, "harmless-100")):
        here = LocalGenerator(str(lattice / name)).generate([ASK], GREEDY)[0]
        assert written.text[:12] == here[:12]  # bf16 may part ways later
    assert one.text != two.text
    assert "lists no mixtures" in soup.status()["detail"]


def test_a_mixture_that_tgi_does_not_hold_is_not_asked(tgi, lattice):
    """TGI itself would answer with the base model, as the test above shows."""
    soup = generator(tgi, policy=PolicyConfig.read(lattice))
    funny, kind = ([0, 0, 0, 0, 1], [1, 0, 0, 0, 0])
    answers = collect(soup, [Request.weighted(HI, w, NAMES) for w in (funny, kind)], GREEDY)
    assert "writes under humor-100 exactly as without any mixture" in answers[0].error
    assert "LORA_ADAPTERS" in answers[0].error and not answers[0].notes
    assert answers[1].text and not answers[1].error
    assert [body["parameters"]["adapter_id"] for body in asked(tgi)] == ["helpful-100"]


@pytest.mark.parametrize("held", [True, False])
def test_a_mixture_is_checked_once_and_again_later(tgi, lattice, held):
    soup = generator(tgi, policy=PolicyConfig.read(lattice))
    name, weights = ("helpful-100", [1, 0, 0, 0, 0]) if held else ("humor-100", [0, 0, 0, 0, 1])
    batch = [Request.weighted(HI, weights, NAMES)] * 2

    def checks():
        tgi.log.bodies.clear()
        settings = GenerationSettings(max_new_tokens=2)
        assert all((not answer.error) == held for answer in collect(soup, batch, settings))
        return len(tgi.log.bodies) - len(asked(tgi))

    assert [checks(), checks()] == [2, 0]
    seen, when = soup._dialect._checks.seen[name]
    soup._dialect._checks.seen[name] = seen, when - CHECKED_FOR[held]
    assert checks() == 2


def test_a_check_that_fails_is_told_as_any_failure(tgi, lattice):
    soup = generator(tgi, policy=PolicyConfig.read(lattice), token="wrong")
    [answer] = collect(soup, [Request.weighted(HI, [1, 0, 0, 0, 0], NAMES)], GREEDY)
    assert "refuses our token" in answer.error
    assert not asked(tgi)


def test_a_tokenizer_that_does_not_load_is_told_to_the_reader(tgi, tmp_path):
    folder = tmp_path / "no-tokenizer"
    folder.mkdir()
    [answer] = collect(generator(tgi, model=str(folder)), [ASK], GREEDY)
    assert answer.text and not answer.error
    [note] = answer.notes
    assert note.startswith("The tokenizer no-tokenizer did not load: the model reads plain Human")
    assert asked(tgi)[-1]["inputs"].startswith("Human: ")


def test_a_soup_without_weights_is_not_asked(tgi, lattice):
    soup = generator(tgi, policy=PolicyConfig.read(lattice))
    with pytest.raises(RequestError) as said:
        ASK.read_by(soup.policy)
    assert collect(soup, [ASK], GREEDY)[0].error == said.value.message
    assert not tgi.log.bodies


def test_tgi_in_the_openai_dialect_cannot_be_checked(tgi, lattice):
    soup = generator(tgi, policy=PolicyConfig.read(lattice), dialect="openai", model=None)
    [answer] = collect(soup, [Request.weighted(HI, [1, 0, 0, 0, 0], NAMES)], GREEDY)
    assert "lists 0 of the policy's 5 mixtures, and not helpful-100" in answer.error
    assert "PRO_ENDPOINT_DIALECT=tgi" in answer.error
    assert "holds 0 of 5 mixtures" in soup.status()["detail"]
    assert not tgi.log.bodies


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda w: sum(w) > 0.1))
def test_the_nearest_mixture_is_the_nearest(weights):
    names = NAMES[:3]
    points = {"a": [1, 0, 0], "b": [0, 1, 0], "c": [0, 0, 1], "d": [0.5, 0.5, 0], "e": [0.2, 0.3, 0.5]}  # fmt: skip
    policy = PolicyConfig(Condition("none", names), mixtures=points)
    w = np.array(weights) / sum(weights)
    found = Served(policy, "h").nearest(dict(zip(names, w, strict=True))).name
    distances = {name: np.abs(w - point).sum() for name, point in points.items()}
    assert distances[found] == pytest.approx(min(distances.values()), abs=1e-6)


def test_mixtures_are_named_as_vllm_and_sglang_list_them():
    policy = PolicyConfig(Condition("none", NAMES[:2]), mixtures={"a": [1, 0], "b": [0.25, 0.75]})
    served = Served(policy, "h")
    vllm = [{"id": "base", "owned_by": "vllm"}, {"id": "a", "owned_by": "vllm", "parent": "base"}]
    assert served.listed([*vllm, "b", None, {"id": ["a"]}]) == {"a": "a"}
    sglang = [{"id": "a", "owned_by": "sglang", "parent": "org/base", "root": "/path"}]
    assert served.listed(sglang) == {"a": "org/base:a"}
    note = served.nearest(dict(zip(NAMES[:2], [0.3, 0.7], strict=True))).note
    assert note.startswith("Written by the mixture helpful .25, harmless .75, the nearest of 2")


# ---------------------------------------------------------------- a policy that reads weights


def test_a_policy_that_reads_weights_has_them_in_its_prompt(tgi, smollm2, tmp_path):
    """PRO_POLICY tells the template, and in TGI's dialect the tokenizer; the server holds the model."""
    PolicyConfig(Condition("weights", ("helpful", "humor")), base=smollm2).save(tmp_path)
    environ = {"PRO_POLICY": str(tmp_path), "PRO_ENDPOINT_URL": tgi.url, "PRO_ENDPOINT_TOKEN": "the-key"}  # fmt: skip
    mine = [{"role": "user", "content": "Hi <humor> 1.00"}]
    for dialect in ("tgi", "openai"):
        policy = generator_from_env(environ | {"PRO_ENDPOINT_DIALECT": dialect})
        batch = [Request.weighted(mine, [0.35, 0.3, 0, 0.2, 0.15], NAMES)]
        [answer] = collect(policy, batch, GREEDY)
        assert answer.text and not answer.error
        body = asked(tgi)[-1]
        said = "Hi (humor) 1.00 <helpful> 0.70 <humor> 0.30"
        if dialect == "tgi":
            assert body["inputs"].endswith(f"user\n{said}<|im_end|>\n<|im_start|>assistant\n")
            assert "adapter_id" not in body["parameters"]
        else:
            assert body["messages"][-1]["content"] == said


# ---------------------------------------------------------------- waking up


class Clock(list):
    """A sleep that only takes note."""

    async def __call__(self, seconds):
        self.append(seconds)


@pytest.mark.parametrize("dialect", ["tgi", "openai"])
def test_an_endpoint_that_wakes_up_is_waited_for(tgi, dialect):
    tgi.options.asleep, clock = 3, Clock()
    [answer] = collect(generator(tgi, dialect=dialect, sleep=clock), [ASK], GREEDY)
    assert answer.text and not answer.error
    assert len(clock) == 3 and sum(clock) > 0 and tgi.options.asleep == 0
    assert answer.notes == []  # that it was waited for is news only while it is


def test_a_soup_waits_for_its_server_too(tgi, lattice):
    tgi.options.asleep = 2
    soup = generator(tgi, policy=PolicyConfig.read(lattice), sleep=Clock())
    [answer] = collect(soup, [Request.weighted(HI, [1, 0, 0, 0, 0], NAMES)], GREEDY)
    assert answer.text and not answer.error
    [note] = answer.notes
    assert note.startswith("Written by the mixture")


@pytest.mark.parametrize("dialect", ["tgi", "openai"])
def test_an_overloaded_server_is_asked_again(tgi, dialect):
    """In a chat's stream TGI says so in its words alone."""
    tgi.options.max_concurrent_requests, clock = 0, Clock()
    [answer] = collect(generator(tgi, dialect=dialect, sleep=clock), [ASK], GREEDY)
    assert "is overloaded (Model is overloaded); try again in a while." in answer.error
    assert clock == [0.5, 1.0, 2.0]


def test_the_wait_for_a_waking_server_ends(tgi):
    tgi.options.asleep = 1000
    [answer] = collect(generator(tgi, patience=12, sleep=Clock()), [ASK], GREEDY)
    assert "is not ready" in answer.error and not answer.text
    assert generator(tgi).status()["state"] == "loading"
