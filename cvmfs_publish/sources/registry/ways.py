"""Open a blob at the first of several places that gives it; where one fails, go on at the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cvmfs_publish.errors import RemoteError
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources.registry.client import Reply


@dataclass(frozen=True, slots=True)
class Way:
    """A place that may have a blob."""

    open_at: Callable[[int], Reply]  # from this byte on
    failed: Callable[[RemoteError], None] = lambda _: None  # is told why it did not
    mirror: Reference | None = None  # the blob's name there, if it is a mirror


class Ways:
    """The places of one blob, in the order in which they are asked.  Used by one thread."""

    def __init__(self, ways: Sequence[Way]) -> None:
        """The last of `ways` is no mirror."""
        self._ways = list(ways)
        self._has_opened = False

    @property
    def current(self) -> Way:
        """The place that was asked last."""
        return self._ways[0]

    def open_at(self, offset: int) -> Reply:
        """Return the blob from a byte on; raise as the last place does, with the first's words."""
        # What was open broke: a mirror is not asked again, the registry is
        if self._has_opened and self.current.mirror is not None:
            self._ways.pop(0)
        self._has_opened = True
        first: RemoteError | None = None
        while True:
            way = self._ways[0]
            try:
                return way.open_at(offset)
            except RemoteError as exc:
                way.failed(exc)
                if len(self._ways) == 1:
                    if first is not None:
                        exc.hint = join_hints(exc.hint, f"another place failed as well: {first}")
                    raise
                first = first or exc
                self._ways.pop(0)


def join_hints(*hints: str) -> str:
    return "; ".join(hint for hint in hints if hint)
