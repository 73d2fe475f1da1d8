"""Choose the manifest of one platform from an image index.  Pure.

Source: OCI image-spec `image-index.md`; the entries BuildKit adds for attestations have the
platform unknown/unknown and the annotation `vnd.docker.reference.type`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cvmfs_publish.errors import InputError
from cvmfs_publish.sources.registry.manifest import INDEX_TYPES, MANIFEST_TYPES, Descriptor, Index

if TYPE_CHECKING:
    from cvmfs_publish.sources.base import Platform


def choose_manifest(index: Index, platform: Platform, subject: str) -> Descriptor:
    """Return the first entry for exactly `platform`; raise `InputError` if there is none.

    Variants are not substituted: a job that asked for arm/v7 may run on v6 code, but whoever
    asked should say so.  A lone entry that names no platform is returned: its config decides.
    """
    images = [entry for entry in index.entries if _is_image(entry)]
    for entry in images:
        if entry.platform == platform:
            return entry
    if len(images) == 1 and images[0].platform is None:
        return images[0]
    available = sorted({str(entry.platform) for entry in images if entry.platform is not None})
    raise InputError(
        f"{subject} has no image for {platform}; it has {', '.join(available) or 'none at all'}",
        hint=f"choose one of them, for example --platform {available[0]}" if available else "",
    )


def check_platform(found: Platform | None, asked: Platform, subject: str) -> None:
    """Raise `InputError` if the config of an image without index is for another platform.

    `found` is None where the config does not say: very old tools left it out.
    """
    if found is not None and found != asked:
        raise InputError(
            f"{subject} is an image for {found}, not for {asked}",
            hint=f"ask for it with --platform {found}, or for a tag that has {asked}",
        )


def _is_image(entry: Descriptor) -> bool:
    if entry.media_type not in MANIFEST_TYPES | INDEX_TYPES:
        return False
    if "vnd.docker.reference.type" in entry.annotations:
        return False
    return entry.platform is None or "unknown" not in (
        entry.platform.os,
        entry.platform.architecture,
    )
