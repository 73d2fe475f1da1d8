"""Where files of a published repository are read from: a directory, a store, or a web server.

Nothing is verified here; names are relative to the repository root, as in `data/ab/cdef…C`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from cvmfs_publish.content.store import MissingError, ObjectId
from cvmfs_publish.errors import IntegrityError

__all__ = ["MissingError", "Origin", "read"]


class Origin(Protocol):
    """Where a repository is read from: a store, or a web server.

    All methods may be called by several threads at once.
    """

    def size(self, name: str) -> int | None:
        """Return the stored bytes of a file, -1 if it exists but they are unknown; None: missing.

        Raises `RemoteError` or `RepositoryError` if that cannot be found out.
        """

    def pieces(self, name: str) -> Iterator[bytes]:
        """Yield a file's bytes.

        Raises `MissingError` if there is no such file, `RemoteError` or `RepositoryError` if it
        cannot be read.
        """

    def read_many(self, objects: Iterable[ObjectId]) -> Iterator[bytes]:
        """Yield the stored bytes of many small objects, verified, in the order asked for.

        Raises as `pieces`, and `IntegrityError` where a hash differs.
        """

    def close(self) -> None:
        """Release connections.  May be called again."""


def read(origin: Origin, name: str, limit: int) -> bytes:
    """Return a file of at most `limit` bytes; raise `IntegrityError` if it is larger."""
    found: list[bytes] = []
    size = 0
    for piece in origin.pieces(name):
        found.append(piece)
        size += len(piece)
        if size > limit:
            raise IntegrityError(f"{name} has more than {limit} bytes")
    return b"".join(found)
