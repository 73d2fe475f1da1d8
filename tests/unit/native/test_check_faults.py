"""One fault per repository: the check must name the place and the fault."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm, Suffix
from cvmfs_publish.repository.native.check import Severity
from cvmfs_publish.repository.native.signing import join_signed, sign_text, split_signed
from tests.unit.native.check_repositories import NOW, OURS, SHA1, SHAKE, Subject, Verdict, judge
from tests.unit.native.vectors import Edit, at, key

pytestmark = pytest.mark.slow

ERROR, WARNING = Severity.ERROR, Severity.WARNING


@dataclass(frozen=True)
class Fault:
    """A change to a sound repository and what the check must say about it."""

    damage: Callable[[Subject], object]
    place: str  # where the problem must be reported
    text: str  # part of what must be said there
    severity: Severity = ERROR
    scrub: bool = False
    contents: bool = False  # only who reads contents notices it
    now: datetime = NOW
    differs: str = ""  # why the judge is of another opinion


def catalog(prefix: str, *edits: Edit) -> Callable[[Subject], object]:
    return lambda repository: repository.edit_catalog(prefix, *edits)


def row(path: str, change: str, prefix: str = "") -> Callable[[Subject], object]:
    """Change the row of a path."""
    return catalog(prefix, f"UPDATE catalog SET {change} WHERE {at(path)}")


def count(counter: str, delta: int) -> str:
    return f"UPDATE statistics SET value = value + {delta} WHERE counter = '{counter}';"


def counted_above(counter: str, delta: int) -> str:
    return count(f"subtree_{counter}", delta)


def history(*edits: Edit) -> Callable[[Subject], object]:
    return lambda repository: repository.edit_history(*edits)


def reflog(*edits: Edit) -> Callable[[Subject], object]:
    return lambda repository: repository.edit_reflog(*edits)


def manifest_text(change: Callable[[bytes], bytes]) -> Callable[[Subject], object]:
    return lambda repository: repository.rewrite_manifest(change)


def without(letters: bytes) -> Callable[[Subject], object]:
    return manifest_text(
        lambda text: b"".join(x for x in text.splitlines(True) if x[0] not in letters)
    )


def whitelist_text(change: Callable[[bytes], bytes]) -> Callable[[Subject], object]:
    return lambda repository: repository.rewrite_whitelist(change)


def _another_fingerprint(text: bytes) -> bytes:
    lines = text.split(b"\n")
    lines[3] = (b"00" if lines[3][:2] != b"00" else b"11") + lines[3][2:]
    return b"\n".join(lines)


def no_property(name: str, prefix: str = "") -> Callable[[Subject], object]:
    return catalog(prefix, f"DELETE FROM properties WHERE key = '{name}'")


def set_property(name: str, value: object, prefix: str = "") -> Callable[[Subject], object]:
    return catalog(prefix, f"INSERT OR REPLACE INTO properties VALUES ('{name}', '{value}')")


def insert(path: str, mode: int, flags: int | str, **columns: object) -> str:
    """SQL that adds a row, without adjusting any counter."""
    parent, _, name = path.rpartition("/")
    values: dict[str, object] = {
        "md5path_1": key(path)[0],
        "md5path_2": key(path)[1],
        "parent_1": key(parent)[0],
        "parent_2": key(parent)[1],
        "hardlinks": 1,
        "size": 0,
        "mode": mode,
        "mtime": 1795170600,
        "flags": flags,
        "name": f"'{name}'",
        "symlink": "''",
        "uid": 0,
        "gid": 0,
        **columns,
    }
    return (
        f"INSERT INTO catalog ({', '.join(values)}) "
        f"VALUES ({', '.join(str(value) for value in values.values())});"
    )


EMPTY = "$EMPTY"
HARD = (
    f"UPDATE catalog SET hardlinks = 4294967298 WHERE {at('/plain/hard1')} OR {at('/plain/hard2')};"
)


def hard(change: str) -> Callable[[Subject], object]:
    """Make a hard-link group of two, then damage one member."""
    return catalog("", HARD, f"UPDATE catalog SET {change} WHERE {at('/plain/hard2')}")


def remove_object(path: str) -> Callable[[Subject], object]:
    return lambda repository: repository.object_file(
        repository.row_hash(path), Suffix.DATA
    ).unlink()


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def flip_in(path: str) -> Callable[[Subject], object]:
    return lambda repository: flip_byte(
        repository.object_file(repository.row_hash(path), Suffix.DATA)
    )


def chunk_sql(change: str, which: str = "offset = 0") -> Callable[[Subject], object]:
    return catalog("", f"UPDATE chunks SET {change} WHERE {which}")


def rename_column(repository: Subject) -> None:
    repository.edit_catalog("", "ALTER TABLE catalog RENAME COLUMN uid TO owner")


def swap_columns(repository: Subject) -> None:
    repository.edit_catalog(
        "",
        "CREATE TABLE other (sha1 TEXT, path TEXT, size INTEGER, PRIMARY KEY (path));"
        "INSERT INTO other (sha1, path, size) SELECT sha1, path, size FROM nested_catalogs;"
        "DROP TABLE nested_catalogs; ALTER TABLE other RENAME TO nested_catalogs;",
    )


def no_primary_key(repository: Subject) -> None:
    repository.edit_catalog(
        "",
        "CREATE TABLE other AS SELECT * FROM chunks; DROP TABLE chunks;"
        "ALTER TABLE other RENAME TO chunks;",
    )


def wal_header(repository: Subject) -> None:
    data = bytearray(repository.get(repository.catalog_hash("/nested"), Suffix.CATALOG))
    data[18:20] = b"\2\2"
    repository.replace_catalog("/nested", bytes(data))


def garbage_catalog(repository: Subject) -> None:
    repository.replace_catalog("/nested", b"SQLite format 3\0" + bytes(range(256)) * 20)


def torn_catalog(repository: Subject) -> None:
    data = repository.get(repository.catalog_hash("/nested"), Suffix.CATALOG)
    repository.replace_catalog("/nested", data[:3072] + bytes(5120) + data[8192:])


def cut_catalog(repository: Subject) -> None:
    path = repository.object_file(repository.catalog_hash("/nested"), Suffix.CATALOG)
    path.write_bytes(path.read_bytes()[:-10])


def not_zlib(repository: Subject) -> None:
    value = repository.put(b"this is no zlib stream", Suffix.CATALOG)
    repository.edit_catalog(
        "", f"UPDATE nested_catalogs SET sha1 = '{value}' WHERE path = '/nested'"
    )


def both(*damages: Callable[[Subject], object]) -> Callable[[Subject], object]:
    """One fault that takes several steps."""

    def damage(repository: Subject) -> None:
        for step in damages:
            step(repository)

    return damage


def hash_of(repository: Subject, field: str) -> ContentHash:
    value = getattr(repository.manifest(), field)
    assert isinstance(value, ContentHash)
    return value


def wal(data: bytes) -> bytes:
    return data[:18] + b"\2\2" + data[20:]


def stored_as(path: str, change: Callable[[bytes], bytes]) -> Callable[[Subject], object]:
    def damage(repository: Subject) -> None:
        file = repository.object_file(repository.row_hash(path), Suffix.DATA)
        file.write_bytes(change(file.read_bytes()))

    return damage


def _other_content(repository: Subject, stored: bytes) -> None:
    value = repository.put(stored, Suffix.DATA)
    repository.edit_catalog(
        "",
        f"UPDATE catalog SET hash = x'{value.digest.hex()}' WHERE {at('/plain/hello.txt')}",
    )


def no_stream(repository: Subject) -> None:
    _other_content(repository, b"hello world\n")


def two_streams(repository: Subject) -> None:
    _other_content(repository, zlib.compress(b"hello world\n") + zlib.compress(b""))


def object_is(make: Callable[[Path], object]) -> Callable[[Subject], object]:
    def damage(repository: Subject) -> None:
        path = repository.object_file(repository.row_hash("/plain/hello.txt"), Suffix.DATA)
        path.unlink()
        make(path)

    return damage


def other_hash_line(repository: Subject) -> None:
    signed = split_signed(repository.manifest_file.read_bytes(), "manifest")
    others = [a for a in HashAlgorithm if a is not repository.algorithm]
    hash_text = str(ContentHash.of(signed.payload, others[0])).encode()
    signature = sign_text(hash_text, repository.keys.private_key)
    repository.manifest_file.write_bytes(join_signed(signed.payload, hash_text, signature))


def only_root_alternative(repository: Subject) -> None:
    repository.sign(alternative_paths=True)
    root = repository.manifest().root_hash
    target = root.path(Suffix.CATALOG)
    (repository.root / f".cvmfsalt-{root}C").symlink_to(target)


def nested_as_root(repository: Subject) -> None:
    value = repository.catalog_hash("/nested")
    size = len(repository.get(value, Suffix.CATALOG))
    repository.set_root(value, size)


def not_compressed(field: str, kind: Suffix) -> Callable[[Subject], object]:
    def damage(repository: Subject) -> None:
        content = repository.get(hash_of(repository, field), kind)
        repository.sign(**{field: repository.put(content, kind)})
        repository.list_current()

    return damage


def recompressed(field: str, kind: Suffix, level: int) -> Callable[[Subject], object]:
    def damage(repository: Subject) -> None:
        value = getattr(repository.manifest(), field)
        stored = zlib.compress(repository.get(value, kind), level)
        repository.sign(**{field: repository.put(stored, kind)})
        repository.list_current()

    return damage


def other_content(field: str, kind: Suffix, content: bytes) -> Callable[[Subject], object]:
    def damage(repository: Subject) -> None:
        repository.sign(**{field: repository.put(zlib.compress(content), kind)})
        repository.list_current()

    return damage


def sha256_signature(repository: Subject) -> None:
    signed = split_signed(repository.manifest_file.read_bytes(), "manifest")
    signature = repository.keys.private_key.sign(
        signed.hash_text, padding.PKCS1v15(), hashes.SHA256()
    )
    repository.manifest_file.write_bytes(join_signed(signed.payload, signed.hash_text, signature))


def unsigned_change(name: str) -> Callable[[Subject], object]:
    """Change a digit of a signed text and its hash line, but not its signature."""

    def damage(repository: Subject) -> None:
        path = repository.root / name
        signed = split_signed(path.read_bytes(), name)
        payload = signed.payload.replace(b"2026112", b"2026111").replace(b"\nD240", b"\nD241")
        assert payload != signed.payload
        hash_text = str(ContentHash.of(payload, repository.algorithm)).encode()
        path.write_bytes(join_signed(payload, hash_text, signed.signature))

    return damage


def wrong_hash_line(name: str) -> Callable[[Subject], object]:
    def damage(repository: Subject) -> None:
        path = repository.root / name
        signed = split_signed(path.read_bytes(), name)
        path.write_bytes(
            join_signed(signed.payload, str(repository.fake("0")).encode(), signed.signature)
        )

    return damage


def write(name: str, data: bytes = b"x") -> Callable[[Subject], object]:
    def damage(repository: Subject) -> None:
        path = repository.root / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)

    return damage


def delete(name: str) -> Callable[[Subject], object]:
    return lambda repository: (repository.root / name).unlink()


def stale_reflog(repository: Subject) -> None:
    before = repository.manifest().reflog
    repository.edit_reflog("UPDATE refs SET timestamp = timestamp + 1")
    repository.sign(reflog=before)


def no_reflog_entry(field: str) -> Callable[[Subject], object]:
    def damage(repository: Subject) -> None:
        value = getattr(repository.manifest(), field)
        repository.edit_reflog(f"DELETE FROM refs WHERE hash = '{value}'")

    return damage


def dangling_tag(repository: Subject) -> None:
    repository.edit_history(
        f"INSERT INTO tags VALUES ('gone', '{'5' * 40}$ALG', 2, 1795170598, 0, '', 19456, '')"
    )


def tag_of_nested(repository: Subject) -> None:
    value = repository.catalog_hash("/nested")
    size = len(repository.get(value, Suffix.CATALOG))
    repository.edit_history(
        f"INSERT INTO tags VALUES ('low', '{value}', 2, 1795170598, 0, '', {size}, '')"
    )


def directory_object(repository: Subject) -> None:
    (repository.root / "data" / "ab").mkdir(exist_ok=True)
    (repository.root / "data" / "ab" / ("0" * 38)).mkdir()


def link_object(repository: Subject) -> None:
    (repository.root / "data" / "ab").mkdir(exist_ok=True)
    (repository.root / "data" / "ab" / ("0" * 38)).symlink_to("/etc/hostname")


def flip_stored(repository: Subject) -> None:
    """Damage an object that only the first revision refers to."""
    flip_byte(repository.object_file(repository.tagged("generic"), Suffix.CATALOG))


# Adjusting the counters above makes a change of one file invisible to stock check.
def size_of_hello(delta: int) -> Callable[[Subject], object]:
    return catalog(
        "",
        f"UPDATE catalog SET size = size + {delta} WHERE {at('/plain/hello.txt')};",
        count("self_file_size", delta),
    )


XATTR = "row of extended attributes"

FAULTS: dict[str, Fault] = {
    # counters
    "self counter off by one": Fault(
        catalog("", count("self_regular", 1)), "/", "self_regular is 15, counted 14"
    ),
    "nested self counter off by one": Fault(
        catalog("/nested", count("self_dir", -1)), "/nested", "self_dir is 1, counted 2"
    ),
    "nested subtree counter off by one": Fault(
        catalog("/nested", count("subtree_regular", 1)), "/nested", "subtree_regular is"
    ),
    "subtree counter off by one": Fault(
        catalog("", count("subtree_symlink", 1)), "/", "subtree_symlink is 2, counted 1"
    ),
    "counter missing": Fault(
        catalog("", "DELETE FROM statistics WHERE counter = 'subtree_special'"),
        "/",
        "subtree_special is missing",
    ),
    "counter NULL": Fault(
        catalog("", "UPDATE statistics SET value = NULL WHERE counter = 'self_dir'"),
        "/",
        "counter 'self_dir' is None",
    ),
    "extra counter": Fault(
        catalog("", "INSERT INTO statistics VALUES ('self_micro', 0)"),
        "/",
        "unknown statistics counter self_micro",
    ),
    # nested catalogs
    "nested size 0": Fault(
        catalog("", "UPDATE nested_catalogs SET size = 0"),
        "/nested",
        "size is 0",
        differs="the judge warns; no server of today writes it",
    ),
    "nested size wrong": Fault(
        catalog("", "UPDATE nested_catalogs SET size = size + 1"), "/nested", "as promised"
    ),
    "nested hash malformed": Fault(
        catalog("", "UPDATE nested_catalogs SET sha1 = 'zz'"), "/nested", "hash is 'zz'"
    ),
    "nested row missing": Fault(
        catalog("", "DELETE FROM nested_catalogs"), "/nested", "not registered"
    ),
    "nested row without mountpoint": Fault(
        catalog(
            "",
            f"INSERT INTO nested_catalogs VALUES ('/plain', '{'1' * 40}$ALG', 5);"
            + count("self_nested", 1),
        ),
        "/plain",
        "no mountpoint",
    ),
    "nested path relative": Fault(
        catalog("", "UPDATE nested_catalogs SET path = 'nested'"), "/", "path is b'nested'"
    ),
    "nested catalog missing": Fault(
        lambda r: r.object_file(r.catalog_hash("/nested/inner"), Suffix.CATALOG).unlink(),
        "/nested/inner",
        "is missing",
    ),
    "nested catalog cut": Fault(cut_catalog, "/nested", "damaged"),
    "nested catalog not compressed": Fault(not_zlib, "/nested", "not a zlib stream"),
    "nested catalog is garbage": Fault(garbage_catalog, "/nested", "catalog"),
    "nested catalog with zeroed pages": Fault(torn_catalog, "/nested", "catalog"),
    "write-ahead-log header": Fault(wal_header, "/nested", "write-ahead-log"),
    "marker missing": Fault(
        catalog(
            "/nested",
            f"DELETE FROM catalog WHERE {at('/nested/.cvmfscatalog')};",
            count("self_regular", -1),
        ),
        "/nested",
        "without .cvmfscatalog",
    ),
    "marker in an ordinary directory": Fault(
        catalog("", insert("/big/.cvmfscatalog", 0o100644, "4 + $BITS", hash=EMPTY)),
        "/big/.cvmfscatalog",
        "outside of a catalog's root",
    ),
    "marker in the root directory": Fault(
        catalog("", insert("/.cvmfscatalog", 0o100644, "4 + $BITS", hash=EMPTY)),
        "/.cvmfscatalog",
        "in the repository's root",
    ),
    "marker is a directory": Fault(
        row("/nested/.cvmfscatalog", "mode = 16877, flags = 1, hash = NULL", "/nested"),
        "/nested/.cvmfscatalog",
        "not a regular file",
    ),
    "root prefix missing": Fault(no_property("root_prefix", "/nested"), "/nested", "root_prefix"),
    "root prefix wrong": Fault(
        set_property("root_prefix", "/other", "/nested"), "/nested", "root_prefix is '/other'"
    ),
    "root prefix in the root": Fault(
        catalog("", "INSERT INTO properties VALUES ('root_prefix', '/x')"), "/", "root_prefix"
    ),
    "nested root flag missing": Fault(
        row("/nested", "flags = 1", "/nested"), "/nested", "without the nested-root flag"
    ),
    "mountpoint flag missing": Fault(row("/nested", "flags = 1"), "/nested", "no mountpoint"),
    "nested root flag on an ordinary directory": Fault(
        row("/big", "flags = 33"), "/big", "nested-root flag"
    ),
    "nested root flag on the root": Fault(row("", "flags = 33"), "/", "nested-root flag"),
    "rows below a mountpoint": Fault(
        catalog(
            "", insert("/nested/x", 0o100644, "4 + $BITS", hash=EMPTY), count("self_regular", 1)
        ),
        "/nested",
        "1 rows below",
    ),
    "previous nested catalog gone": Fault(
        set_property("previous_revision", "4" * 40 + "$ALG", "/nested"),
        "/nested",
        "does not exist",
        WARNING,
    ),
    "previous nested catalog gone, without collection": Fault(
        both(
            set_property("previous_revision", "4" * 40 + "$ALG", "/nested"),
            lambda r: r.sign(garbage_collectable=False),
        ),
        "/nested",
        "does not exist",
        differs="the judge warns; without collection nothing explains it",
    ),
    "previous root gone, without collection": Fault(
        both(
            set_property("previous_revision", "4" * 40 + "$ALG"),
            lambda r: r.sign(garbage_collectable=False),
        ),
        "/",
        "does not exist",
        differs="the judge warns; without collection a replica stops there",
    ),
    "previous root malformed": Fault(
        set_property("previous_revision", "4" * 39),
        "/",
        "previous_revision",
        differs="the judge warns; collection follows this chain and stops there",
    ),
    "previous root missing": Fault(
        no_property("previous_revision"), "/", "names no predecessor", WARNING
    ),
    "transition linkcount": Fault(row("/nested", "hardlinks = 9"), "/nested", "hardlinks is 9"),
    "transition mtime": Fault(row("/nested", "mtime = mtime + 1"), "/nested", "mtime is"),
    "transition nanoseconds": Fault(row("/nested", "mtimens = 5"), "/nested", "mtimens is 5"),
    "transition mode": Fault(row("/nested", "mode = 16832"), "/nested", "mode is"),
    "transition size": Fault(row("/nested", "size = 1"), "/nested", "size is 1"),
    "transition uid": Fault(
        row("/nested", "uid = 77"),
        "/nested",
        "uid is 77",
        differs="the judge warns; what a client shows depends on what it has loaded",
    ),
    "transition gid": Fault(
        row("/nested", "gid = 77"),
        "/nested",
        "gid is 77",
        differs="the judge warns; what a client shows depends on what it has loaded",
    ),
    "transition xattr": Fault(
        catalog(
            "",
            f"UPDATE catalog SET xattr = x'01010201612e62' WHERE {at('/nested')};",
            count("self_xattr", 1),
        ),
        "/nested",
        "extended attributes differ",
    ),
    "transition flags": Fault(
        row("/nested", "flags = 32771"),
        "/nested",
        "flags are",
        differs="the judge leaves flags out; what a client lists depends on what it has loaded",
    ),
    # bind mountpoints
    "bind flag without row": Fault(
        row("/odd/name with space", "flags = 16385"),
        "/odd/name with space",
        "not registered in bind_mountpoints",
    ),
    "bind row without directory": Fault(
        catalog("", f"INSERT INTO bind_mountpoints VALUES ('/b', '{'1' * 40}$ALG', 5)"),
        "/b",
        "no such mountpoint",
    ),
    "bind and nested": Fault(
        catalog("", "INSERT INTO bind_mountpoints SELECT * FROM nested_catalogs"),
        "/nested",
        "both as nested catalog and as bind",
    ),
    # properties and schema
    "revision missing": Fault(no_property("revision"), "/", "revision is None"),
    "nested revision missing": Fault(
        no_property("revision", "/nested"), "/nested", "revision is None"
    ),
    "nested last_modified missing": Fault(
        no_property("last_modified", "/nested/inner"), "/nested/inner", "last_modified is None"
    ),
    "revision is no number": Fault(set_property("revision", "three"), "/", "revision is 'three'"),
    "last_modified missing": Fault(no_property("last_modified"), "/", "last_modified is None"),
    "TTL missing": Fault(
        no_property("TTL"),
        "/",
        "TTL is None",
        differs="the judge warns; every server writes it",
    ),
    "TTL differs from D": Fault(set_property("TTL", 900), ".cvmfspublished", "field D", WARNING),
    "schema wrong": Fault(set_property("schema", "2.4"), "/", "schema is '2.4'"),
    "schema revision 6": Fault(
        set_property("schema_revision", 6), "/", "schema revision 6, but column mtimens"
    ),
    "schema revision 8": Fault(set_property("schema_revision", 8), "/", "schema_revision is 8"),
    "schema revision missing": Fault(
        no_property("schema_revision"), "/", "schema_revision is None"
    ),
    "table missing": Fault(catalog("", "DROP TABLE chunks"), "/", "no table chunks"),
    "view instead of a table": Fault(
        catalog("", "DROP TABLE chunks; CREATE VIEW chunks AS SELECT 1 AS offset"),
        "/",
        "has a view",
    ),
    "column missing": Fault(rename_column, "/", "no column uid"),
    "column order": Fault(swap_columns, "/", "not in the order"),
    "primary key missing": Fault(no_primary_key, "/", "primary key ()"),
    "index missing": Fault(catalog("", "DROP INDEX idx_catalog_parent"), "/", "no index"),
    "row id 0": Fault(row("/big", "rowid = 0"), "/big", "row id is 0"),
    # entries
    "root row missing": Fault(
        catalog("", f"DELETE FROM catalog WHERE {at('')}"), "/", "no row for its own root"
    ),
    "root row is not the first": Fault(
        catalog("", f"UPDATE catalog SET rowid = 99 WHERE {at('')}"),
        "/",
        "root row has row id 99",
        differs="the judge does not know that clients need it; one of 2.12 showed the wrong root",
    ),
    "root row parent key": Fault(row("", "parent_1 = 5"), "/", "wrong parent key"),
    "nested root row parent key": Fault(
        row("/nested", "parent_1 = 5", "/nested"), "/nested", "wrong parent key"
    ),
    "root row name": Fault(row("", "name = 'root'"), "/", "named 'root'"),
    "directory linkcount": Fault(row("/plain", "hardlinks = 9"), "/plain", "is 9, must be 6"),
    "root linkcount": Fault(row("", "hardlinks = 9"), "/", "is 9, must be 6"),
    "directory in a hard-link group": Fault(
        row("/big", "hardlinks = 4294967298"), "/big", "directory in a hard-link group"
    ),
    "directory with hash": Fault(row("/big", f"hash = {EMPTY}"), "/big", "with a content hash"),
    "directory size 0": Fault(row("/big", "size = 0"), "/big", "of size 0", WARNING),
    "directory size 0 in all rows": Fault(
        both(
            catalog("/nested/inner", "UPDATE catalog SET size = 0 WHERE flags & 1"),
            catalog("/nested", "UPDATE catalog SET size = 0 WHERE flags & 1"),
            catalog("", "UPDATE catalog SET size = 0 WHERE flags & 1"),
        ),
        "/",
        "of size 0, by convention 4096 (and ",
        WARNING,
    ),
    "dangling row": Fault(row("/plain/hello.txt", "parent_1 = 5"), "/", "dangling row"),
    "path key of a file": Fault(
        row("/plain/hello.txt", "md5path_1 = 5"), "/plain/hello.txt", "path key"
    ),
    "path key of a directory": Fault(
        row("/plain/sticky", "md5path_1 = 5"), "/plain/sticky", "path key"
    ),
    "path key of a symlink": Fault(
        row("/plain/rel-link", "md5path_1 = 5"), "/plain/rel-link", "path key"
    ),
    "path key of a special file": Fault(row("/odd/null", "md5path_2 = 5"), "/odd/null", "path key"),
    "name NULL": Fault(row("/plain/hello.txt", "name = NULL"), "/…/row", "name is NULL"),
    "symlink NULL": Fault(
        row("/plain/hello.txt", "symlink = NULL"), "/plain/hello.txt", "symlink is NULL"
    ),
    "name empty": Fault(row("/plain/hello.txt", "name = ''"), "/plain/", "invalid name ''"),
    "name with slash": Fault(
        row("/plain/hello.txt", "name = 'a/b'"), "/plain/a/b", "invalid name 'a/b'"
    ),
    "name dot dot": Fault(row("/plain/hello.txt", "name = '..'"), "/plain/..", "invalid name '..'"),
    "mode is text": Fault(
        row("/plain/hello.txt", "mode = 'rw-r--r--'"), "/…/hello.txt", "mode is 'rw"
    ),
    "mode of no kind": Fault(row("/plain/hello.txt", "mode = 420"), "/plain/hello.txt", "mode"),
    "mode negative": Fault(row("/plain/hello.txt", "mode = -1"), "/…/hello.txt", "mode is -1"),
    "hash of wrong length": Fault(
        row("/plain/hello.txt", "hash = x'0102'"), "/plain/hello.txt", "hash is b"
    ),
    "hash NULL": Fault(
        row("/plain/hello.txt", "hash = NULL"), "/plain/hello.txt", "without a content hash"
    ),
    "hash of zeros": Fault(
        row("/plain/hello.txt", "hash = zeroblob(20)"), "/plain/hello.txt", "without a content hash"
    ),
    "symlink with hash": Fault(
        row("/plain/rel-link", f"hash = {EMPTY}"), "/plain/rel-link", "with a content hash"
    ),
    "symlink without target": Fault(
        row("/plain/rel-link", "symlink = '', size = 0"), "/plain/rel-link", "usable target"
    ),
    "symlink size": Fault(row("/plain/rel-link", "size = 3"), "/plain/rel-link", "must be 9"),
    "symlink too long": Fault(
        row("/plain/rel-link", f"symlink = '{'x' * 4096}', size = 4096"),
        "/plain/rel-link",
        "4096 bytes",
        differs="the judge warns; no client can read such a link",
    ),
    "target on a file": Fault(
        row("/plain/hello.txt", "symlink = 'x'"), "/plain/hello.txt", "with a link target"
    ),
    "fifo size": Fault(row("/odd/fifo", "size = 5"), "/odd/fifo", "is 5, must be 0"),
    "device number negative": Fault(row("/odd/null", "size = -1"), "/odd/null", "is -1"),
    "target on a fifo": Fault(row("/odd/fifo", "symlink = 'x'"), "/odd/fifo", "with a link target"),
    "fifo with hash": Fault(row("/odd/fifo", f"hash = {EMPTY}"), "/odd/fifo", "content hash"),
    "special with hash": Fault(row("/odd/null", f"hash = {EMPTY}"), "/odd/null", "content hash"),
    "negative size": Fault(row("/plain/hello.txt", "size = -1"), "/plain/hello.txt", "size is -1"),
    "owner out of range": Fault(row("/plain/hello.txt", "uid = -1"), "/plain/hello.txt", "-1:0"),
    "group out of range": Fault(
        row("/plain/hello.txt", "gid = 4294967296"), "/plain/hello.txt", "0:4294967296"
    ),
    "nanoseconds out of range": Fault(
        row("/plain/hello.txt", "mtimens = 1000000000"), "/plain/hello.txt", "nanoseconds"
    ),
    "linkcount 0": Fault(row("/plain/hello.txt", "hardlinks = 0"), "/plain/hello.txt", "is 0"),
    "linkcount without group": Fault(
        row("/plain/hello.txt", "hardlinks = 2"), "/plain/hello.txt", "without a hard-link group"
    ),
    "group with too few members": Fault(
        row("/plain/hard1", "hardlinks = 4294967298"), "/plain/hard1", "has 1 members"
    ),
    "group with different metadata": Fault(
        hard("mtime = 5"), "/plain/hard", "differs from its hard link"
    ),
    "group of three with two members": Fault(
        catalog("", HARD.replace("4294967298", "4294967299")), "/plain/hard", "has 2 members"
    ),
    "group with different xattrs": Fault(
        both(hard("xattr = x'01010201612e62'"), catalog("", count("self_xattr", 1))),
        "/plain/hard",
        "differs from its hard link",
    ),
    "group with different content": Fault(
        hard("hash = x'e9f21b87" + "00" * 16 + "'"), "/plain/hard", "differs from its hard link"
    ),
    "group in two directories": Fault(
        catalog(
            "",
            f"UPDATE catalog SET hardlinks = 4294967297 WHERE {at('/plain/empty')} "
            f"OR {at('/big/single.bin')}",
        ),
        "/",
        "spans directories",
    ),
    # flags
    "flags 8 on a symlink": Fault(row("/plain/rel-link", "flags = 8"), "/plain/rel-link", "0x8"),
    "flags 16 on a fifo": Fault(row("/odd/fifo", "flags = 16"), "/odd/fifo", "0x10"),
    "flags 0 on a file": Fault(row("/plain/empty", "flags = 0"), "/plain/empty", "0x0"),
    "unknown flag bit": Fault(
        row("/plain/empty", "flags = 131076 + $BITS"), "/plain/empty", "unknown bits"
    ),
    "unknown hash algorithm": Fault(
        row("/plain/empty", "flags = 772"), "/plain/empty", "unknown hash algorithm"
    ),
    "unknown compression": Fault(
        row("/plain/empty", "flags = 4100 + $BITS"), "/plain/empty", "unknown compression"
    ),
    "compression bit of a compressed file": Fault(
        row("/plain/exec.sh", "flags = 2052 + $BITS"),
        "/plain/exec.sh",
        "the entry says 4",
        contents=True,
    ),
    "direct I/O on a symlink": Fault(
        row("/plain/rel-link", "flags = 65548"), "/plain/rel-link", "direct I/O"
    ),
    "direct I/O on a directory": Fault(row("/big", "flags = 65537"), "/big", "direct I/O"),
    "external directory": Fault(row("/big", "flags = 129"), "/big", "external"),
    "chunked symlink": Fault(row("/plain/rel-link", "flags = 76"), "/plain/rel-link", "chunked"),
    "external symlink": Fault(row("/plain/rel-link", "flags = 140"), "/plain/rel-link", "external"),
    "hidden file": Fault(
        row("/plain/empty", "flags = 32772 + $BITS"), "/plain/empty", "directory flag"
    ),
    "hash bits on a directory": Fault(
        row("/big", "flags = 257"), "/big", "hash or compression bits"
    ),
    # extended attributes
    "xattr of unknown version": Fault(
        row("/plain/xattr", "xattr = x'02010201612e62'"), "/plain/xattr", "extended attributes"
    ),
    "xattr that is not counted": Fault(
        row("/plain/hello.txt", "xattr = x'01010201612e62'"), "/", "self_xattr is"
    ),
    "xattr count 0": Fault(
        row("/plain/xattr", "xattr = x'0100'"), "/plain/xattr", "extended attributes"
    ),
    "xattr cut": Fault(
        row("/plain/xattr", "xattr = substr(xattr, 1, 5)"), "/plain/xattr", "cut short"
    ),
    "xattr empty": Fault(row("/plain/xattr", "xattr = x''"), "/plain/xattr", "cut short"),
    "xattr is text that is not UTF-8": Fault(
        row("/plain/xattr", "xattr = CAST(xattr AS TEXT)"),
        "/plain/xattr",
        "malformed columns: xattr",
    ),
    "xattr unsorted": Fault(
        row("/plain/xattr", "xattr = x'0102010062010061'"), "/plain/xattr", "malformed"
    ),
    "xattr with bytes behind": Fault(
        row("/plain/xattr", "xattr = CAST(xattr || x'00' AS BLOB)"), "/plain/xattr", "malformed"
    ),
    # chunks
    "chunk gap": Fault(chunk_sql("offset = offset + 1"), "/big/chunked.bin", "does not follow"),
    "chunks overlap": Fault(
        chunk_sql("offset = offset - 1", "offset > 0"), "/big/chunked.bin", "does not follow"
    ),
    "first chunk missing": Fault(
        catalog("", "DELETE FROM chunks WHERE offset = 0;", count("self_chunks", -1)),
        "/big/chunked.bin",
        "does not follow",
    ),
    "last chunk missing and still counted": Fault(
        catalog("", "DELETE FROM chunks WHERE offset > 0"), "/", "self_chunks is 2, counted 1"
    ),
    "last chunk missing": Fault(
        catalog("", "DELETE FROM chunks WHERE offset > 0;", count("self_chunks", -1)),
        "/big/chunked.bin",
        "chunks end at",
    ),
    "no chunks": Fault(
        catalog("", "DELETE FROM chunks;", count("self_chunks", -2)),
        "/big/chunked.bin",
        "without rows in chunks",
    ),
    "chunk of size 0": Fault(
        catalog(
            "",
            "INSERT INTO chunks SELECT md5path_1, md5path_2, 26214400, 0, hash FROM chunks "
            "WHERE offset = 0;",
            count("self_chunks", 1),
        ),
        "/big/chunked.bin",
        "of 0 bytes",
    ),
    "chunk hash NULL": Fault(chunk_sql("hash = NULL"), "/", "malformed row in chunks"),
    "chunk object missing": Fault(
        chunk_sql(f"hash = x'{'77' * 20}'"), "/big/chunked.bin", "is missing"
    ),
    "chunks of no file": Fault(
        catalog("", f"INSERT INTO chunks VALUES (1, 2, 0, 5, {EMPTY});", count("self_chunks", 1)),
        "/",
        "chunks of no file",
    ),
    "chunks of an ordinary file": Fault(
        row("/big/chunked.bin", f"flags = 4 + $BITS, hash = {EMPTY}"),
        "/big/chunked.bin",
        "file is not chunked",
    ),
    "chunk sizes swapped": Fault(
        catalog(
            "",
            "UPDATE chunks SET size = size + 1 WHERE offset = 0;"
            "UPDATE chunks SET offset = offset + 1, size = size - 1 WHERE offset > 0;",
        ),
        "/big/chunked.bin",
        "the entry says",
        scrub=True,
    ),
    # objects
    "object missing": Fault(remove_object("/plain/hello.txt"), "/plain/hello.txt", "is missing"),
    "object damaged": Fault(
        flip_in("/plain/hello.txt"), "/plain/hello.txt", "damaged", contents=True
    ),
    "object empty": Fault(
        stored_as("/plain/hello.txt", lambda data: b""),
        "/plain/hello.txt",
        "damaged",
        contents=True,
    ),
    "object cut": Fault(
        stored_as("/plain/hello.txt", lambda data: data[:-1]),
        "/plain/hello.txt",
        "damaged",
        contents=True,
    ),
    "object with bytes behind": Fault(
        stored_as("/plain/hello.txt", lambda data: data + b"x"),
        "/plain/hello.txt",
        "damaged",
        contents=True,
    ),
    "object decompressed in place": Fault(
        stored_as("/plain/hello.txt", zlib.decompress), "/plain/hello.txt", "damaged", contents=True
    ),
    "object that is no zlib stream": Fault(no_stream, "/plain/hello.txt", "zlib", contents=True),
    "object with two zlib streams": Fault(
        two_streams, "/plain/hello.txt", "after its zlib stream", contents=True
    ),
    "object is a directory": Fault(
        object_is(lambda path: path.mkdir()), "/plain/hello.txt", "missing", contents=True
    ),
    "object is a symbolic link": Fault(
        object_is(lambda path: path.symlink_to("/etc/hostname")),
        "/plain/hello.txt",
        "",
        contents=True,
    ),
    "file size too large": Fault(
        size_of_hello(1), "/plain/hello.txt", "the entry says 13", contents=True
    ),
    "file size too small": Fault(
        size_of_hello(-1), "/plain/hello.txt", "the entry says 11", contents=True
    ),
    "file size 0": Fault(
        size_of_hello(-12), "/plain/hello.txt", "longer than the 0", contents=True
    ),
    "file size impossible": Fault(
        size_of_hello(10**9), "/plain/hello.txt", "object", contents=True
    ),
    # manifest
    "manifest missing": Fault(delete(".cvmfspublished"), ".cvmfspublished", "is missing"),
    "manifest is garbage": Fault(
        write(".cvmfspublished", bytes(range(256))), ".cvmfspublished", "no signature block"
    ),
    "manifest too large": Fault(
        write(".cvmfspublished", b"C" * 4096), ".cvmfspublished", "more than 4095"
    ),
    "manifest changed without signing": Fault(
        unsigned_change(".cvmfspublished"), ".cvmfspublished", "not made with the key"
    ),
    "manifest signed with SHA-256": Fault(
        sha256_signature, ".cvmfspublished", "not made with the key"
    ),
    "manifest hash line": Fault(
        wrong_hash_line(".cvmfspublished"), ".cvmfspublished", "hash line says"
    ),
    "manifest without N": Fault(without(b"N"), ".cvmfspublished", "no field N"),
    "manifest without X": Fault(without(b"X"), ".cvmfspublished", "names no certificate"),
    "manifest without Y": Fault(without(b"Y"), ".cvmfspublished", "no field Y"),
    "manifest without S": Fault(without(b"S"), ".cvmfspublished", "no field S"),
    "manifest without T": Fault(without(b"T"), ".cvmfspublished", "no field T", WARNING),
    "manifest without B": Fault(without(b"B"), ".cvmfspublished", "no field B", WARNING),
    "manifest without H": Fault(without(b"H"), "history", "there is none", WARNING),
    "manifest of another repository": Fault(
        lambda r: r.sign(name="other.example.org"), ".cvmfspublished", "not of"
    ),
    "manifest R": Fault(lambda r: r.sign(root_path_hash="0" * 32), ".cvmfspublished", "field R"),
    "manifest B": Fault(lambda r: r.sign(root_size=5), "/", "not 5 as promised"),
    "manifest S": Fault(lambda r: r.sign(revision=9), ".cvmfspublished", "field S is 9"),
    "manifest D": Fault(lambda r: r.sign(ttl=9), ".cvmfspublished", "field D is 9", WARNING),
    "manifest T in the future": Fault(
        lambda r: r.sign(timestamp=int(NOW.timestamp()) + 3600), ".cvmfspublished", "future"
    ),
    "manifest T too early": Fault(
        lambda r: r.sign(timestamp=1795000000), ".cvmfspublished", "before last_modified"
    ),
    "manifest field repeated": Fault(
        manifest_text(lambda text: text + b"D240\n"), ".cvmfspublished", "D is repeated"
    ),
    "manifest with trailing blank": Fault(
        manifest_text(lambda text: text.replace(b"Gyes", b"Gyes ")), ".cvmfspublished", "blanks"
    ),
    "manifest G": Fault(
        manifest_text(lambda text: text.replace(b"Gyes", b"Gtrue")),
        ".cvmfspublished",
        "G is 'true'",
    ),
    "manifest A": Fault(
        manifest_text(lambda text: text.replace(b"\nAno", b"\nA1")), ".cvmfspublished", "A is '1'"
    ),
    "manifest S is no number": Fault(
        manifest_text(lambda text: text.replace(b"\nS3", b"\nS-3")), ".cvmfspublished", "S is '-3'"
    ),
    "manifest S below the root's": Fault(
        lambda r: r.sign(revision=2), ".cvmfspublished", "field S is 2"
    ),
    "manifest C of another algorithm than the hash line": Fault(
        other_hash_line, ".cvmfspublished", "another algorithm"
    ),
    "alternative paths promised": Fault(
        lambda r: r.sign(alternative_paths=True), ".cvmfsalt-", "the manifest promises"
    ),
    "alternative path of the certificate missing": Fault(
        only_root_alternative, ".cvmfsalt-", "the manifest promises"
    ),
    "manifest C of a nested catalog": Fault(nested_as_root, "/", "root_prefix is '/nested'"),
    "root catalog missing": Fault(
        lambda r: r.object_file(r.catalog_hash(""), Suffix.CATALOG).unlink(), "/", "is missing"
    ),
    "signature cut": Fault(
        lambda r: r.manifest_file.write_bytes(r.manifest_file.read_bytes()[:-1]),
        ".cvmfspublished",
        "signature",
    ),
    "not replicable": Fault(
        delete(".cvmfs_master_replica"), ".cvmfs_master_replica", "cannot be replicated", WARNING
    ),
    # certificate and metainfo
    "certificate of level 9": Fault(
        recompressed("certificate", Suffix.CERTIFICATE, 9), "certificate", "zlib level 6"
    ),
    "certificate of level 1": Fault(
        recompressed("certificate", Suffix.CERTIFICATE, 1), "certificate", "zlib level 6"
    ),
    "metainfo of level 9": Fault(
        recompressed("metainfo", Suffix.METAINFO, 9), "metainfo", "zlib level 6"
    ),
    "certificate not compressed": Fault(
        not_compressed("certificate", Suffix.CERTIFICATE), "certificate", "zlib"
    ),
    "metainfo of level 1": Fault(
        recompressed("metainfo", Suffix.METAINFO, 1), "metainfo", "zlib level 6"
    ),
    "certificate is none": Fault(
        other_content("certificate", Suffix.CERTIFICATE, b"nothing"), "certificate", "X.509"
    ),
    "certificate missing": Fault(
        lambda r: r.sign(certificate=r.fake("6")), "certificate", "is missing"
    ),
    "certificate missing from the store": Fault(
        lambda r: r.object_file(hash_of(r, "certificate"), Suffix.CERTIFICATE).unlink(),
        "certificate",
        "is missing",
    ),
    "metainfo missing": Fault(lambda r: r.sign(metainfo=r.fake("6")), "metainfo", "is missing"),
    "metainfo is no JSON": Fault(
        other_content("metainfo", Suffix.METAINFO, b"nothing"), "metainfo", "JSON"
    ),
    # whitelist
    "whitelist missing": Fault(delete(".cvmfswhitelist"), ".cvmfswhitelist", "is missing"),
    "whitelist changed without signing": Fault(
        unsigned_change(".cvmfswhitelist"), ".cvmfswhitelist", "none of the given master keys"
    ),
    "whitelist hash line": Fault(
        wrong_hash_line(".cvmfswhitelist"), ".cvmfswhitelist", "hash line says"
    ),
    "whitelist expiry is no time": Fault(
        whitelist_text(lambda text: text.replace(b"E2046", b"E20261120205900X")),
        ".cvmfswhitelist",
        "not a time of 14 digits",
    ),
    "whitelist expires in the current hour": Fault(
        lambda r: r.set_time(lambda now: now + timedelta(minutes=29)),
        ".cvmfswhitelist",
        "expired at 2026-11-20 20:59 UTC; clients look at the hour only",
    ),
    "whitelist expiry hour has begun": Fault(
        lambda r: None,
        ".cvmfswhitelist",
        "expired at",
        now=datetime(2046, 11, 15, 10, 30, tzinfo=UTC),
    ),
    "whitelist expires in a week": Fault(
        lambda r: None,
        ".cvmfswhitelist",
        "resign",
        WARNING,
        now=datetime(2046, 11, 8, 10, 30, tzinfo=UTC),
    ),
    "whitelist of another repository": Fault(
        lambda r: r.rewrite_whitelist(
            lambda text: text.replace(r.name.encode(), b"other.example.org")
        ),
        ".cvmfswhitelist",
        "is for 'other.example.org'",
    ),
    "whitelist without the certificate": Fault(
        whitelist_text(_another_fingerprint),
        ".cvmfswhitelist",
        "does not list the certificate",
    ),
    "whitelist creation time": Fault(
        whitelist_text(lambda text: text[2:]), ".cvmfswhitelist", "creation time"
    ),
    "whitelist demands a chain": Fault(
        whitelist_text(lambda text: text.replace(b".org\n", b".org\nWcachain\n")),
        ".cvmfswhitelist",
        "Wcachain",
    ),
    "whitelist with a signature of another kind": Fault(
        whitelist_text(lambda text: text.replace(b".org\n", b".org\nVpkcs7\n")),
        ".cvmfswhitelist",
        "Vpkcs7",
        WARNING,
        differs="stock clients verify it with a second file, which says nothing about the first",
    ),
    "whitelist with a malformed line": Fault(
        whitelist_text(lambda text: text + b"AB:CD\n"), ".cvmfswhitelist", "AB:CD"
    ),
    # reflog
    "reflog missing": Fault(delete(".cvmfsreflog"), ".cvmfsreflog", "is missing"),
    "reflog differs from Y": Fault(stale_reflog, ".cvmfsreflog", "the manifest says"),
    "reflog is garbage": Fault(
        lambda r: r.replace_reflog(b"x" * 5000), ".cvmfsreflog", "not a SQLite database"
    ),
    "reflog without root": Fault(
        no_reflog_entry("root_hash"), ".cvmfsreflog", "does not list the current catalog"
    ),
    "reflog without certificate": Fault(
        no_reflog_entry("certificate"), ".cvmfsreflog", "does not list the current certificate"
    ),
    "reflog without history": Fault(
        no_reflog_entry("history"), ".cvmfsreflog", "does not list the current history"
    ),
    "reflog without metainfo": Fault(
        no_reflog_entry("metainfo"), ".cvmfsreflog", "does not list the current metainfo"
    ),
    "reflog fqrn": Fault(
        reflog("UPDATE properties SET value = 'x' WHERE key = 'fqrn'"), ".cvmfsreflog", "fqrn"
    ),
    "reflog schema": Fault(
        reflog("UPDATE properties SET value = '1' WHERE key = 'schema_revision'"),
        ".cvmfsreflog",
        "schema_revision is '1'",
    ),
    "reflog with a write-ahead-log header": Fault(
        lambda r: r.replace_reflog(wal(r.reflog_file.read_bytes())),
        ".cvmfsreflog",
        "write-ahead-log",
    ),
    "reflog without table": Fault(reflog("DROP TABLE refs"), ".cvmfsreflog", "no such table"),
    "reflog lists the root as something else": Fault(
        lambda r: r.edit_reflog(
            f"UPDATE refs SET type = 3 WHERE hash = '{r.manifest().root_hash}'"
        ),
        ".cvmfsreflog",
        "does not list the current catalog",
    ),
    "reflog malformed hash": Fault(
        reflog("INSERT INTO refs VALUES ('xyz', 0, 5)"), ".cvmfsreflog", "malformed hash 'xyz'"
    ),
    "reflog unknown type": Fault(
        reflog(f"INSERT INTO refs VALUES ('{'1' * 40}$ALG', 7, 5)"),
        ".cvmfsreflog",
        "unknown type 7",
    ),
    "reflog entry without object": Fault(
        reflog(f"INSERT INTO refs VALUES ('{'1' * 40}$ALG', 0, 5)"),
        ".cvmfsreflog",
        "does not exist",
        WARNING,
    ),
    "reflog time in the future": Fault(
        reflog("UPDATE refs SET timestamp = 1999999999 WHERE type = 3"),
        ".cvmfsreflog",
        "future",
        WARNING,
    ),
    # history
    "history missing": Fault(lambda r: r.sign(history=r.fake("6")), "history", "is missing"),
    "history is garbage": Fault(
        lambda r: r.replace_history(b"x" * 5000), "history", "not a SQLite database"
    ),
    "history without table": Fault(history("DROP TABLE branches"), "history", "no such table"),
    "history with a write-ahead-log header": Fault(
        lambda r: r.replace_history(wal(r.get(hash_of(r, "history"), Suffix.HISTORY))),
        "history",
        "write-ahead-log",
    ),
    "history schema": Fault(
        history("UPDATE properties SET value = '4' WHERE key = 'schema_revision'"),
        "history",
        "schema_revision is '4'",
    ),
    "history object damaged": Fault(
        lambda r: flip_byte(r.object_file(hash_of(r, "history"), Suffix.HISTORY)),
        "history",
        "object",
    ),
    "history fqrn": Fault(
        history("UPDATE properties SET value = 'x' WHERE key = 'fqrn'"), "history", "fqrn is 'x'"
    ),
    "history without previous revision": Fault(
        history("DELETE FROM properties WHERE key = 'previous_revision'"),
        "history",
        "previous_revision",
    ),
    "history with a dangling predecessor": Fault(
        history(f"UPDATE properties SET value = '{'4' * 40}$ALG' WHERE key = 'previous_revision'"),
        "history",
        "preceding history",
        WARNING,
    ),
    "history with a malformed predecessor": Fault(
        history("UPDATE properties SET value = 'none' WHERE key = 'previous_revision'"),
        "history",
        "previous_revision",
    ),
    "history without trunk": Fault(
        history("DELETE FROM tags WHERE name = 'trunk'"), "history", "no tag trunk"
    ),
    "stale trunk": Fault(
        history("UPDATE tags SET revision = 2 WHERE name = 'trunk'"), "tag trunk", "published"
    ),
    "history without tags": Fault(history("DELETE FROM tags"), "history", "branch '' has no tag"),
    "unused branch": Fault(
        history("INSERT INTO branches VALUES ('b', '', 1)"), "history", "branch 'b' has no tag"
    ),
    "branch without parent": Fault(
        history(
            "INSERT INTO branches VALUES ('b', 'nowhere', 1);"
            "UPDATE tags SET branch = 'b' WHERE name = 'first'"
        ),
        "history",
        "'nowhere'",
    ),
    "tag on no branch": Fault(
        history("UPDATE tags SET branch = 'b' WHERE name = 'first'"), "tag first", "branch 'b'"
    ),
    "tag before its branch": Fault(
        history("UPDATE branches SET initial_revision = 2"), "tag generic", "starts at 2"
    ),
    "tag with NULL text": Fault(
        history("UPDATE tags SET description = NULL WHERE name = 'first'"), "tag first", "NULL"
    ),
    "tag with NULL name": Fault(
        history("UPDATE tags SET name = NULL WHERE name = 'first'"), "tag None", "NULL"
    ),
    "tag with NULL hash": Fault(
        history("UPDATE tags SET hash = NULL WHERE name = 'first'"), "tag first", "NULL"
    ),
    "tag with NULL branch": Fault(
        history("UPDATE tags SET branch = NULL WHERE name = 'first'"), "tag first", "NULL"
    ),
    "tag with malformed hash": Fault(
        history("UPDATE tags SET hash = 'abc' WHERE name = 'first'"), "tag first", "'abc'"
    ),
    "tag with NULL revision": Fault(
        history("UPDATE tags SET revision = NULL WHERE name = 'first'"), "tag first", "no number"
    ),
    "trunk-previous after trunk": Fault(
        history(
            "UPDATE tags SET revision = 9 WHERE name = 'trunk-previous'",
        ),
        "tag trunk-previous",
        "revision 9",
    ),
    "recycle bin in use": Fault(
        history(f"INSERT INTO recycle_bin VALUES ('{'1' * 40}$ALG', 0)"),
        "history",
        "recycle_bin has 1",
        WARNING,
    ),
    "default branch missing": Fault(
        history("UPDATE tags SET branch = 'b';UPDATE branches SET branch = 'b', parent = 'b'"),
        "history",
        "default branch",
    ),
    "tag with invalid name": Fault(
        history("UPDATE tags SET name = 'a b' WHERE name = 'first'"), "tag a b", "invalid name"
    ),
    "tag without catalog": Fault(dangling_tag, "tag gone", "missing"),
    "tag of a nested catalog": Fault(tag_of_nested, "tag low", "not of the root"),
    "tag revision": Fault(
        history("UPDATE tags SET revision = 1 WHERE name = 'first'"), "tag first", "revision 1"
    ),
    "tag size": Fault(
        history("UPDATE tags SET size = 1 WHERE name = 'first'"), "tag first", "1 bytes"
    ),
    "tag time": Fault(
        history("UPDATE tags SET timestamp = 1 WHERE name = 'first'"),
        "tag first",
        "time 1",
        WARNING,
    ),
    "tag channel": Fault(
        history("UPDATE tags SET channel = 4 WHERE name = 'first'"), "tag first", "channel", WARNING
    ),
    # the object store
    "stray file below data": Fault(write("data/README"), "data/README", "belong", scrub=True),
    "stray directory below data": Fault(
        write("data/abc/x"), "data/abc", "does not belong", scrub=True
    ),
    "stray file beside objects": Fault(
        write("data/ab/notes.txt"), "data/ab/notes.txt", "not the name", scrub=True
    ),
    "object of unknown kind": Fault(
        write("data/ab/" + "0" * 38 + "Q"), "data/ab/" + "0" * 38 + "Q", "not the name", scrub=True
    ),
    "directory beside objects": Fault(
        directory_object, "data/ab/" + "0" * 38, "no regular file", scrub=True
    ),
    "symbolic link beside objects": Fault(
        link_object, "data/ab/" + "0" * 38, "no regular file", scrub=True
    ),
    "leftover in txn": Fault(
        write("data/txn/cvmfs-publish-1-0"), "data/txn/", "left over", WARNING, scrub=True
    ),
    "damaged object of an old revision": Fault(
        flip_stored, "data/", "damaged: its hash is", scrub=True
    ),
    "object under a wrong name": Fault(
        write("data/ab/" + "0" * 38), "data/ab/" + "0" * 38, "damaged", scrub=True
    ),
    "object of another kind's bytes": Fault(
        write("data/ab/" + "0" * 38 + "C"), "data/ab/" + "0" * 38 + "C", "damaged", scrub=True
    ),
    "upper-case name of an object": Fault(
        write("data/ab/" + "A" * 38), "data/ab/" + "A" * 38, "not the name", scrub=True
    ),
}


# The rows of Appendix B.2, and below them what section 7 says that stock check does not see.
ROWS: dict[str, str] = {
    "self or subtree counter": "self counter off by one, subtree counter off by one, "
    "nested self counter off by one, nested subtree counter off by one",
    "counter row missing": "counter missing",
    "nested size 0 / wrong": "nested size 0, nested size wrong",
    "nested_catalogs row missing": "nested row missing",
    "marker missing": "marker missing",
    "directory/root linkcount": "directory linkcount, root linkcount",
    "transition rows": "transition linkcount, transition mtime, transition nanoseconds, "
    "transition mode, transition size",
    "transition uid": "transition uid, transition gid",
    "dangling row": "dangling row",
    "symlink with hash": "symlink with hash",
    "fifo size": "fifo size",
    "hard links": "group with too few members, group of three with two members, "
    "group with different metadata, linkcount without group, linkcount 0",
    "chunks": "chunk gap, last chunk missing, last chunk missing and still counted, no chunks",
    "object missing / hash NULL": "object missing, chunk object missing, hash NULL",
    "file size wrong": "file size too large, file size too small, file size 0",
    "nested root and mountpoint flags": "nested root flag missing, mountpoint flag missing",
    "root_prefix": "root prefix missing, root prefix wrong",
    "properties and schema": "last_modified missing, TTL missing, revision missing, "
    "schema revision 6, schema revision 8",
    "xattr blobs": "xattr of unknown version, xattr count 0, xattr cut, xattr unsorted, "
    "xattr that is not counted",
    "NULL text": "symlink NULL, name NULL",
    "flags": "flags 8 on a symlink, flags 16 on a fifo, flags 0 on a file",
    "hash bits": "unknown hash algorithm",
    "WAL, table": "write-ahead-log header, history with a write-ahead-log header, "
    "reflog with a write-ahead-log header, table missing",
    "NULL in tags": "tag with NULL text, tag with NULL name, tag with NULL hash, "
    "tag with NULL branch",
    "reflog schema; no X": "reflog schema, manifest without X",
    "directory size 0": "directory size 0 in all rows",
    "direct I/O; bind": "direct I/O on a symlink, bind flag without row",
    # section 7
    "symlink size": "symlink size",
    "S, X, M, N": "manifest S, manifest S below the root's, certificate of level 1, "
    "certificate of level 9, metainfo of level 1, metainfo of level 9, "
    "manifest of another repository",
    "marker in /": "marker in the root directory",
    "path keys": "path key of a file, path key of a symlink, path key of a special file, "
    "root row parent key, nested root row parent key",
    "names and ranges": "name with slash, owner out of range, group out of range, "
    "nanoseconds out of range",
    "unknown bits": "unknown flag bit, unknown compression",
    "group across directories": "group in two directories",
    "targets": "target on a file, target on a fifo, symlink without target",
    "leftover rows": "chunks of no file, extra counter",
    "structure": "column order, index missing, primary key missing, row id 0, "
    "root row is not the first",
    "manifest": "manifest T in the future, manifest T too early, manifest field repeated, "
    "manifest with trailing blank, manifest G, manifest A, metainfo is no JSON",
    "history": "history fqrn, history without previous revision, "
    "history with a dangling predecessor, history without trunk, stale trunk, "
    "tag without catalog, tag of a nested catalog, tag revision, tag size, "
    "tag with invalid name, branch without parent",
    "reflog": "reflog fqrn, reflog malformed hash, reflog unknown type, "
    "reflog entry without object",
    "whitelist": "whitelist with a malformed line",
    "nested root flag elsewhere": "nested root flag on an ordinary directory",
}


def test_every_row_of_the_format_has_its_fault() -> None:
    named = {name for names in ROWS.values() for name in names.split(", ")}
    assert named <= FAULTS.keys()


# The vectors in shake128 and what we write are judged where time does not matter.
KINDS = (
    SHA1,
    pytest.param(SHAKE, marks=pytest.mark.slow),
    pytest.param(OURS, marks=pytest.mark.slow),
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAULTS)
def test_check_names_place_and_fault(name: str, kind: str, tmp_path: Path) -> None:
    fault, repository = FAULTS[name], Subject(tmp_path, kind)
    fault.damage(repository)

    report = repository.check(now=fault.now, scrub=fault.scrub)

    found = [
        problem
        for problem in report.problems
        if problem.place.startswith(fault.place)
        and fault.text in problem.text
        and problem.severity is fault.severity
    ]
    assert found, "\n".join(map(str, report.problems))
    assert report.ok == (fault.severity is WARNING), report.errors
    verdict = _judge(repository, fault)
    agrees = (verdict.errors > 0) == (not report.ok)
    assert agrees == (not fault.differs), verdict.output


def _judge(repository: Subject, fault: Fault) -> Verdict:
    options = ["--scrub"] if fault.scrub else [] if fault.contents else ["--no-data"]
    return judge(repository, *options, now=fault.now)


# section B.1: what every client accepts
HARMLESS: dict[str, Callable[[Subject], object]] = {
    "without H": without(b"H"),
    "without M": without(b"M"),
    "without H and M": without(b"HM"),
    "without B": without(b"B"),
    "without T": without(b"T"),
    "without G and A": without(b"GA"),
    "reversed, with unknown fields": manifest_text(
        lambda text: b"".join([b"Zx\n", *reversed(text.splitlines(keepends=True)), b"Ky\n"])
    ),
    "no nested previous_revision": both(
        no_property("previous_revision", "/nested"),
        no_property("previous_revision", "/nested/inner"),
    ),
    "previous root collected": set_property("previous_revision", "4" * 40 + "$ALG"),
    "whitelist valid until the next hour": lambda r: r.set_time(lambda now: now.replace(hour=21)),
    "whitelist with comments": whitelist_text(
        lambda text: text.replace(b"\n", b" # ours\n").replace(b" # ours", b"", 3)
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HARMLESS)
def test_what_every_client_accepts_is_no_error(name: str, kind: str, tmp_path: Path) -> None:
    repository = Subject(tmp_path, kind)
    HARMLESS[name](repository)
    report = repository.check()
    assert report.errors == []
    verdict = judge(repository, "--no-data")
    assert verdict.errors == 0, verdict.output
