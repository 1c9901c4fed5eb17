"""How soon each of many visitors gets weights, for this checkout and an earlier one, in one run.

    python tests/bench_load.py --visitors 1 50 200 --seconds 300 --before COMMIT

Runs three processes on one machine: an endpoint that writes at once, the app, and this one, whose visitors speak to the
app as the page does. Each thinks for 1 to 3 seconds, asks for four answers, reads until they are scored, and thinks
again. So only the app is measured: its event loop, its small models, its queue. `overhead` is the time from the
visitor's request until the endpoint has the app's request, by one clock.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).resolve().parent.parent
QUESTIONS = (
    "How do I get a red wine stain out of a white tablecloth?",
    "Tell me a joke about a cat who works in an office.",
    "I failed an important exam and I feel worthless. What should I do?",
    "Is it true that we only use ten percent of our brain?",
)
INPUTS = {"Answers": 4, "Longest answer, in tokens": 160}  # what the page's inputs hold, by label


@dataclass
class Tally:
    """The measurements of one round; times in seconds."""

    weights: list[float] = field(default_factory=list)
    answers: list[float] = field(default_factory=list)
    asked: dict[str, float] = field(default_factory=dict)  # when, by the prompt's last word
    refused: int = 0
    failed: int = 0
    full: int = 0  # visitors who were told that the queue is full
    opening: list[float] = field(default_factory=list)  # a new visitor's status line
    memory: list[float] = field(default_factory=list)  # the app's, in MB
    overhead: list[float] = field(default_factory=list)
    cpu: float = 0.0  # of the app's process


class Page:
    """The app's events as the page knows them."""

    def __init__(self, config: dict[str, Any]):
        self.parts = {c["id"]: c for c in config["components"]}
        ids = {c["props"].get("elem_id"): c["id"] for c in config["components"]}
        self.ask = self.find(config, ids["ask"], "click")
        self.load = next(
            d for d in config["dependencies"] if any(t[1] == "load" for t in d["targets"])
        )
        self.run = self.parts[ids["board"]]["props"]["value"]

    @staticmethod
    def find(config: dict[str, Any], part: int, event: str) -> dict[str, Any]:
        return next(d for d in config["dependencies"] if [part, event] in map(list, d["targets"]))

    def data(self, prompt: str, run: Any) -> list[Any]:
        """The inputs of a question."""
        values = []
        for number in self.ask["inputs"]:
            props = self.parts[number]["props"]
            if props.get("elem_id") == "prompt":
                values.append(prompt)
            elif props.get("elem_id") == "board":
                values.append(run)
            elif props.get("label") in INPUTS:
                values.append(INPUTS[props["label"]])
            else:
                values.append(props.get("value"))
        return values


async def event(
    web: aiohttp.ClientSession, base: str, session: str, fn: int, data: list[Any], tally: Tally
) -> Any:
    """Send one event and yield its news: (the output's first value, whether it is the last)."""
    body = {"data": data, "fn_index": fn, "session_hash": session, "trigger_id": 1}
    async with web.post(f"{base}/gradio_api/queue/join", json=body) as joined:
        if joined.status != 200:
            tally.refused += 1
            return
    url = f"{base}/gradio_api/queue/data?session_hash={session}"
    async with web.get(url) as stream:
        async for line in stream.content:
            if not line.startswith(b"data:"):
                continue
            message = json.loads(line[5:])
            last = message["msg"] == "process_completed"
            if message["msg"] not in ("process_generating", "process_completed"):
                continue
            if not message["success"]:
                tally.failed += 1
                return
            yield message["output"]["data"][0] if message["output"].get("data") else None, last
            if last:
                return


async def visitor(
    web: aiohttp.ClientSession, base: str, page: Page, number: int, until: float, tally: Tally
) -> None:
    chance = random.Random(number)
    session, run = f"visitor{number}", page.run
    await asyncio.sleep(chance.uniform(0, 3))
    begun = time.time()
    async for line, last in event(web, base, f"{session}-0", page.load["id"], [], tally):
        if last or line:
            tally.opening.append(time.time() - begun)
            break
    turn = 0
    while True:
        await asyncio.sleep(chance.uniform(1, 3))
        if time.time() > until:
            return
        turn += 1
        word = f"{number}-{turn}"
        prompt = f"{chance.choice(QUESTIONS)} {word}"
        begun = tally.asked[word] = time.time()
        seen = False
        inputs = page.data(prompt, run)
        try:
            async with asyncio.timeout(240):
                async for value, last in event(web, base, session, page.ask["id"], inputs, tally):
                    whole = isinstance(value, dict) and value.get("predicted")
                    if whole and not seen and value["messages"][-1]["content"] == prompt:
                        seen = True
                        tally.weights.append(time.time() - begun)
                    if last and whole:
                        run = value
                        scored = any(c["z"] for c in run["candidates"])
                        tally.answers.append(time.time() - begun) if scored else None
                        tally.full += not scored
        except TimeoutError:
            tally.failed += 1


def memory(pid: int) -> float:
    """Resident memory of a process in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return (
        int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
        / 1024
    )


def cpu(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    times = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return sum(map(int, times)) / os.sysconf("SC_CLK_TCK")


async def round_of(base: str, endpoint: str, pid: int, visitors: int, seconds: float) -> Tally:
    tally, page = Tally(), None
    limits = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=limits, read_bufsize=2**20) as web:
        async with web.get(f"{base}/config") as answer:
            page = Page(await answer.json())
        until, before = time.time() + seconds, cpu(pid)
        people = [
            asyncio.create_task(visitor(web, base, page, number, until, tally))
            for number in range(visitors)
        ]
        while not all(one.done() for one in people):
            tally.memory.append(memory(pid))
            await asyncio.wait(people, timeout=max(1.0, seconds / 20))
        await asyncio.gather(*people)
        tally.cpu = cpu(pid) - before
        async with web.get(f"{endpoint}/seen") as answer:
            seen = (await answer.json())["seen"]
    tally.overhead = [
        min(t for t, w in seen if w == word) - begun
        for word, begun in tally.asked.items()
        if any(w == word for _, w in seen)
    ]
    return tally


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def process(command: list[str], folder: Path, url: str, **settings: str) -> Iterator[int]:
    """A server in a separate process, once it answers."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("PRO_")} | settings
    with tempfile.TemporaryFile("w+") as log:
        running = subprocess.Popen(command, cwd=folder, env=environ, stdout=log, stderr=log)
        try:
            while running.poll() is None:
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), 1).close()
                    break
                time.sleep(0.2)
            yield running.pid
            log.seek(0)
            tracebacks = log.read().count("Traceback")
            if tracebacks:
                print(f"{tracebacks} tracebacks in the log of {command[1]}", flush=True)
        finally:
            running.terminate()
            running.wait(30)


async def ready(base: str) -> None:
    """Wait until the app gives weights."""
    from gradio_client import Client

    client = await asyncio.to_thread(Client, base, verbose=False)
    await asyncio.to_thread(client.predict, "Hello", api_name="/predict_weights")


@contextlib.contextmanager
def app_and_endpoint(folder: Path) -> Iterator[tuple[str, str, int]]:
    """(the app's address, the endpoint's, the app's process) of a checkout, once it gives weights."""
    base, endpoint = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    server = [sys.executable, str(ROOT / "tests/servers/instant.py"), endpoint.rsplit(":")[-1]]
    settings = {
        "PRO_ENDPOINT_URL": endpoint,
        "PRO_ENDPOINT_MODEL": "instant",
        "GRADIO_SERVER_PORT": base.rsplit(":")[-1],
    }
    app = process([sys.executable, "app.py"], folder, base, **settings)
    with process(server, ROOT, endpoint), app as pid:
        asyncio.run(ready(base))
        yield base, endpoint, pid


def measure(name: str, folder: Path, visitors: list[int], seconds: float) -> None:
    for count in visitors:
        with app_and_endpoint(folder) as (base, endpoint, pid):
            tally = asyncio.run(round_of(base, endpoint, pid, count, seconds))
        print(row(name, count, tally), flush=True)


@contextlib.contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """An earlier commit in a separate folder."""
    with tempfile.TemporaryDirectory() as folder:
        earlier = Path(folder) / "earlier"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(earlier)], check=True)
        subprocess.run(["git", "checkout", "-q", commit], cwd=earlier, check=True)
        yield earlier


def row(name: str, count: int, tally: Tally) -> str:
    def p(values: list[float], q: int) -> str:
        if len(values) < 2:
            return "-"
        return f"{statistics.quantiles(values, n=100, method='inclusive')[q - 1]:.2f}"

    grown = tally.memory[-1] - tally.memory[len(tally.memory) // 4]
    cells = [
        name,
        count,
        len(tally.asked),
        p(tally.weights, 50),
        p(tally.weights, 95),
        p(tally.answers, 50),
        p(tally.overhead, 50),
        p(tally.opening, 50),
        len(tally.answers),
        tally.full,
        tally.refused,
        tally.failed,
        f"{1000 * tally.cpu / max(1, len(tally.asked)):.0f}",
        f"{tally.memory[-1]:.0f} ({grown:+.0f})",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


HEAD = (
    "| app | visitors | asked | weights p50 s | p95 | answers p50 s | overhead p50 s | status line p50 s | answered "
    "| told full | refused | failed | CPU ms a question | memory MB (last three quarters) |"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--visitors", type=int, nargs="+", default=[1, 50, 200])
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--before", help="a commit to measure first, in the same run")
    options = parser.parse_args()
    print(HEAD, "|---" * HEAD.count(" | ") + "|---|", sep="\n", flush=True)
    if options.before:
        with checkout(options.before) as earlier:
            measure(options.before[:7], earlier, options.visitors, options.seconds)
    measure("now", ROOT, options.visitors, options.seconds)


if __name__ == "__main__":
    main()
