"""The page in a real Chromium: what a visitor sees and does. No test waits for a fixed time."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import app
import ui.values as values_module
from pro_core.generation.base import run_sync
from ui.models import Models
from ui.recorded import EXAMPLES, load_recorded
from ui.values import STALE

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect
expect.set_options(timeout=150_000)  # slow machines; nothing waits longer than it must
pytestmark = pytest.mark.browser

ROOT = Path(__file__).parent.parent
HOSTILE = (
    '<img src=x onerror="window.hacked=1"> ${window.hacked=1} `${window.hacked=1}` {{value}} '
    "</script><script>window.hacked=1</script> \\u0041 \\ \\\\ \u202eevil\u202c <!-- \0 ]]> &lt;b&gt;"
)
WINNERS = "document.querySelector('.board').dataset.winners"


@pytest.fixture(
    scope="module"
)  # one for the whole session would leave its event loop running during later tests
def browser(chromium: str) -> Iterator:
    with sync_api.sync_playwright() as play:
        chrome = play.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        yield chrome
        chrome.close()


@pytest.fixture
def visit(browser, served) -> Iterator[Callable]:
    """visit(width, height, scheme, url) opens the page and waits until the status line is complete."""
    contexts, problems = [], []

    def opened(width=1280, height=800, scheme="light", url=served[0], loaded=True):
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            reduced_motion="reduce",
        )
        context.set_default_timeout(150_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        with page.expect_request("**/queue/data*"):  # the page asks for its status line by itself
            page.goto(url)
        expect(page.locator(".board .card").first).to_be_visible()
        if loaded:
            expect(page.locator(".status")).not_to_contain_text("loading")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []


def values(page) -> list[int]:
    return page.locator(".weight input").evaluate_all(
        "(sliders) => sliders.map((s) => Number(s.value))"
    )


def recorded() -> dict:
    """The run that the page opens on."""
    return load_recorded()[0]


def changing(page) -> int:
    """The first slider on which the winner changes."""
    counts = page.locator(".strip").evaluate_all("(all) => all.map((s) => s.childElementCount)")
    return next(k for k, count in enumerate(counts) if count > 1)


def box(locator) -> dict[str, float]:
    rectangle = locator.bounding_box()
    assert rectangle is not None
    return rectangle


def ask(page, prompt: str, tokens: int | None = None) -> None:
    if tokens:
        set_tokens(page, tokens)
    page.locator("#prompt textarea").fill(prompt)
    page.locator("#ask").click()


def set_tokens(page, tokens: int) -> None:
    page.get_by_role("button", name="Options").click()
    number = page.get_by_role("spinbutton", name=re.compile("Longest answer"))
    number.fill(str(tokens))
    number.press("Tab")


def stop(page) -> None:
    """Press the button once it stops; it does not within a moment of the click that asked."""
    expect(page.locator("#ask")).to_have_text("Stop")
    page.locator("#ask").click()


def numbers(page) -> None:
    page.get_by_role("button", name="Numbers").click()


def finished(page) -> None:
    expect(page.locator('.board[data-phase="done"][data-busy="false"]')).to_be_visible()


# ---------------------------------------------------------------- sliders


def test_opens_on_the_recorded_run_and_sliders_rank_without_the_server(visit) -> None:
    page, run = visit(), recorded()
    expect(page.locator(".note")).to_contain_text("recorded run")
    expect(page.locator(".note")).to_contain_text(run["model"])
    page.wait_for_load_state("networkidle")
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    scores_NK = np.array([c["z"] for c in run["candidates"]])
    seen = set()
    for k, slider in enumerate(page.locator(".weight input").all()):
        slider.press("End")
        assert values(page) == [100 if j == k else 0 for j in range(len(run["objectives"]))]
        best = "ABCDEFGH"[int(scores_NK[:, k].argmax())]
        assert page.evaluate(WINNERS)[1] == best
        expect(page.locator(".card.winner .letter")).to_have_text(best)
        order = page.evaluate("document.querySelector('.board').dataset.order")
        assert order == "".join("ABCDEFGH"[i] for i in np.argsort(-scores_NK[:, k], kind="stable"))
        seen.add(best)
    assert len(seen) > 1  # the recorded run does show that weights matter
    page.get_by_role("button", name="PRO’s guess").click()
    expect(page.get_by_role("button", name="Write again")).to_be_hidden()
    np.testing.assert_allclose(np.array(values(page)) / 100, run["predicted"], atol=0.011)
    page.get_by_role("button", name="All equal").click()
    assert max(values(page)) - min(values(page)) <= 1
    assert requests == []


def test_chips_switch_between_recorded_runs_at_once_and_without_the_server(visit, quick) -> None:
    page, runs = visit(url=quick[0], loaded=False), load_recorded()
    page.wait_for_load_state("networkidle")
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    chips = page.locator("#examples button")
    page.locator(".weight input").first.press("End")
    for i in (4, 1, 0, 5):
        chips.nth(i).click()
        expect(page.locator(".board")).to_have_attribute("data-run", runs[i]["id"])
        expect(chips.nth(i)).to_have_attribute("aria-pressed", "true")
        expect(page.locator('#examples [aria-pressed="true"]')).to_have_count(1)
        expect(page.locator("#prompt textarea")).to_have_value(EXAMPLES[i][1])
        expect(page.locator(".note")).to_have_text(runs[i]["note"])
        assert answers(page) == [one["text"] for one in runs[i]["candidates"]]
        np.testing.assert_allclose(np.array(values(page)) / 100, runs[i]["predicted"], atol=0.011)
    assert requests == []
    page.go_back()
    expect(page.locator(".board")).to_have_attribute("data-run", runs[0]["id"])
    expect(page.locator("#prompt textarea")).to_have_value(EXAMPLES[0][1])
    page.locator("#ask").click()  # runs it live
    finished(page)
    assert EXAMPLES[0][1][:30] in answers(page)[0]
    expect(page.locator('#examples [aria-pressed="true"]')).to_have_count(0)


def test_keyboard_keeps_the_sum(visit) -> None:
    page = visit()
    page.get_by_role("button", name="All equal").click()
    first = page.locator(".weight input").first
    before = values(page)[0]
    for key, change in (("ArrowRight", 1), ("ArrowUp", 1), ("ArrowLeft", -1), ("PageUp", 10)):
        first.press(key)
        assert values(page)[0] == (before := before + change)
        assert sum(values(page)) == 100
    first.press("Home")
    assert values(page)[0] == 0
    assert sum(values(page)) == 100
    expect(first).to_be_focused()
    expect(page.locator(".weight output").first).to_have_text("0%")


def test_dragging_there_and_back_restores_the_other_sliders(visit) -> None:
    page = visit()
    before = values(page)
    area = box(page.locator(".weight input").nth(1))
    y, x = area["y"] + area["height"] / 2, lambda v: area["x"] + 8 + (area["width"] - 16) * v / 100
    page.mouse.move(x(before[1]), y)
    page.mouse.down()
    for v in (before[1], 100, 95, 100, 20, before[1]):
        page.mouse.move(x(v), y)
        assert sum(values(page)) == 100
    page.mouse.up()
    assert values(page) == before


def test_a_locked_weight_stays(visit) -> None:
    page = visit()
    before = values(page)
    page.locator(".lock").nth(1).click()
    expect(page.locator(".weight input").nth(1)).to_be_disabled()
    page.locator(".weight input").nth(0).press("End")
    assert values(page)[1] == before[1]
    assert values(page)[0] == 100 - before[1]
    page.get_by_role("button", name="All equal").click()
    assert values(page)[1] == before[1]
    page.locator(".lock").nth(1).click()
    expect(page.locator(".weight input").nth(1)).to_be_enabled()


def test_the_owners_floor_is_drawn_and_holds(visit) -> None:
    models = Models({**os.environ, "PRO_FLOORS": "harmless=0.35"})
    models.generator.load = lambda: None  # type: ignore[attr-defined]
    models.load()
    demo = app.build(models)
    _, url, _ = demo.launch(prevent_thread_lock=True, **app.launch_settings() | {"quiet": True})
    page, k = visit(url=url, loaded=False), recorded()["objectives"].index("harmless")
    page.locator(".weight input").nth(k).press("Home")
    assert values(page)[k] == 35
    page.locator(".weight input").nth(0).press("End")
    assert values(page)[k] == 35 and values(page)[0] == 65
    row = page.locator(".weight").nth(k)
    track, floor, bar = (box(row.locator(q)) for q in (".track", ".floor", ".bar"))
    assert floor["width"] / track["width"] == pytest.approx(0.35, abs=0.01)
    assert bar["width"] / track["width"] >= 0.345  # the predicted weight is under the floor too
    expect(page.locator(".legend").first).to_contain_text("owner's minimum")
    page.close()  # its status line never ends here, and a server that closes first is an error
    demo.close()


# ---------------------------------------------------------------- why


def paste(page, prompt: str) -> None:
    """Score two answers to a prompt: a whole run without the language model."""
    page.locator("#prompt textarea").fill(prompt)
    boxes = page.locator("#paste textarea")
    if not boxes.first.is_visible():
        page.get_by_role("button", name="Score answers of your own").click()
    boxes.nth(0).fill("Use cold water.")
    boxes.nth(1).fill("I do not know.")
    page.evaluate("document.querySelector('.note').textContent = ''")
    page.locator("#score-own").click()
    expect(page.locator(".note")).to_contain_text("Your own answers")


def test_each_weight_shows_its_interval_under_the_floors(visit, uncertain) -> None:
    url, models = uncertain
    page, prompt = visit(url=url, loaded=False), "How do I kill a Python process?"
    paste(page, prompt)
    expect(page.locator(".range").first).to_be_hidden()
    numbers(page)
    expect(page.locator(".weights .legend")).to_contain_text("likely range")
    predicted = run_sync(models.predict([{"role": "user", "content": prompt}]))
    likely = f"likely {100 * predicted.lower[0]:.0f} to {100 * predicted.upper[0]:.0f}%"
    first = page.locator(".weight input").first  # until then the recorded run's
    expect(first).to_have_attribute("aria-valuetext", re.compile(likely))
    expect(page.locator(".range").first).to_be_visible()
    page.evaluate("Promise.all(document.getAnimations().map((a) => a.finished))")
    for k, row in enumerate(page.locator(".weight").all()):
        track, drawn = box(row.locator(".track")), box(row.locator(".range"))
        left, right = drawn["x"] - track["x"], drawn["x"] + drawn["width"] - track["x"]
        assert left / track["width"] == pytest.approx(predicted.lower[k], abs=0.01)
        assert right / track["width"] == pytest.approx(predicted.upper[k], abs=0.01)
        spoken = row.locator("input").get_attribute("aria-valuetext")
        assert f"likely {100 * predicted.lower[k]:.0f} to {100 * predicted.upper[k]:.0f}%" in spoken
    assert min(predicted.lower - np.minimum(models.floors, predicted.weights)) >= 0
    expect(page.locator(".unlike")).to_be_hidden()


def test_an_adapter_without_intervals_draws_none(visit) -> None:
    models = Models({**os.environ, "PRO_ADAPTER": "none"})
    models.generator.load = lambda: None  # type: ignore[attr-defined]
    models.load()
    demo = app.build(models)
    _, url, _ = demo.launch(prevent_thread_lock=True, **app.launch_settings() | {"quiet": True})
    page = visit(url=url, loaded=False)
    paste(page, "How do I kill a Python process?")
    expect(page.locator(".range").first).to_be_hidden()
    expect(page.locator(".why")).to_be_hidden()
    expect(page.locator(".unlike")).to_be_hidden()
    page.close()  # its status line never ends here, and a server that closes first is an error
    demo.close()


def test_pointing_at_an_objective_shows_the_words_behind_its_weight(visit, uncertain) -> None:
    url, models = uncertain
    page, prompt = (
        visit(url=url, loaded=False),
        "🙂🙂 How do I kill a Python process, in <b>Rome</b>?",
    )
    paste(page, prompt)
    _, explanation = run_sync(models.explain([{"role": "user", "content": prompt}]))
    largest = int(run_sync(models.predict([{"role": "user", "content": prompt}])).weights.argmax())
    names, requests = models.panel.objective_names, []
    expect(page.locator(".why b")).to_have_text(names[largest].capitalize())
    page.on("request", lambda request: requests.append(request.url))
    for k, name in enumerate(names):
        label = page.locator(".weight label").nth(k)
        # A mouse points, a keyboard moves the focus, a finger taps.
        (label.hover, page.locator(".weight input").nth(k).focus, label.click)[k % 3]()
        expect(page.locator(".why b")).to_have_text(name.capitalize())
        expect(page.locator(".why q")).to_have_text(prompt)
        for tone, sign in (("high", 1), ("low", -1)):
            expected = [
                w.text
                for w, e in zip(explanation.words, explanation.effects[:, k], strict=True)
                if sign * e > 0.0051
            ]
            shown = page.locator(f".why q .word.{tone}").all_text_contents()
            assert set(expected) <= set(shown)
        described = (
            page.locator(".weight input").nth(k).get_attribute("aria-describedby").split()[1]
        )
        raised = [w.text for w, e in explanation.of(name)[:5] if e >= 0.01]
        expect(page.locator(f"#{described}")).to_have_text(
            re.compile(
                f"{name.capitalize()} was raised by {re.escape(', '.join(raised) or 'no word')}"
            )
        )
    assert page.locator(".why b").count() == 1  # Rome's are text
    assert requests == []


def test_a_strange_prompt_gets_a_warning(visit, uncertain) -> None:
    page = visit(url=uncertain[0], loaded=False)
    paste(page, "如何去除红酒渍? 🐶🎂🎈")
    expect(page.locator(".unlike")).to_have_text(
        re.compile("unlike those the adapter learned from")
    )
    paste(page, "How do I kill a Python process?")
    expect(page.locator(".unlike")).to_be_hidden()


def test_words_and_warning_leave_room_for_the_winner(visit, uncertain) -> None:
    page = visit(url=uncertain[0], loaded=False)
    prompt = (
        "Please tell me how to paint the sea before my sister comes to the party tonight with an old cat, two red "
        "paintings and three friends from the office who always ask me what I think about Python, the weather in "
        "Rome, expensive wine and the long exam that I failed last summer."
    )
    paste(page, prompt)
    page.get_by_role("button", name="Score answers of your own").click()
    expect(page.locator(".why q .word").first).to_be_attached()
    page.mouse.move(5, 5)  # away from the sliders, which draw again when they are pointed at
    page.evaluate("document.querySelector('.unlike').hidden = false; window.scrollTo(0, 0)")
    for selector in (".unlike", ".why", ".weight input >> nth=-1", ".card.winner >> .scores"):
        area = box(page.locator(selector))
        assert area["y"] >= 0 and area["y"] + area["height"] <= 800, selector


# ---------------------------------------------------------------- answers


def test_asking_shows_weights_then_streams_answers_then_scores(visit, served) -> None:
    page, models = visit(), served[1]
    page.evaluate(
        """() => { window.seen = []; new MutationObserver(() => {
            const board = document.querySelector('.board');
            const text = [...document.querySelectorAll('.card .text')].map((t) => t.textContent.length);
            window.seen.push([board.dataset.run, board.dataset.phase, text]);
        }).observe(document.querySelector('.board'),
            {attributes: true, childList: true, subtree: true, characterData: true}); }"""
    )
    ask(page, "Name three fruits.", tokens=24)
    finished(page)
    seen = [s for s in page.evaluate("window.seen") if not s[0].startswith("recorded")]
    assert sum(seen[0][2]) == 0  # the new run's weights were there before any text
    lengths = [sum(s[2]) for s in seen if s[1] == "writing"]
    assert len(set(lengths)) > 3 and lengths == sorted(lengths)  # it grew while it was written
    weights = run_sync(models.predict([{"role": "user", "content": "Name three fruits."}])).weights
    np.testing.assert_allclose(np.array(values(page)) / 100, weights, atol=0.011)
    for card in page.locator(".card").all():
        expect(card.locator(".z").first).to_have_text(re.compile(r"^[+−]\d+\.\d\d$"))
    for scheme in ("predicted", "yours", "uniform"):
        expect(page.locator(f".badge.{scheme}")).to_have_count(1)


KEEP_NOTES = """() => {
  const note = document.querySelector(".board .note");
  window.notes = [];
  new MutationObserver(() => window.notes.push(note.textContent))
    .observe(note, { childList: true, characterData: true, subtree: true });
}"""


def test_stop_keeps_and_scores_what_was_written(visit) -> None:
    page = visit()
    page.evaluate(KEEP_NOTES)
    ask(page, "Write a long story about the sea.", tokens=512)
    expect(page.locator(".card .text").first).not_to_be_empty()
    expect(page.locator('.board[data-phase="writing"]')).to_be_visible()
    expect(page.locator(".card .text").nth(1)).to_have_text(re.compile(r"\w+ \w+"))
    expect(page.locator(".verdict")).to_have_text(
        re.compile(r"Writing: about \d+ of at most 512 tokens, at most \d+ s more")
    )
    stop(page)
    expect(page.locator(".note")).to_contain_text("Stopped")
    expect(page.locator(".card.winner .pull").first).to_be_visible()
    expect(page.locator("#ask")).to_have_text("Ask")
    expect(page.locator("#ask")).to_be_focused()
    ask(page, "Write a long story about a mountain.")  # and the app goes on
    expect(page.locator('.board[data-phase="writing"]')).to_be_visible()
    expect(page.locator(".card .text").first).not_to_be_empty()
    stop(page)
    expect(page.locator(".note")).to_contain_text("Stopped")
    # Gradio's page treats a cancelled event as a failed one; the visitor is not told so.
    assert not any("too busy" in text for text in page.evaluate("window.notes"))


def test_a_follow_up_keeps_the_conversation(visit) -> None:
    page = visit()
    page.locator(".card .use").nth(1).click()
    kept = recorded()["candidates"][1]["text"]
    first = page.locator("#prompt textarea").input_value()
    set_tokens(page, 16)
    page.locator("#prompt textarea").fill("And why is that?")
    page.locator("#follow").click()
    finished(page)
    expect(page.locator(".thread .user")).to_contain_text(first)
    assert page.locator(".thread .assistant > span").text_content().strip() == kept.strip()


def test_pasted_answers_are_scored(visit, served) -> None:
    page, models = visit(), served[1]
    texts = ["Rinse it with cold water, then use salt.", "I don't know."]
    page.locator("#prompt textarea").fill("How do I clean a wine stain?")
    page.get_by_role("button", name="Score answers of your own").click()
    for label, text in zip(("Answer A", "Answer B"), texts, strict=True):
        page.get_by_role("textbox", name=label, exact=True).fill(text)
    page.locator("#score-own").click()
    expect(page.locator(".note")).to_contain_text("Your own answers")
    expect(page.locator(".card")).to_have_count(2)
    scores = run_sync(
        models.score([{"role": "user", "content": "How do I clean a wine stain?"}], texts)
    )
    for n, card in enumerate(page.locator(".card").all()):
        assert card.locator(".text").text_content() == texts[n]
        shown = [float(t.replace("−", "-")) for t in card.locator(".z").all_text_contents()]
        np.testing.assert_allclose(shown, scores.z[n], atol=0.02)


@pytest.fixture(scope="module")
def doubtful(tmp_path_factory) -> Iterator[tuple[str, Models]]:
    """(url, models) of an app whose panel has three members for "helpful" and one for "harmless"."""
    from tiny import panel_of_members

    models = Models({"PRO_PANEL": panel_of_members(tmp_path_factory.mktemp("panel"))})
    models.generator.load = lambda: None  # type: ignore[attr-defined]
    models.load()
    demo = app.build(models)
    _, url, _ = demo.launch(prevent_thread_lock=True, **app.launch_settings() | {"quiet": True})
    yield url, models
    demo.close()


@pytest.mark.parametrize("width", [1280, 360])
def test_uncertain_scores_say_so_and_a_lead_within_them_is_no_win(visit, doubtful, width) -> None:
    url, models = doubtful
    page, prompt = visit(width=width, url=url, loaded=False), "How do I kill a Python process?"
    paste(page, prompt)
    numbers(page)
    texts = page.locator(".card .text").all_text_contents()
    scores = run_sync(models.score([{"role": "user", "content": prompt}], texts))
    spread_N = scores.members[:, :, 0].std(axis=0, ddof=1)
    for n, card in enumerate(page.locator(".card").all()):
        helpful, harmless = card.locator(".score").all()
        expect(helpful.locator(".spread")).to_have_text(f"±{spread_N[n]:.2f}")
        expect(harmless.locator(".spread")).to_have_text("")
        said = card.locator(".scores").get_attribute("aria-label")
        assert said.count("uncertain by") == 1 and f"uncertain by {spread_N[n]:.2f}" in said
        whisker = (
            "(z) => { const s = getComputedStyle(z, '::after'); return [s.content, s.width]; }"
        )
        content, width = helpful.locator(".z").evaluate(whisker)
        width_at_2 = box(helpful.locator(".z"))["width"]
        assert float(width[:-2]) == pytest.approx(spread_N[n] / 2 * width_at_2, abs=2.5)
        assert harmless.locator(".z").evaluate(whisker)[0] == "none" != content
        area, inside = box(card), box(helpful)
        assert inside["x"] + inside["width"] <= area["x"] + area["width"]

    page.locator(".weight input").first.press("End")  # "helpful" alone counts
    best, other = np.argsort(-scores.z[:, 0])
    leads_M = scores.members[:, best, 0] - scores.members[:, other, 0]
    assert leads_M.mean() < leads_M.std(ddof=1)  # else this test tests nothing
    ranks = page.locator(".card .rank")
    expect(page.locator(".verdict")).to_have_text(
        f"Too close to call: {'AB'[best]} or {'AB'[other]}"
    )
    expect(ranks.nth(best)).to_have_text("too close to call")
    expect(ranks.nth(other)).to_have_text("close second")
    lead = f"{leads_M.mean():.2f} ±{leads_M.std(ddof=1):.2f}"
    expect(ranks.nth(best)).to_have_attribute("title", re.compile(re.escape(lead)))
    spoken = page.locator(".board > .unseen[aria-live]")
    expect(spoken).to_contain_text(f"too close to call against {'AB'[other]}")
    expect(page.locator(".badge.yours")).to_have_text("yours, too close to call")

    page.locator(".weight input").last.press("End")  # "harmless", of which nothing is known
    best = int(scores.z[:, 1].argmax())
    expect(ranks.nth(best)).to_have_text("winner")
    expect(spoken).to_have_text(f"Answer {'AB'[best]} wins under your weights")


def test_the_words_behind_a_score_are_shown_when_they_are_asked_for(visit, doubtful) -> None:
    url, models = doubtful
    page, prompt = visit(url=url, loaded=False), "How do I clean a wine stain?"
    page.locator("#prompt textarea").fill(prompt)
    page.get_by_role("button", name="Score answers of your own").click()
    texts = ["Use cold <b>water</b>, salt 🙂 and a little patience.", "I do not know."]
    for n, text in enumerate(texts):
        page.locator("#paste textarea").nth(n).fill(text)
    page.locator("#score-own").click()
    expect(page.locator(".note")).to_contain_text("Your own answers")
    expect(page.locator(".reasons .word")).to_have_count(0)
    # Two at once: the second one is asked for after the first.
    for summary in page.locator(".reasons summary").all():
        summary.click()
    first, second = page.locator(".reasons").all()
    expect(first.locator("p")).to_contain_text("without three random words")
    expect(second.locator("p")).to_contain_text("too few words")
    assert first.locator(".reason-text").text_content() == texts[0]
    why = run_sync(models.why([{"role": "user", "content": prompt}], texts[0]))
    first.locator("select").select_option("0")
    shown = first.locator(".word").all_text_contents()
    effects = [abs(e) for e in why.effects[:, 0]]
    moved = [texts[0][a:b] for (a, b), e in zip(why.words, effects, strict=True) if e > 0.031]
    assert len(moved) > 2 and set(moved) <= set(shown)
    expect(first.locator("p")).to_contain_text(f"by {abs(why.named[0]):.2f} without “")
    expect(first.locator("p")).to_contain_text(f"by {abs(why.random[0]):.2f} without three random")
    page.locator("#examples button").nth(1).click()  # scored by another panel
    first.locator("summary").click()
    expect(first.locator("p")).to_have_text(re.compile("Another panel gave these scores"))


def test_a_single_pasted_answer_is_refused_with_a_sentence(visit) -> None:
    page = visit()
    page.get_by_role("button", name="Score answers of your own").click()
    for _ in range(2):
        page.locator("#score-own").click()
        expect(page.locator("#paste-note")).to_have_text("Paste at least two answers to compare.")
        expect(page.locator(".note.error")).to_be_hidden()  # it stands once, beside its cause


def test_hostile_text_is_inert_and_the_app_goes_on(visit) -> None:
    page = visit()
    page.get_by_role("button", name="Score answers of your own").click()
    boxes = page.locator("#paste textarea")
    page.locator("#prompt textarea").fill(HOSTILE)
    boxes.nth(0).fill(HOSTILE)
    boxes.nth(1).fill("long " * 20_000)
    page.locator("#score-own").click()
    expect(page.locator(".note")).to_contain_text("Your own answers")
    clean = HOSTILE.replace("\0", "").replace("`", "")  # Markdown for code
    assert page.locator(".card .text").first.text_content().replace("\0", "") == clean
    set_tokens(page, 16)
    page.locator(".card .use").first.click()
    page.locator("#follow").click()  # the hostile text becomes the conversation
    expect(page.locator(".thread")).to_contain_text("onerror")
    finished(page)
    assert page.locator(".board :is(img, script, a, iframe)").count() == 0
    assert page.evaluate("window.hacked") is None
    for _ in range(2):
        ask(page, "   ")
        expect(page.locator(".note.error")).to_contain_text("empty prompt")
        expect(page.locator("#ask")).to_have_text("Ask")
    page.locator("#prompt textarea").evaluate(
        "(t) => { t.value = 'y'.repeat(200001); t.dispatchEvent(new Event('input')); }"
    )
    page.locator("#ask").click()
    expect(page.locator(".note.error")).to_contain_text("200,001 characters")


# ---------------------------------------------------------------- keeping and sharing


@pytest.fixture(scope="module")
def quick() -> Iterator[tuple[str, Models]]:
    """(url, models) of the demo in front of a server that answers at once.

    Answers to a prompt with "long" hit the token limit.
    """
    from tests.servers.scripted import says, scripted

    counter = itertools.count(1)

    def reply(body: dict) -> tuple[int, list]:
        last = body["messages"][-1]["content"]
        text = f"**Answer** {next(counter)} to {last[:30]}:\n\n1. `one` <b>\n2. two\n\n```three``` four"
        return 200, [says(text), says("", "length" if "long" in last else "stop")]

    with scripted(reply) as (server, _):
        models = Models({"PRO_ENDPOINT_URL": server, "PRO_ENDPOINT_MODEL": "m"})
        models.load()
        demo = app.build(models)
        _, url, _ = demo.launch(prevent_thread_lock=True, **app.launch_settings() | {"quiet": True})
        yield url, models
        demo.close()


KEEP_SPOKEN = """() => {
  const live = document.querySelector(".board > .unseen[aria-live]");
  window.said = [];
  new MutationObserver(() => live.textContent && window.said.push(live.textContent))
    .observe(live, { childList: true, characterData: true, subtree: true });
}"""


def answers(page) -> list[str]:
    return page.evaluate("window.proBoard.state.run.candidates.map((c) => c.text)")


def test_reload_back_and_forward_lose_nothing(visit, quick) -> None:
    page = visit(url=quick[0], loaded=False)
    ask(page, "Name three fruits.")
    finished(page)
    first = answers(page)
    page.locator(".weight input").nth(1).press("End")
    page.locator(".lock").nth(2).click()
    ask(page, "Name three trees.")
    finished(page)
    second, mine = answers(page), values(page)
    page.locator(".weight input").nth(1).press("Home")
    mine = values(page)
    page.locator("#prompt textarea").fill("Half a quest")
    page.reload()
    expect(page.locator("#prompt textarea")).to_have_value("Half a quest")
    assert answers(page) == second and values(page) == mine
    expect(page.locator(".lock").nth(2)).to_have_attribute("aria-pressed", "true")
    page.go_back()
    expect(page.locator("#prompt textarea")).to_have_value("Name three fruits.")
    assert answers(page) == first and values(page)[1] == 100
    page.go_forward()
    expect(page.locator("#prompt textarea")).to_have_value("Half a quest")
    assert answers(page) == second
    page.locator("#follow").click()  # what is shown is what a follow-up continues
    expect(page.locator(".thread .user")).to_contain_text("Name three trees.")
    finished(page)


def test_a_link_holds_the_run_and_says_that_it_is_unverified(visit, quick) -> None:
    page = visit(url=quick[0], loaded=False)
    ask(page, "Name three fruits.")
    finished(page)
    page.locator(".weight input").nth(4).press("End")
    link = page.evaluate("window.proBoard.fragment()")
    shown, mine, order = (
        answers(page),
        values(page),
        page.locator(".board").get_attribute("data-order"),
    )
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.get_by_role("button", name="Copy link").click()
    expect(page.locator(".note")).to_contain_text(re.compile("copied"))
    assert requests == []
    other = visit(url=f"{quick[0]}{link}", loaded=False)
    expect(other.locator(".note")).to_contain_text("unverified")
    assert (answers(other), values(other)) == (shown, mine)
    expect(other.locator(".board")).to_have_attribute("data-order", order)
    other.reload()  # the address still holds the link
    expect(other.locator(".note")).to_contain_text("unverified")
    again = other.get_by_role("button", name="Score again here")
    again.focus()
    again.press("Enter")
    expect(other.locator(".note")).to_contain_text("Scored here")
    assert answers(other) == shown
    expect(again).to_be_hidden()
    expect(other.locator(".verdict")).to_be_focused()
    broken = visit(url=f"{quick[0]}#r=AAAA", loaded=False)
    expect(broken.locator(".note.error")).to_contain_text("cannot be read")


def test_pinned_answers_stay_and_a_single_one_is_written_again(visit, quick) -> None:
    page = visit(url=quick[0], loaded=False)
    ask(page, "Name three fruits.")
    finished(page)
    before = answers(page)
    page.locator(".pin").nth(1).click()
    page.get_by_role("button", name="Write again").click()
    expect(page.locator(".card .text").first).not_to_have_text(before[0])
    finished(page)
    after = answers(page)
    assert after[1] == before[1] and not {*after} & {before[0], *before[2:]}
    page.locator(".rewrite").nth(2).click()
    expect(page.locator('.board[data-busy="true"]')).to_be_visible()
    finished(page)
    changed = [a != b for a, b in zip(after, answers(page), strict=True)]
    assert changed == [False, False, True, False]


def test_an_answer_that_was_cut_can_be_continued(visit, quick) -> None:
    page = visit(url=quick[0], loaded=False)
    ask(page, "Tell me a long story.")
    finished(page)
    before = answers(page)
    assert page.get_by_role("button", name="Continue answer").count() == 4
    page.get_by_role("button", name="Continue answer B").click()
    expect(page.locator(".card .cut").nth(1)).to_be_hidden()
    finished(page)
    after = answers(page)
    assert after[1].startswith(before[1]) and "Continue exactly" in after[1]
    assert after[0] == before[0] and after[2:] == before[2:]


def test_three_clicks_are_one_question(visit, quick) -> None:
    page = visit(url=quick[0], loaded=False)
    sent: list[str] = []
    page.on("request", lambda r: sent.append(r.url) if r.url.endswith("queue/join?") else None)
    page.locator("#prompt textarea").fill("Name three fruits.")
    page.locator("#ask").click(click_count=3)
    finished(page)
    assert len([url for url in sent if "join" in url]) == 1


def test_a_new_question_gets_its_own_guess(visit, quick) -> None:
    page, models = visit(url=quick[0], loaded=False), quick[1]
    page.locator(".weight input").nth(1).press("End")
    ask(page, "Tell me a joke about cats.")
    finished(page)
    guess = run_sync(models.predict([{"role": "user", "content": "Tell me a joke about cats."}]))
    np.testing.assert_allclose(np.array(values(page)) / 100, guess.weights, atol=0.011)
    page.locator(".weight input").nth(1).press("End")
    page.get_by_label("Keep my weights").check()
    ask(page, "Tell me a joke about dogs.")
    finished(page)
    assert values(page)[1] == 100


def test_a_run_is_announced_and_its_markdown_is_drawn_while_html_stays_text(visit, quick) -> None:
    page = visit(url=quick[0], loaded=False)
    page.evaluate(KEEP_SPOKEN)
    ask(page, "Name three fruits.")
    finished(page)
    said = page.evaluate("window.said")
    assert re.match(r"The weights are ready: \w+ counts most", said[0])
    assert re.match(r"Answer [A-D] wins under your weights", said[-1]) and len({*said}) == len(said)
    text = page.locator(".card .text").first
    expect(text.locator("strong")).to_have_text("Answer")
    expect(text.locator("ol li")).to_have_text(["one <b>", "two"])
    expect(text.locator("code")).to_have_text(["one", "three"])
    expect(text.locator("p").last).to_contain_text(
        "four"
    )  # no fence: its line holds more backticks
    assert text.locator("b").count() == 0


def test_the_strip_says_who_wins_where_and_moving_there_agrees(visit) -> None:
    page = visit()
    k = changing(page)
    slider = page.locator(".weight input").nth(k)
    slider.focus()
    name = recorded()["objectives"][k]
    expect(page.locator(".change")).to_contain_text(re.compile(f"[A-D] wins if {name}"))
    parts = page.locator(".weight").nth(k).locator(".strip i")
    stretches = page.evaluate(f"window.proBoard.state.stretches({k})")
    assert parts.count() == len(stretches) > 1
    for stretch in stretches:
        slider.evaluate(
            f"(s) => {{ s.value = {stretch['to']}; s.dispatchEvent(new Event('input')); }}"
        )
        assert page.evaluate(WINNERS)[1] == "ABCD"[stretch["winner"]]


def test_the_code_for_a_run_runs(visit, quick) -> None:
    page = visit(url=quick[0], loaded=False)
    ask(page, "What's the time?")
    finished(page)
    page.get_by_role("button", name="Code for this").click()
    code = page.locator(".code .python").text_content()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert "to What's the time?" in done.stdout, done.stderr
    with page.expect_download() as download:
        page.get_by_role("button", name="JSON").click()
    exported = json.loads(Path(download.value.path()).read_text("utf-8"))
    assert [a["text"] for a in exported["answers"]] == answers(page)
    assert exported["answers"][0]["z"].keys() == exported["weights"]["yours"].keys()


def test_the_address_fills_the_prompt_and_hides_the_header(visit, quick) -> None:
    page = visit(url=f"{quick[0]}?embed=true&prompt=Why%3F", loaded=False)
    expect(page.locator("#prompt textarea")).to_have_value("Why?")
    expect(page.locator(".masthead")).to_be_hidden()


def test_sampling_options_reach_the_model(visit, quick) -> None:
    page = visit(url=quick[0], loaded=False)
    page.get_by_role("button", name="Options").click()
    page.get_by_label("Seed").fill("7")
    page.get_by_label("System prompt").fill("Speak as a pirate.")
    ask(page, "Name three fruits.")
    finished(page)
    run = page.evaluate("window.proBoard.state.run")
    assert run["asked"]["seed"] == 7
    assert run["messages"][0] == {"role": "system", "content": "Speak as a pirate."}


# ---------------------------------------------------------------- looks


def figures(page) -> int:
    """How many numbers the first screen shows, without those in answers and in the names and dates of runs."""
    texts = page.evaluate(
        """() => [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility() &&
          !e.closest(".text, .note, .status, .unseen, textarea, script, style, #more, footer"))
          .flatMap((e) => [...e.childNodes]).filter((n) => n.nodeType === Node.TEXT_NODE)
          .map((n) => n.textContent)"""
    )
    return sum(len(re.findall(r"[0-9]+(?:[.][0-9]+)?", text)) for text in texts)


def test_prompt_sliders_winner_and_scores_fit_1280_by_800(visit) -> None:
    page = visit()
    needed = ["#prompt", ".weight input >> nth=0", ".weight input >> nth=-1", ".card.winner"]
    needed += [".card.winner .scores", ".card >> nth=0", ".card >> nth=3"]
    for selector in needed:
        area = box(page.locator(selector))
        assert area["y"] >= 0 and area["y"] + area["height"] <= 800, selector
        assert area["x"] >= 0 and area["x"] + area["width"] <= 1280, selector
    assert page.evaluate("document.scrollingElement.scrollTop") == 0
    assert figures(page) <= 15


def test_a_phone_always_shows_the_winner_and_moves_no_slider_under_the_finger(visit) -> None:
    page = visit(width=360, height=740)
    slider, winner = page.locator(".weight input").nth(changing(page)), page.locator(".verdict")
    slider.scroll_into_view_if_needed()
    tops, said = set(), set()
    for value in range(0, 101, 10):
        slider.evaluate(f"(s) => {{ s.value = {value}; s.dispatchEvent(new Event('input')); }}")
        page.evaluate("() => new Promise(requestAnimationFrame)")
        tops.add(box(slider)["y"])
        assert 0 <= box(winner)["y"] <= 700
        said.add(winner.text_content())
    assert len(tops) == 1 and len(said) > 1
    page.evaluate("window.scrollTo(0, document.body.scrollHeight / 2)")
    assert 0 <= box(winner)["y"] < 5  # it sticks to the top
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 360
    for value in page.locator(".weight output").all():
        assert box(value)["x"] + box(value)["width"] <= 340  # as wide as the cards
    cards = [box(card) for card in page.locator(".card").all()]
    assert len({round(b["x"]) for b in cards}) == 1
    assert all(b["x"] >= 0 and b["x"] + b["width"] <= 360 for b in cards)
    small = page.locator(".board :is(button, select, input)").evaluate_all(
        """(all) => all.filter((e) => e.checkVisibility() && e.getBoundingClientRect().height > 0)
          .map((e) => [e.className, e.getBoundingClientRect()])
          .filter(([_, r]) => Math.min(r.width, r.height) < 24).map(([name]) => name)"""
    )
    assert small == []


def check_by_axe(page) -> None:
    """Deque's axe finds nothing wrong with what the page shows now."""
    from axe_core_python.sync_playwright import Axe

    found = Axe().run(page, options={"resultTypes": ["violations"]})["violations"]
    assert [(v["id"], [n["html"][:100] for n in v["nodes"]]) for v in found] == []


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 360)])
def test_axe_finds_nothing(visit, quick, scheme, width) -> None:
    page = visit(width=width, scheme=scheme, url=quick[0], loaded=False)
    check_by_axe(page)
    if scheme == "dark":
        return
    ask(page, "Tell me a long story.")
    finished(page)
    for name in ("Options", "Score answers of your own", "Numbers", "Code for this"):
        page.get_by_role("button", name=name).click()
    expect(page.get_by_label("System prompt")).to_be_visible()
    check_by_axe(page)


SHIFTS = """window.shift = 0; new PerformanceObserver((list) => {
  for (const e of list.getEntries()) if (!e.hadRecentInput) window.shift += e.value;
}).observe({ type: "layout-shift", buffered: true });"""


@pytest.mark.parametrize("width", [1280, 360])
def test_the_page_moves_little_while_it_loads_and_while_answers_are_written(
    browser, quick, width
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800})
    page = context.new_page()
    page.set_default_timeout(150_000)
    page.add_init_script(SHIFTS)
    page.goto(quick[0])
    expect(page.locator("#examples button").first).to_be_visible()
    expect(page.locator(".status")).not_to_contain_text("loading")
    assert page.evaluate("window.shift") < 0.1
    page.evaluate("window.shift = 0")
    page.locator("#prompt textarea").fill("Name three fruits.")
    page.locator("#prompt textarea").press("Enter")
    finished(page)
    assert page.evaluate("window.shift") < 0.1
    context.close()


def test_the_keyboard_reaches_the_first_slider_soon_and_one_button_keeps_the_focus(
    visit, quick
) -> None:
    page = visit(url=quick[0], loaded=False)
    page.locator("#prompt textarea").focus()
    stops = 1
    while not page.evaluate("document.activeElement.matches('.weight input')"):
        page.keyboard.press("Tab")
        stops += 1
        ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert ring == "solid" and stops <= 8
    page.locator("#ask").focus()
    page.keyboard.press("Enter")
    finished(page)
    expect(page.locator("#ask")).to_be_focused()
    # The tools keep one stop for Tab, whichever of them is disabled.
    tools = page.locator(".tools button")
    page.evaluate(
        "window.proBoard.state.run.candidates.forEach((c, i) => { c.z = c.z.map(() => -i); })"
    )
    page.evaluate("Object.assign(window.proBoard.state, { places: [0, 1, 2, 3] }).changed()")
    expect(tools.nth(1)).to_be_disabled()
    stops = tools.evaluate_all(
        "(all) => all.filter((b) => b.tabIndex === 0).map((b) => !b.disabled && !b.hidden)"
    )
    assert stops == [True]
    first, second = (page.locator(".presets button").nth(n) for n in (0, 1))
    first.focus()
    page.keyboard.press("ArrowRight")
    expect(second).to_be_focused()
    page.keyboard.press("Enter")
    assert max(values(page)) - min(values(page)) <= 1
    places = page.locator(".board :is(button, input, select, [tabindex])").evaluate_all(
        "(all) => all.filter((e) => e.tabIndex >= 0 && e.checkVisibility())"
        ".map((e) => e.closest('.card')?.getBoundingClientRect().left ?? -1)"
    )
    assert places[-1] >= 0 or sorted(p for p in places if p >= 0) == [p for p in places if p >= 0]


def test_forced_colours_still_show_bars_and_winners(visit) -> None:
    page = visit()
    page.emulate_media(forced_colors="active")
    paper = page.evaluate("getComputedStyle(document.querySelector('.card')).backgroundColor")
    for part in (".pull i", ".track .bar"):
        fill = page.locator(part).first.evaluate("(e) => getComputedStyle(e).backgroundColor")
        assert fill != paper, part
    border = "(e) => getComputedStyle(e).borderTopWidth"
    assert page.locator(".card.winner").evaluate(border) == "2px"


CONTRAST = """() => {
  const parse = (c) => { const m = c.match(/[\\d.]+/g).map(Number); return [m[0], m[1], m[2], m[3] ?? 1]; };
  const over = (a, b) => [0, 1, 2].map((i) => a[i] * a[3] + b[i] * (1 - a[3])).concat(1);
  const linear = (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, w, i) => sum + w * linear(c[i] / 255), 0);
  const out = [];
  const texts = '.masthead *, .status, .weight label, .trust, .weight output, .card .text, .rank, .z, .score .name, '
    + '.spread, .sum *, .badge, .note, .legend, .letter, .small:not(:disabled), '
    + '.why *, .unlike, .scale *, .change, .verdict, .strip i';
  for (const node of document.querySelectorAll(texts)) {
    if (!node.textContent.trim() || node.getClientRects().length === 0) continue;
    const layers = [];
    for (let e = node; e; e = e.parentElement) layers.unshift(parse(getComputedStyle(e).backgroundColor));
    const back = layers.reduce((b, a) => over(a, b), [255, 255, 255, 1]);
    const ink = over(parse(getComputedStyle(node).color), back);
    const [a, b] = [light(ink), light(back)].sort((x, y) => y - x);
    out.push([node.className || node.tagName, (a + 0.05) / (b + 0.05)]);
  }
  return out; }"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(visit, uncertain, scheme: str) -> None:
    page = visit(scheme=scheme)
    numbers(page)
    measured = page.evaluate(CONTRAST)
    assert len(measured) > 60
    assert [m for m in measured if m[1] < 4.5] == []
    page = visit(scheme=scheme, url=uncertain[0], loaded=False)
    paste(page, "如何去除红酒渍? 🐶🎂🎈")
    expect(page.locator(".unlike")).to_be_visible()
    assert [m for m in page.evaluate(CONTRAST) if m[1] < 4.5] == []
    paste(page, "How do I kill a Python process that hangs?")
    expect(page.locator(".why .word.high").first).to_be_visible()
    assert [m for m in page.evaluate(CONTRAST) if m[1] < 4.5] == []
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", dark)[:3])) < 200) == (scheme == "dark")


def test_scores_say_how_far_to_trust_them_and_show_raw_values(visit, served) -> None:
    page, run = visit(), recorded()
    for k, name in enumerate(run["objectives"]):
        tested = run["accuracy"][name]
        trust = page.locator(".trust").nth(k)
        tenths = round(10 * tested["accuracy"])
        often = "nearly always" if tenths == 10 else f"{tenths} times in 10"
        expect(trust).to_have_text(f"agrees with people {often}")
        expect(trust).to_have_attribute("title", re.compile(f"On {tested['n']} held-out pairs"))
    raw = page.locator(".card .raw").first
    expect(raw).to_be_hidden()
    numbers(page)
    expect(raw).to_have_text(f"raw {run['candidates'][0]['raw'][0]:.2f}")
    expect(raw).to_be_visible()


def test_the_scatter_follows_its_axes(visit) -> None:
    page, run = visit(), recorded()
    z = np.array([c["z"] for c in run["candidates"]])
    for axes in ((0, 1), (3, 4)):
        for which, k in enumerate(axes):
            page.locator(".axes select").nth(which).select_option(str(k))
        points = z[:, axes]
        kept = [not any((q >= p).all() and (q > p).any() for q in points) for p in points]
        letters = page.locator(".dot.kept text").all_text_contents()
        assert letters == [letter for letter, k in zip("ABCD", kept, strict=True) if k]


def test_screenshot(visit, tmp_path: Path) -> None:
    """Takes the README's picture; with PRO_SCREENSHOT=1 it replaces the old one."""
    page = visit()
    shot = ROOT / "docs" / "figures" / "screenshot.png"
    if shot.exists() and not os.environ.get("PRO_SCREENSHOT"):
        shot = tmp_path / "screenshot.png"
    page.screenshot(path=str(shot))
    assert shot.stat().st_size > 30_000


# ---------------------------------------------------------------- a policy that reads weights


def test_moving_a_slider_ranks_at_once_and_a_button_writes_again(visit, tmp_path) -> None:
    from tiny import tiny_llama

    from pro_core.prompting.policy_config import PolicyConfig
    from pro_core.prompting.templates import Condition

    policy = tiny_llama(tmp_path)
    PolicyConfig(Condition("weights", ("helpful", "harmless"))).save(policy)
    models = Models({"PRO_POLICY": policy})
    models.load()
    demo = app.build(models)
    settings = app.launch_settings() | {"quiet": True}
    _, url, _ = demo.launch(prevent_thread_lock=True, **settings)
    page = visit(url=url)
    again = page.get_by_role("button", name="Write again")
    page.locator(".weight input").first.press("End")
    expect(again).to_be_hidden()  # this policy did not write the recorded run
    page.get_by_role("button", name="PRO’s guess").click()
    page.locator("#prompt textarea").fill("Hi there")
    page.locator("#ask").click()
    expect(page.locator(".board")).to_have_attribute("data-phase", "done")
    expect(page.locator(".written")).to_contain_text("Written under PRO’s guess.")
    expect(again).to_be_hidden()

    page.wait_for_load_state("networkidle")
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    first = page.locator(".board").get_attribute("data-run")
    page.locator(".weight input").first.press("End")
    expect(again).to_be_visible()
    expect(page.locator(".written")).to_contain_text("“Write again” writes under these")
    assert requests == [] and page.locator(".board").get_attribute("data-run") == first
    again.click()
    expect(page.locator(".board")).not_to_have_attribute("data-run", first or "")
    expect(page.locator(".board")).to_have_attribute("data-phase", "done")
    expect(page.locator(".written")).to_contain_text("Written under weights of yours.")
    expect(again).to_be_hidden()
    assert values(page)[0] == 100
    demo.close()


# ---------------------------------------------------------------- a model that thinks


def test_reasoning_can_be_unfolded_and_a_cut_answer_says_so(visit) -> None:
    from tests.servers.scripted import says, scripted

    thought = "They want a colour. <b>Red</b> is one."
    events = [says(reasoning_content=thought), says("Red, green and"), says("", "length")]
    with scripted(lambda body: (200, events)) as (server, _):
        models = Models({"PRO_ENDPOINT_URL": server, "PRO_ENDPOINT_MODEL": "m"})
        models.load()
        demo = app.build(models)
        _, url, _ = demo.launch(prevent_thread_lock=True, **app.launch_settings() | {"quiet": True})
        page = visit(url=url)
        card = page.locator(".card").first
        expect(card.locator(".thought:not(.reasons)")).to_be_hidden()  # the recorded run has none
        expect(card.locator(".cut")).to_be_hidden()
        ask(page, "Name three colours.")
        finished(page)
        expect(card.locator(".text")).to_have_text("Red, green and")
        expect(card.locator(".cut span")).to_have_text("Cut at the token limit.")
        expect(card.locator(".thought:not(.reasons) summary")).to_have_text(
            "Reasoning (not scored)"
        )
        expect(card.locator(".reasoning")).to_be_hidden()
        card.locator(".thought:not(.reasons) summary").click()
        expect(card.locator(".reasoning")).to_have_text(thought)
        if folder := os.environ.get("PRO_SCREENSHOTS"):
            page.screenshot(path=f"{folder}/thinking.png")
        demo.close()


def test_an_endpoint_that_wakes_up_says_how_long_it_takes(visit) -> None:
    from tests.servers.scripted import refuses, says, scripted

    awake = threading.Event()
    asleep = refuses("Model m is currently loading", 503)
    with scripted(
        lambda body: (200, [says("Red."), says("", "stop")]) if awake.is_set() else asleep
    ) as (
        server,
        _,
    ):
        models = Models({"PRO_ENDPOINT_URL": server, "PRO_ENDPOINT_MODEL": "m"})
        models.load()
        demo = app.build(models)
        _, url, _ = demo.launch(prevent_thread_lock=True, **app.launch_settings() | {"quiet": True})
        page = visit(url=url)
        ask(page, "Name three colours.")
        expect(page.locator(".note")).to_contain_text(
            "is waking up (Model m is currently loading); waited 1 s, at most 600."
        )
        if folder := os.environ.get("PRO_SCREENSHOTS"):
            page.screenshot(path=f"{folder}/waking.png")
        awake.set()
        finished(page)
        expect(page.locator(".card .text").first).to_have_text("Red.")
        expect(page.locator(".note")).to_be_hidden()
        demo.close()


# ---------------------------------------------------------------- many visitors


def test_a_full_queue_says_so_and_the_page_stays_usable(visit, crowded) -> None:
    url, models, _ = crowded
    writer, waiter, late = visit(url=url), visit(url=url), visit(url=url)
    ask(writer, "Name three fruits.")
    expect(writer.locator('.board[data-phase="writing"]')).to_be_visible()
    ask(waiter, "Name three trees.")
    expect(waiter.locator(".note")).to_contain_text("you are next for answers")
    ask(late, "How do I kill a Python process?")
    expect(late.locator(".note.error")).to_contain_text("Too many visitors are waiting for answers")
    # The visitor still gets the weights for the prompt, and the sliders move.
    weights = run_sync(
        models.predict([{"role": "user", "content": "How do I kill a Python process?"}])
    ).weights
    np.testing.assert_allclose(np.array(values(late)) / 100, weights, atol=0.011)
    late.locator(".weight input").first.press("End")
    assert values(late)[0] == 100
    late.get_by_role("button", name="Copy link").click()  # no page could open one without answers
    expect(late.locator(".note.error")).to_contain_text("No link can hold this run")
    if folder := os.environ.get("PRO_SCREENSHOTS"):
        late.screenshot(path=f"{folder}/full.png")
    # Stop waits for nobody. The next in line gets the place, and the late visitor can join the line.
    stop(writer)
    expect(writer.locator(".note")).to_contain_text("Stopped")
    expect(waiter.locator(".note")).to_be_hidden()
    ask(late, "How do I kill a Python process?")
    expect(late.locator(".note")).to_contain_text("you are next for answers")
    for page in (waiter, late):
        stop(page)
        expect(page.locator('.board[data-busy="false"]')).to_be_visible()


def test_of_two_runs_at_once_the_later_one_is_shown_and_sent(visit, crowded) -> None:
    page = visit(url=crowded[0])
    page.evaluate(
        """() => { const board = document.querySelector(".board"); window.runs = [];
        const look = () => { if (window.runs.at(-1) !== board.dataset.run) window.runs.push(board.dataset.run); };
        new MutationObserver(look).observe(board, { attributes: true, attributeFilter: ["data-run"] }); }"""
    )
    page.locator(".rewrite").first.click()
    expect(page.locator('.board[data-phase="writing"]')).to_be_visible()
    page.locator("#prompt textarea").fill("Name three cats.")
    page.locator("#prompt textarea").press("Enter")
    expect(page.locator(".note")).to_contain_text("you are next for answers")
    expect(page.locator(".board")).to_have_attribute("data-busy", "true")
    with page.expect_request("**/queue/join*") as sent:
        stop(page)
    runs = [run for run in page.evaluate("window.runs") if not run.startswith("recorded")]
    assert len(runs) == 2  # the first one never came back
    [run] = [v for v in sent.value.post_data_json["data"] if isinstance(v, dict)]
    assert run["messages"][-1]["content"] == "Name three cats."
    expect(page.locator(".note")).to_contain_text("Stopped")


def test_back_leaves_a_run_that_is_being_written_and_the_page_asks_again(visit, crowded) -> None:
    page = visit(url=crowded[0])
    shown = page.locator(".board")
    ask(page, "Name three fruits.")
    expect(page.locator('.board[data-phase="writing"]')).to_be_visible()
    first = shown.get_attribute("data-run")
    page.go_back()
    expect(shown).to_have_attribute("data-run", recorded()["id"])
    expect(shown).to_have_attribute("data-busy", "false")
    # News of the run that was left changes nothing.
    left = f"({{ ...window.proBoard.state.run, id: '{first}', phase: 'done' }})"
    assert page.evaluate(f"window.proBoard.receive({left})") is False
    page.locator("#prompt textarea").fill("Name three cats.")
    page.locator("#ask").click()
    expect(page.locator('.board[data-phase="writing"]')).to_be_visible()
    assert shown.get_attribute("data-run") != first
    # Answers that break off can be scored as they are.
    page.evaluate("window.proBoard.fail('Lost.')")
    expect(page.locator('.board[data-phase="stopped"]')).to_be_visible()
    expect(page.get_by_role("button", name="Score again here")).to_be_visible()
    page.locator("#stop").evaluate("(button) => button.click()")  # frees the only place


def test_a_page_that_is_too_old_for_the_server_says_so(visit, monkeypatch) -> None:
    def refuse(value: dict) -> None:
        raise ValueError("no run of this server")

    page = visit()
    monkeypatch.setattr(values_module, "_run", refuse)
    page.locator("#follow").click()
    expect(page.locator(".note.error")).to_have_text(STALE)
    expect(page.locator(".card").first).to_be_visible()


def test_a_request_that_the_server_refuses_leaves_a_usable_page(browser, served) -> None:
    page = browser.new_context().new_page()
    page.set_default_timeout(150_000)
    page.goto(served[0])
    expect(page.locator(".status")).not_to_contain_text("loading")
    refusal = {"status": 503, "json": {"detail": "Queue is full."}}
    page.route("**/queue/join*", lambda route: route.fulfill(**refusal))
    before = values(page)
    ask(page, "Name three fruits.")
    expect(page.locator(".note.error")).to_contain_text("The server is too busy")
    expect(page.locator(".toast-body")).to_have_count(0)  # once is enough
    expect(page.locator("#ask")).to_have_text("Ask")
    assert values(page) == before
    page.unroute("**/queue/join*")
    set_tokens(page, 16)
    page.locator("#ask").click()
    finished(page)
    page.context.close()
