"""A repository whose time a test decides, and what can be read of it: for tests of `gc`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm, Suffix
from cvmfs_publish.content.store import SHARDS
from cvmfs_publish.reference import Reference
from cvmfs_publish.repository.layouts import DEFAULT_PLATFORM
from cvmfs_publish.repository.names import unpublish
from cvmfs_publish.repository.native.catalog import CatalogRef
from cvmfs_publish.repository.native.commit import open_history, read_base
from cvmfs_publish.repository.native.gc import Collector, Plan, Retention
from cvmfs_publish.repository.native.history import Tag
from cvmfs_publish.repository.native.reader import Snapshot
from cvmfs_publish.repository.native.reflog import Ref, RefType
from cvmfs_publish.repository.native.repository import NativeRepository, NativeTransaction
from tests import versions
from tests.support import Site, keys_of_this_run

DAY = 86_400  # seconds
PAST_DAYS = 28  # a whitelist is valid for 30


class Timeline:
    """A repository on a clock of its own; new objects get the time at which they were stored."""

    def __init__(
        self,
        repository: NativeRepository,
        folder: Path | None,
        scratch: Path,
        *,
        is_stamped: bool = False,
    ) -> None:
        """`folder` is where objects get their times, None for a store that cannot be told them;
        `is_stamped`: objects have them already."""
        self.repository = repository
        self.folder = folder
        self.scratch = scratch
        self.now = repository.manifest().timestamp
        self._known = self.names() if is_stamped else set()
        self._stamp()

    @property
    def storage(self) -> Path:
        assert self.folder is not None
        return self.folder

    def _stamp(self) -> None:
        if self.folder is not None:
            for name in self.names() - self._known:
                os.utime(self.folder / name, (self.now, self.now))
                self._known.add(name)

    def wait(self, days: float) -> None:
        self.now += int(days * DAY)

    @contextmanager
    def transaction(self) -> Iterator[NativeTransaction]:
        with self.repository.transaction(self.now) as transaction:
            yield transaction
        self._stamp()

    def put(self, path: str, data: bytes) -> ContentHash:
        """Publish a revision with a file; return its root catalog."""
        with self.transaction() as transaction:
            directory = path.rpartition("/")[0]
            transaction.make_directories(directory, [directory])
            transaction.put_file(path, data)
        return self.repository.manifest().root_hash

    def remove(self, path: str) -> ContentHash:
        with self.transaction() as transaction:
            transaction.remove(path)
        return self.repository.manifest().root_hash

    def publish(self, name: str, version: str) -> ContentHash:
        """Publish a small image under a name."""
        with self.transaction() as transaction:
            versions.put(transaction, name, version, self.at())
        return self.repository.manifest().root_hash

    def unpublish(self, name: str) -> ContentHash:
        with self.transaction() as transaction:
            unpublish(transaction, Reference.parse(name), DEFAULT_PLATFORM, self.at())
        return self.repository.manifest().root_hash

    def at(self) -> datetime:
        return datetime.fromtimestamp(self.now, UTC)

    def tag(self, name: str) -> None:
        manifest = self.repository.manifest()
        with self.repository.maintenance(self.now) as work:
            work.history.add_tag(
                name, manifest.root_hash, manifest.revision, manifest.timestamp, manifest.root_size
            )
        self._stamp()

    def store(self, data: bytes) -> str:
        """Store an object that nothing names."""
        content_hash = ContentHash.of(data, HashAlgorithm.SHA1)
        self.repository.store.put(data, content_hash, Suffix.DATA)
        self._stamp()
        return content_hash.path(Suffix.DATA)

    def retention(self, grace: float = 0, revisions: int = 0) -> Retention:
        """Return how long to keep what was replaced: `grace` in days."""
        return Retention(timedelta(days=grace), revisions)

    def plan(self, grace: float = 0, revisions: int = 0) -> tuple[Plan, list[str]]:
        """Return what would be removed, with the names of objects."""
        found: list[str] = []
        plan = Collector(self.repository, self.scratch).plan(
            self.now, self.retention(grace, revisions), lambda p: found.extend(p.all_names())
        )
        return plan, found

    def collect(self, grace: float = 0, revisions: int = 0) -> tuple[Plan, list[str]]:
        found: list[str] = []
        plan = Collector(self.repository, self.scratch).collect(
            self.now, self.retention(grace, revisions), lambda p: found.extend(p.all_names())
        )
        self._stamp()
        return plan, found

    # what is there

    def names(self) -> set[str]:
        """Return the names of all files beside each other in `data/xx`, objects or not."""
        store = self.repository.store
        return {found.name for shard in SHARDS for found in store.objects(shard)}

    def tags(self) -> list[Tag]:
        with open_history(self.repository.store, self.repository.manifest()) as history:
            return history.tags()

    def beside(self) -> set[str]:
        """Return the names of all listed certificates, histories and metainfo."""
        listed = [ref for ref in self.refs() if ref.type is not RefType.CATALOG]
        return {ref.hash.path(ref.type.suffix) for ref in listed}

    def refs(self) -> list[Ref]:
        with read_base(self.repository.store, self.repository.manifest(), "") as base:
            return base.reflog.entries()

    def consists_of(self, root: ContentHash) -> set[str]:
        """Read all of a revision as a client does; return the names of its objects."""
        found = set()
        with Snapshot(
            self.repository.store, self.repository.manifest(), CatalogRef(root, 0)
        ) as snapshot:
            found |= {ref.hash.path(Suffix.CATALOG) for _, ref in snapshot.catalogs()}
            for row in snapshot.walk():
                content = row.node.content
                if row.node.is_file and content is not None:
                    for _ in snapshot.iter_file(row.path):
                        pass
                    found |= {chunk.hash.path(Suffix.CHUNK) for chunk in content.chunks}
                    if content.hash is not None:
                        found.add(content.hash.path(Suffix.DATA))
        return found

    def needed(self, roots: set[ContentHash]) -> set[str]:
        """Return the names of what revisions and the manifest consist of, all of it read."""
        manifest = self.repository.manifest()
        beside = {manifest.certificate, manifest.history, manifest.metainfo}
        names = {ref.hash.path(ref.type.suffix) for ref in self.refs() if ref.hash in beside}
        assert len(names) == len(beside)
        return names.union(*(self.consists_of(root) for root in roots))


@contextmanager
def timeline(
    base: Path, algorithm: HashAlgorithm = HashAlgorithm.SHA1
) -> Iterator[tuple[Site, Timeline]]:
    """Create a repository below `base`, `PAST_DAYS` ago: the judge accepts no time to come."""
    target = Site(base, algorithm)
    with target.client:
        shutil.copytree(keys_of_this_run(), target.keys)
        target.repository.create(algorithm, datetime.now(UTC) - timedelta(days=PAST_DAYS))
        yield target, Timeline(target.repository, target.storage, base / "state")
