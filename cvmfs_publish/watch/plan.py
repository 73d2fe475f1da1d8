"""Decide when which registry is asked about which image.  Pure.

Every image has a moment of its own within the interval, so that questions are spread evenly and no
two cycles differ.  A registry that fails is asked one question at a time until it answers, then
twice as many with every answer; what it could not be asked meanwhile is spread over an interval.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cvmfs_publish.state.model import ImageKey

FIRST_BLOCK = timedelta(seconds=30)  # after the first failure of a registry
LONGEST_BLOCK = timedelta(minutes=15)  # an outage that ended is noticed so soon
MAX_DOUBLINGS = 20
FULL_WINDOW = 256  # questions to one registry in one round
_SLOTS = 2**32  # values of a CRC


@dataclass(frozen=True, slots=True)
class Health:
    """How a registry answers, and how much it may be asked."""

    window: int = FULL_WINDOW  # questions in the next round
    failures: int = 0  # rounds in a row that failed
    blocked_until: datetime | None = None

    def shifted(self, by: timedelta) -> Health:
        """Return the same after the clock was set."""
        until = self.blocked_until
        return replace(self, blocked_until=until + by if until is not None else None)

    def is_open(self, now: datetime) -> bool:
        return self.blocked_until is None or self.blocked_until <= now


@dataclass(frozen=True, slots=True)
class Question:
    """That a registry is to be asked about an image."""

    key: ImageKey
    registry: str


@dataclass(frozen=True, slots=True)
class PollPlan:
    """Whom to ask now, and when to ask about the others."""

    ask: tuple[Question, ...]
    later: Mapping[ImageKey, datetime]


def slot(name: str, interval: timedelta) -> timedelta:
    """Return an image's moment within an interval; evenly spread, and always the same."""
    return interval * (zlib.crc32(name.encode()) / _SLOTS)


def next_poll(name: str, now: datetime, interval: timedelta) -> datetime:
    """Return one of the image's next moments, half an interval to one and a half away.

    So whoever is asked a little before the moment is not asked again at it.
    """
    since = timedelta(seconds=now.timestamp() % interval.total_seconds())
    wait = slot(name, interval) - since
    while wait < interval / 2:
        wait += interval
    return now + wait


def plan_polls(
    due: Iterable[Question],
    healths: Mapping[str, Health],
    allowances: Mapping[str, int],
    now: datetime,
    interval: timedelta,
) -> PollPlan:
    """Return which of the due questions are asked in this round.

    Args:
        due: longest due first.
        healths: of registries; of those not in here nothing bad is known.
        allowances: how many requests a registry's budget still permits; without limit if absent.
        now: when.
        interval: between two questions about one image.
    """
    ask: list[Question] = []
    later: dict[ImageKey, datetime] = {}
    left: dict[str, int] = {}
    for question in due:
        registry = question.registry
        health = healths.get(registry, Health())
        if registry not in left:
            window = health.window if health.is_open(now) else 0
            left[registry] = min(window, allowances.get(registry, window))
        if left[registry] > 0:
            left[registry] -= 1
            ask.append(question)
        elif health.failures or allowances.get(registry, 1) <= 0:
            start = max(now, health.blocked_until or now)
            later[question.key] = start + slot(question.key.name, interval)
    return PollPlan(tuple(ask), later)


def after_round(
    health: Health,
    *,
    answered: bool,
    retry_after: timedelta | None,
    now: datetime,
    jitter: float,
) -> Health:
    """Return how a registry stands after a round of questions.

    Args:
        health: before.
        answered: every question was answered, if only by "there is no such image".
        retry_after: how long it asked to be left alone, if it did.
        now: when.
        jitter: 0 to 1.
    """
    if answered:
        return Health(min(FULL_WINDOW, health.window * 2))
    failures = health.failures + 1
    wait = min(LONGEST_BLOCK, FIRST_BLOCK * 2 ** min(failures - 1, MAX_DOUBLINGS))
    wait = max(wait * (0.5 + jitter / 2), retry_after or timedelta())
    return replace(health, window=1, failures=failures, blocked_until=now + wait)
