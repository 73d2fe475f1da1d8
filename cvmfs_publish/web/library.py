"""What is published, read once per revision and kept in memory.

A page over ten thousand images must not read ten thousand records.  They are kept until the
manifest names another root catalog, and then only those catalogs and records are read that are not
the same as before.
"""

from __future__ import annotations

import json
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

from cvmfs_publish.errors import PublishError
from cvmfs_publish.reference import Reference
from cvmfs_publish.repository.layouts import (
    METADATA,
    PUBLICATION_FILE,
    place_name,
)
from cvmfs_publish.repository.names import History, read_history
from cvmfs_publish.repository.native.listing import DirectorySize, KnownFiles, SmallFile
from cvmfs_publish.repository.native.manifest import Manifest
from cvmfs_publish.repository.native.reader import Snapshot
from cvmfs_publish.repository.native.repository import (
    NativeRepository,
    RepositoryInfo,
    SnapshotView,
    damage,
)
from cvmfs_publish.repository.records import NOT_NAMES, Publication
from cvmfs_publish.sources.base import Platform
from cvmfs_publish.state.model import ImageKey

KEPT_SIZES = 256  # images whose sizes by directory are kept; a few kilobytes each


@dataclass(frozen=True)
class Shelf:
    """Everything that is published in one revision."""

    manifest: Manifest
    images: Mapping[ImageKey, Publication]  # in the order of their paths
    damaged: tuple[str, ...] = ()  # records that cannot be read, with the reason

    @property
    def published_at(self) -> datetime:
        return datetime.fromtimestamp(self.manifest.timestamp, UTC)

    @cached_property
    def texts(self) -> Mapping[ImageKey, str]:
        """What each image is searched by, in lower case."""
        return {
            key: f"{key.name} {record.digest} {record.manifest_digest} {record.image_id}".lower()
            for key, record in self.images.items()
        }

    @cached_property
    def times(self) -> Mapping[ImageKey, float]:
        """Since when each name leads where it leads, in seconds since 1970."""
        return {key: _seconds(record.published_at) for key, record in self.images.items()}

    @cached_property
    def layer_uses(self) -> Counter[str]:
        """In how many images each layer is."""
        return Counter(
            layer for record in self.images.values() for layer in dict.fromkeys(record.layers)
        )

    @cached_property
    def sandboxes(self) -> int:
        return len({record.sandbox for record in self.images.values()})

    @cached_property
    def reuse(self) -> float:
        """The share of layers of all images that some other image has as well, counted by use."""
        uses = self.layer_uses
        total = sum(uses.values())
        return 1 - len(uses) / total if total else 0.0


@dataclass(frozen=True, slots=True)
class LayerFact:
    """One layer of a published image."""

    digest: str
    size: int | None  # compressed bytes; None if the registry's manifest does not tell
    uses: int  # published images that have it


@dataclass(frozen=True, slots=True)
class Details:
    """What the page of one image shows beside its record."""

    history: History
    layers: tuple[LayerFact, ...]  # lowest first
    sizes: tuple[DirectorySize, ...]  # of each directory with something in it, biggest first


class Library:
    """Reads what is published.  Every method may be called by several threads at once."""

    def __init__(self, repository: NativeRepository) -> None:
        """Name the repository; nothing is read yet."""
        self._repository = repository
        self._lock = threading.Lock()
        self._shelf: Shelf | None = None
        self._catalogs: KnownFiles = {}
        self._records: dict[SmallFile, Publication | str] = {}
        self._info: tuple[Manifest, RepositoryInfo] | None = None
        self._sizes: OrderedDict[str, tuple[DirectorySize, ...]] = OrderedDict()

    @property
    def name(self) -> str:
        return self._repository.name

    def shelf(self) -> Shelf:
        """Return what is published now.

        Raises:
            RepositoryError: the repository is not there, or damaged.
        """
        manifest = self._repository.manifest()
        shelf = self._shelf
        if shelf is not None and shelf.manifest == manifest:
            return shelf
        with self._lock:  # who comes second finds it read
            if self._shelf is None or self._shelf.manifest != manifest:
                self._shelf = self._read()
            return self._shelf

    def _read(self) -> Shelf:
        with damage(self._repository.location), self._repository.snapshot() as snapshot:
            files = snapshot.list_small_files(METADATA, PUBLICATION_FILE, NOT_NAMES, self._catalogs)
            new = [file for file in files if file not in self._records]
            for file, data in snapshot.read_small_files(new):
                self._records[file] = _parse(file, data)
            manifest = snapshot.manifest
        self._records = {file: self._records[file] for file in files}
        found = self._records.values()
        records = (record for record in found if isinstance(record, Publication))
        return Shelf(
            manifest,
            {ImageKey(record.path.lstrip("/"), record.platform): record for record in records},
            tuple(fault for fault in found if isinstance(fault, str)),
        )

    def info(self, now: datetime) -> RepositoryInfo:
        """Return facts about the published revision, its whitelist as it is now.

        Raises as `NativeRepository.info`.
        """
        return self._repository.info(now)

    def details(self, record: Publication) -> Details:
        """Return what is known of one published image beyond its record.

        Raises:
            InputError: it is not published any more.
            RepositoryError: the repository is damaged.
        """
        reference, platform = Reference.parse(record.reference), Platform.parse(record.platform)
        uses = self.shelf().layer_uses
        with damage(self._repository.location), self._repository.snapshot() as snapshot:
            view = SnapshotView(snapshot)
            history = read_history(view, reference, platform)
            manifest = view.read_file(place_name(reference, platform).manifest)
            sizes = self._measure(snapshot, record)
        compressed = _layer_sizes(manifest or b"")
        layers = tuple(
            LayerFact(digest, compressed.get(digest), uses[digest]) for digest in record.layers
        )
        return Details(history, layers, sizes)

    def _measure(self, snapshot: Snapshot, record: Publication) -> tuple[DirectorySize, ...]:
        """Return the sizes of a sandbox; they never change, so they are kept by its tree."""
        with self._lock:
            known = self._sizes.get(record.tree_digest)
            if known is not None:
                self._sizes.move_to_end(record.tree_digest)
                return known
        found = snapshot.directory_sizes(record.sandbox.lstrip("/")) or []
        found.sort(key=lambda directory: (-directory.bytes, directory.path))
        sizes = tuple(sum_below(found))
        with self._lock:
            self._sizes[record.tree_digest] = sizes
            while len(self._sizes) > KEPT_SIZES:
                self._sizes.popitem(last=False)
        return sizes


def sum_below(sizes: Iterable[DirectorySize], depth: int = 2) -> list[DirectorySize]:
    """Return what the directories of the first levels hold together with all that is below them.

    The path "" is what is directly in the root.  Biggest first.
    """
    entries: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for directory in sizes:
        top = "/".join(directory.path.split("/")[:depth])
        entries[top] += directory.entries
        total[top] += directory.bytes
    found = (DirectorySize(path, entries[path], size) for path, size in total.items())
    return sorted(found, key=lambda directory: (-directory.bytes, directory.path))


def _parse(file: SmallFile, data: bytes) -> Publication | str:
    """One damaged record must not hide all the others; it is shown in their place."""
    try:
        record = Publication.from_json(data)
        Reference.parse(record.reference)
        Platform.parse(record.platform)
    except PublishError as error:
        return f"/{file.path}: {error}"
    return record


def _seconds(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:  # of another program, or another century
        return 0.0


def _layer_sizes(manifest: bytes) -> dict[str, int]:
    """Return the compressed sizes the registry's manifest tells; whoever wrote it, we only show."""
    try:
        layers = json.loads(manifest)["layers"]
        return {layer["digest"]: layer["size"] for layer in layers if type(layer["size"]) is int}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
