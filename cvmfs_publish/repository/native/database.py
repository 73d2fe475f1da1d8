"""Open and write the small SQLite databases (history, reflog) entirely in memory.

Source: facts/cvmfs-format.md section 3.1: rollback-journal format, 1024-byte pages.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from cvmfs_publish.errors import IntegrityError

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
