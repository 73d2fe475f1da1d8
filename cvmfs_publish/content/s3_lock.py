"""Hold a bucket against other writers: a small file beside the manifest that must be kept fresh.

The file is created, refreshed and taken over by conditional writes only, so that of several who try
one succeeds.  Whoever cannot refresh it any more has lost it and is told so by `Lease.check`.

A lock is taken over, never silently, if its holder is a process of this host that is gone, or if it
was not refreshed for the time its holder had announced; both times are read from the store's clock.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict

from cvmfs_publish.content.holder import Holder, give_up
from cvmfs_publish.content.s3_client import Bucket, ChangedError, Got, S3Error
from cvmfs_publish.errors import LockedError, RepositoryError

FILE_NAME = ".cvmfs-publish.lock"
CLOCK_NAME = ".cvmfs-publish.clock"  # written and removed to read the store's clock
MAX_BYTES = 4096
ROUNDING = 2  # seconds: the store tells times in whole ones
CHECK_SECONDS = 3.0  # for one question whether the store has conditional writes
NOT_UNDERSTOOD = (400, 405, 501)  # answers to a header that a store does not know
MAX_LEASE = 3600.0  # seconds; whatever a lock file says

_NO_VERSION = '"00000000000000000000000000000000"'
_log = logging.getLogger(__name__)


class Lease:
    """The lock while it is held.  See `content.store.Lock`."""

    def __init__(self, bucket: Bucket, holder: Holder, version: str) -> None:
        self.bucket = bucket  # requests take, repeated, less than the lease
        self._holder = holder
        self._version = version
        self._lost = False
        self._mutex = threading.Lock()  # one refresh at a time
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="s3-lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Refresh the lock; `LockedError` if it is no longer ours."""
        with self._mutex:
            if not self._lost:
                self._refresh()
            if self._lost:
                raise LockedError(
                    f"the lock on the repository in {self.bucket.location} was lost: this"
                    " process did not refresh it in time, or somebody removed it",
                    hint="nothing was replaced; run the same command again",
                )

    def release(self) -> None:
        """Give the lock back, unless it is somebody else's by now."""
        self._ended.set()
        self._thread.join()
        try:
            self.check()  # from here on nobody takes it over for as long as a removal takes
            self.bucket.remove(FILE_NAME)
        except LockedError:
            _log.warning("the lock on %s was lost before its end", self.bucket.location)
        except S3Error as error:
            give_up(self._holder)
            _log.warning(
                "the lock on %s could not be given back and stays for %.0f seconds: %s",
                self.bucket.location,
                self._holder.lease_seconds,
                error,
            )

    def _keep(self) -> None:
        while not self._ended.wait(self._holder.lease_seconds / 3):
            with self._mutex:
                if self._lost:
                    return
                try:
                    self._refresh()
                except S3Error as error:
                    _log.warning("the lock cannot be refreshed at the moment: %s", error)

    def _refresh(self) -> None:
        document = asdict(self._holder) | {"refreshed": self._holder.refreshed + 1}
        new = Holder(**document)
        try:
            self._version = self.bucket.swap(FILE_NAME, new.dump(), self._version)
        except ChangedError:
            self._lost = True
        else:
            self._holder = new


@contextmanager
def hold_lease(bucket: Bucket, seconds: float) -> Iterator[Lease]:
    """Hold the lock of `bucket`, kept fresh, for the length of a block.

    Raises:
        LockedError: somebody else holds it.
        RepositoryError: the store has no conditional writes, or refuses.
    """
    bucket = bucket.impatient(seconds / 3)
    holder = Holder.this_process(seconds)
    try:
        version = _take(bucket, holder)
    except ChangedError:
        raise LockedError(
            f"the repository in {bucket.location} was locked by another publisher this moment",
            hint="wait for it to end, then try again",
        ) from None
    try:
        _check_conditions(bucket, holder)
    except BaseException:
        with suppress(S3Error):
            found = bucket.get(FILE_NAME, MAX_BYTES)
            if found is not None and found.data == holder.dump():  # that may have taken long
                bucket.remove(FILE_NAME)
        raise
    lease = Lease(bucket, holder, version)
    try:
        yield lease
    finally:
        lease.release()


def _take(bucket: Bucket, holder: Holder) -> str:
    """Write the lock file; return its version.  `ChangedError`: somebody was faster."""
    try:
        return bucket.swap(FILE_NAME, holder.dump(), None)
    except ChangedError:
        found = bucket.get(FILE_NAME, MAX_BYTES)
    if found is None:  # given back in between
        return bucket.swap(FILE_NAME, holder.dump(), None)
    other = Holder.parse(found.data)
    if other is not None and other.is_gone():
        _log.warning("taking over the lock on %s: %s, is gone", bucket.location, other)
    else:
        _check_expired(bucket, found, other, holder.lease_seconds)
    return bucket.swap(FILE_NAME, holder.dump(), found.version)


def _check_expired(bucket: Bucket, found: Got, other: Holder | None, own_lease: float) -> None:
    """Raise `LockedError` unless the lock was not refreshed for as long as its holder promised."""
    who = str(other) if other is not None else "somebody who left no name"
    lease = min(other.lease_seconds if other is not None else own_lease, MAX_LEASE)
    left = lease + ROUNDING - (_clock(bucket, found.modified) - found.modified)
    if left > 0:
        raise LockedError(
            f"the repository in {bucket.location} is locked by {who}",
            hint=f"wait for it to end, then try again; should it have died, its lock on"
            f" {FILE_NAME} ends in {left:.0f} seconds",
        )
    _log.warning(
        "taking over the lock on %s: %s, has not refreshed it for %.0f seconds",
        bucket.location,
        who,
        lease - left,
    )


def _clock(bucket: Bucket, unknown: int) -> int:
    """Return the time by the store's clock, which is also what lock files are dated with.

    `unknown`: what is returned if somebody else who wants to know has removed the file meanwhile.
    """
    bucket.put(CLOCK_NAME, secrets.token_bytes(8))
    found = bucket.head(CLOCK_NAME)
    with suppress(S3Error):
        bucket.remove(CLOCK_NAME)
    return found.modified if found is not None else unknown


def _check_conditions(bucket: Bucket, holder: Holder) -> None:
    """Refuse a store that writes although a condition is not met, while nothing is at stake.

    Such a store would have let us take the lock of somebody else; but then it never gave it to them
    for longer than this check takes either.
    """
    asked = bucket.impatient(CHECK_SECONDS)  # not to understand counts as a failure in passing
    for expected, header in ((None, "If-None-Match"), (_NO_VERSION, "If-Match")):
        try:
            asked.put_if(FILE_NAME, holder.dump(), expected)
        except ChangedError:
            continue
        except S3Error as error:
            if error.status not in NOT_UNDERSTOOD:
                raise
            raise RepositoryError(
                f"{bucket.location}: the store does not understand {header}: {error}",
                hint=_CONDITIONS_HINT,
            ) from error
        raise RepositoryError(
            f"{bucket.location}: the store ignores {header} and overwrites",
            hint=_CONDITIONS_HINT,
        )


_CONDITIONS_HINT = (
    "without conditional writes two publishers could overwrite each other: use a store that has"
    " them, or a local directory as storage"
)
