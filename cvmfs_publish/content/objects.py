"""Turn bytes into the stored form of an object (a zlib stream) and back.

Source: facts/cvmfs-format.md sections 1.3 to 1.5.
"""

from __future__ import annotations

import zlib

import deflate

from cvmfs_publish.errors import IntegrityError

# Level 1 of libdeflate is 5 times as fast as zlib level 6 and 5 % larger; the limit we set
# ourselves is 8 % (benchmarks/README.md has the measured table).
DATA_LEVEL = 1
CATALOG_LEVEL = 6  # read by every client of a repository, written once


def compress(data: bytes | memoryview, level: int = DATA_LEVEL) -> bytes:
    """Return one zlib stream of `data`; not the bytes stock zlib would produce."""
    return bytes(deflate.zlib_compress(data, level))


def compress_exactly(data: bytes) -> bytes:
    """Return the stream of vanilla zlib level 6, needed for certificate and metainfo (1.5).

    A replica compresses both anew and stores the result under the hash of ours.
    """
    return zlib.compress(data, 6)


def decompress(stored: bytes, limit: int) -> bytes:
    """Return what was compressed.

    Raises:
        IntegrityError: not exactly one complete zlib stream, or more than `limit` bytes.
    """
    decoder = zlib.decompressobj()
    try:
        data = decoder.decompress(stored, limit + 1)
    except zlib.error as error:
        raise IntegrityError(f"object is not a zlib stream: {error}") from error
    if len(data) > limit:
        raise IntegrityError(f"object decompresses to more than {limit} bytes")
    if not decoder.eof or decoder.unused_data:
        raise IntegrityError("object is not exactly one zlib stream")
    return data
