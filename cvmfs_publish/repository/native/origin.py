"""Where files of a published repository are read from: a directory, a store, or a web server.

Nothing is verified here; names are relative to the repository root, as in `data/ab/cdef…C`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Protocol

from cvmfs_publish.content.hashes import ContentHash, Suffix
from cvmfs_publish.content.store import MissingError, ObjectId
from cvmfs_publish.errors import IntegrityError

__all__ = ["MissingError", "Origin", "Remembered", "read"]

_KINDS = "".join(kind.value for kind in Suffix)
_REMEMBERED = 64 * 1024**2  # bytes of objects kept in memory
_LARGEST = 4 * 1024**2  # bytes of one of them


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


class Remembered:
    """An origin that is asked for an object once: the bytes of an object never change.

    For whoever looks at one revision after another.  Whoever reads verifies, as of any origin.
    """

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._lock = threading.Lock()
        self._objects: OrderedDict[str, bytes] = OrderedDict()
        self._total = 0

    def size(self, name: str) -> int | None:
        return self._origin.size(name)

    def pieces(self, name: str) -> Iterator[bytes]:
        known = self._find(name)
        if known is not None:
            yield known
            return
        found: list[bytes] | None = [] if name.startswith("data/") else None
        size = 0
        for piece in self._origin.pieces(name):
            size += len(piece)
            if found is not None:
                found.append(piece)
            if size > _LARGEST:
                found = None
            yield piece
        if found is not None:
            self._keep(name, b"".join(found))

    def read_many(self, objects: Iterable[ObjectId]) -> Iterator[bytes]:
        return self._origin.read_many(objects)

    def close(self) -> None:
        """Do nothing: the next revision is read over the same connections."""

    def _find(self, name: str) -> bytes | None:
        with self._lock:
            if name in self._objects:
                self._objects.move_to_end(name)
            return self._objects.get(name)

    def _keep(self, name: str, data: bytes) -> None:
        if not _is_whole(name, data):  # it is asked for again; whoever reads finds out
            return
        with self._lock:
            if name not in self._objects:
                self._objects[name] = data
                self._total += len(data)
            while self._total > _REMEMBERED:
                self._total -= len(self._objects.popitem(last=False)[1])


def _is_whole(name: str, data: bytes) -> bool:
    """Whether the bytes of an object are those that its name promises."""
    text = name.removeprefix("data/").replace("/", "").rstrip(_KINDS)
    try:
        promised = ContentHash.parse(text)
    except IntegrityError:
        return False
    return ContentHash.of(data, promised.algorithm) == promised
