"""What a repository's files are kept in: the promises every store gives.

Source: facts/cvmfs-format.md sections 1.6, 6.1 and 6.4.  All names are relative to the repository
root: `data/ab/cdef…C` for objects, `.cvmfspublished` for the files beside `data`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from cvmfs_publish.content.hashes import ContentHash, Suffix
from cvmfs_publish.errors import IntegrityError

SHARDS = tuple(f"{number:02x}" for number in range(256))  # the folders below `data`

ObjectId = tuple[ContentHash, Suffix]


class MissingError(IntegrityError):
    """A file that the repository refers to does not exist."""

    kind = "missing"


class Fetched(NamedTuple):
    """A file of the repository root as it was read."""

    data: bytes
    version: str  # changes whenever the file is replaced; means nothing else


class StoredObject(NamedTuple):
    """One file below `data`."""

    name: str
    size: int  # stored bytes
    modified: int  # Unix seconds


class Replacement(NamedTuple):
    """A file of the repository root that `replace` will put in place."""

    name: str
    data: bytes
    expected: str | None  # the version it replaces; None: there must be no such file
    temporary: str = ""  # of the store


class Lock(Protocol):
    """The right to write, while it is held."""

    def check(self) -> None:
        """Raise `LockedError` if the right was lost, for example because this process slept."""


class ContentStore(Protocol):
    """Objects and the few files beside them.

    An object appears under its name complete or not at all and is never changed.  Reading and
    putting objects is safe from several threads and processes at the same time; whatever replaces
    files of the root or removes objects holds the lock.

    Methods raise `RepositoryError` if the store refuses, is full or unreachable, with one
    exception: those of a local directory raise OSError where they write, so that callers can say
    what they were doing.
    """

    location: str  # for messages: a folder or s3://bucket/prefix
    used: set[ObjectId]  # what this instance was asked to put, if it was told to remember

    def create(self) -> None:
        """Prepare an empty store; what exists is left alone."""

    def description(self, sharers: int = 1) -> dict[str, Any]:
        """Return what `stores.open_store` needs to open the same store in another process.

        It may hold secrets: it is handed over on a pipe, never on a command line.  `sharers`
        processes will use it at the same time.
        """

    # objects

    def put(self, stored: bytes, content_hash: ContentHash, kind: Suffix) -> bool:
        """Store one object; return whether it is new.  One that exists with this size is kept."""

    def put_many(self, objects: Sequence[tuple[bytes, ContentHash, Suffix]]) -> list[bool]:
        """Store several objects, at the same time where that is faster.

        If this raises, none of those that are new need be there, and some may be.
        """

    def read(self, content_hash: ContentHash, kind: Suffix) -> bytes:
        """Return the stored bytes of an object, verified.

        Raises `MissingError` if there is none, `IntegrityError` if it is damaged.
        """

    def read_many(self, objects: Iterable[ObjectId]) -> Iterator[bytes]:
        """Yield the stored bytes of many small objects, verified, in the order asked for."""

    def has_all(self, names: Iterable[str]) -> bool:
        """Whether objects of all these names are stored."""

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects; no error for one that is gone.  Raises if one cannot be removed."""

    def objects(self, shard: str) -> Iterator[StoredObject]:
        """Yield everything below `data/<shard>`, in no particular order."""

    # any file, for readers: see `repository.native.origin.Origin`

    def size(self, name: str) -> int | None:
        """Return the stored bytes of a file; None if there is no such file."""

    def pieces(self, name: str) -> Iterator[bytes]:
        """Yield a file's bytes; raise `MissingError` if there is no such file."""

    def close(self) -> None:
        """Release connections.  May be called again."""

    # the files of the root

    def fetch(self, name: str, limit: int) -> Fetched | None:
        """Return a file of the root, None if there is none; `IntegrityError` if above `limit`."""

    def write(self, name: str, data: bytes) -> None:
        """Put a file of the root in place, durably, whatever was there."""

    def prepare(self, name: str, data: bytes, expected: str | None) -> Replacement:
        """Bring everything to where only `replace` is missing."""

    def replace(self, replacement: Replacement) -> None:
        """Make a prepared file visible, in one step and durably.

        Raises `LockedError` if the file is not the version that was expected: somebody else has
        written in between, and nothing was replaced.
        """

    def sync(self) -> None:
        """Return when everything written so far survives a power failure."""

    def sweep(self) -> None:
        """Remove temporary files of writers that died.  Only with the lock held."""

    def lock(self) -> AbstractContextManager[Lock]:
        """Hold the store against other writers; `LockedError` at once if there is one.

        A holder that dies loses the lock, at once on the same host, else after a time.
        """


def has_whole(store: ContentStore, names: Iterable[str], stored_bytes: int | None) -> bool:
    """Whether a store has objects of these names, with as many bytes together, if that is known."""
    if stored_bytes is None or store.description()["kind"] != "local":
        return store.has_all(names)  # others have an object whole or not at all
    total = 0
    for name in names:
        size = store.size(name)
        if size is None:
            return False
        total += size
    return total == stored_bytes
