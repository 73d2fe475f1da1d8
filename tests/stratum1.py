"""A world of Stratum 1s: folders that are replicated by hand, by a clock that only tests move."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm
from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.replicas import Observer, Source, Survey, Target
from cvmfs_publish.repository.native.manifest import Manifest
from cvmfs_publish.repository.native.origin import Origin
from cvmfs_publish.repository.native.reachability import root_facts
from cvmfs_publish.repository.native.reader import open_snapshot
from cvmfs_publish.repository.native.repository import NativeRepository
from cvmfs_publish.repository.native.signing import create_keys
from tests.support import NAME, Site
from tests.tampering import edit

MANIFEST = ".cvmfspublished"
WHITELIST = ".cvmfswhitelist"


@dataclass
class Stratum1:
    """A replica: a folder, and when it fetches what is new."""

    url: str
    folder: Path
    every: float = 60.0  # seconds between two snapshots
    next_at: float = 0.0
    cache: Path | None = None  # what a proxy in front of it gives out
    reach: Callable[[Path], Origin] = LocalStore

    def fetch(self, source: Path) -> None:
        """Take over everything, as `cvmfs_server snapshot` does."""
        shutil.copytree(source, self.folder, dirs_exist_ok=True)

    def target(self) -> Target:
        def open_served() -> Origin:
            return self.reach(self.cache or self.folder)

        def open_fresh() -> Origin:
            return self.reach(self.folder)

        return Target(self.url, open_served, open_fresh if self.cache is not None else None)


@dataclass
class World:
    """A Stratum 0, its Stratum 1s, and the time."""

    base: Path
    site: Site = field(init=False)
    strata: list[Stratum1] = field(default_factory=list)
    seconds: float = 0.0
    looks: int = 0

    def __post_init__(self) -> None:
        self.site = Site(self.base / "zero").create()
        self.begin = datetime.now(UTC)

    @property
    def now(self) -> datetime:
        return self.begin + timedelta(seconds=self.seconds)

    @property
    def revision(self) -> int:
        return self.site.repository.manifest().revision

    def add(self, count: int = 1) -> list[Stratum1]:
        """Add Stratum 1s that have what is published now."""
        new: list[Stratum1] = []
        for _ in range(count):
            number = len(self.strata) + len(new) + 1
            url = f"http://s{number}.example.org/cvmfs/{NAME}"
            new.append(Stratum1(url, self.base / f"s{number}"))
        for stratum in new:
            stratum.fetch(self.site.storage)
        self.strata += new
        return new

    def publish(self) -> int:
        """Publish a revision; return its number."""
        text = f"{self.revision}".encode()
        edit(self.site, lambda transaction, _: transaction.put_file("file", text))
        return self.revision

    def keep(self) -> Path:
        """Make a backup of the Stratum 0."""
        return shutil.copytree(self.site.storage, self.base / f"backup{self.revision}")

    def restore(self, backup: Path) -> None:
        shutil.rmtree(self.site.storage)
        shutil.copytree(backup, self.site.storage)

    def sleep(self, seconds: float) -> None:
        """Let time pass; whoever's time has come fetches what is published then."""
        self.seconds += seconds
        for stratum in self.strata:
            if stratum.next_at <= self.seconds:
                stratum.fetch(self.site.storage)
                stratum.next_at = self.seconds + stratum.every

    def observer(self, seconds: float = 20.0) -> Observer:
        keys = (self.site.keys / f"{NAME}.pub",)

        def read() -> Manifest:
            with open_snapshot(self.site.storage, keys, now=None, name=NAME) as snapshot:
                return snapshot.manifest

        def look_back(root: ContentHash) -> tuple[int, ContentHash | None]:
            number, _, previous = root_facts(LocalStore(self.site.storage), root)
            return number, previous

        targets = [stratum.target() for stratum in self.strata]
        return Observer(Source(NAME, read, keys, look_back), targets, seconds=seconds)

    def look(self) -> Survey:
        self.looks += 1
        return self.observer().look(self.now)


def stranger(folder: Path, name: str = NAME) -> Path:
    """Return a repository that somebody else has made and signed."""
    create_keys(folder / "keys", name, now=datetime.now(UTC))
    repository = NativeRepository(name, LocalStore(folder / "storage"), folder / "keys")
    repository.create(HashAlgorithm.SHA1, datetime.now(UTC))
    return folder / "storage"
