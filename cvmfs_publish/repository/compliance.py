"""Find what a repository has and would not get today: `accept` and `refuse`, applied to records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from cvmfs_publish.errors import InputError
from cvmfs_publish.origin import Origin
from cvmfs_publish.reference import Reference
from cvmfs_publish.repository.base import View
from cvmfs_publish.repository.layouts import MANIFEST_FILE, place_name
from cvmfs_publish.repository.records import Publication, iter_publications, iter_staged
from cvmfs_publish.sandbox.runtime_files import BASE
from cvmfs_publish.sources.base import Platform
from cvmfs_publish.sources.compliance import Compliance, ComplianceError, Labels, read_kept_labels
from cvmfs_publish.sources.trust import DOCKER


class Stray(NamedTuple):
    """A published image that may not be there, and why."""

    record: Publication
    error: ComplianceError


def find_strays(view: View, compliance: Compliance) -> Iterator[Stray]:
    """Yield the published images that the rules keep out; nothing is changed."""
    if not compliance.accept and not compliance.refuse:
        return
    for record in iter_publications(view):
        try:
            check_record(view, compliance, record)
        except ComplianceError as error:
            yield Stray(record, error)
    for staged in iter_staged(view):
        try:
            check_record(view, compliance, staged.publication, is_staged=True)
        except ComplianceError as error:
            yield Stray(staged.publication, error)


def check_record(
    view: View, compliance: Compliance, record: Publication, *, is_staged: bool = False
) -> None:
    """Raise `ComplianceError` if a published image, or one whose name waits, may not be there."""
    platform = Platform.parse(record.platform)
    labels: Labels = {}
    if compliance.needs_labels:
        reference = Reference.parse(record.reference)
        names = place_name(reference, platform)
        path = f"{names.staged}/{MANIFEST_FILE}" if is_staged else names.manifest
        manifest = view.read_file(path) or b""
        sandbox = record.sandbox.lstrip("/")
        labels = read_kept_labels(manifest, view.read_file(f"{sandbox}/{BASE}/labels.json") or b"")
    compliance.check_labels(reference_of(record), platform, labels)


def reference_of(record: Publication) -> Reference:
    """Return the name of a published image, with where it came from."""
    reference = Reference.parse(record.reference)
    if not record.source:
        return reference
    _, _, there = record.source.partition(f"{DOCKER}://")
    try:
        origin = Origin(DOCKER, there) if there else Origin.parse(record.source)
    except InputError:  # a later version may know it
        origin = None
    return replace(reference, origin=origin)
