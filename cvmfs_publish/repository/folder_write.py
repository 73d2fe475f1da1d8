"""Write the tree of an image into a plain tree of files.

Everything is made below one new directory that belongs to the transaction; names come from a tree
in memory, directories are opened without following links, and links are only created.  So no byte
of an image leads outside.

Equal files are hard links of one file: equal content, mode, owner, time and attributes, so that no
image changes another.  Where only the content is equal, a file system with reflinks stores it once.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.layers.tree import (
    Directory,
    Node,
    RepoPath,
    Tree,
    encode_name,
)
from cvmfs_publish.layers.treedigest import list_tree
from cvmfs_publish.repository.folder import Folder
from cvmfs_publish.repository.folder_listing import Listing, Traits
from cvmfs_publish.repository.reflink import clone

Share = Literal["auto", "hardlink", "reflink"]
Contents = Callable[[RepoPath, Node], Iterator[bytes]]  # of a file, verified; called by threads

WRITERS = 4  # threads; decompressing and hashing run outside the interpreter lock
BATCH = 200  # files handed to a thread at a time
_SECOND = 1_000_000_000  # nanoseconds
_DIGITS = 40  # of each half of a key: 160 bits, as content hashes have
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_READ_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV)  # of this file system
_NO_XATTRS = (errno.ENOTSUP, errno.EPERM, errno.EACCES, errno.EOPNOTSUPP)


@dataclass(frozen=True, slots=True)
class FileKey:
    """What a file is: two with the same key may be one file, two of the same content share it."""

    content: str
    rest: str  # mode, owner, time, attributes

    def __str__(self) -> str:
        return f"{self.content}-{self.rest}"


def write_new(
    folder: Folder, path: RepoPath, data: bytes, at: int | None = None, *, lasting: bool = False
) -> None:
    """Write a small file that is not there yet, readable for everybody.

    Args:
        folder: where.
        path: of the file.
        data: its content.
        at: its time, Unix seconds; now by default.
        lasting: return only when it is on the disk.
    """
    with folder.parent(path) as (above, name):
        descriptor = os.open(name, _NEW, 0o644, dir_fd=above)
    try:
        os.fchmod(descriptor, 0o644)
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        if at is not None:
            os.utime(descriptor, (at, at))
        if lasting:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


class FilePool:
    """Files that sandboxes share, each under what it is: `<folder>/xx/<content>-<rest>`."""

    def __init__(self, folder: Folder, top: RepoPath, share: Share = "auto") -> None:
        """Use the directory `top`, which exists.

        `share`: `hardlink` only, `reflink` only, or `auto`: hard links of files that are equal in
        everything, reflinks where only the content is.
        """
        self._folder = folder
        self._top = top
        self.links = share != "reflink"  # files of several sandboxes are hard links of one
        self.clones = share != "hardlink"
        self.works = True  # this file system has hard links
        self._known: dict[str, dict[str, str]] = {}  # content → name, by shard
        self._mutex = threading.Lock()  # guards what is known

    def take(
        self, key: FileKey, directory: int, name: bytes, expected: Node, traits: Traits
    ) -> bool:
        """Link the file of that key to a name; whether there is one that still is what it was."""
        if not self.works or not self.links:
            return False
        try:
            with self._folder.parent(self._place(str(key))) as (pool, own):
                os.link(own, name, src_dir_fd=pool, dst_dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            if error.errno in _NO_LINKS:
                self.works = False
            elif error.errno == errno.EMLINK:
                self._forget(str(key))  # it has as many names as a file may have: begin another
            elif error.errno != errno.ENOENT:
                raise
            return False
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if _is_same(found, expected, traits):
            return True
        os.unlink(name, dir_fd=directory)
        self._forget(str(key))  # somebody has changed it
        return False

    def clone(self, key: FileKey, target: int, expected: Node, traits: Traits) -> bool:
        """Let the open, empty file share the blocks of one with that content; whether it does."""
        if not self.works or not self.clones or not expected.size:
            return False
        other = self._others(key.content).get(key.content)
        if other is None:
            return False
        try:
            with self._folder.open(self._place(other)) as source:
                if self._key_of(os.fstat(source), key.content, traits) != other:
                    self._drop(other)  # somebody has changed it, or it has attributes
                    return False
                if not clone(source, target):
                    self.clones = False
                    return False
        except FileNotFoundError:
            return False
        return os.fstat(target).st_size == expected.size

    def give(self, key: FileKey, directory: int, name: bytes, node: Node) -> None:
        """Let others share a file that is complete."""
        if not self.works or (not self.links and not self._is_wanted(key, node)):
            return
        try:
            try:
                self._give(str(key), directory, name)
            except FileNotFoundError:
                with self._folder.directory(self._top) as pool, suppress(FileExistsError):
                    os.mkdir(key.content[:2], 0o700, dir_fd=pool)
                self._give(str(key), directory, name)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            self.works = False
            return
        if self.clones:
            self._others(key.content).setdefault(key.content, str(key))

    def _give(self, key: str, directory: int, name: bytes) -> None:
        with self._folder.parent(self._place(key)) as (pool, own), suppress(FileExistsError):
            os.link(name, own, src_dir_fd=directory, dst_dir_fd=pool, follow_symlinks=False)

    def _is_wanted(self, key: FileKey, node: Node) -> bool:
        """Whether a file is one to clone others from, which is all that files are kept for."""
        is_known = self.clones and key.content in self._others(key.content)
        return self.clones and bool(node.size) and not node.xattrs and not is_known

    def _drop(self, key: str) -> None:
        """Clone nothing from a file any more; hard links of it are for `take` to judge."""
        self._known[key[:2]].pop(key.partition("-")[0], None)
        if not self.links:
            self._forget(key)

    def _others(self, content: str) -> dict[str, str]:
        """Return what there is in the shard of a content, listed once."""
        shard = content[:2]
        with self._mutex:
            if shard not in self._known:
                names = [name for name, _ in self._folder.names(f"{self._top}/{shard}")]
                self._known[shard] = {name.partition("-")[0]: name for name in names}
            return self._known[shard]

    def _key_of(self, found: os.stat_result, content: str, traits: Traits) -> str:
        """Return the name that a file of this content has, being what it is now."""
        seconds, nanoseconds = divmod(found.st_mtime_ns, _SECOND)
        node = Node(
            found.st_mode,
            uid=found.st_uid,
            gid=found.st_gid,
            size=found.st_size,
            mtime=seconds,
            mtime_ns=nanoseconds,
        )
        return str(FileKey(content, _rest(node, traits)))

    def _forget(self, key: str) -> None:
        self._known.get(key[:2], {}).pop(key.partition("-")[0], None)
        with suppress(FileNotFoundError), self._folder.parent(self._place(key)) as (pool, own):
            os.unlink(own, dir_fd=pool)

    def _place(self, key: str) -> RepoPath:
        return f"{self._top}/{key[:2]}/{key}"


def _is_same(found: os.stat_result, expected: Node, traits: Traits) -> bool:
    time = (found.st_mtime_ns // _SECOND, found.st_mtime_ns % _SECOND)
    return (
        stat.S_ISREG(found.st_mode)
        and found.st_mode == expected.mode
        and found.st_size == expected.size
        and time[0] == expected.mtime
        and (not traits.nanoseconds or time[1] == expected.mtime_ns)
        and (not traits.owners or (found.st_uid, found.st_gid) == (expected.uid, expected.gid))
    )


class TreeWriter:
    """Writes one tree.  For one use."""

    def __init__(
        self, folder: Folder, contents: Contents, traits: Traits, pool: FilePool | None = None
    ) -> None:
        """`traits`: what the file system is known to keep."""
        self._folder = folder
        self._contents = contents
        self._traits = traits
        self._pool = pool
        self._skipped_xattrs = threading.Event()

    def write(self, place: RepoPath, tree: Tree) -> Listing:
        """Write a tree to a new directory; return what is there now.

        The directory itself gets its final mode and time by `finish_directory`, once it is where it
        belongs: who is not root can move only directories they may write to.

        Raises OSError, and `IntegrityError` if contents are damaged or an entry is a device.
        """
        with self._folder.parent(place) as (directory, name):
            os.mkdir(name, 0o700, dir_fd=directory)
        directories: list[tuple[RepoPath, Node]] = []
        with ThreadPoolExecutor(WRITERS, "folder") as pool:
            waiting = []
            stack = [(place, tree.root)]
            while stack:
                path, entry = stack.pop()
                files = self._fill(path, entry)
                for start in range(0, len(files), BATCH):
                    batch = files[start : start + BATCH]
                    waiting.append(pool.submit(self._files, path, batch))
                for child_name, child in entry.children.items():
                    if isinstance(child, Directory):
                        directories.append((f"{path}/{child_name}", child.node))
                        stack.append((f"{path}/{child_name}", child))
            for each in waiting:
                each.result()
        for path, node in reversed(directories):
            self._finish(path, node)
        self._set_xattrs_of_directory(place, tree.root.node)
        traits = replace(self._traits, xattrs=not self._skipped_xattrs.is_set())
        return Listing(traits, tuple(list_tree(tree)))

    def _fill(self, path: RepoPath, entry: Directory) -> list[tuple[str, Node]]:
        """Make directories, links and fifos in a directory; return its files."""
        files = []
        with self._folder.directory(path) as directory:
            for name, child in entry.children.items():
                if isinstance(child, Directory):
                    os.mkdir(encode_name(name), 0o700, dir_fd=directory)
                elif child.is_file:
                    files.append((name, child))
                else:
                    self._special(directory, name, f"{path}/{name}", child)
        return files

    def _special(self, directory: int, name: str, path: RepoPath, node: Node) -> None:
        own = encode_name(name)
        if node.is_symlink:
            os.symlink(encode_name(node.target), own, dir_fd=directory)
        elif stat.S_ISFIFO(node.mode):
            os.mkfifo(own, 0o600, dir_fd=directory)
        else:
            raise IntegrityError(f"/{path} is a device or socket, which is never published")
        if self._traits.owners:
            os.chown(own, node.uid, node.gid, dir_fd=directory, follow_symlinks=False)
        if not node.is_symlink:
            os.chmod(own, stat.S_IMODE(node.mode), dir_fd=directory)
        os.utime(own, ns=_times(node), dir_fd=directory, follow_symlinks=False)

    def _files(self, path: RepoPath, files: list[tuple[str, Node]]) -> None:
        with self._folder.directory(path) as directory:
            for name, node in files:
                self._file(directory, encode_name(name), f"{path}/{name}", node)

    def _file(self, directory: int, name: bytes, path: RepoPath, node: Node) -> None:
        key = _key(node, self._traits)
        if self._pool is not None and self._pool.take(key, directory, name, node, self._traits):
            if node.xattrs and not _has_xattrs(directory, name, node):
                self._skipped_xattrs.set()
            return
        descriptor = os.open(name, _NEW, 0o600, dir_fd=directory)
        try:
            if self._pool is None or not self._pool.clone(key, descriptor, node, self._traits):
                for piece in self._contents(path, node):
                    view = memoryview(piece)
                    while view:
                        view = view[os.write(descriptor, view) :]
            self._attributes(descriptor, node)
        except OSError as error:
            error.filename = error.filename or path
            raise
        finally:
            os.close(descriptor)
        if self._pool is not None:
            self._pool.give(key, directory, name, node)

    def _attributes(self, descriptor: int, node: Node) -> None:
        if self._traits.owners:
            os.fchown(descriptor, node.uid, node.gid)
        self._xattrs(descriptor, node)
        os.fchmod(descriptor, stat.S_IMODE(node.mode))
        os.utime(descriptor, ns=_times(node))

    def _xattrs(self, descriptor: int, node: Node) -> None:
        for name, value in node.xattrs:
            try:
                os.setxattr(descriptor, name, value)
            except OSError as error:
                if error.errno not in _NO_XATTRS:
                    raise
                self._skipped_xattrs.set()

    def _set_xattrs_of_directory(self, path: RepoPath, node: Node) -> None:
        if node.xattrs:
            with self._folder.directory(path, to_list=True) as descriptor:
                self._xattrs(descriptor, node)

    def _finish(self, path: RepoPath, node: Node) -> None:
        self._set_xattrs_of_directory(path, node)
        finish_directory(self._folder, path, node, self._traits)


def finish_directory(folder: Folder, path: RepoPath, node: Node, traits: Traits) -> None:
    """Give a directory that is complete its owner, mode and time."""
    with folder.parent(path) as (above, name):
        descriptor = os.open(name, _READ_DIRECTORY, dir_fd=above)
    try:
        if traits.owners:
            os.fchown(descriptor, node.uid, node.gid)
        os.fchmod(descriptor, stat.S_IMODE(node.mode))
        os.utime(descriptor, ns=_times(node))
    finally:
        os.close(descriptor)


def _times(node: Node) -> tuple[int, int]:
    time = node.mtime * _SECOND + node.mtime_ns
    return time, time


def _key(node: Node, traits: Traits) -> FileKey:
    """Return a name that only files have which may be the same file."""
    content = node.content
    stored = ",".join(map(str, content.hashes())) if content is not None else ""
    is_plain = content is not None and not content.compressed
    text = f"{node.size} {is_plain} {stored}"
    return FileKey(hashlib.sha256(text.encode()).hexdigest()[:_DIGITS], _rest(node, traits))


def _rest(node: Node, traits: Traits) -> str:
    """Return what a file is beside its content."""
    owner = (node.uid, node.gid) if traits.owners else ()
    text = repr((node.mode, owner, node.size, node.mtime, node.mtime_ns, node.xattrs))
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def _has_xattrs(directory: int, name: bytes, node: Node) -> bool:
    """Whether a shared file could be given its attributes."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return False
    try:
        return all(os.getxattr(descriptor, key) == value for key, value in node.xattrs)
    except OSError:
        return False
    finally:
        os.close(descriptor)
