"""The time that the app adds to an endpoint's first token, by part, for one visitor; this checkout and an earlier one.

    python tests/bench_overhead.py --before COMMIT

The endpoint writes at once, so all waiting is the app's. Measured twice: by a script that speaks to the app as the page
does, and by the page itself in Chromium. Prints milliseconds, medians over questions that all differ.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import httpx2

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.bench_load import QUESTIONS, ROOT, Page, Tally, app_and_endpoint, checkout, event

WATCH = """() => {
  const times = window.times = {};
  document.addEventListener("click", () => { times.click = Date.now(); }, true);
  const board = document.querySelector(".board");
  const look = () => {
    if (!times.click || board.dataset.run === times.old) return;
    times.weights ??= Date.now();
    if ([...board.querySelectorAll(".card .text")].some((t) => t.textContent)) times.text ??= Date.now();
  };
  new MutationObserver(look).observe(board, { subtree: true, childList: true, characterData: true, attributes: true });
}"""
FRESH = """() => {
  for (const name of Object.keys(window.times)) delete window.times[name];
  window.times.old = document.querySelector(".board").dataset.run;
}"""


def arrivals(endpoint: str) -> dict[str, float]:
    """The time when the endpoint first saw each question, by the question's last word."""
    first: dict[str, float] = {}
    for when, word in httpx2.get(f"{endpoint}/seen", trust_env=False).json()["seen"]:
        first.setdefault(word, when)
    return first


async def by_script(base: str, endpoint: str, count: int) -> dict[str, float]:
    """Median times after the request until the endpoint has it, and weights, the first text and scores are back."""
    rows: dict[str, list[float]] = {"request": [], "weights": [], "text": [], "scores": []}
    asked: dict[str, float] = {}
    async with aiohttp.ClientSession(read_bufsize=2**20) as web:
        async with web.get(f"{base}/config") as answer:
            page = Page(await answer.json())
        for number in range(count):
            word = f"script-{number}"
            prompt = f"{QUESTIONS[number % len(QUESTIONS)]} {word}"
            begun = asked[word] = time.time()
            steps, inputs = {}, page.data(prompt, page.run)
            async for value, last in event(web, base, "s", page.ask["id"], inputs, Tally()):
                now = time.time() - begun
                steps.setdefault("weights", now)
                if isinstance(value, list) or any(c["text"] for c in value["candidates"]):
                    steps.setdefault("text", now)
                if last:
                    steps["scores"] = now
            for name, seconds in steps.items():
                rows[name].append(seconds)
            await asyncio.sleep(0.5)
    first = arrivals(endpoint)
    rows["request"] = [first[word] - begun for word, begun in asked.items()]
    return {name: 1000 * statistics.median(values) for name, values in rows.items()}


def by_browser(base: str, endpoint: str, count: int, browser: Any) -> dict[str, float]:
    """Median times after the click until the endpoint has the request, and weights and the first text are drawn."""
    page = browser.new_page()
    page.goto(base)
    for part in ("#ask", ".board .card"):
        page.locator(part).first.wait_for()
    page.evaluate(WATCH)
    rows: dict[str, list[float]] = {"request": [], "weights": [], "text": []}
    clicks: dict[str, float] = {}
    for number in range(count):
        word = f"browser-{number}"
        page.locator("#prompt textarea").fill(f"{QUESTIONS[number % len(QUESTIONS)]} {word}")
        page.evaluate(FRESH)
        page.locator("#ask").click()
        page.wait_for_function("window.times.text")
        page.locator('.board[data-phase="done"][data-busy="false"]').wait_for()
        times = page.evaluate("window.times")
        clicks[word] = times["click"] / 1000
        for name in ("weights", "text"):
            rows[name].append((times[name] - times["click"]) / 1000)
        page.wait_for_timeout(500)
    first = arrivals(endpoint)
    rows["request"] = [first[word] - begun for word, begun in clicks.items()]
    return {name: 1000 * statistics.median(values) for name, values in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--before", help="a commit to measure first, in the same run")
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    print("| app | by | the endpoint has the request | weights | first text | scores |")
    print("|---|---|---|---|---|---|", flush=True)
    with ExitStack() as stack:
        sides = [("now", ROOT)]
        if options.before:
            sides.insert(0, (options.before[:7], stack.enter_context(checkout(options.before))))
        for name, folder in sides:
            with app_and_endpoint(folder) as (base, endpoint, _):
                medians = asyncio.run(by_script(base, endpoint, options.questions))
                print(row(name, "script", medians), flush=True)
                with sync_playwright() as play:
                    browser = play.chromium.launch(
                        executable_path=options.chromium, args=["--no-sandbox", "--disable-gpu"]
                    )
                    seen = by_browser(base, endpoint, options.questions, browser)
                    browser.close()
                print(row(name, "browser", seen), flush=True)


def row(name: str, by: str, medians: dict[str, float]) -> str:
    cells = [
        f"{medians[k]:.0f} ms" if k in medians else ""
        for k in ("request", "weights", "text", "scores")
    ]
    return "| " + " | ".join([name, by, *cells]) + " |"


if __name__ == "__main__":
    main()
