"""`tag`: names of revisions."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from cvmfs_publish.cli.assembly import open_native
from cvmfs_publish.cli.context import Session, session_of
from cvmfs_publish.cli.lazy import command_app
from cvmfs_publish.cli.output import format_minute, format_table, format_time, plural
from cvmfs_publish.content.hashes import ContentHash
from cvmfs_publish.errors import InputError, IntegrityError
from cvmfs_publish.repository.native.history import Tag
from cvmfs_publish.repository.native.repository import NativeRepository
from cvmfs_publish.repository.native.tags import Target, list_tags, remove_tags, set_tag

app = command_app()


@app.command()
def tag(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Of letters, digits and _ . / : -", show_default=False),
    ] = None,
    message: Annotated[
        str | None, typer.Option("-m", "--message", metavar="TEXT", help="What it is for.")
    ] = None,
    revision: Annotated[
        int | None, typer.Option(metavar="NUMBER", help="Name this revision.")
    ] = None,
    root_hash: Annotated[
        str | None, typer.Option("--hash", metavar="HASH", help="Name that with this root catalog.")
    ] = None,
    other: Annotated[
        str | None, typer.Option("--tag", metavar="OTHER", help="Name what this tag names.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Move a tag that names another revision.")
    ] = False,
    delete: Annotated[
        bool, typer.Option("--delete", help="Forget the names instead; several may be given.")
    ] = False,
) -> None:
    """Name a revision, or list the names.

    Without NAME all tags are listed.  A new tag names the published revision, unless --revision,
    --hash or --tag say otherwise.  Clients can mount a tag (CVMFS_REPOSITORY_TAG), and what it
    names is never collected.

    Example: cvmfs-publish tag release-2026-11 -m "as used for the autumn campaign"
    """
    session = session_of(context)
    target = _target(revision, root_hash, other)
    has_target = target != Target()
    if not names:
        if has_target or force or delete or message is not None:
            raise InputError("a name is missing", hint="cvmfs-publish tag NAME …")
        _list(session, open_native(session.config, "tags are"))
        return
    if delete:
        if has_target or force or message is not None:
            raise InputError("--delete takes names and nothing else")
        _delete(session, open_native(session.config, "tags are"), names)
        return
    if len(names) != 1:
        raise InputError(
            f"{len(names)} names are given, one at a time is possible",
            hint="quote a message: -m 'several words'",
        )
    _set(session, open_native(session.config, "tags are"), names[0], target, message, force)


def _target(revision: int | None, root_hash: str | None, other: str | None) -> Target:
    if sum(given is not None for given in (revision, root_hash, other)) > 1:
        raise InputError("--revision, --hash and --tag exclude each other")
    if other == "":
        raise InputError("--tag wants the name of a tag")
    try:
        parsed = ContentHash.parse(root_hash) if root_hash is not None else None
    except IntegrityError as error:
        raise InputError(
            f"--hash: {error}", hint="`cvmfs-publish tag --json` shows root hashes in full"
        ) from error
    return Target(revision, parsed, other or "")


def _list(session: Session, repository: NativeRepository) -> None:
    tags = list_tags(repository)
    header = ("NAME", "REVISION", "DATE", "ROOT HASH", "DESCRIPTION")
    rows = [
        (found.name, f"{found.revision:>8,}", _date(found), str(found.hash), found.description)
        for found in tags
    ]
    session.out.result(
        {"repository": repository.name, "tags": [tag_document(found) for found in tags]},
        format_table(header, rows) if rows else "",
    )
    if not rows:
        session.out.note(f"{repository.name} has no tags yet")


def _set(
    session: Session,
    repository: NativeRepository,
    name: str,
    target: Target,
    message: str | None,
    force: bool,
) -> None:
    made, changed = set_tag(
        repository, name, _now(), target=target, description=message, force=force
    )
    word = "tagged" if changed else "unchanged"
    session.out.result(
        {"repository": repository.name, "status": word, "tag": tag_document(made)},
        f"{word}  {made.name}  revision {made.revision} of {_date(made)}, {made.hash}",
    )


def _delete(session: Session, repository: NativeRepository, names: list[str]) -> None:
    removed = remove_tags(repository, names, _now())
    session.out.result(
        {"repository": repository.name, "removed": [tag_document(found) for found in removed]},
        "\n".join(
            f"removed  {found.name}  revision {found.revision}, {found.hash}" for found in removed
        ),
    )
    revisions = len({found.revision for found in removed})
    session.out.note(
        f"`gc` may collect {plural(revisions, 'revision')} now, unless something else keeps "
        f"{'it' if revisions == 1 else 'them'}"
    )


def tag_document(found: Tag) -> dict[str, object]:
    """Return what JSON results say about a tag."""
    return {
        "name": found.name,
        "revision": found.revision,
        "date": format_time(datetime.fromtimestamp(found.timestamp, UTC)),
        "root_hash": str(found.hash),
        "description": found.description,
        "branch": found.branch,
    }


def _date(found: Tag) -> str:
    return format_minute(datetime.fromtimestamp(found.timestamp, UTC))


def _now() -> int:
    return int(datetime.now(UTC).timestamp())
