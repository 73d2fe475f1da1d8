"""Read one blob so that nothing but the promised bytes comes out, across broken connections."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import IntegrityError, PublishError, RemoteError
from cvmfs_publish.sources.registry.client import Reply, TransferError
from cvmfs_publish.sources.registry.manifest import check_not_a_web_page

DISCARD_BYTES = 1 << 20  # read at once of what is known already
# So many new bytes make a connection good again: failures before them no longer count.  Bounds
# the repeats by the size of the blob, whatever the server does.
FORGIVEN_AFTER = 16 << 20
# RFC 9110, section 14.4: "bytes" SP first "-" last "/" ( complete-length | "*" )
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")


class VerifiedBlob:
    """A `BlobStream`: `open_at(n)` must answer with the blob from byte `n` on, or all of it.

    The last bytes are handed out only after the digest over all of them has been found right.
    """

    def __init__(
        self,
        open_at: Callable[[int], Reply],
        digest: Digest,
        size: int,
        subject: str,
        *,
        attempts: int,
        wait: Callable[[int], None],
    ) -> None:
        self._open_at = open_at
        self._digest = digest
        self._size = size
        self._subject = f"{subject}: {digest}"
        self._attempts = attempts
        self._wait = wait
        self._hasher = digest.hasher()
        self._received = 0
        self._failures = 0
        self._failed_at = 0  # bytes received when the connection last broke
        self._reply: Reply | None = None
        self._ended = False
        self._error: PublishError | None = None

    def __enter__(self) -> VerifiedBlob:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._disconnect()

    def read(self, size: int) -> bytes:
        """As promised by `BlobStream.read`."""
        if self._error is not None:
            raise self._error
        if self._ended or size <= 0:
            return b""
        try:
            while True:
                try:
                    return self._read(size)
                except TransferError as exc:
                    self._interrupted(exc)
        except PublishError as exc:
            self._error = exc
            self._disconnect()
            raise

    def _read(self, size: int) -> bytes:
        if self._reply is None:
            self._reply = self._connect()
        if self._received == self._size:
            self._check_end(self._reply)
            return b""
        data = self._reply.read(min(size, self._size - self._received))
        if not data:
            raise TransferError(f"{self._subject}: the connection ended early")
        self._hasher.update(data)
        self._received += len(data)
        if self._received == self._size:
            self._check_digest(self._reply)
        return data

    def _check_end(self, reply: Reply) -> None:
        """Everything promised is here: there must not be more."""
        if self._size == 0:
            self._check_digest(reply)
        try:
            more = reply.read(1)
        except TransferError:  # broken after the last byte; the digest has vouched for all
            more = b""
        if more:
            self._refuse(reply, f"more bytes than the promised {self._size}")
        self._ended = True
        self._disconnect()

    def _check_digest(self, reply: Reply) -> None:
        found = self._hasher.hexdigest()
        if found != self._digest.hex:
            self._refuse(
                reply, f"the {self._size} bytes received are {self._digest.algorithm}:{found}"
            )

    def _connect(self) -> Reply:
        reply = self._open_at(self._received)
        try:
            self._check_reply(reply)
            if reply.status != 206:
                self._skip(reply, self._received)
        except PublishError:
            reply.close()
            raise
        return reply

    def _check_reply(self, reply: Reply) -> None:
        if reply.status == 416:
            held = f"the server has {self._received} bytes at most"
            self._refuse(reply, f"{held}, promised {self._size}")
        if reply.status == 206:
            match = _CONTENT_RANGE.fullmatch(reply.header("Content-Range"))
            if match is None or int(match[1]) != self._received:
                shown = reply.header("Content-Range")[:100]
                raise TransferError(
                    f"{self._subject}: asked from byte {self._received}, got {shown!a}"
                )
            if match[3] not in {"*", str(self._size)}:
                self._refuse(reply, f"the server has {match[3]} bytes, promised {self._size}")
            return
        length = reply.header("Content-Length")
        if length.isascii() and length.isdigit() and int(length[:20]) != self._size:
            self._refuse(reply, f"the server has {length[:20]} bytes, promised {self._size}")

    def _skip(self, reply: Reply, count: int) -> None:
        """The server ignored the range: pass over what is here already."""
        while count > 0:
            data = reply.read(min(count, DISCARD_BYTES))
            if not data:
                raise TransferError(f"{self._subject}: the connection ended early")
            count -= len(data)

    def _interrupted(self, error: TransferError) -> None:
        self._disconnect()
        if self._received - self._failed_at >= FORGIVEN_AFTER:
            self._failures = 0
        self._failed_at = self._received
        self._failures += 1
        if not error.passing or self._failures >= self._attempts:
            raise RemoteError(
                f"{error} (after {self._received} of {self._size} bytes, "
                f"{self._failures} broken connections)",
                hint=error.hint or "try again later",
            ) from error
        self._wait(self._failures)

    def _refuse(self, reply: Reply, what: str) -> NoReturn:
        """Raise `IntegrityError`, or `RemoteError` if a web page came in place of the blob."""
        check_not_a_web_page(reply.header("Content-Type"), self._subject)
        raise IntegrityError(
            f"{self._subject}: {what}",
            hint="the registry or a cache before it is damaged; fetching again will not help",
        )

    def _disconnect(self) -> None:
        if self._reply is not None:
            self._reply.close()
            self._reply = None
