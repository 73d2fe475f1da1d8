"""Compare a tree with one as it is stored in a repository, or as it is seen in a folder.

Contents are compared by the sha256 of their bytes, however they are stored.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.layers.tree import Node, RepoPath, Tree, decode_name, encode_name, node_of
from cvmfs_publish.repository.layouts import CATALOG_MARKER
from cvmfs_publish.repository.native.catalog import Row
from cvmfs_publish.repository.native.reader import Snapshot

BATCH = 64  # files handed to a thread at a time
READERS = max(8, os.cpu_count() or 1)  # threads; a server far away is waited for by several
PIECE = 1024 * 1024  # bytes read at a time
_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symbolic link",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


class Difference(NamedTuple):
    """One thing that is not as it should be."""

    path: str  # below the sandbox, absolute below the repository for records and names
    what: str
    expected: str  # "" where nothing is expected
    found: str  # "" where nothing was found


class Uncompared(NamedTuple):
    """Something that could not be looked at, which is no difference."""

    path: str  # "" if it is about the whole tree
    reason: str


_Pair = tuple[RepoPath, Node, Node]  # expected and found


class Published(Protocol):
    """A tree that is compared."""

    uncompared: list[Uncompared]

    def entries(self) -> Iterator[tuple[RepoPath, Node]]:
        """Yield every entry, the root as ""; where a file's content is stored is not looked at."""

    def content(self, path: RepoPath) -> Iterator[bytes]:
        """Yield the content of a file; several threads may.

        Raises `IntegrityError` if it is damaged, OSError if it cannot be read.
        """

    def tell_xattrs(self) -> bool:
        """Whether extended attributes that are not expected are worth a word."""


# what is found


class StoredTree:
    """A sandbox as it is stored in a repository."""

    def __init__(self, snapshot: Snapshot, sandbox: RepoPath) -> None:
        self.uncompared: list[Uncompared] = []
        self._snapshot = snapshot
        self._sandbox = sandbox
        self._rows: dict[RepoPath, Row] = {}

    def entries(self) -> Iterator[tuple[RepoPath, Node]]:
        root = self._snapshot.lookup(self._sandbox)
        if root is None or not root.node.is_dir:
            return
        yield "", root.node
        skip = len(self._sandbox) + 1
        catalogs = {self._sandbox}
        for row in self._snapshot.walk(self._sandbox):
            directory, _, name = row.path.rpartition("/")
            if name == CATALOG_MARKER and directory in catalogs and _is_marker(row.node):
                continue
            if row.is_mountpoint:
                catalogs.add(row.path)
            path = row.path[skip:]
            if row.node.is_file:
                self._rows[path] = row
            yield path, row.node

    def content(self, path: RepoPath) -> Iterator[bytes]:
        return self._snapshot.iter_content(self._rows[path])

    def tell_xattrs(self) -> bool:
        return True


class FolderTree:
    """A sandbox as it is seen in a folder: mounted, or exported.  Links are never followed."""

    def __init__(self, root: Path) -> None:
        self.uncompared: list[Uncompared] = []
        self._root = os.fsencode(root)
        self._owners: set[tuple[int, int]] = set()

    def entries(self) -> Iterator[tuple[RepoPath, Node]]:
        yield "", self._node(b"", os.lstat(self._root))
        stack = [b""]
        while stack:
            prefix = stack.pop()
            try:
                with os.scandir(self._root + b"/" + prefix) as found:
                    children = sorted(found, key=lambda entry: entry.name)
            except OSError as error:
                self._skip(prefix, f"directory cannot be read: {error.strerror}")
                continue
            for entry in children:
                path = prefix + entry.name
                node = self._node(path, entry.stat(follow_symlinks=False))
                if entry.name == _MARKER and _is_marker(node):
                    continue
                yield decode_name(path), node
                if entry.is_dir(follow_symlinks=False):
                    stack.append(path + b"/")

    def _node(self, path: bytes, found: os.stat_result) -> Node:
        place = self._root + b"/" + path
        kind = stat.S_IFMT(found.st_mode)
        return Node(
            mode=found.st_mode,
            uid=found.st_uid,
            gid=found.st_gid,
            mtime=found.st_mtime_ns // 1_000_000_000,
            mtime_ns=found.st_mtime_ns % 1_000_000_000,
            size=found.st_size if kind == stat.S_IFREG else 0,
            target=decode_name(os.readlink(place)) if kind == stat.S_IFLNK else "",  # noqa: PTH115
            device=found.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0,
            xattrs=self._xattrs(path) if kind != stat.S_IFLNK else (),
        )

    def _xattrs(self, path: bytes) -> tuple[tuple[str, bytes], ...]:
        place = self._root + b"/" + path
        try:
            names = os.listxattr(place, follow_symlinks=False)
            return tuple(
                (name, os.getxattr(place, name, follow_symlinks=False)) for name in sorted(names)
            )
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.ENODATA):
                self._skip(path, f"extended attributes cannot be read: {error.strerror}")
            return ()

    def content(self, path: RepoPath) -> Iterator[bytes]:
        # not blocking: what was a file a moment ago may be a fifo now
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(self._root + b"/" + encode_name(path), flags)
        try:
            while piece := os.read(descriptor, PIECE):
                yield piece
        finally:
            os.close(descriptor)

    def tell_xattrs(self) -> bool:
        """Clients and file systems have attributes of their own."""
        return False

    def _skip(self, path: bytes, reason: str) -> None:
        self.uncompared.append(Uncompared(decode_name(path), reason))


_MARKER = CATALOG_MARKER.encode()


def _is_marker(node: Node) -> bool:
    """Whether this can be what marks a catalog: an image has no entry of that name."""
    return node.is_file and node.size == 0


# comparing


def compare(
    tree: Tree, published: Published, advance: Callable[[int, int], None]
) -> tuple[list[Difference], int]:
    """Return how a published tree differs from the expected one, and the bytes compared.

    `advance` is told the bytes of contents that were compared, and those to compare.

    Raises:
        IntegrityError: the published tree is damaged so much that it cannot be listed.
    """
    expected = {"": tree.root.node}
    expected.update((path, node_of(entry)) for path, entry in tree.walk())
    pairs: list[_Pair] = []
    differences: list[Difference] = []
    for path, found in published.entries():
        wanted = expected.pop(path, None)
        if wanted is None:
            differences.append(Difference(path, "not expected", "", _kind(found)))
        else:
            pairs.append((path, wanted, found))
    for path, wanted in expected.items():
        differences.append(Difference(path, "missing", _kind(wanted), ""))
    has_owners = _has_owners(pairs, published)
    for path, wanted, found in pairs:
        differences += _compare_nodes(path, wanted, found, published, has_owners=has_owners)
    files = [(path, wanted, found) for path, wanted, found in pairs if _are_files(wanted, found)]
    differences += _compare_contents(files, published, advance)
    differences.sort(key=lambda difference: encode_name(difference.path))
    return differences, sum(found.size for _, _, found in files)


def _are_files(wanted: Node, found: Node) -> bool:
    return wanted.is_file and found.is_file and wanted.content is not None


def _has_owners(pairs: list[_Pair], published: Published) -> bool:
    """Whether a folder shows the owners of a tree, or one for all of it.

    An export belongs to who made it, and a client may claim everything for its user.
    """
    if not isinstance(published, FolderTree):
        return True
    owners = {(found.uid, found.gid) for _, _, found in pairs}
    if len(owners) != 1 or {(wanted.uid, wanted.gid) for _, wanted, _ in pairs} == owners:
        return True
    uid, gid = owners.pop()
    published.uncompared.append(Uncompared("", f"owners: everything belongs to {uid}:{gid} here"))
    return False


def _compare_nodes(
    path: RepoPath, wanted: Node, found: Node, published: Published, *, has_owners: bool
) -> Iterator[Difference]:
    if stat.S_IFMT(wanted.mode) != stat.S_IFMT(found.mode):
        yield Difference(path, "type", _kind(wanted), _kind(found))
        return
    looked_at = {
        "mode": (f"{stat.S_IMODE(wanted.mode):04o}", f"{stat.S_IMODE(found.mode):04o}"),
        "size": (str(wanted.size), str(found.size)),
        "mtime": _times(wanted, found, exact=published.tell_xattrs()),
        "link target": (wanted.target, found.target),
        "device": (_device(wanted), _device(found)),
    }
    if has_owners:
        looked_at["owner"] = (f"{wanted.uid}:{wanted.gid}", f"{found.uid}:{found.gid}")
    for what, (old, new) in looked_at.items():
        if old != new:
            yield Difference(path, what, old, new)
    wanted_xattrs, found_xattrs = dict(wanted.xattrs), dict(found.xattrs)
    for name in sorted(wanted_xattrs.keys() | found_xattrs.keys()):
        old_value, new_value = wanted_xattrs.get(name), found_xattrs.get(name)
        if old_value is None and not published.tell_xattrs():
            continue
        if old_value != new_value:
            what = f"extended attribute {name}"
            yield Difference(path, what, _value(old_value), _value(new_value))


def _times(wanted: Node, found: Node, *, exact: bool) -> tuple[str, str]:
    """Return both times; a client that knows whole seconds only has told no lie."""
    if not exact and found.mtime_ns == 0:
        return str(wanted.mtime), str(found.mtime)
    return f"{wanted.mtime}.{wanted.mtime_ns:09}", f"{found.mtime}.{found.mtime_ns:09}"


def _compare_contents(
    files: list[_Pair],
    published: Published,
    advance: Callable[[int, int], None],
) -> list[Difference]:
    total = sum(found.size for _, _, found in files)
    done = 0
    differences: list[Difference] = []

    def look(batch: list[_Pair]) -> tuple[list[Difference], int]:
        found: list[Difference] = []
        for path, wanted, _ in batch:
            found += _compare_content(path, wanted, published)
        return found, sum(node.size for _, _, node in batch)

    with ThreadPoolExecutor(READERS, thread_name_prefix="verify") as pool:
        for found, size in pool.map(look, _batches(files)):
            differences += found
            done += size
            advance(done, total)
    return differences


def _compare_content(path: RepoPath, wanted: Node, published: Published) -> Iterator[Difference]:
    expected = wanted.content.hash if wanted.content is not None else None
    if expected is None:
        return
    digest = hashlib.sha256()
    try:
        for piece in published.content(path):
            digest.update(piece)
    except IntegrityError as error:
        yield Difference(path, "content", _sha256(expected.digest), str(error))
        return
    except OSError as error:
        reason = f"content cannot be read: {error.strerror}"
        published.uncompared.append(Uncompared(path, reason))
        return
    if digest.digest() != expected.digest:
        yield Difference(path, "content", _sha256(expected.digest), _sha256(digest.digest()))


def _batches(
    files: Iterable[tuple[RepoPath, Node, Node]],
) -> Iterator[list[_Pair]]:
    found = iter(files)
    while batch := list(islice(found, BATCH)):
        yield batch


def _sha256(digest: bytes) -> str:
    return f"sha256:{digest.hex()}"


def _kind(node: Node) -> str:
    return _KINDS.get(stat.S_IFMT(node.mode), f"entry of mode {node.mode:o}")


def _device(node: Node) -> str:
    return f"{os.major(node.device)}:{os.minor(node.device)}"


def _value(value: bytes | None) -> str:
    return "" if value is None else repr(value)[1:]
