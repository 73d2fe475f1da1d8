"""Examine the database of a catalog: its tables, keys and properties, not yet its entries.

Source: facts/cvmfs-format.md sections 3.1 to 3.3.
"""

from __future__ import annotations

import os
import sqlite3
from typing import Any

from cvmfs_publish.content.hashes import ContentHash
from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.repository.native.database import open_database, query
from cvmfs_publish.repository.native.problems import Report

SCHEMA_REVISION = 7
_MAX_DIGITS = 18  # fits into 64 bits
# table: columns in the order a fresh catalog has them, and the primary key (section 3.2)
_TABLES = {
    "properties": ("key value", "key"),
    "catalog": (
        "md5path_1 md5path_2 parent_1 parent_2 hardlinks hash size mode mtime mtimens flags name "
        "symlink uid gid xattr",
        "md5path_1 md5path_2",
    ),
    "chunks": ("md5path_1 md5path_2 offset size hash", "md5path_1 md5path_2 offset size"),
    "nested_catalogs": ("path sha1 size", "path"),
    "bind_mountpoints": ("path sha1 size", "path"),
    "statistics": ("counter value", "counter"),
}
# (table, column or None for all of it): schema revision that brought it
SINCE = {
    ("nested_catalogs", "size"): 1,
    ("catalog", "xattr"): 2,
    ("bind_mountpoints", None): 4,
    ("catalog", "mtimens"): 7,
}


def open_catalog(data: bytes) -> sqlite3.Connection:
    """Open a catalog file to examine it; raise `IntegrityError` if it is no database."""
    database = open_database(data, "catalog")
    # Text that is not UTF-8 is a problem of its row, not of the whole catalog.
    database.text_factory = os.fsdecode
    return database


def read_properties(data: bytes) -> dict[str, str]:
    """Return the properties of a catalog file; raise `IntegrityError` if it cannot be read."""
    database = open_catalog(data)
    try:
        found = query(database, "catalog", "SELECT key, value FROM properties")
    finally:
        database.close()
    return {str(key): str(value) for key, value in found}


class SchemaExamination:
    """Reports what is wrong with the database of the catalog at `prefix`, bytes with a slash."""

    def __init__(self, database: sqlite3.Connection, prefix: bytes, report: Report) -> None:
        self.database = database
        self.prefix = prefix
        self.place = os.fsdecode(prefix) or "/"
        self.report = report
        self.schema_revision = SCHEMA_REVISION
        self.properties: dict[str, str] = {}

    def run(self) -> bool:
        """Return whether the entries can be read."""
        if not self.check_database():
            return False
        self.check_properties()
        return True

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return query(self.database, "catalog", sql)

    def check_database(self) -> bool:
        """Check tables, columns, keys and SQLite's own structures."""
        if self.rows("PRAGMA encoding") != [("UTF-8",)]:
            self.report.error(self.place, "catalog database is not encoded in UTF-8")
            return False
        verdict = self.rows("PRAGMA integrity_check(1)")
        if verdict != [("ok",)]:
            self.report.error(self.place, f"catalog database is damaged: {verdict[0][0]}")
        found = dict(self.rows("SELECT name, type FROM sqlite_master WHERE type <> 'index'"))
        for name, kind in found.items():
            if kind != "table":
                self.report.error(self.place, f"catalog database has a {kind}, {name}")
                return False
            if name not in _TABLES and name != "sqlite_stat1":
                self.report.warning(self.place, f"catalog database has an unknown table {name}")
        if "properties" not in found:
            self.report.error(self.place, "catalog database has no table properties")
            return False
        self.load_properties()
        readable = [self.check_table(table, table in found) for table in _TABLES]
        return all(readable)

    def check_table(self, table: str, exists: bool) -> bool:
        if not exists:
            if self.schema_revision < SINCE.get((table, None), 0):
                return True
            self.report.error(self.place, f"catalog database has no table {table}")
            return False
        info = self.rows(f"PRAGMA table_info({table})")
        columns = [name for _, name, *_ in info]
        wanted, primary = (names.split() for names in _TABLES[table])
        for column in wanted:
            since = SINCE.get((table, column), 0)
            if column not in columns and since <= self.schema_revision:
                self.report.error(self.place, f"catalog table {table} has no column {column}")
                if since == 0:
                    return False
            elif column in columns and since > self.schema_revision:
                self.report.error(
                    self.place,
                    f"catalog has schema revision {self.schema_revision}, but column {column} of "
                    f"revision {since}: stock writers would fail to add it",
                )
        fresh = [column for column in wanted if column in columns]
        # Columns added by an upgrade stand at the end.
        old = [c for c in fresh if (table, c) not in SINCE]
        added = sorted((c for c in fresh if (table, c) in SINCE), key=lambda c: SINCE[table, c])
        known = [column for column in columns if column in wanted]
        if known not in (fresh, old + added) or len(known) < len(columns):
            self.report.error(
                self.place,
                f"catalog table {table} has columns {', '.join(columns)}: not in the order that "
                "stock programs rely on",
            )
        key = [name for _, name, _, _, _, position in sorted(info, key=_position) if position]
        if key != primary:
            self.report.error(
                self.place, f"catalog table {table} has primary key ({', '.join(key)})"
            )
        if table == "catalog" and not self.has_parent_index():
            self.report.error(self.place, "catalog has no index on parent_1, parent_2")
        return True

    def has_parent_index(self) -> bool:
        return any(
            [column for _, _, column in self.rows(f"PRAGMA index_info('{name}')")][:2]
            == ["parent_1", "parent_2"]
            for _, name, *_ in self.rows("PRAGMA index_list(catalog)")
            if "'" not in name
        )

    def load_properties(self) -> None:
        for key, value in self.rows("SELECT key, value FROM properties"):
            if isinstance(key, str) and value is not None:
                self.properties[key] = str(value)
            else:
                self.report.error(self.place, f"catalog property {key!r} has no text value")
        revision = parse_number(self.properties.get("schema_revision"))
        self.schema_revision = SCHEMA_REVISION if revision is None else revision

    def check_properties(self) -> None:
        properties = self.properties
        if properties.get("schema") != "2.5":
            self.report.error(
                self.place, f"catalog schema is {properties.get('schema')!r}, not 2.5"
            )
        if properties.get("schema_revision") != str(self.schema_revision):
            self.report.error(
                self.place, f"catalog schema_revision is {properties.get('schema_revision')!r}"
            )
        elif self.schema_revision > SCHEMA_REVISION:
            self.report.error(
                self.place,
                f"catalog schema_revision is {self.schema_revision}, newest known is "
                f"{SCHEMA_REVISION}",
            )
        for key in ("revision", "last_modified"):
            if parse_number(properties.get(key)) is None:
                self.report.error(self.place, f"catalog property {key} is {properties.get(key)!r}")
        if not self.prefix and parse_number(properties.get("TTL")) is None:
            self.report.error(self.place, f"catalog property TTL is {properties.get('TTL')!r}")
        prefix = os.fsencode(properties.get("root_prefix", ""))
        if prefix != self.prefix:
            self.report.error(
                self.place,
                f"catalog property root_prefix is {os.fsdecode(prefix)!r}, must be "
                f"{os.fsdecode(self.prefix)!r}",
            )
        previous = properties.get("previous_revision")
        if previous is not None:
            try:
                ContentHash.parse(previous)
            except IntegrityError as error:
                self.report.error(self.place, f"catalog property previous_revision: {error}")


def _position(info: tuple[Any, ...]) -> int:
    return int(info[5])


def parse_number(text: str | None) -> int | None:
    """Return the value of a property that must be a number, None if it is none."""
    if text is None or not text.isascii() or not text.isdecimal() or len(text) > _MAX_DIGITS:
        return None
    return int(text)
