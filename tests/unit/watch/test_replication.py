"""The watcher and replicas: when an image counts as replicated, and what is told of a replica."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest

from cvmfs_publish.naming import Wanted
from cvmfs_publish.replicas import Health, Observer, Standing, Survey, Target, http_target
from cvmfs_publish.repository.base import Transaction
from cvmfs_publish.repository.staging import StagedName, switch_names
from cvmfs_publish.state.model import Facts, Failure, ImageKey, Result, Wish
from cvmfs_publish.state.state import State
from cvmfs_publish.watch.replication import EVERY, TOLD_AFTER, Replication
from tests.memory import MemoryRepository
from tests.versions import manifest_digest, put, stage

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
KEY = ImageKey("ghcr.io/a/one:1", "linux/amd64")
ONE, TWO = "http://one/cvmfs/a", "http://two/cvmfs/a"


class Looks:
    """Stands for `Observer`: replicas are as the test says."""

    def __init__(self, *urls: str) -> None:
        self.targets: tuple[Target, ...] = tuple(map(http_target, urls))
        self.found: dict[str, tuple[Health, int]] = {}

    def look(self, now: datetime) -> Survey:
        standings = [
            Standing(url, health, revision, message="" if health == "ok" else "why")
            for url, (health, revision) in self.found.items()
        ]
        return Survey(12, now, now, tuple(standings))


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    with State.open(tmp_path) as state:
        state.replace_wishes([Wish(KEY, KEY.name, "list")], NOW)
        state.enqueue([KEY], NOW, "poll")
        jobs = state.due_jobs(NOW)
        run = state.begin_run(jobs, {}, NOW)
        facts = Facts(f"sha256:{'1' * 64}", revision=12)
        state.finish_run(run, [Result(KEY, "published", facts)], NOW)
        yield state


def step(state: State, looks: Looks, *, after: timedelta = EVERY) -> datetime | None:
    """Look once; return when the image counts as replicated."""
    replication = Replication(state, cast(Observer, looks))
    assert replication.step(NOW + after) == EVERY
    image = state.image(KEY)
    assert image is not None
    return image.replicated_at


def test_an_image_is_replicated_when_the_last_replica_has_its_revision(state: State) -> None:
    looks = Looks(ONE, TWO)
    looks.found = {ONE: ("ok", 12), TWO: ("behind", 11)}
    assert step(state, looks) is None
    looks.found[TWO] = ("ok", 12)
    assert step(state, looks, after=2 * EVERY) == NOW + 2 * EVERY
    looks.found[TWO] = ("behind", 11)
    assert step(state, looks, after=3 * EVERY) == NOW + 2 * EVERY


@pytest.mark.parametrize("health", ["expired", "forked", "future", "unreachable", "wrong-key"])
def test_what_clients_cannot_mount_replicates_nothing(state: State, health: Health) -> None:
    looks = Looks(ONE, TWO)
    looks.found = {ONE: ("ok", 12), TWO: ("behind", 7)}
    step(state, looks)
    looks.found[TWO] = (health, 12)
    assert step(state, looks) is None
    found = {replica.url: replica for replica in state.replicas()}
    assert found[TWO].revision == 7  # that it had when it could be read
    assert found[TWO].failure == Failure(health, "why")


def test_a_replica_that_is_configured_no_more_holds_nothing_back(state: State) -> None:
    looks = Looks(ONE, TWO)
    looks.found = {ONE: ("ok", 12), TWO: ("behind", 7)}
    assert step(state, looks) is None
    looks = Looks(ONE)
    looks.found = {ONE: ("ok", 12)}
    assert step(state, looks) is not None
    assert [replica.url for replica in state.replicas()] == [ONE]


def test_a_fault_is_told_once_when_it_lasts_and_once_when_it_is_over(state: State) -> None:
    looks = Looks(ONE)
    replication = Replication(state, cast(Observer, looks))

    def events_after(health: Health, times: int) -> list[str]:
        last = max((event.id for event in state.events_since(0)), default=0)
        looks.found = {ONE: (health, 12)}
        for _ in range(times):
            replication.step(NOW)
        return [event.kind for event in state.events_since(last)]

    assert events_after("unreachable", TOLD_AFTER - 1) == []
    assert "replica-recovered" not in events_after("ok", 1)
    assert events_after("unreachable", TOLD_AFTER * 3) == ["replica-trouble"]
    assert events_after("expired", TOLD_AFTER) == ["replica-trouble"]  # another one
    assert events_after("unreachable", 1) == []
    assert events_after("behind", 2) == ["replica-recovered"]


# names that wait


class Names:
    """A repository in which one name waits, and what the watcher knows of it."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.repository = MemoryRepository()
        self.looks = Looks(ONE, TWO)
        self.replication = Replication(state, cast(Observer, self.looks), self.repository, Wanted())
        with self.open() as transaction:
            put(transaction, KEY.name, "A", NOW)

    def open(self) -> AbstractContextManager[Transaction]:
        return self.repository.transaction(int(NOW.timestamp()))

    def stage(self, version: str, replicas: int = 2) -> StagedName:
        with self.open() as transaction:
            found = stage(transaction, KEY.name, version, NOW, replicas)
        self.revision = found.revision
        return StagedName.of(found)

    def look(self, *revisions: int) -> tuple[StagedName, ...]:
        self.looks.found = {
            url: ("ok", revision) for url, revision in zip((ONE, TWO), revisions, strict=True)
        }
        self.replication.step(NOW)
        return self.replication.take_ready()


def test_a_name_is_ready_when_as_many_as_wanted_have_its_image(state: State) -> None:
    names = Names(state)
    name = names.stage("B")
    revision = names.revision
    assert names.look(revision, revision - 1) == ()
    assert names.look(revision, revision + 1) == (name,)
    assert names.replication.take_ready() == ()  # once
    newer = names.stage("C", 1)
    assert names.look(names.revision, 0) == (newer,)


def test_the_state_follows_what_others_staged_and_switched(state: State) -> None:
    names = Names(state)
    names.stage("B")
    image = state.image(KEY)
    assert image is not None
    names.replication.settle(NOW)
    image = state.image(KEY)
    assert image is not None
    assert image.status == "published"  # of another digest: it has not heard of this one
    state.enqueue([KEY], NOW, "poll")
    run = state.begin_run(state.due_jobs(NOW), {}, NOW)
    facts = Facts(str(manifest_digest("B")), revision=names.revision)
    state.finish_run(run, [Result(KEY, "staged", facts)], NOW)
    (waiting,) = names.replication.settle(NOW)
    assert waiting.revision == names.revision
    assert [found.status for found in state.staged()] == ["staged"]
    with names.open() as transaction:
        switch_names(transaction, [StagedName.of(waiting)], NOW)
    assert names.replication.settle(NOW) == ()
    assert state.staged() == ()
    image = state.image(KEY)
    assert image is not None
    assert (image.status, image.digest_published) == ("published", facts.digest)
