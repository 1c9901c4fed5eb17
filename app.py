"""The web app: a prompt, the weights that the adapter predicts for it, answers, and their scores side by side.

    python app.py               # http://127.0.0.1:7860
    python app.py --help        # the settings, all of them environment variables
    python app.py --record      # record the six runs that the page shows without a model again

The browser ranks (ui/simplex.js): moving a slider needs no server. Python predicts, generates and scores
(ui/page.py, ui/api.py); the sliders, cards and scatter are one component (ui/board.py).
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
# Waiting threads of torch must not spin. Beside other processes on two cores (an endpoint, a browser) spinning made
# predictions six times slower and explanations ten times. Set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# After each event Gradio would summarize the last 10,000 for a dashboard that is switched off.
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1")
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000000000")

from ui import since_start  # isort: skip  (its clock starts here, before the slow imports)

import argparse
import asyncio
import logging
from collections.abc import MutableMapping
from functools import partial
from typing import Any

import gradio as gr

from pro_core.generation import GenerationSettings
from pro_core.generation.mixing import STRONGEST
from ui.api import Api
from ui.board import PAGE_CSS, board, header, note_line
from ui.door import with_door
from ui.models import Models
from ui.objectives import controls
from ui.page import Page
from ui.recorded import SEED, label_of, load_recorded, record
from ui.sign_in import can_sign_in, for_visitors, sign_in_row
from ui.values import MAX_TOKENS, WARMEST
from ui.where import watcher, where, where_section

SETTINGS = {
    "PRO_POLICY": "the language model: a local folder or a hub id (default: checkpoints/demo/policy beside the "
    "default panel, SmolLM2-135M-Instruct beside another); a policy of train/wic.py reads the weights, a soup of "
    "train/soups.py is mixed by them",
    "PRO_PANEL": "the reward models: a local folder or a hub id (default: checkpoints/demo/panel)",
    "PRO_ADAPTER": "the preference adapter (default: checkpoints/demo/adapter beside the default panel, "
    "no adapter beside another); none means uniform weights",
    "PRO_DECODING": "how a policy of train/soups.py is mixed in this process: soup (in its parameters; default) or mod "
    "(in its logits)",
    "PRO_STRENGTH": "how strongly, from 0 (the plain model) to 2 (default: 1)",
    "PRO_ENDPOINT_URL": "generate through this server (TGI, vLLM, any OpenAI-compatible one)",
    "PRO_ENDPOINT_MODEL": "the model's name at that server",
    "PRO_ENDPOINT_TOKEN": "its access token; sent only to that host, never logged",
    "PRO_ENDPOINT_SIGN_IN": "1: answers are written with each visitor's own Hugging Face sign-in (on a Space), such as "
    "by https://router.huggingface.co/v1",
    "PRO_ENDPOINT_DIALECT": "openai (default) or tgi",
    "PRO_JUDGE": "who judges by the sentences that visitors add as objectives: the address of an OpenAI-style server "
    "with log-probabilities, or a model for this process (default: nobody, so that none can be added)",
    "PRO_JUDGE_MODEL": "the judge's name at that server",
    "PRO_JUDGE_TOKEN": "its access token; sent only to that host, never logged",
    "PRO_SENTENCES": "the only sentences that visitors may add, separated by ';'; none: no sentence",
    "PRO_LORA_FOLDER": "a folder that a vLLM server there reads too: it loads the LoRA of each weighting from it",
    "PRO_FLOORS": "the owner's minimum weights, such as harmless=0.1",
    "PRO_PRESETS": "weights to start from, such as 'Family: harmless=0.7, humor=0.3; Strict: harmless=1'",
    "GRADIO_SERVER_NAME": "the address to listen on (default: 127.0.0.1)",
    "GRADIO_SERVER_PORT": "the port (default: the first free one from 7860)",
}
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
# What the browser adds to a request: a note while it waits, the weights that the visitor set, which answers are meant,
# and the answer from which a follow-up continues. The places of these values in the inputs are those of the handlers.
ASK = "(...v) => { const b = window.proBoard; b.begin('ask', v[0]); v[5] = b.weights(); return v; }"
PICK = (
    "(...v) => { const b = window.proBoard; b.begin('ask', v[0]); "
    "v[5] = b.weights(); v[6] = b.pick(); return v; }"
)
AGAIN = (
    "(...v) => { const b = window.proBoard; b.begin('again'); "
    "v[4] = b.weights(true); v[5] = b.wanted(); return v; }"
)
WHY = "(...v) => { v[1] = window.proBoard.wanted(); return v; }"
SAID_STOP = "() => { window.proBoard.stop(); }"
UNREACHED = "The server is too busy or cannot be reached. Please try again in a minute."
LOST = f"window.proBoard.fail({UNREACHED!r})"
SHIPPED = "A recorded run of the shipped reward models, not of yours: ask, and yours answer."
MOST_EVENTS = 1024
"""Most open events of all visitors together; one page has one or two. `ui/places.py` limits who waits for answers."""


def build(models: Models) -> gr.Blocks:
    """The page and the API over `models` (which may still be loading)."""
    page = Page(models)
    writes = partial(for_visitors, page)
    recorded = load_recorded(models.floors_text, models.presets_text)
    for run in recorded:
        if not models.demo:
            run.pop("conditioned", None)  # this policy is not the one that wrote the recorded run
        if models.own_panel:
            run["note"] = SHIPPED
    with gr.Blocks(title="PRO · Preference Orchestrator", fill_width=True) as demo:
        header(() if models.own_panel else recorded[0]["objectives"])
        with gr.Row(elem_id="ask-row", equal_height=True):
            prompt = gr.Textbox(
                recorded[0]["messages"][-1]["content"],
                label="Prompt",
                container=False,
                placeholder="Ask anything…",
                lines=1,
                max_lines=4,
                scale=8,
                elem_id="prompt",
            )
            ask = gr.Button("Ask", variant="primary", scale=1, min_width=84, elem_id="ask")
            again = gr.Button("Write again", scale=1, min_width=84, elem_id="again")
            follow = gr.Button("Follow up", scale=1, min_width=84, elem_id="follow")
        if models.sign_in and can_sign_in():
            sign_in_row(models.generator.name)
        with gr.Row(elem_id="examples"):
            chips = [gr.Button(label_of(run), size="sm", min_width=40) for run in recorded]
        with gr.Row(elem_id="pressed"):  # never seen: the board presses them
            stop, go_on, rescore, why = (
                gr.Button(name, elem_id=name.lower())
                for name in ("Stop", "Continue", "Rescore", "Why")
            )
        view = board(recorded)
        begins = "(...v) => {{ window.proBoard.begin('{}'); return v; }}"
        # No event waits in Gradio's queue: `ui/places.py` decides whose answers are written, and tells those who wait.
        free: dict[str, Any] = {**QUIET, "concurrency_limit": None}
        with gr.Row(elem_id="more"):
            own = controls(page, view, begins, free)
            with gr.Accordion("Score answers of your own", open=False, elem_id="paste"):
                with gr.Row():
                    pasted = [
                        gr.Textbox(label=f"Answer {letter}", lines=3, max_lines=6, min_width=200)
                        for letter in "ABCD"
                    ]
                score_pasted = gr.Button(
                    "Score these answers to the prompt above", elem_id="score-own"
                )
                note_line("paste-note")
            with gr.Accordion("Options", open=False, elem_id="options"):
                n = gr.Slider(2, 6, 4, step=1, label="Answers", buttons=[])
                tokens = gr.Slider(
                    16, MAX_TOKENS, 160, step=16, label="Longest answer, in tokens", buttons=[]
                )
                styles = gr.Checkbox(
                    False, label="Different styles: plain, cautious, factual, playful"
                )
                warmth = gr.Slider(
                    0, WARMEST, GenerationSettings.temperature, step=0.1, buttons=[],
                    label="Temperature: 0 writes the likeliest words",
                )  # fmt: skip
                seed = gr.Textbox(
                    "",
                    label="Seed: the same one writes the same answers; empty: a new one each time",
                )
                system = gr.Textbox("", label="System prompt", lines=2, max_lines=6)
                strength = gr.Slider(
                    0, STRONGEST, models.strength, step=0.05, buttons=[],
                    visible=models.strength is not None,
                    label="Strength of the weights while it writes: 0 is the plain model, 1 as trained",
                )  # fmt: skip
        status = where_section(where(models))
        sliders = gr.JSON(None, visible=False)
        which = gr.JSON(None, visible=False)
        pick = gr.Number(-1, precision=0, visible=False)
        reasons = gr.JSON(None, visible=False)

        common, sampling = [n, tokens, styles, view, sliders], [warmth, seed, system]
        if models.strength is not None:
            sampling = [*sampling, strength]
        asked = [prompt, *common, *sampling]
        runs = [gr.on([ask.click, prompt.submit], writes("ask"), asked, view, js=ASK, **free)]
        same = [*common, which, *sampling]
        runs.append(again.click(writes("again"), same, view, js=AGAIN, **free))
        runs.append(go_on.click(writes("go_on"), same, view, js=AGAIN, **free))
        followed = [prompt, *common, pick, *sampling]
        runs.append(follow.click(writes("follow"), followed, view, js=PICK, **free))
        for i, chip in enumerate(chips):
            chip.click(None, None, None, js=f"() => {{ window.proBoard.example({i}); }}", **QUIET)
        # Gradio finishes one event of a click before it starts the next, so the cancelling comes first.
        stop.click(None, None, None, js=SAID_STOP, cancels=runs, **QUIET)
        others = [stop.click(page.stop, view, view, **free)]
        given = [prompt, view, *pasted]
        others.append(
            score_pasted.click(page.paste, given, view, js=begins.format("paste"), **free)
        )
        again_here = begins.format("rescore")
        others.append(rescore.click(page.rescore, view, view, js=again_here, **free))
        others += own
        asked_why = why.click(page.why, [view, which], reasons, js=WHY, **free)
        asked_why.success(None, reasons, None, js="(r) => window.proBoard.explained(r)", **QUIET)
        lost_why = f"() => {{ window.proBoard.explained({{ error: {UNREACHED!r} }}); }}"
        asked_why.failure(None, None, None, js=lost_why, **QUIET)
        for run in runs:  # Gradio's page treats a cancelled event as a failed one
            lost = f"() => {{ if (!window.proBoard.stopped) {LOST}; }}"
            run.failure(None, None, None, js=lost, **QUIET)
        for event in others:
            event.failure(None, None, None, js=f"() => {LOST}", **QUIET)
        demo.load(watcher(models), None, status, **free)
        for name, function in Api(models).endpoints().items():
            gr.api(function, api_name=name, concurrency_limit=None)
    return demo.queue(max_size=MOST_EVENTS)


def launch_settings() -> dict[str, Any]:
    """Settings that every way of serving the page shares: its looks, and nothing open that need not be."""
    theme = gr.themes.Default(
        primary_hue="indigo",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        button_primary_background_fill="*primary_600",
        button_primary_text_color="white",
        body_text_color_subdued="*neutral_600",
    )
    return {
        "theme": theme,
        "css": PAGE_CSS,
        "show_error": False,
        "enable_monitoring": False,
        "run_history": False,
        "max_file_size": "1mb",
        "ssr_mode": False,
        "max_threads": MOST_EVENTS,
        "state_session_capacity": 512,  # sessions; each holds a copy of the page's inputs that is never read
        "footer_links": ["api"],
        "app_kwargs": {"lifespan": with_door},
    }


def keep_loopback_direct(environ: MutableMapping[str, str]) -> None:
    """Reach this machine's own addresses without a proxy; else Gradio would not find the page that it starts."""
    known = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    local = [environ.get("GRADIO_SERVER_NAME", ""), "localhost", "127.0.0.1", "::1"]
    environ["no_proxy"] = environ["NO_PROXY"] = ",".join(filter(None, [known, *local]))


def main(argv: list[str] | None = None) -> None:
    names = "\n".join(f"  {name:22}{text}" for name, text in SETTINGS.items())
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        epilog=f"environment variables:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--record",
        action="store_true",
        help="make ui/recorded.json again with the models of the environment, and exit. Answers that the same model "
        "wrote under the same seed are kept and only scored again; then the model is not loaded.",
    )
    parser.add_argument(
        "--seed", type=int, default=SEED, help=f"with --record: the seed (default: {SEED})"
    )
    options = parser.parse_args(argv)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("pro").setLevel(logging.INFO)
    models = Models(os.environ)
    if options.record:
        asyncio.run(record(models, options.seed))
    else:
        keep_loopback_direct(os.environ)
        page = build(models.start())
        logging.getLogger("pro.app").info("page built %.1f s after start", since_start())
        page.launch(**launch_settings())


if __name__ == "__main__":
    main()
