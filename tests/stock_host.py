"""A host with the stand-in for `cvmfs_server`, and repositories on it."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.repository.cvmfs_server import (
    ServerOptions,
    ServerRepository,
    ServerTransaction,
)
from cvmfs_publish.repository.native.commit import ignore_step
from cvmfs_publish.repository.native.server_conf import read_server_conf
from tests.fakes.stock_server import make_host
from tests.support import NAME, keys_of_this_run


class Clocked(ServerRepository):
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

    def repository(self, method: str = "auto", timeout: float = 60, wait: float = 0) -> Clocked:
        return Clocked(
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
        return [line.split()[0] for line in (self.base / "log").read_text().splitlines()]


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
