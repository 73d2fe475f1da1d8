"""Bring a catalog or a history of an older server to the newest schema, as stock tools do.

Source: facts/cvmfs-format.md section 3.2 "Schema history" (catalog_sql.cc:
LiveSchemaUpgradeIfNecessary) and 5.1 (history_sql.cc).  Columns that are added stand last, where a
fresh database has some of them elsewhere: whoever reads or writes these tables names the columns.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from cvmfs_publish.errors import RepositoryError

CATALOG_SCHEMA, CATALOG_REVISION = "2.5", 7
HISTORY_SCHEMA, HISTORY_REVISION = "1.0", 3
REFLOG_SCHEMA, REFLOG_REVISION = "1.0", 0
# catalog revisions that brought something
NESTED_SIZE_SINCE, XATTR_SINCE, EXTERNAL_SINCE, SPECIAL_SINCE, MTIME_NS_SINCE = 1, 2, 3, 5, 7
# The revision that brought a counter; a catalog of an earlier one has none of what it counts.
COUNTER_SINCE = {
    "xattr": XATTR_SINCE,
    "external": EXTERNAL_SINCE,
    "external_file_size": EXTERNAL_SINCE,
    "special": SPECIAL_SINCE,  # but there were special files before
}

_NUMBER = re.compile(r"[0-9]{1,9}")
_ZERO = "INSERT OR IGNORE INTO statistics (counter, value) VALUES ('{}', 0)"


def _counters(*names: str) -> tuple[str, ...]:
    return tuple(_ZERO.format(f"{scope}_{name}") for name in names for scope in ("self", "subtree"))


# what leads from the revision of that index to the next
_CATALOG_STEPS: tuple[tuple[str, ...], ...] = (
    # 0 means that the size is unknown; NULL, which stock leaves, is read as 0.
    (
        "ALTER TABLE nested_catalogs ADD size INTEGER",
        "UPDATE nested_catalogs SET size = 0",
    ),
    ("ALTER TABLE catalog ADD xattr BLOB", *_counters("xattr")),
    _counters("external", "external_file_size"),
    (
        "CREATE TABLE bind_mountpoints (path TEXT, sha1 TEXT, size INTEGER, "
        "CONSTRAINT pk_bind_mountpoints PRIMARY KEY (path))",
    ),
    _counters("special"),
    (),  # a new flag only
    ("ALTER TABLE catalog ADD mtimens INTEGER",),
)
_HISTORY_STEPS: tuple[tuple[str, ...], ...] = (
    ("ALTER TABLE tags ADD size INTEGER", "UPDATE tags SET size = 0"),
    ("CREATE TABLE recycle_bin (hash TEXT, flags INTEGER, CONSTRAINT pk_hash PRIMARY KEY (hash))",),
    (
        "CREATE TABLE branches (branch TEXT, parent TEXT, initial_revision INTEGER, "
        "CONSTRAINT pk_branch PRIMARY KEY (branch), "
        "FOREIGN KEY (parent) REFERENCES branches (branch), "
        "CHECK ((branch <> '') OR (parent IS NULL)), "
        "CHECK ((branch = '') OR (parent IS NOT NULL)))",
        "INSERT INTO branches (branch, parent, initial_revision) VALUES ('', NULL, 0)",
        "ALTER TABLE tags RENAME TO old_tags",
        "CREATE TABLE tags (name TEXT, hash TEXT, revision INTEGER, timestamp INTEGER, "
        "channel INTEGER, description TEXT, size INTEGER, branch TEXT, "
        "CONSTRAINT pk_tags PRIMARY KEY (name), "
        "FOREIGN KEY (branch) REFERENCES branches (branch))",
        "INSERT INTO tags (name, hash, revision, timestamp, channel, description, size, branch) "
        "SELECT name, hash, revision, timestamp, channel, coalesce(description, ''), "
        "coalesce(size, 0), '' FROM old_tags ORDER BY rowid",
        "DROP TABLE old_tags",
    ),
)

Execute = Callable[[str], object]  # runs one statement; raises `IntegrityError` where it cannot


def schema_revision(what: str, schema: str | None, revision: str | None) -> int:
    """Return the schema revision of a catalog.

    Args:
        what: the catalog, for messages.
        schema: its property `schema`.
        revision: its property `schema_revision`; the oldest have none.

    Raises:
        RepositoryError: it cannot be written by this version.
    """
    return _revision(what, schema, revision, CATALOG_SCHEMA, CATALOG_REVISION)


def upgrade_catalog(execute: Execute, what: str, schema: str | None, revision: str | None) -> int:
    """Bring a catalog's tables and property `schema_revision` up to date; return what it was.

    Raises:
        RepositoryError: it cannot be written by this version; nothing was executed.
    """
    found = schema_revision(what, schema, revision)
    _upgrade(execute, _CATALOG_STEPS[found:], CATALOG_REVISION)
    return found


def upgrade_history(execute: Execute, what: str, schema: str | None, revision: str | None) -> int:
    """Bring a history up to date, like `upgrade_catalog`."""
    found = _revision(what, schema, revision, HISTORY_SCHEMA, HISTORY_REVISION)
    _upgrade(execute, _HISTORY_STEPS[found:], HISTORY_REVISION)
    return found


def check_reflog(what: str, schema: str | None, revision: str | None) -> None:
    """Raise `RepositoryError` if a reflog cannot be written by this version."""
    _revision(what, schema, revision, REFLOG_SCHEMA, REFLOG_REVISION)


def _upgrade(execute: Execute, steps: tuple[tuple[str, ...], ...], newest: int) -> None:
    if not steps:
        return
    execute("BEGIN")
    for statements in steps:
        for statement in statements:
            execute(statement)
    execute(
        "INSERT OR REPLACE INTO properties (key, value) "  # noqa: S608 - a constant
        f"VALUES ('schema_revision', '{newest}')"
    )
    execute("COMMIT")


def _revision(what: str, schema: str | None, revision: str | None, wanted: str, newest: int) -> int:
    text = "0" if revision is None else revision
    try:
        same = schema is not None and float(schema) == float(wanted)  # stock stores 2.5 or 2.50
    except ValueError:
        same = False
    if not same or not _NUMBER.fullmatch(text):
        raise RepositoryError(
            f"{what} has schema {schema} revision {revision}, this version writes {wanted} "
            f"revision {newest}",
            hint="let the newest cvmfs_server publish once, which upgrades what it can",
        )
    if int(text) > newest:
        raise RepositoryError(
            f"{what} has schema revision {text}, newer than {newest}, which this version writes",
            hint="use a newer version of cvmfs-publish, or the cvmfs_server that wrote it",
        )
    return int(text)
