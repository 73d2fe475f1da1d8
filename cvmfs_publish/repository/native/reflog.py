"""Keep the list of every object that was ever named by a manifest, `.cvmfsreflog`.

Source: facts/cvmfs-format.md section 5.3 (reflog.cc, reflog_sql.cc).  The file is stored as it is,
uncompressed; its hash is field Y of the manifest.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from cvmfs_publish.content.hashes import ContentHash, Suffix
from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.repository.native.database import Database
from cvmfs_publish.repository.native.upgrade import check_reflog

FILE_NAME = ".cvmfsreflog"

_SCHEMA = """
CREATE TABLE properties (key TEXT, value TEXT, CONSTRAINT pk_properties PRIMARY KEY (key));
CREATE TABLE refs (hash TEXT, type INTEGER, timestamp INTEGER,
  CONSTRAINT pk_refs PRIMARY KEY (hash));
INSERT INTO properties (key, value) VALUES ('schema', '1.0');
INSERT INTO properties (key, value) VALUES ('schema_revision', '0');
"""


class RefType(IntEnum):
    """What kind of object an entry names.  Nested catalogs are not listed."""

    CATALOG = 0
    CERTIFICATE = 1
    HISTORY = 2
    METAINFO = 3

    @property
    def suffix(self) -> Suffix:
        return _SUFFIXES[self]


_SUFFIXES = {
    RefType.CATALOG: Suffix.CATALOG,
    RefType.CERTIFICATE: Suffix.CERTIFICATE,
    RefType.HISTORY: Suffix.HISTORY,
    RefType.METAINFO: Suffix.METAINFO,
}


class Ref(NamedTuple):
    """One entry of the reflog."""

    hash: ContentHash
    type: RefType
    timestamp: int  # Unix seconds of the last time a manifest named it


class Reflog(Database):
    """An open reflog."""

    WHAT = "reflog"
    SCHEMA = _SCHEMA
    TABLES = ("refs", "properties")

    def _upgrade(self) -> None:
        schema, revision = self.get_property("schema"), self.get_property("schema_revision")
        check_reflog(self.WHAT, schema, revision)

    def add(self, value: ContentHash, kind: RefType, now: int) -> None:
        """List an object, or refresh its time (`now`, Unix seconds) if it is listed.

        Call it before the manifest that names the object is published: an object that is not
        listed is never collected, one that is missing here stops stock tools.
        """
        self._rows(
            "INSERT OR REPLACE INTO refs (hash, type, timestamp) VALUES (?, ?, ?)",
            str(value),
            int(kind),
            now,
        )

    def remove(self, value: ContentHash) -> None:
        """Forget an object that was deleted."""
        self._rows("DELETE FROM refs WHERE hash = ?", str(value))

    def entries(self) -> list[Ref]:
        """Return all entries, oldest first; raise `IntegrityError` on a malformed one."""
        found = self._rows("SELECT hash, type, timestamp FROM refs ORDER BY timestamp, rowid")
        result = []
        for text, kind, timestamp in found:
            if not (
                isinstance(text, str)
                and isinstance(kind, int)
                and kind in RefType.__members__.values()
                and isinstance(timestamp, int)
            ):
                raise IntegrityError(f"reflog: malformed entry {text!r} of type {kind!r}")
            result.append(Ref(ContentHash.parse(text), RefType(kind), timestamp))
        return result
