"""Decide where in a repository an image, its names and its records go.  Pure.

`unpacked` is the convention of unpacked.cern.ch (facts/cvmfs-format.md section 10.1), so existing
consumers find images where they look for them.  `osg` is the same, and each name has a second one
without its registry, as cvmfs-singularity-sync makes them (section 10.2): a link to the first, so
that both always lead to the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from posixpath import normpath, relpath
from typing import Literal

from cvmfs_publish.digest import Digest
from cvmfs_publish.layers.tree import RepoPath
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources.base import Platform

Layout = Literal["unpacked", "osg"]
FLAT = ".flat"
METADATA = ".metadata"
MULTIARCH = ".multiarch"
IMAGES = f"{METADATA}/.images"  # what was done to each sandbox, whatever names it has
STAGED = f"{METADATA}/.staged"  # below it, of each name that waits for replicas, its new records
MANIFEST_FILE = "manifest.json"
PUBLICATION_FILE = "publication.json"
UNPUBLISHED_FILE = "unpublished.json"  # the history of a name that leads nowhere at present
STAGED_FILE = "staged.json"
REPLACED = ".replaced"  # below the records of a name: those of what it led to before
CATALOG_MARKER = ".cvmfscatalog"  # stands where a catalog of its own begins
# What a client puts in place of the variable decides which platform a public name leads to.
VARIANT = "$(CVMFS_ARCH:-amd64)"
DEFAULT_PLATFORM = Platform.default()


@dataclass(frozen=True, slots=True)
class NamePlacement:
    """What is known of an image's place from its name alone.

    All paths are relative to the repository root.
    """

    name: RepoPath  # the public name, a symbolic link
    platform_name: RepoPath  # the link of this platform where several are published
    metadata: RepoPath  # the directory of the records of the name

    @property
    def publication(self) -> RepoPath:
        return f"{self.metadata}/{PUBLICATION_FILE}"

    @property
    def manifest(self) -> RepoPath:
        return f"{self.metadata}/{MANIFEST_FILE}"

    @property
    def unpublished(self) -> RepoPath:
        return f"{self.metadata}/{UNPUBLISHED_FILE}"

    @property
    def staged(self) -> RepoPath:
        """The directory of the records that the name will have when replicas are far enough."""
        return f"{STAGED}/{self.metadata.removeprefix(METADATA + '/')}"

    def replaced(self, manifest: Digest) -> RepoPath:
        """Return the directory of the records of a manifest the name led to before."""
        return f"{self.metadata}/{REPLACED}/{manifest.hex}"

    def variant_target(self) -> str:
        """Return the text of a public name that leads to the client's own platform."""
        _, _, rest = self.platform_name.removeprefix(MULTIARCH + "/").partition("/")
        return relative(self.name, f"{MULTIARCH}/{VARIANT}/{rest}")


@dataclass(frozen=True, slots=True)
class Placement(NamePlacement):
    """Where one platform of one image goes."""

    sandbox: RepoPath
    image_record: RepoPath  # a file: how the sandbox was made
    immutable_name: RepoPath  # the link by manifest digest


def place(
    reference: Reference, platform: Platform, image_id: Digest, manifest: Digest
) -> Placement:
    """Return where an image goes in the `unpacked` layout."""
    names = place_name(reference, platform)
    return Placement(
        sandbox=sandbox_of(image_id),
        image_record=image_record_of(image_id),
        name=names.name,
        platform_name=names.platform_name,
        immutable_name=immutable_name_of(reference, manifest),
        metadata=names.metadata,
    )


def short_name_of(reference: Reference) -> RepoPath:
    """Return the name without the registry; "" where only a digest names the image."""
    return f"{reference.repository}:{reference.tag}" if reference.tag else ""


def immutable_name_of(reference: Reference, manifest: Digest) -> RepoPath:
    """Return the link to an image by the digest of its manifest."""
    return f"{reference.registry}/{reference.repository}@{manifest}"


def sandbox_of(image_id: Digest) -> RepoPath:
    """Return where the sandbox of an image is."""
    return f"{FLAT}/{image_id.hex[:2]}/{image_id.hex}"


def image_record_of(image_id: Digest) -> RepoPath:
    """Return the file that says how the sandbox of an image was made."""
    return f"{IMAGES}/{image_id.hex[:2]}/{image_id.hex}.json"


def listing_of(sandbox: RepoPath) -> RepoPath:
    """Return the file that says what is in a sandbox, where that stands beside it."""
    directory, _, name = sandbox.rpartition("/")
    return f"{directory}/.{name}.zst".lstrip("/")


def record_beside(sandbox: RepoPath) -> RepoPath:
    """Return the file that says how what is at this path was made; see `image_record_of`."""
    return f"{IMAGES}/{sandbox.removeprefix(FLAT + '/')}.json"


def place_name(reference: Reference, platform: Platform) -> NamePlacement:
    """Return where the links and records of a name go."""
    architecture = platform.architecture + (f":{platform.variant}" if platform.variant else "")
    below = "" if platform == DEFAULT_PLATFORM else f"{MULTIARCH}/{architecture}/"
    return NamePlacement(
        name=reference.name,
        platform_name=f"{MULTIARCH}/{architecture}/{reference.name}",
        metadata=f"{METADATA}/{below}{reference.name}",
    )


def catalog_roots(path: RepoPath) -> list[RepoPath]:
    """Return which parents of a path deserve a catalog of their own.

    One per registry and namespace and one per two digits of an image id: each stays small, and
    publishing into a repository of thousands of images rewrites a handful of them.
    """
    parts = path.split("/")
    depth = 2 + (parts[0] == METADATA) + (2 if MULTIARCH in parts else 0)
    return ["/".join(parts[:count]) for count in range(1, min(depth, len(parts) - 1) + 1)]


def relative(link: RepoPath, target: RepoPath) -> str:
    """Return the relative text of a symbolic link at `link` that leads to `target` (E-55)."""
    return relpath("/" + target, "/" + link.rpartition("/")[0])


def resolve_link(link: RepoPath, text: str) -> RepoPath:
    """Return where a symbolic link leads; a path that begins with `../` leads out."""
    return normpath(f"{link.rpartition('/')[0]}/{text}".lstrip("/"))
