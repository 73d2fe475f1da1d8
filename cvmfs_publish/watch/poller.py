"""Ask registries which digests tags have now, and write down the answers.

One HEAD request for each image that is due, nothing else; many at once, over connections that stay.
A registry that stops answering is left alone within the same round.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from types import TracebackType
from typing import Protocol, Self

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import PublishError
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources.base import (
    AccessDeniedError,
    ImageNotFoundError,
    RateLimitedError,
)
from cvmfs_publish.state import figures
from cvmfs_publish.state.model import Budget, Failure, Image, Polled
from cvmfs_publish.state.state import State
from cvmfs_publish.watch.plan import Health, Question, after_round, next_poll, plan_polls

PARALLEL = 8  # questions under way
ROUND = 512  # questions before answers are written down
FOUND = "found"  # how a question ended that was answered
GIVE_UP = 3  # failures of a registry in a round, after which the rest of it waits
SPARE = 10  # one in so many requests of a budget is not for looking, but for publishing
TROUBLE = 3  # rounds in a row, after which a registry's failure is worth a word

log = logging.getLogger(__name__)


class Asked(Protocol):
    """What can be asked about an image."""

    def head(self, reference: Reference) -> Digest:
        """As `ImageSource.head`."""


class Registries(Protocol):
    """Where sources for registries come from.  Any thread may ask."""

    def source(self, registry: str) -> Asked:
        """Return what asks a registry, the same each time, so that connections are used again."""

    def forget(self, registry: str) -> None:
        """Make a new source next time, with credentials as they are then."""

    def budget(self, registry: str, now: datetime) -> Budget:
        """Return what may still be asked of a registry, as far as that is known."""


@dataclass(slots=True)
class _Round:
    """What happened to the questions to one registry in one round; many threads add to it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    asked: int = 0
    failures: int = 0
    retry_after: timedelta | None = None
    is_over: bool = False  # no more questions


class Poller:
    """Asks about what is due.  One thread calls it; close it, or use `with`."""

    def __init__(
        self,
        state: State,
        registries: Registries,
        interval: timedelta,
        jitter: Callable[[], float],
        *,
        parallel: int = PARALLEL,
    ) -> None:
        self.interval = interval
        self._state = state
        self._registries = registries
        self._jitter = jitter
        self._pool = ThreadPoolExecutor(parallel, "poll")
        self._healths: dict[str, Health] = {}
        self._requests: Counter[str] = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def step(self, now: datetime) -> bool:
        """Ask one round of questions; return whether anything was due.

        What was not asked stays due, or is due later: nothing is forgotten.
        """
        images = {image.key: image for image in self._state.due_polls(now, ROUND)}
        if not images:
            return False
        questions = [Question(key, key.name.partition("/")[0]) for key in images]
        plan = plan_polls(
            questions, self._healths, self._allowances(questions, now), now, self.interval
        )
        rounds = {question.registry: _Round() for question in plan.ask}
        futures = [
            self._pool.submit(
                self._ask, images[question.key], question, rounds[question.registry], now
            )
            for question in plan.ask
        ]
        answers = [answer for future in futures if (answer := future.result()) is not None]
        self._state.postpone(plan.later)
        self._state.record_polls(answers, now)
        self._state.count(_count(answers))
        self._note_health(rounds, now)
        return True

    def note_clock(self, by: timedelta) -> None:
        """The clock was set: what is blocked stays so for as long as it would have been."""
        self._healths = {registry: health.shifted(by) for registry, health in self._healths.items()}

    def _allowances(self, questions: Iterable[Question], now: datetime) -> dict[str, int]:
        found = {}
        for registry in {question.registry for question in questions}:
            budget = self._registries.budget(registry, now)
            if budget.remaining is not None:
                spare = (budget.limit or 0) // SPARE
                found[registry] = max(0, budget.remaining - spare)
        return found

    def _ask(self, image: Image, question: Question, state: _Round, now: datetime) -> Polled | None:
        """Return the answer; None if the question was not asked after all."""
        with state.lock:
            if state.is_over:
                return None
            state.asked += 1
        at = next_poll(image.name, now, self.interval)
        try:
            digest = self._registries.source(question.registry).head(
                Reference.parse(image.reference)
            )
        except RateLimitedError as error:
            with state.lock:
                state.failures += 1
                state.is_over = True
                state.retry_after = max(state.retry_after or timedelta(), _wait(error))
            return Polled(image.key, at, failure=Failure.of(error))
        except ImageNotFoundError as error:
            return Polled(image.key, at, failure=Failure.of(error), is_absent=True)
        except AccessDeniedError as error:  # of this image, or of an outdated password
            self._registries.forget(question.registry)
            return Polled(image.key, at, failure=Failure.of(error))
        except PublishError as error:
            with state.lock:
                state.failures += 1
                if state.failures >= GIVE_UP:
                    state.is_over = True
            return Polled(image.key, at, failure=Failure.of(error))
        except Exception as error:  # a bug; it must not keep the others from being asked about
            log.exception("asking about %s: a bug", image.name)
            return Polled(image.key, at, failure=Failure("bug", f"{type(error).__name__}: {error}"))
        return Polled(image.key, at, str(digest))

    def _note_health(self, rounds: dict[str, _Round], now: datetime) -> None:
        for registry, found in rounds.items():
            before = self._healths.get(registry, Health())
            health = after_round(
                before,
                # a few failures among many answers are those of images
                answered=not found.is_over and found.failures < max(1, found.asked),
                retry_after=found.retry_after,
                now=now,
                jitter=self._jitter(),
            )
            if health.failures == TROUBLE:
                log.warning("%s has not answered for some time; it is asked less", registry)
            elif before.failures >= TROUBLE and not health.failures:
                log.warning("%s answers again", registry)
            self._healths[registry] = health
            self._requests[registry] += found.asked
        self._state.set_budgets(
            [
                replace(
                    self._registries.budget(registry, now),
                    blocked_until=self._healths[registry].blocked_until,
                    requests=self._requests[registry],
                    failures=self._healths[registry].failures,
                )
                for registry in rounds
            ],
            now,
        )


def _count(answers: Iterable[Polled]) -> figures.Amounts:
    """Return how many questions ended how, by registry."""
    labels = Counter(
        f"{answer.key.name.partition('/')[0]} {answer.failure.kind if answer.failure else FOUND}"
        for answer in answers
    )
    return {(figures.POLLS, label): number for label, number in labels.items()}


def _wait(error: RateLimitedError) -> timedelta:
    return error.retry_after or timedelta()
