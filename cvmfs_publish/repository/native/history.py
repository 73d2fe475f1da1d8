"""Keep the named snapshots (tags) of a repository in its history database.

Source: facts/cvmfs-format.md sections 5.1 and 5.2 (history_sql.cc, history_sqlite.cc).  A history
lives in memory here; it is stored compressed, as an object with suffix H.
"""

from __future__ import annotations

import itertools
import re
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, Self

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm
from cvmfs_publish.errors import InputError, IntegrityError
from cvmfs_publish.repository.native.database import Database
from cvmfs_publish.repository.native.upgrade import upgrade_history
from cvmfs_publish.settings import nearest

TRUNK = "trunk"
TRUNK_PREVIOUS = "trunk-previous"
MAX_TAG_NAME = 255  # characters; our own bound, the format has none
_TAG_NAME = re.compile(r"[A-Za-z0-9_./:-]+")
# as stock makes them and finds them again (cvmfs_server_publish.sh)
_AUTOMATIC = re.compile(r"generic(_[0-9]+)?-[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_NO_HASH = bytes(20)

_SCHEMA = """
CREATE TABLE properties (key TEXT, value TEXT, CONSTRAINT pk_properties PRIMARY KEY (key));
CREATE TABLE branches (branch TEXT, parent TEXT, initial_revision INTEGER,
  CONSTRAINT pk_branch PRIMARY KEY (branch),
  FOREIGN KEY (parent) REFERENCES branches (branch),
  CHECK ((branch <> '') OR (parent IS NULL)),
  CHECK ((branch = '') OR (parent IS NOT NULL)));
INSERT INTO branches (branch, parent, initial_revision) VALUES ('', NULL, 0);
CREATE TABLE tags (name TEXT, hash TEXT, revision INTEGER, timestamp INTEGER, channel INTEGER,
  description TEXT, size INTEGER, branch TEXT,
  CONSTRAINT pk_tags PRIMARY KEY (name),
  FOREIGN KEY (branch) REFERENCES branches (branch));
CREATE TABLE recycle_bin (hash TEXT, flags INTEGER, CONSTRAINT pk_hash PRIMARY KEY (hash));
INSERT INTO properties (key, value) VALUES ('schema', '1.0');
INSERT INTO properties (key, value) VALUES ('schema_revision', '3');
"""


class Tag(NamedTuple):
    """A named revision."""

    name: str
    hash: ContentHash  # of the root catalog
    revision: int
    timestamp: int  # Unix seconds: `last_modified` of that root catalog
    size: int  # bytes of that root catalog, uncompressed
    description: str = ""
    branch: str = ""  # "" is the default branch


def automatic_tag(started: int, number: int = 0) -> str:
    """Return the name of the automatic tag of a publish that started at this Unix time.

    `number` tells several of one second apart.
    """
    clash = f"_{number}" if number else ""
    return f"generic{clash}-{datetime.fromtimestamp(started, UTC):%Y-%m-%dT%H:%M:%SZ}"


def is_tag_name(name: str) -> bool:
    """Whether stock tools accept `name` for a tag."""
    return len(name) <= MAX_TAG_NAME and _TAG_NAME.fullmatch(name) is not None


def _check_description(name: str, description: str) -> None:
    if "\0" in description or not _is_utf8(description):
        raise InputError(f"description of tag {name!r} is not text: {description!r}")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_tag_name(name: str) -> None:
    """Raise `InputError` unless a person may give this name to a revision."""
    if len(name) > MAX_TAG_NAME:
        raise InputError(f"tag name of {len(name)} characters: {MAX_TAG_NAME} are possible")
    if not is_tag_name(name):
        raise InputError(f"tag name {name!r} is not made of letters, digits and _ . / : -")
    if name in (TRUNK, TRUNK_PREVIOUS):
        raise InputError(
            f"tag name {name!r} is reserved: it moves with every revision",
            hint="choose another name",
        )
    if _AUTOMATIC.fullmatch(name):
        raise InputError(
            f"tag name {name!r} is that of an automatic tag, which is removed after its time",
            hint="choose another name",
        )


class History(Database):
    """An open history."""

    WHAT = "history"
    SCHEMA = _SCHEMA
    TABLES = ("tags", "branches", "properties")

    @classmethod
    def create(cls, name: str) -> Self:
        """Return the history of a new repository: no tags, no predecessor."""
        history = super().create(name)
        history.previous_revision = None
        return history

    def _upgrade(self) -> None:
        # A copy in memory, so this changes nothing that is published.
        schema, revision = self.get_property("schema"), self.get_property("schema_revision")
        upgrade_history(self._rows, self.WHAT, schema, revision)

    @property
    def previous_revision(self) -> ContentHash | None:
        """The history object before this one, None for the first.

        `reconstruct_reflog` follows these links, so every history has the property.
        """
        text = self.get_property("previous_revision")
        value = ContentHash.parse(text) if text is not None else None
        return None if value is None or value.digest == _NO_HASH else value

    @previous_revision.setter
    def previous_revision(self, value: ContentHash | None) -> None:
        none = ContentHash(_NO_HASH, HashAlgorithm.SHA1)
        self._set_property("previous_revision", str(none if value is None else value))

    def tags(self) -> list[Tag]:
        """Return all tags, oldest revision first; raise `IntegrityError` on a malformed one."""
        found = self._rows(
            "SELECT name, hash, revision, timestamp, size, description, branch FROM tags "
            "ORDER BY revision, timestamp, name"
        )
        return [_decode(values) for values in found]

    def tag(self, name: str) -> Tag | None:
        return next((tag for tag in self.tags() if tag.name == name), None)

    def add_tag(
        self,
        name: str,
        root_hash: ContentHash,
        revision: int,
        timestamp: int,
        size: int,
        description: str = "",
    ) -> None:
        """Add a tag on the default branch.

        Raises:
            InputError: `name` is malformed, reserved or taken, or `description` is not text.
        """
        check_tag_name(name)
        existing = self.tag(name)
        if existing is not None:
            raise InputError(
                f"tag {name!r} exists already, of revision {existing.revision}",
                hint="choose another name, or move it with `tag --force`",
            )
        _check_description(name, description)
        self._insert(Tag(name, root_hash, revision, timestamp, size, description))

    def move_tag(self, tag: Tag) -> None:
        """Let a tag of this name say this, whatever it said before.

        Raises:
            InputError: it is reserved, or its description is not text.
        """
        check_tag_name(tag.name)
        _check_description(tag.name, tag.description)
        self._rows("DELETE FROM tags WHERE name = ?", tag.name)
        self._insert(tag)

    def remove_tag(self, name: str) -> Tag:
        """Remove a tag and return it; raise `InputError` if there is none or it is reserved."""
        if name in (TRUNK, TRUNK_PREVIOUS):
            raise InputError(f"tag {name!r} cannot be removed: it moves with every revision")
        tags = {tag.name: tag for tag in self.tags()}
        if name not in tags:
            meant = nearest(name, tags)
            raise InputError(
                f"there is no tag {name!r}",
                hint=f"did you mean {meant!r}?" if meant else "`tag` lists them",
            )
        if sum(tag.branch == tags[name].branch for tag in tags.values()) == 1:
            # "unused, dangling branches" (swissknife_check.cc)
            raise InputError(
                f"tag {name!r} is the last one of its branch, which stock tools do not allow",
                hint="tag another revision first",
            )
        self._rows("DELETE FROM tags WHERE name = ?", name)
        return tags[name]

    def add_automatic_tag(self, started: int) -> None:
        """Tag the newest revision with when its publish started (CVMFS_AUTO_TAG)."""
        tags = {tag.name: tag for tag in self.tags()}
        names = (automatic_tag(started, number) for number in itertools.count())
        name = next(name for name in names if name not in tags)
        self._insert(tags[TRUNK]._replace(name=name, description="", branch=""))

    def remove_automatic_tags(self, now: int, span: timedelta) -> None:
        """Remove automatic tags of revisions older than `span` (CVMFS_AUTO_TAG_TIMESPAN)."""
        oldest = now - span.total_seconds()
        for tag in self.tags():
            if _AUTOMATIC.fullmatch(tag.name) and tag.timestamp < oldest:
                self._rows("DELETE FROM tags WHERE name = ?", tag.name)

    def advance(self, root_hash: ContentHash, revision: int, timestamp: int, size: int) -> None:
        """Move `trunk` to a new revision and `trunk-previous` to where it was.

        The undo-tag procedure of section 5.1 (swissknife_history.cc: UpdateUndoTags).
        """
        self._rows("DELETE FROM tags WHERE name = ?", TRUNK_PREVIOUS)
        self._rows(
            "UPDATE tags SET name = ?, description = 'default undo target' WHERE name = ?",
            TRUNK_PREVIOUS,
            TRUNK,
        )
        self._insert(Tag(TRUNK, root_hash, revision, timestamp, size, "current HEAD"))

    def _insert(self, tag: Tag) -> None:
        self._rows(
            "INSERT INTO tags (name, hash, revision, timestamp, channel, description, size, "
            "branch) VALUES (?, ?, ?, ?, 0, ?, ?, ?)",
            tag.name,
            str(tag.hash),
            tag.revision,
            tag.timestamp,
            tag.description,
            tag.size,
            tag.branch,
        )


def _decode(values: tuple[object, ...]) -> Tag:
    name, text, revision, timestamp, size, description, branch = values
    if (
        isinstance(name, str)
        and isinstance(text, str)
        and isinstance(revision, int)
        and isinstance(timestamp, int)
        and isinstance(size, int | None)
        and isinstance(description, str)
        and isinstance(branch, str)
    ):
        digest = ContentHash.parse(text)
        return Tag(name, digest, revision, timestamp, size or 0, description, branch)
    raise IntegrityError(f"history: malformed tag {name!r}")
