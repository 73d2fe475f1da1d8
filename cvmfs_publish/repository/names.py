"""Decide what the names of images lead to: publish, unpublish, roll back, pin, and tell their past.

A name is a symbolic link and a directory of records.  What it led to before is kept below its
records (`.replaced/<manifest digest>/`) as long as the sandbox is, so that going back needs no
registry: one small commit.  A name that was unpublished leaves `unpublished.json`, its history.
What a name is to lead to when replicas have it (`staging.py`) ends with whatever is decided here.
Nothing here removes a sandbox or a name by digest: jobs may be using them (`removal.py`).

Every function that changes something checks everything first: an `InputError` leaves the
transaction as it was.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import InputError, PublishError, RepositoryError, exit_code_of
from cvmfs_publish.layers.tree import RepoPath, Tree
from cvmfs_publish.reference import Reference
from cvmfs_publish.repository.base import Repository, Transaction, View, persist
from cvmfs_publish.repository.fallback import drop_names, names_of, point_names
from cvmfs_publish.repository.layouts import (
    CATALOG_MARKER,
    DEFAULT_PLATFORM,
    MANIFEST_FILE,
    METADATA,
    MULTIARCH,
    PUBLICATION_FILE,
    NamePlacement,
    Placement,
    catalog_roots,
    image_record_of,
    immutable_name_of,
    place_name,
    relative,
    resolve_link,
    sandbox_of,
)
from cvmfs_publish.repository.records import (
    MAX_EVENTS,
    ROLLED_BACK,
    UNPUBLISHED,
    Event,
    Publication,
    SandboxRecord,
    Staged,
    Unpublished,
    iter_publications,
    read_publication,
    read_sandbox,
    read_staged,
    read_unpublished,
)
from cvmfs_publish.settings import nearest
from cvmfs_publish.sources.base import Platform
from cvmfs_publish.words import plural

MIN_PREFIX = 6  # hexadecimal digits of a shortened digest
SHOWN_VERSIONS = 10  # in the hint of an error
_SHORT_DIGEST = re.compile(r"(?:(sha256|sha512):)?([0-9a-f]+)")


@dataclass(frozen=True, slots=True)
class Version:
    """One event of a name's history, and what is left of what it is about."""

    event: Event
    is_current: bool  # the name leads there by this event
    is_kept: bool  # it is the present state, or `rollback` can go back to it
    is_pinned: bool  # a pin of this name keeps the sandbox


@dataclass(frozen=True, slots=True)
class History:
    """What a name led to and when."""

    reference: str
    platform: str
    versions: tuple[Version, ...]  # oldest first
    current: Publication | None  # None: the name is unpublished, or leads nowhere yet
    staged: Staged | None = None  # what it is to lead to when replicas have it


# publishing


def put_sandbox(
    transaction: Transaction,
    placement: Placement,
    record: SandboxRecord,
    tree: Tree,
    *,
    force: bool = False,
) -> bool:
    """Put a sandbox in its place unless it is there already, made in the same way.

    Returns whether it was put.
    """
    present = read_sandbox(transaction, placement.image_record)
    is_there = present is not None and present.is_same(record)
    due = force or not is_there or not transaction.is_directory(placement.sandbox)
    if due:
        _make_parents(transaction, placement.sandbox)
        transaction.put_tree(placement.sandbox, tree)
    put_sandbox_record(transaction, placement.image_record, record)
    return due


def put_sandbox_record(transaction: Transaction, path: RepoPath, record: SandboxRecord) -> None:
    """Write how a sandbox was made."""
    put_record(transaction, path, record.to_json())


def publish_name(
    transaction: Transaction, reference: Reference, publication: Publication, manifest: bytes
) -> Publication:
    """Point a name at a sandbox that is there, and keep what it led to before.

    Args:
        transaction: in which it happens.
        reference: the name.
        publication: the new record; its history and pin are those of the name, not its own.
        manifest: of the registry, byte for byte.

    Returns:
        The record as it was written.
    """
    platform = Platform.parse(publication.platform)
    names = place_name(reference, platform)
    check_short_name(transaction, publication, force=True)
    outgoing = read_publication(transaction, names.publication)
    record = _continued(transaction, names, publication, outgoing)
    new = Digest.parse(record.manifest_digest)
    if (
        outgoing is not None
        and outgoing.manifest_digest != record.manifest_digest
        # Within one transaction nobody saw what is replaced, so there is nothing to go back to.
        and outgoing.revision != transaction.revision
    ):
        _keep_replaced(transaction, names, outgoing)
    transaction.remove(names.unpublished)
    drop_staged(transaction, names)
    _remove_tidily(transaction, names.replaced(new), names.metadata)
    put_record(transaction, names.manifest, manifest)
    put_record(transaction, names.publication, record.to_json())
    sandbox = record.sandbox.lstrip("/")
    if names.name != immutable_name_of(reference, new):
        _point_name(transaction, reference, platform, sandbox)
    link_immutable(transaction, reference, record)
    if outgoing is not None and outgoing.short_name != record.short_name:
        _remove_short_name(transaction, outgoing)
    if record.short_name:
        _link(transaction, record.short_name.lstrip("/"), names.name)
    return record


def check_short_name(view: View, record: Publication, *, force: bool = False) -> None:
    """Raise `InputError` if the second name of an image is taken.

    `force`: what another program made is no reason; what a name of ours leads to always is.
    """
    path, name = record.short_name.lstrip("/"), record.path.lstrip("/")
    text = view.read_symlink(path) if path else None
    target = resolve_link(path, text) if text is not None else name
    if target == name:
        return
    other = next((each for each in (target, path) if _is_published(view, each)), None)
    if other is not None:
        raise InputError(
            f"{record.reference}: /{path}, its name in the layout osg, is that of {other}",
            hint="leave one of the two out, or let `repository.layout` be unpacked: there the"
            " registry is part of the name",
        )
    if not force:
        raise InputError(
            f"{record.reference}: /{path}, its name in the layout osg, leads to {text}, which was"
            " not published here",
            hint=f"`cvmfs-publish publish --force {record.reference}` takes the name over; what it"
            " led to stays",
        )


def _is_published(view: View, name: RepoPath) -> bool:
    return view.read_file(f"{METADATA}/{name}/{PUBLICATION_FILE}") is not None


def _remove_short_name(transaction: Transaction, record: Publication) -> None:
    """Remove the second name, if it leads to the first."""
    path = record.short_name.lstrip("/")
    text = transaction.read_symlink(path) if path else None
    if text is not None and resolve_link(path, text) == record.path.lstrip("/"):
        _remove_tidily(transaction, path, "")


def link_immutable(
    transaction: Transaction, reference: Reference, publication: Publication
) -> None:
    """Make the name by digest, which can lead nowhere else."""
    digest = Digest.parse(publication.manifest_digest)
    _link(transaction, immutable_name_of(reference, digest), publication.sandbox.lstrip("/"))


def drop_staged(transaction: Transaction, names: NamePlacement) -> None:
    """Forget what a name was to lead to; no error if there is nothing."""
    _remove_tidily(transaction, names.staged, METADATA)


def _continued(
    view: Transaction,
    names: NamePlacement,
    publication: Publication,
    outgoing: Publication | None,
) -> Publication:
    """Return a new record with the past and the pin of the name."""
    if outgoing is None:
        left = read_unpublished(view, names.unpublished)
        history = left.history if left is not None else ()
        return replace(publication, history=history, pinned_at="", pinned=())
    seen = outgoing.revision != view.revision
    return replace(
        publication,
        history=(outgoing.events if seen else outgoing.history)[-MAX_EVENTS:],
        pinned_at=outgoing.pinned_at,
        pinned=outgoing.pinned,
    )


def _keep_replaced(transaction: Transaction, names: NamePlacement, outgoing: Publication) -> None:
    """Keep the records of what the name leads to now; the same objects at another place."""
    folder = names.replaced(Digest.parse(outgoing.manifest_digest))
    manifest = transaction.read_file(names.manifest)
    data = transaction.read_file(names.publication)
    if manifest is not None and data is not None:
        put_record(transaction, f"{folder}/{MANIFEST_FILE}", manifest)
        put_record(transaction, f"{folder}/{PUBLICATION_FILE}", data)


# unpublishing

Status = Literal["unpublished", "failed"]


@dataclass(slots=True)
class UnpublishedImage:
    """What became of one image of a call."""

    reference: str
    platform: str
    status: Status = "failed"
    publication: Publication | None = None  # the record it had
    error: PublishError | None = None


@dataclass(frozen=True, slots=True)
class UnpublishResult:
    """What became of all images of a call."""

    images: tuple[UnpublishedImage, ...]

    @property
    def exit_code(self) -> int:
        """0 all done; 6 some failed; if all failed, the code of the first failure."""
        errors = [image.error for image in self.images if image.error is not None]
        return exit_code_of(errors, len(self.images))


def unpublish_images(
    repository: Repository,
    references: Iterable[str],
    *,
    now: datetime,
    platform: Platform | None = None,
    step: Callable[[str], None] = lambda _: None,
) -> UnpublishResult:
    """Remove the names of images in one transaction; one that fails leaves the others alone.

    Raises `LockedError` or `RepositoryError`: nothing was changed.
    """
    chosen = platform or DEFAULT_PLATFORM
    wishes: list[tuple[UnpublishedImage, Reference]] = []
    images: list[UnpublishedImage] = []
    for text in dict.fromkeys(references):
        image = UnpublishedImage(text, str(chosen))
        try:
            reference = Reference.parse(text)
        except InputError as error:
            image.error = error
        else:
            image.reference = str(reference)
            if reference.name in {known.name for _, known in wishes}:
                continue
            wishes.append((image, reference))
        images.append(image)

    def work() -> None:
        with repository.transaction(int(now.timestamp()), step) as transaction:
            for image, reference in wishes:
                image.publication = image.error = None
                try:
                    image.publication = unpublish(transaction, reference, chosen, now)
                    image.status = "unpublished"
                except InputError as error:
                    image.error = error
            pairs = [names_of(image.publication) for image in images if image.publication]
            drop_names(transaction, [public for public, stays in pairs if public != stays])

    if wishes:
        persist(work)
    return UnpublishResult(tuple(images))


def unpublish(
    transaction: Transaction, reference: Reference, platform: Platform, now: datetime
) -> Publication:
    """Remove a name, and return the record it had, or was to have.

    The sandbox and the name by digest stay, for jobs that run; so do its records, for `rollback`.
    Raises `InputError` if there is no such name, or if it is pinned.
    """
    names = place_name(reference, platform)
    staged = read_staged(transaction, names.staged)
    if staged is not None and read_publication(transaction, names.publication) is None:
        return _unpublish_staged(transaction, names, staged.publication, now)
    record = get_publication(transaction, reference, platform)
    if record.pinned_at:
        raise InputError(
            f"{reference} is pinned, so it is not unpublished",
            hint=f"`cvmfs-publish unpin {reference.name}` first",
        )
    at = format_at(now)
    event = record.event._replace(at=at, revision=transaction.revision, what=UNPUBLISHED)
    _keep_replaced(transaction, names, record)
    history = Unpublished((*record.events, event)[-MAX_EVENTS:])
    put_record(transaction, names.unpublished, history.to_json())
    transaction.remove(names.publication)
    transaction.remove(names.manifest)
    drop_staged(transaction, names)
    immutable = immutable_name_of(reference, Digest.parse(record.manifest_digest))
    if names.name != immutable:
        _remove_name(transaction, reference, platform)
        if transaction.read_symlink(names.name) is None:
            _remove_short_name(transaction, record)
    return record


def _unpublish_staged(
    transaction: Transaction, names: NamePlacement, record: Publication, now: datetime
) -> Publication:
    """Let nobody wait for a name that leads nowhere yet; `rollback` makes it lead there."""
    left = read_unpublished(transaction, names.unpublished)
    event = record.event._replace(
        at=format_at(now), revision=transaction.revision, what=UNPUBLISHED
    )
    folder = names.replaced(Digest.parse(record.manifest_digest))
    manifest = transaction.read_file(f"{names.staged}/{MANIFEST_FILE}")
    if manifest is not None:
        put_record(transaction, f"{folder}/{MANIFEST_FILE}", manifest)
        put_record(transaction, f"{folder}/{PUBLICATION_FILE}", record.to_json())
    past = left.history if left is not None else ()
    history = Unpublished((*past, event)[-MAX_EVENTS:])
    put_record(transaction, names.unpublished, history.to_json())
    drop_staged(transaction, names)
    return record


# going back


@dataclass(frozen=True, slots=True)
class Rollback:
    """What a name leads to now, and whether it did before."""

    publication: Publication
    is_changed: bool


def rollback(
    transaction: Transaction,
    reference: Reference,
    platform: Platform,
    now: datetime,
    to: str = "",
) -> Rollback:
    """Point a name at what it led to before: one small commit, nothing is fetched.

    What it waits to lead to is forgotten, or the rollback would not last.

    Args:
        transaction: in which it happens.
        reference: the name; it may be unpublished.
        platform: of the image.
        now: when.
        to: digest in the registry, manifest digest or image id, or the first hexadecimal digits of
            one; by default what the name led to before it came to lead where it leads.

    Raises:
        InputError: there is no such name, nothing to go back to, or nothing of that digest.
        RepositoryError: what it led to before is not what was published then.
    """
    if reference.tag and reference.digest is not None:
        name = f"{reference.registry}/{reference.repository}:{reference.tag}"
        raise InputError(
            f"{reference} names a tag and a digest",
            hint=f"`cvmfs-publish rollback {name} --to {reference.digest}`",
        )
    names = place_name(reference, platform)
    past = read_history(transaction, reference, platform)
    target = _choose(past, to)
    if past.current is not None and past.current.manifest_digest == target.manifest_digest:
        drop_staged(transaction, names)
        return Rollback(past.current, is_changed=False)
    folder = names.replaced(Digest.parse(target.manifest_digest))
    record = _find_replaced(transaction, names, target)
    manifest = transaction.read_file(f"{folder}/{MANIFEST_FILE}")
    if record is None or manifest is None:
        raise _gone(reference, target)
    record = _as_it_is_now(transaction, record)
    _check_sandbox(transaction, record)
    check_short_name(transaction, record)
    publication = replace(
        record,
        published_at=format_at(now),
        revision=transaction.revision,
        what=ROLLED_BACK,
    )
    written = publish_name(transaction, reference, publication, manifest)
    point_names(transaction, [written])
    return Rollback(written, is_changed=True)


def _check_sandbox(transaction: Transaction, record: Publication) -> None:
    """Let no name lead to a sandbox that is incomplete or was changed."""
    found = transaction.tree_digest(record.sandbox.lstrip("/"))
    if str(found) != record.tree_digest:
        whole = _by_digest(Reference.parse(record.reference), record.digest)
        raise RepositoryError(
            f"{record.sandbox} of {record.reference} has tree digest {found}, its record says"
            f" {record.tree_digest}",
            hint=f"`cvmfs-publish publish --force {whole}` makes it anew",
        )


def _choose(past: History, to: str) -> Event:
    """Return where to go back to."""
    newest = past.versions[::-1]
    kept = {version.event.manifest_digest for version in newest if version.is_kept}
    events = [version.event for version in newest]
    reference = Reference.parse(past.reference)
    present = past.current.manifest_digest if past.current is not None else ""
    if to:
        found = match_digest(events, to, past.reference, _how_to_stay(past))
        if found[0].manifest_digest == present:
            return found[0]
    else:
        found = [event for event in events if event.manifest_digest != present]
    if not found:
        raise InputError(
            f"{past.reference} for {past.platform} never led to anything else, so there is nothing"
            " to go back to",
            hint=_how_to_stay(past)
            or f"`cvmfs-publish history {reference.name}{_option(past.platform)}` shows its past",
        )
    chosen = next((event for event in found if event.manifest_digest in kept), None)
    if chosen is None:
        raise _gone(reference, found[0])
    return chosen


def _how_to_stay(past: History) -> str:
    """Say how a name that waits to lead elsewhere is kept from that; "" if it does not wait."""
    if past.staged is None:
        return ""
    name = f"{Reference.parse(past.reference).name}{_option(past.platform)}"
    command = (
        f"unpublish {name}"
        if past.current is None
        else f"rollback {name} --to {past.current.digest}"
    )
    return (
        f"it waits to lead to {past.staged.publication.digest}; `cvmfs-publish {command}` ends that"
    )


def _find_replaced(view: View, names: NamePlacement, event: Event) -> Publication | None:
    """Return the record of what a name led to before, if its sandbox is still there."""
    sandbox = posixpath.split(sandbox_of(Digest.parse(event.image_id)))
    # Asked of the directory above: to look at a sandbox itself is to load its catalog.
    if (sandbox[1], True) not in view.list_names(sandbox[0]):
        return None
    folder = names.replaced(Digest.parse(event.manifest_digest))
    return read_publication(view, f"{folder}/{PUBLICATION_FILE}")


def match_digest(events: Sequence[Event], text: str, subject: str, remedy: str = "") -> list[Event]:
    """Return those events, in their order, that a digest or the beginning of one is about.

    Raises `InputError` if there is none, or if it means several versions.  `remedy`: what to do
    where there are no events at all.
    """
    match = _SHORT_DIGEST.fullmatch(text.lower())
    if match is None or len(match[2]) < MIN_PREFIX:
        raise InputError(
            f"{text[:200]!r} is no digest",
            hint=f"write sha256:… or at least its first {MIN_PREFIX} hexadecimal digits",
        )
    algorithm, digits = match[1] or "", match[2]

    def means(digest: str) -> bool:
        kind, _, rest = digest.partition(":")
        return rest.startswith(digits) and algorithm in ("", kind)

    def digests(event: Event) -> tuple[str, ...]:
        return event.digest, event.manifest_digest, event.image_id

    found = [event for event in events if any(map(means, digests(event)))]
    if not found:
        raise InputError(
            f"{subject} never led to {text}",
            hint=f"it led to {_listed(event.digest for event in events)}" if events else remedy,
        )
    meant = {digest for event in found for digest in digests(event) if means(digest)}
    if len(meant) > 1 and len({event.manifest_digest for event in found}) > 1:
        raise InputError(
            f"{text} may mean {_listed(sorted(meant))}", hint="write more digits of the digest"
        )
    return found


def _listed(texts: Iterable[str]) -> str:
    unique = list(dict.fromkeys(texts))
    more = len(unique) - SHOWN_VERSIONS
    return ", ".join(unique[:SHOWN_VERSIONS]) + (f" and {more} more" if more > 0 else "")


def _gone(reference: Reference, event: Event) -> InputError:
    whole = _by_digest(reference, event.digest)
    return InputError(
        f"{reference} led to {event.digest}, but that sandbox was removed",
        hint=f"`cvmfs-publish publish {whole}` fetches it again",
    )


def _by_digest(reference: Reference, digest: str) -> str:
    """Return how to name one version of an image to the registry."""
    plain = replace(reference, digest=None) if reference.tag else reference
    return f"{plain}@{digest}" if plain.tag else str(plain)


def _as_it_is_now(view: View, record: Publication) -> Publication:
    """Return a record that tells how its sandbox was last made: another name may have done that."""
    digest = Digest.parse(record.image_id)
    data = view.read_file(image_record_of(digest))
    if data is None:
        return record
    sandbox = SandboxRecord.from_json(data)
    return replace(record, recipe=sandbox.recipe, tree_digest=sandbox.tree_digest)


# pins


def pin(
    transaction: Transaction, reference: Reference, platform: Platform, now: datetime
) -> Publication:
    """Protect a name from `unpublish`, and for good the sandbox it leads to at this moment.

    Pinned again after it moved, a name keeps both sandboxes.  Raises `InputError` if there is none.
    """
    record = get_publication(transaction, reference, platform)
    if record.sandbox in record.pinned:
        return record
    return _rewrite(
        transaction,
        place_name(reference, platform),
        replace(
            record,
            pinned_at=record.pinned_at or format_at(now),
            pinned=(*record.pinned, record.sandbox),
        ),
    )


def unpin(transaction: Transaction, reference: Reference, platform: Platform) -> Publication:
    """End the protection by `pin`; of a name that is not pinned, nothing changes."""
    record = get_publication(transaction, reference, platform)
    if not record.pinned_at:
        return record
    return _rewrite(
        transaction, place_name(reference, platform), replace(record, pinned_at="", pinned=())
    )


def _rewrite(transaction: Transaction, names: NamePlacement, record: Publication) -> Publication:
    put_record(transaction, names.publication, record.to_json())
    return record


# reading


def get_publication(view: View, reference: Reference, platform: Platform) -> Publication:
    """Return the record of a published image; `InputError` names what else is published."""
    names = place_name(reference, platform)
    record = read_publication(view, names.publication)
    if record is None:
        raise _not_published(view, reference, platform)
    digest = reference.digest
    if digest is not None and str(digest) not in {record.digest, record.manifest_digest}:
        raise InputError(
            f"/{reference.name} leads to {record.digest}, not to {digest}",
            hint=f"leave the digest out to mean what {reference.name} leads to now",
        )
    return record


def is_known(view: View, names: NamePlacement) -> bool:
    """Whether a name leads somewhere, or waits to."""
    return (
        read_publication(view, names.publication) is not None
        or read_staged(view, names.staged) is not None
    )


def _option(platform: str) -> str:
    """Return what a command about a platform is to be called with."""
    return "" if platform == str(DEFAULT_PLATFORM) else f" --platform {platform}"


def _not_published(view: View, reference: Reference, platform: Platform) -> InputError:
    published = list(iter_publications(view))
    for other in published:
        if other.path == f"/{reference.name}":
            return InputError(
                f"{reference} is published for {other.platform}, not for {platform}",
                hint=f"add --platform {other.platform}",
            )
    names = place_name(reference, platform)
    if (staged := read_staged(view, names.staged)) is not None:
        return InputError(
            f"{reference} is not published yet: its name waits until"
            f" {plural(staged.replicas, 'replica')} have revision {staged.revision}",
            hint=f"`cvmfs-publish switch {reference.name}{_option(str(platform))} --now` does not"
            " wait",
        )
    left = read_unpublished(view, names.unpublished)
    if left is not None and left.history:
        command = f"cvmfs-publish rollback {reference.name}{_option(str(platform))}"
        return InputError(
            f"{reference} is not published any more: it was unpublished at {left.history[-1].at}",
            hint=f"`{command}` brings it back",
        )
    meant = nearest(reference.name, [other.path[1:] for other in published])
    return InputError(
        f"{reference} is not published",
        hint=f"did you mean {meant}?" if meant else "`cvmfs-publish list` shows what is",
    )


def read_history(view: View, reference: Reference, platform: Platform) -> History:
    """Return the past of a name, also of one that is unpublished.

    Raises `InputError` if it never was a name.
    """
    names = place_name(reference, platform)
    current = read_publication(view, names.publication)
    staged = read_staged(view, names.staged)
    events: tuple[Event, ...] = ()
    if current is not None:
        events = current.events
    elif (left := read_unpublished(view, names.unpublished)) is not None:
        events = left.history
    elif staged is None:
        raise _not_published(view, reference, platform)
    pinned = set(current.pinned) if current is not None else set()
    kept: dict[str, bool] = {}
    versions = []
    for number, event in enumerate(events, 1):
        key = event.manifest_digest
        if key not in kept:
            is_present = current is not None and key == current.manifest_digest
            kept[key] = is_present or _find_replaced(view, names, event) is not None
        versions.append(
            Version(
                event,
                is_current=current is not None and number == len(events),
                is_kept=kept[key],
                is_pinned=f"/{sandbox_of(Digest.parse(event.image_id))}" in pinned,
            )
        )
    return History(str(reference), str(platform), tuple(versions), current, staged)


def format_at(at: datetime) -> str:
    """Return a time as records have it."""
    return at.astimezone(UTC).isoformat(timespec="seconds")


# links


def find_target(view: View, names: NamePlacement) -> tuple[RepoPath, str | None]:
    """Return the link to one platform that a public name is or leads to, and its text.

    The text is None if there is no such link.
    """
    text = view.read_symlink(names.name)
    if text == names.variant_target():
        return names.platform_name, view.read_symlink(names.platform_name)
    return names.name, text


def leads_to(view: View, names: NamePlacement, sandbox: RepoPath) -> bool:
    """Whether a public name leads to a sandbox."""
    link, text = find_target(view, names)
    return text is not None and resolve_link(link, text) == sandbox


def _point_name(
    transaction: Transaction, reference: Reference, platform: Platform, sandbox: RepoPath
) -> None:
    """Point the public name at the sandbox, or by way of the platform if there are several."""
    names = place_name(reference, platform)
    current = transaction.read_symlink(names.name)
    variant = names.variant_target()
    if platform == DEFAULT_PLATFORM and current != variant:
        _link(transaction, names.name, sandbox)
        return
    _link(transaction, names.platform_name, sandbox)
    if current is not None and current != variant:
        # The name was the default platform's alone: that one gets a link of its own.
        own = place_name(reference, DEFAULT_PLATFORM).platform_name
        _link(transaction, own, resolve_link(names.name, current))
    _make_parents(transaction, names.name)
    transaction.put_symlink(names.name, variant)


def _remove_name(transaction: Transaction, reference: Reference, platform: Platform) -> None:
    """Remove what leads to one platform; what is left leads to the others."""
    names = place_name(reference, platform)
    current = transaction.read_symlink(names.name)
    if current is None or current != names.variant_target():
        if current is not None:
            transaction.remove(names.name)
        return
    _remove_tidily(transaction, names.platform_name, MULTIARCH)
    left = _platform_links(transaction, names.name)
    own = place_name(reference, DEFAULT_PLATFORM).platform_name
    if not left:
        transaction.remove(names.name)
    elif left.keys() == {own}:
        transaction.put_symlink(names.name, relative(names.name, resolve_link(own, left[own])))
        _remove_tidily(transaction, own, MULTIARCH)


def _platform_links(view: View, name: RepoPath) -> dict[RepoPath, str]:
    links = {}
    for architecture, is_directory in view.list_names(MULTIARCH):
        path = f"{MULTIARCH}/{architecture}/{name}"
        text = view.read_symlink(path) if is_directory else None
        if text is not None:
            links[path] = text
    return links


def remove_empty(transaction: Transaction, path: RepoPath, top: RepoPath = "") -> None:
    """Remove a directory that is empty, and those above it below `top` that become so.

    Directories at the root whose names begin with a dot stay.
    """
    while path not in ("", top) and not (path.startswith(".") and "/" not in path):
        names = transaction.list_names(path)
        if not transaction.is_directory(path) or names not in ([], [(CATALOG_MARKER, False)]):
            return
        transaction.remove(path)
        path = posixpath.dirname(path)


def _remove_tidily(transaction: Transaction, path: RepoPath, top: RepoPath) -> None:
    transaction.remove(path)
    remove_empty(transaction, posixpath.dirname(path), top)


def _make_parents(transaction: Transaction, path: RepoPath) -> None:
    transaction.make_directories(posixpath.dirname(path), catalog_roots(path))


def put_record(transaction: Transaction, path: RepoPath, data: bytes) -> None:
    _make_parents(transaction, path)
    transaction.put_file(path, data)


def _link(transaction: Transaction, path: RepoPath, sandbox: RepoPath) -> None:
    _make_parents(transaction, path)
    transaction.put_symlink(path, relative(path, sandbox))
