"""Editing the tree of a repository: what an edit may touch, and what it must refuse.

Sequences of edits are in `tests/property/test_edit_model.py`.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from cvmfs_publish.content.hashes import HashAlgorithm
from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.errors import IntegrityError, RepositoryError
from cvmfs_publish.layers.tree import Directory, Node, Tree, empty_tree
from cvmfs_publish.repository.native.build import store_catalog
from cvmfs_publish.repository.native.catalog import (
    COUNTERS,
    FLAG_DIR,
    Catalog,
    CatalogRef,
    Row,
)
from cvmfs_publish.repository.native.edit import TreeEditor

ZEROS = dict.fromkeys(COUNTERS, 0)


class Repository:
    """Catalogs in a directory, and the reference of the latest root."""

    def __init__(self, directory: Path, **properties: str) -> None:
        self.store = LocalStore(directory)
        self.store.create()
        self.now = 1000
        with Catalog.create("") as catalog:
            catalog.put([Row("", Node(stat.S_IFDIR | 0o755, mtime=1), FLAG_DIR, 2)])
            catalog.set_counters(catalog.count_own(), ZEROS)
            for key, value in properties.items():
                catalog.set_property(key, value)
            self.root = store_catalog(catalog, self.store, HashAlgorithm.SHA1)
        self.editors: list[TreeEditor] = []

    def edit(self) -> TreeEditor:
        self.now += 1
        self.editors.append(TreeEditor(self.store, HashAlgorithm.SHA1, self.root, self.now))
        return self.editors[-1]

    def commit(self, editor: TreeEditor) -> None:
        self.root, _ = editor.commit()

    def objects(self) -> set[str]:
        return {path.name for path in self.store.root.rglob("*C") if path.is_file()}


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    made = Repository(tmp_path)
    yield made
    for editor in made.editors:
        editor.close()


def two_images(repository: Repository) -> None:
    editor = repository.edit()
    editor.make_directories(".flat/aa", [".flat", ".flat/aa"])
    editor.make_directories(".flat/bb", [".flat", ".flat/bb"])
    for shard in ("aa", "bb"):
        editor.put_tree(f".flat/{shard}/image", empty_tree(), set())
    repository.commit(editor)


def test_reading_changes_nothing(repository: Repository) -> None:
    two_images(repository)
    editor = repository.edit()
    assert editor.get(".flat/aa/image") is not None
    assert editor.get(".flat/none/image") is None
    assert [row.path for row in editor.children(".flat")] == [
        ".flat/.cvmfscatalog", ".flat/aa", ".flat/bb"
    ]  # fmt: skip
    assert not editor.changed


def test_an_edit_that_says_what_is_there_changes_nothing(repository: Repository) -> None:
    editor = repository.edit()
    editor.make_directories("d")
    editor.put_file("d/f", b"1")
    editor.put_symlink("d/l", "f")
    repository.commit(editor)
    editor = repository.edit()
    editor.make_directories("d", ["d"])
    editor.put_file("d/f", b"1")
    editor.put_symlink("d/l", "f")
    editor.remove("d/none")
    editor.remove("none/none")
    assert not editor.changed


def test_only_the_catalogs_on_the_way_are_written_anew(repository: Repository) -> None:
    two_images(repository)
    before = repository.objects()
    editor = repository.edit()
    other = editor.get(".flat/bb")
    editor.put_tree(".flat/aa/second", empty_tree(), set())
    repository.commit(editor)
    assert len(repository.objects() - before) == 4  # root, .flat, .flat/aa, the new image
    assert repository.edit().get(".flat/bb") == other


def test_a_directory_that_changed_has_the_time_of_the_change_in_both_catalogs(
    repository: Repository,
) -> None:
    two_images(repository)
    editor = repository.edit()
    editor.put_file(".flat/aa/f", b"")
    repository.commit(editor)
    editor = repository.edit()
    inside = editor.get(".flat/aa")
    (outside,) = [row for row in editor.children(".flat") if row.path == ".flat/aa"]
    assert inside is not None
    assert inside.node == outside.node
    assert inside.hardlinks == outside.hardlinks == 3
    assert outside.node.mtime == repository.now - 1


def test_counters_add_up_from_the_leaves(repository: Repository) -> None:
    two_images(repository)
    editor = repository.edit()
    tree = empty_tree()
    tree.root.children["cut"] = Directory(
        Node(stat.S_IFDIR | 0o755), {"l": Node(stat.S_IFLNK | 0o777, target="x")}
    )
    editor.put_tree(".flat/aa/image", tree, {"cut"})
    repository.commit(editor)
    editor = repository.edit()
    own, below = editor._mounts[""].catalog.stored_counters()
    assert (own["dir"], own["nested"]) == (2, 1)
    # .flat, aa, bb and two images, as rows and as roots; cut once more each
    assert (below["nested"], below["symlink"]) == (5, 1)
    assert below["dir"] == 11
    assert below["regular"] == 6  # a marker in each
    editor.remove(".flat")
    repository.commit(editor)
    editor = repository.edit()
    own, below = editor._mounts[""].catalog.stored_counters()
    assert below == ZEROS
    assert own == ZEROS | {"dir": 1}


@pytest.mark.parametrize("kind", ["file", "link"])
def test_nothing_is_put_below_what_is_no_directory(repository: Repository, kind: str) -> None:
    editor = repository.edit()
    editor.make_directories("d")
    if kind == "file":
        editor.put_file("x", b"")
    else:
        editor.put_symlink("x", "d")
    with pytest.raises(RepositoryError, match="in the way"):
        editor.make_directories("x/y")
    with pytest.raises(RepositoryError, match="no directory"):
        editor.put_file("x/y", b"")
    with pytest.raises(RepositoryError, match="no directory"):
        editor.put_symlink("x/y", "z")
    with pytest.raises(RepositoryError, match="no directory"):
        editor.put_tree("x/y", empty_tree(), set())


def test_a_directory_is_not_replaced_by_a_file_or_link(repository: Repository) -> None:
    editor = repository.edit()
    editor.make_directories("d")
    with pytest.raises(RepositoryError, match="is a directory"):
        editor.put_file("d", b"")
    with pytest.raises(RepositoryError, match="is a directory"):
        editor.put_symlink("d", "x")


def test_a_parent_that_is_not_there_is_an_error(repository: Repository) -> None:
    with pytest.raises(RepositoryError, match="no entry for its directory /none"):
        repository.edit().put_file("none/f", b"")


def test_a_file_is_read_as_it_is_now_and_nothing_else_is_a_file(repository: Repository) -> None:
    editor = repository.edit()
    editor.put_file("f", b"content")
    assert editor.read_file("f") == b"content"
    assert editor.read_file("none") is None
    editor.make_directories("d")
    assert editor.read_file("d") is None


def test_what_others_wrote_into_a_catalog_stays(tmp_path: Path) -> None:
    repository = Repository(tmp_path, custom="kept")
    editor = repository.edit()
    database = editor._mounts[""].catalog.database
    database.execute("INSERT INTO bind_mountpoints VALUES ('/x', 'y', 1)")
    editor.put_file("f", b"")
    repository.commit(editor)
    editor.close()
    editor = repository.edit()
    catalog = editor._mounts[""].catalog
    assert catalog.get_property("custom") == "kept"
    assert catalog.database.execute("SELECT * FROM bind_mountpoints").fetchall() == [("/x", "y", 1)]
    assert catalog.get_property("previous_revision") is not None
    editor.close()


def test_the_chain_of_root_catalogs_is_kept(repository: Repository) -> None:
    first = repository.root.hash
    editor = repository.edit()
    editor.put_file("f", b"")
    repository.commit(editor)
    catalog = repository.edit()._mounts[""].catalog
    assert catalog.get_property("previous_revision") == str(first)
    assert (catalog.revision, catalog.last_modified) == (1, repository.now - 1)


def test_a_catalog_of_another_schema_is_not_edited(tmp_path: Path) -> None:
    repository = Repository(tmp_path, schema_revision="8")
    with pytest.raises(RepositoryError, match="schema revision 8") as caught:
        repository.edit()
    assert "cvmfs_server" in caught.value.hint


def test_a_missing_or_damaged_catalog_is_told(repository: Repository) -> None:
    two_images(repository)
    editor = repository.edit()
    ref = editor._mounts[""].nested[".flat"]
    path = repository.store.root / f"data/{str(ref.hash)[:2]}/{str(ref.hash)[2:]}C"
    path.write_bytes(b"nonsense")
    with pytest.raises(IntegrityError, match="damaged"):
        editor.get(".flat/aa")
    path.unlink()
    with pytest.raises(IntegrityError, match="missing"):
        editor.get(".flat/aa")


def test_equal_trees_at_equal_times_give_the_same_catalogs(tmp_path: Path) -> None:
    roots: set[CatalogRef] = set()
    for name in ("one", "two"):
        repository = Repository(tmp_path / name)
        two_images(repository)
        roots.add(repository.root)
        repository.editors[0].close()
    assert len(roots) == 1


def test_a_tree_replaces_whatever_is_there(repository: Repository) -> None:
    tree = Tree(Directory(Node(stat.S_IFDIR | 0o700, mtime=5), {}))
    for old in ("file", "link", "directory", "tree"):
        editor = repository.edit()
        if old == "file":
            editor.put_file("x", b"1")
        elif old == "link":
            editor.put_symlink("x", "y")
        elif old == "directory":
            editor.make_directories("x/below/it", ["x/below"])
        else:
            editor.put_tree("x", empty_tree(), set())
        editor.put_tree("x", tree, set())
        row, root = editor.get("x"), editor.get("")
        assert row is not None
        assert root is not None
        assert (row.node.mode, row.node.mtime) == (stat.S_IFDIR | 0o700, 5)
        assert root.hardlinks == 3
        editor.remove("x")
