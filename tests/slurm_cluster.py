"""A real Slurm of one node on loopback: munged, slurmctld, slurmd, without systemd and cgroups.

Keys, sockets, ports, spool and logs are the cluster's own, below one folder.  As root the daemons
have a node of their own, and jobs are those of the unprivileged test user; otherwise everything
belongs to whoever runs the tests.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.own_node import HOST, OwnNode, free_ports, own_node
from tests.parts import describe, require, run_as_test_user, test_user

START_SECONDS = 60.0  # all three answer within 2 s; a loaded machine gets time
JOB_SECONDS = 120.0  # until a job that is awaited counts as lost
CPUS = 16  # pretended, so that jobs of a test do not wait for each other


@dataclass(frozen=True)
class SlurmCluster:
    """A running cluster; programs of Slurm find it through `environment`."""

    root: Path

    @property
    def conf(self) -> Path:
        return self.root / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.conf)}

    def run(
        self,
        *words: str | Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        check: bool = False,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program of Slurm as the test user."""
        environment = {**self.environment, **(env or {})}
        return run_as_test_user(words, env=environment, cwd=cwd, check=check, timeout=JOB_SECONDS)

    def submit(
        self, *words: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> str:
        """Give a job to sbatch and return its number; sbatch must have nothing to say."""
        result = self.run("sbatch", "--parsable", *words, env=env, cwd=cwd, check=True)
        assert result.stderr == b"", describe(result)
        return result.stdout.decode().strip()

    def show(self, job: str) -> dict[str, str]:
        """Return what `scontrol show job` says about one job (or task, `12_3`)."""
        result = self.run("scontrol", "--oneliner", "show", "job", job, check=True)
        return dict(word.partition("=")[::2] for word in result.stdout.decode().split())

    def wait(self, job: str, *states: str) -> dict[str, str]:
        """Wait until a job is in one of `states` (default: it is over); return what it shows."""
        wanted = states or ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        deadline = time.monotonic() + JOB_SECONDS
        while True:
            shown = self.show(job)
            if shown["JobState"] in wanted:
                return shown
            if time.monotonic() > deadline:
                pytest.fail(f"job {job} is not {wanted}: {shown}\n{self.logs()}")
            time.sleep(0.1)

    def logs(self) -> str:
        return "\n".join(
            f"--- {path.name}\n{path.read_text('utf-8', 'replace')[-3000:]}"
            for path in sorted(self.root.glob("*.log"))
        )


@contextmanager
def running_slurm(root: Path, lines: Sequence[str] = ()) -> Iterator[SlurmCluster]:
    """Start a cluster in the empty folder `root`; `lines` are added to its slurm.conf.

    Files beside slurm.conf (job_submit.lua) must be there before.
    """
    programs = [require(name) for name in ("munged", "slurmctld", "slurmd")]
    require("sbatch")
    cluster = SlurmCluster(root)
    root.chmod(0o755)
    cluster.conf.write_text("\n".join([*_settings(root), *lines, ""]), "utf-8")
    key = root / "munge.key"
    key.touch(0o600)
    key.write_bytes(secrets.token_bytes(64))
    with ExitStack() as daemons:
        node = daemons.enter_context(own_node()) if os.geteuid() == 0 else None
        for program, options in zip(programs, _options(root), strict=True):
            daemons.enter_context(_daemon([str(program), *options], cluster, node))
            if program is programs[0]:
                _wait_until(cluster, "munge does not answer", (root / "munge.socket").exists)
        _wait_until(cluster, "the node is not idle", lambda: _node_state(cluster) == "idle")
        yield cluster


def _options(root: Path) -> tuple[list[str], ...]:
    munge = {
        "socket": root / "munge.socket",
        "key-file": root / "munge.key",
        "pid-file": root / "munged.pid",
        "seed-file": root / "munge.seed",
        "log-file": root / "munged.log",
    }
    return (
        ["--foreground", "--force", "--num-threads=2", *(f"--{k}={v}" for k, v in munge.items())],
        ["-D", "-c", "-f", str(root / "slurm.conf")],
        ["-D", "-c", "-f", str(root / "slurm.conf")],
    )


def _settings(root: Path) -> list[str]:
    controller, node = free_ports(2)
    is_root = os.geteuid() == 0
    owner = "root" if is_root else test_user().name
    host = HOST if is_root else socket.gethostname().partition(".")[0]
    return [
        "ClusterName=test",
        f"SlurmctldHost={host}(127.0.0.1)",
        f"SlurmUser={owner}",
        f"SlurmdUser={owner}",
        f"SlurmctldPort={controller}",
        f"SlurmdPort={node}",
        # Numbers of jobs are in names of folders that clusters share, as that of PMIx in /tmp.
        f"FirstJobId={controller * 100}",
        f"AuthInfo=socket={root}/munge.socket",
        f"StateSaveLocation={root}/state",
        f"SlurmdSpoolDir={root}/spool",
        f"SlurmctldPidFile={root}/slurmctld.pid",
        f"SlurmdPidFile={root}/slurmd.pid",
        f"SlurmctldLogFile={root}/slurmctld.log",
        f"SlurmdLogFile={root}/slurmd.log",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_CPU",
        "SlurmdParameters=config_overrides",
        "ReturnToService=2",
        "SwitchType=switch/none",
        "JobAcctGatherType=jobacct_gather/none",
        "AccountingStorageType=accounting_storage/none",
        "MpiDefault=none",
        "KillWait=2",
        f"NodeName={host} NodeAddr=127.0.0.1 CPUs={CPUS} State=UNKNOWN",
        f"PartitionName=test Nodes={host} Default=YES MaxTime=INFINITE OverSubscribe=NO",
    ]


@contextmanager
def _daemon(argv: list[str], cluster: SlurmCluster, node: OwnNode | None) -> Iterator[None]:
    name = Path(argv[0]).name
    with (
        (cluster.root / f"{name}.out.log").open("wb") as log,
        subprocess.Popen(
            node.inside(cluster.root, *argv) if node else argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=cluster.root,
            env={**os.environ, **cluster.environment},
        ) as process,
    ):
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _node_state(cluster: SlurmCluster) -> str:
    result = cluster.run("sinfo", "--noheader", "--format=%T")
    return result.stdout.decode().strip()


def _wait_until(cluster: SlurmCluster, otherwise: str, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not done():
        if time.monotonic() > deadline:
            pytest.fail(f"{otherwise}\n{cluster.logs()}")
        time.sleep(0.05)
