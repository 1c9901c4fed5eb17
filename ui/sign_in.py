"""Answers that are written with each visitor's own Hugging Face sign-in, out of the visitor's inference quota.

Gradio keeps the sign-in in a signed cookie of the visitor's browser and gives a handler its token
(:class:`gradio.OAuthToken`). The token is sent to the endpoint's host alone, with that visitor's requests alone, and is
kept nowhere. Sign-in exists only on a Space whose card has ``hf_oauth`` (see spaces/README.md).
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from importlib import import_module
from typing import Any

import gradio as gr

from ui.board import Run

WANTED = (
    "Sign in with Hugging Face to have answers written: it takes your account's inference quota."
)
NOWHERE = (
    "Nobody can sign in here, so no answers are written: that needs a Space whose card has hf_oauth, "
    "and gradio[oauth]"
)


def wants_sign_in(environ: Mapping[str, str]) -> bool:
    """Whether PRO_ENDPOINT_SIGN_IN asks for each visitor's own sign-in.

    Raises:
        ValueError: settings that contradict it: it says whose quota pays, so there is no owner's token beside it.
    """

    def given(name: str) -> str:
        return environ.get(name, "").strip()

    if given("PRO_ENDPOINT_SIGN_IN") in ("", "0"):
        return False
    if given("PRO_ENDPOINT_TOKEN"):
        raise ValueError(
            "got PRO_ENDPOINT_SIGN_IN and PRO_ENDPOINT_TOKEN: set the one (visitors pay) or the other (you pay)"
        )
    if not given("PRO_ENDPOINT_URL") or not given("PRO_ENDPOINT_MODEL"):
        raise ValueError(
            "PRO_ENDPOINT_SIGN_IN needs PRO_ENDPOINT_URL, such as https://router.huggingface.co/v1, and "
            "PRO_ENDPOINT_MODEL, one of the models that it serves"
        )
    if given("PRO_ENDPOINT_DIALECT") not in ("", "openai"):
        raise ValueError("PRO_ENDPOINT_SIGN_IN works with the openai dialect only")
    return True


def can_sign_in(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this is a Space where visitors can sign in: the hub sets these variables for ``hf_oauth: true``, and its
    Gradio has the packages that sign-in needs."""
    if not (environ.get("SPACE_ID") and environ.get("OAUTH_CLIENT_ID")):
        return False
    try:
        import_module("authlib.integrations.starlette_client")
        import_module("itsdangerous")
    except ImportError:
        return False
    return True


def sign_in_row(model: str) -> None:
    """The button, and whose quota is used for what."""
    with gr.Row(elem_id="sign-in"):
        gr.LoginButton(size="sm", scale=0, min_width=220)
        gr.HTML(
            value=model,
            html_template='<p class="status"></p>',
            js_on_load="""
const line = element.querySelector(".status");
line.textContent = "Answers are written by " + props.value + ", with your own Hugging Face account and out of its "
  + "inference quota. Weights, scores and the recorded examples need no sign-in.";""",
            apply_default_css=False,
        )


def for_visitors(page: Any, name: str) -> Callable[..., Any]:
    """The page's handler of that name; where visitors sign in, it gets the token of whoever asks."""
    if not page.models.sign_in:
        return getattr(page, name)  # type: ignore[no-any-return]

    async def run(token: gr.OAuthToken | None, *values: Any) -> AsyncGenerator[Run, None]:
        own = type(page)(page.models, token.token if token else None)
        async with aclosing(getattr(own, name)(*values)) as runs:
            async for one in runs:
                yield one

    run.__name__ = name
    return run
