"""Write a published sandbox as an ordinary directory: for a node without CernVM-FS, or a laptop.

The directory appears complete or not at all.  Nothing outside it can be reached: every path is made
of names of one catalog below directories made here, names are checked, and links are only created,
never followed.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cvmfs_publish.errors import InputError, IntegrityError, RepositoryError
from cvmfs_publish.layers.tree import RepoPath
from cvmfs_publish.repository.native.catalog import (
    MARKER,
    Row,
)
from cvmfs_publish.repository.native.reader import Snapshot

WRITERS = 4  # threads; decompressing and hashing run outside the interpreter lock
BATCH = 200  # files handed to a thread at a time


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    entries: int
    bytes: int  # of file contents
    skipped_xattrs: int  # the target file system could not take them


def export_tree(snapshot: Snapshot, path: RepoPath, target: Path) -> Exported:
    """Write the directory `path` of a revision to `target`, which must not exist or be empty.

    Files belong to the caller; modes and times are those of the repository.

    Raises:
        InputError: `path` is no directory, or `target` is not free.
        IntegrityError: the repository is damaged; `target` is untouched.
        RepositoryError: the file system cannot take the tree; `target` is untouched.
    """
    row = snapshot.lookup(path)
    if row is None or not row.node.is_dir:
        raise InputError(f"/{path} is no directory of {snapshot.manifest.name}")
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise InputError(f"{target} exists and is no directory", hint="name another one")
    if target.is_dir() and any(target.iterdir()):
        raise InputError(f"{target} is not empty", hint="name a directory that does not exist")
    target = target.absolute()
    is_there = target.is_dir()
    name = f".{target.name}.{secrets.token_hex(6)}.partial"
    partial = target / name if is_there else target.with_name(name)
    try:
        partial.mkdir(mode=0o700, parents=True)
        result = _Writer(snapshot, path, partial).write(row)
        if is_there:  # it may be a mount point, or somebody's current directory: fill it
            partial.chmod(0o700)
            for child in list(partial.iterdir()):
                child.rename(target / child.name)
            partial.rmdir()
            _finish(os.fspath(target), row)
        else:
            partial.rename(target)
    except OSError as error:
        raise RepositoryError(
            f"exporting to {target}: {error.strerror}"
            + (f" ({error.filename[:200]})" if isinstance(error.filename, str) else ""),
            hint="the paths of this image are longer than this system can open"
            if error.errno == errno.ENAMETOOLONG
            else "free some space, or name a directory on another file system",
        ) from error
    finally:
        remove_tree(partial)
    return result


class _Writer:
    def __init__(self, snapshot: Snapshot, base: RepoPath, root: Path) -> None:
        self._snapshot = snapshot
        self._skip = len(base) + 1 if base else 0
        self._base = base
        self._root = os.fspath(root)
        self._skipped_xattrs = 0

    def write(self, root: Row) -> Exported:
        """Make directories, fill them, then give directories their final mode and time."""
        directories: list[Row] = []
        files: list[Row] = []
        entries = size = 0
        for row in self._rows():
            entries += 1
            if row.node.is_dir:
                os.mkdir(self._place(row), 0o700)  # noqa: PTH102
                directories.append(row)
            elif row.node.is_file:
                files.append(row)
                size += row.node.size
            else:
                self._special(row)
        with ThreadPoolExecutor(WRITERS) as pool:
            for _ in pool.map(self._files, _batches(files)):
                pass
        for row in reversed(directories):
            _finish(self._place(row), row)
        _finish(self._root, root)
        return Exported(entries, size, self._skipped_xattrs)

    def _rows(self) -> Iterator[Row]:
        for row in self._snapshot.walk(self._base):
            name = row.path.rpartition("/")[2]
            if name in ("", ".", "..") or "\0" in name or not row.path.startswith(self._base):
                raise IntegrityError(f"catalog names an impossible entry {row.path!r}")
            if name != MARKER:
                yield row

    def _place(self, row: Row) -> str:
        return f"{self._root}/{row.path[self._skip :]}"

    def _special(self, row: Row) -> None:
        place, node = self._place(row), row.node
        if node.is_symlink:
            os.symlink(node.target, place)  # noqa: PTH211
        elif stat.S_ISFIFO(node.mode):
            os.mkfifo(place)
            os.chmod(place, stat.S_IMODE(node.mode))  # noqa: PTH101
        else:
            raise IntegrityError(f"/{row.path} is a device or socket, which is never published")
        time = node.mtime * 1_000_000_000 + node.mtime_ns
        os.utime(place, ns=(time, time), follow_symlinks=False)

    def _files(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self._file(row)

    def _file(self, row: Row) -> None:
        place = self._place(row)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(place, flags, 0o600)
        try:
            for piece in self._snapshot.iter_content(row):
                view = memoryview(piece)
                while view:
                    view = view[os.write(descriptor, view) :]
            self._attributes(descriptor, row)
            os.fchmod(descriptor, stat.S_IMODE(row.node.mode))
            time = row.node.mtime * 1_000_000_000 + row.node.mtime_ns
            os.utime(descriptor, ns=(time, time))
        finally:
            os.close(descriptor)

    def _attributes(self, place: int | str, row: Row) -> None:
        for name, value in row.node.xattrs:
            try:
                os.setxattr(place, name, value)
            except OSError:
                self._skipped_xattrs += 1


def _finish(place: str, row: Row) -> None:
    """Give a directory that is complete its mode and time."""
    os.chmod(place, stat.S_IMODE(row.node.mode))  # noqa: PTH101
    time = row.node.mtime * 1_000_000_000 + row.node.mtime_ns
    os.utime(place, ns=(time, time))


def _batches(rows: list[Row]) -> Iterator[list[Row]]:
    for start in range(0, len(rows), BATCH):
        yield rows[start : start + BATCH]


def remove_tree(partial: Path) -> None:
    """Remove a directory and all in it: however deep, unwritable directories too.

    Level by level: what is in a directory is moved up before the directory is removed, so that no
    path gets long and nothing recurses.
    """
    prefix = f".{secrets.token_hex(6)}-"
    count = 0
    with suppress(OSError):
        partial.chmod(0o700)
        while directories := [p for p in partial.iterdir() if p.is_dir() and not p.is_symlink()]:
            for directory in directories:
                directory.chmod(0o700)
                for child in directory.iterdir():
                    if child.is_dir() and not child.is_symlink():
                        child.chmod(0o700)  # a directory is renamed only by who may write to it
                        child.rename(partial / f"{prefix}{count}")
                        count += 1
                    else:
                        child.unlink()
                directory.rmdir()
        for path in partial.iterdir():
            path.unlink()
        partial.rmdir()
