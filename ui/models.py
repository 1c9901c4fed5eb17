"""The models behind the page and the API: panel, adapter and generator, loaded in the background."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pro_core.adapter import PreferenceAdapter, UncertainWeights
from pro_core.conditioned import PolicyConfig
from pro_core.conditioning import LEVELS
from pro_core.explanations import Explanation, explain
from pro_core.generation import (
    GenerationError,
    LocalGenerator,
    conditioned,
    generator_from_env,
)
from pro_core.objectives import Message
from pro_core.rewards.calibration import text_lengths
from pro_core.rewards.panel import RewardPanel
from pro_core.weights import apply_floors, parse_floors
from ui import since_start

ROOT = Path(__file__).parent.parent
READS = {
    "weights": "conditioned on weights",
    "weights+level": "conditioned on weights and a level",
    "scores": "conditioned on scores",
    "levels": "conditioned on levels",
    "mixture": "mixed by the weights",
}
OWN = ("PRO_POLICY", "PRO_ENDPOINT_URL", "PRO_PANEL")
"""Any of these takes the place of the policy that ships: it belongs to the panel that ships, and to no other model."""
log = logging.getLogger("pro.app")


class Models:
    """Panel, adapter and generator by the environment; :meth:`start` loads them in the background.

    Attributes:
        panel, adapter: None until loaded, or when they cannot be used; `problem` and `warning` say why.
        policy: what the generator was trained to read beside the prompt; None until loaded, and for a stock model.
        demo: the policy that ships writes the answers.
        floors: (K,), the owner's least weights.
        ready: panel and adapter are loaded (or failed to). finished: the generator too.
    """

    def __init__(self, environ: Mapping[str, str]):
        own = [name for name in OWN if environ.get(name, "").strip()]
        self.demo = not own
        if self.demo:
            environ = {**environ, "PRO_POLICY": str(ROOT / "checkpoints/demo/policy")}
        self.generator = generator_from_env(environ)
        self.local = isinstance(self.generator, LocalGenerator)
        self.generator_status = {"name": self.generator.name, "state": "loading"}
        own_panel = environ.get("PRO_PANEL", "")
        demo_adapter = "" if own_panel else str(ROOT / "checkpoints/demo/adapter")
        self.panel_source = own_panel or str(ROOT / "checkpoints/demo/panel")
        self.adapter_source = environ.get("PRO_ADAPTER") or demo_adapter
        if self.adapter_source == "none":
            self.adapter_source = ""
        self.floors_text = environ.get("PRO_FLOORS", "")
        self.floors = np.zeros(0, dtype=np.float32)
        self.policy: PolicyConfig | None = None
        self.panel: RewardPanel | None = None
        self.adapter: PreferenceAdapter | None = None
        self.problem = self.warning = ""
        self.ready = self.finished = False
        self.said_first_token = False

    def start(self) -> Models:
        threading.Thread(target=self.load, name="pro-load", daemon=True).start()
        return self

    def load(self) -> None:
        """Load everything; whatever cannot be used is named in `problem` or `warning`."""
        try:
            panel = RewardPanel.from_pretrained(self.panel_source)
            panel.require_stats()
            self.floors = parse_floors(self.floors_text, panel.objective_names)
            self.panel = panel
        except Exception as error:
            log.exception("the panel cannot be used")
            self.problem = f"Scoring is off: {sentence(error)}"
        if self.panel and self.adapter_source:
            try:
                adapter = PreferenceAdapter.from_pretrained(self.adapter_source)
                adapter.check_panel(self.panel)
                adapter.predict(["Hello"])
                self.adapter = adapter
            except Exception as error:
                log.exception("the adapter cannot be used")
                self.warning = f"Adapter not in use: {sentence(error)}"
        self.ready = True
        log.info("weights ready %.1f s after start", since_start())
        try:
            if isinstance(self.generator, LocalGenerator):
                self.generator.load()
        except Exception as error:
            log.exception("the generator cannot be used")
            self.warn(f"No generator: {sentence(error)}")
        self.policy = self.generator.policy
        if self.policy and self.panel:
            self._check_policy(self.policy, self.panel)
        self.generator_status = self.generator.status()
        self.finished = True
        log.info("generator ready %.1f s after start", since_start())

    def _check_policy(self, policy: PolicyConfig, panel: RewardPanel) -> None:
        try:
            policy.check_objectives(panel.objective_names)
        except ValueError as error:  # said again to whoever asks
            self.warn(f"No answers: {sentence(error)}")
        else:
            by_panel = policy.reads not in (None, LEVELS)  # MOSLIM's learn from a classifier
            if by_panel and policy.panel != panel.fingerprint():
                self.warn("The policy learned from another panel's scores than these")

    def warn(self, text: str) -> None:
        self.warning = f"{self.warning} {text}".strip()

    def conditioned(
        self, batch: Sequence[Sequence[Message]], weights: np.ndarray
    ) -> list[list[Message]]:
        """What the generator reads under weights (K,). Raises ValueError when its policy has other objectives."""
        assert self.panel is not None
        names = self.panel.objective_names
        return [conditioned(self.generator, messages, weights, names) for messages in batch]

    async def when_ready(self) -> RewardPanel:
        """The panel, once it is loaded. Raises GenerationError when it cannot be used."""
        while not self.ready:
            await asyncio.sleep(0.05)
        if self.panel is None:
            raise GenerationError(self.problem)
        return self.panel

    def weights(self, messages: Sequence[Message]) -> np.ndarray | None:
        """The adapter's weights (K,) under the floors, or None without an adapter."""
        predicted = self.predict(messages)
        return None if predicted is None else predicted.weights

    def predict(self, messages: Sequence[Message]) -> UncertainWeights | None:
        """The adapter's weights and their interval (K,) under the floors, and `known`; None without an adapter."""
        if self.adapter is None:
            return None
        rows = self.adapter.predict_with_uncertainty([messages])
        return self._floored(*(row[0] for row in rows))

    def explain(self, messages: Sequence[Message]) -> tuple[UncertainWeights, Explanation] | None:
        """The same weights, and which words moved them (before any floor); None without an adapter."""
        if self.adapter is None:
            return None
        found = explain(self.adapter, messages)
        return self._floored(found.weights, found.lower, found.upper, found.known), found

    def _floored(self, weights, lower, upper, known) -> UncertainWeights:
        """The interval never reaches below a floor, and always holds its weight."""
        weights = apply_floors(weights, self.floors)
        lower = np.minimum(np.maximum(lower, self.floors), weights)
        return UncertainWeights(weights, lower, np.maximum(upper, weights), known)

    def uniform(self) -> np.ndarray:
        """1/K each (K,), under the floors: what counts where there is no adapter."""
        return apply_floors(np.full(len(self.floors), 1 / len(self.floors)), self.floors)

    def score(
        self, messages: Sequence[Message], texts: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Raw and standardized scores, each (N, K); a row of NaN for a text that is empty."""
        assert self.panel is not None
        kept = [n for n, text in enumerate(texts) if text.strip()]
        raw_NK = np.full((len(texts), len(self.panel.objective_names)), np.nan, dtype=np.float32)
        z_NK = raw_NK.copy()
        if kept:
            written = [texts[n] for n in kept]
            raw_NK[kept] = self.panel.score([messages] * len(kept), written)
            z_NK[kept] = self.panel.require_stats().normalize(raw_NK[kept], text_lengths(written))
        return raw_NK, z_NK

    def status(self) -> dict[str, Any]:
        """For the API. Asks the generator, which may ask its server (for seconds: call it in a thread)."""
        self.generator_status = self.generator.status()
        return self._status()

    def _status(self) -> dict[str, Any]:
        generator = self.generator_status
        names = list(self.panel.objective_names) if self.panel else []
        missing = "none, uniform weights" if self.ready else "loading"
        return {
            "generator": generator,
            "panel": short(self.panel_source) if self.panel else (self.problem or "loading"),
            "adapter": short(self.adapter_source) if self.adapter else missing,
            "objectives": names,
            "K": len(names),
            "reachable": bool(generator.get("reachable")),
            "conditioned": self.policy.reads if self.policy else None,
            "warning": self.warning,
        }

    def status_text(self) -> str:
        """For the page: what is in use and what is loading, as last known."""
        status = self._status()
        generator, K = status["generator"], status["K"]
        state = "" if generator["state"] == "ready" else f" ({generator['state']}…)"
        reads = f", {READS[status['conditioned']]}" if status["conditioned"] else ""
        parts = [
            f"Generator: {generator['name']}{reads}{state}",
            f"Panel: {status['panel']}" + (f", {K} objectives" if K else ""),
            f"Adapter: {status['adapter']}",
            status["warning"],
        ]
        return " · ".join(filter(None, parts))


def short(source: str) -> str:
    """A hub id as it is, of a path the end: a server's folders are nobody's business."""
    return "/".join(Path(source).parts[-2:]) if Path(source).is_absolute() else source


def sentence(error: BaseException) -> str:
    """The first line of an error, without the project's own path."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].replace(f"{ROOT}/", "")[:300]
