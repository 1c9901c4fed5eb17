"""The kinds of requests of tests/hostile.py, which no page sends: one function per kind.

Each gets the app (`Site`) and a seeded `random.Random`, sends one request, and returns the outcome in a word.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RECORDED = json.loads(
    (Path(__file__).parent.parent / "ui/recorded.json").read_text(encoding="utf-8")
)[0]
WAIT = 60.0
"""Seconds that a request may take before it counts as stuck."""
Headers = dict[str, str]


@dataclass
class Site:
    """The app under attack: its address, process and log, and what its page can ask."""

    port: int
    process: subprocess.Popen
    log: Path
    config: dict[str, Any] = field(default_factory=dict)
    held: list[socket.socket] = field(default_factory=list)  # half-open connections

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def send(
        self, method: str, path: str, body: bytes = b"", headers: Headers | None = None
    ) -> Answer:
        """Send one request unchanged. The stream of the returned answer is open."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)
        said = {"Host": f"127.0.0.1:{self.port}"} | (headers or {})
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in said.items():
            connection.putheader(name, value.encode("latin-1"))
        if method == "POST" and "Transfer-Encoding" not in said:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before its end
            connection.send(body)
        return Answer(connection)

    def post(self, path: str, value: Any, headers: Headers | None = None) -> Answer:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        kind = {"Content-Type": "application/json"}
        return self.send("POST", f"/gradio_api/{path}", body, kind | (headers or {}))

    def events(self) -> list[tuple[dict[str, Any], list[Any]]]:
        """Each function of the page, with the values that a page would send."""
        kinds = {c["id"]: c for c in self.config["components"]}
        return [
            (d, [_ordinary(kinds[i]) for i in d["inputs"]])
            for d in self.config["dependencies"]
            if d["backend_fn"] and d["api_visibility"] == "private"
        ]

    def memory(self) -> float:
        """The app's resident memory in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024


class Answer:
    """A status, and the lines of a body that may be a stream."""

    def __init__(self, connection: http.client.HTTPConnection):
        self.connection, self.response = connection, connection.getresponse()
        self.status = self.response.status

    def text(self) -> str:
        body = self.response.read().decode("utf-8", "replace")
        self.connection.close()
        return body


def _ordinary(component: dict[str, Any]) -> Any:
    """The initial value of a component; for the board a recorded run."""
    if component["props"].get("elem_id") == "board":
        return RECORDED
    by_kind = {"textbox": "Hello there.", "checkbox": False, "number": 0}
    return by_kind.get(component["type"], component["props"].get("value"))


def _json(rng: random.Random, depth: int = 0) -> Any:
    """A JSON value of a kind that often breaks code."""
    plain: list[Any] = [
        None, True, -1, 2.5, 10**30, 1e308, float("nan"), float("-inf"), "", "x", "\ud83d", "\0", "9" * 50,
        "<script>alert(1)</script>", "${1}", "../../etc/passwd", "é" * 3000, [], {}, [[]],
    ]  # fmt: skip
    if depth < 3 and rng.random() < 0.3:
        inner = [_json(rng, depth + 1) for _ in range(rng.randint(1, 4))]
        return inner if rng.random() < 0.5 else {str(x)[:9]: x for x in inner}
    return rng.choice(plain)


def _session(rng: random.Random) -> str:
    return f"{rng.getrandbits(60):012x}"


def _join(
    site: Site,
    rng: random.Random,
    function: dict[str, Any],
    data: Any,
    wrong: dict[str, Any] | None = None,
) -> str:
    """Send an event of the page with wrong parts, and read its stream to the end."""
    body = {"data": data, "fn_index": function["id"], "session_hash": _session(rng)} | (wrong or {})
    answer = site.post("queue/join", body)
    said = answer.text()
    if answer.status != 200:
        return str(answer.status)
    assert "event_id" in said
    stream = site.send("GET", f"/gradio_api/queue/data?session_hash={body['session_hash']}").text()
    return "done" if "process_completed" in stream else "no end"


# ---------------------------------------------------------------- the kinds


def forged_run(site: Site, rng: random.Random) -> str:
    card = RECORDED["candidates"][0]
    changes = [
        {"candidates": [card] * 10_000}, {"candidates": [card | {"text": "x" * 300_000}] * 4},
        {"candidates": [card | {"text": _json(rng)}]}, {"candidates": _json(rng)}, {"messages": _json(rng)},
        {"messages": [{"role": "user", "content": _json(rng)}]}, {"objectives": _json(rng)}, {"floors": _json(rng)},
        {"messages": RECORDED["messages"] * 3000}, {"note": "x" * 100_000}, {"phase": _json(rng)},
        {rng.choice(list(RECORDED)): _json(rng)},
    ]  # fmt: skip
    run = RECORDED | {"phase": "writing", "busy": True} | rng.choice(changes)
    function, data = rng.choice([e for e in site.events() if RECORDED in e[1]])
    return _join(site, rng, function, [run if value == RECORDED else value for value in data])


def stale_page(site: Site, rng: random.Random) -> str:
    run = dict(RECORDED) | {"phase": "done", "id": "1"}
    names = run["objectives"]
    run["objectives"] = rng.choice([names[:-1], [*names, "speed"], names[::-1], ["a"], []])
    for key in rng.sample(list(run), 3):
        run.pop(key)
    function, data = rng.choice([e for e in site.events() if RECORDED in e[1]])
    old = function | {"id": rng.choice([function["id"], 3, 999, -1])}
    return _join(site, rng, old, [run if value == RECORDED else value for value in data])


def wrong_value(site: Site, rng: random.Random) -> str:
    function, data = rng.choice([e for e in site.events() if e[1]])
    data[rng.randrange(len(data))] = _json(rng)
    return _join(site, rng, function, data)


def wrong_envelope(site: Site, rng: random.Random) -> str:
    function, data = rng.choice(site.events())
    wrong = [
        {"data": _json(rng)}, {"data": data[:-1] or [1]}, {"data": [*data, 1]}, {"fn_index": _json(rng)},
        {"fn_index": rng.randint(-5, 99)}, {"trigger_id": _json(rng)}, {"event_data": _json(rng)},
        {"session_hash": _json(rng)}, {"session_hash": "x" * 5000}, {"batched": True}, {"simple_format": True},
        {"event_id": _json(rng)}, {"oauth_token": "x"}, {"request": {"url": "x"}}, {_session(rng): _json(rng)},
    ]  # fmt: skip
    return _join(site, rng, function, data, rng.choice(wrong))


def wrong_call(site: Site, rng: random.Random) -> str:
    calls = {
        "predict_weights": ["Hello"], "explain": ["Hello"], "score": ["Hello", "Hi"], "status": [], "ask": ["x"],
        "generate": ["Hello", None, 2, 8], rng.choice(["nothing", "v2", "x" * 90, "..%2f"]): [],
    }  # fmt: skip
    name = rng.choice(list(calls))
    data = calls[name]
    if data:
        data[rng.randrange(len(data))] = _json(rng)
    body = rng.choice(
        [{"data": data}] * 5
        + [{"data": [*data, 1]}, {}, {"data": data} | {"session_hash": _json(rng)}]
    )
    answer = site.post(f"call/{name}", body)
    said = answer.text()
    if answer.status != 200:
        return str(answer.status)
    stream = site.send("GET", f"/gradio_api/call/{name}/{json.loads(said)['event_id']}").text()
    return "done" if "event: complete" in stream or "event: error" in stream else "no end"


def wrong_named_call(site: Site, rng: random.Random) -> str:
    body = rng.choice(
        [{"prompt": _json(rng)}, {"prompt": "Hi", "x": 1}, {}, {"response": "x"}, {"prompt": "Hi"}]
    )
    answer = site.post(
        f"call/v2/{rng.choice(['predict_weights', 'score', 'status', 'nothing'])}", body
    )
    answer.text()
    return str(answer.status)


def broken_json(site: Site, rng: random.Random) -> str:
    bodies = [
        b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe{}", b'{"data": [}', b"{" + b'"a":{' * 100_000, b"[" * 100_000,
        b'{"data": ' + b"9" * 10_000 + b"}", b'{"data": [' + b"1," * 400_000 + b"1]}", b'{"a": NaN, "a": 1}',
        b'{"data": ' + b"[" * 200 + b"]" * 200 + b"}", bytes(rng.randrange(256) for _ in range(200)), b"{\0}",
    ]  # fmt: skip
    path = rng.choice(
        ["queue/join", "call/score", "call/v2/score", "run/predict", "cancel", "reset"]
    )
    answer = site.post(
        path, rng.choice(bodies), rng.choice([{}, {}, {"Content-Type": rng.choice(TYPES)}])
    )
    answer.text()
    return str(answer.status)


TYPES = [
    "text/plain",
    "multipart/form-data; boundary=x",
    "application/x-www-form-urlencoded",
    "",
    "a/b; c=\xff",
]


def huge_body(site: Site, rng: random.Random) -> str:
    text = json.dumps({"data": ["x" * 7_000_000]}).encode()
    if rng.random() < 0.5:
        answer = site.post("queue/join", text)
    else:
        chunks = b"".join(b"10000\r\n%b\r\n" % (b"x" * 0x10000) for _ in range(112)) + b"0\r\n\r\n"
        answer = site.post("queue/join", chunks, {"Transfer-Encoding": "chunked"})
    answer.text()
    return str(answer.status)


def closed_route(site: Site, rng: random.Random) -> str:
    form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n\r\nhi\r\n--x--\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    paths = [
        "upload", "upload?upload_id=1", "upload_progress?upload_id=1", "file=/etc/passwd", "file/etc/passwd", "runs",
        "file=http://169.254.169.254/", "proxy=http://127.0.0.1:22/", "stream/x", "stream/x/close", "component_server",
        "component_server/", "process_recording", "vibe-edit", "dev/reload", "user", "token", "api/score", "run/ask",
        "custom_component/x/client/x/x.js", "deep_link?session_hash=x", "queue/status", "run/predict", "UPLOAD",
    ]  # fmt: skip
    others = [
        "/monitoring",
        "/monitoring/summary",
        "/login",
        "/logout",
        "/docs",
        "/openapi.json",
        "/pwa_icon/9",
        "/x",
    ]
    path = rng.choice([f"/gradio_api/{p}" for p in paths] * 3 + others + ["/", "/config"])
    method = rng.choice(["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"])
    answer = site.send(
        method, path, form if method == "POST" else b"", kind if method == "POST" else {}
    )
    answer.text()
    return str(answer.status)


def odd_path(site: Site, rng: random.Random) -> str:
    tails = [
        "../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "..%5c..%5capp.py", "%00", "a%00b", "%ff%fe", "a" * 4000, "%0a",
        "/etc/passwd", "", "%f0%9f%99%82", ".", "con", "assets", "%ed%a0%80", "x?deep_link=../../x",
    ]  # fmt: skip
    heads = ["/static/", "/assets/", "/svelte/", "/", "/gradio_api/heartbeat/", "/?deep_link=", "/?__theme=",
             "/gradio_api/call/", "/gradio_api/call/score/", "/gradio_api/queue/data?session_hash=",
             "/gradio_api/openapi.json?", "/gradio_api/info?all_endpoints="]  # fmt: skip
    head = rng.choice(heads)
    answer = site.send(rng.choice(["GET", "HEAD"]), head + rng.choice(tails))
    if "heartbeat" in head and answer.status == 200:  # without an end
        answer.connection.close()
    else:
        answer.text()
    return str(answer.status)


def cancelled_stream(site: Site, rng: random.Random) -> str:
    """Ask and leave: after the first news, before any, or without listening at all; or tell Gradio to cancel."""
    function, data = rng.choice(site.events())
    session = _session(rng)
    body = {"data": data, "fn_index": function["id"], "session_hash": session}
    answer = site.post("queue/join", body)
    said = answer.text()
    if answer.status != 200:
        return str(answer.status)
    way = rng.choice(["deaf", "first", "none", "twice", "cancel"])
    if way == "cancel":
        stop = {
            "session_hash": session,
            "fn_index": function["id"],
            "event_id": json.loads(said)["event_id"],
        }
        site.post("cancel", stop).text()
    if way != "deaf":
        streams = [
            site.send("GET", f"/gradio_api/queue/data?session_hash={session}")
            for _ in range(1 + (way == "twice"))
        ]
        if way != "none":
            streams[0].response.readline()
        for stream in streams:
            stream.connection.close()
            stream.response.close()
    return f"left ({way})"


def half_open(site: Site, rng: random.Random) -> str:
    """Send half of a request, and keep the connection open."""
    head = f"Host: 127.0.0.1:{site.port}\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    starts = ["", "GET / HTTP/1.1\r\nHost", "POST /gradio_api/queue/join HTTP/1.1\r\n" + head + '{"data"', "\0\1\2",
              "GET / HTTP/9.9\r\n\r\n", "POST /gradio_api/upload HTTP/1.1\r\n" + head]  # fmt: skip
    held = socket.create_connection(("127.0.0.1", site.port), timeout=WAIT)
    held.sendall(rng.choice(starts).encode())
    site.held.append(held)
    if len(site.held) > 50:
        site.held.pop(0).close()
    return "held"


def odd_text(site: Site, rng: random.Random) -> str:
    texts = [
        "\ud83d", "\ude00\ud83d", "a\0b", "\u202e\u2066", "\u200b", "...", "??", "🙂", "é" * 200_001, "\ufeff", " ",
        "x" * 200_000, "a\u0301" * 900, "<img src=x onerror=alert(1)>", "`${1}`", "\r\n\r\ndata: x\n\n",
    ]  # fmt: skip
    function, data = rng.choice([e for e in site.events() if "Hello there." in e[1]])
    return _join(
        site, rng, function, [rng.choice(texts) if v == "Hello there." else v for v in data]
    )


def odd_headers(site: Site, rng: random.Random) -> str:
    headers: list[Headers] = [
        {"Host": "["}, {"Host": ""}, {"Host": "a b"}, {"Host": "x:99999999"}, {"X-Forwarded-Host": "[::"},
        {"X-Forwarded-Proto": "javascript"}, {"X-Forwarded-Host": "a\xff"}, {"Origin": "http://["}, {"Origin": "null"},
        {"Range": "bytes=9-1"}, {"Range": "x"}, {"Cookie": "a=\xff; =;"}, {"Accept-Encoding": "br;q=x, \xff"},
        {"X-Gradio-User": "x" * 9000}, {"Authorization": "Basic \xff"}, {"Accept-Language": "\xff" * 99},
        {"Origin": "https://evil.example", "Access-Control-Request-Method": "PUT"}, {"X-Forwarded-Host": "a/b?c#d,e"},
    ]  # fmt: skip
    path = rng.choice(
        ["/", "/config", "/gradio_api/info", "/theme.css", "/static/img/logo.svg", "/assets/x"]
    )
    method = rng.choice(["GET", "GET", "GET", "OPTIONS"])
    answer = site.send(method, path, headers=rng.choice(headers))
    answer.text()
    return str(answer.status)


def odd_cancel(site: Site, rng: random.Random) -> str:
    body = {"session_hash": _session(rng), "fn_index": 0, "event_id": _session(rng)}
    body[rng.choice(list(body))] = rng.choice([_json(rng), "x"])
    answer = site.post(rng.choice(["cancel", "reset"]), body)
    answer.text()
    return str(answer.status)


def unknown_stream(site: Site, rng: random.Random) -> str:
    place = rng.choice(
        ["queue/data?session_hash=", "queue/data?x=", "call/score/", "call/ask/", "call/v2/score/"]
    )
    answer = site.send("GET", f"/gradio_api/{place}{_session(rng)}")
    answer.text()
    return str(answer.status)


def file_value(site: Site, rng: random.Random) -> str:
    path = rng.choice(["/etc/passwd", "http://169.254.169.254/", "file:///etc/passwd", "app.py"])
    file = {"path": path, "url": path, "meta": rng.choice([{"_type": "gradio.FileData"}, [], "x"])}
    function, data = rng.choice([e for e in site.events() if e[1]])
    data[rng.randrange(len(data))] = rng.choice([file, [file], RECORDED | {"candidates": [file]}])
    return _join(site, rng, function, data)


Kind = Callable[[Site, random.Random], str]
KINDS: tuple[Kind, ...] = (
    forged_run, stale_page, wrong_value, wrong_envelope, wrong_call, wrong_named_call, broken_json, huge_body,
    closed_route, odd_path, cancelled_stream, half_open, odd_text, odd_headers, odd_cancel, unknown_stream, file_value,
)  # fmt: skip
