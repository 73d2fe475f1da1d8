"""Put tar layers and OCI image layouts together by hand, byte by byte where that matters.

Sources: OCI image-spec `image-layout.md`, `manifest.md` and `config.md`; POSIX.1-2017 `pax`.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import zstandard

EPOCH = 1_700_000_000  # the mtime of what has no reason for another

_OCI = "application/vnd.oci.image"
INDEX_TYPE = f"{_OCI}.index.v1+json"
MANIFEST_TYPE = f"{_OCI}.manifest.v1+json"
CONFIG_TYPE = f"{_OCI}.config.v1+json"
_COMPRESSIONS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "none": (f"{_OCI}.layer.v1.tar", bytes),
    "gzip": (f"{_OCI}.layer.v1.tar+gzip", lambda data: gzip.compress(data, 6, mtime=0)),
    "zstd": (f"{_OCI}.layer.v1.tar+zstd", zstandard.compress),
}


class Tar:
    """A layer put together member by member, in exactly the order of the calls."""

    def __init__(self, *, pax: bool = True) -> None:
        """`pax`: names and numbers that do not fit go to PAX records, else to GNU extensions."""
        self._buffer = io.BytesIO()
        self._tar = tarfile.TarFile(
            fileobj=self._buffer,
            mode="w",
            format=tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT,
            encoding="utf-8",
            errors="surrogateescape",
        )

    def add(
        self,
        name: str | bytes,
        kind: bytes,
        mode: int,
        *,
        data: bytes = b"",
        target: str | bytes = "",
        mtime: float = EPOCH,
        owner: tuple[int, int] = (0, 0),
        device: tuple[int, int] = (0, 0),
        xattrs: Mapping[str, bytes] | None = None,
    ) -> None:
        """Append one member; `kind` is one of `tarfile`'s type flags."""
        info = tarfile.TarInfo(os.fsdecode(name))
        info.type, info.mode, info.size = kind, mode, len(data)
        info.linkname, info.mtime = os.fsdecode(target), mtime
        info.uid, info.gid = owner
        info.devmajor, info.devminor = device
        info.pax_headers = {
            f"SCHILY.xattr.{key}": os.fsdecode(value) for key, value in (xattrs or {}).items()
        }
        self._tar.addfile(info, io.BytesIO(data) if data else None)

    def directory(self, name: str | bytes, mode: int = 0o755, **more: Any) -> None:  # noqa: ANN401
        self.add(name, tarfile.DIRTYPE, mode, **more)

    def file(
        self,
        name: str | bytes,
        data: bytes = b"",
        mode: int = 0o644,
        **more: Any,  # noqa: ANN401
    ) -> None:
        self.add(name, tarfile.REGTYPE, mode, data=data, **more)

    def symlink(self, name: str | bytes, target: str | bytes, **more: Any) -> None:  # noqa: ANN401
        self.add(name, tarfile.SYMTYPE, 0o777, target=target, **more)

    def link(self, name: str | bytes, target: str | bytes, mode: int = 0o644, **more: Any) -> None:  # noqa: ANN401
        self.add(name, tarfile.LNKTYPE, mode, target=target, **more)

    def whiteout(self, path: str) -> None:
        """Remove `path` of the layers below."""
        parent, _, name = path.rpartition("/")
        self.file(f"{parent}/.wh.{name}" if parent else f".wh.{name}")

    def opaque(self, path: str) -> None:
        """Hide everything the layers below have in the directory `path`; "" is the root."""
        self.file(f"{path}/.wh..wh..opq" if path else ".wh..wh..opq")

    def done(self) -> bytes:
        """Return the archive."""
        self._tar.close()
        return self._buffer.getvalue()


def write_oci_layout(
    dest: Path,
    layers: Sequence[bytes],
    config: Mapping[str, Any] | None = None,
    *,
    tag: str = "latest",
    compression: str = "gzip",
    platform: str = "linux/amd64",
) -> Path:
    """Write, or add to, the OCI layout `dest` an image of uncompressed tar `layers`.

    `config` is the image configuration's `config` object; `compression`: none, gzip or zstd.
    """
    manifest = _add_image(dest, layers, config or {}, compression, platform)
    return _add_to_index(dest, manifest, tag)


def multi_platform_image(
    dest: Path, *, tag: str = "latest", platforms: Sequence[str] = ("linux/amd64", "linux/arm64/v8")
) -> Path:
    """Write an index of one image per platform; /platform of each says which it is."""
    manifests = []
    for platform in platforms:
        layer = Tar()
        layer.file("platform", f"{platform}\n".encode())
        manifest = _add_image(dest, [layer.done()], {}, "gzip", platform)
        manifests.append({**manifest, "platform": _platform(platform)})
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests}
    return _add_to_index(dest, _add_blob(dest, json.dumps(index).encode(), INDEX_TYPE), tag)


def reconfigure(layout: Path, config: Mapping[str, Any], *, tag: str = "latest") -> None:
    """Give the image `tag` another `config` object (umoci drops empty words of a command)."""
    manifest = json.loads(read_blob(layout, manifest_digest(layout, tag)))
    document = json.loads(read_blob(layout, manifest["config"]["digest"]))
    document["config"] = config
    manifest["config"] = _add_blob(layout, json.dumps(document).encode(), CONFIG_TYPE)
    _add_to_index(layout, _add_blob(layout, json.dumps(manifest).encode(), MANIFEST_TYPE), tag)


def manifest_digest(layout: Path, tag: str = "latest") -> str:
    """Return the digest of what `tag` names, `sha256:…`."""
    index = json.loads((layout / "index.json").read_bytes())
    for manifest in index["manifests"]:
        if manifest.get("annotations", {}).get("org.opencontainers.image.ref.name") == tag:
            return str(manifest["digest"])
    raise KeyError(f"{layout} has no tag {tag}")


def read_blob(layout: Path, digest: str) -> bytes:
    """Return the bytes of one blob."""
    return (layout / "blobs" / digest.replace(":", "/")).read_bytes()


def _platform(text: str) -> dict[str, str]:
    return dict(zip(("os", "architecture", "variant"), text.split("/"), strict=False))


def _add_image(
    dest: Path,
    layers: Sequence[bytes],
    config: Mapping[str, Any],
    compression: str,
    platform: str,
) -> dict[str, Any]:
    media_type, compress = _COMPRESSIONS[compression]
    document = {
        "created": "2023-11-14T22:13:20Z",
        **_platform(platform),
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer) for layer in layers]},
        "history": [{"created_by": f"layer {number}"} for number in range(len(layers))],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": _add_blob(dest, json.dumps(document).encode(), CONFIG_TYPE),
        "layers": [_add_blob(dest, compress(layer), media_type) for layer in layers],
    }
    return _add_blob(dest, json.dumps(manifest).encode(), MANIFEST_TYPE)


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _add_blob(dest: Path, data: bytes, media_type: str) -> dict[str, Any]:
    digest = _digest(data)
    path = dest / "blobs" / digest.replace(":", "/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return {"mediaType": media_type, "digest": digest, "size": len(data)}


def _add_to_index(dest: Path, descriptor: Mapping[str, Any], tag: str) -> Path:
    path = dest / "index.json"
    index: dict[str, Any] = {"schemaVersion": 2, "manifests": []}
    if path.exists():
        index = json.loads(path.read_bytes())
    name = {"org.opencontainers.image.ref.name": tag}
    others = [entry for entry in index["manifests"] if entry.get("annotations") != name]
    index["manifests"] = [*others, {**descriptor, "annotations": name}]
    path.write_text(json.dumps(index), "utf-8")
    (dest / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}', "utf-8")
    return dest
