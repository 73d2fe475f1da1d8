"""Tell nodes which artefact stands for which image: the list that CernVM-FS signs.

The list is a file of the repository, so that nobody can add to it who cannot publish, and it is
changed in the transaction that changes names.  It follows from the names and from the records of
the sandboxes they lead to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from cvmfs_publish.content.artefacts import ArtefactStore
from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import InputError, IntegrityError, RepositoryError
from cvmfs_publish.layers.tree import RepoPath
from cvmfs_publish.reference import Reference
from cvmfs_publish.repository.base import Transaction, View
from cvmfs_publish.repository.layouts import (
    DEFAULT_PLATFORM,
    IMAGES,
    image_record_of,
    immutable_name_of,
    place_name,
)
from cvmfs_publish.repository.records import Artefact, Publication, read_sandbox
from cvmfs_publish.sources.base import Platform

FOLDER = "share/cvmfs-publish"
LIST_PATH = f"{FOLDER}/fallback.txt"
_TITLE = "# Fallback images of"
_COLUMNS = "# name image_id manifest_digest format sha256 size unpacked_size file"
_FIELDS = len(_COLUMNS.split()) - 1


@dataclass(frozen=True, slots=True)
class Line:
    """What nodes are told of one name."""

    image_id: str
    manifest_digest: str
    artefact: Artefact

    def __str__(self) -> str:
        known = self.artefact
        return (
            f"{self.image_id} {self.manifest_digest} {known.format} {known.sha256} {known.size}"
            f" {known.unpacked_size} {known.file}"
        )


def format_list(lines: Mapping[RepoPath, Line]) -> bytes:
    """Return the file: a name and the fields of its line, blank-separated, sorted by name."""
    texts = [_COLUMNS, *(f"{name} {lines[name]}" for name in sorted(lines))]
    return ("\n".join(texts) + "\n").encode("ascii")


def format_copy(repository: str, lines: Mapping[RepoPath, Line]) -> bytes:
    """Return the list as it stands beside the artefacts, which are those of one repository."""
    return f"{_TITLE} {repository}\n".encode("ascii") + format_list(lines)


def parse_list(data: bytes) -> dict[RepoPath, Line]:
    """Undo `format_list`; raise `IntegrityError` for what is no such list."""
    lines = {}
    try:
        for number, text in enumerate(data.decode("ascii").splitlines(), 1):
            fields = text.split()
            if not fields or fields[0].startswith("#"):
                continue
            if len(fields) != _FIELDS:
                raise IntegrityError(f"line {number} has {len(fields)} fields, not {_FIELDS}")
            name, image_id, manifest, form, sha256, size, unpacked, file = fields
            artefact = Artefact(form, sha256, int(size), int(unpacked))
            Digest.parse(image_id)
            if file != artefact.file:
                raise IntegrityError(f"line {number} names {file}, not {artefact.file}")
            lines[name] = Line(image_id, manifest, artefact)
    except ValueError as error:
        raise IntegrityError(str(error)) from error
    return lines


def repository_of(data: bytes) -> str:
    """Return the repository that a copy of a list says it is of; "" if it does not say so."""
    first = data.partition(b"\n")[0].decode("ascii", "replace")
    return first.removeprefix(_TITLE).strip() if first.startswith(_TITLE) else ""


def read_lines(view: View) -> dict[RepoPath, Line]:
    """Return the list of a revision; empty if there is none.

    Raises `RepositoryError` if it is damaged.
    """
    data = view.read_file(LIST_PATH)
    try:
        return parse_list(data) if data is not None else {}
    except IntegrityError as error:
        raise RepositoryError(
            f"/{LIST_PATH} in the repository: {error}",
            hint="restore the file, or the repository, from a backup",
        ) from error


def point_names(transaction: Transaction, records: Iterable[Publication]) -> None:
    """Let the list say what names lead to now, and what other names of the same images lead to.

    To be called after the names and the records of their sandboxes were written.  A name whose
    image has no artefact is not listed.
    """
    _point(transaction, {name: record for record in records for name in names_of(record)})


def point_immutable_names(transaction: Transaction, records: Iterable[Publication]) -> None:
    """Do as `point_names` for images that only their names by digest lead to as yet."""
    _point(transaction, {names_of(record)[1]: record for record in records})


def _point(transaction: Transaction, moved: Mapping[RepoPath, Publication]) -> None:
    lines = read_lines(transaction)
    before = dict(lines)
    artefacts = {
        record.image_id: _artefact_of(transaction, record.image_id) for record in moved.values()
    }
    for name, record in moved.items():
        _put(lines, name, record.image_id, record.manifest_digest, artefacts[record.image_id])
    for name, line in before.items():
        if name not in moved and line.image_id in artefacts:
            _put(lines, name, line.image_id, line.manifest_digest, artefacts[line.image_id])
    _write(transaction, before, lines)


def drop_names(transaction: Transaction, names: Iterable[RepoPath]) -> None:
    """Let the list forget names that are removed."""
    lines = read_lines(transaction)
    gone = set(names)
    _write(transaction, lines, {name: lines[name] for name in lines if name not in gone})


def names_of(record: Publication) -> tuple[RepoPath, RepoPath]:
    """Return the names that lead to an image: the public one and the one by digest.

    Of another platform than the default one the public name is that of the platform alone.
    """
    reference, platform = Reference.parse(record.reference), Platform.parse(record.platform)
    names = place_name(reference, platform)
    public = names.name if platform == DEFAULT_PLATFORM else names.platform_name
    return public, immutable_name_of(reference, Digest.parse(record.manifest_digest))


def _put(
    lines: dict[RepoPath, Line],
    name: RepoPath,
    image_id: str,
    manifest: str,
    artefact: Artefact | None,
) -> None:
    if artefact is None:
        lines.pop(name, None)
    else:
        lines[name] = Line(image_id, manifest, artefact)


def _artefact_of(view: View, image_id: str) -> Artefact | None:
    record = read_sandbox(view, image_record_of(Digest.parse(image_id)))
    return record.fallback if record is not None else None


def _write(
    transaction: Transaction, before: Mapping[RepoPath, Line], lines: Mapping[RepoPath, Line]
) -> None:
    if lines == before:
        return
    transaction.make_directories(FOLDER)
    transaction.put_file(LIST_PATH, format_list(lines))


def check_owner(store: ArtefactStore, repository: str) -> None:
    """Raise `InputError` if a store holds the artefacts of another repository."""
    data = store.read_list()
    owner = repository_of(data) if data is not None else ""
    if owner not in ("", repository):
        raise InputError(
            f"{store.location} holds the fallback images of {owner}, not of {repository}",
            hint="give every repository a `fallback.store` of its own: what a repository does not"
            " name, its `gc` removes",
        )


def refresh_copy(store: ArtefactStore, repository: str, view: View) -> None:
    """Let the copy of the list beside the artefacts say what a revision says."""
    data = format_copy(repository, read_lines(view))
    if store.read_list() != data:
        store.write_list(data)


def find_missing(
    store: ArtefactStore, lines: Mapping[RepoPath, Line]
) -> Iterator[tuple[RepoPath, str]]:
    """Yield a name of every artefact that the store does not have as it is listed, and why."""
    names = {lines[name].artefact: name for name in sorted(lines, reverse=True)}
    for artefact, name in sorted(names.items(), key=lambda item: item[1]):
        size = store.size(artefact.file)
        if size is None:
            yield name, f"its fallback file {artefact.file} is missing in {store.location}"
        elif size != artefact.size:
            yield (
                name,
                f"its fallback file {artefact.file} in {store.location} has {size} bytes, not"
                f" {artefact.size}",
            )


def iter_artefacts(view: View) -> Iterator[Artefact]:
    """Yield the artefacts of all sandboxes, those that no name leads to any more included."""
    for shard, _ in view.list_names(IMAGES):
        for name, is_directory in view.list_names(f"{IMAGES}/{shard}"):
            if is_directory or not name.endswith(".json"):  # the mark of a catalog
                continue
            record = read_sandbox(view, f"{IMAGES}/{shard}/{name}")
            if record is not None and record.fallback is not None:
                yield record.fallback
