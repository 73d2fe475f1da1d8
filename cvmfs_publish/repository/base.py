"""What the publisher needs of a repository, whoever writes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from secrets import SystemRandom
from typing import Protocol, TypeVar, runtime_checkable

from cvmfs_publish.content.hashes import HashAlgorithm
from cvmfs_publish.content.ingest import Ingestor
from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import LockedError
from cvmfs_publish.layers.tree import Content, Node, RepoPath, Tree

T = TypeVar("T")

ATTEMPTS = 10  # at what others were quicker with
_PAUSE = 0.5  # seconds, at most, before the second one; longer before every other


class OvertakenError(LockedError):
    """Somebody else has changed what a transaction had read; it may be done again at once."""


@dataclass(frozen=True, slots=True)
class Revision:
    """A published state of a repository."""

    number: int
    root_hash: str
    timestamp: int  # Unix seconds


class View(Protocol):
    """One published revision, read-only."""

    def read_file(self, path: RepoPath) -> bytes | None:
        """Return a file of moderate size; None if there is none at `path`."""

    def read_symlink(self, path: RepoPath) -> str | None:
        """Return the target of a symbolic link; None if there is none at `path`."""

    def is_directory(self, path: RepoPath) -> bool:
        """Whether there is a directory at `path`."""

    def list_names(self, path: RepoPath) -> list[tuple[str, bool]]:
        """Return name and whether it is a directory for every entry of a directory, sorted.

        Empty if there is no directory at `path`.
        """


@runtime_checkable
class Dated(Protocol):
    """A view that knows when its entries were written; not every backend does."""

    def modified_at(self, path: RepoPath) -> int | None:
        """Return the modification time of an entry in Unix seconds; None if there is none."""


@runtime_checkable
class Searchable(Protocol):
    """A view that finds many files at once faster than directory by directory."""

    def find_files(
        self, top: RepoPath, name: str, excluded: Collection[str] = ()
    ) -> Iterator[tuple[RepoPath, bytes]]:
        """Yield path and content of all small files called `name` below a directory.

        In the order of their directories, name by name.  Directories called as one of `excluded`
        are not entered.
        """


@runtime_checkable
class Walkable(Protocol):
    """A view that yields whole trees and what is in their files."""

    def node(self, path: RepoPath) -> Node | None:
        """Return the entry at `path`; None if there is none."""

    def walk(self, path: RepoPath) -> Iterator[tuple[RepoPath, Node]]:
        """Yield every entry below a directory that an image has, relative to the directory.

        Each directory is followed by what is in it, in the byte order of names.
        """

    def iter_content(self, path: RepoPath, node: Node) -> Iterator[bytes]:
        """Yield the content of a file in pieces; only after the last one it is verified.

        Several threads may do so at once.  `path` is where the file is in the repository.
        """


class Transaction(View, Protocol):
    """Changes that become visible together.  Paths are relative to the repository root.

    Reading shows the changes made so far.
    """

    @property
    def revision(self) -> int:
        """The number the revision will have, if it is published."""

    def ingestor(self, readers: int) -> Ingestor:
        """Return what stores file contents, for `readers` simultaneous layers; use it in `with`.

        What it stored is removed again if the repository cannot be written after all.
        """

    def store(self, data: bytes) -> Content:
        """Store the content of a small file; nothing names it yet."""

    def iter_content(self, path: RepoPath, node: Node) -> Iterator[bytes]:
        """Yield the content of a file whose content is stored; `path` is for messages."""

    def make_directories(self, path: RepoPath, nested: Iterable[RepoPath] = ()) -> None:
        """Make a directory and its missing parents; idempotent.

        `nested` are paths that should be catalogs of their own where the backend has catalogs.
        Raises `RepositoryError` if something else is in the way.
        """

    def put_file(self, path: RepoPath, data: bytes) -> None:
        """Write a small file into an existing directory; no change if it is the same."""

    def put_symlink(self, path: RepoPath, target: str) -> None:
        """Make or repoint a symbolic link in an existing directory; no change if it is the same."""

    def put_tree(self, path: RepoPath, tree: Tree) -> None:
        """Put a tree in place of whatever is at `path`; its contents are stored already."""

    def tree_digest(self, path: RepoPath) -> Digest | None:
        """Read back what is stored at `path`; return its digest, None if it is no image's root.

        The digest is that of `layers.treedigest`.  Nothing that is still in memory is believed.
        """

    def tree_difference(self, path: RepoPath, tree: Tree, digest: Digest) -> str:
        """Read back what is stored at `path`; return "" if it is `tree`, else the first difference.

        `digest` is that of the tree.  Nothing that is still in memory is believed; a backend that
        stores nothing before the transaction ends compares then, and raises `RepositoryError`.
        """

    def remove(self, path: RepoPath) -> None:
        """Remove an entry and everything below it; no error if there is none."""


class Repository(Protocol):
    """A place images are published to."""

    def transaction(
        self, now: int, step: Callable[[str], None] = ...
    ) -> AbstractContextManager[Transaction]:
        """Open a transaction; publish it if the block succeeds, discard it if it raises.

        Atomic: readers see the old tree or the new one, also across `kill -9`.  A block that
        changes nothing publishes nothing.  `now` is Unix seconds; `step` is told the name of
        every stage before it begins.  Raises `LockedError` if another writer is active, at once
        unless the backend was told to wait for it.
        """

    def open(self) -> AbstractContextManager[View]:
        """Open the published revision for reading; it stays readable while others publish.

        Where the tree is all there is, without revisions, each look shows the newest one.
        """

    def has_objects(self, names: Iterable[str], stored_bytes: int | None = None) -> bool:
        """Whether all objects of these names (`data/xx/rest`) are stored.

        `stored_bytes` is what they have together, if that is known: a store that can lose the end
        of a file in a power failure looks at it.
        """

    def revision(self) -> Revision:
        """Return the published revision."""

    def algorithm(self) -> HashAlgorithm:
        """Return what names stored contents, and so the records of layers."""


def persist(work: Callable[[], T]) -> T:
    """Do something that has a transaction in it; again from its start if others were quicker.

    Raises `OvertakenError` if they were so `ATTEMPTS` times.
    """
    for number in range(1, ATTEMPTS):
        try:
            return work()
        except OvertakenError:
            time.sleep(SystemRandom().uniform(0, number * _PAUSE))  # so that one of two is first
    return work()
