"""What is published equals what `umoci unpack` makes of the same image, entry by entry.

The differences that are policy stand in `expected`, and nowhere else.
"""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from cvmfs_publish.publish import PublishSettings
from cvmfs_publish.sandbox.policy import SandboxPolicy
from cvmfs_publish.sandbox.roots import RUNTIME_DIRECTORIES, RUNTIME_FILES, STANDARD_ROOTS
from cvmfs_publish.sandbox.runtime_files import BASE, LINKS
from tests import images, parts
from tests.images import Entry
from tests.support import site

pytestmark = pytest.mark.parts

KINDS = {"file": "file", "directory": "dir", "symlink": "symlink", "fifo": "fifo"}
# What the publisher may add where the image has nothing.
ADDED = {
    *(path.strip("/") for path in STANDARD_ROOTS),
    *RUNTIME_DIRECTORIES,
    *RUNTIME_FILES,
    *LINKS,
    "mnt",
    "var",
    "ch",
    "ch/environment",
}


def is_ours(path: str) -> bool:
    """Whether an entry belongs to what the publisher always writes."""
    return path == BASE or path.startswith(BASE + "/") or path.endswith(".cvmfscatalog")


def expected(
    unpacked: dict[bytes, Entry], policy: SandboxPolicy
) -> dict[bytes, tuple[str, int, int, bytes, str]]:
    """Return the published form of what umoci unpacked: type, mode, mtime, target, content."""
    result = {}
    for path, entry in unpacked.items():
        if entry.type in ("character", "block") or path.startswith(b"dev/"):
            continue  # devices are dropped
        mode = entry.mode
        if entry.type != "symlink":
            if policy.setuid == "strip":
                mode &= ~(stat.S_ISUID | stat.S_ISGID)
            if policy.permissions == "readable":
                executable = entry.type == "directory" or mode & 0o111
                mode |= 0o755 if executable else 0o644
        else:
            mode = 0o777
        result[path] = (KINDS[entry.type], mode, entry.mtime, entry.target, entry.sha256)
    return result


@pytest.mark.parametrize(
    "policy",
    [SandboxPolicy(), SandboxPolicy(permissions="strict", setuid="keep")],
    ids=["readable", "strict"],
)
@pytest.mark.parametrize("image", ["debian", "hostile"])
def test_the_published_tree_equals_what_umoci_unpacks(
    image: str, policy: SandboxPolicy, tmp_path: Path, registry: parts.RegistryServer
) -> None:
    layout = tmp_path / "layout"
    build = images.debian_image if image == "debian" else images.hostile_but_legal_image
    build(layout)
    reference = f"{registry.host}/compare/{image}:1"
    images.push(layout, reference)
    unpacked = images.tree_of(images.umoci_unpack(layout))
    with site(tmp_path) as target:
        result = target.publish(reference, settings=PublishSettings(policy=policy))
        publication = result.images[0].publication
        assert result.images[0].error is None
        assert publication is not None
        tree = target.published_tree(publication.sandbox, tmp_path)
    wanted = expected(unpacked, policy)
    published = {
        path: (
            entry["type"],
            int(entry["mode"], 8) & 0o7777,
            entry["mtime"],
            (entry["target"] or "").encode("utf-8", "surrogateescape"),
            entry["sha256"] or "",
        )
        for path, entry in tree.items()
        if not is_ours(path.decode("utf-8", "surrogateescape"))
    }
    missing = sorted(wanted.keys() - published.keys())
    added = {path.decode() for path in published.keys() - wanted.keys()}
    assert missing == []
    assert added <= ADDED
    different = {
        path: (wanted[path], published[path])
        for path in wanted
        if wanted[path] != published[path] and not is_implied(path, wanted[path], published[path])
    }
    assert different == {}


def is_implied(path: bytes, wanted: tuple[object, ...], published: tuple[object, ...]) -> bool:
    """Whether the two differ only in the time of a directory that no layer describes.

    umoci gives it the time of unpacking, which nobody can reproduce.
    """
    implied = path in (b"implied", b"implied/by", b"implied/by/a", b"abs")
    return implied and wanted[:2] + wanted[3:] == published[:2] + published[3:]
