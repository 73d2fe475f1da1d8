"""Find every object that a set of revisions needs, however large the repository is.

Source: facts/cvmfs-format.md sections 3.6, 3.9, 4 and 8.1.  What was found is kept on disk, in 256
files by the first byte of the hash; memory holds the names of catalogs and one catalog at a time.

Whoever removes objects relies on this: a catalog that is missing, damaged or not understood is an
error, never an empty one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from cvmfs_publish.content.hashes import DIGEST_BYTES, ContentHash, HashAlgorithm, Suffix
from cvmfs_publish.content.objects import decompress
from cvmfs_publish.content.store import SHARDS, ContentStore, MissingError
from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.repository.native.catalog import (
    SCHEMA,
    SCHEMA_REVISION,
    Catalog,
)
from cvmfs_publish.repository.native.database import DAMAGED
from cvmfs_publish.repository.native.reader import MAX_CATALOG_BYTES

_BUFFER = 64 * 1024  # bytes of marks per shard before they go to disk
_AT_ONCE = 32  # catalogs asked for together; stores fetch them in parallel
_ROWS = 50_000  # taken from SQLite at a time
_BITS = {algorithm.flags: algorithm for algorithm in HashAlgorithm}
_CODES = {
    (algorithm, kind): bytes([number])
    for number, (algorithm, kind) in enumerate((a, k) for a in HashAlgorithm for k in Suffix)
}
_KINDS = {code: kind for (_, kind), code in _CODES.items()}
_NAME = re.compile(r"data/([0-9a-f]{2})/([0-9a-f]{38})(?:-(rmd160|shake128))?([PCHXM]?)")
KEY_BYTES = DIGEST_BYTES + 1

# 20 bytes of hash; 1792 are the bits of the hash algorithm, 2 that of a mountpoint (section 3.6)
_MALFORMED_ENTRIES = (
    "SELECT COUNT(*) FROM catalog WHERE typeof(flags) <> 'integer' "
    "OR hash IS NOT NULL AND (typeof(hash) <> 'blob' OR length(hash) <> 20)"
)
_MALFORMED_CHUNKS = "SELECT COUNT(*) FROM chunks WHERE typeof(hash) <> 'blob' OR length(hash) <> 20"
_ALGORITHMS = "SELECT DISTINCT flags & 1792 FROM catalog WHERE hash IS NOT NULL"
_CONTENTS = "SELECT hash FROM catalog WHERE hash IS NOT NULL AND flags & 1792 = ?"
_HAS_CHUNKS = "SELECT EXISTS (SELECT 1 FROM chunks)"
_FILES_OF_CHUNKS = "FROM chunks LEFT JOIN catalog USING (md5path_1, md5path_2)"
_CHUNK_ALGORITHMS = f"SELECT DISTINCT catalog.flags & 1792 {_FILES_OF_CHUNKS}"
_CHUNKS = f"SELECT chunks.hash {_FILES_OF_CHUNKS} WHERE catalog.flags & 1792 IS ?"
_MOUNTPOINTS = "SELECT COUNT(*) FROM catalog WHERE flags & 2"

ObjectKey = bytes  # the digest and a byte for algorithm and kind; equal if the names are equal


def object_key(name: str) -> ObjectKey | None:
    """Return the key of the object named `data/xx/…`; None if that is no name of an object."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    algorithm = HashAlgorithm(match[3] or "sha1")
    return bytes.fromhex(match[1] + match[2]) + _CODES[algorithm, Suffix(match[4])]


def kind_of(key: ObjectKey) -> Suffix:
    """Return what kind of object has this key."""
    return _KINDS[key[DIGEST_BYTES:]]


class Marks:
    """Names of objects on disk.  Marking one twice does no harm."""

    def __init__(self, folder: Path) -> None:
        """Use the existing, empty `folder`."""
        self._folder = folder
        self._buffers = [bytearray() for _ in SHARDS]

    def add(self, digests: Iterable[bytes], algorithm: HashAlgorithm, kind: Suffix) -> None:
        """Mark objects by their raw hashes, which have `DIGEST_BYTES` each."""
        code, buffers = _CODES[algorithm, kind], self._buffers
        for digest in digests:  # for every file of a repository
            buffers[digest[0]] += digest + code

    def add_object(self, content_hash: ContentHash, kind: Suffix) -> None:
        self.add([content_hash.digest], content_hash.algorithm, kind)

    def save(self) -> None:
        """Write down what has become much; to be called now and then."""
        for number, buffer in enumerate(self._buffers):
            if len(buffer) > _BUFFER:
                self._write(number)

    def shard(self, shard: str) -> set[ObjectKey]:
        """Return the keys of all marked objects in `data/<shard>`."""
        number = int(shard, 16)
        self._write(number)
        data = (self._folder / shard).read_bytes()
        return {data[start : start + KEY_BYTES] for start in range(0, len(data), KEY_BYTES)}

    def _write(self, number: int) -> None:
        with (self._folder / SHARDS[number]).open("ab") as file:
            file.write(self._buffers[number])
        self._buffers[number] = bytearray()


class Walk:
    """Marks what revisions consist of.  A catalog that several of them share is read once."""

    def __init__(
        self, store: ContentStore, marks: Marks, progress: Callable[[str, int], None]
    ) -> None:
        """`progress` is told "catalogs" and how many were read, now and then."""
        self._store = store
        self._marks = marks
        self._progress = progress
        self._seen: set[ContentHash] = set()
        self.rows = 0  # entries and chunks that name an object
        self.bound: set[ContentHash] = set()  # root catalogs that bind mountpoints show, not walked

    @property
    def catalogs(self) -> int:
        """How many catalogs were read."""
        return len(self._seen)

    def add(self, root: ContentHash) -> None:
        """Mark a root catalog and everything below it.

        Raises:
            IntegrityError: a catalog is missing, damaged, or in a format that is not understood.
        """
        todo = [root]
        while todo:
            batch = list(dict.fromkeys(each for each in todo[-_AT_ONCE:] if each not in self._seen))
            del todo[-_AT_ONCE:]
            contents = self._store.read_many((each, Suffix.CATALOG) for each in batch)
            for each, stored in zip(batch, contents, strict=True):
                todo += self._read(each, stored)
            self._progress("catalogs", self.catalogs)

    def add_rest(self, root: ContentHash) -> None:
        """Mark what is still there of a revision that may have been collected in part.

        Everything that must be complete has to be added before.

        Raises:
            IntegrityError: a catalog is damaged, or in a format that is not understood.
        """
        todo = [root]
        while todo:
            each = todo.pop()
            if each not in self._seen:
                with suppress(MissingError):
                    todo += self._read(each, self._store.read(each, Suffix.CATALOG))
                self._progress("catalogs", self.catalogs)

    def _read(self, content_hash: ContentHash, stored: bytes) -> list[ContentHash]:
        """Mark a catalog and what it names; return those nested in it that are not known yet."""
        with Catalog.open(decompress(stored, MAX_CATALOG_BYTES)) as catalog:
            scan = _Scan(content_hash, catalog)
            for algorithm, kind, digests in scan.objects():
                self.rows += len(digests)
                self._marks.add(digests, algorithm, kind)
            nested = scan.nested()
            self.bound |= scan.bound()
        self._marks.add_object(content_hash, Suffix.CATALOG)
        self._marks.save()
        self._seen.add(content_hash)
        return [each for each in nested if each not in self._seen]


def root_facts(store: ContentStore, root: ContentHash) -> tuple[int, int, ContentHash | None]:
    """Return revision, time of the commit (Unix seconds) and predecessor of a root catalog.

    Raises:
        MissingError: it is not stored.
        IntegrityError: it is damaged.
    """
    stored = store.read(root, Suffix.CATALOG)
    with Catalog.open(decompress(stored, MAX_CATALOG_BYTES)) as catalog:
        text = catalog.get_property("previous_revision")
        previous = ContentHash.parse(text) if text is not None else None
        if previous is not None and not any(previous.digest):
            previous = None
        return catalog.revision, catalog.last_modified, previous


class _Scan:
    """Reads of one catalog what it names, without decoding its entries."""

    def __init__(self, content_hash: ContentHash, catalog: Catalog) -> None:
        self._name = content_hash.path(Suffix.CATALOG)
        self._catalog = catalog
        self._tables = set(self._column("SELECT name FROM sqlite_master WHERE type = 'table'"))
        self._check_schema()

    def _check_schema(self) -> None:
        """A catalog of a later format might name objects where nobody here would look."""
        schema = self._catalog.get_property("schema")
        revision = self._catalog.get_property("schema_revision") or "0"
        if schema != SCHEMA or not revision.isdecimal() or int(revision) > int(SCHEMA_REVISION):
            raise self._error(f"has schema {schema} revision {revision}, which is not understood")
        if missing := {"catalog", "chunks", "nested_catalogs"} - self._tables:
            raise self._error(f"has no table {', '.join(sorted(missing))}")

    def objects(self) -> Iterator[tuple[HashAlgorithm, Suffix, list[bytes]]]:
        """Yield the contents of files and chunks, some at a time."""
        if self._number(_MALFORMED_ENTRIES) or self._number(_MALFORMED_CHUNKS):
            raise self._error("has malformed hashes")
        for bits in self._column(_ALGORITHMS):
            for digests in self._fetch(_CONTENTS, bits):
                yield self._algorithm(bits), Suffix.DATA, digests
        # A chunk has the algorithm of its file; one of no file may have any.
        for bits in self._column(_CHUNK_ALGORITHMS) if self._number(_HAS_CHUNKS) else ():
            algorithms = [self._algorithm(bits)] if bits is not None else list(HashAlgorithm)
            for digests in self._fetch(_CHUNKS, bits):
                for algorithm in algorithms:
                    yield algorithm, Suffix.CHUNK, digests

    def nested(self) -> list[ContentHash]:
        """Return the catalogs nested in this one."""
        texts = self._column("SELECT sha1 FROM nested_catalogs")
        if self._number(_MOUNTPOINTS) > len(texts):
            raise self._error("does not say which catalogs are nested in it")
        return [ContentHash.parse(str(text)) for text in texts]

    def bound(self) -> set[ContentHash]:
        """Return the root catalogs of other revisions that this one shows."""
        if "bind_mountpoints" not in self._tables:
            return set()
        texts = self._column("SELECT sha1 FROM bind_mountpoints")
        return {ContentHash.parse(str(text)) for text in texts}

    def _algorithm(self, bits: int) -> HashAlgorithm:
        if bits not in _BITS:
            raise self._error(f"uses an unknown hash algorithm, {bits >> 8}")
        return _BITS[bits]

    def _number(self, sql: str) -> int:
        return int(self._column(sql)[0])

    def _column(self, sql: str) -> list[Any]:
        return [value for values in self._fetch(sql) for value in values]

    def _fetch(self, sql: str, *parameters: object) -> Iterator[list[Any]]:
        """Yield the values of a query's only column, some at a time."""
        try:
            cursor = self._catalog.database.execute(sql, parameters)
            while rows := cursor.fetchmany(_ROWS):
                yield [value for (value,) in rows]
        except DAMAGED as error:
            raise self._error(f"cannot be read: {error}") from error

    def _error(self, what: str) -> IntegrityError:
        return IntegrityError(f"catalog {self._name} {what}")
