"""Compare a published image with what its registry says it should be, entry by entry.

The expected tree is computed anew: layers are fetched again, nothing that was kept of them is
believed.  Contents are compared by the sha256 of their bytes, however they are stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cvmfs_publish.content.hashes import ContentHash
from cvmfs_publish.content.ingest import ContentReader, Stored
from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import InputError, IntegrityError
from cvmfs_publish.layers.fetch import fetch_layers
from cvmfs_publish.layers.merge import merge
from cvmfs_publish.layers.tree import Content, Tree
from cvmfs_publish.layers.treedigest import digest_lines
from cvmfs_publish.publish import PublishSettings, Reporter, Silent
from cvmfs_publish.reference import Reference
from cvmfs_publish.repository.compare import (
    PIECE,
    Difference,
    FolderTree,
    Published,
    StoredTree,
    Uncompared,
    compare,
)
from cvmfs_publish.repository.layouts import Placement, place, place_name
from cvmfs_publish.repository.native.reader import Snapshot
from cvmfs_publish.repository.records import Publication
from cvmfs_publish.sandbox.prepare import prepare
from cvmfs_publish.sources.base import (
    ImageSource,
    LayerDescriptor,
    Locator,
    Platform,
    ResolvedImage,
)
from cvmfs_publish.sources.trust import Trust, UntrustedError


@dataclass(slots=True)
class Verification:
    """What a comparison found."""

    publication: Publication
    entries: int  # that were expected, the root included
    bytes: int  # of the contents that were compared
    present_recipe: str  # digest of how images are prepared now
    differences: list[Difference] = field(default_factory=list)
    uncompared: list[Uncompared] = field(default_factory=list)

    @property
    def is_same_recipe(self) -> bool:
        """Whether the image was prepared as images are now; if not, differences may come of it."""
        return self.publication.recipe == self.present_recipe


# what is expected


def expect_tree(
    source: ImageSource,
    image: ResolvedImage,
    settings: PublishSettings,
    reporter: Reporter,
    name: str,
) -> Tree:
    """Return what an image is published as; `Content.hash` has the sha256 of the bytes."""
    reporter.phase(name, "fetching")

    def report(layer: LayerDescriptor, done: int) -> None:
        reporter.layer(name, str(layer.digest), done, layer.size)

    layers = {layer.digest: layer for layer in image.layers}.values()
    records = fetch_layers(source, image, layers, Hashing(), settings.limits, report=report)
    reporter.phase(name, "stacking")
    ordered = [records[layer.digest] for layer in image.layers]
    tree, _ = merge(ordered, keep_dirlinks=settings.policy.keep_dirlinks)
    prepare(
        tree,
        image.config,
        settings.policy,
        _content_of,
        keep_runtime_files=image.has_runtime_files,
    )
    return tree


class Hashing:
    """Takes contents as an `Ingestor` does, and keeps nothing but their sha256."""

    def open(self) -> HashingStream:
        return HashingStream()


class HashingStream:
    """See `layers.read.ContentStream`."""

    compressed = False

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(PIECE))

    def add(self, reader: ContentReader, size: int) -> list[Stored]:
        """Read `size` bytes; one piece, whatever its size."""
        digest, left = hashlib.sha256(), size
        while left:
            with self._buffer[: min(left, PIECE)] as view:
                reader.readinto(view)
                digest.update(view)
                left -= len(view)
        return [Stored(size, ContentHash(digest.digest()))]

    def finish(self) -> None:
        """Everything is done when it is added."""

    def abandon(self) -> None:
        """Nothing is held."""


def _content_of(data: bytes) -> Content:
    return Content(ContentHash(hashlib.sha256(data).digest()))


def find_in_mount(mount: Path, publication: Publication) -> Path:
    """Return where the sandbox is in a mounted repository; an exported sandbox is one itself.

    Raises:
        InputError: it is not there.
    """
    sandbox = mount / publication.sandbox.lstrip("/")
    if sandbox.is_dir():
        return sandbox
    top = Path(publication.sandbox).parts[1]
    if not mount.is_dir() or (mount / top).exists():
        raise InputError(
            f"{sandbox} is no directory",
            hint="name the mount point of the repository, /cvmfs/NAME, or an exported sandbox; a "
            "client may not have the newest revision yet",
        )
    if not any(mount.iterdir()):
        raise InputError(
            f"{mount} is empty: nothing is mounted there",
            hint="mount the repository first; the client's log says why it could not",
        )
    return mount


def check_identity(publication: Publication, reference: Reference, platform: Platform) -> None:
    """Raise `IntegrityError` if a record was found where that of another image belongs.

    What a record says of itself decides what it is compared with, so a true record of another
    image would be found to be right.
    """
    belongs = place_name(
        Reference.parse(publication.reference), Platform.parse(publication.platform)
    )
    found = place_name(reference, platform)
    if belongs != found:
        raise IntegrityError(
            f"/{found.publication} is the record of {publication.reference} "
            f"({publication.platform}), not of {reference} ({platform})",
            hint="somebody has changed it; `publish --force` puts it right",
        )


# the whole


def verify_image(
    publication: Publication,
    source: ImageSource,
    settings: PublishSettings,
    *,
    snapshot: Snapshot | None = None,
    folder: Path | None = None,
    reporter: Reporter | None = None,
    reference: Reference | None = None,
    trust: Trust | None = None,
) -> Verification:
    """Compare a published image with its registry, or the place it came from.

    Args:
        publication: its record.
        source: of the image; the manifest is asked for by its digest, wherever the tag is now.
        settings: how images are prepared.
        snapshot: the revision in which it is published; its record and names are compared too.
        folder: the sandbox as it is mounted or exported; in place of the one in the snapshot.
        reporter: told what is going on.
        reference: where the image is, if not where its record says.
        trust: what is asked of images now; what does not hold is a difference.

    Raises:
        RemoteError: the registry refused, failed or has no such manifest any more.
        IntegrityError: what the registry sends is not what was promised, or the repository is too
            damaged to be read.
        InputError: the record names no image.
    """
    told = reporter or Silent()
    name = publication.reference
    told.phase(name, "resolving")
    if reference is None and isinstance(source, Locator):
        reference = source.locate_again(name, publication.source)
    reference = reference or Reference.parse(name)
    platform = Platform.parse(publication.platform)
    image = source.resolve(reference, platform, Digest.parse(publication.manifest_digest))
    distrust = list(check_trust(publication, image, source, trust or Trust()))
    tree = expect_tree(source, image, settings, told, name)
    told.phase(name, "comparing")

    def advance(done: int, total: int) -> None:
        told.layer(name, "all:contents", done, total)

    placement = place(reference, platform, image.config_digest, image.manifest_digest)
    result = Verification(publication, 1 + sum(1 for _ in tree.walk()), 0, settings.recipe())
    result.differences += distrust
    published: Published
    if folder is not None:
        published = FolderTree(folder)
    elif snapshot is not None:
        result.differences += compare_records(publication, image, placement, snapshot)
        published = StoredTree(snapshot, placement.sandbox)
    else:
        raise TypeError("neither a snapshot nor a folder to compare with")
    differences, result.bytes = compare(tree, published, advance)
    result.differences += differences
    result.uncompared += published.uncompared
    return result


def check_trust(
    publication: Publication, image: ResolvedImage, source: ImageSource, trust: Trust
) -> Iterator[Difference]:
    """Yield why an image would not be published by the present rules.

    A signature is for what the name led to in the registry, which may be an index: that the
    manifest is in it is looked at anew, since the record alone proves nothing.
    """
    record = place_name(image.reference, image.platform).publication
    if not trust.identity(image.reference):
        return
    digest = Digest.parse(publication.digest)
    if digest != image.manifest_digest:
        found = source.resolve(image.reference, image.platform, digest).manifest_digest
        if found != image.manifest_digest:
            yield Difference(
                f"/{record}", "manifest of its digest", str(found), str(image.manifest_digest)
            )
            return
    try:
        trust.check(image, digest)
    except UntrustedError as error:
        policies = "+".join(rule.policy for rule in trust.rules_for(image.reference))
        yield Difference(f"/{record}", "trust", policies, str(error))


def compare_records(
    publication: Publication, image: ResolvedImage, placement: Placement, snapshot: Snapshot
) -> Iterator[Difference]:
    """Yield how records and names differ from what the registry and the tree say."""
    record = f"/{placement.publication}"
    layers = " ".join(str(layer.digest) for layer in image.layers)
    for what, expected, found in (
        ("image id", str(image.config_digest), publication.image_id),
        ("layers", layers, " ".join(publication.layers)),
        ("sandbox", f"/{placement.sandbox}", publication.sandbox),
        ("path", f"/{placement.name}", publication.path),
    ):
        if expected != found:
            yield Difference(record, what, expected, found)
    row = snapshot.lookup(placement.manifest)
    stored = snapshot.read_file(placement.manifest) if row is not None and row.node.is_file else b""
    if stored != image.manifest:
        old, new = Digest.of(image.manifest), Digest.of(stored)
        yield Difference(f"/{placement.manifest}", "content", str(old), str(new) if stored else "")
    lines = snapshot.list_lines(placement.sandbox)
    found_digest = str(digest_lines(lines)) if lines is not None else ""
    if found_digest != publication.tree_digest:
        yield Difference(record, "tree digest", publication.tree_digest, found_digest)
    elif lines is not None and len(lines) - 1 != publication.entries:
        yield Difference(record, "entries", str(len(lines) - 1), str(publication.entries))
    variables = {"CVMFS_ARCH": placement.platform_name.split("/")[1]}
    for link in dict.fromkeys((placement.name, placement.immutable_name)):
        leads_to = snapshot.resolve(link, variables=variables)
        if leads_to != placement.sandbox:
            shown = "" if leads_to is None else f"/{leads_to}"
            yield Difference(f"/{link}", "name leads to", f"/{placement.sandbox}", shown)
