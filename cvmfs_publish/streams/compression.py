"""Decompress a layer while it streams: gzip, zstd, xz, bzip2 or plain, told by the first bytes.

Source: image-spec `layer.md` (media types `+gzip`, `+zstd`, plain); RFC 1952 (a gzip file may have
several members); RFC 8878 (a zstd file may have several frames and skippable ones); the .xz file
format 1.1, section 2 (streams and padding between them).  xz and bzip2 are what people pack root
file systems and archives with.
The media type is what the registry says, the magic is what the bytes are; the bytes win (E-30).
"""

from __future__ import annotations

import bz2
import hashlib
import lzma
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Protocol, cast

import zstandard
from isal import igzip_lib, isal_zlib

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import IntegrityError

GZIP_MAGIC = b"\x1f\x8b"
_GZIP_ERROR = cast(type[Exception], igzip_lib.IsalError)  # its annotation says less
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
ZSTD_SKIPPABLE = tuple(bytes((n,)) + b"\x2a\x4d\x18" for n in range(0x50, 0x60))
XZ_MAGIC = b"\xfd7zXZ\0"
BZIP2_MAGIC = b"BZh"
_LONGEST_MAGIC = len(XZ_MAGIC)
GZIP_WINDOW = 31  # wbits of zlib: 15 bits of window, gzip header
READ_SIZE = 512 * 1024  # bytes asked of the network at a time
PIECE_SIZE = 1024 * 1024  # bytes decompressed at a time; bounds memory whatever the ratio
ZSTD_WINDOW_LIMIT = 128 * 1024 * 1024  # bytes; what `zstd --long=27` needs
XZ_MEMORY_LIMIT = 128 * 1024 * 1024  # bytes; `xz -9` makes its readers need 65 MiB
RATIO_FREE = 64 * 1024 * 1024  # bytes; below, the ratio says nothing


class ByteStream(Protocol):
    """A verified stream of the compressed layer."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes, b"" at the end."""


@dataclass(frozen=True, slots=True)
class DecompressionLimits:
    """How much a layer may grow; a larger one is refused while it streams."""

    layer_bytes: int = 256 * 1024**3  # uncompressed bytes
    ratio: int = 200  # uncompressed / compressed; real layers stay below 20, deflate below 1032


class _Counted:
    """The compressed bytes, counted.

    Decoders hold this and not the stream that holds them: a zstd decoder in a circle of references
    is never freed, with a window of up to 128 MiB, since the garbage collector cannot look into it.
    """

    def __init__(self, source: ByteStream) -> None:
        self._source = source
        self.taken = 0

    def fetch(self) -> bytes:
        data = self._source.read(READ_SIZE)
        self.taken += len(data)
        return data


class LayerStream:
    """The uncompressed bytes of a layer, hashed as they pass.  For one thread."""

    def __init__(self, source: ByteStream, limits: DecompressionLimits, name: str) -> None:
        """Start reading; `name` is how errors call the layer."""
        self._source = _Counted(source)
        self._limits = limits
        self._name = name
        self._hash = hashlib.sha256()
        self._buffer = memoryview(b"")
        self.size = 0  # bytes decompressed
        head = self._source.fetch()
        while head and len(head) < _LONGEST_MAGIC and (more := self._source.fetch()):
            head += more
        self._pieces = self._decoder(head)

    def _decoder(self, head: bytes) -> Callable[[], bytes]:
        fetch = self._source.fetch
        if head.startswith(GZIP_MAGIC):
            return _Gzip(head, fetch, self._name).read
        if head.startswith((ZSTD_MAGIC, *ZSTD_SKIPPABLE)):
            return _Zstd(head, fetch, self._name).read
        if head.startswith(XZ_MAGIC):
            return _Stdlib(head, fetch, self._name, "xz").read
        if head.startswith(BZIP2_MAGIC):
            return _Stdlib(head, fetch, self._name, "bzip2").read
        return _Plain(head, fetch).read

    @property
    def compressed(self) -> int:
        """Bytes taken from the source."""
        return self._source.taken

    def _fill(self) -> bool:
        """Decompress the next piece; return False at the end."""
        piece = self._pieces()
        self._hash.update(piece)
        self.size += len(piece)
        self._buffer = memoryview(piece)
        self.check_growth(self.size)
        return bool(piece)

    def check_growth(self, size: int) -> None:
        """Raise `IntegrityError` if `size` bytes are too many for this layer.

        Also asked before a file is read: the holes of a sparse one are in no archive.
        """
        if size > self._limits.layer_bytes:
            raise IntegrityError(
                f"layer {self._name} holds more than {self._limits.layer_bytes} bytes",
                hint="raise `limits.layer_bytes` if this image is trusted to be that large",
            )
        if size > max(RATIO_FREE, self._limits.ratio * self.compressed):
            raise IntegrityError(
                f"layer {self._name} grows to more than {self._limits.ratio} times its "
                f"{self.compressed} compressed bytes: a decompression bomb",
                hint="raise `limits.compression_ratio` if this image is trusted",
            )

    def read(self, size: int) -> bytes:
        """Return exactly `size` bytes, fewer only at the end of the layer."""
        if len(self._buffer) >= size:  # nearly always
            data = bytes(self._buffer[:size])
            self._buffer = self._buffer[size:]
            return data
        parts = [bytes(self._buffer)]
        missing = size - len(self._buffer)
        self._buffer = self._buffer[:0]
        while missing and self._fill():
            part = bytes(self._buffer[:missing])
            self._buffer = self._buffer[len(part) :]
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def readinto(self, view: memoryview) -> None:
        """Fill `view`; raise `IntegrityError` if the layer ends before."""
        done = 0
        while done < len(view):
            if not self._buffer and not self._fill():
                raise IntegrityError(f"layer {self._name} ends in the middle of a file")
            count = min(len(view) - done, len(self._buffer))
            view[done : done + count] = self._buffer[:count]
            self._buffer = self._buffer[count:]
            done += count

    def skip(self, size: int) -> None:
        """Pass over `size` bytes; raise `IntegrityError` if the layer ends before."""
        while size:
            if not self._buffer and not self._fill():
                raise IntegrityError(f"layer {self._name} ends in the middle of a file")
            count = min(size, len(self._buffer))
            self._buffer = self._buffer[count:]
            size -= count

    def drain(self) -> Digest:
        """Read to the end, trailing bytes included (E-24); return the DiffID, verified so far."""
        self._buffer = self._buffer[:0]
        while self._fill():
            pass
        self._buffer = self._buffer[:0]
        return Digest("sha256", self._hash.hexdigest())


class _Plain:
    def __init__(self, head: bytes, fetch: Callable[[], bytes]) -> None:
        self._head: bytes | None = head
        self._fetch = fetch

    def read(self) -> bytes:
        head, self._head = self._head, None
        return head or self._fetch()


class _Gzip:
    """All members of a gzip stream; after the last one only zeros may follow, as padding."""

    def __init__(self, head: bytes, fetch: Callable[[], bytes], name: str) -> None:
        self._input = head
        self._fetch = fetch
        self._name = name
        self._member = isal_zlib.decompressobj(wbits=GZIP_WINDOW)
        self._pending = False
        self._ended = False

    def read(self) -> bytes:
        while not self._ended:
            if self._member.eof and not self._next_member():
                break
            if not self._input and not self._pending:
                self._input = self._fetch()
                if not self._input:
                    raise IntegrityError(
                        f"layer {self._name} is cut short: its gzip data do not end"
                    )
            try:
                piece = self._member.decompress(self._input, PIECE_SIZE)
            except _GZIP_ERROR as error:
                raise IntegrityError(f"layer {self._name} is not valid gzip: {error}") from error
            # A full piece may leave more output inside the decoder although all input is taken.
            self._pending = len(piece) == PIECE_SIZE
            member = self._member
            self._input = member.unused_data if member.eof else member.unconsumed_tail
            if piece:
                return bytes(piece)
        return b""

    def _next_member(self) -> bool:
        while not self._input.strip(b"\0"):
            self._input = self._fetch()
            if not self._input:
                self._ended = True
                return False
        if not self._input.startswith(GZIP_MAGIC[: len(self._input)]):
            raise IntegrityError(f"layer {self._name} has bytes after its gzip stream")
        self._member = isal_zlib.decompressobj(wbits=GZIP_WINDOW)
        return True


class _Stdlib:
    """All streams of an xz or bzip2 file; after the last one only zeros may follow, as padding."""

    def __init__(self, head: bytes, fetch: Callable[[], bytes], name: str, kind: str) -> None:
        self._input = head
        self._fetch = fetch
        self._name = name
        self._kind = kind
        self._stream = self._new_stream()

    def read(self) -> bytes:
        while True:
            if self._stream.eof and not self._next_stream():
                return b""
            if self._stream.needs_input and not self._input:
                self._input = self._fetch()
                if not self._input:
                    raise IntegrityError(
                        f"layer {self._name} is cut short: its {self._kind} data do not end"
                    )
            try:
                piece = self._stream.decompress(self._input, PIECE_SIZE)
            except (lzma.LZMAError, OSError, EOFError) as error:
                raise IntegrityError(
                    f"layer {self._name} is not valid {self._kind}: {error}"
                ) from error
            self._input = self._stream.unused_data if self._stream.eof else b""
            if piece:
                return piece

    def _new_stream(self) -> lzma.LZMADecompressor | bz2.BZ2Decompressor:
        if self._kind == "xz":
            return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_LIMIT)
        return bz2.BZ2Decompressor()

    def _next_stream(self) -> bool:
        while not self._input.strip(b"\0"):
            self._input = self._fetch()
            if not self._input:
                return False
        self._input = self._input.lstrip(b"\0") if self._kind == "xz" else self._input
        self._stream = self._new_stream()
        return True


class _Zstd:
    """All frames of a zstd stream, complete to the last."""

    def __init__(self, head: bytes, fetch: Callable[[], bytes], name: str) -> None:
        self._name = name
        self._input = _Joined(head, fetch)
        decoder = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_LIMIT)
        self._reader = decoder.stream_reader(cast(BinaryIO, self._input), read_across_frames=True)

    def read(self) -> bytes:
        try:
            piece = self._reader.read(PIECE_SIZE)
        except zstandard.ZstdError as error:
            raise IntegrityError(f"layer {self._name} is not valid zstd: {error}") from error
        if not piece and not self._input.frames.complete:
            raise IntegrityError(f"layer {self._name} is cut short: its zstd data do not end")
        return piece


class _Joined:
    """What the zstd reader wants to read from: the first bytes, then the rest."""

    def __init__(self, head: bytes, fetch: Callable[[], bytes]) -> None:
        self._head = head
        self._fetch = fetch
        self.frames = _ZstdFrames()

    def read(self, size: int = -1) -> bytes:
        data = self._head or self._fetch()
        self._head = b""
        if 0 <= size < len(data):
            data, self._head = data[:size], data[size:]
        self.frames.feed(data)
        return data


class _ZstdFrames:
    """Follows where frames and blocks end; the decoder is silent about a stream that is cut short.

    Source: RFC 8878 section 3.1.1 (frame header, block header) and 3.1.2 (skippable frames).
    Whether the frames are valid is the decoder's to say.
    """

    def __init__(self) -> None:
        self._skip = 0  # bytes that need no look
        self._part = b""  # the header being collected
        self._wanted = 4  # bytes of it
        self._next: Callable[[bytes], None] = self._magic
        self._checksum = 0  # bytes after the last block of the frame

    @property
    def complete(self) -> bool:
        """Whether what was fed ends where a frame ends."""
        return self._next == self._magic and not self._part and not self._skip

    def feed(self, data: bytes) -> None:
        position = 0
        while position < len(data):
            if self._skip:
                step = min(self._skip, len(data) - position)
                self._skip -= step
            else:
                step = min(self._wanted - len(self._part), len(data) - position)
                self._part += data[position : position + step]
                if len(self._part) == self._wanted:
                    part, self._part = self._part, b""
                    self._next(part)
            position += step

    def _expect(self, wanted: int, parse: Callable[[bytes], None]) -> None:
        self._wanted, self._next = wanted, parse

    def _magic(self, part: bytes) -> None:
        if part in ZSTD_SKIPPABLE:
            self._expect(4, self._skippable)
        else:
            self._expect(1, self._descriptor)

    def _skippable(self, part: bytes) -> None:
        self._skip = int.from_bytes(part, "little")
        self._expect(4, self._magic)

    def _descriptor(self, part: bytes) -> None:
        flags = part[0]
        single_segment = flags & 0x20
        window = 0 if single_segment else 1
        dictionary = (0, 1, 2, 4)[flags & 3]
        content_size = (1 if single_segment else 0, 2, 4, 8)[flags >> 6]
        self._checksum = 4 if flags & 4 else 0
        self._skip = window + dictionary + content_size
        self._expect(3, self._block)

    def _block(self, part: bytes) -> None:
        header = int.from_bytes(part, "little")
        is_last, kind, size = header & 1, header >> 1 & 3, header >> 3
        self._skip = 1 if kind == 1 else size  # kind 1: one byte, repeated
        if is_last:
            self._skip += self._checksum
            self._expect(4, self._magic)
