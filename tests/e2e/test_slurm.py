"""Real jobs of a real Slurm, through what is rendered for it, from a published tree.

All jobs are submitted at once, and each test looks at how its own ended: Slurm checks time limits
every half a minute only.  MPI jobs wait for one another, since ranks do not give the processor up.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cvmfs_publish.settings import parse
from cvmfs_publish.sites.data import templates_dir
from cvmfs_publish.sites.model import Site
from cvmfs_publish.sites.render import render_site
from cvmfs_publish.sites.writing import write_site
from tests.mpi_image import NO_TCP, add_mpi, isolated
from tests.parts import find, missing, require, test_user
from tests.slurm_cluster import SlurmCluster, running_slurm
from tests.worker_node import build_image

pytestmark = pytest.mark.parts

RUNTIMES = ["apptainer", "ch-run"]
REPOSITORY = "containers.example.org"
WORDS = 1_000_000  # of 4 bytes: far above the size from which MPI sends messages another way
HANDLER = "trap 'echo got USR1; exit 42' USR1; trap 'echo got TERM; exit 43' TERM; cat /marker; "
FOREVER = "while :; do sleep 0.1; done"


@dataclass
class Jobs:
    """A cluster with the rendered site of its one node, and the jobs submitted to it by name."""

    root: Path
    cluster: SlurmCluster
    numbers: dict[str, str] = field(default_factory=dict)

    @property
    def site(self) -> Path:
        return self.root / "site"

    @property
    def launcher(self) -> Path:
        return self.site / "bin" / "cvmfs-run"

    def submit(self, name: str, *words: str | Path, env: Mapping[str, str] | None = None) -> None:
        """Submit a job; its output, stderr included, goes into a file named after it."""
        out = self.root / "work" / f"{name}.out"
        self.numbers[name] = self.cluster.submit(
            f"--output={out}", *words, env=env, cwd=self.root / "work"
        )

    def end(self, name: str) -> tuple[str, str, str]:
        """Wait for a job's end; return its state, `STATUS:SIGNAL` and what it wrote."""
        shown = self.cluster.wait(self.numbers[name])
        return shown["JobState"], shown["ExitCode"], self.output(name)

    def output(self, name: str) -> str:
        path = self.root / "work" / f"{name}.out"
        return path.read_text("utf-8") if path.exists() else ""

    def conf(self, name: str) -> dict[str, str]:
        """Return the environment that selects a site.conf of `configure`."""
        return {"CVMFS_RUN_CONF": str(self.root / "conf" / f"{name}.conf")}


def render(root: Path, text: str) -> bytes:
    """Write the site `text` describes to its install_dir; return its site.conf."""
    site = parse(
        Site,
        f"name: test\ncvmfs: {root}/cvmfs\nrepositories: [{{name: {REPOSITORY}}}]\n"
        f"images: {{cpu: 'test:1'}}\nscratch: [{root}/scratch]\nroots: []\n{text}",
        "test.yaml",
    )
    files = render_site(site, templates_dir())
    if site.batch.systems:
        write_site(files, Path(site.install_dir))
    return files["etc/site.conf"].content


def prepare(root: Path) -> None:
    """Publish the image, render the site and its variants, make the folders of a node."""
    sandbox = root / "cvmfs" / REPOSITORY / ".flat" / "ab" / "abcdef"
    name = root / "cvmfs" / REPOSITORY / "docker.io" / "library" / "test:1"
    for folder in (sandbox, name.parent, root / "conf", root / "work", root / "scratch"):
        folder.mkdir(parents=True)
    build_image(sandbox)
    add_mpi(sandbox)
    (sandbox / "usr" / "bin" / "env").symlink_to("/bin/busybox")
    (sandbox / "bin" / "ssh").symlink_to("busybox")  # mpirun looks for it, and does not start it
    name.symlink_to("../../.flat/ab/abcdef")
    os.chown(root / "work", test_user().uid, test_user().gid)
    (root / "scratch").chmod(0o1777)
    slurm = 'batch: {systems: [slurm], options: {slurm: ["--time=5"]}}\n'
    render(root, f"install_dir: {root}/site\nruntimes: [{require('apptainer')}]\n{slurm}")
    for runtime in RUNTIMES:
        for mode in ("exec", "supervise"):
            text = f"runtimes: [{require(runtime)}]\nmode: {mode}\n"
            (root / "conf" / f"{runtime}-{mode}.conf").write_bytes(render(root, text))
    (root / "conf" / "69.conf").write_bytes(render(root, "runtimes: [/does/not/exist/ch-run]"))
    closed = root / "closed" / REPOSITORY
    closed.mkdir(parents=True)
    closed.chmod(0)
    conf = render(root, "").replace(f"{root}/cvmfs".encode(), f"{root}/closed".encode())
    (root / "conf" / "75.conf").write_bytes(conf)


def write_scripts(folder: Path, launcher: Path) -> None:
    scripts = {
        "plain.sh": '#!/bin/sh -u\ncat /marker; echo "$-" "[$1]" "[$2]" "$PWD"; exit 7\n',
        "trap.sh": f"#!/usr/bin/env sh\n{HANDLER}{FOREVER}\n",
        "srun.sh": "#!/bin/sh\n[ -e /marker ] || echo host\nsrun true\n",
        "bind.sh": f"#!/bin/sh\n#SBATCH --comment=cvmfs-run=none\n"
        f"exec {launcher} --bind /does/not/exist:/nfs test:1 -- true\n",
    }
    for name, text in scripts.items():
        (folder / name).write_text(text, "utf-8")
        (folder / name).chmod(0o755)


@pytest.fixture(scope="module")
def jobs() -> Iterator[Jobs]:
    for part in ("munged", "slurmctld", "slurmd", "sbatch", "busybox", *RUNTIMES):
        require(part)
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/var/tmp") as folder:
        root = Path(folder)
        root.chmod(0o755)
        prepare(root)
        slurm = root / "slurm"
        slurm.mkdir()
        shutil.copy(root / "site" / "slurm" / "job_submit.lua", slurm)
        lines = (root / "site" / "slurm" / "slurm.conf").read_text("utf-8").splitlines()
        # Called by the test that wants it: else it would bring the node back too early.
        lines = [line for line in lines if not line.startswith("HealthCheck")]
        with running_slurm(slurm, lines) as cluster:
            prepared = Jobs(root, cluster)
            write_scripts(root / "work", prepared.launcher)
            submit_all(prepared)
            yield prepared
            cancel_everything(prepared)


def submit_all(jobs: Jobs) -> None:
    template, work = jobs.site / "slurm" / "submit.sbatch", jobs.root / "work"
    warned = ("--time=1", "--signal=B:USR1@60")
    for runtime in RUNTIMES:
        for mode in ("exec", "supervise"):
            env = jobs.conf(f"{runtime}-{mode}")
            words = ("sh", "-c", HANDLER + FOREVER)
            jobs.submit(f"warned-{runtime}-{mode}", *warned, template, *words, env=env)
        env = jobs.conf(f"{runtime}-exec")
        jobs.submit(f"warned-{runtime}-script", *warned, work / "trap.sh", env=env)
        jobs.submit(f"script-{runtime}", work / "plain.sh", "a b", "c", env=env)
        jobs.submit(f"cancelled-{runtime}", template, "sh", "-c", HANDLER + FOREVER, env=env)
        # Without root no epilog can end processes that have left their parents.
        stray = f"sleep 600 & {'(sleep 600 &);' if os.geteuid() == 0 else ''} {FOREVER}"
        jobs.submit(f"stray-{runtime}", template, "sh", "-c", f"cat /marker; {stray}", env=env)
        array = 'cat /marker; echo "$SLURM_ARRAY_TASK_ID"; exit "$SLURM_ARRAY_TASK_ID"'
        out = f"--output={work}/array-{runtime}-%a.out"
        words = ("sh", "-c", array)
        jobs.submit(f"array-{runtime}", "--array=0-3", out, template, *words, env=env)
    plain = work / "plain.sh"
    jobs.submit("none-env", plain, "a", "b", env={"CVMFS_RUN_IMAGE": "none"})
    jobs.submit("none-comment", "--comment=mine,cvmfs-run=none", plain, "a", "b")
    jobs.submit("other-image", "--comment=cvmfs-run=no/such:1", plain, "a", "b")
    jobs.submit("uses-srun", work / "srun.sh")
    jobs.submit("bind", work / "bind.sh")
    jobs.submit(
        "tmp", template, "sh", "-c", 'echo "$TMPDIR"; touch "$TMPDIR/x"; stat -c %a:%u "$TMPDIR"'
    )
    for code in ("69", "75"):
        jobs.submit(code, template, "true", env=jobs.conf(code))
    submit_mpi(jobs)


MPI = {
    "outside": NO_TCP + " mpirun --bind-to none {run} test:1 -- /ring {words}",
    "inside": f"{NO_TCP} {isolated()}" + " {run} test:1 -- mpirun --bind-to none /ring {words}",
    "pmix": NO_TCP + " srun --mpi=pmix {run} test:1 -- /ring {words}",
    # UCX over TCP hangs at the end of MPICH 4.0 programs, also without containers.
    "pmi2": "UCX_TLS=sysv,self srun --mpi=pmi2 {run} test:1 -- /ring-mpich {words}",
}


def submit_mpi(jobs: Jobs) -> None:
    for runtime in RUNTIMES:
        for name, command in MPI.items():
            script = jobs.root / "work" / f"mpi-{name}.sh"
            line = command.format(run=jobs.launcher, words=WORDS)
            script.write_text(f"#!/bin/sh\n{line}\n", "utf-8")
            jobs.submit(
                f"mpi-{name}-{runtime}",
                *("--ntasks=3", "--comment=cvmfs-run=none"),
                *("--job-name=mpi", "--dependency=singleton"),
                script,
                env=jobs.conf(f"{runtime}-exec"),
            )


# ---------------------------------------------------------------- the template and the hook


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_array_of_jobs_runs_through_the_template(jobs: Jobs, runtime: str) -> None:
    for task in range(4):
        shown = jobs.cluster.wait(f"{jobs.numbers[f'array-{runtime}']}_{task}")
        assert shown["ExitCode"] == f"{task}:0"
        assert jobs.output(f"array-{runtime}-{task}") == f"inside\n{task}\n"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_unchanged_script_runs_in_the_default_image(jobs: Jobs, runtime: str) -> None:
    state, status, output = jobs.end(f"script-{runtime}")
    assert (state, status) == ("FAILED", "7:0")
    assert re.fullmatch(rf"inside\n\S*u\S* \[a b\] \[c\] {jobs.root}/work\n", output), output


@pytest.mark.parametrize("name", ["none-env", "none-comment"])
def test_a_script_can_stay_on_the_host(jobs: Jobs, name: str) -> None:
    _, status, output = jobs.end(name)
    assert status == "7:0"
    assert "No such file" in output
    assert "[a] [b]" in output


def test_a_comment_names_another_image(jobs: Jobs) -> None:
    state, status, output = jobs.end("other-image")
    assert (state, status) == ("FAILED", "66:0")
    assert "cvmfs-run: class=noimage code=66" in output


def test_a_script_that_calls_srun_keeps_the_host(jobs: Jobs) -> None:
    assert jobs.end("uses-srun") == ("COMPLETED", "0:0", "host\n")


def test_a_job_has_a_private_folder_for_its_files_while_it_runs(jobs: Jobs) -> None:
    state, _, output = jobs.end("tmp")
    folder = jobs.root / "scratch" / f"slurm-{jobs.numbers['tmp']}"
    assert (state, output) == ("COMPLETED", f"{folder}\n700:{test_user().uid}\n")
    wait_until_gone(folder)


def wait_until_gone(path: Path) -> None:
    deadline = time.monotonic() + 30
    while path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)  # the epilog runs when the job counts as over
    assert not path.exists()


# ---------------------------------------------------------------- signals


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_cancelled_job_is_told_and_ends_with_its_own_status(jobs: Jobs, runtime: str) -> None:
    name = f"cancelled-{runtime}"
    wait_for_output(jobs, name, "inside\n")
    jobs.cluster.run("scancel", jobs.numbers[name], check=True)
    state, status, output = jobs.end(name)
    assert (state, status) == ("CANCELLED", "43:0")
    assert "got TERM\n" in output


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_no_process_is_left_of_a_cancelled_job(jobs: Jobs, runtime: str) -> None:
    name = f"stray-{runtime}"
    wait_for_output(jobs, name, "inside\n")
    assert processes(jobs.numbers[name])
    jobs.cluster.run("scancel", jobs.numbers[name], check=True)
    jobs.end(name)
    deadline = time.monotonic() + 30
    while processes(jobs.numbers[name]) and time.monotonic() < deadline:
        time.sleep(0.1)  # KillWait of this cluster is 2 s
    assert processes(jobs.numbers[name]) == []


def processes(job: str) -> list[str]:
    """Return the command lines of processes that have the environment of a job."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            if f"SLURM_JOB_ID={job}".encode() in environment:
                found.append((folder / "cmdline").read_bytes().decode("utf-8", "replace"))
        except OSError:
            continue  # gone, or somebody else's
    return found


def wait_for_output(jobs: Jobs, name: str, text: str) -> None:
    deadline = time.monotonic() + 60
    while text not in jobs.output(name) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert text in jobs.output(name), jobs.cluster.logs()


# ---------------------------------------------------------------- MPI


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("way", MPI)
def test_ranks_pass_messages(jobs: Jobs, way: str, runtime: str) -> None:
    state, status, output = jobs.end(f"mpi-{way}-{runtime}")
    assert (state, status, output) == ("COMPLETED", "0:0", f"3 ranks, sum 3, {WORDS} words\n")


# ---------------------------------------------------------------- signals before the end of time


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("way", ["exec", "supervise", "script"])
def test_the_signal_before_the_time_is_over_reaches_the_command(
    jobs: Jobs, runtime: str, way: str
) -> None:
    assert jobs.end(f"warned-{runtime}-{way}") == ("FAILED", "42:0", "inside\ngot USR1\n")


# ---------------------------------------------------------------- jobs that are not started


def test_a_job_that_can_start_nowhere_fails_with_the_launchers_status(jobs: Jobs) -> None:
    state, status, output = jobs.end("bind")
    assert (state, status) == ("FAILED", "72:0")
    assert "cvmfs-run: class=bind code=72" in output


@pytest.mark.parametrize("code", ["69", "75"])
def test_a_job_another_node_may_start_is_queued_again(jobs: Jobs, code: str) -> None:
    shown = wait_for_restart(jobs, code)
    assert (shown["Restarts"], shown["ExitCode"]) == ("1", f"{code}:0")
    assert shown["Priority"] != "0"  # that is, held
    assert f" code={code} " in jobs.output(code)


def test_a_sick_node_is_drained_and_comes_back(jobs: Jobs) -> None:
    cancel_everything(jobs)
    repository, away = jobs.root / "cvmfs" / REPOSITORY, jobs.root / "cvmfs" / "away"
    repository.rename(away)
    try:
        jobs.submit("sick", jobs.site / "slurm" / "submit.sbatch", "true")
        assert wait_for_restart(jobs, "sick")["Priority"] != "0"  # that is, held
        assert "does not answer" in node(jobs)
        check_health(jobs)
        assert "DRAIN" in node(jobs)
    finally:
        away.rename(repository)
    check_health(jobs)
    assert "DRAIN" not in node(jobs)


def cancel_everything(jobs: Jobs) -> None:
    """End the jobs of all other tests, which must not meet a sick node."""
    jobs.cluster.run("scancel", f"--user={test_user().name}", check=True)
    deadline = time.monotonic() + 60
    # Not those that are completing: Slurm may take minutes to notice that one has ended.
    alive = ("squeue", "--noheader", "--states=PENDING,CONFIGURING,RUNNING,SUSPENDED")
    while jobs.cluster.run(*alive, check=True).stdout:
        if time.monotonic() > deadline:
            pytest.fail(f"jobs do not end\n{jobs.cluster.logs()}")
        time.sleep(0.1)


def wait_for_restart(jobs: Jobs, name: str) -> dict[str, str]:
    deadline = time.monotonic() + 60
    while True:
        shown = jobs.cluster.show(jobs.numbers[name])
        if shown["Restarts"] != "0" and shown["JobState"] == "PENDING":
            return shown
        if time.monotonic() > deadline:
            pytest.fail(f"{name} is not queued again: {shown}\n{jobs.cluster.logs()}")
        time.sleep(0.1)


def node(jobs: Jobs) -> str:
    return jobs.cluster.run("scontrol", "--oneliner", "show", "node", check=True).stdout.decode()


def check_health(jobs: Jobs) -> None:
    """Run the health check as slurmd does."""
    name = node(jobs).split()[0].partition("=")[2]
    subprocess.run(
        [jobs.site / "slurm" / "health"],
        env={"SLURMD_NODENAME": name, **jobs.cluster.environment},
        check=True,
        timeout=60,
    )


# ---------------------------------------------------------------- Lua


def test_the_hook_is_correct_lua(jobs: Jobs) -> None:
    luac = find("luac5.3") or missing("luac5.3")
    subprocess.run([luac, "-p", jobs.site / "slurm" / "job_submit.lua"], check=True, timeout=60)
