"""The door before Gradio: open routes, checks of bodies, and the headers of every answer."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from gradio_client import Client
from hostile import trial

import app
import ui.door
from ui.door import LONGEST_BODY, Door

pytestmark = pytest.mark.slow

API = "/gradio_api"
EVIL = {"Origin": "https://evil.example"}
ASKED = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}


@pytest.fixture(scope="module")
def blocks() -> Any:
    """The page of the demo's parts, with nothing loaded."""
    return app.build(app.Models({}))


@pytest.fixture(scope="module")
def url(served) -> str:
    return served[0].rstrip("/")


@pytest.fixture(scope="module")
def web(url) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def ask(web) -> dict[str, Any]:
    """A question, the page's first event, as the page would send it."""
    config = web.get("/config").json()
    kinds = {c["id"]: c for c in config["components"]}
    asks = next(d for d in config["dependencies"] if d["api_name"] == "ask")
    data = [kinds[i]["props"].get("value") for i in asks["inputs"]]
    return {"data": data, "fn_index": asks["id"], "session_hash": "abc", "trigger_id": None}


def refused(answer: httpx2.Response, status: int, words: str = "") -> None:
    """Check that an answer has this status and one sentence, in both places where clients look."""
    assert answer.status_code == status, answer.text
    content = answer.json()
    assert (
        content["detail"] == content["error"]
        and words in content["detail"]
        and "\n" not in content["detail"]
    )


# ---------------------------------------------------------------- routes


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/upload"), ("POST", "/upload/"), ("POST", "//upload"), ("GET", "/upload_progress?upload_id=1"),
        ("GET", "/file=README.md"), ("GET", "/file/README.md"), ("GET", "/proxy=http://127.0.0.1/"),
        ("POST", "/stream/x"), ("POST", "/component_server"), ("POST", "/process_recording"), ("GET", "/dev/reload"),
        ("GET", "/user"), ("GET", "/token"), ("GET", "/runs"), ("POST", "/vibe-edit"), ("POST", "/api/score"),
        ("GET", "/custom_component/1/client/component/x.js"), ("GET", "/deep_link?session_hash=x"),
    ],
)  # fmt: skip
def test_what_the_app_does_not_use_is_closed(web, method: str, path: str) -> None:
    files = {"files": ("a.txt", b"hello")} if method == "POST" else None
    refused(web.request(method, API + path, files=files), 404, "nothing at this address")


def test_gradios_pages_for_developers_are_closed(web) -> None:
    for path in ("/monitoring", "/monitoring/summary", "/login", "/docs", "/openapi.json", "/x"):
        refused(web.get(path), 404)


@pytest.mark.parametrize(
    "path", ["/static/a%00b", "/assets/" + "a" * 4000, "/static/%0a", "/%2e%2e/x"]
)
def test_paths_that_file_systems_reject_are_closed(web, path: str) -> None:
    refused(web.get(path), 404)


def test_an_open_route_accepts_only_its_methods(web) -> None:
    refused(web.put("/"), 405, "expected GET or HEAD")
    refused(web.get(f"{API}/queue/join"), 405, "expected POST")
    refused(web.delete(f"{API}/call/score"), 405)


def test_the_page_and_its_parts_are_open(web) -> None:
    for path in ("/", "/config", "/theme.css", "/manifest.json", f"{API}/info", f"{API}/app_id"):
        assert web.get(path).status_code == 200, path
    assert web.head("/").status_code == 200


def test_the_client_and_curls_two_forms_work(url, web) -> None:
    wanted = Client(url, verbose=False).predict("Hi", api_name="/predict_weights")
    for path, body in (("call", {"data": ["Hi"]}), ("call/v2", {"prompt": "Hi"})):
        event = web.post(f"{API}/{path}/predict_weights", json=body).json()["event_id"]
        stream = web.get(f"{API}/{path}/predict_weights/{event}").text
        assert "event: complete" in stream
        assert json.loads(stream.split("data: ")[-1]) == [pytest.approx(wanted, abs=1e-3)]


def test_a_path_under_a_root_is_the_same_path(blocks) -> None:
    def reach(root: str, path: str) -> int:
        messages = []

        async def gradio(scope, receive, send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})

        async def note(message) -> None:
            messages.append(message)

        scope = {"type": "http", "method": "GET", "path": path, "root_path": root, "headers": []}
        asyncio.run(Door(gradio, blocks)(scope, None, note))  # type: ignore[arg-type]
        return messages[0]["status"]

    for root, path in (("", "/config"), ("/pro", "/pro/config"), ("/pro", "/config"), ("/p", "/p")):
        assert reach(root, path) == 200
    for root, path in (("", "/pro/config"), ("/pro", "/protest/config"), ("/pro", "/pro/upload")):
        assert reach(root, path) == 404


# ---------------------------------------------------------------- bodies


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b"null", b'"x"', b"\xff{}", b'{"a":' * 100_000, b"[" * 100_000, b'{"a":' + b"9" * 9000 + b"}",
     b'{"data": ' + b"[" * 40 + b"]" * 40 + b"}", b'{"data": [' + b"1," * 60_000 + b"1]}"],
    ids=lambda raw: repr(raw[:12]),
)  # fmt: skip
def test_a_body_that_is_not_a_small_json_object_is_refused(web, raw: bytes) -> None:
    for path in ("queue/join", "call/score", "call/v2/score", "cancel"):
        kind = {"Content-Type": "application/json"}
        refused(web.post(f"{API}/{path}", content=raw, headers=kind), 400, "expected")


def test_a_long_body_is_refused_by_its_header_and_while_it_arrives(web) -> None:
    kind = {"Content-Type": "application/json"}
    long = b'"' + b"x" * LONGEST_BODY + b'"'
    refused(web.post(f"{API}/queue/join", content=long, headers=kind), 413)
    chunked = (long[i : i + 65536] for i in range(0, len(long), 65536))
    refused(web.post(f"{API}/queue/join", content=chunked, headers=kind), 413)


def test_another_content_type_is_refused(web) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        answer = web.post(f"{API}/queue/join", content=b"{}", headers={"Content-Type": kind})
        refused(answer, 415, "application/json")


def test_a_body_that_never_ends_is_given_up(url, monkeypatch) -> None:
    monkeypatch.setattr(ui.door, "BODY_SECONDS", 0.2)
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as half:
        head = f"POST {API}/queue/join HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json"
        half.sendall(f"{head}\r\nContent-Length: 1000\r\n\r\n{{".encode())
        assert half.recv(100).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    "wrong",
    [
        {"data": None}, {"data": {}}, {"data": "x"}, {"data": []}, {"data": [1] * 99}, {"fn_index": None},
        {"fn_index": "0"}, {"fn_index": True}, {"fn_index": 0.0}, {"fn_index": 999}, {"fn_index": -1},
        {"session_hash": None}, {"session_hash": ""}, {"session_hash": "x" * 65}, {"session_hash": ["a"]},
        {"session_hash": "a/b"}, {"event_data": "x"}, {"event_data": [1]}, {"trigger_id": "0"}, {"trigger_id": []},
        {"batched": True}, {"simple_format": True}, {"oauth_token": "x"}, {"request": {}}, {"event_id": 5},
    ],
    ids=str,
)  # fmt: skip
def test_an_event_of_the_wrong_form_is_refused(web, ask, wrong: dict[str, Any]) -> None:
    refused(web.post(f"{API}/queue/join", json=ask | wrong), 400)


@pytest.mark.parametrize(
    ("kind", "value"),
    [("textbox", 5), ("textbox", ["a"]), ("textbox", True), ("slider", "4"), ("slider", None), ("slider", True),
     ("slider", 99999), ("slider", -1), ("checkbox", "yes"), ("checkbox", 1), ("number", "1"), ("number", [1])],
)  # fmt: skip
def test_a_value_of_the_wrong_type_for_its_component_is_refused(web, kind: str, value: Any) -> None:
    config = web.get("/config").json()
    kinds = {c["id"]: c for c in config["components"]}
    for function in config["dependencies"]:
        data = [kinds[i]["props"].get("value") for i in function["inputs"]]
        for place, i in enumerate(function["inputs"]):
            if kinds[i]["type"] == kind and function["backend_fn"]:
                wrong = [*data[:place], value, *data[place + 1 :]]
                event = {"data": wrong, "fn_index": function["id"], "session_hash": "abc"}
                refused(web.post(f"{API}/queue/join", json=event), 400, ", expected ")


def test_a_number_that_is_not_finite_is_refused(web, ask) -> None:
    for number in ("NaN", "Infinity", "1e999", "1" + "0" * 400):
        raw = json.dumps(ask | {"data": ["Hi", "HERE", *ask["data"][2:]]}).replace('"HERE"', number)
        kind = {"Content-Type": "application/json"}
        refused(web.post(f"{API}/queue/join", content=raw, headers=kind), 400, "expected")


def test_values_that_gradio_could_not_send_back_are_refused_or_replaced(web, ask) -> None:
    run = ask["data"][4]
    assert run["phase"] == "recorded"
    data = [*ask["data"][:4], run | {"note": 2**63}, *ask["data"][5:]]
    refused(web.post(f"{API}/queue/join", json=ask | {"data": data}), 400, "64 bits")
    # The page answers an empty prompt with a sentence and the run as it was sent.
    data = ["", *ask["data"][1:4], run | {"note": "a\ud83d", "\udc00": "🙂"}, *ask["data"][5:]]
    raw = json.dumps(ask | {"data": data, "session_hash": "halves"}).encode()
    accepted = web.post(
        f"{API}/queue/join", content=raw, headers={"Content-Type": "application/json"}
    )
    assert accepted.status_code == 200
    assert "process_completed" in web.get(f"{API}/queue/data?session_hash=halves").text


def test_a_file_is_refused_wherever_it_stands(web, ask) -> None:
    file = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    for place in range(len(ask["data"])):
        for value in (file, [file], {"candidates": [{"text": file}]}):
            data = [*ask["data"][:place], value, *ask["data"][place + 1 :]]
            refused(web.post(f"{API}/queue/join", json=ask | {"data": data}), 400, "takes none")


def test_calls_are_checked_by_name(web) -> None:
    refused(web.post(f"{API}/call/nothing", json={"data": []}), 404, "predict_weights")
    refused(web.post(f"{API}/call/ask", json={"data": []}), 404)  # only for the page
    refused(web.post(f"{API}/call/score", json={"data": ["x"]}), 400, "2 values")
    refused(web.post(f"{API}/call/v2/score", json={"prompt": "x"}), 400, "response")
    refused(web.post(f"{API}/call/v2/score", json={"prompt": "x", "response": "y", "z": 1}), 400)
    refused(web.post(f"{API}/call/v2/status", json={"prompt": None}), 400, "prompt")
    refused(web.post(f"{API}/run/ask", json={"data": [], "fn_index": 0, "session_hash": "a"}), 400)
    refused(web.post(f"{API}/cancel", json={"session_hash": "a", "fn_index": 0}), 400)
    refused(web.post(f"{API}/reset", json={"event_id": 7}), 400)


# ---------------------------------------------------------------- streams


def test_the_stream_of_an_unknown_session_says_so_without_a_traceback(web, capfd) -> None:
    assert "session_not_found" in web.get(f"{API}/queue/data?session_hash=nobody").text
    assert "event: error" in web.get(f"{API}/call/score/nobody").text
    assert "Traceback" not in capfd.readouterr().err


# ---------------------------------------------------------------- headers


def test_every_answer_has_the_headers_for_browsers(web) -> None:
    for answer in (web.get("/"), web.get("/x"), web.get("/theme.css"), web.post(f"{API}/upload")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert answer.headers["content-security-policy"] == "frame-ancestors 'self'"


def test_on_a_space_hugging_faces_pages_may_frame_it(blocks, monkeypatch) -> None:
    monkeypatch.setenv("SPACE_ID", "someone/pro")
    framed = Door(None, blocks).headers["Content-Security-Policy"]  # type: ignore[arg-type]
    assert framed.split()[:3] == ["frame-ancestors", "'self'", "https://huggingface.co"]


@pytest.mark.parametrize(
    ("host", "origin", "allowed"),
    [
        ("pro.example", "https://evil.example", "*"),
        ("pro.example:7860", "null", "*"),
        ("127.0.0.1:7860", "https://evil.example", None),
        ("localhost:7860", "null", None),
        ("[::1]:7860", "http://[", None),
        ("127.0.0.1:7860", "http://localhost:3000", "http://localhost:3000"),
        ("pro.example", None, None),
    ],
)
def test_scripts_of_other_pages_may_call_a_public_app_and_never_with_cookies(
    web, host: str, origin: str | None, allowed: str | None
) -> None:
    said = {"Host": host} | ({"Origin": origin} if origin else {})
    answers = [web.get("/config", headers=said), web.post(f"{API}/upload", headers=said)]
    if origin:
        answers.append(web.options(f"{API}/queue/join", headers=said | ASKED))
        assert answers[-1].status_code == 204
    for answer in answers:
        assert answer.headers.get("access-control-allow-origin") == allowed
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("name", ["Host", "X-Forwarded-Host"])
@pytest.mark.parametrize("host", ["[", "a b", "x:99999999", "x:port", "a/b", "[::1", "user@x"])
def test_a_header_that_names_no_host_is_refused(web, name: str, host: str) -> None:
    refused(web.get("/config", headers={name: host}), 400, "names no host")


def test_a_header_cannot_name_another_address_as_the_apps(web, url) -> None:
    root = web.get("/config", headers={"X-Gradio-Server": "https://evil.example"}).json()["root"]
    assert root == url


# ---------------------------------------------------------------- all of it


def test_hostile_requests_leave_no_traceback_and_no_stuck_page(tmp_path, chromium) -> None:
    # The whole trial: python tests/hostile.py --requests 1000
    outcome = trial(requests=60, seed=1, folder=tmp_path, chromium=chromium)
    assert outcome["tracebacks"] == 0, outcome["log"][-3000:]
    assert outcome["failed"] == 0, outcome["outcomes"]
    assert outcome["page"] is True
