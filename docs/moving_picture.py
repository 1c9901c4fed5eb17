"""Make the README's moving picture: a slider moves, and another answer wins.

    python docs/moving_picture.py

Starts the page without any model (the recorded runs need none), moves a slider to where another answer wins and back,
in Chromium, and writes docs/figures/moving_picture.gif. Needs the packages of requirements-dev.txt and Chromium
(`apt-get install chromium`).
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
WIDTH, HEIGHT = 1280, 800
FRAME = 100  # ms
COLOURS = 256
LARGEST = 2 * 2**20  # bytes
FAR, BEYOND = 25, 8  # hundredths that the slider moves to the change, and past it
POINTER = """() => {
  const arrow = document.createElement("div");
  arrow.innerHTML = '<svg width="22" height="30" viewBox="0 0 11 15"><path d="M0 0v13l3-3 2 5 2-1-2-5h4z" ' +
    'fill="#111" stroke="#fff"/></svg>';
  arrow.style.cssText = "position: fixed; z-index: 99999; pointer-events: none; line-height: 0";
  document.body.append(arrow);
  addEventListener("mousemove", (e) => { arrow.style.left = `${e.clientX}px`; arrow.style.top = `${e.clientY}px`; });
}"""


def change(page: Any) -> tuple[int, int, int]:
    """(slider, where it stands, where to move it): to where another answer wins, about `FAR` hundredths away."""
    state = "window.proBoard.state"
    values = page.evaluate(f"{state}.values")
    ways = []
    for k, value in enumerate(values):
        stretches = page.evaluate(f"{state}.stretches({k})")
        here = next(n for n, s in enumerate(stretches) if s["from"] <= value <= s["to"])
        for n, edge, sign in ((here - 1, "to", -1), (here + 1, "from", 1)):
            if 0 <= n < len(stretches):
                place = stretches[n][edge]
                goal = min(max(place + sign * BEYOND, stretches[n]["from"]), stretches[n]["to"])
                ways.append((abs(abs(place - value) - FAR), k, value, goal))
    if not ways:
        raise SystemExit("no slider changes the winner of the run that the page opens on")
    return min(ways)[1:]


def steps(page: Any) -> Iterator[None]:
    """Move the pointer; each step is a frame."""
    k, start, goal = change(page)
    slider = page.locator(".weight input").nth(k)
    area = slider.bounding_box()
    y = area["y"] + area["height"] / 2

    def x(value: float) -> float:
        return area["x"] + 9 + (area["width"] - 18) * value / 100

    def glide(count: int, a: tuple[float, float], b: tuple[float, float]) -> Iterator[None]:
        for n in range(1, count + 1):
            part = n / count
            eased = part * part * (3 - 2 * part)
            page.mouse.move(*(p + (q - p) * eased for p, q in zip(a, b, strict=True)))
            yield

    away = (area["x"] + area["width"] + 260, y)  # over an answer, which takes no notice
    page.mouse.move(*away)
    for _ in range(10):
        yield
    yield from glide(10, away, (x(start), y))
    page.mouse.down()
    yield from glide(20, (x(start), y), (x(goal), y))
    for _ in range(14):
        yield
    yield from glide(14, (x(goal), y), (x(start), y))
    page.mouse.up()
    for _ in range(12):  # 80 frames in all
        yield


def film(url: str, chromium: str) -> list[Image.Image]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        context = browser.new_context(
            viewport={"width": WIDTH, "height": HEIGHT}, reduced_motion="reduce"
        )
        page = context.new_page()
        page.goto(url)
        page.locator("#examples button").first.wait_for()
        page.locator(".strip i").first.wait_for()
        page.evaluate(POINTER)
        frames, winners = [], ""
        for _ in steps(page):
            page.evaluate("() => new Promise(requestAnimationFrame)")
            frames.append(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
            winner = page.evaluate("document.querySelector('.board').dataset.winners[1]")
            winners += winner if not winners.endswith(winner) else ""
        browser.close()
    print(f"{len(frames)} frames; who wins: {' then '.join(winners)}")
    return frames


def save(frames: list[Image.Image], path: Path) -> None:
    """An endless GIF. All frames share the colours of the middle one, in which the other answer wins."""
    palette = frames[len(frames) // 2].quantize(COLOURS, dither=Image.Dither.NONE)
    drawn = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    shown, times = [drawn[0]], [0]
    for frame in drawn:
        if frame.tobytes() == shown[-1].tobytes():
            times[-1] += FRAME
        else:
            shown.append(frame)
            times.append(FRAME)
    shown[0].save(path, save_all=True, append_images=shown[1:], duration=times, loop=0)
    size = path.stat().st_size
    print(f"{path}: {len(shown)} different frames, {sum(times) / 1000:.1f} s, {size / 1e6:.2f} MB")
    if size > LARGEST:
        raise SystemExit(f"got {size:,} bytes, expected at most {LARGEST:,}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--output", type=Path, default=ROOT / "docs" / "figures" / "moving_picture.gif"
    )
    output = parser.parse_args().output
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    if chromium is None:
        raise SystemExit(f"found no Chromium ({', '.join(names)}): apt-get install chromium")
    import app
    from ui.models import Models

    app.keep_loopback_direct(os.environ)
    page = app.build(Models({}))
    _, url, _ = page.launch(prevent_thread_lock=True, **app.launch_settings() | {"quiet": True})
    frames = film(url, chromium)
    page.close()
    save(frames, output)


if __name__ == "__main__":
    main()
