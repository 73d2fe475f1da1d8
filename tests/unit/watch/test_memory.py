"""Watchers that ask the same ask once, and nobody is given an answer that is old or outdated."""

from __future__ import annotations

import threading

import pytest

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import RemoteError
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources.base import TagListing
from cvmfs_publish.watch.memory import (
    FAILED_SECONDS,
    KEPT_SECONDS,
    AnswerMemory,
    RememberedSource,
)

IMAGE = Reference.parse("ghcr.io/a/b:1")
DIGEST = Digest("sha256", "0" * 64)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Registry:
    """Counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.error: Exception | None = None

    def head(self, reference: Reference) -> Digest:
        self.asked.append(f"head {reference}")
        if self.error is not None:
            raise self.error
        return DIGEST

    def list_tags(self, registry: str, repository: str, etag: str = "") -> TagListing | None:
        self.asked.append(f"tags {registry}/{repository} {etag}")
        return None if etag else TagListing(("1",), "e")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def memory(clock: Clock) -> AnswerMemory:
    return AnswerMemory(clock)


def test_an_answer_is_kept_for_a_minute(memory: AnswerMemory, clock: Clock) -> None:
    first, second = Registry(), Registry()
    assert RememberedSource(first, memory).head(IMAGE) == DIGEST
    clock.now = KEPT_SECONDS - 1
    assert RememberedSource(second, memory).head(IMAGE) == DIGEST
    assert (len(first.asked), len(second.asked)) == (1, 0)
    clock.now = KEPT_SECONDS
    RememberedSource(second, memory).head(IMAGE)
    assert len(second.asked) == 1


def test_lists_of_tags_are_told_apart_by_what_is_known_of_them(memory: AnswerMemory) -> None:
    registry = Registry()
    source = RememberedSource(registry, memory)
    for _ in range(2):
        assert source.list_tags("ghcr.io", "a/b") == TagListing(("1",), "e")
        assert source.list_tags("ghcr.io", "a/b", "e") is None
    assert registry.asked == ["tags ghcr.io/a/b ", "tags ghcr.io/a/b e"]


def test_a_failure_is_the_failure_of_all_for_a_moment(memory: AnswerMemory, clock: Clock) -> None:
    registry = Registry()
    registry.error = RemoteError("down")
    source = RememberedSource(registry, memory)
    for _ in range(2):
        with pytest.raises(RemoteError, match="down"):
            source.head(IMAGE)
    assert len(registry.asked) == 1
    clock.now = FAILED_SECONDS
    registry.error = None
    assert source.head(IMAGE) == DIGEST


def test_a_bug_is_not_kept(memory: AnswerMemory) -> None:
    registry = Registry()
    registry.error = ZeroDivisionError()
    source = RememberedSource(registry, memory)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            source.head(IMAGE)
    assert len(registry.asked) == 2


def test_after_a_push_everything_is_asked_anew(memory: AnswerMemory) -> None:
    registry = Registry()
    source = RememberedSource(registry, memory)
    source.head(IMAGE)
    memory.forget()
    source.head(IMAGE)
    assert len(registry.asked) == 2


def test_who_asks_at_the_same_time_waits_for_the_answer(memory: AnswerMemory) -> None:
    asked, answer = threading.Event(), threading.Event()
    got: list[int] = []

    def slow() -> int:
        asked.set()
        assert answer.wait(30)
        return 1

    threads = [threading.Thread(target=lambda: got.append(memory.once("q", slow)))]
    threads[0].start()
    assert asked.wait(30)
    threads.append(threading.Thread(target=lambda: got.append(memory.once("q", lambda: 2))))
    threads[1].start()
    answer.set()
    for thread in threads:
        thread.join(30)
    assert got == [1, 1]
