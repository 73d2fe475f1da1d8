"""Decide when a registry may be asked next: what we allow ourselves, and what it said it allows.

Waits are computed here and slept by whoever asks.  Times are arguments, so the clock is the
caller's.  One budget belongs to one registry and serves any number of threads.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from cvmfs_publish.sources.registry.rate_limit import RateLimit, format_wait, parse_rate_limit

# A pull is a GET of a manifest, as Docker Hub counts, and is a request as well
Kind = Literal["pull", "request"]
KINDS: tuple[Kind, ...] = ("pull", "request")
Spent = Mapping[Kind, Mapping[int, int]]  # how many in which minute since 1970

HOUR = 60  # minutes
MAX_PAUSE = timedelta(days=1)  # whatever a registry says
# After "too many requests" without a word of when.  Longer than anybody waits within a publish: the
# other images of that registry fail at once instead of each annoying it anew
BLIND_PAUSE = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Allowance:
    """What we allow ourselves in any 60 minutes; None: no limit."""

    pulls_per_hour: int | None = None
    requests_per_hour: int | None = None

    def __post_init__(self) -> None:
        if not all(limit is None or limit > 0 for limit in map(self.of, KINDS)):
            raise ValueError("an allowance of nothing would wait for ever")

    def of(self, kind: Kind) -> int | None:
        return self.pulls_per_hour if kind == "pull" else self.requests_per_hour


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A budget at one moment."""

    allowance: Allowance
    pulls: int  # in the last hour, by this process and by those whose records it was given
    requests: int
    stated: RateLimit | None  # what the registry said last
    wait: timedelta  # until the next pull

    def __str__(self) -> str:
        parts = [
            _count(self.pulls, self.allowance.pulls_per_hour, "pulls"),
            _count(self.requests, self.allowance.requests_per_hour, "requests") + " in an hour",
        ]
        if self.stated is not None:
            parts.append(f"the registry says {self.stated}")
        if self.wait:
            parts.append(f"the next pull is due in {format_wait(self.wait)}")
        return ", ".join(parts)


class Budget:
    """What may be asked of one registry.  Any number of threads.

    Counts by the minute, and a minute counts until 60 more have passed: in any 60 minutes there
    are never more than allowed.
    """

    def __init__(self, allowance: Allowance | None = None, spent: Spent | None = None) -> None:
        """`spent`: what other processes used of the same allowance lately."""
        self.allowance = allowance or Allowance()
        self._lock = threading.Lock()
        self._before: dict[Kind, Counter[int]] = {
            kind: Counter((spent or {}).get(kind) or {}) for kind in KINDS
        }
        self._own: dict[Kind, Counter[int]] = {kind: Counter() for kind in KINDS}
        self._paused: dict[Kind, datetime] = dict.fromkeys(KINDS, datetime.min.replace(tzinfo=UTC))
        self._stated: RateLimit | None = None

    def take(self, kind: Kind, now: datetime) -> timedelta:
        """Take one and return zero, or take nothing and return how long to wait before asking."""
        with self._lock:
            wait = self._wait(kind, now)
            if not wait:
                for counted in _counted(kind):
                    self._own[counted] = Counter(recent(self._own[counted], now))
                    self._own[counted][_minute(now)] += 1
            return wait

    def learn(self, header: Callable[[str], str], now: datetime) -> None:
        """Draw conclusions from the headers of an answer.

        A quota that is used up holds up pulls only: Docker Hub counts nothing else, and a registry
        that counts requests answers 429 to those that are too many.
        """
        stated = parse_rate_limit(header, now)
        if stated is None:
            return
        with self._lock:
            self._stated = stated
            if stated.remaining == 0:
                self._pause(("pull",), now, stated.until_next(now))

    def pause(self, asked: timedelta | None, now: datetime) -> None:
        """The registry has had enough, and nobody waits here: ask for nothing for so long."""
        wait = BLIND_PAUSE if asked is None else asked
        with self._lock:
            self._pause(KINDS, now, wait)

    def snapshot(self, now: datetime) -> Snapshot:
        with self._lock:
            return Snapshot(
                self.allowance,
                self._count("pull", now),
                self._count("request", now),
                self._stated,
                self._wait("pull", now),
            )

    def spent(self) -> Spent:
        """Return what was taken here since the last call, to be added to what others took."""
        with self._lock:
            taken: dict[Kind, Mapping[int, int]] = {}
            for kind, minutes in self._own.items():
                taken[kind] = dict(minutes)
                self._before[kind].update(minutes)
                minutes.clear()
            return taken

    def recall(self, spent: Spent) -> None:
        """Let this count as what was taken by all until the last call of `spent`."""
        with self._lock:
            self._before = {kind: Counter(spent.get(kind) or {}) for kind in KINDS}

    def _pause(self, kinds: tuple[Kind, ...], now: datetime, wait: timedelta) -> None:
        for kind in kinds:
            self._paused[kind] = max(self._paused[kind], now + min(wait, MAX_PAUSE))

    def _wait(self, kind: Kind, now: datetime) -> timedelta:
        wait = self._paused[kind] - now
        for counted in _counted(kind):
            wait = max(wait, self._wait_for_room(counted, now))
        return max(wait, timedelta())

    def _wait_for_room(self, kind: Kind, now: datetime) -> timedelta:
        limit = self.allowance.of(kind)
        if limit is None:
            return timedelta()
        minutes = self._minutes(kind, now)
        excess = sum(minutes.values()) + 1 - limit
        free_at = now
        for minute in sorted(minutes):
            if excess <= 0:
                break
            excess -= minutes[minute]
            free_at = datetime.fromtimestamp((minute + HOUR + 1) * 60, UTC)
        return free_at - now

    def _minutes(self, kind: Kind, now: datetime) -> dict[int, int]:
        return recent(self._before[kind] + self._own[kind], now)

    def _count(self, kind: Kind, now: datetime) -> int:
        return sum(self._minutes(kind, now).values())


class Budgets:
    """The budgets of all registries, by host.  Any number of threads."""

    def __init__(
        self,
        allowances: Mapping[str, Allowance] | None = None,
        spent: Mapping[str, Spent] | None = None,
    ) -> None:
        self._lock = threading.Lock()
        self._allowances = dict(allowances or {})
        self._before = dict(spent or {})
        self._budgets: dict[str, Budget] = {}

    def of(self, host: str) -> Budget:
        """Return the budget of a registry, always the same object for the same host."""
        with self._lock:
            if host not in self._budgets:
                self._budgets[host] = Budget(self._allowances.get(host), self._before.get(host))
            return self._budgets[host]

    def snapshots(self, now: datetime) -> dict[str, Snapshot]:
        """Return the budgets that were used so far."""
        with self._lock:
            used = sorted(self._budgets.items())
        return {host: budget.snapshot(now) for host, budget in used}

    def spent(self) -> dict[str, Spent]:
        """Return what was taken since the last call, of registries with an allowance."""
        return {host: budget.spent() for host, budget in self._limited()}

    def recall(self, spent: Mapping[str, Spent]) -> None:
        """Let this count as what was taken by all until the last call of `spent`."""
        with self._lock:
            self._before = dict(spent)
        for host, budget in self._limited():
            budget.recall(spent.get(host, {}))

    def _limited(self) -> list[tuple[str, Budget]]:
        with self._lock:
            return [
                (host, budget)
                for host, budget in self._budgets.items()
                if budget.allowance != Allowance()
            ]


def recent(minutes: Mapping[int, int], now: datetime) -> dict[int, int]:
    """Return what counts: the last hour, and an hour ahead for clocks that were set back."""
    return {
        minute: count for minute, count in minutes.items() if abs(minute - _minute(now)) <= HOUR
    }


def _counted(kind: Kind) -> tuple[Kind, ...]:
    return KINDS if kind == "pull" else ("request",)


def _minute(now: datetime) -> int:
    return int(now.timestamp()) // 60


def _count(used: int, limit: int | None, noun: str) -> str:
    return f"{used} of {limit} {noun}" if limit is not None else f"{used} {noun}"
