"""One source for all transports: `[TRANSPORT:]REFERENCE` as people type it, and what answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

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
    origin_of,
)
from cvmfs_publish.sources.renamed import RenamedSource
from cvmfs_publish.streams.compression import DecompressionLimits

REGISTRY = "docker"  # the transport of an image in a registry that is published under another name


@dataclass(frozen=True, slots=True)
class Access:
    """What sources need to reach their images."""

    registry: ImageSource
    limits: DecompressionLimits = field(default_factory=DecompressionLimits)


SOURCES: dict[str, Callable[[Access], PlacedSource]] = {
    REGISTRY: lambda access: RenamedSource(access.registry),
    "docker-archive": lambda access: DockerArchiveSource(access.limits),
    "oci": lambda access: OciSource(access.limits),
    "oci-archive": lambda access: OciArchiveSource(access.limits),
}


class Sources:
    """The `ImageSource` of every image, and the `Locator` of what people type."""

    def __init__(self, access: Access, folder: str) -> None:
        """Open nothing yet; relative paths are relative to `folder`."""
        self._registry = access.registry
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

    def state(self, reference: Reference) -> str:
        """As promised by `Locator.state`."""
        return self._of(reference).state(reference.origin) if reference.origin else ""

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

    def _source(self, reference: Reference) -> ImageSource:
        return self._registry if reference.origin is None else self._of(reference)

    def _of(self, reference: Reference) -> PlacedSource:
        return self._placed[origin_of(reference).transport]
