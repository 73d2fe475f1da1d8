"""Write SIF files by hand: with any objects, true or not, around a real squashfs or none."""

from __future__ import annotations

import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import parts

# the SIF specification, version 01: header and descriptor, little-endian, without padding
HEADER = struct.Struct("<32s10s3s3s16s8q")
DESCRIPTOR = struct.Struct("<i?3I7q128s384s")
DEFFILE, ENVIRONMENT, LABELS, PARTITION, SIGNATURE, JSON_OBJECT = range(0x4001, 0x4007)
TABLE = 4096
PLACES = 48
DATA = 32768
CREATED = 1_700_000_000


@dataclass(frozen=True)
class Object:
    """One data object."""

    kind: int
    data: bytes
    name: str = ""
    extra: bytes = b""
    changes: Mapping[str, Any] | None = None  # of the descriptor's fields


def squashfs_of(tar: bytes, *options: str) -> bytes:
    """Return the squashfs that squashfs-tools make of a tar."""
    program = parts.require("sqfstar")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "squashfs")
        subprocess.run(
            [program, *(options or ("-comp", "gzip")), "-quiet", "-no-progress", target],
            input=tar,
            check=True,
            capture_output=True,
        )
        return target.read_bytes()


def system(
    squashfs: bytes, architecture: bytes = b"02", file_system: int = 1, purpose: int = 2
) -> Object:
    """Return the partition that holds the operating system."""
    return Object(
        PARTITION, squashfs, "squashfs", struct.pack("<2i3s", file_system, purpose, architecture)
    )


def make_sif(
    objects: Sequence[Object],
    architecture: bytes = b"02",
    **changes: Any,  # noqa: ANN401
) -> bytes:
    """Return a SIF file of these objects; `changes` of the header's fields."""
    table, data, position = b"", b"", DATA
    for number, each in enumerate(objects, start=1):
        padding = -position % 4096 if each.kind == PARTITION else 0
        position += padding
        fields = {
            "kind": each.kind,
            "used": True,
            "id": number,
            "group": 0xF0000001,
            "link": 0,
            "offset": position,
            "size": len(each.data),
            "size_with_padding": len(each.data) + padding,
            "created": CREATED,
            "modified": CREATED,
            "uid": 0,
            "gid": 0,
            "name": each.name.encode(),
            "extra": each.extra,
            **(each.changes or {}),
        }
        table += DESCRIPTOR.pack(*fields.values())
        data += bytes(padding) + each.data
        position += len(each.data)
    header = {
        "launch": b"#!/usr/bin/env run-singularity\n",
        "magic": b"SIF_MAGIC",
        "version": b"01",
        "architecture": architecture,
        "id": bytes(range(16)),
        "created": CREATED,
        "modified": CREATED,
        "free": PLACES - len(objects),
        "total": PLACES,
        "table": TABLE,
        "table_size": PLACES * DESCRIPTOR.size,
        "data": DATA,
        "data_size": len(data),
        **changes,
    }
    return (
        HEADER.pack(*header.values()).ljust(TABLE, b"\0") + table.ljust(DATA - TABLE, b"\0") + data
    )
