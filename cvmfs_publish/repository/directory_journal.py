"""What a transaction changes in a plain tree, as one file whose appearance is the commit.

A tree of files has no step that switches several names together.  So everything is prepared where
nobody looks, then the journal appears, by one `link(2)`, and from that moment on the transaction is
done: what it says is carried out now or, after a crash, by whoever writes next, and readers of ours
see the tree as it will be.  Carrying it out twice does no harm.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.layers.tree import Node, RepoPath
from cvmfs_publish.repository.base import Revision
from cvmfs_publish.repository.changes import Changes, New, NewDirectory, NewFile, NewLink, NewTree
from cvmfs_publish.repository.folder import FolderView
from cvmfs_publish.repository.folder_listing import Traits

FORMAT = 1  # of both files; higher ones are refused


@dataclass(frozen=True, slots=True)
class State:
    """`repository.json`: what is published, as far as the tree itself does not tell."""

    name: str
    revision: int
    root_hash: str  # of everything that led here; differs whenever a revision differs
    timestamp: int  # Unix seconds

    def to_json(self) -> bytes:
        return (json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> State:
        """Raise `IntegrityError` unless these are the bytes of such a file."""
        try:
            return cls._parse(_load(data))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise IntegrityError(f"malformed state of a repository: {error}") from error

    @classmethod
    def _parse(cls, document: Mapping[str, Any]) -> State:
        found = cls(**{key: document[key] for key in cls.__slots__})
        kinds = {"name": str, "revision": int, "root_hash": str, "timestamp": int}
        if any(type(getattr(found, key)) is not kind for key, kind in kinds.items()):
            raise TypeError(f"{found} has values of wrong types")
        return found

    @property
    def published(self) -> Revision:
        return Revision(self.revision, self.root_hash, self.timestamp)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A sandbox on its way: where it is, and what its directory gets when it has arrived."""

    number: int
    mode: int
    uid: int
    gid: int
    mtime: int
    mtime_ns: int

    @classmethod
    def of(cls, number: int, root: Node) -> Arrival:
        return cls(number, root.mode, root.uid, root.gid, root.mtime, root.mtime_ns)

    @property
    def root(self) -> Node:
        return Node(self.mode, self.uid, self.gid, self.mtime, self.mtime_ns)


Entry = NewFile | NewLink | NewDirectory | Arrival


@dataclass(frozen=True, slots=True)
class Journal:
    """`journal.json`."""

    transaction: str  # a name of its own
    before: State  # that it begins from
    state: State  # when it is done
    traits: Traits
    cleared: tuple[RepoPath, ...]
    entries: Mapping[RepoPath, Entry]

    def to_json(self) -> bytes:
        document = {
            "format": FORMAT,
            "transaction": self.transaction,
            "before": asdict(self.before),
            "state": asdict(self.state),
            "traits": asdict(self.traits),
            "cleared": self.cleared,
            "entries": {path: _dump(entry) for path, entry in self.entries.items()},
        }
        return json.dumps(document).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Journal:
        """Raise `IntegrityError` unless these are the bytes of a journal."""
        try:
            document = _load(data)
            return cls(
                document["transaction"],
                State(**document["before"]),
                State(**document["state"]),
                Traits(**document["traits"]),
                tuple(document["cleared"]),
                {path: _parse(entry) for path, entry in document["entries"].items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise IntegrityError(f"malformed journal: {error}") from error

    def place(self, number: int) -> str:
        """Return the name of a sandbox that has not arrived yet."""
        return f"{self.transaction}-{number}"

    def show(self, base: FolderView, arriving: Mapping[int, FolderView]) -> Changes:
        """Return the tree as it will be."""
        changes = Changes(base, self.state.timestamp)
        changes.cleared.update(self.cleared)
        for path, entry in self.entries.items():
            new: New
            if isinstance(entry, Arrival):
                new = NewTree(entry.number, arriving[entry.number])
            else:
                new = entry
            changes.put(path, new)
        return changes


def _load(data: bytes) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(data)
    if document["format"] > FORMAT:
        raise IntegrityError(
            f"format {document['format']}; this version knows {FORMAT}",
            hint="update cvmfs-publish",
        )
    return document


def _dump(entry: Entry) -> dict[str, Any]:
    if isinstance(entry, NewFile):
        return {"file": base64.b64encode(entry.data).decode("ascii")}
    if isinstance(entry, NewLink):
        return {"link": entry.target}
    if isinstance(entry, NewDirectory):
        return {"directory": entry.is_nested}
    return {"tree": asdict(entry)}


def _parse(document: Mapping[str, Any]) -> Entry:
    (kind,) = document
    value = document[kind]
    if kind == "file":
        return NewFile(base64.b64decode(value, validate=True))
    if kind == "link":
        return NewLink(value)
    if kind == "directory":
        return NewDirectory(value)
    if kind == "tree":
        return Arrival(**value)
    raise ValueError(f"unknown entry {kind!r}")
