"""An HTCondor pool of one node on loopback, run by root, with folders and ports of its own.

The programs are those of a newer Debian (`tools/install-parts`): the daemons, and all that talks to
them, run in a mount namespace where its /usr is in the place of this machine's.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from tests.own_node import OwnNode, free_ports, own_node
from tests.parts import PARTS, describe, missing, test_user

USR = PARTS / "condor" / "usr"
PATH = "/usr/bin:/bin:/usr/sbin:/sbin"
START_SECONDS = 60.0  # the slot is there after five; a loaded machine gets time

# Not root, and not the user of the jobs: `daemon`, whose number is the same everywhere.
CONDOR_ID = 1

CONFIGURATION = """\
RELEASE_DIR = /usr
LIBEXEC = /usr/libexec/condor
LIB = /usr/lib/condor
LOCAL_DIR = {root}
LOG = {root}/log
SPOOL = {root}/spool
EXECUTE = {root}/execute
LOCK = {root}/lock
RUN = {root}/run
LOCAL_CONFIG_DIR = {root}/config.d
REQUIRE_LOCAL_CONFIG_FILE = false
CONDOR_IDS = {condor}.{condor}
CONDOR_HOST = 127.0.0.1
COLLECTOR_HOST = 127.0.0.1:{port}
FULL_HOSTNAME = localhost
NETWORK_HOSTNAME = localhost
NETWORK_INTERFACE = 127.0.0.1
BIND_ALL_INTERFACES = false
ENABLE_IPV6 = false
UID_DOMAIN = localhost
FILESYSTEM_DOMAIN = localhost
DAEMON_LIST = MASTER COLLECTOR NEGOTIATOR SCHEDD STARTD
USE_SHARED_PORT = false
use security:host_based
ALLOW_READ = 127.0.0.1
ALLOW_WRITE = 127.0.0.1
ALLOW_ADMINISTRATOR = 127.0.0.1
ALLOW_NEGOTIATOR = 127.0.0.1
ALLOW_DAEMON = 127.0.0.1
SEC_DEFAULT_AUTHENTICATION = OPTIONAL
SEC_DEFAULT_AUTHENTICATION_METHODS = FS
SEC_DEFAULT_ENCRYPTION = NEVER
SEC_DEFAULT_INTEGRITY = NEVER
START = true
SUSPEND = false
PREEMPT = false
KILL = false
NUM_CPUS = 8
MEMORY = 8192
BASE_CGROUP =
RunBenchmarks = false
NEGOTIATOR_INTERVAL = 1
NEGOTIATOR_MIN_INTERVAL = 1
NEGOTIATOR_CYCLE_DELAY = 1
SCHEDD_INTERVAL = 1
SCHEDD_MIN_INTERVAL = 1
UPDATE_INTERVAL = 2
JOB_START_COUNT = 20
JOB_START_DELAY = 0
JOB_STOP_COUNT = 20
JOB_STOP_DELAY = 0
"""

T = TypeVar("T")


@dataclass(frozen=True)
class Pool:
    """A running pool."""

    root: Path
    node: OwnNode

    @property
    def jobs(self) -> Path:
        """Where jobs are submitted and write; a folder of the test user."""
        return self.root / "jobs"

    def command(self, *words: str | Path, user: bool = False) -> str:
        """Run a command of HTCondor; return what it says on stdout."""
        return self.attempt(*words, user=user, check=True).stdout.decode()

    def attempt(
        self, *words: str | Path, user: bool = False, check: bool = False
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command of HTCondor, as root or the test user, whatever comes of it."""
        account = test_user()
        name, home = (account.name, account.home) if user else ("root", self.root)
        result = subprocess.run(
            self.node.inside(self.jobs, *words, user=account if user else None),
            env={
                "PATH": PATH,
                "USER": name,
                "LOGNAME": name,
                "HOME": str(home),
                "CONDOR_CONFIG": str(self.root / "condor_config"),
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )
        if check and result.returncode:
            pytest.fail(f"{describe(result)}\n{self.messages()}")
        return result

    def submit(self, file: str | Path, *words: str) -> int:
        """Submit as the test user; return the number of the cluster."""
        said = self.command("condor_submit", "-terse", file, *words, user=True)
        return int(said.partition(".")[0])

    def job(self, name: str, arguments: str, *lines: str) -> int:
        """Submit `/bin/sh ARGUMENTS`, with NAME.out, .err and .log beside each other."""
        file = self.jobs / f"{name}.sub"
        file.write_text(
            "executable = /bin/sh\ntransfer_executable = false\n"
            f"arguments = {arguments}\noutput = {name}.out\nerror = {name}.err\nlog = {name}.log\n"
            + "".join(f"{line}\n" for line in lines)
            + "queue\n"
        )
        return self.submit(file)

    def attribute(self, job: str, name: str) -> str:
        """Return an attribute of a job in the queue or in its history; empty without such a job."""
        for command in ("condor_q", "condor_history"):
            said = self.attempt(command, job, "-af", name).stdout.decode().strip()
            if said:
                return said
        return ""

    def ended(self, job: str) -> str:
        """Wait for the end of a job; return its status, or signal and - before it."""
        self.wait_for(lambda: self.attribute(job, "JobStatus") in ("3", "4"), f"the end of {job}")
        if self.attribute(job, "ExitBySignal") == "true":
            return f"-{self.attribute(job, 'ExitSignal')}"
        return self.attribute(job, "ExitCode")

    def text(self, name: str) -> str:
        """Return the text of a file jobs write; empty if there is none yet."""
        path = self.jobs / name
        return path.read_text("utf-8", "replace") if path.exists() else ""

    def wait_for(self, look: Callable[[], T], what: str) -> T:
        """Return what `look` finds, when it does."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            found = look()
            if found:
                return found
            time.sleep(0.2)
        return pytest.fail(f"waited in vain for {what}\n{self.messages()}")

    def messages(self) -> str:
        """Return the last lines of logs."""
        logs = [*self.root.glob("log/*Log*"), *self.jobs.glob("*.log"), *self.jobs.glob("*.err")]
        return "\n".join(
            f"{path}:\n{path.read_text('utf-8', 'replace')[-1500:]}" for path in sorted(logs)
        )


@contextmanager
def condor_pool(root: Path, configuration: Mapping[str, str]) -> Iterator[Pool]:
    """Run a pool with everything below `root`, which must exist.

    `configuration`: further files of configuration, by name.
    """
    if not (USR / "sbin/condor_master").exists():
        missing("HTCondor (.parts/condor)")
    with own_node(USR) as node, (root / "master.log").open("wb") as log:
        _lay_out(root, configuration)
        with subprocess.Popen(
            node.inside(root, "condor_master", "-f"),
            env={"PATH": PATH, "CONDOR_CONFIG": str(root / "condor_config")},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        ) as process:
            pool = Pool(root, node)
            try:
                _wait_for_the_slot(pool, process)
                yield pool
            finally:
                process.kill()  # the daemons end with the node


def _lay_out(root: Path, configuration: Mapping[str, str]) -> None:
    for name in ("log", "spool", "execute", "lock", "run"):
        (root / name).mkdir()
        os.chown(root / name, CONDOR_ID, CONDOR_ID)
    for name in ("config.d", "jobs"):
        (root / name).mkdir()
    os.chown(root / "jobs", test_user().uid, test_user().gid)
    (port,) = free_ports(1)
    text = CONFIGURATION.format(root=root, port=port, condor=CONDOR_ID)
    (root / "condor_config").write_text(text)
    for name, text in configuration.items():
        (root / "config.d" / name).write_text(text)


def _wait_for_the_slot(pool: Pool, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if (pool.root / "log/.collector_address").exists():
            said = pool.attempt("condor_status", "-af", "State").stdout
            if said.strip() == b"Unclaimed":
                return
        time.sleep(0.2)
    pytest.fail(f"HTCondor does not start:\n{pool.messages()}")
