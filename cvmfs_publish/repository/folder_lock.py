"""Hold a directory against other writers where no `flock` reaches: network file systems.

The lock is a file that says who holds it.  It is written under another name first and appears by
`link(2)`, which succeeds for one of several that try, on every file system with hard links, NFS
included.  Its holder touches it from time to time; whoever cannot any more has lost it, and is told
so by `FolderLease.check`.

A lock is taken over, never silently, if its holder is a process of this host that is gone, or if it
was not touched for the time its holder had announced.  Both times are read from the file system's
clock, so clocks of hosts need not agree.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cvmfs_publish.content.holder import Holder, give_up
from cvmfs_publish.errors import LockedError

FILE_NAME = "lock"
LEASE = 120.0  # seconds
MAX_LEASE = 3600.0  # seconds; whatever a lock file says
# A client of NFS shows a time that may be this old (acregmax); a file system may round by a second.
ROUNDING = 61  # seconds
_PAUSE = 0.05  # seconds; the first between two tries, each following is longer
_EAGER = 2.0  # seconds; so long no pause is longer than the first
_LONGEST_PAUSE = 2.0  # seconds
_COURTESY = 2 * _PAUSE  # who comes lets those who wait try first, or he who is quick has it always
_MAX_BYTES = 4096
_log = logging.getLogger(__name__)


class FolderLease:
    """The lock while it is held.  See `content.store.Lock`."""

    def __init__(self, path: Path, holder: Holder) -> None:
        """Keep fresh the file at `path`, which is ours."""
        self._path = path
        self._holder = holder
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="folder-lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Touch the lock; `LockedError` if it is no longer ours."""
        found = _read(self._path)
        if found is None or found[0] is None or found[0].owner != self._holder.owner:
            raise LockedError(
                f"the lock {self._path} was lost: this process did not refresh it in time, or"
                " somebody removed it",
                hint="nothing was published; run the same command again",
            )
        os.utime(self._path)

    def release(self) -> None:
        """Give the lock back, unless it is somebody else's by now."""
        self._ended.set()
        self._thread.join()
        try:
            self.check()
            self._path.unlink()
        except LockedError:
            _log.warning("the lock %s was lost before its end", self._path)
        except OSError as error:
            give_up(self._holder)
            _log.warning("the lock %s could not be removed: %s", self._path, error.strerror)

    def _keep(self) -> None:
        while not self._ended.wait(self._holder.lease_seconds / 3):
            try:
                self.check()
            except LockedError:
                return  # told to who asks
            except OSError as error:
                _log.warning("the lock cannot be refreshed at the moment: %s", error.strerror)


@contextmanager
def hold_folder(directory: Path, what: str, *, lease: float, wait: float) -> Iterator[FolderLease]:
    """Hold the lock `lock` in a directory for the length of a block.

    Args:
        directory: where the lock file is; it exists.
        what: is locked, for messages.
        lease: seconds after which others may take the lock over, if it is not kept fresh.
        wait: seconds to wait while somebody else holds it; 0: not at all.

    Raises:
        LockedError: somebody else holds it.
        OSError: the directory cannot be written to.
    """
    holder = Holder.this_process(lease)
    path = directory / FILE_NAME
    own = path.with_name(f"{FILE_NAME}.{secrets.token_hex(8)}")
    descriptor = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(holder.dump())
        if wait and _others_wait(directory, own):
            time.sleep(_COURTESY)
        _wait(path, own, holder, what, wait)
    finally:
        with suppress(OSError):
            own.unlink()
    held = FolderLease(path, holder)
    try:
        yield held
    finally:
        held.release()


def _others_wait(directory: Path, own: Path) -> bool:
    """Whether somebody has been waiting for the lock before us, and still is."""
    now = own.stat().st_mtime
    for path in directory.glob(f"{FILE_NAME}.*"):
        with suppress(FileNotFoundError):
            if path != own and now - path.stat().st_mtime < 2 * _LONGEST_PAUSE:
                return True
    return False


def _wait(path: Path, own: Path, holder: Holder, what: str, wait: float) -> None:
    began = time.monotonic()
    pause = _PAUSE
    while True:
        try:
            _take(path, own, holder, what)
        except LockedError:
            waited = time.monotonic() - began
            if waited >= wait:
                raise
            time.sleep(min(pause, wait - waited))
            if waited > _EAGER:
                pause = min(pause * 1.3, _LONGEST_PAUSE)
        else:
            return


def _take(path: Path, own: Path, holder: Holder, what: str) -> None:
    os.utime(own)  # the lock is as fresh as that, and who waits is seen to wait
    if _link(own, path):
        return
    _remove_dead(path, own.stat().st_mtime, holder, what)
    if not _link(own, path):
        raise LockedError(
            f"{what} was locked by another publisher this moment",
            hint="wait for it to end, then try again",
        )


def _link(own: Path, path: Path) -> bool:
    """Let the lock file appear; whether it is ours."""
    with suppress(FileExistsError):
        try:
            os.link(own, path)
        except OSError:
            # An answer of NFS may be lost: what counts is how many names the file has.
            if own.stat().st_nlink != 2:
                raise
        return True
    return False


def _remove_dead(path: Path, now: float, holder: Holder, what: str) -> None:
    """Remove the lock of somebody who is gone; `LockedError` if he may still be there."""
    found = _read(path)
    if found is None:
        return  # given back this moment
    other, touched = found
    who = str(other) if other is not None else "somebody who left no name"
    if other is not None and other.is_gone():
        _log.warning("taking over the lock %s: %s, is gone", path, who)
    else:
        lease = min(other.lease_seconds if other is not None else holder.lease_seconds, MAX_LEASE)
        left = lease + ROUNDING - (now - touched)
        if left > 0:
            raise LockedError(
                f"{what} is locked by {who}",
                hint="wait for it to end, then try again; should it have died, its lock"
                f" {path} ends in {left:.0f} seconds",
            )
        _log.warning(
            "taking over the lock %s: %s, has not refreshed it for %.0f seconds",
            path,
            who,
            now - touched,
        )
    gone = path.with_name(f"{FILE_NAME}.gone.{secrets.token_hex(8)}")
    with suppress(FileNotFoundError):
        path.rename(gone)  # one of several succeeds
        moved = _read(gone)
        if moved is None or moved[0] != other:  # somebody was faster and holds it already
            _link(gone, path)
        gone.unlink()


def _read(path: Path) -> tuple[Holder | None, float] | None:
    """Return who holds a lock, None if the file does not say, and when it was touched last.

    None if there is no lock.  It is opened, because only then NFS asks the server.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        return Holder.parse(os.read(descriptor, _MAX_BYTES)), os.fstat(descriptor).st_mtime
    finally:
        os.close(descriptor)
