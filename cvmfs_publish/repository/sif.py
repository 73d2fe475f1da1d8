"""Write the frame that makes a SIF image, as Apptainer runs it, of a squashfs.  Pure.

A SIF file is a header of 128 bytes, a table of descriptors and, at a multiple of 4096, the data.
Source: the SIF specification, version 01 (header and descriptor structures, little-endian and
without padding): launch script, magic, version, architecture, id, times, then how many descriptors
there are and where; one descriptor says that the data is the squashfs of the primary system
partition.  Times and id follow from the image, so equal images give equal files.
"""

from __future__ import annotations

import hashlib
import struct
import uuid

from cvmfs_publish.errors import InputError
from cvmfs_publish.sources.base import Platform

DATA_OFFSET = 32768  # of the squashfs: the first multiple of 4096 behind the table
_TABLE_OFFSET = 4096
_DESCRIPTORS = 48  # places in the table, as other writers of SIF make them
_LAUNCH = b"#!/usr/bin/env run-singularity\n"
_HEADER = struct.Struct("<32s10s3s3s16s8q")
_DESCRIPTOR = struct.Struct("<i?3I7q128s384s")
_PARTITION = struct.Struct("<2i3s")
_DATA_PARTITION = 0x4004
_GROUP_1 = 0xF0000001
_SQUASHFS, _PRIMARY_SYSTEM = 1, 2
_ARCHITECTURES = {
    "386": b"01",
    "amd64": b"02",
    "arm": b"03",
    "arm64": b"04",
    "ppc64": b"05",
    "ppc64le": b"06",
    "mips": b"07",
    "mipsle": b"08",
    "mips64": b"09",
    "mips64le": b"10",
    "s390x": b"11",
    "riscv64": b"12",
}


def make_frame(size: int, platform: Platform, identity: str, time: int) -> bytes:
    """Return everything before the squashfs: `DATA_OFFSET` bytes.

    Args:
        size: bytes of the squashfs.
        platform: what the image runs on.
        identity: a text that tells this image from others; its id is derived from it.
        time: Unix seconds that the file says it was made at.
    """
    check_platform(platform)
    architecture = _ARCHITECTURES[platform.architecture]
    table = _DESCRIPTORS * _DESCRIPTOR.size
    padding = DATA_OFFSET - _TABLE_OFFSET - table
    header = _HEADER.pack(
        _LAUNCH,
        b"SIF_MAGIC",
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
    descriptor = _DESCRIPTOR.pack(
        _DATA_PARTITION,
        True,
        1,  # its number
        _GROUP_1,
        0,  # linked to nothing
        DATA_OFFSET,
        size,
        padding + size,
        time,
        time,
        0,
        0,
        b"squashfs.sqfs",
        _PARTITION.pack(_SQUASHFS, _PRIMARY_SYSTEM, architecture),
    )
    return header.ljust(_TABLE_OFFSET, b"\0") + descriptor.ljust(DATA_OFFSET - _TABLE_OFFSET, b"\0")


def check_platform(platform: Platform) -> None:
    """Raise `InputError` unless SIF has a code for this architecture."""
    if platform.architecture not in _ARCHITECTURES:
        raise InputError(
            f"a SIF file cannot say {platform}: known are {', '.join(_ARCHITECTURES)}",
            hint="set `fallback.format: tar.gz`",
        )


def _identifier(identity: str) -> uuid.UUID:
    """Return an id of the kind that is made by a rule of one's own (RFC 9562, version 8)."""
    digest = bytearray(hashlib.sha256(identity.encode()).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x80
    digest[8] = digest[8] & 0x3F | 0x80
    return uuid.UUID(bytes=bytes(digest))
