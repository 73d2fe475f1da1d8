"""Keep objects and the signed files of a repository in a local directory.

Source: facts/cvmfs-format.md section 1.6.  An object appears under its name complete or not at all:
it is written in `data/txn` and renamed.  Objects are never changed, so nothing here needs a lock;
whoever switches revisions holds one.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cvmfs_publish.content.hashes import ContentHash, Suffix
from cvmfs_publish.errors import IntegrityError, RepositoryError

DIRECTORY_MODE, FILE_MODE = 0o755, 0o644  # as stock makes them
TEMPORARY_PREFIX = "cvmfs-publish-"  # of our files in data/txn; others belong to stock tools
_FULL = {
    errno.ENOSPC: "free some space, or move the storage to a larger file system",
    errno.EDQUOT: "free some space or have the quota raised",
    errno.EACCES: "run as the owner of the storage directory, or change its owner",
    errno.EPERM: "run as the owner of the storage directory, or change its owner",
    errno.EROFS: "mount the file system of the storage directory writable",
    errno.ENOENT: "make the folder, or correct its name in the configuration",
}


@contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turn operating-system errors into `RepositoryError`s that name the file and the remedy."""
    try:
        yield
    except OSError as error:
        subject = f" ({error.filename})" if error.filename else ""
        raise RepositoryError(
            f"{what}: {error.strerror}{subject}",
            hint=_FULL.get(error.errno or 0, "the published revision is untouched; try again"),
        ) from error


class LocalStore:
    """Objects below `<root>/data`.  Any number of processes may put objects at the same time."""

    def __init__(self, root: Path, *, remember: bool = False) -> None:
        """Use the directory `root`; `remember` in `used` what this instance is asked to put."""
        self.root = root
        self._data = os.fspath(root) + "/"
        self._temporary = f"{self._data}data/txn/{TEMPORARY_PREFIX}{os.getpid()}-"
        self._numbers = itertools.count()
        self.used: set[tuple[ContentHash, Suffix]] = set()
        self._remember = remember

    def create(self) -> None:
        """Make the directories of an empty store; those that exist are left alone.

        A web server of another user reads them, whatever umask the publisher has.
        """
        with storage_errors("creating the object store"):
            names = ["", "data", "data/txn", *(f"data/{number:02x}" for number in range(256))]
            for path in (self.root / name for name in names):
                if not path.is_dir():
                    path.mkdir(parents=True)
                    path.chmod(DIRECTORY_MODE)

    def put(self, stored: bytes, content_hash: ContentHash, kind: Suffix) -> bool:
        """Store an object of these bytes; return whether it is new.

        An object that exists with the right size is kept.  Raises OSError.
        """
        path = self._data + content_hash.path(kind)
        if self._remember:
            self.used.add((content_hash, kind))
        with suppress(FileNotFoundError):
            if os.stat(path).st_size == len(stored):  # noqa: PTH116 - called for every file
                return False
        self._replace(path, stored)
        return True

    def write(self, name: str, data: bytes) -> None:
        """Replace a file in the repository root, in one step and durably.  Raises OSError."""
        self._replace(self._data + name, data, durable=True)

    def prepare(self, data: bytes) -> Path:
        """Write a durable temporary file that `switch` can make visible.  Raises OSError."""
        path = self._temporary + str(next(self._numbers))
        self._write_file(path, data, durable=True)
        return Path(path)

    def switch(self, *prepared: tuple[Path, str]) -> None:
        """Rename prepared files over files of the repository root, in order.  Raises OSError."""
        for temporary, name in prepared:
            os.rename(temporary, self._data + name)  # noqa: PTH104
        self._sync_directory(self._data)

    def read(self, content_hash: ContentHash, kind: Suffix) -> bytes:
        """Return the stored bytes of an object, verified.

        Raises:
            IntegrityError: the object is missing or its bytes do not match its name.
        """
        path = content_hash.path(kind)
        try:
            stored = (self.root / path).read_bytes()
        except FileNotFoundError:
            raise IntegrityError(f"object {path} is missing from {self.root}") from None
        if content_hash.algorithm.digest(stored) != content_hash.digest:
            raise IntegrityError(f"object {path} in {self.root} is damaged: its hash differs")
        return stored

    def remove(self, content_hash: ContentHash, kind: Suffix) -> None:
        """Remove an object; no error if it is gone or cannot be removed."""
        with suppress(OSError):
            os.unlink(self._data + content_hash.path(kind))  # noqa: PTH108 - called for every file

    def has(self, name: str) -> bool:
        """Whether an object of this name, as below the root (`data/xx/rest`), is stored."""
        return os.path.exists(self._data + name)  # noqa: PTH110 - called for every file

    def sync(self) -> None:
        """Return when everything written so far survives a power failure."""
        descriptor = os.open(self._data, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code), self._data)
        finally:
            os.close(descriptor)

    def sweep(self) -> None:
        """Remove temporary files of writers that died.  Only while no other writer can be alive."""
        with suppress(FileNotFoundError):
            for path in (self.root / "data" / "txn").iterdir():
                if path.name.startswith(TEMPORARY_PREFIX):
                    path.unlink(missing_ok=True)

    def _replace(self, path: str, data: bytes, *, durable: bool = False) -> None:
        temporary = self._temporary + str(next(self._numbers))
        try:
            self._write_file(temporary, data, durable=durable)
            os.rename(temporary, path)  # noqa: PTH104
        except OSError:
            with suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108
            raise
        if durable:
            self._sync_directory(os.path.dirname(path))  # noqa: PTH120

    @staticmethod
    def _write_file(path: str, data: bytes, *, durable: bool) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(path, flags, 0o666)
        try:
            os.fchmod(descriptor, FILE_MODE)
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @staticmethod
    def _sync_directory(path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
