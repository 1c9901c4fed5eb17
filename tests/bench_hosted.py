"""How many texts per second a hosted reward model is asked about, beside a bare HTTP client in the same run.

    python tests/bench_hosted.py [--texts 400] [--rounds 3]

The server is ours, in another process: it takes 20 ms for a text, eight at once, so its own limit is 400 texts per
second. Prints the median of alternating rounds for each concurrency.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import time

import httpx2

from pro_core.rewards.endpoint import HostedModel
from pro_core.rewards.specs import RewardModelSpec

PAUSE, AT_ONCE = 0.02, 8


def serve(port: multiprocessing.Queue) -> None:
    """vLLM's shapes: a list of models, and one score for a conversation."""

    async def main() -> None:
        gate = asyncio.Semaphore(AT_ONCE)

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower():
                lines = dict(x.split(": ", 1) for x in head.split("\r\n")[1:] if ": " in x)
                await reader.readexactly(int(lines.get("content-length", 0)))
                answer: dict = {"data": [{"id": "rm"}]}
                if head.startswith("post"):
                    async with gate:
                        await asyncio.sleep(PAUSE)
                    answer = {"data": [{"index": 0, "probs": [1.5], "num_classes": 1}]}
                body = json.dumps(answer).encode()
                start = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(start.encode() + body)
                await writer.drain()

        async def until_it_leaves(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            try:
                await handle(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError):
                writer.close()

        server = await asyncio.start_server(until_it_leaves, "127.0.0.1", 0)
        port.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


async def bare(url: str, bodies: list[dict], concurrency: int) -> None:
    left = list(bodies)
    async with httpx2.AsyncClient(limits=httpx2.Limits(max_connections=None)) as client:

        async def work() -> None:
            while left:
                (await client.post(f"{url}/classify", json=left.pop())).json()

        await asyncio.gather(*(work() for _ in range(concurrency)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    ports: multiprocessing.Queue = multiprocessing.Queue()
    process = multiprocessing.Process(target=serve, args=(ports,), daemon=True)
    process.start()
    url, N = f"http://127.0.0.1:{ports.get()}", options.texts
    turns = [[{"role": "user", "content": f"Question {i}?"}] for i in range(N)]
    texts = [f"answer {i} " * 20 for i in range(N)]
    bodies = [
        {"messages": [*t, {"role": "assistant", "content": text}]}
        for t, text in zip(turns, texts, strict=True)
    ]
    print("concurrency  texts/s  bare client  ratio")
    for concurrency in (1, 4, 8, 16, 32):
        spec = RewardModelSpec("rm", endpoint=url, input_format="chat", concurrency=concurrency)
        model, rates = HostedModel(spec), []
        for _ in range(options.rounds):
            begun = time.monotonic()
            model.score(turns, texts)
            ours = time.monotonic()
            asyncio.run(bare(url, bodies, concurrency))
            rates.append((N / (ours - begun), N / (time.monotonic() - ours)))
        one, other = (statistics.median(column) for column in zip(*rates, strict=True))
        print(f"{concurrency:11}  {one:7.0f}  {other:11.0f}  {one / other:5.2f}", flush=True)
    process.terminate()


if __name__ == "__main__":
    main()
