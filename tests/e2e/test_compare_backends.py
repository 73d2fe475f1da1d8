"""Every backend publishes the same tree, entry by entry."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.layers.record import RecordStore
from cvmfs_publish.publish import Publisher, PublishSettings
from cvmfs_publish.repository.base import Repository
from cvmfs_publish.repository.cvmfs_server import ServerRepository
from cvmfs_publish.repository.directory import DirectoryRepository
from cvmfs_publish.sources.registry.source import RegistrySource
from tests import images, parts
from tests.e2e.test_compare_umoci import KINDS
from tests.stock_host import StockHost, find_real, real_host
from tests.support import NAME, Site, site

pytestmark = pytest.mark.parts

Seen = dict[bytes, tuple[str, int, int, bytes, str]]


def seen_in_catalogs(target: Site, sandbox: str, scratch: Path) -> Seen:
    return {
        path: (
            entry["type"],
            int(entry["mode"], 8) & 0o7777,
            entry["mtime"],
            (entry["target"] or "").encode("utf-8", "surrogateescape"),
            entry["sha256"] or "",
        )
        for path, entry in target.published_tree(sandbox, scratch).items()
        if not path.endswith(b".cvmfscatalog")
    }


def seen_as_files(root: Path) -> Seen:
    return {
        path: (KINDS[entry.type], entry.mode, entry.mtime, entry.target, entry.sha256)
        for path, entry in images.tree_of(root).items()
        if not path.endswith(b".cvmfscatalog")
    }


@pytest.mark.parametrize("image", ["debian", "hostile"])
def test_every_backend_publishes_the_same_tree(
    image: str, tmp_path: Path, registry: parts.RegistryServer
) -> None:
    layout = tmp_path / "layout"
    build = images.debian_image if image == "debian" else images.hostile_but_legal_image
    build(layout)
    reference = f"{registry.host}/backends/{image}:1"
    images.push(layout, reference)
    start = datetime.now(UTC) - timedelta(minutes=1)
    plain = DirectoryRepository(NAME, tmp_path / "tree", LocalStore(tmp_path / "tree-spool"))
    plain.create(start)
    with ExitStack() as stack:
        _compare(stack, plain, reference, start, tmp_path)


def _compare(
    stack: ExitStack, plain: DirectoryRepository, reference: str, start: datetime, tmp_path: Path
) -> None:
    program, now = find_real(), int(start.timestamp())
    if program is None:
        stock: ServerRepository = StockHost(tmp_path / "host", now).repository()
    else:
        stock = stack.enter_context(real_host(program)).fresh(tmp_path / "state", now)()
    repositories: list[Repository] = [plain, stock]
    with site(tmp_path / "native") as target:
        publication = target.publish(reference).images[0].publication
        assert publication is not None
        native = seen_in_catalogs(target, publication.sandbox, tmp_path)
        for repository in repositories:
            publisher = Publisher(
                repository,
                RegistrySource(target.client),
                RecordStore(tmp_path / type(repository).__name__, repository.algorithm()),
                PublishSettings(),
            )
            result = publisher.publish([reference], now=datetime.now(UTC))
            assert result.exit_code == 0, result.images[0].error
    sandbox = publication.sandbox.lstrip("/")
    assert len(native) > 100
    assert different(native, seen_as_files(plain.root / sandbox)) == {}
    assert different(native, seen_as_files(stock.options.mount / sandbox)) == {}


def different(expected: Seen, found: Seen) -> dict[bytes, tuple[object, object]]:
    keys = expected.keys() | found.keys()
    return {path: (expected.get(path), found.get(path)) for path in keys
            if expected.get(path) != found.get(path)}  # fmt: skip
