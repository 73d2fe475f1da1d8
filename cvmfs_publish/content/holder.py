"""Say in a lock file who holds the lock, and find out whether that process still lives.

The kernel frees no such lock when its holder dies, so the file has to tell enough to know.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_given_up: set[str] = set()  # owners of locks that this process could not give back


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds the lock, as its file says."""

    host: str
    boot: str  # of the kernel's run: process numbers of another one mean nothing
    namespace: str  # of process numbers: containers on one host have their own
    pid: int
    started: str  # the process's start in ticks since boot: numbers are used again
    owner: str  # random
    taken_at: str
    lease_seconds: float
    refreshed: int = 0  # changes the file, and its version, each time

    @classmethod
    def this_process(cls, lease_seconds: float) -> Holder:
        return cls.of_process(os.getpid(), lease_seconds)

    @classmethod
    def of_process(cls, pid: int, lease_seconds: float = 0) -> Holder:
        """Describe a process of this host."""
        return cls(
            host=socket.gethostname(),
            boot=_read("/proc/sys/kernel/random/boot_id"),
            namespace=_namespace(),
            pid=pid,
            started=_started(pid),
            owner=secrets.token_hex(16),
            taken_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            lease_seconds=lease_seconds,
        )

    @classmethod
    def parse(cls, data: bytes) -> Holder | None:
        """Return what a lock file says, None if it is none of ours."""
        try:
            document: dict[str, Any] = json.loads(data)
            found = cls(**document)
            numbers = (found.pid, found.refreshed, found.lease_seconds)
            texts = (found.host, found.boot, found.namespace, found.started, found.owner)
            is_sound = all(number >= 0 for number in numbers) and all(
                text.isprintable() for text in (*texts, found.taken_at)
            )
        except (ValueError, TypeError, AttributeError, RecursionError):
            return None
        return found if is_sound else None

    def dump(self) -> bytes:
        return (json.dumps(asdict(self), indent=2) + "\n").encode()

    def is_gone(self) -> bool:
        """Whether it is known to be no holder any more.

        It gave up in this process, or was a process of this host, as far as we see, and is gone.
        """
        if self.owner in _given_up:
            return True
        if not self.boot or not self.namespace:
            return False
        if self.boot != _read("/proc/sys/kernel/random/boot_id"):
            return False
        return self.namespace == _namespace() and self.started != _started(self.pid)

    def is_here(self) -> bool:
        """Whether it is known to be a process of this host that lives."""
        return (
            bool(self.started)
            and self.boot == _read("/proc/sys/kernel/random/boot_id")
            and self.namespace == _namespace()
            and self.started == _started(self.pid)
        )

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.taken_at}"


def give_up(holder: Holder) -> None:
    """Note that this process has ended what a lock was for, although its file is still there."""
    _given_up.add(holder.owner)


def _read(path: str) -> str:
    try:
        return Path(path).read_text("ascii", "replace").strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Return when a process started, empty if there is none (proc(5), /proc/pid/stat, field 22)."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    is_dead = not fields or fields[0] in ("Z", "X")
    return "" if is_dead or len(fields) < 20 else fields[19]
