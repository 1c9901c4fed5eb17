"""A vLLM server whose LoRA is replaced while it runs: how rollouts of a policy in training come from an endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pro_core.generation.endpoint import EndpointGenerator
from pro_core.generation.request import GenerationError
from pro_core.http import Answer
from pro_core.http.failures import Failure
from pro_core.prompting.policy_config import PolicyConfig


class LoraEndpoint(EndpointGenerator):
    """An endpoint that is told which LoRA to write with; see :class:`EndpointGenerator` for its arguments.

    The server must run with ``--enable-lora`` and ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=True``.
    """

    _lora: str | None = None

    def use_lora(self, name: str, folder: str | Path) -> None:
        """Have the server load a LoRA from a folder that it can read, and write with it from now on.

        The LoRA used before is unloaded. A LoRA that the server already holds under this name is used as it is, so each
        version needs its own name.

        Raises:
            GenerationError: the server does not load it, and says why.
        """
        folder = Path(folder).resolve()
        asked = {"lora_name": name, "lora_path": str(folder)}
        answer = self._ask("POST", "/v1/load_lora_adapter", asked)
        if not answer.success and name not in self._loras():
            refusal = self.client.explain.answer(answer.status, answer.data)
            raise GenerationError(
                f"The LoRA {name} was not loaded. {refusal.message} "
                "A vLLM server does that with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True."
            )
        if self._lora not in (None, name):
            self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": self._lora})  # best effort
        self._lora = self._dialect.model = name
        self._policy = PolicyConfig.read(folder)

    def _loras(self) -> set[str]:
        """The names of the LoRAs that the server lists: models with a parent."""
        listed = self._ask("GET", "/v1/models").data
        models = listed.get("data") if isinstance(listed, dict) else None
        return {
            str(model.get("id"))
            for model in (models if isinstance(models, list) else ())
            if isinstance(model, dict) and model.get("parent")
        }

    def _ask(self, method: str, route: str, body: dict[str, Any] | None = None) -> Answer:
        path = self.client.address.path.removesuffix("/chat/completions").removesuffix("/v1")
        try:
            return self.client.ask(method, path + route, body)
        except Failure as failure:
            raise GenerationError(failure.message) from None
