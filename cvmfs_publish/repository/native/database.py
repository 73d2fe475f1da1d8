"""Open and write the small SQLite databases (history, reflog) entirely in memory.

Source: facts/cvmfs-format.md section 3.1: rollback-journal format, 1024-byte pages.
"""

from __future__ import annotations

import sqlite3
from typing import Any, ClassVar, Self

from cvmfs_publish.errors import IntegrityError, PublishError

PAGE_SIZE = 1024  # bytes; what stock writes
# Where a damaged name stands in SQLite's message, Python fails to decode that message.
DAMAGED = (sqlite3.Error, UnicodeError, OverflowError)
_HEADER_BYTES = 100  # sqlite.org/fileformat.html, "The Database Header"


def create_database(schema: str) -> sqlite3.Connection:
    """Return a new database in memory with the tables of `schema`."""
    database = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    database.execute(f"PRAGMA page_size = {PAGE_SIZE:d}")
    database.executescript(schema)
    return database


def open_database(data: bytes, what: str) -> sqlite3.Connection:
    """Open the bytes of a database file; `what` names it in messages.

    Raises:
        IntegrityError: no SQLite database, or one that CernVM-FS programs cannot open.
    """
    if len(data) < _HEADER_BYTES or data[:16] != b"SQLite format 3\0":
        raise IntegrityError(f"{what} is not a SQLite database")
    if data[18:20] != b"\1\1":
        # A journal file cannot stand beside an object, so nobody could replay it.
        raise IntegrityError(f"{what} is in write-ahead-log format, which clients cannot open")
    database = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    try:
        database.deserialize(data)
        # Bytes from elsewhere: no SQL hidden in their schema may run with our functions.
        database.execute("PRAGMA trusted_schema = OFF")
        database.execute("PRAGMA cell_size_check = ON")
        database.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    except DAMAGED as error:
        database.close()
        raise IntegrityError(f"{what} cannot be read: {error}") from error
    return database


def query(
    database: sqlite3.Connection, what: str, sql: str, *parameters: object
) -> list[tuple[Any, ...]]:
    """Return all rows of a query; raise `IntegrityError` if the database is damaged."""
    try:
        return database.execute(sql, parameters).fetchall()
    except DAMAGED as error:
        raise IntegrityError(f"{what} cannot be read: {error}") from error


class Database:
    """What history and reflog have in common.  Not for several threads at once."""

    WHAT: ClassVar[str]  # names it in messages
    SCHEMA: ClassVar[str]  # the statements that make an empty one
    TABLES: ClassVar[tuple[str, ...]]  # that one must have

    def __init__(self, database: sqlite3.Connection) -> None:
        self.database = database

    @classmethod
    def create(cls, name: str) -> Self:
        """Return the empty database of a new repository."""
        created = cls(create_database(cls.SCHEMA))
        created._set_property("fqrn", name)
        return created

    @classmethod
    def open(cls, data: bytes) -> Self:
        """Open the bytes of a file.

        Raises:
            IntegrityError: it is no such database.
            RepositoryError: this version cannot write it.
        """
        opened = cls(open_database(data, cls.WHAT))
        try:
            opened._upgrade()
            for table in cls.TABLES:
                opened._rows(f"SELECT COUNT(*) FROM {table}")  # noqa: S608 - constants
        except PublishError:
            opened.close()
            raise
        return opened

    def _upgrade(self) -> None:
        """Bring a database of an older server up to date, in memory."""

    def close(self) -> None:
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        """The repository's name; must equal field N of the manifest."""
        return self.get_property("fqrn") or ""

    def get_property(self, key: str) -> str | None:
        found = self._rows("SELECT value FROM properties WHERE key = ?", key)
        return str(found[0][0]) if found else None

    def _set_property(self, key: str, value: str) -> None:
        self._rows("INSERT OR REPLACE INTO properties (key, value) VALUES (?, ?)", key, value)

    def serialize(self) -> bytes:
        """Return the bytes of the file, uncompressed."""
        return bytes(self.database.serialize())

    def _rows(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        return query(self.database, self.WHAT, sql, *parameters)
