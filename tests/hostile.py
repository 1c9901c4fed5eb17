"""Hostile visitors: requests that no page sends, to the real app with an endpoint that writes at once.

    python tests/hostile.py --requests 1000 --seed 0

The kinds of requests are in tests/hostile_requests.py. Afterwards the app's log must hold no traceback, every request
must have got an answer, a page that was open all the time must still work, and the app's memory must have grown by less
than a tenth. As many requests come before as a warm-up, because caches and the allocator fill up once. Prints one
table; exits with 1 if a condition does not hold. Takes two minutes on two cores.
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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hostile_requests import KINDS, WAIT, Kind, Site

ROOT = Path(__file__).resolve().parent.parent


def attack(site: Site, kind: Kind, seed: str) -> tuple[str, str]:
    """(kind, outcome) of one request: a status, how its stream ended, or why there was no answer."""
    try:
        return kind.__name__, kind(site, random.Random(seed))
    except TimeoutError:
        return kind.__name__, "STUCK"
    except (OSError, http.client.HTTPException) as error:
        return kind.__name__, type(error).__name__


@contextlib.contextmanager
def site(folder: Path) -> Iterator[Site]:
    """The real app, fully loaded, with an endpoint that writes at once."""
    port, endpoint = _free(), _free()
    instant = [sys.executable, "-m", "tests.servers.instant", str(endpoint), "0.01"]
    environ = os.environ | {
        "PRO_ENDPOINT_URL": f"http://127.0.0.1:{endpoint}",
        "GRADIO_SERVER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    log = folder / "app.log"
    with log.open("wb") as out, contextlib.ExitStack() as stack:
        for command, to in ((instant, subprocess.DEVNULL), ([sys.executable, "app.py"], out)):
            process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=to, stderr=to)
            stack.callback(process.wait)
            stack.callback(process.terminate)
        attacked = Site(port, process, log)
        until = time.monotonic() + 120
        while True:
            try:
                status = attacked.post("call/status", {"data": []}).text()
                attacked.send(
                    "GET", f"/gradio_api/call/status/{json.loads(status)['event_id']}"
                ).text()
                break
            except ConnectionRefusedError:
                if time.monotonic() > until or process.poll() is not None:
                    raise RuntimeError(
                        f"the app did not start: {log.read_text()[-2000:]}"
                    ) from None
                time.sleep(0.2)
        attacked.config = json.loads(attacked.send("GET", "/config").text())
        yield attacked
        for held in attacked.held:
            held.close()


def _free() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def asked(page: Any, prompt: str) -> bool:
    """Whether an open page shows scored answers within a minute of an ordinary question."""
    from playwright.sync_api import TimeoutError as TooLate

    before = page.locator(".board").get_attribute("data-run")
    page.locator("#prompt textarea").fill(prompt)
    page.locator("#ask").click()
    done = f'.board[data-phase="done"][data-busy="false"]:not([data-run="{before}"])'
    try:
        page.locator(done).wait_for(timeout=WAIT * 1000)
    except TooLate:
        return False
    return True


def trial(
    requests: int, seed: int, folder: Path, chromium: str | None, warm: int = 0
) -> dict[str, Any]:
    """Send a warm-up and all requests, four at a time, and report the state of the app afterwards."""
    order = random.Random(seed)
    jobs = [(order.choice(KINDS), f"{seed}-{i}") for i in range(warm + requests)]
    with contextlib.ExitStack() as stack:
        app = stack.enter_context(site(folder))
        page, page_works = None, None
        if chromium:
            from playwright.sync_api import sync_playwright

            play = stack.enter_context(sync_playwright())
            options = ["--no-sandbox", "--disable-gpu"]
            page = play.chromium.launch(executable_path=chromium, args=options).new_page()
            page.goto(app.url)
            page.locator(".board .card").first.wait_for()
            page_works = asked(page, "Before.")
        with ThreadPoolExecutor(4) as pool:
            outcomes = list(pool.map(lambda job: attack(app, *job), jobs[:warm]))
            memory, begun = [app.memory()], time.monotonic()
            for start in range(warm, warm + requests, 250):
                outcomes += pool.map(lambda job: attack(app, *job), jobs[start : start + 250])
                memory.append(app.memory())
        seconds = time.monotonic() - begun
        if page is not None:
            page_works = asked(page, "After.") and page_works
        log = app.log.read_text(errors="replace")
    bad = ("STUCK", "no end", "IncompleteRead", "RemoteDisconnected")
    failed = [o for _, o in outcomes if o in bad or (o.startswith("5") and o != "503")]
    return {
        "outcomes": Counter(outcomes[warm:]),
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
        report = trial(options.requests, options.seed, Path(folder), chromium, options.requests)
    print(f"{'kind':18}{'sent':>5}  outcomes")
    for kind in KINDS:
        counts = {o: n for (k, o), n in report["outcomes"].items() if k == kind.__name__}
        listed = ", ".join(f"{o} {n}" for o, n in sorted(counts.items()))
        print(f"{kind.__name__:18}{sum(counts.values()):5}  {listed}")
    memory = report["memory"]
    flat = memory[-1] < 1.1 * memory[0]
    page = {None: "was not tested: no chromium", True: "works", False: "IS STUCK"}
    shown = ", ".join(f"{m:.0f}" for m in memory)
    print(f"{options.requests} requests after as many others, {report['seconds']:.0f} s")
    print(f"tracebacks: {report['tracebacks']}; stuck, cut off or 5xx: {report['failed']}")
    print(f"memory after the warm-up and each 250, MiB: {shown}; the page {page[report['page']]}")
    if report["tracebacks"]:
        kept = Path(tempfile.gettempdir()) / "hostile_app.log"
        kept.write_text(report["log"])
        print(f"the app's log: {kept}")
    bad = report["tracebacks"] or report["failed"] or report["page"] is False or not flat
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
