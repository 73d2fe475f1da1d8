"""A repository in memory: the quick twin of the real ones, for tests of what is built upon them."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NoReturn

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm
from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import RepositoryError
from cvmfs_publish.layers.tree import Content, Directory, Node, Tree, encode_name, node_of
from cvmfs_publish.layers.treedigest import summarise_tree
from cvmfs_publish.repository.base import Revision


class Folder:
    """What stands for a directory; of the root of an image, with the digest of what is in it."""

    def __init__(self, digest: Digest | None = None) -> None:
        self.digest = digest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Folder)

    __hash__ = None  # type: ignore[assignment]


@dataclass
class Link:
    target: str


Entry = Folder | Link | bytes


@dataclass
class MemoryTransaction:
    """Entries by path; see `repository.base.Transaction`."""

    now: int
    revision: int
    entries: dict[str, Entry]
    times: dict[str, int]

    def read_file(self, path: str) -> bytes | None:
        entry = self.entries.get(path)
        return entry if isinstance(entry, bytes) else None

    def read_symlink(self, path: str) -> str | None:
        entry = self.entries.get(path)
        return entry.target if isinstance(entry, Link) else None

    def is_directory(self, path: str) -> bool:
        return isinstance(self.entries.get(path), Folder)

    def list_names(self, path: str) -> list[tuple[str, bool]]:
        if not self.is_directory(path):
            return []
        below = [p for p in self.entries if p and posixpath.dirname(p) == path]
        names = sorted((posixpath.basename(p) for p in below), key=encode_name)
        return [(name, self.is_directory(f"{path}/{name}".lstrip("/"))) for name in names]

    def modified_at(self, path: str) -> int | None:
        return self.times.get(path)

    def ingestor(self, readers: int) -> NoReturn:
        raise NotImplementedError(readers)

    def iter_content(self, path: str, node: Node) -> NoReturn:
        raise NotImplementedError((path, node))

    def store(self, data: bytes) -> Content:
        return Content(ContentHash.of(data, HashAlgorithm.SHA1))

    def make_directories(self, path: str, nested: Iterable[str] = ()) -> None:
        parts = path.split("/") if path else []
        for count in range(1, len(parts) + 1):
            above = "/".join(parts[:count])
            if above not in self.entries:
                self._put(above, Folder())
                if above in set(nested):
                    self._put(f"{above}/.cvmfscatalog", b"")
            elif not self.is_directory(above):
                raise RepositoryError(f"/{above} is in the way")

    def put_file(self, path: str, data: bytes) -> None:
        self._put(path, data)

    def put_symlink(self, path: str, target: str) -> None:
        self._put(path, Link(target))

    def put_tree(self, path: str, tree: Tree) -> None:
        self.remove(path)
        self._put(path, Folder(summarise_tree(tree).digest))
        for below, entry in tree.walk():
            node = node_of(entry)
            content = Link(node.target) if node.is_symlink else b"content of an image"
            self._put(f"{path}/{below}", Folder() if isinstance(entry, Directory) else content)

    def tree_digest(self, path: str) -> Digest | None:
        entry = self.entries.get(path)
        return entry.digest if isinstance(entry, Folder) else None

    def tree_difference(self, path: str, tree: Tree, digest: Digest) -> str:
        raise NotImplementedError((path, tree, digest))

    def remove(self, path: str) -> None:
        for gone in [p for p in self.entries if p == path or p.startswith(path + "/")]:
            del self.entries[gone]

    def _put(self, path: str, entry: Entry) -> None:
        assert self.is_directory(posixpath.dirname(path)), f"{path} has no directory"
        if self.entries.get(path) != entry:
            assert not self.is_directory(path), f"{path} is a directory"
            self.entries[path] = entry
            self.times[path] = self.now


@dataclass
class MemoryRepository:
    """See `repository.base.Repository`."""

    number: int = 1
    entries: dict[str, Entry] = field(default_factory=lambda: {"": Folder()})
    times: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def transaction(
        self, now: int, step: Callable[[str], None] = lambda _: None
    ) -> Iterator[MemoryTransaction]:
        transaction = MemoryTransaction(now, self.number + 1, dict(self.entries), dict(self.times))
        yield transaction
        if transaction.entries != self.entries:
            step("done")
            self.number += 1
            self.entries, self.times = transaction.entries, transaction.times

    @contextmanager
    def open(self) -> Iterator[MemoryTransaction]:
        yield MemoryTransaction(0, self.number, dict(self.entries), dict(self.times))

    def has_objects(self, names: Iterable[str], stored_bytes: int | None = None) -> bool:
        return not list(names)

    def revision(self) -> Revision:
        return Revision(self.number, "", 0)

    def algorithm(self) -> HashAlgorithm:
        return HashAlgorithm.SHA1
