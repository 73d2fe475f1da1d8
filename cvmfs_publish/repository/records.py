"""Turn what is known about a published image into `publication.json` and back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.findings import Finding
from cvmfs_publish.layers.tree import RepoPath
from cvmfs_publish.repository.base import View
from cvmfs_publish.repository.layouts import IMAGES, METADATA, PUBLICATION_FILE

FORMAT = 1  # of publication.json; readers refuse a higher one


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
    published_at: str  # RFC 3339, UTC
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
    signature: str = ""  # result of the signature policy; "" where none applied

    def to_json(self) -> bytes:
        document: dict[str, Any] = {"format": FORMAT, **asdict(self)}
        document["findings"] = [finding._asdict() for finding in self.findings]
        return (json.dumps(document, indent=2) + "\n").encode("ascii")

    @classmethod
    def from_json(cls, data: bytes) -> Publication:
        """Raise `IntegrityError` unless `data` is a record this version understands."""
        try:
            document = json.loads(data)
            if document["format"] > FORMAT:
                raise IntegrityError(
                    f"record of format {document['format']}; this version knows {FORMAT}",
                    hint="update cvmfs-publish",
                )
            values = {f.name: document[f.name] for f in fields(cls) if f.name in document}
            _check_types({f.name: str(f.type) for f in fields(cls)}, values)
            values["layers"] = _texts(values["layers"])
            values["roots_added"] = _texts(values["roots_added"])
            values["findings"] = tuple(
                Finding(*_texts([f["path"], f["what"]])) for f in values["findings"]
            )
            return cls(**values)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise IntegrityError(f"malformed {PUBLICATION_FILE}: {error}") from error


@dataclass(frozen=True, slots=True)
class SandboxRecord:
    """How one sandbox was made, whatever names lead to it."""

    recipe: str
    tree_digest: str

    def to_json(self) -> bytes:
        return (json.dumps(asdict(self)) + "\n").encode("ascii")

    @classmethod
    def from_json(cls, data: bytes) -> SandboxRecord:
        """Raise `IntegrityError` unless `data` is such a record."""
        try:
            document = json.loads(data)
            return cls(*_texts([document["recipe"], document["tree_digest"]]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise IntegrityError(f"malformed sandbox record: {error}") from error


def _check_types(types: dict[str, str], values: dict[str, Any]) -> None:
    for name, value in values.items():
        kind = {"str": str, "int": int}.get(types[name])
        if kind is not None and type(value) is not kind:
            raise TypeError(f"{name} is {value!r}, not of type {types[name]}")


def _texts(values: object) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"{values!r} is not a list of texts")
    return tuple(values)


def read_publication(view: View, path: RepoPath) -> Publication | None:
    """Return the record in file `path`; None if there is none."""
    data = view.read_file(path)
    return Publication.from_json(data) if data is not None else None


def iter_publications(view: View) -> Iterator[Publication]:
    """Yield the records of all published names, in the order of their paths."""
    stack = [METADATA]
    while stack:
        directory = stack.pop()
        below = []
        for name, is_directory in view.list_names(directory):
            path = f"{directory}/{name}"
            if is_directory and path != IMAGES:
                below.append(path)
            elif name == PUBLICATION_FILE:
                record = read_publication(view, path)
                if record is not None:
                    yield record
        stack.extend(reversed(below))
