"""A region of Stratum 1s that are fast, slow, ill or not what they say, and change their minds.

What each has is known here from its files and from what was done to it, not from what `replicas`
says of it: the two are compared.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, get_args

from cvmfs_publish.content.hashes import Suffix
from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.errors import RemoteError
from cvmfs_publish.repository.native.manifest import Manifest
from cvmfs_publish.repository.native.origin import Origin
from cvmfs_publish.repository.native.reader import browse_snapshot, open_snapshot
from cvmfs_publish.repository.native.repository import NativeRepository, SnapshotView
from cvmfs_publish.repository.records import iter_publications
from tests.stratum1 import MANIFEST, WHITELIST, Stratum1, World, stranger
from tests.support import NAME, remove_empty_folders
from tests.versions import leads_to

Nature = Literal[
    "fast",  # has everything at each step
    "slow",  # one revision behind
    "slower",  # three behind
    "never",  # took its last snapshot before anything happened
    "expired",  # has everything, but a whitelist that has expired
    "wrong-key",
    "unsigned",
    "foreign",
    "future",  # a copy of the Stratum 0 that went on by itself
    "forked",  # the same, with a number that the Stratum 0 has reached in the meantime, perhaps
    "incomplete",  # the manifest of now, without its root catalog
    "stale-proxy",  # has everything; clients get what a cache kept
    "dead",
]
NATURES: tuple[Nature, ...] = get_args(Nature)
HEALTHY: frozenset[Nature] = frozenset({"fast", "slow", "slower", "never", "stale-proxy"})
TOP = (MANIFEST, WHITELIST)


@dataclass
class Member(Stratum1):
    """A Stratum 1 with a nature; `served` is the revision clients can mount there, 0 for none."""

    nature: Nature = "fast"
    served: int = 0

    def target_folder(self) -> Path:
        return self.cache if self.cache is not None else self.folder


def refuse(folder: Path) -> Origin:
    raise RemoteError(f"{folder.name}: connection refused")


@dataclass
class Region(World):
    """A Stratum 0 whose revisions are all kept, and its Stratum 1s."""

    members: list[Member] = field(default_factory=list)
    strangers: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        remove_empty_folders(self.site.storage)
        self.caches = 0
        self.heads: dict[int, Path] = {}  # manifest and whitelist of each revision
        self.remember()
        self.old = self._expired_whitelist()

    def remember(self) -> None:
        """Keep what is served of the revision of now."""
        folder = self.base / "heads" / str(self.revision)
        folder.mkdir(parents=True, exist_ok=True)
        for name in TOP:
            shutil.copy(self.site.storage / name, folder / name)
        self.heads[self.revision] = folder

    def admit(self, natures: list[Nature]) -> None:
        """Add a Stratum 1 of each nature, which has what is published now."""
        for number, nature in enumerate(natures, 1):
            url = f"http://s{number}.example.org/cvmfs/{NAME}"
            member = Member(url, self.base / f"s{number}")
            self.members.append(member)
            self.become(member, "fast")
            self.become(member, nature)
        self.strata = list(self.members)

    def become(self, member: Member, nature: Nature) -> None:
        """Let a Stratum 1 have another nature from now on."""
        member.nature = nature
        if nature == "stale-proxy":  # keeps what it gave out last, if that was any good
            kept = member.served or self.revision
            self._take(member, kept)
            self.caches += 1
            member.cache = self.base / f"cache{self.caches}"
            shutil.copytree(member.folder, member.cache, copy_function=os.link)
        else:
            member.cache = None
        member.reach = refuse if nature == "dead" else LocalStore
        self.snapshot(member)

    def step(self, seconds: float = 60.0) -> None:
        """Let time pass: every Stratum 1 does as is its nature."""
        self.seconds += seconds
        for member in self.members:
            self.snapshot(member)

    def sleep(self, seconds: float) -> None:
        self.step(seconds)

    def snapshot(self, member: Member) -> None:
        """Do what `cvmfs_server snapshot` does there, or what goes wrong with it."""
        self.remember()
        behind = {"slow": 1, "slower": 3}.get(member.nature, 0)
        match member.nature:
            case "fast" | "slow" | "slower":
                wanted = max(self.revision - behind, 1)
                known = max(number for number in self.heads if number <= wanted)
                member.served = max(known, member.served)
                self._take(member, member.served)
            case "never":
                member.served = member.served or 1
                self._take(member, member.served)
            case "stale-proxy":
                self._take(member, self.revision)
                with browse_snapshot(member.target_folder()) as kept:
                    member.served = kept.manifest.revision
            case _:
                self._take(member, self.revision)
                member.served = 0
                FAULTS[member.nature](self, member)

    def _take(self, member: Member, revision: int) -> None:
        """Have all objects, and serve a revision: clients ask for what that one names."""
        _copy_data(self.site.storage, member.folder)
        for name in TOP:
            _put(member.folder / name, (self.heads[revision] / name).read_bytes())

    # faults

    def _expired_whitelist(self) -> bytes:
        """Return a whitelist of ours that has expired long ago."""
        kept = (self.site.storage / WHITELIST).read_bytes()
        self.site.repository.resign(datetime.now(UTC) - timedelta(days=100), 30)
        old = (self.site.storage / WHITELIST).read_bytes()
        _put(self.site.storage / WHITELIST, kept)
        return old

    def stranger(self, kind: str) -> Path:
        """Return a repository that is not ours, made once."""
        if kind not in self.strangers:
            self.strangers[kind] = STRANGERS[kind](self)
        return self.strangers[kind]

    # what is true

    def serving(self, revision: int) -> int:
        """How many Stratum 1s a client can have this revision, or a later one, from."""
        return sum(member.served >= revision for member in self.members)

    def names(self, member: Member) -> Iterator[tuple[str, str | None, bool]]:
        """Yield what a client there sees: names, where they lead, and if that is whole."""
        keys = [self.site.keys / f"{NAME}.pub"]
        with open_snapshot(
            member.reach(member.target_folder()), keys, now=self.now, name=NAME
        ) as snapshot:
            view = SnapshotView(snapshot)
            for record in iter_publications(view):
                sandbox = leads_to(view, record.path.lstrip("/"))
                text = view.read_file(f"{sandbox}/version") if sandbox is not None else None
                yield record.path, sandbox, text is not None

    def manifest(self) -> Manifest:
        return self.site.repository.manifest()


def _copy_data(source: Path, target: Path) -> None:
    for shard in sorted((source / "data").iterdir()):
        for path in shard.iterdir():
            copy = target / "data" / shard.name / path.name
            if path.is_file() and not copy.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                os.link(path, copy)


def _put(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)  # it may be a link to what another one serves
    path.write_bytes(data)


def _expire(region: Region, member: Member) -> None:
    _put(member.folder / WHITELIST, region.old)


def _unsign(_: Region, member: Member) -> None:
    path = member.folder / MANIFEST
    _put(path, path.read_bytes().partition(b"\n--\n")[0] + b"\n")


def _lose_catalog(region: Region, member: Member) -> None:
    (member.folder / region.manifest().root_hash.path(Suffix.CATALOG)).unlink()


def _replace(kind: str) -> Callable[[Region, Member], None]:
    def replace(region: Region, member: Member) -> None:
        source = region.stranger(kind)
        _copy_data(source, member.folder)
        for name in TOP:
            _put(member.folder / name, (source / name).read_bytes())

    return replace


def _nothing(_: Region, __: Member) -> None:
    """It does not answer, whatever it has."""


FAULTS: dict[str, Callable[[Region, Member], None]] = {
    "expired": _expire,
    "wrong-key": _replace("wrong-key"),
    "unsigned": _unsign,
    "foreign": _replace("foreign"),
    "future": _replace("future"),
    "forked": _replace("forked"),
    "incomplete": _lose_catalog,
    "dead": _nothing,
}


@functools.cache
def _stranger_of_this_run(name: str) -> Path:
    """Return what somebody else publishes, made once: keys take a second."""
    folder = Path(tempfile.mkdtemp(prefix="cvmfs-publish-stranger-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    storage = stranger(folder, name)
    remove_empty_folders(storage)
    return storage


def _foreign(_: Region) -> Path:
    return _stranger_of_this_run("other.example.org")


def _wrong_key(_: Region) -> Path:
    return _stranger_of_this_run(NAME)


def _branch(revisions: int) -> Callable[[Region], Path]:
    """Let a copy of the Stratum 0 go on by itself."""

    def make(region: Region) -> Path:
        storage = region.base / f"branch{revisions}"
        shutil.copytree(region.site.storage, storage)
        copy = NativeRepository(NAME, LocalStore(storage), region.site.keys)
        for _ in range(revisions):
            with copy.transaction(int(datetime.now(UTC).timestamp())) as transaction:
                transaction.put_file("branch", f"{transaction.revision}".encode())
        return storage

    return make


STRANGERS: dict[str, Callable[[Region], Path]] = {
    "wrong-key": _wrong_key,
    "foreign": _foreign,
    "future": _branch(4),
    "forked": _branch(1),
}
