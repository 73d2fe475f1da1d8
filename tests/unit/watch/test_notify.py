"""Who is told what and when: every event at least once, in order, and no sink waits for another."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmfs_publish.watch.events import Event
from cvmfs_publish.watch.notify import (
    BATCH,
    GIVE_UP,
    MAX_WAIT,
    Interest,
    Notifier,
    NotifyError,
    Subscription,
)
from cvmfs_publish.watch.patterns import Pattern

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def event(number: int, kind: str = "image-failed", owner: str = "") -> Event:
    return Event(NOW, kind, "subject", f"message {number}", {}, owner, number)


@dataclass
class Log:
    """A log of events, and where its readers are."""

    events: list[Event] = field(default_factory=list)
    positions: dict[str, int] = field(default_factory=dict)

    def add(self, *events: Event) -> None:
        self.events += events

    def newest(self) -> int:
        return self.events[-1].number if self.events else 0

    def after(self, number: int, limit: int) -> Sequence[Event]:
        return [each for each in self.events if each.number > number][:limit]

    def position(self, reader: str) -> int | None:
        return self.positions.get(reader)

    def move(self, reader: str, number: int) -> None:
        self.positions[reader] = number


@dataclass
class Ear:
    """A sink that remembers, and fails when it is told to."""

    name: str = "ear"
    works: bool = True
    heard: list[list[int]] = field(default_factory=list)
    attempts: int = 0

    def send(self, events: Sequence[Event], now: datetime) -> None:
        self.attempts += 1
        if not self.works:
            raise NotifyError("deaf")
        self.heard.append([each.number for each in events])


def test_a_new_sink_hears_what_happens_from_now_on() -> None:
    feed, ear = Log([event(1), event(2)]), Ear()
    notifier = Notifier([Subscription(ear)], feed)
    notifier.deliver(NOW)
    assert ear.heard == []
    feed.add(event(3))
    notifier.deliver(NOW)
    assert ear.heard == [[3]]
    # and after a restart what it has not heard
    feed.add(event(4))
    Notifier([Subscription(ear)], feed).deliver(NOW)
    assert ear.heard == [[3], [4]]


def test_nothing_new_is_nothing_to_send() -> None:
    ear = Ear()
    notifier = Notifier([Subscription(ear)], Log())
    notifier.deliver(NOW)
    assert ear.attempts == 0


def test_many_events_are_told_in_batches() -> None:
    feed, ear = Log(), Ear()
    notifier = Notifier([Subscription(ear)], feed)
    feed.add(*(event(number) for number in range(1, 2 * BATCH + 2)))
    notifier.deliver(NOW)
    assert [len(batch) for batch in ear.heard] == [BATCH, BATCH, 1]
    assert list(chain(*ear.heard)) == list(range(1, 2 * BATCH + 2))


@pytest.mark.parametrize(
    ("interest", "heard"),
    [
        (Interest(), [1, 2, 3]),
        (Interest(kinds=(Pattern.glob("image-*"),)), [1, 3]),
        (Interest(kinds=(Pattern.glob("x"), Pattern.glob("wishlist-problem"))), [2]),
        (Interest(owners=("me",)), [3]),
        (Interest(kinds=(Pattern.glob("wishlist-*"),), owners=("me",)), []),
    ],
)
def test_a_sink_hears_what_it_is_interested_in(interest: Interest, heard: list[int]) -> None:
    feed, ear = Log(), Ear()
    notifier = Notifier([Subscription(ear, interest)], feed)
    feed.add(event(1), event(2, "wishlist-problem"), event(3, owner="me"))
    notifier.deliver(NOW)
    assert list(chain(*ear.heard)) == heard
    assert feed.positions == {"ear": 3}


def test_a_sink_that_fails_stops_no_other_and_is_told_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    feed, ear, other = Log(), Ear(works=False), Ear("other")
    notifier = Notifier([Subscription(ear), Subscription(other)], feed)
    feed.add(event(1))
    notifier.deliver(NOW)
    assert other.heard == [[1]]
    assert "deaf" in caplog.text
    ear.works = True
    feed.add(event(2))
    notifier.deliver(NOW + MINUTE)
    assert ear.heard == [[1, 2]]


def test_a_sink_that_fails_is_tried_less_and_less_often() -> None:
    feed, ear = Log(), Ear(works=False)
    notifier = Notifier([Subscription(ear)], feed)
    feed.add(event(1))
    tried = []
    for minutes in range(600):
        before = ear.attempts
        notifier.deliver(NOW + minutes * MINUTE)
        if ear.attempts > before:
            tried.append(minutes)
    assert tried == [0, 1, 3, 7, 15, 31, 63, 123, 183, 243, 303, 363, 423, 483, 543]


def test_what_cannot_be_told_for_a_day_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    feed, ear = Log(), Ear(works=False)
    notifier = Notifier([Subscription(ear)], feed)
    feed.add(event(1))
    at = NOW
    while at < NOW + GIVE_UP:
        notifier.deliver(at)
        at += MAX_WAIT
    assert feed.positions["ear"] == 0
    notifier.deliver(at + MAX_WAIT)
    assert feed.positions["ear"] == 1
    assert any(record.levelno == logging.ERROR for record in caplog.records)
    ear.works = True
    feed.add(event(2))
    notifier.deliver(at + 3 * MAX_WAIT)
    assert ear.heard == [[2]]


def test_a_clock_that_is_set_back_keeps_no_sink_waiting() -> None:
    feed, ear = Log(), Ear(works=False)
    notifier = Notifier([Subscription(ear)], feed)
    feed.add(event(1))
    notifier.deliver(NOW + timedelta(days=365))
    ear.works = True
    notifier.deliver(NOW)
    assert ear.heard == [[1]]


def test_sinks_are_told_at_the_same_time() -> None:
    barrier = threading.Barrier(2, timeout=10)

    @dataclass
    class Slow(Ear):
        def send(self, events: Sequence[Event], now: datetime) -> None:
            barrier.wait()  # breaks if the other is not told meanwhile
            super().send(events, now)

    feed, sinks = Log(), [Slow("a"), Slow("b")]
    notifier = Notifier([Subscription(sink) for sink in sinks], feed)
    feed.add(event(1))
    notifier.deliver(NOW)
    assert [sink.heard for sink in sinks] == [[[1]], [[1]]]


@given(st.lists(st.sampled_from(["event", "deliver", "break", "mend", "restart"]), max_size=30))
def test_whatever_happens_within_a_day_every_event_is_told_once_in_order(steps: list[str]) -> None:
    feed, ear, now = Log(), Ear(), NOW
    notifier = Notifier([Subscription(ear)], feed)
    for step in [*steps, "mend", "restart", "deliver"]:
        now += MINUTE
        if step == "event":
            feed.add(event(feed.newest() + 1))
        elif step == "deliver":
            notifier.deliver(now)
        elif step == "restart":
            notifier = Notifier([Subscription(ear)], feed)
        else:
            ear.works = step == "mend"
    assert list(chain(*ear.heard)) == [each.number for each in feed.events]
