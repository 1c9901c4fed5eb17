"""A vLLM server whose LoRA is replaced while it runs: how rollouts of a policy in training come from an endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pro_core.conditioned import PolicyConfig
from pro_core.generation.base import GenerationError
from pro_core.generation.endpoint import EndpointGenerator
from pro_core.http import Answer
from pro_core.http.failures import Failure


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
        said = self.client.explain.words(answer.data)
        if not answer.success and "already been loaded" not in said:
            raise GenerationError(
                f"The LoRA {name} was not loaded. {self.client.explain.answer(answer.status, answer.data).message} "
                "A vLLM server does that with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True."
            )
        if self._lora not in (None, name):
            self._post("/v1/unload_lora_adapter", {"lora_name": self._lora})  # best effort
        self._lora = self._dialect.model = name
        self._policy = PolicyConfig.read(folder)

    def _post(self, route: str, body: dict[str, Any]) -> Answer:
        path = self.client.address.path.removesuffix("/chat/completions").removesuffix("/v1")
        try:
            return self.client.ask("POST", path + route, body)
        except Failure as failure:
            raise GenerationError(failure.message) from None
