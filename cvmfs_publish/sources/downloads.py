"""Fetch one file of unknown digest to where nobody sees it, across broken connections.

The servers of such files promise no digest: that of what came is computed on the way.  A connection
that breaks is continued only if the server says by ETag or date that it is still the same file;
else everything is fetched again.  The file has no name, so nothing is left of it after the process.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import RemoteError, RepositoryError
from cvmfs_publish.sources.base import AccessDeniedError, ImageNotFoundError, RateLimitedError
from cvmfs_publish.sources.held import HeldFile, check_size
from cvmfs_publish.sources.registry.answers import host_of, parse_retry_after
from cvmfs_publish.sources.registry.auth import Request
from cvmfs_publish.sources.registry.client import RETRIED, RegistryClient, Reply, TransferError
from cvmfs_publish.sources.registry.manifest import check_not_a_web_page

PIECE = 1 << 20  # bytes read at a time
FORGIVEN_AFTER = 16 << 20  # so many new bytes make a connection good again
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")

MakeRequest = Callable[[str], Request]  # method → a request that is signed now


@dataclass(slots=True)
class _Progress:
    """What is here of a file, and how the server said which one it is."""

    file: BinaryIO
    hasher: hashlib._Hash
    received: int = 0
    validator: str = ""  # an ETag, or a date; "": the server gives neither

    def restart(self) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.hasher = hashlib.sha256()
        self.received = 0
        self.validator = ""


class Downloads:
    """Fetches files, and keeps them until the stack is closed.  For any number of threads."""

    def __init__(
        self, client: RegistryClient, stack: ExitStack, scratch: Path | None, max_bytes: int
    ) -> None:
        """`scratch`: where files are kept, None: where temporary ones go; `max_bytes` of one."""
        self.client = client
        self._stack = stack
        self._scratch = scratch
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._held: dict[str, tuple[str, HeldFile]] = {}  # the newest of each, and its state

    def state(self, make: MakeRequest, subject: str) -> str:
        """Return what a HEAD request says of a file; "" if that tells nothing of its content."""
        with self.client.request(make("HEAD"), subject) as reply:
            # A signed URL may be for GET alone, and some servers know no HEAD
            if reply.status in {400, 401, 403, 405, 501}:
                return ""
            check_status(reply, subject)
            validator = _validator(reply)
            return f"{validator} {reply.header('Content-Length')[:20]}" if validator else ""

    def hold(
        self, key: str, state: str, make: MakeRequest, subject: str, top: Digest | None = None
    ) -> HeldFile:
        """Return a file; not fetched again if its state, or the digest that is asked for, is known.

        Args:
            key: tells files apart.
            state: see `state`.
            make: makes requests for it.
            subject: how errors call it.
            top: of the file that is wanted, if there is one in particular.
        """
        with self._lock:
            known, held = self._held.get(key, ("", None))
            if held is not None and (held.top == top or (state and state == known)):
                return held
            held = self.fetch(make, subject)
            self._held[key] = state, held
            return held

    def fetch(self, make: MakeRequest, subject: str) -> HeldFile:
        """Fetch a file; raise `RemoteError`, `IntegrityError` or, for our disk, `RepositoryError`.

        It is closed with the stack.
        """
        progress = _Progress(self.new_file(), hashlib.sha256())
        failures, failed_at = 0, 0
        while True:
            try:
                self._continue(progress, make, subject)
            except TransferError as error:
                if progress.received - failed_at >= FORGIVEN_AFTER:
                    failures = 0
                failures, failed_at = failures + 1, progress.received
                if not error.passing or failures >= self.client.attempts:
                    raise RemoteError(
                        f"{error} (after {progress.received} bytes, {failures} broken connections)",
                        hint=error.hint or "try again later",
                    ) from error
                self.client.wait(failures)
            else:
                return self.finish(progress.file, progress.received, progress.hasher.hexdigest())

    def new_file(self) -> BinaryIO:
        """Return a file without a name, open until the stack is closed."""
        try:
            file = tempfile.TemporaryFile(dir=self._scratch)  # noqa: SIM115 - closed by the stack
        except OSError as error:
            raise self._cannot_write(error) from error
        return self._stack.enter_context(file)

    def write(self, file: BinaryIO, data: bytes) -> None:
        """Write to such a file; raise `RepositoryError` if there is no room."""
        try:
            file.write(data)
        except OSError as error:
            raise self._cannot_write(error) from error

    def finish(self, file: BinaryIO, size: int, digest: str) -> HeldFile:
        """Return a file that is complete."""
        try:
            file.flush()
        except OSError as error:
            raise self._cannot_write(error) from error
        found = Digest("sha256", digest)
        return HeldFile(found, size, lambda: _open_again(file), found)

    def check_size(self, size: int, subject: str) -> None:
        """Raise `IntegrityError` if a file is larger than any may be."""
        check_size(size, self._max_bytes, subject)

    def _cannot_write(self, error: OSError) -> RepositoryError:
        return RepositoryError(
            f"{self._scratch or tempfile.gettempdir()}: a download cannot be kept there: "
            f"{error.strerror}",
            hint="free space there; it is below `state`",
        )

    def _continue(self, progress: _Progress, make: MakeRequest, subject: str) -> None:
        """Fetch what is missing; raise `TransferError` if the connection breaks."""
        if progress.received and not progress.validator:
            progress.restart()
        request = make("GET")
        if progress.received:
            range_ = {"Range": f"bytes={progress.received}-", "If-Range": progress.validator}
            request = replace(request, headers={**request.headers, **range_})
        with self.client.request(request, subject) as reply:
            if reply.status == 416:  # it is shorter now, or complete: which, only a new start tells
                progress.restart()
                raise TransferError(f"{subject}: the server has no bytes behind those that came")
            check_status(reply, subject)
            check_not_a_web_page(reply.header("Content-Type"), subject)
            total = self._expected(progress, reply, subject)
            while data := reply.read(PIECE):
                progress.received += len(data)
                self.check_size(progress.received, subject)
                progress.hasher.update(data)
                self.write(progress.file, data)
        if total is not None and progress.received != total:
            raise TransferError(f"{subject}: {progress.received} of {total} bytes came")

    def _expected(self, progress: _Progress, reply: Reply, subject: str) -> int | None:
        """Return how long the file is in the end; None if the server does not say."""
        if reply.status == 206 and progress.received:
            match = _CONTENT_RANGE.fullmatch(reply.header("Content-Range"))
            if match is None or int(match[1]) != progress.received:
                shown = reply.header("Content-Range")[:100]
                raise TransferError(
                    f"{subject}: asked from byte {progress.received}, got {shown!a}"
                )
            return None if match[3] == "*" else int(match[3])
        if progress.received:
            progress.restart()
        progress.validator = _validator(reply)
        length = reply.header("Content-Length")
        if not (length.isascii() and length.isdigit()):
            return None
        self.check_size(int(length[:20]), subject)
        return int(length[:20])


def check_status(reply: Reply, subject: str) -> None:
    """Raise the error that a status other than success stands for."""
    if 200 <= reply.status < 300:
        return
    host = host_of(reply.url)
    reply.drain()
    if reply.status in {404, 410}:
        raise ImageNotFoundError(f"{subject} is not there: {host} answered {reply.status}")
    if reply.status in {401, 403}:
        raise AccessDeniedError(
            f"{subject}: {host} answered {reply.status}",
            hint="is it public?  Else it needs a login, keys or a temporary URL",
        )
    if reply.status == 429:
        asked = parse_retry_after(reply.header)
        raise RateLimitedError(
            f"{subject}: {host} answered 429 (too many requests)",
            hint=f"try again {f'after {asked}' if asked else 'later'}",
            retry_after=asked,
        )
    hint = "the server is in trouble; try again later" if reply.status in RETRIED else ""
    raise RemoteError(f"{subject}: {host} answered {reply.status}", hint=hint)


def _validator(reply: Reply) -> str:
    """Return what If-Range takes: a strong ETag, else a date (RFC 9110, section 13.1.5)."""
    tag = reply.header("ETag")
    if tag.startswith('"') and tag.isprintable():
        return tag[:1000]
    return "" if tag else reply.header("Last-Modified")[:100]


def _open_again(file: BinaryIO) -> BinaryIO:
    """Return a reader with a position of its own, which `dup` would not give."""
    return os.fdopen(os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY), "rb")
