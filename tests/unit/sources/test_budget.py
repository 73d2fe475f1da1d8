"""A registry is asked no more often than it was allowed, by us or by itself."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmfs_publish.sources.registry.budget import (
    BLIND_PAUSE,
    MAX_PAUSE,
    Allowance,
    Budget,
    Budgets,
    Kind,
)
from cvmfs_publish.sources.registry.client import MAX_RETRY_AFTER
from cvmfs_publish.sources.registry.rate_limit import RateLimit, parse_rate_limit

NOW = datetime(2026, 11, 29, 12, 0, 30, tzinfo=UTC)
NOTHING = timedelta()
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


def headers(**values: str) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in values.items()}


def learn(budget: Budget, **values: str) -> None:
    found = headers(**values)
    budget.learn(lambda name: found.get(name, ""), NOW)


# ------------------------------------------------------------------ what we allow ourselves


def test_without_an_allowance_nothing_waits_and_everything_is_counted() -> None:
    budget = Budget()
    assert {budget.take("pull", NOW) for _ in range(500)} == {NOTHING}
    assert budget.take("request", NOW) == NOTHING
    state = budget.snapshot(NOW)
    assert (state.pulls, state.requests, state.wait) == (500, 501, NOTHING)


def test_the_hour_begins_with_each_pull_and_not_with_the_clock() -> None:
    budget = Budget(Allowance(pulls_per_hour=2))
    assert budget.take("pull", NOW) == NOTHING
    assert budget.take("pull", NOW + 20 * MINUTE) == NOTHING
    wait = budget.take("pull", NOW + 30 * MINUTE)
    assert 30 * MINUTE < wait <= 31 * MINUTE
    at = NOW + 30 * MINUTE + wait
    assert budget.take("pull", at - timedelta(seconds=1)) == timedelta(seconds=1)
    assert budget.take("pull", at) == NOTHING
    assert 19 * MINUTE <= budget.take("pull", at) <= 21 * MINUTE


def test_other_requests_go_on_where_pulls_wait() -> None:
    budget = Budget(Allowance(pulls_per_hour=1))
    budget.take("pull", NOW)
    assert budget.take("pull", NOW) > NOTHING
    assert budget.take("request", NOW) == NOTHING


def test_a_pull_is_a_request_too() -> None:
    budget = Budget(Allowance(requests_per_hour=2))
    assert budget.take("pull", NOW) == budget.take("request", NOW) == NOTHING
    assert budget.take("request", NOW) > NOTHING
    assert budget.take("pull", NOW) > NOTHING


def test_a_wait_takes_nothing() -> None:
    budget = Budget(Allowance(pulls_per_hour=1))
    budget.take("pull", NOW)
    for _ in range(10):
        budget.take("pull", NOW)
    assert budget.snapshot(NOW).pulls == 1
    assert budget.take("pull", NOW + HOUR + MINUTE) == NOTHING


@given(
    st.lists(st.tuples(st.sampled_from(["pull", "request"]), st.integers(0, 1500)), max_size=60),
    st.integers(1, 4),
    st.integers(1, 6),
)
def test_no_sixty_minutes_ever_hold_more_than_allowed(
    steps: list[tuple[Kind, int]], pulls: int, requests: int
) -> None:
    budget = Budget(Allowance(pulls, requests))
    now, taken = NOW, []
    for kind, seconds in steps:
        now += timedelta(seconds=seconds)
        wait = budget.take(kind, now)
        if wait:
            assert budget.take(kind, now + wait) == NOTHING  # the wait that is named is enough
            now += wait
        taken.append((now, kind))
    for start, _ in taken:
        within = [kind for at, kind in taken if start <= at < start + HOUR]
        assert within.count("pull") <= pulls
        assert len(within) <= requests


def test_threads_do_not_overdraw_it() -> None:
    budget = Budget(Allowance(pulls_per_hour=50))
    granted: list[int] = []

    def work() -> None:
        granted.append(sum(budget.take("pull", NOW) == NOTHING for _ in range(40)))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(granted) == 50


def test_a_clock_that_was_set_back_does_not_lock_a_registry_for_ever() -> None:
    budget = Budget(Allowance(pulls_per_hour=1))
    budget.take("pull", NOW + timedelta(days=400))
    assert budget.take("pull", NOW) == NOTHING


def test_an_allowance_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="wait for ever"):
        Allowance(pulls_per_hour=0)


# ------------------------------------------------------------------ what the registry allows


@pytest.mark.parametrize(
    ("values", "stated"),
    [
        # Docker Hub
        (
            headers(RateLimit_Limit="100;w=21600", RateLimit_Remaining="76;w=21600"),
            RateLimit(76, 100, timedelta(hours=6)),
        ),
        # IETF draft 03
        (
            headers(
                RateLimit_Limit="10, 10;w=1, 50;w=60",
                RateLimit_Remaining="9",
                RateLimit_Reset="4",
            ),
            RateLimit(9, 10, timedelta(seconds=1), NOW + timedelta(seconds=4)),
        ),
        # draft 07, and 08 to 10
        (
            headers(RateLimit="limit=100, remaining=50, reset=5"),
            RateLimit(50, 100, None, NOW + timedelta(seconds=5)),
        ),
        (
            headers(RateLimit='"default";r=50;t=30'),
            RateLimit(50, None, None, NOW + timedelta(seconds=30)),
        ),
        # GitHub, GitLab: a Unix time
        (
            headers(
                X_RateLimit_Limit="60",
                X_RateLimit_Remaining="0",
                X_RateLimit_Reset=str(int(NOW.timestamp()) + 90),
            ),
            RateLimit(0, 60, None, NOW + timedelta(seconds=90)),
        ),
        ({}, None),
        (headers(RateLimit_Limit="100"), None),
        (headers(RateLimit_Remaining="many"), None),
        (headers(RateLimit_Remaining="1" * 13), None),
    ],
)
def test_a_quota_is_understood_however_it_is_stated(
    values: dict[str, str], stated: RateLimit | None
) -> None:
    assert parse_rate_limit(lambda name: values.get(name, ""), NOW) == stated


@given(st.dictionaries(st.sampled_from(["Limit", "Remaining", "Reset"]), st.text(max_size=20)))
def test_no_header_breaks_the_reading(values: dict[str, str]) -> None:
    found = {f"RateLimit-{name}": text for name, text in values.items()} | {
        "RateLimit": values.get("Limit", "")
    }
    stated = parse_rate_limit(lambda name: found.get(name, ""), NOW)
    assert stated is None or (str(stated) and stated.until_next(NOW) >= NOTHING)


def test_a_quota_that_is_used_up_holds_pulls_until_its_reset() -> None:
    budget = Budget()
    learn(budget, RateLimit_Remaining="0", RateLimit_Reset="90")
    assert budget.take("pull", NOW) == timedelta(seconds=90)
    assert budget.take("request", NOW) == NOTHING
    assert budget.take("pull", NOW + timedelta(seconds=90)) == NOTHING


def test_a_sliding_quota_frees_one_pull_after_its_share_of_the_window() -> None:
    budget = Budget()
    learn(budget, RateLimit_Limit="100;w=21600", RateLimit_Remaining="0;w=21600")
    assert budget.take("pull", NOW) == timedelta(seconds=216)


def test_a_wait_that_is_asked_for_holds_for_everything() -> None:
    budget = Budget()
    budget.pause(timedelta(seconds=120), NOW)
    assert budget.take("request", NOW) == budget.take("pull", NOW) == timedelta(seconds=120)
    budget.pause(timedelta(seconds=60), NOW)  # the longer one holds
    assert budget.take("request", NOW) == timedelta(seconds=120)


def test_a_registry_that_does_not_say_when_is_left_alone_for_minutes() -> None:
    budget = Budget()
    budget.pause(None, NOW)
    assert budget.take("request", NOW) == BLIND_PAUSE > MAX_RETRY_AFTER


def test_nobody_is_sent_away_for_more_than_a_day() -> None:
    budget = Budget()
    budget.pause(timedelta(days=1000), NOW)
    assert budget.take("request", NOW) == MAX_PAUSE


# ------------------------------------------------------------------ several, and what is told


def test_every_registry_has_one_budget_of_its_own() -> None:
    budgets = Budgets({"docker.io": Allowance(pulls_per_hour=1)})
    budgets.of("docker.io").take("pull", NOW)
    assert budgets.of("docker.io").take("pull", NOW) > NOTHING
    assert budgets.of("ghcr.io").take("pull", NOW) == NOTHING
    assert list(budgets.snapshots(NOW)) == ["docker.io", "ghcr.io"]


def test_what_others_spent_counts_and_is_not_handed_on_twice() -> None:
    minute = int(NOW.timestamp()) // 60
    budgets = Budgets(
        {"docker.io": Allowance(pulls_per_hour=3)}, {"docker.io": {"pull": {minute - 10: 1}}}
    )
    budget = budgets.of("docker.io")
    assert budget.take("pull", NOW) == NOTHING
    assert budgets.spent() == {"docker.io": {"pull": {minute: 1}, "request": {minute: 1}}}
    assert budgets.spent() == {"docker.io": {"pull": {}, "request": {}}}
    assert budget.take("pull", NOW) == NOTHING
    assert budget.take("pull", NOW) > NOTHING


def test_a_budget_is_told_in_a_line() -> None:
    budget = Budget(Allowance(pulls_per_hour=60))
    budget.take("pull", NOW)
    assert str(budget.snapshot(NOW)) == "1 of 60 pulls, 1 requests in an hour"
    learn(budget, RateLimit_Limit="100;w=21600", RateLimit_Remaining="0;w=21600")
    assert str(budget.snapshot(NOW)) == (
        "1 of 60 pulls, 1 requests in an hour, the registry says 0 of 100 in 6:00:00 left,"
        " the next pull is due in 0:03:36"
    )
