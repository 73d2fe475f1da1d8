"""Registries are asked once about what is due, and left alone when they do not answer."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import RemoteError
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources.base import AccessDeniedError, ImageNotFoundError, RateLimitedError
from cvmfs_publish.state.model import Budget, Facts, ImageKey, Result, Wish
from cvmfs_publish.state.state import State
from cvmfs_publish.watch.poller import GIVE_UP, Poller

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
INTERVAL = timedelta(minutes=15)
MINUTE = timedelta(minutes=1)


class Source:
    """Answers as `answer` says; remembers what it was asked."""

    def __init__(self, answer: Callable[[Reference], Digest]) -> None:
        self.answer = answer
        self.asked: list[str] = []
        self._lock = threading.Lock()

    def head(self, reference: Reference) -> Digest:
        with self._lock:
            self.asked.append(str(reference))
        return self.answer(reference)


class Registries:
    def __init__(self, source: Source) -> None:
        self.found = source
        self.forgotten: list[str] = []
        self.left: int | None = None
        self.limit: int | None = None

    def source(self, registry: str) -> Source:
        del registry
        return self.found

    def forget(self, registry: str) -> None:
        self.forgotten.append(registry)

    def budget(self, registry: str, now: datetime) -> Budget:
        del now
        return Budget(registry, limit=self.limit, remaining=self.left)


def digest(reference: Reference) -> Digest:
    return Digest.of(str(reference).encode())


def refuse(error: Exception) -> Callable[[Reference], Digest]:
    def answer(_: Reference) -> Digest:
        raise error

    return answer


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[State]:
    with State.open(tmp_path) as opened:
        yield opened


@pytest.fixture
def registries() -> Registries:
    return Registries(Source(digest))


@pytest.fixture
def poller(memory: State, registries: Registries) -> Iterator[Poller]:
    # mypy: the source has only what is asked of it here
    with Poller(memory, registries, INTERVAL, lambda: 1.0, parallel=2) as made:
        yield made


def wish(memory: State, count: int, registry: str = "ghcr.io") -> list[ImageKey]:
    keys = [ImageKey(f"{registry}/a/i{n}:1", "linux/amd64") for n in range(count)]
    memory.replace_wishes([Wish(key, key.name, "list") for key in keys], NOW)
    return keys


def ask_all(poller: Poller, now: datetime) -> None:
    while poller.step(now):
        pass


def test_everything_due_is_asked_once_in_an_interval(
    memory: State, poller: Poller, registries: Registries
) -> None:
    wish(memory, 700)
    ask_all(poller, NOW)
    assert len(registries.found.asked) == len(set(registries.found.asked)) == 700
    assert memory.counts() == {"queued": 700}
    at = NOW
    while at <= NOW + 4.5 * INTERVAL:
        at += timedelta(seconds=30)
        ask_all(poller, at)
    # the first moment is half an interval to one and a half away, the others one
    assert set(Counter(registries.found.asked).values()) == {5, 6}


def test_what_is_published_is_not_queued_again(memory: State, poller: Poller) -> None:
    (key,) = wish(memory, 1)
    ask_all(poller, NOW)
    jobs = memory.due_jobs(NOW)
    run = memory.begin_run(jobs, {}, NOW)
    memory.finish_run(run, [Result(key, "published", Facts(jobs[0].digest))], NOW)
    ask_all(poller, NOW + INTERVAL)
    assert memory.counts() == {"published": 1}


def test_too_many_requests_end_the_round_and_nothing_is_forgotten(
    memory: State, poller: Poller, registries: Registries
) -> None:
    wish(memory, 100)
    busy = RateLimitedError("busy", retry_after=10 * MINUTE)
    registries.found.answer = refuse(busy)
    ask_all(poller, NOW)
    assert len(registries.found.asked) <= 2  # those that were under way
    (budget,) = memory.budgets()
    assert budget.blocked_until == NOW + 10 * MINUTE
    asked = len(registries.found.asked)
    ask_all(poller, NOW + 9 * MINUTE)
    assert len(registries.found.asked) == asked
    registries.found.answer = digest
    at = NOW + 10 * MINUTE
    while at <= NOW + 45 * MINUTE:
        ask_all(poller, at)
        at += timedelta(seconds=10)
    assert memory.counts() == {"queued": 100}


def test_an_outage_of_hours_costs_few_requests_and_ends_smoothly(
    memory: State, poller: Poller, registries: Registries
) -> None:
    keys = wish(memory, 300)
    ask_all(poller, NOW)
    jobs = memory.due_jobs(NOW)
    run = memory.begin_run(jobs, {}, NOW)
    memory.finish_run(run, [Result(job.key, "published", Facts(job.digest)) for job in jobs], NOW)
    registries.found.answer = refuse(RemoteError("nobody is there"))
    registries.found.asked.clear()
    at = NOW
    for _ in range(6 * 60):
        at += MINUTE
        ask_all(poller, at)
    # one question in a quarter of an hour, after some to find out
    assert len(registries.found.asked) < 24 + 20
    assert memory.counts() == {"published": 300}
    assert not memory.unlisted()
    registries.found.answer = digest
    most = 0
    for _ in range(60):
        before = len(registries.found.asked)
        at += MINUTE
        ask_all(poller, at)
        most = max(most, len(registries.found.asked) - before)
    assert most < 3 * 300 / 15  # never much more than in any minute of any cycle
    answered = {image.key for key in keys if (image := memory.image(key)) and not image.failure}
    assert len(answered) == 300


def test_a_few_failures_are_those_of_images(
    memory: State, poller: Poller, registries: Registries
) -> None:
    wish(memory, 50)

    def answer(reference: Reference) -> Digest:
        if reference.repository == "a/i7":
            raise RemoteError("this one is odd")
        return digest(reference)

    registries.found.answer = answer
    ask_all(poller, NOW)
    assert len(registries.found.asked) == 50
    assert memory.counts() == {"queued": 49, "failed": 1}
    assert memory.budgets()[0].failures == 0


def test_what_the_registry_lost_is_gone_and_denied_logins_are_read_again(
    memory: State, poller: Poller, registries: Registries
) -> None:
    one, two = wish(memory, 2)

    def answer(reference: Reference) -> Digest:
        if reference.name == one.name:
            raise ImageNotFoundError("unknown")
        raise AccessDeniedError("no")

    registries.found.answer = answer
    ask_all(poller, NOW)
    assert [memory.image(key).status for key in (one, two)] == ["gone", "failed"]  # type: ignore[union-attr]
    assert registries.forgotten == ["ghcr.io"]


def test_a_budget_is_never_overdrawn(memory: State, poller: Poller, registries: Registries) -> None:
    wish(memory, 50)
    registries.left = 5
    poller.step(NOW)
    assert len(registries.found.asked) == 5
    registries.left = 0
    ask_all(poller, NOW)
    assert len(registries.found.asked) == 5
    assert memory.due_polls(NOW, 100) == ()  # they wait


def test_of_a_registry_that_breaks_down_in_a_round_the_rest_is_not_asked(
    memory: State, poller: Poller, registries: Registries
) -> None:
    wish(memory, 200)
    registries.found.answer = refuse(RemoteError("broken"))
    poller.step(NOW)
    assert len(registries.found.asked) <= GIVE_UP + 2


def test_a_bug_about_one_image_keeps_nobody_from_asking_about_the_others(
    memory: State, registries: Registries, poller: Poller
) -> None:
    bad, good = wish(memory, 2)

    def answer(reference: Reference) -> Digest:
        if reference.name == bad.name:
            raise ZeroDivisionError("a bug")
        return digest(reference)

    registries.found.answer = answer
    assert poller.step(NOW)
    failed, found = memory.image(bad), memory.image(good)
    assert failed is not None
    assert failed.failure is not None
    assert failed.failure.kind == "bug"
    assert found is not None
    assert found.digest_seen == str(digest(Reference.parse(good.name)))


def test_looking_leaves_something_of_a_budget_for_publishing(
    memory: State, registries: Registries, poller: Poller
) -> None:
    wish(memory, 30)
    registries.limit, registries.left = 100, 20
    while poller.step(NOW):
        registries.left = 20 - len(registries.found.asked)
    assert len(registries.found.asked) == 10
