"""Generation: one interface, two kinds: in this process, or an endpoint."""

import os
from collections.abc import Mapping

from pro_core.generation.base import (
    Finish,
    GenerationSettings,
    Generator,
    Piece,
    Written,
    collect,
)
from pro_core.generation.endpoint import EndpointGenerator
from pro_core.generation.local import LocalGenerator
from pro_core.generation.request import STYLES, GenerationError, Request, RequestError, styled
from pro_core.prompting.policy_config import PolicyConfig
from pro_core.system.bundled_models import SMOLLM2

__all__ = [
    "STYLES",
    "EndpointGenerator",
    "Finish",
    "GenerationError",
    "GenerationSettings",
    "Generator",
    "LocalGenerator",
    "Piece",
    "Request",
    "RequestError",
    "Written",
    "collect",
    "generator_from_env",
    "styled",
]


def generator_from_env(environ: Mapping[str, str] = os.environ) -> Generator:
    """The generator that the environment names; empty variables count as unset.

    PRO_ENDPOINT_URL asks for an endpoint, with PRO_ENDPOINT_MODEL, PRO_ENDPOINT_TOKEN and PRO_ENDPOINT_DIALECT. Without
    it, the model PRO_POLICY runs in this process, by default SmolLM2. With both, the endpoint serves that policy, whose
    folder says what it reads and, in the tgi dialect without PRO_ENDPOINT_MODEL, holds its tokenizer.

    Raises:
        ValueError: an endpoint setting without its URL, or one that makes no sense.
    """

    def value(name: str) -> str | None:
        return environ.get(name, "").strip() or None

    url = value("PRO_ENDPOINT_URL")
    if url is not None:
        policy, dialect = value("PRO_POLICY"), value("PRO_ENDPOINT_DIALECT") or "openai"
        return EndpointGenerator(
            url,
            model=value("PRO_ENDPOINT_MODEL") or (policy if dialect == "tgi" else None),
            token=value("PRO_ENDPOINT_TOKEN"),
            dialect=dialect,
            policy=PolicyConfig.read(policy) if policy else None,
        )
    for name in ("PRO_ENDPOINT_MODEL", "PRO_ENDPOINT_TOKEN", "PRO_ENDPOINT_DIALECT"):
        if value(name):
            raise ValueError(f"{name} is set but PRO_ENDPOINT_URL is not: set both or neither")
    return LocalGenerator(value("PRO_POLICY") or SMOLLM2)
