"""What is published next, together with what, and when again."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmfs_publish.sources.trust import UnsignedError
from cvmfs_publish.state.model import Failure, ImageKey, Job, Reason
from cvmfs_publish.watch.queue import QueueSettings, choose_batch, judge, plan_wait

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
KEY = ImageKey("ghcr.io/a/b:1", "linux/amd64")
FAILURE = Failure("error", "no")


def job(
    number: int,
    owner: str = "",
    *,
    priority: int = 0,
    reason: Reason = "poll",
    platform: str = "linux/amd64",
    policy: str = "",
    is_alone: bool = False,
) -> Job:
    key = ImageKey(f"ghcr.io/a/b:{number}", platform)
    return Job(
        number,
        key,
        key.name,
        "",
        owner,
        priority,
        policy,
        reason,
        NOW + timedelta(seconds=number),
        NOW,
        0,
        is_alone,
        False,
    )


def chosen(jobs: list[Job], batch: int = 16, **shares: float) -> list[int]:
    found = choose_batch(jobs, shares, QueueSettings(batch=batch))
    return [job.id for job in found.jobs] if found is not None else []


def test_nothing_is_chosen_of_nothing() -> None:
    assert choose_batch([], {}, QueueSettings()) is None


def test_who_waits_longest_goes_first_and_together_with_others() -> None:
    assert chosen([job(3), job(1), job(2)]) == [1, 2, 3]
    assert chosen([job(3), job(1), job(2)], batch=2) == [1, 2]


def test_owners_take_turns() -> None:
    jobs = [job(n, "many") for n in range(1, 5)] + [job(9, "one")]
    assert chosen(jobs) == [1, 9, 2, 3, 4]
    assert chosen(jobs, batch=1, many=5.0, one=4.0) == [9]
    assert chosen(jobs, batch=1, many=4.0, one=5.0) == [1]


def test_the_urgent_is_urgent_among_the_own() -> None:
    assert chosen([job(1), job(2, reason="push"), job(3, priority=2)]) == [3, 2, 1]
    assert chosen([job(1, "a"), job(2, "b", priority=9)], batch=1, a=0.0, b=1.0) == [1]


def test_who_asked_by_hand_does_not_wait_for_a_turn() -> None:
    assert chosen([job(1, "a"), job(2, "b", reason="command")], a=0.0, b=99.0) == [2, 1]


def test_together_goes_only_what_is_alike() -> None:
    assert chosen([job(1), job(2, platform="linux/arm64"), job(3)]) == [1, 3]
    assert chosen([job(1), job(2, policy='{"permissions": "strict"}'), job(3)]) == [1, 3]


def test_what_may_kill_a_publish_goes_alone() -> None:
    assert chosen([job(1, is_alone=True), job(2)]) == [1]
    assert chosen([job(1), job(2, is_alone=True), job(3)]) == [1, 3]


@given(
    waiting=st.dictionaries(st.sampled_from("abcd"), st.integers(1, 60), min_size=2),
    weights=st.dictionaries(st.sampled_from("abcd"), st.integers(1, 4)),
    batch=st.integers(1, 7),
)
def test_nobody_gets_more_than_a_turn_ahead_of_their_share(
    waiting: dict[str, int], weights: dict[str, int], batch: int
) -> None:
    """While all of them still wait, what owners were given differs by one turn at most."""
    settings = QueueSettings(batch=batch, weights=weights)
    numbers = iter(range(10_000))
    jobs = [job(next(numbers), owner) for owner, count in waiting.items() for _ in range(count)]
    shares: dict[str, float] = {}
    given_to: Counter[str] = Counter()
    while jobs:
        found = choose_batch(jobs, shares, settings)
        assert found is not None
        shares = dict(found.shares)
        for done in found.jobs:
            given_to[done.owner] += 1
            jobs.remove(done)
            if {each.owner for each in jobs} == waiting.keys():
                turns = [given_to[owner] / settings.weight(owner) for owner in waiting]
                assert max(turns) - min(turns) <= 1
    assert given_to == waiting


def test_the_idle_save_nothing_up_and_the_new_owe_nothing() -> None:
    found = choose_batch([job(1, "busy"), job(2, "new")], {"busy": 50.0}, QueueSettings(batch=1))
    assert found is not None
    assert dict(found.shares) == {"busy": 51.0, "new": 50.0}


@pytest.mark.parametrize(
    ("exit_code", "attempts", "status"),
    [
        (3, 1, "failed"),
        (3, 1000, "failed"),  # an outage may last
        (4, 1, "quarantined"),  # the image will not get better
        (2, 1, "quarantined"),
        (1, 4, "failed"),
        (1, 5, "quarantined"),
        (5, 5, "quarantined"),
    ],
)
def test_what_becomes_of_a_failure(exit_code: int, attempts: int, status: str) -> None:
    result = judge(KEY, FAILURE, exit_code, attempts, NOW, QueueSettings(), 0.5)
    assert result.status == status
    assert (result.next_attempt_at is None) == (status == "quarantined")


def test_an_image_that_is_not_signed_yet_is_asked_for_again_and_again() -> None:
    failure = Failure(UnsignedError.kind, "no good signature")
    result = judge(KEY, failure, UnsignedError.exit_code, 100, NOW, QueueSettings(), 0.5)
    assert (result.status, result.next_attempt_at is None) == ("failed", False)


@given(attempts=st.integers(1, 10_000), jitter=st.floats(0, 1))
def test_waits_grow_and_have_an_end(attempts: int, jitter: float) -> None:
    settings = QueueSettings()
    wait = plan_wait(attempts, settings, jitter)
    assert settings.first_wait / 2 <= wait <= settings.longest_wait
    assert plan_wait(attempts + 1, settings, jitter) >= wait
