"""A real HTTP server on the loopback address that fails in a different way on every path.

The first part of the path names the fault: a generator whose URL is `{address}/stall` gets `stall` in either dialect.
Answers are written byte by byte, so that streams can break in the middle. A test can add its own faults, under a name
or a full path. If the server is used as a proxy, a request for another host gets `proxy`, and a tunnel `connect`.
"""

import asyncio
import contextlib
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

MOST_DRIPS, MOST_BYTES = 1_000, 2**26
"""Limits of an endless answer, so that a client that does not notice cannot make a test wait forever."""
WORDS = ["Well", ", here", " is", " some", " text"]


def sse(*events: dict) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)


def openai_word(word: str, finish: str | None = None) -> dict:
    choice = {"index": 0, "delta": {"content": word}, "finish_reason": finish}
    return {"id": "1", "created": 1, "model": "m", "system_fingerprint": "", "choices": [choice]}


def tgi_word(word: str, whole: str | None = None) -> dict:
    token = {"id": 1, "text": word, "logprob": 0.0, "special": False}
    return {"index": 1, "token": token, "generated_text": whole, "details": None}


def beginning(tgi: bool) -> bytes:
    return sse(*[tgi_word(w) if tgi else openai_word(w) for w in WORDS[:2]])


def whole(tgi: bool) -> bytes:
    if tgi:
        return sse(*map(tgi_word, WORDS[:-1]), tgi_word(WORDS[-1], "".join(WORDS)))
    return sse(*map(openai_word, WORDS), openai_word("", "stop")) + b"data: [DONE]\n\n"


@dataclass
class Fault:
    """One way to answer: a head and the parts of a body, and how the connection fails."""

    status: str = "200 OK"
    kind: str = "text/event-stream"
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: bool = False  # end the connection without ending the answer
    stall: bool = False  # send nothing more, and keep the connection open
    hold: bool = False  # send nothing at all, not even the head
    reset: bool = False  # end the connection with a reset
    parts: Sequence[bytes] = ()  # the body, each part sent on its own
    drip: tuple[bytes, float] | None = (
        None  # (text, seconds): sent after the body again and again, with this pause
    )


def error(status: str, message: str, **headers: str) -> Fault:
    body = json.dumps({"error": {"message": message}}).encode()
    return Fault(status, "application/json", headers, body)


def fault(name: str, tgi: bool, visit: int, token: str, elsewhere: str) -> Fault:
    """The answer to one request; ``visit`` counts the requests to this fault from 1."""
    ok = Fault(body=whole(tgi))
    in_stream = (
        {"error": "Request failed during generation: CUDA", "error_type": "generation"}
        if tgi
        else {"error": {"message": "Request failed during generation: CUDA", "code": 500}}
    )
    overloaded = (
        {"error": "Model is overloaded", "error_type": "overloaded"}
        if tgi
        else {"error": {"message": "Model is overloaded", "code": 429}}
    )
    faults = {
        "fine": ok,
        "401": Fault("401 Unauthorized", "", {}, b""),
        "401-echo": error("401 Unauthorized", f"Incorrect API key provided: {token}"),
        "403": error("403 Forbidden", "no"),
        "404": error("404 Not Found", "The model `m` does not exist."),
        "422": error("422 Unprocessable Entity", "max_tokens must be <= 512"),
        "422-echo": error("422 Unprocessable Entity", f"bad header Bearer {token}\n second line"),
        "500": error("500 Internal Server Error", "oops"),
        "502-html": Fault("502 Bad Gateway", "text/html", {}, b"<html>Bad gateway</html>"),
        "429": error("429 Too Many Requests", "slow down"),
        "429-long": error("429 Too Many Requests", "slow down", **{"Retry-After": "3600"}),
        "429-once": error("429 Too Many Requests", "slow", **{"Retry-After": "2"}),
        "503-once": error("503 Service Unavailable", "loading"),
        "overloaded-once": Fault(body=sse(overloaded)),
        "html": Fault(kind="text/html", body=b"<html><h1>Welcome</h1></html>"),
        "json": Fault(kind="application/json", body=b'{"error": "streaming is off"}'),
        "empty": Fault(body=b""),
        "no-words": Fault(
            body=sse(tgi_word("", "")) if tgi else sse(openai_word("", "stop")),
        ),
        "rubbish": Fault(body=b"data: {not json\n\n"),
        "other-json": Fault(body=b"data: [1, 2]\n\n"),
        "ends-early": Fault(body=beginning(tgi)),
        "cut": Fault(body=beginning(tgi), cut=True),
        "error-inside": Fault(body=beginning(tgi) + sse(in_stream)),
        "stall": Fault(body=beginning(tgi), stall=True),
        "silent": Fault(stall=True),
        "redirect": Fault("307 Temporary Redirect", "", {"Location": f"{elsewhere}/fine"}),
    }
    if name.endswith("-once") and visit > 1:
        return ok
    return faults[name]


def name_of(path: str) -> str:
    """The name of the fault that a request gets."""
    if path.startswith("/"):
        return path.split("/")[1]
    return "proxy" if "://" in path else "connect"


@dataclass
class FaultyServer:
    """The address, and the requests so far as (path, headers in lower case, body)."""

    url: str = ""
    token: str = "secret-token-1234"
    elsewhere: str = ""
    answers: Mapping[str, Fault | Sequence[Fault]] = field(default_factory=dict)
    choose: Callable[[dict], Fault] | None = None
    requests: list[tuple[str, dict[str, str], dict]] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)
    hung_up: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def visits(self, name: str) -> int:
        return sum(name_of(path) == name for path, _, _ in self.requests)

    def answer(self, path: str) -> Fault:
        """The answer to a request: the test's for this path, else the test's for its name, else the server's own fault.
        Of several answers, each visit gets the next one, and later visits the last."""
        name = name_of(path)
        visits = self.visits(name)
        answers = self.answers.get(path)
        if answers is not None:
            visits = sum(seen == path for seen, _, _ in self.requests)
        else:
            answers = self.answers.get(name)
        if answers is None:
            tgi = path.endswith(("/generate_stream", "/health"))
            return fault(name, tgi, visits, self.token, self.elsewhere)
        return answers if isinstance(answers, Fault) else answers[min(visits, len(answers)) - 1]

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            path = head[0].split(" ")[1]
            headers = {
                name.lower(): value for name, value in (h.split(": ", 1) for h in head[1:] if h)
            }
            raw = await reader.readexactly(int(headers.get("content-length", 0)))
            self.requests.append((path, headers, json.loads(raw) if raw else {}))
            answer = self.choose(self.requests[-1][2]) if self.choose else self.answer(path)
            if answer.hold:
                await self.until_hung_up(reader)
                return
            lines = [f"HTTP/1.1 {answer.status}", "Transfer-Encoding: chunked", "Connection: close"]
            if answer.kind:
                lines.append(f"Content-Type: {answer.kind}")
            lines += [f"{name}: {value}" for name, value in answer.headers.items()]
            writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
            for part in answer.parts or [answer.body]:
                if part:
                    writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
                    await writer.drain()
            if answer.drip:
                gone = asyncio.ensure_future(self.until_hung_up(reader))
                part, pause = answer.drip
                for _ in range(min(MOST_DRIPS, MOST_BYTES // len(part))):
                    if gone.done():
                        return
                    writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
                    await writer.drain()
                    await asyncio.sleep(pause)
            elif answer.stall:
                await writer.drain()
                await self.until_hung_up(reader)
            elif answer.reset:
                line = writer.get_extra_info("socket")
                line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            elif not answer.cut:
                writer.write(b"0\r\n\r\n")
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def until_hung_up(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read()
        self.closed.set()
        self.hung_up.release()


@contextlib.contextmanager
def faulty_server(
    answers: Mapping[str, Fault | Sequence[Fault]] | None = None,
    tls: ssl.SSLContext | None = None,
    choose: Callable[[dict], Fault] | None = None,
) -> Iterator[FaultyServer]:
    """Run the server in a thread, with these faults in addition to its own. ``choose`` picks a fault by the body."""
    server = FaultyServer(answers=answers or {}, choose=choose)
    listening = socket.create_server(("127.0.0.1", 0))
    scheme = "https" if tls else "http"
    server.url = f"{scheme}://127.0.0.1:{listening.getsockname()[1]}"
    loop, stop = asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        async with await asyncio.start_server(server.handle, sock=listening, ssl=tls):
            await stop.wait()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:  # ends tasks that still run
            runner.run(serve())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
