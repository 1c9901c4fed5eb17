"""Generation: one interface, two kinds: in this process, or an endpoint."""

import os
from collections.abc import Mapping
from typing import get_args

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
from pro_core.generation.mixing import STRONGEST, Method, Mixing
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
    "Mixing",
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

    PRO_DECODING and PRO_STRENGTH say how weights mix a policy of one LoRA per objective
    (:class:`~pro_core.generation.mixing.Mixing`). With PRO_LORA_FOLDER, a vLLM server at PRO_ENDPOINT_URL mixes the
    soup PRO_POLICY, too (:class:`~pro_core.generation.vllm_lora.SoupEndpoint`).

    Raises:
        ValueError: an endpoint setting without its URL, or one that makes no sense.
    """

    def value(name: str) -> str | None:
        return environ.get(name, "").strip() or None

    mixing = _mixing(value("PRO_DECODING"), value("PRO_STRENGTH"))
    policy, folder = value("PRO_POLICY"), value("PRO_LORA_FOLDER")
    url, dialect = value("PRO_ENDPOINT_URL"), value("PRO_ENDPOINT_DIALECT") or "openai"
    model, token = value("PRO_ENDPOINT_MODEL"), value("PRO_ENDPOINT_TOKEN")
    if folder is not None:
        if url is None or policy is None or dialect != "openai":
            raise ValueError(
                "PRO_LORA_FOLDER is for a soup at a vLLM server: set PRO_ENDPOINT_URL and PRO_POLICY, too, and leave "
                "PRO_ENDPOINT_DIALECT"
            )
        from pro_core.generation.vllm_lora import SoupEndpoint

        return SoupEndpoint(url, policy, folder, mixing=mixing, model=model, token=token)
    if url is not None and mixing:
        raise ValueError(
            "got PRO_DECODING or PRO_STRENGTH beside PRO_ENDPOINT_URL, but a server does not mix as it writes: set "
            "either the one or the other"
        )
    if url is not None:
        return EndpointGenerator(
            url,
            model=model or (policy if dialect == "tgi" else None),
            token=token,
            dialect=dialect,
            policy=PolicyConfig.read(policy) if policy else None,
        )
    for name in ("PRO_ENDPOINT_MODEL", "PRO_ENDPOINT_TOKEN", "PRO_ENDPOINT_DIALECT"):
        if value(name):
            raise ValueError(f"{name} is set but PRO_ENDPOINT_URL is not: set both or neither")
    return LocalGenerator(policy or SMOLLM2, mixing=mixing)


def _mixing(method: str | None, strength: str | None) -> Mixing | None:
    """What PRO_DECODING and PRO_STRENGTH ask for; None where neither is set. Raises ValueError, naming the variable."""
    if method is None and strength is None:
        return None
    methods: dict[str, Method] = {name: name for name in get_args(Method)}
    if method is not None and method not in methods:
        raise ValueError(f"PRO_DECODING: got {method!r}, expected one of {list(methods)}")
    try:
        return Mixing(methods[method or "soup"], float(strength or 1))
    except ValueError:
        raise ValueError(
            f"PRO_STRENGTH: got {strength!r}, expected a number from 0 to {STRONGEST:g}"
        ) from None
