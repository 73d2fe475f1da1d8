"""Turn the JSON a registry sends into checked manifests, indexes and configs.  Pure.

Sources: OCI image-spec `manifest.md`, `image-index.md`, `config.md`, `descriptor.md`; Docker
"Image Manifest V 2, Schema 2".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import InputError, IntegrityError, RemoteError
from cvmfs_publish.sources.base import LayerDescriptor, Platform, SourceLimits
from cvmfs_publish.sources.registry import schema1
from cvmfs_publish.sources.registry.values import parse_digest, parse_object

MIB = 1 << 20
MANIFEST_LIMIT = SourceLimits().manifest_bytes
CONFIG_LIMIT = SourceLimits().config_bytes
MANIFEST_HINT = "raise `limits.manifest_bytes` if this image is trusted"
CONFIG_HINT = "raise `limits.config_bytes` if this image is trusted"
MAX_URLS = 3  # of one blob
MAX_SIZE = 2**63 - 1  # descriptor.md: `size` is an int64

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFEST_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_INDEX})
ACCEPT = ", ".join(
    (OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST, schema1.SIGNED, schema1.PLAIN)
)
CONFIG_TYPES = frozenset(
    {
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
    }
)
# image-spec layer.md and media-types.md; Docker's `foreign` layers are the non-distributable ones
_LAYER_TYPE = re.compile(
    r"application/vnd\.oci\.image\.layer\.(?:nondistributable\.)?v1\.tar(?:\+gzip|\+zstd)?"
    r"|application/vnd\.docker\.image\.rootfs\.(?:foreign\.)?diff\.tar(?:\.gzip|\.zstd)?"
)
# Content types of servers that know no better; then only the body can say what it is
_GENERIC = frozenset(
    {"", "application/json", "application/octet-stream", "binary/octet-stream", "text/plain"}
)


class NotAnImageError(InputError):
    """The name exists in the registry but is not a container image that can be unpacked."""

    kind = "not-an-image"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A promise of a blob or manifest: type, digest and size."""

    media_type: str
    digest: Digest
    size: int  # bytes, never negative
    platform: Platform | None = None
    annotations: Mapping[str, object] = field(default_factory=dict)
    artifact_type: str = ""  # "" where nobody said
    urls: tuple[str, ...] = ()  # where else the blob is said to be


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image for one platform."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class Index:
    """Manifests of one image for several platforms."""

    entries: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class Artefact:
    """A manifest of something that belongs to an image, such as its signature."""

    subject: Digest | None  # of the image
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class Config:
    """What is needed here of an image config."""

    platform: Platform | None  # None: the config does not say
    diff_ids: tuple[Digest, ...]


def parse_manifest(
    body: bytes,
    content_type: str,
    subject: str,
    promised_type: str = "",
    *,
    config_limit: int = CONFIG_LIMIT,
) -> Manifest | Index:
    """Return what `body` is, provided everybody agrees on it.

    CVE-2021-41190: one body that some read as an index and others as a manifest.  So the
    Content-Type, the body's own `mediaType`, the index entry's (`promised_type`) and the fields
    present must not contradict each other.  Raises `IntegrityError` if they do or the body is
    malformed, `NotAnImageError` for anything but an image, `RemoteError` for a web page.
    """
    stated = _stated_type(content_type)
    check_not_a_web_page(stated, subject)
    document = parse_object(body, subject)
    if stated in schema1.TYPES or document.get("schemaVersion") == 1:
        raise NotAnImageError(
            f"{subject} is a Docker schema 1 manifest, where none can be",
            hint="such images are read from registries, not inside an index and not with the type"
            " of another manifest; push it again, for example with `skopeo copy --format v2s2`",
        )
    if document.get("schemaVersion") != 2:
        raise IntegrityError(
            f"{subject}: schemaVersion is {document.get('schemaVersion')!a}, expected 2"
        )
    media_type = _agreed_type(document, stated, promised_type, subject)
    if media_type in INDEX_TYPES:
        _forbid(document, ("layers", "config"), media_type, subject)
        entries = _get_list(document, "manifests", subject)
        return Index(tuple(_parse_descriptor(entry, subject) for entry in entries))
    _forbid(document, ("manifests", "fsLayers"), media_type, subject)
    manifest = Manifest(
        _parse_descriptor(document.get("config"), subject),
        tuple(
            _parse_descriptor(layer, subject) for layer in _get_list(document, "layers", subject)
        ),
    )
    _check_is_image(manifest, document, subject, config_limit)
    return manifest


def parse_artefact(body: bytes, subject: str) -> Artefact:
    """Return what belongs to an image; raise `IntegrityError` for what is no manifest."""
    document = parse_object(body, subject)
    image = document.get("subject")
    return Artefact(
        _parse_descriptor(image, subject).digest if image is not None else None,
        tuple(
            _parse_descriptor(layer, subject) for layer in _get_list(document, "layers", subject)
        ),
    )


def parse_referrers(body: bytes, subject: str) -> tuple[Descriptor, ...]:
    """Return the manifests in a list of referrers, or raise `IntegrityError`.

    distribution-spec, "Listing Referrers": an image index, by the API or under the fallback tag.
    """
    document = parse_object(body, subject)
    return tuple(
        _parse_descriptor(entry, subject) for entry in _get_list(document, "manifests", subject)
    )


def is_old(body: bytes, content_type: str) -> bool:
    """Whether a manifest is of Docker's schema 1; early registries called it application/json."""
    stated = _stated_type(content_type)
    if stated not in _GENERIC:
        return stated in schema1.TYPES
    try:
        return parse_object(body, "").get("schemaVersion") == 1
    except IntegrityError:
        return False  # what it is, if anything, is told by whoever parses it


def _stated_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def parse_config(body: bytes, subject: str) -> Config:
    """Raise `IntegrityError` unless `body` is an image config with a list of diff ids."""
    document = parse_object(body, subject)
    rootfs = document.get("rootfs")
    if not isinstance(rootfs, dict) or rootfs.get("type") != "layers":
        raise IntegrityError(f'{subject}: the image config has no rootfs of type "layers"')
    diff_ids = rootfs.get("diff_ids")
    if diff_ids is None:  # Go writes an empty list as null
        diff_ids = []
    if not isinstance(diff_ids, list):
        raise IntegrityError(f"{subject}: rootfs.diff_ids of the image config is not a list")
    return Config(
        _parse_platform(document), tuple(parse_digest(text, subject) for text in diff_ids)
    )


def describe_layers(
    manifest: Manifest, config: Config, subject: str
) -> tuple[LayerDescriptor, ...]:
    """Pair layers with diff ids; raise `IntegrityError` if their numbers differ.

    History entries with `empty_layer` have neither a layer nor a diff id, so the lists match.
    """
    if len(manifest.layers) != len(config.diff_ids):
        raise IntegrityError(
            f"{subject}: the manifest has {len(manifest.layers)} layers, "
            f"the config {len(config.diff_ids)} diff ids"
        )
    return tuple(
        LayerDescriptor(layer.digest, layer.size, layer.media_type, diff_id, layer.urls)
        for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True)
    )


def check_not_a_web_page(content_type: str, subject: str) -> None:
    """Raise `RemoteError` for HTML: a proxy or an outage answered in place of the registry."""
    if _stated_type(content_type) in {"text/html", "application/xhtml+xml"}:
        raise RemoteError(
            f"{subject}: the answer is a web page ({content_type[:80]!r}), not registry data",
            hint="is this host a registry, or does a proxy or login page answer in its place?",
        )


def _agreed_type(document: dict[str, Any], stated: str, promised_type: str, subject: str) -> str:
    own = document.get("mediaType")
    if own is not None and not isinstance(own, str):
        raise IntegrityError(f"{subject}: mediaType is {own!a}, not a text")
    stated = "" if stated in _GENERIC else stated
    claims = {claim for claim in (stated, own, promised_type) if claim}
    if len(claims) > 1:
        raise IntegrityError(
            f"{subject}: the manifest is {stated or 'untyped'} by its Content-Type, "
            f"{own or 'untyped'} by itself"
            + (f", {promised_type} by its index" if promised_type else "")
        )
    if not claims:
        claims = {OCI_INDEX if "manifests" in document else OCI_MANIFEST}
    media_type = claims.pop()
    if media_type not in MANIFEST_TYPES | INDEX_TYPES:
        raise NotAnImageError(
            f"{subject} is of type {media_type[:100]!a}, which is not a container image"
        )
    return media_type


def _forbid(
    document: dict[str, Any], names: tuple[str, ...], media_type: str, subject: str
) -> None:
    for name in names:
        if name in document:
            raise IntegrityError(f"{subject}: a manifest of type {media_type} with {name!r}")


def _check_is_image(
    manifest: Manifest, document: dict[str, Any], subject: str, config_limit: int
) -> None:
    config_type = manifest.config.media_type
    if config_type not in CONFIG_TYPES:
        artifact = document.get("artifactType") or config_type
        raise NotAnImageError(
            f"{subject} is an artefact of type {str(artifact)[:100]!a}, not a container image",
            hint="Helm charts, signatures, SIF files and other artefacts have no file system",
        )
    for layer in manifest.layers:
        if _LAYER_TYPE.fullmatch(layer.media_type) is None:
            raise NotAnImageError(
                f"{subject}: layer {layer.digest} is of type {layer.media_type[:100]!a}, "
                "which is not a tar archive",
                hint="supported are plain, gzip and zstd layers of Docker and OCI images",
            )
    if manifest.config.size > config_limit:
        raise IntegrityError(
            f"{subject}: the config has {manifest.config.size} bytes; the limit is {config_limit}",
            hint=CONFIG_HINT,
        )


def _parse_descriptor(value: object, subject: str) -> Descriptor:
    if not isinstance(value, dict):
        raise IntegrityError(f"{subject}: the manifest has a descriptor that is not an object")
    media_type, size = value.get("mediaType"), value.get("size")
    digest = parse_digest(value.get("digest"), subject)
    if not isinstance(media_type, str) or not media_type:
        raise IntegrityError(f"{subject}: the descriptor of {digest} has no mediaType")
    # bool is an int to Python, not to JSON
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_SIZE:
        raise IntegrityError(f"{subject}: the descriptor of {digest} has the size {size!a}")
    annotations, platform = value.get("annotations"), value.get("platform")
    artifact_type = value.get("artifactType")
    return Descriptor(
        media_type,
        digest,
        size,
        _parse_platform(platform) if isinstance(platform, dict) else None,
        annotations if isinstance(annotations, dict) else {},
        artifact_type if isinstance(artifact_type, str) else "",
        _parse_urls(value.get("urls")),
    )


def _parse_urls(value: object) -> tuple[str, ...]:
    """Only the first few: each is asked in turn where the registry does not have the blob."""
    urls = value if isinstance(value, list) else []
    return tuple(url for url in urls if isinstance(url, str))[:MAX_URLS]


def _parse_platform(value: dict[str, Any]) -> Platform | None:
    os, architecture, variant = (
        text if isinstance(text := value.get(name), str) else ""
        for name in ("os", "architecture", "variant")
    )
    if not os or not architecture:
        return None
    try:
        return Platform.parse("/".join(word for word in (os, architecture, variant) if word))
    except InputError:  # not words: nobody can ask for it, and nobody should see it in a message
        return Platform("unknown", "unknown")


def _get_list(document: dict[str, Any], name: str, subject: str) -> list[object]:
    value = document.get(name)
    if not isinstance(value, list):
        raise IntegrityError(f"{subject}: the manifest has no list of {name!r}")
    return value
