"""A gateway and its publishers, played by `tests.fakes.gateway`."""

from __future__ import annotations

import atexit
import json
import subprocess
import sys
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path

from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.repository.cvmfs_server import ServerOptions
from cvmfs_publish.repository.gateway import GatewayRepository
from cvmfs_publish.repository.native.server_conf import read_server_conf
from tests.fakes.gateway import make_host, make_world
from tests.stock_host import ClockedHost
from tests.support import NAME, keys_of_this_run

ROOT = Path(__file__).resolve().parents[1]


class ClockedGateway(ClockedHost, GatewayRepository):
    """On a host whose clock shows what `now` is."""


@dataclass(frozen=True)
class Ports:
    """Where the stand-in listens."""

    web: int
    commands: int


@cache
def stand_in() -> Ports:
    """Play gateways and publishers in a process of its own, which ends when this one does."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fakes.gateway"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    atexit.register(process.kill)
    assert process.stdout is not None
    web, commands = process.stdout.readline().split()
    return Ports(int(web), int(commands))


class World:
    """A gateway with an empty repository."""

    def __init__(self, base: Path, ports: Ports, now: int) -> None:
        self.base = base
        self._ports = ports
        self._now = now
        make_world(base, NAME, keys_of_this_run(), now)

    @property
    def down(self) -> Path:
        return self.base / "gateway/down"

    def host(self, name: str) -> GatewayHost:
        """Return another publisher."""
        place = self.base / name
        program = make_host(self.base, name, NAME, self._now, self._ports.web, self._ports.commands)
        return GatewayHost(place, program)


@dataclass(frozen=True)
class GatewayHost:
    """What a test sees of one publisher."""

    place: Path
    program: Path

    def repository(
        self, timeout: float = 60, wait: float = 0, lease_wait: float = 0
    ) -> ClockedGateway:
        return ClockedGateway(
            read_server_conf(self.place / "server.conf", gateway=True),
            self.place / "state",
            LocalStore(self.place / "state/spool"),
            ServerOptions(
                self.place / "mount",
                str(self.program),
                timeout=timedelta(seconds=timeout),
                lock_wait=timedelta(seconds=wait),
                lease_wait=timedelta(seconds=lease_wait),
            ),
        )

    def fault(self, **faults: str) -> None:
        """Let something go wrong, once each: `publish_before="exit 1"`."""
        named = {place.replace("_", ":"): what for place, what in faults.items()}
        (self.place / "faults.json").write_text(json.dumps(named))

    @property
    def flag(self) -> Path:
        return self.place / "spool/in_transaction.lock"

    @property
    def token(self) -> Path:
        return self.place / "spool/session_token"

    def log(self) -> list[str]:
        """Return the commands that were run so far."""
        return (self.place / "log").read_text().splitlines()

    def commands(self) -> list[str]:
        """Return them without their arguments."""
        return [line.split()[0] for line in self.log()]

    def leases(self) -> list[str]:
        """Return on what leases were asked for."""
        return [line.partition("/")[2] for line in self.log() if line.startswith("transaction")]
