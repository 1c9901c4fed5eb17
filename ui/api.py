"""The named endpoints of the API, for scripts that use `gradio_client`.

A mistake of the caller or a failing model server reaches the caller as an error of one sentence.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from functools import wraps
from typing import Any

import gradio as gr
import numpy as np

from pro_core.adapter.explanations import Explanation
from pro_core.data.turns import without_reasoning
from pro_core.generation import GenerationError
from pro_core.rewards.best_of_n import Candidate, candidate_of, ranked
from pro_core.rewards.calibration import member_spread
from pro_core.rewards.panel import RewardPanel
from pro_core.weights import apply_floors, as_weights, weighted_sum
from ui import values
from ui.models import Models, sentence
from ui.runs import sampled
from ui.values import (
    LONGEST,
    MAX_ANSWERS,
    MAX_TOKENS,
    conversation,
    number,
    numbers,
    text,
    whole,
)


class Api:
    """One method per endpoint."""

    def __init__(self, models: Models):
        self.models = models

    async def predict_weights(self, prompt: str | list) -> dict:
        """{objective: weight} for a prompt, with floors applied; uniform weights without an adapter."""
        messages = conversation(prompt)
        panel = await self.models.when_ready()
        return self._named(panel, (await self._predicted(messages))[0])

    async def explain(self, prompt: str | list) -> dict:
        """The weights, their 90% interval, how familiar the prompt is, and the words that moved each weight.

        `words` holds a list of {"word", "turn", "start", "end", "effect"} for each objective, from the word that raised
        its weight most to the one that lowered it most. `effect` is the weight minus the weight without the word,
        before floors. The word stands at characters `start` to `end` of message number `turn`. `lower`, `upper` and
        `known` are null where the adapter cannot tell.
        """
        messages = conversation(prompt)
        panel = await self.models.when_ready()
        explained = await self.models.explain(messages)
        if explained is None:
            words: dict = {name: [] for name in panel.objective_names}
            unknown = dict.fromkeys(("lower", "upper", "known"))
            return {"weights": self._named(panel, self.models.uniform()), **unknown, "words": words}
        predicted, why = explained
        lower, upper = numbers(predicted.lower), numbers(predicted.upper)
        return {
            "weights": self._named(panel, predicted.weights),
            "lower": None if lower is None else self._named(panel, lower),
            "upper": None if upper is None else self._named(panel, upper),
            "known": number(predicted.known),
            "words": {name: self._words(why, name) for name in panel.objective_names},
        }

    async def score(self, prompt: str | list, response: str) -> dict:
        """{objective: {"raw": float | null, "z": float | null, "spread": float | null}} for one response to a prompt.

        A score is null where it is missing, such as where a judge gave no verdict.
        `spread` says how uncertain `z` is: the standard deviation between the objective's members, null if it has one.
        """
        messages, response = conversation(prompt), text(response, "response")
        if not response.strip() or len(response) > LONGEST:
            raise ValueError(
                f"got a response of {len(response):,} characters, expected 1 to {LONGEST:,}"
            )
        if not without_reasoning(response).strip():
            raise ValueError("got a response of reasoning alone, expected an answer after it")
        panel = await self.models.when_ready()
        scores = await self.models.score(messages, [response])
        return self._scores(panel, scores.raw[0], scores.z[0], scores.members[:, 0])

    async def generate(
        self,
        prompt: str | list,
        weights: dict | None = None,
        n: int = 4,
        max_new_tokens: int = 192,
        temperature: float | None = None,
        seed: int | None = None,
        strength: float | None = None,
    ) -> AsyncGenerator[dict, None]:
        """N answers with scores and totals, best first under `weights` (null: the predicted weights).

        `reasoning` is the model's reasoning before an answer; it is not scored. `finish` says how the answer ended:
        "stop", or cut by "length" (`max_new_tokens`) or by the server's "filter". It is null where the answer broke
        off; `error` then says why. An answer without any score, such as an empty one, comes after those that have one;
        its scores and totals are null. `behind` compares an answer to the best one: `by` is how much lower its "used"
        total is, and `spread` how uncertain that is (the standard deviation between the leads that the panel's members
        give; null if no objective has several). An answer with `by` within `spread` is too close to call.

        `temperature` (0 to 2) and `seed` (the same one gives the same texts in process; an endpoint may ignore it) are
        null for the defaults. `strength` (0 to 2) says how strongly the weights mix a policy of one LoRA per objective;
        null: as the owner says.

        A caller who iterates over the job sees the answers while they are written, unranked and with null scores. When
        the caller leaves, the work ends.
        """
        messages = conversation(prompt)
        n = whole(n, 1, MAX_ANSWERS, "answers")
        tokens = whole(max_new_tokens, 1, MAX_TOKENS, "new tokens")
        settings, _ = sampled(tokens, temperature, seed)
        models, panel = self.models, await self.models.when_ready()
        names = panel.objective_names
        given = None if weights is None else as_weights(weights, names)
        fallback, source = await self._predicted(messages)
        used = fallback if given is None else apply_floors(given, models.floors)
        K = len(names)
        schemes = {"predicted": fallback, "used": used, "uniform": np.full(K, 1 / K)}
        source = source if given is None else "user"
        head = {"weights": self._named(panel, used), "source": source}
        if strength is not None:
            strength = values.strength(strength)
        batch = await models.requests([messages] * n, used, strength)

        def so_far(candidates: Iterable[Candidate]) -> dict:
            return {**head, "candidates": [self._candidate(panel, c, schemes) for c in candidates]}

        async with models.places.ask() as place:
            async for _ in place.turns():
                yield so_far([])
            async with models.writing(batch, settings) as writing:
                async for _ in writing.looks():
                    yield so_far(map(candidate_of, writing.written))
        candidates = [candidate_of(one) for one in writing.written]
        texts = [c.text for c in candidates if c.error is None]
        if not texts:
            raise GenerationError(candidates[0].error or "No answer could be scored.")
        scores = await models.score(messages, texts)
        result = ranked(candidates, *scores, used, names, source)
        final = so_far(result.candidates)
        for candidate, shown in zip(result.candidates, final["candidates"], strict=True):
            if candidate.z is not None:
                by, spread = result.lead(candidate)
                shown["behind"] = {"by": by, "spread": number(spread)}
        yield final

    async def status(self) -> dict:
        """Which generator, panel and adapter are in use; K; whether the generator is reachable."""
        return await self.models.status()

    async def _predicted(self, messages: list) -> tuple[np.ndarray, str]:
        """The weights (K,) for a caller who gives none, and where they come from."""
        predicted = await self.models.predict(messages)
        if predicted is None:
            return self.models.uniform(), "uniform"
        return predicted.weights, "adapter"

    def _candidate(
        self, panel: RewardPanel, c: Candidate, schemes: dict[str, np.ndarray]
    ) -> dict[str, Any]:
        written = {"text": c.text, "reasoning": c.reasoning, "finish": c.finish}
        if c.raw is None or c.z is None or c.members is None or c.counted is None:
            unknown = dict.fromkeys(("scores", "totals", "behind"))
            return {**written, **unknown, "error": c.error}
        totals = {name: float(weighted_sum(c.counted[None], w)[0]) for name, w in schemes.items()}
        scores = self._scores(panel, c.raw, c.z, c.members)
        return {**written, "scores": scores, "totals": totals}

    @staticmethod
    def _words(why: Explanation, objective: str) -> list[dict[str, Any]]:
        return [
            {"word": w.text, "turn": w.turn, "start": w.start, "end": w.end, "effect": effect}
            for w, effect in why.of(objective)
        ]

    @staticmethod
    def _named(panel: RewardPanel, weights_K: Iterable[float]) -> dict[str, float]:
        return dict(zip(panel.objective_names, map(float, weights_K), strict=True))

    @staticmethod
    def _scores(
        panel: RewardPanel, raw_K: np.ndarray, z_K: np.ndarray, members_MK: np.ndarray
    ) -> dict[str, dict[str, float | None]]:
        spread_K = member_spread(members_MK)
        return {
            name: {"raw": number(raw_K[k]), "z": number(z_K[k]), "spread": number(spread_K[k])}
            for k, name in enumerate(panel.objective_names)
        }

    def endpoints(self) -> dict[str, Callable[..., Any]]:
        functions: list[Callable[..., Any]] = [
            self.predict_weights,
            self.explain,
            self.score,
            self.generate,
            self.status,
        ]
        return {function.__name__: _for_callers(function) for function in functions}


def _for_callers(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, whose known errors reach a caller of the API as one sentence."""

    def explained(error: Exception) -> gr.Error:
        return gr.Error(sentence(error), print_exception=False)

    @wraps(function)
    async def once(*args: Any, **kwargs: Any) -> Any:
        try:
            return await function(*args, **kwargs)
        except (ValueError, GenerationError) as error:
            raise explained(error) from None

    @wraps(function)
    async def again_and_again(*args: Any, **kwargs: Any) -> Any:
        try:
            async with aclosing(function(*args, **kwargs)) as results:
                async for result in results:
                    yield result
        except (ValueError, GenerationError) as error:
            raise explained(error) from None

    return again_and_again if inspect.isasyncgenfunction(function) else once
