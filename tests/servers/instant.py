"""An endpoint that writes at once, to measure the app in front of it: OpenAI's dialect, plain asyncio.

    python tests/servers/instant.py 8000 [PAUSE]

Every request gets the same 60 words in 12 events, with a PAUSE (seconds) after each. ``GET /seen`` returns the time of
each request (seconds since 1970) with its prompt's last word, and the number of open streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator

WORDS = [f"word{number}" for number in range(60)]


def event(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "instant"}
    return b"data: " + json.dumps({**chunk, "choices": [choice]}).encode() + b"\n\n"


STEP = -(-len(WORDS) // 12)
EVENTS = [
    *(event(" ".join(WORDS[i : i + STEP]) + " ") for i in range(0, len(WORDS), STEP)),
    event("", "stop") + b"data: [DONE]\n\n",
]
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Instant:
    """One server: its requests so far, as (time, last word of the prompt), and its open streams."""

    def __init__(self, pause: float = 0.0):
        self.pause, self.open = pause, 0
        self.url = ""
        self.begun, self.idle = threading.Event(), threading.Event()
        self.seen: list[tuple[float, str]] = []

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                lines = dict(
                    line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line
                )
                body = await reader.readexactly(int(lines.get("content-length", 0)))
                if head.startswith("POST"):
                    await self.write(json.loads(body), reader, writer)
                else:
                    path = head.split(" ")[1]
                    self.say(self.state() if path == "/seen" else self.models(), writer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def write(self, body: dict, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.seen.append((time.time(), body["messages"][-1]["content"].split()[-1]))
        self.open += 1
        self.begun.set()
        try:
            if not self.pause:
                parts = b"".join(b"%x\r\n%s\r\n" % (len(e), e) for e in EVENTS)
                writer.write(STREAM + parts + b"0\r\n\r\n")
                return
            writer.write(STREAM)
            for one in EVENTS:
                writer.write(b"%x\r\n%s\r\n" % (len(one), one))
                await writer.drain()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(
                        reader.read(1), self.pause
                    )  # the client sends nothing more, only closes
                    raise ConnectionResetError
            writer.write(b"0\r\n\r\n")
        finally:
            self.open -= 1
            if not self.open:
                self.idle.set()

    def state(self) -> dict:
        return {"open": self.open, "seen": self.seen[-2000:]}

    @staticmethod
    def models() -> dict:
        return {"object": "list", "data": [{"id": "instant", "object": "model"}]}

    @staticmethod
    def say(value: dict, writer: asyncio.StreamWriter) -> None:
        body = json.dumps(value).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        writer.write(head.encode() + b"\r\n\r\n" + body)


@contextlib.contextmanager
def instant(pause: float = 0.0) -> Iterator[Instant]:
    """The server in a thread of this process. A request sets `begun`; `idle` is set when no stream is open."""
    server, loop, ready = Instant(pause), asyncio.new_event_loop(), threading.Event()

    async def start() -> None:
        listener = await asyncio.start_server(server.handle, "127.0.0.1", 0)
        server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        ready.set()

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(start())
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


async def serve(port: int, pause: float) -> None:
    server = await asyncio.start_server(Instant(pause).handle, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0.0))
