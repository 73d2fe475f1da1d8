"""Turn the configuration into the parts that do the work."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvmfs_publish.cli.lazy import load
from cvmfs_publish.config import LEASE_WAIT, Config, CvmfsServerConfig, S3Config, S3Url
from cvmfs_publish.content.artefacts import ArtefactStore
from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.content.objects import Compression
from cvmfs_publish.content.store import ContentStore
from cvmfs_publish.content.stores import open_artefacts, open_store
from cvmfs_publish.errors import InputError
from cvmfs_publish.repository.base import Repository
from cvmfs_publish.repository.native.repository import NativeOptions, NativeRepository
from cvmfs_publish.repository.native.server_conf import (
    GatewayUpstream,
    ServerConf,
    default_server_conf,
    read_server_conf,
)
from cvmfs_publish.repository.native.spool import Spool

if TYPE_CHECKING:  # they are loaded where they are used: not every run needs them
    from cvmfs_publish.repository.cvmfs_server import ServerRepository
    from cvmfs_publish.repository.directory import DirectoryRepository


def open_repository(config: Config) -> Repository:
    """Return the repository the configuration names; nothing is read yet."""
    return BACKENDS[config.repository.backend](config)


def open_native(config: Config, what: str = "this is") -> NativeRepository:
    """Return the repository, for what only those of our own have; nothing is read yet.

    Raises:
        InputError: it is of another backend; `what`, with its verb, is said not to be there.
    """
    backend = config.repository.backend
    if backend != "native":
        raise InputError(
            f"{what} of a repository of `backend: native`; {config.repository.name} is of"
            f" `backend: {backend}`",
            hint=_INSTEAD.get((backend, what), "docs/backends.md says what each backend has"),
        )
    return _open_native(config)


# What to do where another backend has not what a native one has.
_INSTEAD = {
    ("directory", "tags are"): "a plain tree keeps no revisions; `cvmfs-publish pin` keeps a"
    " sandbox",
    ("directory", "a whitelist is"): "nothing of a plain tree is signed, so nothing expires",
    ("directory", "export is"): "a plain tree is made of ordinary folders: `cp -a` copies one;"
    " `cvmfs-publish show IMAGE` tells where it is",
    ("directory", "`check --scrub` is"): "`cvmfs-publish verify IMAGE` compares every byte of an"
    " image with its registry",
    ("directory", "replicas are"): "nobody replicates a plain tree; of several repositories, choose"
    " others with --repository NAME",
    ("directory", "`serve` is"): "workers read a plain tree from its file system",
    ("cvmfs_server", "tags are"): "`cvmfs_server tag` names revisions",
    ("cvmfs_server", "a whitelist is"): "`cvmfs_server resign` renews it",
    ("cvmfs_server", "export is"): "`cp -a` copies a folder from the mount; `cvmfs-publish show"
    " IMAGE` tells where it is",
    ("cvmfs_server", "`check --scrub` is"): "`cvmfs_server check -i` hashes every object;"
    " `cvmfs-publish verify IMAGE` compares every byte of an image with its registry",
    ("cvmfs_server", "`serve` is"): "the web server of this Stratum 0 does that",
    ("cvmfs_server", "--keep-revisions is"): "`cvmfs_server gc -r` decides which revisions stay",
    ("directory", "the status site is"): "`watch` without --listen works",
    ("cvmfs_server", "the status site is"): "`watch` without --listen works",
    ("directory", "--keep-revisions is"): "a plain tree keeps no revisions; --grace says how long"
    " what was replaced is kept",
}


def open_directory(config: Config) -> DirectoryRepository:
    """Return the plain tree that the configuration names; nothing is read yet."""
    repository = config.repository
    if not isinstance(repository.storage, Path):
        raise TypeError("the configuration let an object store pass")
    module = load("cvmfs_publish.repository.directory")
    opened: DirectoryRepository = module.DirectoryRepository(
        repository.name,
        repository.storage,
        LocalStore(config.state / "spool"),
        module.DirectoryOptions(
            repository.directory.how_to_share,
            repository.directory.lock_wait,
            repository.directory.lease,
        ),
    )
    return opened


def open_server(config: Config) -> ServerRepository:
    """Return the repository that `cvmfs_server` writes; only its server.conf is read.

    Raises:
        InputError: the server.conf is missing, or says what cannot be done here.
    """
    name, server = config.repository.name, config.repository.cvmfs_server
    conf = read_server_conf(server.server_conf or default_server_conf(name), gateway=True)
    if conf.name != name:
        raise InputError(
            f"{conf.path} is of repository {conf.name!r}, not of {name!r}",
            hint="correct `repository.name` or `repository.cvmfs_server.server_conf`",
        )
    is_behind_gateway = isinstance(conf.upstream, GatewayUpstream)
    _check_for_gateway(server, conf, is_behind_gateway=is_behind_gateway)
    module = load("cvmfs_publish.repository.cvmfs_server")
    options = module.ServerOptions(
        server.mount or Path("/cvmfs") / name,
        server.program,
        server.method,
        server.timeout,
        server.lock_wait,
        server.lease_wait,
        config.nesting.max_entries,
    )
    kind = module.ServerRepository
    if is_behind_gateway:
        kind = load("cvmfs_publish.repository.gateway").GatewayRepository
    opened: ServerRepository = kind(conf, config.state, LocalStore(config.state / "spool"), options)
    return opened


def _check_for_gateway(
    server: CvmfsServerConfig, conf: ServerConf, *, is_behind_gateway: bool
) -> None:
    """Refuse what is configured for a gateway where there is none, and the other way round."""
    if is_behind_gateway and server.method == "ingest":
        raise InputError(
            f"repository.cvmfs_server.method is ingest, but {conf.path} has the repository behind a"
            " gateway, where nobody sees what `ingest` begins from",
            hint="write `method: auto`",
        )
    if not is_behind_gateway and server.lease_wait != LEASE_WAIT:
        raise InputError(
            f"repository.cvmfs_server.lease_wait is for a repository behind a gateway; that of"
            f" {conf.path} is not",
            hint="remove it; `lock_wait` is how long to wait for another writer",
        )


def open_tree(config: Config) -> DirectoryRepository | ServerRepository:
    """Return the repository of a backend whose tree is seen as files."""
    return (
        open_server(config)
        if config.repository.backend == "cvmfs_server"
        else open_directory(config)
    )


def _open_native(config: Config) -> NativeRepository:
    repository = config.repository
    return NativeRepository(
        repository.name,
        open_storage(repository.storage, repository.s3),
        repository.keys,
        NativeOptions(
            max_entries=config.nesting.max_entries,
            compression=Compression(repository.compression),
            automatic_tags=config.history.span,
            bookkeeping=Spool(repository.spool, repository.name)
            if repository.spool is not None
            else None,
        ),
    )


BACKENDS: dict[str, Callable[[Config], Repository]] = {
    "native": _open_native,
    "directory": open_directory,
    "cvmfs_server": open_server,
}


def open_storage(storage: S3Url | Path, s3: S3Config) -> ContentStore:
    """Return the store at a place; nothing is read yet.

    Raises:
        InputError: a place in an object store, but no keys or region to use it with.
    """
    if not isinstance(storage, S3Url):
        return LocalStore(storage)
    return open_store(_describe(storage, s3, "repository.s3"), remember=True)


def open_artefact_store(config: Config) -> ArtefactStore | None:
    """Return the store of images as files; None if the configuration names none.

    Nothing is read yet.

    Raises:
        InputError: it is inside the repository, or no keys are given for it.
    """
    fallback = config.fallback
    if fallback is None:
        return None
    if _is_inside(fallback.store, config.repository.storage):
        raise InputError(
            f"fallback.store {fallback.store} is inside repository.storage"
            f" {config.repository.storage}, or the other way round",
            hint="keep them apart: what is in a repository's folder is its own",
        )
    if _is_inside(config.repository.keys, fallback.store):
        raise InputError(
            f"repository.keys {config.repository.keys} is inside fallback.store {fallback.store}",
            hint="give `fallback.store` a folder of its own: web servers give out what is in it",
        )
    if isinstance(fallback.store, S3Url):
        description = _describe(fallback.store, fallback.s3 or S3Config(), "fallback.s3")
    else:
        description = {"kind": "local", "root": str(fallback.store)}
    return open_artefacts(description, config.state / "fallback")


def _is_inside(place: S3Url | Path, storage: S3Url | Path) -> bool:
    """Whether one would meet the files of the other; only folders are listed level by level."""
    if isinstance(place, S3Url) and isinstance(storage, S3Url):
        return f"{place}/".startswith(f"{storage}/") or f"{storage}/".startswith(f"{place}/")
    if isinstance(place, S3Url) or isinstance(storage, S3Url):
        return False
    with suppress(OSError):  # a circle of links, which whoever uses it will meet
        return place.resolve().is_relative_to(storage.resolve())
    return False


def _describe(storage: S3Url, s3: S3Config, section: str) -> dict[str, Any]:
    """Return what opens a store; `section` of the configuration is named in errors."""
    secret_key = s3.read_secret_key()
    if s3.access_key is None or secret_key is None:
        raise InputError(
            f"{storage}: no keys for the object store",
            hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or `access_key` and"
            f" `secret_key_file` in `{section}`",
        )
    description = {
        "kind": "s3",
        "bucket": storage.bucket,
        "prefix": storage.prefix,
        "access_key": s3.access_key,
        "secret_key": secret_key,
        "token": s3.session_token,
        "endpoint": s3.endpoint,
        "virtual_host": s3.virtual_host,
        "connections": s3.connections,
        "lease": s3.lease.total_seconds(),
    }
    if s3.region is not None:
        description["region"] = s3.region
    return description
