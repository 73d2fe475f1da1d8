"""Small images that are published without a registry, on any kind of repository."""

from __future__ import annotations

import posixpath
import stat
from datetime import UTC, datetime, timedelta

from cvmfs_publish.digest import Digest
from cvmfs_publish.layers.tree import Directory, Node, Tree, empty_tree
from cvmfs_publish.layers.treedigest import summarise_tree
from cvmfs_publish.reference import Reference
from cvmfs_publish.repository.base import Transaction, View
from cvmfs_publish.repository.layouts import DEFAULT_PLATFORM, place
from cvmfs_publish.repository.names import format_at, publish_name, put_sandbox
from cvmfs_publish.repository.records import Publication, SandboxRecord, Staged
from cvmfs_publish.repository.staging import stage_name
from cvmfs_publish.sources.base import Platform

ARM64 = Platform.parse("linux/arm64")
DAY = timedelta(days=1)
START = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)


def at(days: float) -> datetime:
    """Return the time that many days after the first."""
    return START + days * DAY


def image_id(version: str) -> Digest:
    """Return the image id of a version: all that follows a dash is the same image."""
    return Digest.of(f"config {version.partition('-')[0]}".encode())


def manifest_digest(version: str) -> Digest:
    return Digest.of(manifest(version))


def manifest(version: str) -> bytes:
    return f"manifest {version}".encode()


def sandbox(version: str) -> str:
    return f".flat/{image_id(version).hex[:2]}/{image_id(version).hex}"


def put(
    transaction: Transaction,
    name: str,
    version: str,
    now: datetime,
    *,
    platform: Platform = DEFAULT_PLATFORM,
    digest: Digest | None = None,
    force: bool = False,
) -> Publication:
    """Publish a version, some text, under a name; `digest` is that of an index, if it is in one."""
    record = _put_sandbox(transaction, name, version, now, platform, digest, force=force)
    return publish_name(transaction, Reference.parse(name), record, manifest(version))


def stage(
    transaction: Transaction,
    name: str,
    version: str,
    now: datetime,
    replicas: int,
    *,
    platform: Platform = DEFAULT_PLATFORM,
) -> Staged:
    """Publish a version, but for its name, which waits until so many replicas have it."""
    record = _put_sandbox(transaction, name, version, now, platform, None)
    staged = Staged(record, replicas)
    stage_name(transaction, Reference.parse(name), staged, manifest(version))
    return staged


def _put_sandbox(
    transaction: Transaction,
    name: str,
    version: str,
    now: datetime,
    platform: Platform,
    digest: Digest | None,
    *,
    force: bool = False,
) -> Publication:
    reference = Reference.parse(name)
    placement = place(reference, platform, image_id(version), manifest_digest(version))
    text = version.partition("-")[0].encode()
    node = Node(stat.S_IFREG | 0o644, size=len(text), content=transaction.store(text))
    tree: Tree = empty_tree()
    tree.root.children = {"version": node, "bin": Directory(Node(stat.S_IFDIR | 0o755))}
    record = Publication(
        reference=str(reference),
        digest=str(digest or manifest_digest(version)),
        manifest_digest=str(manifest_digest(version)),
        image_id=str(image_id(version)),
        platform=str(platform),
        path=f"/{placement.name}",
        sandbox=f"/{placement.sandbox}",
        published_at=format_at(now),
        revision=transaction.revision,
        entries=2,
        content_bytes=len(text),
        stored_bytes=len(text),
        tree_digest=str(summarise_tree(tree).digest),
        recipe="recipe",
        layers=(),
        roots_added=(),
        findings=(),
        publisher="test",
    )
    made = SandboxRecord(record.recipe, record.tree_digest)
    put_sandbox(transaction, placement, made, tree, force=force)
    return record


def leads_to(view: View, path: str, variant: str = "amd64") -> str | None:
    """Return where a client ends that opens `path`; None if there is no such link."""
    for _ in range(10):
        text = view.read_symlink(path)
        if text is None:
            return path if view.is_directory(path) else None
        text = text.replace("$(CVMFS_ARCH:-amd64)", variant)
        path = posixpath.normpath(f"{posixpath.dirname(path)}/{text}".lstrip("/"))
    return None
