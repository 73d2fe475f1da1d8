"""Write the benchmark image as an OCI image layout with the tags `base` and `update`.

    python benchmarks/make_image.py [DIRECTORY] [--scale 0.01]

`base` has four layers, `update` the same four and one of 200 small files.  Equal arguments give
equal layers (their uncompressed bytes on every machine with the same Python minor version, their
blobs where zlib is the same as well).  An image that is there already is left alone.

Source: image-spec `image-layout.md`, `manifest.md`, `config.md`, `layer.md`.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import tarfile
import time
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.material import Material, MiB
from benchmarks.shape import Kind, Member, Shape, describe, flatten, plan_image

STAMP = "image.json"  # written last: a layout without it is unfinished
DEFAULT_DIRECTORY = Path(".benchmarks/image")
TAGS = {"base": 4, "update": 5}  # layers
CREATED = "2023-11-14T22:13:20Z"
GZIP = 31  # zlib's wbits for a gzip stream; its header then has no time and no name
COPY_BYTES = 1 * MiB

MEDIA_INDEX = "application/vnd.oci.image.index.v1+json"
MEDIA_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MEDIA_CONFIG = "application/vnd.oci.image.config.v1+json"
MEDIA_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

# What decides the bytes; an image made by other sources is made anew.
_SOURCES = ("make_image.py", "material.py", "shape.py")
_TAR_TYPES = {
    Kind.DIRECTORY: tarfile.DIRTYPE,
    Kind.FILE: tarfile.REGTYPE,
    Kind.SYMLINK: tarfile.SYMTYPE,
    Kind.HARD_LINK: tarfile.LNKTYPE,
    Kind.WHITEOUT: tarfile.REGTYPE,
}


@dataclass(frozen=True)
class Blob:
    """A stored layer: its digests with algorithm, its sizes in bytes."""

    digest: str
    size: int
    diff_id: str
    tar_size: int


@dataclass(frozen=True)
class Image:
    """A finished image; `directory` is its OCI layout."""

    directory: Path
    scale: float
    seed: int
    shape: Shape
    blobs: tuple[Blob, ...]

    @property
    def gzip_bytes(self) -> int:
        """Size of the layers of `base` as a registry stores them."""
        return sum(blob.size for blob in self.blobs[: TAGS["base"]])


class _LayerWriter:
    """Writes one gzip-compressed tar file and learns both of its digests on the way."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._compressor = zlib.compressobj(6, zlib.DEFLATED, GZIP)
        self._tar_hash = hashlib.sha256()
        self._blob_hash = hashlib.sha256()
        self._pending = bytearray()
        self._tar_size = 0
        self._size = 0

    def write(self, data: bytes) -> None:
        self._pending += data
        if len(self._pending) >= COPY_BYTES:
            self._flush()

    def _flush(self) -> None:
        self._tar_hash.update(self._pending)
        self._tar_size += len(self._pending)
        self._emit(self._compressor.compress(self._pending))
        self._pending.clear()

    def _emit(self, data: bytes) -> None:
        self._blob_hash.update(data)
        self._size += len(data)
        self._file.write(data)

    def close(self) -> Blob:
        self.write(bytes(2 * tarfile.BLOCKSIZE))
        self._flush()
        self._emit(self._compressor.flush())
        self._file.close()
        return Blob(
            f"sha256:{self._blob_hash.hexdigest()}",
            self._size,
            f"sha256:{self._tar_hash.hexdigest()}",
            self._tar_size,
        )


def _tar_header(member: Member) -> bytes:
    header = tarfile.TarInfo(member.path + ("/" if member.kind is Kind.DIRECTORY else ""))
    header.type = _TAR_TYPES[member.kind]
    header.mode = member.mode
    header.uid = header.gid = member.owner
    header.mtime = member.mtime
    header.linkname = member.link
    header.size = member.size if member.kind is Kind.FILE else 0
    return header.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def write_layer(path: Path, members: Iterable[Member], material: Material) -> Blob:
    """Write `members` to `path` as a gzip layer (level 6, as most builders do)."""
    writer = _LayerWriter(path)
    for member in members:
        writer.write(_tar_header(member))
        if member.kind is Kind.FILE and member.content:
            for piece in material.iter_bytes(member.content):
                writer.write(piece)
            writer.write(bytes(-member.size % tarfile.BLOCKSIZE))
    return writer.close()


def write_json_blob(blobs: Path, document: object) -> dict[str, object]:
    """Store a document and return the beginnings of its descriptor."""
    data = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    name = hashlib.sha256(data).hexdigest()
    (blobs / name).write_bytes(data)
    return {"digest": f"sha256:{name}", "size": len(data)}


def write_index(directory: Path, layers: Sequence[Blob]) -> None:
    """Write configs, manifests and the index that names them."""
    blobs = directory / "blobs/sha256"
    manifests = []
    for tag, count in TAGS.items():
        config = {
            "architecture": "amd64",
            "os": "linux",
            "created": CREATED,
            "config": {
                "Env": ["PATH=/opt/conda/bin:/usr/bin:/bin", "ROOTSYS=/opt/root"],
                "Entrypoint": ["/usr/bin/env"],
                "Cmd": ["bash"],
                "WorkingDir": "/home/analysis",
            },
            "rootfs": {"type": "layers", "diff_ids": [blob.diff_id for blob in layers[:count]]},
            "history": [{"created": CREATED, "created_by": f"layer {n}"} for n in range(count)],
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MEDIA_MANIFEST,
            "config": {"mediaType": MEDIA_CONFIG, **write_json_blob(blobs, config)},
            "layers": [
                {"mediaType": MEDIA_LAYER, "digest": blob.digest, "size": blob.size}
                for blob in layers[:count]
            ],
        }
        manifests.append(
            {
                "mediaType": MEDIA_MANIFEST,
                **write_json_blob(blobs, manifest),
                "annotations": {"org.opencontainers.image.ref.name": tag},
                "platform": {"architecture": "amd64", "os": "linux"},
            }
        )
    index = {"schemaVersion": 2, "mediaType": MEDIA_INDEX, "manifests": manifests}
    (directory / "index.json").write_text(json.dumps(index, indent=1))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


_material: Material  # of a worker process; set once, before its first layer


def _start_worker(material: Material) -> None:
    global _material  # how a pool hands large data to its workers
    _material = material


def _write_numbered_layer(job: tuple[Path, int, list[Member]]) -> Blob:
    directory, number, members = job
    path = directory / f"layer-{number}"
    blob = write_layer(path, members, _material)
    path.rename(directory / "blobs/sha256" / blob.digest.removeprefix("sha256:"))
    return blob


def recipe() -> str:
    """Return a fingerprint of everything but the arguments that decides the image's bytes."""
    known = hashlib.sha256(f"{sys.version_info[:2]} zlib {zlib.ZLIB_RUNTIME_VERSION}".encode())
    for name in _SOURCES:
        known.update((Path(__file__).parent / name).read_bytes())
    return known.hexdigest()


def read_image(directory: Path) -> Image | None:
    """Return the finished image in `directory`, or None if there is none of today's recipe."""
    try:
        stamp = json.loads((directory / STAMP).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    if stamp.get("recipe") != recipe():
        return None
    blobs = tuple(Blob(**blob) for blob in stamp["blobs"])
    for blob in blobs:
        path = directory / "blobs/sha256" / blob.digest.removeprefix("sha256:")
        if not path.is_file() or path.stat().st_size != blob.size:
            return None
    return Image(directory, stamp["scale"], stamp["seed"], Shape(**stamp["shape"]), blobs)


def make_image(
    directory: Path, scale: float = 1.0, seed: int = 1, processes: int | None = None
) -> Image:
    """Write the image into `directory` unless it is there, and return it.

    What else an earlier, different or unfinished image left in `directory` is removed; any other
    directory that is not empty is refused with `FileExistsError`.
    """
    found = read_image(directory)
    if found and (found.scale, found.seed) == (scale, seed):
        return found
    if directory.exists() and any(directory.iterdir()):
        if not (directory / "blobs").is_dir():
            raise FileExistsError(f"{directory} is not empty and holds no image; name another")
        shutil.rmtree(directory)
    (directory / "blobs/sha256").mkdir(parents=True)
    processes = processes or os.cpu_count() or 1
    material = Material.make(seed, scale, processes)
    plan = plan_image(scale, seed)
    jobs = [(directory, number, members) for number, members in enumerate(plan)]
    jobs.sort(key=lambda job: -sum(member.size for member in job[2]))  # the longest first
    if processes == 1:
        _start_worker(material)
        written = list(map(_write_numbered_layer, jobs))
    else:
        context = multiprocessing.get_context("fork")  # the workers share the pools' memory
        with ProcessPoolExecutor(processes, context, _start_worker, (material,)) as executor:
            written = list(executor.map(_write_numbered_layer, jobs))
    by_number = {job[1]: blob for job, blob in zip(jobs, written, strict=True)}
    blobs = tuple(by_number[number] for number in range(len(plan)))
    write_index(directory, blobs)
    shape = describe(flatten(plan[: TAGS["base"]]))
    stamp = {
        "recipe": recipe(),
        "scale": scale,
        "seed": seed,
        "shape": dataclasses.asdict(shape),
        "blobs": [dataclasses.asdict(blob) for blob in blobs],
    }
    unfinished = directory / f"{STAMP}.new"
    unfinished.write_text(json.dumps(stamp, indent=1))
    unfinished.rename(directory / STAMP)
    return Image(directory, scale, seed, shape, blobs)


def format_image(image: Image) -> str:
    """Return what a person wants to know about an image, one fact per line."""
    shape = dataclasses.asdict(image.shape)
    lines = [f"{image.directory}, scale {image.scale:g}, seed {image.seed}"]
    lines += [f"  {name.replace('_', ' '):14} {value:>15,}" for name, value in shape.items()]
    for number, blob in enumerate(image.blobs):
        lines.append(f"  layer {number}        {blob.size:>15,}  of {blob.tar_size:,} in tar")
    lines.append(f"  base as gzip   {image.gzip_bytes:>15,}")
    return "\n".join(lines)


def main() -> int:
    """Make the image that the command line asks for."""
    parser = argparse.ArgumentParser(description="Make the benchmark image (an OCI layout).")
    parser.add_argument("directory", type=Path, nargs="?", default=DEFAULT_DIRECTORY)
    parser.add_argument("--scale", type=float, default=1.0, help="1: 72,000 entries, 2.3 GB")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=None, help="default: one per CPU")
    options = parser.parse_args()
    started = time.monotonic()
    try:
        image = make_image(options.directory, options.scale, options.seed, options.processes)
    except FileExistsError as error:
        print(error, file=sys.stderr)
        return 2
    print(format_image(image))
    print(f"  ready after {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
