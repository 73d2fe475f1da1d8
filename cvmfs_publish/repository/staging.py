"""Let a name lead to a new image only when replicas have it: the sandbox first, then the name.

The first revision holds the sandbox, its name by digest, and the records that the public name will
have (`.metadata/.staged/<name>/`).  A second one, small, points the name there.  All that waits is
in the repository itself: whoever publishes next, from whatever host, goes on with it.

What waits is one image per name: another publish, `rollback` and `unpublish` end the waiting.  The
rules of the repository are asked again before a name is switched: they may have changed meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from cvmfs_publish.errors import InputError, PublishError, RepositoryError
from cvmfs_publish.layers.tree import RepoPath
from cvmfs_publish.reference import Reference
from cvmfs_publish.repository.base import Transaction, View
from cvmfs_publish.repository.compliance import check_record
from cvmfs_publish.repository.fallback import point_immutable_names, point_names
from cvmfs_publish.repository.layouts import MANIFEST_FILE, STAGED_FILE, NamePlacement, place_name
from cvmfs_publish.repository.names import (
    check_short_name,
    drop_staged,
    format_at,
    link_immutable,
    publish_name,
    put_record,
)
from cvmfs_publish.repository.records import Publication, Staged, read_publication, read_staged
from cvmfs_publish.sources.base import Platform
from cvmfs_publish.sources.compliance import NO_RULES, Compliance


@dataclass(frozen=True, slots=True)
class StagedName:
    """Which image waits under which name; another one under the same name is not meant."""

    reference: str
    platform: str
    manifest_digest: str

    @classmethod
    def of(cls, staged: Staged) -> StagedName:
        record = staged.publication
        return cls(record.reference, record.platform, record.manifest_digest)


def is_to_wait(view: View, reference: Reference, publication: Publication) -> bool:
    """Whether there is anything to wait for before a name leads to a new image.

    A name by digest can lead nowhere else, and one that leads to the same sandbox already is not
    moved.
    """
    current = read_publication(view, placement_of(publication).publication)
    is_tag = bool(reference.tag)
    return is_tag and (current is None or current.image_id != publication.image_id)


def stage_name(
    transaction: Transaction, reference: Reference, staged: Staged, manifest: bytes
) -> None:
    """Note what a name is to lead to, and make the name by digest; its sandbox is there.

    What the name waited for before is forgotten.
    """
    names = placement_of(staged.publication)
    drop_staged(transaction, names)
    put_record(transaction, f"{names.staged}/{MANIFEST_FILE}", manifest)
    put_record(transaction, f"{names.staged}/{STAGED_FILE}", staged.to_json())
    link_immutable(transaction, reference, staged.publication)
    point_immutable_names(transaction, [staged.publication])


def settle(
    transaction: Transaction,
    record: Publication,
    replicas: int,
    now: datetime,
    compliance: Compliance = NO_RULES,
) -> Publication | Staged:
    """Let a name that waits, or should not, do what is wanted now; `record`: of its newest image.

    Returns the record of the name, or of what it waits for.
    """
    names = placement_of(record)
    staged = read_staged(transaction, names.staged)
    if staged is None:
        return record
    if staged.publication.manifest_digest != record.manifest_digest:
        drop_staged(transaction, names)  # the tag is back where the name leads
        return record
    if not replicas:
        return _switch(transaction, names, staged, now, compliance)
    staged = replace(staged, replicas=replicas)
    put_record(transaction, f"{names.staged}/{STAGED_FILE}", staged.to_json())
    return staged


def switch_names(
    transaction: Transaction,
    wanted: Iterable[StagedName],
    now: datetime,
    compliance: Compliance = NO_RULES,
) -> list[Publication]:
    """Point names at what they wait for, and return their records.

    Those that do not wait for it any more, and those that something hinders, are left alone.
    """
    done = []
    for name in wanted:
        names = place_name(Reference.parse(name.reference), Platform.parse(name.platform))
        staged = read_staged(transaction, names.staged)
        if (
            staged is not None
            and StagedName.of(staged) == name
            # or no other name would be switched
            and hindrance(transaction, staged, compliance) is None
        ):
            done.append(_switch(transaction, names, staged, now, compliance))
    return done


def _switch(
    transaction: Transaction,
    names: NamePlacement,
    staged: Staged,
    now: datetime,
    compliance: Compliance,
) -> Publication:
    error = hindrance(transaction, staged, compliance)
    if error is not None:
        raise error
    manifest = transaction.read_file(f"{names.staged}/{MANIFEST_FILE}") or b""
    record = replace(staged.publication, published_at=format_at(now), revision=transaction.revision)
    reference = Reference.parse(record.reference)
    written = publish_name(transaction, reference, record, manifest)
    point_names(transaction, [written])
    return written


def hindrance(view: View, staged: Staged, compliance: Compliance = NO_RULES) -> PublishError | None:
    """Return why a name cannot lead to what it waits for, whatever replicas have."""
    record = staged.publication
    manifest = f"{placement_of(record).staged}/{MANIFEST_FILE}"
    if not view.is_directory(record.sandbox.lstrip("/")) or view.read_file(manifest) is None:
        return RepositoryError(
            f"{record.reference} waits to lead to {record.sandbox}, of which something was removed",
            hint=f"`cvmfs-publish publish --force {record.reference}` makes it anew",
        )
    try:
        check_record(view, compliance, record, is_staged=True)
        check_short_name(view, record, force=True)
    except InputError as error:
        return error
    return None


def choose_staged(found: Iterable[Staged], reference: Reference, platform: Platform) -> Staged:
    """Return what a name waits for; raise `InputError` if it does not wait."""
    path: RepoPath = place_name(reference, platform).staged
    for staged in found:
        if placement_of(staged.publication).staged == path:
            return staged
    raise InputError(
        f"{reference} for {platform} waits for no replicas",
        hint="`cvmfs-publish switch` without names shows what waits",
    )


def placement_of(record: Publication) -> NamePlacement:
    """Return where the link and the records of an image's name are."""
    return place_name(Reference.parse(record.reference), Platform.parse(record.platform))
