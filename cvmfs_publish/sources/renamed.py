"""Images from a registry that are published under another name than their own."""

from __future__ import annotations

from dataclasses import replace

from cvmfs_publish.digest import Digest
from cvmfs_publish.origin import Origin
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources.base import (
    BlobStream,
    ImageSource,
    LayerDescriptor,
    Platform,
    ResolvedImage,
    origin_of,
)


class RenamedSource:
    """A `PlacedSource` over a registry: the origin is the name there."""

    def __init__(self, registry: ImageSource) -> None:
        self._registry = registry

    def name(self, origin: Origin) -> str:
        """As promised by `PlacedSource.name`."""
        return str(replace(Reference.parse(origin.place), digest=None))

    def state(self, origin: Origin, platform: Platform) -> str:
        """As promised by `PlacedSource.state`: `head` is cheap enough."""
        return ""

    def head(self, reference: Reference) -> Digest:
        """As promised by `ImageSource.head`."""
        return self._registry.head(self._there(reference))

    def resolve(
        self, reference: Reference, platform: Platform, digest: Digest | None = None
    ) -> ResolvedImage:
        """As promised by `ImageSource.resolve`."""
        image = self._registry.resolve(self._there(reference), platform, digest)
        return replace(image, reference=reference)

    def open_layer(self, reference: Reference, layer: LayerDescriptor) -> BlobStream:
        """As promised by `ImageSource.open_layer`."""
        return self._registry.open_layer(self._there(reference), layer)

    def _there(self, reference: Reference) -> Reference:
        there = Reference.parse(origin_of(reference).place)
        return replace(there, digest=there.digest or reference.digest)
