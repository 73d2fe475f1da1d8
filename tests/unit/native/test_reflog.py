from __future__ import annotations

import pytest

from cvmfs_publish.content.hashes import ContentHash, Suffix
from cvmfs_publish.errors import IntegrityError, RepositoryError
from cvmfs_publish.repository.native.history import History
from cvmfs_publish.repository.native.manifest import parse_manifest
from cvmfs_publish.repository.native.reflog import Ref, Reflog, RefType
from tests.unit.native.vectors import NAMES, edit_database, vector

ONE, TWO = (ContentHash.parse(digit * 40) for digit in "12")


@pytest.mark.parametrize("name", NAMES)
def test_a_stock_reflog_lists_what_the_manifest_names(name: str) -> None:
    repository = vector(name) / "repo"
    manifest = parse_manifest((repository / ".cvmfspublished").read_bytes())[0]
    data = (repository / ".cvmfsreflog").read_bytes()
    assert manifest.reflog == ContentHash.of(data, manifest.root_hash.algorithm)
    with Reflog.open(data) as reflog, Reflog.create("x") as ours:
        assert reflog.name == name
        listed = {(ref.hash, ref.type) for ref in reflog.entries()}
        assert {
            (manifest.root_hash, RefType.CATALOG),
            (manifest.certificate, RefType.CERTIFICATE),
            (manifest.history, RefType.HISTORY),
            (manifest.metainfo, RefType.METAINFO),
        } <= listed
        assert len(listed) == 9
        for table in ("properties", "refs"):
            sql = f"PRAGMA table_info({table})"
            stock = reflog.database.execute(sql).fetchall()
            assert ours.database.execute(sql).fetchall() == stock
        for key in ("schema", "schema_revision"):
            assert ours.get_property(key) == reflog.get_property(key)
        for ref in reflog.entries():
            assert (repository / ref.hash.path(ref.type.suffix)).is_file()


def test_entries_are_refreshed_when_added_again_and_survive_being_written() -> None:
    with Reflog.create("a.example.org") as reflog:
        reflog.add(ONE, RefType.CATALOG, 100)
        reflog.add(TWO, RefType.HISTORY, 150)
        reflog.add(ONE, RefType.CATALOG, 200)
        data = reflog.serialize()
    assert data[16:20] == b"\x04\x00\x01\x01"
    with Reflog.open(data) as again:
        expected = [Ref(TWO, RefType.HISTORY, 150), Ref(ONE, RefType.CATALOG, 200)]
        assert again.entries() == expected
        again.remove(TWO)
        assert again.entries() == expected[1:]
        assert again.name == "a.example.org"


def test_the_same_steps_give_the_same_bytes() -> None:
    results = []
    for _ in range(2):
        with Reflog.create("a.example.org") as reflog:
            reflog.add(ONE, RefType.CATALOG, 100)
            results.append(reflog.serialize())
    assert results[0] == results[1]


def test_the_kinds_of_objects_have_their_suffixes() -> None:
    assert [kind.suffix for kind in RefType] == [
        Suffix.CATALOG,
        Suffix.CERTIFICATE,
        Suffix.HISTORY,
        Suffix.METAINFO,
    ]


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO refs VALUES ('x', 0, 1)",
        f"INSERT INTO refs VALUES ('{'1' * 40}', 9, 1)",
        f"INSERT INTO refs VALUES ('{'1' * 40}', 0, 'x')",
        "DROP TABLE refs",
    ],
)
def test_malformed_reflogs_are_refused(sql: str) -> None:
    with Reflog.create("x") as reflog:
        data = edit_database(reflog.serialize(), sql)
    with pytest.raises(IntegrityError), Reflog.open(data) as reflog:
        reflog.entries()


@pytest.mark.parametrize("kind", [Reflog, History])
def test_a_database_of_a_newer_server_is_refused(kind: type[Reflog | History]) -> None:
    with kind.create("a.example.org") as created:
        data = edit_database(
            created.serialize(),
            "UPDATE properties SET value = '9' WHERE key = 'schema_revision'",
        )
    with pytest.raises(RepositoryError, match="schema revision 9, newer than") as caught:
        kind.open(data)
    assert "newer version" in caught.value.hint
