"""The door of the app: checks requests before Gradio sees them, and sets the headers of every answer.

* **Routes.** Only the routes that the page and `gradio_client` use are open (`OPEN`). This app takes no files, so
  Gradio's upload, file, proxy, stream and component routes are closed. So are its routes for developers.
* **Bodies.** Only JSON, at most `LONGEST_BODY` bytes within `BODY_SECONDS`, checked by `ui.bodies`. A refusal is one
  sentence, as `detail` (which Gradio's page shows) and as `error`.
* **Frames.** Only pages of the same origin may show the app in a frame. On a Space (`SPACE_ID` is set) Hugging Face's
  pages may, too: they show every Space in a frame. A content policy for scripts is impossible, because Gradio's page
  evaluates its templates.
* **Other origins.** Scripts of any page may call the app, as any program may: it has no accounts, and a visitor's data
  can only be reached with the session number of that page. The calls carry no cookies
  (`Access-Control-Allow-Origin: *`, never `Allow-Credentials`), which matters on a private Space. An app on a loopback
  address answers only pages of this machine, so no website can reach it through its owner's browser.
* **Types and addresses.** `nosniff`: a text is never run as a script. `Referrer-Policy: same-origin`: no other site
  learns the app's address.

The door stands around all of Gradio's own layers and replaces their rule for other origins::

    page.launch(app_kwargs={"lifespan": with_door})
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
from gradio.routes import App
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ui import bodies
from ui.bodies import Refusal

LONGEST_BODY = 6 * 2**20
"""Bytes. Room for a prompt, a run of four answers and four pasted answers, 200,000 characters of three bytes each."""
BODY_SECONDS = 60.0
LONGEST_PATH = 300  # no file of Gradio's has a longer name, and operating systems reject long ones
GRADIO = "/gradio_api"
NAME = r"([a-z_0-9]{1,64})"
ID = r"[A-Za-z0-9_-]{1,64}"

OPEN: dict[str, tuple[str, ...]] = {
    "/?": ("GET", "HEAD"),  # the page
    "/(assets|static|svelte)/.+": ("GET", "HEAD"),  # its scripts and styles
    "/theme.css|/favicon.ico|/manifest.json|/robots.txt": ("GET", "HEAD"),
    "/config/?": ("GET",),  # gradio_client: which functions there are
    f"{GRADIO}/(info|openapi.json|app_id|startup-events|theme.css)/?": ("GET",),
    f"{GRADIO}/heartbeat/{ID}": ("GET",),  # the page, while it is open
    f"{GRADIO}/queue/join": ("POST",),  # the page and gradio_client: an event
    f"{GRADIO}/queue/data": ("GET",),  # its news
    f"{GRADIO}/(cancel|reset)/?": ("POST",),
    f"{GRADIO}/run/{NAME}/?": ("POST",),  # the page: events without a queue
    f"{GRADIO}/call(/v2)?/{NAME}/?": ("POST",),  # curl: an event
    f"{GRADIO}/call(/v2)?/{NAME}/{ID}": ("GET",),  # its news
}
"""The open routes: a regular expression of the whole path, and its methods."""
SIGNING_IN = {
    "/login/(huggingface|callback)": ("GET",),
    "/logout/?": ("GET",),
}
"""Open, too, where visitors sign in (:mod:`ui.sign_in`). The cookie of a sign-in is Gradio's; it lets no script of
another page in: a request with cookies from there needs a permission that no answer of ours gives."""
ROUTES = [(re.compile(pattern), methods) for pattern, methods in OPEN.items()]
STREAMS = re.compile(rf"{GRADIO}/(queue/data|call(/v2)?/{NAME}/{ID})")
HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])?(:\d{1,5})?")
KEPT_OUT = (b"origin", b"x-gradio-server")
"""Headers that are hidden from Gradio. `origin`: its rule for other origins differs from ours. The second comes from
Gradio's own front server, where there is one; a forged one would pass any address off as the app's."""
LOOPBACK = ("localhost", "127.0.0.1", "0.0.0.0", "::1")


class Door:
    """The middleware around a Gradio app."""

    def __init__(self, app: ASGIApp, blocks: gr.Blocks):
        self.app, self.blocks = app, blocks
        signing_in = SIGNING_IN if blocks.expects_oauth else {}
        self.routes = [*ROUTES, *((re.compile(path), how) for path, how in signing_in.items())]
        self.headers = {
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "same-origin",
            "Content-Security-Policy": f"frame-ancestors {' '.join(_frames())}",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # the app has no web sockets
            await send({"type": "websocket.close", "code": 1000})
            return
        asked = Headers(scope=scope)
        origin = allowed_origin(asked)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(self.headers)
                if origin:
                    headers["Access-Control-Allow-Origin"] = origin
                    headers.add_vary_header("Origin")
            await send(message)

        if scope["method"] == "OPTIONS" and "access-control-request-method" in asked:
            await _preflight(origin)(scope, receive, answer)
            return
        try:
            path = self._admitted(scope)
            _check_host(asked)
            if scope["method"] == "POST":
                raw = await _body(asked, receive)
                body = bodies.parsed(raw)
                changed = self._check(path, body)
                receive = _again(bodies.whole_characters(raw, body, changed), receive)
        except Refusal as refusal:
            content = {"detail": str(refusal), "error": str(refusal)}
            await JSONResponse(content, refusal.status)(scope, receive, answer)
            return
        inside = [(name, value) for name, value in scope["headers"] if name not in KEPT_OUT]
        await self._enter({**scope, "headers": inside}, receive, answer, path)

    def _admitted(self, scope: Scope) -> str:
        """The path below the app's root. Raises Refusal for a closed route or method."""
        path: str = scope["path"]
        root: str = scope.get("root_path", "")
        if root and path.startswith(root) and path[len(root) :][:1] in ("", "/"):
            path = path[len(root) :]
        methods = next((m for pattern, m in self.routes if pattern.fullmatch(path)), None)
        if methods is None or len(path) > LONGEST_PATH or not path.isprintable():
            raise Refusal("This app has nothing at this address.", 404)
        if scope["method"] not in methods:
            raise Refusal(f"Got {scope['method']}, expected {' or '.join(methods)}.", 405)
        return path

    def _check(self, path: str, body: dict[str, Any]) -> bool:
        """Check a body, and complete it. Returns whether it was changed. Raises Refusal."""
        changed = False
        route, _, name = path.rstrip("/").removeprefix(f"{GRADIO}/").rpartition("/")
        match route or name:
            case "queue":
                changed = bodies.completed(body, self.blocks)
                bodies.event(body, self.blocks)
            case "run":
                bodies.event(body, self.blocks, direct=True)
            case "call":
                changed = bodies.completed(body, self.blocks, name)
                bodies.call(body, self.blocks, name)
            case "call/v2":
                bodies.call_by_name(body, self.blocks, name)
            case _:
                bodies.cancel(body, self.blocks)
        return changed

    async def _enter(self, scope: Scope, receive: Receive, send: Send, path: str) -> None:
        """Call Gradio. Its stream of an ended session tells the visitor so and then raises, which is caught here."""
        started = gone = False

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        async def heard() -> Message:
            nonlocal gone
            message = await receive()
            gone = gone or message["type"] == "http.disconnect"
            return message

        try:
            await self.app(scope, heard, noted)
        except (RuntimeError, KeyError) as error:
            # RuntimeError: from Starlette, around an HTTPException that came too late for a status.
            # KeyError: the visitor has left, and another stream had already ended the session.
            late = isinstance(error.__cause__, HTTPException) or (
                gone and isinstance(error, KeyError)
            )
            if not (started and late and STREAMS.fullmatch(path)):
                raise
            if not gone:
                await send({"type": "http.response.body", "body": b"", "more_body": False})


@asynccontextmanager
async def with_door(app: App) -> AsyncIterator[None]:
    """A lifespan for Gradio's app: puts a :class:`Door` around all its layers before the first request."""
    assert app.middleware_stack is not None  # the lifespan runs in it
    app.middleware_stack = Door(app.middleware_stack, app.get_blocks())
    yield


def allowed_origin(asked: Headers) -> str:
    """The allowed origin: any, without cookies; for an app on a loopback address only this machine's; "" for none."""
    origin = asked.get("origin")
    if origin is None:
        return ""
    if _hostname(f"//{asked.get('host', '')}") not in LOOPBACK:
        return "*"
    return origin if _hostname(origin) in LOOPBACK else ""


def _hostname(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:  # a single bracket of an IPv6 address
        return None


def _check_host(asked: Headers) -> None:
    """Check the headers from which Gradio builds the page's address. Raises Refusal for one that names no host."""
    for name in ("host", "x-forwarded-host"):
        host = asked.get(name, "").split(",")[0].strip()
        port = host.rpartition(":")[2]
        if not HOST.fullmatch(host) or (port.isdecimal() and int(port) > 65535):
            raise Refusal(f"got a {name} header that names no host")


def _preflight(origin: str) -> Response:
    may = {
        "Access-Control-Allow-Methods": "GET, POST",
        "Access-Control-Allow-Headers": "content-type, x-gradio-user",
        "Access-Control-Max-Age": "600",
    }
    return Response(status_code=204, headers=may if origin else {})


def _frames() -> list[str]:
    hub = ["https://huggingface.co", "https://*.huggingface.co", "https://*.hf.space"]
    return ["'self'", *(hub if os.environ.get("SPACE_ID") else [])]


async def _body(asked: Headers, receive: Receive) -> bytes:
    """The whole body. Raises Refusal if its content type is not JSON, or if it is too long or too slow."""
    kind = asked.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal("expected the content type application/json", 415)
    long = Refusal(f"got a body of over {LONGEST_BODY:,} bytes, expected fewer", 413)
    length = asked.get("content-length", "0")
    if length.isdecimal() and float(length) > LONGEST_BODY:
        raise long
    raw = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                raw += message.get("body", b"")
                if len(raw) > LONGEST_BODY:
                    raise long
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    return bytes(raw)
    except TimeoutError:
        raise Refusal(f"the body did not end within {BODY_SECONDS:.0f} s", 408) from None


def _again(raw: bytes, receive: Receive) -> Receive:
    """A channel that gives the body again, and then the server's further messages."""
    given = False

    async def once() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": raw, "more_body": False}

    return once
