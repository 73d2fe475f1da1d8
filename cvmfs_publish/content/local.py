"""Keep objects and the signed files of a repository in a local directory.

Source: facts/cvmfs-format.md section 1.6.  An object appears under its name complete or not at all:
it is written in `data/txn` and renamed.  Objects are never changed, so nothing here needs a lock;
whoever switches revisions holds one.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import itertools
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cvmfs_publish.content.hashes import ContentHash, Suffix
from cvmfs_publish.content.store import (
    SHARDS,
    Fetched,
    Lock,
    MissingError,
    ObjectId,
    Replacement,
    StoredObject,
)
from cvmfs_publish.errors import IntegrityError, LockedError, RepositoryError

DIRECTORY_MODE, FILE_MODE = 0o755, 0o644  # as stock makes them
TEMPORARY_PREFIX = "cvmfs-publish-"  # of our files in data/txn; others belong to stock tools
PIECE = 1024 * 1024  # bytes handed over at a time
SMALL = 64 * 1024  # bytes; an object up to this size is read at once
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


def sync_file_system(path: str | Path) -> None:
    """Return when everything written to the file system of a directory survives a power failure."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), os.fspath(path))
    finally:
        os.close(descriptor)


class LocalStore:
    """See `content.store.ContentStore`.  Any number of processes may put objects together."""

    def __init__(self, root: Path, *, remember: bool = True) -> None:
        """Use the directory `root`; `remember` in `used` what this instance is asked to put."""
        self.root = root
        self.location = str(root)
        self._prefix = os.fspath(root) + "/"  # pathlib would take longer than the system calls
        # In a container every process has the same number, also the one that was killed.
        unique = f"{os.getpid()}-{secrets.token_hex(4)}-"
        self._temporary = f"{self._prefix}data/txn/{TEMPORARY_PREFIX}{unique}"
        self._owner: tuple[int, int] | None = None  # of the repository, once it is asked for
        self._numbers = itertools.count()
        self.used: set[ObjectId] = set()
        self._remember = remember

    def create(self) -> None:
        """Make the directories of an empty store; those that exist are left alone.

        A web server of another user reads them, whatever umask the publisher has.
        """
        with storage_errors("creating the object store"):
            names = ["", "data", "data/txn", *(f"data/{shard}" for shard in SHARDS)]
            for path in (self.root / name for name in names):
                if not path.is_dir():
                    path.mkdir(parents=True, exist_ok=True)  # another may be as quick
                    path.chmod(DIRECTORY_MODE)
                    self._give_to_owner(path)

    def description(self, sharers: int = 1) -> dict[str, Any]:
        return {"kind": "local", "root": os.fspath(self.root)}

    # objects

    def put(self, stored: bytes, content_hash: ContentHash, kind: Suffix) -> bool:
        path = self._prefix + content_hash.path(kind)
        if self._remember:
            self.used.add((content_hash, kind))
        with suppress(FileNotFoundError):
            if os.stat(path).st_size == len(stored):  # noqa: PTH116 - called for every file
                return False
        self._replace(path, stored)
        return True

    def put_many(self, objects: Sequence[tuple[bytes, ContentHash, Suffix]]) -> list[bool]:
        done: list[tuple[ContentHash, Suffix]] = []
        result = []
        try:
            for stored, content_hash, kind in objects:
                new = self.put(stored, content_hash, kind)
                if new:
                    done.append((content_hash, kind))
                result.append(new)
        except OSError:
            with suppress(OSError):  # whoever asked will not hear of these
                self.remove(content_hash.path(kind) for content_hash, kind in done)
            raise
        return result

    def read(self, content_hash: ContentHash, kind: Suffix) -> bytes:
        name = content_hash.path(kind)
        stored = b"".join(self.pieces(name))
        if content_hash.algorithm.digest(stored) != content_hash.digest:
            raise IntegrityError(f"object {name} in {self.root} is damaged: its hash differs")
        return stored

    def read_many(self, objects: Iterable[ObjectId]) -> Iterator[bytes]:
        prefix, flags = self._prefix, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        for content_hash, kind in objects:
            try:
                descriptor = os.open(prefix + content_hash.path(kind), flags)
                try:
                    stored = os.read(descriptor, SMALL)
                finally:
                    os.close(descriptor)
            except OSError:
                stored = b""
            # What is large, missing or strange is left to `read`, which says what is wrong.
            if content_hash.algorithm.digest(stored) != content_hash.digest:
                stored = self.read(content_hash, kind)
            yield stored

    def has_all(self, names: Iterable[str]) -> bool:
        exists, prefix = os.path.exists, self._prefix  # called for every file
        return all(exists(prefix + name) for name in names)

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            with suppress(FileNotFoundError):
                os.unlink(self._prefix + name)  # noqa: PTH108 - called for every file

    def objects(self, shard: str) -> Iterator[StoredObject]:
        with suppress(FileNotFoundError), os.scandir(f"{self._prefix}data/{shard}") as entries:
            for entry in entries:
                found = entry.stat(follow_symlinks=False)
                yield StoredObject(f"data/{shard}/{entry.name}", found.st_size, int(found.st_mtime))

    # any file

    def size(self, name: str) -> int | None:
        path = self._prefix + name
        try:
            found = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise RepositoryError(f"{path}: {error.strerror}") from error
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def pieces(self, name: str) -> Iterator[bytes]:
        path = self._prefix + name
        try:
            # not blocking: nobody may be writing to what turns out to be a fifo
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                found = os.fstat(descriptor)
                if not stat.S_ISREG(found.st_mode):
                    raise MissingError(f"{path} is no regular file")
                # One byte more than there should be, so that the end is seen at once.
                while piece := os.read(descriptor, min(found.st_size + 1, PIECE)):
                    yield piece
                    if len(piece) == found.st_size:
                        break
            finally:
                os.close(descriptor)
        except (FileNotFoundError, NotADirectoryError):
            raise MissingError(f"{path} is missing") from None
        except OSError as error:
            raise RepositoryError(f"{path} cannot be read: {error.strerror}") from error

    def close(self) -> None:
        """Nothing is held open."""

    # the files of the root

    def fetch(self, name: str, limit: int) -> Fetched | None:
        version = self._version(name)
        try:
            data = b"".join(self.pieces(name))
        except MissingError:
            return None
        if len(data) > limit:
            raise IntegrityError(f"{self._prefix}{name} has more than {limit} bytes")
        return Fetched(data, version or "")

    def write(self, name: str, data: bytes) -> None:
        self._replace(self._prefix + name, data, durable=True)

    def prepare(self, name: str, data: bytes, expected: str | None) -> Replacement:
        path = self._temporary + str(next(self._numbers))
        try:
            self._write_file(path, data, durable=True)
        except FileNotFoundError:
            if not self._restore_folders():
                raise
            self._write_file(path, data, durable=True)
        except OSError:
            with suppress(OSError):
                os.unlink(path)  # noqa: PTH108
            raise
        return Replacement(name, data, expected, path)

    def replace(self, replacement: Replacement) -> None:
        found = self._version(replacement.name)
        if found != replacement.expected:
            raise LockedError(
                f"{replacement.name} in {self.root} was changed by somebody else meanwhile",
                hint="nothing was published; find out who else writes here, then try again",
            )
        os.rename(replacement.temporary, self._prefix + replacement.name)  # noqa: PTH104
        self._sync_directory(self._prefix)

    def _version(self, name: str) -> str | None:
        try:
            found = os.stat(self._prefix + name)  # noqa: PTH116
        except FileNotFoundError:
            return None
        return f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}"

    def sync(self) -> None:
        sync_file_system(self._prefix)

    def sweep(self) -> None:
        with suppress(FileNotFoundError):
            for path in (self.root / "data" / "txn").iterdir():
                if path.name.startswith(TEMPORARY_PREFIX):
                    path.unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[Lock]:
        """Hold the directory against other writers; the kernel frees it if we die."""
        with storage_errors("locking the repository"):
            descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LockedError(
                    f"the repository in {self.root} is locked: another publisher is writing to it",
                    hint="wait for it to end, then try again",
                ) from None
            except OSError as error:
                raise RepositoryError(
                    f"{self.root} cannot be locked: {error.strerror}",
                    hint="keep the repository on a file system with flock",
                ) from error
            yield _Held()
        finally:
            os.close(descriptor)

    def _replace(self, path: str, data: bytes, *, durable: bool = False) -> None:
        try:
            self._write_and_rename(path, data, durable=durable)
        except FileNotFoundError:
            if not self._restore_folders():
                raise
            self._write_and_rename(path, data, durable=durable)

    def _restore_folders(self) -> bool:
        """Make folders that are missing: copies of repositories come without the empty ones.

        Return whether there is a repository at all: its file system may not be mounted.
        """
        exists = os.path.isdir(self._prefix + "data")  # noqa: PTH112
        if exists:
            self.create()
        return exists

    def _write_and_rename(self, path: str, data: bytes, *, durable: bool) -> None:
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

    def _write_file(self, path: str, data: bytes, *, durable: bool) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(path, flags, 0o666)
        try:
            os.fchmod(descriptor, FILE_MODE)
            self._give_to_owner(descriptor)
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            if durable:
                os.fsync(descriptor)
        except OSError as error:
            error.filename = error.filename or path  # the kernel does not say it of a descriptor
            raise
        finally:
            os.close(descriptor)

    def _give_to_owner(self, file: int | Path) -> None:
        """Let who owns the repository own what root writes: stock tools work as that user."""
        if os.geteuid() != 0:
            return
        if self._owner is None:
            found = os.stat(self._prefix)  # noqa: PTH116
            self._owner = found.st_uid, found.st_gid
        if self._owner != (0, 0):
            with suppress(OSError):  # where root is nobody: NFS, user namespaces
                os.chown(file, *self._owner)

    @staticmethod
    def _sync_directory(path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class _Held:
    """A lock of the kernel, which is not lost while the process lives."""

    def check(self) -> None:
        pass
