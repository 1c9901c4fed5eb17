"""A server on the loopback address that answers what a test tells it to, in either dialect."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Event = dict[str, Any] | str
Answer = tuple[int, Sequence[Event]]
"""The status, and the events of a stream or the JSON object of an error."""


def says(content: str | None = None, finish: str | None = None, **delta: Any) -> Event:
    """A chunk of the openai dialect."""
    choice = {"index": 0, "delta": {"content": content} | delta, "finish_reason": finish}
    return {"id": "1", "created": 1, "model": "m", "choices": [choice]}


def token(text: str, special: bool = False, whole: str | None = None, reason: str = "") -> Event:
    """A token of the tgi dialect; the last one carries the full text and the finish reason."""
    details = {"finish_reason": reason, "generated_tokens": 1, "seed": None} if reason else None
    one = {"id": 1, "text": text, "logprob": 0.0, "special": special}
    return {"index": 1, "token": one, "generated_text": whole, "details": details}


def refuses(message: str, status: int = 400) -> Answer:
    return status, [{"error": {"message": message, "code": status}}]


@contextlib.contextmanager
def scripted(
    answer: Callable[[dict[str, Any]], Answer], loras: Iterable[str] = ()
) -> Iterator[tuple[str, list[dict]]]:
    """(address, the bodies that it got); ``answer`` turns a body into a reply. The server lists the model m and
    ``loras`` of it."""
    seen: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

        def reply(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            models = [{"id": "m"}, *({"id": name, "parent": "m"} for name in loras)]
            self.reply(200, "application/json", json.dumps({"data": models}).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append(body)
            status, events = answer(body)
            if status != 200:
                self.reply(status, "application/json", json.dumps(events[0]).encode())
                return
            lines = [f"data: {e if isinstance(e, str) else json.dumps(e)}\n\n" for e in events]
            self.reply(200, "text/event-stream", "".join(lines).encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
