"""A Grid Engine of one node on loopback: a cell, ports and a spool of its own, run by root.

Debian's packages bring the programs; nothing of the machine's own cell is read or changed.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from tests.own_node import HOST, OwnNode, free_ports, own_node
from tests.parts import User, describe, missing, run, test_user, user_environment

PROGRAMS = Path("/usr/lib/gridengine")
SHARE = Path("/usr/share/gridengine")
QUEUE = "main.q"
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
START_SECONDS = 30.0  # the daemons answer within a second; a loaded machine gets time

BOOTSTRAP = """\
admin_user none
default_domain none
ignore_fqdn true
spooling_method classic
spooling_lib libspoolc
spooling_params {spooling}
binary_path /usr/sbin
qmaster_spool_dir {spool}/qmaster
security_mode none
listener_threads 2
worker_threads 2
scheduler_threads 1
"""

# Everything as soon as possible; the rest as qconf -ssconf shows it for a new cell.
SCHEDULER = """\
algorithm default
schedule_interval 0:0:1
maxujobs 0
queue_sort_method load
job_load_adjustments NONE
load_adjustment_decay_time 0:0:0
load_formula np_load_avg
schedd_job_info true
flush_submit_sec 1
flush_finish_sec 1
params none
reprioritize_interval 0:0:0
halftime 168
usage_weight_list cpu=1.000000,mem=0.000000,io=0.000000
compensation_factor 5.000000
weight_user 0.250000
weight_project 0.250000
weight_department 0.250000
weight_job 0.250000
weight_tickets_functional 0
weight_tickets_share 0
share_override_tickets TRUE
share_functional_shares TRUE
max_functional_jobs_to_schedule 200
report_pjob_tickets TRUE
max_pending_tasks_per_job 50
halflife_decay_list none
policy_hierarchy OFS
weight_ticket 0.500000
weight_waiting_time 0.278000
weight_deadline 3600000.000000
weight_urgency 0.500000
weight_priority 0.000000
max_reservation 0
default_duration INFINITY
"""

EXECUTION_HOST = f"""\
hostname {HOST}
load_scaling NONE
complex_values NONE
user_lists NONE
xuser_lists NONE
projects NONE
xprojects NONE
usage_scaling NONE
report_variables NONE
"""

PARALLEL = """\
pe_name smp
slots 16
user_lists NONE
xuser_lists NONE
start_proc_args NONE
stop_proc_args NONE
allocation_rule $pe_slots
control_slaves TRUE
job_is_first_task TRUE
urgency_slots min
accounting_summary FALSE
qsort_args NONE
"""


T = TypeVar("T")


@dataclass(frozen=True)
class Ended:
    """How a job ended, and what it wrote."""

    status: int
    output: str


@dataclass(frozen=True)
class Cell:
    """A running cell."""

    root: Path
    env: Mapping[str, str]
    node: OwnNode

    @property
    def output(self) -> Path:
        """Where jobs write; a folder of the test user."""
        return self.root / "output"

    def command(self, *words: str | Path) -> str:
        """Run a command of the administrator; return what it says."""
        return run(self.argv(*words), env=self.env, timeout=60).stdout.decode()

    def argv(self, *words: str | Path, user: User | None = None) -> list[str]:
        """Return the command that runs a program of Grid Engine on the node of the cell."""
        folder = self.output if user else self.root
        return self.node.inside(folder, PROGRAMS / words[0], *words[1:], user=user)

    def submit(self, *words: str | Path, env: Mapping[str, str] | None = None) -> int:
        """Submit as the test user, `qsub` style; return the number of the job."""
        done = self._as_user("qsub", "-terse", "-j", "y", "-o", self.output, *words, env=env)
        return int(done.stdout.decode().strip().partition(".")[0])

    def add_queue(self, name: str, **changes: str) -> None:
        """Add a queue like the first one, with changes."""
        text = _changed(self.command("qconf", "-sq", QUEUE), {"qname": name, **changes})
        file = self.root / name
        file.write_text(text)
        self.command("qconf", "-Aq", file)

    def delete(self, job: int) -> None:
        self._as_user("qdel", str(job))

    def _as_user(
        self, *words: str | Path, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        user = test_user()
        environment = {**user_environment(user), **self.env, **(env or {})}
        return run(self.argv(*words, user=user), env=environment, timeout=60)

    def ended(self, job: int, task: int | None = None) -> Ended:
        """Wait for the end of a job (or one task of an array)."""
        found = self.wait_for(lambda: self._accounted(job, task), f"the end of job {job}")
        assert found is not None
        return found

    def text(self, job: int, task: int | None = None) -> str:
        """Return what a job has written so far."""
        suffix = "" if task is None else f".{task}"
        found = sorted(self.output.glob(f"*.o{job}{suffix}"))
        return found[0].read_text() if found else ""

    def state(self, job: int) -> str:
        """Return the state qstat shows for a job; empty when it has ended."""
        for line in self.command("qstat", "-u", "*").splitlines()[2:]:
            words = line.split()
            if words[0] == str(job):
                return words[4]
        return ""

    def wait_for(self, look: Callable[[], T], what: str) -> T:
        """Return what `look` finds, when it does."""
        deadline = time.monotonic() + START_SECONDS * 2
        while time.monotonic() < deadline:
            found = look()
            if found:
                return found
            time.sleep(0.1)
        return pytest.fail(f"waited in vain for {what}\n{self.messages()}")

    def messages(self) -> str:
        """Return the last lines of the daemons' logs."""
        logs = sorted(self.root.glob("spool/**/messages"))
        outputs = sorted(self.output.glob("*"))
        return "\n".join(
            f"{path}:\n{path.read_text('utf-8', 'replace')[-2000:]}" for path in (*logs, *outputs)
        )

    def _accounted(self, job: int, task: int | None) -> Ended | None:
        # accounting(5): fields separated by colons; 6th number, 13th exit status, 36th task
        book = self.root / "sge/default/common/accounting"
        if not book.exists():
            return None
        for line in book.read_text().splitlines():
            words = line.split(":")
            if line[:1] == "#":
                continue
            if words[5] == str(job) and (task is None or words[35] == str(task)):
                return Ended(int(words[12]), self.text(job, task))
        return None


@contextmanager
def gridengine_cell(root: Path) -> Iterator[Cell]:
    """Run master and execution daemon with everything below `root`, which must exist.

    The queue has 16 slots, and 2 s between a notification and the kill.
    """
    if not (PROGRAMS / "sge_execd").exists():
        missing("Grid Engine (gridengine-master, -exec and -client)")
    with own_node() as node, ExitStack() as daemons:
        cell = Cell(root, _environment(root), node)
        _lay_out(cell)
        daemons.enter_context(_daemon(cell, "sge_qmaster"))
        _wait_until_it_answers(cell)
        _configure(cell)
        daemons.enter_context(_daemon(cell, "sge_execd"))
        yield cell


def _environment(root: Path) -> dict[str, str]:
    master, execution = free_ports(2)
    return {
        "PATH": PATH,
        "LANG": "C.UTF-8",
        "SGE_ROOT": str(root / "sge"),
        "SGE_CELL": "default",
        "SGE_QMASTER_PORT": str(master),
        "SGE_EXECD_PORT": str(execution),
        "SGE_ND": "1",  # the daemons stay in the foreground
    }


def _lay_out(cell: Cell) -> None:
    common = cell.root / "sge/default/common"
    spool = cell.root / "spool"
    for folder in (common, spool / "qmaster/job_scripts", spool / "execd", cell.output):
        folder.mkdir(parents=True)
    shutil.chown(cell.output, "cvmfstest", "cvmfstest")
    (cell.root / "tmp").mkdir()
    (cell.root / "tmp").chmod(0o1777)
    (cell.root / "sge/util").symlink_to(SHARE / "util")
    spooling = f"{common};{spool}/qmaster"
    (common / "bootstrap").write_text(BOOTSTRAP.format(spooling=spooling, spool=spool))
    (common / "act_qmaster").write_text(f"{HOST}\n")
    changes = {
        "execd_spool_dir": f"{spool}/execd",
        "load_report_time": "00:00:01",
        "reporting_params": "accounting=true reporting=false flush_time=00:00:01 "
        "joblog=false sharelog=00:00:00",
    }
    configuration = _changed((SHARE / "default-configuration").read_text(), changes)
    (cell.root / "configuration").write_text(configuration)
    libraries = {**cell.env, "LD_LIBRARY_PATH": str(PROGRAMS)}
    resources = SHARE / "util/resources"
    run(cell.argv("spoolinit", "classic", "libspoolc", spooling, "init"), env=libraries)
    for words in (
        ["configuration", cell.root / "configuration"],
        ["complexes", resources / "centry"],
        ["usersets", resources / "usersets"],
        ["managers", "root"],
    ):
        run(cell.argv("spooldefaults.bin", *words), env=libraries)


def _configure(cell: Cell) -> None:
    queue = _changed(
        cell.command("qconf", "-sq"),
        {
            "qname": QUEUE,
            "hostlist": HOST,
            "load_thresholds": "NONE",
            "slots": "16",
            "pe_list": "smp",
            "tmpdir": f"{cell.root}/tmp",  # folders of jobs, of which other cells have the same
            "notify": "00:00:02",
            "min_cpu_interval": "00:00:01",
        },
    )
    for option, text in (
        ("-Msconf", SCHEDULER),
        ("-Ae", EXECUTION_HOST),
        ("-Ap", PARALLEL),
        ("-Aq", queue),
    ):
        file = cell.root / f"qconf{option}"
        file.write_text(text)
        cell.command("qconf", option, file)
    cell.command("qconf", "-as", HOST)


def _changed(text: str, changes: Mapping[str, str]) -> str:
    """Return lines `name value` with other values."""
    lines = [line for line in text.splitlines() if line.split()[:1] and line[0] != "#"]
    kept = [line for line in lines if line.split()[0] not in changes]
    return "\n".join([*kept, *(f"{name} {value}" for name, value in changes.items())]) + "\n"


@contextmanager
def _daemon(cell: Cell, name: str) -> Iterator[None]:
    log = cell.root / f"{name}.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            cell.argv(name),
            env=dict(cell.env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            yield
        finally:
            process.kill()  # the daemon ends with the node; to stop in order takes it seconds


def _wait_until_it_answers(cell: Cell) -> None:
    deadline = time.monotonic() + START_SECONDS
    words = cell.argv("qconf", "-sh")
    while True:
        result = subprocess.run(
            words, env=dict(cell.env), capture_output=True, timeout=60, check=False
        )
        if result.returncode == 0:
            return
        if time.monotonic() > deadline:
            pytest.fail(f"{describe(result)}\n{cell.messages()}")
        time.sleep(0.05)
