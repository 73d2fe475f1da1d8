"""Records of published images: back as they were, or refused."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest

from cvmfs_publish.errors import IntegrityError, RepositoryError
from cvmfs_publish.findings import Finding
from cvmfs_publish.repository.records import (
    FORMAT,
    Event,
    Publication,
    SandboxRecord,
    Unpublished,
    iter_publications,
    iter_records,
    read_publication,
    read_unpublished,
)

RECORD = Publication(
    reference="ghcr.io/a/b:1", digest="sha256:1", manifest_digest="sha256:2", image_id="sha256:3",
    platform="linux/amd64", path="/ghcr.io/a/b:1", sandbox="/.flat/ab/abcd",
    published_at="2026-11-20T00:00:00Z", revision=3, entries=4, content_bytes=5, stored_bytes=6,
    tree_digest="sha256:4", recipe="sha256:5", layers=("sha256:6", "sha256:7"),
    roots_added=("/nfs",), findings=(Finding("bytes \udcff", "dropped"),), publisher="test 1",
    history=(Event("2026-11-19T00:00:00Z", 2, "sha256:8", "sha256:9", "sha256:a", "published"),),
    pinned_at="2026-11-20T00:00:01Z", pinned=("/.flat/ab/abcd",),
)  # fmt: skip
# later than format 1
OPTIONAL = {
    *("signature", "what", "history", "pinned_at", "pinned", "signed_by", "trust"),
    *("source", "source_state", "short_name"),
}


def changed(**values: Any) -> bytes:  # noqa: ANN401
    return json.dumps({**json.loads(RECORD.to_json()), **values}).encode()


def without(name: str) -> bytes:
    document = json.loads(RECORD.to_json())
    del document[name]
    return json.dumps(document).encode()


def test_a_record_comes_back_as_it_was() -> None:
    assert Publication.from_json(RECORD.to_json()) == RECORD
    assert RECORD.to_json().isascii()
    assert json.loads(RECORD.to_json())["format"] == FORMAT
    sandbox = SandboxRecord("r", "t")
    assert SandboxRecord.from_json(sandbox.to_json()) == sandbox
    unpublished = Unpublished(RECORD.events)
    assert Unpublished.from_json(unpublished.to_json()) == unpublished


def test_fields_of_later_versions_are_ignored_and_a_later_format_refused() -> None:
    assert Publication.from_json(changed(more=1)) == RECORD
    assert Publication.from_json(without("signature")) == RECORD
    with pytest.raises(IntegrityError, match="format 2") as caught:
        Publication.from_json(changed(format=2))
    assert "update" in caught.value.hint


@pytest.mark.parametrize(
    "name", ["format", *(f.name for f in fields(Publication) if f.name not in OPTIONAL)]
)
def test_a_record_without_a_field_is_refused(name: str) -> None:
    with pytest.raises(IntegrityError, match=r"malformed publication\.json"):
        Publication.from_json(without(name))


@pytest.mark.parametrize("name", [f.name for f in fields(Publication)])
@pytest.mark.parametrize("value", [None, {"a": 1}, [[]], 1.5, True], ids=repr)
def test_a_field_of_another_type_is_refused(name: str, value: object) -> None:
    with pytest.raises(IntegrityError, match="malformed"):
        Publication.from_json(changed(**{name: value}))


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff", b"3", b"[" * 100_000,
                                  b'{"format": "1"}'])  # fmt: skip
def test_what_is_no_record_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="malformed"):
        Publication.from_json(data)
    with pytest.raises(IntegrityError, match="malformed"):
        SandboxRecord.from_json(data)


def test_a_record_of_the_first_versions_has_no_past_and_no_pin() -> None:
    document = json.loads(RECORD.to_json())
    for name in OPTIONAL:
        document.pop(name, None)
    record = Publication.from_json(json.dumps(document).encode())
    assert (record.history, record.pinned, record.pinned_at) == ((), (), "")
    assert record.events == (record.event,)
    assert record.event.what == "published"


EVENT = json.loads(RECORD.to_json())["history"][0]


@pytest.mark.parametrize(
    "history",
    [[1], [{}], [{**EVENT, "revision": "2"}], [{**EVENT, "at": 1}], {"a": EVENT}, "text"],
    ids=repr,
)
def test_a_history_of_anything_but_events_is_refused(history: object) -> None:
    with pytest.raises(IntegrityError, match="malformed publication"):
        Publication.from_json(changed(history=history))
    with pytest.raises(IntegrityError, match="malformed unpublished"):
        Unpublished.from_json(json.dumps({"format": 1, "history": history}).encode())
    assert Publication.from_json(changed(history=[{**EVENT, "more": 1}])) == RECORD


@pytest.mark.parametrize("data", [b"{}", b'{"recipe": "r"}', b'{"recipe": 1, "tree_digest": "t"}'])
def test_what_is_no_sandbox_record_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="malformed sandbox record"):
        SandboxRecord.from_json(data)


class Files:
    """A view of a few files."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files

    def read_file(self, path: str) -> bytes | None:
        return self._files.get(path)

    def read_symlink(self, path: str) -> str | None:
        return None

    def is_directory(self, path: str) -> bool:
        return any(name.startswith(path + "/") for name in self._files)

    def list_names(self, path: str) -> list[tuple[str, bool]]:
        below = {n.removeprefix(path + "/") for n in self._files if n.startswith(path + "/")}
        return sorted({(name.split("/")[0], "/" in name) for name in below})


def test_all_records_are_found_in_order_and_those_of_sandboxes_left_out() -> None:
    def named(reference: str) -> bytes:
        return changed(reference=reference)

    view = Files(
        {
            ".metadata/.images/ab/publication.json/x": b"",
            ".metadata/.images/publication.json": b"no record",
            ".metadata/z/publication.json": named("z"),
            ".metadata/z/.replaced/0a/publication.json": named("what z was before"),
            ".metadata/gone/unpublished.json": b"{}",
            ".metadata/a/b:1/publication.json": named("a/b:1"),
            ".metadata/a/b:1/manifest.json": b"{}",
            ".metadata/a/b/publication.json": named("a/b"),
            ".metadata/.multiarch/arm64/a/publication.json": named("arm"),
            "a/publication.json": b"elsewhere",
        }
    )
    found = [record.reference for record in iter_publications(view)]
    assert found == ["arm", "a/b", "a/b:1", "z"]
    assert read_publication(view, ".metadata/none") is None
    assert list(iter_publications(Files({}))) == []
    assert [directory for directory, _ in iter_records(view)] == [
        ".metadata/.multiarch/arm64/a", ".metadata/a/b", ".metadata/a/b:1", ".metadata/gone",
        ".metadata/z",
    ]  # fmt: skip


def test_a_damaged_record_of_the_repository_is_told_with_its_path() -> None:
    view = Files({".metadata/a/publication.json": b"{", ".metadata/b/unpublished.json": b"[]"})
    with pytest.raises(RepositoryError, match=r"/\.metadata/a/publication\.json in the repository"):
        list(iter_publications(view))
    with pytest.raises(RepositoryError, match=r"/\.metadata/b/unpublished\.json"):
        read_unpublished(view, ".metadata/b/unpublished.json")
    assert read_unpublished(view, ".metadata/a/unpublished.json") is None
