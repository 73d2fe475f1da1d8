"""Keep objects and the signed files of a repository in an S3-compatible object store.

Source: facts/cvmfs-format.md section 6.4.  Every file is written in one request, so it appears
complete or not at all, and is on the store's disks when the request is answered.  The manifest and
the reflog are replaced by conditional writes: whoever started from another version changes nothing.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

from cvmfs_publish.content.hashes import ContentHash, Suffix
from cvmfs_publish.content.s3_client import BULK, Bucket, ChangedError, S3Error, S3Settings, run
from cvmfs_publish.content.s3_lock import Lease, hold_lease
from cvmfs_publish.content.store import (
    Fetched,
    Lock,
    MissingError,
    ObjectId,
    Replacement,
    StoredObject,
)
from cvmfs_publish.errors import IntegrityError, LockedError, RepositoryError

FEWEST_CONNECTIONS = 4  # of one process, however many share
FIRST_LOOK_PAUSE = 0.1  # seconds, between looks at a file just replaced; then twice as long
LAST_LOOK = 10.0  # seconds after which no further look is taken


class S3Store:
    """See `content.store.ContentStore`.  Any number of processes may put objects together."""

    def __init__(self, settings: S3Settings, *, remember: bool = True) -> None:
        """Use a bucket; `remember` in `used` what this instance is asked to put."""
        self.location = settings.location
        self.used: set[ObjectId] = set()
        self._remember = remember
        self._settings = settings
        self._bucket = Bucket(settings)
        self._pool = ThreadPoolExecutor(settings.connections, "s3")
        self._lease: Lease | None = None
        self._is_uncertain = False

    def create(self) -> None:
        """Nothing to prepare: the operator makes the bucket and decides who may read it."""

    def description(self, sharers: int = 1) -> dict[str, Any]:
        connections = max(self._settings.connections // sharers, FEWEST_CONNECTIONS)
        settings = replace(self._settings, connections=connections)
        return {"kind": "s3", **settings.as_dict()}

    # objects

    def put(self, stored: bytes, content_hash: ContentHash, kind: Suffix) -> bool:
        if self._remember:
            self.used.add((content_hash, kind))
        return self._put((content_hash.path(kind), stored))

    def put_many(self, objects: Sequence[tuple[bytes, ContentHash, Suffix]]) -> list[bool]:
        if self._remember:
            self.used.update((content_hash, kind) for _, content_hash, kind in objects)
        names = [content_hash.path(kind) for _, content_hash, kind in objects]
        todo = dict(zip(names, (stored for stored, _, _ in objects), strict=True))
        new = dict(zip(todo, run(self._pool, self._put, todo.items()), strict=True))
        return [new.pop(name, False) for name in names]  # the second of two equal ones is not new

    def _put(self, item: tuple[str, bytes]) -> bool:
        """Look first: most objects of most images are there, and an upload may be a repetition."""
        name, stored = item
        found = self._bucket.head(name)
        if found is not None and found.size == len(stored):
            return False
        self._bucket.put(name, stored)
        return True

    def read(self, content_hash: ContentHash, kind: Suffix) -> bytes:
        name = content_hash.path(kind)
        found = self._bucket.get(name)
        if found is None:
            raise MissingError(f"{self.location}/{name} is missing")
        if content_hash.algorithm.digest(found.data) != content_hash.digest:
            raise IntegrityError(f"object {name} in {self.location} is damaged: its hash differs")
        return found.data

    def read_many(self, objects: Iterable[ObjectId]) -> Iterator[bytes]:
        """As promised; twice as many as there are connections are read ahead."""
        todo, under_way = iter(objects), deque[Future[bytes]]()
        try:
            while True:
                missing = 2 * self._settings.connections - len(under_way)
                under_way.extend(self._pool.submit(self.read, *o) for o in islice(todo, missing))
                if not under_way:
                    return
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()

    def has_all(self, names: Iterable[str]) -> bool:
        todo = iter(names)
        while some := list(islice(todo, 4 * self._settings.connections)):
            if None in run(self._pool, self._bucket.head, some):
                return False
        return True

    def remove(self, names: Iterable[str]) -> None:
        if self._is_uncertain:
            raise RepositoryError(
                f"nothing is removed from {self.location} as long as it is not known which"
                " manifest it holds",
                hint="run the same command again",
            )
        # Somebody who took the lock over relies on what it finds: no request may outlive the lease.
        bucket = self._bucket if self._lease is None else self._lease.bucket
        todo = iter(names)
        while some := list(islice(todo, BULK)):
            self._check_lease()
            bucket.delete(some, self._pool)

    def objects(self, shard: str) -> Iterator[StoredObject]:
        for found in self._bucket.below(f"data/{shard}"):
            yield StoredObject(found.name, found.size, found.modified)

    # any file

    def size(self, name: str) -> int | None:
        found = self._bucket.head(name)
        return found.size if found is not None else None

    def pieces(self, name: str) -> Iterator[bytes]:
        return self._bucket.pieces(name)

    def close(self) -> None:
        """End the threads that wait for work; should there be work again, they start again."""
        self._pool.shutdown()
        self._pool = ThreadPoolExecutor(self._settings.connections, "s3")

    # the files of the root

    def fetch(self, name: str, limit: int) -> Fetched | None:
        found = self._bucket.get(name, limit)
        if found is None:
            return None
        if found.size > limit:
            raise IntegrityError(f"{self.location}/{name} has more than {limit} bytes")
        return Fetched(found.data, found.version)

    def write(self, name: str, data: bytes) -> None:
        self._check_lease()
        self._bucket.put(name, data)

    def prepare(self, name: str, data: bytes, expected: str | None) -> Replacement:
        """Nothing to prepare: a file is written in one request."""
        return Replacement(name, data, expected)

    def replace(self, replacement: Replacement) -> None:
        """As promised.  An error that is no refusal may leave it open whether it was done."""
        name, data = replacement.name, replacement.data
        self._check_lease()
        try:
            self._bucket.swap(name, data, replacement.expected)
        except ChangedError:
            self._is_uncertain = True  # whoever changed it may rely on what we would remove
            raise LockedError(
                f"{name} in {self.location} was changed by somebody else meanwhile",
                hint="nothing was published; find out who else writes here, then try again",
            ) from None
        except S3Error as error:
            self._is_uncertain = not error.is_refusal
            raise
        self._read_back(name, data)

    def _check_lease(self) -> None:
        """Whoever took the lock must not go on without it; others may have their reasons."""
        if self._lease is not None:
            self._lease.check()

    def _read_back(self, name: str, data: bytes) -> None:
        """Refuse to go on if the store still gives out something else.

        Whoever publishes next would build on what it reads, and clients see what we see.
        """
        self._is_uncertain = True  # until the answer is known
        pause, end = FIRST_LOOK_PAUSE, min(self._settings.patience, LAST_LOOK)
        while True:
            found = self._bucket.get(name)
            if found is not None and found.data == data:
                self._is_uncertain = False
                return
            if 2 * pause > end:
                break
            time.sleep(pause)
            pause *= 2
        raise RepositoryError(
            f"{name} in {self.location} was written, but the store still returns something else",
            hint="a cache or a store that is consistent only eventually stands in between: give"
            " the store's own address as `repository.s3.endpoint`, then run the command again",
        )

    def sync(self) -> None:
        """Nothing to wait for: what is stored is durable once the request is answered."""

    def sweep(self) -> None:
        """There are no temporary files."""

    @contextmanager
    def lock(self) -> Iterator[Lock]:
        """See `content.s3_lock`."""
        with hold_lease(self._bucket, self._settings.lease) as lease:
            self._lease = lease
            try:
                yield lease
            finally:
                self._lease = None


def open_described(description: dict[str, Any], *, remember: bool) -> S3Store:
    """Undo `S3Store.description`; keys that are missing have their defaults."""
    settings = {key: value for key, value in description.items() if key != "kind"}
    return S3Store(S3Settings(**settings), remember=remember)
