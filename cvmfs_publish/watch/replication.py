"""What the watcher does about replicas: looks how far they are, and tells when one is in trouble.

An image counts as replicated when clients of every configured replica can have its revision.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from cvmfs_publish.replicas import SERVING, Observer, Standing
from cvmfs_publish.state.model import Event, Failure, Replica
from cvmfs_publish.state.state import State

EVERY = timedelta(minutes=1)  # between two looks
TOLD_AFTER = 3  # looks with the same fault in a row: a lost packet is no trouble


class Replication:
    """Looks at the replicas and writes down how far they are; for one thread."""

    def __init__(self, state: State, observer: Observer) -> None:
        """Put it together; nothing is read yet."""
        self._state = state
        self._observer = observer
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
        for standing in self._observer.look(now).replicas:
            found = _note(standing, known.get(standing.url), now)
            self._state.record_replica(found, expected, now)
            events += self._compare(found, now)
        self._state.log(events)
        return EVERY

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


def _note(standing: Standing, before: Replica | None, now: datetime) -> Replica:
    """Return what is written down; of a replica in trouble, the revision it had before that."""
    if standing.health in SERVING and standing.revision is not None:
        return Replica(standing.url, standing.revision, now)
    revision = before.revision if before is not None else 0
    failure = Failure(standing.health, standing.message, standing.hint)
    return Replica(standing.url, revision, now, failure)
