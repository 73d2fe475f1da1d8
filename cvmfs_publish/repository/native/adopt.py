"""Decide whether a repository that other programs made can be written here, changing nothing.

Source: facts/cvmfs-format.md sections 6.1 and 11.  What makes clients, replicas or the next stock
publish fail is refused before anything is written; what will merely be different is told.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from cvmfs_publish.content.hashes import ContentHash, Suffix
from cvmfs_publish.content.objects import decompress
from cvmfs_publish.errors import InputError, IntegrityError, RepositoryError
from cvmfs_publish.repository.native import reflog as reflogs
from cvmfs_publish.repository.native.catalog import Catalog
from cvmfs_publish.repository.native.check import Advance, check_repository
from cvmfs_publish.repository.native.commit import (
    MAX_DATABASE_BYTES,
    REFLOG_HINT,
    open_history,
    read_base,
)
from cvmfs_publish.repository.native.manifest import Manifest
from cvmfs_publish.repository.native.repository import NativeRepository, damage
from cvmfs_publish.repository.native.server_conf import LocalUpstream, ServerConf
from cvmfs_publish.repository.native.signing import Keys
from cvmfs_publish.repository.native.spool import Spool
from cvmfs_publish.repository.native.upgrade import CATALOG_REVISION

EXPIRY_WARNING = timedelta(days=7)
SHOWN_ERRORS = 5  # of a damaged repository; `check` lists all
_CHECKOUT = "checkout"  # in the spool: the branch and revision that stock tools write on


@dataclass(frozen=True, slots=True)
class Adoption:
    """What is taken over."""

    manifest: Manifest
    whitelist_expires_at: datetime
    has_master_key: bool
    tags: int
    remarks: tuple[str, ...]  # for the operator: what will be done otherwise than before


def examine_for_adoption(
    repository: NativeRepository,
    now: datetime,
    spool: Spool | None = None,
    server: ServerConf | None = None,
) -> Adoption:
    """Verify everything a publish builds on; contents and nested catalogs are not looked at.

    Nothing is locked or written.

    Args:
        repository: where it is, and its keys.
        now: aware time, by which expiry and time stamps are judged.
        spool: where stock tools keep their locks and notes; None: they do not write here.
        server: what they are told to do.

    Raises:
        RepositoryError: keys, whitelist, manifest, reflog, history or root catalog are missing,
            damaged, do not belong together or are of a version that cannot be written, the clock
            is behind, or there is a transaction (`LockedError`).
        InputError: `server` is about another repository.
    """
    if server is not None and server.name != repository.name:
        raise InputError(
            f"{server.path} is about {server.name}, not about {repository.name}",
            hint="correct the name, or --server-conf",
        )
    repository.manifest()  # a clear error before anything else if there is none
    if spool is not None:
        spool.check_free()
    keys = repository.trust.keys()
    with damage(repository.location):
        manifest, version = repository.verified_manifest(keys, int(now.timestamp()))
        _check_whitelist(repository, keys, now)
        revision = repository.check_content(manifest)
        _check_reflog(repository, manifest, version, spool)
        tags = _count_tags(repository, manifest)
        _check_nested(repository, manifest)
    whitelist = repository.trust.whitelist()
    remarks = list(server.remarks) if server is not None else []
    if server is not None:
        remarks += _differences(server, manifest)
    remarks += _circumstances(repository.name, spool, revision)
    if whitelist.expires_at - now < EXPIRY_WARNING:
        remarks.append(
            f"the whitelist expires at {whitelist.expires_at:%Y-%m-%d %H:%M} UTC; "
            "`cvmfs-publish resign` renews it"
        )
    return Adoption(
        manifest, whitelist.expires_at, keys.master_key is not None, tags, tuple(remarks)
    )


def examine_contents(
    repository: NativeRepository,
    now: datetime,
    spool: Spool | None = None,
    progress: Callable[[Advance], None] | None = None,
) -> None:
    """Look at every catalog and for every object, as `cvmfs-publish check` does.

    Raises:
        RepositoryError: there is an error: stock tools and clients would stumble over it too, and
            nobody could tell later whose it is.
    """
    report = check_repository(
        repository.store,
        [repository.trust.keys(with_master=False).public_key],
        now=now,
        name=repository.name,
        progress=progress,
        reflog_checksum=spool.read_reflog_checksum() if spool is not None else None,
    )
    if report.ok:
        return
    shown = "; ".join(f"{p.place}: {p.text}" for p in report.errors[:SHOWN_ERRORS])
    more = len(report.errors) - SHOWN_ERRORS
    raise RepositoryError(
        f"the repository in {repository.location} is damaged: {shown}"
        + (f"; and {more} more" if more > 0 else ""),
        hint="repair it with the tools that wrote it, or restore files from a backup or a replica; "
        "--skip-check takes it over as it is",
    )


def _check_whitelist(repository: NativeRepository, keys: Keys, now: datetime) -> None:
    options = repository.trust.valid_whitelist(keys, now).options
    if options:
        raise RepositoryError(
            f"the whitelist of {repository.name} demands {' and '.join(options)}, which is not "
            "supported",
            hint="sign it with the master key itself: `cvmfs-publish resign`",
        )


def _check_reflog(
    repository: NativeRepository, manifest: Manifest, version: str, spool: Spool | None
) -> None:
    with read_base(repository.store, manifest, version, spool, repair=False) as base:
        name = base.reflog.name
    if name != repository.name:
        raise RepositoryError(
            f"{reflogs.FILE_NAME} is of {name!r}, not of {repository.name!r}", hint=REFLOG_HINT
        )
    found = repository.store.fetch(reflogs.FILE_NAME, MAX_DATABASE_BYTES)
    if spool is not None or found is None:
        return
    if manifest.reflog is None or ContentHash.of(found.data, manifest.reflog.algorithm) != (
        manifest.reflog
    ):
        # After a stock gc only the spool says that this is right.
        raise RepositoryError(
            f"{reflogs.FILE_NAME} of {repository.name} has another hash than the manifest says "
            f"({manifest.reflog})",
            hint="name the server.conf with --server-conf if cvmfs_server writes the repository; "
            f"else rebuild the reflog with `cvmfs_server check -r {repository.name}`",
        )


def _count_tags(repository: NativeRepository, manifest: Manifest) -> int:
    with open_history(repository.store, manifest) as history:
        if history.name != repository.name:
            raise IntegrityError(f"history is of {history.name!r}, not of {repository.name!r}")
        return len(history.tags())


def _check_nested(repository: NativeRepository, manifest: Manifest) -> None:
    """Raise `IntegrityError` if the root catalog does not tell what is below it."""
    stored = repository.store.read(manifest.root_hash, Suffix.CATALOG)
    with Catalog.open(decompress(stored, MAX_DATABASE_BYTES)) as root:
        root.total_counters()
        root.nested()


def _differences(server: ServerConf, manifest: Manifest) -> list[str]:
    """Tell where the configuration of stock tools says something else than what is published."""
    remarks = []
    algorithm = manifest.root_hash.algorithm
    if server.hash is not algorithm:
        remarks.append(
            f"CVMFS_HASH_ALGORITHM is {server.hash.value}, but the published catalogs have "
            f"{algorithm.value}, and so will new objects"
        )
    if server.garbage_collection != manifest.garbage_collectable:
        remarks.append(
            f"CVMFS_GARBAGE_COLLECTION is {str(server.garbage_collection).lower()}, but the "
            f"manifest says {'yes' if manifest.garbage_collectable else 'no'}, which stays"
        )
    if server.user:
        remarks += _owner(server.user)
    if isinstance(server.upstream, LocalUpstream):
        data = server.upstream.directory / "data"
        if not os.access(data, os.W_OK):
            remarks.append(f"{data} is not writable for whom you are now")
    return remarks


def _owner(name: str) -> list[str]:
    try:
        wanted = pwd.getpwnam(name).pw_uid
    except KeyError:
        return [f"CVMFS_USER is {name}, whom this host does not know"]
    if os.geteuid() in (0, wanted):  # root gives new files to whose the storage is
        return []
    return [f"CVMFS_USER is {name}; publish as that user, or new files belong to somebody else"]


def _circumstances(name: str, spool: Spool | None, revision: int) -> list[str]:
    remarks = []
    if spool is not None and (spool.directory / _CHECKOUT).exists():
        remarks.append(
            f"{spool.directory / _CHECKOUT}: stock tools have an older revision checked out; what "
            f"is published here continues the newest one (`cvmfs_server checkout {name}` goes back)"
        )
    if revision < CATALOG_REVISION:
        remarks.append(
            f"catalogs of schema revision {revision} are upgraded to {CATALOG_REVISION} when they "
            "change; servers before 2.12 should write here no longer"
        )
    return remarks
