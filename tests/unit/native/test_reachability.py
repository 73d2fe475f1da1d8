"""What revisions need is marked, all of it and nothing else; what is not understood is an error."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm, Suffix
from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.content.objects import compress
from cvmfs_publish.content.store import SHARDS, MissingError
from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.layers.tree import Chunk, Content, Node
from cvmfs_publish.repository.native.catalog import (
    FLAG_MOUNTPOINT,
    Catalog,
    CatalogRef,
    Row,
    kind_flags,
)
from cvmfs_publish.repository.native.reachability import Marks, Walk, kind_of, object_key

FILE, FOLDER = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755
SHA1, SHAKE = HashAlgorithm.SHA1, HashAlgorithm.SHAKE128


def number(value: int, algorithm: HashAlgorithm = SHA1) -> ContentHash:
    """A hash that begins with a byte of its own."""
    return ContentHash(bytes([value]) * 20, algorithm)


class Stock:
    """Catalogs in a store, and what a walk marks of them."""

    def __init__(self, folder: Path) -> None:
        self.store = LocalStore(folder / "store")
        self.store.create()
        (folder / "marks").mkdir()
        self.marks = Marks(folder / "marks")
        self.told: list[tuple[str, int]] = []
        self.walk = Walk(self.store, self.marks, lambda *what: self.told.append(what))

    def put(self, prefix: str, change: Callable[[Catalog], None]) -> ContentHash:
        with Catalog.create(prefix) as catalog:
            node = Node(FOLDER)
            catalog.put([Row(prefix, node, kind_flags(node), 2)])
            change(catalog)
            stored = compress(catalog.serialize())
        content_hash = ContentHash.of(stored, SHA1)
        self.store.put(stored, content_hash, Suffix.CATALOG)
        return content_hash

    def nest(self, catalog: Catalog, path: str, content_hash: ContentHash) -> None:
        node = Node(FOLDER)
        catalog.put([Row(path, node, kind_flags(node) | FLAG_MOUNTPOINT, 2)])
        catalog.set_nested(path, CatalogRef(content_hash, 0))

    def marked(self) -> set[bytes]:
        return set().union(*(self.marks.shard(shard) for shard in SHARDS))


@pytest.fixture
def stock(tmp_path: Path) -> Stock:
    return Stock(tmp_path)


def file(catalog: Catalog, path: str, content: Content) -> None:
    node = Node(FILE, size=1, content=content)
    catalog.put([Row(path, node, kind_flags(node))])


def keys(*objects: tuple[ContentHash, Suffix]) -> set[bytes]:
    found = {object_key(content_hash.path(kind)) for content_hash, kind in objects}
    return {key for key in found if key is not None}


@pytest.mark.parametrize("kind", Suffix)
@pytest.mark.parametrize("algorithm", HashAlgorithm)
def test_a_name_and_what_is_marked_have_the_same_key(
    stock: Stock, kind: Suffix, algorithm: HashAlgorithm
) -> None:
    stock.marks.add_object(number(0xAB, algorithm), kind)
    key = object_key(number(0xAB, algorithm).path(kind))
    assert key is not None
    assert stock.marks.shard("ab") == {key}
    assert stock.marks.shard("ac") == set()
    assert kind_of(key) is kind


@pytest.mark.parametrize(
    "name",
    [
        "data/ab/" + "0" * 37,
        "data/ab/" + "0" * 39,
        "data/ab/" + "0" * 38 + "L",
        "data/ab/" + "0" * 38 + "T",
        "data/ab/" + "0" * 38 + "-md5",
        "data/ab/" + "0" * 38 + "\n",
        "data/ab/" + "A" * 38,
        "data/AB/" + "0" * 38,
        "data/txn/" + "0" * 38,
        "ab/" + "0" * 38,
        "",
    ],
)
def test_what_is_no_name_of_an_object_has_no_key(name: str) -> None:
    assert object_key(name) is None


def test_marks_survive_being_written_down(stock: Stock) -> None:
    digests = [bytes([7]) + count.to_bytes(19, "big") for count in range(10_000)]
    for _ in range(2):  # twice does no harm
        for start in range(0, len(digests), 100):
            stock.marks.add(digests[start : start + 100], SHA1, Suffix.DATA)
            stock.marks.save()
    assert len(stock.marks.shard("07")) == len(digests)
    assert stock.marks.shard("07") == stock.marks.shard("07")


def test_contents_chunks_and_nested_catalogs_are_marked_each_with_its_algorithm(
    stock: Stock,
) -> None:
    chunks = (Chunk(0, 1, number(3, SHAKE)), Chunk(1, 1, number(4, SHAKE)))

    def inner(catalog: Catalog) -> None:
        file(catalog, "n/chunked", Content(None, chunks))
        file(catalog, "n/both", Content(number(5), (Chunk(0, 1, number(6)),)))

    nested = stock.put("n", inner)

    def outer(catalog: Catalog) -> None:
        file(catalog, "one", Content(number(1)))
        file(catalog, "two", Content(number(2, SHAKE), compressed=False))
        stock.nest(catalog, "n", nested)

    root = stock.put("", outer)
    stock.walk.add(root)
    assert stock.marked() == keys(
        (root, Suffix.CATALOG),
        (nested, Suffix.CATALOG),
        (number(1), Suffix.DATA),
        (number(2, SHAKE), Suffix.DATA),
        (number(3, SHAKE), Suffix.CHUNK),
        (number(4, SHAKE), Suffix.CHUNK),
        (number(5), Suffix.DATA),
        (number(6), Suffix.CHUNK),
    )
    assert (stock.walk.catalogs, stock.walk.rows) == (2, 6)
    assert stock.told[-1] == ("catalogs", 2)


def test_a_chunk_of_no_file_is_kept_whatever_its_algorithm_is(stock: Stock) -> None:
    def change(catalog: Catalog) -> None:
        file(catalog, "f", Content(None, (Chunk(0, 1, number(1)),)))
        catalog.database.execute("DELETE FROM catalog WHERE name = 'f'")

    root = stock.put("", change)
    stock.walk.add(root)
    expected = [(number(1, algorithm), Suffix.CHUNK) for algorithm in HashAlgorithm]
    assert stock.marked() == keys((root, Suffix.CATALOG), *expected)


def test_a_catalog_of_many_revisions_is_read_once(stock: Stock) -> None:
    shared = stock.put("n", lambda catalog: file(catalog, "n/f", Content(number(1))))
    roots = []
    for count in range(50):

        def change(catalog: Catalog, count: int = count) -> None:
            stock.nest(catalog, "n", shared)
            file(catalog, f"f{count}", Content(number(count)))

        roots.append(stock.put("", change))
    for root in [*roots, *roots]:
        stock.walk.add(root)
    assert stock.walk.catalogs == 51
    assert stock.walk.rows == 51


def test_a_catalog_that_is_missing_is_an_error_unless_some_may_have_been_collected(
    stock: Stock,
) -> None:
    def change(catalog: Catalog) -> None:
        file(catalog, "f", Content(number(1)))
        stock.nest(catalog, "n", number(9))

    root = stock.put("", change)
    stock.walk.add_rest(root)
    assert stock.marked() == keys((root, Suffix.CATALOG), (number(1), Suffix.DATA))
    stock.walk.add_rest(number(8))
    other = stock.put("", lambda catalog: stock.nest(catalog, "n", number(9)))
    with pytest.raises(MissingError):
        stock.walk.add(other)
    with pytest.raises(MissingError):
        stock.walk.add(number(8))


def test_bind_mountpoints_are_told_and_not_followed(stock: Stock) -> None:
    def change(catalog: Catalog) -> None:
        catalog.database.execute(
            "INSERT INTO bind_mountpoints VALUES ('/.cvmfs/snapshots/a', ?, 0)", (str(number(7)),)
        )

    root = stock.put("", change)
    stock.walk.add(root)
    assert stock.walk.bound == {number(7)}
    assert stock.marked() == keys((root, Suffix.CATALOG))


def test_a_catalog_of_an_old_server_needs_no_table_of_later_ones(stock: Stock) -> None:
    def change(catalog: Catalog) -> None:
        catalog.database.execute("DROP TABLE bind_mountpoints")
        catalog.set_property("schema_revision", 3)
        file(catalog, "f", Content(number(1)))

    stock.walk.add(stock.put("", change))
    assert stock.walk.rows == 1


FAULTS = {
    "UPDATE catalog SET flags = flags | 0x300 WHERE name = 'f'": "unknown hash algorithm, 3",
    "UPDATE catalog SET flags = NULL WHERE name = 'f'": "malformed hashes",
    "UPDATE catalog SET hash = x'00' WHERE name = 'f'": "malformed hashes",
    "UPDATE catalog SET hash = zeroblob(21) WHERE name = 'f'": "malformed hashes",
    "UPDATE chunks SET hash = NULL": "malformed hashes",
    "UPDATE chunks SET hash = 'a text with twenty b'": "malformed hashes",
    "UPDATE properties SET value = '2.6' WHERE key = 'schema'": "schema 2.6 revision 7",
    "UPDATE properties SET value = '8' WHERE key = 'schema_revision'": "schema 2.5 revision 8",
    "UPDATE properties SET value = '-1' WHERE key = 'schema_revision'": "schema 2.5 revision -1",
    "DELETE FROM properties": "schema None",
    "DROP TABLE nested_catalogs": "no table nested_catalogs",
    "ALTER TABLE chunks RENAME COLUMN hash TO sum": "cannot be read",
    "UPDATE catalog SET flags = flags | 2": "does not say which catalogs are nested",
    "INSERT INTO nested_catalogs VALUES ('/n', NULL, 0)": "is not a CernVM-FS content hash",
    "INSERT INTO bind_mountpoints VALUES ('/n', 'x', 0)": "is not a CernVM-FS content hash",
}


@pytest.mark.parametrize("statement", FAULTS)
def test_what_is_not_understood_is_an_error(stock: Stock, statement: str) -> None:
    def change(catalog: Catalog) -> None:
        file(catalog, "f", Content(number(1)))
        file(catalog, "g", Content(None, (Chunk(0, 1, number(2)),)))
        catalog.database.execute(statement)

    root = stock.put("", change)
    with pytest.raises(IntegrityError, match=FAULTS[statement]):
        stock.walk.add(root)
    with pytest.raises(IntegrityError, match=FAULTS[statement]):
        stock.walk.add_rest(root)
