"""Hosts with the stand-in for `cvmfs_server`, or with the real one, and repositories on them.

The real one is used where it can be, which `find_real` decides: the program, its client, Apache,
overlayfs and FUSE are there, /cvmfs is not automounted, and the tests run as root.  It makes a
throw-away repository in the usual places (/cvmfs, /srv/cvmfs, /var/spool/cvmfs, /etc/cvmfs) and
removes it.  On a host that is in use, set CVMFS_PUBLISH_STAND_IN to any value: the tests keep to
the stand-in then.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.repository.cvmfs_server import (
    ServerOptions,
    ServerRepository,
    ServerTransaction,
)
from cvmfs_publish.repository.native.commit import ignore_step
from cvmfs_publish.repository.native.manifest import Manifest
from cvmfs_publish.repository.native.server_conf import default_server_conf, read_server_conf
from tests import parts
from tests.fakes.stock_server import make_host
from tests.support import NAME, keys_of_this_run


class ClockedHost(ServerRepository):
    """On a host whose clock shows what `now` is."""

    @contextmanager
    def transaction(
        self, now: int, step: Callable[[str], None] = ignore_step
    ) -> Iterator[ServerTransaction]:
        clock = self.conf.path.parent / "clock"
        new = clock.with_name(f"clock.{os.getpid()}")
        new.write_text(str(now))
        new.replace(clock)
        with super().transaction(now, step) as transaction:
            yield transaction


class StockHost:
    """What a test sees of it."""

    def __init__(self, base: Path, now: int) -> None:
        self.base = base
        base.mkdir(parents=True)
        self.program = make_host(base, NAME, keys_of_this_run(), now)

    def repository(self, method: str = "auto", timeout: float = 60, wait: float = 0) -> ClockedHost:
        return ClockedHost(
            read_server_conf(self.base / "server.conf"),
            self.base / "state",
            LocalStore(self.base / "state/spool"),
            ServerOptions(
                self.base / "mount",
                str(self.program),
                method,
                timedelta(seconds=timeout),
                timedelta(seconds=wait),
            ),
        )

    def fault(self, **faults: str) -> None:
        """Let something go wrong, once each: `publish_before="exit 1"`."""
        named = {place.replace("_", ":"): what for place, what in faults.items()}
        (self.base / "faults.json").write_text(json.dumps(named))

    @property
    def flag(self) -> Path:
        return self.base / "spool/in_transaction.lock"

    def commands(self) -> list[str]:
        """Return the commands that were run so far, without their arguments."""
        log = self.base / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [line.split()[0] for line in lines]


def configure(folder: Path, host: StockHost) -> None:
    """Write what `init` writes, for a host whose mount is not below /cvmfs."""
    (folder / "cvmfs-publish.yaml").write_text(
        f"""\
repository:
  name: {NAME}
  backend: cvmfs_server
  cvmfs_server:
    server_conf: {host.base}/server.conf
    mount: {host.base}/mount
    program: {host.program}
"""
    )


# the real one

STAND_IN = "CVMFS_PUBLISH_STAND_IN"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_REAL_SECONDS = 600  # for one command; `mkfs` waits for Apache
_HTTP = ("127.0.0.1", 80)  # where `mkfs` expects Apache


def find_real() -> Path | None:
    """Return the real `cvmfs_server` if it can be used here; None: take the stand-in."""
    found = shutil.which("cvmfs_server", path=PATH)
    can_be_used = (
        found is not None
        and STAND_IN not in parts.MACHINE_ENVIRONMENT
        and os.geteuid() == 0
        and shutil.which("cvmfs2", path=PATH) is not None
        and Path("/dev/fuse").exists()
        and "overlay" in Path("/proc/filesystems").read_text("ascii")
        and " /cvmfs autofs " not in Path("/proc/mounts").read_text()  # `mkfs` refuses it
        and _is_served()
    )
    return Path(found) if found is not None and can_be_used else None


def _is_served() -> bool:
    with suppress(OSError), socket.create_connection(_HTTP, timeout=5):
        return True
    return False


class Translated(ServerRepository):
    """Numbers and dates its revisions as the stand-in's: the clock of a real host is not ours."""

    def __init__(self, host: RealHost, state: Path, options: ServerOptions) -> None:
        conf = read_server_conf(default_server_conf(host.name))
        super().__init__(conf, state, LocalStore(state / "spool"), options)
        self._host = host

    def manifest(self) -> Manifest:
        found = super().manifest()
        known = self._host.times
        time = known.get(found.revision, max(known.values()))
        return replace(found, revision=found.revision - self._host.first + 1, timestamp=time)

    def real_revision(self) -> int:
        return super().manifest().revision

    @contextmanager
    def transaction(
        self, now: int, step: Callable[[str], None] = ignore_step
    ) -> Iterator[ServerTransaction]:
        with super().transaction(now, step) as transaction:
            yield transaction
        real = self.real_revision()
        self._host.times.setdefault(real, max(now, *self._host.times.values()))


class RealHost:
    """A throw-away repository of the real `cvmfs_server`."""

    def __init__(self, program: Path, name: str) -> None:
        self.program = program
        self.name = name
        self.mount = Path("/cvmfs") / name
        self.first = 1  # the revision that counts as the first
        self.times = {1: 0}  # of revisions, as tests say

    def run(self, *words: str) -> str:
        """Run a command; the test fails with what it said if it does."""
        ran = subprocess.run(
            [self.program, *words],
            env={**parts.MACHINE_ENVIRONMENT, "PATH": PATH},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_REAL_SECONDS,
            check=False,
            cwd="/",
        )
        if ran.returncode != 0:
            pytest.fail(f"cvmfs_server {' '.join(words)}: {ran.returncode}\n{ran.stdout}")
        return ran.stdout

    def empty(self) -> None:
        """Remove all that is in the repository."""
        if any(self.mount.iterdir()):
            self.run("transaction", self.name)
            for path in self.mount.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            self.run("publish", self.name)

    def fresh(self, state: Path, now: int) -> Callable[[], ServerRepository]:
        """Return what opens the repository, empty, at its first revision, of that time."""
        self.empty()
        options = ServerOptions(self.mount, str(self.program), timeout=timedelta(minutes=10))
        self.times = {0: now}
        self.first = Translated(self, state, options).real_revision()
        self.times = {self.first: now}
        return lambda: Translated(self, state, options)


@contextmanager
def real_host(program: Path) -> Iterator[RealHost]:
    """Make a repository with the real program, and remove it whatever happens."""
    host = RealHost(program, f"p{os.getpid()}.{NAME}")
    try:
        host.run("mkfs", "-o", "root", "-z", host.name)
        yield host
    except BaseException:
        with suppress(BaseException):  # what went wrong first is what counts
            host.run("rmfs", "-f", host.name)
        raise
    host.run("rmfs", "-f", host.name)


def in_child(work: Callable[[], None]) -> int:
    """Do something in a process of its own; return how it ended, negative if by a signal."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextmanager
def real_host_or_none() -> Iterator[RealHost | None]:
    """Make a repository with the real program, if it can be used here."""
    program = find_real()
    if program is None:
        yield None
        return
    with real_host(program) as made:
        yield made
