"""Contents of files on their way into a repository that is no content store itself.

They are stored as a native repository stores them, in a folder of the state directory, so that a
layer is read once whatever the backend.  Losing the folder costs reading layers again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm, Suffix
from cvmfs_publish.content.ingest import Ingestor
from cvmfs_publish.content.local import storage_errors
from cvmfs_publish.content.objects import Compression, compress
from cvmfs_publish.content.store import SHARDS, ContentStore, ObjectId
from cvmfs_publish.errors import RepositoryError
from cvmfs_publish.layers.tree import Content, Node, RepoPath
from cvmfs_publish.repository.changes import Base, Changes
from cvmfs_publish.repository.native.reader import iter_content

ALGORITHM = HashAlgorithm.SHA1  # names objects that nobody else will see
COMPRESSION = Compression.FAST  # they are written once and read a few times


class Spooled:
    """What one transaction stores."""

    def __init__(self, store: ContentStore) -> None:
        self._store = store
        self._ingestors: list[Ingestor] = []
        self._new: list[ObjectId] = []

    def ingestor(self, readers: int) -> Ingestor:
        """See `repository.base.Transaction`."""
        ingestor = Ingestor(self._store, ALGORITHM, readers, COMPRESSION)
        self._ingestors.append(ingestor)
        return ingestor

    def store(self, data: bytes) -> Content:
        """Store the content of a small file."""
        stored = compress(data)
        content_hash = ContentHash.of(stored, ALGORITHM)
        if self._store.put(stored, content_hash, Suffix.DATA):
            self._new.append((content_hash, Suffix.DATA))
        return Content(content_hash)

    def iter_content(self, path: RepoPath, node: Node) -> Iterator[bytes]:
        """See `repository.base.Transaction`."""
        return iter_content(self._store, path, node)

    def discard(self) -> None:
        """Remove what was stored for nothing."""
        for ingestor in self._ingestors:
            ingestor.discard()
        new, self._new = self._new, []
        with suppress(OSError, RepositoryError):  # they go with time
            self._store.remove([content_hash.path(kind) for content_hash, kind in new])


class SpooledTransaction(Changes):
    """Changes whose contents wait in a spool: what is common to such transactions."""

    def __init__(self, base: Base, now: int, contents: Spooled) -> None:
        super().__init__(base, now)
        self.contents = contents

    def ingestor(self, readers: int) -> Ingestor:
        return self.contents.ingestor(readers)

    def store(self, data: bytes) -> Content:
        with storage_errors("storing file contents"):
            return self.contents.store(data)

    def iter_content(self, path: RepoPath, node: Node) -> Iterator[bytes]:
        return self.contents.iter_content(path, node)

    def discard(self) -> None:
        """Remove what was stored for nothing."""
        self.contents.discard()


def old_objects(store: ContentStore, now: datetime, age: timedelta) -> Iterator[tuple[str, int]]:
    """Yield name and size of what was stored longer ago; its layers are read again if needed."""
    limit = (now - age).timestamp()
    for shard in SHARDS:
        for found in store.objects(shard):
            if found.modified < limit:
                yield found.name, found.size
