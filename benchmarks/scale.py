"""Publish one more image into repositories of 10 to 10,000 images: what does the size cost?

    python -m benchmarks.scale [--sizes 10,100,1000,10000] [--entries 100] [--one-namespace]

Images are synthetic and small, everything else is real: layers are read, stacked, prepared and
stored by the publisher, each image has its own layer, sandbox, catalogs, records and names.  Only
the registry is missing: images come from memory, so that the time is the repository's.  At each
size a new process publishes some more images, one per call, as `cvmfs-publish publish` would, and
`cvmfs-publish list` is run; time, memory and catalogs written are reported, and each time as a
ratio to the same in the smallest repository.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import TracebackType

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm, Suffix
from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.digest import Digest
from cvmfs_publish.layers.record import RecordStore
from cvmfs_publish.publish import Publisher, PublishSettings
from cvmfs_publish.reference import Reference
from cvmfs_publish.repository.native.repository import NativeRepository
from cvmfs_publish.sources.base import LayerDescriptor, Platform, ResolvedImage

NAME = "scale.example.org"
OWN_FILES = 5  # of each image's own layer; the rest is the layer all have in common
FILES_PER_DIRECTORY = 25
BATCH = 200  # images per transaction while the repository grows
TEAMS = 40  # namespaces the images are spread over, as on unpacked.cern.ch
PROBES = 5  # images published one by one at each size


@dataclass(frozen=True)
class Shape:
    """What the images of a run look like."""

    entries: int  # files of one image, about
    one_namespace: bool  # all images in one folder, the worst case

    def name(self, number: int) -> str:
        team = "all" if self.one_namespace else f"team{number % TEAMS:02}"
        return f"registry.example.org/{team}/image{number}:1"


class Memory:
    """The bytes of one blob."""

    def __init__(self, data: bytes) -> None:
        self._stream = io.BytesIO(data)

    def __enter__(self) -> Memory:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def read(self, size: int) -> bytes:
        return self._stream.read(size)


class Synthetic:
    """A source of as many images as anybody asks for; see `sources.base.ImageSource`."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape

    def head(self, reference: Reference) -> Digest:
        return _digest(self._manifest(reference))

    def resolve(
        self, reference: Reference, platform: Platform, digest: Digest | None = None
    ) -> ResolvedImage:
        manifest = self._manifest(reference)
        layers = self._layers(reference)
        return ResolvedImage(
            reference=reference,
            digest=_digest(manifest),
            manifest_digest=_digest(manifest),
            manifest=manifest,
            config_digest=_digest(self._config(reference)),
            config=self._config(reference),
            layers=tuple(
                LayerDescriptor(_digest(data), len(data), "application/tar", _digest(data))
                for data in layers
            ),
            platform=platform,
        )

    def open_layer(self, reference: Reference, layer: LayerDescriptor) -> Memory:
        found = {_digest(data): data for data in self._layers(reference)}
        return Memory(found[layer.digest])

    def _layers(self, reference: Reference) -> list[bytes]:
        common = make_layer("usr", self._shape.entries - OWN_FILES, "common")
        return [common, make_layer("app", OWN_FILES, str(reference))]

    def _config(self, reference: Reference) -> bytes:
        layers = [str(_digest(data)) for data in self._layers(reference)]
        document = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["PATH=/usr/bin:/bin"], "Cmd": ["/app/run"]},
            "rootfs": {"type": "layers", "diff_ids": layers},
        }
        return json.dumps(document).encode()

    def _manifest(self, reference: Reference) -> bytes:
        return json.dumps({"config": str(_digest(self._config(reference)))}).encode()


@cache
def make_layer(top: str, files: int, salt: str) -> bytes:
    """Return a tar archive of `files` small files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for number in range(files):
            data = f"{salt} {number}\n".encode()
            member = tarfile.TarInfo(f"{top}/d{number // FILES_PER_DIRECTORY}/file{number}")
            member.size, member.mtime = len(data), 1_700_000_000
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def _digest(data: bytes) -> Digest:
    return Digest("sha256", hashlib.sha256(data).hexdigest())


class CountingStore(LocalStore):
    """A local store that counts the catalogs it is given."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.catalogs: list[int] = []  # stored bytes of each

    def put(self, stored: bytes, content_hash: ContentHash, kind: Suffix) -> bool:
        if kind is Suffix.CATALOG:
            self.catalogs.append(len(stored))
        return super().put(stored, content_hash, kind)


@contextmanager
def open_publisher(
    base: Path, shape: Shape
) -> Iterator[tuple[Publisher, NativeRepository, CountingStore]]:
    """Put together what publishes into the repository of this run."""
    store = CountingStore(base / "repository")
    repository = NativeRepository(NAME, store, base / "keys")
    records = RecordStore(base / "state" / "layers", HashAlgorithm.SHA1)
    yield Publisher(repository, Synthetic(shape), records, PublishSettings()), repository, store


def grow(base: Path, shape: Shape, start: int, end: int) -> None:
    """Publish images number `start` to `end`, many in each transaction."""
    with open_publisher(base, shape) as (publisher, _, _):
        for first in range(start, end, BATCH):
            names = [shape.name(number) for number in range(first, min(first + BATCH, end))]
            result = publisher.publish(names, now=datetime.now(UTC))
            failed = [image for image in result.images if image.status != "published"]
            if failed:
                raise SystemExit(f"{failed[0].reference}: {failed[0].error}")
            make_layer.cache_clear()
            _say(f"  {first + len(names):,} images")


def probe(base: Path, shape: Shape, size: int) -> dict[str, object]:
    """Publish some images one by one, each by a publisher of its own; return what it took."""
    seconds, counts, stored = [], [], []
    for number in range(PROBES):
        name = shape.name(1_000_000 + size * 10 + number)
        # what the image itself costs to make is not the repository's
        Synthetic(shape).resolve(Reference.parse(name), Platform.default())
        with open_publisher(base, shape) as (publisher, _, store):
            started = time.perf_counter()
            publisher.publish([name], now=datetime.now(UTC))
            seconds.append(time.perf_counter() - started)
            counts.append(len(store.catalogs))
            stored.append(sum(store.catalogs))
    return {
        "seconds": statistics.median(seconds),
        "catalogs": statistics.median(counts),
        "catalog_bytes": statistics.median(stored),
        "peak_bytes": read_peak(),
    }


def read_peak() -> int:
    """Return the most memory this process had since it was started, in bytes.

    Not `getrusage`, whose peak a process inherits from the one that started it.  Source: proc(5).
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) * 1024


def measure_list(base: Path) -> float:
    """Return the seconds `cvmfs-publish list` takes, the best of three."""
    config = base / "cvmfs-publish.yaml"
    config.write_text(f"repository: {{name: {NAME}, storage: repository, keys: keys}}\n")
    command = [sys.executable, "-m", "cvmfs_publish", "--config", str(config), "list", "--json"]
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def measure(base: Path, shape: Shape, sizes: Sequence[int]) -> list[dict[str, object]]:
    """Grow a repository through all sizes and return one row of results for each."""
    with open_publisher(base, shape) as (_, repository, _):
        repository.create(HashAlgorithm.SHA1, datetime.now(UTC))
    rows: list[dict[str, object]] = []
    published = 0
    for size in sizes:
        grow(base, shape, published, size)
        published = size
        command = [sys.executable, "-m", "benchmarks.scale", "--probe", str(size)]
        command += ["--work", str(base), "--entries", str(shape.entries)]
        command += ["--one-namespace"] if shape.one_namespace else []
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        rows.append({"images": size, **found, "list_seconds": measure_list(base)})
        _say(json.dumps(rows[-1]))
    return rows


def format_rows(rows: list[dict[str, object]]) -> str:
    """Return the results as a table."""
    lines = [
        "| images | one more image | ratio | catalogs written | their bytes | peak memory | list |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    first = float(str(rows[0]["seconds"]))
    for row in rows:
        seconds = float(str(row["seconds"]))
        catalogs, stored = float(str(row["catalogs"])), float(str(row["catalog_bytes"]))
        peak, listing = float(str(row["peak_bytes"])), float(str(row["list_seconds"]))
        lines.append(
            f"| {row['images']:,} | {seconds:.3f} s | {seconds / first:.2f} | {catalogs:.0f} "
            f"| {stored / 1000:.0f} kB | {peak / 1e6:.0f} MB | {listing:.2f} s |"
        )
    return "\n".join(lines)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Read the options and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--sizes", default="10,100,1000,10000", help="images, ascending")
    parser.add_argument("--entries", type=int, default=100, help="files of one image")
    parser.add_argument("--one-namespace", action="store_true", help="all images in one folder")
    parser.add_argument("--work", type=Path, help="folder to use; by default one that is removed")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--probe", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    shape = Shape(options.entries, options.one_namespace)
    if options.probe is not None:
        print(json.dumps(probe(options.work, shape, options.probe)))
        return 0
    sizes = [int(text) for text in options.sizes.split(",")]
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        rows = measure(Path(folder), shape, sizes)
    print(json.dumps(rows) if options.json else format_rows(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
