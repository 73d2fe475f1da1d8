"""`init`, `check`, `info`: a repository as a whole."""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from cvmfs_publish.cli.adopting import (
    DEFAULT_KEYS,
    Request,
    adopt_repository,
    as_written,
    default_storage,
    new_config_path,
    write_config,
)
from cvmfs_publish.cli.assembly import open_native, open_storage, open_tree
from cvmfs_publish.cli.checking import CheckProgress
from cvmfs_publish.cli.context import Session, session_of
from cvmfs_publish.cli.fallback import open_own_store
from cvmfs_publish.cli.lazy import command_app
from cvmfs_publish.cli.members import find_member
from cvmfs_publish.cli.options import Elsewhere, FromOption, KeyOption, elsewhere
from cvmfs_publish.cli.output import (
    format_bytes,
    format_fields,
    format_minute,
    format_time,
    plural,
)
from cvmfs_publish.cli.several import in_each
from cvmfs_publish.cli.trees import create_directory, init_directory, init_server, tell_tree
from cvmfs_publish.config import (
    FILE_NAME,
    Config,
    RepositoryName,
    S3Config,
    S3Url,
    complete,
    render_default_config,
)
from cvmfs_publish.content.artefacts import ArtefactError
from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm
from cvmfs_publish.errors import InputError, IntegrityError, RepositoryError
from cvmfs_publish.repository.base import Repository, Revision
from cvmfs_publish.repository.compliance import find_strays
from cvmfs_publish.repository.fallback import find_missing, read_lines
from cvmfs_publish.repository.native.check import Report, check_repository
from cvmfs_publish.repository.native.http_origin import open_origin
from cvmfs_publish.repository.native.manifest import FILE_NAME as MANIFEST_FILE
from cvmfs_publish.repository.native.origin import Origin
from cvmfs_publish.repository.native.repository import NativeRepository, RepositoryInfo
from cvmfs_publish.repository.native.signing import (
    DEFAULT_KEY_BITS,
    check_bits,
    public_key_files,
)
from cvmfs_publish.repository.native.spool import CHECKSUM as REFLOG_CHECKSUM
from cvmfs_publish.repository.native.spool import Spool
from cvmfs_publish.repository.native.whitelist import format_fingerprint
from cvmfs_publish.repository.tree_check import check_tree
from cvmfs_publish.sources.compliance import Compliance

SHOWN_PROBLEMS = 100  # lines of `check`; --json has them all


class Backend(StrEnum):
    """What `init --backend` may be."""

    NATIVE = "native"
    CVMFS_SERVER = "cvmfs_server"
    DIRECTORY = "directory"


app = command_app()


@app.command()
def init(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Full name, such as containers.example.org.")
    ],
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|s3://BUCKET/PREFIX",
            help="Where the repository is kept.",
            show_default="repository",
        ),
    ] = None,
    keys: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Folder of the keys.", show_default="keys"),
    ] = None,
    backend: Annotated[Backend, typer.Option(help="What kind of repository.")] = Backend.NATIVE,
    algorithm: Annotated[
        HashAlgorithm, typer.Option("--hash", help="Content hash; sha1 suits every client.")
    ] = HashAlgorithm.SHA1,
    key_bits: Annotated[
        int, typer.Option(metavar="BITS", help="Length of new RSA keys, 2048 to 4096.")
    ] = DEFAULT_KEY_BITS,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="Take over a repository of cvmfs_server.")
    ] = False,
    server_conf: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="With --adopt or --backend cvmfs_server: what cvmfs_server knows of it.",
            show_default="/etc/cvmfs/repositories.d/NAME/server.conf",
        ),
    ] = None,
    skip_check: Annotated[
        bool,
        typer.Option("--skip-check", help="With --adopt: do not look at every catalog and object."),
    ] = False,
) -> None:
    """Create a repository and write cvmfs-publish.yaml.

    Makes keys, a whitelist and an empty, signed first revision, and a commented configuration file
    in the current folder.  Keys and a repository that exist already are used as they are.  For an
    object store, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL and AWS_REGION say how
    it is reached.

    With --backend directory the repository is a plain tree of files, which workers mount by other
    means than CernVM-FS; --adopt begins in a folder that holds something, which stays as it is.

    With --backend cvmfs_server it has been made by `cvmfs_server mkfs`, and that program goes on
    writing it, on our behalf too: --server-conf says what it knows of it.

    With --adopt the repository has been made by `cvmfs_server mkfs`, which goes on writing it in
    turns with us: storage, keys, spool and settings come from its server.conf, unless --storage or
    --keys say otherwise.  Everything is verified and nothing in the repository is changed.

    Where the file has a section `repositories` already, the repository is added to it.  One that
    stands there and does not exist yet is made as the file says, without options.

    Example: cvmfs-publish init containers.example.org --storage /srv/cvmfs/containers.example.org
    """
    session = session_of(context)
    checked = RepositoryName.parse(name)
    if session.repositories:
        raise InputError(
            f"--repository {session.repositories[0]} chooses among repositories that there are",
            hint=f"`cvmfs-publish init {checked}` makes {checked}",
        )
    if (config := find_member(session.config_path or session.cwd / FILE_NAME, checked)) is not None:
        _init_member(context, session, complete(config, session.environ), key_bits)
        return
    if backend is Backend.CVMFS_SERVER:
        if storage is not None or keys is not None or skip_check:
            raise InputError("--storage, --keys and --skip-check belong to --backend native")
        init_server(session, checked, server_conf)
        return
    if backend is Backend.DIRECTORY:
        if keys is not None or server_conf is not None or skip_check:
            raise InputError("--keys, --server-conf and --skip-check belong to --backend native")
        init_directory(session, checked, storage, adopt=adopt)
        return
    if adopt:
        adopt_repository(
            session, checked, Request(storage, keys, server_conf, skip_check=skip_check)
        )
        return
    if server_conf is not None or skip_check:
        raise InputError("--server-conf and --skip-check belong to --adopt", hint="add --adopt")
    config_path = new_config_path(session, checked)
    storage, keys = storage or default_storage(config_path, checked), keys or DEFAULT_KEYS
    check_bits(key_bits)
    # `s3:/bucket` is a mistyped URL, never a folder somebody wants
    is_url = re.match(r"[a-z0-9]{2,}:/", storage) is not None
    place = S3Url.parse(storage) if is_url else session.cwd / storage
    s3 = S3Config().completed(session.environ)
    repository = NativeRepository(checked, open_storage(place, s3), session.cwd / keys)
    is_new = not repository.exists()
    if is_new:
        revision = repository.create(algorithm, datetime.now(UTC), key_bits=key_bits)
    else:
        repository.info(datetime.now(UTC))  # refuses another name, and a whitelist of other keys
        repository.trust.keys()  # refuses keys that do not fit each other
        revision = repository.revision()
        algorithm = repository.manifest().root_hash.algorithm
    text = render_default_config(
        checked,
        storage=as_written(session, config_path, storage) if isinstance(place, Path) else place,
        keys=as_written(session, config_path, keys),
        hash_algorithm=algorithm.value,
        s3=None if isinstance(place, Path) else S3Config(endpoint=s3.endpoint, region=s3.region),
    )
    write_config(
        config_path,
        checked,
        text,
        hint="the repository exists now; `init` elsewhere with the same folders adopts it",
    )
    _report_init(session, repository, session.cwd / keys, config_path, revision, is_new)


# what the file says of a repository that it describes
_FOR_NEW = ("storage", "keys", "backend", "algorithm", "adopt", "server_conf", "skip_check")


def _init_member(context: typer.Context, session: Session, config: Config, key_bits: int) -> None:
    """Make a repository that the configuration describes already."""
    name, path = config.repository.name, session.config_path or session.cwd / FILE_NAME
    for parameter in (
        "storage",
        "keys",
        "backend",
        "algorithm",
        "adopt",
        "server_conf",
        "skip_check",
    ):
        source = context.get_parameter_source(parameter)
        if source is not None and source.name != "DEFAULT":
            option = "hash" if parameter == "algorithm" else parameter.replace("_", "-")
            raise InputError(
                f"--{option} is for a new repository, and {path} describes {name} already",
                hint=f"leave it out, or change `repositories.{name}` with an editor",
            )
    if config.repository.backend == "directory":
        create_directory(session, config, path)
        return
    if config.repository.backend == "cvmfs_server":
        raise InputError(
            f"{path} has the repository {name} already, which `cvmfs_server mkfs` makes",
            hint=f"`cvmfs-publish -r {name} doctor` tells what is missing",
        )
    repository = open_native(config)
    if repository.exists():
        raise InputError(
            f"{path} has the repository {name} already, and it exists",
            hint="choose another name, or change the section with an editor",
        )
    check_bits(key_bits)
    algorithm = HashAlgorithm(config.repository.hash)
    revision = repository.create(algorithm, datetime.now(UTC), key_bits=key_bits)
    _report_init(session, repository, config.repository.keys, path, revision, is_new=True)


def _report_init(
    session: Session,
    repository: NativeRepository,
    keys: Path,
    config_path: Path,
    revision: Revision,
    is_new: bool,
) -> None:
    session.out.result(
        {
            "repository": repository.name,
            "created": is_new,
            "revision": revision.number,
            "root_hash": revision.root_hash,
            "storage": repository.location,
            "keys": str(keys),
            "config": str(config_path),
        },
        f"{'created' if is_new else 'adopted'} {repository.name}, revision {revision.number}\n"
        + format_fields(
            [
                ("storage", repository.location),
                ("keys", str(keys)),
                ("configuration", str(config_path)),
            ]
        ),
    )
    session.out.note(
        f"clients need {repository.name}.pub; move {repository.name}.masterkey to a safe place\n"
        "next: cvmfs-publish publish docker.io/library/debian:12"
    )


@app.command()
def check(
    context: typer.Context,
    scrub: Annotated[
        bool, typer.Option("--scrub", help="Hash every object, and look at every tag.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Let warnings count as errors for the exit code.")
    ] = False,
    location: FromOption = None,
    keys: KeyOption = None,
) -> int:
    """Verify the whole repository.

    Looks at signatures, catalogs, counters, history and objects, as clients, replicas and
    `cvmfs_server check` do.  Exit code 5 if there is an error; warnings are only told.  With --from
    any repository can be checked, such as a Stratum 1, without a configuration.

    Example: cvmfs-publish check --scrub
    """
    return in_each(
        session_of(context),
        lambda one: _check(one, location, keys, scrub=scrub, strict=strict),
        is_elsewhere=bool(location or keys),
    )


def _check(
    session: Session, location: str | None, keys: list[Path] | None, *, scrub: bool, strict: bool
) -> int:
    other = elsewhere(location, keys, session.cwd)
    if other is None and session.config.repository.backend != "native":
        if scrub:
            open_native(session.config, "`check --scrub` is")
        tree = open_tree(session.config)
        report = check_tree(tree)
        _check_compliance(session, report, tree)
        return _tell_check(session, report, strict=strict)
    subject = _to_check(session, other)
    with closing(subject.origin), CheckProgress(session.out) as progress:
        report = check_repository(
            subject.origin,
            subject.keys,
            now=datetime.now(UTC),
            name=subject.name,
            reflog_checksum=subject.reflog_checksum,
            scrub=scrub,
            progress=progress,
        )
    if subject.fault:
        report.error(REFLOG_CHECKSUM, subject.fault)
    if location is None and report.ok:
        _check_fallback(session, report)
        _check_compliance(session, report, open_native(session.config))
    return _tell_check(session, report, strict=strict)


def _tell_check(session: Session, report: Report, *, strict: bool) -> int:
    session.out.result(_check_document(report), _check_text(report))
    is_fine = report.ok and not (strict and report.problems)
    return 0 if is_fine else RepositoryError.exit_code


def _check_compliance(session: Session, report: Report, repository: Repository) -> None:
    """Tell of images that `accept` and `refuse` keep out today; they were let in once."""
    with repository.open() as view:
        for record, error in find_strays(view, Compliance.of(session.config)):
            report.error(
                record.path,
                f"{error}; `cvmfs-publish unpublish {record.reference}` and `gc` remove it",
            )


def _check_fallback(session: Session, report: Report) -> None:
    """Compare the list of fallback images with the store that the configuration names."""
    try:
        with open_own_store(session.config) as store:
            if store is None:
                return
            with open_native(session.config).open() as view:
                for name, text in find_missing(store, read_lines(view)):
                    report.error(f"/{name}", f"{text}; publish the image again")
    except (ArtefactError, InputError) as error:
        report.error("fallback.store", str(error))


class _Subject(NamedTuple):
    """What is checked."""

    origin: Origin
    keys: list[Path]
    name: str | None  # None: whatever the manifest says
    reflog_checksum: ContentHash | None = None  # what cvmfs_server here believes
    fault: str = ""  # why that cannot be told


def _with_checksum(subject: _Subject, spool: Spool) -> _Subject:
    try:
        checksum = spool.read_reflog_checksum()
    except IntegrityError as error:
        return subject._replace(fault=str(error))
    if checksum is None:
        return subject._replace(fault=f"is missing from {spool.directory}: nobody can write")
    return subject._replace(reflog_checksum=checksum)


def _to_check(session: Session, other: Elsewhere | None) -> _Subject:
    """Open the configured repository or another; raise if there is none at all."""
    if other is None:
        repository = session.config.repository
        store = open_storage(repository.storage, repository.s3)
        public_keys = public_key_files(repository.keys, repository.name)
        subject = _Subject(store, public_keys, repository.name)
        if repository.spool is not None:
            subject = _with_checksum(subject, Spool(repository.spool, repository.name))
        place, hint = str(repository.storage), "`cvmfs-publish init NAME` creates one"
    else:
        subject = _Subject(open_origin(other.location), other.keys, None)
        place, hint = str(other.location), "name the folder or URL that holds .cvmfspublished"
    if subject.origin.size(MANIFEST_FILE) is None:
        subject.origin.close()
        raise RepositoryError(
            f"{place} holds no repository: {MANIFEST_FILE} does not exist", hint=hint
        )
    return subject


def _check_document(report: Report) -> dict[str, object]:
    return {
        "repository": report.name,
        "revision": report.revision,
        "root_hash": report.root_hash,
        "ok": report.ok,
        "errors": len(report.errors),
        "warnings": len(report.warnings),
        "problems": [asdict(problem) for problem in report.problems],
        "problems_dropped": report.dropped,
        "counts": dict(sorted(report.counts.items())),
    }


def _check_text(report: Report) -> str:
    lines = [f"{p.severity}: {p.place}: {p.text}" for p in report.problems[:SHOWN_PROBLEMS]]
    hidden = len(report.problems) + report.dropped - len(lines)
    if hidden:
        lines.append(f"… and {plural(hidden, 'more problem')}; --json lists them")
    counts = ", ".join(f"{what} {count:,}" for what, count in sorted(report.counts.items()))
    lines.append(
        f"{report.name} revision {report.revision}: {plural(len(report.errors), 'error')}, "
        f"{plural(len(report.warnings), 'warning')}" + (f"; {counts}" if counts else "")
    )
    return "\n".join(lines)


@app.command()
def info(context: typer.Context) -> int:
    """Show the repository's facts, sizes and expiry dates.

    Example: cvmfs-publish info --json
    """
    return in_each(session_of(context), _info)


def _info(session: Session) -> None:
    if session.config.repository.backend != "native":
        tell_tree(session)
        return
    repository = open_native(session.config, "info is")
    now = datetime.now(UTC)
    facts = repository.info(now)
    session.out.result(_info_document(session, facts), _info_text(session, facts, now))


def _info_document(session: Session, facts: RepositoryInfo) -> dict[str, object]:
    manifest = facts.manifest
    return {
        "repository": manifest.name,
        "revision": manifest.revision,
        "root_hash": str(manifest.root_hash),
        "published_at": format_time(datetime.fromtimestamp(manifest.timestamp, UTC)),
        "storage": str(session.config.repository.storage),
        "hash": manifest.root_hash.algorithm.value,
        "ttl_seconds": manifest.ttl,
        "garbage_collectable": manifest.garbage_collectable,
        "whitelist_expires_at": format_time(facts.whitelist.expires_at),
        "trusted_certificates": [format_fingerprint(f) for f in facts.whitelist.fingerprints],
        "certificate": format_fingerprint(facts.certificate),
        "certificate_expires_at": format_time(facts.certificate_expires_at),
        "key_bits": facts.key_bits,
        "has_master_key": facts.has_master_key,
        "entries": _count_entries(facts),
        "files": facts.counters["regular"],
        "catalogs": facts.counters["nested"] + 1,
        "bytes": facts.counters["file_size"],
    }


def _count_entries(facts: RepositoryInfo) -> int:
    return sum(facts.counters[kind] for kind in ("regular", "symlink", "special", "dir"))


def _info_text(session: Session, facts: RepositoryInfo, now: datetime) -> str:
    manifest = facts.manifest
    published = datetime.fromtimestamp(manifest.timestamp, UTC)
    catalogs = facts.counters["nested"] + 1
    master = "present" if facts.has_master_key else "not here"
    return format_fields(
        [
            ("repository", manifest.name),
            ("revision", str(manifest.revision)),
            ("root hash", str(manifest.root_hash)),
            ("published", format_minute(published)),
            ("storage", str(session.config.repository.storage)),
            ("entries", f"{_count_entries(facts):,} in {plural(catalogs, 'catalog')}"),
            ("content", f"{format_bytes(facts.counters['file_size'])} in files, uncompressed"),
            ("whitelist", _whitelist(facts, now)),
            ("certificate", _certificate(facts, now)),
            ("key", f"RSA, {facts.key_bits} bits"),
            ("master key", master),
        ]
    )


def _whitelist(facts: RepositoryInfo, now: datetime) -> str:
    """Clients look at the hour only, so that is when it ends."""
    ends_at = facts.whitelist.ends_at
    trusted = plural(len(facts.whitelist.fingerprints), "certificate")
    if now >= ends_at:
        return f"EXPIRED {format_minute(ends_at)}: clients refuse the repository; `resign` it"
    when = plural((ends_at - now).days, "day")
    return f"expires {format_minute(ends_at)}, in {when}; trusts {trusted}"


def _certificate(facts: RepositoryInfo, now: datetime) -> str:
    expires_at = facts.certificate_expires_at
    if now >= expires_at:
        return f"expired {format_minute(expires_at)}, which no client looks at"
    return f"expires {format_minute(expires_at)}, in {plural((expires_at - now).days, 'day')}"
