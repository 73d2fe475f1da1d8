"""Catalogs: every entry comes back as it was, and the file stays one that clients open."""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm
from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.layers.tree import Chunk, Content, Node, decode_name
from cvmfs_publish.repository.native.catalog import (
    COUNTERS,
    FLAG_CHUNKED,
    FLAG_DIR,
    FLAG_FILE,
    FLAG_LINK,
    FLAG_MOUNTPOINT,
    FLAG_SPECIAL,
    Catalog,
    CatalogRef,
    Row,
    decode_xattrs,
    encode_xattrs,
    kind_flags,
    path_key,
)

KEYS = {  # appendix A of the format
    "": (338333539836370388, 9098107892288553193),
    "new_repository": (8193369706472672701, 4868506713845114430),
    "nested": (135610778579351371, -4043869090301518462),
    "nested/s": (-4378602767906590970, -7217265703345389301),
    "a": (-2906336618250618618, -744252105585281751),
}
DIRECTORY = Node(stat.S_IFDIR | 0o755)
ROOT = Row("", DIRECTORY, FLAG_DIR, 2)
ZEROS = dict.fromkeys(COUNTERS, 0)


def content_hash(data: bytes, algorithm: HashAlgorithm = HashAlgorithm.SHA1) -> ContentHash:
    return ContentHash.of(data, algorithm)


@pytest.mark.parametrize("path", KEYS)
def test_path_keys_are_those_of_stock_tools(path: str) -> None:
    assert path_key(path) == KEYS[path]


NAMES = (
    st.binary(min_size=1, max_size=40)
    .map(lambda name: name.replace(b"/", b"_").replace(b"\0", b"_"))
    .map(decode_name)
    .filter(lambda name: name not in (".", ".."))
)
XATTRS = st.dictionaries(
    st.one_of(NAMES.map("user.{}".format), st.just("user." + "n" * 250)),
    st.one_of(st.binary(max_size=20), st.just(bytes(255))),
    max_size=4,
).map(lambda pairs: tuple(sorted(pairs.items(), key=lambda p: os.fsencode(p[0]))))


@st.composite
def nodes(draw: st.DrawFn) -> Node:
    kind = draw(
        st.sampled_from([stat.S_IFREG, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR,
                         stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
    )  # fmt: skip
    node = Node(
        mode=kind | draw(st.integers(0, 0o7777)),
        uid=draw(st.integers(0, (1 << 32) - 1)),
        gid=draw(st.integers(0, (1 << 32) - 1)),
        mtime=draw(st.integers(-(1 << 63), (1 << 63) - 1)),
        mtime_ns=draw(st.integers(0, 999_999_999)),
        xattrs=draw(XATTRS),
    )
    if kind == stat.S_IFLNK:
        return node._replace(target=draw(NAMES))
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        major, minor = draw(st.integers(0, 4095)), draw(st.integers(0, (1 << 20) - 1))
        return node._replace(device=os.makedev(major, minor))
    if kind != stat.S_IFREG:
        return node
    algorithm = draw(st.sampled_from(HashAlgorithm))
    whole = content_hash(draw(st.binary(max_size=3)), algorithm)
    sizes = draw(st.lists(st.integers(1, 1 << 40), max_size=4))
    if not sizes:
        return node._replace(size=draw(st.integers(0, 1 << 60)), content=Content(whole))
    chunks, offset = [], 0
    for size in sizes:
        chunks.append(Chunk(offset, size, content_hash(b"%d" % offset, algorithm)))
        offset += size
    return node._replace(size=offset, content=Content(None, tuple(chunks)))


@st.composite
def row_lists(draw: st.DrawFn) -> list[Row]:
    top = draw(st.lists(NAMES, unique=True, max_size=5))
    rows = [ROOT]
    for name in top:
        node = draw(nodes())
        rows.append(Row(name, node, kind_flags(node), draw(st.integers(1, (1 << 40)))))
    for name in draw(st.lists(NAMES, unique=True, max_size=3)):
        if top:
            node = draw(nodes())
            rows.append(Row(f"{top[0]}/{name}", node, kind_flags(node)))
    return rows


@settings(max_examples=60, deadline=None)
@given(row_lists(), st.booleans())
def test_entries_come_back_as_they_were(rows: list[Row], compacted: bool) -> None:
    with Catalog.create("") as catalog:
        catalog.put(rows)
        catalog.set_counters(catalog.count_own(), ZEROS)
        if compacted:
            catalog._compact()
        data = catalog.serialize()
    assert data[18:20] == b"\x01\x01"  # rollback journal: clients cannot open WAL files
    with Catalog.open(data) as again:
        for row in rows:
            assert again.get(row.path) == row
        top = sorted((r for r in rows[1:] if "/" not in r.path), key=lambda r: os.fsencode(r.path))
        assert again.children("") == top
        assert again.count() == len(rows)
        own, below = again.stored_counters()
        assert below == ZEROS
        assert own == expected_counters(rows)
        with closing(sqlite3.connect(":memory:")) as database:
            database.deserialize(data)
            nulls = "SELECT COUNT(*) FROM catalog WHERE name IS NULL OR symlink IS NULL"
            types = "SELECT DISTINCT typeof(name), typeof(symlink) FROM catalog"
            assert database.execute(nulls).fetchone() == (0,)
            assert database.execute(types).fetchall() == [("text", "text")]


def expected_counters(rows: list[Row]) -> dict[str, int]:
    """The counters of section 3.10, counted the slow way."""
    counts = dict.fromkeys(COUNTERS, 0)
    for row in rows:
        node = row.node
        kind = stat.S_IFMT(node.mode)
        names = {stat.S_IFREG: "regular", stat.S_IFLNK: "symlink", stat.S_IFDIR: "dir"}
        counts[names.get(kind, "special")] += 1
        counts["file_size"] += node.size
        counts["xattr"] += bool(node.xattrs)
        if node.content is not None and node.content.chunks:
            counts["chunked"] += 1
            counts["chunks"] += len(node.content.chunks)
            counts["chunked_size"] += node.size
    return counts


def test_the_flags_are_those_of_the_table() -> None:
    algorithms = {HashAlgorithm.SHA1: 0, HashAlgorithm.RMD160: 0x100, HashAlgorithm.SHAKE128: 0x200}
    for kind, flags in {
        stat.S_IFDIR: FLAG_DIR, stat.S_IFLNK: FLAG_FILE | FLAG_LINK, stat.S_IFREG: FLAG_FILE,
        stat.S_IFIFO: FLAG_FILE | FLAG_SPECIAL, stat.S_IFSOCK: FLAG_FILE | FLAG_SPECIAL,
        stat.S_IFCHR: FLAG_FILE | FLAG_SPECIAL, stat.S_IFBLK: FLAG_FILE | FLAG_SPECIAL,
    }.items():  # fmt: skip
        assert kind_flags(Node(kind | 0o644)) == flags
    for algorithm, bits in algorithms.items():
        whole = content_hash(b"", algorithm)
        file = Node(stat.S_IFREG, content=Content(whole))
        assert kind_flags(file) == FLAG_FILE | bits
        chunked = file._replace(content=Content(None, (Chunk(0, 1, whole),)))
        assert kind_flags(chunked) == FLAG_FILE | FLAG_CHUNKED | bits
        assert kind_flags(chunked._replace(content=Content(whole, (Chunk(0, 1, whole),)))) == (
            FLAG_FILE | FLAG_CHUNKED | bits
        )


def test_a_file_that_replaces_one_leaves_none_of_its_chunks() -> None:
    chunks = tuple(Chunk(n * 5, 5, content_hash(b"%d" % n)) for n in range(3))
    large = Node(stat.S_IFREG | 0o644, size=15, content=Content(None, chunks))
    small = Node(stat.S_IFREG | 0o644, size=1, content=Content(content_hash(b"x")))
    less = large._replace(size=5, content=Content(None, chunks[:1]))
    with Catalog.create("") as catalog:
        for node in (large, less, large, small):
            catalog.put([ROOT, Row("f", node, kind_flags(node))])
            found = catalog.get("f")
            assert found is not None
            assert found.node == node
            wanted = len(node.content.chunks) if node.content else 0
            assert catalog.count_own()["chunks"] == wanted
        catalog.put([Row("f", large, kind_flags(large))])
        catalog.remove("f")
        assert catalog.get("f") is None
        assert catalog.count_own()["chunks"] == 0


def test_nested_catalogs_are_listed_by_path() -> None:
    refs = {
        path: CatalogRef(content_hash(path.encode("utf-8", "surrogateescape"), algorithm), 7)
        for path, algorithm in zip(("a/b", "\udcff", "a"), HashAlgorithm, strict=True)
    }
    with Catalog.create("") as catalog:
        for path, ref in refs.items():
            catalog.set_nested(path, ref)
        assert catalog.nested() == refs
        assert catalog.count_own()["nested"] == 3
        catalog.set_nested("a", refs["a/b"])
        catalog.remove_nested("\udcff")
        assert catalog.nested() == {"a/b": refs["a/b"], "a": refs["a/b"]}


def test_a_new_catalog_has_the_properties_of_its_place() -> None:
    with Catalog.create("") as root, Catalog.create("a/b") as nested:
        for catalog in (root, nested):
            assert catalog.get_property("schema") == "2.5"
            assert catalog.get_property("schema_revision") == "7"
            assert catalog.revision == 0
        assert (root.prefix, nested.prefix) == ("", "a/b")
        assert nested.get_property("root_prefix") == "/a/b"
        assert root.get_property("root_prefix") is None
        assert (root.get_property("TTL"), nested.get_property("TTL")) == ("240", None)


@pytest.mark.parametrize("removed", [0, 90])
def test_the_root_of_the_repository_always_has_the_first_row_id(removed: int) -> None:
    names = [f"n{number}" for number in range(100)]
    with Catalog.create("") as catalog:
        catalog.put([Row(name, DIRECTORY, FLAG_DIR, 2) for name in names])
        catalog.put([ROOT])
        catalog.put([ROOT._replace(hardlinks=102)])
        for name in names[:removed]:
            catalog.remove(name)
        data = catalog.serialize()
    with Catalog.open(data) as again:
        found = again.database.execute("SELECT rowid, name FROM catalog ORDER BY rowid").fetchall()
        assert found[0] == (1, "")
        assert sorted(name for _, name in found[1:]) == sorted(names[removed:])
        assert all(row > 1 for row, _ in found[1:])
        again.put([ROOT])
        assert again.serialize()[:16] == b"SQLite format 3\0"
        assert again.database.execute("SELECT rowid FROM catalog WHERE name = ''").fetchone() == (
            1,
        )


@pytest.mark.parametrize("page_size", [1024, 4096])
def test_a_catalog_with_gaps_is_compacted_and_loses_nothing(page_size: int) -> None:
    node = Node(stat.S_IFREG | 0o644, size=3, content=Content(content_hash(b"x")))
    chunked = node._replace(content=Content(None, (Chunk(0, 3, content_hash(b"y")),)))
    with Catalog.create("p", page_size=page_size) as catalog:
        catalog.put([Row("p", DIRECTORY, FLAG_DIR, 2)])
        catalog.put([Row(f"p/\udcff{n}", node, kind_flags(node)) for n in range(800)])
        catalog.put([Row("p/chunked", chunked, kind_flags(chunked))])
        catalog.set_nested("p/n", CatalogRef(content_hash(b"n"), 5))
        catalog.set_counters(catalog.count_own(), ZEROS)
        catalog.set_property("other", "kept")
        database = catalog.database
        database.execute("INSERT INTO bind_mountpoints VALUES ('/p/bind', 'x', 3)")
        full = len(catalog.serialize())
        for number in range(10, 800):
            catalog.remove(f"p/\udcff{number}")
        data = catalog.serialize()
    assert len(data) < full / 3
    with Catalog.open(data) as again:
        rows = again.children("p")
        assert [row.path for row in rows] == [
            "p/chunked",
            *sorted(f"p/\udcff{n}" for n in range(10)),
        ]
        assert rows[0].node == chunked
        assert again.nested() == {"p/n": CatalogRef(content_hash(b"n"), 5)}
        assert again.get_property("other") == "kept"
        assert again.prefix == "p"
        database = again.database
        assert database.execute("SELECT * FROM bind_mountpoints").fetchall() == [
            ("/p/bind", "x", 3)
        ]
        assert database.execute("SELECT MAX(rowid) FROM catalog").fetchone() == (12,)
        assert database.execute("PRAGMA page_size").fetchone() == (page_size,)
        assert database.execute("PRAGMA freelist_count").fetchone() == (0,)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert again.stored_counters()[0]["regular"] == 801


def test_a_mountpoint_says_so() -> None:
    assert Row("a", DIRECTORY, FLAG_DIR | FLAG_MOUNTPOINT).is_mountpoint
    assert not Row("a", DIRECTORY, FLAG_DIR).is_mountpoint
    assert Row("a", DIRECTORY, FLAG_DIR, (1 << 32) | 2).linkcount == 2


def test_the_attributes_of_the_specification_are_these_bytes() -> None:
    blob = bytes.fromhex("01020600757365722e650601757365722e6b76")
    assert encode_xattrs([("user.k", b"v"), ("user.e", b"")]) == blob
    assert decode_xattrs(blob) == (("user.e", b""), ("user.k", b"v"))
    assert encode_xattrs([]) is None
    assert decode_xattrs(None) == ()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=40))
def test_attributes_of_noise_are_refused_or_come_back(blob: bytes) -> None:
    try:
        pairs = decode_xattrs(blob)
    except IntegrityError:
        return
    assert encode_xattrs(pairs) == blob


def test_a_missing_counter_is_refused() -> None:
    with Catalog.create("") as catalog:
        with pytest.raises(IntegrityError, match="counter"):
            catalog.stored_counters()
        catalog.set_counters(dict.fromkeys(COUNTERS, 2), dict.fromkeys(COUNTERS, 3))
        assert set(catalog.total_counters().values()) == {5}
        catalog.database.execute("DELETE FROM statistics WHERE counter = 'subtree_dir'")
        with pytest.raises(IntegrityError, match="subtree_dir"):
            catalog.total_counters()


def test_equal_entries_give_equal_bytes() -> None:
    def build() -> bytes:
        with Catalog.create("a") as catalog:
            catalog.put([Row("a", DIRECTORY, FLAG_DIR, 2)])
            catalog.set_counters(catalog.count_own(), ZEROS)
            return catalog.serialize()

    assert build() == build()


def test_a_catalog_can_begin_at_a_name_that_is_not_utf_8() -> None:
    prefix = "a/\udcff\n"
    with Catalog.create(prefix) as catalog:
        assert catalog.prefix == prefix
        catalog.put([Row(prefix, DIRECTORY, FLAG_DIR, 2)])
        catalog._compact()
        data = catalog.serialize()
    with Catalog.open(data) as again:
        assert again.prefix == prefix
        assert again.get_property("root_prefix") == "/" + prefix
