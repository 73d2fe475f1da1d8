"""Decompressing a layer: what is valid, what is cut, damaged or a bomb, and exact reading."""

from __future__ import annotations

import gc
import gzip
import hashlib
import io
import random
import tarfile
import weakref
from collections.abc import Callable
from contextlib import suppress

import pytest
import zstandard

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.streams import compression
from cvmfs_publish.streams.compression import DecompressionLimits, LayerStream

DATA = b"hello layer, hello layer, " * 9 + random.Random(1).randbytes(90)
SKIPPABLE = b"\x53\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"notes"


def checked(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


def unsized(data: bytes) -> bytes:
    """A frame as a pipe gives it: without its size, in several blocks."""
    compressor = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    middle = len(data) // 2
    return (
        compressor.compress(data[:middle])
        + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        + compressor.compress(data[middle:])
        + compressor.flush()
    )


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "gzip members": lambda d: b"".join(gzip.compress(d[n : n + 70]) for n in range(0, len(d), 70)),
    "gzip padded": lambda d: gzip.compress(d) + bytes(1000),
    "gzip with an empty member": lambda d: gzip.compress(b"") + gzip.compress(d),
    "zstd": zstandard.compress,
    "zstd checksum": checked,
    "zstd unsized": unsized,
    "zstd frames": lambda d: zstandard.compress(d[:99]) + checked(b"") + unsized(d[99:]),
    "zstd skippable first": lambda d: SKIPPABLE + checked(d),
    "zstd skippable between": lambda d: checked(d[:9]) + SKIPPABLE * 2 + checked(d[9:]) + SKIPPABLE,
    "plain": bytes,
}
PACKED = [name for name in PACKERS if name != "plain"]


class Source:
    """A blob that arrives in pieces of at most `piece` bytes."""

    def __init__(self, data: bytes, piece: int = 1 << 30) -> None:
        self._file, self._piece = io.BytesIO(data), piece

    def read(self, size: int, /) -> bytes:
        return self._file.read(min(size, self._piece))


def stream(data: bytes, piece: int = 1 << 30, **limits: int) -> LayerStream:
    return LayerStream(Source(data, piece), DecompressionLimits(**limits), "test")


def unpack(data: bytes, piece: int = 1 << 30) -> bytes:
    opened = stream(data, piece)
    content = opened.read(1 << 30)
    assert opened.drain() == Digest.of(content)
    assert opened.size == len(content)
    assert opened.compressed == len(data)
    return content


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1 << 30])
@pytest.mark.parametrize("name", PACKERS)
def test_every_form_gives_the_same_bytes_however_they_arrive(name: str, piece: int) -> None:
    assert unpack(PACKERS[name](DATA), piece) == DATA


@pytest.mark.parametrize("name", PACKERS)
def test_pieces_of_any_size_are_joined(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = random.Random(2).randbytes(3000) + bytes(70_000)
    packed = PACKERS[name](data)
    monkeypatch.setattr(compression, "PIECE_SIZE", 1000)
    assert unpack(packed, 333) == data


@pytest.mark.parametrize("name", ["gzip", "zstd", "zstd checksum", "zstd unsized"])
def test_a_stream_cut_at_any_byte_is_refused(name: str) -> None:
    packed = PACKERS[name](DATA)
    for length in range(4, len(packed)):
        for piece in (1, 1 << 30):
            with pytest.raises(IntegrityError, match="layer test"):
                unpack(packed[:length], piece)


@pytest.mark.parametrize("name", PACKED)
def test_a_stream_of_several_parts_is_complete_only_where_a_part_ends(name: str) -> None:
    packed = PACKERS[name](DATA)
    complete = 0
    for length in range(4, len(packed)):
        try:
            content = unpack(packed[:length])
        except IntegrityError:
            continue
        complete += 1
        assert DATA.startswith(content)
    # zeros after the last gzip member are padding, however many
    assert complete < (1001 if name == "gzip padded" else 12)


def test_a_skippable_frame_cut_short_is_refused() -> None:
    for length in range(4, len(SKIPPABLE)):
        with pytest.raises(IntegrityError):
            unpack(SKIPPABLE[:length])


@pytest.mark.parametrize("name", ["gzip", "zstd checksum"])
def test_a_flipped_bit_is_refused_or_changes_nothing(name: str) -> None:
    packed = PACKERS[name](DATA)
    refused = 0
    for position in range(4, len(packed)):
        damaged = bytearray(packed)
        damaged[position] ^= 1 << position % 8
        try:
            assert unpack(bytes(damaged)) == DATA
        except IntegrityError:
            refused += 1
    assert refused > len(packed) / 2


@pytest.mark.parametrize("name", ["zstd", "plain"])
def test_damage_without_a_checksum_shows_in_the_digest(name: str) -> None:
    data = random.Random(6).randbytes(100)  # stored as it is
    packed = bytearray(PACKERS[name](data))
    packed[-5] ^= 4
    opened = stream(bytes(packed))
    assert opened.drain() != Digest.of(data)


def test_random_bytes_never_surprise() -> None:
    numbers = random.Random(3)
    gzip_head = compression.GZIP_MAGIC
    heads = [gzip_head, gzip_head + b"\x08", compression.ZSTD_MAGIC, SKIPPABLE]
    for number in range(400):
        data = heads[number % 4] + numbers.randbytes(numbers.randrange(200))
        try:
            unpack(data)
        except IntegrityError as error:
            assert "layer test" in str(error)  # noqa: PT017


@pytest.mark.parametrize("tail", [b"x", b"\x1fx", bytes(600) + b"x", b"garbage" * 100])
def test_bytes_after_a_gzip_stream_are_refused(tail: bytes) -> None:
    with pytest.raises(IntegrityError, match="after its gzip stream"):
        unpack(gzip.compress(DATA) + tail)


def test_bytes_after_a_zstd_stream_are_refused() -> None:
    with pytest.raises(IntegrityError, match="not valid zstd"):
        unpack(checked(DATA) + b"garbage")


def test_an_empty_layer_is_empty() -> None:
    assert unpack(b"") == b""
    assert unpack(b"ab") == b"ab"


def test_a_window_larger_than_the_limit_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=28, write_content_size=0)
    compressor = zstandard.ZstdCompressor(compression_params=parameters)
    packed = compressor.compressobj()
    data = packed.compress(DATA) + packed.flush()
    with pytest.raises(IntegrityError, match="not valid zstd"):
        unpack(data)


# reading


@pytest.mark.parametrize("name", ["gzip", "zstd", "plain"])
def test_read_readinto_and_skip_are_exact_at_the_borders_of_pieces(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "PIECE_SIZE", 64)
    monkeypatch.setattr(compression, "READ_SIZE", 64)
    data = random.Random(4).randbytes(1000)
    numbers = random.Random(5)
    for _ in range(60):
        opened, position = stream(PACKERS[name](data)), 0
        while position < len(data):
            size = numbers.choice([0, 1, 63, 64, 65, 128, numbers.randrange(200)])
            size = min(size, len(data) - position)
            wanted = data[position : position + size]
            method = numbers.randrange(3)
            if method == 0:
                assert opened.read(size) == wanted
            elif method == 1:
                buffer = bytearray(size)
                opened.readinto(memoryview(buffer))
                assert buffer == wanted
            else:
                opened.skip(size)
            position += size
        assert opened.read(1) == b""
        assert opened.drain() == Digest.of(data)


def test_reading_beyond_the_end_gives_what_there_is() -> None:
    opened = stream(gzip.compress(b"abc"))
    assert (opened.read(2), opened.read(5), opened.read(5)) == (b"ab", b"c", b"")


def test_filling_or_skipping_beyond_the_end_is_refused() -> None:
    with pytest.raises(IntegrityError, match="in the middle of a file"):
        stream(gzip.compress(b"abc")).readinto(memoryview(bytearray(4)))
    with pytest.raises(IntegrityError, match="in the middle of a file"):
        stream(gzip.compress(b"abc")).skip(4)


def test_the_diff_id_covers_what_nobody_read() -> None:
    packed = gzip.compress(DATA)
    opened = stream(packed)
    opened.read(10)
    assert opened.drain().hex == hashlib.sha256(DATA).hexdigest()


# limits


def test_a_layer_may_have_exactly_the_allowed_size() -> None:
    assert stream(gzip.compress(DATA), layer_bytes=len(DATA)).drain() == Digest.of(DATA)
    with pytest.raises(IntegrityError, match=str(len(DATA) - 1)) as caught:
        stream(gzip.compress(DATA), layer_bytes=len(DATA) - 1).drain()
    assert "limits.layer_bytes" in caught.value.hint


@pytest.mark.parametrize("name", ["gzip", "zstd", "zstd unsized"])
def test_a_bomb_is_refused_before_it_is_unpacked(name: str) -> None:
    packed = PACKERS[name](bytes(80 * 1024 * 1024))
    opened = stream(packed, ratio=200)
    with pytest.raises(IntegrityError, match="bomb") as caught:
        opened.skip(1 << 40)
    assert "limits.compression_ratio" in caught.value.hint
    assert opened.size <= compression.RATIO_FREE + compression.PIECE_SIZE


def test_tarfile_and_the_stream_agree_on_a_compressed_archive() -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        info = tarfile.TarInfo("x")
        info.size = len(DATA)
        tar.addfile(info, io.BytesIO(DATA))
    assert unpack(archive.getvalue()) == gzip.decompress(archive.getvalue())


@pytest.mark.parametrize("name", sorted(PACKERS))
@pytest.mark.parametrize("cut", [0, 3])
def test_a_stream_is_freed_as_soon_as_nobody_needs_it(name: str, cut: int) -> None:
    """A zstd decoder in a circle of references would be kept for ever, with all its memory."""

    class Source(io.BytesIO):
        pass

    packed = PACKERS[name](b"content" * 1000)
    source = Source(packed[: len(packed) - cut])
    is_alive = weakref.ref(source)
    gc.disable()
    try:
        stream = LayerStream(source, DecompressionLimits(), "test")
        with suppress(IntegrityError):
            stream.drain()
        del stream, source
        assert is_alive() is None
    finally:
        gc.enable()
