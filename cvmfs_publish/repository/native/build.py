"""Turn a whole tree into new catalogs, stored leaf to root.

Source: facts/cvmfs-format.md sections 3.5 to 3.10.
"""

from __future__ import annotations

import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm, Suffix
from cvmfs_publish.content.objects import compress_catalog
from cvmfs_publish.content.store import ContentStore, ObjectId
from cvmfs_publish.layers.tree import Content, Directory, Node, RepoPath, Tree, node_of
from cvmfs_publish.repository.native.catalog import (
    COUNTERS,
    FLAG_MOUNTPOINT,
    FLAG_NESTED_ROOT,
    MARKER,
    Catalog,
    CatalogRef,
    Counters,
    Row,
    join_path,
    kind_flags,
)

PAGE_SIZE_LARGE = 4096  # bytes; for catalogs of more than `LARGE` rows (section 3.1)
LARGE = 2000


@dataclass(frozen=True, slots=True)
class Built:
    """A stored subtree: what the parent catalog has to say about it."""

    ref: CatalogRef
    root: Row  # with neither mountpoint nor nested-root flag
    totals: Counters  # what it adds to the parent's `subtree_` counters


class TreeBuilder:
    """Builds and stores the catalogs of one subtree."""

    def __init__(
        self,
        store: ContentStore,
        algorithm: HashAlgorithm,
        empty: Content,
        timestamp: int,
        new: list[ObjectId],
    ) -> None:
        """Prepare.

        Args:
            store: takes the catalogs.
            algorithm: of the repository.
            empty: the stored empty file.
            timestamp: of the commit, Unix seconds.
            new: catalogs that were not there before are added to it.
        """
        self._store = store
        self._algorithm = algorithm
        self._empty = empty
        self._timestamp = timestamp
        self._new = new

    def build(self, path: RepoPath, directory: Directory, nested: set[RepoPath]) -> Built:
        """Store the catalogs of everything below `path`; `nested` are absolute paths."""
        tree, skip = Tree(directory), len(path) + 1 if path else 0
        done: dict[RepoPath, Built] = {}
        # The deepest first, as a parent names what is below it.  A tree may be deeper than a stack.
        for place in sorted(nested, key=lambda place: place.count("/"), reverse=True):
            found = tree.find(place[skip:])
            if isinstance(found, Directory):
                done[place] = self._build_catalog(place, found, done)
        return self._build_catalog(path, directory, done)

    def _build_catalog(
        self, path: RepoPath, directory: Directory, done: dict[RepoPath, Built]
    ) -> Built:
        """Store one catalog; those directly below it are taken out of `done`."""
        root = Row(path, directory.node, kind_flags(directory.node), directory_links(directory))
        below = dict.fromkeys(COUNTERS, 0)
        refs: list[Built] = []
        rows = [
            root._replace(flags=root.flags | FLAG_NESTED_ROOT),
            marker_row(path, directory.node.mtime, self._empty),
        ]
        for row in self._entries(path, directory, done.keys()):
            built = done.pop(row.path, None)
            if built is None:
                rows.append(row)
                continue
            refs.append(built)
            rows.append(built.root._replace(flags=built.root.flags | FLAG_MOUNTPOINT))
            for name in COUNTERS:
                below[name] += built.totals[name]
        with Catalog.create(path, page_size=PAGE_SIZE_LARGE if len(rows) > LARGE else 1024) as new:
            new.put(rows)
            for built in refs:
                new.set_nested(built.root.path, built.ref)
            new.set_counters(new.count_own(), below)
            new.set_property("revision", 1)
            new.set_property("last_modified", self._timestamp)
            ref = store_catalog(new, self._store, self._algorithm, self._new)
            return Built(ref, root, new.total_counters())

    def _entries(
        self, path: RepoPath, directory: Directory, nested: Collection[RepoPath]
    ) -> Iterator[Row]:
        """Yield the rows of one catalog in order; nothing below directories in `nested`."""
        stack = [(path, directory)]
        while stack:
            prefix, here = stack.pop()
            for name in sorted(here.children):
                child = here.children[name]
                node, where = node_of(child), join_path(prefix, name)
                if not isinstance(child, Directory):
                    yield Row(where, node, kind_flags(node))
                    continue
                if where not in nested:
                    stack.append((where, child))
                yield Row(where, node, kind_flags(node), directory_links(child))


def directory_links(directory: Directory) -> int:
    """Return 2 + the number of sub-directories, the link count clients and check expect."""
    return 2 + sum(isinstance(child, Directory) for child in directory.children.values())


def marker_row(path: RepoPath, mtime: int, empty: Content) -> Row:
    """Return the row of the empty file that marks the root of a nested catalog."""
    node = Node(stat.S_IFREG | 0o644, mtime=mtime, content=empty)
    return Row(join_path(path, MARKER), node, kind_flags(node))


def store_catalog(
    catalog: Catalog,
    store: ContentStore,
    algorithm: HashAlgorithm,
    new: list[ObjectId] | None = None,
) -> CatalogRef:
    """Store a finished catalog, and add it to `new` if it was not there before.  Raises OSError."""
    data = catalog.serialize()
    stored = compress_catalog(data)
    content_hash = ContentHash.of(stored, algorithm)
    if store.put(stored, content_hash, Suffix.CATALOG) and new is not None:
        new.append((content_hash, Suffix.CATALOG))
    return CatalogRef(content_hash, len(data))
