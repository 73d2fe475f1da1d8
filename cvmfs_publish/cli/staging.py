"""`switch`: names lead to new images when replicas have them; `publish` waits for that by these."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from cvmfs_publish.cli.assembly import open_repository
from cvmfs_publish.cli.context import Session, session_of
from cvmfs_publish.cli.fallback import refresh
from cvmfs_publish.cli.lazy import command_app
from cvmfs_publish.cli.options import PlatformOption
from cvmfs_publish.cli.output import error_document, plural
from cvmfs_publish.cli.replicas import open_observer, replicas_document, tell_lagging
from cvmfs_publish.cli.waiting import staged_document
from cvmfs_publish.config import Config
from cvmfs_publish.errors import InputError, PublishError
from cvmfs_publish.naming import (
    Switching,
    Waited,
    Wanted,
    read_all_staged,
    still_waiting,
    switch_now,
    switch_ready,
)
from cvmfs_publish.publish import ImageResult, PublishResult
from cvmfs_publish.reference import Reference
from cvmfs_publish.replicas import Goal, LaggingError, Survey
from cvmfs_publish.repository.base import Repository
from cvmfs_publish.repository.layouts import place_name
from cvmfs_publish.repository.records import Publication, Staged, iter_staged, read_publication
from cvmfs_publish.repository.staging import StagedName, choose_staged, hindrance
from cvmfs_publish.settings import parse_duration
from cvmfs_publish.sources.base import Platform
from cvmfs_publish.sources.compliance import Compliance

app = command_app()


@app.command()
def switch(
    context: typer.Context,
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="[IMAGE]", help="Names that wait; else all that do."),
    ] = None,
    platform: PlatformOption = None,
    wait: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Wait so long for the replicas, such as 45s, 15m or 2h; else look once.",
        ),
    ] = None,
    now: Annotated[
        bool, typer.Option("--now", help="Do not ask what replicas have; needs IMAGE.")
    ] = False,
) -> int:
    """Let names lead to new images that enough replicas have.

    Those that `publish --name-after` or `naming.after_replicas` holds back.  `watch` and every
    `publish` do it along the way; this is for cron, and for a name that should not wait any longer.
    Exit code 3 if some still wait.

    Example: cvmfs-publish switch --wait 15m
    """
    session = session_of(context)
    if now and (not images or wait is not None):
        raise InputError(
            "--now is for names that are given, and waits for nothing",
            hint="cvmfs-publish switch --now IMAGE",
        )
    span = parse_duration(wait) if wait is not None else timedelta()
    repository = open_repository(session.config)
    compliance = Compliance.of(session.config)
    with repository.open() as view:
        found = [(each, hindrance(view, each, compliance)) for each in iter_staged(view)]
    staged = _chosen(session, found, images or [], platform)
    if now:
        names = list(map(StagedName.of, staged))
        switched = switch_now(repository, names, datetime.now(UTC), compliance=compliance)
        return _finish(session, repository, Result(tuple(switched)))
    if not staged:
        return _finish(session, repository, Result())
    if not session.config.replicas:
        raise InputError(
            "the configuration names no replicas to wait for; waiting:"
            f" {plural(len(staged), 'name')}",
            hint="`cvmfs-publish switch --now IMAGE` asks nobody; or write `replicas`",
        )
    waited = wait_for_names(session, repository, list(map(StagedName.of, staged)), span)
    lag = still_waiting(waited, wanted_of(session.config), span) if waited.waiting else None
    return _finish(session, repository, Result(waited.switched, waited.waiting, waited.survey, lag))


def _chosen(
    session: Session,
    found: Sequence[tuple[Staged, PublishError | None]],
    images: Sequence[str],
    platform: str | None,
) -> list[Staged]:
    """Return what is meant of what waits; what hinders one that is not named is only told."""
    errors = {StagedName.of(staged): error for staged, error in found if error is not None}
    wanted = Platform.parse(platform) if platform else Platform.default()
    chosen = [
        choose_staged([staged for staged, _ in found], Reference.parse(image), wanted)
        for image in images
    ]
    for name, error in errors.items():
        if name in map(StagedName.of, chosen):
            raise error
        session.out.warn(str(error), error.hint)
    if images:
        return chosen
    return [
        staged
        for staged, error in found
        if error is None and (platform is None or staged.publication.platform == str(wanted))
    ]


@dataclass(frozen=True, slots=True)
class Result:
    """What became of names that waited."""

    switched: tuple[Publication, ...] = ()
    waiting: tuple[Staged, ...] = ()
    survey: Survey | None = None
    error: LaggingError | None = None


def _finish(session: Session, repository: Repository, result: Result) -> int:
    """Tell what happened; return the exit code."""
    if result.switched:
        refresh(session, repository)
    revision = repository.revision()
    document = {
        "repository": session.config.repository.name,
        "revision": revision.number,
        "root_hash": revision.root_hash,
        "switched": [switched_document(record) for record in result.switched],
        "waiting": [staged_document(staged) for staged in result.waiting],
        "replicas": None
        if result.survey is None
        else naming_document(result.survey, result.waiting, session.config, result.error),
    }
    lines = [
        f"switched  {record.reference}  {record.path} leads to {record.digest}"
        for record in result.switched
    ]
    session.out.result(document, "\n".join(lines))
    if not result.switched and not result.waiting:
        session.out.note("no name waits for replicas")
    session.out.note(f"{session.config.repository.name} is at revision {revision.number}")
    return tell_lagging(session, result.error)


def switched_document(record: Publication) -> dict[str, object]:
    return {
        "reference": record.reference,
        "platform": record.platform,
        "digest": record.digest,
        "image_id": record.image_id,
        "path": record.path,
        "sandbox": record.sandbox,
        "revision": record.revision,
    }


# for `publish`


def wanted_of(config: Config) -> Wanted:
    """Return what is asked before a name leads to the image it waits for.

    More replicas than there are at present can never have it.
    """
    count = config.naming.after_replicas or len(config.replicas)
    return Wanted(count, Compliance.of(config))


def wait_for_names(
    session: Session, repository: Repository, names: Collection[StagedName], span: timedelta
) -> Waited:
    """Wait until none of these names waits, or the time is over, and say meanwhile how far it is.

    Everything else that waits and has arrived is switched along.
    """
    observer = open_observer(session.config)
    switching = Switching(
        repository,
        lambda: observer.look(datetime.now(UTC)),
        wanted_of(session.config),
        now=lambda: datetime.now(UTC),
        tell=session.out.note,
    )
    return switching.wait(names, span)


def switch_arrived(session: Session, repository: Repository) -> tuple[Publication, ...]:
    """Switch what earlier runs have left waiting and what has arrived; failures are only told."""
    config = session.config
    if not config.replicas or config.repository.backend == "directory":
        return ()
    try:
        wanted = wanted_of(config)
        if not read_all_staged(repository, wanted.compliance):
            return ()
        now = datetime.now(UTC)
        survey = open_observer(config).look(now)
        return tuple(switch_ready(repository, survey, wanted, now))
    except PublishError as error:
        session.out.warn(f"names that wait for replicas go on waiting: {error}", error.hint)
        return ()


@dataclass(frozen=True, slots=True)
class Naming:
    """What became of names that wait for replicas."""

    switched: tuple[Publication, ...] = ()
    document: Mapping[str, object] = field(default_factory=lambda: {"switched": []})
    lag: LaggingError | None = None
    waiting: frozenset[StagedName] | None = None  # None: nobody knows


def name_images(session: Session, result: PublishResult, span: timedelta) -> Naming:
    """Wait until the names of new images lead there; note in the images what they came to."""
    repository = open_repository(session.config)
    own = {
        StagedName(image.reference, image.platform, image.publication.manifest_digest): image
        for image in result.images
        if image.status == "staged" and image.publication is not None
    }
    naming = (
        _wait_for_own(session, repository, own, span)
        if own
        else Naming(switch_arrived(session, repository))
    )
    with repository.open() as view:
        for name, image in own.items():
            place = place_name(Reference.parse(name.reference), Platform.parse(name.platform))
            record = read_publication(view, place.publication)
            if record is not None and record.manifest_digest == name.manifest_digest:
                image.publication, image.status, image.waits_for = record, "published", 0
            elif naming.waiting is not None and name not in naming.waiting:
                image.status, image.error = "failed", _superseded(name)
    if naming.switched:
        refresh(session, repository)
    for record in naming.switched:
        session.out.note(f"{record.path} leads to {record.digest}")
    switched = [switched_document(record) for record in naming.switched]
    return replace(naming, document={**naming.document, "switched": switched})


def _wait_for_own(
    session: Session,
    repository: Repository,
    own: Mapping[StagedName, ImageResult],
    span: timedelta,
) -> Naming:
    """Whatever happens meanwhile, the images are published."""
    config = session.config
    session.out.note(f"{plural(len(own), 'name')} will lead to new images when replicas have them")
    try:
        waited = wait_for_names(session, repository, own.keys(), span)
    except PublishError as problem:
        error = LaggingError(
            f"the images are published, but their names go on waiting: {problem}",
            hint=problem.hint,
        )
        return Naming(document={"replicas": {"error": error_document(error)}}, lag=error)
    lag = still_waiting(waited, wanted_of(config), span) if waited.waiting else None
    for staged in waited.waiting:
        own[StagedName.of(staged)].publication = staged.publication
    replicas = naming_document(waited.survey, waited.waiting, config, lag)
    waiting = frozenset(map(StagedName.of, waited.waiting))
    return Naming(waited.switched, {"replicas": replicas}, lag, waiting)


def _superseded(name: StagedName) -> LaggingError:
    return LaggingError(
        f"{name.reference} waits no longer to lead to {name.manifest_digest}: another publish, a"
        " rollback or an unpublish came in between",
        hint=f"`cvmfs-publish history {name.reference}` tells where it leads",
    )


def naming_document(
    survey: Survey, waiting: Iterable[Staged], config: Config, error: LaggingError | None
) -> dict[str, Any]:
    """Return what JSON documents say of the replicas that names wait for."""
    wanted = wanted_of(config)
    revision = max((staged.revision for staged in waiting), default=survey.revision)
    count = max((wanted.of(staged) for staged in waiting), default=0)
    return replicas_document(survey, Goal(revision, count, timedelta()), error)
