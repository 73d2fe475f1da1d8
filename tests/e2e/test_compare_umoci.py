"""What is published equals what `umoci unpack` makes of the same image, entry by entry.

The differences that are policy stand in `expected`, and nowhere else.
"""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.layers.merge import merge
from cvmfs_publish.layers.read import LayerLimits, read_layer
from cvmfs_publish.layers.record import LayerEntry
from cvmfs_publish.layers.tree import node_of
from cvmfs_publish.layers.whiteouts import Change
from cvmfs_publish.publish import PublishSettings
from cvmfs_publish.sandbox.policy import SandboxPolicy
from cvmfs_publish.sandbox.roots import RUNTIME_DIRECTORIES, RUNTIME_FILES, STANDARD_ROOTS
from cvmfs_publish.sandbox.runtime_files import BASE, LINKS
from cvmfs_publish.verify import Hashing
from tests import images, parts
from tests.images import Entry, Tar
from tests.property.test_merge_oracle import ordered_layers, shuffled_layers
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


# ------------------------------------------------------------------ generated layers

Seen = dict[str, tuple[int, int, int, str, str]]  # type and mode, owner, time, target, content


def archive(layer: list[LayerEntry]) -> bytes:
    """Return a layer as the archive that says the same."""
    tar = Tar()
    for change, path, node, target in layer:
        if change is Change.WHITEOUT:
            tar.whiteout(path)
        elif change is Change.OPAQUE:
            tar.opaque(path)
        elif node is None:
            tar.link(path, target)
        else:
            about: dict[str, Any] = {"mtime": node.mtime, "owner": (node.uid, 0)}
            if node.is_dir:
                tar.directory(path or ".", **about)
            elif node.is_symlink:
                tar.symlink(path, node.target, **about)
            else:
                tar.file(path, b"%d" % node.uid, **about)
    return tar.done()


def stacked(layers: list[bytes]) -> Seen | None:
    """Return what we make of layers; None if we refuse them."""
    try:
        records = [
            read_layer(io.BytesIO(tar), Digest.of(tar), len(tar), None, Hashing(), LayerLimits())
            for tar in layers
        ]
        tree, _ = merge(records)
    except IntegrityError:
        return None
    found: Seen = {}
    for path, entry in tree.walk():
        node = node_of(entry)
        digest = node.content.hash if node.content is not None else None
        text = digest.digest.hex() if digest is not None else ""
        found[path] = (node.mode, node.uid, node.mtime, node.target, text)
    return found


def unpacked_by_umoci(layers: list[bytes]) -> Seen | None:
    """Return what umoci makes of layers; None if it refuses them."""
    kinds = {"file": stat.S_IFREG, "directory": stat.S_IFDIR, "symlink": stat.S_IFLNK}
    with tempfile.TemporaryDirectory() as name:
        layout, bundle = Path(name, "layout"), Path(name, "bundle")
        images.write_oci_layout(layout, layers, {})
        words = [str(parts.require("umoci")), "unpack", "--image", f"{layout}:latest", str(bundle)]
        ran = subprocess.run(words, capture_output=True, check=False, umask=0o022)
        if ran.returncode:
            return None
        found = images.tree_of(bundle / "rootfs")
    return {
        path.decode(): (
            kinds[entry.type] | entry.mode,
            entry.uid,
            entry.mtime,
            entry.target.decode(),
            entry.sha256,
        )
        for path, entry in found.items()
        if path
    }


def without_times(seen: Seen | None) -> object:
    """Leave out the time of directories: umoci gives those that nobody names that of unpacking."""
    if seen is None:
        return None
    return {
        path: (mode, uid, 0 if stat.S_ISDIR(mode) else mtime, target, content)
        for path, (mode, uid, mtime, target, content) in seen.items()
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files to others")
@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(st.lists(st.one_of(ordered_layers(), shuffled_layers()), min_size=1, max_size=3))
def test_generated_layers_become_what_umoci_makes_of_them(layers: list[list[LayerEntry]]) -> None:
    """Whiteouts, opaque folders, links through links, files in place of folders; or both refuse."""
    tars = [archive(layer) for layer in layers]
    assert without_times(stacked(tars)) == without_times(unpacked_by_umoci(tars))
