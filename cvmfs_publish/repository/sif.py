"""Write the frame that makes a SIF image, as Apptainer runs it, of a squashfs.  Pure.

A SIF file is a header of 128 bytes, a table of descriptors and, at a multiple of 4096, the data.
Source: the SIF specification, version 01 (header and descriptor structures, little-endian and
without padding): launch script, magic, version, architecture, id, times, then how many descriptors
there are and where; one descriptor says that the data is the squashfs of the primary system
partition.  Times and id follow from the image, so equal images give equal files.
"""

from __future__ import annotations

import hashlib
import uuid

from cvmfs_publish.errors import InputError
from cvmfs_publish.sources.base import Platform
from cvmfs_publish.sources.sif_format import (
    ARCHITECTURES,
    DATA_PARTITION,
    DESCRIPTOR,
    GROUP_MASK,
    HEADER,
    LAUNCH,
    MAGIC,
    PARTITION,
    PRIMARY_SYSTEM,
    SQUASHFS,
)

DATA_OFFSET = 32768  # of the squashfs: the first multiple of 4096 behind the table
_TABLE_OFFSET = 4096
_DESCRIPTORS = 48  # places in the table, as other writers of SIF make them


def make_frame(size: int, platform: Platform, identity: str, time: int) -> bytes:
    """Return everything before the squashfs: `DATA_OFFSET` bytes.

    Args:
        size: bytes of the squashfs.
        platform: what the image runs on.
        identity: a text that tells this image from others; its id is derived from it.
        time: Unix seconds that the file says it was made at.
    """
    check_platform(platform)
    architecture = ARCHITECTURES[platform.architecture]
    table = _DESCRIPTORS * DESCRIPTOR.size
    padding = DATA_OFFSET - _TABLE_OFFSET - table
    header = HEADER.pack(
        LAUNCH,
        MAGIC,
        b"01",
        architecture,
        _identifier(identity).bytes,
        time,
        time,
        _DESCRIPTORS - 1,
        _DESCRIPTORS,
        _TABLE_OFFSET,
        table,
        _TABLE_OFFSET + table,
        padding + size,
    )
    descriptor = DESCRIPTOR.pack(
        DATA_PARTITION,
        True,
        1,  # its number
        GROUP_MASK | 1,
        0,  # linked to nothing
        DATA_OFFSET,
        size,
        padding + size,
        time,
        time,
        0,
        0,
        b"squashfs.sqfs",
        PARTITION.pack(SQUASHFS, PRIMARY_SYSTEM, architecture),
    )
    return header.ljust(_TABLE_OFFSET, b"\0") + descriptor.ljust(DATA_OFFSET - _TABLE_OFFSET, b"\0")


def check_platform(platform: Platform) -> None:
    """Raise `InputError` unless SIF has a code for this architecture."""
    if platform.architecture not in ARCHITECTURES:
        raise InputError(
            f"a SIF file cannot say {platform}: known are {', '.join(ARCHITECTURES)}",
            hint="set `fallback.format: tar.gz`",
        )


def _identifier(identity: str) -> uuid.UUID:
    """Return an id of the kind that is made by a rule of one's own (RFC 9562, version 8)."""
    digest = bytearray(hashlib.sha256(identity.encode()).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x80
    digest[8] = digest[8] & 0x3F | 0x80
    return uuid.UUID(bytes=bytes(digest))
