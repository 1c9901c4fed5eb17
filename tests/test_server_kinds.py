"""What an endpoint may be: any path, its own parameters, models of other kinds, asleep, or none of what it says."""

import asyncio
import json
import time
from contextlib import aclosing

import pytest

from pro_core.generation import (
    EndpointGenerator,
    GenerationError,
    GenerationSettings,
    Request,
    Written,
    collect,
)
from pro_core.generation.dialect_openai import bases
from pro_core.generation.listing import chat_model
from pro_core.generation.vllm_lora import LoraEndpoint
from pro_core.prompting.policy_config import PolicyConfig
from pro_core.prompting.templates import Condition
from tests.servers.faulty import (
    WORDS,
    Fault,
    error,
    faulty_server,
    openai_word,
    sse,
    tgi_word,
    whole,
)

HI = [{"role": "user", "content": "Name three colours."}]
ASK = Request(HI)
TINY = GenerationSettings(max_new_tokens=6, seed=1)
FINE = Fault(body=whole(False))
RED = "".join(WORDS)
NONE = error("404 Not Found", "Not Found")


class Pauses(list):
    """A sleep that only takes note."""

    async def __call__(self, seconds):
        self.append(seconds)


def endpoint(url, **options):
    return EndpointGenerator(url, **{"model": "m", "timeout": 5.0, "sleep": Pauses()} | options)


def outcome(generator, settings=TINY):
    return collect(generator, [ASK], settings)[0]


def listing(*models):
    return Fault(kind="application/json", body=json.dumps({"data": list(models)}).encode())


def paths(server):
    return [path for path, _, _ in server.requests]


# ---------------------------------------------------------------- any form of URL


@pytest.mark.parametrize(
    ("pasted", "route"),
    [
        *[(form, "/v1") for form in ("", "/", "/v1", "/v1/", "/v1/chat/completions")],
        *[(form, "/v1") for form in ("/v1/models", "/v1/completions", "/generate_stream")],
        *[(form, "/v1beta/openai") for form in ("/v1beta/openai", "/v1beta/openai/")],
        *[
            (form + "/chat/completions", form)
            for form in ("/api/paas/v4", "/v1beta/openai", "/api")
        ],
        *[(form, form) for form in ("/api/paas/v4", "/api", "/openai/deployments/d")],
        ("/chat/completions", ""),
    ],
)
def test_any_url_that_people_paste_is_asked_where_its_route_is(pasted, route):
    answers = {f"{route}/chat/completions": FINE, **dict.fromkeys(["api", "v1", "v1beta"], NONE)}
    with faulty_server(answers) as server:
        answer = outcome(endpoint(server.url + pasted))
        assert (answer.text, answer.error) == (RED, None)
        assert paths(server) == [f"{route}/chat/completions"]


def test_a_path_that_has_v1_under_it_is_found_once_and_remembered():
    with faulty_server({"gpu": NONE, "/gpu/v1/chat/completions": FINE}) as server:
        generator = endpoint(f"{server.url}/gpu")
        assert [outcome(generator).text for _ in range(2)] == [RED, RED]
        found = ["/gpu/chat/completions", *["/gpu/v1/chat/completions"] * 2]
        assert paths(server) == found


@pytest.mark.parametrize("status", ["404 Not Found", "405 Method Not Allowed"])
def test_of_two_unknown_paths_the_one_that_says_more_is_shown(status):
    plain = Fault(status, "application/json", body=b'{"detail": "Not Found"}')
    model = error("404 Not Found", "The model `m` does not exist.")
    for one, other in [(plain, model), (model, plain)]:
        answers = {"/x/chat/completions": one, "/x/v1/chat/completions": other}
        with faulty_server(answers) as server:
            assert "(The model `m` does not exist)" in outcome(endpoint(f"{server.url}/x")).error


def test_a_refusal_under_the_second_path_is_the_one_shown():
    answers = {"x": NONE, "/x/v1/chat/completions": error("400 Bad Request", "too long")}
    with faulty_server(answers) as server:
        assert "(400) (too long)" in outcome(endpoint(f"{server.url}/x")).error


def test_the_state_is_looked_up_under_the_path_that_answers():
    answers = {"x": NONE, "/x/v1/models": listing({"id": "qwen"}), "/x/v1/chat/completions": FINE}
    with faulty_server(answers) as server:
        generator = endpoint(f"{server.url}/x", model=None)
        assert generator.status()["state"] == "ready"
        assert generator.name.startswith("qwen at ")
        assert outcome(generator).text == RED
        assert paths(server)[-1] == "/x/v1/chat/completions"
        assert server.requests[-1][2]["model"] == "qwen"


def test_the_paths_of_a_url():
    assert bases("") == bases("/v1") == bases("/generate_stream") == ["/v1"]
    assert bases("/api") == ["/api", "/api/v1"]
    assert bases("/api/chat/completions") == ["/api"]
    assert bases("/a/v1/completions") == ["/a/v1"]


@pytest.mark.parametrize("form", ["", "/", "/v1", "/generate", "/generate_stream/"])
def test_tgi_has_one_route_under_any_path(form):
    with faulty_server() as server:
        assert outcome(endpoint(f"{server.url}/fine{form}", dialect="tgi")).text == RED
        assert paths(server) == ["/fine/generate_stream"]


# ---------------------------------------------------------------- parameters that a server refuses


def strict(refused, shape="openai"):
    """A server that refuses parameters, one at a time, and says which in this shape."""

    def answer(body):
        name = next((name for name in refused if name in body), None)
        if name is None:
            return FINE
        says = f"Unsupported parameter: '{name}' is not supported with this model."
        hint = " Use 'max_completion_tokens' instead." if name == "max_tokens" else ""
        shapes = {
            "openai": {
                "error": {
                    "message": says + hint,
                    "param": name,
                    "code": "unsupported_parameter",
                }
            },
            "fastapi": {
                "detail": [
                    {"loc": ["body", name], "msg": "Extra inputs", "type": "extra_forbidden"}
                ]
            },
            "words": {"error": {"message": says + hint}},
        }
        body = json.dumps(shapes[shape]).encode()
        return Fault("400 Bad Request", "application/json", body=body)

    return answer


@pytest.mark.parametrize("shape", ["openai", "fastapi", "words"])
def test_max_tokens_is_asked_in_the_servers_words_and_remembered(shape):
    with faulty_server(choose=strict(["max_tokens"], shape)) as server:
        generator = endpoint(server.url)
        answers = [outcome(generator) for _ in range(2)]
        assert [(a.text, a.error, a.notes) for a in answers] == [(RED, None, [])] * 2
        bodies = [body for _, _, body in server.requests]
    assert ["max_tokens" in body for body in bodies] == [True, False, False]
    assert [body.get("max_completion_tokens") for body in bodies] == [None, 6, 6]


def test_a_limit_that_is_too_high_is_a_refusal_and_no_other_name():
    """Asked under another name, which it does not know, this server would write without a limit."""
    told = {"message": "max_tokens is too large", "param": "max_tokens", "code": "invalid_value"}
    body = json.dumps({"error": told}).encode()
    refusal = Fault("400 Bad Request", "application/json", body=body)
    with faulty_server(choose=lambda sent: refusal if "max_tokens" in sent else FINE) as server:
        generator = endpoint(server.url)
        assert "max_tokens is too large" in outcome(generator).error
        assert "max_tokens is too large" in outcome(generator).error


@pytest.mark.parametrize("shape", ["openai", "fastapi", "words"])
def test_parameters_that_a_server_refuses_are_left_out_and_the_visitor_told_once(shape):
    refused = ["max_tokens", "temperature", "top_p", "seed"]
    with faulty_server(choose=strict(refused, shape)) as server:
        generator = endpoint(server.url)
        [first, again] = [outcome(generator) for _ in range(2)]
        assert (first.text, again.text) == (RED, RED)
        [note] = first.notes
        assert note.endswith(
            "does not take seed and temperature 0.8 and top_p 0.95: it has its own."
        )
        assert again.notes == []
        bodies = [body for _, _, body in server.requests]
    assert len(bodies) == 6
    assert sorted(bodies[-1]) == ["max_completion_tokens", "messages", "model", "stream"]


def test_candidates_side_by_side_tell_of_a_refused_parameter_once():
    with faulty_server(choose=strict(["temperature"])) as server:
        answers = collect(endpoint(server.url), [ASK] * 4, TINY)
    assert [answer.text for answer in answers] == [RED] * 4
    assert sum(len(answer.notes) for answer in answers) == 1


def test_a_temperature_that_is_too_high_does_not_cost_the_next_visitor_his():
    def answer(body):
        if body.get("temperature", 0) <= 1:
            return FINE
        says = {"error": {"message": "must be at most 1", "param": "temperature"}}
        return Fault("400 Bad Request", "application/json", body=json.dumps(says).encode())

    with faulty_server(choose=answer) as server:
        generator = endpoint(server.url)
        high, low = (GenerationSettings(max_new_tokens=6, temperature=t) for t in (1.5, 0.7))
        notes = [outcome(generator, settings).notes for settings in (high, low, high)]
        assert [len(note) for note in notes] == [1, 0, 0] and "temperature 1.5" in notes[0][0]
        asked = [body.get("temperature") for _, _, body in server.requests]
    assert asked == [1.5, None, 0.7, None]


def test_a_refusal_that_stays_is_shown_as_it_was_first_said():
    """Neither another name for the limit nor another form helps: the value is what the server minds."""

    def answer(body):
        name = next(name for name in body if name.startswith("max"))
        says = {"error": {"message": f"{name} must be at most 5", "param": name}}
        return Fault("400 Bad Request", "application/json", body=json.dumps(says).encode())

    with faulty_server(choose=answer) as server:
        generator = endpoint(server.url)
        assert "(max_tokens must be at most 5)" in outcome(generator).error
        outcome(generator)
        assert "max_tokens" in server.requests[-2][2]  # nothing was learned from it


# ---------------------------------------------------------------- which model


@pytest.mark.parametrize(
    ("models", "name"),
    [
        ([{"id": "text-embedding-nomic-embed-text-v1.5"}, {"id": "qwen2.5-7b"}], "qwen2.5-7b"),
        ([{"id": "a", "type": "embeddings"}, {"id": "b", "type": "llm"}], "b"),
        ([{"id": "a", "type": "rerank"}, {"id": "b", "type": "chat"}], "b"),
        ([{"id": "a", "task": "embed"}, {"id": "b", "task": "generate"}], "b"),
        ([{"id": "a", "custom_metadata": {"model_type": "embedding"}}, {"id": "b"}], "b"),
        ([{"id": "a", "capabilities": {"completion_chat": False}}, {"id": "b"}], "b"),
        ([{"id": "a", "capabilities": ["embedding"]}, {"id": "b"}], "b"),
        ([{"id": "embed-the-llama", "type": "llm"}], "embed-the-llama"),  # it says what it is
        (
            [{"id": i} for i in ("BAAI/bge-m3", "intfloat/e5-base", "jina-reranker", "m")],
            "m",
        ),
        ([{"id": i} for i in ("whisper-1", "tts-1", "gpt-4o-mini-tts", "dall-e-3", "gpt")], "gpt"),
        ([{"id": i} for i in ("omni-moderation-latest", "all-MiniLM-L6-v2", "m")], "m"),
        ([{"id": "models/gemini-3-flash", "object": "model"}], "models/gemini-3-flash"),
        ([{"id": "meta-llama/Llama-Guard"}, {"id": "b"}], "meta-llama/Llama-Guard"),
        (["a", "b"], "a"),
        ([{"name": "a"}], "a"),
        ([{"id": None}, 7, {}, {"id": "x" * 1000}, {"id": "b"}], "b"),
        ([{"id": "a\x00\ud83d"}], "a\ufffd"),
        ([{"id": "embed-a"}], ""),
        ([], ""),
    ],
)
def test_the_first_model_that_chats_is_chosen(models, name):
    assert chat_model(models)[0] == name


def test_embedding_models_are_passed_over_and_the_list_is_read_once():
    models = listing({"id": "nomic-embed-text"}, {"id": "qwen"})
    with faulty_server({"/v1/models": models, "/v1/chat/completions": FINE}) as server:
        generator = endpoint(server.url, model=None)
        assert [a.text for a in collect(generator, [ASK] * 3, TINY)] == [RED] * 3
        outcome(generator)
        assert paths(server) == ["/v1/models", *["/v1/chat/completions"] * 4]
        assert {body["model"] for _, _, body in server.requests[1:]} == {"qwen"}


def test_a_server_of_embedding_models_says_so():
    with faulty_server({"/v1/models": listing({"id": "bge-m3"}, {"id": "e5"})}) as server:
        generator = endpoint(server.url, model=None)
        says = "lists no model that chats (it has bge-m3, e5); set PRO_ENDPOINT_MODEL."
        assert says in outcome(generator).error
        status = generator.status()
        assert status["state"] == "unreachable" and says in status["detail"]
        assert endpoint(server.url, model="mine").status()["state"] == "ready"


def test_many_models_of_other_kinds_are_not_all_named():
    models = listing(*({"id": f"embed-{i}"} for i in range(9)))
    with faulty_server({"/v1/models": models}) as server:
        said = outcome(endpoint(server.url, model=None)).error
    assert "(it has embed-0, embed-1, embed-2, embed-3, embed-4 and 4 more)" in said


@pytest.mark.parametrize(
    ("silent", "says"),
    [
        (Fault(hold=True), "sent nothing for 0.2 seconds"),
        (Fault(drip=(b" ", 0.02)), "in 0.2 seconds"),
    ],
)
def test_a_look_at_the_state_is_short(monkeypatch, silent, says):
    monkeypatch.setattr("pro_core.generation.endpoint.PROBE", 0.2)
    with faulty_server({"v1": silent}) as server:
        status = endpoint(server.url, timeout=60.0).status()
    assert status["state"] == "unreachable"
    assert says in status["detail"]


@pytest.mark.parametrize("none", [NONE, error("501 Not Implemented", "no"), listing()])
def test_a_server_that_lists_nothing_is_asked_all_the_same(none):
    with faulty_server({"/v1/models": none, "/v1/chat/completions": FINE}) as server:
        generator = endpoint(server.url, model=None)
        assert [outcome(generator).text for _ in range(2)] == [RED, RED]
        assert paths(server).count("/v1/models") == 1
        assert server.requests[-1][2]["model"] == "tgi"


LISTS_NOT = [Fault(hold=True), Fault(drip=(b" ", 0.02)), Fault(cut=True, body=b'{"data"')]
"""Ways in which a list of models never comes."""


@pytest.mark.parametrize("silent", LISTS_NOT)
def test_an_answer_waits_for_the_list_of_models_for_a_short_time_and_once(monkeypatch, silent):
    monkeypatch.setattr("pro_core.generation.dialect_openai.PROBE", 0.2)
    with faulty_server({"/v1/models": silent, "/v1/chat/completions": FINE}) as server:
        generator = endpoint(server.url, model=None, timeout=60.0)
        begun = time.monotonic()
        assert [a.text for a in collect(generator, [ASK] * 4, TINY)] == [RED] * 4
        assert outcome(generator).text == RED
        assert time.monotonic() - begun < 3
        assert paths(server) == ["/v1/models", *["/v1/chat/completions"] * 5]
        assert {body["model"] for _, _, body in server.requests[1:]} == {"tgi"}


@pytest.mark.parametrize("status", ["400 Bad Request", "404 Not Found"])
def test_a_name_made_up_for_want_of_a_list_is_looked_up_again_once_it_is_refused(
    monkeypatch, status
):
    monkeypatch.setattr("pro_core.generation.dialect_openai.PROBE", 0.2)
    answers = {
        "/v1/models": [Fault(hold=True), listing({"id": "qwen"})],
        "/v1/chat/completions": [error(status, "No model tgi"), FINE],
    }
    with faulty_server(answers) as server:
        generator = endpoint(server.url, model=None)
        assert "(No model tgi)" in outcome(generator).error
        assert outcome(generator).text == RED
        assert server.requests[-1][2]["model"] == "qwen"


@pytest.mark.parametrize("silent", LISTS_NOT[:2])
def test_a_mixture_is_not_said_to_be_missing_by_a_server_that_said_nothing(monkeypatch, silent):
    monkeypatch.setattr("pro_core.generation.dialect_openai.PROBE", 0.2)
    policy = PolicyConfig(Condition("none", ("a", "b")), mixtures={"x": [1, 0], "y": [0, 1]})
    with faulty_server({"/v1/models": silent}) as server:
        generator = endpoint(server.url, policy=policy, timeout=60.0)
        answers = collect(generator, [Request(HI, {"a": 1, "b": 0})] * 4, TINY)
        assert paths(server) == ["/v1/models"]  # one look for all of them
    for answer in answers:
        assert answer.error.endswith("in 0.2 seconds.")


def test_a_server_that_has_another_model_since_is_looked_up_again():
    answers = {
        "/v1/models": [listing({"id": "old"}), listing({"id": "new"})],
        "/v1/chat/completions": [FINE, error("404 Not Found", "No model old"), FINE],
    }
    with faulty_server(answers) as server:
        generator = endpoint(server.url, model=None)
        assert [bool(outcome(generator).error) for _ in range(3)] == [False, True, False]
        assert [body["model"] for _, _, body in server.requests if body] == ["old", "old", "new"]


# ---------------------------------------------------------------- waking up

ASLEEP = error("503 Service Unavailable", "Model m is currently loading")


def with_notes(generator):
    """(the answer, every note that came on the way)."""

    async def watch():
        written, notes = Written(), []
        async for piece in generator.stream_batch([ASK], TINY):
            written.add(piece)
            notes += [piece.note] if piece.note else []
        return written, notes

    return asyncio.run(watch())


@pytest.mark.parametrize("dialect", ["openai", "tgi"])
def test_a_server_that_wakes_up_is_waited_for_and_says_so(dialect):
    fine = Fault(body=whole(dialect == "tgi"))
    with faulty_server({"x": [ASLEEP] * 12 + [fine]}) as server:
        answer, notes = with_notes(endpoint(f"{server.url}/x/v1", dialect=dialect))
    assert (answer.text, answer.error, answer.notes) == (RED, None, [])  # none is worth keeping
    assert len(notes) == 12
    host = server.url.removeprefix("http://")
    assert notes[0] == (
        f"The endpoint {host} is waking up (Model m is currently loading); waited 0 s, at most 600."
    )
    waited = [int(note.split("waited ")[1].split(" s")[0]) for note in notes]
    assert waited == sorted(waited) and 40 <= waited[-1] <= 50


@pytest.mark.parametrize("dialect", ["openai", "tgi"])
@pytest.mark.parametrize("breaks", [{"cut": True}, {"reset": True}])
def test_a_status_counts_although_its_body_breaks_off(dialect, breaks):
    asleep = Fault("503 Service Unavailable", "text/plain", body=b"starting", **breaks)
    fine = Fault(body=whole(dialect == "tgi"))
    with faulty_server({"x": [asleep, fine], "y": Fault("500 Oh", **breaks)}) as server:
        answer, notes = with_notes(endpoint(f"{server.url}/x/v1", dialect=dialect))
        failed = outcome(endpoint(f"{server.url}/y/v1", dialect=dialect))
    assert (answer.text, answer.error) == (RED, None) and "is waking up" in notes[0]
    assert "failed (500)" in failed.error


def test_a_status_is_told_although_its_body_never_ends(monkeypatch):
    monkeypatch.setattr("pro_core.http.client.ERROR_WAIT", 0.2)
    for endless in (Fault("500 Oh", stall=True), Fault("500 Oh", drip=(b"x", 0.02))):
        with faulty_server({"x": endless}) as server:
            assert "failed (500)" in outcome(endpoint(f"{server.url}/x/v1", timeout=60.0)).error


def test_patience_has_an_end():
    with faulty_server({"x": ASLEEP}) as server:
        generator = endpoint(f"{server.url}/x/v1", patience=30.0)
        answer = outcome(generator)
        assert generator.status()["state"] == "loading"
    assert (
        "is not ready (503) (Model m is currently loading); try again in a while." in answer.error
    )
    assert 20 < sum(generator._sleep) <= 30


def test_a_server_asleep_is_asked_for_its_models_when_it_is_awake():
    answers = {
        "/v1/models": [ASLEEP, ASLEEP, listing({"id": "qwen"})],
        "/v1/chat/completions": FINE,
    }
    with faulty_server(answers) as server:
        answer, notes = with_notes(endpoint(server.url, model=None))
        assert (answer.text, len(notes)) == (RED, 2)
        assert server.requests[-1][2]["model"] == "qwen"


def test_leaving_ends_the_wait_for_a_server_that_wakes_up():
    """With the clock's own sleep, and Retry-After far away."""

    async def leave(generator):
        async with aclosing(generator.stream_batch([ASK] * 2, TINY)) as pieces:
            async for piece in pieces:
                assert "is waking up" in piece.note
                break
            begun = time.monotonic()
        return time.monotonic() - begun

    long = error("503 Service Unavailable", "starting", **{"Retry-After": "300"})
    with faulty_server({"x": long}) as server:
        generator = endpoint(f"{server.url}/x/v1", sleep=asyncio.sleep)
        assert asyncio.run(leave(generator)) < 0.5


# ---------------------------------------------------------------- none of what it says

JSON = {"choices": [{"message": {"content": RED}, "finish_reason": "stop"}]}


@pytest.mark.parametrize(
    ("dialect", "body"), [("openai", JSON), ("tgi", {"generated_text": RED}), ("tgi", [JSON, JSON])]
)
@pytest.mark.parametrize("kind", ["application/json", "text/event-stream", "", "text/html"])
def test_a_server_that_does_not_stream_gives_its_answer_whole(dialect, body, kind):
    with faulty_server({"x": Fault(kind=kind, body=json.dumps(body).encode())}) as server:
        answer = outcome(endpoint(f"{server.url}/x/v1", dialect=dialect))
    if isinstance(body, list):
        assert "sent something that is no answer" in answer.error
    else:
        assert (answer.text, answer.error, answer.finish) == (RED, None, "stop")


@pytest.mark.parametrize("dialect", ["openai", "tgi"])
@pytest.mark.parametrize(
    "kind",
    ["", "text/plain", "application/json", "text/html", "text/event-stream; charset=latin-1"],
)
def test_a_stream_is_read_whatever_the_server_calls_it(dialect, kind):
    body = b"\xef\xbb\xbf" + whole(dialect == "tgi").replace(b"some", "größe 😀".encode())
    parts = [body[i : i + 1] for i in range(len(body))]
    with faulty_server({"x": Fault(kind=kind, parts=parts)}) as server:
        answer = outcome(endpoint(f"{server.url}/x/v1", dialect=dialect))
    assert (answer.text, answer.error) == (RED.replace("some", "größe 😀"), None)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b'data: {"error": "out of memory"}\n\n', "failed while it wrote (out of memory)"),
        (b'data: {"object": "error", "message": "bad", "code": 400}\n\n', "(400) (bad)"),
        (b"event: error\ndata: out of memory\n\n", "failed while it wrote (out of memory)"),
        (b'event: error\ndata: {"message": "m", "status": 502}\n\n', "failed (502) (m)"),
        (b'data: {"error": {"code": 401, "message": "key"}}\n\n', "refuses our token (401)"),
        (b'{"error": {"message": "no", "code": 500}}', "failed (500) (no)"),
        (b'{"detail": "Not here"}', "JSON that is no answer (Not here)"),
        (b"Service is starting", "sent an empty answer"),
    ],
)
@pytest.mark.parametrize("dialect", ["openai", "tgi"])
def test_an_error_inside_a_success_is_explained(dialect, data, says):
    with faulty_server({"x": Fault(body=data)}) as server:
        answer = outcome(endpoint(f"{server.url}/x/v1", dialect=dialect))
    assert says in answer.error and answer.text == ""


@pytest.mark.parametrize("dialect", ["openai", "tgi"])
@pytest.mark.parametrize(
    "end", [{"reset": True}, {"cut": True}, {"stall": True}, {"drip": (b"data: x\n\n", 0.0)}]
)
def test_what_comes_after_the_end_takes_nothing_back(dialect, end):
    with faulty_server({"x": Fault(body=whole(dialect == "tgi"), **end)}) as server:
        answer = outcome(endpoint(f"{server.url}/x/v1", dialect=dialect))
        assert (answer.text, answer.error, answer.finish) == (RED, None, "stop")
        if "stall" in end or "drip" in end:
            assert server.hung_up.acquire(timeout=5)  # by us


@pytest.mark.parametrize("dialect", ["openai", "tgi"])
@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("says_nothing", [b": ping\n\n", b"\n\n", b"event: ping\ndata: {}\n\n"])
def test_what_says_nothing_does_not_extend_the_time_out(dialect, begun, says_nothing):
    words = [tgi_word("Well")] if dialect == "tgi" else [openai_word("Well")]
    fault = Fault(body=sse(*words) if begun else b"", drip=(says_nothing, 0.02))
    with faulty_server({"x": fault}) as server:
        answer = outcome(endpoint(f"{server.url}/x/v1", dialect=dialect, timeout=0.3))
        assert server.hung_up.acquire(timeout=5)
    assert "sent nothing for 0.3 seconds" in answer.error
    assert answer.text == ("Well" if begun else "")


@pytest.mark.parametrize("dialect", ["openai", "tgi"])
def test_blanks_without_end_are_no_beginning(dialect):
    with faulty_server({"x": Fault(drip=(b" " * 2**16, 0.0))}) as server:
        answer = outcome(endpoint(f"{server.url}/x/v1", dialect=dialect))
    assert "too long to be part of an answer" in answer.error


@pytest.mark.parametrize("dialect", ["openai", "tgi"])
def test_a_server_that_never_stops_is_cut_off(dialect):
    word = tgi_word("word " * 50) if dialect == "tgi" else openai_word("word " * 50)
    with faulty_server({"x": Fault(drip=(sse(word), 0.0))}) as server:
        answer = outcome(endpoint(f"{server.url}/x/v1", dialect=dialect))
        assert server.hung_up.acquire(timeout=5)
    assert (answer.finish, answer.error) == ("length", None)
    assert len(answer.text) == 16 * 6 + 4096


@pytest.mark.parametrize("dialect", ["openai", "tgi"])
@pytest.mark.parametrize("held", [Fault(hold=True), Fault(stall=True)])
def test_leaving_frees_every_stream_of_a_batch_within_a_second(dialect, held):
    async def leave():
        generator = endpoint(f"{server.url}/x/v1", dialect=dialect, timeout=60.0)
        run = generator.stream_batch([ASK] * 4, TINY)
        first = asyncio.ensure_future(anext(run))
        while len(server.requests) < 4:
            await asyncio.sleep(0.01)
        left = time.monotonic()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await run.aclose()
        for _ in range(4):
            assert await asyncio.to_thread(server.hung_up.acquire, timeout=1)
        return time.monotonic() - left

    with faulty_server({"x": held}) as server:
        assert asyncio.run(leave()) < 1


# ---------------------------------------------------------------- the way to it


def test_a_server_on_this_machine_is_not_asked_through_a_proxy(monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with faulty_server({"proxy": Fault("502 Bad Gateway")}) as proxy, faulty_server() as server:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        for name in ("127.0.0.1", "localhost"):
            url = server.url.replace("127.0.0.1", name)
            assert outcome(endpoint(f"{url}/fine")).text == RED
        assert proxy.requests == []


def test_an_environment_that_makes_no_sense_is_each_candidates_error(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://h:port")
    monkeypatch.delenv("no_proxy", raising=False)
    generator = endpoint("http://gpu-box.invalid:8000")
    answers = collect(generator, [ASK, ASK], TINY)
    assert ["http_proxy, https_proxy and all_proxy" in answer.error for answer in answers] == [
        True,
        True,
    ]
    assert "http_proxy, https_proxy and all_proxy" in generator.status()["detail"]


# ---------------------------------------------------------------- a LoRA that is loaded while the server runs


def loads(status="200 OK", says="Success"):
    return Fault(status, "application/json", body=json.dumps({"message": says}).encode())


@pytest.mark.parametrize("form", ["", "/v1", "/v1/chat/completions"])
def test_a_lora_is_loaded_and_then_asked_for_by_name(tmp_path, form):
    answers = {"v1": loads(), "/v1/chat/completions": FINE}
    with faulty_server(answers) as server:
        generator = LoraEndpoint(server.url + form, token=server.token, sleep=Pauses())
        for name in ("one", "two"):
            generator.use_lora(name, tmp_path)
        assert outcome(generator).text == RED
        asked = [(path.rsplit("/")[-1], body) for path, _, body in server.requests]
        assert server.requests[0][1]["authorization"] == f"Bearer {server.token}"
    assert [path for path, _ in asked] == [
        *("load_lora_adapter", "load_lora_adapter", "unload_lora_adapter", "completions")
    ]
    assert asked[0][1] == {"lora_name": "one", "lora_path": str(tmp_path)}
    assert asked[2][1] == {"lora_name": "one"}
    assert asked[3][1]["model"] == generator.model == "two"


def lists(*models: dict) -> Fault:
    return Fault(kind="application/json", body=json.dumps({"data": models}).encode())


@pytest.mark.parametrize("says", ["The lora adapter 'one' has already been loaded.", "", "nein"])
def test_a_lora_that_the_server_lists_is_used_whatever_it_says(tmp_path, says):
    held = lists({"id": "base", "parent": None}, {"id": "one", "parent": "base"})
    refused = loads("400 Bad Request", says)
    with faulty_server({"v1": refused, "/v1/models": held}) as server:
        generator = LoraEndpoint(server.url, token=server.token)
        generator.use_lora("one", tmp_path)
        assert generator.model == "one"
        for name in ("two", "base"):  # not there, and there as something else than a LoRA
            with pytest.raises(GenerationError):
                generator.use_lora(name, tmp_path)
            assert generator.model == "one"
        assert all(h["authorization"] == f"Bearer {server.token}" for _, h, _ in server.requests)


@pytest.mark.parametrize(
    "listing",
    [
        loads("404 Not Found", "No such route"),
        Fault(kind="text/html", body=b"<html>"),
        Fault(kind="application/json", body=b'{"data": ["one", {"parent": "base"}, null]}'),
        Fault(kind="application/json", body=b'{"data": 7}'),
        Fault(reset=True),
    ],
    ids=["none", "page", "others", "number", "reset"],
)
def test_a_lora_that_is_refused_and_not_listed_is_an_error(tmp_path, listing):
    says = loads("400 Bad Request", "The lora adapter 'one' has already been loaded.")
    with faulty_server({"v1": says, "/v1/models": listing}) as server:
        generator = LoraEndpoint(server.url)
        with pytest.raises(GenerationError):
            generator.use_lora("one", tmp_path)
    assert generator.model is None


def test_a_refused_lora_is_told_with_the_servers_words(tmp_path):
    with faulty_server({"v1": loads("404 Not Found", "No such route")}) as server:
        generator = LoraEndpoint(server.url)
        with pytest.raises(
            GenerationError, match="two was not loaded.*No such route.*--enable-lora"
        ):
            generator.use_lora("two", tmp_path)
    with pytest.raises(GenerationError, match="connection was refused"):
        generator.use_lora("two", tmp_path)
