"""One source for all transports: `[TRANSPORT:]REFERENCE` as people type it, and what answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import InputError
from cvmfs_publish.origin import Origin
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources.archives import DockerArchiveSource, OciArchiveSource, OciSource
from cvmfs_publish.sources.base import (
    BlobStream,
    ImageSource,
    LayerDescriptor,
    PlacedSource,
    Platform,
    ResolvedImage,
    SourceLimits,
    origin_of,
)
from cvmfs_publish.sources.cosign import Candidate
from cvmfs_publish.sources.downloads import Downloads
from cvmfs_publish.sources.held import FileHolder, LocalFiles
from cvmfs_publish.sources.library import DEFAULT_LIBRARY, LibraryFiles
from cvmfs_publish.sources.objectstore import S3Access, S3Files, SwiftAccess, SwiftFiles
from cvmfs_publish.sources.oras import OrasFiles
from cvmfs_publish.sources.registry.auth import Credential
from cvmfs_publish.sources.registry.source import RegistrySource
from cvmfs_publish.sources.renamed import RenamedSource
from cvmfs_publish.sources.shub import DEFAULT_HUB, HubFiles
from cvmfs_publish.sources.sif import SIF, TAR, FileSource
from cvmfs_publish.sources.sif_signature import SifKeys, UnsignedSifError
from cvmfs_publish.sources.squashfs import SquashfsTool
from cvmfs_publish.sources.trust import SignatureStore
from cvmfs_publish.sources.web import WebFiles

REGISTRY = "docker"  # the transport of an image in a registry that is published under another name


@dataclass(frozen=True, slots=True)
class Access:
    """What sources need to reach their images."""

    registry: RegistrySource
    downloads: Downloads
    credentials: Mapping[str, Credential] = field(default_factory=dict)  # of web hosts
    s3: S3Access = field(default_factory=S3Access)
    swift: SwiftAccess = field(default_factory=SwiftAccess)
    library: str = DEFAULT_LIBRARY
    hub: str = DEFAULT_HUB
    signatures: SignatureStore | None = None  # of images in registries
    limits: SourceLimits = field(default_factory=SourceLimits)
    scratch: Path | None = None  # where copies are made that nobody sees
    sqfs2tar: Path | None = None  # the program of squashfs-tools-ng

    def files(self, holder: FileHolder, *kinds: str) -> FileSource:
        """Return the source of images that are files of these kinds in a place."""
        tool = SquashfsTool(self.sqfs2tar, self.scratch, self.limits.ratio)
        return FileSource(holder, tool, kinds)


SOURCES: dict[str, Callable[[Access], PlacedSource]] = {
    REGISTRY: lambda access: RenamedSource(access.registry),
    "docker-archive": lambda access: DockerArchiveSource(access.limits),
    "oci": lambda access: OciSource(access.limits),
    "oci-archive": lambda access: OciArchiveSource(access.limits),
    "sif": lambda access: access.files(LocalFiles(access.limits.layer_bytes), SIF),
    "tar": lambda access: access.files(LocalFiles(access.limits.layer_bytes), TAR),
    "https": lambda access: access.files(WebFiles(access.downloads, access.credentials), SIF, TAR),
    "http": lambda access: access.files(WebFiles(access.downloads, access.credentials), SIF, TAR),
    "s3": lambda access: access.files(S3Files(access.downloads, access.s3), SIF, TAR),
    "swift": lambda access: access.files(SwiftFiles(access.downloads, access.swift), SIF, TAR),
    "oras": lambda access: access.files(OrasFiles(access.downloads, access.registry), SIF),
    "library": lambda access: access.files(
        LibraryFiles(access.downloads, access.credentials, access.library), SIF
    ),
    "shub": lambda access: access.files(
        HubFiles(access.downloads, access.credentials, access.hub), SIF
    ),
}


class Sources:
    """The `ImageSource` of every image, what proves it, and the `Locator` of what people type."""

    def __init__(self, access: Access, folder: str) -> None:
        """Open nothing yet; relative paths are relative to `folder`."""
        self._registry = access.registry
        self._signatures = access.signatures
        self._placed: Mapping[str, PlacedSource] = {
            transport: make(access) for transport, make in SOURCES.items()
        }
        self._folder = folder

    # Locator

    def locate(self, text: str, name: str = "") -> Reference:
        """As promised by `Locator.locate`."""
        origin = Origin.parse(text)
        if origin is None:
            reference = Reference.parse(text)
            if not name:
                return reference
            return replace(Reference.parse(name), origin=Origin(REGISTRY, str(reference)))
        origin = origin.below(self._folder)
        called = name or self._placed[origin.transport].name(origin)
        if not called:
            raise InputError(
                f"{origin} does not say what the image is called",
                hint="say it: --as REGISTRY/REPOSITORY:TAG",
            )
        try:
            return replace(Reference.parse(called), origin=origin)
        except InputError as error:
            if name:
                raise
            raise InputError(
                f"{origin} calls itself {called[:200]!a}, under which nothing can be published: "
                f"{error}",
                hint="give it another name: --as REGISTRY/REPOSITORY:TAG",
            ) from error

    def locate_again(self, name: str, origin: str) -> Reference:
        """As promised by `Locator.locate_again`."""
        if not origin:
            return Reference.parse(name)
        _, _, rest = origin.partition(f"{REGISTRY}://")
        found = Origin(REGISTRY, rest) if rest else Origin.parse(origin)
        if found is None or found.transport not in self._placed:
            raise InputError(
                f"{name} was published from {origin[:200]!a}, which this version does not know",
                hint="update cvmfs-publish",
            )
        return replace(Reference.parse(name), origin=found)

    def state(self, reference: Reference, platform: Platform) -> str:
        """As promised by `Locator.state`."""
        origin = reference.origin
        return self._of(reference).state(origin, platform) if origin is not None else ""

    # ImageSource

    def head(self, reference: Reference) -> Digest:
        """As promised by `ImageSource.head`."""
        return self._source(reference).head(reference)

    def resolve(
        self, reference: Reference, platform: Platform, digest: Digest | None = None
    ) -> ResolvedImage:
        """As promised by `ImageSource.resolve`."""
        return self._source(reference).resolve(reference, platform, digest)

    def open_layer(self, reference: Reference, layer: LayerDescriptor) -> BlobStream:
        """As promised by `ImageSource.open_layer`."""
        return self._source(reference).open_layer(reference, layer)

    # Evidence

    def iter_candidates(
        self, reference: Reference, digest: Digest, skip: Callable[[str], None]
    ) -> Iterator[Candidate]:
        """As promised by `Evidence.iter_candidates`."""
        if self._signatures is None:
            return iter(())
        return self._signatures.iter_candidates(reference, digest, skip)

    def find_sif_signers(self, image: ResolvedImage, keys: SifKeys) -> tuple[str, ...]:
        """As promised by `Evidence.find_sif_signers`."""
        source = self._source(image.reference)
        if not isinstance(source, FileSource):
            raise UnsignedSifError("it is no SIF file")
        return source.find_signers(image, keys)

    # SecondSource

    def distrust(self, digest: Digest) -> bool:
        """As promised by `SecondSource.distrust`."""
        return self._registry.distrust(digest)

    def _source(self, reference: Reference) -> ImageSource:
        return self._registry if reference.origin is None else self._of(reference)

    def _of(self, reference: Reference) -> PlacedSource:
        return self._placed[origin_of(reference).transport]
