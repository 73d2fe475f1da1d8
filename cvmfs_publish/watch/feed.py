"""Give out the events in the watcher's state to those who are to be told of them."""

from __future__ import annotations

from collections.abc import Sequence

from cvmfs_publish.state.model import Event as Stored
from cvmfs_publish.state.state import State
from cvmfs_publish.watch.events import Event


class StoredFeed:
    """A `notify.Feed` of the events that the state keeps."""

    def __init__(self, state: State, repository: str = "") -> None:
        """Give out the events of a state; `repository`: what they are about, if that has to be
        said.
        """
        self._state = state
        self._repository = repository

    def newest(self) -> int:
        """As promised by `Feed.newest`."""
        found = self._state.latest_events(1)
        return found[0].id if found else 0

    def after(self, number: int, limit: int) -> Sequence[Event]:
        """As promised by `Feed.after`."""
        return [_told(event, self._repository) for event in self._state.events_since(number, limit)]

    def position(self, reader: str) -> int | None:
        """As promised by `Feed.position`."""
        return self._state.cursor(reader)

    def move(self, reader: str, number: int) -> None:
        """As promised by `Feed.move`."""
        self._state.set_cursor(reader, number)


def _told(event: Stored, repository: str) -> Event:
    details = dict(event.details)
    details |= {"platform": event.platform} if event.platform else {}
    details |= {"list": event.list} if event.list else {}
    return Event(
        at=event.at,
        kind=event.kind,
        subject=event.name or event.list,
        message=event.message,
        details=details,
        owner=event.owner,
        repository=repository,
        number=event.id,
    )
