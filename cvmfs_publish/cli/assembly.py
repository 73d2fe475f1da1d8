"""Turn the configuration into the parts that do the work."""

from __future__ import annotations

from pathlib import Path

from cvmfs_publish.config import Config, S3Config, S3Url
from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.content.objects import Compression
from cvmfs_publish.content.store import ContentStore
from cvmfs_publish.content.stores import open_store
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
    secret_key = s3.read_secret_key()
    if s3.access_key is None or secret_key is None:
        raise InputError(
            f"{storage}: no keys for the object store",
            hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or `access_key` and"
            " `secret_key_file` in `repository.s3`",
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
    return open_store(description, remember=True)
