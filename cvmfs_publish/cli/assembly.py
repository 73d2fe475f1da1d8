"""Turn the configuration into the parts that do the work."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from cvmfs_publish.config import Config, S3Config, S3Url
from cvmfs_publish.content.artefacts import ArtefactStore
from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.content.objects import Compression
from cvmfs_publish.content.store import ContentStore
from cvmfs_publish.content.stores import open_artefacts, open_store
from cvmfs_publish.errors import InputError
from cvmfs_publish.repository.native.repository import NativeOptions, NativeRepository
from cvmfs_publish.repository.native.spool import Spool


def open_repository(config: Config) -> NativeRepository:
    """Return the repository the configuration names; nothing is read yet."""
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
