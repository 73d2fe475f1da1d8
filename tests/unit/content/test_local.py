"""The store in a local directory: complete or absent, never doubled, clear when it cannot."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm, Suffix
from cvmfs_publish.content.local import TEMPORARY_PREFIX, LocalStore, storage_errors
from cvmfs_publish.content.objects import compress
from cvmfs_publish.content.store import MissingError
from cvmfs_publish.errors import IntegrityError, LockedError, RepositoryError

STORED = compress(b"some content")
HASH = ContentHash.of(STORED, HashAlgorithm.SHA1)
NAME = HASH.path(Suffix.DATA)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    store = LocalStore(tmp_path / "repository")
    store.create()
    return store


def temporary(store: LocalStore) -> list[str]:
    return [path.name for path in (store.root / "data" / "txn").iterdir()]


def test_empty_folders_that_a_copy_lacks_are_made_again(store: LocalStore) -> None:
    for path in (store.root / "data").iterdir():
        path.rmdir()
    assert store.put(STORED, HASH, Suffix.DATA)
    (store.root / "data" / "txn").rmdir()
    store.replace(store.prepare("file", b"1", None))
    assert store.read(HASH, Suffix.DATA) == STORED
    assert len(list((store.root / "data").iterdir())) == 257


def test_a_store_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "not mounted")
    for write in (
        lambda: store.put(STORED, HASH, Suffix.DATA),
        lambda: store.prepare("file", b"1", None),
    ):
        with pytest.raises(FileNotFoundError):
            write()
    assert list(tmp_path.iterdir()) == []


def test_a_store_has_all_its_directories_and_making_it_again_harms_nothing(
    store: LocalStore,
) -> None:
    assert len(list((store.root / "data").iterdir())) == 257
    store.put(STORED, HASH, Suffix.DATA)
    store.create()
    assert store.has_all([NAME])


def test_an_object_is_stored_once(store: LocalStore) -> None:
    assert not store.has_all([NAME])
    assert store.put(STORED, HASH, Suffix.DATA)
    path = store.root / NAME
    before = path.stat()
    assert not store.put(STORED, HASH, Suffix.DATA)
    assert path.stat() == before
    assert path.read_bytes() == STORED
    assert store.read(HASH, Suffix.DATA) == STORED
    assert temporary(store) == []


def test_the_kind_of_an_object_is_part_of_its_name_only(store: LocalStore) -> None:
    assert store.put(STORED, HASH, Suffix.DATA)
    assert store.put(STORED, HASH, Suffix.CHUNK)
    assert store.read(HASH, Suffix.CHUNK) == STORED


def test_an_object_of_the_wrong_size_is_replaced_without_touching_readers(
    store: LocalStore,
) -> None:
    path = store.root / NAME
    path.write_bytes(STORED[:-1])
    with path.open("rb") as reader:
        assert store.put(STORED, HASH, Suffix.DATA)
        assert reader.read() == STORED[:-1]
    assert path.read_bytes() == STORED


def test_objects_are_readable_by_the_web_server(store: LocalStore) -> None:
    old = os.umask(0o022)
    try:
        store.put(STORED, HASH, Suffix.DATA)
        store.write(".file", b"x")
    finally:
        os.umask(old)
    for name in (NAME, ".file"):
        assert stat.S_IMODE((store.root / name).stat().st_mode) == 0o644


def test_a_missing_and_a_damaged_object_are_told_apart(store: LocalStore) -> None:
    with pytest.raises(IntegrityError, match="is missing"):
        store.read(HASH, Suffix.DATA)
    (store.root / NAME).write_bytes(STORED[::-1])
    with pytest.raises(IntegrityError, match="is damaged"):
        store.read(HASH, Suffix.DATA)


def test_files_are_replaced_in_one_step(store: LocalStore) -> None:
    store.write(".file", b"old")
    with (store.root / ".file").open("rb") as reader:
        store.write(".file", b"new")
        assert reader.read() == b"old"
    assert (store.root / ".file").read_bytes() == b"new"
    found = store.fetch(".file", 100)
    assert found is not None
    first, second = store.prepare(".file", b"1", found.version), store.prepare(".other", b"2", None)
    assert (store.root / ".file").read_bytes() == b"new"
    store.replace(first)
    assert (store.root / ".file").read_bytes() == b"1"
    store.replace(second)
    assert (store.root / ".other").read_bytes() == b"2"
    store.sync()
    assert temporary(store) == []


def test_a_file_that_somebody_else_replaced_is_not_replaced(store: LocalStore) -> None:
    store.write(".file", b"old")
    found = store.fetch(".file", 100)
    assert found is not None
    store.write(".file", b"by another")
    with pytest.raises(LockedError, match="was changed by somebody else"):
        store.replace(store.prepare(".file", b"mine", found.version))
    with pytest.raises(LockedError, match="was changed by somebody else"):
        store.replace(store.prepare(".file", b"mine", None))
    assert (store.root / ".file").read_bytes() == b"by another"


def test_sweeping_removes_what_we_left_and_nothing_of_others(store: LocalStore) -> None:
    txn = store.root / "data" / "txn"
    left = LocalStore(store.root).prepare(".file", b"left by one that died", None)
    assert Path(left.temporary).name.startswith(TEMPORARY_PREFIX)
    (txn / "stock.tmp").write_bytes(b"of another program")
    store.sweep()
    assert temporary(store) == ["stock.tmp"]


def test_sweeping_an_absent_store_is_nothing(tmp_path: Path) -> None:
    LocalStore(tmp_path / "none").sweep()


def test_a_failed_write_leaves_no_temporary_file(store: LocalStore) -> None:
    (store.root / NAME).mkdir()
    (store.root / NAME / "occupied").write_bytes(b"")
    with pytest.raises(OSError, match="directory"):
        store.put(STORED, HASH, Suffix.DATA)
    assert temporary(store) == []


def test_nothing_is_written_through_a_link_somebody_left(store: LocalStore, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    used = Path(store.prepare(".file", b"", None).temporary).name
    for number in range(1, 4):
        name = f"{used.rpartition('-')[0]}-{number}"
        (store.root / "data" / "txn" / name).symlink_to(precious)
    with pytest.raises(FileExistsError):
        store.put(STORED, HASH, Suffix.DATA)
    assert precious.read_bytes() == b"precious"


def test_what_another_process_of_the_same_number_left_is_in_nobodys_way(store: LocalStore) -> None:
    LocalStore(store.root).prepare(".file", b"left by one that died", None)
    LocalStore(store.root).put(STORED, HASH, Suffix.DATA)
    assert (store.root / NAME).read_bytes() == STORED


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_writes_belongs_to_the_owner_of_the_repository(store: LocalStore) -> None:
    for path in (store.root, *store.root.rglob("*")):
        os.chown(path, 1234, 4321)
    (store.root / "data" / "txn").rmdir()  # as in a copy without empty folders
    store = LocalStore(store.root)
    store.put(STORED, HASH, Suffix.DATA)
    store.write(".whitelist", b"1")
    store.replace(store.prepare(".file", b"2", None))
    owners = {(found.st_uid, found.st_gid) for found in map(Path.lstat, store.root.rglob("*"))}
    assert owners == {(1234, 4321)}


@pytest.mark.parametrize(
    ("code", "word"),
    [(errno.ENOSPC, "space"), (errno.EROFS, "writable"), (errno.EACCES, "owner"),
     (errno.EDQUOT, "quota"), (errno.ENOENT, "make the folder"), (errno.EIO, "untouched")],
)  # fmt: skip
def test_every_storage_error_says_what_to_do(code: int, word: str) -> None:
    with (
        pytest.raises(RepositoryError, match="storing things") as caught,
        storage_errors("storing things"),
    ):
        raise OSError(code, os.strerror(code), "/some/file")
    assert "/some/file" in str(caught.value)
    assert os.strerror(code) in str(caught.value)
    assert word in caught.value.hint


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(mount)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user may not mount")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_full_disk_fails_in_words_and_leaves_nothing_behind(small_disk: Path) -> None:
    store = LocalStore(small_disk)
    store.create()
    large = os.urandom(2_000_000)
    with (
        pytest.raises(RepositoryError, match="No space left") as caught,
        storage_errors("storing"),
    ):
        store.put(large, ContentHash.of(large, HashAlgorithm.SHA1), Suffix.DATA)
    assert "free some space" in caught.value.hint
    assert str(small_disk) in str(caught.value)
    assert temporary(store) == []
    with pytest.raises(OSError, match="space"):
        store.prepare(".file", large, None)
    assert temporary(store) == []
    assert store.put(STORED, HASH, Suffix.DATA)


def test_a_store_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RepositoryError, match="creating the object store"):
        LocalStore(tmp_path / "file" / "repository").create()


def test_many_objects_are_read_in_the_order_asked_for(store: LocalStore) -> None:
    texts = [b"%d" % number for number in range(20)] + [bytes(300_000), b""]
    objects = [(ContentHash.of(text, HashAlgorithm.SHA1), Suffix.DATA) for text in texts]
    store.put_many([(text, *each) for text, each in zip(texts, objects, strict=True)])
    assert list(store.read_many(reversed(objects))) == texts[::-1]
    (store.root / objects[3][0].path(Suffix.DATA)).write_bytes(b"x")
    with pytest.raises(IntegrityError, match="its hash differs"):
        list(store.read_many(objects))
    (store.root / objects[3][0].path(Suffix.DATA)).unlink()
    with pytest.raises(MissingError, match="is missing"):
        list(store.read_many(objects))
