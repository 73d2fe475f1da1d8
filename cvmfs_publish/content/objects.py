"""Turn bytes into the stored form of an object (a zlib stream) and back.

Source: facts/cvmfs-format.md sections 1.3 to 1.5.
"""

from __future__ import annotations

import zlib
from enum import Enum
from typing import cast

import deflate
from isal import isal_zlib

from cvmfs_publish.errors import IntegrityError

# Level 1 of libdeflate is 5 times as fast as zlib level 6 and 5 % larger on small contents.
DATA_LEVEL = 1
STOCK_LEVEL = 6  # of zlib, in the stock server
CATALOG_LEVEL = 6  # read by every client of a repository, written once
# Only a folder of many thousand names has a catalog of this size (bytes, uncompressed), and every
# publish into it writes it again: a quarter of the time matters more there than 7 % of the bytes.
LARGE_CATALOG = 3 * 1024**2
FAST_LEVEL = 2  # of ISA-L; levels 0 to 3 exist, and 1 is no faster

_ISAL_ERROR = cast(type[Exception], isal_zlib.error)  # its annotation says less

# How `adaptive` decides, by measurements on Debian and Python packages (benchmarks/README.md).
# Below this size every compressor is within 1.06 of zlib, and a sample would cost too much.
SAMPLED_BYTES = 16 * 1024
SLICES, SLICE_BYTES = 4, 2048  # the sample: spread evenly, first and last bytes included
# What a sample shrinks to tells how much level 1 loses against zlib: the more, the smaller it gets.
INCOMPRESSIBLE = 0.95  # nothing to gain: the fastest
HARDLY = 0.65  # ISA-L 3 loses at most 5 %, at twice the speed of libdeflate 1
BINARY_LEVELS = ((0.46, 2), (1.0, 1))  # libdeflate's level below a ratio
TEXT_LEVELS = ((0.30, 4), (0.50, 2), (1.0, 1))


class Compression(Enum):
    """How the contents of files are stored; the values are those of `repository.compression`."""

    ADAPTIVE = "adaptive"  # as fast as possible within 1.08 times the bytes of zlib level 6
    ZLIB = "zlib"  # what the stock server writes, to the byte
    FAST = "fast"  # as fast as possible
    NONE = "none"  # as they are; catalogs say so with FLAG_UNCOMPRESSED

    @property
    def compresses(self) -> bool:
        """Whether stored objects are zlib streams: `Content.compressed` of what is stored so."""
        return self is not Compression.NONE


def encode(data: bytes | memoryview, compression: Compression) -> bytes:
    """Return the stored form of file content: a function of these arguments and nothing else.

    So equal contents are equal objects, whichever image they come from and in which order.
    """
    if compression is Compression.NONE:
        return bytes(data)
    if compression is Compression.ZLIB:
        return zlib.compress(data, STOCK_LEVEL)
    if compression is Compression.FAST:
        return bytes(isal_zlib.compress(data, FAST_LEVEL))
    return _encode_adaptively(data)


def _encode_adaptively(data: bytes | memoryview) -> bytes:
    """Spend time where a level more saves much, and none where nothing helps."""
    if len(data) < SAMPLED_BYTES:
        return compress(data)
    view = memoryview(data)
    step = (len(view) - SLICE_BYTES) // (SLICES - 1)
    sample = b"".join([view[n * step : n * step + SLICE_BYTES] for n in range(SLICES)])
    ratio = len(isal_zlib.compress(sample, 1)) / len(sample)
    if ratio > INCOMPRESSIBLE:
        return bytes(isal_zlib.compress(data, 2))
    if ratio > HARDLY:
        return bytes(isal_zlib.compress(data, 3))
    levels = BINARY_LEVELS if b"\0" in sample else TEXT_LEVELS
    return compress(data, next(level for limit, level in levels if ratio < limit))


def compress(data: bytes | memoryview, level: int = DATA_LEVEL) -> bytes:
    """Return one zlib stream of `data`; not the bytes stock zlib would produce."""
    return bytes(deflate.zlib_compress(data, level))


def compress_catalog(data: bytes) -> bytes:
    """Return one zlib stream of a catalog or a history."""
    if len(data) > LARGE_CATALOG:
        return bytes(isal_zlib.compress(data, 1))
    return compress(data, CATALOG_LEVEL)


def compress_exactly(data: bytes) -> bytes:
    """Return the stream of vanilla zlib level 6, needed for certificate and metainfo (1.5).

    A replica compresses both anew and stores the result under the hash of ours.
    """
    return zlib.compress(data, STOCK_LEVEL)


def decompress(stored: bytes, limit: int) -> bytes:
    """Return what was compressed.

    Raises:
        IntegrityError: not exactly one complete zlib stream, or more than `limit` bytes.
    """
    decoder = isal_zlib.decompressobj()  # twice as fast as zlib
    try:
        data = bytes(decoder.decompress(stored, limit + 1))
    except _ISAL_ERROR as error:
        raise IntegrityError(f"object is not a zlib stream: {error}") from error
    if len(data) > limit:
        raise IntegrityError(f"object decompresses to more than {limit} bytes")
    if not decoder.eof or decoder.unused_data:
        raise IntegrityError("object is not exactly one zlib stream")
    return data
