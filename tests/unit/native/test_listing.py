"""Catalogs in bulk: the listing of a stored tree is that of the tree; files are found by name."""

from __future__ import annotations

import inspect
import stat
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm, Suffix
from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.content.objects import compress, decompress
from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.layers.tree import Chunk, Content, Directory, Node, Tree, empty_tree
from cvmfs_publish.layers.treedigest import (
    digest_lines,
    first_difference,
    list_tree,
    sort_lines,
    summarise_tree,
)
from cvmfs_publish.repository.native.build import Built, TreeBuilder
from cvmfs_publish.repository.native.catalog import Catalog, CatalogRef
from cvmfs_publish.repository.native.listing import list_stored, measure_directories
from tests.support import site

TOP = ".flat/ab/tree"


def content(text: bytes, algorithm: HashAlgorithm = HashAlgorithm.SHA1) -> Content:
    return Content(ContentHash.of(text, algorithm))


def every_kind(algorithm: HashAlgorithm = HashAlgorithm.SHA1) -> Tree:
    chunks = tuple(
        Chunk(offset, 10, ContentHash.of(b"%d" % offset, algorithm)) for offset in (0, 10, 20)
    )
    file, directory = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755
    tree = empty_tree()
    tree.root.node = Node(directory, 1, 2, 3, 4)
    tree.root.children = {
        "file": Node(file, 1, 2, -3, 4, 5, content=content(b"x", algorithm)),
        "empty": Node(file, content=content(b"", algorithm)),
        "raw": Node(file, size=3, content=Content(ContentHash.of(b"r", algorithm), (), False)),
        "chunked": Node(file, size=30, content=Content(None, chunks)),
        "raw-chunked": Node(file, size=30, content=Content(None, chunks, False)),
        "link": Node(stat.S_IFLNK | 0o777, target="odd \udcff target\n"),
        "fifo": Node(stat.S_IFIFO | 0o600),
        "device": Node(stat.S_IFCHR | 0o600, device=0x103),
        "xattrs": Node(
            file, content=content(b"", algorithm), xattrs=(("user.a", b"\0"), ("user.b", b""))
        ),
        "ä": Node(file, content=content(b"", algorithm)),
        "\udce4 in latin-1": Node(file, content=content(b"", algorithm)),
        "\uffff": Node(file, content=content(b"", algorithm)),
        "d": Directory(Node(directory, mtime=7), {"e": Directory(Node(directory))}),
    }
    below = tree.root.children["d"]
    assert isinstance(below, Directory)
    inner = below.children["e"]
    assert isinstance(inner, Directory)
    inner.children["f"] = Node(file, size=9, content=content(b"f", algorithm))
    return tree


class Stored:
    """A tree stored below a directory."""

    def __init__(self, base: Path, tree: Tree, *nested: str) -> None:
        self.store = LocalStore(base)
        self.store.create()
        empty = content(b"")
        builder = TreeBuilder(self.store, HashAlgorithm.SHA1, empty, 1, [])
        self.built: Built = builder.build(TOP, tree.root, {f"{TOP}/{path}" for path in nested})

    def load(self, ref: CatalogRef) -> Catalog:
        return Catalog.open(decompress(self.store.read(ref.hash, Suffix.CATALOG), 1_000_000))

    def lines(self, ref: CatalogRef | None = None) -> list[str]:
        return list_stored(self.load, TOP, ref or self.built.ref)

    def changed(self, ref: CatalogRef, change: Callable[[Catalog], object]) -> CatalogRef:
        """Store a changed copy of a catalog."""
        with self.load(ref) as catalog:
            change(catalog)
            data = catalog.serialize()
        stored = compress(data)
        value = ContentHash.of(stored, HashAlgorithm.SHA1)
        self.store.put(stored, value, Suffix.CATALOG)
        return CatalogRef(value, len(data))


@pytest.mark.parametrize("algorithm", HashAlgorithm)
@pytest.mark.parametrize("nested", [(), ("d",), ("d", "d/e")], ids=["one", "two", "three"])
def test_what_is_stored_has_the_listing_of_the_tree(
    tmp_path: Path, algorithm: HashAlgorithm, nested: tuple[str, ...]
) -> None:
    tree = every_kind(algorithm)
    lines = Stored(tmp_path, tree, *nested).lines()
    assert sort_lines(lines) == list_tree(tree)
    assert digest_lines(lines) == summarise_tree(tree).digest
    assert first_difference(list_tree(tree), sort_lines(lines)) == ""


@pytest.mark.parametrize("nested", [(), ("d",), ("d", "d/e")], ids=["one", "two", "three"])
def test_directories_hold_the_sizes_of_the_tree(tmp_path: Path, nested: tuple[str, ...]) -> None:
    tree = every_kind()
    stored = Stored(tmp_path, tree, *nested)
    found = {size.path: size for size in measure_directories(stored.load, TOP, stored.built.ref)}
    directories = [("", tree.root)] + [
        (path, entry) for path, entry in tree.walk() if isinstance(entry, Directory)
    ]
    expected = {
        path: (
            len(directory.children),
            sum(entry.size for entry in directory.children.values() if isinstance(entry, Node)),
        )
        for path, directory in directories
        if directory.children
    }
    assert {path: (size.entries, size.bytes) for path, size in found.items()} == expected


def test_an_entry_in_no_directory_has_no_size(tmp_path: Path) -> None:
    stored = Stored(tmp_path, every_kind())
    lost = "UPDATE catalog SET parent_1 = 1 WHERE name = 'file'"
    ref = stored.changed(stored.built.ref, lambda catalog: catalog.database.execute(lost))
    with pytest.raises(IntegrityError, match="in no directory"):
        list(measure_directories(stored.load, TOP, ref))


def test_catalogs_nested_deeper_than_the_stack_are_stored_and_listed(tmp_path: Path) -> None:
    tree = empty_tree()
    here, paths = tree.root, [""]
    for _ in range(150):
        child = Directory(Node(stat.S_IFDIR | 0o755))
        here.children["d"] = here = child
        paths.append(f"{paths[-1]}/d".lstrip("/"))
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 100)
    try:
        lines = Stored(tmp_path, tree, *paths[1:]).lines()
    finally:
        sys.setrecursionlimit(before)
    assert sort_lines(lines) == list_tree(tree)


def test_lines_are_in_the_order_of_bytes() -> None:
    paths = [line.split("\0")[0] for line in list_tree(every_kind())]
    encoded = [path.encode("utf-8", "surrogateescape") for path in paths]
    assert encoded == sorted(encoded)
    assert paths[0] == ""


CHANGES: dict[str, tuple[str, str]] = {
    "UPDATE catalog SET mode = 33261 WHERE name = 'file'": (
        "", "/file: mode is 100755, not 100644"
    ),
    "UPDATE catalog SET uid = 9 WHERE name = 'fifo'": ("", "/fifo: uid is 9, not 0"),
    "UPDATE catalog SET size = 4 WHERE name = 'raw'": ("", "/raw: size is 4, not 3"),
    "UPDATE catalog SET mtimens = 1 WHERE name = 'raw'": (
        "", "/raw: mtime is 0.000000001, not 0.000000000"
    ),
    "UPDATE catalog SET symlink = 'x' WHERE name = 'link'": ("", "/link: link target is x, not"),
    "UPDATE catalog SET xattr = NULL WHERE name = 'xattrs'": (
        "", "/xattrs: extended attributes is nothing, not user.a=00,user.b="
    ),
    "UPDATE catalog SET flags = flags & ~2048 WHERE name = 'raw'": ("", "/raw: content is "),
    "DELETE FROM catalog WHERE name = 'file'": ("", "/file is missing"),
    "DELETE FROM chunks WHERE rowid = 1": ("", "chunked: content is "),
    "UPDATE chunks SET offset = offset + 1": ("", "chunked: content is "),
    "UPDATE catalog SET name = 'other' WHERE name = 'file'": ("where clients look", ""),
    "UPDATE catalog SET parent_1 = 1 WHERE name = 'file'": ("is in no directory", ""),
    "UPDATE catalog SET mode = 'x' WHERE name = 'file'": ("malformed row", ""),
    "UPDATE catalog SET flags = 1792 WHERE name = 'file'": ("unknown hash algorithm", ""),
    "UPDATE catalog SET flags = flags | 32768 WHERE name = 'd'": ("0x8000, which are never", ""),
    "UPDATE catalog SET flags = flags | 128 WHERE name = 'file'": ("0x80, which are never", ""),
    "UPDATE catalog SET size = 1 WHERE name = '.cvmfscatalog'": ("is no empty file", ""),
    "UPDATE catalog SET mode = 16877 WHERE name = '.cvmfscatalog'": ("is no empty file", ""),
    "UPDATE catalog SET name = NULL WHERE name = 'file'": ("malformed row", ""),
    "DELETE FROM catalog WHERE name = 'tree'": ("no entry for it", ""),
    "DELETE FROM nested_catalogs": ("either no nested catalog or no entry", ""),
    "UPDATE catalog SET mtime = 8 WHERE name = 'd'": ("differs from what the catalog above", ""),
    "UPDATE properties SET value = '/x' WHERE key = 'root_prefix'": ("is mounted at", ""),
}  # fmt: skip


@pytest.mark.parametrize("sql", CHANGES)
def test_every_change_of_a_catalog_is_noticed(tmp_path: Path, sql: str) -> None:
    tree = every_kind()
    stored = Stored(tmp_path, tree, "d")
    ref = stored.changed(stored.built.ref, lambda catalog: catalog.database.execute(sql))
    refusal, difference = CHANGES[sql]
    if difference:
        found = first_difference(list_tree(tree), sort_lines(stored.lines(ref)))
        assert difference in found
    else:
        with pytest.raises(IntegrityError, match=refusal):
            stored.lines(ref)


def test_directories_in_a_circle_do_not_hang(tmp_path: Path) -> None:
    stored = Stored(tmp_path, every_kind())

    def change(catalog: Catalog) -> None:
        rows = catalog.database.execute("SELECT md5path_1, md5path_2 FROM catalog WHERE name = 'e'")
        catalog.database.execute(
            "UPDATE catalog SET parent_1 = ?, parent_2 = ? WHERE name = 'd'", rows.fetchone()
        )

    ref = stored.changed(stored.built.ref, change)
    with pytest.raises(IntegrityError, match="is in no directory"):
        stored.lines(ref)


def test_files_of_one_name_are_found_wherever_they_are(tmp_path: Path) -> None:
    paths = [
        "top/record",
        "top/a/record",
        "top/a-b/record",
        "top/a/b/record",
        "top/a/b/c/record",
        "top/a/skipped/record",
        "top/skipped/x/record",
        "top/a/skipped-not/record",
        "top/a/b/record-not",
        "other/record",
    ]
    nested = {"top", "top/a", "top/a/b", "top/skipped", "other"}
    with site(tmp_path) as target:
        now = int(datetime.now(UTC).timestamp())
        with target.repository.transaction(now) as transaction:
            for path in paths:
                transaction.make_directories(path.rpartition("/")[0], nested)
                transaction.put_file(path, path.encode())
        with target.repository.open() as view:
            found = list(view.find_files("top", "record", {"skipped"}))
            assert [path for path, _ in found] == [
                "top/record",
                "top/a/record",
                "top/a/b/record",
                "top/a/b/c/record",
                "top/a/skipped-not/record",
                "top/a-b/record",
            ]
            assert all(data == path.encode() for path, data in found)
            assert [p for p, _ in view.find_files("", "record", {"top"})] == ["other/record"]
            assert [p for p, _ in view.find_files("top/a/b/c", "record")] == ["top/a/b/c/record"]
            assert list(view.find_files("nowhere", "record")) == []
            assert list(view.find_files("top/record", "record")) == []
