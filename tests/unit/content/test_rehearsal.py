"""A store on which things are tried: it answers as if they were done, and nothing is."""

from __future__ import annotations

from pathlib import Path

import pytest

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm, Suffix
from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.content.rehearsal import Rehearsal
from cvmfs_publish.content.store import MissingError
from cvmfs_publish.errors import IntegrityError, LockedError

OLD, NEW = b"stored before", b"written now"


def named(data: bytes) -> tuple[ContentHash, Suffix]:
    return ContentHash.of(data, HashAlgorithm.SHA1), Suffix.DATA


def name_of(data: bytes) -> str:
    content_hash, kind = named(data)
    return content_hash.path(kind)


@pytest.fixture
def real(tmp_path: Path) -> LocalStore:
    store = LocalStore(tmp_path)
    store.create()
    store.put(OLD, *named(OLD))
    store.write("file", b"1")
    return store


def everything(store: LocalStore) -> dict[str, bytes]:
    return {
        str(path.relative_to(store.root)): path.read_bytes()
        for path in store.root.rglob("*")
        if path.is_file()
    }


def test_what_is_written_can_be_read_and_nothing_has_changed(real: LocalStore) -> None:
    before = everything(real)
    store = Rehearsal(real)
    store.create()
    assert store.put_many([(OLD, *named(OLD)), (NEW, *named(NEW))]) == [False, True]
    assert not store.put(NEW, *named(NEW))
    assert store.read(*named(NEW)) == NEW
    assert list(store.read_many([named(OLD), named(NEW)])) == [OLD, NEW]
    assert list(store.read_many([named(OLD)])) == [OLD]
    assert store.has_all([name_of(OLD), name_of(NEW)])
    assert not store.has_all([name_of(b"none")])
    assert store.size(name_of(NEW)) == len(NEW)
    assert b"".join(store.pieces(name_of(NEW))) == NEW
    assert b"".join(store.pieces(name_of(OLD))) == OLD
    shards = {name_of(data)[5:7] for data in (OLD, NEW)}
    found = {each.name: each.size for shard in shards for each in store.objects(shard)}
    assert found == {name_of(OLD): len(OLD), name_of(NEW): len(NEW)}
    store.write("other", b"2")
    found_file = store.fetch("other", 10)
    assert found_file is not None
    assert found_file.data == b"2"
    with pytest.raises(IntegrityError, match="more than 0 bytes"):
        store.fetch("other", 0)
    store.sync()
    store.sweep()
    store.close()
    assert everything(real) == before
    assert store.description() == real.description()


def test_what_is_removed_is_gone_only_here(real: LocalStore) -> None:
    store = Rehearsal(real)
    store.put(NEW, *named(NEW))
    store.remove([name_of(OLD), name_of(NEW)])
    assert store.size(name_of(OLD)) is None
    assert store.size(name_of(NEW)) is None
    assert not list(store.objects(name_of(OLD)[5:7]))
    assert not store.has_all([name_of(OLD)])
    for data in (OLD, NEW):
        with pytest.raises(MissingError):
            store.read(*named(data))
        with pytest.raises(MissingError):
            list(store.pieces(name_of(data)))
    assert real.read(*named(OLD)) == OLD
    assert store.put(OLD, *named(OLD))
    assert store.has_all([name_of(OLD)])


def test_a_file_is_replaced_only_if_it_is_what_was_expected(real: LocalStore) -> None:
    store = Rehearsal(real)
    before = store.fetch("file", 10)
    assert before is not None
    store.replace(store.prepare("file", b"2", before.version))
    after = store.fetch("file", 10)
    assert after is not None
    assert after.data == b"2"
    with pytest.raises(LockedError):
        store.replace(store.prepare("file", b"3", before.version))
    store.replace(store.prepare("file", b"3", after.version))
    store.replace(store.prepare("new", b"1", None))
    with pytest.raises(LockedError):
        store.replace(store.prepare("new", b"2", None))
    unchanged = real.fetch("file", 10)
    assert unchanged is not None
    assert unchanged.data == b"1"


def test_it_holds_the_real_lock(real: LocalStore) -> None:
    with Rehearsal(real).lock(), pytest.raises(LockedError), real.lock():
        pass
