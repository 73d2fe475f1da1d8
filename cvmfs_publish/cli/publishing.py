"""`publish`: images from registries, archives and object stores into the repository."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from cvmfs_publish.cli.assembly import open_repository
from cvmfs_publish.cli.context import Session, session_of
from cvmfs_publish.cli.fallback import artefact_document, open_packer, tell_copy
from cvmfs_publish.cli.lazy import command_app, load
from cvmfs_publish.cli.output import Output, error_document, format_bytes, format_time, plural
from cvmfs_publish.cli.replicas import (
    DEFAULT_WAIT,
    check_count,
    open_observer,
    replicas_document,
    tell_lagging,
    wait_for,
)
from cvmfs_publish.cli.several import Several
from cvmfs_publish.cli.staging import Naming, name_images
from cvmfs_publish.config import (
    Config,
    LimitsConfig,
    RegistryConfig,
    RegistryHost,
    S3Keys,
    SourcesConfig,
    SwiftConfig,
    complete_sources,
)
from cvmfs_publish.errors import InputError, PublishError, RepositoryError, exit_code_of
from cvmfs_publish.layers.read import LayerLimits
from cvmfs_publish.layers.record import RecordStore
from cvmfs_publish.origin import NAMED, WEB, Origin
from cvmfs_publish.publish import (
    ImageResult,
    Publisher,
    PublishResult,
    PublishSettings,
    Reporter,
    Silent,
)
from cvmfs_publish.reference import Reference
from cvmfs_publish.replicas import Goal, LaggingError, lagging
from cvmfs_publish.repository.artefact import Packer
from cvmfs_publish.sandbox.policy import SandboxPolicy
from cvmfs_publish.sandbox.roots import STANDARD_ROOTS
from cvmfs_publish.settings import parse_duration
from cvmfs_publish.sites.binds import plan_targets
from cvmfs_publish.sites.data import load_site
from cvmfs_publish.sources.base import Platform, SourceLimits
from cvmfs_publish.sources.compliance import Compliance
from cvmfs_publish.sources.downloads import Downloads
from cvmfs_publish.sources.objectstore import S3Access, SwiftAccess
from cvmfs_publish.sources.registry.auth import Credential
from cvmfs_publish.sources.registry.budget import Allowance, Budgets, Snapshot
from cvmfs_publish.sources.registry.budget_file import add_spent, read_spent
from cvmfs_publish.sources.registry.client import (
    ATTEMPTS,
    CONNECT_TIMEOUT,
    READ_TIMEOUT,
    RegistryClient,
)
from cvmfs_publish.sources.registry.credentials import read_docker_credentials
from cvmfs_publish.sources.registry.mirrors import MirrorSettings
from cvmfs_publish.sources.registry.signatures import RegistrySignatures
from cvmfs_publish.sources.registry.source import RegistrySource
from cvmfs_publish.sources.shared import SharedBlobs, SharedSource, Source
from cvmfs_publish.sources.transports import Access, Sources
from cvmfs_publish.sources.trust import Trust, load_rules

app = command_app()


@app.command()
def publish(
    context: typer.Context,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE", help="[TRANSPORT:]REFERENCE, such as ghcr.io/a/b:1 or sif:FILE."
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="NAME",
            help="Publish the one image under this name, REGISTRY/REPOSITORY:TAG.",
        ),
    ] = None,
    platform: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OS/ARCH[/VARIANT]",
            help="Platform of the images, else linux/amd64. Several, each with --platform, are"
            " published side by side.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Prepare and publish again what is unchanged.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be published; write nothing.")
    ] = False,
    fallback: Annotated[
        bool | None,
        typer.Option(
            "--fallback/--no-fallback",
            help="Publish as one file too, for nodes without CernVM-FS; default if `fallback` is"
            " configured.",
            show_default=False,
        ),
    ] = None,
    name_after: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Let names lead to new images only when N replicas have these, and wait for it;"
            " 0: at once. Else as `naming.after_replicas` says.",
            show_default=False,
        ),
    ] = None,
    wait_replicas: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Then wait until N replicas have the revision; exit code 3 if that takes too"
            " long.",
        ),
    ] = None,
    wait_timeout: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="With --wait-replicas or --name-after: how long, such as 45s, 15m or 2h; else"
            " 10m.",
            show_default=False,
        ),
    ] = None,
) -> int:
    """Publish images from registries, files and stores.

    Fetches, verifies, unpacks and prepares the images, from registries, archives, SIF files, object
    stores or the web, and makes all of them visible in one new revision.  An unchanged image costs
    one request and no revision.  An image that fails does not hold back the others; exit code 6
    says that some failed and others did not.  With --name-after images come first and names follow
    in a second revision; exit code 3 says that names still wait.

    Example: cvmfs-publish publish ghcr.io/a/b:1 docker.io/library/debian:12
    """
    session = session_of(context)
    if name is not None and len(images) > 1:
        raise InputError(
            f"--as {name} names one image, and {len(images)} are to be published",
            hint="publish them in calls of their own",
        )
    wanted = _Wanted(
        images,
        dict.fromkeys(images, name) if name is not None else {},
        [Platform.parse(each) for each in platform or ()],
        force,
        dry_run,
        fallback,
        wait_replicas,
    )
    plans = {
        str(config.repository.name): _plan_wait(
            config, name_after, wait_replicas, wait_timeout, dry_run=dry_run
        )
        for config in session.configs
    }  # of all, before anything is published
    budgets = open_budgets(session.configs[0], datetime.now(UTC))
    with open_shared_source(
        session.configs[0], session.environ, images, session.cwd, budgets
    ) as source:
        if len(session.configs) > 1:
            outcomes = _publish_in_each(session, wanted, plans, source)
        else:
            result = _publish(session, wanted, plans, source)
    if len(session.configs) > 1:
        return _tell_each(session, wanted, plans, outcomes, budgets)
    late = _tell(session, wanted, plans, result, budgets)
    return result.exit_code or late


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What the command line says."""

    images: list[str]
    names: Mapping[str, str]
    platforms: list[Platform]
    force: bool
    dry_run: bool
    fallback: bool | None
    wait_replicas: int | None


def _publish_in_each(
    session: Session, wanted: _Wanted, plans: Mapping[str, _Plan], source: Source
) -> dict[str, PublishResult | PublishError]:
    """Publish into every repository whose rules accept an image; none holds back the others."""
    outcomes: dict[str, PublishResult | PublishError] = {}
    for config in session.configs:
        name = config.repository.name
        try:
            outcomes[name] = _publish(session.of(config, session.out), wanted, plans, source)
        except PublishError as error:
            outcomes[name] = error
    return outcomes


def _tell_each(
    session: Session,
    wanted: _Wanted,
    plans: Mapping[str, _Plan],
    outcomes: Mapping[str, PublishResult | PublishError],
    budgets: Budgets,
) -> int:
    """Tell what became of it in each repository, and return the exit code.

    An image that some accept is no failure of the others; one that none accepts has failed.
    """
    broken = [outcome for outcome in outcomes.values() if isinstance(outcome, PublishError)]
    images = [
        image
        for outcome in outcomes.values()
        if isinstance(outcome, PublishResult)
        for image in outcome.images
    ]
    # what a repository that is broken would have said of an image, nobody knows
    somewhere = {image.key for image in images if broken or image.status != "refused"}

    def tell(one: Session) -> int:
        outcome = outcomes[one.config.repository.name]
        if isinstance(outcome, PublishError):
            raise outcome
        return _tell(one, wanted, plans, outcome, budgets, somewhere)

    several = Several(session)
    for config in session.configs:
        several.do(config, tell)
    several.tell()
    tried = [image for image in images if not _is_elsewhere(image, somewhere)]
    errors = [*broken, *(image.error for image in tried if image.error is not None)]
    late = LaggingError.exit_code if LaggingError.exit_code in several.codes else 0
    return exit_code_of(errors, len(broken) + len(tried)) or late


def _is_elsewhere(image: ImageResult, somewhere: Collection[tuple[str, str]]) -> bool:
    """Whether an image is kept out of one repository, and wanted in another."""
    return image.status == "refused" and image.key in somewhere


def _publish(
    session: Session, wanted: _Wanted, plans: Mapping[str, _Plan], source: Source
) -> PublishResult:
    """Publish into one repository."""
    with open_packer(session.config, session.environ, wanted=wanted.fallback) as packer:
        with (
            open_reporter(session.out) as reporter,
            open_publisher(
                session.config,
                session.environ,
                wanted.images,
                reporter,
                packer,
                folder=session.cwd,
                source=source,
            ) as publisher,
        ):
            result = publisher.publish(
                wanted.images,
                names=wanted.names,
                now=datetime.now(UTC),
                platform=wanted.platforms,
                after_replicas=plans[session.config.repository.name].name_after,
                force=wanted.force,
                dry_run=wanted.dry_run,
            )
        if packer is not None and not wanted.dry_run:
            tell_copy(session, open_repository(session.config), packer.store)
    return result


def _tell(
    session: Session,
    wanted: _Wanted,
    plans: Mapping[str, _Plan],
    result: PublishResult,
    budgets: Budgets,
    somewhere: Collection[tuple[str, str]] = (),
) -> int:
    """Tell what became of it, wait for replicas; return an exit code if they are late.

    An image that is refused here is no error if it is wanted in another repository.
    """
    repository, dry_run = session.config.repository.name, wanted.dry_run
    plan = plans[repository]
    naming = Naming() if dry_run else name_images(session, result, plan.naming)
    if naming.switched:
        head = open_repository(session.config).revision()
        result = replace(result, revision=head.number, root_hash=head.root_hash)
    due = dry_run and session.config.fallback is not None and wanted.fallback is not False
    errors = [
        image
        for image in result.images
        if image.error is not None and not _is_elsewhere(image, somewhere)
    ]
    text = "\n".join(_line(image, dry_run, due) for image in result.images if image not in errors)
    used = budgets.snapshots(datetime.now(UTC))
    document = publish_document(repository, result, used, dry_run=dry_run)
    document |= naming.document
    lag = naming.lag
    if (
        lag is None
        and wanted.wait_replicas is not None
        and any(image.error is None for image in result.images)
    ):
        goal = Goal(result.revision, wanted.wait_replicas, plan.replicas)
        document["replicas"], lag = _wait(session, goal)
    session.out.result(document, text)
    if not session.out.as_json:
        for image in errors:
            message = str(image.error)
            subject = "" if image.reference in message else f"{_name(image)}: "
            if image.error is not None:
                session.out.error(image.error.kind, subject + message, image.error.hint)
    if session.out.verbosity:
        for host, budget in used.items():
            session.out.note(f"{host}: {budget}")
    session.out.note(f"{repository} is at revision {result.revision}")
    return tell_lagging(session, lag)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What replicas are waited for, and how long."""

    name_after: int  # how many are to have an image before its name leads there
    naming: timedelta  # for that
    replicas: timedelta  # for --wait-replicas


def _plan_wait(
    config: Config,
    name_after: int | None,
    count: int | None,
    timeout: str | None,
    *,
    dry_run: bool,
) -> _Plan:
    """Say what is waited for; nothing is published if the options are wrong."""
    after = config.naming.after_replicas if name_after is None else name_after
    if count is None and not after and timeout is not None:
        raise InputError("--wait-timeout without --wait-replicas or --name-after has no meaning")
    if count is not None and dry_run:
        raise InputError("--wait-replicas with --dry-run has no meaning: nothing is published")
    if after:
        check_count(config, after, "--name-after")
    if 0 < config.naming.after_replicas < after:
        raise InputError(
            f"--name-after {after}: `naming.after_replicas` is {config.naming.after_replicas}, and"
            " whoever looks at the replicas next goes by that",
            hint="leave the option out, or raise `naming.after_replicas`",
        )
    if count is not None:
        check_count(config, count, "--wait-replicas")
    return _Plan(
        after,
        config.naming.timeout if timeout is None else parse_duration(timeout),
        parse_duration(timeout or DEFAULT_WAIT),
    )


def _wait(session: Session, goal: Goal) -> tuple[dict[str, object], LaggingError | None]:
    """Wait for replicas; whatever happens meanwhile, the revision is published."""
    session.out.note(f"revision {goal.revision} is published; its replicas are waited for")
    try:
        survey = wait_for(session, open_observer(session.config), goal)
    except PublishError as problem:
        error = LaggingError(
            f"revision {goal.revision} is published, but replicas cannot be waited for: {problem}",
            hint=problem.hint,
        )
        return {"error": error_document(error)}, error
    lag = None if goal.is_reached(survey) else lagging(survey, goal, waited=True)
    return replicas_document(survey, goal, lag), lag


# from the configuration to the parts that do the work


@contextmanager
def open_publisher(
    config: Config,
    environ: Mapping[str, str],
    images: Sequence[str],
    reporter: Reporter,
    packer: Packer | None = None,
    *,
    folder: Path,
    source: Source | None = None,
) -> Iterator[Publisher]:
    """Put a publisher together for these images; connections are closed at the end.

    Paths of files among them are relative to `folder`.  `source`: what is asked for them, if it is
    open already.

    Raises `InputError` for what the configuration says wrongly, `RepositoryError` if there is no
    repository where it says.
    """
    repository = open_repository(config)
    algorithm = repository.algorithm()
    if config.repository.hash != algorithm.value:
        raise InputError(
            f"repository.hash is {config.repository.hash}, but {config.repository.name} was created"
            f" with {algorithm.value}",
            hint="correct the configuration; a repository keeps its hash",
        )
    settings = publish_settings(config)
    rules = load_rules(config.trust)
    with ExitStack() as stack:
        if source is None:
            source = stack.enter_context(
                open_shared_source(config, environ, images, folder, stays=True)
            )
        records = RecordStore(config.state / "layers", algorithm)
        yield Publisher(
            repository,
            source,
            records,
            settings,
            reporter,
            packer,
            Trust(rules, source),
            Compliance.of(config),
        )


@contextmanager
def open_shared_source(
    config: Config,
    environ: Mapping[str, str],
    images: Sequence[str],
    folder: Path,
    budgets: Budgets | None = None,
    *,
    stays: bool = False,
) -> Iterator[Source]:
    """Open what has these images; with several repositories, so that each layer comes once.

    `stays`: layers are left for other publishers, who are about to ask for them as well.
    """
    with open_source(config, environ, images, folder, budgets) as source:
        if not config.is_one_of_several:
            yield source
            return
        blobs = SharedBlobs(shared_blobs(config), stays=stays)
        blobs.sweep(datetime.now(UTC).timestamp())
        try:
            yield SharedSource(source, blobs)
        finally:
            blobs.close()


def shared_blobs(config: Config) -> Path:
    """Return the folder of layers that other repositories may want as well."""
    return config.shared_state / "blobs"


def open_budgets(config: Config | None, now: datetime) -> Budgets:
    """Return what registries may be asked, and what they were asked in the last hour."""
    if config is None:
        return Budgets()
    allowances: dict[str, Allowance] = {
        host: Allowance(registry.pulls_per_hour, registry.requests_per_hour)
        for host, registry in config.registries.items()
    }
    return Budgets(allowances, read_spent(_spent_file(config), now))


def keep_budgets(config: Config | None, budgets: Budgets, now: datetime) -> None:
    """Let the runs after this know what registries were asked."""
    if config is not None:
        add_spent(_spent_file(config), budgets.spent(), now)


def share_budgets(config: Config, budgets: Budgets, now: datetime) -> None:
    """Let others know what registries were asked here, and learn what they asked."""
    keep_budgets(config, budgets, now)
    budgets.recall(read_spent(_spent_file(config), now))


def _spent_file(config: Config) -> Path:
    return config.shared_state / "registries.json"


@contextmanager
def open_source(
    config: Config | None,
    environ: Mapping[str, str],
    images: Sequence[str],
    folder: Path,
    budgets: Budgets | None = None,
) -> Iterator[Sources]:
    """Open what has these images; connections are closed at the end.

    `budgets` of registries are given by whoever opens sources again and again.
    """
    budgets = budgets or open_budgets(config, datetime.now(UTC))
    limits = config.limits if config is not None else LimitsConfig()
    registries = config.registries if config is not None else {}
    sources = complete_sources(config.sources if config is not None else SourcesConfig(), environ)
    scratch = make_scratch(config) if config is not None else None
    sqfs2tar = shutil.which("sqfs2tar", path=environ.get("PATH") or os.defpath)
    credentials = find_credentials(config, environ, images)
    with open_registries(config, credentials, budgets) as registry, ExitStack() as stack:
        access = Access(
            registry=registry,
            signatures=RegistrySignatures(registry.client),
            downloads=Downloads(registry.client, stack, scratch, limits.layer_bytes),
            credentials=_web_credentials(registries, sources, images, environ),
            s3=s3_access(sources.s3),
            swift=swift_access(sources.swift),
            library=sources.library,
            hub=sources.shub,
            limits=source_limits(limits),
            scratch=scratch,
            sqfs2tar=Path(sqfs2tar) if sqfs2tar is not None else None,
        )
        yield Sources(access, str(folder))


def s3_access(keys: S3Keys) -> S3Access:
    """Return how s3:// images are reached."""
    return S3Access(
        endpoint=keys.endpoint or "",
        region=keys.region or "us-east-1",
        virtual_host=keys.virtual_host,
        access_key=keys.access_key or "",
        secret_key=keys.read_secret_key() or "",
        token=keys.session_token or "",
    )


def swift_access(swift: SwiftConfig) -> SwiftAccess:
    """Return how swift:// images are reached."""
    return SwiftAccess(
        auth_url=swift.auth_url or "",
        user=swift.user or "",
        key=swift.read_key() or "",
        project=swift.project or "",
        user_domain=swift.user_domain or "Default",
        project_domain=swift.project_domain or "Default",
        region=swift.region or "",
        storage_url=swift.storage_url or "",
    )


def _web_credentials(
    registries: Mapping[RegistryHost, RegistryConfig],
    sources: SourcesConfig,
    images: Sequence[str],
    environ: Mapping[str, str],
) -> dict[str, Credential]:
    """Return the configured logins of hosts that are no registries, for these images alone."""
    hosts: set[str] = set()
    for image in images:
        with suppress(InputError):  # told by `publish`, with the other failures
            origin = Origin.parse(image)
            if origin is not None and origin.transport in WEB | NAMED:
                hosts.add(origin.place.partition("/")[0].lower())
                hosts |= {sources.library, sources.shub} if origin.transport != "oras" else set()
    return {
        host: Credential(login.username, login.read_password(environ) or "")
        for host, login in registries.items()
        if host in hosts and login.username is not None
    }


@contextmanager
def open_registries(
    config: Config | None,
    credentials: Mapping[str, Credential],
    budgets: Budgets,
    *,
    attempts: int = ATTEMPTS,
    patience: timedelta | None = None,
) -> Iterator[RegistrySource]:
    """Open registries as they are configured; what they were asked is kept at the end.

    `patience`: with one that does not answer, where it is not to be as long as usual.
    """
    registries = config.registries if config is not None else {}
    limits = config.limits if config is not None else LimitsConfig()
    with RegistryClient(
        credentials=credentials,
        plain_http=[host for host, registry in registries.items() if registry.plain_http],
        ca_files={
            host: registry.ca_file
            for host, registry in registries.items()
            if registry.ca_file is not None
        },
        budgets=budgets,
        attempts=attempts,
        connect_timeout=patience or CONNECT_TIMEOUT,
        read_timeout=patience or READ_TIMEOUT,
    ) as client:
        try:
            yield RegistrySource(
                client,
                mirrors={
                    str(host): MirrorSettings(
                        tuple((place.host, place.path) for place in registry.mirrors),
                        registry.mirror_tags,
                    )
                    for host, registry in registries.items()
                },
                foreign_layers=[
                    host for host, registry in registries.items() if registry.foreign_layers
                ],
                limits=source_limits(limits),
            )
        finally:
            keep_budgets(config, budgets, datetime.now(UTC))


def make_scratch(config: Config) -> Path:
    """Return the folder for files that have no names and vanish with this process."""
    folder = config.shared_state / "scratch"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RepositoryError(
            f"{folder} cannot be made: {error.strerror}", hint="make `state` writable"
        ) from error
    return folder


def source_limits(limits: LimitsConfig) -> SourceLimits:
    """Return what sources may read of an image."""
    return SourceLimits(
        layer_bytes=limits.layer_bytes,
        ratio=limits.compression_ratio,
        manifest_bytes=limits.manifest_bytes,
        config_bytes=limits.config_bytes,
    )


def layer_limits(limits: LimitsConfig) -> LayerLimits:
    """Return what a layer may hold."""
    return LayerLimits(
        layer_bytes=limits.layer_bytes,
        ratio=limits.compression_ratio,
        entries=limits.entries,
        path_bytes=limits.path_bytes,
        path_depth=limits.path_depth,
    )


def publish_settings(config: Config) -> PublishSettings:
    """Return how images are read and prepared, the roots of the configured sites included."""
    sandbox = config.sandbox
    roots = dict.fromkeys([*(STANDARD_ROOTS if sandbox.standard_roots else ()), *sandbox.roots])
    for site in sandbox.sites:
        roots.update(dict.fromkeys(plan_targets(load_site(str(site)))))
    return PublishSettings(
        policy=SandboxPolicy(
            permissions=sandbox.permissions,
            setuid=sandbox.setuid,
            roots=tuple(roots),
            keep_dirlinks=sandbox.keep_dirlinks,
        ),
        limits=layer_limits(config.limits),
        image_bytes=config.limits.image_bytes,
        layout=config.repository.layout,
    )


def find_credentials(
    config: Config | None, environ: Mapping[str, str], images: Sequence[str]
) -> dict[str, Credential]:
    """Return the logins for the registries of these images, and for no others.

    What the configuration does not say is asked of Docker's config.json and its helpers.
    """
    found: dict[str, Credential] = {}
    unknown: set[str] = set()
    for registry in _registries(images, config):
        own = config.registries.get(RegistryHost(registry)) if config is not None else None
        if own is not None and own.username is not None:
            found[registry] = Credential(own.username, own.read_password(environ) or "")
        else:
            unknown.add(registry)
    folder = environ.get("DOCKER_CONFIG") or str(Path(environ.get("HOME") or "/") / ".docker")
    return found | read_docker_credentials(Path(folder) / "config.json", unknown)


def _registries(images: Sequence[str], config: Config | None) -> set[str]:
    """Return the registries of these images, and the mirrors of these registries."""
    registries: set[str] = set()
    for image in images:
        with suppress(InputError):  # told by `publish`, with the other failures
            origin = Origin.parse(image)
            if origin is None:
                registries.add(Reference.parse(image).registry)
            elif origin.transport == "oras":
                registries.add(Reference.parse(origin.place).registry)
    if config is not None:
        own = [config.registries.get(RegistryHost(registry)) for registry in registries]
        registries |= {place.host for found in own if found is not None for place in found.mirrors}
    return registries


# telling how it went


def open_reporter(out: Output) -> AbstractContextManager[Reporter]:
    if out.shows_progress and not out.verbosity:
        bars: AbstractContextManager[Reporter] = load("cvmfs_publish.cli.bars").Bars(out)
        return bars
    return nullcontext(Phases(out) if out.verbosity else Silent())


class Phases:
    """A reporter for logs: one line per phase."""

    def __init__(self, out: Output) -> None:
        self._out = out

    def phase(self, reference: str, phase: str) -> None:
        self._out.note(f"{reference or 'repository'}: {phase}")

    def layer(self, reference: str, digest: str, done: int, total: int) -> None:
        if done == total:
            self._out.note(f"{reference}: fetched {digest}, {format_bytes(total)}")


def publish_document(
    name: str, result: PublishResult, registries: Mapping[str, Snapshot], *, dry_run: bool
) -> dict[str, object]:
    """Return the JSON document of `publish`; its keys are a promise to scripts."""
    return {
        "repository": name,
        "revision": result.revision,
        "root_hash": result.root_hash,
        "dry_run": dry_run,
        "images": [_image_document(image) for image in result.images],
        "registries": {host: budget_document(budget) for host, budget in registries.items()},
    }


def budget_document(budget: Snapshot) -> dict[str, object]:
    """Return what JSON documents say about the budget of a registry."""
    stated = budget.stated
    return {
        "pulls": budget.pulls,
        "pulls_per_hour": budget.allowance.pulls_per_hour,
        "requests": budget.requests,
        "requests_per_hour": budget.allowance.requests_per_hour,
        "next_pull_seconds": round(budget.wait.total_seconds(), 3),
        "stated": None
        if stated is None
        else {
            "remaining": stated.remaining,
            "limit": stated.limit,
            "window_seconds": stated.window and stated.window.total_seconds(),
            "resets_at": stated.resets_at and format_time(stated.resets_at),
        },
    }


def _image_document(image: ImageResult) -> dict[str, object]:
    record = image.publication
    return {
        "reference": image.reference,
        "source": record.source if record is not None else "",
        "status": image.status,
        "digest": record and record.digest,
        "image_id": record and record.image_id,
        "platform": image.platform,
        "staged": None
        if image.status != "staged" or record is None
        else {"revision": record.revision, "replicas": image.waits_for},
        "signature": record and record.signature,
        "signed_by": list(record.signed_by) if record else [],
        "path": record and record.path,
        "sandbox": record and record.sandbox,
        "entries": record and record.entries,
        "bytes": record and record.content_bytes,
        "stored_bytes": record and record.stored_bytes,
        "layers": {
            "total": image.layers_total,
            "reused": image.layers_reused,
            "fetched_bytes": image.fetched_bytes,
        },
        "roots_added": list(record.roots_added) if record else [],
        "findings": [finding._asdict() for finding in record.findings] if record else [],
        "fallback": artefact_document(image.fallback),
        "seconds": round(image.seconds, 3),
        "error": error_document(image.error) if image.error is not None else None,
    }


def _line(image: ImageResult, dry_run: bool, file_is_due: bool) -> str:
    record = image.publication
    if image.status == "refused":
        return f"refused  {image.error}"
    if image.status == "unchanged" and record is not None:
        due = "; its fallback file is to be made" if file_is_due and image.fallback is None else ""
        return f"unchanged  {_name(image)}  {record.path}{_fallback(image)}{due}"
    layers = f"{plural(image.layers_total, 'layer')}, {image.layers_reused:,} known"
    if record is None or dry_run:
        return (
            f"would publish  {_name(image)}  {layers}, {format_bytes(image.fetched_bytes)} to fetch"
        )
    findings = f", {plural(len(record.findings), 'finding')}" if record.findings else ""
    where = record.path
    if image.status == "staged":
        where = f"{record.sandbox}, where {record.path} will lead"
    return (
        f"{image.status}  {_name(image)}  {where}  "
        f"{plural(record.entries, 'entry', 'entries')}, {format_bytes(record.content_bytes)}; "
        f"{layers}{findings}{_fallback(image)}; {image.seconds:.1f} s"
    )


def _name(image: ImageResult) -> str:
    is_usual = image.platform == str(Platform.default())
    return image.reference if is_usual else f"{image.reference} ({image.platform})"


def _fallback(image: ImageResult) -> str:
    artefact = image.fallback
    return f"; {artefact.format} {format_bytes(artefact.size)}" if artefact is not None else ""
