"""Examine the history and the reflog of a repository.

Source: facts/cvmfs-format.md sections 5 and 7 (swissknife_check.cc: InspectHistory, InspectReflog).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any, NamedTuple

from cvmfs_publish.content.hashes import ContentHash, Suffix
from cvmfs_publish.errors import IntegrityError, RepositoryError
from cvmfs_publish.repository.native.database import open_database, query
from cvmfs_publish.repository.native.history import TRUNK, TRUNK_PREVIOUS, is_tag_name
from cvmfs_publish.repository.native.manifest import Manifest
from cvmfs_publish.repository.native.problems import Report
from cvmfs_publish.repository.native.reflog import FILE_NAME, RefType
from cvmfs_publish.repository.native.upgrade import HISTORY_REVISION, upgrade_history

HISTORY = "history"
_OLD_REVISIONS = {str(revision) for revision in range(HISTORY_REVISION)}
_CLOCK_TOLERANCE = 60  # seconds that clocks of two hosts may differ


class TaggedRoot(NamedTuple):
    """What a tag says of the root catalog it names."""

    tag: str
    hash: ContentHash
    revision: int
    timestamp: int
    size: int


def examine_history(
    data: bytes,
    manifest: Manifest,
    exists: Callable[[ContentHash, Suffix], bool],
    report: Report,
) -> list[TaggedRoot]:
    """Report every problem inside a history; return its tags for a look at their catalogs.

    `exists` tells whether an object is there.
    """
    try:
        database = open_database(data, HISTORY)
    except IntegrityError as error:
        report.error(HISTORY, str(error))
        return []
    try:
        _bring_up_to_date(database, report)
        _check_properties(database, HISTORY, "3", manifest, report)
        _check_previous(database, exists, report)
        branches = _check_branches(database, report)
        tags = _check_tags(database, branches, report)
        _check_trunk(tags, manifest, report)
        for (count,) in query(database, HISTORY, "SELECT COUNT(*) FROM recycle_bin"):
            if count:
                report.warning(HISTORY, f"recycle_bin has {count} rows; it is not used any more")
    except (IntegrityError, RepositoryError) as error:
        report.error(HISTORY, str(error))
        return []
    finally:
        database.close()
    return tags


def _bring_up_to_date(database: sqlite3.Connection, report: Report) -> None:
    """Let the rest look at what the next writer will make of an old history."""
    found = dict(query(database, HISTORY, "SELECT key, value FROM properties"))
    revision = str(found.get("schema_revision"))
    if revision in _OLD_REVISIONS:
        schema = str(found.get("schema"))
        upgrade_history(lambda sql: query(database, HISTORY, sql), HISTORY, schema, revision)
        report.warning(HISTORY, f"has schema revision {revision}; the next revision upgrades it")


def _check_properties(
    database: sqlite3.Connection, place: str, revision: str, manifest: Manifest, report: Report
) -> None:
    verdict = query(database, place, "PRAGMA integrity_check(1)")
    if verdict != [("ok",)]:
        report.error(place, f"database is damaged: {verdict[0][0]}")
    for name, kind in query(
        database, place, "SELECT name, type FROM sqlite_master WHERE type NOT IN ('table', 'index')"
    ):
        raise IntegrityError(f"database has a {kind}, {name}")
    properties = dict(query(database, place, "SELECT key, value FROM properties"))
    wanted = {"schema": "1.0", "schema_revision": revision, "fqrn": manifest.name}
    for key, value in wanted.items():
        if str(properties.get(key)) != value:
            report.error(place, f"property {key} is {properties.get(key)!r}, must be {value!r}")


def _check_previous(
    database: sqlite3.Connection, exists: Callable[[ContentHash, Suffix], bool], report: Report
) -> None:
    found = query(database, HISTORY, "SELECT value FROM properties WHERE key = 'previous_revision'")
    text = str(found[0][0]) if found else None
    if text is None:
        report.error(HISTORY, "has no previous_revision; a lost reflog could not be rebuilt")
        return
    try:
        previous = ContentHash.parse(text)
    except IntegrityError as error:
        report.error(HISTORY, f"previous_revision: {error}")
        return
    if any(previous.digest) and not exists(previous, Suffix.HISTORY):
        # Collection removes old histories and leaves what names them.
        text = f"preceding history {previous} does not exist; a lost reflog could not be rebuilt"
        report.warning(HISTORY, text)


def _check_branches(database: sqlite3.Connection, report: Report) -> dict[str, int]:
    """Return the initial revision of each branch."""
    found = query(database, HISTORY, "SELECT branch, parent, initial_revision FROM branches")
    names = {row[0] for row in found}
    branches: dict[str, int] = {}
    for branch, parent, initial in found:
        if not isinstance(branch, str) or not isinstance(initial, int):
            report.error(HISTORY, f"malformed branch {branch!r}, from revision {initial!r}")
            continue
        branches[branch] = initial
        if (branch == "") != (parent is None) or (parent is not None and parent not in names):
            report.error(HISTORY, f"branch {branch!r} has parent {parent!r}, which does not exist")
    if "" not in branches:
        report.error(HISTORY, "the default branch '' is missing")
    return branches


def _check_tags(
    database: sqlite3.Connection, branches: dict[str, int], report: Report
) -> list[TaggedRoot]:
    tags: list[TaggedRoot] = []
    used: set[str] = set()
    for values in query(
        database,
        HISTORY,
        "SELECT name, hash, revision, timestamp, channel, description, size, branch FROM tags "
        "ORDER BY revision, name",
    ):
        name, text, revision, timestamp, channel, description, size, branch = values
        place = f"tag {name}"
        if not all(isinstance(value, str) for value in (name, text, description, branch)):
            report.error(place, "a text is NULL or no text, which crashes stock programs")
            continue
        if not all(isinstance(value, int) for value in (revision, timestamp, size)):
            report.error(place, "revision, timestamp or size is no number")
            continue
        used.add(branch)
        if not is_tag_name(name):
            report.error(place, f"invalid name {name!r}")
        if channel not in (0, None):
            report.warning(place, f"channel is {channel!r}, must be 0")
        if branch not in branches:
            report.error(place, f"is on branch {branch!r}, which does not exist")
        elif revision < branches[branch]:
            report.error(
                place,
                f"has revision {revision}, but branch {branch!r} starts at {branches[branch]}",
            )
        try:
            tags.append(TaggedRoot(name, ContentHash.parse(text), revision, timestamp, size))
        except IntegrityError as error:
            report.error(place, str(error))
    for branch in branches.keys() - used:
        report.error(HISTORY, f"branch {branch!r} has no tag")
    report.counts["tags"] = len(tags)
    return tags


def _check_trunk(tags: list[TaggedRoot], manifest: Manifest, report: Report) -> None:
    by_name = {tag.tag: tag for tag in tags}
    trunk, previous = by_name.get(TRUNK), by_name.get(TRUNK_PREVIOUS)
    if trunk is None:
        report.error(HISTORY, f"has no tag {TRUNK}")
    elif (trunk.hash, trunk.revision) != (manifest.root_hash, manifest.revision):
        report.error(
            f"tag {TRUNK}",
            f"names revision {trunk.revision} ({trunk.hash}), published is revision "
            f"{manifest.revision} ({manifest.root_hash})",
        )
    if previous is not None and trunk is not None and previous.revision >= trunk.revision:
        report.error(
            f"tag {TRUNK_PREVIOUS}",
            f"has revision {previous.revision}, not before {trunk.revision} of {TRUNK}",
        )


def examine_reflog(
    data: bytes,
    manifest: Manifest,
    exists: Callable[[ContentHash, Suffix], bool],
    report: Report,
    *,
    now: int,
) -> None:
    """Report every problem inside a reflog; `exists` tells whether an object is there."""
    try:
        database = open_database(data, "reflog")
    except IntegrityError as error:
        report.error(FILE_NAME, str(error))
        return
    try:
        _check_properties(database, FILE_NAME, "0", manifest, report)
        refs = query(database, "reflog", "SELECT hash, type, timestamp FROM refs")
    except IntegrityError as error:
        report.error(FILE_NAME, str(error))
        return
    finally:
        database.close()
    listed = _check_refs(refs, exists, report, now)
    wanted = {
        RefType.CATALOG: manifest.root_hash,
        RefType.CERTIFICATE: manifest.certificate,
        RefType.HISTORY: manifest.history,
        RefType.METAINFO: manifest.metainfo,
    }
    for kind, value in wanted.items():
        if value is not None and (value, kind) not in listed:
            report.error(FILE_NAME, f"does not list the current {kind.name.lower()} {value}")
    report.counts["reflog entries"] = len(refs)


def _check_refs(
    refs: list[tuple[Any, ...]],
    exists: Callable[[ContentHash, Suffix], bool],
    report: Report,
    now: int,
) -> set[tuple[ContentHash, RefType]]:
    listed: set[tuple[ContentHash, RefType]] = set()
    for text, number, timestamp in refs:
        try:
            value = ContentHash.parse(text if isinstance(text, str) else "")
        except IntegrityError:
            report.error(FILE_NAME, f"malformed hash {text!r}")
            continue
        if number not in RefType.__members__.values():
            report.error(FILE_NAME, f"{value} is of unknown type {number!r}")
            continue
        kind = RefType(number)
        if not isinstance(timestamp, int):
            report.error(FILE_NAME, f"time of {value} is {timestamp!r}")
        elif timestamp > now + _CLOCK_TOLERANCE:
            report.warning(FILE_NAME, f"time of {value} lies in the future: {timestamp}")
        listed.add((value, kind))
        if not exists(value, kind.suffix):
            # as after a collection that was interrupted
            text = f"lists the {kind.name.lower()} {value}, which does not exist"
            report.warning(FILE_NAME, text)
    return listed
