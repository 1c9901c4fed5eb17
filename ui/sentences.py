"""Sentences that visitors add as objectives, and the chat model that judges the answers by them.

A visitor's sentence is fenced as an answer is (:mod:`pro_core.rewards.judge`). Its score, log p(yes) - log p(no), is
standardized by the scores of a few known texts (:data:`~pro_core.rewards.scorers.PROBES`), so that the same answer
always has the same score. That puts it roughly in the unit of the panel's scores, and it is kept within
:data:`FARTHEST` of them, so that no sentence outweighs the panel whatever its weight; how often it agrees with people
is not measured.

Verdicts stay in memory, and only the last :data:`KEPT`: the app writes no visitor's text to a file.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from math import isfinite, nan
from typing import Any

import numpy as np
from gradio.context import LocalContext

from pro_core.data.objectives import Message
from pro_core.generation import GenerationError
from pro_core.generation.base import run_sync
from pro_core.http import Failure, Patience
from pro_core.http.addresses import address_of
from pro_core.http.failures import Settings
from pro_core.judges.judge import Ask, EndpointJudge, Judge, LocalJudge, Question
from pro_core.judges.verdicts import REFUSED
from pro_core.rewards.judge import question, read_score
from pro_core.rewards.scorers import PROBES
from pro_core.rewards.specs import JUDGE_TOKEN, RewardModelSpec
from pro_core.system.storage import content_hash
from ui.board import Added
from ui.places import Places
from ui.values import LONGEST_SENTENCE, MAX_ADDED, text

LONGEST_JUDGED = 20_000
"""Characters of a conversation and an answer that are judged; a longer one has no verdict."""
AT_ONCE, WAITING, OF_ONE = 16, 512, 64
"""Questions of all visitors that an endpoint is asked at once, and that may wait, and all those of one visitor's
page (Gradio's session); a model in this process answers one at a time."""
NEW_AT_ONCE, NEW_WAITING = 2, 32
"""Sentences of all visitors that the known texts are judged by at once, and that may wait for this: new sentences never
fill the line of the answers' verdicts."""
PATIENCE = 45.0
"""Seconds that a new sentence or the verdicts on answers may take; those that have not come by then are missing."""
KEPT = 4096
UNITS = 256
LEAST, ENOUGH = 3.0, 3
"""The least deviation of the known texts' scores, in nats, and how many of them need a verdict. A sentence that is
false of all of them has hardly any deviation of its own."""
FARTHEST = 3.0
"""Standardized scores stay within this of the known texts' mean, as nearly all scores of a panel do."""
LEADING = (
    "the",
    "a",
    "an",
    "this",
    "it",
    "answer",
    "response",
    "reply",
    "is",
    "are",
    "has",
    "does",
)
"""Words at the beginning of a sentence that its short name leaves out."""
SETTINGS = Settings("PRO_JUDGE", JUDGE_TOKEN, "PRO_JUDGE", "PRO_JUDGE_MODEL")


class Sentences:
    """What may be added, and who judges.

    Args:
        environ: PRO_JUDGE (the address of an OpenAI-style server, or a model for this process), PRO_JUDGE_MODEL,
            PRO_JUDGE_TOKEN; PRO_SENTENCES, the only sentences that visitors may add, separated by ``;``, or ``none``.

    Attributes:
        offered: the sentences that may be added; (): any; None: none, as no judge is set or the owner wants none.
        host: where the judge is; "" for a model in this process. judge_name: a model's name, or its folder.

    Raises:
        ValueError: not an address, or a sentence that is too long.
    """

    def __init__(self, environ: Mapping[str, str]):
        self._where = environ.get("PRO_JUDGE", "").strip()
        self._model = environ.get("PRO_JUDGE_MODEL", "").strip()
        self._token = environ.get(JUDGE_TOKEN, "").strip() or None
        given = environ.get("PRO_SENTENCES", "").strip()
        self.offered: tuple[str, ...] | None = None
        if self._where and given.lower() != "none":
            self.offered = tuple(checked(one) for one in given.split(";") if one.strip())
        self.local = "://" not in self._where
        self.host = "" if self.local else address_of(self._where, "PRO_JUDGE").host
        self.judge_name = self._model or ("the judge" if self.host else self._where)
        self._judge: Judge | None = None
        # A server that hangs while it is asked for its model holds this thread alone.
        self._maker = ThreadPoolExecutor(1, "pro-judge")
        self._verdicts: OrderedDict[str, float] = OrderedDict()
        self._units: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._turns = asyncio.Semaphore(1 if self.local else AT_ONCE)
        self._waiting: Counter[str] = Counter()  # each visitor's questions
        self._new: Counter[str] = Counter()  # each visitor's sentences that are not met yet
        self._places = Places(NEW_AT_ONCE, NEW_WAITING)  # for these

    def load(self) -> None:
        """Meet the judge before the first visitor does: what a server lists, or the model in this process.

        Raises:
            Failure, OSError, ValueError: it cannot be used (yet). It is tried again when a visitor needs it.
        """
        if self.offered is None:
            return
        judge = self._maker.submit(self._made).result()

        async def warm() -> None:
            async with judge.session() as ask:
                prompt, answer = PROBES[0]
                await ask(_question("It is short.", [{"role": "user", "content": prompt}], answer))

        if self.local:
            run_sync(warm())

    def allowed(self, added: Any) -> list[Added]:
        """Those of some added objectives that the owner allows (now)."""
        if self.offered is None or not added:
            return []
        return [one for one in added if not self.offered or one["sentence"] in self.offered]

    def with_one(self, added: Sequence[Added], sentence: Any, taken: Sequence[str]) -> list[Added]:
        """The added objectives and one more.

        Args:
            taken: the names of all objectives of the run.

        Raises:
            ValueError: it may not be added; one sentence that says why.
        """
        wanted = checked(sentence)
        if self.offered is None or (self.offered and wanted not in self.offered):
            raise ValueError("This sentence cannot be added here: choose one that is offered.")
        if len(added) >= MAX_ADDED:
            raise ValueError(f"A run has at most {MAX_ADDED} added objectives: remove one first.")
        if any(one["sentence"] == wanted for one in added):
            raise ValueError("This sentence is an objective already.")
        return [*added, {"name": name_of(wanted, taken), "sentence": wanted}]

    # ------------------------------------------------------------ judging

    async def check(self, sentence: str) -> None:
        """Ask the judge about the known texts.

        Raises:
            GenerationError: the judge cannot be asked, takes longer than :data:`PATIENCE`, or has no verdict by this
                sentence.
        """
        async with self._session() as ask:
            await self._unit(ask, sentence)

    async def score(
        self, added: Sequence[Added], messages: Sequence[Message], texts: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray, str]:
        """Raw and standardized scores (N, A) of N answers, NaN where one is missing, and why some are; "" if none is.

        Empty texts have no scores, and that is no fault.
        """
        raw = np.full((len(texts), len(added)), np.nan, dtype=np.float32)
        z, why = raw.copy(), dict[str, None]()
        written = [n for n, one in enumerate(texts) if one.strip()]
        try:
            async with self._session() as ask:

                async def column(a: int) -> None:
                    sentence = added[a]["sentence"]
                    try:
                        mean, deviation = await self._unit(ask, sentence)
                    except GenerationError as error:
                        why[error.message] = None
                        return

                    async def one(n: int) -> None:
                        value, problem = await self._verdict(ask, sentence, messages, texts[n])
                        far = (value - mean) / deviation
                        raw[n, a], z[n, a] = value, np.clip(far, -FARTHEST, FARTHEST)
                        why.update({problem: None} if problem else {})

                    await asyncio.gather(*(one(n) for n in written))

                await asyncio.gather(*(column(a) for a in range(len(added))))
        except GenerationError as error:
            why[error.message] = None
        missing = np.isnan(raw[written]).any()
        return raw, z, next(iter(why), "") if missing else ""

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[Ask]:
        """The judge, for :data:`PATIENCE` seconds. Raises GenerationError."""
        try:
            async with asyncio.timeout(PATIENCE):
                judge = await self._met()
                async with judge.session() as ask:
                    yield ask
        except TimeoutError:
            raise GenerationError("The judge did not answer in time.") from None
        except Failure as failure:
            raise GenerationError(f"The judge cannot be asked: {failure}") from None

    async def _met(self) -> Judge:
        try:
            return self._judge or await asyncio.get_running_loop().run_in_executor(
                self._maker, self._made
            )
        except (OSError, ValueError) as error:
            raise GenerationError(f"The judge cannot be asked: {error}") from None

    def _made(self) -> Judge:
        """The judge; only :attr:`_maker`'s thread calls this."""
        if self._judge is None:
            self._judge = LocalJudge(self._where) if self.local else self._endpoint()
        return self._judge

    def _endpoint(self) -> EndpointJudge:
        patience = Patience(retries=1, max_wait=3.0, waking=20.0)
        return EndpointJudge(
            self._where, self._model, self._token, 30.0, patience, settings=SETTINGS
        )

    async def _unit(self, ask: Ask, sentence: str) -> tuple[float, float]:
        """Mean and deviation of the known texts' scores. Raises GenerationError."""
        if sentence in self._units:
            self._units.move_to_end(sentence)
            return self._units[sentence]
        with _counted(self._new, MAX_ADDED):
            async with self._places.ask() as place:
                async for _ in place.turns():
                    pass
                return await self._new_unit(ask, sentence)

    async def _new_unit(self, ask: Ask, sentence: str) -> tuple[float, float]:
        asked: list[tuple[list[Message], str]] = [
            ([{"role": "user", "content": prompt}], answer) for prompt, answer in PROBES
        ]
        verdicts = await asyncio.gather(*(self._verdict(ask, sentence, *one) for one in asked))
        scores = [value for value, _ in verdicts if isfinite(value)]
        if len(scores) < ENOUGH:
            problems = [problem for _, problem in verdicts if problem]
            raise GenerationError(problems[0] if problems else NO_VERDICT)
        unit = float(np.mean(scores)), max(float(np.std(scores)), LEAST)
        _keep(self._units, sentence, unit, UNITS)
        return unit

    async def _verdict(
        self, ask: Ask, sentence: str, messages: Sequence[Message], answer: str
    ) -> tuple[float, str]:
        """The raw score, NaN without one, and why there is none."""
        if sum(len(m["content"]) for m in messages) + len(answer) > LONGEST_JUDGED:
            return nan, "An answer is too long to be judged."
        asked = _question(sentence, messages, answer)
        key = content_hash(asked.content())
        if key in self._verdicts:
            self._verdicts.move_to_end(key)
            value = self._verdicts[key]
            return value, "" if isfinite(value) else NO_VERDICT
        if self._waiting.total() >= WAITING:
            return nan, "Too many visitors at once; please try again in a minute."
        try:
            with _counted(self._waiting, OF_ONE):
                async with self._turns:
                    reply = await ask(asked)
        except Failure as failure:
            if failure.status in REFUSED:
                return nan, "The judge does not read one of these answers."
            return nan, failure.message
        except GenerationError as error:
            return nan, error.message
        if reply.logprobs is None:
            return nan, "The judge gives no log-probabilities, from which a score is read."
        value = read_score(reply.logprobs, asked.labels or ())
        _keep(self._verdicts, key, value, KEPT)
        return value, "" if isfinite(value) else NO_VERDICT


NO_VERDICT = "The judge says neither yes nor no: write something that can be true of an answer."


@contextmanager
def _counted(counts: Counter[str], most: int) -> Iterator[None]:
    """Count one more for the visitor whose handler runs. Raises GenerationError if there are `most` already."""
    visitor = getattr(LocalContext.request.get(None), "session_hash", None) or ""
    if counts[visitor] >= most:
        raise GenerationError("You ask the judge for too much at once: wait for its verdicts.")
    counts[visitor] += 1
    try:
        yield
    finally:
        counts[visitor] -= 1
        if not counts[visitor]:
            del counts[visitor]


def _question(sentence: str, messages: Sequence[Message], answer: str) -> Question:
    return question(RewardModelSpec("added", source="judge", judge=sentence), messages, answer)


def _keep(kept: OrderedDict[str, Any], key: str, value: Any, most: int) -> None:
    kept[key] = value
    if len(kept) > most:
        kept.popitem(last=False)


def checked(sentence: Any) -> str:
    """A clean sentence in one line. Raises ValueError if it is empty or too long."""
    wanted = " ".join(text(sentence, "a sentence").split())
    if not wanted:
        raise ValueError("Write what should be true of a good answer.")
    if len(wanted) > LONGEST_SENTENCE:
        raise ValueError(
            f"got a sentence of {len(wanted):,} characters, expected at most {LONGEST_SENTENCE}"
        )
    return wanted


def name_of(sentence: str, taken: Sequence[str]) -> str:
    """A short name for a sentence that no other objective has: "The answer is concise." is ``concise``."""
    words = re.findall(r"[a-z0-9]+", sentence.lower())
    while len(words) > 1 and words[0] in LEADING:
        del words[0]
    name = ""
    for word in words:
        if name and len(name) + len(word) > 20:
            break
        name = f"{name}_{word}" if name else word[:24]
    if not name or not name[0].isalpha():
        name = f"yours_{name}".rstrip("_")
    numbered = (f"{name}_{number}" for number in range(2, len(taken) + 3))
    return next(one for one in (name, *numbered) if one not in taken)
