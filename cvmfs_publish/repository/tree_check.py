"""Verify a tree that is seen as files: what names lead to, and whether sandboxes stayed the same.

Entries are compared with the listing that was made when they were written: kinds, modes, owners,
times, sizes, links.  Bytes of files are not read; `verify` does that, with the registry.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import IntegrityError, RepositoryError
from cvmfs_publish.layers.tree import RepoPath
from cvmfs_publish.layers.treedigest import digest_lines, first_difference, sort_lines
from cvmfs_publish.reference import Reference
from cvmfs_publish.repository.base import Revision, View
from cvmfs_publish.repository.folder_listing import Files, Listing, read_back
from cvmfs_publish.repository.layouts import immutable_name_of, place_name, resolve_link
from cvmfs_publish.repository.names import find_target
from cvmfs_publish.repository.native.problems import Report
from cvmfs_publish.repository.records import Publication, iter_publications
from cvmfs_publish.sources.base import Platform


class SeenFiles(View, Files, Protocol):
    """A tree of files."""


class SeenAsFiles(Protocol):
    """A repository whose tree is seen as files, and that knows what its sandboxes should be."""

    name: str

    def revision(self) -> Revision: ...

    def open(self) -> AbstractContextManager[View]: ...

    def view(self) -> SeenFiles: ...

    def listing(self, path: RepoPath) -> Listing | None: ...


def check_tree(repository: SeenAsFiles) -> Report:
    """Return all that is wrong.

    Raises:
        RepositoryError: there is no repository, or its own files are damaged.
    """
    revision = repository.revision()
    report = Report(repository.name, revision.number, revision.root_hash)
    checked: set[str] = set()
    with repository.open() as view:
        for record in iter_publications(view):
            report.counts["names"] += 1
            _check_names(view, record, report)
            if record.sandbox not in checked:
                checked.add(record.sandbox)
                report.counts["sandboxes"] += 1
                _check_sandbox(repository, record, report)
    return report


def _check_names(view: View, record: Publication, report: Report) -> None:
    try:
        reference = Reference.parse(record.reference)
        names = place_name(reference, Platform.parse(record.platform))
        immutable = immutable_name_of(reference, Digest.parse(record.manifest_digest))
    except (RepositoryError, IntegrityError) as error:
        report.error(record.path, str(error))
        return
    expected = record.sandbox.lstrip("/")
    targets = dict([find_target(view, names), (immutable, view.read_symlink(immutable))])
    for link, text in targets.items():
        if text is None:
            report.error(f"/{link}", "is no link, but its record says that it is published")
        elif resolve_link(link, text) != expected:
            report.error(f"/{link}", f"leads to {text}, its record says {record.sandbox}")
    short = record.short_name.lstrip("/")
    text = view.read_symlink(short) if short else None
    if short and (text is None or resolve_link(short, text) != names.name):
        report.error(f"/{short}", f"does not lead to /{names.name}, as its record says")


def _check_sandbox(repository: SeenAsFiles, record: Publication, report: Report) -> None:
    path = record.sandbox.lstrip("/")
    view = repository.view()
    if not view.is_directory(path):
        report.error(record.sandbox, "is missing")
        return
    try:
        listing = repository.listing(path)
    except RepositoryError as error:
        report.error(record.sandbox, str(error))
        return
    if listing is None:
        report.warning(record.sandbox, "was not written here: `verify` compares it")
        return
    found = read_back(view, path, listing)
    report.counts["entries"] += len(found)
    if digest_lines(found) != digest_lines(listing.lines):
        difference = first_difference(listing.lines, sort_lines(found))
        report.error(record.sandbox, f"is not what was written: {difference}")
    elif str(digest_lines(listing.lines)) != record.tree_digest:
        report.error(record.sandbox, "is another version than its record says")
