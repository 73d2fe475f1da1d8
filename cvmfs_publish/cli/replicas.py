"""`replicas`: how far the replicas (Stratum 1) of the repository are, and waiting for them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from cvmfs_publish.cli.assembly import open_native, open_server
from cvmfs_publish.cli.context import Session, session_of
from cvmfs_publish.cli.lazy import command_app
from cvmfs_publish.cli.output import error_document, format_table, format_time
from cvmfs_publish.cli.reading import open_own
from cvmfs_publish.cli.several import in_each
from cvmfs_publish.config import Config
from cvmfs_publish.content.hashes import ContentHash
from cvmfs_publish.errors import InputError
from cvmfs_publish.replicas import (
    Goal,
    LaggingError,
    Nearness,
    Observer,
    Source,
    Standing,
    Survey,
    Waiting,
    http_target,
    lagging,
)
from cvmfs_publish.repository.native.manifest import Manifest
from cvmfs_publish.repository.native.reachability import root_facts
from cvmfs_publish.repository.native.signing import public_key_files
from cvmfs_publish.settings import parse_duration

DEFAULT_WAIT = "10m"

app = command_app()


@app.command()
def replicas(
    context: typer.Context,
    wait: Annotated[
        int | None,
        typer.Option(
            metavar="REVISION", min=1, help="Wait until --count replicas have it, or a later one."
        ),
    ] = None,
    timeout: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="With --wait: how long, such as 45s, 15m or 2h; else 10m.",
            show_default=False,
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="How many are to have the revision; with --wait all by default. Without --wait:"
            " exit code 3 unless so many have the newest one.",
        ),
    ] = None,
) -> int:
    """Show how far every configured replica is.

    Reads each as clients do, signatures verified: its revision, how far that is behind, and what is
    wrong with it.  `near` is the order in which clients here use them, if a replica tells (Geo
    API).  Exit code 3 if fewer than asked for have the revision.

    Example: cvmfs-publish replicas --wait 12 --count 2 --timeout 15m
    """
    if timeout is not None and wait is None:
        raise InputError("--timeout without --wait has no meaning")
    session = session_of(context)
    if wait is not None:
        return _replicas(session, wait, timeout, count)  # each repository has revisions of its own
    return in_each(
        session,
        lambda one: _replicas(one, wait, timeout, count),
        concerns=lambda config: bool(config.replicas),
    )


def _replicas(session: Session, wait: int | None, timeout: str | None, count: int | None) -> int:
    check_count(session.config, count, "--count")
    observer = open_observer(session.config)
    if wait is not None:
        span = parse_duration(timeout or DEFAULT_WAIT)
        goal = Goal(wait, count or len(observer.targets), span)
        survey = wait_for(session, observer, goal)
        error = None if goal.is_reached(survey) else lagging(survey, goal, waited=True)
    else:
        survey = observer.look(datetime.now(UTC))
        goal = Goal(survey.revision, count or 0, timedelta())
        error = None if goal.is_reached(survey) else lagging(survey, goal, waited=False)
    nearness = observer.sort(survey)
    document = {
        "repository": session.config.repository.name,
        **replicas_document(survey, goal, error, nearness),
        "sorted_by": nearness.told_by or None,
        "not_sorted": nearness.problem or None,
    }
    session.out.result(document, _table(survey, nearness))
    return tell_lagging(session, error)


def check_backend(config: Config) -> None:
    """Raise `InputError` if clients do not read the repository from replicas."""
    if config.repository.backend == "directory":
        raise InputError(
            f"replicas are of repositories that CernVM-FS clients read; {config.repository.name} is"
            " of `backend: directory`",
            hint="whatever copies the tree elsewhere knows whether it has",
        )


def check_count(config: Config, count: int | None, option: str) -> None:
    """Raise `InputError` if there are fewer replicas than are to have a revision."""
    check_backend(config)
    known = len(config.replicas)
    if not known:
        raise InputError(
            f"the configuration names no replicas of {config.repository.name}",
            hint="replicas: [http://s1.example.org/cvmfs/NAME]",
        )
    if count is not None and count > known:
        raise InputError(
            f"{option} {count}: the configuration names only {known} of them in `replicas`",
            hint=f"at most {known} can be waited for",
        )


def open_observer(config: Config) -> Observer:
    """Return what looks at the configured replicas; nothing is read yet."""
    check_backend(config)
    is_stock = config.repository.backend == "cvmfs_server"
    source = _server_source(config) if is_stock else _native_source(config)
    targets = [
        http_target(each.url, proxy=each.proxy, compare=each.compare)
        for each in config.known_replicas
    ]
    return Observer(source, targets)


def _native_source(config: Config) -> Source:
    repository = open_native(config)

    def read() -> Manifest:
        with open_own(repository, config.repository.keys) as snapshot:
            return snapshot.manifest

    def look_back(root: ContentHash) -> tuple[int, ContentHash | None]:
        number, _, previous = root_facts(repository.store, root)
        return number, previous

    name = config.repository.name
    return Source(name, read, tuple(public_key_files(config.repository.keys, name)), look_back)


def _server_source(config: Config) -> Source:
    """Return a repository that `cvmfs_server` writes; its public key is where that keeps it."""
    repository, name = open_server(config), config.repository.name
    keys = public_key_files(config.repository.keys, name)
    if not keys[0].exists():
        keys = public_key_files(repository.conf.keys, name)
    return Source(name, lambda: repository.read_verified(keys), tuple(keys))


def wait_for(session: Session, observer: Observer, goal: Goal) -> Survey:
    """Wait until the goal is reached or its time is over, and say meanwhile how far it is."""
    waiting = Waiting(lambda: observer.look(datetime.now(UTC)), tell=session.out.note)
    return waiting.wait(goal)


def tell_lagging(session: Session, error: LaggingError | None) -> int:
    """Say who lags behind, unless a JSON document has; return the exit code."""
    if error is None:
        return 0
    if not session.out.as_json:
        session.out.error(error.kind, str(error), error.hint)
    return error.exit_code


def replicas_document(
    survey: Survey,
    goal: Goal,
    error: LaggingError | None,
    nearness: Nearness = Nearness(),
) -> dict[str, Any]:
    """Return what JSON documents say about replicas."""
    return {
        "revision": survey.revision,
        "published_at": survey.published_at and format_time(survey.published_at),
        "wanted_revision": goal.revision,
        "wanted": goal.count,
        "having": survey.having(goal.revision),
        "replicas": [_standing_document(standing, nearness) for standing in survey.replicas],
        "error": error_document(error) if error is not None else None,
    }


def _standing_document(standing: Standing, nearness: Nearness) -> dict[str, Any]:
    return {
        "url": standing.url,
        "health": standing.health,
        "revision": standing.revision,
        "published_at": standing.published_at and format_time(standing.published_at),
        "behind": standing.behind,
        "behind_seconds": None if standing.late is None else int(standing.late.total_seconds()),
        "geo_order": nearness.rank(standing.url),
        "message": standing.message,
        "hint": standing.hint,
    }


def _table(survey: Survey, nearness: Nearness) -> str:
    rows: list[tuple[str, ...]] = [
        (
            standing.url,
            "-" if standing.revision is None else str(standing.revision),
            "-" if standing.published_at is None else format_time(standing.published_at),
            "-" if standing.behind is None else str(standing.behind),
            "-" if standing.late is None else f"{standing.late.total_seconds():.0f} s",
            standing.health,
            standing.message,
        )
        for standing in survey.replicas
    ]
    header: tuple[str, ...] = ("replica", "revision", "published", "behind", "late", "health", "")
    if nearness.urls:
        header = ("near", *header)
        rows = [
            (str(nearness.rank(standing.url)), *row)
            for standing, row in zip(survey.replicas, rows, strict=True)
        ]
    return f"{format_table(header, rows)}\n{survey.revision} is the newest revision"
