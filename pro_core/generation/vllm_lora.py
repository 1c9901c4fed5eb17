"""A vLLM server that loads LoRAs while it runs: those of a policy in training, or a soup's under the weights in force.

The server must run with ``--enable-lora`` and ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=True``, and read the folders that are
written here. Whoever reaches such a server can have it load any folder, so it must not be public.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pro_core.generation.endpoint import EndpointGenerator
from pro_core.generation.lattice import Mixture
from pro_core.generation.mixing import Mixing
from pro_core.generation.request import GenerationError, Request
from pro_core.http import Answer, Settings
from pro_core.http.failures import Failure
from pro_core.prompting.policy_config import PolicyConfig
from pro_core.system.storage import file_hash

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


class LoraEndpoint(EndpointGenerator):
    """An endpoint that is told which LoRA to write with; see :class:`EndpointGenerator` for its arguments."""

    _lora: str | None = None

    def use_lora(self, name: str, folder: str | Path) -> None:
        """Have the server load a LoRA from a folder that it can read, and write with it from now on.

        The LoRA used before is unloaded. A LoRA that the server already holds under this name is used as it is, so each
        version needs its own name.

        Raises:
            GenerationError: the server does not load it, and says why.
        """
        folder = Path(folder).resolve()
        self._load_lora(name, folder)
        if self._lora and self._lora != name:
            self._unload_lora(self._lora)
        self._lora = self._dialect.model = name
        self._policy = PolicyConfig.read(folder)

    def _load_lora(self, name: str, folder: Path) -> None:
        """Have the server hold a LoRA; nothing happens if it does already. Raises GenerationError."""
        asked = {"lora_name": name, "lora_path": str(folder)}
        answer = self._ask("POST", "/v1/load_lora_adapter", asked)
        if not answer.success and name not in self._loras():
            refusal = self.client.explain.answer(answer.status, answer.data)
            raise GenerationError(
                f"The LoRA {name} was not loaded. {refusal.message} "
                "A vLLM server does that with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True."
            )

    def _unload_lora(self, name: str) -> None:
        """Have the server forget a LoRA, if it can."""
        self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": name})

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


@dataclass
class _Held:
    """A LoRA that the server holds, and how many answers it is writing."""

    folder: Path
    writing: int = 0


class SoupEndpoint(LoraEndpoint):
    """A soup behind a vLLM server: the LoRA of the weights in force is written, loaded, and named after them.

    Weights are rounded to hundredths, so that near ones share a LoRA. The server holds a few, the latest used; one that
    is writing is never unloaded.

    Args:
        soup: the folder of a soup that is mixed as it writes.
        folder: where the LoRAs are written. The server must read it under the same path.
        most: how many LoRAs the server holds at a time, at least 1.
        mixing: how weights mix them where a request does not say it; only soups, of any strength.
        endpoint: for :class:`EndpointGenerator`, without ``policy``.

    Raises:
        ValueError: the folder holds no such soup, or the mixing is not one.
    """

    def __init__(
        self,
        url: str,
        soup: str | Path,
        folder: str | Path,
        *,
        most: int = 8,
        mixing: Mixing | None = None,
        **endpoint: Any,
    ):
        super().__init__(url, **endpoint)
        policy = PolicyConfig.read(soup)
        if policy is None or not policy.ranks or most < 1:
            raise ValueError(
                f"got {soup} and most={most}, expected a soup that is mixed as it writes and at least 1 LoRA"
            )
        self._policy = policy
        self._soup, self._folder = Path(soup), Path(folder).resolve()
        self._most, self._mixing = most, mixing or Mixing()
        self._made_of = file_hash(self._soup / TENSORS)[:8]
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._lock = threading.Lock()

    def with_token(self, token: str, settings: Settings | None = None) -> EndpointGenerator:
        """Not for a server that loads LoRAs: it takes its owner's token only. Raises ValueError."""
        raise ValueError("A server that loads LoRAs while it runs takes no visitor's token.")

    @asynccontextmanager
    async def _mixture(self, read: Request) -> AsyncGenerator[Mixture | None, None]:
        mixing = read.mixing or self._mixing
        if mixing.method != "soup":
            raise GenerationError("A server mixes only soups: its logits are out of reach.")
        weights = {name: round(100 * weight) for name, weight in (read.weights or {}).items()}
        strength = round(100 * mixing.strength)
        if not strength:
            yield None  # the base model
            return
        parts = [f"{name}-{weight:03d}" for name, weight in weights.items() if weight]
        name = "_".join([*parts, f"strength-{strength:03d}", self._made_of])
        scales = [weight * strength / 10_000 for weight in weights.values()]
        await asyncio.to_thread(self._hold, name, scales)
        try:
            yield Mixture(name, "")
        except Failure as failure:
            if failure.status == 404:  # the server was started anew
                self._held.pop(name, None)
            raise
        finally:
            with self._lock:
                if name in self._held:
                    self._held[name].writing -= 1

    def _hold(self, name: str, scales: Sequence[float]) -> None:
        """Make sure that the server holds a LoRA, and keep it there. Raises GenerationError."""
        with self._lock:
            if name not in self._held:
                folder = self._folder / name
                if not folder.is_dir():
                    write_soup(self._soup, scales, folder)
                self._load_lora(name, folder)
                self._held[name] = _Held(folder)
            self._held[name].writing += 1
            self._held.move_to_end(name)
            idle = [old for old, held in self._held.items() if not held.writing]
            for old in idle[: max(0, len(self._held) - self._most)]:
                self._unload_lora(old)
                shutil.rmtree(self._held.pop(old).folder, ignore_errors=True)


def write_soup(soup: Path, scales: Sequence[float], folder: Path) -> None:
    """Save the LoRA of a soup under fixed scales of its K LoRAs, in bf16; those with a scale of 0 are left out.

    Args:
        soup: the folder of a soup that is mixed as it writes. folder: takes its place when it is whole.
    """
    policy = PolicyConfig.read(soup)
    assert policy is not None
    ranks = torch.tensor(list(policy.ranks.values()))
    scale = torch.tensor(scales).repeat_interleave(ranks)
    used = scale != 0
    tensors = {
        name: (t[used] if ".lora_A." in name else (t.float() * scale)[:, used])
        .bfloat16()
        .contiguous()
        for name, t in load_file(soup / TENSORS).items()
    }
    r = int(used.sum())
    config = json.loads((soup / CONFIG).read_text()) | {"r": r, "lora_alpha": r}
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
    save_file(tensors, partial / TENSORS, metadata={"format": "pt"})
    (partial / CONFIG).write_text(json.dumps(config) + "\n")
    partial.chmod(0o755)  # the server may be another user's
    partial.rename(folder)
