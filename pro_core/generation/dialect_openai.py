"""The openai dialect: ``POST .../chat/completions``, which vLLM, SGLang, TGI, Ollama and most services speak.

The server renders the chat. Its template is out of sight, so equal neighbours are sent as one turn, and a conversation
that it refuses is sent once more in the plainest form, without a system turn (:mod:`pro_core.data.turns`). Other
differences between servers are learned in the same way: a refused request is sent again in another form, and the form
that is answered is remembered (:class:`Form`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pro_core.data.objectives import Message
from pro_core.data.turns import merged, plainest
from pro_core.generation.answers import AnswerPieces
from pro_core.generation.base import GenerationSettings, Piece
from pro_core.generation.continuing import Continuing, going_on
from pro_core.generation.dialects import PROBE, Reader, Tell, top_p, written
from pro_core.generation.lattice import Served
from pro_core.generation.listing import chat_model
from pro_core.http import Answer, Client, Session
from pro_core.http.failures import Failure

logger = logging.getLogger(__name__)

ROUTES = (
    *("/chat/completions", "/completions", "/responses", "/models"),
    *("/generate_stream", "/generate"),
)
NO_SUCH = (404, 405)
"""Statuses of a path, or of a model, that the server does not have."""
REFUSED = (400, 422)
"""Statuses of a request that the server does not take, for its turns, its parameters or its length."""
RENAMED = "max_completion_tokens"
"""What newer models call ``max_tokens``."""
OPTIONAL = ("temperature", "top_p", "seed")
"""Parameters that a request can do without."""
_QUOTED = re.compile(r"[`'\"](max_tokens|temperature|top_p|seed)[`'\"]")


@dataclass(frozen=True)
class Form:
    """How a request is put. Requests of different forms ask the same.

    Attributes:
        base: which of :func:`bases` is asked.
        renamed: the limit is called ``max_completion_tokens``.
        dropped: the parameters that are left to the server, each with the value that it refused (:func:`_refusable`).
        plain: the conversation has its plainest form.
    """

    base: int = 0
    renamed: bool = False
    dropped: frozenset[tuple[str, float | None]] = frozenset()
    plain: bool = False

    @property
    def limit(self) -> str:
        """What the limit of tokens is called."""
        return RENAMED if self.renamed else "max_tokens"


def bases(path: str) -> list[str]:
    """Where the routes may start, for the path of the URL that people paste.

    A whole route or ``/v1`` decides it. Without a path it is ``/v1``. Any other path is tried as it is
    (``/v1beta/openai``, ``/api``), then with ``/v1`` behind it.
    """
    for route in ROUTES:
        if path.endswith(route):
            whole = path.removesuffix(route)
            return [whole] if route == "/chat/completions" else bases(whole)
    if path.endswith("/v1"):
        return [path]
    return [path, f"{path}/v1"] if path else ["/v1"]


class OpenAI:
    """See :class:`~pro_core.generation.dialects.Dialect`."""

    def __init__(self, client: Client, model: str | None, served: Served | None = None):
        self.model = model
        self._served = served
        self._called: dict[str, str] = {}  # what the server calls the mixtures that it lists
        self.listed: str | None = None
        self._unheard: Failure | None = None  # why the last look at the models told nothing
        self._explain = client.explain
        self._host = client.host
        self._bases = bases(client.address.path)
        self._form = Form()
        self._system_turns = True  # until the server refuses them
        self._continuing = Continuing(client.host, client.explain)

    # ------------------------------------------------------------ what the server has

    @property
    def probes(self) -> list[str]:
        root = self._bases[0].removesuffix("/v1")
        # `transformers serve` fails (500) to list its models where there is no hub cache.
        return [*(f"{base}/models" for base in self._bases[self._form.base :]), f"{root}/health"]

    def learn(self, path: str, answer: Answer) -> bool:
        if not path.endswith("/models"):
            return answer.success
        models = answer.data.get("data") if isinstance(answer.data, dict) else answer.data
        if not answer.success or not isinstance(models, list):
            return False
        self._form = replace(self._form, base=self._bases.index(path.removesuffix("/models")))
        self.listed, passed_over = chat_model(models)
        self._called = self._served.listed(models) if self._served else {}
        if passed_over and not self.listed and self.model is None:
            more = f" and {len(passed_over) - 5} more" if len(passed_over) > 5 else ""
            raise Failure(
                f"The endpoint {self._host} lists no model that chats (it has {', '.join(passed_over[:5])}"
                f"{more}); set PRO_ENDPOINT_MODEL."
            )
        return True

    def detail(self) -> str:
        if self._served is None:
            return "openai dialect"
        return f"openai dialect, holds {len(self._called)} of {self._served.count} mixtures"

    async def _name(self, session: Session) -> str:
        """What to call the model: as given, else the first that the server lists, else "tgi" as TGI does."""
        if self.model is None and self.listed is None:
            await session.shared("models", lambda: self._look(session))
        return self.model or self.listed or "tgi"

    async def _mixture(self, session: Session, served: Served, mixture: str) -> str:
        """What to call a mixture: a server that does not list it might answer with another model."""
        if mixture not in self._called:
            await session.shared("models", lambda: self._look(session))
        if mixture not in self._called:
            raise self._unheard or served.missing(mixture, len(self._called))
        return self._called[mixture]

    async def _look(self, session: Session) -> None:
        """Note the models that the server lists, if it lists any. An answer waits for this, so it takes a short time.

        Raises:
            Failure: the server can say only later, or none of its models chats.
        """
        self._unheard = None
        for path in self.probes[:-1]:
            try:
                answer = await session.ask("GET", path, timeout=PROBE)
            except Failure as failure:
                if failure.again:
                    raise
                self._unheard = failure
                break
            if answer.status in (202, 429, 503):
                raise self._explain.answer(answer.status, answer.data)
            if self.learn(path, answer):
                return
        self.listed = self.listed or ""

    # ------------------------------------------------------------ asking

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
        plain, full = plainest(messages), merged(messages)
        system = any(m["role"] == "system" for m in full)
        if system and not self._system_turns:
            full = plain
        form, refused = self._form, None
        while True:
            pieces = AnswerPieces(index, settings.max_new_tokens)
            if begun:
                pieces.go_on()
            turns = plain if form.plain else full
            if self._served and mixture:
                model = await self._mixture(session, self._served, mixture)
            elif mixture:
                model = mixture
            else:
                model = await self._name(session)
            body = request(model, turns, settings, form)
            if begun:
                body = going_on(body, begun)
            path = f"{self._bases[form.base]}/chat/completions"
            reader = Chunks(pieces, self._explain)
            try:
                if begun:
                    await self._continuing.check(session, path, body, form.limit)
                last = await written(session, path, body, reader, tell)
            except Failure as failure:
                if failure.status not in NO_SUCH + REFUSED:
                    raise
                refused = self._refusal(refused, failure)
                other = self._other(form, failure, body, full != plain)
                if other is None:
                    self._forget(failure)
                    raise refused from None
                form = other
                continue
            self._remember(form, system, index, tell)
            return last

    def _other(
        self, form: Form, failure: Failure, body: dict[str, Any], can_be_plain: bool
    ) -> Form | None:
        """The form to try after this failure; None if nothing is left to try.

        The error object names the refused parameter; only if it does not, the server's words are searched. Refused
        turns are explained in words alone, so any other refusal may be about the turns.
        """
        if failure.status in NO_SUCH:
            more = form.base + 1 < len(self._bases)
            return replace(form, base=form.base + 1) if more else None
        if failure.status not in REFUSED:
            return None
        quoted = None if failure.named else _QUOTED.search(failure.words)
        named = quoted[1] if quoted else failure.named
        if named == "max_tokens" and not form.renamed:
            # A server that refuses the number may not know the other name, and would write without a limit.
            unknown = failure.unsupported or RENAMED in failure.words
            return replace(form, renamed=True) if unknown else None
        if named in OPTIONAL and named in body:
            return replace(form, dropped=form.dropped | {_refusable(named, body[named])})
        return replace(form, plain=True) if can_be_plain and not form.plain else None

    def _remember(self, form: Form, system: bool, index: int, tell: Tell) -> None:
        """This form was answered: the next request begins with it, and the visitor is told what it leaves out."""
        if system and form.plain and self._system_turns:
            self._system_turns = False
            logger.info(
                "%s takes no system turns: from now on their text goes in the user's", self._host
            )
        if lost := sorted(form.dropped - self._form.dropped):
            refused = " and ".join(name if at is None else f"{name} {at:g}" for name, at in lost)
            tell(
                Piece(
                    index,
                    note=f"The endpoint {self._host} does not take {refused}: it has its own.",
                )
            )
        dropped = form.dropped | self._form.dropped  # others may have learned more meanwhile
        self._form = replace(form, plain=False, dropped=dropped)

    def _forget(self, failure: Failure) -> None:
        """After a refusal the models are looked up again: the server may have others by now, or may refuse the name
        that was made up for want of a list."""
        if failure.status in NO_SUCH or not self.listed:
            self.listed, self._called = None, {}

    def _refusal(self, before: Failure | None, failure: Failure) -> Failure:
        """The refusal to show, of two: that of the request as it was, not of a form that we tried; of two unknown
        paths, the one that says more."""
        if before is None or (before.status in NO_SUCH and failure.status in REFUSED):
            return failure
        if failure.status in NO_SUCH and len(failure.words) > len(before.words):
            return failure
        return before


def request(
    model: str,
    messages: Sequence[Message],
    settings: GenerationSettings,
    form: Form,
) -> dict[str, Any]:
    """The body of one request."""
    parameters = {
        form.limit: settings.max_new_tokens,
        "temperature": settings.temperature,
        "top_p": top_p(settings),
        "seed": settings.seed,
    }
    asked = {
        k: v
        for k, v in parameters.items()
        if v is not None and _refusable(k, v) not in form.dropped
    }
    return {"model": model, "messages": list(messages), "stream": True, **asked}


def _refusable(name: str, value: float) -> tuple[str, float | None]:
    """The key of a refused parameter: with its value, since only one temperature may be too high, but without a seed's,
    which always differs."""
    return name, None if name == "seed" else value


class Chunks(Reader):
    """Reads ``choices``: the ``delta`` of a chunk, or the ``message`` of a whole answer."""

    fields = ("choices",)

    def _news(self, data: dict[str, Any]) -> Iterator[Piece]:
        choices = data.get("choices") or []  # chunks of usage and some pings have none
        if not isinstance(choices, list):
            raise self._explain.no_answer()
        for choice in choices:
            if not isinstance(choice, dict):
                raise self._explain.no_answer()
            message = (
                choice.get("delta") or choice.get("message") or {"content": choice.get("text")}
            )
            if not isinstance(message, dict):
                raise self._explain.no_answer()
            self._understood = True
            thought = message.get("reasoning_content") or message.get("reasoning")
            if isinstance(thought, str):
                yield from self.pieces.reason(thought)
            yield from self._content(message.get("content"))
            # A refusal is the model's words, in a field of its own.
            yield from self._content(message.get("refusal"))
            self._ends(choice.get("finish_reason"), choice)

    def _content(self, content: Any) -> Iterator[Piece]:
        """The pieces of a text, or of a list of parts with a text each."""
        if not content:
            return
        if isinstance(content, str):
            yield from self.pieces.push(content)
        elif isinstance(content, list):
            for part in content:
                yield from self._content(part)
        elif isinstance(content, dict):
            yield from self._part(content)
        else:
            raise self._explain.no_answer(f"a {type(content).__name__} where text was expected")

    def _part(self, part: dict[str, Any]) -> Iterator[Piece]:
        kind = part.get("type")
        if kind in ("thinking", "reasoning"):
            thought = part.get(kind) or part.get("text") or ""
            for one in thought if isinstance(thought, list) else [thought]:
                text = one.get("text") if isinstance(one, dict) else one
                yield from self.pieces.reason(text if isinstance(text, str) else "")
            return
        text = part.get("text", part.get("refusal"))
        if isinstance(text, dict):  # {"text": {"value": ...}}, as OpenAI's assistants have it
            text = text.get("value")
        if not isinstance(text, str):
            raise self._explain.no_answer("a part of an answer that is no text", str(kind))
        yield from self.pieces.push(text)
