"""Take turns with `cvmfs_server` on its own host: the locks and notes in a repository's spool.

Source: facts/cvmfs-format.md sections 2.6, 6.1, 11.2 and 11.3 (publish/repository_util.cc,
util/posix.cc).

The life of the transaction flag `in_transaction.lock`.  To stock tools it is a file that exists or
not.  Ours holds one line that says so, and is locked by the process that made it, so that the
kernel tells whether that process is alive: the flag of a dead one is taken over at once.  A flag of
anybody else is never touched, however old.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from cvmfs_publish.content.hashes import ContentHash
from cvmfs_publish.content.local import storage_errors
from cvmfs_publish.errors import IntegrityError, LockedError, RepositoryError

TRANSACTION = "in_transaction.lock"  # a flag: pure existence
PUBLISHING = "is_publishing.lock"  # flock(2), unlinked by the holder before it is closed
COLLECTING = "is_collecting.lock"  # the same, of gc and check
CHECKSUM = "reflog.chksum"  # hash of .cvmfsreflog as text
NEXT_CHECKSUM = "reflog.chksum.cvmfs-publish"  # of the reflog we were about to put in place
CLIENT_CONF = "client.local"  # which revision the stock mount shows

_OURS = "cvmfs-publish "  # how the text of our transaction flag begins
_MAX_BYTES = 64 * 1024  # of any file read here; real ones have one line
_ATTEMPTS = 100  # a lock file that changes hands this often while we look is a bug
_FILE_MODE, _LOCK_MODE = 0o644, 0o600
_ROOT_HASH_LINE = re.compile(r"^[ \t]*(?:export[ \t]+)?CVMFS_ROOT_HASH=.*\n?", re.MULTILINE)


class Spool:
    """The spool directory of one repository.

    Methods raise `RepositoryError` if the directory cannot be read or written.
    """

    def __init__(self, directory: Path, name: str) -> None:
        """Name the directory `/var/spool/cvmfs/NAME`; nothing is read yet."""
        self.directory = directory
        self.name = name

    # locks

    @contextmanager
    def hold(self) -> Iterator[SpoolLock]:
        """Keep stock tools from writing: no transaction, publish, gc or check of theirs.

        Raises:
            LockedError: one of them, or another of us, is active; nothing was changed.
        """
        with ExitStack() as stack:
            with self._errors("locking"):
                self.check_free()  # so that a stock publish never meets our lock for nothing
                held = [stack.enter_context(self._lock(PUBLISHING, "publish"))]
                self._sweep()
                held.append(stack.enter_context(self._flag()))
                held.append(stack.enter_context(self._lock(COLLECTING, "gc or check")))
            yield SpoolLock(self.name, held)

    def check_free(self) -> None:
        """Raise `LockedError` if there is a transaction; leaves everything as it is."""
        with self._errors("looking at"):
            if not self.directory.is_dir():
                raise RepositoryError(
                    f"the spool {self.directory} of {self.name} does not exist",
                    hint="correct `repository.spool`; remove it if cvmfs_server is not used here",
                )
            dead = self._open_flag()
            if dead is not None:
                os.close(dead)

    @contextmanager
    def _flag(self) -> Iterator[Held]:
        """Raise the transaction flag.  The lock of publishers is held: nobody of us interferes."""
        path, temporary = self.directory / TRANSACTION, self._temporary(TRANSACTION)
        text = f"{_OURS}pid={os.getpid()} host={os.uname().nodename}\n"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        held = Held(path, os.open(temporary, flags, _FILE_MODE))
        try:
            _try_lock(held.descriptor)
            os.write(held.descriptor, text.encode())
            self._give_to_owner(held.descriptor)
            try:
                os.link(temporary, path)  # appears locked and complete, and replaces nothing
            except FileExistsError:
                dead = self._open_flag()
                if dead is None:  # it was there a moment ago: somebody is at work
                    raise self._foreign(path) from None
                temporary.replace(path)
                os.close(dead)
        except BaseException:
            os.close(held.descriptor)
            raise
        finally:
            temporary.unlink(missing_ok=True)
        try:
            yield held
        finally:
            self._release(held)

    def _open_flag(self) -> int | None:
        """Return the locked flag of a dead process of ours; None if there is no flag.

        Raises `LockedError` if the flag is somebody else's or its maker is alive.
        """
        path = self.directory / TRANSACTION
        with ExitStack() as undo:
            try:
                flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
                descriptor = os.open(path, flags)
            except FileNotFoundError:
                return None
            except OSError as error:
                raise self._foreign(path) from error
            undo.callback(os.close, descriptor)
            text = os.read(descriptor, _MAX_BYTES).decode("utf-8", "replace")
            if not text.startswith(_OURS):
                raise self._foreign(path)
            if not _try_lock(descriptor):
                raise LockedError(
                    f"repository {self.name} is locked: another cvmfs-publish is writing it "
                    f"({text.removeprefix(_OURS).strip()})",
                    hint="wait for it to end, then try again",
                )
            undo.pop_all()
        return descriptor

    def _foreign(self, path: Path) -> LockedError:
        return LockedError(
            f"repository {self.name} is in a transaction of cvmfs_server: {path} exists",
            hint=f"wait for it to end, or end it with `cvmfs_server publish {self.name}` or "
            f"`cvmfs_server abort {self.name}`; after a crash it stays until it is aborted",
        )

    @contextmanager
    def _lock(self, name: str, who: str) -> Iterator[Held]:
        held = self._open_lock(self.directory / name, who)
        try:
            yield held
        finally:
            self._release(held)

    def _open_lock(self, path: Path, who: str) -> Held:
        """Return the locked lock file that is still at `path`, whoever unlinked others."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        for _ in range(_ATTEMPTS):
            with ExitStack() as undo:
                held = Held(path, os.open(path, flags, _LOCK_MODE))
                undo.callback(os.close, held.descriptor)
                if not _try_lock(held.descriptor):
                    raise LockedError(
                        f"repository {self.name} is locked: a {who} is running ({path} is locked)",
                        hint="wait for it to end, then try again",
                    )
                if held.is_ours():
                    self._give_to_owner(held.descriptor)
                    undo.pop_all()
                    return held
        raise LockedError(f"{path} changes all the time", hint="try again")

    def _release(self, held: Held) -> None:
        """Unlink, then close; a file that is no longer ours stays."""
        try:
            with self._errors("unlocking"):
                if held.is_ours():
                    held.path.unlink(missing_ok=True)
        finally:
            os.close(held.descriptor)

    # the checksum of the reflog

    def read_reflog_checksum(self) -> ContentHash | None:
        """Return what stock tools believe the hash of `.cvmfsreflog` to be; None if nothing.

        Raises `IntegrityError` if the file holds no hash.
        """
        return self._read_hash(CHECKSUM)

    def check_reflog(self, reflog: bytes, *, repair: bool = False) -> None:
        """Raise `RepositoryError` unless the checksum is that of the reflog `reflog`.

        It may also be the one that a writer of ours, killed just then, meant to put in place after
        the reflog (section 6.1); `repair`, for the holder of the lock, puts it there.
        """
        try:
            stated = self._read_hash(CHECKSUM)
        except IntegrityError as error:
            raise RepositoryError(str(error), hint=self._checksum_hint()) from error
        if stated is not None and ContentHash.of(reflog, stated.algorithm) == stated:
            if repair:
                with self._errors("repairing"):
                    (self.directory / NEXT_CHECKSUM).unlink(missing_ok=True)
            return
        planned = None
        with suppress(IntegrityError):  # cut short: it is none
            planned = self._read_hash(NEXT_CHECKSUM)
        if planned is not None and ContentHash.of(reflog, planned.algorithm) == planned:
            if repair:
                self._write_text(CHECKSUM, str(planned))
                (self.directory / NEXT_CHECKSUM).unlink(missing_ok=True)
            return
        if stated is None:
            text = f"{self.directory / CHECKSUM} is missing"
        else:
            found = ContentHash.of(reflog, stated.algorithm)
            text = f"{self.directory / CHECKSUM} says {stated}, .cvmfsreflog has {found}"
        raise RepositoryError(
            f"the reflog of {self.name} is not the one stock tools know: {text}",
            hint=self._checksum_hint(),
        )

    def announce_reflog(self, checksum: ContentHash) -> None:
        """Note the hash of the reflog that is about to be put in place; see `check_reflog`."""
        self._write_text(NEXT_CHECKSUM, str(checksum))

    def reflog_replaced(self, checksum: ContentHash) -> None:
        """Tell stock tools the hash of the reflog that now is in place."""
        self._write_text(CHECKSUM, str(checksum))
        with self._errors("writing"):
            (self.directory / NEXT_CHECKSUM).unlink(missing_ok=True)

    def _checksum_hint(self) -> str:
        return (
            f"`cvmfs_server check -r {self.name}` rebuilds both; if nothing but the checksum is "
            "wrong, restore that file from a backup"
        )

    def _read_hash(self, name: str) -> ContentHash | None:
        path = self.directory / name
        try:
            with self._errors("reading"), path.open("rb") as file:
                text = file.read(_MAX_BYTES).decode("utf-8", "replace").strip()
        except RepositoryError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise
        try:
            return ContentHash.parse(text)
        except IntegrityError as error:
            raise IntegrityError(f"{path} holds no hash: {error}") from error

    # the mount of stock tools

    def manifest_replaced(self, root_hash: ContentHash) -> None:
        """Tell the stock mount which revision to show; other lines of its file stay."""
        path = self.directory / CLIENT_CONF
        line = f"CVMFS_ROOT_HASH={root_hash}\n"
        with self._errors("writing"):
            try:
                old = path.read_text("utf-8", "surrogateescape")
            except FileNotFoundError:
                old = ""
            # The last assignment wins in a shell, so there is only one afterwards.
            kept = _ROOT_HASH_LINE.sub("", old)
            if kept and not kept.endswith("\n"):
                kept += "\n"
            new = kept + line
        if new != old:
            self._write_text(CLIENT_CONF, new)

    # files

    def _write_text(self, name: str, text: str) -> None:
        """Replace a file in one step and durably."""
        path, temporary = self.directory / name, self._temporary(name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        with self._errors("writing"):
            try:
                with open(os.open(temporary, flags, _FILE_MODE), "wb") as file:  # noqa: PTH123
                    os.fchmod(file.fileno(), _FILE_MODE)
                    self._give_to_owner(file.fileno())
                    file.write(text.encode("utf-8", "surrogateescape"))
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            directory = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def _temporary(self, name: str) -> Path:
        return self.directory / f".{name}.cvmfs-publish-{secrets.token_hex(8)}"

    def _sweep(self) -> None:
        """Remove what writers of ours left that were killed; only with the lock of publishers."""
        for path in self.directory.glob(".*.cvmfs-publish-*"):
            path.unlink(missing_ok=True)

    def _give_to_owner(self, descriptor: int) -> None:
        """Let the owner of the spool use what root writes: stock tools run as that user."""
        if os.geteuid() == 0:
            owner = self.directory.stat()
            os.fchown(descriptor, owner.st_uid, owner.st_gid)

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        with storage_errors(f"{what} the spool of {self.name}"):
            yield


class Held:
    """A lock file of ours."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor

    def is_ours(self) -> bool:
        """Whether the path still is this file: others may have unlinked it meanwhile."""
        try:
            found = self.path.lstat()
        except FileNotFoundError:
            return False
        own = os.fstat(self.descriptor)
        return (own.st_dev, own.st_ino) == (found.st_dev, found.st_ino)


class SpoolLock:
    """The right to write, see `content.store.Lock`."""

    def __init__(self, name: str, held: list[Held]) -> None:
        self._name = name
        self._held = held

    def check(self) -> None:
        """Raise `LockedError` if somebody took one of the locks away."""
        for held in self._held:
            if not held.is_ours():
                raise LockedError(
                    f"repository {self._name}: {held.path} was removed by somebody else, as "
                    "`cvmfs_server abort` does",
                    hint="nothing was published; try again",
                )


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
