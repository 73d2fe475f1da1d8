"""An incomplete image never becomes visible: faults between the layers and the name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cvmfs_publish.content.hashes import ContentHash, Suffix
from cvmfs_publish.content.ingest import CHUNK_SIZE, Ingestor
from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.errors import RepositoryError
from cvmfs_publish.repository.native.build import TreeBuilder
from cvmfs_publish.repository.native.catalog import Row
from cvmfs_publish.repository.native.repository import NativeOptions
from cvmfs_publish.repository.records import Publication
from tests.fakes.registry import FakeRegistry
from tests.images import Tar
from tests.support import Site, site
from tests.tampering import tamper

LARGE = os.urandom(CHUNK_SIZE + 1)


def layer(**files: bytes) -> bytes:
    tar = Tar()
    for name, data in files.items():
        tar.file(name, data)
    return tar.done()


def publish(target: Site, name: str) -> Publication:
    result = target.publish(name).images[0]
    assert result.error is None
    assert result.publication is not None
    return result.publication


def lose_a_row(patch: pytest.MonkeyPatch) -> None:
    original = TreeBuilder._entries

    def entries(*arguments: Any) -> Iterator[Row]:  # noqa: ANN401
        return (row for row in original(*arguments) if not row.path.endswith("/two"))

    patch.setattr(TreeBuilder, "_entries", entries)


def truncate_catalogs(patch: pytest.MonkeyPatch) -> None:
    original = LocalStore.put

    def put(self: LocalStore, stored: bytes, content_hash: ContentHash, kind: Suffix) -> bool:
        return original(
            self, stored[:-40] if kind is Suffix.CATALOG else stored, content_hash, kind
        )

    patch.setattr(LocalStore, "put", put)


def lose_a_chunk(patch: pytest.MonkeyPatch) -> None:
    original = Ingestor._run

    def run(self: Ingestor, job: Any, process: Any) -> None:  # noqa: ANN401
        original(self, job, process)
        for piece, _, is_chunk in job.pieces:
            if is_chunk and piece.size == 1:
                self._store.remove([piece.hash.path(Suffix.CHUNK)])

    patch.setattr(Ingestor, "_run", run)


def cut_a_chunk(patch: pytest.MonkeyPatch) -> None:
    original = Ingestor._run

    def run(self: Ingestor, job: Any, process: Any) -> None:  # noqa: ANN401
        original(self, job, process)
        for piece, _, is_chunk in job.pieces:
            if is_chunk and piece.size == 1:
                path = Path(self._store.location, piece.hash.path(Suffix.CHUNK))
                os.truncate(path, piece.stored_size - 1)

    patch.setattr(Ingestor, "_run", run)


Fault = Callable[[pytest.MonkeyPatch], None]
FAULTS: dict[Fault, str] = {
    lose_a_row: "/two is missing",
    truncate_catalogs: "damaged: its hash differs",
    lose_a_chunk: "is gone",
    cut_a_chunk: "bytes were stored there a moment ago",
}


@pytest.mark.parametrize("fault", FAULTS, ids=["row", "catalogs", "chunk gone", "chunk cut"])
@pytest.mark.parametrize("max_entries", [10_000, 20], ids=["one-catalog", "several"])
def test_what_was_stored_wrongly_is_not_published(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    max_entries: int,
) -> None:
    with FakeRegistry() as registry, site(tmp_path) as target:
        target.reopen(NativeOptions(max_entries=max_entries))
        registry.add_image("a/one", layers=[layer(one=b"1")], tag="1")
        name = f"{registry.host}/a/one:1"
        before = publish(target, name)
        revision = target.repository.revision()
        registry.add_image("a/one", layers=[layer(two=b"2", large=LARGE)], tag="1")
        with monkeypatch.context() as patch:
            fault(patch)
            with pytest.raises(RepositoryError, match=FAULTS[fault]) as caught:
                target.publish(name)
        if fault in (lose_a_row, truncate_catalogs):
            assert name in str(caught.value)
        assert target.repository.revision() == revision
        assert target.judge() == []
        with target.repository.open() as view:
            target_of_name = view.read_symlink(before.path[1:])
        assert target_of_name is not None
        assert target_of_name.endswith(before.sandbox)
        after = publish(target, name)
        assert after.sandbox != before.sandbox
        assert target.judge() == []


def test_an_object_cut_short_is_fetched_again_for_the_next_image(tmp_path: Path) -> None:
    with FakeRegistry() as registry, site(tmp_path) as target:
        common = layer(common=os.urandom(500_000))
        registry.add_image("a/one", layers=[common], tag="1")
        publish(target, f"{registry.host}/a/one:1")
        cut = max((target.storage / "data").glob("??/*"), key=lambda path: path.stat().st_size)
        os.truncate(cut, 100)  # what a power failure may do before the first sync
        assert target.judge() != []
        registry.add_image("a/two", layers=[common, layer(two=b"2")], tag="1")
        result = target.publish(f"{registry.host}/a/two:1")
        assert result.images[0].layers_reused == 0
        assert target.judge() == []


def test_a_sandbox_somebody_changed_is_put_right_when_it_is_used_again(tmp_path: Path) -> None:
    with FakeRegistry() as registry, site(tmp_path) as target:
        digest = registry.add_image("a/one", layers=[layer(one=b"1")], tag="1")
        first = publish(target, f"{registry.host}/a/one:1")
        tamper(target, first.sandbox[1:] + "/one", lambda node: node._replace(size=7))
        registry.tags["a/one"]["2"] = str(digest)
        second = publish(target, f"{registry.host}/a/one:2")
        assert second.sandbox == first.sandbox
        assert second.tree_digest == first.tree_digest
        assert target.judge() == []
        with target.repository.snapshot() as snapshot:
            assert snapshot.read_file(second.sandbox[1:] + "/one") == b"1"


@pytest.mark.parametrize("damage", ["lost", "cut short"])
def test_an_image_whose_catalog_is_damaged_is_published_again_by_force(
    tmp_path: Path, damage: str
) -> None:
    with FakeRegistry() as registry, site(tmp_path) as target:
        registry.add_image("a/one", [layer(one=b"1")], tag="1")
        registry.add_image("a/two", [layer(two=b"2")], tag="1")
        name = registry.name("a/one", "1")
        publish(target, registry.name("a/two", "1"))
        now = datetime.now(UTC)  # of both, so that the catalog that is lost is the one made again
        publication = target.publish(name, now=now).images[0].publication
        assert publication is not None
        with target.repository.snapshot() as snapshot:
            refs = dict(snapshot.catalogs())
        path = target.storage / refs[publication.sandbox.lstrip("/")].hash.path(Suffix.CATALOG)
        if damage == "lost":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:100])
        assert target.judge() != []
        result = target.publish(name, force=True, now=now)
        assert result.images[0].status == "published"
        assert target.judge() == []
