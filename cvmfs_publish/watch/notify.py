"""Tell whoever wants to know: every event reaches every sink at least once, in order.

Each sink has its own place in the log of events, which is stored; so a sink that is down for a
while is told later, a restart loses nothing, and no sink waits for another.  Nothing here is waited
for by the publisher: what a sink does wrong is logged.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from cvmfs_publish.errors import PublishError, RemoteError
from cvmfs_publish.watch.events import Event
from cvmfs_publish.watch.outbound import Outbound
from cvmfs_publish.watch.patterns import Pattern
from cvmfs_publish.watch.programs import run_program, words

BATCH = 100  # events told at once
FIRST_WAIT = timedelta(minutes=1)  # after a failure; doubled after each further one
MAX_WAIT = timedelta(hours=1)
GIVE_UP = timedelta(days=1)  # then a batch is passed over: better to hear of today than of nothing

log = logging.getLogger(__name__)


class NotifyError(RemoteError):
    """Somebody could not be told of an event; it is tried again.  Nothing else is affected."""

    kind = "notify"


class Sink(Protocol):
    """Where events are told.  One thread at a time."""

    @property
    def name(self) -> str:
        """Return what names this sink and no other, also after a restart."""

    def send(self, events: Sequence[Event], now: datetime) -> None:
        """Tell these events, oldest first; there is at least one.

        Bounded in time.  Raises `NotifyError`, or another `PublishError`, if not all of them are
        told; the same events are then sent again later.
        """


class Feed(Protocol):
    """The log of events."""

    def newest(self) -> int:
        """Return the number of the last event; 0 if there is none."""

    def after(self, number: int, limit: int) -> Sequence[Event]:
        """Return the first events behind that number."""

    def position(self, reader: str) -> int | None:
        """Return the number of the last event that a reader was told; None for a new reader."""

    def move(self, reader: str, number: int) -> None:
        """Write down, durably, that a reader was told all events up to that number."""


@dataclass(frozen=True, slots=True)
class Interest:
    """Which events a sink wants."""

    kinds: tuple[Pattern, ...] = ()  # any of these; none: all
    owners: tuple[str, ...] = ()  # likewise

    def covers(self, event: Event) -> bool:
        if self.owners and event.owner not in self.owners:
            return False
        return not self.kinds or any(pattern.matches(event.kind) for pattern in self.kinds)


@dataclass(slots=True)
class Subscription:
    """A sink, what it wants, and how it fares."""

    sink: Sink
    interest: Interest = field(default_factory=Interest)
    failing_since: datetime | None = None
    failures: int = 0
    next_at: datetime | None = None  # not before

    def is_due(self, now: datetime) -> bool:
        """A clock that was set back does not make a sink wait longer than the longest wait."""
        return self.next_at is None or now >= self.next_at or self.next_at - now > MAX_WAIT

    def failed(self, now: datetime) -> bool:
        """Plan the next attempt; return whether it is time to give up."""
        if self.failing_since is None or self.failing_since > now:
            self.failing_since = now
        wait = min(FIRST_WAIT * 2 ** min(self.failures, 10), MAX_WAIT)
        self.failures += 1
        self.next_at = now + wait
        return now - self.failing_since >= GIVE_UP

    def worked(self) -> None:
        self.failing_since, self.failures, self.next_at = None, 0, None


class Notifier:
    """Brings the sinks up to date whenever it is called."""

    def __init__(self, subscriptions: Sequence[Subscription], feed: Feed) -> None:
        """A sink that the feed does not know yet is told what happens from now on."""
        self._subscriptions = tuple(subscriptions)
        self._feed = feed
        for subscription in self._subscriptions:
            if feed.position(subscription.sink.name) is None:
                feed.move(subscription.sink.name, feed.newest())

    def deliver(self, now: datetime) -> None:
        """Tell each sink what it has not been told yet.  Returns when all are told or failed."""
        due = [each for each in self._subscriptions if each.is_due(now)]
        if due:
            with ThreadPoolExecutor(len(due), thread_name_prefix="notify") as pool:
                list(pool.map(lambda each: self._catch_up(each, now), due))

    def _catch_up(self, subscription: Subscription, now: datetime) -> None:
        name = subscription.sink.name
        position = self._feed.position(name) or 0
        while events := self._feed.after(position, BATCH):
            wanted = [event for event in events if subscription.interest.covers(event)]
            if not self._tell(subscription, wanted, now):
                return
            position = events[-1].number
            self._feed.move(name, position)

    def _tell(self, subscription: Subscription, events: Sequence[Event], now: datetime) -> bool:
        """Return whether the events are dealt with: told, or given up."""
        if not events:
            return True
        try:
            subscription.sink.send(events, now)
        except PublishError as error:
            gives_up = subscription.failed(now)
            log.warning("%s", error)
            if not gives_up:
                return False
            log.error(
                "%s was not told %d events from %s on: it has failed for a day",
                *(subscription.sink.name, len(events), events[0].at),
            )
        else:
            subscription.worked()
        return True


# ---------------------------------------------------------------- sinks


def encode_events(events: Sequence[Event]) -> bytes:
    """Return events as programs are told them: ASCII, so that every locale can read them."""
    return json.dumps({"events": [event.document() for event in events]}).encode("ascii")


@dataclass(frozen=True, slots=True)
class FileSink:
    """Adds each event as a line of JSON to a file, which may be renamed away at any time."""

    path: Path

    @property
    def name(self) -> str:
        return f"file:{self.path}"

    def send(self, events: Sequence[Event], now: datetime) -> None:
        lines = [json.dumps(event.document()) + "\n" for event in events]
        try:
            _append(self.path, "".join(lines).encode("ascii"))
        except OSError as exc:
            raise NotifyError(f"{self.path}: {exc.strerror or exc}") from exc


def _append(path: Path, data: bytes) -> None:
    """Add all of `data`, or nothing: half a line would spoil the next one too."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o640)  # a pipe is not waited for
    try:
        before = os.fstat(descriptor).st_size
        try:
            while data:
                data = data[os.write(descriptor, data) :]
        except OSError:
            os.ftruncate(descriptor, before)
            raise
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class WebhookSink:
    """Posts events to a URL, signed like the webhooks that `generic` takes."""

    url: str
    secret: str | None = field(repr=False)
    outbound: Outbound

    @property
    def name(self) -> str:
        return f"webhook:{self.url}"

    def send(self, events: Sequence[Event], now: datetime) -> None:
        body = encode_events(events)
        headers = {"Content-Type": "application/json"}
        headers["X-Delivery"] = hashlib.sha256(body).hexdigest()  # the same when sent again
        if self.secret is not None:
            headers |= sign(body, self.secret, now)
        self.outbound.post(self.url, body, headers)


def sign(body: bytes, secret: str, now: datetime) -> dict[str, str]:
    """Return the headers that prove who sent a body, and when."""
    timestamp = str(int(now.timestamp()))
    signed = timestamp.encode("ascii") + b"." + body
    digest = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
    return {"X-Timestamp": timestamp, "X-Signature-256": f"sha256={digest}"}


@dataclass(frozen=True, slots=True)
class ProgramSink:
    """Starts a program, without a shell, with the events on its stdin."""

    command: tuple[str, ...]
    timeout: timedelta

    @property
    def name(self) -> str:
        return f"program:{' '.join(self.command)}"

    def send(self, events: Sequence[Event], now: datetime) -> None:
        environ = {"PATH": os.defpath, "LC_ALL": "C.UTF-8"}
        ran = run_program(
            self.command,
            environ=environ,
            timeout=self.timeout,
            subject="notify",
            given=encode_events(events),
        )
        if ran.code != 0:
            raise NotifyError(f"notify: {self.command[0]} ended with {ran.code}: {words(ran.said)}")
