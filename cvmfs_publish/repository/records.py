"""Turn what is known about a published image into `publication.json` and back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

from cvmfs_publish.errors import IntegrityError, RepositoryError
from cvmfs_publish.findings import Finding
from cvmfs_publish.layers.tree import RepoPath
from cvmfs_publish.repository.base import Searchable, View
from cvmfs_publish.repository.layouts import (
    IMAGES,
    MANIFEST_FILE,
    METADATA,
    PUBLICATION_FILE,
    REPLACED,
    STAGED,
    STAGED_FILE,
    UNPUBLISHED_FILE,
)

T = TypeVar("T")

FORMAT = 1  # of publication.json; readers refuse a higher one
MAX_EVENTS = 1000  # of a name's history; older ones are forgotten: 150 KB, and years of nightlies

PUBLISHED = "published"
ROLLED_BACK = "rolled back"
UNPUBLISHED = "unpublished"


class Event(NamedTuple):
    """Something that happened to a name, and what it led to then or, unpublished, until then."""

    at: str  # RFC 3339, UTC
    revision: int  # in which it became visible
    digest: str  # of what the tag named in the registry
    manifest_digest: str
    image_id: str
    what: str  # PUBLISHED, ROLLED_BACK or UNPUBLISHED


_EVENT_TYPES = {name: "int" if name == "revision" else "str" for name in Event._fields}


@dataclass(frozen=True, slots=True)
class Publication:
    """One name of one image, as published.  Field names are those of the JSON document."""

    reference: str
    digest: str  # of what the tag named in the registry: an index or a manifest
    manifest_digest: str  # of the chosen platform
    image_id: str  # digest of the image configuration
    platform: str
    path: str  # absolute below the repository
    sandbox: str  # absolute below the repository
    published_at: str  # RFC 3339, UTC: since when the name leads there
    revision: int  # in which this state became visible
    entries: int
    content_bytes: int  # of all files, uncompressed
    stored_bytes: int  # of the objects of its layers; shared ones are counted in every image
    tree_digest: str  # over the canonical listing of the sandbox
    recipe: str  # digest of how images were prepared then
    layers: tuple[str, ...]  # digests, lowest first
    roots_added: tuple[str, ...]
    findings: tuple[Finding, ...]
    publisher: str  # program and version
    signature: str = ""  # the policy of `trust` that held; "" where nothing was asked
    what: str = PUBLISHED  # how the name came to lead there; or ROLLED_BACK
    history: tuple[Event, ...] = ()  # what happened to the name before, oldest first
    pinned_at: str = ""  # RFC 3339, UTC; "": the name is not pinned
    pinned: tuple[str, ...] = ()  # sandboxes (absolute) that the pin keeps
    signed_by: tuple[str, ...] = ()  # fingerprints of the keys whose signatures were found good
    trust: str = ""  # digest of all that the policy asked
    source: str = ""  # where it came from; "": the registry of its name
    source_state: str = ""  # of the file it came from, as long as that is not known to change
    short_name: str = ""  # the second name, of the layout `osg`, absolute like `path`

    @property
    def event(self) -> Event:
        """What made this state of the name visible."""
        return Event(
            self.published_at,
            self.revision,
            self.digest,
            self.manifest_digest,
            self.image_id,
            self.what,
        )

    @property
    def events(self) -> tuple[Event, ...]:
        """Everything that happened to the name, oldest first; the last is the present state."""
        return (*self.history, self.event)

    def to_json(self) -> bytes:
        document: dict[str, Any] = {"format": FORMAT, **asdict(self)}
        document["findings"] = [finding._asdict() for finding in self.findings]
        document["history"] = [event._asdict() for event in self.history]
        for name in _OFTEN_EMPTY:
            if not document[name]:
                del document[name]
        return (json.dumps(document, indent=2) + "\n").encode("ascii")

    @classmethod
    def from_json(cls, data: bytes) -> Publication:
        """Raise `IntegrityError` unless `data` is a record this version understands."""
        try:
            document = _load(data)
            document = document if document.keys() >= _FIELDS.keys() else _DEFAULTS | document
            values: Any = _GET_FIELDS(document)
            if tuple(map(type, values)) != _JSON_TYPES:
                _check_types(_FIELDS, dict(zip(_FIELDS, values, strict=True)))
            return cls(
                **dict(zip(_FIELDS, values, strict=True))
                | {
                    "layers": _texts(document["layers"]),
                    "roots_added": _texts(document["roots_added"]),
                    "findings": _findings(document["findings"]),
                    "history": _events(document["history"]),
                    "pinned": _texts(document["pinned"]),
                    "signed_by": _texts(document["signed_by"]),
                }
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise IntegrityError(f"malformed {PUBLICATION_FILE}: {error}") from error


_FIELDS = {field.name: str(field.type) for field in fields(Publication)}
# All at once: a repository has ten thousand records.
_GET_FIELDS = itemgetter(*_FIELDS)
_JSON_TYPES = tuple({"str": str, "int": int}.get(kind, list) for kind in _FIELDS.values())
# of records that were written before there were these fields
_DEFAULTS: dict[str, Any] = {
    "signature": "",
    "what": PUBLISHED,
    "history": [],
    "pinned_at": "",
    "pinned": [],
    "signed_by": [],
    "trust": "",
    "source": "",
    "source_state": "",
    "short_name": "",
}
_OFTEN_EMPTY = ("source", "source_state", "short_name")  # left out where they are


@dataclass(frozen=True, slots=True)
class Artefact:
    """An image as one file, for nodes that CernVM-FS cannot serve."""

    format: str  # `sif` or `tar.gz`
    sha256: str  # of the file, hexadecimal
    size: int  # bytes
    unpacked_size: int  # bytes of all files in it

    def __post_init__(self) -> None:
        if not (
            self.format in ARTEFACT_FORMATS
            and _SHA256.fullmatch(self.sha256)
            and self.size > 0
            and self.unpacked_size >= 0
        ):
            raise IntegrityError(f"{self} describes no artefact")

    @property
    def file(self) -> str:
        """Its name in the store."""
        return f"{self.sha256}.{self.format}"


ARTEFACT_FORMATS = ("sif", "tar.gz")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ARTEFACT_TYPES = {name: str(field.type) for name, field in Artefact.__dataclass_fields__.items()}


@dataclass(frozen=True, slots=True)
class SandboxRecord:
    """How one sandbox was made, whatever names lead to it."""

    recipe: str
    tree_digest: str
    fallback: Artefact | None = None  # the same as one file, if there is one

    def is_same(self, other: SandboxRecord) -> bool:
        """Whether both tell of the same sandbox, made in the same way."""
        return (self.recipe, self.tree_digest) == (other.recipe, other.tree_digest)

    def to_json(self) -> bytes:
        document = asdict(self)
        if self.fallback is None:
            del document["fallback"]
        return (json.dumps(document) + "\n").encode("ascii")

    @classmethod
    def from_json(cls, data: bytes) -> SandboxRecord:
        """Raise `IntegrityError` unless `data` is such a record."""
        try:
            document = json.loads(data)
            recipe, tree_digest = _texts([document["recipe"], document["tree_digest"]])
            return cls(recipe, tree_digest, _artefact(document.get("fallback")))
        except (ValueError, KeyError, TypeError, RecursionError, AttributeError) as error:
            raise IntegrityError(f"malformed sandbox record: {error}") from error


def _artefact(document: Any) -> Artefact | None:  # noqa: ANN401 - JSON
    if document is None:
        return None
    values = {name: document[name] for name in _ARTEFACT_TYPES}
    _check_types(_ARTEFACT_TYPES, values)
    return Artefact(**values)


@dataclass(frozen=True, slots=True)
class Unpublished:
    """What is left of a name that leads nowhere at present: its history, as `unpublished.json`."""

    history: tuple[Event, ...]  # oldest first; the last is what unpublished it

    def to_json(self) -> bytes:
        document = {"format": FORMAT, "history": [event._asdict() for event in self.history]}
        return (json.dumps(document, indent=2) + "\n").encode("ascii")

    @classmethod
    def from_json(cls, data: bytes) -> Unpublished:
        """Raise `IntegrityError` unless `data` is such a record."""
        try:
            return cls(_events(_load(data)["history"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise IntegrityError(f"malformed {UNPUBLISHED_FILE}: {error}") from error


@dataclass(frozen=True, slots=True)
class Staged:
    """A published image that a name does not lead to yet, as `staged.json`."""

    publication: Publication  # the record the name will have; time and revision are the sandbox's
    replicas: int  # how many are to have that revision before the name leads there

    @property
    def revision(self) -> int:
        """In which the sandbox became visible."""
        return self.publication.revision

    def to_json(self) -> bytes:
        publication = json.loads(self.publication.to_json())
        document = {"format": FORMAT, "replicas": self.replicas, "publication": publication}
        return (json.dumps(document, indent=2) + "\n").encode("ascii")

    @classmethod
    def from_json(cls, data: bytes) -> Staged:
        """Raise `IntegrityError` unless `data` is such a record."""
        try:
            document = _load(data)
            replicas, publication = document["replicas"], document["publication"]
            _check_types({"replicas": "int"}, {"replicas": replicas})
            return cls(Publication.from_json(json.dumps(publication).encode()), replicas)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise IntegrityError(f"malformed {STAGED_FILE}: {error}") from error


def _load(data: bytes) -> Any:  # noqa: ANN401 - JSON
    document = json.loads(data.decode())
    if document["format"] > FORMAT:
        raise IntegrityError(
            f"record of format {document['format']}; this version knows {FORMAT}",
            hint="update cvmfs-publish",
        )
    return document


def _findings(values: object) -> tuple[Finding, ...]:
    if not isinstance(values, list):
        raise TypeError(f"{values!r} is not a list of findings")
    findings = tuple([Finding(found["path"], found["what"]) for found in values])
    _texts([text for finding in findings for text in finding])
    return findings


def _events(value: object) -> tuple[Event, ...]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is not a list of events")
    events = tuple(Event(*(document[name] for name in Event._fields)) for document in value)
    for event in events:
        _check_types(_EVENT_TYPES, event._asdict())
    return events


_TEXT = {str}
_KINDS = {"str": str, "int": int}  # those types whose values can be judged one by one


def _check_types(types: Mapping[str, str], values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if (kind := _KINDS.get(types[name])) and type(value) is not kind:
            raise TypeError(f"{name} is {value!r}, not of type {types[name]}")


def _texts(values: object) -> tuple[str, ...]:
    if not isinstance(values, list) or not _TEXT.issuperset(map(type, values)):
        raise TypeError(f"{values!r} is not a list of texts")
    return tuple(values)


def read_publication(view: View, path: RepoPath) -> Publication | None:
    """Return the record in file `path`; None if there is none.

    Raises `RepositoryError` if the file is damaged.
    """
    return _read(view, path, Publication.from_json)


def read_unpublished(view: View, path: RepoPath) -> Unpublished | None:
    """Return the record in file `path`; None if there is none.

    Raises `RepositoryError` if the file is damaged.
    """
    return _read(view, path, Unpublished.from_json)


def read_staged(view: View, folder: RepoPath) -> Staged | None:
    """Return the record in directory `folder`; None if there is none.

    Raises `RepositoryError` if the file is damaged.
    """
    return _read(view, f"{folder}/{STAGED_FILE}", Staged.from_json)


def read_sandbox(view: View, path: RepoPath) -> SandboxRecord | None:
    """Return the record in file `path`; None if there is none.

    Raises `RepositoryError` if the file is damaged.
    """
    return _read(view, path, SandboxRecord.from_json)


def _read(view: View, path: RepoPath, parse: Callable[[bytes], T]) -> T | None:
    data = view.read_file(path)
    if data is None:
        return None
    with _naming(path):
        return parse(data)


@contextmanager
def _naming(path: RepoPath) -> Iterator[None]:
    """Tell a damaged record of the repository from damage in what is being published."""
    try:
        yield
    except IntegrityError as error:
        raise RepositoryError(
            f"/{path} in the repository: {error}",
            hint=error.hint or "restore the file, or the repository, from a backup",
        ) from error


NOT_NAMES = frozenset({REPLACED, *(path.rpartition("/")[2] for path in (IMAGES, STAGED))})
_RECORDS = {MANIFEST_FILE, PUBLICATION_FILE, UNPUBLISHED_FILE, REPLACED}


def iter_publications(view: View) -> Iterator[Publication]:
    """Yield the records of all published names, in the order of their paths."""
    if isinstance(view, Searchable):
        for path, data in view.find_files(METADATA, PUBLICATION_FILE, NOT_NAMES):
            try:
                found = Publication.from_json(data)
            except IntegrityError:
                with _naming(path):  # a context for each of ten thousand would take long
                    raise
            yield found
        return
    for directory, files in iter_records(view):
        if PUBLICATION_FILE in files:
            record = read_publication(view, f"{directory}/{PUBLICATION_FILE}")
            if record is not None:
                yield record


def iter_records(view: View) -> Iterator[tuple[RepoPath, set[str]]]:
    """Yield every directory that holds records of a name, and what is in it, ordered by path.

    That includes names another program published and names that lead nowhere at present.
    """
    stack = [METADATA]
    while stack:
        directory = stack.pop()
        files, below = set(), []
        for name, is_directory in view.list_names(directory):
            path = f"{directory}/{name}"
            if not is_directory or name == REPLACED:
                files.add(name)
            elif path not in (IMAGES, STAGED):
                below.append(path)
        if files & _RECORDS:
            yield directory, files
        stack.extend(reversed(below))


def iter_staged(view: View) -> Iterator[Staged]:
    """Yield the records of all names that wait for replicas, in the order of their paths."""
    stack = [STAGED]
    while stack:
        directory = stack.pop()
        names = view.list_names(directory)
        if (STAGED_FILE, False) in names and (record := read_staged(view, directory)) is not None:
            yield record
        stack += [f"{directory}/{name}" for name, is_directory in reversed(names) if is_directory]


def renumbered(data: bytes, old: int, new: int) -> bytes:
    """Return a record of a name, visible in revision `new` where it says `old`.

    What is no such record is returned as it is.
    """
    try:
        record = Publication.from_json(data)
    except IntegrityError:
        try:
            left = Unpublished.from_json(data)
        except IntegrityError:
            return _renumbered_staged(data, old, new)
        return Unpublished(_renumbered(left.history, old, new)).to_json()
    return _renumbered_record(record, old, new).to_json()


def _renumbered_record(record: Publication, old: int, new: int) -> Publication:
    revision = new if record.revision == old else record.revision
    return replace(record, history=_renumbered(record.history, old, new), revision=revision)


def _renumbered_staged(data: bytes, old: int, new: int) -> bytes:
    try:
        staged = Staged.from_json(data)
    except IntegrityError:
        return data
    return replace(staged, publication=_renumbered_record(staged.publication, old, new)).to_json()


def _renumbered(history: tuple[Event, ...], old: int, new: int) -> tuple[Event, ...]:
    return tuple(
        event._replace(revision=new) if event.revision == old else event for event in history
    )
