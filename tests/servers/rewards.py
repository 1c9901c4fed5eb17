"""Servers of reward models and of a judge on the loopback address, in the dialects of pro_core/rewards/dialects.py.

Each is a small server of ours that answers in the shape of the one whose name it has; it is not that server.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Numbers = list[float]
Rewards = Callable[[str], Numbers]
"""The outputs for a text: the answer, or what a conversation says at its end."""


def activated(values: Numbers) -> Numbers:
    """What vLLM and TEI do unless they are told not to: a sigmoid for one output, a softmax for several."""
    if len(values) == 1:
        return [1 / (1 + math.exp(-values[0]))]
    total = sum(math.exp(v) for v in values)
    return [math.exp(v) / total for v in values]


class RewardServer:
    """The state of a server, which a test may change while it runs.

    Attributes:
        rewards: text -> outputs. model: the name that it gives its model. token: that it wants; None for none.
        obeys: leaves the activation out when it is asked to. longest: characters of a text; more are refused.
        dies_after: answers with an error after so many requests. asked: the bodies of all requests for scores.
        tokens: the first tokens of every text, as /tokenize tells them.
    """

    def __init__(self, dialect: str, rewards: Rewards):
        self.dialect, self.rewards = dialect, rewards
        self.model, self.token = "rm", None
        self.obeys, self.longest = True, 100_000
        self.dies_after = math.inf
        self.tokens: list[int] = [1, 2]
        self.labels: list[str] | None = None
        self.asked: list[dict[str, Any]] = []
        self.url = ""

    def get(self, path: str) -> tuple[int, Any]:
        if path == "/v1/models":
            return 200, {"data": [{"id": self.model}]}
        if path == "/info" and self.dialect == "tei":
            kind: dict[str, Any] = {"classifier": {"id2label": dict(enumerate(self.labels or []))}}
            return 200, {
                "model_id": self.model,
                "model_type": kind if self.labels else {"embedding": {}},
                "max_client_batch_size": 4,
            }
        if path == "/get_model_info" and self.dialect == "sglang":
            return 200, {"model_path": self.model}
        return 404, {"detail": "Not Found"}

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/tokenize":
            return 200, {"tokens": self.tokens}
        route = {"vllm": "/classify", "tei": "/predict", "sglang": "/classify"}
        if path != route.get(self.dialect, "/get_reward"):
            return 404, {"detail": "Not Found"}
        self.asked.append(body)
        if len(self.asked) > self.dies_after:
            return 500, {"error": {"message": "out of memory"}}
        texts = self.texts(body)
        if any(len(text) > self.longest for text in texts):
            return 400, {"error": {"message": "too long", "code": 400}}
        flag = {"vllm": body.get("use_activation", True), "tei": not body.get("raw_scores", False)}
        on = flag.get(self.dialect, False) or not self.obeys
        values = [activated(v) if on else v for v in map(self.rewards, texts)]
        return 200, self.shaped(values)

    def texts(self, body: dict[str, Any]) -> list[str]:
        if "messages" in body:
            return [body["messages"][-1]["content"]]
        given = body.get("input") or body.get("inputs") or body.get("text") or body["query"]
        return [one if isinstance(one, str) else one[-1] for one in given]

    def shaped(self, values: list[Numbers]) -> Any:
        if self.dialect == "vllm":
            parts = [
                {"index": i, "label": "x", "probs": v, "num_classes": len(v)}
                for i, v in enumerate(values)
            ]
            return {"data": parts[::-1]}  # the index counts, not the place
        if self.dialect == "tei":
            names = self.labels or []
            rows = [[{"score": s, "label": n} for s, n in zip(v, names, strict=True)] for v in values]  # fmt: skip
            return [sorted(row, key=lambda one: -one["score"]) for row in rows]
        if self.dialect == "sglang":
            return [{"embedding": v, "meta_info": {}} for v in values]
        return {"rewards": [v[0] for v in values]}


class JudgeServer:
    """A chat server whose ``answer(user text, system text)`` is {token: log-probability}, or a text without any."""

    def __init__(self, answer: Callable[[str, str], dict[str, float] | str]):
        self.answer = answer
        self.model, self.token = "judge", None
        self.asked: list[dict[str, Any]] = []
        self.dies_after = math.inf
        self.url = ""

    def get(self, path: str) -> tuple[int, Any]:
        return 200, {"data": [{"id": self.model}]}

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path != "/v1/chat/completions":
            return 404, {"detail": "Not Found"}
        self.asked.append(body)
        if len(self.asked) > self.dies_after:
            return 500, {"error": {"message": "out of memory"}}
        system, user = (m["content"] for m in body["messages"])
        said = self.answer(user, system)
        if isinstance(said, str):
            return 200, {"choices": [{"message": {"content": said}}]}
        likeliest = max(said, key=lambda token: said[token])
        top = [{"token": token, "logprob": value} for token, value in said.items()]
        logprobs = {"content": [{"token": likeliest, "top_logprobs": top}]}
        return 200, {"choices": [{"message": {"content": likeliest}, "logprobs": logprobs}]}


@contextlib.contextmanager
def serving(server: Any) -> Iterator[Any]:
    """The server in a thread of this process; sets its ``url``, and ``bearer`` to the token of the latest request."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def send(self, status: int, data: Any) -> None:
            if server.token and self.headers.get("Authorization") != f"Bearer {server.token}":
                status, data = 401, {"error": "no"}
            body = json.dumps(data).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.send(*server.get(self.path))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.bearer = self.headers.get("Authorization", "").removeprefix("Bearer ")
            self.send(*server.post(self.path, body))

    class Http(ThreadingHTTPServer):
        request_queue_size = 64  # with fewer, parallel connections wait a second
        daemon_threads = True

    http = Http(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_port}"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
