"""Run a program to its end or to the end of its time, with everything it started."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import NamedTuple

from cvmfs_publish.errors import RemoteError

MAX_SAID = 300  # characters of a program's own words


class Ran(NamedTuple):
    """How a program ended."""

    code: int
    out: bytes
    said: bytes  # on stderr


def run_program(
    command: Sequence[str],
    *,
    environ: Mapping[str, str],
    timeout: timedelta,
    subject: str,
    given: bytes = b"",
) -> Ran:
    """Run `command` without a shell, `given` on its stdin.

    Raises `RemoteError`, which names `subject`, if it cannot be started or takes too long; then
    neither it nor anything it started in its session is alive any more.
    """
    try:
        process = subprocess.Popen(  # noqa: S603 - a list of arguments, no shell
            list(command),
            env=dict(environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else None
        raise RemoteError(f"{subject}: {command[0]} cannot be started: {reason or exc}") from exc
    with process:
        try:
            out, said = process.communicate(given, timeout=timeout.total_seconds())
        except subprocess.TimeoutExpired as exc:
            seconds = timeout.total_seconds()
            raise RemoteError(f"{subject}: {command[0]} took longer than {seconds:g}s") from exc
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return Ran(process.returncode, out, said)


def words(said: bytes) -> str:
    """Return what a program said in one printable line of bounded length."""
    text = " ".join(said[: 4 * MAX_SAID].decode("utf-8", "replace").split())[:MAX_SAID]
    return "".join(c if c.isprintable() else "?" for c in text)
