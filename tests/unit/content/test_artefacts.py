"""Files of images in a folder: whole or not there, and nothing of a dead writer left."""

from __future__ import annotations

from pathlib import Path

import pytest

from cvmfs_publish.content.artefacts import LIST_FILE, ArtefactError, FolderStore
from cvmfs_publish.content.stores import open_artefacts

NAME = "a" * 64 + ".sif"


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def put(store: FolderStore, name: str, data: bytes) -> None:
    with store.partial() as file:
        file.write(data)
        store.keep(file, name)


def test_a_file_is_there_when_it_is_kept_and_readable_by_all(store: FolderStore) -> None:
    assert store.size(NAME) is None
    assert list(store.artefacts()) == []
    with store.partial() as file:
        file.write(b"whole")
        assert list(store.artefacts()) == []
        store.keep(file, NAME)
    assert (store.root / NAME).read_bytes() == b"whole"
    assert (store.root / NAME).stat().st_mode & 0o777 == 0o644
    assert store.root.stat().st_mode & 0o777 == 0o755
    assert [(found.name, found.size) for found in store.artefacts()] == [(NAME, 5)]
    put(store, NAME, b"again")
    assert (store.root / NAME).read_bytes() == b"again"
    assert [path.name for path in store.root.iterdir()] == [NAME]


def test_what_is_not_kept_leaves_nothing(store: FolderStore) -> None:
    with pytest.raises(KeyError), store.partial() as file:
        file.write(b"half")
        raise KeyError
    assert list(store.root.iterdir()) == []


def test_only_what_dead_writers_left_is_swept(store: FolderStore) -> None:
    with store.partial() as file:
        dead = store.root / f".cvmfs-publish-{'0' * 16}.partial"
        dead.write_bytes(b"half")
        (store.root / ".other.partial").write_bytes(b"not ours")
        open_artefacts({"kind": "local", "root": str(store.root)}, store.root).sweep()
        assert not dead.exists()
        store.keep(file, NAME)
    assert {path.name for path in store.root.iterdir()} == {NAME, ".other.partial"}


def test_only_files_of_our_names_are_told_and_one_that_is_gone_is_no_error(
    store: FolderStore,
) -> None:
    put(store, NAME, b"1")
    for name in ("x.sif", "b" * 64 + ".zip", LIST_FILE, "A" * 64 + ".sif"):
        (store.root / name).write_bytes(b"1")
    (store.root / ("c" * 64 + ".sif")).symlink_to(NAME)
    assert store.size("c" * 64 + ".sif") is None
    assert [found.name for found in store.artefacts()] == [NAME]
    store.remove([NAME, NAME])
    assert store.size(NAME) is None


def test_the_list_is_replaced_as_a_whole(store: FolderStore) -> None:
    assert store.read_list() is None
    store.write_list(b"1\n")
    store.write_list(b"2\n")
    assert store.read_list() == b"2\n"
    assert [path.name for path in store.root.iterdir()] == [LIST_FILE]


def test_a_folder_whose_parent_is_missing_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="mnt") as caught:
        put(FolderStore(tmp_path / "mnt" / "store"), NAME, b"1")
    assert "make the folder above" in caught.value.hint
