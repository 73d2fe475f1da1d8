"""The repository as a whole: transactions, locks, and what it refuses to sign."""

from __future__ import annotations

import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cvmfs_publish.content.hashes import HashAlgorithm
from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.errors import LockedError, RepositoryError
from cvmfs_publish.layers.tree import empty_tree
from cvmfs_publish.repository.native.repository import NativeRepository
from cvmfs_publish.repository.native.signing import create_keys
from tests.support import NAME, Site, site

pytestmark = pytest.mark.slow


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as created:
        yield created


def now() -> int:
    return int(datetime.now(UTC).timestamp())


def put(target: Site, name: str = "f", data: bytes = b"1", at: int | None = None) -> None:
    with target.repository.transaction(at or now()) as transaction:
        transaction.put_file(name, data)


def snapshot_of(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("algorithm", HashAlgorithm)
def test_a_new_repository_is_empty_signed_and_sound(
    tmp_path: Path, algorithm: HashAlgorithm
) -> None:
    with site(tmp_path, algorithm) as target:
        assert target.repository.revision().number == 1
        assert target.judge() == []
        with target.repository.open() as view:
            assert view.list_names("") == []
            assert view.is_directory("")
        assert target.repository.manifest().root_hash.algorithm is algorithm


def test_a_second_repository_is_not_made_over_the_first(target: Site) -> None:
    before = snapshot_of(target.storage)
    with pytest.raises(RepositoryError, match="already holds a repository") as caught:
        target.repository.create(HashAlgorithm.SHA1, datetime.now(UTC))
    assert "--storage" in caught.value.hint
    assert snapshot_of(target.storage) == before


def test_what_a_transaction_did_is_published_with_the_next_revision(target: Site) -> None:
    before = target.repository.revision()
    steps: list[str] = []
    with target.repository.transaction(now(), steps.append) as transaction:
        assert transaction.revision == before.number + 1
        transaction.make_directories("a/b", ["a"])
        transaction.put_file("a/b/f", b"data")
        transaction.put_symlink("l", "a/b/f")
        transaction.put_tree("a/image", empty_tree())
        assert transaction.read_file("a/b/f") == b"data"
        assert transaction.read_symlink("l") == "a/b/f"
        assert transaction.read_symlink("a") is None
        assert transaction.is_directory("a/image")
        with target.repository.open() as view:
            assert view.read_file("a/b/f") is None
    after = target.repository.revision()
    assert (after.number, after.timestamp >= before.timestamp) == (before.number + 1, True)
    assert steps[0] == "catalogs"
    assert steps[-1] == "done"
    assert target.judge() == []
    with target.repository.open() as view:
        assert view.read_file("a/b/f") == b"data"
        assert view.read_symlink("l") == "a/b/f"
        assert view.read_file("l") is None
        assert view.list_names("") == [("a", True), ("l", False)]
        assert view.list_names("none") == []


def test_a_transaction_without_changes_publishes_nothing(target: Site) -> None:
    before = snapshot_of(target.storage)
    with target.repository.transaction(now()) as transaction:
        transaction.remove("none")
    assert snapshot_of(target.storage) == before


def test_a_transaction_that_raises_publishes_nothing(target: Site) -> None:
    before = target.repository.revision()
    with pytest.raises(ZeroDivisionError), target.repository.transaction(now()) as transaction:
        transaction.put_file("f", b"1")
        raise ZeroDivisionError
    assert target.repository.revision() == before
    assert target.judge() == []
    put(target)
    assert target.judge() == []


def test_readers_keep_the_revision_they_opened(target: Site) -> None:
    put(target, data=b"old")
    with target.repository.open() as view:
        put(target, data=b"new")
        assert view.read_file("f") == b"old"
    with target.repository.open() as view:
        assert view.read_file("f") == b"new"


def test_a_second_writer_is_refused_at_once_and_free_afterwards(target: Site) -> None:
    other = NativeRepository(NAME, LocalStore(target.storage), target.keys)
    with target.repository.transaction(now()) as transaction:
        transaction.put_file("f", b"1")
        for repository in (other, target.repository):
            with pytest.raises(LockedError, match="is locked"), repository.transaction(now()):
                pass
        with pytest.raises(LockedError):
            other.resign(datetime.now(UTC))
    with other.transaction(now()) as transaction:
        transaction.put_file("g", b"2")
    assert target.judge() == []


def test_many_writers_at_once_lose_nothing(target: Site) -> None:
    def work(number: int) -> None:
        repository = NativeRepository(NAME, LocalStore(target.storage), target.keys)
        while True:
            try:
                with repository.transaction(now()) as transaction:
                    transaction.put_file(f"f{number}", b"%d" % number)
            except LockedError:
                time.sleep(0.02)
                continue
            return

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.repository.revision().number == 5
    with target.repository.open() as view:
        assert [name for name, _ in view.list_names("")] == ["f0", "f1", "f2", "f3"]
    assert target.judge() == []


# the clock


def test_time_never_goes_back(target: Site) -> None:
    published = target.repository.revision().timestamp
    put(target, at=published - 30)
    assert target.repository.revision().timestamp == published
    assert target.judge() == []


def test_a_revision_from_the_future_is_not_built_upon(target: Site) -> None:
    before = target.repository.revision()
    with pytest.raises(RepositoryError, match="never go back in time") as caught:
        put(target, at=before.timestamp - 3600)
    assert "clock" in caught.value.hint
    assert target.repository.revision() == before


# what clients would not accept is not signed


def test_an_expired_whitelist_stops_publishing_until_it_is_renewed(target: Site) -> None:
    later = datetime.now(UTC).replace(microsecond=0) + timedelta(days=60)
    with pytest.raises(RepositoryError, match="expired") as caught:
        put(target, at=int(later.timestamp()))
    assert "resign" in caught.value.hint
    assert target.repository.resign(later, 10) == later + timedelta(days=10)
    put(target, at=int(later.timestamp()))
    assert target.repository.revision().number == 2


def test_another_certificate_is_not_used(target: Site, tmp_path: Path) -> None:
    create_keys(tmp_path / "other", NAME, now=datetime.now(UTC))
    for kind in ("key", "crt"):
        shutil.copy(tmp_path / "other" / f"{NAME}.{kind}", target.keys / f"{NAME}.{kind}")
    before = target.repository.revision()
    with pytest.raises(RepositoryError, match="does not trust the certificate") as caught:
        put(target)
    assert "resign" in caught.value.hint
    assert target.repository.revision() == before


def test_a_manifest_signed_with_another_key_is_not_built_upon(target: Site) -> None:
    path = target.storage / ".cvmfspublished"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(RepositoryError, match="was not signed with the key"):
        put(target)


@pytest.mark.parametrize("kind", ["key", "crt", "pub"])
def test_a_missing_key_is_named(target: Site, kind: str) -> None:
    (target.keys / f"{NAME}.{kind}").unlink()
    with pytest.raises(RepositoryError, match=kind):
        put(target)


def test_another_name_and_an_empty_place_are_told(target: Site, tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"holds repository 'test\.example\.org'"):
        NativeRepository("other.example.org", LocalStore(target.storage), target.keys).revision()
    with pytest.raises(RepositoryError, match="holds no repository") as caught:
        NativeRepository(NAME, LocalStore(tmp_path / "none"), target.keys).revision()
    assert "init" in caught.value.hint


def test_a_foreign_reflog_is_not_built_upon(target: Site) -> None:
    path = target.storage / ".cvmfsreflog"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("DELETE FROM refs WHERE type = 0")
    with pytest.raises(RepositoryError, match="does not belong to revision") as caught:
        put(target)
    assert "check -r" in caught.value.hint


def test_a_longer_reflog_of_a_killed_writer_is(target: Site) -> None:
    path = target.storage / ".cvmfsreflog"
    manifest = (target.storage / ".cvmfspublished").read_bytes()
    put(target)
    longer = path.read_bytes()
    (target.storage / ".cvmfspublished").write_bytes(manifest)
    assert path.read_bytes() == longer
    put(target, data=b"2")
    assert target.repository.revision().number == 2
    assert target.judge() == []


def test_temporary_files_of_killed_writers_go_and_those_of_others_stay(target: Site) -> None:
    txn = target.storage / "data" / "txn"
    (txn / "cvmfs-publish-1-1").write_bytes(b"left")
    (txn / "stock").write_bytes(b"of others")
    put(target)
    assert [path.name for path in txn.iterdir()] == ["stock"]


def test_missing_objects_are_noticed(target: Site) -> None:
    manifest = target.repository.manifest()
    text = str(manifest.root_hash)
    name = f"data/{text[:2]}/{text[2:]}C"
    assert target.repository.has_objects([name])
    assert not target.repository.has_objects([name, "data/ab/none"])
    assert target.repository.has_objects([])


def test_facts_for_the_operator(target: Site) -> None:
    put(target)
    info = target.repository.info(datetime.now(UTC))
    assert info.has_master_key
    assert info.manifest.revision == 2
    assert info.counters["regular"] == 1
    assert info.whitelist.expires_at > datetime.now(UTC) + timedelta(days=20)
    (target.keys / f"{NAME}.masterkey").unlink()
    (target.keys / f"{NAME}.key").rename(target.keys / "elsewhere")  # nobody has to sign for it
    assert not target.repository.info(datetime.now(UTC)).has_master_key
    (target.keys / "elsewhere").rename(target.keys / f"{NAME}.key")
    with pytest.raises(RepositoryError, match="master key"):
        target.repository.resign(datetime.now(UTC))
    put(target, data=b"the master key may be elsewhere")
    assert target.judge() == []
