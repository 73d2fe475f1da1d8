"""Change the tree of a repository: load the catalogs on the way, edit them, store them again.

Only catalogs that change, and those above them, are rewritten; whatever else is in a catalog stays
as it is, also rows this program would not have written.
Source: facts/cvmfs-format.md sections 3.9 to 3.11 (catalog_mgr_rw.cc).
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm, Suffix
from cvmfs_publish.content.objects import compress, decompress
from cvmfs_publish.content.store import ContentStore, ObjectId
from cvmfs_publish.errors import IntegrityError, RepositoryError
from cvmfs_publish.layers.tree import Content, Node, RepoPath, Tree
from cvmfs_publish.repository.native.build import TreeBuilder, marker_row, store_catalog
from cvmfs_publish.repository.native.catalog import (
    COUNTERS,
    DIRECTORY_SIZE,
    FLAG_MOUNTPOINT,
    FLAG_NESTED_ROOT,
    Catalog,
    CatalogRef,
    Counters,
    Row,
    count_row,
    join_path,
    kind_flags,
    split_path,
)
from cvmfs_publish.repository.native.upgrade import SPECIAL_SINCE

MAX_CATALOG_BYTES = 1024**3  # uncompressed; a catalog of five million entries
MAX_FILE_BYTES = 64 * 1024**2  # uncompressed; of the records this program writes


@dataclass(slots=True)
class _Mount:
    """An open catalog and what is known to differ from its stored form."""

    prefix: RepoPath
    catalog: Catalog
    totals: Counters  # of the stored form; zeros for a new catalog
    nested: dict[RepoPath, CatalogRef]
    changed: bool = False
    recounted: bool = False  # the special files below were counted when it was opened
    # What changes in the counters: those of its own entries, and of the catalogs nested in it.
    own: Counters = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))
    below: Counters = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))

    def add(self, row: Row) -> None:
        """Put an entry where there is none."""
        self.catalog.put([row])
        for name, amount in count_row(row):
            self.own[name] += amount

    def drop(self, row: Row) -> None:
        """Remove an entry, nothing below it."""
        self.catalog.remove(row.path)
        for name, amount in count_row(row):
            self.own[name] -= amount

    def nest(self, path: RepoPath, ref: CatalogRef) -> None:
        """Name a nested catalog, or the new state of one."""
        self.own["nested"] += path not in self.nested
        self.nested[path] = ref
        self.catalog.set_nested(path, ref)

    def unnest(self, path: RepoPath) -> None:
        """Forget a nested catalog; one that was never stored is not named yet."""
        self.own["nested"] -= self.nested.pop(path, None) is not None
        self.catalog.remove_nested(path)

    def add_below(self, totals: Counters, sign: int) -> None:
        for name in COUNTERS:
            self.below[name] += sign * totals[name]


class TreeEditor:
    """Edits one revision into the next.  Nothing is visible until somebody publishes the root.

    Every method may raise `IntegrityError` where the repository is damaged, and OSError.
    """

    def __init__(
        self, store: ContentStore, algorithm: HashAlgorithm, root: CatalogRef, timestamp: int
    ) -> None:
        """Start from the stored root catalog; `timestamp` (Unix seconds) is that of the commit."""
        self._store = store
        self._algorithm = algorithm
        self._timestamp = timestamp
        self._new: list[ObjectId] = []  # objects that were not there before
        self._mounts: dict[RepoPath, _Mount] = {}
        self._old_root = root
        self._mount("", root)

    def close(self) -> None:
        for mount in self._mounts.values():
            mount.catalog.close()

    def discard(self) -> None:
        """Remove the objects that were not there before: nothing will name them."""
        new, self._new = self._new, []
        with suppress(OSError, RepositoryError):  # `gc` finds what stays
            self._store.remove([content_hash.path(kind) for content_hash, kind in new])

    @property
    def changed(self) -> bool:
        return any(mount.changed for mount in self._mounts.values())

    def store(self, data: bytes) -> Content:
        """Store the content of a small file."""
        stored = compress(data)
        content_hash = ContentHash.of(stored, self._algorithm)
        if self._store.put(stored, content_hash, Suffix.DATA):
            self._new.append((content_hash, Suffix.DATA))
        return Content(content_hash)

    def get(self, path: RepoPath) -> Row | None:
        """Return the entry at `path` as it is now."""
        return self._locate(path).catalog.get(path)

    def children(self, path: RepoPath) -> list[Row]:
        """Return the entries directly below a directory."""
        return self._locate(path).catalog.children(path)

    def read_file(self, path: RepoPath) -> bytes | None:
        """Return the content of a small file as it is now; None if there is none."""
        row = self.get(path)
        content = row.node.content if row is not None else None
        if content is None or content.hash is None:
            return None
        stored = self._store.read(content.hash, Suffix.DATA)
        return decompress(stored, MAX_FILE_BYTES) if content.compressed else stored

    def stored_catalog(self, path: RepoPath) -> CatalogRef | None:
        """Return the stored catalog that begins at directory `path`; None if none does."""
        ref = self._locate(split_path(path)[0]).nested.get(path)
        mount = self._mounts.get(path)
        return ref if mount is None or not mount.changed else None

    def make_directories(self, path: RepoPath, nested: Iterable[RepoPath] = ()) -> None:
        """Make a directory and its parents; those new ones named in `nested` get a catalog."""
        wanted = set(nested)
        done = ""
        for name in path.split("/") if path else ():
            done = join_path(done, name)
            row = self.get(done)
            if row is None:
                self._make_directory(done, nested=done in wanted)
            elif not row.node.is_dir:
                raise RepositoryError(
                    f"/{done} is in the way: it is no directory",
                    hint="an image of this name and one below it cannot both be published",
                )

    def put_file(self, path: RepoPath, data: bytes) -> None:
        """Write a small file into an existing directory; an equal one is left alone."""
        content = self.store(data)
        mode = stat.S_IFREG | 0o644
        old = self.get(path)
        if old is not None and old.node.content == content and old.node.mode == mode:
            return
        self._put(Node(mode, mtime=self._timestamp, size=len(data), content=content), path)

    def put_symlink(self, path: RepoPath, target: str) -> None:
        """Point a symbolic link in an existing directory; one that points there is left alone."""
        old = self.get(path)
        if old is not None and old.node.is_symlink and old.node.target == target:
            return
        self._put(Node(stat.S_IFLNK | 0o777, mtime=self._timestamp, target=target), path)

    def put_tree(self, path: RepoPath, tree: Tree, nested: set[RepoPath]) -> None:
        """Put a tree at `path`, in catalogs of its own, in place of whatever is there.

        Args:
            path: in an existing directory.
            nested: further catalog roots, relative to the tree.
        """
        self.remove(path)
        empty = self.store(b"")
        builder = TreeBuilder(self._store, self._algorithm, empty, self._timestamp, self._new)
        built = builder.build(path, tree.root, {join_path(path, cut) for cut in nested})
        parent, _ = split_path(path)
        mount = self._locate(parent)
        mount.add(built.root._replace(flags=built.root.flags | FLAG_MOUNTPOINT))
        mount.nest(path, built.ref)
        mount.add_below(built.totals, 1)
        self._touch(parent, links=1)

    def remove(self, path: RepoPath) -> None:
        """Remove an entry and everything below it, nested catalogs included."""
        parent, _ = split_path(path)
        mount = self._locate(parent)
        row = mount.catalog.get(path)
        if row is None:
            return
        self._remove_rows(mount, row)
        self._touch(parent, links=-1 if row.node.is_dir else 0)

    def commit(self) -> tuple[CatalogRef, int]:
        """Store every changed catalog, leaf to root; return the root's reference and revision."""
        for mount in sorted(self._mounts.values(), key=lambda m: m.prefix.count("/"), reverse=True):
            if mount.prefix and mount.changed:
                ref, totals = self._finish(mount)
                parent = self._locate(split_path(mount.prefix)[0])
                parent.nest(mount.prefix, ref)
                parent.add_below(totals, 1)
                parent.add_below(mount.totals, -1)
                parent.changed = True
        root = self._mounts[""]
        root.catalog.set_property("previous_revision", self._old_root.hash)
        ref, _ = self._finish(root)
        self._new.clear()  # soon the reflog names the root
        return ref, root.catalog.revision

    # details

    def _mount(self, prefix: RepoPath, ref: CatalogRef) -> _Mount:
        stored = self._store.read(ref.hash, Suffix.CATALOG)
        catalog = Catalog.open(decompress(stored, MAX_CATALOG_BYTES))
        try:
            mount = self._open_mount(prefix, catalog, f"catalog {ref.hash} of /{prefix}")
        except (IntegrityError, RepositoryError):
            catalog.close()
            raise
        self._mounts[prefix] = mount
        return mount

    def _open_mount(self, prefix: RepoPath, catalog: Catalog, what: str) -> _Mount:
        totals = catalog.total_counters()
        if catalog.upgrade(what) >= SPECIAL_SINCE:
            return _Mount(prefix, catalog, totals, catalog.nested())
        # Nobody counted the special files below, and the oldest do not say how large the catalogs
        # below are; clients do not care, but every check does.
        special = 0
        for path, ref in catalog.nested().items():
            size, found = survey(self._store, ref)
            special += found
            catalog.set_nested(path, CatalogRef(ref.hash, ref.size or size))
        _, below = catalog.stored_counters()
        own = catalog.count_own()
        catalog.set_counters(own, below | {"special": special})
        above = self._parent(prefix)
        if above is not None and above.recounted:  # so those here are counted there already
            totals["special"] = own["special"] + special
        return _Mount(prefix, catalog, totals, catalog.nested(), recounted=True)

    def _parent(self, prefix: RepoPath) -> _Mount | None:
        above = [p for p in self._mounts if prefix and (not p or prefix.startswith(p + "/"))]
        return self._mounts[max(above, key=len)] if above else None

    def _locate(self, path: RepoPath) -> _Mount:
        """Return the catalog that lists what is in directory `path`, and has its root row."""
        mount = self._mounts[""]
        parts = path.split("/") if path else []
        for count in range(1, len(parts) + 1):
            prefix = "/".join(parts[:count])
            ref = mount.nested.get(prefix)
            if prefix in self._mounts and (ref is not None or self._mounts[prefix].changed):
                mount = self._mounts[prefix]
            elif ref is not None:
                mount = self._mount(prefix, ref)
        return mount

    def _put(self, node: Node, path: RepoPath) -> None:
        parent, _ = split_path(path)
        mount = self._locate(parent)
        old = mount.catalog.get(path)
        if old is not None and old.node.is_dir:
            raise RepositoryError(f"/{path} is a directory, which nothing may replace")
        if old is not None:
            mount.drop(old)
        mount.add(Row(path, node, kind_flags(node)))
        self._touch(parent, links=0)

    def _make_directory(self, path: RepoPath, *, nested: bool) -> None:
        parent, _ = split_path(path)
        mount = self._locate(parent)
        node = Node(stat.S_IFDIR | 0o755, mtime=self._timestamp, size=DIRECTORY_SIZE)
        flags = kind_flags(node)
        mount.add(Row(path, node, flags | (FLAG_MOUNTPOINT if nested else 0), 2))
        if nested:
            catalog = Catalog.create(path)
            zeros = dict.fromkeys(COUNTERS, 0)
            catalog.set_counters(zeros, zeros)
            new = _Mount(path, catalog, dict(zeros), {}, changed=True)
            new.add(Row(path, node, flags | FLAG_NESTED_ROOT, 2))
            new.add(marker_row(path, self._timestamp, self.store(b"")))
            self._mounts[path] = new
        self._touch(parent, links=1)

    def _touch(self, path: RepoPath, *, links: int) -> None:
        """Note a change in a directory: its time and link count, in both rows of a transition."""
        mount = self._locate(path)
        mount.changed = True
        self._update_row(mount, path, links)
        if path and mount.prefix == path:
            above = self._locate(split_path(path)[0])
            above.changed = True
            self._update_row(above, path, links)

    def _update_row(self, mount: _Mount, path: RepoPath, links: int) -> None:
        row = mount.catalog.get(path)
        if row is None:
            raise RepositoryError(
                f"catalog of /{mount.prefix} has no entry for its directory /{path}",
                hint="the repository is damaged: run `cvmfs-publish check`",
            )
        if not row.node.is_dir:
            raise RepositoryError(f"/{path} is no directory: nothing can be put into it")
        node = row.node._replace(mtime=self._timestamp, mtime_ns=0)
        mount.catalog.put([row._replace(node=node, hardlinks=row.hardlinks + links)])

    def _remove_rows(self, mount: _Mount, row: Row) -> None:
        if row.is_mountpoint:
            mount.add_below(self._totals_below(mount, row.path), -1)
            for prefix in [
                p for p in self._mounts if p == row.path or p.startswith(row.path + "/")
            ]:
                self._mounts.pop(prefix).catalog.close()
            mount.unnest(row.path)
        elif row.node.is_dir:
            for child in mount.catalog.children(row.path):
                self._remove_rows(mount, child)
        mount.drop(row)

    def _totals_below(self, mount: _Mount, path: RepoPath) -> Counters:
        """Return what a nested catalog adds to the counters of the one it is nested in."""
        if path in self._mounts:
            return self._mounts[path].totals
        try:
            return self._stored_totals(path, mount.nested[path])
        except (KeyError, IntegrityError):
            # What is damaged must be replaceable: it counted whatever the others there do not.
            _, left = mount.catalog.stored_counters()
            totals = {name: left[name] + mount.below[name] for name in COUNTERS}
            for other, ref in mount.nested.items():
                if other != path:
                    for name, value in self._stored_totals(other, ref).items():
                        totals[name] -= value
            return totals

    def _stored_totals(self, path: RepoPath, ref: CatalogRef) -> Counters:
        if path not in self._mounts:
            # Opened as for a change, because what an old one counts depends on its schema.
            self._mount(path, ref)
        return self._mounts[path].totals

    def _finish(self, mount: _Mount) -> tuple[CatalogRef, Counters]:
        catalog = mount.catalog
        own, below = catalog.stored_counters()
        catalog.set_counters(
            {name: own[name] + mount.own[name] for name in COUNTERS},
            {name: below[name] + mount.below[name] for name in COUNTERS},
        )
        mount.own = dict.fromkeys(COUNTERS, 0)
        mount.below = dict.fromkeys(COUNTERS, 0)
        catalog.set_property("revision", catalog.revision + 1)
        catalog.set_property("last_modified", self._timestamp)
        if mount.prefix:
            # Not required, and a replica that skipped revisions fails on a swept one (8.2).
            catalog.delete_property("previous_revision")
        ref = store_catalog(catalog, self._store, self._algorithm, self._new)
        return ref, catalog.total_counters()


def survey(store: ContentStore, ref: CatalogRef) -> tuple[int, int]:
    """Return a catalog's size, and how many special files are in it and in all below it."""
    data = decompress(store.read(ref.hash, Suffix.CATALOG), MAX_CATALOG_BYTES)
    with Catalog.open(data) as catalog:
        below = sum(survey(store, nested)[1] for nested in catalog.nested().values())
        return len(data), catalog.count_special() + below
