"""SIF files in registries: `oras://HOST/REPOSITORY:TAG`, as `apptainer push` puts them there.

Source: what Apptainer pushes and pulls: an OCI manifest whose one layer is the SIF file.
"""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from typing import Any

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.origin import Origin
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources.base import LayerDescriptor, Platform
from cvmfs_publish.sources.downloads import PIECE, Downloads
from cvmfs_publish.sources.held import HeldFile
from cvmfs_publish.sources.registry.manifest import (
    MANIFEST_LIMIT,
    MAX_SIZE,
    OCI_MANIFEST,
    NotAnImageError,
)
from cvmfs_publish.sources.registry.source import RegistrySource

SIF_LAYER = "application/vnd.sylabs.sif.layer.v1.sif"
_SIF_LAYERS = {
    SIF_LAYER,
    "appliciation/vnd.sylabs.sif.layer.tar",
}  # the second as Singularity 3.5 spelt it


class OrasFiles:
    """A `FileHolder` for registries."""

    def __init__(self, downloads: Downloads, registry: RegistrySource) -> None:
        self._downloads = downloads
        self._registry = registry
        self._lock = threading.Lock()
        self._held: dict[Digest, HeldFile] = {}  # by the digest of the SIF file

    def name(self, origin: Origin) -> str:
        """As promised by `PlacedSource.name`: the name in the registry."""
        return str(replace(self._there(origin), digest=None))

    def state(self, origin: Origin, platform: Platform) -> str:
        """As promised by `PlacedSource.state`: `head` is cheap enough."""
        return ""

    def head(self, origin: Origin) -> Digest:
        """As promised by `FileHolder.head`: the digest of the manifest; one HEAD request."""
        return self._registry.head(self._there(origin))

    def hold(self, origin: Origin, platform: Platform, top: Digest | None) -> HeldFile:
        """As promised by `FileHolder.hold`."""
        subject = str(origin)
        there = self._there(origin)
        wanted = top or there.digest
        body, _ = self._registry.client.fetch(
            there, f"manifests/{wanted or there.tag}", {"Accept": OCI_MANIFEST}, MANIFEST_LIMIT
        )
        found = Digest.of(body)
        if wanted is not None and found != wanted:
            raise IntegrityError(
                f"{subject}: the manifest should be {wanted}, what came is {found}",
                hint="the registry or a cache before it is damaged; fetching again will not help",
            )
        layer = parse_layer(body, subject)
        self._downloads.check_size(layer.size, subject)
        with self._lock:
            held = self._held.get(layer.digest)
            if held is None:
                held = self._held[layer.digest] = self._fetch(there, layer)
        return replace(held, top=found, manifest=body)

    def _there(self, origin: Origin) -> Reference:
        there = Reference.parse(origin.place)
        return replace(there, digest=origin.digest or there.digest)

    def _fetch(self, there: Reference, layer: LayerDescriptor) -> HeldFile:
        file, hasher = self._downloads.new_file(), Digest.of(b"").hasher()
        with self._registry.open_layer(there, layer) as stream:
            while data := stream.read(PIECE):
                hasher.update(data)
                self._downloads.write(file, data)
        return self._downloads.finish(file, layer.size, hasher.hexdigest())


def parse_layer(body: bytes, subject: str) -> LayerDescriptor:
    """Return the SIF file that a manifest names; raise `NotAnImageError` if it names none."""
    try:
        document = json.loads(body.decode())
        layers: Any = document.get("layers")
        kinds = [layer["mediaType"] for layer in layers]
    # RecursionError: a megabyte of "[" is valid UTF-8 and exhausts the parser's stack
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        raise NotAnImageError(
            f"{subject} has no manifest with layers ({type(error).__name__})",
            hint="a container image is written without oras://",
        ) from error
    if len(kinds) != 1 or kinds[0] not in _SIF_LAYERS:
        shown = ", ".join(str(kind)[:100] for kind in kinds[:3]) or "no layers"
        raise NotAnImageError(
            f"{subject} is no SIF file, but has {shown}",
            hint="a container image is written without oras://",
        )
    size = layers[0].get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_SIZE:
        raise IntegrityError(f"{subject}: the SIF file is said to have {size!a} bytes")
    return LayerDescriptor(Digest.parse(str(layers[0].get("digest"))), size, kinds[0], None)
