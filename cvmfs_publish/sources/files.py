"""Read local files that hold images: state, digest and proven pieces of them.

Files may be swapped or written while they are read, also by somebody who wants to deceive: what
counts is what the open file gives, and every piece proves itself by its digest at its end.
"""

from __future__ import annotations

import hashlib
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import InputError, IntegrityError, PublishError
from cvmfs_publish.sources.base import ImageNotFoundError

PIECE = 1 << 20  # bytes read at a time


def open_file(path: Path, subject: str) -> BinaryIO:
    """Open a regular file; raise `ImageNotFoundError` or `InputError` if there is none to read."""
    try:
        # A FIFO without a writer would block for ever
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageNotFoundError(
            f"{subject}: there is no file {path}", hint="check the spelling of its path"
        ) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{subject}: {path} cannot be read: {reason}") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise InputError(
                f"{subject}: {path} is a directory", hint="an OCI layout is oci:DIR[:TAG]"
            )
        raise InputError(f"{subject}: {path} is not a regular file")
    return os.fdopen(descriptor, "rb")


def state_of(file: BinaryIO) -> str:
    """Return what differs when a file was changed or replaced, as far as its inode tells."""
    about = os.fstat(file.fileno())
    return f"{about.st_size} {about.st_mtime_ns} {about.st_ctime_ns} {about.st_dev} {about.st_ino}"


def digest_of(file: BinaryIO, subject: str, pinned: Digest | None = None) -> Digest:
    """Return the sha256 digest of a whole file; raise `IntegrityError` if another is promised."""
    with translated(subject):
        file.seek(0)
        hasher = hashlib.sha256()
        while piece := file.read(PIECE):
            hasher.update(piece)
        found = Digest("sha256", hasher.hexdigest())
    if pinned is not None and found != pinned:
        raise IntegrityError(
            f"{subject}: the file is {found}, not {pinned} as was asked for",
            hint="it was changed, or another file is meant",
        )
    return found


class translated:  # noqa: N801 - reads as a word, like contextlib's own
    """A context in which what the disk fails at is told as ours."""

    def __init__(self, subject: str) -> None:
        self._subject = subject

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, OSError):
            raise IntegrityError(
                f"{self._subject}: reading fails: {error.strerror}",
                hint="look at the disk it is on",
            ) from error


class Readable(Protocol):
    """Bytes that come once, in order."""

    def read(self, size: int, /) -> bytes:
        """Return 1 to `size` bytes, or b"" at the end."""

    def close(self) -> None: ...


class OneWayStream(ABC):
    """A `BlobStream` that is closed at its end and at its first error, which it then repeats."""

    def __init__(self) -> None:
        self._is_ended = False
        self._error: PublishError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def read(self, size: int) -> bytes:
        """As promised by `BlobStream.read`."""
        if self._error is not None:
            raise self._error
        if self._is_ended or size <= 0:
            return b""
        try:
            data = self._read(size)
        except PublishError as error:
            self._error = error
            self._close()
            raise
        if not data:
            self._is_ended = True
            self._close()
        return data

    @abstractmethod
    def _read(self, size: int) -> bytes:
        """Return 1 to `size` bytes, b"" at the proven end; raise `PublishError`."""

    @abstractmethod
    def _close(self) -> None:
        """Let go of everything; may be called again."""


class CheckedStream(OneWayStream):
    """A `BlobStream` over any bytes: the last piece comes only after the digest is right."""

    def __init__(
        self, opener: Callable[[], Readable], digest: Digest, size: int, subject: str
    ) -> None:
        """`opener` gives the bytes; it is asked at the first read."""
        super().__init__()
        self._opener = opener
        self._digest = digest
        self._size = size
        self._subject = f"{subject}: {digest}"
        self._hasher = digest.hasher()
        self._received = 0
        self._source: Readable | None = None

    def _read(self, size: int) -> bytes:
        with translated(self._subject):
            if self._source is None:
                self._source = self._opener()
            data = self._source.read(min(size, self._size - self._received) or 1)
        self._received += len(data)
        if self._received > self._size:
            raise IntegrityError(f"{self._subject} has more than the promised {self._size} bytes")
        if not data and self._received < self._size:
            raise IntegrityError(
                f"{self._subject} ends after {self._received} of {self._size} bytes",
                hint="the file is cut short; write it again",
            )
        self._hasher.update(data)
        if self._received == self._size:
            self._check()
        return data

    def _check(self) -> None:
        found = self._hasher.hexdigest()
        if found != self._digest.hex:
            raise IntegrityError(
                f"{self._subject} is promised, its {self._size} bytes are "
                f"{self._digest.algorithm}:{found}",
                hint="the file is damaged, or was changed while it was read",
            )

    def _close(self) -> None:
        if self._source is not None:
            with suppress(OSError):
                self._source.close()
            self._source = None
