"""Find and read the files of an image archive: a directory, or a tar, plain or compressed.

Nothing is unpacked to disk.  A plain tar is walked once, header by header; a compressed one is
decompressed once to find its members, and once more for each layer that is read.  Members are found
by the exact names that manifests use; a name that is there twice has no meaning two tools agree on.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.sources.base import ImageNotFoundError
from cvmfs_publish.sources.files import PIECE, Readable, open_file, state_of, translated
from cvmfs_publish.streams import tar
from cvmfs_publish.streams.compression import (
    BZIP2_MAGIC,
    GZIP_MAGIC,
    XZ_MAGIC,
    ZSTD_MAGIC,
    DecompressionLimits,
    LayerStream,
)
from cvmfs_publish.streams.tar import TarReader

MAX_MEMBERS = 100_000  # of an archive; an image has at most 127 layers, and a few files for each
MAX_NAMES = 64 << 20  # characters of all names and link targets, which are kept in memory
MAX_LINKS = 8  # from one member to the next; `docker save` writes one
KEPT_BYTES = 64 << 20  # of small members of a compressed archive, kept in memory
KEPT_MEMBER = 4 << 20  # bytes; a larger member is a layer
COMPRESSED = (GZIP_MAGIC, ZSTD_MAGIC, XZ_MAGIC, BZIP2_MAGIC)


class MissingMemberError(IntegrityError):
    """An archive does not hold a file that it says it has."""

    kind = "missing-member"


class Members(Protocol):
    """The files of an archive by name.  Any number of threads may read at once."""

    def size(self, name: str) -> int:
        """Return the bytes of a file; raise `MissingMemberError` if there is none."""

    def open(self, name: str) -> Readable:
        """Return a file's bytes; raise `MissingMemberError` if there is none."""


def read_member(members: Members, name: str, limit: int, subject: str, hint: str = "") -> bytes:
    """Return a small file; raise `IntegrityError` if it is larger than `limit` bytes.

    `hint`: how to raise the limit.
    """
    size = members.size(name)
    if size > limit:
        raise IntegrityError(f"{subject}: {name} has {size} bytes; the limit is {limit}", hint=hint)
    source = members.open(name)
    try:
        with translated(subject):
            data = b"".join(iter(lambda: source.read(PIECE), b""))
    finally:
        source.close()
    if len(data) != size:
        raise IntegrityError(f"{subject}: {name} has {len(data)} bytes where {size} were found")
    return data


class FolderMembers:
    """The files below a directory."""

    def __init__(self, folder: Path, subject: str) -> None:
        self._folder = folder
        self._subject = subject

    def size(self, name: str) -> int:
        with self._open(name) as file:
            return int(state_of(file).split()[0])

    def open(self, name: str) -> Readable:
        return self._open(name)

    def _open(self, name: str) -> BinaryIO:
        try:
            return open_file(self._folder / name, self._subject)
        except ImageNotFoundError as error:
            raise _missing(self._subject, name) from error


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in the uncompressed archive a file's bytes are."""

    offset: int
    size: int


class TarMembers:
    """The members of a tar file."""

    def __init__(self, path: Path, limits: DecompressionLimits, subject: str) -> None:
        """Find all members; raise `IntegrityError` unless it is an archive of files."""
        self._path = path
        self._limits = limits
        self._subject = subject
        self._places: dict[str, _Place] = {}
        self._links: dict[str, str] = {}
        self._kept: dict[str, bytes] = {}
        with open_file(path, subject) as file, translated(subject):
            self.state = state_of(file)
            self._is_plain = not file.read(len(XZ_MAGIC)).startswith(COMPRESSED)
            file.seek(0)
            source = self._seekable(file) if self._is_plain else self._decompressed(file)
            self._find(source)

    def size(self, name: str) -> int:
        return self._place(name)[1].size

    def open(self, name: str) -> Readable:
        found, place = self._place(name)
        if found in self._kept:
            return _Bytes(self._kept[found])
        file = open_file(self._path, self._subject)
        try:
            with translated(self._subject):
                if self._is_plain:
                    file.seek(place.offset)
                    return _Part(file.read, place.size, file)
                stream = self._decompressed(file)
                stream.skip(place.offset)
                return _Part(stream.read, place.size, file)
        except BaseException:
            file.close()
            raise

    def _place(self, name: str) -> tuple[str, _Place]:
        for _ in range(MAX_LINKS):
            if name in self._places:
                return name, self._places[name]
            if name not in self._links:
                break
            name = self._links[name]
        raise _missing(self._subject, name)

    def _seekable(self, file: BinaryIO) -> _Positioned:
        size = int(self.state.split()[0])

        def skip(count: int) -> None:
            if file.tell() + count > size:
                raise IntegrityError(f"{self._subject} is cut short: it has {size} bytes")
            file.seek(count, 1)

        return _Positioned(file.read, skip)

    def _decompressed(self, file: BinaryIO) -> _Positioned:
        stream = LayerStream(file, self._limits, f"of {self._subject}")
        return _Positioned(stream.read, stream.skip)

    def _find(self, source: _Positioned) -> None:
        archive = TarReader(source, self._subject)
        kept = names = 0
        for count, member in enumerate(archive, start=1):
            if count > MAX_MEMBERS:
                raise IntegrityError(f"{self._subject} has more than {MAX_MEMBERS} members")
            names += len(member.name) + len(member.target)
            if names > MAX_NAMES:
                raise IntegrityError(f"{self._subject} has more than {MAX_NAMES} bytes of names")
            if member.kind == tar.DIRECTORY:
                continue
            name = posixpath.normpath(member.name)
            if name in self._places or name in self._links:
                raise IntegrityError(
                    f"{self._subject} has {name!r} twice; tools disagree about which one counts"
                )
            if member.kind == tar.FILE and member.segments is None:
                self._places[name] = _Place(source.position, member.size)
                if not self._is_plain and member.size <= KEPT_MEMBER:
                    kept += member.size
                    if kept <= KEPT_BYTES:
                        data = bytearray(member.size)
                        archive.readinto(memoryview(data))
                        self._kept[name] = bytes(data)
            elif member.kind == tar.SYMLINK:
                # Never followed out of the archive: what is looked up are members alone
                target = posixpath.join(posixpath.dirname(name), member.target)
                self._links[name] = posixpath.normpath(target)
            elif member.kind == tar.LINK:
                self._links[name] = posixpath.normpath(member.target)
            else:
                raise IntegrityError(f"{self._subject} has {name!r}, which is no plain file")


class _Positioned:
    """A `TarSource` that knows how far it is."""

    def __init__(self, read: Callable[[int], bytes], skip: Callable[[int], None]) -> None:
        self._read = read
        self._skip = skip
        self.position = 0

    def read(self, size: int) -> bytes:
        data = self._read(size)
        self.position += len(data)
        return data

    def readinto(self, view: memoryview) -> None:
        data = self._read(len(view))
        if len(data) < len(view):
            raise IntegrityError("the archive ends in the middle of a file")
        view[:] = data
        self.position += len(data)

    def skip(self, size: int) -> None:
        self._skip(size)
        self.position += size


class _Part:
    """So many bytes of what `read` gives."""

    def __init__(self, read: Callable[[int], bytes], size: int, file: BinaryIO) -> None:
        self._read = read
        self._left = size
        self._file = file

    def read(self, size: int) -> bytes:
        data = self._read(min(size, self._left))
        self._left -= len(data)
        return data

    def close(self) -> None:
        self._file.close()


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def read(self, size: int) -> bytes:
        data, self._data = self._data[:size], self._data[size:]
        return bytes(data)

    def close(self) -> None:
        pass


@contextmanager
def opened(members: Members, name: str) -> Iterator[Readable]:
    """Open a file for the length of a block."""
    source = members.open(name)
    try:
        yield source
    finally:
        source.close()


def _missing(subject: str, name: str) -> MissingMemberError:
    return MissingMemberError(
        f"{subject} has no {name[:200]!r}", hint="the archive is incomplete; write it again"
    )
