"""When registries are asked about what."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from cvmfs_publish.state.model import ImageKey
from cvmfs_publish.watch.plan import (
    FULL_WINDOW,
    LONGEST_BLOCK,
    Health,
    Question,
    after_round,
    next_poll,
    plan_polls,
)

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
INTERVAL = timedelta(minutes=15)


def questions(count: int, registry: str = "ghcr.io") -> list[Question]:
    keys = [ImageKey(f"{registry}/a/i{n}:1", "linux/amd64") for n in range(count)]
    return [Question(key, registry) for key in keys]


@given(
    name=st.text(max_size=20),
    seconds=st.integers(0, 10**6),
    interval=st.sampled_from([timedelta(seconds=1), INTERVAL, timedelta(days=1)]),
)
def test_every_image_has_one_moment_in_each_interval(
    name: str, seconds: int, interval: timedelta
) -> None:
    now = NOW + timedelta(seconds=seconds)
    first = next_poll(name, now, interval)
    assert interval / 2 <= first - now <= 1.5 * interval
    for shift in (-1, 1):
        second = next_poll(name, first + timedelta(milliseconds=shift), interval)
        assert abs(second - first - interval) < timedelta(milliseconds=1)


def test_ten_thousand_moments_are_spread_evenly() -> None:
    minutes = Counter(
        (next_poll(f"ghcr.io/a/i{n}:1", NOW, INTERVAL) - NOW) // timedelta(minutes=1)
        for n in range(10_000)
    )
    assert len(minutes) == 16  # 7.5 to 22.5
    assert max(minutes.values()) < 1.2 * 10_000 / 15


def test_a_healthy_registry_is_asked_a_windowful() -> None:
    plan = plan_polls(questions(FULL_WINDOW + 10), {}, {}, NOW, INTERVAL)
    assert (len(plan.ask), dict(plan.later)) == (FULL_WINDOW, {})


def test_a_blocked_registry_is_not_asked_and_what_waits_is_spread() -> None:
    until = NOW + timedelta(minutes=5)
    healths = {"ghcr.io": Health(1, 1, until)}
    due = questions(100) + questions(2, "quay.io")
    plan = plan_polls(due, healths, {}, NOW, INTERVAL)
    assert {question.registry for question in plan.ask} == {"quay.io"}
    assert len(plan.later) == 100
    assert min(plan.later.values()) >= until
    assert max(plan.later.values()) - min(plan.later.values()) > INTERVAL / 2


def test_a_registry_that_failed_gets_one_question_then() -> None:
    healths = {"ghcr.io": Health(1, 3, NOW)}
    plan = plan_polls(questions(50), healths, {}, NOW, INTERVAL)
    assert (len(plan.ask), len(plan.later)) == (1, 49)


def test_what_the_budget_does_not_permit_waits() -> None:
    plan = plan_polls(questions(50), {}, {"ghcr.io": 3}, NOW, INTERVAL)
    assert len(plan.ask) == 3
    plan = plan_polls(questions(50), {}, {"ghcr.io": 0}, NOW, INTERVAL)
    assert (len(plan.ask), len(plan.later)) == (0, 50)


def test_trust_comes_back_by_doubling() -> None:
    health = after_round(Health(), answered=False, retry_after=None, now=NOW, jitter=1.0)
    assert (health.window, health.failures) == (1, 1)
    windows = []
    for _ in range(9):
        health = after_round(health, answered=True, retry_after=None, now=NOW, jitter=0.5)
        windows.append(health.window)
    assert windows == [2, 4, 8, 16, 32, 64, 128, 256, FULL_WINDOW]
    assert health.is_open(NOW)


def test_waits_grow_to_a_quarter_of_an_hour_and_respect_what_is_asked() -> None:
    health, waits = Health(), []
    for _ in range(40):
        health = after_round(health, answered=False, retry_after=None, now=NOW, jitter=1.0)
        assert health.blocked_until is not None
        waits.append(health.blocked_until - NOW)
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_BLOCK
    hour = timedelta(hours=1)
    health = after_round(Health(), answered=False, retry_after=hour, now=NOW, jitter=0.0)
    assert health.blocked_until == NOW + hour


def test_a_block_moves_with_the_clock() -> None:
    day = timedelta(days=1)
    assert Health(1, 1, NOW).shifted(day) == Health(1, 1, NOW + day)
    assert Health().shifted(day) == Health()
