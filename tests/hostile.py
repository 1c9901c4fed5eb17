"""Hostile visitors: requests of all kinds that no page sends, at the real app beside an endpoint that writes at once.

    python tests/hostile.py --requests 1000 --seed 0

Afterwards the app's log must hold no traceback, no request may be without an answer, a page that was open all the time
must still work, and the app's memory must be flat after the first 200 requests. Prints one table; exits with 1 when
something of this does not hold. About six minutes on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECORDED = json.loads((ROOT / "ui/recorded.json").read_text(encoding="utf-8"))
WAIT, WARM = 60.0, 200
"""Seconds that a request may take before it counts as stuck; the requests before memory is first read."""
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
        """One request, sent as it stands. The stream of its answer is open."""
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
        """Each function of the page, with values that a page would send."""
        kinds = {c["id"]: c for c in self.config["components"]}
        return [
            (d, [_ordinary(kinds[i]) for i in d["inputs"]])
            for d in self.config["dependencies"]
            if d["backend_fn"] and d["api_visibility"] == "private"
        ]

    def memory(self) -> float:
        """The app's resident memory, MiB."""
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
    """What the page holds in a component at first; the board has the recorded run."""
    if component["props"].get("elem_id") == "board":
        return RECORDED
    by_kind = {"textbox": "Hello there.", "checkbox": False, "number": 0}
    return by_kind.get(component["type"], component["props"].get("value"))


def _json(rng: random.Random, depth: int = 0) -> Any:
    """Any JSON value, of the sorts that break things."""
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
    """An event of the page, parts of it wrong, and its stream to the end."""
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
    """Asks and leaves: after the first news, before any, or without ever listening; or tells Gradio to cancel."""
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
    """A connection that says half of a request, and is kept."""
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

# ---------------------------------------------------------------- the trial


def attack(site: Site, kind: Kind, seed: str) -> tuple[str, str]:
    """(kind, outcome) of one request: a status, how its stream ended, or what kept it from an answer."""
    try:
        return kind.__name__, kind(site, random.Random(seed))
    except TimeoutError:
        return kind.__name__, "STUCK"
    except (OSError, http.client.HTTPException) as error:
        return kind.__name__, type(error).__name__


@contextlib.contextmanager
def site(folder: Path) -> Iterator[Site]:
    """The real app, everything loaded, beside an endpoint that writes at once."""
    port, endpoint = _free(), _free()
    instant = [sys.executable, "-m", "tests.servers.instant", str(endpoint), "0.01"]
    environ = os.environ | {
        "PRO_ENDPOINT_URL": f"http://127.0.0.1:{endpoint}",
        "GRADIO_SERVER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    log = folder / "app.log"
    with log.open("wb") as out, contextlib.ExitStack() as stack:
        for command, said in ((instant, subprocess.DEVNULL), ([sys.executable, "app.py"], out)):
            process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=said, stderr=said)
            stack.callback(process.wait)
            stack.callback(process.terminate)
        found = Site(port, process, log)
        until = time.monotonic() + 120
        while True:
            try:
                status = found.post("call/status", {"data": []}).text()
                found.send(
                    "GET", f"/gradio_api/call/status/{json.loads(status)['event_id']}"
                ).text()
                break
            except ConnectionRefusedError:
                if time.monotonic() > until or process.poll() is not None:
                    raise RuntimeError(
                        f"the app did not start: {log.read_text()[-2000:]}"
                    ) from None
                time.sleep(0.2)
        found.config = json.loads(found.send("GET", "/config").text())
        yield found
        for held in found.held:
            held.close()


def _free() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def ask(page: Any, prompt: str) -> None:
    """One ordinary question in a page that is open; fails when no answer is scored within a minute."""
    before = page.locator(".board").get_attribute("data-run")
    page.locator("#prompt textarea").fill(prompt)
    page.locator("#ask").click()
    done = f'.board[data-phase="done"][data-busy="false"]:not([data-run="{before}"])'
    page.locator(done).wait_for(timeout=WAIT * 1000)


def trial(requests: int, seed: int, folder: Path, chromium: str | None = None) -> dict[str, Any]:
    """All requests, four at a time, and what the app is like afterwards."""
    order = random.Random(seed)
    kinds = [order.choice(KINDS) for _ in range(requests)]
    jobs = [(kind, f"{seed}-{i}") for i, kind in enumerate(kinds)]
    with contextlib.ExitStack() as stack:
        app = stack.enter_context(site(folder))
        page = None
        if chromium:
            from playwright.sync_api import sync_playwright

            play = stack.enter_context(sync_playwright())
            options = ["--no-sandbox", "--disable-gpu"]
            page = play.chromium.launch(executable_path=chromium, args=options).new_page()
            page.goto(app.url)
            page.locator(".board .card").first.wait_for()
            ask(page, "Before.")
        outcomes: list[tuple[str, str]] = []
        memory, begun = [], time.monotonic()
        with ThreadPoolExecutor(4) as pool:
            for start in range(0, requests, WARM):
                part = jobs[start : start + WARM]
                outcomes += pool.map(lambda job: attack(app, *job), part)
                memory.append(app.memory())
        seconds = time.monotonic() - begun
        page_works = None
        if page is not None:
            ask(page, "After.")
            page_works = True
        log = app.log.read_text(errors="replace")
    bad = ("STUCK", "no end", "IncompleteRead", "RemoteDisconnected")
    failed = [o for _, o in outcomes if o in bad or (o.startswith("5") and o != "503")]
    return {
        "outcomes": Counter(outcomes),
        "seconds": seconds,
        "tracebacks": log.count("Traceback (most recent call last)"),
        "failed": len(failed),
        "memory": memory,
        "page": page_works,
        "log": log,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chromium = shutil.which("chromium")
    with tempfile.TemporaryDirectory() as folder:
        found = trial(options.requests, options.seed, Path(folder), chromium)
    print(f"{'kind':18}{'sent':>5}  outcomes")
    for kind in KINDS:
        mine = {o: n for (k, o), n in found["outcomes"].items() if k == kind.__name__}
        told = ", ".join(f"{o} {n}" for o, n in sorted(mine.items()))
        print(f"{kind.__name__:18}{sum(mine.values()):5}  {told}")
    memory = found["memory"]
    flat = memory[-1] < 1.1 * memory[0]
    page = "not looked at: no chromium" if found["page"] is None else "works"
    print(f"{options.requests} requests in {found['seconds']:.0f} s, seed {options.seed}")
    print(
        f"tracebacks in the log: {found['tracebacks']}; without an answer or 5xx: {found['failed']}"
    )
    print(
        f"MiB of memory after each {WARM}: {', '.join(f'{m:.0f}' for m in memory)}; the page: {page}"
    )
    if found["tracebacks"]:
        kept = Path(tempfile.gettempdir()) / "hostile_app.log"
        kept.write_text(found["log"])
        print(f"the app's log: {kept}")
    return int(bool(found["tracebacks"] or found["failed"] or not flat))


if __name__ == "__main__":
    sys.exit(main())
