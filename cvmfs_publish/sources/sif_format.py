"""Read what a SIF file says is in it, trusting none of it.  Pure, but for reading at offsets.

A SIF file is a header of 128 bytes, a table of descriptors and the data objects they describe, all
numbers little-endian and without padding.  Every offset and size is checked against the file before
it is used, and no two objects may share bytes: what is checked of one would not hold of the other.
Source: the SIF specification, version 01.
"""

from __future__ import annotations

import itertools
import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.sources.base import Platform

LAUNCH = b"#!/usr/bin/env run-singularity\n"
MAGIC_OFFSET = 32
MAGIC = b"SIF_MAGIC\0"
HEADER = struct.Struct("<32s10s3s3s16s8q")
DESCRIPTOR = struct.Struct("<i?3I7q128s384s")
PARTITION = struct.Struct("<2i3s")
SIGNATURE = struct.Struct("<i256s")
# images' word for an architecture → the specification's code for it
ARCHITECTURES = {
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
# kinds of data objects
DEFFILE, ENVIRONMENT, LABELS, DATA_PARTITION, DATA_SIGNATURE, JSON_OBJECT = range(0x4001, 0x4007)
OCI_ROOT_INDEX, OCI_BLOB = 0x400A, 0x400B
# kinds of file systems, and what a partition is for
SQUASHFS, EXT3, ENCRYPTED_SQUASHFS = 1, 2, 5
SYSTEM, PRIMARY_SYSTEM, DATA, OVERLAY = 1, 2, 3, 4
GROUP_MASK = 0xF0000000  # of the number of a group, and of a link to one

MAX_DESCRIPTORS = 4096  # places in the table; writers of SIF make 48
_DESCRIPTORS = range(1, MAX_DESCRIPTORS + 1)

ReadAt = Callable[[int, int], bytes]  # offset, size → the bytes there, fewer at the end of the file


@dataclass(frozen=True, slots=True)
class SifObject:
    """One data object: where it is and what it is said to be."""

    kind: int
    id: int
    group: int  # 0: none
    link: int  # number of another object, or of a group with `GROUP_MASK`; 0: none
    offset: int  # bytes into the file
    size: int  # bytes
    name: str
    extra: bytes  # what the descriptor holds besides, by kind
    raw: bytes  # the whole descriptor, as signatures cover it

    @property
    def partition(self) -> tuple[int, int, str]:
        """Of a partition: the kind of file system, what it is for, the architecture or ""."""
        file_system, purpose, code = PARTITION.unpack_from(self.extra)
        return file_system, purpose, architecture_of(code)

    @property
    def signature(self) -> tuple[int, bytes]:
        """Of a signature: the kind of hash, and the fingerprint of the key as it is claimed."""
        kind, entity = SIGNATURE.unpack_from(self.extra)
        return kind, entity.rstrip(b"\0")


@dataclass(frozen=True, slots=True)
class Sif:
    """What a SIF file says is in it."""

    header: bytes  # as signatures cover it, in part
    id: str
    architecture: str  # as images call it; "" if unknown
    created: int  # Unix seconds
    objects: tuple[SifObject, ...]  # in the order of the table

    def of_kind(self, kind: int) -> list[SifObject]:
        return [each for each in self.objects if each.kind == kind]


def parse_sif(read: ReadAt, file_size: int, subject: str) -> Sif:
    """Raise `IntegrityError` unless everything in header and table is possible."""
    header = read(0, HEADER.size)
    if len(header) < HEADER.size or header[MAGIC_OFFSET : MAGIC_OFFSET + len(MAGIC)] != MAGIC:
        raise IntegrityError(f"{subject} is no SIF file")
    _, _, version, code, identity, created, _, free, total, offset, length, _, _ = HEADER.unpack(
        header
    )
    if version != b"01\0":
        raise IntegrityError(f"{subject} is a SIF file of version {version!a}; known is 01")
    if total not in _DESCRIPTORS or not 0 <= free <= total:
        raise IntegrityError(
            f"{subject} has {free} of {total} places for objects free; at most "
            f"{MAX_DESCRIPTORS} are read"
        )
    size = total * DESCRIPTOR.size
    if offset < HEADER.size or length != size or offset + size > file_size:
        raise IntegrityError(
            f"{subject}: its table of {total} objects is said to have {length} bytes from byte "
            f"{offset} on; the file has {file_size}"
        )
    table = read(offset, size)
    raws = [table[start : start + DESCRIPTOR.size] for start in range(0, size, DESCRIPTOR.size)]
    objects = tuple(
        _parse_object(raw, file_size, subject) for raw in raws if len(raw) > 4 and raw[4]
    )
    if len(objects) != total - free:
        raise IntegrityError(
            f"{subject} has {len(objects)} objects, its header says {total - free}"
        )
    _check_overlaps(objects, [(0, HEADER.size), (offset, offset + size)], subject)
    moment = created if created > 0 else 0
    return Sif(header, str(uuid.UUID(bytes=identity)), architecture_of(code), moment, objects)


def architecture_of(code: bytes) -> str:
    """Return what images call an architecture; "" for a code that stands for none."""
    return next((name for name, known in ARCHITECTURES.items() if known == code[:2]), "")


def platform_of(architecture: str) -> Platform | None:
    """Return the platform an architecture stands for; SIF knows no other system and no variant."""
    return Platform.of("linux", architecture) if architecture else None


def _parse_object(raw: bytes, file_size: int, subject: str) -> SifObject:
    if len(raw) < DESCRIPTOR.size:
        raise IntegrityError(f"{subject}: its table of objects is cut short")
    kind, _, number, group, link, offset, size, _, _, _, _, _, name, extra = DESCRIPTOR.unpack(raw)
    if offset < HEADER.size or size < 0 or offset + size > file_size:
        raise IntegrityError(
            f"{subject}: object {number} is said to have {size} bytes from byte {offset} on; "
            f"the file has {file_size}",
            hint="the file is cut short or damaged; fetch it again",
        )
    text = name.split(b"\0", 1)[0].decode("utf-8", "replace")
    return SifObject(kind, number, group & ~GROUP_MASK, link, offset, size, text, extra, raw)


def _check_overlaps(
    objects: tuple[SifObject, ...], taken: list[tuple[int, int]], subject: str
) -> None:
    numbers = [each.id for each in objects]
    if 0 in numbers or len(set(numbers)) < len(numbers):
        raise IntegrityError(f"{subject}: two of its objects have one number")
    spans = sorted([*taken, *((o.offset, o.offset + o.size) for o in objects if o.size)])
    for (_, end), (start, _) in itertools.pairwise(spans):
        if start < end:
            raise IntegrityError(f"{subject}: two of its objects share the bytes from {start} on")
