"""Finds the model that writes answers in a server's list, which may hold embedding, ranking and speech models too."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from pro_core.data.schema import clean_text

_NOT_CHAT = re.compile(
    r"embed|rerank|rank(er|ing)\b|whisper|transcri|\btts\b|speech|\bstt\b|\basr\b|moderation|classif"
    r"|\b(bge|gte|e5|minilm|mpnet|colbert|clip|siglip|dall-?e|imagen|flux|sdxl|stable-diffusion)\b"
    r"|text-to-(image|audio|video)|image|audio|feature-extraction|sentence-similarity"
)
"""Searched in a model's kind, or in its name if it gives no kind."""
_CHAT = re.compile(r"chat|llm|vlm|text-generation|completion|generate|language")
LONGEST_NAME = 300
"""Characters; anything longer is not a name."""
_KINDS = ("type", "model_type", "task", "pipeline_tag", "mode")


def chat_model(models: Sequence[Any]) -> tuple[str, list[str]]:
    """The name of the first model that chats, empty without one; and the names passed over.

    What a model says of itself counts (``type``, ``task``, ``capabilities`` and the like); its name counts only if it
    says nothing.
    """
    passed_over: list[str] = []
    for model in models:
        name = model.get("id") or model.get("name") if isinstance(model, dict) else model
        if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
            continue
        name = clean_text(name)
        if _chats(model, name):
            return name, passed_over
        passed_over.append(name)
    return "", passed_over


def _chats(model: Any, name: str) -> bool:
    for kind in _kinds(model) if isinstance(model, dict) else ():
        if _CHAT.search(kind):
            return True
        if _NOT_CHAT.search(kind):
            return False
    return not _NOT_CHAT.search(name.lower().replace("_", "-"))


def _kinds(model: dict[str, Any]) -> Iterator[str]:
    """What a model says of its kind, in lower case, the surest first."""
    capabilities = model.get("capabilities")
    if isinstance(capabilities, dict):
        for key in ("completion_chat", "chat", "chat_completion"):  # Mistral's, Azure's
            if isinstance(capabilities.get(key), bool):
                yield "chat" if capabilities[key] else "classifier"
        capabilities = [capabilities.get("type")]
    for holder in (model, model.get("custom_metadata"), model.get("metadata")):
        kinds = [holder.get(key) for key in _KINDS] if isinstance(holder, dict) else []
        yield from (kind.lower() for kind in kinds if isinstance(kind, str))
    if isinstance(capabilities, list) and capabilities:
        yield " ".join(str(one).lower() for one in capabilities)
