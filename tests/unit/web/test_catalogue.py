"""All images of both sources, each once, found as asked; records are read once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.layers.record import RecordStore
from cvmfs_publish.publish import Publisher, PublishSettings
from cvmfs_publish.repository.layouts import METADATA, PUBLICATION_FILE
from cvmfs_publish.repository.native.catalog import Catalog, CatalogRef
from cvmfs_publish.repository.native.listing import SmallFile
from cvmfs_publish.repository.native.reader import Snapshot
from cvmfs_publish.repository.native.repository import NativeRepository
from cvmfs_publish.repository.records import Publication
from cvmfs_publish.state.model import ImageKey, Outline, Status
from cvmfs_publish.web.catalogue import CONDITIONS, Catalogue, Choice, Condition
from cvmfs_publish.web.library import Library, Shelf
from tests.asgi import Browser
from tests.status_site import AMD64, DEBIAN, ROOT, TRAIN, Images, StatusSite
from tests.support import NAME


def outline(name: str, status: Status = "unchanged", at: float = 5.0) -> Outline:
    return Outline(name, AMD64, status, True, "list.yaml", "anna", at, at)


@pytest.fixture(scope="module")
def shelf(status_site: StatusSite) -> Shelf:
    return status_site.service().library.shelf()


def conditions(shelf: Shelf, *outlines: Outline) -> dict[str, Condition]:
    return {item.key.name: item.condition for item in Catalogue(shelf, outlines).items}


@pytest.mark.parametrize(
    ("status", "there", "absent"),
    [
        ("published", "published", "removed"),
        ("unchanged", "published", "removed"),
        ("waiting", "published", "waiting"),
        ("queued", "queued", "queued"),
        ("publishing", "publishing", "publishing"),
        ("failed", "failed", "failed"),
        ("quarantined", "quarantined", "quarantined"),
        ("gone", "gone", "gone"),
    ],
)
def test_what_became_of_an_image_is_told_by_both(
    shelf: Shelf, status: Status, there: str, absent: str
) -> None:
    found = conditions(shelf, outline(DEBIAN, status), outline("x.example.org/a:1", status))
    assert (found[DEBIAN], found["x.example.org/a:1"]) == (there, absent)
    assert found[TRAIN] == "published"
    assert {there, absent} <= set(CONDITIONS)


def test_every_image_is_there_once_and_in_order(shelf: Shelf) -> None:
    catalogue = Catalogue(shelf, [outline(ROOT), outline("a.example.org/z:1", "queued")])
    names = [item.key.name for item in catalogue.items]
    assert names == ["a.example.org/z:1", DEBIAN, ROOT, TRAIN]
    assert sum(catalogue.facets.conditions.values()) == 4
    assert catalogue.facets.owners == {"anna": 2}


def test_words_are_found_in_any_order_and_case(shelf: Shelf) -> None:
    catalogue = Catalogue(shelf, [outline(ROOT)])

    def found(text: str) -> list[str]:
        return [item.key.name for item in catalogue.choose(Choice(text))]

    assert found("ROOT physics") == [ROOT]
    assert found("list.yaml ANNA") == [ROOT]
    assert found("physics debian") == []
    assert len(found("")) == 3
    assert found("a " * 100) == found("a")


class Reading(Library):
    """A library that tells how much it reads."""

    def __init__(self, repository: NativeRepository) -> None:
        super().__init__(repository)
        self.times = 0

    def _read(self) -> Shelf:
        self.times += 1
        return super()._read()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many records each reading of small files asked for."""
    counts: list[int] = []
    original = Snapshot.read_small_files

    def read_small_files(
        self: Snapshot, files: Sequence[SmallFile]
    ) -> Iterator[tuple[SmallFile, bytes]]:
        counts.append(len(files))
        return original(self, files)

    monkeypatch.setattr(Snapshot, "read_small_files", read_small_files)
    return counts


@pytest.fixture
def own(status_site: StatusSite, tmp_path: Path) -> StatusSite:
    """A copy that a test may write to."""
    shutil.copytree(status_site.base, tmp_path / "own")
    return StatusSite(tmp_path / "own", status_site.now)


def repository_of(site: StatusSite) -> NativeRepository:
    return NativeRepository(NAME, LocalStore(site.base / "repository"), site.base / "keys")


def test_records_are_read_once_for_a_revision(own: StatusSite, read: list[int]) -> None:
    library = Reading(repository_of(own))
    service = replace(own.service(), library=library)
    browser = Browser(own.app(service))
    for path in ("/", "/images?q=root", "/images", "/api/v1/images", "/metrics", "/healthz"):
        assert browser.get(path).status == 200
    assert (library.times, read) == (1, [3])


def test_after_a_publish_only_what_is_new_is_read(
    own: StatusSite, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[int] = []
    original = Snapshot._load_many

    def load_many(self: Snapshot, refs: Sequence[CatalogRef]) -> Iterator[Catalog]:
        loaded.append(len(refs))
        return original(self, refs)

    monkeypatch.setattr(Snapshot, "_load_many", load_many)
    library = Reading(repository_of(own))
    assert len(library.shelf().images) == 3
    before = sum(loaded)
    name = "ghcr.io/a/new:1"
    records = RecordStore(
        own.base / "state" / "layers", library.shelf().manifest.root_hash.algorithm
    )
    publisher = Publisher(repository_of(own), Images(), records, PublishSettings())
    publisher.publish([name], now=datetime.now(UTC))
    loaded.clear()
    assert ImageKey(name, AMD64) in library.shelf().images
    assert read == [3, 1]
    assert library.times == 2
    assert sum(loaded) < before  # catalogs of the other registries are the same


def test_a_page_asks_the_state_as_often_however_many_images_there_are(
    own: StatusSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = own.service()
    reader = service.watch.reader()
    assert reader is not None
    asked: list[str] = []
    rows = reader._database.rows

    def counted(sql: str, parameters: Sequence[object] = ()) -> list[tuple[object, ...]]:
        asked.append(sql)
        return rows(sql, parameters)

    monkeypatch.setattr(reader._database, "rows", counted)
    browser = Browser(own.app(service))
    assert browser.get("/images").status == 200
    few = len(asked)
    database = reader._database
    with database.writing():
        database.change_many(
            "INSERT INTO image (name, platform, registry, reference, requested_at, changed_at)"
            " VALUES (?, ?, ?, ?, 0, 0)",
            [
                (
                    f"x.example.org/a{n}:1",
                    AMD64,
                    "x.example.org",
                    "",
                )
                for n in range(500)
            ],
        )
    asked.clear()
    assert "507 images" in browser.get("/images").text
    assert len(asked) == few


def test_what_a_page_asks_of_the_state_uses_its_indexes(own: StatusSite) -> None:
    reader = own.service().watch.reader()
    assert reader is not None
    plan = reader._database.rows(
        "EXPLAIN QUERY PLAN SELECT id FROM image WHERE (name, platform) IN"
        " (SELECT value ->> 0, value ->> 1 FROM json_each(?))",
        ['[["a", "b"]]'],
    )
    assert any("SEARCH image USING" in str(row) for row in plan), plan
    plan = reader._database.rows(
        "EXPLAIN QUERY PLAN SELECT * FROM event WHERE name = ? ORDER BY id DESC LIMIT 10", ["a"]
    )
    assert any("event_name" in str(row) for row in plan), plan


def test_a_damaged_record_hides_no_other(own: StatusSite) -> None:
    with repository_of(own).transaction(int(datetime.now(UTC).timestamp())) as transaction:
        transaction.put_file(f"{METADATA}/{DEBIAN}/{PUBLICATION_FILE}", b"{}")
    shelf = repository_library(own).shelf()
    assert set(shelf.images) == {ImageKey(ROOT, AMD64), ImageKey(TRAIN, AMD64)}
    (fault,) = shelf.damaged
    assert DEBIAN in fault
    text = Browser(own.app()).get("/images").text
    assert "A record cannot be read" in text
    assert ROOT in text


def test_a_record_of_an_impossible_name_is_damaged(own: StatusSite) -> None:
    record = repository_library(own).shelf().images[ImageKey(DEBIAN, AMD64)]
    odd = replace(record, reference="../../etc/passwd")
    with repository_of(own).transaction(int(datetime.now(UTC).timestamp())) as transaction:
        transaction.put_file(f"{METADATA}/{DEBIAN}/{PUBLICATION_FILE}", odd.to_json())
    assert len(repository_library(own).shelf().damaged) == 1


def repository_library(site: StatusSite) -> Library:
    return Library(repository_of(site))


def test_how_much_is_shared_is_counted_by_layer(shelf: Shelf) -> None:
    """Five uses of three layers: the base is in all three images."""
    assert sorted(shelf.layer_uses.values()) == [1, 1, 3]
    assert shelf.reuse == pytest.approx(0.4)
    assert isinstance(shelf.images[ImageKey(ROOT, AMD64)], Publication)
