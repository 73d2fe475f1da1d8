"""What every source of images gives: a resolved image, and layer streams that prove themselves."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import InputError, RemoteError
from cvmfs_publish.origin import Origin
from cvmfs_publish.reference import Reference
from cvmfs_publish.streams.compression import DecompressionLimits

if TYPE_CHECKING:
    from datetime import timedelta
    from types import TracebackType


class ImageNotFoundError(RemoteError):
    """The registry does not know this image or tag.

    `code` is the registry's own word for it (MANIFEST_UNKNOWN, NAME_UNKNOWN), or "" where it gave
    none, as after a HEAD request or from a proxy: then the image is not proven to be gone.
    """

    kind = "not-found"

    def __init__(self, message: str, *, hint: str = "", code: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class AccessDeniedError(RemoteError):
    """The registry refuses this image to these credentials, or to somebody without any."""

    kind = "access-denied"


class RateLimitedError(RemoteError):
    """The registry answers "too many requests"; `retry_after` is the wait it asks for, if any."""

    kind = "rate-limited"

    def __init__(
        self, message: str, *, hint: str = "", retry_after: timedelta | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


_WORD = re.compile(r"[a-z0-9][a-z0-9._-]*")
# What kernels and distributions call an architecture → what images call it (Go's GOARCH)
_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "i386": ("386", ""),
    "i686": ("386", ""),
}


@dataclass(frozen=True, slots=True, order=True)
class Platform:
    """The operating system and processor an image is for.

    `of` and `parse` keep one spelling for each: amd64/v1 is amd64, arm64/v8 is arm64 and arm
    without variant is arm/v7.  Source: OCI image-spec `image-index.md`, "Platform Variants".
    """

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def of(cls, os: str, architecture: str, variant: str = "") -> Platform:
        os, architecture, variant = os.lower(), architecture.lower(), variant.lower()
        architecture, implied = _ARCHITECTURES.get(architecture, (architecture, ""))
        variant = variant or implied
        if variant[:1].isdigit():
            variant = f"v{variant}"
        if (architecture, variant) in {("amd64", "v1"), ("arm64", "v8")}:
            variant = ""
        if (architecture, variant) == ("arm", ""):
            variant = "v7"
        return cls(os, architecture, variant)

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Raise `InputError` unless `text` is OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT."""
        parts = text.lower().split("/")
        if len(parts) not in {2, 3} or not all(_WORD.fullmatch(part) for part in parts):
            raise InputError(
                f"{text[:100]!r} is not a platform",
                hint="write OS/ARCHITECTURE[/VARIANT], for example linux/amd64 or linux/arm/v7",
            )
        return cls.of(*parts)

    @classmethod
    def default(cls) -> Platform:
        """What worker nodes are, whatever machine publishes."""
        return cls("linux", "amd64")

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


@dataclass(frozen=True, slots=True)
class SourceLimits(DecompressionLimits):
    """How large what is read of an image may be; keys of the section `limits`."""

    manifest_bytes: int = 4 << 20  # distribution-spec: registries take at least 4 megabytes
    config_bytes: int = 8 << 20  # history and labels of real images stay below 100 kB


@dataclass(frozen=True, slots=True)
class LayerDescriptor:
    """A layer as the manifest promises it."""

    digest: Digest  # of the bytes as transferred, that is compressed
    size: int  # bytes as transferred
    media_type: str  # says tar; the compression is better taken from the first bytes
    diff_id: Digest | None  # of the uncompressed tar, from the image config
    urls: tuple[str, ...] = ()  # where else it is said to be; nobody vouches for these


@dataclass(frozen=True, slots=True)
class ResolvedImage:
    """One platform of one image; every byte in it matches the digest beside it."""

    reference: Reference
    digest: Digest  # of what the tag names: an index or a manifest
    manifest_digest: Digest  # of the manifest of the chosen platform
    manifest: bytes  # byte for byte
    config_digest: Digest  # the image id
    config: bytes  # byte for byte
    layers: tuple[LayerDescriptor, ...]  # lowest first
    platform: Platform
    has_runtime_files: bool = False  # an image of Apptainer's own: /.singularity.d is its author's


class BlobStream(Protocol):
    """The bytes of one blob, verified as they pass.  Used by one thread, inside `with`.

    Bytes come before they are proven: only the final `b""` says that digest and size were right.
    """

    def __enter__(self) -> BlobStream: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the connection.  Leaving before the end is allowed and proves nothing."""

    def read(self, size: int) -> bytes:
        """Return 1 to `size` bytes, or `b""` at the proven end, as often as asked.

        Raises `IntegrityError` where digest or size differ, as soon as that is certain;
        `RemoteError` if the source failed and continuing did not help.  Unusable afterwards.
        """


class ImageSource(Protocol):
    """Where images come from.  Any number of threads may call any method at once."""

    def head(self, reference: Reference) -> Digest:
        """Return the digest of what `reference` names now, as cheaply as the source allows.

        A reference that carries a digest is answered without asking anybody.  The digest is the
        source's word, proven only by `resolve`.  Raises `ImageNotFoundError`,
        `AccessDeniedError`, `RateLimitedError` or another `RemoteError`.
        """

    def resolve(
        self, reference: Reference, platform: Platform, digest: Digest | None = None
    ) -> ResolvedImage:
        """Fetch and verify manifest and config of one platform.  Fetches no layer.

        `digest`, if known from `head`, is fetched in place of the tag, so that a tag that moves
        in between cannot mix two images.  Raises like `head`, and `InputError` if the image has
        no such platform or is no container image, `IntegrityError` if bytes are not as promised.
        """

    def open_layer(self, reference: Reference, layer: LayerDescriptor) -> BlobStream:
        """Return the stream of one layer of a resolved image; nothing is sent before `read`."""


@runtime_checkable
class SecondSource(Protocol):
    """A source that may have the same bytes from more than one place.  Any number of threads."""

    def distrust(self, digest: Digest) -> bool:
        """Never again take a blob from where it came from last.

        Returns whether there is another place, so that opening it again may give other bytes; it
        says so for each place once, and not for the one whose word counts.
        """


class PlacedSource(ImageSource, Protocol):
    """A source of images that are elsewhere than in the registry of their name.

    References have an `origin`.  Any number of threads may call any method at once.
    """

    def name(self, origin: Origin) -> str:
        """Return the whole name that the image there gives itself; "" if it has none, or several.

        Raises like `head`.
        """

    def state(self, origin: Origin, platform: Platform) -> str:
        """Return a text that differs as soon as the image may have changed; "" if none is known.

        Cheaper than `head`, which may have to read or fetch everything.  Raises like `head`.
        """


@runtime_checkable
class Locator(Protocol):
    """What finds out which image a person means, wherever it is; an `ImageSource` may be one."""

    def locate(self, text: str, name: str = "") -> Reference:
        """Return the image `text` says, to be published as `name`, by default as it is called.

        Raises `InputError` if nothing says what it is called; else like `ImageSource.head`.
        """

    def locate_again(self, name: str, origin: str) -> Reference:
        """Return an image of which both were recorded; raises `InputError`."""

    def state(self, reference: Reference, platform: Platform) -> str:
        """As `PlacedSource.state`; "" for a registry."""


@dataclass(frozen=True, slots=True)
class TagListing:
    """The tags of a repository at one moment."""

    tags: tuple[str, ...]
    etag: str = ""  # what a registry calls this list, if it says so


class TagLister(Protocol):
    """A source that can say which tags there are.  Any number of threads may ask at once."""

    def tags(self, registry: str, repository: str) -> tuple[str, ...]:
        """Return every tag of a repository, in the registry's order, each once, all pages read.

        Names that are no tags are left out.  Raises like `ImageSource.head`.
        """

    def list_tags(self, registry: str, repository: str, etag: str = "") -> TagListing | None:
        """As `tags`; None if the list is still the one with that `etag`, which costs little."""


def origin_of(reference: Reference) -> Origin:
    """Return where an image is that is not in the registry of its name."""
    if reference.origin is None:
        raise TypeError(f"{reference} is in a registry")
    return reference.origin
