"""Whose quota pays for answers, what runs where, and which texts are sent there.

The router is a small server of ours that checks the token. The sign-in itself needs the hub: here it is the session
that Gradio's own sign-in leaves, and Gradio gives its token to the page's handler as on a Space.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fastapi
import pytest
from gradio.helpers import special_args
from gradio.route_utils import Request

from pro_core.generation.base import run_sync
from pro_core.rewards.panel import RewardPanel
from tests.servers.rewards import RewardServer, serving
from ui.door import Door
from ui.models import Models, SignInWanted
from ui.page import Page
from ui.sign_in import WANTED, can_sign_in, for_visitors, wants_sign_in
from ui.where import where

ROUTER = {"PRO_ENDPOINT_MODEL": "org/model", "PRO_ENDPOINT_SIGN_IN": "1"}


class Router:
    """Chats for two accounts; another token is refused, and an account without quota gets a 402."""

    def __init__(self) -> None:
        self.url, self.token, self.bearer = "", None, ""
        self.asked: list[tuple[str, str]] = []

    def get(self, path: str) -> tuple[int, Any]:
        return 401, {"error": "no token"}

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        token = self.bearer
        self.asked.append((token, body["model"]))
        if token == "hf_spent":
            return 402, {"error": {"message": "You have used up your monthly credits"}}
        if token not in ("hf_anna", "hf_ben"):
            return 401, {"error": {"message": f"bad token {token}"}}
        choice = {"message": {"content": f"Hello {token[3:]}."}, "finish_reason": "stop"}
        return 200, {"choices": [choice]}


@pytest.fixture(scope="module")
def router() -> Iterator[Router]:
    with serving(Router()) as server:
        yield server


@pytest.fixture(scope="module")
def models(router: Router) -> Models:
    settings = {"PRO_ENDPOINT_URL": f"{router.url}/v1", "PRO_ADAPTER": "none", **ROUTER}
    made = Models({k: v for k, v in os.environ.items() if not k.startswith("PRO_")} | settings)
    made.load()
    return made


def session(token: str | None, seconds: float = 3600.0) -> Request:
    """A request of a visitor, after Gradio's sign-in (None: without one)."""
    info = {"access_token": token, "scope": "inference-api", "expires_at": time.time() + seconds}
    scope = {"type": "http", "headers": [], "session": {"oauth_info": info} if token else {}}
    return Request(fastapi.Request(scope))


def asked_by(models: Models, visitor: Request) -> list[Any]:
    """The runs that a visitor gets who asks."""
    handler = for_visitors(Page(models), "ask")
    values = special_args(handler, ["Hi", 2, 16, False, {}, None, 0.7, "", ""], visitor)[0]

    async def collect() -> list[Any]:
        async with aclosing(handler(*values)) as runs:
            return [run async for run in runs]

    return run_sync(collect())


def test_answers_are_written_with_the_token_of_whoever_asks(models: Models, router: Router) -> None:
    for name in ("anna", "ben"):
        router.asked.clear()
        runs = asked_by(models, session(f"hf_{name}"))
        assert [c["text"] for c in runs[-1]["candidates"]] == [f"Hello {name}."] * 2
        assert router.asked == [(f"hf_{name}", "org/model")] * 2
        assert f"hf_{name}" not in json.dumps(runs)


@pytest.mark.parametrize("visitor", [session(None), session("hf_anna", -1.0)], ids=["none", "old"])
def test_who_has_not_signed_in_gets_the_weights_and_is_asked_to(
    models: Models, router: Router, visitor: Request
) -> None:
    router.asked.clear()
    runs = asked_by(models, visitor)
    assert runs[-1]["note"] == WANTED and runs[-1]["tone"] == "error"
    assert runs[-1]["messages"][-1]["content"] == "Hi" and runs[-1]["objectives"]
    assert not router.asked
    with pytest.raises(SignInWanted):
        models.writing([], None)  # type: ignore[arg-type]


def test_a_spent_or_refused_account_is_told_so_and_its_token_is_not_shown(models: Models) -> None:
    spent = asked_by(models, session("hf_spent"))[-1]
    assert "monthly credits" in spent["note"]
    refused = asked_by(models, session("hf_stranger_123"))[-1]
    assert "your sign-in" in refused["note"] and "stranger" not in json.dumps(refused)


def test_only_where_visitors_sign_in_is_there_a_button_and_its_routes() -> None:
    assert not can_sign_in({"SPACE_ID": "me/space"}) and not can_sign_in({"OAUTH_CLIENT_ID": "x"})
    pages: list[Any] = [SimpleNamespace(expects_oauth=there) for there in (True, False)]
    doors = [Door(None, page) for page in pages]  # type: ignore[arg-type]
    for path in ("/login/huggingface", "/login/callback", "/logout"):
        opened = [any(one.fullmatch(path) for one, _ in door.routes) for door in doors]
        assert opened == [True, False]


def test_settings_that_leave_open_who_pays_are_refused() -> None:
    url = {"PRO_ENDPOINT_URL": "https://router.huggingface.co/v1"}
    assert wants_sign_in({**url, **ROUTER})
    assert not wants_sign_in({**url, "PRO_ENDPOINT_TOKEN": "x"})
    wrong = [
        {"PRO_ENDPOINT_TOKEN": "x"},
        {"PRO_ENDPOINT_MODEL": ""},
        {"PRO_ENDPOINT_URL": ""},
        {"PRO_ENDPOINT_DIALECT": "tgi"},
    ]
    for change in wrong:
        with pytest.raises(ValueError):
            wants_sign_in({**url, **ROUTER, **change})


# ---------------------------------------------------------------- what runs where


def test_the_page_says_whose_quota_is_used_and_where_texts_go(models: Models) -> None:
    shown = where(models)
    answers = shown["parts"][0]
    assert answers["where"] == models.generator.host and "your account's quota" in answers["sent"]
    assert "Nobody can sign in here" in shown["line"]
    owner = Models(
        {
            "PRO_ENDPOINT_URL": "https://router.huggingface.co/v1",
            "PRO_ENDPOINT_TOKEN": "owner-secret",
        }
    )
    assert "the owner's quota" in where(owner)["parts"][0]["sent"]
    assert "sent to router.huggingface.co" in where(owner)["sent"]
    assert "owner-secret" not in json.dumps(where(owner))


def test_texts_that_go_nowhere_and_texts_that_go_to_a_judge() -> None:
    here = where(Models({}))
    assert here["sent"].endswith("your text stays on this app's machine")
    assert not any(part["sent"] for part in here["parts"])
    judge = where(Models({"PRO_JUDGE": "https://judge.example:8443/v1", "PRO_JUDGE_MODEL": "j"}))
    assert judge["sent"].endswith("your text is sent to judge.example:8443")
    (added,) = [part for part in judge["parts"] if part["does"] == "Objectives that you add"]
    assert added["name"] == "j" and "your sentence" in added["sent"]
    local = where(Models({"PRO_JUDGE": "/srv/models/judge"}))["parts"][-1]
    assert local["name"] == "models/judge" and not local["sent"]


def test_a_hosted_panel_scores_on_the_page_which_names_its_servers(tmp_path: Path) -> None:
    def outputs(text: str) -> list[float]:
        return [len(text) / 30 - 2.0, 3.0 - len(text) % 7]

    with serving(RewardServer("vllm", outputs)) as server:
        hosted = {"endpoint": server.url, "dialect": "vllm", "input_format": "chat"}
        entries = [{"name": name, "logit": k, **hosted} for k, name in enumerate(("kind", "dry"))]
        entries += [{"name": "short", "function": "length", "direction": -1}]
        (tmp_path / "panel.yaml").write_text(json.dumps({"models": entries}))
        panel = RewardPanel.from_pretrained(tmp_path / "panel.yaml")
        panel.fit_stats(["Hi"] * 3, ["Yes.", "No, never.", "Well, perhaps."], "three texts")
        panel.save_pretrained(tmp_path / "panel")
        models = Models({"PRO_PANEL": str(tmp_path / "panel"), "PRO_ADAPTER": "none"})
        models.load_scorers()
        server.longest = 100
        run = run_sync(Page(models).paste("Why?", {}, "Because it rains.", "Ask me later. " * 9))
        rows = {part["does"]: part for part in where(models)["parts"]}
    first, second = (card["raw"] for card in run["candidates"])
    assert first == pytest.approx([*outputs("Because it rains."), -17])
    assert second[:2] == [None, None] and second[2] == -126  # the server refuses long texts
    assert rows["Scores: kind, dry"]["where"] == server.url.partition("//")[2]
    assert rows["Scores: kind, dry"]["sent"] and not rows["Scores: short"]["sent"]
