"""The page's section "What runs where": the parts in use, where each runs, and which texts are sent there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import TypedDict
from urllib.parse import urlsplit

import gradio as gr

from pro_core.http.addresses import address_of, is_loopback
from ui.models import Models, short

HERE = "this app's process"
READS = {
    "weights": "conditioned on weights",
    "weights+level": "conditioned on weights and a level",
    "scores": "conditioned on scores",
    "levels": "conditioned on levels",
    "mixture": "mixed by the weights",
}
BETTER = "A model that writes better: make app PRO_POLICY=Qwen/Qwen3-0.6B"


class Part(TypedDict):
    """A row: what it does, what it is, where it runs, and what is sent there ("" for nothing)."""

    does: str
    name: str
    where: str
    sent: str


class Where(TypedDict):
    """What the section shows: one sentence, its rows, and the status line."""

    sent: str
    parts: list[Part]
    line: str


def where(models: Models) -> Where:
    """What runs where, as last known."""
    parts = [_answers(models), *_scores(models), *_added(models)]
    hosts = list(dict.fromkeys(part["where"] for part in parts if part["sent"]))
    away = [host for host in hosts if not is_loopback(urlsplit(f"//{host}").hostname or "")]
    sent = "your text stays on this app's machine"
    if away:
        sent = f"your text is sent to {', '.join(away)}"
    return {"sent": f"What runs where: {sent}", "parts": parts, "line": status_line(models)}


def status_line(models: Models) -> str:
    """The page's status line: what is in use and what is loading, as last known."""
    status = models.known()
    generator, K = status["generator"], status["K"]
    state = "" if generator["state"] == "ready" else f" ({generator['state']}…)"
    reads = f", {READS[status['conditioned']]}" if status["conditioned"] else ""
    parts = [
        f"Generator: {generator['name']}{reads}{state}",
        f"Panel: {status['panel']}" + (f", {K} objectives" if K else ""),
        f"Adapter: {status['adapter']}",
        status["warning"],
        BETTER if models.demo else "",
    ]
    return " · ".join(filter(None, parts))


def _answers(models: Models) -> Part:
    name = str(models.generator_status["name"])
    if models.local:
        return _part("Answers", name, HERE)
    host = models.generator.host  # type: ignore[attr-defined]
    whose = "without a token"
    if models.sign_in:
        whose = "with your own Hugging Face sign-in, out of your account's quota"
    elif models.owner_pays:
        whose = "with the owner's token, out of the owner's quota"
    return _part("Answers", name, host, f"the conversation and the system prompt, {whose}")


def _scores(models: Models) -> list[Part]:
    status = models.known()
    weights = _part("Weights and the words behind them", status["adapter"], HERE)
    specs = models.panel.specs if models.panel else []
    hosted: dict[str, list[str]] = {}
    for spec in specs:
        if spec.endpoint:
            hosted.setdefault(address_of(spec.endpoint, "endpoint").host, []).append(spec.name)
    own = [spec.name for spec in specs if not spec.endpoint]
    parts = [_part(_scores_of(own), status["panel"], HERE)] if own or not specs else []
    parts += [
        _part(_scores_of(names), status["panel"], host, "the conversation and the answers")
        for host, names in hosted.items()
    ]
    return [weights, *parts]


def _scores_of(names: list[str]) -> str:
    return f"Scores: {', '.join(dict.fromkeys(names))}" if names else "Scores"


def _added(models: Models) -> list[Part]:
    sentences = models.sentences
    if sentences.offered is None:
        return []
    texts = "your sentence, the conversation and the answers, once you add an objective"
    name, host = short(sentences.judge_name), sentences.host
    return [_part("Objectives that you add", name, host or HERE, texts if host else "")]


def _part(does: str, name: str, where: str, sent: str = "") -> Part:
    return {"does": does, "name": name, "where": where, "sent": sent}


def watcher(models: Models) -> Callable[[], AsyncGenerator[Where, None]]:
    """The handler that sends what the section shows, until everything is loaded."""

    async def watch_status() -> AsyncGenerator[Where, None]:
        shown: Where | None = None
        while True:
            finished, now = models.finished, where(models)
            if now != shown:
                shown = now
                yield now
            if finished:
                return
            await asyncio.sleep(0.2)

    return watch_status


def where_section(value: Where) -> gr.HTML:
    """The section. Its texts are never read as HTML."""
    return gr.HTML(
        value=value,
        elem_id="status",
        html_template="""<section class="where" aria-label="What runs where">
<details><summary></summary>
<table><thead><tr><th>what</th><th>which</th><th>where it runs</th><th>what is sent there</th></tr></thead>
<tbody></tbody></table>
<p>Your browser ranks the answers and keeps your runs for reload; moving a slider sends nothing. The app writes no text
to a file or log.</p>
</details>
<p class="status" role="status"></p></section>""",
        js_on_load="""
const [summary, rows, line] = ["summary", "tbody", ".status"].map((part) => element.querySelector(part));
const show = () => {
  const { sent, parts, line: text } = props.value ?? { sent: "", parts: [], line: "" };
  if (line.textContent !== text) line.textContent = text;
  summary.textContent = sent;
  rows.replaceChildren(...parts.map(({ does, name, where, sent: texts }) => {
    const row = document.createElement("tr");
    for (const cell of [does, name, where, texts || "nothing"]) row.insertCell().textContent = cell;
    return row;
  }));
};
watch("value", show);
show();""",
        apply_default_css=False,
    )
