"""A process that checks objects for another one; the other side is `check_worker`.

The first line on its input says in JSON which store to read; then each line is a request and is
answered by one line:

    request = [what, [arguments of one object, ...]]
    reply   = [[what is wrong or "", stored bytes read], ...]
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, Any, NamedTuple, cast

from cvmfs_publish.errors import RepositoryError

WORKER = "cvmfs_publish.repository.native.check_worker"


class Result(NamedTuple):
    """What came of looking at one object."""

    text: str  # what is wrong; "" if nothing
    stored: int = 0  # bytes that were read


class CheckProcess:
    """Runs on another core.  For one thread at a time."""

    def __init__(self, description: dict[str, Any]) -> None:
        """Start it; `description` as of `ContentStore.description`."""
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-P", "-m", WORKER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        except OSError as error:
            raise RepositoryError(
                f"a process to check objects cannot be started: {error.strerror}"
            ) from error
        self._requests = cast(IO[bytes], self._process.stdin)
        self._replies = cast(IO[bytes], self._process.stdout)
        self._send(description)

    def ask(self, what: str, arguments: Sequence[Sequence[object]]) -> list[Result]:
        """Return what is wrong with each object.

        Raises:
            RepositoryError: the process was killed.
        """
        self._send([what, arguments])
        line = self._replies.readline()
        if not line.endswith(b"\n"):
            self._fail()
        return [Result(*values) for values in json.loads(line)]

    def close(self) -> None:
        """End it, after what it is working on."""
        with suppress(BrokenPipeError):
            self._requests.close()
        self._replies.close()
        self._process.wait()

    def _send(self, message: object) -> None:
        try:
            self._requests.write(json.dumps(message).encode() + b"\n")
            self._requests.flush()
        except BrokenPipeError:
            self._fail()

    def _fail(self) -> None:
        code = self._process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        raise RepositoryError(
            f"a process that checks objects {how}",
            hint="check again, on a host with more memory if the kernel ended it for want of that",
        )
