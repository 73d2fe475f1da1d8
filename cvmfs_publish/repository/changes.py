"""What a transaction is about to change in a plain tree: kept in memory, read as if it were done.

For backends that write nothing before the transaction ends.  What is here says where things go,
never how they get there.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from cvmfs_publish.errors import RepositoryError
from cvmfs_publish.layers.tree import Node, RepoPath, encode_name
from cvmfs_publish.repository.base import Dated, View


class Base(View, Protocol):
    """The tree as it is."""

    def node(self, path: RepoPath) -> Node | None:
        """Return the entry at `path`; None if there is none."""

    def modified_at(self, path: RepoPath) -> int | None:
        """See `repository.base.Dated`."""


@dataclass(frozen=True, slots=True)
class NewFile:
    """A small file."""

    data: bytes


@dataclass(frozen=True, slots=True)
class NewLink:
    """A symbolic link."""

    target: str


@dataclass(frozen=True, slots=True)
class NewDirectory:
    """A directory; `is_nested` if it deserves a catalog of its own where there are catalogs."""

    is_nested: bool


@dataclass(frozen=True, slots=True)
class NewTree:
    """A sandbox."""

    number: int  # its own within the transaction
    view: View  # of what is in it


New = NewFile | NewLink | NewDirectory | NewTree


class Changes:
    """See `repository.base.View`: the tree as it will be."""

    def __init__(self, base: Base, now: int) -> None:
        self._base = base
        self._now = now
        self.entries: dict[RepoPath, New] = {}
        self.cleared: set[RepoPath] = set()  # what is there now, and all below it, goes away
        self._below: dict[RepoPath, set[str]] = {}  # names of new entries by directory

    @property
    def changed(self) -> bool:
        return bool(self.entries or self.cleared)

    # reading

    def read_file(self, path: RepoPath) -> bytes | None:
        entry, view, below = self._find(path)
        if isinstance(entry, NewFile):
            return entry.data
        return view.read_file(below) if view is not None else None

    def read_symlink(self, path: RepoPath) -> str | None:
        entry, view, below = self._find(path)
        if isinstance(entry, NewLink):
            return entry.target
        return view.read_symlink(below) if view is not None else None

    def is_directory(self, path: RepoPath) -> bool:
        entry, view, below = self._find(path)
        if entry is not None:
            return isinstance(entry, NewDirectory | NewTree)
        return view is not None and view.is_directory(below)

    def list_names(self, path: RepoPath) -> list[tuple[str, bool]]:
        if not self.is_directory(path):
            return []
        entry, view, below = self._find(path)
        if isinstance(entry, NewTree):
            view, below = entry.view, ""
        found = dict(view.list_names(below)) if view is not None else {}
        for name in list(found):
            if posixpath.join(path, name) in self.cleared:
                del found[name]
        for name in self._below.get(path, ()):
            found[name] = self.is_directory(posixpath.join(path, name))
        return sorted(found.items(), key=lambda each: encode_name(each[0]))

    def modified_at(self, path: RepoPath) -> int | None:
        """See `repository.base.Dated`."""
        entry, found, below = self._find(path)
        if entry is not None:
            return self._now
        view: object = found
        return view.modified_at(below) if isinstance(view, Dated) else None

    def find_files(
        self, top: RepoPath, name: str, excluded: Collection[str] = ()
    ) -> Iterator[tuple[RepoPath, bytes]]:
        """See `repository.base.Searchable`."""
        stack = [top]
        while stack:
            directory = stack.pop()
            below = []
            for found, is_directory in self.list_names(directory):
                path = f"{directory}/{found}"
                if is_directory and found not in excluded:
                    below.append(path)
                elif found == name and (data := self.read_file(path)) is not None:
                    yield path, data
            stack += reversed(below)

    def _find(self, path: RepoPath) -> tuple[New | None, View | None, RepoPath]:
        """Return the new entry at a path, or else in which view, and where there, to look."""
        entry = self.entries.get(path)
        if entry is not None:
            return entry, None if not isinstance(entry, NewDirectory) else self._old(path), path
        for above in _above(path):
            found = self.entries.get(above)
            if isinstance(found, NewTree):
                return None, found.view, path[len(above) + 1 :]
            if found is not None and not isinstance(found, NewDirectory):
                return None, None, path
        return None, self._old(path), path

    def _old(self, path: RepoPath) -> Base | None:
        """Return the tree as it is, unless nothing of what it has there will stay."""
        gone = path in self.cleared or any(above in self.cleared for above in _above(path))
        return None if gone else self._base

    # writing

    def make_directories(self, path: RepoPath, nested: Iterable[RepoPath] = ()) -> None:
        wanted = set(nested)
        done = ""
        for name in path.split("/") if path else ():
            done = posixpath.join(done, name)
            if self.is_directory(done):
                continue
            if self._exists(done):
                raise RepositoryError(
                    f"/{done} is in the way: it is no directory",
                    hint="an image of this name and one below it cannot both be published",
                )
            self.put(done, NewDirectory(done in wanted))

    def put_file(self, path: RepoPath, data: bytes) -> None:
        if self.read_file(path) != data:
            self._replace(path, NewFile(data))

    def put_symlink(self, path: RepoPath, target: str) -> None:
        if self.read_symlink(path) != target:
            self._replace(path, NewLink(target))

    def place_tree(self, path: RepoPath, tree: NewTree) -> None:
        self.remove(path)
        self._check_parent(path)
        self.put(path, tree)

    def remove(self, path: RepoPath) -> None:
        prefix = path + "/"
        for gone in [p for p in self.entries if p == path or p.startswith(prefix)]:
            self._forget(gone)
        self.cleared = {p for p in self.cleared if not p.startswith(prefix)}
        if self._exists(path):
            self.cleared.add(path)

    def _replace(self, path: RepoPath, entry: New) -> None:
        if self.is_directory(path):
            raise RepositoryError(f"/{path} is a directory, which nothing may replace")
        self._check_parent(path)
        old = self._base.node(path) if path in self.cleared else None
        if old is not None and (old.is_file or old.is_symlink):
            self.cleared.discard(path)  # replaced in one step, so that readers never miss it
        self.put(path, entry)
        if self._is_as_before(path, entry):
            self._forget(path)

    def _is_as_before(self, path: RepoPath, entry: New) -> bool:
        base = self._old(path)
        if base is None:
            return False
        if isinstance(entry, NewFile):
            return base.read_file(path) == entry.data
        return isinstance(entry, NewLink) and base.read_symlink(path) == entry.target

    def _check_parent(self, path: RepoPath) -> None:
        parent = posixpath.dirname(path)
        if not self.is_directory(parent):
            raise RepositoryError(f"/{parent} is no directory: nothing can be put into it")

    def _exists(self, path: RepoPath) -> bool:
        entry, view, _ = self._find(path)
        return entry is not None or (view is self._base and self._base.node(path) is not None)

    def put(self, path: RepoPath, entry: New) -> None:
        """Note an entry, whatever was noted of it before."""
        self.entries[path] = entry
        directory, name = posixpath.split(path)
        self._below.setdefault(directory, set()).add(name)

    def _forget(self, path: RepoPath) -> None:
        self.entries.pop(path)
        directory, name = posixpath.split(path)
        self._below[directory].discard(name)


def _above(path: RepoPath) -> Iterator[RepoPath]:
    """Yield the directories above a path, the nearest first, without the root."""
    while path := posixpath.dirname(path):
        yield path
