"""Read a plain tree of files, and reach what is in it without ever following one of its links.

Every path is walked from the root name by name, each directory opened without following links, so
whatever an image or another program put there, nothing outside the root is ever read or written.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from cvmfs_publish.content.local import storage_errors
from cvmfs_publish.errors import IntegrityError, RepositoryError
from cvmfs_publish.layers.tree import Node, RepoPath, decode_name, encode_name
from cvmfs_publish.repository.layouts import CATALOG_MARKER

T = TypeVar("T")

WORK = ".cvmfs-publish"  # at the root: what the publisher keeps for itself; no view shows it
MAX_FILE_BYTES = 1024**3  # of a file that is read at once
PIECE = 1024 * 1024  # bytes read at a time
_SECOND = 1_000_000_000  # nanoseconds
_WALK = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# not blocking: what was a file a moment ago may be a fifo now
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_NOTHING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # there is no such entry without links


class Folder:
    """A directory and what is below it; methods raise OSError."""

    def __init__(self, root: Path) -> None:
        """Name a directory, which may itself be reached by links; nothing is read yet."""
        self.root = root

    @contextmanager
    def parent(self, path: RepoPath) -> Iterator[tuple[int, bytes]]:
        """Yield an open directory and the name in it of the entry at `path`, which is not ""."""
        above, _, name = path.rpartition("/")
        with self.directory(above) as descriptor:
            yield descriptor, self._name(name)

    @contextmanager
    def directory(self, path: RepoPath, *, to_list: bool = False) -> Iterator[int]:
        """Yield an open directory, fit for names relative to it; `to_list`: and for its own."""
        descriptor = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in path.split("/") if path else ():
                below = os.open(self._name(name), _WALK, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = below
            if to_list:
                below = os.open(b".", _LIST, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = below
            yield descriptor
        finally:
            os.close(descriptor)

    def _name(self, name: str) -> bytes:
        if name in ("", ".", "..") or "\0" in name:
            raise OSError(errno.EINVAL, f"{name!r} is no name of an entry", os.fspath(self.root))
        return encode_name(name)

    def stat(self, path: RepoPath) -> os.stat_result | None:
        """Return what is known of the entry at `path`; None if there is none."""
        return _if_any(lambda: self._stat(path))

    def _stat(self, path: RepoPath) -> os.stat_result:
        if not path:
            return os.stat(self.root)  # noqa: PTH116 - the same call for both
        with self.parent(path) as (directory, name):
            return os.stat(name, dir_fd=directory, follow_symlinks=False)

    def readlink(self, path: RepoPath) -> str | None:
        """Return the text of a symbolic link; None if there is none."""

        def read() -> str:
            with self.parent(path) as (directory, name):
                return decode_name(os.readlink(name, dir_fd=directory))

        try:
            return _if_any(read)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return None
            raise

    def names(self, path: RepoPath) -> list[tuple[str, bool]]:
        """Return name and whether it is a directory for what is in a directory, in byte order."""

        def read() -> list[tuple[str, bool]]:
            with self.directory(path, to_list=True) as descriptor, os.scandir(descriptor) as found:
                return [
                    (decode_name(os.fsencode(entry.name)), entry.is_dir(follow_symlinks=False))
                    for entry in found
                ]

        return sorted(_if_any(read) or [], key=lambda each: encode_name(each[0]))

    @contextmanager
    def open(self, path: RepoPath) -> Iterator[int]:
        """Yield an open regular file; OSError if there is none."""
        with self.parent(path) as (directory, name):
            descriptor = os.open(name, _READ, dir_fd=directory)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.ENOENT, "no regular file", path)
            yield descriptor
        finally:
            os.close(descriptor)


def _if_any(look: Callable[[], T]) -> T | None:
    try:
        return look()
    except OSError as error:
        if error.errno in _NOTHING:
            return None
        raise


class FolderView:
    """A plain tree as a `repository.base.View`: each look shows what is there at that moment."""

    def __init__(self, folder: Folder, prefix: RepoPath = "") -> None:
        """Show what is below `prefix`."""
        self.folder = folder
        self._prefix = prefix

    def _place(self, path: RepoPath) -> RepoPath:
        return f"{self._prefix}/{path}".strip("/") if self._prefix else path

    def read_file(self, path: RepoPath) -> bytes | None:
        if not path:
            return None
        with self._reading():
            try:
                with self.folder.open(self._place(path)) as descriptor:
                    size = os.fstat(descriptor).st_size
                    if size > MAX_FILE_BYTES:
                        raise RepositoryError(f"/{path} has {size} bytes, too many for a record")
                    return _read_all(descriptor)
            except OSError as error:
                if error.errno in _NOTHING:
                    return None
                raise

    def read_symlink(self, path: RepoPath) -> str | None:
        with self._reading():
            return self.folder.readlink(self._place(path)) if path else None

    def is_directory(self, path: RepoPath) -> bool:
        with self._reading():
            found = self.folder.stat(self._place(path))
        return found is not None and stat.S_ISDIR(found.st_mode)

    def modified_at(self, path: RepoPath) -> int | None:
        """See `repository.base.Dated`."""
        with self._reading():
            found = self.folder.stat(self._place(path))
        return found.st_mtime_ns // _SECOND if found is not None else None

    def list_names(self, path: RepoPath) -> list[tuple[str, bool]]:
        with self._reading():
            found = self.folder.names(self._place(path))
        return [each for each in found if path or self._prefix or each[0] != WORK]

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
                elif found == name:
                    data = self.read_file(path)
                    if data is not None:
                        yield path, data
            stack += reversed(below)

    # see `repository.base.Walkable`

    def node(self, path: RepoPath) -> Node | None:
        with self._reading():
            found = self.folder.stat(self._place(path))
            if found is None:
                return None
            target = ""
            if stat.S_ISLNK(found.st_mode):
                target = self.folder.readlink(self._place(path)) or ""
            return _node(found, target)

    def walk(self, path: RepoPath) -> Iterator[tuple[RepoPath, Node]]:
        """Yield every entry below a directory; attributes are not looked at (`read_xattrs`)."""
        stack = self._children(path, "")[::-1]
        while stack:
            below, node = stack.pop()
            yield below, node
            if node.is_dir:
                stack += self._children(f"{path}/{below}", below + "/")[::-1]

    def _children(self, directory: RepoPath, prefix: str) -> list[tuple[RepoPath, Node]]:
        """Return what is in a directory; not what marks a catalog, which no image has."""
        found = []
        place = self._place(directory)
        with self._reading(), self.folder.directory(place, to_list=True) as descriptor:
            names = sorted(map(os.fsencode, os.listdir(descriptor)))  # noqa: PTH208
            for name in names:
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                target = ""
                if stat.S_ISLNK(status.st_mode):
                    target = decode_name(os.readlink(name, dir_fd=descriptor))
                node = _node(status, target)
                if name == _MARKER and node.is_file and not node.size:
                    continue
                found.append((prefix + decode_name(name), node))
        return found

    def iter_content(self, path: RepoPath, node: Node) -> Iterator[bytes]:
        """See `repository.base.Walkable`; the size is all there is to verify here."""
        size = 0
        with self._reading(), self.folder.open(self._place(path)) as descriptor:
            while piece := os.read(descriptor, PIECE):
                size += len(piece)
                yield piece
        if size != node.size:
            raise IntegrityError(f"/{path} has {size} bytes, {node.size} a moment ago")

    def read_xattrs(self, path: RepoPath, names: Collection[str]) -> tuple[tuple[str, bytes], ...]:
        """Return those of these extended attributes that a file or directory has, by name."""
        found = []
        with self._reading(), self.folder.parent(self._place(path)) as (directory, name):
            try:
                descriptor = os.open(name, _READ, dir_fd=directory)
            except OSError:
                return ()
            try:
                for attribute in sorted(names):
                    with suppress(OSError):
                        found.append((attribute, os.getxattr(descriptor, attribute)))
            finally:
                os.close(descriptor)
        return tuple(found)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with storage_errors(f"reading {self.folder.root}"):
            yield


_MARKER = CATALOG_MARKER.encode()


def _node(found: os.stat_result, target: str) -> Node:
    kind = stat.S_IFMT(found.st_mode)
    return Node(
        mode=found.st_mode,
        uid=found.st_uid,
        gid=found.st_gid,
        mtime=found.st_mtime_ns // _SECOND,
        mtime_ns=found.st_mtime_ns % _SECOND,
        size=found.st_size if kind == stat.S_IFREG else 0,
        target=target,
        device=found.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0,
    )


def _read_all(descriptor: int) -> bytes:
    found = []
    while piece := os.read(descriptor, PIECE):
        found.append(piece)
    return b"".join(found)
