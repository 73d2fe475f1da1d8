"""What every store promises, kept by each of them; `STORES` is the list.

Source: `cvmfs_publish/content/store.py`.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm, Suffix
from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.content.s3 import S3Store
from cvmfs_publish.content.store import SHARDS, ContentStore, MissingError, StoredObject
from cvmfs_publish.content.stores import STORES, open_store
from cvmfs_publish.errors import IntegrityError, LockedError, RepositoryError
from tests.s3 import S3Server
from tests.s3_swift import new_bucket, swift_server

Opener = Callable[[], ContentStore]  # each call opens the same store again
MANIFEST = ".cvmfspublished"
_numbers = itertools.count()


SWIFT = "swift"  # an object store as well, but without conditional writes: it is only read and fed
KINDS = [
    pytest.param(kind, marks=[] if kind == "local" else pytest.mark.slow)
    for kind in [*sorted(STORES), SWIFT]
]
locking = pytest.mark.parametrize("opener", KINDS[:-1], indirect=True)


@pytest.fixture(scope="module")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with swift_server(tmp_path_factory.mktemp("swift")) as server:
        yield server


@pytest.fixture(params=KINDS)
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    opened: list[ContentStore] = []
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("s3_server")
        settings = server.new_bucket().settings
    elif request.param == SWIFT:
        name = f"bucket-{next(_numbers)}"
        settings = new_bucket(request.getfixturevalue("swift"), name).settings

    def open_again() -> ContentStore:
        opened.append(LocalStore(tmp_path / "r") if request.param == "local" else S3Store(settings))
        return opened[-1]

    yield open_again
    for store in opened:
        store.close()
        store.close()  # may be called again


@pytest.fixture
def store(opener: Opener) -> ContentStore:
    created = opener()
    created.create()
    return created


def an_object(
    data: bytes,
    kind: Suffix = Suffix.DATA,
    algorithm: HashAlgorithm = HashAlgorithm.SHA1,
) -> tuple[bytes, ContentHash, Suffix]:
    return data, ContentHash.of(data, algorithm), kind


def stored(store: ContentStore, shards: Iterable[str] = SHARDS[::16]) -> dict[str, StoredObject]:
    """Return what is in some of the folders; all take long."""
    return {found.name: found for shard in shards for found in store.objects(shard)}


@pytest.mark.parametrize("algorithm", list(HashAlgorithm))
@pytest.mark.parametrize("kind", list(Suffix))
def test_an_object_is_stored_once_and_read_back(
    store: ContentStore, algorithm: HashAlgorithm, kind: Suffix
) -> None:
    data, content_hash, _ = an_object(b"content", kind, algorithm)
    assert store.put(data, content_hash, kind) is True
    assert store.put(data, content_hash, kind) is False
    assert store.read(content_hash, kind) == data
    name = content_hash.path(kind)
    assert store.size(name) == len(data)
    assert b"".join(store.pieces(name)) == data
    assert store.used == {(content_hash, kind)}


def test_kinds_with_equal_bytes_are_different_objects(store: ContentStore) -> None:
    data, content_hash, _ = an_object(b"same")
    assert store.put(data, content_hash, Suffix.DATA)
    assert store.put(data, content_hash, Suffix.CATALOG)
    shard = content_hash.path(Suffix.DATA)[5:7]
    assert set(stored(store, [shard])) == {
        content_hash.path(Suffix.DATA),
        content_hash.path(Suffix.CATALOG),
    }


@pytest.mark.parametrize("size", [0, 1, 5_000_000, 20_000_000])
def test_objects_have_any_size(store: ContentStore, size: int) -> None:
    data, content_hash, kind = an_object(b"x" * size)
    assert store.put(data, content_hash, kind)
    assert store.read(content_hash, kind) == data
    assert b"".join(store.pieces(content_hash.path(kind))) == data


def test_many_are_put_and_read_in_the_order_asked_for(store: ContentStore) -> None:
    objects = [an_object(b"%d" % number) for number in range(20)]
    store.put(*objects[7])
    assert store.put_many(objects + objects[:3]) == [n != 7 for n in range(20)] + [False] * 3
    assert store.put_many(objects) == [False] * 20
    asked = [(content_hash, kind) for _, content_hash, kind in reversed(objects)]
    assert list(store.read_many(asked)) == [data for data, _, _ in reversed(objects)]
    assert list(store.read_many(iter(asked[:1]))) == [objects[-1][0]]
    assert list(store.read_many([])) == []
    assert store.used == set(asked)
    assert store.put_many([]) == []


def test_the_others_that_were_asked_for_need_not_be_read(store: ContentStore) -> None:
    objects = [an_object(b"%d" % number) for number in range(20)]
    store.put_many(objects)
    reading = store.read_many([(content_hash, kind) for _, content_hash, kind in objects])
    assert next(reading) == objects[0][0]
    reading.close()  # type: ignore[attr-defined]  # both are generators


def test_all_objects_are_listed_with_sizes_and_times(store: ContentStore) -> None:
    objects = [an_object(b"%d" % number * 1000) for number in range(20)]
    store.put_many(objects)
    found = stored(store, {content_hash.digest.hex()[:2] for _, content_hash, _ in objects})
    assert {name: entry.size for name, entry in found.items()} == {
        content_hash.path(kind): len(data) for data, content_hash, kind in objects
    }
    assert all(entry.modified > 1_700_000_000 for entry in found.values())


def test_an_empty_store_has_nothing(store: ContentStore) -> None:
    assert stored(store) == {}
    assert store.fetch(MANIFEST, 1000) is None
    assert store.size(MANIFEST) is None
    assert store.size("data/00/11") is None


def test_whether_all_are_there(store: ContentStore) -> None:
    objects = [an_object(b"%d" % number) for number in range(15)]
    store.put_many(objects[1:])
    names = [content_hash.path(kind) for _, content_hash, kind in objects]
    assert store.has_all(names[1:])
    assert not store.has_all(names)
    assert not store.has_all(iter(names[:1]))
    assert store.has_all([])


def test_removed_objects_are_gone_and_may_be_gone_before(store: ContentStore) -> None:
    objects = [an_object(b"%d" % number) for number in range(12)]
    names = [content_hash.path(kind) for _, content_hash, kind in objects]
    store.put_many(objects[3:])
    store.remove(iter(names[:8]))
    shards = {name[5:7] for name in names}
    assert set(stored(store, shards)) == set(names[8:])
    store.remove([])
    store.remove(names[8:9])
    store.remove(names)
    assert stored(store, shards) == {}


def test_what_is_missing_or_damaged_is_named(store: ContentStore) -> None:
    _, content_hash, kind = an_object(b"right")
    name = content_hash.path(kind)
    with pytest.raises(MissingError, match=name):
        store.read(content_hash, kind)
    with pytest.raises(MissingError, match=name):
        b"".join(store.pieces(name))
    with pytest.raises(MissingError, match=name):
        list(store.read_many([(content_hash, kind)]))
    store.write(name, b"wrong")
    with pytest.raises(IntegrityError, match=name):
        store.read(content_hash, kind)
    with pytest.raises(IntegrityError, match=name):
        list(store.read_many([(content_hash, kind)]))


def test_an_object_of_another_size_is_written_again(store: ContentStore) -> None:
    data, content_hash, kind = an_object(b"whole")
    store.write(content_hash.path(kind), b"who")
    assert store.put(data, content_hash, kind)
    assert store.read(content_hash, kind) == data


def test_files_of_the_root_are_written_and_fetched(store: ContentStore) -> None:
    store.write(MANIFEST, b"one")
    first = store.fetch(MANIFEST, 3)
    assert first is not None
    assert first.data == b"one"
    store.write(MANIFEST, b"two")
    second = store.fetch(MANIFEST, 3)
    assert second is not None
    assert second.data == b"two"
    assert second.version != first.version
    assert store.fetch(MANIFEST, 3) == second
    with pytest.raises(IntegrityError, match="more than 2 bytes"):
        store.fetch(MANIFEST, 2)


@locking
def test_a_file_is_replaced_only_if_it_is_what_was_expected(
    store: ContentStore, opener: Opener
) -> None:
    with store.lock():
        store.replace(store.prepare(MANIFEST, b"first", None))
        found = store.fetch(MANIFEST, 1000)
        assert found is not None
        prepared = store.prepare(MANIFEST, b"third", found.version)
        assert store.fetch(MANIFEST, 1000) == found  # nobody sees what is prepared
        other = opener()
        other.write(MANIFEST, b"somebody else's")
        with pytest.raises(LockedError, match=MANIFEST):
            store.replace(prepared)
        with pytest.raises(LockedError, match=MANIFEST):
            store.replace(store.prepare(MANIFEST, b"none expected", None))
        found = store.fetch(MANIFEST, 1000)
        assert found is not None
        assert found.data == b"somebody else's"
        store.replace(store.prepare(MANIFEST, b"fourth", found.version))
        found = store.fetch(MANIFEST, 1000)
        assert found is not None
        assert found.data == b"fourth"
        store.sync()
        store.sweep()
        assert store.fetch(MANIFEST, 1000) == found


@locking
def test_a_file_that_has_gone_is_not_replaced(store: ContentStore) -> None:
    store.write(MANIFEST, b"first")
    found = store.fetch(MANIFEST, 1000)
    assert found is not None
    store.remove([MANIFEST])
    with pytest.raises(LockedError, match=MANIFEST):
        store.replace(store.prepare(MANIFEST, b"second", found.version))
    assert store.fetch(MANIFEST, 1000) is None


@locking
def test_one_writer_at_a_time(store: ContentStore, opener: Opener) -> None:
    other = opener()
    with store.lock() as lock:
        lock.check()
        with pytest.raises(LockedError, match="is locked"), other.lock():
            pytest.fail("two hold the lock")
        lock.check()
    with other.lock() as lock:
        lock.check()
    with pytest.raises(ZeroDivisionError), store.lock():
        raise ZeroDivisionError
    with other.lock():
        pass


@locking
def test_of_many_who_want_the_lock_at_once_one_gets_it(store: ContentStore, opener: Opener) -> None:
    stores = [store, *(opener() for _ in range(5))]

    def attempt(one: ContentStore) -> int:
        try:
            with one.lock():
                return sum(pool.map(is_locked, [s for s in stores if s is not one]))
        except LockedError:
            return -1

    def is_locked(one: ContentStore) -> bool:
        try:
            with one.lock():
                return False
        except LockedError:
            return True

    with ThreadPoolExecutor(30) as pool:
        results = list(pool.map(attempt, stores))
    assert all(result in (-1, len(stores) - 1) for result in results)


@locking
def test_a_lock_leaves_nothing_behind_that_readers_see(store: ContentStore) -> None:
    with store.lock():
        pass
    assert stored(store) == {}


def test_another_process_opens_the_same_store(store: ContentStore) -> None:
    data, content_hash, kind = an_object(b"content")
    description = json.loads(json.dumps(store.description()))
    other = open_store(description)
    try:
        assert other.put(data, content_hash, kind)
        assert other.used == set()  # it does not remember
        assert store.read(content_hash, kind) == data
        assert other.location == store.location
    finally:
        other.close()


def test_objects_are_put_and_read_by_many_threads(store: ContentStore) -> None:
    objects = [an_object(b"%d" % number) for number in range(20)]
    with ThreadPoolExecutor(8) as pool:
        new = list(pool.map(lambda o: store.put(*o), objects * 2))
        assert sum(new) >= len(objects)
        found = list(pool.map(lambda o: store.read(o[1], o[2]), objects))
    assert found == [data for data, _, _ in objects]


@pytest.mark.parametrize("opener", [pytest.param(SWIFT, marks=pytest.mark.slow)], indirect=True)
def test_swift_is_refused_for_writing_at_once_and_nothing_stays(store: ContentStore) -> None:
    """Its s3api (2.38) answers NotImplemented to If-Match; If-None-Match it knows."""
    started = time.monotonic()
    with pytest.raises(RepositoryError, match="does not understand If-Match") as caught:
        store.lock().__enter__()
    assert time.monotonic() - started < 20
    assert "local directory" in caught.value.hint
    assert store.fetch(".cvmfs-publish.lock", 1000) is None
