"""Look at a repository of our own: where it is stored, keys, whitelist, locks."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

from cvmfs_publish.content.store import ContentStore
from cvmfs_publish.doctor.host import check_below, check_folder, check_published
from cvmfs_publish.doctor.model import Finding, good, is_fit, missing, warn
from cvmfs_publish.errors import LockedError
from cvmfs_publish.repository.native.repository import NativeRepository
from cvmfs_publish.repository.native.signing import Keys, fingerprint
from cvmfs_publish.repository.native.spool import Spool
from cvmfs_publish.repository.native.whitelist import Whitelist, format_fingerprint
from cvmfs_publish.words import format_minute, plural

SOON = timedelta(days=7)
CREATE = "`cvmfs-publish init NAME` creates one"


def check_storage(
    repository: NativeRepository, folder: Path | None, now: datetime
) -> Iterator[Finding]:
    """Look whether the storage has the repository and takes writes; `folder` if it is one."""
    if folder is not None and not folder.is_dir():
        yield missing("storage", f"{folder} does not exist", CREATE)
        return
    if folder is not None:
        found = list(check_folder("storage", folder))
        yield from found
        if is_fit(found):
            yield from check_below("storage", folder / "data")
            yield from check_flock(folder)
    else:
        yield from check_lock(repository.store)
    manifest = repository.manifest()
    yield good("repository", f"{manifest.name}, revision {manifest.revision}")
    yield from check_published(manifest.timestamp, now)


def check_flock(folder: Path) -> Iterator[Finding]:
    """Try `flock` beside the lock itself, which is for those who write."""
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            yield missing(
                "lock",
                f"{folder}: no lock is possible: {error.strerror}",
                "keep the repository on a file system with flock",
            )
        else:
            yield good("lock", "the file system has flock")


def check_lock(store: ContentStore) -> Iterator[Finding]:
    """Take the lock as a publish does, which finds out whether conditional writes are obeyed."""
    try:
        with store.lock():
            yield good("lock", f"{store.location} is reached, and obeys conditional writes")
    except LockedError as error:
        yield warn("lock", str(error), error.hint)


def check_keys(repository: NativeRepository, now: datetime) -> Iterator[Finding]:
    """Read the keys as a publish does, and look whether clients accept what they sign."""
    keys = repository.trust.keys()
    own = format_fingerprint(fingerprint(keys.certificate))
    yield good("keys", f"in {repository.trust.directory}, certificate {own}")
    found = repository.trust.valid_whitelist(keys, now)
    if not found.trusts(keys.certificate):
        yield missing(
            "whitelist",
            f"does not trust our certificate, {own}",
            "`cvmfs-publish resign`, where the master key is, makes it trusted",
        )
    yield from check_whitelist(
        found, now, "`cvmfs-publish resign`, where the master key is, renews it"
    )
    yield _master_key(keys)
    yield _certificate(keys, now)


def check_whitelist(whitelist: Whitelist, now: datetime, remedy: str) -> Iterator[Finding]:
    """Tell when the whitelist expires: from then on clients take nothing new."""
    when = format_minute(whitelist.ends_at)
    left = whitelist.ends_at - now
    if left <= timedelta():
        yield missing("whitelist", f"expired {when}: nothing can be published", remedy)
    elif left <= SOON:
        yield warn("whitelist", f"expires {when}: then everything stops", remedy)
    else:
        yield good("whitelist", f"expires {when}, in {plural(left.days, 'day')}")


def _master_key(keys: Keys) -> Finding:
    if keys.master_key is not None:
        return good("master key", "is here, and renews the whitelist")
    return good("master key", "is not here, which is safer: `resign` is for the host that has it")


def _certificate(keys: Keys, now: datetime) -> Finding:
    ends = keys.certificate.not_valid_after_utc
    if ends <= now:
        return warn(
            "certificate",
            f"expired {format_minute(ends)}, which no client looks at",
            "`cvmfs-publish resign --rotate` makes another",
        )
    return good("certificate", f"expires {format_minute(ends)}")


def check_spool(spool: Spool) -> Iterator[Finding]:
    """Look at the spool of `cvmfs_server`, which writes the repository too."""
    spool.check_free()
    yield from check_folder("spool", spool.directory)
