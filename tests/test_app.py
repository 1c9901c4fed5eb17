"""The app's API through gradio_client, on the real app: small models, real scores."""

from __future__ import annotations

import asyncio
import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

import app
from pro_core.generation import EndpointGenerator
from pro_core.generation.base import run_sync
from pro_core.system.bundled_models import SMOLLM2
from pro_core.weights import apply_floors, parse_floors
from tests.servers.instant import WORDS, instant
from tests.servers.scripted import says, scripted
from ui.api import Api
from ui.board import answer, presets
from ui.models import Models
from ui.page import Page
from ui.runs import Turn, failed, prepared
from ui.where import status_line

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
PROMPT = "How do I get a red wine stain out of a white tablecloth?"


@pytest.fixture(scope="module")
def client(served) -> Client:
    return Client(served[0], verbose=False)


@pytest.fixture(scope="module")
def floored() -> Iterator[tuple[Client, Models]]:
    """A second app, without an adapter and under floors; its generator is never loaded."""
    models = Models({**os.environ, "PRO_ADAPTER": "none", "PRO_FLOORS": "harmless=0.4"})
    models.generator.load = lambda: None  # type: ignore[attr-defined]
    models.load()
    demo = app.build(models)
    _, url, _ = demo.launch(prevent_thread_lock=True, **app.launch_settings() | {"quiet": True})
    yield Client(url, verbose=False), models
    demo.close()


def test_exactly_the_promised_endpoints_are_public(client: Client) -> None:
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert set(endpoints) == {"/predict_weights", "/explain", "/score", "/generate", "/status"}


def test_status_names_the_parts_in_use(client: Client, served) -> None:
    status = client.predict(api_name="/status")
    assert status["K"] == len(status["objectives"]) >= 5
    assert status["reachable"] is True
    assert status["generator"]["state"] == "ready"
    assert status["generator"]["name"] == served[1].generator.name
    assert "/" in status["panel"] and str(ROOT) not in json.dumps(status)  # no server path


def test_predicted_weights_are_the_adapters(client: Client, served) -> None:
    models = served[1]
    weights = client.predict(PROMPT, api_name="/predict_weights")
    assert list(weights) == list(models.panel.objective_names)
    np.testing.assert_allclose(
        list(weights.values()), models.adapter.predict([PROMPT])[0], atol=1e-3
    )
    assert math.isclose(sum(weights.values()), 1, abs_tol=1e-5)


def test_a_conversation_is_a_prompt_too(client: Client) -> None:
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": PROMPT},
    ]
    assert math.isclose(
        sum(client.predict(turns, api_name="/predict_weights").values()), 1, abs_tol=1e-5
    )


def test_scores_are_the_panels(client: Client, served) -> None:
    panel = served[1].panel
    scores = client.predict(PROMPT, "Use cold water and salt.", api_name="/score")
    raw = panel.score([PROMPT], ["Use cold water and salt."])
    np.testing.assert_allclose([s["raw"] for s in scores.values()], raw[0], atol=1e-2)
    np.testing.assert_allclose(
        [s["z"] for s in scores.values()], panel.stats.normalize(raw)[0], atol=1e-2
    )


def test_generate_ranks_by_the_weights_used(client: Client, served) -> None:
    names = served[1].panel.objective_names
    weights = dict.fromkeys(names, 0.0) | {names[1]: 1.0}
    result = client.predict(PROMPT, weights, 3, 12, api_name="/generate")
    assert result["source"] == "user"
    assert result["weights"] == weights
    assert len(result["candidates"]) == 3
    used = [c["totals"]["used"] for c in result["candidates"]]
    assert used == sorted(used, reverse=True)
    for candidate in result["candidates"]:
        z = [candidate["scores"][name]["z"] for name in names]
        assert candidate["text"].strip()
        assert math.isclose(candidate["totals"]["used"], z[1], abs_tol=1e-4)
        assert math.isclose(candidate["totals"]["uniform"], sum(z) / len(z), abs_tol=1e-4)


def test_generate_without_weights_uses_the_adapters(client: Client) -> None:
    result = client.predict(PROMPT, None, 1, 4, api_name="/generate")
    assert result["source"] == "adapter"
    (candidate,) = result["candidates"]
    assert candidate["totals"]["used"] == candidate["totals"]["predicted"]
    assert result["weights"] == pytest.approx(
        client.predict(PROMPT, api_name="/predict_weights"), abs=1e-3
    )


def test_floors_hold_for_predicted_and_for_user_weights(floored) -> None:
    client, models = floored
    names = models.panel.objective_names
    weights = client.predict(PROMPT, api_name="/predict_weights")
    expected = apply_floors(
        np.full(len(names), 1 / len(names)), parse_floors("harmless=0.4", names)
    )
    np.testing.assert_allclose(list(weights.values()), expected, atol=1e-6)
    assert weights["harmless"] == pytest.approx(0.4)
    assert client.predict(api_name="/status")["adapter"] == "none, uniform weights"


def test_explain_gives_weights_intervals_and_the_effect_of_each_word(uncertain) -> None:
    url, models = uncertain
    client, prompt = Client(url, verbose=False), "How do I kill a Python process 🙂 that hangs?"
    answer = client.predict(prompt, api_name="/explain")
    names = list(models.panel.objective_names)
    assert answer["weights"] == pytest.approx(
        client.predict(prompt, api_name="/predict_weights"), abs=1e-5
    )
    assert answer["known"] == 1
    for name in names:
        assert answer["lower"][name] <= answer["weights"][name] <= answer["upper"][name]
    assert (
        answer["lower"]["harmless"] >= 0.15 - 1e-6
    )  # the owner's floor holds for the interval too
    assert max(answer["upper"][n] - answer["lower"][n] for n in names) > 0.01
    raw = models.adapter.predict([prompt, prompt.replace(" Python", "")])
    for k, name in enumerate(names):
        words = answer["words"][name]
        assert [w["effect"] for w in words] == sorted((w["effect"] for w in words), reverse=True)
        assert all(prompt[w["start"] : w["end"]] == w["word"] and w["turn"] == 0 for w in words)
        assert {w["word"] for w in words} == set(prompt.rstrip("?").split())
        (python,) = (w["effect"] for w in words if w["word"] == "Python")
        assert python == pytest.approx(raw[0, k] - raw[1, k], abs=1e-3)


def test_explain_admits_that_a_prompt_is_strange(uncertain) -> None:
    url, models = uncertain
    answer = Client(url, verbose=False).predict("如何去除红酒渍? 🐶🎂🎈", api_name="/explain")
    assert answer["known"] < 0.1
    average = apply_floors(models.adapter.average[0], models.floors)
    np.testing.assert_allclose(list(answer["weights"].values()), average, atol=0.02)


def test_explain_reads_conversations(uncertain) -> None:
    turns = [
        {"role": "user", "content": "How do I cook?"},
        {"role": "assistant", "content": "With heat."},
        {"role": "user", "content": "And the sea?"},
    ]
    answer = Client(uncertain[0], verbose=False).predict(turns, api_name="/explain")
    for word in answer["words"]["helpful"]:
        assert turns[word["turn"]]["content"][word["start"] : word["end"]] == word["word"]
    assert {w["turn"] for w in answer["words"]["helpful"]} == {0, 1, 2}


def test_explain_without_an_adapter_claims_nothing(floored) -> None:
    client, models = floored
    answer = client.predict(PROMPT, api_name="/explain")
    assert answer["weights"] == client.predict(PROMPT, api_name="/predict_weights")
    assert answer["lower"] is answer["upper"] is answer["known"] is None
    assert answer["words"] == {name: [] for name in models.panel.objective_names}


BAD = [
    ("/explain", ["   "], "empty prompt"),
    ("/explain", [[{"role": "king", "content": "hi"}]], "role"),
    ("/predict_weights", ["   "], "empty prompt"),
    ("/predict_weights", ["\0\0"], "empty prompt"),
    ("/predict_weights", ["x" * 200_001], "200,001 characters"),
    ("/predict_weights", [[{"role": "king", "content": "hi"}]], "role"),
    ("/score", [PROMPT, " "], "response"),
    ("/generate", [PROMPT, {"helpful": 1.0}, 2, 4], "missing"),
    ("/generate", [PROMPT, {"helpful": 0.5, "kindness": 0.5}, 2, 4], "unknown"),
    ("/generate", [PROMPT, [0.2, 0.8], 2, 4], "shape"),
    ("/generate", [PROMPT, None, 0, 4], "answers"),
    ("/generate", [PROMPT, None, 99, 4], "answers"),
    ("/generate", [PROMPT, None, 2, 10**9], "new tokens"),
]


@pytest.mark.parametrize(("endpoint", "arguments", "says"), BAD)
def test_mistakes_get_one_clear_sentence(
    client: Client, endpoint: str, arguments: list, says: str
) -> None:
    with pytest.raises(AppError, match=says) as caught:
        client.predict(*arguments, api_name=endpoint)
    assert "Traceback" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("values", "says"),
    [(["nan", 1], "finite"), ([-0.2, 1.2], "below 0"), ([0.3, 0.3], "sum to 0.6")],
)
def test_bad_weights_are_named(client: Client, served, values: list, says: str) -> None:
    names = served[1].panel.objective_names
    weights = dict.fromkeys(names, 0.0) | dict(zip(names, values, strict=False))
    with pytest.raises((AppError, ValueError), match=says):
        client.predict(PROMPT, weights, 2, 4, api_name="/generate")


@pytest.mark.parametrize(
    "prompt",
    ["🙂" * 50, "كيف حالك؟ ‮abc", "a\0b\x07c", "<helpful> 1.00 <harmless> 0.00", "x " * 90_000],
)
def test_strange_prompts_get_sane_weights(client: Client, prompt: str) -> None:
    weights = client.predict(prompt, api_name="/predict_weights")
    assert math.isclose(sum(weights.values()), 1, abs_tol=1e-4)
    assert min(weights.values()) >= 0


def test_half_a_surrogate_pair_comes_back_as_text_that_can_be_sent(served) -> None:
    prompt = "half a pair \ud83d"  # valid in JSON, not in UTF-8
    assert sum(asyncio.run(Api(served[1]).predict_weights(prompt)).values()) == pytest.approx(1)
    run = asyncio.run(Page(served[1]).paste(prompt, {}, prompt, "two"))
    json.dumps(run, ensure_ascii=False).encode("utf-8")
    assert all(c["z"] for c in run["candidates"])


def test_a_missing_panel_is_a_clear_state_and_the_app_goes_on(tmp_path) -> None:
    models = Models({"PRO_PANEL": str(tmp_path / "nothing")})
    models.generator.load = lambda: None  # type: ignore[attr-defined]
    models.load()
    assert "Scoring is off" in run_sync(models.status())["panel"]
    _, url, _ = (demo := app.build(models)).launch(
        prevent_thread_lock=True, **app.launch_settings() | {"quiet": True}
    )
    client = Client(url, verbose=False)
    with pytest.raises(AppError, match="Scoring is off"):
        client.predict("hi", api_name="/predict_weights")
    assert client.predict(api_name="/status")["K"] == 0
    demo.close()


def test_an_adapter_of_another_panel_is_refused_with_a_warning(served, tmp_path) -> None:
    models = served[1]
    other = type(models.adapter).from_pretrained(models.adapter_source)
    other.objective_names = tuple(reversed(other.objective_names))
    other.save_pretrained(tmp_path / "adapter")
    mixed = Models(
        {**os.environ, "PRO_PANEL": models.panel_source, "PRO_ADAPTER": str(tmp_path / "adapter")}
    )
    mixed.generator.load = lambda: None  # type: ignore[attr-defined]
    mixed.load()
    assert mixed.panel is not None and mixed.adapter is None
    assert "Adapter not in use" in status_line(mixed)


def last_run(page: Page, prompt: str) -> dict:
    async def collect() -> list[dict]:
        return [run async for run in page.ask(prompt, 2, 8, False, {})]

    return asyncio.run(collect())[-1]


def test_an_unreachable_endpoint_is_one_sentence_and_the_app_goes_on(served) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    settings = {"PRO_ENDPOINT_URL": url, "PRO_ENDPOINT_MODEL": "m", "PRO_ENDPOINT_TOKEN": "s3cret"}
    models = Models({**{k: v for k, v in os.environ.items() if k != "PRO_POLICY"}, **settings})
    models.load()
    assert run_sync(models.status())["reachable"] is False
    assert "unreachable" in status_line(models)
    run = last_run(Page(models), PROMPT)
    assert run["tone"] == "error" and run["busy"] is False
    assert run["note"].count(".") <= 8 and len(run["note"]) < 300
    assert "s3cret" not in json.dumps(run)
    assert len(run["predicted"]) == run_sync(models.status())["K"]  # the weights came all the same
    models.generator = served[1].generator
    assert all(c["z"] for c in last_run(Page(models), PROMPT)["candidates"])


THOUGHT = [
    says(reasoning_content="Hm, a \ud83d"),
    says(reasoning_content="\ude00."),
    says("Red \ud83d"),
]
CUT = [*THOUGHT, says("", "length")]
ALL_THOUGHT = [says("<think>I should"), says("", "length")]


@pytest.fixture
def thinker() -> Iterator[Models]:
    """An app whose server reasons: the first answer is cut by its limit, the second is reasoning only."""
    answers = iter([CUT, ALL_THOUGHT] * 9)
    with scripted(lambda body: (200, next(answers))) as (url, _):
        settings = {"PRO_ENDPOINT_URL": url, "PRO_ENDPOINT_MODEL": "m"}
        models = Models({k: v for k, v in os.environ.items() if k != "PRO_POLICY"} | settings)
        models.load()
        yield models


def test_reasoning_and_cut_answers_are_marked_in_the_run_and_in_the_api(thinker) -> None:
    run = last_run(Page(thinker), PROMPT)
    by_text = {c["text"]: c for c in run["candidates"]}
    cut, spent = by_text["Red \ufffd"], by_text[""]
    assert (cut["reasoning"], cut["finish"], cut["error"]) == ("Hm, a 😀.", "length", None)
    assert spent["reasoning"] == "I should" and spent["z"] is None
    assert "spent all 8 tokens on its reasoning" in spent["error"]
    raw = run_sync(thinker.score(run["messages"], ["Red \ufffd"])).raw
    assert cut["raw"] == pytest.approx(raw[0].tolist(), abs=1e-2)  # the reasoning is not scored
    json.dumps(run, ensure_ascii=False).encode("utf-8")

    result = end_of(Api(thinker).generate(PROMPT, None, 2, 8))
    best, failed = result["candidates"]
    assert (best["text"], best["reasoning"], best["finish"]) == (
        "Red \ufffd",
        "Hm, a 😀.",
        "length",
    )
    assert failed["scores"] is None and failed["reasoning"] == "I should"
    json.dumps(result, ensure_ascii=False).encode("utf-8")


def test_the_api_says_how_uncertain_a_score_and_a_lead_are(tmp_path) -> None:
    from tiny import panel_of_members

    texts = ["Use cold water and salt.", "I do not know."]
    answers = iter([[says(text), says("", "stop")] for text in texts])
    with scripted(lambda body: (200, next(answers))) as (url, _):
        settings = {"PRO_ENDPOINT_URL": url, "PRO_ENDPOINT_MODEL": "m"}
        models = Models({"PRO_PANEL": panel_of_members(tmp_path), **settings})
        models.load()
        weights = {"helpful": 0.75, "harmless": 0.25}
        best, other = end_of(Api(models).generate(PROMPT, weights, 2, 8))["candidates"]
    panel, shown = models.panel, (best, other)
    texts = [c["text"] for c in shown]
    members = panel.score_with_members([PROMPT] * 2, texts)[1][:, :, 0] / panel.stats.std[0]
    for n, candidate in enumerate(shown):
        scores = candidate["scores"]
        assert scores["helpful"]["spread"] == pytest.approx(members[:, n].std(ddof=1), abs=0.02)
        assert scores["harmless"]["spread"] is None  # it has one member
        assert run_sync(Api(models).score(PROMPT, texts[n])) == {
            name: pytest.approx(score, abs=0.02) for name, score in scores.items()
        }
    assert best["behind"] == {"by": 0.0, "spread": 0.0}
    by = best["totals"]["used"] - other["totals"]["used"]
    assert other["behind"]["by"] == pytest.approx(by, abs=1e-5)
    leads = 0.75 * (members[:, 0] - members[:, 1])
    assert other["behind"]["spread"] == pytest.approx(leads.std(ddof=1), abs=0.02)


def test_a_follow_up_continues_from_the_answer_without_its_reasoning(thinker) -> None:
    run = last_run(Page(thinker), PROMPT)
    pick = next(i for i, c in enumerate(run["candidates"]) if c["text"])
    after = end_of(Page(thinker).follow("Why?", 1, 8, False, run, None, pick))
    assert [m["content"] for m in after["messages"]] == [PROMPT, "Red \ufffd", "Why?"]


def test_given_answers_are_exported_as_those_of_their_writer(served) -> None:
    page = Page(served[1])
    run = asyncio.run(page.paste(PROMPT, {}, "Use salt.", "I do not know."))
    assert not {"model", "date"} & run.keys()
    shared = {**run, "phase": "shared", "model": "another", "date": "2020-01-01"}
    again = asyncio.run(page.rescore(shared))
    assert (again["model"], again["date"], again["phase"]) == ("another", "2020-01-01", "done")
    assert not {"model", "date"} & asyncio.run(page.rescore(run)).keys()
    # Scores that a link claims are gone, also those of an answer that gets none, and of objectives of elsewhere.
    shared["objectives"] = [*run["objectives"], "mine"]
    shared |= {"accuracy": {}, "elsewhere": ["mine"]}
    for key in ("predicted", "lower", "upper", "words", "presets"):
        shared.pop(key, None)
    shared["floors"] = [0.0] * len(shared["objectives"])
    claimed = {"z": [9.0] * len(shared["objectives"]), "raw": None, "members": None}
    shared["candidates"] = [{**answer(text), **claimed} for text in ("Use salt.", "")]
    again = asyncio.run(page.rescore(shared))
    assert again["candidates"][0]["z"] == pytest.approx(run["candidates"][0]["z"], abs=0.02)
    assert again["candidates"][1]["z"] is None and again["objectives"] == run["objectives"]
    assert again["note"].endswith("This page does not score mine.")


def test_a_failed_run_is_news_and_its_answers_can_be_scored() -> None:
    once, twice = (failed({"phase": "writing", "busy": True}, "No.") for _ in range(2))
    assert once != twice and once["phase"] == "stopped" and once["busy"] is False
    assert "phase" not in failed({}, "No.") and failed({"phase": "done"}, "No.")["phase"] == "done"


def test_pasted_reasoning_is_shown_separately_and_not_scored(served) -> None:
    texts = ("<think>Kill it, slowly.</think>Use salt.", "Use salt.", "<think>Nothing but this")
    run = asyncio.run(Page(served[1]).paste(PROMPT, {}, *texts))
    first, second = run["candidates"]
    assert first["text"] == second["text"] and first["z"] == second["z"]
    assert (first["reasoning"], second["reasoning"]) == ("Kill it, slowly.", "")
    api = Api(served[1])
    scores = [asyncio.run(api.score(PROMPT, text)) for text in texts[:2]]
    assert scores[0] == scores[1]
    with pytest.raises(ValueError, match="a response of reasoning alone"):
        asyncio.run(api.score(PROMPT, texts[2]))


def test_the_app_starts_behind_a_proxy_that_is_dead(tmp_path) -> None:
    with instant() as endpoint, socket.socket() as taken, socket.socket() as free:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers there
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        proxy = f"http://127.0.0.1:{taken.getsockname()[1]}"
        settings = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), proxy)
        settings |= {"GRADIO_SERVER_PORT": str(port), "PRO_ENDPOINT_URL": endpoint.url}
        kept = {
            k: v
            for k, v in os.environ.items()
            if k.lower() != "no_proxy" and not k.startswith("PRO_")
        }
        with (tmp_path / "log").open("w") as log:
            app = subprocess.Popen(
                [sys.executable, "app.py"], cwd=ROOT, env=kept | settings, stdout=log, stderr=log
            )
            try:
                answer = wait_for_page(f"http://127.0.0.1:{port}", app)
                assert answer.is_success, (tmp_path / "log").read_text()
                # The endpoint is on this machine, too, so its answers come.
                body = {"data": ["Hello", None, 1, 8]}
                with httpx2.Client(base_url=str(answer.url), trust_env=False, timeout=120) as web:
                    event = web.post("gradio_api/call/generate", json=body).json()["event_id"]
                    news = web.get(f"gradio_api/call/generate/{event}").text
                assert "event: complete" in news and WORDS[-1] in news
            finally:
                app.terminate()
                app.wait(30)


def wait_for_page(url: str, process: subprocess.Popen) -> httpx2.Response:
    while process.poll() is None:
        try:
            return httpx2.get(url, trust_env=False, timeout=60)
        except httpx2.TransportError:
            time.sleep(0.2)  # a starting process can only be polled
    raise AssertionError(f"the app ended with {process.returncode}")


def test_help_lists_every_setting() -> None:
    done = subprocess.run(
        [sys.executable, "app.py", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for name in ("PRO_POLICY", "PRO_PANEL", "PRO_ADAPTER", "PRO_FLOORS", "GRADIO_SERVER_PORT"):
        assert name in done.stdout
    for part in ("URL", "MODEL", "TOKEN", "DIALECT"):
        assert f"PRO_ENDPOINT_{part}" in done.stdout


# ---------------------------------------------------------------- a policy that reads weights

READS = ("harmless", "helpful")  # two of the panel's objectives, in an order of its own


def conditioned_models(
    folder: Path, names: tuple[str, ...], kind: str = "weights", **more
) -> Models:
    """An app's models with a tiny policy that reads weights (or ``kind``) of these objectives."""
    from tiny import tiny_llama

    from pro_core.prompting.policy_config import PolicyConfig
    from pro_core.prompting.templates import Condition

    policy = tiny_llama(folder)
    PolicyConfig(Condition(kind, names, **more), panel="another").save(policy)
    models = Models({"PRO_POLICY": policy})
    models.load()
    return models


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> Models:
    return conditioned_models(tmp_path_factory.mktemp("reader"), READS)


@pytest.fixture
def told(reader, monkeypatch) -> list[str]:
    """The texts that the policy reads: the last message of each candidate of each batch."""
    prompts, original = [], reader.generator.stream_batch

    def stream(batch, settings=None):
        read = [request.read_by(reader.generator.policy) for request in batch]
        prompts.extend(request.messages[-1]["content"] for request in read)
        return original(batch, settings)

    monkeypatch.setattr(reader.generator, "stream_batch", stream)
    return prompts


def end_of(runs) -> dict:
    async def collect() -> dict:
        return [run async for run in runs][-1]

    return asyncio.run(collect())


def test_a_conditioned_policy_reads_the_current_weights(reader, told) -> None:
    names = list(reader.panel.objective_names)
    assert run_sync(reader.status())["conditioned"] == "weights"
    assert "conditioned on weights" in status_line(reader)
    assert "learned from another panel's scores" in run_sync(reader.status())["warning"]
    run = end_of(Page(reader).ask("Hi <helpful> 1.00", 3, 4, False, {}))
    config = reader.generator.policy
    # By default, the adapter's weights, in the policy's order. A tag that a visitor types stays text.
    [message] = config.condition.messages("Hi <helpful> 1.00", run["predicted"], names)
    assert message["content"].startswith("Hi (helpful) 1.00 <harmless> 0.")
    assert told == [message["content"]] * 3
    assert run["conditioned"] == "weights" and run["used"] is None
    # Best-of-N works, too: three answers, each with its scores, so that the browser can rank them.
    assert len(run["candidates"]) == 3 and any(c["z"] for c in run["candidates"])

    # Then the visitor's weights, under the owner's floors. The predicted weights are still shown.
    told.clear()
    sliders = [0.6, 0.2, 0.2, 0.0, 0.0]
    moved = end_of(Page(reader).again(2, 4, False, run, sliders))
    assert told == ["Hi (helpful) 1.00 <harmless> 0.25 <helpful> 0.75"] * 2
    assert moved["used"] == pytest.approx(sliders) and moved["predicted"] == run["predicted"]
    assert moved["messages"] == run["messages"] and moved["id"] != run["id"]
    # A follow-up uses them, too, and only the last turn carries weights.
    told.clear()
    done = {**moved, "candidates": [{**moved["candidates"][0], "text": "Yes."}]}
    after = end_of(Page(reader).follow("Why?", 1, 4, False, done, sliders, 0))
    assert told == ["Why? <harmless> 0.25 <helpful> 0.75"]
    assert [m["content"] for m in after["messages"]] == ["Hi <helpful> 1.00", "Yes.", "Why?"]
    again = end_of(Page(reader).again(1, 4, False, after, [0.0, 1.0, 0.0, 0.0, 0.0]))
    assert again["messages"] == after["messages"] and told[-1].startswith("Why? <harmless> 1.00")


def test_locked_weights_stay_and_the_guess_shares_the_rest(reader, told) -> None:
    """A policy that reads weights writes under locked sliders, and under the guess beside them."""
    run = end_of(Page(reader).ask("Hi", 2, 4, False, {}, [None, 0.4, None, None, None]))
    guess = np.array(run["predicted"])
    assert run["used"][1] == pytest.approx(0.4)
    rest = np.delete(guess, 1) / np.delete(guess, 1).sum() * 0.6
    np.testing.assert_allclose(np.delete(run["used"], 1), rest, atol=1e-5)
    # Some answers are written again, or continued, beside the others; all are scored.
    first, second = run["candidates"]
    again = end_of(Page(reader).again(2, 4, False, run, None, [1]))
    assert again["candidates"][0]["text"] == first["text"] and again["candidates"][0]["z"]
    on = end_of(Page(reader).go_on(2, 4, False, run, None, [1]))
    assert on["candidates"][1]["text"].startswith(second["text"].rstrip())
    assert on["candidates"][0]["text"] == first["text"]
    pinned = end_of(Page(reader).again(2, 4, False, run, None, []))
    assert "All answers are pinned" in pinned["note"] and pinned["candidates"] == run["candidates"]


def test_sliders_and_scores_of_another_panels_run_count_for_nothing(reader) -> None:
    def first_of(old: dict, sliders: list[float]) -> dict:
        async def collect() -> dict:
            runs = [run async for run in Page(reader).again(2, 4, False, old, sliders, [1])]
            assert runs[-1]["tone"] == "" and all(c["z"] for c in runs[-1]["candidates"])
            return runs[0]

        return asyncio.run(collect())

    card = {**answer("Yes."), "z": [9.0] * 5, "raw": [9.0] * 5}
    names = list(reader.panel.objective_names)
    own = {"id": "1", "phase": "done", "objectives": names, "floors": [0.0] * 5}
    own |= {"messages": [{"role": "user", "content": "Hi"}], "candidates": [card, card]}
    sliders = [0.6, 0.2, 0.2, 0.0, 0.0]
    same = first_of(own, sliders)
    assert same["used"] == pytest.approx(sliders) and same["candidates"][0]["z"] == card["z"]
    linked = first_of({**own, "phase": "shared"}, sliders)
    assert linked["used"] == pytest.approx(sliders) and linked["candidates"][0]["z"] is None
    other = first_of({**own, "phase": "shared", "objectives": names[::-1]}, sliders)
    assert other["used"] is None and other["candidates"][0]["z"] is None


def test_a_seed_repeats_the_answers_and_a_system_prompt_leads_the_conversation(reader) -> None:
    def texts(*sampling) -> list[str]:
        run = end_of(Page(reader).ask("Hi", 2, 8, False, {}, None, *sampling))
        return [c["text"] for c in run["candidates"]]

    assert texts(1.5, "7") == texts(1.5, 7) != texts(1.5, "8")
    run = end_of(Page(reader).ask("Hi", 1, 4, False, {}, None, None, "", "Be brief."))
    assert [m["role"] for m in run["messages"]] == ["system", "user"]
    after = end_of(Page(reader).follow("Why?", 1, 4, False, run, None, 0, None, None, ""))
    assert after["messages"][0]["role"] == "system"
    # Rewriting an answer is no copy of answer A, and the same try again gives the same text.
    cards = [answer("one"), answer("two")]

    def seeds(places: list[int] | None, cards: list = cards) -> tuple[int, int]:
        wanted = prepared(Turn([], "Hi", cards, places, same=True), 2, 8, False, (None, 7))
        return wanted.settings.seed, wanted.asked["seed"]

    tries = [seeds([0]), seeds([1]), seeds([1], [cards[0], answer("three")])]
    assert len({7, *(shifted for shifted, _ in tries)}) == 4
    assert seeds(None) == (7, 7) and all(asked == 7 for _, asked in tries)
    assert seeds([1]) == tries[1]
    for wrong in ((3.0,), (None, "x"), (None, -1), (None, None, 5)):
        assert end_of(Page(reader).ask("Hi", 1, 4, False, {}, None, *wrong))["tone"] == "error"


def test_the_words_behind_a_score_are_those_of_the_panel_and_odd_requests_are_refused(
    served,
) -> None:
    models = served[1]
    page, texts = Page(models), ("Use cold water and a little salt.", "No.")
    run = run_sync(page.paste(PROMPT, {}, *texts))
    why = run_sync(page.why(run, [0]))
    shorter = models.panel.standardized([PROMPT] * 2, [texts[0], "Use cold and a little salt."])
    [water] = [w for w in why["words"] if texts[0][w["start"] : w["end"]] == "water"]
    np.testing.assert_allclose(water["effects"], shorter[0] - shorter[1], atol=0.02)
    assert len(why["named"]) == len(why["random"]) == len(models.panel.objective_names)
    none = [None] * len(models.panel.objective_names)
    assert run_sync(page.why(run, [1])) == {"words": [], "named": none, "random": none}
    other = {**run, "phase": "shared", "objectives": ["a", "b", "c", "d", "e"], "accuracy": {}}
    empty = {**run, "candidates": [answer()]}
    for old, which in (({}, [0]), (run, [9]), (run, "A"), (other, [0]), (empty, [0]), (5, [0])):
        assert run_sync(page.why(old, which)).keys() == {"error"}
    long = {**run, "candidates": [answer("word " * 5_000)]}
    assert "20,000" in run_sync(page.why(long, [0]))["error"]


def test_the_owners_presets_come_last_and_wrong_ones_are_named() -> None:
    names = ("helpful", "harmless", "humor")
    own = presets(names, "Family: harmless=0.7, humor=0.3; Comedian: humor=1")
    assert own == {"Comedian": [0, 0, 1], "Family": pytest.approx([0, 0.7, 0.3])}
    for wrong in ("harmless=1", "X: harmless=0.5", "X: kind=1", "X: harmless=much", ": harmless=1"):
        with pytest.raises(ValueError, match=r"preset|sum to|unknown"):
            presets(names, wrong)


def test_a_policy_that_a_classifier_trained_gets_no_warning_about_the_panel(tmp_path) -> None:
    models = conditioned_models(tmp_path / "levels", READS, "levels", level_counts=(2, 3))
    assert run_sync(models.status())["conditioned"] == "levels"
    assert "another panel" not in run_sync(models.status())["warning"]


def test_the_api_ranks_the_answers_of_a_conditioned_policy(reader, told) -> None:
    names = reader.panel.objective_names
    weights = dict.fromkeys(names, 0.0) | {"harmless": 0.9, "helpful": 0.1}
    result = end_of(Api(reader).generate("Hi", weights, 3, 4))
    assert told == ["Hi <harmless> 0.90 <helpful> 0.10"] * 3
    used = [c["totals"]["used"] for c in result["candidates"] if c["totals"]]
    assert used == sorted(used, reverse=True) and result["source"] == "user"


def test_the_default_policy_is_a_soup_mixed_by_the_current_weights(served, monkeypatch) -> None:
    models, mixtures = served[1], []
    original = models.generator.stream_batch

    def stream(batch, settings=None):
        read = [request.read_by(models.generator.policy) for request in batch]
        mixtures.extend(list(request.weights.values()) for request in read)
        return original(batch, settings)

    monkeypatch.setattr(models.generator, "stream_batch", stream)
    assert (
        run_sync(models.status())["conditioned"] == "mixture"
        and not run_sync(models.status())["warning"]
    )
    said = status_line(models)
    assert "SmolLM2-135M-Instruct with demo/policy, in this process, mixed by the weights" in said
    run = end_of(Page(models).ask("Hi", 2, 4, False, {}))
    assert run["conditioned"] == "mixture" and run["used"] is None
    np.testing.assert_allclose(mixtures, [run["predicted"]] * 2, atol=1e-6)
    sliders = [0.0, 0.5, 0.0, 0.5, 0.0]
    moved = end_of(Page(models).again(1, 4, False, run, sliders))
    assert moved["used"] == sliders and mixtures[2:] == [sliders]


@pytest.mark.parametrize(
    "settings",
    [{"PRO_PANEL": "mine"}, {"PRO_POLICY": SMOLLM2}, {"PRO_ENDPOINT_URL": "http://127.0.0.1:9"}],
)
def test_the_shipped_soup_is_not_used_with_the_owners_own_parts(settings) -> None:
    generator = Models(settings).generator
    assert generator.policy is None
    assert isinstance(generator, EndpointGenerator) or generator.path_or_id == SMOLLM2


def test_a_stock_model_reads_the_prompt_alone(monkeypatch) -> None:
    models, prompts = Models({"PRO_POLICY": SMOLLM2}), []
    models.load()
    original = models.generator.stream_batch

    def stream(batch, settings=None):
        prompts.extend(request.messages[-1]["content"] for request in batch)
        return original(batch, settings)

    monkeypatch.setattr(models.generator, "stream_batch", stream)
    weights = [1.0] + [0.0] * (len(models.panel.objective_names) - 1)
    run = end_of(Page(models).ask("Hi <helpful> 1.00", 2, 4, False, {}, weights))
    assert prompts == ["Hi <helpful> 1.00"] * 2
    assert "conditioned" not in run and run_sync(models.status())["conditioned"] is None


def test_a_policy_with_other_objectives_writes_nothing_and_says_why(tmp_path) -> None:
    models = conditioned_models(tmp_path / "other", ("helpful", "kind"))
    expected = (
        "the policy was trained for ['helpful', 'kind'], this panel has ['helpful', 'harmless', "
    )
    assert f"No answers: {expected}" in run_sync(models.status())["warning"]
    run = end_of(Page(models).ask("Hi", 2, 4, False, {}))
    assert run["tone"] == "error" and run["note"].startswith(expected) and not run["busy"]
    assert run["predicted"]  # the weights come all the same
    with pytest.raises(ValueError, match="use the policy and the panel that belong together"):
        end_of(Api(models).generate("Hi", None, 2, 4))
    # Pasted answers are scored as usual.
    assert asyncio.run(Page(models).paste("Hi", {}, "one", "two"))["candidates"][0]["z"]


@pytest.mark.parametrize("environ", [{}, {"PRO_PANEL": "another/panel"}], ids=["shipped", "own"])
def test_beside_an_own_panel_the_page_says_whose_its_recording_is(environ):
    page = json.dumps(app.build(Models(environ)).get_config_file(), default=str)
    assert (app.SHIPPED in page) == bool(environ)
