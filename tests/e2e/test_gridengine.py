"""Real jobs of a real Grid Engine, started in an image by what is rendered for a site."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.gridengine_cell import QUEUE, Cell, Ended, gridengine_cell
from tests.mpi_image import NO_TCP, add_mpi, isolated
from tests.worker_node import IMAGE, INSIDE, WorkerNode, worker_node

pytestmark = pytest.mark.parts

MODES = ["posix_compliant", "unix_behavior", "script_from_stdin"]
BATCH = """\
batch: {systems: [gridengine], options: {gridengine: ["-l h_rt=0:5:0"]}}
"""


@pytest.fixture(scope="module")
def node() -> Iterator[WorkerNode]:
    with worker_node(BATCH) as node:
        image = node.repository / IMAGE
        add_mpi(image)
        (image / "bin/ssh").symlink_to("busybox")  # mpirun looks for it, and does not start it
        yield node


@pytest.fixture(scope="module")
def cell(node: WorkerNode) -> Iterator[Cell]:
    """A cell with the hooks of the site: all of them in one queue, the starter in one per mode."""
    root = node.root / "cell"
    root.mkdir()
    with gridengine_cell(root) as cell:
        for mode in MODES:
            cell.add_queue(f"{mode}.q", shell_start_mode=mode)
            cell.command("qconf", "-mattr", "queue", "starter_method", starter(node), f"{mode}.q")
        cell.command("qconf", "-Mattr", "queue", node.site / "gridengine/queue.conf", QUEUE)
        yield cell


def starter(node: WorkerNode) -> str:
    return str(node.site / "gridengine/starter_method")


def script(cell: Cell, name: str, text: str) -> Path:
    path = cell.root / name
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_the_rendered_lines_of_the_queue_are_accepted(cell: Cell, node: WorkerNode) -> None:
    queue = dict(
        line.split(None, 1) for line in cell.command("qconf", "-sq", QUEUE).splitlines() if line
    )
    assert queue["starter_method"] == starter(node)
    assert queue["prolog"] == f"root@{node.site}/gridengine/prolog"


PLAIN = """\
#!/bin/sh
cat /etc/os-release; echo "$SGE_TASK_ID $1"; echo x >"$TMPDIR/y" && cat "$TMPDIR/y"
case $SGE_TASK_ID in 1) exit 0 ;; 2) exit 7 ;; 3) kill -TERM $$ ;; esac
"""
MODE = '#!/bin/sh\ncat /etc/os-release\necho "$1"\n'
HOST = "test -e /etc/debian_version && echo host; echo $0 $1\n"
# On one node; Open MPI takes the slots from PE_HOSTFILE.
MPI = {
    "inside": f"{NO_TCP} {isolated()} "
    "exec mpirun --bind-to none -n $NSLOTS --map-by slot:OVERSUBSCRIBE /ring 1000",
    "outside": NO_TCP
    + " CVMFS_RUN_IMAGE= exec mpirun --bind-to none {program} {image} -- /ring 1000",
}
PARALLEL = '#!/bin/sh\ncat /etc/os-release; echo "$NSLOTS"; cat "$PE_HOSTFILE"\n'


@dataclass(frozen=True)
class Jobs:
    """The numbers of jobs that have been submitted together."""

    template: int
    plain: int
    scripts: list[int]  # one for each mode
    programs: list[int]
    host: list[int]
    parallel: int
    mpi: dict[str, int]
    no_image: int


@pytest.fixture(scope="module")
def jobs(cell: Cell, node: WorkerNode) -> Jobs:
    mode, host = script(cell, "mode.sh", MODE), script(cell, "host.sh", HOST)
    none = "CVMFS_RUN_IMAGE=none"
    program = node.site / "bin/cvmfs-run"
    mpi = {
        name: script(
            cell, f"{name}.sh", f"#!/bin/sh\n{text.format(program=program, image=IMAGE)}\n"
        )
        for name, text in MPI.items()
    }
    slots = ("-q", QUEUE, "-pe", "smp", "4")
    return Jobs(
        template=cell.submit("-q", QUEUE, "-t", "1-3", node.site / "gridengine/submit.sh"),
        plain=cell.submit("-q", QUEUE, "-t", "1-3", script(cell, "plain.sh", PLAIN), "two words"),
        scripts=[cell.submit("-q", f"{each}.q", mode, "an argument") for each in MODES],
        # Grid Engine itself gives the shell a program's bytes in the third mode.
        programs=[
            cell.submit("-q", f"{each}.q", "-b", "y", "/bin/cat", "/etc/os-release")
            for each in MODES[:2]
        ],
        host=[
            cell.submit("-q", f"{each}.q", "-v", none, host, "x")
            for each in ("posix_compliant", "script_from_stdin")
        ],
        parallel=cell.submit("-q", QUEUE, "-pe", "smp", "2", script(cell, "pe.sh", PARALLEL)),
        mpi={
            "inside": cell.submit(*slots, mpi["inside"]),
            "outside": cell.submit(*slots, "-v", none, mpi["outside"]),
        },
        no_image=cell.submit("-q", QUEUE, "-v", f"CVMFS_RUN_IMAGE={IMAGE}-no-such", mode),
    )


def test_an_array_submitted_through_the_rendered_template_runs_from_the_tree(
    cell: Cell, jobs: Jobs
) -> None:
    for task in (1, 2, 3):
        assert cell.ended(jobs.template, task) == Ended(0, INSIDE)


def test_plain_scripts_of_an_array_run_in_the_image_and_their_statuses_arrive(
    cell: Cell, jobs: Jobs
) -> None:
    for task, status in ((1, 0), (2, 7), (3, 143)):
        assert cell.ended(jobs.plain, task) == Ended(status, f"{INSIDE}{task} two words\nx\n")


def test_every_shell_start_mode_runs_scripts_and_programs_in_the_image(
    cell: Cell, jobs: Jobs
) -> None:
    for job in jobs.scripts:
        assert cell.ended(job) == Ended(0, f"{INSIDE}an argument\n")
    for job in jobs.programs:
        assert cell.ended(job) == Ended(0, INSIDE)


def test_a_job_that_wants_no_image_is_started_as_grid_engine_would(cell: Cell, jobs: Jobs) -> None:
    posix, stdin = jobs.host
    spool = cell.root / "spool/execd/localhost/job_scripts"
    assert cell.ended(posix) == Ended(0, f"host\n{spool}/{posix} x\n")
    assert cell.ended(stdin).output.startswith("host\n")


def test_a_parallel_job_sees_its_slots_and_hosts_in_the_image(cell: Cell, jobs: Jobs) -> None:
    ended = cell.ended(jobs.parallel)
    assert ended.status == 0
    assert ended.output.startswith(f"{INSIDE}2\nlocalhost 2 {QUEUE}@localhost")


@pytest.mark.parametrize("where", sorted(MPI))
def test_ranks_pass_messages(cell: Cell, jobs: Jobs, where: str) -> None:
    assert cell.ended(jobs.mpi[where]) == Ended(0, "4 ranks, sum 6, 1000 words\n")


def test_a_job_whose_image_does_not_exist_is_put_in_error_state(cell: Cell, jobs: Jobs) -> None:
    job = jobs.no_image
    cell.wait_for(lambda: cell.state(job) == "Eqw", "the error state")
    assert "class=noimage code=66" in cell.text(job)
    assert "NAME=" not in cell.text(job)
    cell.delete(job)


def test_notifications_reach_the_command_in_the_image(cell: Cell) -> None:
    text = (
        "#!/bin/sh\n"
        "trap 'echo got USR1' USR1; trap 'echo got USR2; exit 42' USR2\n"
        "cat /etc/os-release\nwhile :; do sleep 0.1; done\n"
    )
    job = cell.submit("-q", QUEUE, "-notify", script(cell, "notify.sh", text))
    cell.wait_for(lambda: cell.text(job) == INSIDE, "the start")
    cell.command("qmod", "-sj", str(job))
    cell.wait_for(lambda: "got USR1" in cell.text(job), "USR1")
    cell.command("qmod", "-usj", str(job))
    cell.delete(job)
    ended = cell.ended(job)
    assert ended.status == 42
    assert "got USR2" in ended.output


def test_jobs_on_a_node_without_the_repository_are_queued_again_and_run_later(
    cell: Cell, node: WorkerNode
) -> None:
    def tried_again(job: int) -> bool:
        return "R" in cell.state(job)

    def has_run(job: int) -> bool:
        return cell.text(job).endswith(INSIDE)

    path = script(cell, "again.sh", "#!/bin/sh\ncat /etc/os-release\n")
    with node.without_repository():
        by_starter = cell.submit("-q", "unix_behavior.q", path)
        by_prolog = cell.submit("-q", QUEUE, path)
        # a job that needs no image does not suffer
        other = cell.submit("-q", QUEUE, "-v", "CVMFS_RUN_IMAGE=none", path)
        for job in (by_starter, by_prolog):
            cell.wait_for(partial(tried_again, job), "another try")
        assert cell.ended(other).status == 0
    for job in (by_starter, by_prolog):
        cell.wait_for(partial(has_run, job), "the job itself")
    assert "class=noservice code=69" in cell.text(by_starter)
    assert "cvmfs-run: class" not in cell.text(by_prolog)


@pytest.mark.parametrize("shell", [["dash"], ["bash", "--posix"], ["busybox", "ash"]])
def test_the_starter_runs_under_every_shell(
    node: WorkerNode, tmp_path: Path, shell: list[str]
) -> None:
    (tmp_path / "job_scripts").mkdir()
    job = tmp_path / "job_scripts" / "5"
    job.write_text('#!/bin/sh\necho "$0|$1|$PE_HOSTFILE"\n')
    job.chmod(0o755)
    done = subprocess.run(
        [*shell, starter(node), job, "a b"],
        env={"PATH": "/usr/bin:/bin", "JOB_ID": "5", "CVMFS_RUN_IMAGE": "none",
             "SGE_STARTER_SHELL_START_MODE": "posix_compliant", "PE_HOSTFILE": "/hosts"},
        capture_output=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.decode() == f"{job}|a b|/hosts\n"
