"""Run `cvmfs_server`, and know after a crash which of its open transactions is ours.

The program's own flag of a transaction, `in_transaction.lock`, is a file that exists or not and
says nothing of who opened it.  So a note in our state directory says what we are about to do before
each command, and which flag file our transaction has once it is open.  A small shell script around
the command writes down beside the note that it has begun (`.began`, its process) and how it ended
(`.ended`), so that both are known if we are killed at any instant.  A flag that appeared while no
command of ours ran is somebody else's, and nothing is ever done about it.

Source: facts/cvmfs-format.md sections 11.1 to 11.3.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import sh

from cvmfs_publish.content.holder import Holder
from cvmfs_publish.errors import InputError, LockedError, PublishError, RepositoryError
from cvmfs_publish.repository.native.server_conf import parse_assignments

FLAG = "in_transaction.lock"  # pure existence
PUBLISHING = "is_publishing.lock"  # flock(2)
COLLECTING = "is_collecting.lock"  # the same, of gc and check
LEASE = "session_token"  # behind a gateway: the lease of the open transaction
CLIENT = "client.local"  # says which root catalog is mounted
READ_ONLY = "rdonly"  # where it is mounted, below the union of it with what a transaction changes
SCRATCH = "scratch/current"  # what an open transaction has changed
PATIENCE = 300.0  # seconds for what a killed publisher had started
# Older ones end `transaction` with the same code whatever happened (ChangeLog of 2.8.0, CVM-1873).
OLDEST = (2, 8, 0)
OLDEST_INGEST = (2, 12, 0)  # older ones have no `ingest -k`, which keeps owners (ChangeLog, 3362)
_EXISTS, _BUSY, _INVALID = 17, 16, 22  # exit codes of `transaction`: errno values
_VERSION = re.compile(r"CernVM-FS Server Tool\s+([0-9]{1,6}(?:\.[0-9]{1,6}){1,3})")
_VERSION_TIME = 60.0  # seconds for a word about itself
_NOT_OPEN = 22  # exit code of `abort` where no transaction is open
_SHOWN = 10  # last lines of what a command said
_PAUSE = 0.02  # seconds between two looks at a program that runs
_PULSE = 1.0  # seconds; so often the note is touched while a command runs
_ENDS = ("began", "ended")
_START = 10.0  # seconds in which a command begins that was about to be run
# Runs a command and writes down that it has begun and how it ended, whoever may have been killed.
_RUNNER = """
echo $$ >"$0.began" || exit
"$@"
code=$?
echo $code >"$0.ended"
exit $code
"""
# What `cvmfs_server` says where it found a transaction that is not its own.
_FOREIGN = re.compile(r"already (in a|open)|another .*transaction|in a transaction", re.IGNORECASE)
_log = logging.getLogger(__name__)


class ServerError(RepositoryError):
    """`cvmfs_server` failed, is missing, or did not end in time; nothing new is named."""

    kind = "cvmfs-server"

    def __init__(
        self, message: str, *, code: int | None = None, hint: str = "", said: str = ""
    ) -> None:
        """`said`: all that the program said, of which the message has the end."""
        super().__init__(message, hint=hint)
        self.code = code
        self.said = said


class LeaseBusyError(LockedError):
    """Another publisher holds a lease that overlaps with the one asked for."""


@dataclass(frozen=True, slots=True)
class Note:
    """What we were doing; in a file until it is done."""

    command: str
    holder: Holder  # the publisher
    began: float  # Unix seconds, by the clock of the spool's file system
    child: Holder | None = None  # the program
    flag: tuple[int, int] | None = None  # inode and time of the flag our transaction has
    token: tuple[int, int] | None = None  # the same of the file with its lease

    def dump(self) -> bytes:
        return (json.dumps(asdict(self), indent=2) + "\n").encode()

    @classmethod
    def parse(cls, data: bytes) -> Note | None:
        """Return the note, None if these bytes are none."""
        try:
            document: dict[str, Any] = json.loads(data)
            holder, child = (_holder(document[key]) for key in ("holder", "child"))
            if holder is None:
                return None
            return cls(
                str(document["command"]),
                holder,
                float(document["began"]),
                child,
                _identity(document["flag"]),
                _identity(document.get("token")),
            )
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            return None


def _identity(found: list[int] | None) -> tuple[int, int] | None:
    return (int(found[0]), int(found[1])) if found is not None else None


def _holder(document: dict[str, Any] | None) -> Holder | None:
    return Holder.parse(json.dumps(document).encode()) if document is not None else None


class Server:
    """The program for one repository.  The caller sees to it that one process uses it at a time."""

    def __init__(self, name: str, spool: Path, note: Path, *, program: str, timeout: float) -> None:
        """Name everything; nothing is run yet.

        Args:
            name: of the repository.
            spool: /var/spool/cvmfs/NAME.
            note: a file of ours.
            program: `cvmfs_server`, or where it is.
            timeout: seconds a command may take.
        """
        self.name = name
        self.spool = spool
        self._note = note
        self._began, self._ended = (note.with_name(f"{note.name}.{end}") for end in _ENDS)
        self._program = program
        self._timeout = timeout
        self._present: Note | None = None
        self._version: tuple[int, ...] | None = None

    # the program

    def check_version(self) -> tuple[int, ...] | None:
        """Return the program's version, None if it does not say one.  It is asked once.

        Raises:
            ServerError: it cannot be run, or is too old.
        """
        if self._version is None:
            self._version = self._ask_version()
        if self._version is not None and self._version < OLDEST:
            raise ServerError(
                f"{self._program} is of version {format_version(self._version)}, too old:"
                f" {format_version(OLDEST)} or newer is needed",
                hint="update cvmfs-server; older ones do not tell whether somebody else is in a"
                " transaction",
            )
        return self._version

    @property
    def keeps_owners(self) -> bool:
        """Whether `ingest` does; so it is taken to where the version is not known."""
        return self._version is None or self._version >= OLDEST_INGEST

    def _ask_version(self) -> tuple[int, ...] | None:
        """Run the program without a command, to which it answers with what it is and can."""
        try:
            said = sh.Command(self._program)(
                _in=b"",
                _err_to_out=True,
                _tty_out=False,
                _ok_code=list(range(256)),
                _timeout=_VERSION_TIME,
            )
        except (sh.CommandNotFound, OSError) as error:
            raise self._absent(error) from error
        except (sh.ErrorReturnCode, sh.TimeoutException):
            return None
        found = _VERSION.search(said)
        return parse_version(found[1]) if found is not None else None

    def _absent(self, error: Exception) -> ServerError:
        return ServerError(
            f"{self._program} cannot be run: {getattr(error, 'strerror', '') or 'not found'}",
            hint="install cvmfs-server, or correct `repository.cvmfs_server.program`",
        )

    def unfinished(self) -> tuple[str, bool] | None:
        """Return what of ours is not at its end, and whether it was killed; None: nothing."""
        note = self._read()
        if note is None:
            return None
        return f"{note.command}, by {note.holder}", note.holder.is_gone()

    # the flag

    def check_free(self) -> None:
        """Raise `LockedError` if somebody else is in a transaction or at work."""
        if self._flag() is not None:
            raise LockedError(
                f"repository {self.name} is in a transaction of somebody else:"
                f" {self.spool / FLAG} exists",
                hint=f"wait for it to end, or end it with `cvmfs_server publish {self.name}` or "
                f"`cvmfs_server abort {self.name}`; it is never aborted from here",
            )
        if self._token() is not None:  # `transaction` would take it for its own lease
            raise LockedError(
                f"repository {self.name} has a lease of somebody else: {self.spool / LEASE} exists",
                hint=f"`cvmfs_server abort {self.name}` gives it back, if nobody is at work",
            )
        for name, who in ((PUBLISHING, "a publish"), (COLLECTING, "gc or check")):
            if self._is_locked(name):
                raise LockedError(
                    f"repository {self.name} is locked: {who} is running"
                    f" ({self.spool / name} is locked)",
                    hint="wait for it to end, then try again",
                )

    def _flag(self) -> tuple[int, int] | None:
        return self._look(FLAG)

    def _token(self) -> tuple[int, int] | None:
        return self._look(LEASE)

    def _look(self, name: str) -> tuple[int, int] | None:
        try:
            found = (self.spool / name).lstat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns

    def base(self) -> str:
        """Return the hash of the root catalog on which the open transaction is based.

        Raises `ServerError` if that cannot be found out.
        """
        with suppress(OSError):  # what is mounted; a file may say something else
            return os.getxattr(self.spool / READ_ONLY, "user.root_hash").decode("ascii", "replace")
        with suppress(OSError, InputError):
            text = (self.spool / CLIENT).read_text("utf-8", "replace")
            return parse_assignments(text, CLIENT)["CVMFS_ROOT_HASH"].value
        raise ServerError(
            f"{self.spool / READ_ONLY} does not say which root catalog of {self.name} it shows",
            hint=f"`cvmfs_server mount {self.name}`, or correct `CVMFS_SPOOL_DIR` in server.conf",
        )

    def _is_locked(self, name: str) -> bool:
        try:
            descriptor = os.open(self.spool / name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    # commands

    def transaction(self, lease: str | None = None) -> None:
        """Open a transaction; `LockedError` if there is one.

        `lease`: behind a gateway, the path below which it may change something; "" is all.
        Raises `LeaseBusyError` if another publisher has one that overlaps.
        """
        self.check_free()
        try:
            self._run("transaction", f"{self.name}/{lease}" if lease else self.name)
        except ServerError as error:
            self._give_up(error)
            raise
        flag = self._flag()
        if flag is None:
            self._forget()
            raise ServerError(
                f"`cvmfs_server transaction {self.name}` succeeded, but there is no"
                f" {self.spool / FLAG}",
                hint="correct `repository.cvmfs_server.spool`",
            )
        self._write(self._note_of("open", flag, self._token()))
        if lease is not None and self._token() is None:
            self.abort()
            raise ServerError(
                f"`cvmfs_server transaction {self.name}` succeeded, but there is no"
                f" {self.spool / LEASE}: it has no lease",
                hint="correct `CVMFS_UPSTREAM_STORAGE` in server.conf",
            )

    def _give_up(self, error: ServerError) -> None:
        """End what a command has left that failed; raise `LockedError` if it found somebody else.

        Nobody was in a transaction just before it began.
        """
        flag, note = self._flag(), self._present
        if error.code == _BUSY and flag is None:
            self._forget()
            raise LeaseBusyError(
                f"another publisher is at work in {self.name}: {_last_line(error)}",
                hint="try again when it has ended; `repository.cvmfs_server.lease_wait` is how"
                " long is waited",
            ) from error
        is_foreign = error.code in (_EXISTS, _BUSY) or _FOREIGN.search(error.said) is not None
        if is_foreign:
            self._forget()
            raise LockedError(
                f"repository {self.name} is in a transaction of somebody else",
                hint="wait for it to end, then try again",
            ) from error
        if flag is not None and note is not None and flag[1] / 1e9 >= note.began:
            self.abort()
        self._forget()

    def publish(self) -> None:
        """Publish our transaction."""
        flag = self._flag()
        self._run("publish", self.name, flag=flag, token=self._token())
        if self._flag() is not None:
            raise ServerError(
                f"`cvmfs_server publish {self.name}` succeeded, but the transaction is still open"
            )
        self._forget()

    def abort(self) -> None:
        """End our transaction, if there is one, and forget what it did."""
        flag = self._flag()
        if flag is None:
            self._drop_lease()
            return
        self._run("abort", "-f", self.name, flag=flag, token=self._token())
        if self._flag() is not None:
            raise ServerError(
                f"`cvmfs_server abort -f {self.name}` succeeded, but the transaction is still open"
            )
        self._forget()

    def _drop_lease(self) -> None:
        """Give back a lease of ours that is left without a transaction, and forget what was."""
        token, note = self._token(), self._present
        if token is not None and note is not None and self._is_our_lease(note, token):
            try:
                self._run("abort", "-f", self.name, token=token)
            except ServerError as error:
                if error.code != _NOT_OPEN:  # that is said after the lease is given back
                    raise
        self._forget()

    def ingest(self, base: str, members: Iterator[bytes]) -> None:
        """Add the members of a tar stream below a new directory, with a catalog of its own."""
        self.check_free()
        reader, writer = os.pipe()
        feeder = _Feeder(writer, members)
        try:
            with os.fdopen(reader, "rb") as source:  # closed first: else it would never end
                self._run("ingest", "-t", "-", "-b", base, "-c", "-k", self.name, stdin=source)
        except ServerError as error:
            self._give_up(error)
            feeder.check()  # the cause, if it was here
            raise
        finally:
            feeder.close()
        feeder.check()
        self._forget()

    def recover(self, step: Callable[[str], None]) -> None:
        """Make good what a publisher of ours left that was killed.

        Raises `LockedError` if a program that it started is still at work.
        """
        note = self._read()
        if note is None:
            return
        self._wait_for(note)
        flag = self._flag()
        if flag is not None and self._is_ours(note, flag):
            step("recovery")
            _log.warning("aborting the transaction on %s that %s left open", self.name, note.holder)
            self._present = note
            self._run("abort", "-f", self.name, flag=flag, token=self._token())
        elif flag is None:
            self._present = note
            self._drop_lease()
        self._forget()

    def _is_ours(self, note: Note, flag: tuple[int, int]) -> bool:
        """Whether the flag is that of the transaction which the note tells of.

        Where the publisher was killed before the flag appeared, the note cannot name it: then it
        is ours if it appeared while the command ran.
        """
        if note.flag is not None:
            return note.flag == flag
        return self._appeared(note, flag)

    def _appeared(self, note: Note, file: tuple[int, int]) -> bool:
        """Whether a file appeared while a command ran that makes it.

        If it is not known when the command ended, nobody must have written anything since.
        """
        if note.command not in ("transaction", "ingest"):
            return False
        code = _number(self._ended)
        if code is not None:
            is_made = code != _EXISTS  # else there was one already
            return is_made and note.began <= file[1] / 1e9 <= self._ended.stat().st_mtime
        return note.began <= file[1] / 1e9 <= self._last_seen() and self._is_untouched()

    def _last_seen(self) -> float:
        """Return until when the publisher that wrote the note may have been alive."""
        return self._note.stat().st_mtime + 2 * _PULSE

    def _is_our_lease(self, note: Note, token: tuple[int, int]) -> bool:
        """Whether a lease without a transaction is what a command of ours has left."""
        return note.token == token if note.token is not None else self._appeared(note, token)

    def _is_untouched(self) -> bool:
        with suppress(FileNotFoundError):
            return not any((self.spool / SCRATCH).iterdir())
        return True

    def _wait_for(self, note: Note) -> None:
        """Wait until what a killed publisher had started has ended."""
        end = time.monotonic() + min(self._timeout, PATIENCE)
        while self._is_at_work(note):
            if time.monotonic() > end:
                raise LockedError(
                    f"`cvmfs_server {note.command}` for {self.name}, which {note.holder} started"
                    " before it was killed, is still running",
                    hint="wait for it to end, then try again",
                )
            time.sleep(_PAUSE)

    def _is_at_work(self, note: Note) -> bool:
        if _number(self._ended) is None:
            if note.child is not None and note.child.is_here():
                return True
            if note.child is None and self._may_be_running(note):
                return True
        return self._is_locked(PUBLISHING)

    def _may_be_running(self, note: Note) -> bool:
        """Whether a command whose process nobody had the time to note runs, or is about to."""
        pid = _number(self._began)
        if pid is None:
            is_run = note.command != "open"  # that a transaction is open is no command
            return is_run and note.began <= time.time() < note.began + _START
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            return os.fsencode(self._note) in words
        return False

    # running

    def _run(
        self,
        *words: str,
        flag: tuple[int, int] | None = None,
        token: tuple[int, int] | None = None,
        stdin: BinaryIO | None = None,
    ) -> None:
        """Run a command to its end; `flag` and `token` are those of our transaction, if any."""
        for path in (self._began, self._ended):
            path.unlink(missing_ok=True)
        self._write(self._note_of(words[0], flag, token))
        shown = f"`cvmfs_server {' '.join(words)}`"
        try:
            program = sh.Command(self._program)
            process = sh.Command("/bin/sh")(
                *("-c", _RUNNER, self._note, program, *words),
                _in=stdin if stdin is not None else b"",
                _err_to_out=True,
                _tty_out=False,
                _bg=True,
                _bg_exc=False,
                _new_session=True,  # Ctrl-C is for us, who then end it in order
            )
        except (sh.CommandNotFound, OSError) as error:
            self._forget()
            raise self._absent(error) from error
        try:
            self._watch(process, shown)
            process.wait()
        except sh.ErrorReturnCode as error:
            raise self._failure(shown, words[0], error) from error
        except BaseException:
            with suppress(OSError):
                process.signal_group(signal.SIGKILL)
            with suppress(sh.ErrorReturnCode):
                process.wait()
            raise

    def _watch(self, process: sh.RunningCommand, shown: str) -> None:
        """Keep the note up to date until the program ends."""
        if self._present is not None:
            self._write(replace(self._present, child=Holder.of_process(process.pid)))
        end, pulse = time.monotonic() + self._timeout, time.monotonic() + _PULSE
        while process.is_alive():
            self._note_what_appears()
            if time.monotonic() > pulse:
                os.utime(self._note)
                pulse = time.monotonic() + _PULSE
            if time.monotonic() > end:
                raise ServerError(
                    f"{shown} did not end within {self._timeout:.0f} seconds and was killed",
                    hint="raise `repository.cvmfs_server.timeout` if it needs longer",
                )
            time.sleep(_PAUSE)

    def _note_what_appears(self) -> None:
        note = self._present
        if note is None or note.command not in ("transaction", "ingest"):
            return
        flag, token = note.flag or self._flag(), note.token or self._token()
        if (flag, token) != (note.flag, note.token):
            self._write(replace(note, flag=flag, token=token))

    def _failure(self, shown: str, command: str, error: sh.ErrorReturnCode) -> ServerError:
        code = error.exit_code
        text = error.stdout.decode("utf-8", "replace")
        said = "".join(f"\n  {line[:500]}" for line in text.strip().splitlines()[-_SHOWN:])
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        hint = f"look at the messages above, and at `cvmfs_server check {self.name}`"
        if command == "transaction" and code == _INVALID:
            hint = "renew the whitelist with `cvmfs_server resign`, or migrate the repository"
        return ServerError(
            f"{shown} {how}{':' if said else ''}{said}", code=code, hint=hint, said=text
        )

    # the note

    def _note_of(
        self, command: str, flag: tuple[int, int] | None, token: tuple[int, int] | None
    ) -> Note:
        """Return a note that begins now; file systems may lag behind the clock by a tick."""
        holder = Holder.this_process(self._timeout)
        return Note(command, holder, time.time() - 0.1, flag=flag, token=token)

    def _write(self, note: Note) -> None:
        self._note.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._note.with_name(f"{self._note.name}.new")
        with temporary.open("wb") as file:
            file.write(note.dump())
            os.fsync(file.fileno())
        temporary.replace(self._note)
        self._present = note

    def _read(self) -> Note | None:
        with suppress(FileNotFoundError):
            return Note.parse(self._note.read_bytes())
        return None

    def _forget(self) -> None:
        self._present = None
        for path in (self._note, self._began, self._ended):
            path.unlink(missing_ok=True)


def parse_version(text: str) -> tuple[int, ...]:
    """Return the three numbers of a version, `2.8` as 2.8.0."""
    numbers = [int(part) for part in text.split(".")]
    return tuple([*numbers, 0, 0][:3])


def format_version(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _number(path: Path) -> int | None:
    """Return the number in a file; None if it is not written (yet)."""
    with suppress(FileNotFoundError, ValueError):
        return int(path.read_text("ascii", "replace"))
    return None


def _last_line(error: ServerError) -> str:
    return str(error).splitlines()[-1].strip()


class _Feeder:
    """Writes what a generator yields into a pipe, in a thread of its own."""

    def __init__(self, descriptor: int, pieces: Iterator[bytes]) -> None:
        self._descriptor = descriptor
        self._pieces = pieces
        self._error: BaseException | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._feed, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop; nobody reads any more."""
        self._stopped = True
        self._thread.join()

    def check(self) -> None:
        """Raise what went wrong with the content."""
        self.close()
        if self._error is not None:
            raise self._error

    def _feed(self) -> None:
        try:
            with os.fdopen(self._descriptor, "wb") as file, suppress(BrokenPipeError):
                for piece in self._pieces:
                    if self._stopped:
                        break
                    file.write(piece)
        except BrokenPipeError:
            pass  # the program ended before: its own error says why
        except (PublishError, OSError) as error:
            self._error = error
