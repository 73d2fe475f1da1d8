"""A store on which a change can be tried: it reads through and keeps what is written to itself."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from cvmfs_publish.content.hashes import ContentHash, Suffix
from cvmfs_publish.content.store import (
    ContentStore,
    Fetched,
    Lock,
    MissingError,
    ObjectId,
    Replacement,
    StoredObject,
)
from cvmfs_publish.errors import IntegrityError, LockedError


class Rehearsal:
    """See `content.store.ContentStore`; nothing below it changes, and all is forgotten at the end.

    What is written stays in memory: it is for a few catalogs, not for images.  Locking locks the
    real store, so that what is tried is what could be done at this moment.
    """

    def __init__(self, store: ContentStore) -> None:
        """Read from `store`, which whoever opened it closes."""
        self._store = store
        self._written: dict[str, bytes] = {}
        self._removed: set[str] = set()
        self._started = int(time.time())
        self.location = store.location
        self.used: set[ObjectId] = set()

    def create(self) -> None:
        """Nothing has to be prepared in memory."""

    def description(self, sharers: int = 1) -> dict[str, Any]:
        """Describe the real store: another process sees nothing of what was written here."""
        return self._store.description(sharers)

    # objects

    def put(self, stored: bytes, content_hash: ContentHash, kind: Suffix) -> bool:
        name = content_hash.path(kind)
        if self.size(name) == len(stored):
            return False
        self._written[name] = bytes(stored)
        return True  # and what was removed is there again: what is written is looked at first

    def put_many(self, objects: Sequence[tuple[bytes, ContentHash, Suffix]]) -> list[bool]:
        return [self.put(*each) for each in objects]

    def read(self, content_hash: ContentHash, kind: Suffix) -> bytes:
        stored = self._find(content_hash.path(kind))
        return self._store.read(content_hash, kind) if stored is None else stored

    def read_many(self, objects: Iterable[ObjectId]) -> Iterator[bytes]:
        wanted = list(objects)
        changed = self._written.keys() | self._removed
        if any(content_hash.path(kind) in changed for content_hash, kind in wanted):
            return (self.read(content_hash, kind) for content_hash, kind in wanted)
        return self._store.read_many(wanted)

    def has_all(self, names: Iterable[str]) -> bool:
        wanted = [name for name in names if name not in self._written]
        return self._removed.isdisjoint(wanted) and self._store.has_all(wanted)

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            self._written.pop(name, None)
            self._removed.add(name)

    def objects(self, shard: str) -> Iterator[StoredObject]:
        folder = f"data/{shard}/"
        for name, data in self._written.items():
            if name.startswith(folder):
                yield StoredObject(name, len(data), self._started)
        for found in self._store.objects(shard):
            if found.name not in self._written and found.name not in self._removed:
                yield found

    def _find(self, name: str) -> bytes | None:
        """Return what was written under a name, None if that has to be asked below."""
        if name in self._removed and name not in self._written:
            raise MissingError(f"{name} was removed from {self.location}")
        return self._written.get(name)

    # any file

    def size(self, name: str) -> int | None:
        if name in self._written:
            return len(self._written[name])
        return None if name in self._removed else self._store.size(name)

    def pieces(self, name: str) -> Iterator[bytes]:
        data = self._find(name)
        return self._store.pieces(name) if data is None else iter([data])

    def close(self) -> None:
        """The real store stays open."""

    # the files of the root

    def fetch(self, name: str, limit: int) -> Fetched | None:
        data = self._written.get(name)
        if data is None:  # files of the root are replaced, never removed
            return self._store.fetch(name, limit)
        if len(data) > limit:
            raise IntegrityError(f"{name} has more than {limit} bytes")
        return Fetched(data, self._version(data))

    def write(self, name: str, data: bytes) -> None:
        self._written[name] = data

    def prepare(self, name: str, data: bytes, expected: str | None) -> Replacement:
        return Replacement(name, data, expected)

    def replace(self, replacement: Replacement) -> None:
        found = self.fetch(replacement.name, 2**63)
        if (found.version if found is not None else None) != replacement.expected:
            raise LockedError(f"{replacement.name} in {self.location} was changed meanwhile")
        self._written[replacement.name] = replacement.data

    @staticmethod
    def _version(data: bytes) -> str:
        return f"rehearsal-{len(data)}-{zlib.crc32(data)}"

    def sync(self) -> None:
        """Memory is as durable as a rehearsal has to be."""

    def sweep(self) -> None:
        """Temporary files of the real store are left alone."""

    def lock(self) -> AbstractContextManager[Lock]:
        return self._store.lock()
