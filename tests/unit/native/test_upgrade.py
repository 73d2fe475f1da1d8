"""Catalogs and histories of older servers are read as they are and upgraded when they are written.

The old ones are made of real repositories: what a revision brought is taken away again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from cvmfs_publish.content.hashes import Suffix
from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.errors import RepositoryError
from cvmfs_publish.repository.native.catalog import Row
from cvmfs_publish.repository.native.history import History
from cvmfs_publish.repository.native.reader import browse_snapshot
from cvmfs_publish.repository.native.repository import NativeRepository
from tests.support import judged
from tests.unit.native.vectors import NAMES, NOW, SHA1, Damaged, copy_keys, vector

pytestmark = pytest.mark.slow

PREFIXES = ("/nested/inner", "/nested", "")  # leaves first
NOW_SECONDS = int(NOW.timestamp())
BROUGHT = {  # by catalog revision: how to take it away
    7: "ALTER TABLE catalog DROP COLUMN mtimens;",
    5: "DELETE FROM statistics WHERE counter LIKE '%_special';",
    4: "DROP TABLE bind_mountpoints;",
    3: "DELETE FROM statistics WHERE counter LIKE '%_external%';",
    2: "ALTER TABLE catalog DROP COLUMN xattr;DELETE FROM statistics WHERE counter LIKE '%_xattr';",
    1: "ALTER TABLE nested_catalogs DROP COLUMN size;",
}
HISTORY_BROUGHT = {
    3: "CREATE TABLE t (name TEXT, hash TEXT, revision INTEGER, timestamp INTEGER, "
    "channel INTEGER, description TEXT, size INTEGER, CONSTRAINT pk_tags PRIMARY KEY (name));"
    "INSERT INTO t SELECT name, hash, revision, timestamp, channel, description, size FROM tags;"
    "DROP TABLE tags; ALTER TABLE t RENAME TO tags; DROP TABLE branches;",
    2: "DROP TABLE recycle_bin;",
    1: "ALTER TABLE tags DROP COLUMN size;",
}


def downgrade(brought: dict[int, str], revision: int) -> str:
    script = "".join(sql for since, sql in brought.items() if since > revision)
    return script + f"UPDATE properties SET value = '{revision}' WHERE key = 'schema_revision'"


def old_repository(directory: Path, name: str, revision: int) -> Damaged:
    """A real repository as a server of an old schema revision would have left it."""
    repository = Damaged(directory, name)
    for prefix in PREFIXES:
        repository.edit_catalog(prefix, downgrade(BROUGHT, revision))
    repository.sign(root_size=0)
    return repository


def writer(repository: Damaged, tmp_path: Path) -> NativeRepository:
    keys = copy_keys(tmp_path / "keys", repository.name)
    return NativeRepository(repository.name, LocalStore(repository.root), keys)


def judge(root: Path, public_key: Path) -> list[str]:
    lines = judged(root, public_key, "--scrub").splitlines()
    assert " errors, " in lines[-1]
    return [line for line in lines if line.startswith("ERROR")]


def revisions(repository: Damaged) -> list[str]:
    return [read(repository, prefix, "schema_revision") for prefix in PREFIXES]


def read(repository: Damaged, prefix: str, key: str) -> str:
    data = repository.get(repository.catalog_hash(prefix), Suffix.CATALOG)
    with closing(sqlite3.connect(":memory:")) as database:
        database.deserialize(data)
        sql = "SELECT value FROM properties WHERE key = ?"
        return str(database.execute(sql, (key,)).fetchone()[0])


def rows(root: Path, *, change: Callable[[Row], Row] = lambda row: row) -> list[Row]:
    with browse_snapshot(LocalStore(root)) as snapshot:
        return [change(row) for row in snapshot.walk()]


@pytest.mark.parametrize("revision", range(7))
@pytest.mark.parametrize("name", NAMES)
def test_old_catalogs_are_read_and_checked(tmp_path: Path, name: str, revision: int) -> None:
    repository = old_repository(tmp_path, name, revision)

    def as_old(row: Row) -> Row:
        node = row.node._replace(mtime_ns=0)
        return row._replace(node=node if revision >= 2 else node._replace(xattrs=()))

    assert rows(repository.root) == rows(vector(name) / "repo", change=as_old)
    assert repository.check().errors == []


@pytest.mark.parametrize("revision", range(7))
@pytest.mark.parametrize("name", NAMES)
def test_only_catalogs_that_change_are_upgraded(tmp_path: Path, name: str, revision: int) -> None:
    repository = old_repository(tmp_path, name, revision)
    before = rows(repository.root)
    nested = repository.catalog_hash("/nested")
    with writer(repository, tmp_path).transaction(NOW_SECONDS) as transaction:
        transaction.put_symlink("link", "target")
    assert revisions(repository) == [str(revision), str(revision), "7"]
    assert repository.catalog_hash("/nested") == nested
    assert [row for row in rows(repository.root) if row.path != "link"] == before
    assert repository.check(scrub=True).errors == []
    if revision == 6:  # the judge knows no older ones
        assert judge(repository.root, repository.public_key) == []


@pytest.mark.parametrize("order", [["nested/link"], ["nested/inner/link"], ["nested/link", "link"]])
@pytest.mark.parametrize("revision", range(7))
def test_upgraded_catalogs_satisfy_every_check(
    tmp_path: Path, revision: int, order: list[str]
) -> None:
    repository = old_repository(tmp_path, SHA1, revision)
    before = {row.path: row.node._replace(mtime=0) for row in rows(repository.root)}
    for path in order:
        with writer(repository, tmp_path).transaction(NOW_SECONDS) as transaction:
            transaction.put_symlink(path, "target")
    if "nested/inner/link" in order:
        assert revisions(repository) == ["7", "7", "7"]
        assert judge(repository.root, repository.public_key) == []
    after = {row.path: row.node._replace(mtime=0) for row in rows(repository.root)}
    assert {path: node for path, node in after.items() if path not in order} == before
    assert repository.check(scrub=True).errors == []


@pytest.mark.parametrize(
    ("schema", "revision"),
    [("2.5", "8"), ("2.5", "4711"), ("2.6", "7"), ("2.4", "0"), ("", "7"), ("2.5", "x")],
)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_catalog_of_another_schema_is_not_written(
    tmp_path: Path, prefix: str, schema: str, revision: str
) -> None:
    repository = Damaged(tmp_path, SHA1)
    repository.edit_catalog(
        prefix,
        f"UPDATE properties SET value = '{schema}' WHERE key = 'schema';"
        f"UPDATE properties SET value = '{revision}' WHERE key = 'schema_revision'",
    )
    before = {path: path.stat().st_mtime_ns for path in repository.root.rglob("*")}
    with (
        pytest.raises(RepositoryError, match="schema") as caught,
        writer(repository, tmp_path).transaction(NOW_SECONDS) as transaction,
    ):
        transaction.put_symlink(f"{prefix}/link".strip("/"), "target")
    assert caught.value.hint
    assert {path: path.stat().st_mtime_ns for path in repository.root.rglob("*")} == before


def test_a_revision_that_is_not_what_it_says_is_not_written(tmp_path: Path) -> None:
    repository = Damaged(tmp_path, SHA1)
    repository.edit_catalog("", "UPDATE properties SET value = '6' WHERE key = 'schema_revision'")
    with (
        pytest.raises(RepositoryError, match="duplicate column"),
        writer(repository, tmp_path).transaction(NOW_SECONDS),
    ):
        pass


# history


@pytest.mark.parametrize("revision", range(3))
@pytest.mark.parametrize("name", NAMES)
def test_an_old_history_is_upgraded_by_the_next_revision(
    tmp_path: Path, name: str, revision: int
) -> None:
    repository = Damaged(tmp_path, name)
    tags = tags_of(repository)
    repository.edit_history(downgrade(HISTORY_BROUGHT, revision))
    assert known_errors(repository) == []
    assert tags_of(repository) == [t if revision else (*t[:-1], 0) for t in tags]
    with writer(repository, tmp_path).transaction(NOW_SECONDS) as transaction:
        transaction.put_symlink("link", "target")
    assert known_errors(repository) == []
    kept = {tag[0] for tag in tags} - {"trunk", "trunk-previous"}
    assert kept < {tag[0] for tag in tags_of(repository)}
    found = judge(repository.root, repository.public_key)
    assert [e for e in found if revision or "size" not in e] == []


def known_errors(repository: Damaged) -> list[str]:
    """Errors but those of tags from before their catalogs' sizes were noted."""
    return [p.text for p in repository.check().errors if not p.text.startswith("says 0 bytes")]


def tags_of(repository: Damaged) -> list[tuple[str, str, int, int]]:
    value = repository.manifest().history
    assert value is not None
    with History.open(repository.get(value, Suffix.HISTORY)) as history:
        return [(tag.name, str(tag.hash), tag.revision, tag.size) for tag in history.tags()]


def test_a_history_of_a_newer_server_is_refused(tmp_path: Path) -> None:
    repository = Damaged(tmp_path, SHA1)
    repository.edit_history("UPDATE properties SET value = '4' WHERE key = 'schema_revision'")
    published = repository.manifest()
    with (
        pytest.raises(RepositoryError, match="newer than 3"),
        writer(repository, tmp_path).transaction(NOW_SECONDS) as transaction,
    ):
        transaction.put_symlink("link", "target")
    assert repository.manifest() == published
