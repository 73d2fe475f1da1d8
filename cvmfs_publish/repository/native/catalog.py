"""Turn directory entries into rows of a CernVM-FS catalog (a SQLite database) and back.

Source: facts/cvmfs-format.md section 3 (catalog_sql.cc, directory_entry.h, xattr.cc), schema 2.5
revision 7.  A catalog lives in memory here; it is stored compressed, as an object with suffix C.
"""

from __future__ import annotations

import hashlib
import sqlite3
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm
from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.layers.tree import (
    Chunk,
    Content,
    Node,
    RepoPath,
    decode_name,
    encode_name,
)
from cvmfs_publish.repository.native import upgrade
from cvmfs_publish.repository.native.database import open_database, query
from cvmfs_publish.repository.native.manifest import DEFAULT_TTL

SCHEMA = upgrade.CATALOG_SCHEMA
SCHEMA_REVISION = str(upgrade.CATALOG_REVISION)
DIRECTORY_SIZE = 4096  # bytes, by convention; must agree in both rows of a transition
MARKER = ".cvmfscatalog"  # the empty file in the root directory of every nested catalog
MAX_MODE = 0o177777  # the bits of st_mode

# section 3.6
FLAG_DIR = 0x1
FLAG_MOUNTPOINT = 0x2  # root of a nested catalog, row in the parent
FLAG_FILE = 0x4
FLAG_LINK = 0x8
FLAG_SPECIAL = 0x10
FLAG_NESTED_ROOT = 0x20  # root of a nested catalog, row in the child
FLAG_CHUNKED = 0x40
FLAG_EXTERNAL = 0x80
FLAG_HASH_BITS = 0x700
FLAG_COMPRESSION_BITS = 0x3800  # 0: zlib, 0x800: none
FLAG_UNCOMPRESSED = 0x800
FLAG_BIND = 0x4000
FLAG_HIDDEN = 0x8000
FLAG_DIRECT_IO = 0x10000
_ALGORITHMS = {0: HashAlgorithm.SHA1, 0x100: HashAlgorithm.RMD160, 0x200: HashAlgorithm.SHAKE128}

COUNTERS = (
    "regular",
    "symlink",
    "special",
    "dir",
    "nested",
    "chunked",
    "chunks",
    "file_size",
    "chunked_size",
    "xattr",
    "external",
    "external_file_size",
)

# Column order matters to stock merge operations (section 3.2).
_TABLES = """
CREATE TABLE properties (key TEXT, value TEXT, CONSTRAINT pk_properties PRIMARY KEY (key));
CREATE TABLE catalog (md5path_1 INTEGER, md5path_2 INTEGER, parent_1 INTEGER, parent_2 INTEGER,
  hardlinks INTEGER, hash BLOB, size INTEGER, mode INTEGER, mtime INTEGER, mtimens INTEGER,
  flags INTEGER, name TEXT, symlink TEXT, uid INTEGER, gid INTEGER, xattr BLOB,
  CONSTRAINT pk_catalog PRIMARY KEY (md5path_1, md5path_2));
CREATE INDEX idx_catalog_parent ON catalog (parent_1, parent_2);
CREATE TABLE chunks (md5path_1 INTEGER, md5path_2 INTEGER, offset INTEGER, size INTEGER, hash BLOB,
  CONSTRAINT pk_chunks PRIMARY KEY (md5path_1, md5path_2, offset, size),
  FOREIGN KEY (md5path_1, md5path_2) REFERENCES catalog (md5path_1, md5path_2));
CREATE TABLE nested_catalogs (path TEXT, sha1 TEXT, size INTEGER,
  CONSTRAINT pk_nested_catalogs PRIMARY KEY (path));
CREATE TABLE bind_mountpoints (path TEXT, sha1 TEXT, size INTEGER,
  CONSTRAINT pk_bind_mountpoints PRIMARY KEY (path));
CREATE TABLE statistics (counter TEXT, value INTEGER,
  CONSTRAINT pk_statistics PRIMARY KEY (counter));
"""
_COLUMNS = {
    "catalog": "md5path_1, md5path_2, parent_1, parent_2, hardlinks, hash, size, mode, mtime, "
    "mtimens, flags, name, symlink, uid, gid, xattr",
    "chunks": "md5path_1, md5path_2, offset, size, hash",
    "properties": "key, value",
    "nested_catalogs": "path, sha1, size",
    "bind_mountpoints": "path, sha1, size",
    "statistics": "counter, value",
}
ROOT_ROW = 1  # the row id of the root of the repository in the root catalog
# Names and targets are bytes; SQLite keeps them as TEXT only if told so.
_INSERT_ENTRY = (
    f"INSERT OR REPLACE INTO catalog ({_COLUMNS['catalog']}) "  # noqa: S608 - constants
    "VALUES (?,?,?,?,?,?,?,?,?,?,?,CAST(? AS TEXT),CAST(? AS TEXT),?,?,?)"
)
_SELECT_ENTRY = (
    "SELECT md5path_1, md5path_2, hardlinks, hash, size, mode, mtime, {mtimens}, flags, "
    "CAST(name AS BLOB), CAST(symlink AS BLOB), uid, gid, {xattr} FROM catalog "
)
_PATH_KEY = struct.Struct("<qq")

Counters = dict[str, int]


class Row(NamedTuple):
    """One entry of a catalog."""

    path: RepoPath
    node: Node
    flags: int
    hardlinks: int = 1  # (group << 32) | linkcount; of a directory 2 + its sub-directories

    @property
    def linkcount(self) -> int:
        return self.hardlinks & 0xFFFFFFFF

    @property
    def is_mountpoint(self) -> bool:
        """Whether what is below this directory is in a nested catalog."""
        return bool(self.flags & FLAG_MOUNTPOINT)


@dataclass(frozen=True, slots=True)
class CatalogRef:
    """What a parent (or the manifest) knows of a catalog."""

    hash: ContentHash
    size: int  # bytes of the uncompressed database file; 0 means unknown


def path_key(path: RepoPath) -> tuple[int, int]:
    """Return the key of a path: its MD5 as two signed little-endian numbers (section 3.4)."""
    text = b"/" + encode_name(path) if path else b""
    first, second = _PATH_KEY.unpack(hashlib.md5(text, usedforsecurity=False).digest())
    return first, second


def split_path(path: RepoPath) -> tuple[RepoPath, str]:
    """Return the parent's path and the last component of a path that is not the root."""
    parent, _, name = path.rpartition("/")
    return parent, name


def join_path(parent: RepoPath, name: str) -> RepoPath:
    return f"{parent}/{name}" if parent else name


def encode_xattrs(xattrs: Iterable[tuple[str, bytes]]) -> bytes | None:
    """Return the blob of section 3.8, None for none.  Names and values have at most 255 bytes."""
    pairs = sorted((encode_name(name), value) for name, value in xattrs)
    if not pairs:
        return None
    blob = bytearray((1, len(pairs)))
    for name, value in pairs:
        blob += bytes((len(name), len(value))) + name + value
    return bytes(blob)


def decode_xattrs(blob: bytes | None) -> tuple[tuple[str, bytes], ...]:
    """Undo `encode_xattrs`; raise `IntegrityError` on anything that function would not write."""
    if blob is None:
        return ()
    try:
        version, count = blob[0], blob[1]
        position, pairs = 2, []
        for _ in range(count):
            name_size, value_size = blob[position], blob[position + 1]
            start = position + 2
            position = start + name_size + value_size
            pairs.append(
                (decode_name(blob[start : start + name_size]), blob[start + name_size : position])
            )
    except IndexError:
        raise IntegrityError("extended attributes are cut short") from None
    result = tuple(pairs)
    if version != 1 or position != len(blob) or encode_xattrs(result) != blob:
        raise IntegrityError("malformed extended attributes")
    return result


def count_row(row: Row) -> Iterator[tuple[str, int]]:
    """Yield what one entry adds to the `self_` counters of its catalog (section 3.10)."""
    node = row.node
    kind = stat.S_IFMT(node.mode)
    if node.xattrs:
        yield "xattr", 1
    if kind == stat.S_IFDIR:
        yield "dir", 1
    elif kind == stat.S_IFLNK:
        yield "symlink", 1
    elif kind != stat.S_IFREG:
        yield "special", 1
    else:
        yield "regular", 1
        yield "file_size", node.size
        if row.flags & FLAG_CHUNKED:
            yield "chunked", 1
            yield "chunked_size", node.size
            yield "chunks", len(node.content.chunks) if node.content is not None else 0
        if row.flags & FLAG_EXTERNAL:
            yield "external", 1
            yield "external_file_size", node.size


def kind_flags(node: Node) -> int:
    """Return the flags that follow from an entry's kind and content (table of section 3.5)."""
    kind = stat.S_IFMT(node.mode)
    if kind == stat.S_IFDIR:
        return FLAG_DIR
    if kind == stat.S_IFLNK:
        return FLAG_FILE | FLAG_LINK
    if kind != stat.S_IFREG:
        return FLAG_FILE | FLAG_SPECIAL
    content = node.content
    if content is None:
        return FLAG_FILE
    flags = FLAG_FILE if content.compressed else FLAG_FILE | FLAG_UNCOMPRESSED
    if content.chunks:
        return flags | FLAG_CHUNKED | content.chunks[0].hash.algorithm.flags
    return flags | (content.hash.algorithm.flags if content.hash else 0)


def _encode(row: Row, name: str, parent_key: tuple[int, int]) -> tuple[object, ...]:
    path, node, flags, hardlinks = row
    mode, uid, gid, mtime, mtime_ns, size, target, device, xattrs, content = node
    kind = mode & 0o170000
    if kind == stat.S_IFDIR:
        size = DIRECTORY_SIZE
    elif kind == stat.S_IFLNK:
        size = len(encode_name(target))
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        size = device
    return (
        *path_key(path),
        *parent_key,
        hardlinks,
        content.hash.digest if content is not None and content.hash is not None else None,
        size,
        mode,
        mtime,
        mtime_ns or None,
        flags,
        encode_name(name),
        encode_name(target) if target else b"",
        uid,
        gid,
        encode_xattrs(xattrs) if xattrs else None,
    )


class Catalog:
    """An open catalog.  Not for several threads at once."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self.database = database
        self._use_schema(upgrade.CATALOG_REVISION)

    def _use_schema(self, revision: int) -> None:
        """Read what catalogs of a schema revision have; the rest is as good as empty."""
        self._schema = revision
        self._select = _SELECT_ENTRY.format(
            mtimens="mtimens" if revision >= upgrade.MTIME_NS_SINCE else "NULL",
            xattr="xattr" if revision >= upgrade.XATTR_SINCE else "NULL",
        )

    @classmethod
    def create(cls, prefix: RepoPath, *, page_size: int = 1024) -> Catalog:
        """Return an empty catalog for the subtree at `prefix`, at revision 0, without any entry."""
        database = sqlite3.connect(":memory:", isolation_level=None)
        database.execute(f"PRAGMA page_size = {page_size:d}")
        database.executescript(_TABLES)
        catalog = cls(database)
        catalog.set_property("schema", SCHEMA)
        catalog.set_property("schema_revision", SCHEMA_REVISION)
        catalog.set_property("revision", 0)
        if prefix:
            catalog.set_property("root_prefix", "/" + prefix)
        else:
            catalog.set_property("TTL", DEFAULT_TTL)
        return catalog

    @classmethod
    def open(cls, data: bytes) -> Catalog:
        """Open a decompressed catalog file.

        Raises:
            IntegrityError: it is no SQLite database, or one that clients cannot open.
        """
        catalog = cls(open_database(data, "catalog"))
        try:
            text = catalog.get_property("schema_revision") or "0"
        except IntegrityError:
            catalog.close()
            raise
        if len(text) == 1 and text.isdecimal():
            catalog._use_schema(int(text))
        return catalog

    def upgrade(self, what: str) -> int:
        """Bring a catalog of an older server up to date; return the schema revision it had.

        Raises:
            RepositoryError: this version cannot write it; `what` names it in the message.
        """
        found = upgrade.upgrade_catalog(
            self._rows, what, self.get_property("schema"), self.get_property("schema_revision")
        )
        self._use_schema(upgrade.CATALOG_REVISION)
        return found

    def close(self) -> None:
        self.database.close()

    def __enter__(self) -> Catalog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # properties

    def get_property(self, key: str) -> str | None:
        found = self._rows("SELECT CAST(value AS BLOB) FROM properties WHERE key = ?", key)
        return decode_name(found[0][0] or b"") if found else None

    def set_property(self, key: str, value: object) -> None:
        # As bytes: `root_prefix` is a path and need not be UTF-8.
        self.database.execute(
            "INSERT OR REPLACE INTO properties (key, value) VALUES (?, CAST(? AS TEXT))",
            (key, encode_name(str(value))),
        )

    def delete_property(self, key: str) -> None:
        self.database.execute("DELETE FROM properties WHERE key = ?", (key,))

    @property
    def revision(self) -> int:
        return self._number("revision")

    @property
    def last_modified(self) -> int:
        return self._number("last_modified")

    def _number(self, key: str) -> int:
        text = self.get_property(key) or "0"
        if not text.isdecimal():
            raise IntegrityError(f"catalog property {key} is {text!r}, not a number")
        return int(text)

    @property
    def prefix(self) -> RepoPath:
        """The path of the directory this catalog describes, "" for the root catalog."""
        return (self.get_property("root_prefix") or "").removeprefix("/")

    # entries

    def put(self, rows: Iterable[Row]) -> None:
        """Write rows in the given order; a row of the same path is replaced, chunks included."""
        chunks: list[tuple[object, ...]] = []
        keys: list[tuple[int, int]] = []  # of rows that may replace one with chunks
        has_chunks = bool(self._rows("SELECT EXISTS (SELECT 1 FROM chunks)")[0][0])

        def encoded() -> Iterator[tuple[object, ...]]:
            parent, parent_key = "", path_key("")  # rows come directory by directory
            for row in rows:
                above, name = split_path(row.path)
                if above != parent:
                    parent, parent_key = above, path_key(above)
                content = row.node.content
                if has_chunks:
                    keys.append(path_key(row.path))
                if content is not None and content.chunks:
                    key = path_key(row.path)
                    chunks.extend((*key, c.offset, c.size, c.hash.digest) for c in content.chunks)
                yield _encode(row, name, parent_key if row.path else (0, 0))

        self.database.execute("BEGIN")
        self.database.executemany(_INSERT_ENTRY, encoded())
        self.database.executemany(
            "DELETE FROM chunks WHERE md5path_1 = ? AND md5path_2 = ?",
            keys,
        )
        self.database.executemany(
            f"INSERT INTO chunks ({_COLUMNS['chunks']}) VALUES (?,?,?,?,?)",  # noqa: S608 - constants
            chunks,
        )
        self.database.execute("COMMIT")

    def get(self, path: RepoPath) -> Row | None:
        """Return the row of exactly this path, if it is in this catalog."""
        found = self._rows(self._select + "WHERE md5path_1 = ? AND md5path_2 = ?", *path_key(path))
        return self._decode(found[0], split_path(path)[0] if path else None) if found else None

    def children(self, path: RepoPath) -> list[Row]:
        """Return the rows directly below a directory, in the byte order of their names."""
        found = self._rows(
            self._select + "WHERE parent_1 = ? AND parent_2 = ? ORDER BY CAST(name AS BLOB)",
            *path_key(path),
        )
        return [self._decode(values, path) for values in found]

    def remove(self, path: RepoPath) -> None:
        """Remove the row of one path and its chunks; nothing below it."""
        key = path_key(path)
        for table in ("chunks", "catalog"):
            self.database.execute(
                f"DELETE FROM {table} WHERE md5path_1 = ? AND md5path_2 = ?",  # noqa: S608 - constants
                key,
            )

    def _decode(self, values: tuple[Any, ...], parent: RepoPath | None) -> Row:
        """Turn the columns of `_SELECT_ENTRY` into a row; `parent` None: it is the root's row."""
        (
            key_1,
            key_2,
            hardlinks,
            digest,
            size,
            mode,
            mtime,
            mtimens,
            flags,
            name,
            target,
            uid,
            gid,
        ) = values[:13]
        numbers = (hardlinks, size, mode, mtime, flags, uid, gid)
        if not all(isinstance(number, int) for number in numbers) or not isinstance(name, bytes):
            raise IntegrityError(f"malformed row below /{parent or ''}")
        if not 0 <= mode <= MAX_MODE:
            raise IntegrityError(f"impossible mode {mode} below /{parent or ''}")
        mode, flags, size = int(mode), int(flags), int(size)
        path = "" if parent is None else join_path(parent, decode_name(name))
        xattr = values[13]
        if xattr is not None and not isinstance(xattr, bytes):
            raise IntegrityError(f"malformed extended attributes of /{path}")
        is_device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
        node = Node(
            mode=mode,
            uid=int(uid),
            gid=int(gid),
            mtime=int(mtime),
            mtime_ns=int(mtimens or 0),
            size=size if stat.S_ISREG(mode) else 0,
            target=decode_name(target) if isinstance(target, bytes) else "",
            device=size if is_device else 0,
            xattrs=decode_xattrs(xattr),
            content=self._content(path, (key_1, key_2), digest, flags)
            if stat.S_ISREG(mode)
            else None,
        )
        return Row(path, node, flags, int(hardlinks))

    def _content(
        self, path: RepoPath, key: tuple[object, object], digest: object, flags: int
    ) -> Content | None:
        algorithm = _ALGORITHMS.get(flags & FLAG_HASH_BITS)
        if algorithm is None:
            raise IntegrityError(f"unknown hash algorithm in the flags of /{path}")
        bulk = ContentHash(digest, algorithm) if isinstance(digest, bytes) else None
        compressed = flags & FLAG_COMPRESSION_BITS != FLAG_UNCOMPRESSED
        if not flags & FLAG_CHUNKED:
            return Content(bulk, (), compressed) if bulk else None
        rows = self._rows(
            "SELECT offset, size, hash FROM chunks WHERE md5path_1 = ? AND md5path_2 = ? "
            "ORDER BY offset",
            *key,
        )
        if not all(
            isinstance(offset, int) and isinstance(size, int) and isinstance(digest, bytes)
            for offset, size, digest in rows
        ):
            raise IntegrityError(f"malformed chunk of /{path}")
        chunks = tuple(Chunk(o, s, ContentHash(h, algorithm)) for o, s, h in rows)
        return Content(bulk, chunks, compressed)

    # nested catalogs

    def nested(self) -> dict[RepoPath, CatalogRef]:
        """Return the catalogs mounted directly below this one, by the path of their root."""
        size = "size" if self._schema >= upgrade.NESTED_SIZE_SINCE else "0"
        found = self._rows(
            f"SELECT CAST(path AS BLOB), sha1, {size} "  # noqa: S608 - constants
            "FROM nested_catalogs ORDER BY rowid"
        )
        return {
            decode_name(path).removeprefix("/"): CatalogRef(
                ContentHash.parse(str(text)), int(size or 0)
            )
            for path, text, size in found
        }

    def set_nested(self, path: RepoPath, ref: CatalogRef) -> None:
        self.database.execute(
            "INSERT OR REPLACE INTO nested_catalogs (path, sha1, size) "
            "VALUES (CAST(? AS TEXT), ?, ?)",
            (b"/" + encode_name(path), str(ref.hash), ref.size),
        )

    def remove_nested(self, path: RepoPath) -> None:
        self.database.execute(
            "DELETE FROM nested_catalogs WHERE path = CAST(? AS TEXT)", (b"/" + encode_name(path),)
        )

    # counters

    def stored_counters(self) -> tuple[Counters, Counters]:
        """Return the stored `self_` and `subtree_` counters, without the prefix.

        Raises:
            IntegrityError: one of the 24 is missing, which clients forgive only where the
                catalog is older than the counter.
        """
        stored: dict[str, Any] = {
            f"{scope}_{name}": 0
            for name, since in upgrade.COUNTER_SINCE.items()
            for scope in ("self", "subtree")
            if self._schema < since
        }
        stored.update((str(k), v) for k, v in self._rows("SELECT counter, value FROM statistics"))
        try:
            own = {name: int(stored[f"self_{name}"]) for name in COUNTERS}
            below = {name: int(stored[f"subtree_{name}"]) for name in COUNTERS}
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(f"statistics counter missing or malformed: {error}") from error
        return own, below

    def total_counters(self) -> Counters:
        """Return what this catalog adds to the `subtree_` counters of its parent."""
        own, below = self.stored_counters()
        return {name: own[name] + below[name] for name in COUNTERS}

    def count_own(self) -> Counters:
        """Count this catalog's own entries afresh (section 3.10)."""
        regular, external = "(mode & 61440 = 32768)", "(flags & 128 != 0)"
        chunked = "(flags & 64 != 0)"
        found = self._rows(
            f"SELECT SUM({regular}), SUM(mode & 61440 = 40960), "  # noqa: S608 - constants
            "SUM(mode & 61440 IN (4096, 8192, 24576, 49152)), SUM(mode & 61440 = 16384), "
            "(SELECT COUNT(*) FROM nested_catalogs), "
            f"SUM({chunked}), (SELECT COUNT(*) FROM chunks), SUM({regular} * size), "
            f"SUM({chunked} * size), SUM(xattr IS NOT NULL), SUM({external}), "
            f"SUM({external} * size) FROM catalog"
        )
        return {name: int(value or 0) for name, value in zip(COUNTERS, found[0], strict=True)}

    def count_special(self) -> int:
        """Count this catalog's own special files, in a catalog of any age."""
        found = self._rows(
            "SELECT COUNT(*) FROM catalog WHERE mode & 61440 IN (4096, 8192, 24576, 49152)"
        )
        return int(found[0][0])

    def set_counters(self, own: Mapping[str, int], below: Mapping[str, int]) -> None:
        values = [(f"self_{name}", own[name]) for name in COUNTERS]
        values += [(f"subtree_{name}", below[name]) for name in COUNTERS]
        self.database.executemany(
            "INSERT OR REPLACE INTO statistics (counter, value) VALUES (?, ?)", values
        )

    # the file

    def count(self) -> int:
        """Return the number of rows."""
        return int(self._rows("SELECT COUNT(*) FROM catalog")[0][0])

    def serialize(self) -> bytes:
        """Return the database file, uncompressed; compacted when edits left too many gaps."""
        if not self.prefix:
            self._lead_with_root()
        count, top = self._rows("SELECT COUNT(*), MAX(rowid) FROM catalog")[0]
        free, pages = (
            self._rows("PRAGMA freelist_count")[0][0],
            self._rows("PRAGMA page_count")[0][0],
        )
        # Clients reserve an inode for every row id and download free pages too; stock compacts
        # at 25 % and 20 % (section 3.1).
        if 4 * (int(top or 0) - int(count)) > int(top or 0) or 5 * int(free) > int(pages):
            self._compact()
        return bytes(self.database.serialize())

    def _lead_with_root(self) -> None:
        """Give the row of the repository's root row id 1, and who had it the other's.

        A client's inodes are row ids and an offset, but the root's is always the first: whatever
        else has row id 1 in the root catalog is shown as the root (seen with client 2.12).
        """
        where = "WHERE md5path_1 = ? AND md5path_2 = ?"
        for (found,) in self._rows(f"SELECT rowid FROM catalog {where}", *path_key("")):  # noqa: S608 - constants
            if found != ROOT_ROW:
                update = "UPDATE catalog SET rowid = ? WHERE rowid = ?"
                moves = ((0, ROOT_ROW), (ROOT_ROW, found), (found, 0))
                self.database.executemany(update, moves)

    def _compact(self) -> None:
        """Copy every row into a fresh database: SQLite has no VACUUM for databases in memory."""
        page_size = int(self._rows("PRAGMA page_size")[0][0])
        fresh = sqlite3.connect(":memory:", isolation_level=None)
        fresh.execute(f"PRAGMA page_size = {page_size:d}")
        fresh.executescript(_TABLES)
        fresh.execute("BEGIN")
        for table, columns in _COLUMNS.items():
            texts = {"name", "symlink", "path", "key", "value", "sha1", "counter"}
            names = columns.split(", ")
            select = ", ".join(f"CAST({n} AS BLOB)" if n in texts else n for n in names)
            marks = ", ".join("CAST(? AS TEXT)" if n in texts else "?" for n in names)
            fresh.executemany(
                f"INSERT INTO {table} ({columns}) VALUES ({marks})",  # noqa: S608 - constants
                self.database.execute(f"SELECT {select} FROM {table} ORDER BY rowid"),  # noqa: S608
            )
        fresh.execute("COMMIT")
        self.database.close()
        self.database = fresh

    def _rows(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        return query(self.database, "catalog", sql, *parameters)
