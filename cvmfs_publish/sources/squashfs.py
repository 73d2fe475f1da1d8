"""Let `sqfs2tar` (squashfs-tools-ng) turn a squashfs into the tar stream of one layer.

The program reads a private copy, which is proven by the digest of the whole file while it is made;
it writes to a pipe and nothing else, in bounded memory.  Whatever it makes of a hostile squashfs is
then judged as every other layer is.
"""

from __future__ import annotations

import os
import resource
import select
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cvmfs_publish.errors import InputError, IntegrityError, RepositoryError
from cvmfs_publish.sources.files import PIECE, OneWayStream, translated
from cvmfs_publish.sources.held import HeldFile
from cvmfs_publish.streams.compression import RATIO_FREE

MAGIC = b"hsqs"
MEMORY = 2 << 30  # bytes of address space; an image of half a million entries takes 300 MB
STALL = 600.0  # seconds without a byte after which the program is taken to be caught in a loop
COMPLAINTS = 1 << 20  # bytes it may write to a file
SAID = 500  # characters of its complaints that are shown
_HARMLESS = "cannot pack socket"  # sockets mean nothing without the process that made them


@dataclass(frozen=True, slots=True)
class SquashfsTool:
    """How squashfs is read here."""

    program: Path | None  # sqfs2tar; None: there is none
    scratch: Path | None  # where copies are made; None: where temporary files go
    ratio: int  # how many times its size a squashfs may unpack to

    def open(self, held: HeldFile, offset: int, size: int, subject: str) -> SquashfsStream:
        """Return the layer that is `size` bytes from `offset` on; raise `InputError`."""
        if self.program is None:
            raise InputError(
                f"{subject} holds a squashfs, and there is no sqfs2tar to read it with",
                hint="install squashfs-tools-ng",
            )
        return SquashfsStream(self, self.program, held, offset, size, subject)

    @contextmanager
    def copy(self, held: HeldFile, subject: str) -> Iterator[BinaryIO]:
        """Give a private copy of a whole file that has the digest it is held by."""
        with tempfile.TemporaryFile(dir=self.scratch) as target:
            with _writing(self.scratch):
                _copy(held, 0, held.size, target, subject)
            yield target


class SquashfsStream(OneWayStream):
    """A `BlobStream` of the tar that a squashfs becomes."""

    def __init__(
        self,
        tool: SquashfsTool,
        program: Path,
        held: HeldFile,
        offset: int,
        size: int,
        subject: str,
    ) -> None:
        super().__init__()
        self._tool = tool
        self._program = program
        self._held = held
        self._offset = offset
        self._size = size
        self._subject = subject
        self._stack = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._complaints: BinaryIO | None = None
        self._received = 0

    def _read(self, size: int) -> bytes:
        process = self._process or self._start()
        if process.stdout is None:
            raise TypeError("the program was started without a pipe")
        waiting = select.poll()  # not `select`, which takes no descriptors above 1023
        waiting.register(process.stdout, select.POLLIN)
        if not waiting.poll(STALL * 1000):
            raise IntegrityError(
                f"{self._subject}: {self._program} has said nothing for {STALL:.0f} seconds",
                hint="the squashfs leads it round in a circle; build the image again",
            )
        data = os.read(process.stdout.fileno(), min(size, PIECE))
        self._received += len(data)
        if self._received > max(RATIO_FREE, self._tool.ratio * self._size):
            raise IntegrityError(
                f"{self._subject}: its squashfs grows to more than {self._tool.ratio} times its "
                f"{self._size} bytes: a decompression bomb",
                hint="raise `limits.compression_ratio` if this image is trusted",
            )
        if not data:
            self._check_end(process)
        return data

    def _start(self) -> subprocess.Popen[bytes]:
        with _writing(self._tool.scratch):
            squashfs = self._temporary()
            _copy(self._held, self._offset, self._size, squashfs, self._subject)
            self._complaints = self._temporary()
        try:
            process = subprocess.Popen(  # noqa: S603 - a program that the caller found
                # Without a root entry its mode and owner would be lost
                [self._program, "--root-becomes", ".", f"/proc/self/fd/{squashfs.fileno()}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                pass_fds=[squashfs.fileno()],
                env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
            )
        except OSError as error:
            raise InputError(
                f"{self._program} cannot be started: {error.strerror}",
                hint="install squashfs-tools-ng",
            ) from error
        self._process = process
        self._limit(process.pid)
        return process

    def _limit(self, pid: int) -> None:
        limits = {
            resource.RLIMIT_AS: MEMORY,
            resource.RLIMIT_FSIZE: COMPLAINTS,
            resource.RLIMIT_CORE: 0,
        }
        for kind, limit in limits.items():
            try:
                resource.prlimit(pid, kind, (limit, limit))
            except (ProcessLookupError, PermissionError):  # it has ended, or has less already
                return

    def _temporary(self) -> BinaryIO:
        file = tempfile.TemporaryFile(dir=self._tool.scratch)  # noqa: SIM115 - closed by the stack
        return self._stack.enter_context(file)

    def _check_end(self, process: subprocess.Popen[bytes]) -> None:
        status = process.wait()
        said = self._said()
        if status or said:
            raise IntegrityError(
                f"{self._subject}: {self._program} ended with status {status}: {said[-SAID:]}",
                hint="the squashfs is damaged; build or fetch the image again",
            )

    def _said(self) -> str:
        if self._complaints is None:
            return ""
        self._complaints.seek(0)
        lines = self._complaints.read().decode("utf-8", "replace").splitlines()
        return " ".join(
            line.strip() for line in lines if _HARMLESS not in line and not line.startswith("Skip")
        )

    def _close(self) -> None:
        if self._process is not None:
            self._process.kill()
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process.wait()
            self._process = None
        self._stack.close()


def _copy(held: HeldFile, offset: int, size: int, target: BinaryIO, subject: str) -> None:
    """Copy a part, where nobody can change it, while the whole file proves itself."""
    hasher = held.digest.hasher()
    first, last, position = offset, offset + size, 0
    with held.reader() as source:
        while piece := _read(source, subject):
            hasher.update(piece)
            target.write(piece[max(0, first - position) : max(0, last - position)])
            position += len(piece)
    if hasher.hexdigest() != held.digest.hex:
        raise IntegrityError(
            f"{subject}: the file was {held.digest} and is now sha256:{hasher.hexdigest()}",
            hint="it was changed while it was read; publish again",
        )
    target.flush()


def _read(source: BinaryIO, subject: str) -> bytes:
    with translated(subject):
        return source.read(PIECE)


@contextmanager
def _writing(scratch: Path | None) -> Iterator[None]:
    """Tell a full disk of ours from damage in what is read."""
    try:
        yield
    except OSError as error:
        raise RepositoryError(
            f"{scratch or tempfile.gettempdir()}: copying a squashfs there fails: {error.strerror}",
            hint="free space there; it is below `state`",
        ) from error
