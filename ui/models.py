"""The models behind the page and the API: panel, adapter and generator, loaded in the background."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pro_core.adapter.explanations import Explanation, explain
from pro_core.adapter.model import PreferenceAdapter, UncertainWeights
from pro_core.data.objectives import Message
from pro_core.generation import (
    EndpointGenerator,
    GenerationError,
    GenerationSettings,
    LocalGenerator,
    Mixing,
    Request,
    Written,
    generator_from_env,
)
from pro_core.http import Settings
from pro_core.prompting.policy_config import PolicyConfig
from pro_core.prompting.templates import LEVELS
from pro_core.rewards.explanations import ScoreExplanation, explanation_steps
from pro_core.rewards.panel import RewardPanel
from pro_core.weights import apply_floors, parse_floors
from ui import since_start
from ui.batching import Batcher, Kind
from ui.board import Added, presets
from ui.panel_scores import Scores, scores_of, unjudged
from ui.places import Places
from ui.sentences import Sentences
from ui.sign_in import NOWHERE, WANTED, can_sign_in, wants_sign_in
from ui.writing import Writing

ROOT = Path(__file__).parent.parent
SIGNED_IN = Settings(token="your sign-in")
OWN = ("PRO_POLICY", "PRO_ENDPOINT_URL", "PRO_PANEL")
"""If any of these is set, the shipped policy is not used: it belongs to the shipped panel only."""
PROMPTS, TEXTS = 32, 24
"""Prompts and answers per batch: a larger batch would take longer than a visitor should wait for weights."""
EXPLAINED = 20_000
"""Most characters of an answer whose scores are explained: each of its texts is tokenized as a whole."""
log = logging.getLogger("pro.app")


class SignInWanted(GenerationError):
    """Answers are written for visitors who signed in only."""


def strength_of(generator: Any) -> float | None:
    """The strength of a policy that is mixed in this process; None for any other. Loads nothing."""
    if not isinstance(generator, LocalGenerator) or not Path(generator.path_or_id).is_dir():
        return None
    policy = generator.policy
    return (generator.mixing or Mixing()).strength if policy and policy.ranks else None


class Models:
    """Panel, adapter and generator that the environment names; :meth:`start` loads them in the background.

    Attributes:
        panel, adapter: None until loaded, and when they cannot be used; `problem` and `warning` say why.
        policy: what the generator was trained to read beside the prompt; None until loaded, and for a stock model.
        demo: whether the shipped policy writes the answers. own_panel: whether a panel of the owner's scores them.
        sentences: what visitors may add as objectives. sign_in: whether each visitor's own sign-in pays for answers;
            owner_pays: whether the owner's token does.
        strength: how strongly the policy is mixed where a visitor does not say; None for a policy that is not mixed.
        floors: (K,), the owner's minimum weights. presets: weights to start from, by name.
        ready: panel and adapter have loaded or failed. finished: the generator has, too.
        places: limits how many visitors have answers written at once.
    """

    def __init__(self, environ: Mapping[str, str]):
        self.demo = not any(environ.get(name, "").strip() for name in OWN)
        if self.demo:
            environ = {**environ, "PRO_POLICY": str(ROOT / "checkpoints/demo/policy")}
        self.generator = generator_from_env(environ)
        self.sentences = Sentences(environ)
        self.sign_in = wants_sign_in(environ)
        self.owner_pays = bool(environ.get("PRO_ENDPOINT_TOKEN", "").strip())
        self.local = isinstance(self.generator, LocalGenerator)
        self.strength = strength_of(self.generator)
        self.generator_status = {"name": self.generator.name, "state": "loading"}
        own_panel = environ.get("PRO_PANEL", "")
        demo_adapter = "" if own_panel else str(ROOT / "checkpoints/demo/adapter")
        self.panel_source = own_panel or str(ROOT / "checkpoints/demo/panel")
        self.own_panel = bool(own_panel)
        self.adapter_source = environ.get("PRO_ADAPTER") or demo_adapter
        if self.adapter_source == "none":
            self.adapter_source = ""
        self.floors_text = environ.get("PRO_FLOORS", "")
        self.floors = np.zeros(0, dtype=np.float32)
        self.presets_text = environ.get("PRO_PRESETS", "")
        self.presets: dict[str, list[float]] = {}
        self.policy: PolicyConfig | None = None
        self.panel: RewardPanel | None = None
        self.adapter: PreferenceAdapter | None = None
        self.problem = self.warning = ""
        self.ready = self.finished = False
        self._said_first_token = False
        # A model in this process writes for one visitor at a time. A second one with a place would wait unawares.
        self.places = Places(1, 32) if self.local else Places(16, 256)
        self._looking: asyncio.Task[dict[str, Any]] | None = None
        self._batcher = Batcher(
            {
                "predict": Kind(self._predict, PROMPTS),
                "score": Kind(self._score, TEXTS, lambda request: len(request[1])),
                "explain": Kind(self._explain, 1),
                "why": Kind(
                    partial(self._score, judged=False), TEXTS, lambda request: len(request[1])
                ),
            }
        )

    def start(self) -> Models:
        threading.Thread(target=self.load, name="pro-load", daemon=True).start()
        return self

    def load(self) -> None:
        """Load everything; `problem` and `warning` name what cannot be used."""
        self.load_scorers()
        try:
            if isinstance(self.generator, LocalGenerator):
                self.generator.load()
        except Exception as error:
            log.error("the generator cannot be used: %s", sentence(error), exc_info=error)
            self.warn(f"No generator: {sentence(error)}")
        else:
            log.info("generator ready %.1f s after start", since_start())
        self.policy = self.generator.policy
        if self.policy and self.panel:
            self._check_policy(self.policy, self.panel)
        self.generator_status = self._generator_state()
        if self.sign_in and not can_sign_in():
            self.warn(NOWHERE)
        self.finished = True
        try:
            self.sentences.load()
        except Exception as error:  # whoever adds an objective tries again, and reads why
            log.warning("the judge cannot be asked: %s", sentence(error))

    def load_scorers(self) -> None:
        """Load the panel and the adapter. A generator in this process is loaded by :meth:`load`, or when it writes."""
        try:
            panel = RewardPanel.from_pretrained(self.panel_source)
            panel.require_stats()
            self.floors = parse_floors(self.floors_text, panel.objective_names)
            self.panel = panel
        except Exception as error:
            log.exception("the panel cannot be used")
            self.problem = f"Scoring is off: {sentence(error)}"
        if self.panel:
            self.presets = presets(self.panel.objective_names)
            try:
                self.presets = presets(self.panel.objective_names, self.presets_text)
            except ValueError as error:
                self.warn(f"Presets not in use: {sentence(error)}")
        if self.panel and self.adapter_source:
            try:
                adapter = PreferenceAdapter.from_pretrained(self.adapter_source)
                adapter.check_panel(self.panel)
                adapter.predict(["Hello"])
                self.adapter = adapter
            except Exception as error:
                log.exception("the adapter cannot be used")
                self.warn(f"Adapter not in use: {sentence(error)}")
        self.ready = True
        log.info("weights ready %.1f s after start", since_start())

    def _check_policy(self, policy: PolicyConfig, panel: RewardPanel) -> None:
        try:
            policy.check_objectives(panel.objective_names)
        except ValueError as error:  # raised again for everyone who asks
            self.warn(f"No answers: {sentence(error)}")
        else:
            # MOSLIM's policies learn from a classifier, not from a panel.
            by_panel = policy.reads not in (None, LEVELS)
            if by_panel and policy.panel != panel.fingerprint():
                self.warn("The policy learned from another panel's scores than these")

    def warn(self, text: str) -> None:
        self.warning = f"{self.warning} {text}".strip()

    async def policy_in_use(self) -> PolicyConfig | None:
        """What the generator was trained to read beside the prompt, from its files while it is still loading.

        Those files are read in a thread. Otherwise no thread is used: all of them may be looking up the endpoint's
        address, and weights must not wait for that.
        """
        if self.local and self.generator_status["state"] != "ready":
            return await asyncio.to_thread(lambda: self.generator.policy)
        return self.generator.policy

    async def requests(
        self,
        batch: Sequence[Sequence[Message]],
        weights: np.ndarray,
        strength: float | None = None,
    ) -> list[Request]:
        """One request per conversation, under weights (K,) or those of a run with added objectives, of which no policy
        reads. ``strength`` mixes a policy; None: as the owner says.

        Raises:
            ValueError: the policy has other objectives.
        """
        assert self.panel is not None
        names = self.panel.objective_names
        policy = await self.policy_in_use()
        if policy is not None:
            policy.check_objectives(names)
        requests = [Request.weighted(one, weights[: len(names)], names) for one in batch]
        if strength is None:
            return requests
        own = self.generator.mixing if isinstance(self.generator, LocalGenerator) else None
        mixing = replace(own or Mixing(), strength=strength)
        return [replace(request, mixing=mixing) for request in requests]

    def writing(
        self, batch: Sequence[Request], settings: GenerationSettings, token: str | None = None
    ) -> Writing:
        """Start to write the answers to a batch. The visitor must hold a place.

        Args:
            token: the visitor's own, where visitors sign in.

        Raises:
            SignInWanted: it is missing.
        """
        self.check_signed_in(token)
        generator = self.generator
        if token and isinstance(generator, EndpointGenerator):
            generator = generator.with_token(token, SIGNED_IN)
        return Writing(generator, batch, settings, lambda: self.places.held)

    def check_signed_in(self, token: str | None) -> None:
        """Raise SignInWanted where answers need a visitor's sign-in, and there is no token of it."""
        if self.sign_in and not token:
            raise SignInWanted(WANTED)

    def note_first_token(self, written: Sequence[Written], begun: float) -> None:
        """Log once when the first word of the first answer came."""
        if self._said_first_token or not any(one.text or one.reasoning for one in written):
            return
        self._said_first_token = True
        waited = time.perf_counter() - begun
        log.info("first token %.1f s after start, %.1f s after its prompt", since_start(), waited)

    async def when_ready(self) -> RewardPanel:
        """The panel, once it is loaded. Raises GenerationError when it cannot be used."""
        while not self.ready:
            await asyncio.sleep(0.05)
        if self.panel is None:
            raise GenerationError(self.problem)
        return self.panel

    async def predict(self, messages: Sequence[Message]) -> UncertainWeights | None:
        """The adapter's weights and their interval (K,) under the floors, and `known`; None without an adapter."""
        return None if self.adapter is None else await self._batcher.ask("predict", messages)

    async def explain(
        self, messages: Sequence[Message]
    ) -> tuple[UncertainWeights, Explanation] | None:
        """The same weights, and the words that moved them (before floors); None without an adapter."""
        return None if self.adapter is None else await self._batcher.ask("explain", messages)

    async def score(self, messages: Sequence[Message], texts: Sequence[str]) -> Scores:
        """The panel's scores of N answers to one conversation."""
        return await self._batcher.ask("score", (messages, texts))

    async def score_with(
        self, added: Sequence[Added], messages: Sequence[Message], texts: Sequence[str]
    ) -> tuple[Scores, str]:
        """The scores of the panel and then of added objectives, (N, K + A), and why some of the latter are missing."""
        if not added:
            return await self.score(messages, texts), ""
        scores, (raw, z, why) = await asyncio.gather(
            self.score(messages, texts), self.sentences.score(added, messages, texts)
        )
        return scores.beside(raw, z), why

    async def why(self, messages: Sequence[Message], text: str) -> ScoreExplanation:
        """The words that moved the scores of one answer; other visitors' requests go between its batches.

        Objectives that a judge scores have NaN: it would be asked about dozens of texts that nobody wrote.

        Raises:
            ValueError: an empty answer, one of over :data:`EXPLAINED` characters, or a panel of judges alone.
        """
        if self.panel and not unjudged(self.panel):
            raise ValueError("A judge gives these scores: it is not asked which words moved them.")
        if len(text) > EXPLAINED:
            raise ValueError(f"Only answers of up to {EXPLAINED:,} characters are explained.")
        steps = explanation_steps(text)
        texts = next(steps)
        while True:
            parts = [texts[i : i + TEXTS] for i in range(0, len(texts), TEXTS)]
            scores = [await self._batcher.ask("why", (messages, part)) for part in parts]
            try:
                texts = steps.send(np.concatenate([one.z for one in scores]))
            except StopIteration as done:
                return done.value

    def _predict(self, prompts: list[Sequence[Message]]) -> list[UncertainWeights]:
        assert self.adapter is not None
        rows = self.adapter.predict_with_uncertainty(prompts)
        return [self._floored(*row) for row in zip(*rows, strict=True)]

    def _explain(
        self, prompts: list[Sequence[Message]]
    ) -> list[tuple[UncertainWeights, Explanation]]:
        assert self.adapter is not None
        explanations = [explain(self.adapter, messages) for messages in prompts]
        return [(self._floored(e.weights, e.lower, e.upper, e.known), e) for e in explanations]

    def _score(
        self, requests: list[tuple[Sequence[Message], Sequence[str]]], judged: bool = True
    ) -> list[Scores]:
        assert self.panel is not None
        return scores_of(self.panel, requests, judged)

    def _floored(self, weights, lower, upper, known) -> UncertainWeights:
        """Weights and interval under the floors. The interval never reaches below a floor and contains its weight."""
        weights = apply_floors(weights, self.floors)
        lower = np.minimum(np.maximum(lower, self.floors), weights)
        return UncertainWeights(weights, lower, np.maximum(upper, weights), known)

    def uniform(self) -> np.ndarray:
        """Uniform weights (K,) under the floors, which count where there is no adapter."""
        return apply_floors(np.full(len(self.floors), 1 / len(self.floors)), self.floors)

    async def status(self) -> dict[str, Any]:
        """The status for the API. The generator may ask its server, which takes seconds; callers share one request."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(asyncio.to_thread(self._generator_state))
        self.generator_status = await asyncio.shield(self._looking)
        return self.known()

    def _generator_state(self) -> dict[str, Any]:
        """The generator's status. Where visitors sign in, the app has no token to ask with."""
        if not self.sign_in:
            return self.generator.status()
        detail = "asked with each visitor's own sign-in"
        state = {"state": "ready", "reachable": True, "detail": detail}
        return {"name": self.generator.name, "kind": "endpoint", **state}

    def known(self) -> dict[str, Any]:
        """:meth:`status` as last known."""
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


def short(source: str) -> str:
    """A hub id as it is, or the last two parts of an absolute path: visitors need not know the server's folders."""
    return "/".join(Path(source).parts[-2:]) if Path(source).is_absolute() else source


def sentence(error: BaseException) -> str:
    """The first line of an error, without the project's path."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].replace(f"{ROOT}/", "")[:300]
