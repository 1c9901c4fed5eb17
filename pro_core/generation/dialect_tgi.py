"""TGI's own dialect: ``POST /generate_stream``. The chat is rendered here, by the chat template of the tokenizer that
PRO_ENDPOINT_MODEL names when that loads, else as ``Human:`` / ``Assistant:`` turns."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any, TypeGuard

from pro_core.data.objectives import Message
from pro_core.data.turns import THOUGHTS, opened_thought, turn_end
from pro_core.generation.answers import AnswerPieces
from pro_core.generation.base import GenerationSettings, Piece
from pro_core.generation.chat import (
    PLAIN_STOP,
    StopText,
    beginning,
    chat_prompt,
    has_template,
    plain_prompt,
)
from pro_core.generation.dialects import Reader, Tell, top_p, written
from pro_core.generation.lattice import Checks, Served
from pro_core.http import Answer, Client, Session
from pro_core.http.failures import Explainer
from pro_core.prompting.policy_config import load_tokenizer

logger = logging.getLogger(__name__)

ROUTES = ("/generate_stream", "/generate", "/chat/completions", "/completions", "/v1")
TOKENIZER_WAIT = 15.0
"""Seconds that an answer waits for the tokenizer; the hub may be out of reach."""
NO_TEMPLATE = "The tokenizer {} did not load: the model reads plain Human/Assistant turns, not its chat template."


class TGI:
    """See :class:`~pro_core.generation.dialects.Dialect`."""

    def __init__(self, client: Client, model: str | None, served: Served | None = None):
        self.model = model
        self._served = served
        self._checks = Checks()
        self.listed: str | None = None
        self._explain = client.explain
        root = client.address.path
        for route in ROUTES:
            root = root.removesuffix(route)
        self._root = root
        self._tokenizer: Future[Any] | None = None
        self._tokenizer_lock = threading.Lock()

    @property
    def probes(self) -> list[str]:
        return [f"{self._root}/health"]

    def learn(self, path: str, answer: Answer) -> bool:
        return answer.success

    def detail(self) -> str:
        tokenizer = self._load_tokenizer()
        known = tokenizer.done() and has_template(tokenizer.result())
        form = "the model's chat template" if known else "Human/Assistant turns"
        mixtures = ", which lists no mixtures: each is checked when it is asked"
        return f"tgi dialect, chats rendered by {form}" + (mixtures if self._served else "")

    async def answer(
        self,
        session: Session,
        index: int,
        messages: Sequence[Message],
        settings: GenerationSettings,
        tell: Tell,
        mixture: str | None = None,
        begun: str = "",
    ) -> Piece:
        if self._served and mixture:
            await self._checks.tgi(session, f"{self._root}/generate", self._served, mixture)
        tokenizer = await self._tokenizer_in_time()
        if tokenizer is None and _is_tokenizer(self.model):
            tell(Piece(index, note=NO_TEMPLATE.format(os.path.basename(self.model))))
        prompt, stop, opened = rendered(tokenizer, messages)
        pieces = AnswerPieces(index, settings.max_new_tokens)
        pieces.open(opened)
        if begun:
            # Without a template the server is sent plain text, whose marks are left as they are.
            prompt += beginning(tokenizer if has_template(tokenizer) else None, begun)
            pieces.go_on()
        body = request(prompt, stop, settings, mixture)
        reader = Tokens(pieces, self._explain, stop, begun)
        return await written(session, f"{self._root}/generate_stream", body, reader, tell)

    async def _tokenizer_in_time(self) -> Any:
        """The tokenizer; None if it does not load within :data:`TOKENIZER_WAIT`."""
        loading = asyncio.wrap_future(self._load_tokenizer())
        # Not cancelled when the time is up: it may be there for the next answer.
        await asyncio.wait([loading], timeout=TOKENIZER_WAIT)
        return loading.result() if loading.done() else None

    def _load_tokenizer(self) -> Future[Any]:
        """A future of the model's tokenizer, or of None; loaded once, in a thread of its own."""
        with self._tokenizer_lock:
            if self._tokenizer is None:
                future: Future[Any] = Future()
                self._tokenizer = future
                threading.Thread(
                    target=lambda: future.set_result(_read_tokenizer(self.model)),
                    name="pro-tokenizer",
                    daemon=True,  # a hub out of reach must not keep the program from ending
                ).start()
            return self._tokenizer


def rendered(tokenizer: Any, messages: Sequence[Message]) -> tuple[str, str | None, str | None]:
    """The prompt, the text to stop at, and the thought's tag that the prompt ends with."""
    if tokenizer is None or not has_template(tokenizer):
        return plain_prompt(messages), PLAIN_STOP, None
    prompt = chat_prompt(tokenizer, messages)
    # TGI adds the opening token itself; a template that writes it too would double it.
    bos = tokenizer.bos_token
    if bos and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id:
        prompt = prompt.removeprefix(bos)
    return prompt, turn_end(tokenizer), opened_thought(tokenizer)


def request(
    prompt: str,
    stop: str | None,
    settings: GenerationSettings,
    adapter: str | None = None,
) -> dict[str, Any]:
    """The body of one request."""
    sampled = settings.temperature > 0  # TGI refuses a temperature of 0
    parameters = {
        "details": True,
        "do_sample": sampled,
        "max_new_tokens": settings.max_new_tokens,
        "temperature": settings.temperature if sampled else None,
        "top_p": top_p(settings),
        "seed": settings.seed if sampled else None,
        "stop": [stop] if stop else None,
        "adapter_id": adapter,
    }
    asked = {k: v for k, v in parameters.items() if v is not None}
    return {"inputs": prompt, "parameters": asked, "stream": True}


class Tokens(Reader):
    """Reads tokens one by one; the last event has the ``generated_text``. A whole answer has only that."""

    fields = ("token", "generated_text")

    def __init__(self, pieces: AnswerPieces, explain: Explainer, stop: str | None, begun: str = ""):
        super().__init__(pieces, explain)
        self._stop = stop
        self._cut = StopText(stop)
        self._cut.go_on(begun)
        self._streamed = False

    def _news(self, data: dict[str, Any]) -> Iterator[Piece]:
        token, whole = data.get("token"), data.get("generated_text")
        if token is not None and not isinstance(token, dict):
            raise self._explain.no_answer()
        if token:
            self._understood = self._streamed = True
            yield from self._push(_token_text(token, self._stop))
        elif isinstance(whole, str) and not self._streamed:
            self._understood = True
            yield from self._push(whole)
        if self._cut.reached:  # what follows is not part of the answer
            self._finish = "stop"
        elif whole is not None:  # on the last event only
            details = data.get("details")
            reason = details.get("finish_reason") if isinstance(details, dict) else None
            self._ends(reason or "stop", data)

    def _push(self, text: str) -> Iterator[Piece]:
        yield from self.pieces.push(self._cut.push(text))

    def end(self) -> list[Piece]:
        if not self.over:
            return super().end()
        return [*self.pieces.push(self._cut.flush()), *super().end()]


def _token_text(token: dict[str, Any], stop: str | None) -> str:
    """A token's text; empty for special tokens, except a thought's tags and the end of the turn."""
    text = token.get("text")
    if not isinstance(text, str):
        return ""
    tags = {stop, *(tag for pair in THOUGHTS for tag in pair)}
    return text if not token.get("special") or text.strip() in tags else ""


def _is_tokenizer(model: str | None) -> TypeGuard[str]:
    """Whether a name can be a tokenizer's: a folder or a hub id."""
    return model is not None and (os.path.isdir(model) or model.count("/") == 1)


def _read_tokenizer(model: str | None) -> Any:
    """The tokenizer of a folder or hub id; None for other names, or when it does not load."""
    if not _is_tokenizer(model):
        return None
    try:
        return load_tokenizer(model)
    except Exception as error:
        logger.warning(
            "no tokenizer %r (%s): chats go to the endpoint as plain Human/Assistant turns",
            model,
            type(error).__name__,
        )
        return None
