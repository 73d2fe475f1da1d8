"""What the watcher does about replicas: looks how far they are, and tells when one is in trouble.

An image counts as replicated when clients of every configured replica can have its revision.  Names
that wait for replicas (`repository/staging.py`) are switched when a look says that these have the
image: by an order like every other, so that nothing waits for replicas.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from cvmfs_publish.naming import Wanted
from cvmfs_publish.reference import Reference
from cvmfs_publish.replicas import SERVING, Observer, Standing, Survey
from cvmfs_publish.repository.base import Repository, View
from cvmfs_publish.repository.layouts import place_name
from cvmfs_publish.repository.records import (
    Publication,
    Staged,
    iter_staged,
    read_publication,
)
from cvmfs_publish.repository.staging import StagedName, hindrance
from cvmfs_publish.sources.base import Platform
from cvmfs_publish.state.model import Event, Facts, Failure, ImageKey, Replica
from cvmfs_publish.state.state import State
from cvmfs_publish.watch.work import facts_of

EVERY = timedelta(minutes=1)  # between two looks
TOLD_AFTER = 3  # looks with the same fault in a row: a lost packet is no trouble


class Replication:
    """Looks at the replicas and writes down how far they are; `step` is for one thread."""

    def __init__(
        self,
        state: State,
        observer: Observer,
        repository: Repository | None = None,
        wanted: Wanted | None = None,
    ) -> None:
        """Put it together; nothing is read yet.

        `repository`: whose names may wait for as many replicas as are `wanted`.
        """
        self._state = state
        self._observer = observer
        self._repository = repository
        self._wanted = wanted or Wanted()
        self._ready: tuple[StagedName, ...] = ()
        self._faults: dict[str, tuple[str, int]] = {}  # what is wrong, and in how many looks
        self._told: set[str] = set()  # the replicas whose trouble was told

    def step(self, now: datetime) -> timedelta:
        """Look once; return how long nothing is to be done.

        Raises:
            RepositoryError, IntegrityError: the repository itself cannot be read.
        """
        expected = [target.url for target in self._observer.targets]
        known = {replica.url: replica for replica in self._state.replicas()}
        events: list[Event] = []
        self._state.forget_replicas(expected)
        survey = self._observer.look(now)
        for standing in survey.replicas:
            found = _note(standing, known.get(standing.url), now)
            self._state.record_replica(found, expected, now)
            events += self._compare(found, now)
        self._state.log(events)
        self._choose(survey, now)
        return EVERY

    @property
    def is_ready(self) -> bool:
        """Whether names may lead to what they wait for."""
        return bool(self._ready)

    def take_ready(self) -> tuple[StagedName, ...]:
        """Return which names may, by the last look; once."""
        ready, self._ready = self._ready, ()
        return ready

    def settle(self, now: datetime) -> tuple[Staged, ...]:
        """Write down which names wait and which do not any more; return those that may be switched.

        Raises `RepositoryError` if the repository cannot be read.
        """
        if self._repository is None:
            return ()
        with self._repository.open() as view:
            staged = tuple(iter_staged(view))
            able = tuple(each for each in staged if self._is_able(view, each))
            waiting = {_key(each.publication): facts_of(each.publication) for each in staged}
            named: dict[ImageKey, Facts] = {}
            for image in self._state.staged():
                names = place_name(Reference.parse(image.name), Platform.parse(image.platform))
                record = read_publication(view, names.publication)
                if record is not None:
                    named[image.key] = facts_of(record)
        self._state.settle_staged(waiting, named, now)
        return able

    def _is_able(self, view: View, staged: Staged) -> bool:
        return hindrance(view, staged, self._wanted.compliance) is None

    def _choose(self, survey: Survey, now: datetime) -> None:
        self._ready = tuple(
            StagedName.of(staged)
            for staged in self.settle(now)
            if self._wanted.is_ready(staged, survey)
        )

    def _compare(self, found: Replica, now: datetime) -> Sequence[Event]:
        """Return what is to be told: that a fault lasts, or that one that was told is over."""
        kind, times = self._faults.get(found.url, ("", 0))
        if found.failure is None:
            was_told = found.url in self._told
            self._faults.pop(found.url, None)
            self._told.discard(found.url)
            message = f"{found.url}: well again, at revision {found.revision}"
            return [Event(0, now, "replica-recovered", message)] if was_told else []
        times = times + 1 if kind == found.failure.kind else 1
        self._faults[found.url] = (found.failure.kind, times)
        if times != TOLD_AFTER:
            return []
        self._told.add(found.url)
        message = f"{found.url}: {found.failure.kind}: {found.failure.message}"
        return [Event(0, now, "replica-trouble", message)]


def _key(record: Publication) -> ImageKey:
    return ImageKey(Reference.parse(record.reference).name, record.platform)


def _note(standing: Standing, before: Replica | None, now: datetime) -> Replica:
    """Return what is written down; of a replica in trouble, the revision it had before that."""
    if standing.health in SERVING and standing.revision is not None:
        return Replica(standing.url, standing.revision, now)
    revision = before.revision if before is not None else 0
    failure = Failure(standing.health, standing.message, standing.hint)
    return Replica(standing.url, revision, now, failure)
