"""What publishing behind a gateway is made of; `tests/killed/test_gateway.py` has the whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm, Suffix
from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.content.store import ObjectId
from cvmfs_publish.repository import base
from cvmfs_publish.repository.base import ATTEMPTS, OvertakenError, persist
from cvmfs_publish.repository.folder import Folder, FolderView
from cvmfs_publish.repository.gateway import lease_path
from cvmfs_publish.repository.native.origin import Remembered
from cvmfs_publish.repository.native.repository import NativeRepository
from cvmfs_publish.repository.read_set import ReadSet
from cvmfs_publish.repository.server_program import Server, ServerError
from tests.fakes.gateway import _like
from tests.support import NAME, keys_of_this_run
from tests.versions import at


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / ".flat/ab").mkdir(parents=True)
    (tmp_path / "ghcr.io/a").mkdir(parents=True)
    (tmp_path / "ghcr.io/a/b:1").symlink_to("../../.flat/ab/cd")
    (tmp_path / "ghcr.io/a/file").write_text("1")
    return tmp_path


# leases


@pytest.mark.parametrize(
    ("paths", "lease"),
    [
        ([".flat/ab/abcd"], ".flat/ab/abcd"),
        ([".flat/ab/abcd", ".flat/ab/.abcd.zst"], ".flat/ab"),
        ([".flat/cd", ".flat/cd/cdef"], ".flat/cd"),
        ([".flat/cd/cdef"], ".flat/cd"),  # whose parent is there
        (["docker.io/library/x:1"], "docker.io"),
        (["ghcr.io/a/b:1", "ghcr.io/a/b@sha256:ab"], "ghcr.io/a"),
        (["ghcr.io/a/b:1"], "ghcr.io/a/b:1"),
        (["ghcr.io/a/b:1/c/d"], "ghcr.io/a/b:1"),  # a link is in the way, which is told later
        (["ghcr.io/a/b:1", "docker.io/x"], ""),
        (["ghcr.io/a b/c"], "ghcr.io"),  # the wrapper of cvmfs_server does not quote
        (["a*/b"], ""),
    ],
)
def test_a_lease_is_on_the_narrowest_path_whose_parent_is_there(
    root: Path, paths: list[str], lease: str
) -> None:
    assert lease_path(paths, FolderView(Folder(root))) == lease


def test_the_stand_in_compares_paths_as_gateways_do() -> None:
    assert _like("/.flat/ab/cd", "/.flat/ab")
    assert _like("/.flat/abc", "/.flat/ab")
    assert _like("/x-y", "/X_Y")
    assert _like("/a", "/")
    assert not _like("/.flat/ab", "/.flat/ac")
    assert not _like("/xflat", "/.flat")


# what was read


def test_only_what_was_read_is_compared(root: Path) -> None:
    view = FolderView(Folder(root))
    seen = ReadSet(view)
    assert seen.read_file("ghcr.io/a/file") == b"1"
    assert seen.read_symlink("ghcr.io/a/b:1") == "../../.flat/ab/cd"
    assert seen.list_names("ghcr.io") == [("a", True)]
    assert seen.node("none") is None
    assert seen.modified_at("ghcr.io/a/file") is not None
    before = _Kept({"ghcr.io/a/file": b"1"}, view)
    assert seen.first_change(before, view, ()) is None
    (root / "ghcr.io/a/other").write_text("nobody looked")
    assert seen.first_change(before, view, ()) is None
    (root / "ghcr.io/a/file").write_text("2")
    assert seen.first_change(before, view, ()) == "ghcr.io/a/file"


def test_a_directory_that_somebody_else_has_made_is_no_change_for_who_makes_it(root: Path) -> None:
    view = FolderView(Folder(root))
    seen = ReadSet(view)
    assert not seen.is_directory("new")
    before = _Kept({}, view, missing={"new"})
    (root / "new").mkdir()
    assert seen.first_change(before, view, {"new"}) is None
    assert seen.first_change(before, view, ()) == "new"
    (root / "new").rmdir()
    (root / "new").write_text("a file")
    assert seen.first_change(before, view, {"new"}) is None
    assert not view.is_directory("new")


class _Kept(FolderView):
    """What a tree was."""

    def __init__(
        self, files: dict[str, bytes], view: FolderView, missing: Iterable[str] = ()
    ) -> None:
        super().__init__(view.folder)
        self._files = files
        self._missing = set(missing)

    def read_file(self, path: str) -> bytes | None:
        return self._files.get(path)

    def is_directory(self, path: str) -> bool:
        return path not in self._missing and super().is_directory(path)


def test_who_is_overtaken_begins_again_and_gives_up_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(base, "_PAUSE", 0)
    calls = []

    def work(failures: int) -> int:
        calls.append(1)
        if len(calls) <= failures:
            raise OvertakenError("somebody was quicker")
        return len(calls)

    assert persist(lambda: work(3)) == 4
    calls.clear()
    with pytest.raises(OvertakenError):
        persist(lambda: work(ATTEMPTS))
    assert len(calls) == ATTEMPTS


# reading what is published again and again


class _Counting:
    """An origin that counts; it may answer with other bytes than those asked for."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects
        self.asked: list[str] = []

    def size(self, name: str) -> int | None:
        return len(self.objects[name])

    def pieces(self, name: str) -> Iterator[bytes]:
        self.asked.append(name)
        yield self.objects[name]

    def read_many(self, objects: Iterable[ObjectId]) -> Iterator[bytes]:
        for content_hash, kind in objects:
            yield self.objects[content_hash.path(kind)]

    def close(self) -> None:
        pass


@pytest.mark.parametrize("kind", [Suffix.CATALOG, Suffix.DATA])
def test_an_object_is_asked_for_once_and_a_damaged_one_again(kind: Suffix) -> None:
    good, other = b"catalog", b"another"
    name = ContentHash.of(good, HashAlgorithm.SHAKE128).path(kind)
    damaged = ContentHash.of(other, HashAlgorithm.SHA1).path(kind)
    origin = _Counting({name: good, damaged: b"damaged", ".cvmfspublished": b"1"})
    remembered = Remembered(origin)
    for each in (name, damaged, ".cvmfspublished", name, damaged, ".cvmfspublished"):
        assert b"".join(remembered.pieces(each)) == origin.objects[each]
    assert origin.asked == [name, *[damaged, ".cvmfspublished"] * 2]
    assert remembered.size(name) == len(good)


@pytest.mark.slow
def test_the_identity_of_a_path_changes_with_what_is_below_it(tmp_path: Path) -> None:
    repository = NativeRepository(NAME, LocalStore(tmp_path / "srv"), keys_of_this_run())
    repository.create(HashAlgorithm.SHA1, at(0))
    found = []
    for path in ("a/b/f", "a/c/f", "d"):
        with repository.transaction(int(at(1).timestamp())) as transaction:
            transaction.make_directories(path.rpartition("/")[0], ["a", "a/b", "a/c"])
            transaction.put_file(path, b"1")
        with repository.snapshot() as snapshot:
            asked = ("", "a", "a/b", "a/b/f", "a/c", "none", "a/none/f")
            found.append({each: snapshot.identity(each) for each in asked})
    first, second, third = found
    assert first["a/c"] is None
    assert first["none"] is first["a/none/f"] is None
    assert first["a/b"] == first["a/b/f"] == second["a/b"] == third["a/b"] != None  # noqa: E711
    assert first["a"] != second["a"] == third["a"]
    assert len({each[""] for each in found}) == 3


# the mount


def test_what_a_transaction_is_based_on_is_asked_of_the_mount_and_then_of_its_configuration(
    tmp_path: Path,
) -> None:
    server = Server(NAME, tmp_path, tmp_path / "note", program="cvmfs_server", timeout=1)
    with pytest.raises(ServerError, match="does not say which root catalog"):
        server.base()
    (tmp_path / "client.local").write_text("CVMFS_ROOT_HASH=abc-shake128\nCVMFS_X='$(id)'\n")
    assert server.base() == "abc-shake128"
