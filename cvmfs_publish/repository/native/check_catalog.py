"""Examine one catalog, row by row, for everything clients and other programs could stumble over.

Source: facts/cvmfs-format.md sections 3, 7 and B.2.  The rows are read as they are, not through
`Catalog`, which refuses damaged ones: here each fault is a problem to report.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cvmfs_publish.content.hashes import DIGEST_BYTES, ContentHash, HashAlgorithm, Suffix
from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.repository.native.catalog import (
    COUNTERS,
    FLAG_BIND,
    FLAG_CHUNKED,
    FLAG_COMPRESSION_BITS,
    FLAG_DIR,
    FLAG_DIRECT_IO,
    FLAG_EXTERNAL,
    FLAG_FILE,
    FLAG_HASH_BITS,
    FLAG_HIDDEN,
    FLAG_LINK,
    FLAG_MOUNTPOINT,
    FLAG_NESTED_ROOT,
    FLAG_SPECIAL,
    FLAG_UNCOMPRESSED,
    MARKER,
    ROOT_ROW,
    CatalogRef,
    Counters,
    decode_xattrs,
)
from cvmfs_publish.repository.native.check_schema import (
    SCHEMA_REVISION,
    SINCE,
    SchemaExamination,
    open_catalog,
)
from cvmfs_publish.repository.native.database import query
from cvmfs_publish.repository.native.problems import Report
from cvmfs_publish.repository.native.upgrade import NESTED_SIZE_SINCE

MAX_NAME_BYTES = 255  # NAME_MAX on Linux
MAX_TARGET_BYTES = 4095  # a longer link target cannot be read by clients
_MAX_ID = 2**32 - 1
_MAX_MODE = 2**32 - 1
_NO_HASH = bytes(DIGEST_BYTES)
_KNOWN_FLAGS = 0x1FFFF
_KIND_FLAGS = FLAG_DIR | FLAG_FILE | FLAG_LINK | FLAG_SPECIAL
_MARKER = os.fsencode(MARKER)
_PATH_KEY = struct.Struct("<qq")
_ALGORITHMS = {0: HashAlgorithm.SHA1, 0x100: HashAlgorithm.RMD160, 0x200: HashAlgorithm.SHAKE128}

_COUNTERS_SINCE = {"xattr": 2, "external": 3, "external_file_size": 3, "special": 5}

# columns of `Entry`: without these a row has no place in the tree
_PLACING = {"key_1", "key_2", "parent_1", "parent_2", "mode", "flags", "name"}
_TYPES: dict[str, type] = {
    **dict.fromkeys(("rowid", "key_1", "key_2", "parent_1", "parent_2", "hardlinks", "size"), int),
    **dict.fromkeys(("mode", "mtime", "flags", "uid", "gid", "mtimens"), int),
    **dict.fromkeys(("hash", "name", "symlink", "xattr"), bytes),
}
_NEUTRAL: dict[str, Any] = {
    **dict.fromkeys(["size", "mtime", "uid", "gid"], 0),
    "hardlinks": 1,
    "hash": None,
    "mtimens": None,
    "symlink": b"",
    "xattr": None,
}

Key = tuple[int, int]


class Entry(NamedTuple):
    """A row of table `catalog`, its numbers known to be numbers."""

    rowid: int
    key_1: int
    key_2: int
    parent_1: int
    parent_2: int
    hardlinks: int
    size: int
    mode: int
    mtime: int
    flags: int
    uid: int
    gid: int
    hash: bytes | None
    mtimens: int | None
    name: bytes
    symlink: bytes
    xattr: bytes | None

    @property
    def linkcount(self) -> int:
        return self.hardlinks & 0xFFFFFFFF

    @property
    def group(self) -> int:
        return self.hardlinks >> 32


class Claim(NamedTuple):
    """That an object exists and holds so many bytes."""

    hash: ContentHash
    kind: Suffix
    size: int  # uncompressed bytes
    compressed: bool


@dataclass(slots=True)
class Examined:
    """What examining a catalog brought to light, besides problems."""

    root: Entry | None = None
    properties: dict[str, str] = field(default_factory=dict)
    nested: dict[str, tuple[CatalogRef, Entry]] = field(default_factory=dict)  # by RepoPath
    own: Counters = field(default_factory=dict)  # counted
    stored_subtree: dict[str, int] = field(default_factory=dict)
    claims: dict[Claim, str] = field(default_factory=dict)  # with a place to blame
    entries: int = 0


def examine_catalog(data: bytes, prefix: str, report: Report) -> Examined | None:
    """Report every problem inside the catalog of the subtree at RepoPath `prefix`.

    Returns:
        What the caller needs to check the rest, or None if the database cannot be read at all.
    """
    place = "/" + prefix
    try:
        database = open_catalog(data)
    except IntegrityError as error:
        report.error(place, str(error))
        return None
    try:
        return _Examination(database, prefix, report).run()
    except IntegrityError as error:
        report.error(place, str(error))
        return None
    finally:
        database.close()


def path_text(path: bytes) -> str:
    """Return a path as it is shown in problems."""
    return os.fsdecode(path) or "/"


def _key(path: bytes) -> Key:
    first, second = _PATH_KEY.unpack(hashlib.md5(path, usedforsecurity=False).digest())
    return first, second


def _present(digest: bytes | None) -> bool:
    return digest is not None and digest != _NO_HASH


class _Examination:
    """The state while one catalog is examined.  Paths are bytes with a leading slash here."""

    def __init__(self, database: sqlite3.Connection, prefix: str, report: Report) -> None:
        self.database = database
        self.report = report
        self.prefix = b"/" + os.fsencode(prefix) if prefix else b""
        self.place = "/" + prefix
        self.schema_revision = SCHEMA_REVISION
        self.result = Examined()
        self.entries: dict[Key, Entry] = {}
        self.children: dict[Key, list[Entry]] = defaultdict(list)
        self.chunks: dict[Key, list[tuple[int, int, bytes]]] = {}
        self.groups: dict[int, list[tuple[bytes, Entry]]] = defaultdict(list)
        self.mountpoints: dict[bytes, Entry] = {}
        self.binds: dict[bytes, Entry] = {}
        self.counted = dict.fromkeys(COUNTERS, 0)
        self.rare: dict[str, list[str]] = defaultdict(list)  # harmless, possibly very many
        self.malformed: dict[Key, str] = {}
        self.visited = 0

    def run(self) -> Examined | None:
        schema = SchemaExamination(self.database, self.prefix, self.report)
        if not schema.run():
            return None
        self.result.properties = schema.properties
        self.schema_revision = schema.schema_revision
        self.load_entries()
        self.load_chunks()
        self.walk()
        self.check_hardlinks()
        self.check_mounts()
        self.check_leftovers()
        self.check_counters()
        for text, places in self.rare.items():
            more = f" (and {len(places) - 1} more in this catalog)" if len(places) > 1 else ""
            self.report.warning(places[0], text + more)
        return self.result

    def error(self, path: bytes, text: str) -> None:
        self.report.error(path_text(path), text)

    def rows(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        return query(self.database, "catalog", sql, *parameters)

    # rows

    def load_entries(self) -> None:
        optional = {
            name: name if SINCE["catalog", name] <= self.schema_revision else "NULL"
            for name in ("mtimens", "xattr")
        }
        found = self.rows(
            "SELECT rowid, md5path_1, md5path_2, parent_1, parent_2, hardlinks, size, mode, "  # noqa: S608 - constants
            f"mtime, flags, uid, gid, hash, {optional['mtimens']}, CAST(name AS BLOB), "
            f"CAST(symlink AS BLOB), {optional['xattr']}, typeof(name) = 'text', "
            "typeof(symlink) = 'text' FROM catalog"
        )
        self.result.entries = len(found)
        for values in found:
            entry = self.load_entry(values)
            if entry is None:
                continue
            key = entry.key_1, entry.key_2
            if key in self.entries:
                self.error(self.prefix, f"two rows with the key of {path_text(entry.name)!r}")
                continue
            self.entries[key] = entry
            self.children[entry.parent_1, entry.parent_2].append(entry)

    def load_entry(self, values: tuple[Any, ...]) -> Entry | None:
        """Return the row, columns of a wrong type replaced by neutral values and remembered.

        None, and a problem, if the place of the row in the tree cannot be told.
        """
        *columns, name_is_text, symlink_is_text = values
        wrong = {
            column: value
            for column, value in zip(Entry._fields, columns, strict=True)
            if type(value) is not _TYPES[column]
            and not (value is None and column in ("hash", "mtimens", "xattr"))
        }
        for column, is_text in (("name", name_is_text), ("symlink", symlink_is_text)):
            if not is_text:
                wrong.setdefault(column, "a blob")
        entry = Entry(*columns)
        if type(entry.hash) is bytes and len(entry.hash) != DIGEST_BYTES:
            wrong["hash"] = entry.hash
        if type(entry.mode) is int and not 0 <= entry.mode <= _MAX_MODE:
            wrong["mode"] = entry.mode
        if not wrong:
            return entry
        text = "malformed columns: " + ", ".join(
            f"{column} is {'NULL' if value is None else repr(value)}"
            for column, value in wrong.items()
        )
        if wrong.keys() & _PLACING:
            name = os.fsdecode(entry.name) if type(entry.name) is bytes else f"row {entry.rowid}"
            self.report.error(f"{self.place.rstrip('/')}/…/{name}", text)
            return None
        self.malformed[entry.key_1, entry.key_2] = text
        return entry._replace(**{column: _NEUTRAL[column] for column in wrong})

    def load_chunks(self) -> None:
        self.counted["chunks"] = 0
        for key_1, key_2, offset, size, digest in self.rows(
            "SELECT md5path_1, md5path_2, offset, size, hash FROM chunks ORDER BY offset"
        ):
            self.counted["chunks"] += 1
            if (
                type(offset) is not int
                or type(size) is not int
                or type(digest) is not bytes
                or len(digest) != DIGEST_BYTES
                or not _present(digest)
            ):
                entry = self.entries.get((key_1, key_2))
                name = os.fsdecode(entry.name) if entry else "?"
                self.error(self.prefix, f"malformed row in chunks, of {name!r}")
                continue
            self.chunks.setdefault((key_1, key_2), []).append((offset, size, digest))

    # the tree

    def walk(self) -> None:
        root = self.entries.get(_key(self.prefix))
        if root is None:
            self.error(self.prefix, "catalog has no row for its own root directory")
            return
        self.result.root = root
        self.check_root(root)
        stack = [(self.prefix, root)]
        seen = {(root.key_1, root.key_2)}
        while stack:
            path, directory = stack.pop()
            subdirectories = 0
            for child in self.children.get((directory.key_1, directory.key_2), ()):
                key = child.key_1, child.key_2
                if key in seen:
                    continue
                seen.add(key)
                below = path + b"/" + child.name
                self.check_child(below, child)
                if stat.S_ISDIR(child.mode):
                    subdirectories += 1
                    if self.is_leaf(below, child):
                        continue
                    stack.append((below, child))
            if stat.S_ISDIR(directory.mode) and directory.linkcount != subdirectories + 2:
                self.error(
                    path,
                    f"linkcount of the directory is {directory.linkcount}, must be "
                    f"{subdirectories + 2}",
                )
        self.visited = len(seen)
        if self.visited != len(self.entries):
            lost = [entry for key, entry in self.entries.items() if key not in seen]
            for entry in lost[:10]:
                self.error(
                    self.prefix,
                    f"dangling row {entry.rowid}, {os.fsdecode(entry.name)!r}: its parent "
                    "directory is not in this catalog",
                )
            if len(lost) > 10:
                self.error(self.prefix, f"{len(lost) - 10} more dangling rows")

    def is_leaf(self, path: bytes, entry: Entry) -> bool:
        """Whether what is below a directory is in another catalog."""
        if not entry.flags & (FLAG_MOUNTPOINT | FLAG_BIND):
            return False
        if entry.flags & FLAG_MOUNTPOINT:
            self.mountpoints[path] = entry
        if entry.flags & FLAG_BIND:
            self.binds[path] = entry
        below = len(self.children.get((entry.key_1, entry.key_2), ()))
        if below:
            self.error(path, f"mountpoint of a nested catalog, yet {below} rows below it here")
        return True

    def check_root(self, root: Entry) -> None:
        parent, _, name = self.prefix.rpartition(b"/")
        if root.name != name:
            self.error(self.prefix, f"root row is named {os.fsdecode(root.name)!r}")
        if (root.parent_1, root.parent_2) != (_key(parent) if self.prefix else (0, 0)):
            self.error(self.prefix, "root row has a wrong parent key")
        if not stat.S_ISDIR(root.mode):
            self.error(self.prefix, "root row is no directory")
        if self.prefix and not root.flags & FLAG_NESTED_ROOT:
            self.error(self.prefix, "root row of a nested catalog without the nested-root flag")
        if not self.prefix and root.flags & FLAG_NESTED_ROOT:
            self.error(self.prefix, "root row of the repository has the nested-root flag")
        if not self.prefix and root.rowid != ROOT_ROW:
            self.error(
                self.prefix,
                f"root row has row id {root.rowid}, not {ROOT_ROW}: clients show what has"
                f" {ROOT_ROW} as the root (the next publish mends it)",
            )
        if root.flags & (FLAG_MOUNTPOINT | FLAG_BIND):
            self.error(self.prefix, "root row of the catalog has a mountpoint flag")
        self.check_entry(self.prefix, root)

    def check_child(self, path: bytes, entry: Entry) -> None:
        name = entry.name
        if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
            self.error(path, f"invalid name {os.fsdecode(name)!r} in row {entry.rowid}")
        elif len(name) > MAX_NAME_BYTES:
            self.rare["name has more than 255 bytes"].append(path_text(path))
        if _key(path) != (entry.key_1, entry.key_2):
            self.error(path, "path key of the row is not the MD5 of its path")
        if entry.flags & FLAG_NESTED_ROOT:
            self.error(path, "nested-root flag on a row that is not the catalog's root")
        if name == _MARKER:
            self.check_marker(path, entry)
        self.check_entry(path, entry)

    def check_marker(self, path: bytes, entry: Entry) -> None:
        if path != self.prefix + b"/" + _MARKER:
            self.error(path, f"{MARKER} outside of a catalog's root directory")
        elif not self.prefix:
            self.error(path, f"{MARKER} in the repository's root stops stock publishing")
        elif not stat.S_ISREG(entry.mode):
            self.error(path, f"{MARKER} is not a regular file")

    # one entry

    def check_entry(self, path: bytes, entry: Entry) -> None:
        flags, mode = entry.flags, entry.mode
        if self.malformed:
            malformed = self.malformed.get((entry.key_1, entry.key_2))
            if malformed is not None:
                self.error(path, malformed)
        if entry.linkcount < 1:
            self.error(path, "linkcount is 0")
        if entry.hardlinks < 0:
            self.error(path, f"hardlinks is {entry.hardlinks}")
        elif entry.group:
            self.groups[entry.group].append((path, entry))
        if entry.rowid <= 0:
            self.error(path, f"row id is {entry.rowid}: clients compute inodes from it")
        if not (0 <= entry.uid <= _MAX_ID and 0 <= entry.gid <= _MAX_ID):
            self.error(path, f"owner {entry.uid}:{entry.gid} is not within 32 bits")
        if entry.mtimens is not None and not 0 <= entry.mtimens < 1_000_000_000:
            self.error(path, f"nanoseconds of mtime are {entry.mtimens}")
        if entry.xattr is not None:
            self.counted["xattr"] += 1
            try:
                if not decode_xattrs(entry.xattr):
                    self.error(path, "extended attributes without any attribute")
            except IntegrityError as error:
                self.error(path, str(error))
        if not 0 <= flags <= _KNOWN_FLAGS:
            self.error(path, f"unknown bits in flags {flags:#x}")
        kind = stat.S_IFMT(mode)
        if mode & ~0o7777 != kind or kind not in _CHECKS:
            self.error(path, f"mode {mode:#o} is of no known kind")
            return
        name, wanted, check = _CHECKS[kind]
        if flags & _KIND_FLAGS != wanted:
            self.error(path, f"flags {flags:#x} do not fit a {name}: must contain {wanted:#x} only")
        if kind != stat.S_IFDIR:
            if flags & (FLAG_MOUNTPOINT | FLAG_BIND | FLAG_HIDDEN):
                self.error(path, f"directory flag in flags {flags:#x} of a {name}")
            if entry.linkcount > 1 and not entry.group:
                self.error(path, f"linkcount is {entry.linkcount} without a hard-link group")
        if kind != stat.S_IFREG:
            if _present(entry.hash):
                self.error(path, f"{name} with a content hash")
            if flags & (FLAG_CHUNKED | FLAG_EXTERNAL | FLAG_DIRECT_IO):
                self.error(path, f"file flag (chunked, external, direct I/O) on a {name}")
            if flags & (FLAG_HASH_BITS | FLAG_COMPRESSION_BITS):
                self.error(path, f"hash or compression bits in flags {flags:#x} of a {name}")
        if kind != stat.S_IFLNK and entry.symlink:
            self.error(path, f"{name} with a link target")
        check(self, path, entry)

    def check_directory(self, path: bytes, entry: Entry) -> None:
        self.counted["dir"] += 1
        if entry.group:
            self.error(path, "directory in a hard-link group")
        if entry.size <= 0:
            self.rare["directory of size 0, by convention 4096"].append(path_text(path))
        if entry.flags & FLAG_MOUNTPOINT and entry.flags & FLAG_BIND:
            self.error(path, "both mountpoint of a nested catalog and bind mountpoint")

    def check_symlink(self, path: bytes, entry: Entry) -> None:
        self.counted["symlink"] += 1
        target = entry.symlink
        if not target or b"\0" in target:
            self.error(path, "symbolic link without a usable target")
        if len(target) > MAX_TARGET_BYTES:
            self.error(
                path,
                f"link target has {len(target)} bytes; clients read at most {MAX_TARGET_BYTES}",
            )
        # `cvmfs_server ingest` stores 0 for every symbolic link (section 3.5)
        if entry.size not in (0, len(target)):
            self.error(path, f"size of the symbolic link is {entry.size}, must be {len(target)}")

    def check_special(self, path: bytes, entry: Entry) -> None:
        self.counted["special"] += 1
        is_device = stat.S_ISCHR(entry.mode) or stat.S_ISBLK(entry.mode)
        if entry.size != 0 and not is_device:
            self.error(path, f"size of the fifo or socket is {entry.size}, must be 0")
        elif entry.size < 0:
            self.error(path, f"device number is {entry.size}")

    def check_regular(self, path: bytes, entry: Entry) -> None:
        flags, counted = entry.flags, self.counted
        counted["regular"] += 1
        counted["file_size"] += entry.size
        if flags & FLAG_CHUNKED:
            counted["chunked"] += 1
            counted["chunked_size"] += entry.size
        if flags & FLAG_EXTERNAL:
            counted["external"] += 1
            counted["external_file_size"] += entry.size
        if entry.size < 0:
            self.error(path, f"size is {entry.size}")
            return
        algorithm = _ALGORITHMS.get(flags & FLAG_HASH_BITS)
        if algorithm is None:
            self.error(path, f"unknown hash algorithm in flags {flags:#x}")
        compression = flags & FLAG_COMPRESSION_BITS
        if compression not in (0, FLAG_UNCOMPRESSED):
            self.error(path, f"unknown compression in flags {flags:#x}")
        elif algorithm is not None and not flags & FLAG_EXTERNAL:
            self.claim_content(path, entry, algorithm, compressed=compression == 0)
        chunks = self.chunks.pop((entry.key_1, entry.key_2), None)
        if flags & FLAG_CHUNKED:
            self.check_chunks(path, entry, chunks or [])
        else:
            if chunks:
                self.error(path, f"{len(chunks)} rows in chunks, but the file is not chunked")
            if not _present(entry.hash):
                self.error(path, "regular file without a content hash")

    def check_chunks(self, path: bytes, entry: Entry, chunks: list[tuple[int, int, bytes]]) -> None:
        if not chunks:
            self.error(path, "chunked file without rows in chunks")
            return
        position = 0
        for offset, size, _ in chunks:
            if offset != position or size <= 0:
                self.error(
                    path,
                    f"chunk at {offset} of {size} bytes does not follow the one before, "
                    f"which ends at {position}",
                )
                return
            position += size
        if position != entry.size:
            self.error(path, f"chunks end at {position}, size of the file is {entry.size}")

    def claim_content(
        self, path: bytes, entry: Entry, algorithm: HashAlgorithm, *, compressed: bool
    ) -> None:
        claims = self.result.claims
        if entry.hash is not None and _present(entry.hash):
            digest = ContentHash(entry.hash, algorithm)
            claims.setdefault(Claim(digest, Suffix.DATA, entry.size, compressed), path_text(path))
        if entry.flags & FLAG_CHUNKED:
            for _, size, raw in self.chunks.get((entry.key_1, entry.key_2), ()):
                claim = Claim(ContentHash(raw, algorithm), Suffix.CHUNK, size, compressed)
                claims.setdefault(claim, path_text(path))

    # across entries

    def check_hardlinks(self) -> None:
        for group, members in self.groups.items():
            first_path, first = members[0]
            if stat.S_ISDIR(first.mode):
                continue  # reported already
            if first.linkcount != len(members):
                self.error(
                    first_path,
                    f"linkcount is {first.linkcount}, but hard-link group {group} has "
                    f"{len(members)} members",
                )
            for path, entry in members[1:]:
                if (entry.parent_1, entry.parent_2) != (first.parent_1, first.parent_2):
                    self.error(
                        path,
                        f"hard-link group {group} spans directories: {path_text(first_path)}",
                    )
                if _shared(entry) != _shared(first):
                    self.error(
                        path,
                        f"differs from its hard link {path_text(first_path)} in more than name",
                    )

    def check_mounts(self) -> None:
        nested = self.load_mounts("nested_catalogs")
        binds = self.load_mounts("bind_mountpoints") if self.schema_revision >= 4 else {}
        self.counted["nested"] = len(nested)
        for path in nested.keys() & binds.keys():
            self.error(path, "registered both as nested catalog and as bind mountpoint")
        for path, entry in self.mountpoints.items():
            if nested.get(path) is None and path not in nested:
                self.error(path, "mountpoint flag, but not registered in nested_catalogs")
            ref = nested.get(path)
            if ref is not None:
                self.result.nested[os.fsdecode(path[1:])] = (ref, entry)
        for path in nested.keys() - self.mountpoints.keys():
            self.error(path, "registered in nested_catalogs, but no mountpoint in this catalog")
        for path in self.binds.keys() - binds.keys():
            self.error(path, "bind mountpoint flag, but not registered in bind_mountpoints")
        for path in binds.keys() - self.binds.keys():
            self.error(path, "registered in bind_mountpoints, but no such mountpoint")
        if self.prefix and not any(
            entry.name == _MARKER for entry in self.children.get(_key(self.prefix), ())
        ):
            self.error(self.prefix, f"nested catalog without {MARKER} in its root directory")

    def load_mounts(self, table: str) -> dict[bytes, CatalogRef | None]:
        """Return the rows of a table of mountpoints; None for a row that names no hash."""
        has_size = table != "nested_catalogs" or self.schema_revision >= NESTED_SIZE_SINCE
        size = "size" if has_size else "0"
        found: dict[bytes, CatalogRef | None] = {}
        for path, kind, text, size_value in self.rows(
            f"SELECT CAST(path AS BLOB), typeof(path), sha1, {size} FROM {table}"  # noqa: S608 - constants
        ):
            if kind != "text" or not path.startswith(b"/"):
                self.error(self.prefix, f"{table}: path is {path!r}")
                continue
            if path in found:
                self.error(path, f"registered twice in {table}")
            found[path] = None
            try:
                digest = ContentHash.parse(text if isinstance(text, str) else "")
            except IntegrityError:
                self.error(path, f"{table}: hash is {text!r}")
                continue
            if type(size_value) is not int or size_value <= 0:
                if has_size:
                    self.error(path, f"{table}: size is {size_value!r}: unknown")
                size_value = 0
            found[path] = CatalogRef(digest, size_value)
        return found

    def check_leftovers(self) -> None:
        for key in self.chunks:
            if key not in self.entries:
                self.error(self.prefix, f"chunks of no file in this catalog, key {key}")
            elif not stat.S_ISREG(self.entries[key].mode):
                name = os.fsdecode(self.entries[key].name)
                self.error(self.prefix, f"chunks of {name!r}, which is no regular file")

    # counters

    def check_counters(self) -> None:
        self.result.own = self.counted
        stored: dict[str, int] = {}
        for counter, value in self.rows("SELECT counter, value FROM statistics"):
            if not isinstance(counter, str) or type(value) is not int:
                self.error(self.prefix, f"statistics counter {counter!r} is {value!r}")
            else:
                stored[counter] = value
        names = {f"{scope}_{name}" for scope in ("self", "subtree") for name in COUNTERS}
        for counter in sorted(stored.keys() - names):
            self.report.error(self.place, f"unknown statistics counter {counter}")
        for name in COUNTERS:
            for scope in ("self", "subtree"):
                counter = f"{scope}_{name}"
                if counter not in stored:
                    if _COUNTERS_SINCE.get(name, 0) <= self.schema_revision:
                        self.error(self.prefix, f"statistics counter {counter} is missing")
                elif scope == "subtree":
                    self.result.stored_subtree[name] = stored[counter]
                elif stored[counter] != self.counted[name]:
                    self.error(
                        self.prefix,
                        f"statistics counter {counter} is {stored[counter]}, counted "
                        f"{self.counted[name]}",
                    )


_CHECKS: dict[int, tuple[str, int, Callable[[_Examination, bytes, Entry], None]]] = {
    stat.S_IFDIR: ("directory", FLAG_DIR, _Examination.check_directory),
    stat.S_IFREG: ("regular file", FLAG_FILE, _Examination.check_regular),
    stat.S_IFLNK: ("symbolic link", FLAG_FILE | FLAG_LINK, _Examination.check_symlink),
    stat.S_IFIFO: ("fifo", FLAG_FILE | FLAG_SPECIAL, _Examination.check_special),
    stat.S_IFSOCK: ("socket", FLAG_FILE | FLAG_SPECIAL, _Examination.check_special),
    stat.S_IFCHR: ("character device", FLAG_FILE | FLAG_SPECIAL, _Examination.check_special),
    stat.S_IFBLK: ("block device", FLAG_FILE | FLAG_SPECIAL, _Examination.check_special),
}


def _shared(entry: Entry) -> tuple[object, ...]:
    """What all hard links to a file have in common."""
    return (
        entry.hardlinks,
        entry.hash,
        entry.size,
        entry.mode,
        entry.mtime,
        entry.mtimens or 0,
        entry.flags,
        entry.symlink,
        entry.uid,
        entry.gid,
        entry.xattr,
    )


def compare_transition(path: str, mount: Entry, root: Entry, report: Report) -> None:
    """Report differences between a mountpoint's row and the root row of its catalog."""
    for what in ("name", "hardlinks", "size", "mode", "mtime", "symlink"):
        self_value, other = getattr(mount, what), getattr(root, what)
        if self_value != other:
            report.error(
                "/" + path,
                f"{what} is {self_value!r} at the mountpoint, {other!r} in the nested catalog",
            )
    if (mount.mtimens or 0) != (root.mtimens or 0):
        report.error(
            "/" + path,
            f"mtimens is {mount.mtimens!r} at the mountpoint, "
            f"{root.mtimens!r} in the nested catalog",
        )
    if mount.xattr != root.xattr:
        report.error("/" + path, "extended attributes differ between mountpoint and nested catalog")
    for what in ("uid", "gid"):
        self_value, other = getattr(mount, what), getattr(root, what)
        if self_value != other:
            report.error(
                "/" + path,
                f"{what} is {self_value} at the mountpoint, {other} in the nested catalog",
            )
    if (mount.flags ^ root.flags) & ~(FLAG_MOUNTPOINT | FLAG_NESTED_ROOT):
        report.error(
            "/" + path,
            f"flags are {mount.flags:#x} at the mountpoint, {root.flags:#x} in the nested catalog",
        )


def sum_counters(parts: Iterable[Counters]) -> Counters:
    total = dict.fromkeys(COUNTERS, 0)
    for part in parts:
        for name in COUNTERS:
            total[name] += part[name]
    return total


def compare_subtree(examined: Examined, below: Counters, prefix: str, report: Report) -> None:
    """Report stored `subtree_` counters that differ from what nested catalogs add up to."""
    for name, stored in examined.stored_subtree.items():
        if stored != below[name]:
            report.error(
                "/" + prefix,
                f"statistics counter subtree_{name} is {stored}, counted {below[name]}",
            )
