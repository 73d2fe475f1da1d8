"""One SQLite file of the state directory: opened, checked, and written in transactions.

Readers never block the writer and see a consistent state: the file is in write-ahead-log mode.
Every thread has a connection of its own.  No exception of `sqlite3` gets out.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cvmfs_publish.errors import RepositoryError

BUSY_SECONDS = 10.0  # a transaction takes milliseconds; who waits longer waits for a hung disk
APPLICATION_ID = 0x43507761  # "CPwa": `file` and other programs know whose database it is


class StateError(RepositoryError):
    """The watcher's state cannot be used: damaged, locked, full, of a newer version, or in use."""

    kind = "state"


class Database:
    """A database file.  Any number of threads may use it at once; close it, or use `with`."""

    def __init__(self, path: Path, schema: str, version: int) -> None:
        """Open the file, or make it.

        Raises:
            StateError: it cannot be opened or is damaged, another program's, or a newer version's.
        """
        self.path = path
        self._local = threading.local()
        self._lock = threading.Lock()  # guards the list
        self._connections: list[tuple[threading.Thread, sqlite3.Connection]] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StateError(
                f"{path.parent} cannot be made: {error.strerror}",
                hint="correct `state`, or make its folder writable",
            ) from error
        try:
            self._prepare(schema, version)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections of all threads, which must have ended their work."""
        with self._lock:
            for _, connection in self._connections:
                connection.close()
            self._connections.clear()
        self._local = threading.local()

    def rows(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a query, or of a statement inside `writing`."""
        with self._translated():
            return self._connection().execute(sql, parameters).fetchall()

    def change(self, sql: str, parameters: Sequence[object] = ()) -> int:
        """Run one statement inside `writing`; return how many rows it changed."""
        with self._translated():
            return self._connection().execute(sql, parameters).rowcount

    def change_many(self, sql: str, parameters: Iterable[Sequence[object]]) -> None:
        with self._translated():
            self._connection().executemany(sql, parameters)

    def insert(self, sql: str, parameters: Sequence[object] = ()) -> int:
        """Insert one row inside `writing`; return its number."""
        with self._translated():
            return self._connection().execute(sql, parameters).lastrowid or 0

    @contextmanager
    def writing(self, *, durably: bool = False) -> Iterator[None]:
        """Make all changes of the block visible together, or none if it raises.

        They survive a kill of the program; with `durably` also a power failure.  May be nested:
        the outermost block decides.
        """
        connection = self._connection()
        if connection.in_transaction:
            yield
            return
        with self._translated():
            if durably:
                connection.execute("PRAGMA synchronous = FULL")
            connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            connection.rollback()
            raise
        else:
            try:
                with self._translated():
                    connection.commit()
            except StateError:
                connection.rollback()
                raise
        finally:
            if durably:
                connection.execute("PRAGMA synchronous = NORMAL")

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            # closed by whoever closes all, which may be another thread than the one it is for
            connection = sqlite3.connect(
                self.path, BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._local.connection = connection
            self._remember(connection)
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA foreign_keys = ON")
        return connection

    def _remember(self, connection: sqlite3.Connection) -> None:
        """Close it at the end; those of threads that have ended now: web servers have many."""
        with self._lock:
            ended = [each for each in self._connections if not each[0].is_alive()]
            for _, other in ended:
                other.close()
            left = [each for each in self._connections if each not in ended]
            self._connections = [*left, (threading.current_thread(), connection)]

    def _prepare(self, schema: str, version: int) -> None:
        with self._translated():
            connection = self._connection()
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (found,) = connection.execute("PRAGMA user_version").fetchone()
            (tables,) = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        if application != APPLICATION_ID and (application or tables):
            raise StateError(
                f"{self.path} is not the state of cvmfs-publish, but another program's database",
                hint="correct `state` in the configuration",
            )
        if found > version:
            raise StateError(
                f"{self.path} is of version {found}; this cvmfs-publish knows version {version}",
                hint="use the newer cvmfs-publish that wrote it, or move the file away: a new one"
                " is made, and what is published is not published again",
            )
        with self._translated():
            # quick_check finds torn and foreign pages; a state of 10,000 images takes it 50 ms
            verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
            connection.execute("PRAGMA journal_mode = WAL")
        if application != APPLICATION_ID:
            with self.writing():
                # another process may have been faster
                if not self.rows("SELECT 1 FROM sqlite_master LIMIT 1"):
                    for statement in schema.split(";\n"):
                        self.change(statement)
                    self.change(f"PRAGMA user_version = {version:d}")
                    self.change(f"PRAGMA application_id = {APPLICATION_ID:d}")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeError, OverflowError) as error:
            raise self._error(error) from error

    def _error(self, error: Exception) -> StateError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return StateError(
                f"{self.path} was locked by another program for {BUSY_SECONDS:.0f} seconds",
                hint="end what holds it open, such as a `sqlite3` with a transaction under way",
            )
        if code == sqlite3.SQLITE_FULL:
            return StateError(
                f"{self.path}: the disk is full", hint="free space in the `state` directory"
            )
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            return StateError(
                f"{self.path} cannot be opened or written: {error}",
                hint="run as the account that owns the `state` directory",
            )
        if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM):
            return StateError(f"{self.path}: {error}", hint="look at the disk, then start again")
        return StateError(
            f"{self.path} is damaged: {error}",
            hint="restore it from a backup, or move it away: a new one is made, and what is"
            " published is not published again",
        )
