"""Write the tree of an image into a plain tree of files.

Everything is made below one new directory that belongs to the transaction; names come from a tree
in memory, directories are opened without following links, and links are only created.  So no byte
of an image leads outside.

Equal files are hard links of one file: equal content, mode, owner, time and attributes, so that no
image changes another.
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
from dataclasses import replace

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

Contents = Callable[[RepoPath, Node], Iterator[bytes]]  # of a file, verified; called by threads

WRITERS = 4  # threads; decompressing and hashing run outside the interpreter lock
BATCH = 200  # files handed to a thread at a time
_SECOND = 1_000_000_000  # nanoseconds
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_READ_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV)  # of this file system
_NO_XATTRS = (errno.ENOTSUP, errno.EPERM, errno.EACCES, errno.EOPNOTSUPP)


class FilePool:
    """Files that sandboxes share, each under the hash of what it is: `<folder>/xx/…`."""

    def __init__(self, folder: Folder, top: RepoPath) -> None:
        """Use the directory `top`, which exists."""
        self._folder = folder
        self._top = top
        self.works = True  # this file system has hard links

    def take(self, key: str, directory: int, name: bytes, expected: Node, traits: Traits) -> bool:
        """Link the file of that key to a name; whether there is one that still is what it was."""
        if not self.works:
            return False
        try:
            with self._folder.parent(self._place(key)) as (pool, own):
                os.link(own, name, src_dir_fd=pool, dst_dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            if error.errno in _NO_LINKS:
                self.works = False
            elif error.errno == errno.EMLINK:
                self._forget(key)  # it has as many names as a file may have: begin another
            elif error.errno != errno.ENOENT:
                raise
            return False
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if _is_same(found, expected, traits):
            return True
        os.unlink(name, dir_fd=directory)
        self._forget(key)  # somebody has changed it
        return False

    def give(self, key: str, directory: int, name: bytes) -> None:
        """Let others share a file that is complete."""
        if not self.works:
            return
        try:
            try:
                self._give(key, directory, name)
            except FileNotFoundError:
                with self._folder.directory(self._top) as pool, suppress(FileExistsError):
                    os.mkdir(key[:2], 0o700, dir_fd=pool)
                self._give(key, directory, name)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            self.works = False

    def _give(self, key: str, directory: int, name: bytes) -> None:
        with self._folder.parent(self._place(key)) as (pool, own), suppress(FileExistsError):
            os.link(name, own, src_dir_fd=directory, dst_dir_fd=pool, follow_symlinks=False)

    def _forget(self, key: str) -> None:
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
            self._pool.give(key, directory, name)

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


def _key(node: Node, traits: Traits) -> str:
    """Return a name that only files have which may be the same file."""
    content = node.content
    stored = ",".join(map(str, content.hashes())) if content is not None else ""
    is_plain = content is not None and not content.compressed
    owner = (node.uid, node.gid) if traits.owners else ()
    text = repr((node.mode, owner, node.size, node.mtime, node.mtime_ns, node.xattrs))
    return hashlib.sha256(f"{text} {is_plain} {stored}".encode()).hexdigest()


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
