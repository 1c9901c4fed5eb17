"""A vLLM server that loads LoRAs while it runs: those of a policy in training, or a soup's under the weights in force.

The server must run with ``--enable-lora`` and ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=True``, and read the folders that are
written here. Whoever reaches such a server can have it load any folder, so it must not be public.
"""

from __future__ import annotations

import asyncio
import math
import shutil
import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pro_core.generation.endpoint import EndpointGenerator
from pro_core.generation.lattice import Mixture
from pro_core.generation.mixing import Mixing
from pro_core.generation.request import GenerationError, Request
from pro_core.generation.soup_files import TENSORS, mixture_name, replaced, save, split
from pro_core.http import Answer, Settings
from pro_core.http.failures import Failure
from pro_core.prompting.policy_config import PolicyConfig
from pro_core.system.storage import file_hash


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
        if not answer.success and name not in (self._loras() or ()):
            refusal = self.client.explain.answer(answer.status, answer.data)
            raise GenerationError(
                f"The LoRA {name} was not loaded. {refusal.message} "
                "A vLLM server does that with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True."
            )

    def _unload_lora(self, name: str) -> None:
        """Have the server forget a LoRA, if it can."""
        self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": name})

    def _loras(self) -> set[str] | None:
        """The names of the LoRAs that the server lists: models with a parent. None: it lists nothing now."""
        answer = self._ask("GET", "/v1/models")
        models = answer.data.get("data") if isinstance(answer.data, dict) else None
        if not answer.success or not isinstance(models, list):
            return None
        return {
            str(model.get("id"))
            for model in models
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
    is writing is never unloaded. What an earlier run left at the server and in the folder is taken over.

    Args:
        soup: the folder of a soup that is mixed as it writes.
        folder: where the LoRAs are written, by this generator alone. The server must read it under the same path.
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
        self._mixing = mixing or Mixing()
        if self._mixing.method != "soup":
            raise ValueError(
                f"got the mixing {self._mixing.method!r} (PRO_DECODING), expected 'soup': a server's logits are out of "
                "reach"
            )
        self._soup, self._folder = Path(soup), Path(folder).resolve()
        self._most = most
        self._made_of = file_hash(self._soup / TENSORS)[:8]
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._adopted = False
        # Of what is held and who writes; never kept while the server is asked.
        self._lock = threading.Lock()
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pro-load-lora")

    def with_token(self, token: str, settings: Settings | None = None) -> EndpointGenerator:
        """Not for a server that loads LoRAs: it takes its owner's token only. Raises ValueError."""
        raise ValueError("A server that loads LoRAs while it runs takes no visitor's token.")

    @asynccontextmanager
    async def _mixture(self, read: Request) -> AsyncGenerator[Mixture | None, None]:
        mixing = read.mixing or self._mixing
        if mixing.method != "soup":
            raise GenerationError("A server mixes only soups: its logits are out of reach.")
        given = read.weights or {}
        weights = hundredths(list(given.values()))
        strength = round(100 * mixing.strength)
        if not strength:
            yield None  # the base model
            return
        mixture = mixture_name(list(given), weights)
        name = f"{mixture}_strength-{strength:03d}_{self._made_of}"
        scales = [weight * strength / 10_000 for weight in weights]
        holding = self._loader.submit(self._hold, name, scales)
        try:
            held = await asyncio.wrap_future(holding)
        except asyncio.CancelledError:
            # The visitor has left, but a load that has begun goes on: its LoRA must not stay pinned.
            holding.add_done_callback(self._let_go_of)
            raise
        try:
            yield Mixture(name, "")
        except Failure as failure:
            if failure.status == 404:  # the server was started anew
                with self._lock:
                    if self._held.get(name) is held:
                        del self._held[name]
            raise
        finally:
            self._let_go(held)

    def _hold(self, name: str, scales: Sequence[float]) -> _Held:
        """Make sure that the server holds a LoRA, and keep it there; in the loader's thread. Raises GenerationError."""
        if not self._adopted:
            self._adopt()
        with self._lock:
            held = self._held.get(name)
            if held:
                held.writing += 1
                self._held.move_to_end(name)
        if not held:
            held = _Held(self._folder / name, writing=1)
            if not held.folder.is_dir():
                write_soup(self._soup, scales, held.folder)
            try:
                self._load_lora(name, held.folder)
            except GenerationError:
                shutil.rmtree(held.folder, ignore_errors=True)
                raise
            with self._lock:
                self._held[name] = held
        with self._lock:
            idle = [old for old, one in self._held.items() if not one.writing]
            surplus = idle[: max(0, len(self._held) - self._most)]
            folders = {old: self._held.pop(old).folder for old in surplus}
        for old, folder in folders.items():
            self._unload_lora(old)
            shutil.rmtree(folder, ignore_errors=True)
        return held

    def _adopt(self) -> None:
        """Take over what an earlier run left: LoRAs that the server still lists count among those that it holds, and
        folders of others are deleted. Raises GenerationError where the server is out of reach."""
        listed = self._loras()
        if listed is None:
            return  # the next answer tries again
        for folder in sorted(self._folder.glob(f"*_{self._made_of}")):
            if folder.name in listed:
                self._held[folder.name] = _Held(folder)
            else:
                shutil.rmtree(folder, ignore_errors=True)
        for name in sorted(listed - set(self._held)):
            if name.endswith(f"_{self._made_of}"):
                self._unload_lora(name)  # its folder is gone, so the server could not read it again
        self._adopted = True

    def _let_go_of(self, holding: Future[_Held]) -> None:
        """Let go of what was held for a visitor who did not wait for it."""
        if not holding.cancelled() and holding.exception() is None:
            self._let_go(holding.result())

    def _let_go(self, held: _Held) -> None:
        with self._lock:
            held.writing -= 1


def hundredths(weights: Sequence[float]) -> list[int]:
    """Weights that sum to 1 as whole hundredths that sum to 100: the largest remainders are rounded up."""
    exact = [100 * weight for weight in weights]
    whole = [math.floor(one) for one in exact]
    by_remainder = sorted(range(len(exact)), key=lambda k: whole[k] - exact[k])
    for k in by_remainder[: 100 - sum(whole)]:
        whole[k] += 1
    return whole


def write_soup(soup: Path, scales: Sequence[float], folder: Path) -> None:
    """Save the LoRA of a soup under fixed scales of its K LoRAs, in bf16; those with a scale of 0 are left out.

    Args:
        soup: the folder of a soup that is mixed as it writes. folder: takes its place when it is whole.
    """
    _, loras = split(soup)
    used = [lora for lora, scale in zip(loras, scales, strict=True) if scale]
    with replaced(folder) as partial:
        save(used, [scale for scale in scales if scale], partial, torch.bfloat16, indent=None)
        partial.chmod(0o755)  # the server may be another user's
