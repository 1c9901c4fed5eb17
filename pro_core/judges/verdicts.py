"""Verdicts as files: what is there is not asked again.

Each judge has one JSON Lines file that grows. A verdict's key is a hash of the served model, the template's text and
version, the order of the answers and all texts. A line holds a hash of itself, so a torn one, left by a kill, is asked
again. Failed questions are not kept: the next run asks them.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pro_core.data.schema import DataError
from pro_core.generation.base import run_sync
from pro_core.generation.request import GenerationError
from pro_core.http.failures import Failure
from pro_core.judges.judge import Ask, Judge, Question, Reply
from pro_core.system.storage import append_jsonl, content_hash

FORMAT = "pro-verdicts-1"
"""Every change of what a line or a key holds raises its number."""
HOPELESS = 20
"""After so many failures in a row the judge is not asked further."""


REFUSED = (400, 413, 422)
"""Statuses of a question that the judge's server does not take, such as one that is too long: asking again is vain."""


class JudgeError(DataError):
    """A judge that cannot be used: it gives no answer, or stops giving any."""


class BudgetSpent(JudgeError):
    """The budget ended before the verdicts did. What is there stays; a run with a larger budget goes on."""


class Verdicts:
    """The verdicts of one judge in ``folder``.

    Args:
        concurrency: questions asked at once.
        budget: tokens of questions and answers that this object may spend; None: no limit; 0: ask nothing.

    Attributes:
        spent: tokens spent so far. asked: questions asked so far.
        broken: why the last question of the last call failed for another reason than itself (:data:`REFUSED`), such as
            a server that went away; empty if none did.
    """

    def __init__(
        self, judge: Judge, folder: str | Path, concurrency: int = 8, budget: int | None = None
    ):
        self.judge, self.concurrency, self.budget = judge, concurrency, budget
        self.file = Path(folder) / f"{content_hash([FORMAT, judge.identity])[:16]}.jsonl"
        self.spent, self.asked, self.broken = 0, 0, ""
        self._there = _read(self.file)

    def key(self, question: Question) -> str:
        """The verdict's key, see the module."""
        return content_hash([FORMAT, self.judge.identity, question.content()])[:32]

    def ask(
        self,
        questions: Sequence[Question],
        about: str = "verdicts",
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Reply | None]:
        """The reply to each question, asked now or read from the file; None where the judge failed.

        Args:
            on_progress: called with (finished, total); without it, progress is printed.

        Raises:
            BudgetSpent: some were not asked. JudgeError: the judge gives no answer at all.
        """
        self.broken = ""
        keys = [self.key(question) for question in questions]
        todo = {k: q for k, q in zip(keys, questions, strict=True) if k not in self._there}
        if todo:
            failure = run_sync(self._run(todo, about, on_progress))
            if failure and not any(key in self._there for key in keys):
                raise JudgeError(f"the judge {self.judge.name} gave no answer: {failure}")
        return [self._there.get(key) for key in keys]

    @property
    def _exhausted(self) -> bool:
        return self.budget is not None and self.spent >= self.budget

    async def _run(
        self,
        todo: dict[str, Question],
        about: str,
        on_progress: Callable[[int, int], None] | None,
    ) -> str:
        """Ask; why the last failed question failed, empty if none did."""
        waiting = list(todo.items())[::-1]
        failures: list[str] = []
        started, shown, total = time.monotonic(), [0.0], len(todo)
        answered, in_a_row = 0, 0

        def report(last: bool = False) -> None:
            elapsed = time.monotonic() - started
            if on_progress:
                on_progress(answered + len(failures), total)
            elif last or elapsed - shown[0] >= 10:
                shown[0] = elapsed
                done = answered + len(failures)
                left = elapsed * (total - done) / max(done, 1)
                print(
                    f"{self.judge.name}: {done}/{total} {about}, {self.spent:,} tokens, {left:.0f} s left",
                    file=sys.stderr,
                    flush=True,
                )

        async def work(ask: Ask) -> None:
            nonlocal answered, in_a_row
            while waiting and not self._exhausted and in_a_row < HOPELESS:
                key, question = waiting.pop()
                try:
                    reply = await ask(question)
                except (Failure, GenerationError) as failure:
                    failures.append(failure.message)
                    # A question that is refused, such as one that is too long, says nothing about the next one.
                    if isinstance(failure, Failure) and failure.status not in REFUSED:
                        self.broken = failure.message
                        in_a_row += 1
                else:
                    if question.labels and not reply.logprobs and not reply.text.strip():
                        failures.append("it gave neither log-probabilities nor a word")
                        report()
                        continue
                    self._keep(key, question, reply)
                    answered, in_a_row = answered + 1, 0
                report()

        async with self.judge.session() as ask:
            workers = min(self.concurrency, len(waiting))
            await asyncio.gather(*(work(ask) for _ in range(workers)))
        report(last=True)
        if in_a_row >= HOPELESS:
            raise JudgeError(
                f"the judge {self.judge.name} answered {answered} of {total} questions, then none: {failures[-1]}"
            )
        if failures and not on_progress:
            print(
                f"{self.judge.name}: {len(failures)} of {total} {about} failed and are left out; the next run asks "
                f"them again: {failures[0]}",
                file=sys.stderr,
            )
        if waiting:
            raise BudgetSpent(
                f"the budget of {self.budget:,} tokens is spent ({self.spent:,}): {total - len(waiting)} of "
                f"{total} {about} were asked now; all verdicts so far are kept, and a run with a larger budget goes on"
            )
        return failures[-1] if failures else ""

    def _keep(self, key: str, question: Question, reply: Reply) -> None:
        self.asked += 1
        self.spent += reply.tokens or _estimate(question, reply)
        line: dict[str, Any] = {"key": key, "reply": asdict(reply), "swapped": question.swapped}
        line |= {"judge": self.judge.name, "template": question.template}
        append_jsonl(self.file, line | {"hash": content_hash(line)})
        self._there[key] = reply


def _estimate(question: Question, reply: Reply) -> int:
    """Tokens where the judge counts none: four characters each."""
    return (sum(len(m["content"]) for m in question.messages) + len(reply.text)) // 4 + 1


def _read(file: Path) -> dict[str, Reply]:
    there: dict[str, Reply] = {}
    if not file.is_file():
        return there
    for text in file.read_bytes().split(b"\n"):
        try:
            line = json.loads(text)
            if line.pop("hash") == content_hash(line):
                there[line["key"]] = Reply(**line["reply"])
        except (ValueError, KeyError, AttributeError, TypeError):
            continue  # a torn line
    return there
