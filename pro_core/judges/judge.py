"""Judges: a model behind an OpenAI-style endpoint, or a causal model in this process.

Both answer a :class:`Question` with a :class:`Reply`: a text, and where labels are asked for, the log-probabilities of
its first token. A judge that gives none still answers; the reply says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import exp, isfinite, log1p
from typing import Any, Protocol

from pro_core.data.objectives import Message
from pro_core.data.turns import ThoughtSplitter
from pro_core.generation import GenerationSettings, LocalGenerator, Request
from pro_core.generation.base import collect
from pro_core.generation.dialect_openai import NO_SUCH, REFUSED, RENAMED, bases
from pro_core.generation.listing import chat_model
from pro_core.http import Client, Patience, Session, persist
from pro_core.http.failures import Failure
from pro_core.http.failures import Settings as HttpSettings
from pro_core.system.fingerprints import fingerprint

TOP = 5
"""How many tokens' log-probabilities are asked for, as in AlpacaEval 2."""
THINKING = "chat_template_kwargs"
"""The parameter that turns thinking off; vLLM and SGLang take it."""


@dataclass(frozen=True)
class Question:
    """What a judge reads.

    Attributes:
        template: the template's identity. swapped: the second text stands first.
        labels: wanted are the log-probabilities of these words; None where the judge writes.
        top: how many tokens' log-probabilities are asked for.
    """

    messages: Sequence[Message]
    template: str
    max_tokens: int
    swapped: bool = False
    labels: tuple[str, ...] | None = None
    top: int = TOP

    def content(self) -> dict[str, Any]:
        """All that decides its reply, as JSON; ``top`` only where it is not the default, as older verdicts have it."""
        other = {} if self.top == TOP else {"top": self.top}
        return other | {
            "messages": [dict(m) for m in self.messages],
            "template": self.template,
            "max_tokens": self.max_tokens,
            "swapped": self.swapped,
            "labels": list(self.labels) if self.labels else None,
        }


@dataclass(frozen=True)
class Reply:
    """A judge's answer.

    Attributes:
        logprobs: of its first token, {text without blanks: log-probability}; None where the judge gave none.
        tokens: of question and answer, as the judge counts them, or estimated.
    """

    text: str
    logprobs: Mapping[str, float] | None = None
    tokens: int = 0


Ask = Callable[[Question], Awaitable[Reply]]


class Judge(Protocol):
    """Attributes: ``identity`` names the served model (verdicts of another are not reused), ``name`` is for people."""

    identity: str
    name: str

    def session(self) -> Any:
        """An async context manager that gives an :data:`Ask`, which raises :class:`Failure`."""
        ...


def summed(pairs: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Log-probabilities by the token's text without blanks around it; tokens of one text are added up."""
    total: dict[str, float] = {}
    for token, value in ((token.strip(), value) for token, value in pairs if isfinite(value)):
        high, low = max(total.get(token, value), value), min(total.get(token, value), value)
        total[token] = high + log1p(exp(low - high)) if token in total else value
    return total


class EndpointJudge:
    """A judge behind ``POST .../chat/completions``.

    Log-probabilities are asked for with ``logprobs`` and ``top_logprobs``, and thinking is off, so that the first token
    is the answer's. A server that refuses a parameter is asked without it from then on.

    Args:
        url, token, settings: as :class:`pro_core.http.Client` takes them. model: "" for the first that the server
            lists.

    Raises:
        ValueError: an invalid URL or token. Failure: no model is named, and the server lists none.
    """

    def __init__(
        self,
        url: str,
        model: str = "",
        token: str | None = None,
        timeout: float = 120.0,
        patience: Patience | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        settings: HttpSettings | None = None,
    ):
        self.client = Client(url, token, timeout, settings)
        self._bases = bases(self.client.address.path)
        self._base = 0
        self._left_out: frozenset[str] = frozenset()
        self._limit = "max_tokens"
        self._patience, self._sleep = patience or Patience(), sleep
        self.model = model or self._listed()
        self.name = f"{self.model} at {self.client.host}"
        self.identity = f"{self.client.address.origin}{self.client.address.path} {self.model}"

    def _listed(self) -> str:
        for base in self._bases:
            answer = self.client.ask("GET", f"{base}/models")
            models = answer.data.get("data") if isinstance(answer.data, dict) else answer.data
            if answer.success and isinstance(models, list) and (name := chat_model(models)[0]):
                return name
        raise Failure(
            f"The endpoint {self.client.host} lists no model that chats: name the judge's model."
        )

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Ask]:
        async with self.client.session() as session:

            async def ask(question: Question) -> Reply:
                return await persist(
                    lambda: self._ask(session, question),
                    self._patience,
                    self._sleep,
                    lambda failure, waited: None,
                )

            yield ask

    async def _ask(self, session: Session, question: Question) -> Reply:
        base, left_out, limit = self._base, self._left_out, self._limit
        while True:
            asked: dict[str, Any] = {limit: question.max_tokens, "temperature": 0.0}
            if question.labels:
                asked |= {
                    "logprobs": True,
                    "top_logprobs": question.top,
                    THINKING: {"enable_thinking": False},
                }
            body = {"model": self.model, "messages": list(question.messages), "stream": False}
            body |= {name: value for name, value in asked.items() if name not in left_out}
            try:
                async with asyncio.timeout(session.timeout):
                    path = f"{self._bases[base]}/chat/completions"
                    async with session.post(path, body) as reply:
                        data = await reply.json()
            except TimeoutError:
                raise session.explain.silent() from None
            except Failure as failure:
                if failure.status in NO_SUCH and base + 1 < len(self._bases):
                    base += 1
                elif failure.status not in REFUSED:
                    raise
                elif failure.named == "max_tokens" and limit != RENAMED:
                    limit = RENAMED
                elif failure.named == "temperature" and "temperature" in body:
                    left_out |= {"temperature"}
                elif THINKING in body and failure.named in ("", THINKING):
                    left_out |= {THINKING}
                elif "logprobs" in body and failure.named in ("", "logprobs", "top_logprobs"):
                    left_out |= {"logprobs", "top_logprobs"}
                    if not failure.named:  # perhaps it was not the thinking that it refused
                        left_out -= {THINKING}
                else:
                    raise
                continue
            self._base, self._left_out, self._limit = base, left_out, limit
            return self._read(session, data)

    def _read(self, session: Session, data: Any) -> Reply:
        try:
            choice = data["choices"][0]
            content = choice["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise session.explain.no_answer("JSON that is no answer", data) from None
        text = content if isinstance(content, str) else ""
        splitter = ThoughtSplitter()
        text = splitter.push(text).text + splitter.flush().text
        try:
            listed = choice["logprobs"]["content"][0]["top_logprobs"]
            logprobs = summed([(str(t["token"]), float(t["logprob"])) for t in listed])
        except (KeyError, IndexError, TypeError, ValueError):
            logprobs = None
        try:
            tokens = int(data["usage"]["total_tokens"])
        except (KeyError, TypeError, ValueError):
            tokens = 0
        return Reply(text, logprobs or None, tokens)


class LocalJudge:
    """A causal model in this process, greedy; one question at a time.

    Args:
        path_or_id: a model folder or hub id.
    """

    def __init__(self, path_or_id: str, max_context: int = 4096):
        self._writer = LocalGenerator(path_or_id, max_context=max_context)
        self.name = self._writer.short_name
        self.identity = fingerprint(path_or_id)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Ask]:
        async def ask(question: Question) -> Reply:
            return await asyncio.to_thread(self._answer, question)

        yield ask

    def _answer(self, question: Question) -> Reply:
        request = Request(question.messages)
        if question.labels:
            listed = self._writer.first_tokens(request, question.top)
            likeliest = max(listed, key=lambda token: token[1])[0]
            return Reply(likeliest.strip(), summed(listed))
        settings = GenerationSettings(question.max_tokens, temperature=0.0)
        written = collect(self._writer, [request], settings)[0]
        if written.failed:
            raise Failure(written.error or "the judge wrote nothing")
        return Reply(written.text)
