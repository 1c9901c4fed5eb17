"""Answers that a server continues: ``POST .../chat/completions`` whose last turn is the assistant's and stays open."""

from __future__ import annotations

from typing import Any

from pro_core.generation.request import GenerationError
from pro_core.http import Session
from pro_core.http.failures import Explainer

GO_ON = {"continue_final_message": True, "add_generation_prompt": False}
"""Settings of vLLM and SGLang."""


def going_on(body: dict[str, Any], begun: str) -> dict[str, Any]:
    """The request that has an answer continued."""
    turn = {"role": "assistant", "content": begun}
    return {**body, "messages": [*body["messages"], turn], **GO_ON}


class Continuing:
    """Whether a server continues an answer; many accept the settings, ignore them, and begin a new answer.

    A server that continues reads fewer tokens when it is told to: it neither closes the turn nor opens another. One
    that ignores the settings reads the same with and without them. That is the only sign, so a server that does not
    count the tokens it read is not trusted.
    """

    def __init__(self, host: str, explain: Explainer):
        self._host, self._explain = host, explain
        self._seen = False

    async def check(self, session: Session, path: str, body: dict[str, Any], limit: str) -> None:
        """Make sure of it, by two short requests the first time.

        Args:
            body: the request. ``limit``: what its limit of tokens is called.

        Raises:
            GenerationError: it does not show that it continues. Failure: it refuses the request.
        """

        async def continues() -> bool:
            short = {**body, "stream": False, limit: 1}
            plain = {name: value for name, value in short.items() if name not in GO_ON}
            told, untold = [await self._tokens(session, path, asked) for asked in (short, plain)]
            return told is not None and untold is not None and told < untold

        if not self._seen:
            self._seen = await session.shared("continues", continues)
        if not self._seen:
            raise GenerationError(
                f"The endpoint {self._host} does not show that it continues an answer (continue_final_message), and "
                "would begin a new one: vLLM and SGLang continue, and TGI does in its own dialect "
                "(PRO_ENDPOINT_DIALECT=tgi)."
            )

    async def _tokens(self, session: Session, path: str, body: dict[str, Any]) -> int | None:
        """How many tokens the server read, by its own count. Raises Failure."""
        answer = await session.ask("POST", path, body)
        if not answer.success:
            raise self._explain.answer(answer.status, answer.data)
        usage = answer.data.get("usage") if isinstance(answer.data, dict) else None
        count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        return count if isinstance(count, int) else None
