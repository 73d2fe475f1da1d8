"""`unpublish`, `rollback`, `pin`, `unpin`, `history`: what the names of images lead to."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from cvmfs_publish.cli.assembly import open_repository
from cvmfs_publish.cli.context import Session, session_of
from cvmfs_publish.cli.fallback import refresh
from cvmfs_publish.cli.images import SHOWN_DIGITS, minute
from cvmfs_publish.cli.lazy import command_app
from cvmfs_publish.cli.options import ImageArgument, PlatformOption
from cvmfs_publish.cli.output import error_document, format_table
from cvmfs_publish.cli.waiting import staged_document, staged_line
from cvmfs_publish.reference import Reference
from cvmfs_publish.repository import names
from cvmfs_publish.repository.base import Repository, persist
from cvmfs_publish.repository.compliance import check_record
from cvmfs_publish.repository.names import History, UnpublishedImage, Version
from cvmfs_publish.repository.records import Publication
from cvmfs_publish.sources.base import Platform
from cvmfs_publish.sources.compliance import Compliance

app = command_app()


@app.command()
def unpublish(
    context: typer.Context,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE", help="As they were published.")],
    platform: PlatformOption = None,
) -> int:
    """Remove the names of images.

    All of them go in one new revision.  Jobs that run are not disturbed: the sandboxes, and the
    names by digest, stay until `gc` finds that their grace has passed; until then `rollback` brings
    a name back.  A pinned name is refused.  Exit code 6 says that some failed and others did not.

    Example: cvmfs-publish unpublish ghcr.io/a/b:1 docker.io/library/debian:11
    """
    session = session_of(context)
    repository = open_repository(session.config)
    result = names.unpublish_images(
        repository, images, now=datetime.now(UTC), platform=_platform(platform)
    )
    refresh(session, repository)
    session.out.result(
        {
            **_revision_document(session, repository),
            "images": [_image_document(image) for image in result.images],
        },
        "\n".join(
            f"unpublished  {image.reference}  its sandbox {image.publication.sandbox} stays for now"
            for image in result.images
            if image.publication is not None
        ),
    )
    if not session.out.as_json:
        for image in result.images:
            if image.error is not None:
                session.out.error(image.error.kind, str(image.error), image.error.hint)
    _tell_revision(session, repository)
    return result.exit_code


@app.command()
def rollback(
    context: typer.Context,
    image: ImageArgument,
    to: Annotated[
        str,
        typer.Option(
            metavar="DIGEST",
            help="Digest in the registry, manifest digest or image id, or its first 6 digits or"
            " more; else what the name led to before.",
        ),
    ] = "",
    platform: PlatformOption = None,
) -> None:
    """Point a name back to what it led to before.

    One small commit; nothing is fetched.  Done twice, it leads to the newer image again.  It works
    for a name that was unpublished, too.  The next `publish` of the name follows the registry.

    Example: cvmfs-publish rollback ghcr.io/a/b:1 --to sha256:4bc453b53cb3
    """
    session = session_of(context)
    repository = open_repository(session.config)
    reference, chosen, now = Reference.parse(image), _platform(platform), datetime.now(UTC)

    def work() -> names.Rollback:
        with repository.transaction(int(now.timestamp())) as transaction:
            done = names.rollback(transaction, reference, chosen, now, to)
            check_record(transaction, Compliance.of(session.config), done.publication)
            return done

    done = persist(work)
    refresh(session, repository)
    record = done.publication
    word = "rolled back" if done.is_changed else "unchanged"
    session.out.result(
        {**_revision_document(session, repository), "status": word, **_record_document(record)},
        f"{word}  {record.reference}  {record.path} leads to {record.digest}",
    )
    _tell_revision(session, repository)


@app.command()
def pin(context: typer.Context, image: ImageArgument, platform: PlatformOption = None) -> None:
    """Protect a name and its sandbox from removal.

    The name cannot be unpublished, and the sandbox it leads to now is never collected, also when
    the name moves on.  Pinned again after it moved, it keeps both.

    Example: cvmfs-publish pin ghcr.io/a/b:1
    """
    session = session_of(context)
    repository = open_repository(session.config)
    reference, chosen, now = Reference.parse(image), _platform(platform), datetime.now(UTC)

    def work() -> Publication:
        with repository.transaction(int(now.timestamp())) as transaction:
            return names.pin(transaction, reference, chosen, now)

    record = persist(work)
    session.out.result(
        {**_revision_document(session, repository), **_record_document(record)},
        f"pinned  {record.reference}  keeps {' '.join(record.pinned)}",
    )
    _tell_revision(session, repository)


@app.command()
def unpin(context: typer.Context, image: ImageArgument, platform: PlatformOption = None) -> None:
    """End the protection by `pin`.

    Example: cvmfs-publish unpin ghcr.io/a/b:1
    """
    session = session_of(context)
    repository = open_repository(session.config)
    reference, chosen, now = Reference.parse(image), _platform(platform), datetime.now(UTC)

    def work() -> Publication:
        with repository.transaction(int(now.timestamp())) as transaction:
            return names.unpin(transaction, reference, chosen)

    record = persist(work)
    session.out.result(
        {**_revision_document(session, repository), **_record_document(record)},
        f"unpinned  {record.reference}",
    )
    _tell_revision(session, repository)


@app.command()
def history(context: typer.Context, image: ImageArgument, platform: PlatformOption = None) -> None:
    """Show what a name led to and when.

    The newest event stands first.  `kept` is what `rollback` can go back to; `removed` was
    collected, and `publish NAME@DIGEST` fetches it again.

    Example: cvmfs-publish history ghcr.io/a/b:1
    """
    session = session_of(context)
    repository = open_repository(session.config)
    with repository.open() as view:
        found = names.read_history(view, Reference.parse(image), _platform(platform))
    session.out.result(
        {
            "repository": session.config.repository.name,
            "reference": found.reference,
            "platform": found.platform,
            "published": found.current is not None,
            "pinned_at": found.current.pinned_at if found.current is not None else "",
            "staged": staged_document(found.staged),
            "events": [
                {
                    **version.event._asdict(),
                    "state": _state(version),
                    "pinned": version.is_pinned,
                }
                for version in reversed(found.versions)
            ],
        },
        _history_text(found),
    )


def _history_text(found: History) -> str:
    header = ("WHEN", "WHAT", "DIGEST", "IMAGE ID", "REVISION", "STATE")
    rows = [
        (
            minute(version.event.at),
            version.event.what,
            _short(version.event.digest),
            _short(version.event.image_id),
            f"{version.event.revision:>8}",
            _state(version) + (", pinned" if version.is_pinned else ""),
        )
        for version in reversed(found.versions)
    ]
    lines = [format_table(header, rows)] if rows else []
    if found.staged is not None:
        lines.append(staged_line(found.staged))
    return "\n".join(lines)


def _state(version: Version) -> str:
    if version.is_current:
        return "current"
    return "kept" if version.is_kept else "removed"


def _short(digest: str) -> str:
    return digest.partition(":")[2][:SHOWN_DIGITS]


def _platform(text: str | None) -> Platform:
    return Platform.parse(text) if text else Platform.default()


def _revision_document(session: Session, repository: Repository) -> dict[str, object]:
    revision = repository.revision()
    return {
        "repository": session.config.repository.name,
        "revision": revision.number,
        "root_hash": revision.root_hash,
    }


def _tell_revision(session: Session, repository: Repository) -> None:
    name = session.config.repository.name
    session.out.note(f"{name} is at revision {repository.revision().number}")


def _image_document(image: UnpublishedImage) -> dict[str, object]:
    record = image.publication
    return {
        "reference": image.reference,
        "status": image.status,
        "digest": record and record.digest,
        "image_id": record and record.image_id,
        "platform": image.platform,
        "path": record and record.path,
        "sandbox": record and record.sandbox,
        "error": error_document(image.error) if image.error is not None else None,
    }


def _record_document(record: Publication) -> dict[str, object]:
    return {
        "reference": record.reference,
        "platform": record.platform,
        "digest": record.digest,
        "manifest_digest": record.manifest_digest,
        "image_id": record.image_id,
        "path": record.path,
        "sandbox": record.sandbox,
        "pinned_at": record.pinned_at,
        "pinned": list(record.pinned),
    }
