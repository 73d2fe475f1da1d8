"""`init --adopt`: take over a repository that `cvmfs_server` made, and write the configuration."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cvmfs_publish.cli.assembly import open_storage
from cvmfs_publish.cli.checking import CheckProgress
from cvmfs_publish.cli.context import Session
from cvmfs_publish.cli.members import add_member, check_new, is_of_several
from cvmfs_publish.cli.output import format_fields, format_minute, format_time, plural
from cvmfs_publish.config import (
    FILE_NAME,
    Endpoint,
    RepositoryName,
    S3Config,
    S3Url,
    render_default_config,
)
from cvmfs_publish.errors import InputError
from cvmfs_publish.repository.foreign import ForeignName, find_foreign
from cvmfs_publish.repository.native.adopt import (
    Adoption,
    examine_contents,
    examine_for_adoption,
)
from cvmfs_publish.repository.native.repository import NativeRepository
from cvmfs_publish.repository.native.server_conf import (
    LocalUpstream,
    S3Upstream,
    ServerConf,
    default_server_conf,
    read_server_conf,
)
from cvmfs_publish.repository.native.spool import Spool

DEFAULT_STORAGE, DEFAULT_KEYS = "repository", "keys"  # folders here, where nothing else is said
_SECRET_MODE, _FILE_MODE = 0o600, 0o666
_UNITS = ((86_400, "d"), (3600, "h"), (60, "m"), (1, "s"))


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line says; None where it says nothing."""

    storage: str | None
    keys: str | None
    server_conf: str | None
    skip_check: bool = False


@dataclass(frozen=True, slots=True)
class _Found:
    """Where everything is."""

    server: ServerConf | None
    storage: S3Url | Path
    s3: S3Config  # complete
    written: S3Config | None  # what of it stands in the configuration file
    keys: Path
    spool: Path | None


def adopt_repository(session: Session, name: RepositoryName, request: Request) -> None:
    """Verify the repository, write the configuration file, and tell what was found.

    Raises:
        PublishError: it cannot be taken over; no file was written.
    """
    config_path = new_config_path(session, name)
    found = _locate(session, name, request)
    store = open_storage(found.storage, found.s3)
    try:
        repository = NativeRepository(name, store, found.keys)
        spool = Spool(found.spool, name) if found.spool is not None else None
        now = datetime.now(UTC)
        adoption = examine_for_adoption(repository, now, spool, found.server)
        if not request.skip_check:
            with CheckProgress(session.out) as progress:
                examine_contents(repository, now, spool, progress)
        with repository.open() as view:
            foreign = list(find_foreign(view))
    finally:
        store.close()
    has_secret = found.written is not None and found.written.secret_key is not None
    write_config(
        config_path,
        name,
        _config_text(session, config_path, name, request, found, adoption),
        hint="nothing was changed; --config names another file",
        mode=_SECRET_MODE if has_secret else _FILE_MODE,
    )
    _report(session, name, found, adoption, config_path, foreign)


def _locate(session: Session, name: RepositoryName, request: Request) -> _Found:
    server = _read_server_conf(session, name, request)
    upstream = server.upstream if server is not None else None
    s3 = S3Config().completed(session.environ)
    written: S3Config | None = None
    storage: S3Url | Path
    if request.storage is not None:
        text = request.storage
        storage = S3Url.parse(text) if "://" in text else session.cwd / text
    elif isinstance(upstream, LocalUpstream):
        storage = upstream.directory
    elif isinstance(upstream, S3Upstream):
        storage = S3Url.parse(f"s3://{upstream.bucket}/{upstream.prefix}")
        s3 = written = _s3_config(upstream)
    else:
        storage = session.cwd / DEFAULT_STORAGE
        if not storage.exists():
            raise InputError(
                f"{default_server_conf(name)} does not exist, nor does {storage}",
                hint="say where the repository is: --server-conf FILE, or --storage and --keys",
            )
    if written is None and isinstance(storage, S3Url):  # keys stay in the environment
        written = S3Config(endpoint=s3.endpoint, region=s3.region)
    if request.keys is not None or server is None:
        keys = session.cwd / (request.keys or DEFAULT_KEYS)
    else:
        keys = server.keys
    spool = server.spool if server is not None else None
    return _Found(server, storage, s3, written, keys, spool)


def _read_server_conf(
    session: Session, name: RepositoryName, request: Request
) -> ServerConf | None:
    if request.server_conf is not None:
        return read_server_conf(session.cwd / request.server_conf)
    usual = default_server_conf(name)
    if os.path.lexists(usual):
        return read_server_conf(usual)
    return None


def _s3_config(upstream: S3Upstream) -> S3Config:
    return S3Config(
        endpoint=Endpoint.parse(upstream.endpoint),
        region=upstream.region or None,
        virtual_host=upstream.dns_buckets,
        access_key=upstream.access_key,
        secret_key=upstream.secret_key,
    )


def _config_text(
    session: Session,
    config_path: Path,
    name: RepositoryName,
    request: Request,
    found: _Found,
    adoption: Adoption,
) -> str:
    server = found.server
    storage, keys = str(found.storage), str(found.keys)
    if isinstance(found.storage, Path) and (request.storage is not None or server is None):
        storage = as_written(session, config_path, request.storage or DEFAULT_STORAGE)
    if request.keys is not None or server is None:
        keys = as_written(session, config_path, request.keys or DEFAULT_KEYS)
    return render_default_config(
        name,
        storage=storage,
        keys=keys,
        hash_algorithm=adoption.manifest.root_hash.algorithm.value,
        s3=found.written,
        compression=server.compression if server is not None else None,
        spool=str(found.spool) if found.spool is not None else None,
        automatic_tags=_automatic_tags(server) if server is not None else None,
    )


def _automatic_tags(server: ServerConf) -> str:
    if not server.auto_tag:
        return "off"
    span = server.auto_tag_timespan
    return "forever" if span is None else _duration(span)


def _duration(span: timedelta) -> str:
    """Return a time as configuration files have it, in the largest unit that fits."""
    seconds = int(span.total_seconds())
    size, letter = next(unit for unit in _UNITS if seconds % unit[0] == 0)
    return f"{seconds // size}{letter}"


def _report(
    session: Session,
    name: RepositoryName,
    found: _Found,
    adoption: Adoption,
    config_path: Path,
    foreign: list[ForeignName],
) -> None:
    manifest = adoption.manifest
    spool = str(found.spool) if found.spool is not None else None
    session.out.result(
        {
            "repository": name,
            "created": False,
            "revision": manifest.revision,
            "root_hash": str(manifest.root_hash),
            "storage": str(found.storage),
            "keys": str(found.keys),
            "spool": spool,
            "config": str(config_path),
            "server_conf": str(found.server.path) if found.server is not None else None,
            "whitelist_expires_at": format_time(adoption.whitelist_expires_at),
            "has_master_key": adoption.has_master_key,
            "tags": adoption.tags,
            "remarks": list(adoption.remarks),
            "found": [each.to_document() for each in foreign],
        },
        f"adopted {name}, revision {manifest.revision}\n"
        + format_fields(
            [
                ("storage", str(found.storage)),
                ("keys", str(found.keys)),
                ("spool", spool or "none: cvmfs_server does not write here"),
                ("configuration", str(config_path)),
                ("whitelist", f"expires {format_minute(adoption.whitelist_expires_at)}"),
            ]
        ),
    )
    for remark in adoption.remarks:
        session.out.note(f"note: {remark}")
    tell_foreign(session, foreign)


def tell_foreign(session: Session, foreign: Collection[ForeignName]) -> None:
    """Say that what other programs have published is still there."""
    if foreign:
        names = plural(len(foreign), "name")
        session.out.note(f"left as found: {names} of other programs; `list` shows them")


# the configuration file


def new_config_path(session: Session, name: RepositoryName) -> Path:
    """Return where `init` writes the configuration: a new file, or one of several repositories.

    Raises `InputError` if a file is there that is for one repository, or has this one.
    """
    path = session.config_path or session.cwd / FILE_NAME
    if os.path.lexists(path):
        if not path.is_file() or not is_of_several(path):
            raise InputError(
                f"{path} already exists",
                hint="remove it, or change it with an editor: to add a repository to it, its"
                " `repository` has to become one of `repositories` (docs/regions.md)",
            )
        check_new(path, name)
    return path


def default_storage(config_path: Path, name: RepositoryName) -> str:
    """Return where a repository is, beside its configuration, if nothing else is said."""
    return f"repositories/{name}" if config_path.exists() else DEFAULT_STORAGE


def as_written(session: Session, config_path: Path, folder: str) -> str:
    """The file's relative paths are relative to it, the command line's to the current folder."""
    if config_path.parent == session.cwd:
        return folder
    return str(session.cwd / folder)


def write_config(
    path: Path, name: RepositoryName, text: str, *, hint: str, mode: int = _FILE_MODE
) -> None:
    """Write what `new_config_path` named; `InputError` if that fails."""
    if path.exists():
        add_member(path, name, text)
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor
            file.write(text)
    except OSError as exc:
        raise InputError(f"{path} cannot be written: {exc.strerror or exc}", hint=hint) from exc
