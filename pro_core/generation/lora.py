"""A vLLM server whose LoRA is replaced while it runs: how rollouts of a policy in training come from an endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2

from pro_core.conditioned import PolicyConfig
from pro_core.generation.base import GenerationError
from pro_core.generation.endpoint import EndpointGenerator


class LoraEndpoint(EndpointGenerator):
    """An endpoint that is told which LoRA to write with; see :class:`EndpointGenerator` for its arguments.

    The server must run with ``--enable-lora`` and ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=True``.
    """

    _lora: str | None = None

    def use_lora(self, name: str, folder: str | Path) -> None:
        """Have the server load a LoRA from a folder that it can read, and write with it from now on.

        The LoRA used before is unloaded; one of this name that is there already is used as it is, so each version
        needs a name of its own.

        Raises:
            GenerationError: the server does not load it, and says why.
        """
        folder = Path(folder).resolve()
        answer = self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        if not answer.is_success and "already been loaded" not in answer.text:
            failure = self._explain.status(answer.status_code, self._explain.detail(answer.content))
            raise GenerationError(
                f"The LoRA {name} was not loaded. {failure.message} A vLLM server does that with --enable-lora and "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True."
            )
        if self._lora not in (None, name):
            self._post("/v1/unload_lora_adapter", {"lora_name": self._lora})  # best effort
        self._lora = self.model = name
        self._policy = PolicyConfig.read(folder)

    def _post(self, route: str, body: dict[str, Any]) -> httpx2.Response:
        try:
            return httpx2.post(
                self._root + route, json=body, headers=self._headers(), timeout=self.timeout
            )
        except Exception as error:
            raise GenerationError(self._explain.exception(error).message) from None
