"""Keep images as single files, for nodes that CernVM-FS cannot serve: the promises of their store.

An artefact is named by the digest of its bytes and is never changed.  It appears under its name
complete or not at all: it is written to a partial file of nobody else's, made durable, and moved.
A partial file is locked while its writer lives, so that whoever comes next can tell what was left
behind.  The only other file is the list for people, `LIST_FILE`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from cvmfs_publish.content.store import StoredObject
from cvmfs_publish.errors import RepositoryError

LIST_FILE = "fallback.txt"
MAX_LIST_BYTES = 64 * 1024**2  # 150,000 names
NAME = re.compile(r"[0-9a-f]{64}\.(?:sif|tar\.gz)")
_PARTIAL = re.compile(r"\.cvmfs-publish-[0-9a-f]{16}\.partial")
FOLDER_MODE, FILE_MODE = 0o755, 0o644  # a web server of another user reads them
_REMEDIES = {
    errno.ENOSPC: "free some space, or move `fallback.store` to a larger file system",
    errno.EDQUOT: "free some space or have the quota raised",
    errno.EACCES: "run as the owner of `fallback.store`, or change its owner",
    errno.EPERM: "run as the owner of `fallback.store`, or change its owner",
    errno.EROFS: "mount the file system of `fallback.store` writable",
    errno.ENOENT: "make the folder above it, or correct `fallback.store`",
    errno.ENOTDIR: "correct `fallback.store`: it has to be a folder",
    errno.EFBIG: "keep `fallback.store` on a file system that takes files of this size",
}


class ArtefactError(RepositoryError):
    """The file of an image for nodes without CernVM-FS cannot be written, stored or removed."""

    kind = "fallback"


class ArtefactStore(Protocol):
    """Where artefacts are.  All methods raise `ArtefactError` if the store refuses or is full."""

    location: str  # for messages: a folder or s3://bucket/prefix

    def partial(self) -> AbstractContextManager[BinaryIO]:
        """Open a file to write an artefact to; it is gone at the end of the block."""

    def keep(self, partial: BinaryIO, name: str) -> None:
        """Put a partial file in its place, durably, whatever was there."""

    def size(self, name: str) -> int | None:
        """Return the bytes of an artefact; None if there is none."""

    def artefacts(self) -> Iterator[StoredObject]:
        """Yield everything that is named as artefacts are, in no particular order."""

    def remove(self, names: Iterable[str]) -> None:
        """Remove artefacts; no error for one that is gone."""

    def read_list(self) -> bytes | None:
        """Return the list for people; None if there is none."""

    def write_list(self, data: bytes) -> None:
        """Put the list for people in place, whatever was there."""

    def sweep(self) -> None:
        """Remove what writers that died have left behind."""

    def close(self) -> None:
        """Release connections."""


@contextmanager
def artefact_errors(what: str) -> Iterator[None]:
    """Turn operating-system errors into `ArtefactError`s that name the file and the remedy."""
    try:
        yield
    except OSError as error:
        subject = f" ({error.filename})" if error.filename else ""
        raise ArtefactError(
            f"{what}: {error.strerror or error}{subject}",
            hint=_REMEDIES.get(error.errno or 0, "look at `fallback.store`, then try again"),
        ) from error


class Partials:
    """Partial files in a folder that is made when it is needed."""

    def __init__(self, folder: Path, *, parents: bool = False) -> None:
        """`parents`: folders above it are made too; else they may not be mounted."""
        self.folder = folder
        self._parents = parents

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """See `ArtefactStore.partial`."""
        path = self.folder / f".cvmfs-publish-{secrets.token_hex(8)}.partial"
        with artefact_errors(f"writing to {self.folder}"):
            if not self.folder.is_dir():
                self.folder.mkdir(parents=self._parents)
                self.folder.chmod(FOLDER_MODE)
            file = path.open("x+b")
        try:
            with artefact_errors(f"writing to {self.folder}"):
                with suppress(OSError):  # no locks there: then nothing is ever swept
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.fchmod(file.fileno(), FILE_MODE)
            yield file
        finally:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            with suppress(OSError):  # what could not be written was told already
                file.close()

    def sweep(self) -> None:
        """See `ArtefactStore.sweep`; a file whose writer lives is locked."""
        with suppress(OSError):
            for path in self.folder.iterdir():
                if _PARTIAL.fullmatch(path.name):
                    with suppress(OSError), path.open("rb") as file:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        path.unlink(missing_ok=True)


class FolderStore:
    """See `ArtefactStore`.  Partial files are beside the artefacts, so that a rename moves them."""

    def __init__(self, root: Path) -> None:
        """Use the folder `root`, which is made when something is written."""
        self.root = root
        self.location = str(root)
        self._partials = Partials(root)

    @contextmanager
    def partial(self) -> Iterator[BinaryIO]:
        with self._partials.open() as file:
            yield file

    def keep(self, partial: BinaryIO, name: str) -> None:
        with artefact_errors(f"writing {self.root / name}"):
            partial.flush()
            os.fsync(partial.fileno())
            Path(partial.name).rename(self.root / name)
            descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def size(self, name: str) -> int | None:
        with artefact_errors(f"looking for {self.root / name}"):
            try:
                found = (self.root / name).lstat()
            except (FileNotFoundError, NotADirectoryError):
                return None
            return found.st_size if stat.S_ISREG(found.st_mode) else None

    def artefacts(self) -> Iterator[StoredObject]:
        with artefact_errors(f"listing {self.root}"):
            if not self.root.exists():
                return
            for path in self.root.iterdir():
                found = path.lstat()
                if NAME.fullmatch(path.name) and stat.S_ISREG(found.st_mode):
                    yield StoredObject(path.name, found.st_size, int(found.st_mtime))

    def remove(self, names: Iterable[str]) -> None:
        with artefact_errors(f"removing from {self.root}"):
            for name in names:
                (self.root / name).unlink(missing_ok=True)

    def read_list(self) -> bytes | None:
        with artefact_errors(f"reading {self.root / LIST_FILE}"):
            try:
                with (self.root / LIST_FILE).open("rb") as file:
                    return file.read(MAX_LIST_BYTES)
            except FileNotFoundError:
                return None

    def write_list(self, data: bytes) -> None:
        with self.partial() as file:
            with artefact_errors(f"writing {self.root / LIST_FILE}"):
                file.write(data)
            self.keep(file, LIST_FILE)

    def sweep(self) -> None:
        self._partials.sweep()

    def close(self) -> None:
        """Nothing is held open."""
