"""Read the members of a tar stream: ustar, GNU and PAX, as they come, without seeking.

Source: POSIX.1-2017 `pax`, sections "ustar Interchange Format" and "pax Extended Header"; the GNU
tar manual, "Basic Tar Format" and "Storing Sparse Files".  Names are bytes on disk and stay so:
they are decoded once, here, with undecodable bytes as surrogates.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.streams.names import decode_name

BLOCK = 512  # bytes
HEADER_LIMIT = 1024 * 1024  # bytes of an extended header or long name; what other tools accept
EXTENDED_LIMIT = 4 * HEADER_LIMIT  # bytes of all such headers before one member
GLOBAL_LIMIT = 64 * 1024  # bytes of what global headers say about every member
SPARSE_LIMIT = 100_000  # pieces of one sparse file
MAX_TIME = (1 << 63) - 1  # seconds; times are signed 64-bit numbers everywhere
MAX_DEVICE = (1 << 31) - 1  # of a major or minor number; Linux has 12 and 20 bits
_ZEROS = bytes(BLOCK)

FILE, LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = b"0123456"[:7]
_KINDS = frozenset(b"01234567\0S")
_HEADER_ONLY = frozenset(b"123456")
_XATTR = "SCHILY.xattr."
# Of global headers nothing else is kept: each member is compared with all of it
_GLOBAL = frozenset({"path", "linkpath", "size", "uid", "gid", "mtime"})
_TIME = re.compile(rb"(-?)(\d{1,18})(?:\.(\d+))?")


class TarSource(Protocol):
    """The stream a tar is read from."""

    def read(self, size: int, /) -> bytes:
        """Return exactly `size` bytes, fewer only at the end."""

    def readinto(self, view: memoryview, /) -> None:
        """Fill `view` or raise `IntegrityError`."""

    def skip(self, size: int, /) -> None:
        """Pass over `size` bytes or raise `IntegrityError`."""


@dataclass(slots=True)
class Member:
    """One member as its headers describe it; nothing is judged here."""

    name: str
    kind: int  # type flag, one of the constants above
    mode: int  # permission bits, 07777
    uid: int
    gid: int
    mtime: int  # Unix seconds
    mtime_ns: int
    size: int  # bytes of content after expanding holes
    target: str  # of links
    device: int  # os.makedev number
    xattrs: tuple[tuple[str, bytes], ...] = ()
    # data segments (offset, size) of a sparse file, in order; None: not sparse
    segments: tuple[tuple[int, int], ...] | None = None


@dataclass(slots=True)
class _Extended:
    """What extended headers say about the next member."""

    records: dict[str, bytes] = field(default_factory=dict)
    sparse: list[bytes] = field(default_factory=list)  # numbers of a version 0.0 map, in order


class TarReader:
    """Iterate over the members; between two steps, `readinto` delivers the member's content."""

    def __init__(self, source: TarSource, name: str) -> None:
        """Read from `source`; `name` is how errors call the archive."""
        self._source = source
        self._name = name
        self._left = 0  # bytes of the member's data not yet read
        self._padding = 0
        self._position = 0  # logical offset in a sparse file
        self._segment = 0  # the first of its segments that is not behind that
        self._member: Member | None = None
        self._global: dict[str, bytes] = {}

    def __iter__(self) -> Iterator[Member]:
        while (member := self._next()) is not None:
            yield member

    def readinto(self, view: memoryview) -> None:
        """Fill `view` with the next bytes of the member's content, holes as zeros."""
        member = self._member
        if member is None or member.segments is None:
            self._data(view)
            return
        start = self._position
        end = start + len(view)
        cursor = start
        segments = member.segments
        while self._segment < len(segments):
            offset, size = segments[self._segment]
            first, last = max(offset, cursor), min(offset + size, end)
            if first >= last:  # it begins behind this view
                break
            view[cursor - start : first - start] = bytes(first - cursor)
            self._data(view[first - start : last - start])
            cursor = last
            if last < offset + size:  # the next view goes on in it
                break
            self._segment += 1
        view[cursor - start :] = bytes(end - cursor)
        self._position = end

    def _data(self, view: memoryview) -> None:
        if len(view) > self._left:
            raise self._error("a file is longer than its header says")
        self._left -= len(view)
        self._source.readinto(view)

    def _error(self, text: str) -> IntegrityError:
        return IntegrityError(f"{self._name} is not a valid tar archive: {text}")

    def _next(self) -> Member | None:
        extended = _Extended()
        long_name: bytes | None = None
        long_link: bytes | None = None
        taken = 0
        while True:
            self._source.skip(self._left + self._padding)
            self._left = self._padding = 0
            block = self._source.read(BLOCK)
            if len(block) < BLOCK:
                if block.strip(b"\0"):
                    raise self._error("it ends in the middle of a header")
                block = _ZEROS
            if block == _ZEROS:
                if extended.records or long_name is not None or long_link is not None:
                    raise self._error("it ends after an extended header")
                self._end()
                return None
            self._verify(block)
            size = self._number(block[124:136], "size")
            if size < 0:
                raise self._error(f"negative size {size}")
            kind = block[156]
            if kind in b"xgLK":
                data = self._extension(size)
                taken += BLOCK + size
                if taken > EXTENDED_LIMIT:
                    raise self._error(
                        f"extended headers of {taken} bytes before one member; the limit is"
                        f" {EXTENDED_LIMIT}"
                    )
                if kind == 0x78:  # x
                    self._records(data, extended.records, extended.sparse)
                elif kind == 0x67:  # g
                    self._global_records(data)
                elif kind == 0x4C:  # L
                    long_name = data.split(b"\0", 1)[0]
                else:
                    long_link = data.split(b"\0", 1)[0]
                continue
            return self._build(block, kind, size, extended, long_name, long_link)

    def _end(self) -> None:
        block = self._source.read(BLOCK)
        if block.strip(b"\0"):
            raise self._error("a header follows a single zero block")
        self._member = None

    def _verify(self, block: bytes) -> None:
        field_ = block[148:156]
        stored = self._number(field_, "checksum")
        # The checksum counts its own field as blanks.  Adler-32's lower half is 1 + the sum of all
        # bytes, modulo 65521, and takes a tenth of the time.
        if (stored - 8 * 0x20 + sum(field_) + 1) % 65521 == zlib.adler32(block) & 0xFFFF:
            return
        total = sum(block) - sum(field_) + 8 * 0x20
        if stored != total:
            # Some old tars added the bytes as signed numbers.
            high = sum(1 for byte in block[:148] + block[156:] if byte > 127)
            if stored != total - 256 * high:
                text = str(stored) if 0 <= stored <= 255 * BLOCK else "no checksum"
                raise self._error(f"header checksum is {text}, the header's bytes give {total}")

    def _extension(self, size: int) -> bytes:
        if size > HEADER_LIMIT:
            raise self._error(f"an extended header of {size} bytes; the limit is {HEADER_LIMIT}")
        data = self._source.read(size)
        if len(data) < size:
            raise self._error("it ends in the middle of an extended header")
        self._padding = -size % BLOCK
        return data

    def _records(self, data: bytes, into: dict[str, bytes], sparse: list[bytes]) -> None:
        """Parse `length key=value\\n` records; an empty value removes the key."""
        position = 0
        while position < len(data):
            space = data.find(b" ", position, position + 12)
            length = data[position:space]
            if space < 0 or not length.isdigit():
                if not data[position:].strip(b"\0"):
                    return
                raise self._error("malformed record in an extended header")
            end = position + int(length)
            record = data[space + 1 : end]
            key, equals, value = record[:-1].partition(b"=")
            if end > len(data) or not record.endswith(b"\n") or not equals:
                raise self._error("malformed record in an extended header")
            name = decode_name(key)
            if name in ("GNU.sparse.offset", "GNU.sparse.numbytes"):
                sparse.append(value)
            into[name] = value
            position = end

    def _global_records(self, data: bytes) -> None:
        found: dict[str, bytes] = {}
        self._records(data, found, [])
        self._global |= {
            key: value
            for key, value in found.items()
            if key in _GLOBAL or key.startswith((_XATTR, "GNU.sparse."))
        }
        size = sum(len(key) + len(value) for key, value in self._global.items())
        if size > GLOBAL_LIMIT:
            raise self._error(
                f"global headers say {size} bytes about every member; the limit is {GLOBAL_LIMIT}"
            )

    def _number(self, field_: bytes, what: str) -> int:
        """Parse an octal field, or the GNU base-256 form for large and negative values."""
        if field_[0] & 0x80:
            value = int.from_bytes(field_, "big") & ((1 << (8 * len(field_) - 1)) - 1)
            if field_[0] & 0x40:
                value -= 1 << (8 * len(field_) - 1)
            return value
        text = field_.split(b"\0", 1)[0].strip(b" ")
        if text.strip(b"01234567"):
            raise self._error(f"{what} is {text!r}, not an octal number")
        return int(text or b"0", 8)

    def _decimal(self, value: bytes, what: str) -> int:
        if not value.isdigit() or len(value) > 18:
            raise self._error(f"{what} is {value[:40]!r}, not a number")
        return int(value)

    def _build(
        self,
        block: bytes,
        kind: int,
        size: int,
        extended: _Extended,
        long_name: bytes | None,
        long_link: bytes | None,
    ) -> Member:
        name = block[:100].split(b"\0", 1)[0]
        target = block[157:257].split(b"\0", 1)[0]
        if block[257:263] == b"ustar\0" and (prefix := block[345:500].split(b"\0", 1)[0]):
            name = prefix + b"/" + name
        name = long_name if long_name is not None else name
        target = long_link if long_link is not None else target
        uid, gid = self._number(block[108:116], "uid"), self._number(block[116:124], "gid")
        mtime, mtime_ns = self._number(block[136:148], "mtime"), 0
        if not -MAX_TIME <= mtime <= MAX_TIME:
            raise self._error(f"mtime {mtime} is beyond what a file system keeps")
        xattrs: tuple[tuple[str, bytes], ...] = ()
        records = {**self._global, **extended.records} if self._global else extended.records
        if records:
            records = {key: value for key, value in records.items() if value or _keeps_empty(key)}
            name = records.get("path", name)
            target = records.get("linkpath", target)
            if "size" in records:
                size = self._decimal(records["size"], "size")
            if "uid" in records:
                uid = self._decimal(records["uid"], "uid")
            if "gid" in records:
                gid = self._decimal(records["gid"], "gid")
            if "mtime" in records:
                mtime, mtime_ns = self._time(records["mtime"])
            xattrs = tuple(
                sorted((k[len(_XATTR) :], v) for k, v in records.items() if k.startswith(_XATTR))
            )
        if kind not in _KINDS:
            raise self._error(f"{decode_name(name)!r} is of unknown type {chr(kind)!r}")
        if kind == 0 and name.endswith(b"/"):
            kind = DIRECTORY  # before POSIX this was how directories were written
        elif kind in b"\x007":
            kind = FILE
        if b"\0" in name or b"\0" in target:
            raise self._error("a name holds a zero byte")
        # Header-only members have no data whatever their size field says.
        self._left = 0 if kind in _HEADER_ONLY else size
        self._padding = -self._left % BLOCK
        is_device = kind in (CHARACTER, BLOCK_DEVICE)
        member = Member(
            name=decode_name(name),
            kind=kind,
            mode=self._number(block[100:108], "mode") & 0o7777,
            uid=uid & 0xFFFFFFFF,
            gid=gid & 0xFFFFFFFF,
            mtime=mtime,
            mtime_ns=mtime_ns,
            size=self._left,
            target=decode_name(target),
            device=self._device(block) if is_device else 0,
            xattrs=xattrs,
        )
        if kind == ord("S"):
            self._old_sparse(member, block)
        elif kind == FILE and any(key.startswith("GNU.sparse.") for key in records):
            self._pax_sparse(member, records, extended.sparse)
        self._member, self._position, self._segment = member, 0, 0
        return member

    def _device(self, block: bytes) -> int:
        major, minor = self._number(block[329:337], "major"), self._number(block[337:345], "minor")
        if not (0 <= major <= MAX_DEVICE and 0 <= minor <= MAX_DEVICE):
            raise self._error(f"device number {major}:{minor}")
        return os.makedev(major, minor)

    def _time(self, value: bytes) -> tuple[int, int]:
        match = _TIME.fullmatch(value)
        if match is None:
            raise self._error(f"mtime is {value[:40]!r}, not a number of seconds")
        seconds, fraction = int(match[2]), int((match[3] or b"").ljust(9, b"0")[:9])
        if not match[1]:
            return seconds, fraction
        return (-seconds - 1, 1_000_000_000 - fraction) if fraction else (-seconds, 0)

    # sparse files

    def _set_segments(self, member: Member, numbers: list[int], size: int) -> None:
        if len(numbers) % 2:
            raise self._error(f"the sparse map of {member.name!r} has an offset without a length")
        segments = tuple(
            (offset, length)
            for offset, length in zip(numbers[::2], numbers[1::2], strict=True)
            if length
        )
        position, stored = 0, 0
        for offset, length in segments:
            if offset < position or length < 0:
                raise self._error(f"the sparse map of {member.name!r} is not in order")
            position = offset + length
            stored += length
        if position > size or stored > self._left:
            raise self._error(f"the sparse map of {member.name!r} does not fit its size")
        member.size, member.segments, member.kind = size, segments, FILE

    def _old_sparse(self, member: Member, block: bytes) -> None:
        numbers: list[int] = []
        entries, extends, offset, count = block, block[482], 386, 4
        while True:
            for index in range(count):
                piece = entries[offset + 24 * index : offset + 24 * index + 24]
                if piece[0]:
                    numbers += (
                        self._number(piece[:12], "offset"),
                        self._number(piece[12:], "length"),
                    )
            if not extends:
                break
            entries, offset, count = self._source.read(BLOCK), 0, 21
            if len(entries) < BLOCK or len(numbers) > 2 * SPARSE_LIMIT:
                raise self._error(f"the sparse map of {member.name!r} does not end")
            extends = entries[504]
        self._set_segments(member, numbers, self._number(block[483:495], "real size"))

    def _pax_sparse(self, member: Member, records: dict[str, bytes], pairs: list[bytes]) -> None:
        if "GNU.sparse.name" in records:
            member.name = decode_name(records["GNU.sparse.name"])
        size = records.get("GNU.sparse.realsize", records.get("GNU.sparse.size"))
        if size is None:
            raise self._error(f"sparse file {member.name!r} has no real size")
        if records.get("GNU.sparse.major") == b"1":
            numbers = self._data_map(member)
        elif "GNU.sparse.map" in records:
            texts = records["GNU.sparse.map"].split(b",")
            numbers = [self._decimal(text, "sparse map") for text in texts if text]
        else:
            numbers = [self._decimal(text, "sparse map") for text in pairs]
        self._set_segments(member, numbers, self._decimal(size, "real size"))

    def _data_map(self, member: Member) -> list[int]:
        """Read the map of format 1.0: decimal lines in front of the data, padded to a block."""
        blocks: list[bytes] = []
        count: int | None = None
        lines = 0  # that are complete
        while count is None or lines <= 2 * count:
            block = self._source.read(BLOCK)
            if min(self._left, len(block)) < BLOCK or len(blocks) * BLOCK > 40 * SPARSE_LIMIT:
                raise self._error(f"the sparse map of {member.name!r} does not end")
            blocks.append(block)
            lines += block.count(b"\n")
            self._left -= BLOCK
            if count is None and lines:
                count = self._decimal(b"".join(blocks).split(b"\n", 1)[0], "sparse map")
        numbers = b"".join(blocks).split(b"\n")[1 : 1 + 2 * count]
        return [self._decimal(number, "sparse map") for number in numbers]


def _keeps_empty(key: str) -> bool:
    """Whether an empty value means the empty value and not "as in the header"."""
    return key.startswith(_XATTR)
