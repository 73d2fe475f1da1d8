"""Write images as the archives that tools make of them; by hand, as no tool lies."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import zstandard

from tests.layouts import read_blob

COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "gzip": gzip.compress,
    "zstd": zstandard.compress,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
}


def pack(members: Mapping[str, bytes | tuple[bytes, str]]) -> bytes:
    """Return a tar of files, and of links: `{name: (tarfile.SYMTYPE, target)}`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, value in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(value, tuple):
                info.type, info.linkname = value
                archive.addfile(info)
            else:
                info.size = len(value)
                archive.addfile(info, io.BytesIO(value))
    return buffer.getvalue()


def oci_members(layout: Path) -> dict[str, bytes | tuple[bytes, str]]:
    """Return the files of an OCI layout, the index last, as tools write it."""
    files = sorted(path for path in layout.rglob("*") if path.is_file())
    files.sort(key=lambda path: path.name == "index.json")
    return {path.relative_to(layout).as_posix(): path.read_bytes() for path in files}


def oci_archive(target: Path, layout: Path, compression: str = "none") -> Path:
    """Write the tar of an OCI layout."""
    target.write_bytes(COMPRESSIONS[compression](pack(oci_members(layout))))
    return target


def docker_config(layers: Sequence[bytes], **more: Any) -> bytes:  # noqa: ANN401
    """Return the configuration of an image of uncompressed layers."""
    document = {
        "architecture": "amd64",
        "os": "linux",
        "created": "2023-11-14T22:13:20Z",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
        **more,
    }
    return json.dumps(document).encode()


def docker_members(
    layers: Sequence[bytes],
    config: bytes = b"",
    tags: Sequence[str] | None = ("example.org/a/b:1",),
    compression: str = "none",
) -> dict[str, bytes | tuple[bytes, str]]:
    """Return the files of a `docker save`; layers compressed as crane and kaniko write them."""
    config = config or docker_config(layers)
    members: dict[str, bytes | tuple[bytes, str]] = {f"{digest(config)[7:]}.json": config}
    names = []
    for layer in layers:
        data = COMPRESSIONS[compression](layer)
        suffix = "/layer.tar" if compression == "none" else ".tar.gz"
        names.append(f"{digest(data)[7:]}{suffix}")
        members[names[-1]] = data
    entry = {"Config": f"{digest(config)[7:]}.json", "RepoTags": tags, "Layers": names}
    members["manifest.json"] = json.dumps([entry]).encode()
    return members


def legacy_members(layers: Sequence[bytes], name: str, tag: str) -> dict[str, Any]:
    """Return the files that Docker before 1.10 saved: every layer with its parent, no manifest."""
    members: dict[str, Any] = {}
    parent = ""
    for number, layer in enumerate(layers):
        identifier = hashlib.sha256(f"{number} {parent}".encode()).hexdigest()
        document: dict[str, Any] = {"id": identifier, "os": "linux", "architecture": "amd64"}
        document |= {"config": {"Env": ["OLD=1"]}, "created": "2014-06-09T17:00:00Z"}
        if parent:
            document["parent"] = parent
        members[f"{identifier}/VERSION"] = b"1.0"
        members[f"{identifier}/json"] = json.dumps(document).encode()
        members[f"{identifier}/layer.tar"] = layer
        parent = identifier
    members["repositories"] = json.dumps({name: {tag: parent}}).encode()
    return members


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def layer_blobs(layout: Path, manifest: str) -> list[bytes]:
    """Return the layers of a layout's image as they are stored."""
    document = json.loads(read_blob(layout, manifest))
    return [read_blob(layout, layer["digest"]) for layer in document["layers"]]
